"""Read a profile: a YAML file, all its mistakes reported at once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, ValidationError

from orchestration.engines import kubernetes_site, local_site, ray_site, slurm_site
from orchestration.engines.base import Engine, Finding
from orchestration.engines.kubernetes import Kubernetes
from orchestration.engines.local import Local
from orchestration.engines.ray_engine import Ray
from orchestration.engines.slurm import Slurm, find_folder
from orchestration.errors import OrchestrationError
from orchestration.profile import (
    KubernetesProfile,
    LocalProfile,
    Profile,
    RayProfile,
    Resources,
    SlurmProfile,
)
from pipeline.common.documents import DocumentError, reading_yaml
from recipes.config.errors import sentence


class EngineEntry(NamedTuple):
    """All that the other modules know of an engine."""

    profile: type[Profile]
    """What a profile of this engine may say."""
    engine: Callable[[Any], Engine]
    """Makes the engine that such a profile describes."""
    site: Callable[[Any], Iterator[Finding]]
    """Yields what `pipeline doctor --on PROFILE` says about the machine or cluster."""
    find: Callable[[str], Path | None] | None = None
    """Returns the folder of the plan with an id, where the scheduler knows it; None: it can't."""


# By the name that profiles give them.
ENGINES: dict[str, EngineEntry] = {
    "local": EngineEntry(LocalProfile, Local, local_site.findings),
    "slurm": EngineEntry(SlurmProfile, Slurm, slurm_site.findings, find_folder),
    "kubernetes": EngineEntry(KubernetesProfile, Kubernetes, kubernetes_site.findings),
    "ray": EngineEntry(RayProfile, Ray, ray_site.findings),
}


class ProfileLoader(yaml.SafeLoader):
    """YAML whose scalars stay text as written, except whole numbers, yes, no and null.

    YAML 1.1 counts 24:00:00 in sixties, reads 0123 in base 8 and 3.10 as 3.1. A key that is given
    twice is refused, where YAML takes the last one.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping; raises `yaml.YAMLError` for a key that is there twice."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != MERGE:
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{key.value} is there twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        """Return the text; raises `yaml.YAMLError` if no file name, shell or server can hold it."""
        if NO_TEXT.search(str(node.value)) or len(str(node.value)) > LONGEST_VALUE:
            raise yaml.constructor.ConstructorError(
                None,
                None,
                "a value is too long, or has characters that are not text",
                node.start_mark,
            )
        return super().construct_scalar(node)


# NUL, and halves of characters that only escapes can write.
NO_TEXT = re.compile("[\0\ud800-\udfff]")
# A line of set-up, or a registry's token, is shorter.
LONGEST_VALUE = 4096
MERGE = "tag:yaml.org,2002:merge"
INT = "tag:yaml.org,2002:int"
WHOLE_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)$")
ProfileLoader.yaml_implicit_resolvers = {
    first: [
        (tag, WHOLE_NUMBER if tag == INT else pattern)
        for tag, pattern in resolvers
        if tag not in ("tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def engine_of(profile: Profile) -> Engine:
    """Return the engine that `profile` describes."""
    return ENGINES[profile.engine].engine(profile)


def load_profile(path: str | Path) -> Profile:
    """Return the profile in the YAML file `path`.

    Raises `OrchestrationError` with every mistake of the file in one message.
    """
    try:
        with reading_yaml():
            content = yaml.load(Path(path).read_text(), Loader=ProfileLoader)
    except FileNotFoundError:
        raise OrchestrationError(
            f"{path}: there is no such profile; orchestration/profiles has one for each engine"
        ) from None
    except (OSError, DocumentError) as error:
        why = str(error).replace(' in "<unicode string>",', "")
        raise OrchestrationError(f"{path}: can't be read as a profile: {why}") from error
    return profile_from(content, str(path))


def profile_from(content: object, place: str) -> Profile:
    """Return the profile that `content` describes; `place` is named in errors.

    Raises `OrchestrationError` with every mistake in one message.
    """
    if not isinstance(content, Mapping):
        raise OrchestrationError(f"{place}: a profile is a mapping of keys to values")
    name = str(content.get("engine"))
    if name not in ENGINES:
        raise OrchestrationError(
            f"{place}: engine is {content.get('engine')!r}; it must be one of {', '.join(ENGINES)}"
        )
    kind = ENGINES[name].profile
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        sentences = dict.fromkeys(_sentences(error, kind))
        raise OrchestrationError(f"{place}: {'; '.join(sentences)}") from error


def _sentences(error: ValidationError, kind: type[BaseModel]) -> Iterator[str]:
    for detail in error.errors(include_url=False, include_context=False):
        steps = [str(step) for step in detail["loc"]]
        unknown = detail["type"] == "extra_forbidden"
        nearest = _nearest(steps, kind) if unknown else ""
        yield sentence(detail, ".".join(steps), nearest)


def _nearest(steps: list[str], model: type[BaseModel]) -> str:
    if len(steps) > 1:
        field: Any = model.model_fields[steps[0]].annotation
        model = Resources if steps[0] == "resources" else field
    close = difflib.get_close_matches(steps[-1], list(model.model_fields), n=1, cutoff=0.5)
    if close:
        return f" (did you mean {close[0]}?)"
    return f" (there are: {', '.join(model.model_fields)})"
