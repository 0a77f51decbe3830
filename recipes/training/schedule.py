"""The learning rates of a step: functions of the recipe, the step, and the plateaus so far."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recipes.config.stage import Stage


def learning_rate(stage: Stage, step: int, reductions: int = 0) -> float:
    """Return the weights' learning rate at step `step`, the first being 0.

    `reductions` says how many plateaus have lowered it.
    """
    begin = max((at for at in stage.restarts if at <= step), default=0)
    end = min((at for at in stage.restarts if at > step), default=stage.steps)
    rate = _within(stage, step - begin, end - begin)
    passed = [at for at in stage.milestones if at <= step]
    if passed:
        rate *= stage.milestones[max(passed)]
    if reductions and stage.plateau is not None and stage.plateau.factor is not None:
        rate *= stage.plateau.factor**reductions
    return rate


def _within(stage: Stage, step: int, steps: int) -> float:
    """Return the rate at a step of a schedule over `steps`."""
    if step < stage.warmup:
        return stage.lr * (step + 1) / stage.warmup
    if stage.schedule == "constant":
        return stage.lr
    span = steps - stage.warmup
    falling = max(1, round(span * stage.decay))
    done = min(1.0, max(0, step - stage.warmup - (span - falling)) / max(1, falling - 1))
    if stage.schedule == "cosine":
        fall = (1 - math.cos(math.pi * done)) / 2
    else:
        fall = done if stage.schedule == "linear" else math.sqrt(done)
    return stage.lr * (1 - fall * (1 - stage.final_lr))


def set_learning_rate(
    optimizer: torch.optim.Optimizer, stage: Stage, step: int, reductions: int = 0
) -> float:
    """Give the groups of `optimizer` the learning rates of `step`; return the weights'."""
    rate = learning_rate(stage, step, reductions)
    for group in optimizer.param_groups:
        mine = rate * group.get("times", 1.0)
        if group["name"] == "quantiles":
            followed = rate / stage.lr if stage.quantile_schedule == "same" else 1.0
            mine = stage.quantile_lr * followed
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(mine)
        else:
            group["lr"] = mine
    return rate
