"""Ends a split: collects the sidecars of its shards into the rejects table and the manifest."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.common.documents import parse
from shards import arrays
from shards.errors import ShardsError
from shards.making.plan import Plan, check_planned
from shards.manifest import Manifest, ShardInfo, shard_name
from shards.options import crops_of
from shards.samples.sample import REJECTS
from shards.store import Store

SHOWN = 5


def rejects_name(split: str) -> str:
    """Return the name of the table of rejected pictures."""
    return f"{split}.rejects.parquet"


def missing_shards(names: set[str], plan: Plan) -> list[int]:
    """Return the numbers of the plan's shards that are not complete among the files `names`."""
    shards = (shard_name(plan.split, number) for number in range(plan.shards))
    return [
        number
        for number, name in enumerate(shards)
        if f"{name}.tar" not in names or f"{name}.parquet" not in names
    ]


def read_sidecar(store: Store, name: str, plan: str = "") -> tuple[ShardInfo, list[dict[str, Any]]]:
    """Return the facts about the tar in the sidecar of shard `name`, and the rejected pictures.

    Raises:
        ShardsError: it is not a sidecar, or that of a plan whose identity is not `plan`.
    """
    file = f"{name}.parquet"
    try:
        with store.open(file) as stream:
            metadata = pq.read_schema(stream).metadata or {}
        facts = parse(metadata[b"shard"])
        rejects = parse(metadata[b"rejects"])
        info = ShardInfo(name=name, **facts)
        of_plan = metadata.get(b"plan", b"").decode()
    except (KeyError, TypeError, ValueError, pa.ArrowInvalid) as error:
        raise ShardsError(
            f"{store.where(file)} is damaged: delete it and run the same command again"
        ) from error
    if plan and of_plan and of_plan != plan:
        raise ShardsError(
            f"{store.where(file)} was made by another run that had another plan: "
            "delete it and run the same command again"
        )
    return info, rejects


def finish(store: Store, plan: Plan, created_with: dict[str, Any]) -> Manifest:
    """Write the rejects table, then the manifest.

    Raises:
        ShardsError: a shard is missing or of another plan, or not one picture could be used.
    """
    missing = missing_shards(store.names(), plan)
    if missing:
        raise ShardsError(
            f"{store} is not complete: {len(missing)} of {plan.shards} shards of split "
            f"{plan.split!r} are missing ({_shown(missing)}); run the parts that make them"
        )
    infos, rejects = [], []
    for number in range(plan.shards):
        info, rejected = read_sidecar(store, shard_name(plan.split, number), plan.identity)
        infos.append(info)
        rejects.extend(rejected)
    _write_rejects(store, plan.split, rejects)
    manifest = _manifest(plan, infos, rejects, created_with)
    if plan.listed and not manifest.samples:
        reasons = ", ".join(f"{count} {reason}" for reason, count in manifest.reasons.items())
        first = min(rejects, key=lambda one: str(one["key"]))
        raise ShardsError(
            f"not one of the {plan.listed} pictures could be used ({reasons}; the first, "
            f"{first['key']}: {first['detail']}): "
            f"see {store.where(rejects_name(plan.split))}, change the options and add --fresh"
        )
    check_planned(store, plan.split, plan.identity)
    manifest.write(store)
    _remove_others_rows(store, plan)
    return manifest


def _remove_others_rows(store: Store, plan: Plan) -> None:
    """Remove the rows of plans of this split that were made and never used."""
    rows = re.compile(rf"\.{re.escape(plan.split)}\.plan(\.[0-9a-f]+)?\.parquet")
    for name in store.names():
        if rows.fullmatch(name) and name != plan.rows_file:
            store.remove(name)


def _manifest(
    plan: Plan,
    infos: Sequence[ShardInfo],
    rejects: Sequence[dict[str, Any]],
    created_with: dict[str, Any],
) -> Manifest:
    reasons = Counter(one["reason"] for one in rejects)
    samples = sum(info.samples for info in infos)
    if samples != crops_of(plan.options.get("augment")) * (plan.listed - len(rejects)):
        raise ShardsError(
            f"the plan of split {plan.split!r} lists {plan.listed} pictures, but its shards "
            f"have {samples} samples and {len(rejects)} rejects: the plan or the shards were "
            "changed; start anew with --fresh"
        )
    return Manifest(
        split=plan.split,
        seed=plan.options["seed"],
        options=plan.options,
        source_digest=plan.source_digest,
        shards=tuple(infos),
        samples=samples,
        listed=plan.listed,
        rejected=len(rejects),
        reasons=dict(sorted(reasons.items())),
        classes=tuple(plan.classes),
        created_with={**created_with, "sources": plan.sources, "ignored": plan.ignored},
    )


def _write_rejects(store: Store, split: str, rejects: list[dict[str, Any]]) -> None:
    table = arrays.table(rejects, REJECTS).sort_by("key")
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    store.write(rejects_name(split), sink.getvalue().to_pybytes())


def _shown(numbers: Sequence[int]) -> str:
    text = ", ".join(str(number) for number in numbers[:SHOWN])
    return text + (f" and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else "")
