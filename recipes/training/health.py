"""Watches the CCA loss: the share of the auxiliary likelihoods at their lower bound.

When the auxiliary model is paid for predicting badly, it runs to the clamp, where every likelihood
is 1e-9 and the term has no gradient any more.
"""

from __future__ import annotations

import logging
import statistics
from collections import deque
from collections.abc import Mapping

from pipeline.common.errors import RunError
from recipes.config.schema import Run

# Steps that the mean is taken over: in the first steps from random weights the share may jump.
WINDOW = 50
# Steps of the median that leaps are measured against, and the number of leaps remembered.
MEDIAN_OF, KEPT = 200, 3
# Steps between two warnings of the same run.
QUIET_STEPS = 1000
CURE = "set cca.mode=adversarial, which trains the auxiliary model to predict well"
log = logging.getLogger(__name__)


class CollapseError(RunError):
    """The auxiliary model has collapsed: the CCA term no longer says anything."""


class Watch:
    """Watches the share of likelihoods at the clamp, as a mean over the last `WINDOW` steps."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._shares: deque[float] = deque(maxlen=WINDOW)
        self._quiet_until = 0

    def check(self, step: int, metrics: Mapping[str, float]) -> None:
        """Warn above the warning threshold; above the other one raise `CollapseError`.

        Mode `published` is only warned of: it is there to be compared with.
        """
        self._shares.append(metrics["clamp_share"])
        if len(self._shares) < WINDOW:
            return
        cca, share = self.run.cca, sum(self._shares) / WINDOW
        where = f"{self.run.id}: {share:.0%} of the auxiliary likelihoods are at the clamp"
        if cca.mode == "adversarial" and share >= cca.clamp_error:
            raise CollapseError(
                f"{where} at step {step}, so the CCA term is a constant: go on from a checkpoint"
                f" before that by --from STEP, with a lower stages.{self.run.stage.name}.lr or"
                " cca.auxiliary_weight, or with cca.hyper=detached"
            )
        if share >= cca.clamp_warning and step >= self._quiet_until:
            self._quiet_until = step + QUIET_STEPS
            cure = CURE if cca.mode == "published" else "lower lr or cca.auxiliary_weight"
            log.warning("%s at step %d: %s", where, step, cure)


class SpikeWatch:
    """Finds leaps of the loss or of a gradient's norm: values far above their recent medians."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._seen: dict[str, deque[float]] = {}

    def leapt(self, step: int, found: Mapping[str, float]) -> bool:
        """Record the metrics of `step`; return whether one leapt, and warn if so."""
        factor = self.run.recipe.checkpoint.spike
        if factor is None:
            return False
        leaps = [
            f"{name} {found[name]:.4g}, {factor:g} times its median of {medians:.4g} or more"
            for name in found
            if name == "loss" or name.startswith("gradient_")
            if (medians := self._median(name, found[name])) is not None
            if found[name] > factor * medians > 0
        ]
        if leaps:
            log.warning(
                "%s: a leap at step %d (%s): the checkpoint before it is kept",
                self.run.id,
                step,
                "; ".join(leaps),
            )
        return bool(leaps)

    def _median(self, name: str, value: float) -> float | None:
        """Return the median of the values so far (None: too few), then record `value`."""
        seen = self._seen.setdefault(name, deque(maxlen=MEDIAN_OF))
        median = statistics.median(seen) if len(seen) >= MEDIAN_OF // 4 else None
        seen.append(value)
        return median
