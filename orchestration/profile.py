"""The fields of profiles, which say how a machine or cluster runs a plan."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from orchestration.amounts import memory_from, minutes_from
from pipeline.common.secrets import has_password, is_secret_name, secret_set_in


def _number(value: object) -> object:
    """Refuse yes and no, which Python would count as 1 and 0."""
    if isinstance(value, bool):
        raise ValueError(f"write a number (given: {'yes' if value else 'no'})")
    return value


def _text(value: object) -> object:
    """Take a whole number for a name, as an account's may be one."""
    if isinstance(value, bool):
        raise ValueError(f'write it in quotes: "{_written(value)}"')
    return str(value) if isinstance(value, int) else value


Number = Annotated[int, BeforeValidator(_number)]
Positive = Annotated[Number, Field(gt=0)]
Count = Annotated[Number, Field(ge=0)]
Text = Annotated[str, BeforeValidator(_text)]
MaybeText = Annotated[str | None, BeforeValidator(_text)]
# Slurm takes more minutes than it can count, and has another limit then.
YEAR = 366 * 24 * 60
KINDS = ("shard", "train", "evaluate", "register", "promote")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
OUR_POD = {
    "containers",
    "nodeSelector",
    "restartPolicy",
    "subdomain",
    "terminationGracePeriodSeconds",
    "volumes",
}
ELSEWHERE = (
    "export it in the shell that submits (or name a Kubernetes secret), a profile is kept and"
    " printed"
)


def refuse(mistakes: Iterable[str]) -> None:
    """Raise `ValueError` with all the mistakes in one message, if there are any."""
    found = list(dict.fromkeys(mistakes))
    if found:
        raise ValueError("; ".join(found))


def _needs_quotes(value: object) -> bool:
    return isinstance(value, bool) or not isinstance(value, (str, int))


def _written(value: object) -> str:
    """Return a value of YAML as it was most likely typed."""
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


class Section(BaseModel):
    """A part of a profile: unknown keys are refused, nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _without_empty_keys(cls, given: object) -> object:
        """Treat a key without a value as left out: all its lines may be commented out."""
        if not isinstance(given, dict):
            return given
        return {key: value for key, value in given.items() if value is not None}


class Resources(Section):
    """What one job takes. Everything is per node."""

    nodes: Positive = 1
    """Machines that train one model together; more than one for training only."""
    processes: Positive | None = None
    """Training processes on each node; default: one for each GPU, one without GPUs."""
    cpus: Positive = 2
    """CPU cores."""
    gpus: Count = 0
    """GPUs."""
    memory: Annotated[str, BeforeValidator(memory_from)] | None = None
    """Main memory, such as 4000M, 64G, 128GB or 1T; default: what the scheduler gives."""
    minutes: Annotated[Positive, Field(le=YEAR), BeforeValidator(minutes_from)] = 60
    """Time limit; training checkpoints before it and is queued again."""

    @property
    def ranks(self) -> int:
        """Training processes on all nodes together."""
        return self.nodes * (self.processes or max(self.gpus, 1))


class Pictures(Section):
    """What shards are made from on this machine."""

    source: list[Text] = []
    """SOURCE of `pipeline shard`; empty: the recipe's shards are there already."""
    parts: Positive = 1
    """Jobs that make shards side by side."""
    options: list[Text] = []
    """More options of `pipeline shard`, such as --shard-size=256MB."""


class Evaluation(Section):
    """How finished models are measured."""

    data: MaybeText = None
    """Folder of test pictures; default: the recipe's data.test, or its data.validation."""
    options: list[Text] = []
    """More options of `pipeline evaluate`."""


class Registry(Section):
    """How measured models are registered."""

    name: MaybeText = None
    """Name in the registry; default: the recipe's name."""
    enabled: bool = True
    """Whether the plan registers models at all."""
    promote: bool = True
    """Whether the plan ends with `pipeline promote`, which moves `champion` if that is earned."""


