"""Learning rates, crops and batches as functions of the step."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from recipes.config.settings import Plateau
from recipes.config.stage import Stage
from recipes.training.schedule import learning_rate
from recipes.training.trainer_state import TrainerState


def stage(**fields: Any) -> Stage:
    return Stage.model_validate({"name": "base", "rate_weight": 1.0, "steps": 100} | fields)


FALLING = st.sampled_from(["linear", "cosine", "sqrt"])


@settings(deadline=None, max_examples=50)
@given(FALLING, st.integers(0, 40), st.floats(0.05, 1), st.floats(0, 1))
def test_a_rate_rises_stays_and_falls_to_its_last_share(
    schedule: str, warmup: int, decay: float, final: float
) -> None:
    one = stage(schedule=schedule, warmup=warmup, decay=decay, final_lr=final, lr=1e-3)
    rates = [learning_rate(one, step) for step in range(100)]
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert max(rates) == 1e-3
    falling = max(1, round((100 - warmup) * decay))
    assert all(rate == 1e-3 for rate in rates[warmup : 100 - falling])
    if falling > 1:
        assert rates[-1] == pytest.approx(1e-3 * final)


def test_the_shapes_of_falls() -> None:
    half = {"linear": 0.5, "cosine": 0.5, "sqrt": 1 - math.sqrt(0.5)}
    for schedule, share in half.items():
        one = stage(schedule=schedule, steps=101, final_lr=0, lr=1.0)
        assert learning_rate(one, 50) == pytest.approx(share)


def test_milestones_scale_what_a_schedule_says() -> None:
    one = stage(lr=1.0, milestones={60: 0.1, 80: 0.01})
    assert [learning_rate(one, step) for step in (0, 59, 60, 79, 80, 99)] == [
        1.0,
        1.0,
        0.1,
        0.1,
        0.01,
        0.01,
    ]


def test_a_restart_begins_warm_up_and_schedule_again() -> None:
    one = stage(lr=1.0, schedule="linear", final_lr=0, warmup=5, restarts=[60])
    alone = stage(lr=1.0, schedule="linear", final_lr=0, warmup=5, steps=40)
    for step in range(40):
        assert learning_rate(one, 60 + step) == learning_rate(alone, step)
    assert learning_rate(one, 59) == pytest.approx(0)


def test_plateaus_lower_the_rate_and_then_end_the_stage() -> None:
    plateau = Plateau(patience=2, factor=0.5, reductions=2)
    one = stage(lr=1.0, plateau=plateau)
    memory, seen = TrainerState(), []
    for _ in range(8):
        memory.judge(1.0, plateau)
        seen.append((learning_rate(one, 0, memory.reductions), memory.ended))
    # The first evaluation is an improvement; then two without one make a plateau.
    assert [rate for rate, _ in seen] == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25]
    assert [ended for _, ended in seen].index(True) == 6


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_every_step_has_one_shape_and_each_shape_counts_its_own_steps(data: st.DataObject) -> None:
    starts = sorted(data.draw(st.sets(st.integers(1, 60), max_size=3)))
    crops = st.sampled_from([64, 128, 192])
    mixes = st.lists(crops.map(lambda crop: {"crop": crop}), max_size=2)
    phases = [
        {"step": start, "crop": data.draw(crops), "batch": 2, "mix": data.draw(mixes)}
        for start in starts
    ]
    one = stage(crop=64, mix=data.draw(mixes), phases=phases)
    counts: dict[int, int] = {}
    for step in range(100):
        kind, before = one.place(step)
        assert counts.get(kind, 0) == before
        counts[kind] = before + 1
        assert one.shape(step) == one.shapes[kind]
        assert kind in one.together(kind)
        begun = sum(start <= step for start in starts)
        assert (one.shape(step).batch == 2) == (begun > 0)


@pytest.mark.parametrize(
    ("fields", "piece"),
    [
        ({"restarts": [50, 20]}, "restarts must rise"),
        ({"restarts": [100]}, "restarts must rise, below steps"),
        ({"restarts": [95], "warmup": 10}, "warmup must not be longer than steps"),
        ({"phases": [{"step": 5, "crop": 64}, {"step": 5, "crop": 128}]}, "phases must begin"),
        ({"phases": [{"step": 5, "crop": 100}]}, "multiple of 64"),
        ({"distortion": "mixed", "phases": [{"step": 5, "crop": 64}]}, "needs a crop of 192"),
        ({"rates": "spread"}, "needs variable_rate"),
        ({"milestones": {5: 2.0}}, "less than or equal to 1"),
    ],
)
def test_a_stage_that_contradicts_itself_is_refused(fields: dict[str, Any], piece: str) -> None:
    with pytest.raises(ValidationError, match=piece):
        stage(**fields)
