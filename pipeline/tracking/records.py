"""Validates the records of a run: each line of its spool is checked before it is used."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from pipeline.common.documents import DocumentError, parse

Record = dict[str, Any]
# The kind of a line that is not a record; it is set aside.
DAMAGED = "damaged"
# Kinds of records with content that is stored in another place than numbers.
FILES = ("file", "image")
LONGEST_SHOWN = 200


def _inside(name: str) -> str:
    """Refuse the name of a staged file that is not in the folder of staged files."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or len(path.parts) < 2:
        raise ValueError("is no staged file")
    return name


# The integers that MLflow and SQL take: 64 bits with a sign.
Whole = Annotated[int, Field(ge=-(2**63), lt=2**63, strict=True)]
Staged = Annotated[str, AfterValidator(_inside)]


class _Any(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    time: Whole


class _Metrics(_Any):
    kind: Literal["metrics"]
    step: Whole
    values: dict[str, float]


class _Begin(_Any):
    kind: Literal["begin"]
    params: dict[str, str]
    tags: dict[str, Any]


class _Tags(_Any):
    kind: Literal["tags"]
    tags: dict[str, Any]


class _File(_Any):
    kind: Literal["file"]
    staged: Staged
    folder: str


class _Image(_Any):
    kind: Literal["image"]
    staged: Staged
    name: str
    step: Whole


class _Dataset(_Any):
    kind: Literal["dataset"]
    name: str
    digest: str
    source: str


class _End(_Any):
    kind: Literal["end"]
    status: str


_Known = Annotated[
    _Metrics | _Begin | _Tags | _File | _Image | _Dataset | _End, Field(discriminator="kind")
]
_ADAPTER: TypeAdapter[Any] = TypeAdapter(_Known)


def read_record(line: bytes) -> Record:
    """Return the record in a line, or one of kind `DAMAGED` with the beginning of a bad line."""
    try:
        record: Record = parse(line)
        _ADAPTER.validate_python(record)
    except (DocumentError, ValidationError):
        return {"kind": DAMAGED, "line": line[:LONGEST_SHOWN].decode("utf-8", "replace").strip()}
    return record
