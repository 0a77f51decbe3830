"""Profiles: what they may say, and that all mistakes are named at once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from orchestration.errors import OrchestrationError
from orchestration.load import ENGINES, load_profile, profile_from
from orchestration.profile import Resources


@pytest.mark.parametrize("engine", list(ENGINES))
def test_shipped_profile_loads_and_explains_every_field(engine: str, profiles: Path) -> None:
    path = profiles / f"{engine}.yaml"
    profile = load_profile(path)
    assert profile.engine == engine

    lines = path.read_text().splitlines()
    named = {
        match[1]: line
        for line, text in enumerate(lines)
        if (match := re.match(r"(?:# )?([a-z_]+):( |$)", text))
    }
    ours = {name for name in type(profile).model_fields if name not in {"env", "resources"}}
    missing = ours - set(named)
    assert not missing
    for name in set(named) & ours:
        if name not in {"pictures", "evaluation", "registry"}:
            assert lines[named[name] + 1].lstrip().startswith("# "), f"{name} has no sentence"


@pytest.mark.parametrize("engine", list(ENGINES))
def test_every_field_has_a_sentence(engine: str) -> None:
    def described(model: type[BaseModel]) -> None:
        for name, field in model.model_fields.items():
            inner = field.annotation
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                described(inner)
            elif name != "resources" and name not in {"pictures", "evaluation", "registry"}:
                assert (field.description or "").endswith("."), f"{model.__name__}.{name}"

    described(ENGINES[engine][0])
    described(Resources)


def test_all_mistakes_are_named_at_once() -> None:
    content = {
        "engine": "slurm",
        "partion": "gpu",
        "requeues": -1,
        "resources": {"train": {"gpuz": 4, "cpus": 0}},
        "pictures": {"sourc": ["x"]},
    }
    with pytest.raises(OrchestrationError) as caught:
        profile_from(content, "p.yaml")
    message = str(caught.value)
    for part in (
        "p.yaml: ",
        "unknown key partion (did you mean partition?)",
        "unknown key resources.train.gpuz (did you mean gpus?)",
        "unknown key pictures.sourc (did you mean source?)",
        "resources.train.cpus: input should be greater than 0",
        "requeues: ",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"engine": "pbs"}, "must be one of local, slurm, kubernetes"),
        (["engine"], "mapping"),
        ({"engine": "local", "env": {"MLFLOW_TRACKING_PASSWORD": "x"}}, "credential"),
        ({"engine": "local", "env": {"MLFLOW_TRACKING_URI": "https://me:x@host"}}, "credential"),
        ({"engine": "local", "setup": ["export WANDB_API_KEY=x"]}, "WANDB_API_KEY .*credential"),
        ({"engine": "slurm", "gpu_option": "--gres=gpu:4"}, "gpu_option: .*pattern"),
        ({"engine": "local", "resources": {"train": {"nodes": 2}}}, "one machine"),
        (
            {"engine": "kubernetes", "workdir": "/d", "image": "i", "claim": "c", "mount": "/d"}
            | {"pod": {"volumes": []}},
            "pod: volumes can't be set here",
        ),
        ({"engine": "slurm", "resources": {"evaluate": {"nodes": 2}}}, "only training"),
        ({"engine": "slurm", "resources": {"trian": {}}}, "no kind of job"),
        ({"engine": "slurm", "resources": {"train.base": {"minutes": 5}}}, "signal_seconds"),
    ],
)
def test_wrong_profile_is_refused(content: object, words: str) -> None:
    with pytest.raises(OrchestrationError, match=words):
        profile_from(content, "p.yaml")


def test_what_only_sounds_like_a_secret_is_taken() -> None:
    env = {"TOKENIZERS_PARALLELISM": "false", "MLFLOW_TRACKING_URI": "https://host:5000"}
    setup = ['export MLFLOW_TRACKING_TOKEN="$(cat ~/.token)"', "module load cuda"]
    profile = profile_from({"engine": "local", "env": env, "setup": setup}, "p.yaml")
    assert (profile.env, profile.setup) == (env, setup)


def test_secret_is_not_repeated_in_the_error() -> None:
    with pytest.raises(OrchestrationError) as caught:
        profile_from({"engine": "local", "env": {"API_TOKEN": "hunter2"}}, "p.yaml")
    assert "hunter2" not in str(caught.value)


def test_missing_or_broken_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(OrchestrationError, match="no such profile"):
        load_profile(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("engine: [local")
    with pytest.raises(OrchestrationError, match="can't be read"):
        load_profile(tmp_path / "broken.yaml")


def test_nearest_word_on_resources_wins_field_by_field() -> None:
    content = yaml.safe_load("""
        engine: slurm
        resources:
          default: {cpus: 3, memory: 2G}
          train: {gpus: 4, minutes: 90}
          train.base: {nodes: 2, cpus: 8}
    """)
    profile = profile_from(content, "p.yaml")
    base = profile.resources_of("train.base")
    assert (base.nodes, base.cpus, base.gpus, base.minutes, base.memory) == (2, 8, 4, 90, "2G")
    assert base.ranks == 8
    other = profile.resources_of("train.mse")
    assert (other.nodes, other.cpus, other.ranks) == (1, 3, 4)
    assert profile.resources_of("evaluate").gpus == 0
