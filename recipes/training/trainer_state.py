"""The state of a run beside its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from pydantic import TypeAdapter

from recipes.config.settings import Plateau
from shards.streaming.mixture import ORDER


@dataclass
class TrainerState:
    """The state of a run beside its weights: kept in checkpoints, the same on all processes."""

    step: int = 0
    best: float = math.inf
    ended: bool = False
    cost: float | None = field(default=None)
    # The last held-out cost that was an improvement, and the evaluations since without one.
    improved: float = math.inf
    without: int = 0
    # The digest of the pictures that costs are of, and whether those of this step are due still.
    judged_by: str = ""
    unevaluated: bool = False
    # The order of pictures that the run counts in (docs/streaming.md).
    order: int = ORDER
    # Steps that the optimizer took: batches that are left out do not count.
    taken: int = 0
    # Plateaus that have lowered the learning rate.
    reductions: int = 0
    # Steps whose loss or gradient leapt: the checkpoint before each of the last few is kept.
    spikes: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> TrainerState:
        """Return the state in a checkpoint's `memory`; fields of another version are ignored.

        Raises `ValueError` when something that is known is of another kind.
        """
        known = {one.name for one in fields(cls)}
        # One that says nothing of an order was written when there was only the first.
        # So was one that counts no steps of the optimizer, before any could be left out.
        said = {"order": 1, "taken": about["step"], **about["memory"]}
        kept = {name: value for name, value in said.items() if name in known}
        return _KINDS.validate_python(kept)

    def forget(self) -> None:
        """Forget all costs: earlier ones measured something else."""
        self.best = self.improved = math.inf
        self.without, self.ended = 0, False

    def judged_on(self, digest: str) -> bool:
        """Record which pictures are evaluated; return whether earlier costs were of others.

        These are forgotten then.
        """
        others = math.isfinite(self.best) and self.judged_by != digest
        if others:
            self.forget()
        self.judged_by = digest
        return others

    def judge(self, cost: float, plateau: Plateau | None) -> bool:
        """Record a held-out cost; return whether it is the stage's lowest.

        `ended` says whether that is a `plateau`: small improvements add up until they count.
        """
        lowest, self.cost = cost < self.best, cost
        self.best = min(self.best, cost)
        if plateau is not None:
            counts = cost < self.improved * (1 - plateau.improvement)
            self.improved = cost if counts else self.improved
            self.without = 0 if counts else self.without + 1
            if self.without >= plateau.patience:
                self._end_or_lower(plateau)
        return lowest

    def _end_or_lower(self, plateau: Plateau) -> None:
        if plateau.factor is None or self.reductions >= plateau.reductions:
            self.ended = True
        else:
            self.reductions, self.without = self.reductions + 1, 0


_KINDS = TypeAdapter(TrainerState)
