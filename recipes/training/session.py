"""State that the runs of one launch share, and the errors by which a run ends early."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.common.errors import RunError
from pipeline.common.progress import Progress
from recipes.launching.signals import StopRequest
from recipes.training.resume import Origin


class TrainingError(RunError):
    """Training can't go on; the message says why and what was kept."""


class Interrupted(Exception):  # noqa: N818 - not an error: the run was asked to stop
    """A run was asked to stop, and has kept its state."""


@dataclass
class Session:
    """State that the runs of one launch share."""

    accelerator: Any
    stop: StopRequest
    report: Progress
    overrides: Sequence[str] = ()
    profile: bool = False
    # Variables that were taken out of the environment.
    ignored: Mapping[str, str] = field(default_factory=dict)
    # Where runs begin, by their names, that don't go on from their own newest checkpoint.
    origins: Mapping[str, Origin] = field(default_factory=dict)

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return bool(self.accelerator.is_main_process)
