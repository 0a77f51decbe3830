"""The thread that sends a run's files and pictures, beside the one that sends its records.

They are stored in another place than numbers: a folder that perhaps only the server reaches, a
bucket whose credentials or library may be missing here, behind a proxy that may refuse large files.
Files that can't be stored wait in the run's folder and do not hold up anything else.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from pipeline.tracking.errors import DeletedRunError
from pipeline.tracking.records import FILES, read_record
from pipeline.tracking.sending import Sender
from pipeline.tracking.spool import Spool
from pipeline.tracking.store import first_sentence, is_too_large

SECONDS_BETWEEN_LOOKS = 2.0
LONGEST_PAUSE = 60.0
log = logging.getLogger(__name__)


class Uploads:
    """Sends the waiting files of one spool, oldest first, and retries until they arrive."""

    def __init__(self, spool: Spool, connect: Callable[[], Sender | None]) -> None:
        """`connect` returns the run's sender, or None while there is no run yet."""
        self.rounds = 0
        """How often all waiting files were tried."""
        self.stuck = False
        """Whether something could not be stored at the last try."""
        self._spool = spool
        self._connect = connect
        self._sender: Sender | None = None
        self._refused: set[Path] = set()
        self._told = False
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="uploads", daemon=True)

    def start(self) -> None:
        """Start sending."""
        self._thread.start()

    def wake(self) -> None:
        """Try the waiting files now."""
        self._wake.set()

    def stop(self) -> None:
        """Stop after the current file; a send that hangs ends with the process."""
        self._stopped.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(SECONDS_BETWEEN_LOOKS)

    def _loop(self) -> None:
        pause = SECONDS_BETWEEN_LOOKS
        while not self._stopped.is_set():
            self._wake.wait(pause)
            self._wake.clear()
            try:
                self._send_all()
                pause = SECONDS_BETWEEN_LOOKS
                self.stuck = bool(self._refused)
            except Exception as error:  # whatever fails here must not reach the training
                self.stuck = True
                self._tell(error)
                pause = min(LONGEST_PAUSE, 2 * pause)
            self.rounds += 1

    def _send_all(self) -> None:
        """Send the waiting files; raises the error of the first one that could not be sent."""
        waiting = [path for path in self._spool.waiting() if path not in self._refused]
        if not waiting:
            return
        self._sender = self._sender or self._connect()
        if self._sender is None:
            return
        for path in waiting:
            if self._stopped.is_set():
                return
            self._send(self._sender, path)
        self._told = self._told and bool(self._refused)

    def _send(self, sender: Sender, path: Path) -> None:
        record = read_record(path.read_bytes())
        if record["kind"] not in FILES:
            self._spool.set_aside(record, "it is no record of a file")
            path.unlink()
            return
        if not self._spool.staged(record["staged"]).exists():
            self._spool.set_aside(record, "the file was removed before it could be stored")
            path.unlink()
            return
        try:
            sender.send(record["kind"], [record])
        except Exception as error:
            if not is_too_large(error):
                raise
            # The next files may be small enough; `pipeline deliver` tries this one again.
            self._refused.add(path)
            self._tell(error)
        else:
            self._spool.stored(path, record)

    def _tell(self, error: Exception) -> None:
        """Log once which files can't be stored where, and what to do."""
        if self._told:
            return
        self._told = True
        if isinstance(error, DeletedRunError):
            log.warning("%s", error)
            return
        log.warning(
            "files and pictures of this run can't be stored in %s (%s): they wait in %s, metrics"
            " go on without them; `pipeline deliver %s` sends them once that is fixed",
            self._place(),
            first_sentence(error),
            self._spool.folder,
            self._spool.folder.parent,
        )

    def _place(self) -> str:
        try:
            return "the tracking store" if self._sender is None else self._sender.place_of_files()
        except Exception:  # it is down, and its name is not worth another failure
            return "the tracking store"
