"""The training loop: one run of a stage, from its first step or from a checkpoint to its model.

Every process does the same steps; what depends on one process alone (a signal, the clock, a loss
that is not finite) is agreed on once a step, with the metrics. Only the first process writes.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipeline.codec import Model
from pipeline.common.errors import RunError
from pipeline.common.progress import Progress
from pipeline.evaluation.pictures import read_picture
from recipes.config.schema import Run
from recipes.config.settings import Plateau
from recipes.launching import processes as launch
from recipes.training import checkpoint, results, speed
from recipes.training.data import Feed, check_same, digest, held_out
from recipes.training.ema import Average
from recipes.training.graphs import Replayed
from recipes.training.health import Watch
from recipes.training.module import TrainingModule, build
from recipes.training.optim import GuardedAdam, NonFiniteError, make_optimizer, set_learning_rate
from recipes.training.profiling import recording
from recipes.training.signals import StopRequest
from recipes.training.state import part
from recipes.training.steps import Eager, Found, Reduce, pieces
from recipes.training.throughput import Meter
from recipes.training.validate import evaluate, look
from recipes.training.zero import holding
from shards import Batch
from shards.streaming.mixture import ORDER

log = logging.getLogger(__name__)


class TrainingError(RunError):
    """Training can't go on; the message says why and what was kept."""


class Interrupted(Exception):  # noqa: N818 - not an error: the run was asked to stop
    """A run was asked to stop, and has kept its state."""


@dataclass
class Session:
    """What the runs of one launch share."""

    accelerator: Any
    stop: StopRequest
    report: Progress
    overrides: Sequence[str] = ()
    profile: bool = False

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return bool(self.accelerator.is_main_process)


@dataclass
class Memory:
    """What a run remembers beside weights: kept in checkpoints, the same on all processes."""

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

    def judged_on(self, digest: str) -> bool:
        """Take down what is evaluated on from now on; return whether earlier costs were of others.

        These are forgotten then.
        """
        others = math.isfinite(self.best) and self.judged_by != digest
        if others:
            self.best = self.improved = math.inf
            self.without = 0
        self.judged_by = digest
        return others

    def judge(self, cost: float, plateau: Plateau | None) -> bool:
        """Take down a held-out cost; return whether it is the stage's lowest.

        `ended` says whether that is a `plateau`: small improvements add up until they count.
        """
        lowest, self.cost = cost < self.best, cost
        self.best = min(self.best, cost)
        if plateau is not None:
            counts = cost < self.improved * (1 - plateau.improvement)
            self.improved = cost if counts else self.improved
            self.without = 0 if counts else self.without + 1
            self.ended = self.without >= plateau.patience
        return lowest


