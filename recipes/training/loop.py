"""The training loop: one run of a stage, from where it starts to its model.

Every process does the same steps; what depends on one process alone (a signal, the clock, a loss
that is not finite) is agreed on once a step, with the metrics. Only the first process writes.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from pipeline.codec import Model
from recipes.config.schema import Run
from recipes.launching import processes as launch
from recipes.launching.signals import StopNow
from recipes.launching.watchdog import OTHERS, Watchdog, names_of_ranks
from recipes.training import checkpoint, results, speed, threads
from recipes.training.clipping import NonFiniteError
from recipes.training.data import Feed
from recipes.training.deciding import decided
from recipes.training.ema import Average, decay_of
from recipes.training.graphs import Replayed
from recipes.training.health import KEPT, SpikeWatch, Watch
from recipes.training.held_out import held_out
from recipes.training.keeping import Keeper
from recipes.training.module import TrainingModule, build
from recipes.training.optim import GuardedAdam, make_optimizer
from recipes.training.profiling import recording
from recipes.training.schedule import set_learning_rate
from recipes.training.session import Interrupted, Session, TrainingError
from recipes.training.starting_point import find_start, take_up
from recipes.training.steps import Eager, Metrics, Reduce, pieces
from recipes.training.throughput import Meter
from recipes.training.validate import evaluate, look
from recipes.training.zero import holding
from shards import Batch

log = logging.getLogger(__name__)


class Trainer:
    """Trains one run."""

    def __init__(self, run: Run, session: Session) -> None:
        """Build the model, or restore the newest checkpoint; nothing is written yet."""
        self.run, self.session = run, session
        accelerator = session.accelerator
        self.device: torch.device = accelerator.device
        self.start = find_start(run, session)
        self.run = run = decided(run, accelerator, self.start.decisive)
        self.threads = threads.settle(run, session, self.start.kept)
        self.feed = Feed(run, accelerator.process_index, accelerator.num_processes, self.device)
        self.pictures = held_out(run)
        self.module: TrainingModule = build(run)
        self.config = self.module.model.config
        self._place()
        graphs = run.speed.cuda_graphs is True
        self.optimizer = make_optimizer(self.module.groups(), run, guarded=graphs)
        self.state = take_up(
            self.start, run, self.module, self.feed, self.pictures, main=session.main
        )
        local = run.stage.batch // accelerator.num_processes
        launch.prepare_for(accelerator, local // run.speed.accumulate)
        self.stepper = self._stepper()
        self.average = Average(self.module, decay_of(run)) if run.averages else None
        self.results = (
            results.Results(run, self.feed.corpora, session.overrides, session.ignored)
            if session.main
            else None
        )
        self.keeper = self._keeper()
        self.watch = Watch(run)
        self.spikes = SpikeWatch(run)
        self.meter = Meter(run.stage.batch)
        self.begun_at = self.state.step
        self.watchdog = Watchdog(
            run.folder,
            names_of_ranks(accelerator),
            accelerator.process_index,
            run.recipe.launch.patience,
            self._hung,
        )
        # Asked to stop while the next batch did not come.
        self.without_batch = False

    def _place(self) -> None:
        self.module.to(self.device)
        # DeepSpeed flattens weights, in an order of its own.
        if self.run.speed.channels_last and not launch.sharded(self.session.accelerator):
            # Module.to knows this keyword, but no overload of it has it alone.
            self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.module.train()
        speed.apply(self.module, self.run.speed)

    def _stepper(self) -> Eager | Replayed:
        parts = self.run.speed.accumulate
        if isinstance(self.optimizer, GuardedAdam):
            return Replayed(self.module, self.optimizer, parts)
        return Eager(self.session.accelerator, self.module, self.optimizer, parts)

    def _keeper(self) -> Keeper:
        run = self.run
        holds = holding(self.session.accelerator, self.stepper.wrapped, self.optimizer)
        facts = {
            "decisive": run.decisive(),
            "data_digest": self.feed.corpora.digest,
            "recipe_digest": run.recipe.digest,
            "recipe": run.recipe.model_dump(mode="json"),
            "config": self.config.to_dict(),
            "origin": self.start.origin,
            threads.KEY: self.threads,
        }
        keeper = Keeper(run, self.module, self.optimizer, holds, self.average, self.results, facts)
        if self.start.kept is not None:
            keeper.restore(self.start.tensors, self.state)
            # Their memory is free again.
            self.start = replace(self.start, tensors={})
        return keeper

    def train(self) -> None:
        """Train to the last step and write the model; raises `Interrupted` when asked to stop."""
        self._open()
        status = "FAILED"
        try:
            with self.watchdog, self._profiled() as after_step:
                self._steps(after_step)
            self.keeper.finish(self.state)
            self.session.accelerator.wait_for_everyone()
            status = "FINISHED"
        except (Interrupted, KeyboardInterrupt):
            status = "KILLED"
            raise
        finally:
            self.feed.close()
            self.keeper.close()
            if self.results is not None:
                self.results.close(status)

    def try_step(self, batch: Batch, *, graphs: bool = True) -> Metrics:
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
            if self.start.elsewhere:
                results.put_aside(self.run.folder)
            prefix = "aside" if self.start.elsewhere else "damaged"
            checkpoint.set_aside(self.run.folder, self.state.step, prefix)
            self.results.open(self.start.origin)
        self.session.accelerator.wait_for_everyone()
        self.keeper.saved_at = time.monotonic()

    def _profiled(self) -> AbstractContextManager[Callable[[], None]]:
        """Return a context that records some steps, if wanted: each process records its own."""
        if not self.session.profile:
            return nullcontext(lambda: None)
        name = f"step-{self.state.step:08d}-rank-{self.session.accelerator.process_index}"
        return recording(self.run.folder / "profile", name)

    def _steps(self, after_step: Callable[[], None]) -> None:
        stage, state = self.run.stage, self.state
        batches = self.feed.from_step(state.step, state.order)
        if state.unevaluated:
            self._settle(evaluation=True)
        while state.step < stage.steps and not state.ended:
            batch = self._next(batches)
            self.meter.read(batch.traffic)
            if state.step in stage.skip:
                self._leave_out(batch)
                continue
            try:
                metrics = self._step(batch)
            except NonFiniteError as error:
                self._give_up_waiting()
                raise self._broken(batch, error) from error
            state.step += 1
            state.taken += 1
            state.cost = None
            self._after_step(metrics)
            after_step()

    def _next(self, batches: Iterator[Batch]) -> Batch:
        """Return the next batch, or, asked to stop while there is none, an empty one.

        An empty one makes the loss no number, so that all processes leave the step out.
        """
        self.watchdog.mark("waits for its next batch", self.state.step)
        try:
            with self.meter.waiting(), self.session.stop.at_once():
                return next(batches)
        except StopNow:
            pass
        except (RuntimeError, OSError):
            if not self.session.stop:
                self._keep_alone()
                raise
        self.without_batch = True
        if self.session.accelerator.num_processes == 1:
            self._give_up_waiting()
        shape = self.run.stage.shape(self.state.step)
        local = (shape.batch or 1) // self.session.accelerator.num_processes
        nothing = torch.zeros(local, 3, shape.crop, shape.crop, device=self.device)
        return Batch(nothing, [], [], 0, {}, slots=tuple(range(local)))

    def _keep_alone(self) -> None:
        """Save the state before training ends because no pictures come, if no other rank trains."""
        alone = self.session.accelerator.num_processes == 1
        if alone and self.state.step > self.begun_at:
            self._save()

    def _give_up_waiting(self) -> None:
        """Without a batch, save the state and raise `Interrupted` if any process was asked to stop.

        All ask this together.
        """
        if not self._agreed(self.without_batch):
            return
        if self.state.step == self.begun_at:
            raise Interrupted(f"{self.run.id}: stopped as asked, before its first step")
        self._settle(evaluation=False, stop=True)

    def _leave_out(self, batch: Batch) -> None:
        """Skip a batch that the recipe leaves out: it counts as a step."""
        log.warning(
            "%s: step %d is left out, as the recipe says: %s",
            self.run.id,
            self.state.step,
            ", ".join(batch.keys),
        )
        self.state.step += 1
        self.state.cost = None
        if self.state.step == self.run.stage.steps:
            self._settle(evaluation=True, save=True)

    def _step(self, batch: Batch) -> Metrics:
        """Do one optimizer step; return its metrics and the flags that the processes agreed on."""
        step = self.state.step
        self.watchdog.mark("computes", step)
        rate = set_learning_rate(self.optimizer, self.run.stage, step, self.state.reductions)
        given = pieces(self.run, self.config, batch.images, step, batch.slots)
        metrics = self.stepper.step(given, self._reduce(), self.keeper.wait_for_copies)
        self.keeper.holding.check()
        if self.average is not None:
            self.average.update(step + 1)
        norms = {f"gradient_{name}": norm for name, norm in self.optimizer.norms.items()}
        return metrics | norms | {"lr": rate}

    def _reduce(self) -> Reduce:
        """Return a function that averages metrics and the wish to stop or save over processes."""
        minutes = (time.monotonic() - self.keeper.saved_at) / 60
        due = self.session.main and minutes >= self.run.recipe.checkpoint.every_minutes
        # Copied to the device before it is busy, which such a copy would wait for.
        flags = torch.tensor([float(bool(self.session.stop)), float(due)], device=self.device)
        known = math.nan if self.without_batch else 1.0

        def reduce(totals: Tensor) -> Tensor:
            self.watchdog.mark(OTHERS)
            both = torch.cat([totals * known, flags])
            mean: Tensor = self.session.accelerator.reduce(both, "mean")
            return mean

        return reduce

    def _after_step(self, metrics: Mapping[str, float]) -> None:
        step, recipe = self.state.step, self.run.recipe
        last = step == self.run.stage.steps
        self.meter.step(self.run.stage.shape(step - 1).batch)
        self.watch.check(step, metrics)
        if self.spikes.leapt(step - 1, metrics):
            self.state.spikes = [*self.state.spikes, step - 1][-KEPT:]
        if self.results is not None and (step % recipe.tracking.every_steps == 0 or last):
            self.results.log(step, metrics, self.meter)
        self.session.report(step, self.run.stage.steps, self.meter.note(metrics))
        self._settle(
            evaluation=step % recipe.evaluate_every == 0 or last,
            save=step % recipe.checkpoint.every_steps == 0 or metrics["due"] > 0 or last,
            stop=metrics["stop"] > 0 and not last,
        )

    def _settle(self, *, evaluation: bool, save: bool = False, stop: bool = False) -> None:
        """Evaluate and save after a step; raises `Interrupted` when asked to `stop`."""
        state = self.state
        if evaluation and self.pictures:
            # The checkpoint comes first, so that an evaluation that fails costs no step.
            state.unevaluated = True
            self._save()
            if self._evaluate():
                self.keeper.amend(self.state)
        elif save or stop or state.ended:
            self._save()
        stop = state.unevaluated or (stop and not state.ended)
        if stop:
            self.keeper.writer.wait()
            # Launchers kill the processes that remain when the first one has ended.
            with self.watchdog.others():
                self.session.accelerator.wait_for_everyone()
            raise Interrupted(f"{self.run.id}: stopped at step {state.step} as asked, state kept")

    def _evaluate(self) -> bool:
        """Evaluate on the held-out pictures; return whether that was done.

        Asked to stop meanwhile, it leaves that for when the run goes on.
        """
        model, accelerator = self.module.model, self.session.accelerator
        self.watchdog.mark("evaluates")
        self.keeper.wait_for_copies()  # before the average takes the weights' place
        with self.average.in_place() if self.average is not None else nullcontext():
            means = evaluate(model, self.run, self.pictures, accelerator, self._asked)
            self.state.unevaluated = means is None
            if means is None:
                return False
            self._show(model)
        if self.results is not None:
            self.results.log_held_out(self.state.step, means)
        self.state.judge(means["cost"], self.run.stage.plateau)
        return True

    def _asked(self) -> bool:
        """Return whether any process has been asked to stop; all of them ask together."""
        return self._agreed(bool(self.session.stop))

    def _agreed(self, mine: bool) -> bool:
        """Return whether `mine` is true on any process; all of them ask together."""
        said = torch.tensor(float(mine), device=self.device)
        with self.watchdog.others():
            return bool(self.session.accelerator.reduce(said, reduction="sum") > 0)

    def _show(self, model: Model) -> None:
        """Show the first held-out pictures beside their reconstructions, with the rate.

        All processes look, because a sharded model needs them all; the first one shows.
        """
        for picture in self.pictures[: self.run.recipe.tracking.pictures]:
            shown = look(model, picture.read())
            if self.results is not None:
                self.results.show(f"pictures/{picture.name}", shown, self.state.step)

    def _save(self) -> None:
        self.watchdog.mark("keeps the state")
        self.keeper.save(self.state)

    def _hung(self, folder: Path, sentence: str) -> None:
        """End this process, whose main thread waits for a rank that hangs."""
        if sentence:
            launch.report_hang(f"{self.run.id}: {sentence}")
        if self.results is not None:
            self.results.keep_hang(folder)
        launch.end_hung(first=bool(sentence))

    def _broken(self, batch: Batch, error: NonFiniteError) -> TrainingError:
        """Save the batch and state that reproduce a step that can't be taken; return the error."""
        folder = self.run.folder / f"failure-step-{self.state.step:08d}"
        tensors = self.keeper.gather()
        if self.results is not None:
            about = self.keeper.about(self.state)
            self.results.keep_failure(folder, tensors, about, str(error))
        rank = self.session.accelerator.process_index
        results.keep_batch(folder / f"batch-{rank}.safetensors", batch)
        return TrainingError(
            f"{self.run.id}: {error} at step {self.state.step}, on {', '.join(batch.keys)};"
            f" nothing was stepped, the state and the batch are in {folder}. Start again with a"
            f" lower stages.{self.run.stage.name}.lr or clip, which goes on from the last healthy"
            f" checkpoint, or with stages.{self.run.stage.name}.skip=[{self.state.step}], which"
            " leaves this batch out"
        )
