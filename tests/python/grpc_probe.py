"""A kubelet's gRPC probe: ADDRESS; what the health service says, and that nothing else is let in."""

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

to = grpc.insecure_channel(sys.argv[1], options=[("grpc.enable_retries", 0)])
answer = health_pb2_grpc.HealthStub(to).Check(health_pb2.HealthCheckRequest(), timeout=10)
assert answer.status == health_pb2.HealthCheckResponse.SERVING, answer
try:
    to.unary_unary("/weft.Test/Echo")(b"hello", timeout=10)
except grpc.RpcError as error:
    print("serving; else", error.code().name)
else:
    print("serving; else let in")
