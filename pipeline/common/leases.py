"""Leases on folders: proof of life that needs no locks, for file systems that have none.

A holder keeps `FOLDER/.lease`, which names it, and changes it every `RENEWAL` seconds. Whoever
wants the folder watches the file: what changes is alive, what stays the same for `TERM` seconds is
dead. Both count seconds by their own monotonic clock, so a clock that is wrong or jumps decides
nothing. A lease whose holder lived on this machine is not waited for: here locks can be trusted.

A holder that was stopped for longer than `TERM` may find another's lease when it wakes: it has lost
the folder, and is told so.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from pipeline.common.documents import parse

log = logging.getLogger(__name__)

LEASE_FILE = ".lease"
# Seconds between two signs of life, and without one until a holder counts as dead.
RENEWAL, TERM = 10.0, 90.0
# Two that claimed a folder in the same moment find out after this many seconds.
FIRST_LOOK = 1.0
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@lru_cache(maxsize=1)
def this_boot() -> str:
    """Return what tells this machine, since it was started, from all others; "" if unknown."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""


@dataclass(frozen=True)
class Owner:
    """Who holds a folder: a process, and the job that it belongs to ("" where there is none)."""

    host: str
    pid: int
    job: str = ""

    @classmethod
    def this_process(cls, job: str = "") -> Owner:
        """Return the owner that this process is."""
        return cls(socket.gethostname(), os.getpid(), job)

    @classmethod
    def read(cls, text: str) -> Owner | None:
        """Return the owner that a lock file's `text` names, or None where it names none."""
        try:
            said = parse(text)
            return cls(str(said["host"]), int(said["pid"]), str(said.get("job", "")))
        except (ValueError, TypeError, KeyError, AttributeError):
            return None

    def __str__(self) -> str:
        job = f" ({self.job})" if self.job else ""
        return f"process {self.pid} on {self.host}{job}"


def read_lease(folder: Path) -> str | None:
    """Return what the lease of `folder` says; None where there is none, "" if it can't be read."""
    try:
        return (folder / LEASE_FILE).read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return ""


def is_of_this_machine(lease: str) -> bool:
    """Tell whether the holder that `lease` names ran on this machine since it was started."""
    try:
        said = parse(lease)
        return bool(this_boot()) and (said["host"], said["boot"]) == (
            socket.gethostname(),
            this_boot(),
        )
    except (ValueError, TypeError, KeyError):
        return False


class Observed:
    """What watching the lease of a folder has shown: how long it has stayed the same."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lease = read_lease(folder)
        self._since = time.monotonic()

    def look(self) -> str | None:
        """Return the lease as it is now."""
        lease = read_lease(self.folder)
        if lease != self._lease:
            self._lease, self._since = lease, time.monotonic()
        return lease

    @property
    def seconds(self) -> float:
        """Seconds for which it has stayed the same, as far as was seen."""
        return time.monotonic() - self._since


class Lease:
    """This process's lease on a folder, renewed by a thread until it is given back.

    `lost` is called, from the thread, with the owner that has taken the folder over.
    """

    def __init__(
        self, folder: Path, owner: Owner, lost: Callable[[Owner | None], None] | None = None
    ) -> None:
        """Claim `folder`, whose last holder is known to be gone."""
        self.folder, self._lost = folder, lost
        self._token = secrets.token_hex(8)
        self._said = asdict(owner) | {"boot": this_boot(), "token": self._token}
        self._renewals = 0
        self._end = threading.Event()
        for left in folder.glob(f"{LEASE_FILE}.*"):
            left.unlink(missing_ok=True)
        self._write()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def give_back(self) -> None:
        """End renewing, and remove the lease if it is still this process's."""
        self._end.set()
        self._thread.join()
        lease = read_lease(self.folder)
        if lease and self._is_mine(lease):
            (self.folder / LEASE_FILE).unlink(missing_ok=True)

    def _keep(self) -> None:
        pause = FIRST_LOOK
        while not self._end.wait(pause):
            pause = RENEWAL
            lease = read_lease(self.folder)
            if lease and not self._is_mine(lease):
                if self._lost is not None:
                    self._lost(Owner.read(lease))
                return
            try:
                self._write()
            except OSError as error:
                log.warning("%s: the lease can't be renewed (%s)", self.folder, error)

    def _is_mine(self, lease: str) -> bool:
        return self._token in lease

    def _write(self) -> None:
        """Put the lease in place with a new number, whole."""
        self._renewals += 1
        new = self.folder / f"{LEASE_FILE}.{self._token}"
        try:
            new.write_text(json.dumps(self._said | {"renewals": self._renewals}) + "\n")
            new.replace(self.folder / LEASE_FILE)
        except OSError:
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)
            raise
