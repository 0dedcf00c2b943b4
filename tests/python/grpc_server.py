"""A gRPC server without generated code: messages are bytes, methods say what they do."""

import sys
import threading
from concurrent import futures

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc


def metadata(context):
    return {key: value for key, value in context.invocation_metadata()}


def echo(request, context):
    context.send_initial_metadata((("x-head", "one"), ("x-head-bin", b"\x00\xff")))
    seen = metadata(context)
    context.set_trailing_metadata((("x-tail", seen.get("x-sent", "")), ("x-tail-bin", b"\x01\x02")))
    return request


def fail(request, context):
    context.set_trailing_metadata((("x-why", "because"),))
    code = next(code for code in grpc.StatusCode if code.value[0] == int(request))
    context.abort(code, "d\u00e9tails, 100 %")


def count(request, context):
    for number in range(int(request)):
        yield str(number).encode()


def add(requests, context):
    return str(sum(int(request) for request in requests)).encode()


def chat(requests, context):
    for request in requests:
        yield b"you said " + request


def slow(request, context):
    gone = threading.Event()
    context.add_callback(gone.set)
    gone.wait(20)
    return b"late"


failures = {}


def flaky(request, context):
    """Unavailable for the first two calls of a name."""
    seen = failures[request] = failures.get(request, 0) + 1
    if seen <= 2:
        context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
    return str(seen).encode()


def main():
    server = grpc.server(
        futures.ThreadPoolExecutor(32),
        options=[("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)],
    )
    unary, stream = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
    server.add_generic_rpc_handlers(
        [
            grpc.method_handlers_generic_handler(
                "weft.Test",
                {
                    "Echo": unary(echo),
                    "Fail": unary(fail),
                    "Slow": unary(slow),
                    "Flaky": unary(flaky),
                    "Count": stream(count),
                    "Add": grpc.stream_unary_rpc_method_handler(add),
                    "Chat": grpc.stream_stream_rpc_method_handler(chat),
                },
            )
        ]
    )
    checks = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    host = sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1"
    server.add_insecure_port(f"{host}:{sys.argv[1]}")
    server.start()
    # A line on standard input changes the health.
    for line in sys.stdin:
        name, status = line.split("=")
        checks.set(name, health_pb2.HealthCheckResponse.ServingStatus.Value(status.strip()))
    server.wait_for_termination()


main()
