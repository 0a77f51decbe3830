"""What a model file says about where its weights come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from pipeline.codec.errors import CodecError

# What each field may be besides None.
_KINDS: Mapping[str, type | tuple[type, ...]] = {
    "rate_weight": (int, float),
    "variable_rate": list,
    "step": int,
}


@dataclass(frozen=True)
class ModelInfo:
    """Where a model's weights come from; None is what nobody recorded.

    `variable_rate` are the rate weights of a model for several rates, `step` the optimizer's,
    digests are hex SHA-256. `other` keeps what a file says beyond these fields: programs of
    other versions may know more.
    """

    # What the model is called: its run, or the file that it was imported from.
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
    # A reference to the run of MLflow (`pipeline.common.references`).
    run_id: str | None = None
    # The run that this one started from.
    parent: str | None = None
    # Where weights come from that were not trained here.
    source: str | None = None
    other: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, content: ModelInfo | Mapping[str, Any] | None) -> ModelInfo:
        """Return `content`, a mapping as `to_dict` gives it, as a `ModelInfo`.

        Raises `CodecError` when a field has a value of another kind than it should.
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
        """Return what was recorded, as plain JSON values."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "other"}
        found = {name: value for name, value in own.items() if value is not None}
        if self.variable_rate is not None:
            found["variable_rate"] = list(self.variable_rate)
        return {**found, **self.other}
