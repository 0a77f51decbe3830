"""A store as slow as one far away: every byte to and from a server, delayed and counted."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized

CHUNK = 64 << 10
Counter = Synchronized  # of ints


@dataclass(frozen=True)
class Line:
    """How slow a store is.

    Attributes:
        latency: seconds from a request to the first byte of its answer.
        connection: bytes a second over one connection.
        total: bytes a second over all of them.
        failures: the share of requests that end with a broken connection.
    """

    latency: float = 0.03
    connection: float = 50e6
    total: float = 1e9
    failures: float = 0.001


class Server:
    """A process of its own that answers on a port of this machine, and counts what it answers."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("fork")
        self._bytes: Counter = self._context.Value("q", 0)
        self._requests: Counter = self._context.Value("q", 0)
        self._port: Counter = self._context.Value("i", 0)

    def start(self, target: Callable[..., None], *given: object) -> None:
        """Run `target`, which sets the port that it is last given, and wait for that."""
        words = (*given, self._port)
        self._process = self._context.Process(target=target, args=words, daemon=True)
        self._process.start()
        while not self._port.value:
            time.sleep(0.01)

    @property
    def url(self) -> str:
        """Where clients connect to: `AWS_ENDPOINT_URL`."""
        return f"http://127.0.0.1:{self._port.value}"

    def count(self) -> tuple[int, int]:
        """Return the bytes that were answered so far, and the number of requests."""
        return self._bytes.value, self._requests.value

    def stop(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.join()


class Throttle(Server):
    """A proxy before the server at `port` of this machine."""

    def __init__(self, port: int, line: Line) -> None:
        super().__init__()
        self.start(_serve, port, line, self._bytes, self._requests)


def _serve(port: int, line: Line, sent: Counter, asked: Counter, own: Counter) -> None:
    asyncio.run(_Proxy(port, line, sent, asked).run(own))


class _Proxy:
    def __init__(self, port: int, line: Line, sent: Counter, asked: Counter) -> None:
        self.port, self.line, self.sent, self.asked = port, line, sent, asked
        self.free = 0.0  # when the line that all connections share has sent what it was given
        self.dice = random.Random(0)

    async def run(self, own: Counter) -> None:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=4 << 20)
        own.value = server.sockets[0].getsockname()[1]
        await server.serve_forever()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.port)
        answers = asyncio.create_task(self._answers(up_reader, writer))
        try:
            while data := await reader.read(CHUNK):
                self.asked.value += 1
                await asyncio.sleep(self.line.latency)
                if self.dice.random() < self.line.failures:
                    break
                up_writer.write(data)
                await up_writer.drain()
        except ConnectionError:
            pass
        finally:
            answers.cancel()
            for one in (writer, up_writer):
                one.close()

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        free = 0.0
        while data := await reader.read(CHUNK):
            now = time.monotonic()
            free = max(free, now) + len(data) / self.line.connection
            self.free = max(self.free, now) + len(data) / self.line.total
            await asyncio.sleep(max(free, self.free) - now)
            writer.write(data)
            await writer.drain()
            self.sent.value += len(data)
        writer.close()