class Trainer:
    """Trains one run."""

    def __init__(self, run: Run, session: Session) -> None:
        """Build the model, or restore the newest checkpoint; nothing is written yet."""
        self.run, self.session = run, session
        accelerator = session.accelerator
        self.device: torch.device = accelerator.device
        self.feed = Feed(run, accelerator.process_index, accelerator.num_processes, self.device)
        self.pictures = held_out(run)
        self.memory = Memory(judged_by=digest(self.pictures))
        self.module: TrainingModule = build(run)
        self.config = self.module.model.config
        self._place()
        settings = run.recipe.speed
        self.optimizer = make_optimizer(
            self.module.groups(), run.stage, fused=settings.fused, guarded=settings.cuda_graphs
        )
        state = self._read()
        launch.prepare_for(accelerator, self.feed.local // settings.accumulate)
        self.stepper = self._stepper()
        self.holding = holding(accelerator, self.stepper.wrapped, self.optimizer)
        self.average = Average(self.module, run.recipe.ema) if run.recipe.ema else None
        if state is not None:
            self.holding.restore(self.module, self.optimizer, state, self.memory.step)
            if self.average is not None:
                self.average.restore(state)
        self.writer = checkpoint.Writer(run.recipe.checkpoint.background)
        self.watch = Watch(run)
        self.meter = Meter(run.stage.batch)
        self.saved_at = time.monotonic()
        self.results = (
            results.Results(run, self.feed.corpora, session.overrides) if session.main else None
        )

    def _place(self) -> None:
        self.module.to(self.device)
        # DeepSpeed lays weights out in a row, in an order of its own.
        if self.run.recipe.speed.channels_last and not launch.sharded(self.session.accelerator):
            # Module.to knows this keyword, but no overload of it has it alone.
            self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.module.train()
        speed.apply(self.module, self.run.recipe.speed)

    def _stepper(self) -> Eager | Replayed:
        parts = self.run.recipe.speed.accumulate
        if isinstance(self.optimizer, GuardedAdam):
            return Replayed(self.module, self.optimizer, self.feed.local // parts, parts)
        return Eager(self.session.accelerator, self.module, self.optimizer, parts)

    def _read(self) -> dict[str, Tensor] | None:
        """Read the newest checkpoint, if there is one; take up its weights.

        The first process says which one that is.
        """
        folder = self.run.folder
        newest = checkpoint.read_newest(folder) if self.session.main else None
        step = launch.from_first(self.session.accelerator, newest and newest[0].step)
        if step is None:
            return None
        kept, tensors = newest or checkpoint.read(folder, step)
        check_same(self.run, kept.about, self.feed.corpora)
        # A checkpoint that says nothing of an order was written when there was only the first.
        self.memory = Memory(**{"order": 1, **kept.about["memory"]})
        if self.memory.judged_on(digest(self.pictures)) and self.session.main:
            log.warning(
                "%s: the held-out pictures have changed, so the lowest cost so far is forgotten",
                self.run.id,
            )
        self.module.load_state_dict(part(tensors, "weights"))
        if self.session.main:
            log.info("%s: goes on from step %d", self.run.id, self.memory.step)
        return tensors

    def train(self) -> None:
        """Train to the last step and write the model; raises `Interrupted` when asked to stop."""
        self._open()
        status = "FAILED"
        try:
            with self._profiled() as after_step:
                self._steps(after_step)
            self._finish()
            status = "FINISHED"
        except (Interrupted, KeyboardInterrupt):
            status = "KILLED"
            raise
        finally:
            self.feed.close()
            self.writer.close()
            if self.results is not None:
                self.results.close(status)

    def try_step(self, batch: Batch, *, graphs: bool = True) -> Found:
        """Do one step and return its metrics; nothing is written.

        Without `graphs` its operations can be counted, whatever the recipe says.
        """
        if graphs or not isinstance(self.stepper, Replayed):
            return self._step(batch)
        with self.stepper.unrecorded():
            return self._step(batch)

    def _open(self) -> None:
        if self.results is not None:
            checkpoint.clean(self.run.folder)
            checkpoint.set_aside(self.run.folder, self.memory.step)
            self.results.open()
        self.session.accelerator.wait_for_everyone()
        self.saved_at = time.monotonic()

    def _profiled(self) -> AbstractContextManager[Callable[[], None]]:
        """Return what records some steps, if that is wanted: on each process its own."""
        if not self.session.profile:
            return nullcontext(lambda: None)
        name = f"step-{self.memory.step:08d}-rank-{self.session.accelerator.process_index}"
        return recording(self.run.folder / "profile", name)

    def _steps(self, after_step: Callable[[], None]) -> None:
        total = self.run.stage.steps
        batches = self.feed.from_step(self.memory.step, self.memory.order)
        if self.memory.unevaluated:
            self._settle(evaluation=True)
        while self.memory.step < total and not self.memory.ended:
            with self.meter.waiting():
                batch = next(batches)
            try:
                asked = self._step(batch)
            except NonFiniteError as error:
                raise self._broken(batch, error) from error
            self.memory.step += 1
            self.memory.cost = None
            self._after_step(asked)
            after_step()

    def _step(self, batch: Batch) -> Found:
        """Do one optimizer step; return its metrics and what the processes agreed on."""
        step = self.memory.step
        rate = set_learning_rate(self.optimizer, self.run.stage, step)
        given = pieces(self.run, self.config, batch.images, step, batch.slots)
        found = self.stepper.step(given, self._reduce())
        self.holding.check()
        if self.average is not None:
            self.average.update(step + 1)
        norms = {f"gradient_{name}": norm for name, norm in self.optimizer.norms.items()}
        return found | norms | {"lr": rate}

    def _reduce(self) -> Reduce:
        """Return what averages metrics over processes, with whether any wants to stop or save."""
        minutes = (time.monotonic() - self.saved_at) / 60
        due = self.session.main and minutes >= self.run.recipe.checkpoint.every_minutes
        # Copied to the device before it is busy, which such a copy would wait for.
        flags = torch.tensor([float(bool(self.session.stop)), float(due)], device=self.device)
        return lambda totals: self.session.accelerator.reduce(torch.cat([totals, flags]), "mean")

    def _after_step(self, found: Mapping[str, float]) -> None:
        step, recipe = self.memory.step, self.run.recipe
        last = step == self.run.stage.steps
        self.meter.step()
        self.watch.check(step, found)
        if self.results is not None and (step % recipe.tracking.every_steps == 0 or last):
            self.results.log(step, found, self.meter)
        self.session.report(step, self.run.stage.steps, self.meter.note(found, step, self.run))
        self._settle(
            evaluation=step % recipe.evaluate_every == 0 or last,
            save=step % recipe.checkpoint.every_steps == 0 or found["due"] > 0 or last,
            stop=found["stop"] > 0 and not last,
        )

    def _settle(self, *, evaluation: bool, save: bool = False, stop: bool = False) -> None:
        """Evaluate and save after a step; raises `Interrupted` when asked to `stop`."""
        memory = self.memory
        lowest = evaluation and self._evaluate()
        stop = memory.unevaluated or (stop and not memory.ended)
        if save or stop or memory.ended or (lowest and self.run.recipe.checkpoint.keep_best):
            self._save()
        if stop:
            self.writer.wait()
            # Launchers kill the processes that remain when the first one has ended.
            self.session.accelerator.wait_for_everyone()
            raise Interrupted(f"{self.run.id}: stopped at step {memory.step} as asked, state kept")

    def _evaluate(self) -> bool:
        """Evaluate on the held-out pictures; return whether the cost is the stage's lowest.

        Asked to stop meanwhile, it leaves that for when the run goes on.
        """
        if not self.pictures:
            return False
        model, accelerator = self.module.model, self.session.accelerator
        with self.average.in_place() if self.average is not None else nullcontext():
            means = evaluate(model, self.run, self.pictures, accelerator, self._asked)
            self.memory.unevaluated = means is None
            if means is None:
                return False
            self._show(model)
        if self.results is not None:
            self.results.log_held_out(self.memory.step, means)
        return self.memory.judge(means["cost"], self.run.stage.plateau)

    def _asked(self) -> bool:
        """Return whether any process has been asked to stop; all of them ask together."""
        mine = torch.tensor(float(bool(self.session.stop)), device=self.device)
        return bool(self.session.accelerator.reduce(mine, reduction="sum") > 0)

    def _show(self, model: Model) -> None:
        """Show the first held-out pictures beside what the model makes of them, and its rate.

        All processes look, because a sharded model needs them all; the first one shows.
        """
        for path in self.pictures[: self.run.recipe.tracking.pictures]:
            shown = look(model, read_picture(path))
            if self.results is not None:
                self.results.show(f"pictures/{path.stem}", shown, self.memory.step)

    def _gather(self) -> dict[str, Tensor]:
        """Return the whole state on the CPU, on the process that writes; all call this together."""
        state = self.holding.gather(self.module, self.optimizer, self.session.main)
        if self.average is None or not self.session.main:
            return state
        return state | self.average.gather()

    def _save(self) -> None:
        """Copy the state; the first process writes it, in the background if so wanted."""
        self.writer.wait()
        tensors = self._gather()
        self.saved_at = time.monotonic()
        if self.results is None:
            return
        about, keep = self._about(), self.run.recipe.checkpoint

        def work() -> None:
            checkpoint.write(self.run.folder, tensors, about)
            checkpoint.prune(self.run.folder, keep.keep, keep.keep_best)

        self.writer.submit(work)

    def _about(self) -> dict[str, Any]:
        return {
            "step": self.memory.step,
            "cost": self.memory.cost,
            "memory": dict(vars(self.memory)),
            "decisive": self.run.decisive(),
            "data_digest": self.feed.corpora.digest,
            "recipe_digest": self.run.recipe.digest,
            "run": self.results.info(self.memory.step).to_dict() if self.results else {},
            "recipe": self.run.recipe.model_dump(mode="json"),
            "config": self.config.to_dict(),
        }

    def _finish(self) -> None:
        tensors = self._gather()
        self.writer.wait()
        if self.results is not None:
            self.results.finish(self.config, tensors, self.memory.step)
        self.session.accelerator.wait_for_everyone()

    def _broken(self, batch: Batch, error: NonFiniteError) -> TrainingError:
        """Keep what reproduces a step that can't be taken; return the error that says so."""
        folder = self.run.folder / f"failure-step-{self.memory.step:08d}"
        tensors = self._gather()
        if self.results is not None:
            self.results.keep_failure(folder, tensors, self._about())
        rank = self.session.accelerator.process_index
        results.keep_batch(folder / f"batch-{rank}.safetensors", batch)
        return TrainingError(
            f"{self.run.id}: {error} at step {self.memory.step}, on {', '.join(batch.keys)};"
            f" nothing was stepped, the state and the batch are in {folder}"
        )
