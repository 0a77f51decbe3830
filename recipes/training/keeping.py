"""Keeps a run on disk: its checkpoints, its model, and the state that reproduces a failure."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pipeline.common.machine import give_back_memory
from recipes.config.schema import Run
from recipes.config.settings import RecipeError
from recipes.training import checkpoint, results
from recipes.training.ema import Average
from recipes.training.module import TrainingModule
from recipes.training.optim import ClippedAdam
from recipes.training.state import Copies, Copy, contiguous
from recipes.training.trainer_state import TrainerState
from recipes.training.zero import Replicated


class Keeper:
    """Gathers the state of training from all processes; the first process writes it.

    Args:
        holding: how the processes hold weights and moments.
        average: the moving average of the weights, if there is one.
        written: the run's results, on the process that writes; None on the others.
        facts: what checkpoints say of the run beside its state.

    Attributes:
        saved_at: when the state was last gathered, by `time.monotonic`.
    """

    def __init__(
        self,
        run: Run,
        module: TrainingModule,
        optimizer: ClippedAdam,
        holding: Replicated,
        average: Average | None,
        written: results.Results | None,
        facts: Mapping[str, Any],
    ) -> None:
        self.run, self.module, self.optimizer = run, module, optimizer
        self.holding, self.average = holding, average
        self.results, self.facts = written, facts
        self.writer = checkpoint.Writer(run.recipe.checkpoint.background)
        self.copies = Copies()
        self._copied = threading.Event()
        self._copied.set()
        self.saved_at = time.monotonic()

    def restore(self, tensors: Mapping[str, Tensor], state: TrainerState) -> None:
        """Restore the state in a checkpoint's `tensors`, except the weights.

        Raises:
            RecipeError: the settings need something that the checkpoint does not have.
        """
        try:
            self.holding.restore(self.module, self.optimizer, tensors, state.taken)
            if self.average is not None:
                self.average.restore(tensors)
        except KeyError as error:
            raise RecipeError(
                f"{self.run.id}: the checkpoint at step {state.step} lacks {error.args[0]},"
                " which these settings need: leave `optimizer`, `ema` and `frozen` as they were"
            ) from error

    def gather(self, copy: Copy = contiguous) -> dict[str, Tensor]:
        """Return the whole state on the CPU, on the process that writes; all call this together."""
        main = self.results is not None
        state = self.holding.gather(self.module, self.optimizer, main, copy)
        if self.average is None or not main:
            return state
        return state | self.average.gather(copy)

    def save(self, state: TrainerState) -> None:
        """Write a checkpoint, in the background if so wanted; all processes call this together.

        The state may still be copied then: call `wait_for_copies` before anything changes it.
        """
        self.writer.wait()  # for the copies that it writes, too: these take their place
        tensors = self.gather(self.copies.later if self.holding.lasting else self.copies)
        self.saved_at = time.monotonic()
        if self.results is None:
            return
        about = self.about(state)
        copied = self._copied = threading.Event()

        def work() -> None:
            try:
                self.copies.make()
            finally:
                copied.set()
            checkpoint.write(self.run.folder, tensors, about)
            self._prune(about)
            give_back_memory()

        self.writer.submit(work)

    def wait_for_copies(self) -> None:
        """Wait until the state of the last checkpoint has been copied, and so may change."""
        self._copied.wait()

    def amend(self, state: TrainerState) -> None:
        """Add the result of an evaluation to the checkpoint of this step."""
        if self.results is None:
            return
        about = self.about(state)

        def work() -> None:
            checkpoint.amend(self.run.folder, about)
            self._prune(about)

        self.writer.submit(work)

    def _prune(self, about: Mapping[str, Any]) -> None:
        keep, spikes = self.run.recipe.checkpoint, about["memory"]["spikes"]
        checkpoint.prune(self.run.folder, keep.keep, keep.keep_best, spikes)

    def about(self, state: TrainerState) -> dict[str, Any]:
        """Return the description that a checkpoint of this state has beside its tensors."""
        info = self.results.info(state.step).to_dict() if self.results else {}
        return {
            "step": state.step,
            "cost": state.cost,
            "memory": dict(vars(state)),
            "run": info,
            **self.facts,
        }

    def finish(self, state: TrainerState) -> None:
        """Write the stage's model; all processes call this together."""
        tensors = self.gather()
        self.writer.wait()
        if self.results is not None:
            self.results.finish(self.module.model.config, tensors, state.step)

    def close(self) -> None:
        """Wait for checkpoints that are being written."""
        self.writer.close()
