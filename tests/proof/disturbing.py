"""What disturbs the main job: kills, stops, a full disk, bad lines, a server that dies, a clock."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import multiprocessing
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent
HOUR = 3600
ZONES = ("UTC", "Asia/Kathmandu", "America/St_Johns", "Pacific/Chatham", "Europe/Berlin")
PR_SET_CHILD_SUBREAPER = 36


class Family:
    """The processes that descend from this one, without those that it keeps for itself."""

    def __init__(self) -> None:
        # Whoever loses its parent becomes a child of this process, not of the system's first one.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.own: set[int] = set()

    def members(self) -> list[psutil.Process]:
        """Return the processes, the oldest first."""
        found: list[psutil.Process] = []
        for child in psutil.Process().children():
            if child.pid not in self.own:
                found.append(child)
                with contextlib.suppress(psutil.Error):
                    found += child.children(recursive=True)
        return [one for one in found if _lives(one)]

    def reap(self, but: int) -> None:
        """Let those that have ended go, but not the process `but`, which is waited for."""
        for child in psutil.Process().children():
            if child.pid not in self.own and child.pid != but and not _lives(child):
                with contextlib.suppress(OSError):
                    os.waitpid(child.pid, os.WNOHANG)

    def send(self, number: int, members: list[psutil.Process]) -> int:
        """Send a signal to `members`; return how many were there to get it."""
        sent = 0
        for one in members:
            with contextlib.suppress(psutil.Error, OSError):
                one.send_signal(number)
                sent += 1
        return sent


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


class Disk:
    """A small file system of its own where that may be made, which can be filled."""

    def __init__(self, folder: Path, size: str = "64m") -> None:
        self.folder = folder
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        self.mounted = subprocess.run(mount, capture_output=True).returncode == 0

    def fill(self, leave: int) -> None:
        """Leave about so many bytes free."""
        free = shutil.disk_usage(self.folder).free - leave
        with contextlib.suppress(OSError), (self.folder / ".filler").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, free))

    def free(self) -> None:
        """Let there be room again."""
        with contextlib.suppress(FileNotFoundError):
            (self.folder / ".filler").unlink()

    def close(self) -> None:
        """Unmount."""
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.folder)], capture_output=True)


class Clock:
    """The time of day of all processes that are started with its `environment`."""

    def __init__(self, folder: Path) -> None:
        self.file, self.library = folder / "clock", folder / "clock.so"
        self.file.write_bytes(struct.pack("q", 0))
        compiler = shutil.which("cc")
        build = [str(compiler), "-shared", "-fPIC", "-O2", "-o", str(self.library)]
        build += [str(HERE / "clock.c"), "-ldl"]
        self.works = bool(compiler) and not subprocess.run(build, capture_output=True).returncode

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to have this clock."""
        if not self.works:
            return {}
        return {"LD_PRELOAD": str(self.library), "PROOF_CLOCK": str(self.file)}

    @staticmethod
    def set(file: Path, seconds: int) -> None:
        """Shift the clock in `file` by so many seconds against the machine's."""
        with file.open("r+b") as out:
            out.write(struct.pack("q", seconds))


OPEN, FAIL, STALL, CUT = range(4)


class BadLine:
    """A line to a server of this machine that can fail, stall, and cut answers short."""

    def __init__(self, port: int) -> None:
        context = multiprocessing.get_context("fork")
        self._mode, self._port = context.Value("i", OPEN), context.Value("i", 0)
        given = (port, self._mode, self._port)
        self._process = context.Process(target=_serve, args=given, daemon=True)
        self._process.start()
        while not self._port.value:
            time.sleep(0.01)
        self.pid = int(self._process.pid or 0)
        self.url = f"http://127.0.0.1:{self._port.value}"

    def set(self, mode: int) -> None:
        """Let the line be open, or in one of the bad ways from now on."""
        self._mode.value = mode

    def close(self) -> None:
        """End the line."""
        self._process.kill()
        self._process.join()


def _serve(port: int, mode: Any, own: Any) -> None:
    asyncio.run(_Line(port, mode).run(own))


class _Line:
    def __init__(self, port: int, mode: Any) -> None:
        self.port, self.mode = port, mode

    async def run(self, own: Any) -> None:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        own.value = server.sockets[0].getsockname()[1]
        await server.serve_forever()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.port)
            there = asyncio.create_task(self._pass(reader, up_writer, answers=False))
            back = asyncio.create_task(self._pass(up_reader, writer, answers=True))
            await asyncio.wait({there, back}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({there, back}, timeout=0.1)
            for one in (there, back):
                one.cancel()
            up_writer.close()
        writer.close()

    async def _pass(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, answers: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                while self.mode.value == STALL:
                    await asyncio.sleep(0.05)
                if self.mode.value == FAIL:
                    return
                if self.mode.value == CUT and answers:
                    target.write(data[: len(data) // 2])
                    await target.drain()
                    return
                target.write(data)
                await target.drain()


def around(dice: random.Random, longest: float) -> float:
    """Draw a duration in seconds: short ones as often as long ones."""
    return float(min(longest, 0.05 * (longest / 0.05) ** dice.random()))


@contextlib.contextmanager
def object_store(folder: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Run an S3 server; yield its port and process."""
    code = "import sys, time; from moto.server import ThreadedMotoServer as S;"
    code += "s = S(ip_address='127.0.0.1', port=0, verbose=False); s.start();"
    code += "print(s.get_host_and_port()[1], flush=True); sys.stdin.read()"
    environment = {**os.environ, "LD_PRELOAD": ""}
    with (folder / "s3.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline()), process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
