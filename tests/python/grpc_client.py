"""A gRPC client that makes the calls it is asked for and fails at the first surprise."""

import queue
import sys
import threading

import grpc


def channel(address):
    if len(sys.argv) > 3:
        with open(sys.argv[3], "rb") as root:
            credentials = grpc.ssl_channel_credentials(root.read())
        return grpc.secure_channel(address, credentials)
    return grpc.insecure_channel(
        address, options=[("grpc.enable_retries", 0), ("grpc.max_receive_message_length", -1)]
    )


def fails(call):
    try:
        call()
    except grpc.RpcError as error:
        return error
    raise AssertionError("it did not fail")


def calls(to):
    echo = to.unary_unary("/weft.Test/Echo")
    answer, call = echo.with_call(b"hello", metadata=(("x-sent", "7"),), timeout=20)
    assert answer == b"hello"
    head, tail = dict(call.initial_metadata()), dict(call.trailing_metadata())
    assert (head["x-head"], head["x-head-bin"]) == ("one", b"\x00\xff"), head
    assert (tail["x-tail"], tail["x-tail-bin"]) == ("7", b"\x01\x02"), tail
    assert echo(b"", timeout=20) == b""
    large = bytes(range(256)) * (4 << 12)
    assert echo(large, timeout=20) == large

    for code in grpc.StatusCode:
        if code is grpc.StatusCode.OK:
            continue
        error = fails(lambda: to.unary_unary("/weft.Test/Fail")(b"%d" % code.value[0], timeout=20))
        assert error.code() is code, (code, error)
        assert error.details() == "d\u00e9tails, 100 %", error.details()
        assert dict(error.trailing_metadata())["x-why"] == "because"

    numbers = to.unary_stream("/weft.Test/Count")(b"2000", timeout=20)
    assert [int(number) for number in numbers] == list(range(2000))
    add = to.stream_unary("/weft.Test/Add")
    assert add((b"%d" % number for number in range(500)), timeout=20) == b"124750"

    # One word each way in turn: neither side may be kept until the other has ended.
    say = queue.Queue()
    talk = to.stream_stream("/weft.Test/Chat")(iter(say.get, None), timeout=20)
    for number in range(100):
        say.put(b"%d" % number)
        assert next(talk) == b"you said %d" % number
    say.put(None)
    assert list(talk) == []
    assert talk.code() is grpc.StatusCode.OK


def many(to):
    """32 threads on one channel."""
    echo = to.unary_unary("/weft.Test/Echo")
    wrong = []

    def one(name):
        for number in range(50):
            message = b"%d/%d" % (name, number)
            if echo(message, timeout=20) != message:
                wrong.append(message)

    threads = [threading.Thread(target=one, args=(name,)) for name in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong


def deadline(to):
    error = fails(lambda: to.unary_unary("/weft.Test/Slow")(b"", timeout=0.5))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED, error
    # Cancelled in the middle of a conversation, so that it has certainly begun.
    say = queue.Queue()
    talk = to.stream_stream("/weft.Test/Chat")(iter(say.get, None), timeout=20)
    say.put(b"hello")
    assert next(talk) == b"you said hello"
    talk.cancel()
    assert fails(lambda: next(talk)).code() is grpc.StatusCode.CANCELLED
    say.put(None)


def method(to):
    """Prints the code that one call of a method ends with, and its details."""
    path = sys.argv[2].removeprefix("method:")
    try:
        print("OK", to.unary_unary(path)(b"x", timeout=20).decode())
    except grpc.RpcError as error:
        print(error.code().name, error.details())


def main():
    with channel(sys.argv[1]) as to:
        what = sys.argv[2]
        if what.startswith("method:"):
            method(to)
        else:
            {"calls": calls, "many": many, "deadline": deadline}[what](to)


main()
