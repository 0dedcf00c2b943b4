"""A WebSocket client that goes through one conversation and fails at the first surprise."""

import asyncio
import os
import ssl
import sys

import websockets


def context():
    if len(sys.argv) < 3:
        return None
    trust = ssl.create_default_context(cafile=sys.argv[2])
    # What a browser does: a WebSocket needs HTTP/1.1, which ALPN must give.
    trust.set_alpn_protocols(["http/1.1"])
    return trust


async def main():
    url = sys.argv[1]
    options = {"max_size": None, "ping_interval": None, "ssl": context()}
    async with websockets.connect(url, **options) as connection:
        # The server speaks first.
        assert await connection.recv() == "path /chat?room=1"
        for message in ["hello", "", "\u20ac" * 1000, b"\x00\xff" * 10]:
            await connection.send(message)
            assert await connection.recv() == message, message
        large = os.urandom(1 << 20)
        await connection.send(large)
        assert await connection.recv() == large
        await connection.send(iter(["a", "b", "c"]))
        assert await connection.recv() == "abc"
        pong = await connection.ping(b"are you there")
        await pong
        # Quiet for longer than any HTTP timeout of the listener.
        await asyncio.sleep(1)
        await connection.send("many")
        for number in range(1000):
            assert await connection.recv() == f"message {number}"
        await connection.send("close")
        try:
            await connection.recv()
            raise AssertionError("still open")
        except websockets.ConnectionClosed as closed:
            assert (closed.rcvd.code, closed.rcvd.reason) == (4001, "as asked"), closed


asyncio.run(asyncio.wait_for(main(), 20))
