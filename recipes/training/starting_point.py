"""Finds where a run begins: at step 0, from its own newest checkpoint, or from another run's."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from recipes.config.schema import Run
from recipes.config.settings import RecipeError
from recipes.launching import processes as launch
from recipes.training import checkpoint
from recipes.training.data import Feed
from recipes.training.held_out import HeldOut, digest
from recipes.training.module import TrainingModule
from recipes.training.resume import MEASURES, check_same, differences
from recipes.training.session import Session
from recipes.training.state import part
from recipes.training.trainer_state import TrainerState

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """The checkpoint that a run goes on from, or none, with the tensors of its state.

    Attributes:
        origin: the run and step that the run once began from, if that was not step 0.
        elsewhere: whether the checkpoint is one that was named, not the run's own newest.
    """

    kept: checkpoint.Checkpoint | None
    tensors: Mapping[str, Tensor]
    origin: Mapping[str, Any] | None
    elsewhere: bool

    @property
    def decisive(self) -> Mapping[str, Any] | None:
        """The settings that decided what the checkpoint's run became."""
        return None if self.kept is None else self.kept.about["decisive"]


def find_start(run: Run, session: Session) -> Start:
    """Return where `run` begins, the same on all processes: the first one says which step it is.

    Raises:
        checkpoint.NoCheckpointError: there are checkpoints, and none can be read.
    """
    begins = session.origins.get(run.id)
    if begins is not None:
        kept = begins.checkpoint
        return Start(kept, {} if kept is None else kept.tensors(), begins.key, elsewhere=True)
    newest, refused = None, None
    if session.main:
        try:
            newest = checkpoint.read_newest(run.folder)
        except checkpoint.NoCheckpointError as error:
            refused = str(error)
    step, refused = launch.from_first(session.accelerator, (newest and newest[0].step, refused))
    if refused is not None:
        raise checkpoint.NoCheckpointError(refused)
    if step is None:
        return Start(None, {}, None, elsewhere=False)
    kept, tensors = newest or checkpoint.read(run.folder, step)
    return Start(kept, tensors, kept.origin, elsewhere=False)


def take_up(
    start: Start,
    run: Run,
    module: TrainingModule,
    feed: Feed,
    pictures: Sequence[HeldOut],
    *,
    main: bool,
) -> TrainerState:
    """Load the weights of a start into `module`; return the state that goes with them.

    Without a checkpoint the module keeps its weights, and the state is that of step 0.

    Raises:
        RecipeError: `run` has settings that the checkpoint cannot go on under.
    """
    judged_by = digest(pictures)
    kept = start.kept
    if kept is None:
        return TrainerState(judged_by=judged_by)
    changed = differences(run, kept.about)
    if not start.elsewhere:
        check_same(run, kept.about, feed.corpora)
    elif kept.about.get("config") not in (None, module.model.config.to_dict()):
        raise RecipeError(
            f"{kept.folder} has another architecture than {run.id}: give it the same"
            " `model`, or start a stage from that model by init"
        )
    state = replace(TrainerState.of(kept.about), step=kept.step)
    if changed.keys() & set(MEASURES):
        state.forget()
    if changed.keys() & {"lr", "plateau"}:
        state.reductions = 0
    if state.judged_on(judged_by) and main:
        log.warning(
            "%s: the held-out pictures have changed, so the lowest cost so far is forgotten", run.id
        )
    _load_weights(start, run, module)
    if main:
        log.info("%s: goes on from step %d", run.id, state.step)
    return state


def _load_weights(start: Start, run: Run, module: TrainingModule) -> None:
    assert start.kept is not None
    try:
        module.load_state_dict(part(start.tensors, "weights"))
    except RuntimeError as error:
        raise RecipeError(
            f"{start.kept.folder} has other weights than {run.id} needs: give it the same"
            " `model`, and the same cca.mode (off has no auxiliary model)"
        ) from error
