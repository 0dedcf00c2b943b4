"""A small gRPC server of the demo.

    python3 authentication.py 127.0.0.1:18106

shop.Authentication/Check answers `NAME is known` to `NAME`; the messages are plain bytes, so that
no generated code is needed. grpc.health.v1.Health/Check answers SERVING.
"""

import concurrent.futures
import signal
import sys
import threading

import grpc

SERVING = b"\x08\x01"


def main():
    (address,) = sys.argv[1:]
    pool = concurrent.futures.ThreadPoolExecutor(max_workers=16)
    # Two servers on one port would hide a mistake of the demo.
    server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
    check = grpc.unary_unary_rpc_method_handler(lambda name, _: name + b" is known")
    health = grpc.unary_unary_rpc_method_handler(lambda _, __: SERVING)
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler("shop.Authentication", {"Check": check}),
            grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": health}),
        )
    )
    if not server.add_insecure_port(address):
        sys.exit(f"cannot listen on {address}")
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told.set())
    server.start()
    told.wait()
    server.stop(grace=1).wait()


main()
