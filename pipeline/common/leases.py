"""Leases on folders: proof of life that needs no locks, for file systems that have none.

A holder keeps `FOLDER/.lease`, which names it, and changes it every `RENEWAL` seconds. Whoever
wants the folder watches the file: what changes is alive, what stays the same for `TERM` seconds is
dead. Both count seconds by their own monotonic clock, so a clock that is wrong or jumps decides
nothing. A lease whose holder lived on this machine is not waited for: here locks can be trusted.

One of several that want a folder in the same moment gets it: each makes a new file, a claim, whose
name follows from what the folder showed before, so only one can; it then looks again, and gives way
if anything has changed. A claim that a dead process left is part of what the folder shows.

A holder that was stopped for longer than `TERM` may find another's lease when it wakes: it has lost
the folder, and is told so.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
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
_CLAIM = f"{LEASE_FILE}.claim-"
# Seconds between two signs of life, and seconds without one after which a holder counts as dead.
RENEWAL, TERM = 10.0, 90.0
# Seconds after which two that claimed a folder at once notice it, where new files are no proof.
FIRST_LOOK = 1.0
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@lru_cache(maxsize=1)
def this_boot() -> str:
    """Return an id of this machine and its last start; "" if unknown."""
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


def _is_of_this_machine(text: str) -> bool:
    try:
        said = parse(text)
        return bool(this_boot()) and (said["host"], said["boot"]) == (
            socket.gethostname(),
            this_boot(),
        )
    except (ValueError, TypeError, KeyError):
        return False


@dataclass(frozen=True)
class Signs:
    """The signs of a folder's holder: a lease, and claims by file name. Both are as written.

    `lease` is None where there is none, "" if it can't be read.
    """

    lease: str | None
    claims: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, folder: Path) -> Signs:
        """Return the signs in `folder` now."""
        claims = []
        for path in sorted(folder.glob(f"{_CLAIM}*")):
            with contextlib.suppress(OSError):
                claims.append((path.name, path.read_text(encoding="utf-8", errors="replace")))
        return cls(read_lease(folder), tuple(claims))

    def __bool__(self) -> bool:
        return self.lease is not None or bool(self.claims)

    @property
    def owner(self) -> Owner | None:
        """The holder that is named, if one is."""
        texts = [self.lease or "", *(text for _, text in self.claims)]
        return next((owner for text in texts if (owner := Owner.read(text))), None)

    @property
    def are_of_this_machine(self) -> bool:
        """Whether all processes that they name ran on this machine since it was started."""
        texts = [text for _, text in self.claims]
        texts += [] if self.lease is None else [self.lease]
        return all(_is_of_this_machine(text) for text in texts)

    def without(self, claim: str) -> Signs:
        """Return the signs without the claim in the file of that name."""
        return Signs(self.lease, tuple(one for one in self.claims if one[0] != claim))

    @property
    def next_claim(self) -> str:
        """The name of the file that claims a folder with these signs."""
        digest = hashlib.sha256(repr((self.lease, self.claims)).encode())
        return f"{_CLAIM}{digest.hexdigest()[:32]}"


class Observed:
    """Watches a folder, and tells how long its signs have stayed the same."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.signs = Signs.of(folder)
        self._since = time.monotonic()

    def look(self) -> Signs:
        """Return the folder's signs now."""
        signs = Signs.of(self.folder)
        if signs != self.signs:
            self.signs, self._since = signs, time.monotonic()
        return signs

    @property
    def seconds(self) -> float:
        """Seconds for which the signs have stayed the same, as far as was seen."""
        return time.monotonic() - self._since


class Lease:
    """This process's lease on a folder, renewed by a thread until it is given back.

    `lost` is called, from the thread, with the owner that has taken the folder over.
    """

    def __init__(
        self,
        folder: Path,
        owner: Owner,
        seen: Signs,
        lost: Callable[[Owner | None], None] | None = None,
    ) -> None:
        """Claim `folder`, whose last holder is known to be gone: it has shown what was `seen`.

        Raises:
            FileExistsError: another has claimed it in the same moment.
        """
        self.folder, self.owner, self._lost = folder, owner, lost
        self._token = secrets.token_hex(8)
        self._said = asdict(owner) | {"boot": this_boot(), "token": self._token}
        self._renewals = 0
        self._end = threading.Event()
        self._claim(seen)
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    @property
    def is_lost(self) -> bool:
        """Whether another has taken the folder over. A lease that can't be read proves nothing."""
        lease = read_lease(self.folder)
        return bool(lease) and not self._is_mine(str(lease))

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

    def _claim(self, seen: Signs) -> None:
        """Put the lease in place if the folder's signs are still those that were `seen`."""
        claim = self.folder / seen.next_claim
        claim.touch(exist_ok=False)
        try:
            claim.write_text(self._text(), encoding="utf-8")
            if Signs.of(self.folder).without(claim.name) != seen:
                raise FileExistsError(errno.EEXIST, "claimed by another", str(claim))
            self._write()
            for left in [*(name for name, _ in seen.claims), *self._partial()]:
                (self.folder / left).unlink(missing_ok=True)
        finally:
            claim.unlink(missing_ok=True)

    def _partial(self) -> list[str]:
        """Return the names of leases that killed holders were writing."""
        names = (path.name for path in self.folder.glob(f"{LEASE_FILE}.*"))
        return [name for name in names if not name.startswith(_CLAIM)]

    def _text(self) -> str:
        self._renewals += 1
        return json.dumps(self._said | {"renewals": self._renewals}) + "\n"

    def _write(self) -> None:
        """Put the lease in place with a new number, whole."""
        new = self.folder / f"{LEASE_FILE}.{self._token}"
        try:
            new.write_text(self._text())
            new.replace(self.folder / LEASE_FILE)
        except OSError:
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)
            raise