class Profile(Section):
    """What the profiles of all engines have in common."""

    shares_files: ClassVar[bool] = True
    # Whether jobs see this machine's files: then they read a copy of the recipe in the plan's
    # folder, and what is done already can be seen from here.
    many_machines: ClassVar[bool] = True
    # Whether jobs run on several machines.

    engine: str
    """Name of the engine, one of `ENGINES` in orchestration/load.py."""
    workdir: MaybeText = None
    """Folder that commands run in and paths are relative to; default: where `schedule` is typed."""
    environment: MaybeText = None
    """Python environment whose commands are used; default: the one `schedule` runs in."""
    setup: list[Text] = []
    """Shell lines that run before each command, such as `module load cuda`."""
    env: dict[str, str] = {}
    """Environment variables of every job; never credentials."""
    launch: list[Text] = []
    """More options of `accelerate launch`, such as those of recipes/deepspeed."""
    resources: dict[str, Resources] = {}
    """Resources by kind of job (shard, train, ...), by stage (train.NAME), or `default`."""
    pictures: Pictures = Pictures()
    evaluation: Evaluation = Evaluation()
    registry: Registry = Registry()
    requeues: Count = 100
    """How often a job may be stopped and start again before it counts as failed."""

    @field_validator("resources", mode="before")
    @classmethod
    def _empty_entries(cls, given: object) -> object:
        if not isinstance(given, dict):
            return given
        return {name: {} if value is None else value for name, value in given.items()}

    @field_validator("env", mode="before")
    @classmethod
    def _as_text(cls, env: object) -> object:
        """Take whole numbers as text; refuse other values, which shells write in another way."""
        if not isinstance(env, dict):
            return env
        names = [repr(name) for name in env if not VARIABLE.fullmatch(str(name))]
        if names:
            raise ValueError(f"{', '.join(names)} can't be the name of a variable")
        odd = {name: value for name, value in env.items() if _needs_quotes(value)}
        if odd:
            told = ", ".join(f'{name}: "{_written(value)}"' for name, value in odd.items())
            raise ValueError(f"variables are text, write them in quotes: {told}")
        return {
            name: str(value) if isinstance(value, int) else value for name, value in env.items()
        }

    @field_validator("env")
    @classmethod
    def _no_secrets(cls, env: dict[str, str]) -> dict[str, str]:
        secret = [name for name in env if is_secret_name(name) or has_password(env[name])]
        if secret:
            raise ValueError(f"{', '.join(secret)} looks like a credential: {ELSEWHERE}")
        return env

    @field_validator("setup")
    @classmethod
    def _no_secrets_set_up(cls, setup: list[str]) -> list[str]:
        for line in setup:
            what = secret_set_in(line)
            if what is not None:
                raise ValueError(f"{what} looks like it holds a credential: {ELSEWHERE}")
        return setup

    @model_validator(mode="after")
    def _resources_fit(self) -> Self:
        refuse(self._mistakes())
        return self

    def _mistakes(self) -> Iterator[str]:
        """Yield what is wrong with fields that fit together only in some ways."""
        for name in self.resources:
            kind, _, stage = name.partition(".")
            if name != "default" and kind not in KINDS:
                yield (
                    f"resources.{name} is no kind of job (there are: default, {', '.join(KINDS)},"
                    " train.STAGE)"
                )
            elif stage and kind != "train":
                yield f"resources.{name}: only training has stages, so write resources.{kind}"
            if self.resources_of(name).nodes > 1 and kind not in ("train", "default"):
                yield f"resources.{name}.nodes: only training runs on several nodes"
        if self.resources_of("default").nodes > 1:
            yield "resources.default.nodes: only training runs on several nodes"

    def defaults_in(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Return the fields that the `environment` of the submitting shell decides, if any."""
        return {}

    def all_resources(self) -> dict[str, Resources]:
        """Return what each kind of job takes, and each stage that has an entry of its own."""
        return {name: self.resources_of(name) for name in (*KINDS, *self._stages())}

    def _stages(self) -> list[str]:
        return [name for name in self.resources if name.startswith("train.")]

    def resources_of(self, kind: str) -> Resources:
        """Return what a job of `kind` ("evaluate", "train.mse") takes: the nearest word wins."""
        merged: dict[str, Any] = {}
        for name in ("default", kind.partition(".")[0], kind):
            if name in self.resources:
                merged.update(self.resources[name].model_dump(exclude_unset=True))
        return Resources(**merged)


class LocalProfile(Profile):
    """This machine: processes, as many at once as its cores and GPUs allow."""

    many_machines: ClassVar[bool] = False

    engine: Literal["local"]
    """Always `local`."""
    cpus: Positive | None = None
    """CPU cores to share out; default: all."""
    gpus: Count = 0
    """GPUs to share out."""

    def _mistakes(self) -> Iterator[str]:
        yield from super()._mistakes()
        for name, wanted in self.all_resources().items():
            if wanted.nodes > 1:
                yield f"resources.{name}.nodes: engine local has one machine"
            if wanted.gpus > self.gpus:
                yield (
                    f"resources.{name}.gpus: {wanted.gpus} are asked for, and this machine shares"
                    f" out {self.gpus} (gpus)"
                )


class SlurmProfile(Profile):
    """A Slurm cluster, by sbatch."""

    engine: Literal["slurm"]
    """Always `slurm`."""
    partition: MaybeText = None
    """Partition; default: the cluster's."""
    account: MaybeText = None
    """Account that is charged; default: the user's."""
    qos: MaybeText = None
    """Quality of service; default: the account's."""
    cluster: MaybeText = None
    """Cluster, at a site with several; default: SLURM_CLUSTERS of the shell, or the local one."""
    signal_seconds: Positive = 300
    """How long before the time limit training is told to checkpoint and stop."""
    gpu_option: Annotated[str, Field(pattern=r"^--[^{}]*\{gpus\}[^{}]*$")] = (
        "--gpus-per-node={gpus}"
    )
    """How sbatch is asked for GPUs, such as `--gres=gpu:a100:{gpus}`."""
    container: list[Text] = []
    """Words before each command, such as [apptainer, exec, --nv, /images/cca.sif]."""
    sbatch: list[Text] = []
    """More options of sbatch for every job, such as --constraint=a100."""
    srun: list[Text] = []
    """More options of srun for training, such as --container-image=..."""

    def defaults_in(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Return the cluster that SLURM_CLUSTERS names, unless the profile names one.

        Where several clusters share their users' folders, a plan stays with the one that it was
        made for.
        """
        cluster = environment.get("SLURM_CLUSTERS", "")
        if self.cluster or not cluster or "," in cluster:
            return {}
        return {"cluster": cluster}

    def _mistakes(self) -> Iterator[str]:
        yield from super()._mistakes()
        # A job that is told to stop when it has hardly begun would be requeued for ever.
        for name in ("train", *self._stages()):
            minutes = self.resources_of(name).minutes
            if minutes * 60 <= self.signal_seconds:
                yield (
                    f"signal_seconds ({self.signal_seconds}) must be less than the time limit of"
                    f" {name} ({minutes} minutes)"
                )


class KubernetesProfile(Profile):
    """A Kubernetes cluster with the JobSet controller (0.8 or newer)."""

    shares_files: ClassVar[bool] = False

    engine: Literal["kubernetes"]
    """Always `kubernetes`."""
    workdir: str
    """Folder inside the pods that commands run in; it holds the checkout and the shared files."""
    image: str
    """Container image with the `pipeline` command."""
    claim: str
    """PersistentVolumeClaim (ReadWriteMany) with pictures, shards and runs."""
    mount: str
    """Where that volume is mounted in the pods."""
    context: MaybeText = None
    """Context of kubectl to apply to; without one the manifest is written and not applied."""
    namespace: str = "default"
    """Namespace."""
    secret: MaybeText = None
    """Secret whose keys become environment variables, such as MLFLOW_TRACKING_PASSWORD."""
    gpu_resource: str = "nvidia.com/gpu"
    """What the cluster calls a GPU."""
    node_selector: dict[str, str] = {}
    """Labels that nodes must have."""
    pod: dict[str, Any] = {}
    """More fields of each pod's spec, such as tolerations or a priorityClassName."""
    grace_seconds: Positive = 300
    """How long a pod that must go has for its checkpoint."""

    @field_validator("pod")
    @classmethod
    def _not_ours(cls, pod: dict[str, Any]) -> dict[str, Any]:
        ours = [name for name in pod if name in OUR_POD]
        if ours:
            raise ValueError(f"{', '.join(ours)} can't be set here: the plan sets it")
        return pod


class RayProfile(Profile):
    """A Ray cluster, by its Jobs API; its nodes share the files of this machine."""

    engine: Literal["ray"]
    """Always `ray`."""
    address: MaybeText = None
    """Address of the cluster's dashboard; default: as for `ray job`, or http://127.0.0.1:8265."""
    ray_resources: dict[str, Annotated[float, Field(gt=0)]] = {}
    """More resources of each job, such as {"accelerator_type:A100": 0.001}."""
    grace_seconds: Positive = 300
    """How long training that must stop has for its checkpoint."""

    @field_validator("address")
    @classmethod
    def _of_http(cls, address: str | None) -> str | None:
        if address is not None and not address.startswith(("http://", "https://")):
            raise ValueError(
                f"{address.strip()} is not the address of a dashboard, such as http://head:8265"
                " (that of ray:// or of port 6379 is for other uses)"
            )
        if address is not None and has_password(address):
            raise ValueError(f"a password is in the address: {ELSEWHERE}")
        return address
