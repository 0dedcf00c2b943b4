"""A WebSocket server: echoes what comes, and says what it is told to say."""

import asyncio
import sys

import websockets


async def serve(connection):
    await connection.send(f"path {connection.request.path}")
    async for message in connection:
        if message == "close":
            await connection.close(4001, "as asked")
        elif message == "many":
            for number in range(1000):
                await connection.send(f"message {number}")
        else:
            await connection.send(message)


async def main():
    host = sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1"
    async with websockets.serve(
        serve, host, int(sys.argv[1]), max_size=None, ping_interval=None
    ):
        await asyncio.get_running_loop().create_future()


asyncio.run(main())
