"""What a model file records about the origin of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from pipeline.codec.errors import CodecError

# The type of each field that is not a string; all may be None.
_KINDS: Mapping[str, type | tuple[type, ...]] = {
    "rate_weight": (int, float),
    "variable_rate": list,
    "step": int,
}


@dataclass(frozen=True)
class ModelInfo:
    """The origin of a model's weights; None means that a field was not recorded.

    `variable_rate` has the rate weights of a model for several rates, `step` is the optimizer's
    step, digests are hex SHA-256. `other` keeps all further fields of a file, which programs of
    other versions may have written.
    """

    # The name of the model: its run, or the file that it was imported from.
    name: str | None = None
    recipe: str | None = None
    stage: str | None = None
    rate_weight: float | None = None
    variable_rate: tuple[float, ...] | None = None
    distortion: str | None = None
    step: int | None = None
    recipe_digest: str | None = None
    data_digest: str | None = None
    git_commit: str | None = None
    # A reference to the MLflow run (`pipeline.common.references`).
    run_id: str | None = None
    # The run that this one started from.
    parent: str | None = None
    # The source of weights that were not trained with this project.
    source: str | None = None
    other: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, content: ModelInfo | Mapping[str, Any] | None) -> ModelInfo:
        """Return `content`, a mapping like that of `to_dict`, as a `ModelInfo`.

        Raises `CodecError` when a field has a value of the wrong type.
        """
        if isinstance(content, ModelInfo):
            return content
        content = dict(content or {})
        known = {f.name for f in fields(cls)} - {"other"}
        values = {name: content.pop(name) for name in list(content) if name in known}
        for name, value in values.items():
            kind = _KINDS.get(name, str)
            if name == "variable_rate" and isinstance(value, tuple):
                value = list(value)
            if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
                raise CodecError(f"a model's {name} can't be {value!r}")
        if values.get("variable_rate") is not None:
            values["variable_rate"] = tuple(values["variable_rate"])
        return cls(**values, other=content)

    def to_dict(self) -> dict[str, Any]:
        """Return the recorded fields as plain JSON values."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "other"}
        recorded = {name: value for name, value in own.items() if value is not None}
        if self.variable_rate is not None:
            recorded["variable_rate"] = list(self.variable_rate)
        return {**recorded, **self.other}
