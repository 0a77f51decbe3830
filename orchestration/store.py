"""Where plans lie: a folder each, with what was submitted. What became of it, the engine knows."""

from __future__ import annotations

import logging
import secrets
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from orchestration.errors import OrchestrationError
from orchestration.plan import Plan
from pipeline.common.atomic import write_text

FOLDER = "plans"
# Schedulers limit what they call a job, and Kubernetes a label to 63 characters.
LONGEST_NAME = 40
log = logging.getLogger(__name__)
FILE = "plan.json"


def new_id(name: str) -> str:
    """Return an id for a plan of recipe `name`: readable, sorted by time, and used once."""
    day = datetime.now(UTC).strftime("%y%m%d-%H%M")
    return f"{name[:LONGEST_NAME]}-{day}-{secrets.token_hex(2)}"


def save(plan: Plan, folder: Path) -> None:
    """Write the plan's file; it never changes afterwards."""
    write_text(folder / FILE, plan.model_dump_json(indent=1) + "\n")


def read(folder: Path) -> Plan:
    """Return the plan in `folder`; raises `OrchestrationError` when there is none."""
    try:
        return Plan.model_validate_json((folder / FILE).read_text())
    except OSError as error:
        raise OrchestrationError(f"{folder} holds no plan ({FILE} is missing)") from error
    except ValidationError as error:
        raise OrchestrationError(
            f"{folder / FILE} is no plan that this version reads: {error.error_count()} fields"
            " are wrong; schedule the recipe again"
        ) from error


def plans(place: Path) -> list[tuple[Plan, Path]]:
    """Return the plans under the working folder `place` and their folders, oldest first.

    One that can't be read, as another version wrote it, is told of and left out.
    """
    found = []
    for path in (place / FOLDER).glob(f"*/{FILE}"):
        try:
            found.append((read(path.parent), path.parent))
        except OrchestrationError as error:
            log.warning("%s", error)
    return sorted(found, key=lambda pair: (pair[0].created, pair[0].id))
