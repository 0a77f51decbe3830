"""How long a training will take, from a few of its steps."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.config.schema import Recipe
from recipes.config.stage import Stage
from recipes.training.estimate import estimates, pixels


def shapes() -> st.SearchStrategy[dict[str, int]]:
    crops = st.sampled_from([64, 128, 192])
    return st.fixed_dictionaries({"crop": crops, "batch": st.integers(1, 5)})


@settings(max_examples=80, deadline=None)
@given(
    steps=st.integers(1, 60),
    first=shapes(),
    mix=st.lists(shapes(), max_size=2),
    starts=st.lists(st.integers(1, 70), max_size=2, unique=True),
    phases=st.lists(st.tuples(shapes(), st.lists(shapes(), max_size=2)), min_size=2, max_size=2),
    done=st.integers(0, 60),
)
def test_pixels_are_those_of_every_step(steps, first, mix, starts, phases, done) -> None:
    later = [
        {"step": start, **one, "mix": others}
        for start, (one, others) in zip(sorted(starts), phases, strict=False)
    ]
    told = {"name": "a", "rate_weight": 1.0, "steps": steps, **first, "mix": mix, "phases": later}
    stage = Stage.model_validate(told)
    done = min(done, steps)
    each = [stage.shape(step) for step in range(done, steps)]
    assert pixels(stage, done) == sum((one.batch or 0) * one.crop**2 for one in each)


def test_time_and_price_follow_from_pixels_and_what_is_done(tmp_path: Path) -> None:
    stages = [
        {"name": "a", "rate_weight": 1.0, "steps": 1000, "batch": 4, "crop": 64},
        {"name": "b", "rate_weight": 1.0, "steps": 100, "batch": 2, "crop": 128, "init": "a"},
    ]
    content = {"name": "r", "out": str(tmp_path), "data": {"train": "x"}, "stages": stages}
    runs = Recipe.model_validate(content).runs()
    lines = list(estimates(runs, first=400, seconds=6.0, processes=2, price=3.5))
    assert lines[0] == "time of a: 1:00:00 for 600 steps"
    assert lines[1] == "time of b: 0:20:00 for 100 steps"
    assert "time in all: 1:20:00 of 2 processes, 2.67 process hours, 9.33 at 3.5" in lines[2]
    # Of those that are begun, what is left.
    (tmp_path / "b" / "checkpoints" / "step-00000075").mkdir(parents=True)
    (tmp_path / "b" / "checkpoints" / "damaged-step-00000099").mkdir()
    lines = list(estimates(runs, first=400, seconds=6.0, processes=1, price=None))
    assert lines[1] == "time of b: 0:05:00 for 25 steps"
    assert "process hours;" in lines[2]
