"""A folder served as a bucket of S3, as slow as a store far away: reading alone.

It paces its answers itself and copies nothing, so that two cores carry more of it than of a server
behind a proxy (`throttle`), whose every byte passes through Python three times.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from aiohttp import web

from tests.benchmarks.throttle import Counter, Line, Server

CHUNK = 256 << 10


class Bucket(Server):
    """Serves the files of a folder as `s3://bucket/`."""

    def __init__(self, folder: Path, line: Line) -> None:
        super().__init__()
        self._most: Counter = self._context.Value("q", 0)
        served = _Served(folder, line, self._bytes, self._requests, self._most)
        self.start(_serve, served)

    def most(self) -> int:
        """Return the most requests that were under way at once."""
        return self._most.value


def _serve(served: _Served, port: Counter) -> None:
    asyncio.run(served.run(port))


class _Served:
    def __init__(
        self,
        folder: Path,
        line: Line,
        sent: Counter,
        asked: Counter,
        most: Counter,
    ) -> None:
        self.folder, self.line = folder, line
        self.sent, self.asked, self.most = sent, asked, most
        self.free = 0.0  # when the line that all connections share has sent what it was given
        self.under_way = 0

    async def run(self, port: Counter) -> None:
        runner = web.ServerRunner(web.Server(self._answer), access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port.value = runner.addresses[0][1]
        await asyncio.Event().wait()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked.value += 1
        await asyncio.sleep(self.line.latency)
        path = self.folder / request.path.removeprefix("/bucket/")
        if request.method not in ("GET", "HEAD") or not path.is_file():
            return web.Response(status=404)
        size = path.stat().st_size
        part = request.http_range
        begin, end, _ = part.indices(size)
        whole = part.start is None and part.stop is None
        answer = web.StreamResponse(status=200 if whole else 206)
        answer.content_length = end - begin
        answer.last_modified = path.stat().st_mtime
        answer.headers["ETag"] = f'"{size:x}"'
        answer.headers["Accept-Ranges"] = "bytes"
        if not whole:
            answer.headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
        await answer.prepare(request)
        if request.method == "GET":
            self.under_way += 1
            self.most.value = max(self.most.value, self.under_way)
            try:
                await self._send(answer, path, begin, end)
            finally:
                self.under_way -= 1
        return answer

    async def _send(self, answer: web.StreamResponse, path: Path, begin: int, end: int) -> None:
        free = 0.0
        with path.open("rb") as file:
            file.seek(begin)
            while begin < end:
                data = file.read(min(CHUNK, end - begin))
                begin += len(data)
                now = time.monotonic()
                free = max(free, now) + len(data) / self.line.connection
                self.free = max(self.free, now) + len(data) / self.line.total
                await asyncio.sleep(max(free, self.free) - now)
                await answer.write(data)
                self.sent.value += len(data)
        await answer.write_eof()
