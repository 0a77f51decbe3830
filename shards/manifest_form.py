"""The form of what a manifest says, checked before it is believed: names, ranges and types."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

# What NumPy counts in.
Count = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
# Of one shard. Memory that shuffling takes grows with it, so no file may claim more than there are.
Samples = Annotated[int, Field(ge=0, lt=2**24, strict=True)]
Text = Annotated[str, Field(strict=True)]
# A file beside the manifest: without a folder, not hidden, and what a file system takes.
NAME = r"^[^./\\\x00-\x1f][^/\\\x00-\x1f]*$"
Stem = Annotated[str, Field(strict=True, pattern=NAME, max_length=250)]
Digest = Annotated[str, Field(strict=True, pattern=r"^[0-9a-f]{64}$")]


class _Shard(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Stem
    samples: Samples
    bytes: Count
    sha256: Digest


class _Table(BaseModel):
    file: Stem
    count: Count
    sha256: Digest


class _Said(BaseModel):
    split: Stem
    seed: Annotated[int, Field(strict=True)]
    options: dict[str, Any]
    source_digest: Text
    shards: list[_Shard] | _Table
    samples: Count
    listed: Count
    rejected: Count
    reasons: dict[str, Count] = {}
    classes: list[Text] = []
    created_with: dict[str, Any] = {}
    digest: Text = ""


def mistake(said: Any) -> str | None:
    """Return what is wrong with the content of a manifest, in a few words; None if nothing is."""
    try:
        _Said.model_validate(said)
    except ValidationError as error:
        first = error.errors()[0]
        steps = [str(step) for step in first["loc"] if not str(step).startswith(("list[", "_"))]
        return f"{'.'.join(steps) or 'it'}: {first['msg'].lower()}"
    return None
