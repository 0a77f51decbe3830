"""Profiles: what they may say, and that all mistakes are named at once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from orchestration.control import make_plan
from orchestration.errors import OrchestrationError
from orchestration.load import ENGINES, load_profile, profile_from
from orchestration.profile import Resources, SlurmProfile


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

    described(ENGINES[engine].profile)
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
        ({"engine": "pbs"}, "must be one of local, slurm, kubernetes, ray"),
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
        ({"engine": "slurm", "resources": {"evaluate.mse": {}}}, "only training has stages"),
        ({"engine": "local", "resources": {"train": {"gpus": 2}}}, r"train\.gpus: 2 are asked"),
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


def test_mistakes_that_only_show_together_are_named_at_once() -> None:
    resources = {
        "trian": {},
        "evaluate.mse": {},
        "shard": {"nodes": 2},
        "train": {"minutes": 5},
        "promote": {"memory": "lots"},
    }
    with pytest.raises(OrchestrationError) as caught:
        profile_from({"engine": "slurm", "resources": resources}, "p.yaml")
    assert "resources.promote.memory: write an amount and its unit" in str(caught.value)
    del resources["promote"]
    with pytest.raises(OrchestrationError) as caught:
        profile_from({"engine": "slurm", "resources": resources}, "p.yaml")
    for part in ("trian is no kind", "evaluate.mse: only", "shard.nodes", "limit of train (5"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("24:00:00", "1440"),
        ('"24:00:00"', "1440"),
        ("1-00:00:00", "1440"),
        ("1-12", "2160"),
        ("2-00:30", "2910"),
        ("10:30", "630 for 10 hours or 11 for 10 minutes"),
        ("0:59:30", "60"),
    ],
)
def test_times_as_slurm_writes_them_are_refused_with_the_minutes_to_write(
    tmp_path: Path, written: str, told: str
) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(f"engine: slurm\nresources: {{train: {{minutes: {written}}}}}\n")
    with pytest.raises(OrchestrationError, match=rf"minutes: write a number of minutes, {told},"):
        load_profile(path)


@pytest.mark.parametrize(
    ("written", "memory"),
    [
        ("128G", "128G"),
        ("128GB", "122071M"),
        ("128g", "128G"),
        ("128GiB", "128G"),
        ("1T", "1T"),
        ("1.5G", "1536M"),
        ("4000M", "4000M"),
        ("1000K", "1M"),
        ("2048M", "2G"),
    ],
)
def test_sizes_are_written_as_schedulers_read_them(
    tmp_path: Path, written: str, memory: str
) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(f"engine: slurm\nresources: {{train: {{memory: {written}}}}}\n")
    assert load_profile(path).resources_of("train").memory == memory


@pytest.mark.parametrize(
    "written", ["0", "64", "G", "-1G", "1e3G", "true", "[1G]", "0G", "64 cows"]
)
def test_what_is_no_size_is_refused(tmp_path: Path, written: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(f"engine: slurm\nresources: {{train: {{memory: {written}}}}}\n")
    with pytest.raises(OrchestrationError, match=r"resources\.train\.memory: "):
        load_profile(path)


def test_scalars_are_taken_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(
        "engine: slurm\naccount: 0123\nqos: 7\nsbatch: [--nice, 10]\nsetup:\n"
        "env: {OMP_NUM_THREADS: 4, AT: 10:30, V: 1.10, DAY: 2026-11-28, M: 0644, H: 0x1F, N: 1_0}\n"
        "resources: {default: , train: {cpus: 010, minutes: 090}}\n"
    )
    profile = load_profile(path)
    assert isinstance(profile, SlurmProfile)
    assert (profile.account, profile.qos, profile.sbatch) == ("0123", "7", ["--nice", "10"])
    assert " ".join(profile.env.values()) == "4 10:30 1.10 2026-11-28 0644 0x1F 1_0"
    train = profile.resources_of("train")
    assert (train.cpus, train.minutes, profile.setup) == (10, 90, [])


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ("env: {FLAG: yes, NONE: }", 'env: variables are text, .*quotes: FLAG: "true", NONE: ""'),
        ("env: {A-B: x, 1: y}", "env: 'A-B', 1 can't be the name of a variable"),
        ("env: {A: x}\nenv: {B: y}", "env is there twice"),
        ("resources: {default: {cpus: 1, cpus: 2}}", "cpus is there twice"),
        ("resources: {default: {cpus: yes}}", r"default\.cpus: write a number \(given: yes\)"),
        ("requeues: off", r"requeues: write a number \(given: no\)"),
        (
            "resources: {default: {minutes: 24h}}",
            r"minutes: write a number of minutes \(given: '24h",
        ),
        (
            "resources: {default: {minutes: 1.5}}",
            r"minutes: write a number of minutes \(given: '1.5",
        ),
        ("resources: {default: {gpus: a100:4}}", r"default\.gpus: "),
        ("sbatch: [--exclusive, true]", r'sbatch\.1: write it in quotes: "true"'),
        ("cluster: no", 'cluster: write it in quotes: "false"'),
    ],
)
def test_what_yaml_would_make_something_else_of_is_refused(
    tmp_path: Path, fields: str, told: str
) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(f"engine: slurm\n{fields}\n")
    with pytest.raises(OrchestrationError, match=told):
        load_profile(path)


FIELDS = sorted({name for kind in ENGINES.values() for name in kind.profile.model_fields})
FIELDS += [f"resources: {{train: {{{name}" for name in Resources.model_fields]
FIELDS += ["resources: {train.mse", "pictures: {source", "evaluation: {data", "env: {A"]
SCALARS = st.one_of(
    st.sampled_from(
        ["٦٠", "1" * 5000, r'"\ud800"', r'"\0"', "a" * 300, "1-", "G", "&a [*a]", "<<"]
    ),
    st.from_regex(
        r"[0-9]{0,3}[-:.]?[0-9]{0,2}[:.]?[0-9]{0,2} ?[kKmMgGtTbBiI]{0,3}", fullmatch=True
    ),
    st.text(max_size=12),
)


@given(engine=st.sampled_from([*ENGINES]), field=st.sampled_from(FIELDS), value=SCALARS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_any_value_is_understood_or_refused_in_one_line(
    recipe: Path, engine: str, field: str, value: str
) -> None:
    needed = "{workdir: /w, image: i, claim: c, mount: /m}" if engine == "kubernetes" else "{}"
    closing = "}" * field.count("{")
    path = Path("any.yaml")
    path.write_text(f"<<: {needed}\nengine: {engine}\n{field}: {value}{closing}\n")
    said = ""
    try:
        make_plan(recipe, path)
    except OrchestrationError as error:
        said = str(error)
    assert len(said.splitlines()) < 2


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ("resources: {train.msee: {minutes: 2880}}", r"no stage msee \(did you mean mse\?"),
        ("resources: {train.zzz: {}}", r"no stage zzz \(there are: base, mse\)"),
        ("environment: no-env", "no Python environment"),
        ("workdir: no-place", "workdir: there is no folder"),
        ("evaluation: {data: kodakk}", r"evaluation\.data: there is no folder kodakk"),
        ("pictures: {source: [photoss, there]}", r"pictures\.source: there is no photoss$"),
    ],
)
def test_what_is_not_there_is_refused_before_anything_is_submitted(
    recipe: Path, tmp_path: Path, fields: str, told: str
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "p.yaml").write_text(f"engine: slurm\n{fields}\n")
    with pytest.raises(OrchestrationError, match=told):
        make_plan(recipe, tmp_path / "p.yaml")
    assert not (tmp_path / "plans").exists()


def test_all_that_is_not_there_is_named_at_once(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(
        "engine: slurm\nenvironment: none\nevaluation: {data: kodakk}\nresources: {train.x: {}}\n"
    )
    with pytest.raises(OrchestrationError) as caught:
        make_plan(recipe, tmp_path / "p.yaml")
    for part in ("p.yaml: ", "no stage x", "no Python environment none", "no folder kodakk"):
        assert part in str(caught.value)


def test_stages_that_no_file_of_logs_can_be_called_after_are_refused(recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace("base", "b" * 151))
    Path("p.yaml").write_text("engine: local\n")
    with pytest.raises(OrchestrationError, match="a name of 151 characters"):
        make_plan(recipe, Path("p.yaml"))


def test_pictures_elsewhere_need_not_be_there(recipe: Path, tmp_path: Path) -> None:
    sources = "[s3://bucket/photos, hf:org/name, 'shards:old/{0..9}.tar', recipes/demo/pictures]"
    (tmp_path / "p.yaml").write_text(f"engine: slurm\npictures: {{source: {sources}}}\n")
    make_plan(recipe, tmp_path / "p.yaml")
