"""A run's reference: its MLflow id, or `key:KEY` while no store has given it an id yet.

Model files and `run.json` hold references, so that a run that began while the tracking server was
down is found once its records have arrived. KEY is 32 hex digits that the run's own folder draws.
"""

from __future__ import annotations

import re

_BY_KEY = "key:"
_WHOLE = re.compile(r"key:([0-9a-f]{32})")


def by_key(key: str) -> str:
    """Return the reference of the run with this key."""
    return _BY_KEY + key


def key_of(reference: str | None) -> str | None:
    """Return the key in a reference by key; None for an id and for anything else."""
    found = _WHOLE.fullmatch(reference or "")
    return found[1] if found else None


def id_of(reference: str | None) -> str | None:
    """Return a reference that is an MLflow id; None for one by key, and where there is none."""
    return None if not reference or reference.startswith(_BY_KEY) else reference
