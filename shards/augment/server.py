"""Augmentation servers: one process for each GPU, so that workers need no context on it.

Workers decode and encode; they send batches of pixels and receive what becomes of them. A worker
has at most `AHEAD` + 1 batches on the way, which bounds a server's memory. What a picture becomes
depends on neither server nor batch, so any server may take any shard.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.common.devices import is_out_of_memory
from shards.augment.operations import FAILED, Augmenter, Refused
from shards.augment.resampling import Pixels
from shards.augment.spec import Spec
from shards.augment.surfaces import Device, Floats
from shards.errors import ShardsRuntimeError

if TYPE_CHECKING:
    import torch

AHEAD = 2  # batches of a worker that wait while it encodes another one
PROGRAM = "from shards.augment.server import serve; serve()"
LONGEST = 60  # characters of a folder that a socket's path, of 107 at most, fits in
AGAIN = "run the same command again; it goes on where it stopped"
Batch = list[tuple[str, Pixels]]
Results = dict[str, list[Pixels] | Refused]


class Answer(NamedTuple):
    """The results of a batch, and the seconds that the device worked on it and that it waited."""

    results: Results
    working: float
    queueing: float


@contextlib.contextmanager
def servers(spec: Spec, seed: int, devices: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Start a server for each of torch's `devices`, and yield their addresses.

    They end with this context, and with this process.

    Raises:
        ShardsRuntimeError: one does not start.
    """
    room = tempfile.gettempdir()
    with (
        tempfile.TemporaryDirectory(dir=room if len(room) < LONGEST else "/tmp") as folder,
        contextlib.ExitStack() as stack,
    ):
        addresses = [str(Path(folder, f"{number}")) for number in range(len(devices))]
        started = [stack.enter_context(_process()) for _ in devices]
        for process, address, device in zip(started, addresses, devices, strict=True):
            _introduce(process, (spec, seed, device, address))
        for process, device in zip(started, devices, strict=True):
            if process.stdout is None or process.stdout.readline() != b"ready\n":
                raise ShardsRuntimeError(f"augmentation on {device} does not start: {AGAIN}")
        yield tuple(addresses)


@contextlib.contextmanager
def _process() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def _introduce(process: subprocess.Popen[bytes], what: Any) -> None:
    """Tell a server what it serves; its input stays open as long as this process lives."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # its output says that it ended
        process.stdin.write(pickle.dumps(what))
        process.stdin.flush()


class Remote:
    """A worker's line to a server."""

    def __init__(self, address: str) -> None:
        with _told_of_loss():
            self._line = Client(address)

    def send(self, batch: Batch) -> None:
        """Send pictures by key: uint8 (H, W, 3)."""
        with _told_of_loss():
            self._line.send(batch)

    def receive(self) -> Answer:
        """Return the results of the oldest batch on the way.

        Raises:
            ShardsRuntimeError: the server or its device was lost.
        """
        with _told_of_loss():
            answer = self._line.recv()
        if isinstance(answer, str):
            raise ShardsRuntimeError(answer)
        return Answer(*answer)

    def close(self) -> None:
        """End the line."""
        self._line.close()


@contextlib.contextmanager
def _told_of_loss() -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError) as error:
        raise ShardsRuntimeError(f"a process that augments was killed: {AGAIN}") from error


def serve() -> None:
    """Augment batches from all connections until the parent closes this process's input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    spec, seed, device, address = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_input, daemon=True).start()
    surface = Floats(device) if spec.version == 1 else Device(device)
    augmenter = Augmenter(spec, seed, surface=surface)
    work: queue.Queue[tuple[Batch, queue.Queue[Any], float]] = queue.Queue()
    with Listener(address, backlog=1024) as listener:
        threading.Thread(target=_accept, args=(listener, work), daemon=True).start()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            batch, outbox, came = work.get()
            outbox.put(answered(augmenter, batch, came))


def answered(augmenter: Augmenter, batch: Batch, came: float) -> Answer | str:
    """Return the results of a batch that came at `came` (`time.monotonic`).

    A sentence, if the device is lost.
    """
    start = time.monotonic()
    try:
        results = halved(augmenter, batch)
    except LostError as error:
        return f"{augmenter.device} was lost ({error}): {AGAIN}"
    return Answer(results, time.monotonic() - start, start - came)


class LostError(Exception):
    """The device fails even at a small, plain computation."""


def halved(augmenter: Augmenter, batch: Batch) -> Results:
    """Return the results of a batch, in halves where it does not fit the device or fails.

    A picture that alone does not fit, or fails alone, is refused; the others are not.

    Raises:
        LostError: the device is lost.
    """
    try:
        return augmenter.each(batch)
    except Exception as error:
        full = is_out_of_memory(error)
        words = str(error).partition("\n")[0] or type(error).__name__
    # Here the error is gone, and with it what held the device's memory.
    if augmenter.device is not None:
        _check_device(augmenter.device)
    if len(batch) == 1:
        words = f"it does not fit the memory of {augmenter.device}" if full else words
        return {batch[0][0]: Refused(FAILED, words)}
    half = len(batch) // 2
    return halved(augmenter, batch[:half]) | halved(augmenter, batch[half:])


def _check_device(device: torch.device) -> None:
    """Give back the memory that nothing holds, and raise `LostError` if the device is lost."""
    import torch

    try:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.empty_cache()
        if torch.ones(8, device=device).sum().item() != 8:
            raise LostError("it computes wrong sums")
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise LostError(str(error).partition("\n")[0]) from error


def _accept(listener: Listener, work: queue.Queue[Any]) -> None:
    while True:
        line = listener.accept()
        outbox: queue.Queue[Any] = queue.Queue()
        for target in (_read, _write):
            threading.Thread(target=target, args=(line, work, outbox), daemon=True).start()


def _read(line: Connection, work: queue.Queue[Any], outbox: queue.Queue[Any]) -> None:
    with contextlib.suppress(EOFError, OSError):
        while True:
            batch = line.recv()
            work.put((batch, outbox, time.monotonic()))


def _write(line: Connection, work: queue.Queue[Any], outbox: queue.Queue[Any]) -> None:
    with contextlib.suppress(OSError):
        while True:
            line.send(outbox.get())


def _end_with_input() -> None:
    while sys.stdin.buffer.read(1):
        pass
    os._exit(0)
