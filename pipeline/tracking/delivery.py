"""The thread that sends a spool's records to MLflow, in order, and retries until they arrive.

Files and pictures do not hold records up: a thread of their own sends them (`uploads`).

A record keeps the time at which it was logged, and MLflow keeps one metric for one (name, step,
time, value); datasets, tags and files replace earlier ones. So sending a record twice, which
happens when a process is killed before it has noted the server's answer, changes nothing.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from pipeline.common.locks import FolderInUseError, folder_lock
from pipeline.tracking.errors import TrackingError
from pipeline.tracking.records import DAMAGED, FILES, Record
from pipeline.tracking.sending import Sender, find_run
from pipeline.tracking.spool import Spool, State
from pipeline.tracking.store import client, explained, first_sentence, is_rejected
from pipeline.tracking.uploads import Uploads

SECONDS_BETWEEN_BATCHES = 2.0
LONGEST_PAUSE = 30.0
RECORDS_A_READ = 1000
log = logging.getLogger(__name__)


class Delivery:
    """Delivers one spool, in a thread of its own."""

    def __init__(self, spool: Spool, state: State, uri: str | None) -> None:
        """With `uri` None, MLflow's own settings apply."""
        self.state = state
        self._spool = spool
        self._uri = uri
        self._sender: Sender | None = None
        self._uploads = Uploads(spool, self._sender_of_files)
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._first = threading.Event()
        self._refusal: Exception | None = None
        self._down_since: float | None = None
        self._thread = threading.Thread(target=self._loop, name="tracking", daemon=True)

    @property
    def done(self) -> bool:
        """Whether the store has everything that was appended, files and pictures too."""
        return self._records_done and not self._spool.waiting()

    @property
    def _records_done(self) -> bool:
        return self.state.delivered == self._spool.size()

    def start(self, seconds: float) -> None:
        """Start delivering; wait up to `seconds` for the first answer or failure of the store.

        Raises TrackingError if the store refuses the run.
        """
        self._thread.start()
        self._uploads.start()
        self._first.wait(seconds)
        if self._refusal is not None:
            self.stop()
            raise self._refusal

    def drain(self, seconds: float) -> bool:
        """Deliver without pauses for up to `seconds`; return whether everything was delivered.

        Returns earlier when only files are left, and their place does not take them.
        """
        end = time.monotonic() + seconds
        before = self._uploads.rounds
        while not self.done and self._thread.is_alive() and time.monotonic() < end:
            self._wake.set()
            self._uploads.wake()
            if self._records_done and self._uploads.rounds > before + 1 and self._uploads.stuck:
                break
            time.sleep(0.02)
        self._tell_what_waits()
        return self.done

    def _tell_what_waits(self) -> None:
        waiting = len(self._spool.waiting())
        if not self._records_done:
            log.warning(
                "%d bytes of records wait in %s, for the run to be resumed or `pipeline deliver`",
                self._spool.size() - self.state.delivered,
                self._spool.folder,
            )
        elif waiting:
            log.warning(
                "%d files and pictures wait in %s: `pipeline deliver %s` sends them",
                waiting,
                self._spool.folder,
                self._spool.folder.parent,
            )

    def stop(self) -> None:
        """Stop the threads after their current requests, and close the spool."""
        self._stopped.set()
        self._wake.set()
        self._uploads.stop()
        if self._thread.is_alive():
            self._thread.join(LONGEST_PAUSE)
        self._spool.close()

    def _loop(self) -> None:
        pause = SECONDS_BETWEEN_BATCHES
        while not self._stopped.is_set():
            try:
                more = self._deliver()
                self._note_up()
                pause = 0.0 if more else SECONDS_BETWEEN_BATCHES
            except Exception as error:  # whatever fails here must not reach the training
                if not self._first.is_set() and isinstance(error, TrackingError):
                    self._refusal = error
                    self._stopped.set()
                self._note_down(error)
                pause = min(LONGEST_PAUSE, max(1.0, 2 * pause))
            self._first.set()
            self._wake.wait(pause)
            self._wake.clear()

    def _deliver(self) -> bool:
        """Send the next records; return whether there may be more."""
        sender = self._connected()
        self._first.set()
        if self.done:
            return False
        self._spool.sync()
        records = list(self._spool.read(self.state.delivered, RECORDS_A_READ))
        for kind, group in groupby(records, key=lambda item: item[0]["kind"]):
            self._send(sender, kind, list(group))
        return len(records) == RECORDS_A_READ

    def _connected(self) -> Sender:
        """Return the sender of the run, which is created if it does not exist."""
        if self._sender is None:
            where = client(self._uri)
            with explained(where.tracking_uri):
                run_id = find_run(where, self.state)
            self.state = self._spool.save_state(self.state, run_id=run_id)
            self._sender = Sender(where, self._spool, run_id)
        return self._sender

    def _sender_of_files(self) -> Sender | None:
        """Return another sender for the same run; None while the run has not been reached yet."""
        if self._sender is None:
            return None
        return Sender(client(self._uri), self._spool, self.state.run_id)

    def _send(self, sender: Sender, kind: str, group: Sequence[tuple[Record, int]]) -> None:
        """Send records of one kind and save the state; set aside those that can never be taken."""
        together = group if kind == "metrics" else group[:1]
        if kind in FILES:
            self._spool.put_off(*together[0])
            self._uploads.wake()
        elif kind == DAMAGED:
            self._spool.set_aside(together[0][0], "it is no record")
            log.error("a line of %s is damaged, and is set aside", self._spool.folder)
        else:
            self._try(sender, kind, together)
        self.state = self._spool.save_state(self.state, delivered=together[-1][1])
        if len(together) < len(group):
            self._send(sender, kind, group[len(together) :])

    def _try(self, sender: Sender, kind: str, together: Sequence[tuple[Record, int]]) -> None:
        try:
            sender.send(kind, [record for record, _ in together])
        except Exception as error:
            if not is_rejected(error):
                raise
            # MLflow rejects whatever it is given for a run that was deleted.
            sender.refuse_deleted()
            if len(together) > 1:
                for item in together:
                    self._try(sender, kind, [item])
            else:
                log.error("MLflow can't take a record: %s", first_sentence(error))
                self._spool.set_aside(together[0][0], first_sentence(error))

    def _note_down(self, error: Exception) -> None:
        if self._down_since is None:
            self._down_since = time.monotonic()
            log.warning(
                "%s; records are kept in %s and sent later",
                first_sentence(error),
                self._spool.folder,
            )

    def _note_up(self) -> None:
        if self._down_since is not None:
            seconds = time.monotonic() - self._down_since
            self._down_since = None
            log.warning("the tracking store is back after %.0f s", seconds)


def deliver(folder: Path, seconds: float = 60.0) -> bool:
    """Send the records that wait in the run folder `folder`; return whether all were delivered.

    Raises TrackingError when the folder holds no records, or the store refuses the run.
    """
    if not (folder / "tracking" / "state.json").exists():
        raise TrackingError(f"{folder} holds no records of a run: there is no tracking/state.json")
    spool = Spool(folder)
    state = spool.load_state()
    assert state is not None
    with contextlib.suppress(FolderInUseError), folder_lock(folder):
        spool.sweep(state.delivered)
    delivery = Delivery(spool, state, None)
    try:
        delivery.start(seconds)
        return delivery.drain(seconds)
    finally:
        delivery.stop()
