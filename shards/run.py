"""`pipeline shard`: lists, plans, makes what is missing, and finishes."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from shards.errors import ShardsError
from shards.finish import finish, missing_shards
from shards.listing import Corpus, list_corpus
from shards.manifest import Manifest
from shards.options import Options, parse_split
from shards.partial import partial_file, settle, sweep
from shards.plan import Plan, PlanRows, make_plans
from shards.resume import check_contents, check_foreign, check_options, check_source, clear
from shards.sources import Source, open_sources
from shards.store import Store
from shards.workers import Done, Job, run_jobs
from shards.write import Context

# How many are done, of how many, and a few words more.
Progress = Callable[[int, int | None, str], None]


@dataclass(frozen=True)
class Summary:
    """What a run did for one split; counts of samples are 0 until the split is complete.

    `made` shards were written by this run; `missing` ones are left for other parts.
    """

    split: str
    listed: int
    shards: int
    bytes: int
    ignored: int
    made: int = 0
    missing: int = 0
    complete: bool = False
    samples: int = 0
    rejected: int = 0
    reasons: dict[str, int] = field(default_factory=dict)


def shard(
    sources: Sequence[str],
    dest: str | Path,
    options: Options,
    *,
    workers: int | None = None,
    part: tuple[int, int] = (0, 1),
    fresh: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> list[Summary]:
    """Make the shards of `sources` in `dest`, or those that are still missing; a summary a split.

    Args:
        sources: what a user names: see `shards.sources`.
        dest: a folder or an fsspec URL.
        options: everything that decides the shards' bytes.
        workers: processes (default: the cores this process may use).
        part: (I, N) makes the shards I, I + N, I + 2 N, ... only.
        fresh: remove what the destination holds of these splits first.
        dry_run: list and plan, and write nothing.
        progress: called with pictures done, pictures to do, and a few words.

    Raises:
        ShardsError: a source cannot be used, or the destination holds something else.
        ShardsRuntimeError: no space, a store that does not answer, a worker that was killed.
    """
    store = Store(dest)
    opened = open_sources(sources)
    corpus = list_corpus(opened, options.seed, _existing(store))
    if not corpus.rows:
        raise ShardsError(_no_pictures(sources, corpus))
    if dry_run:
        return _planned(corpus, options)
    splits = list(parse_split(options.split))
    for split in splits:
        sweep(store, split)
        if fresh:
            clear(store, split)
    plans = _plans(store, corpus, options, opened, part)
    return [
        _make(
            Context(plan.split, store, opened, options, _numbers(plan)),
            plan,
            workers,
            part,
            progress,
        )
        for plan in plans
    ]


def finish_splits(dest: str | Path, split: str | None = None) -> list[Summary]:
    """Write the manifest of every planned split of `dest` (or of `split` alone).

    Raises:
        ShardsError: nothing is planned there, or a shard is missing.
    """
    store = Store(dest)
    names = store.names()
    planned = [name[1:].removesuffix(".plan.json") for name in names if name.endswith(".plan.json")]
    chosen = list(parse_split(split)) if split else sorted(planned)
    summaries = []
    for one in chosen:
        plan = Plan.read(store, one)
        if plan is None:
            raise ShardsError(f"{store} has no plan of split {one!r}: run `pipeline shard` first")
        summaries.append(_finished(store, plan, made=0))
    if not summaries:
        raise ShardsError(f"{store} has nothing to finish: run `pipeline shard` first")
    return summaries


def default_workers() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _plans(
    store: Store, corpus: Corpus, options: Options, sources: Sequence[Source], part: tuple[int, int]
) -> list[Plan]:
    """Return the plan of every split: those of before if they still hold, new ones otherwise."""
    names = store.names()
    splits = list(parse_split(options.split))
    stored = {split: Plan.read(store, split) for split in splits}
    for split, plan in stored.items():
        if plan is None:
            check_foreign(store, split, names)
        else:
            check_options(store, plan, options)
    plans = [plan for plan in stored.values() if plan is not None and plan.stamp == corpus.stamp]
    if len(plans) == len(splits):
        return plans
    with contextlib.ExitStack() as stack:
        files = {
            split: stack.enter_context(partial_file(store, Plan.rows_name(split)))
            for split in splits
        }
        made = make_plans(corpus, options, {split: file for split, (file, _) in files.items()})
        for split, (file, path) in files.items():
            before = stored[split]
            if before is not None:
                file.flush()
                _check_same(store, before, corpus, path, sources, part)
            if before is None or part == (0, 1):
                settle(store, file, path, Plan.rows_name(split))
                made[split].write(store)
    return list(made.values())


def _check_same(
    store: Store,
    before: Plan,
    corpus: Corpus,
    path: Path,
    sources: Sequence[Source],
    part: tuple[int, int],
) -> None:
    """Refuse to go on when what `path` plans is not what `before` planned."""
    with path.open("rb") as new:
        now, then = PlanRows(new), PlanRows.of(store, before.split)
        if before.source_digest != corpus.digest:
            check_source(store, before, then, now)
        missing = set(missing_shards(store.names(), before))
        done = set(range(part[0], before.shards, part[1])) - missing
        check_contents(store, before.split, then, now, done, sources)


def _make(
    context: Context,
    plan: Plan,
    workers: int | None,
    part: tuple[int, int],
    progress: Progress | None,
) -> Summary:
    """Make the shards of `plan` that are missing and belong to `part`; finish if all are there."""
    store = context.store
    todo = [number for number in missing_shards(store.names(), plan) if number % part[1] == part[0]]
    if todo:
        rows = PlanRows.of(store, plan.split)
        total = sum(rows.counts[number] for number in todo)
        report = _reporter(progress, total, plan.split)
        jobs = (Job(number, rows.shard(number)) for number in todo)
        run_jobs(context, jobs, len(todo), workers or default_workers(), report)
    missing = missing_shards(store.names(), plan)
    if missing:
        return _summary(plan, made=len(todo), missing=len(missing))
    if not todo and Manifest.file_name(plan.split) in store.names():
        manifest = Manifest.read(store.url, plan.split)
        return _summary(plan, made=0, manifest=manifest)
    return _finished(store, plan, made=len(todo))


def _finished(store: Store, plan: Plan, made: int) -> Summary:
    manifest = finish(store, plan, {"version": _version()})
    sweep(store, plan.split)
    return _summary(plan, made, manifest=manifest)


def _summary(plan: Plan, made: int, missing: int = 0, manifest: Manifest | None = None) -> Summary:
    base: dict[str, Any] = {
        "split": plan.split,
        "listed": plan.listed,
        "shards": plan.shards,
        "bytes": plan.bytes,
        "ignored": plan.ignored,
        "made": made,
        "missing": missing,
    }
    if manifest is not None:
        base |= {
            "complete": True,
            "bytes": sum(info.bytes for info in manifest.shards),
            "samples": manifest.samples,
            "rejected": manifest.rejected,
            "reasons": manifest.reasons,
        }
    return Summary(**base)


def _planned(corpus: Corpus, options: Options) -> list[Summary]:
    with contextlib.ExitStack() as stack:
        files: dict[str, IO[bytes]] = {
            split: stack.enter_context(tempfile.TemporaryFile())
            for split in parse_split(options.split)
        }
        plans = make_plans(corpus, options, files)
    return [_summary(plan, made=0, missing=plan.shards) for plan in plans.values()]


def _reporter(progress: Progress | None, total: int, split: str) -> Callable[[Done], None]:
    start = time.monotonic()

    def report(done: Done) -> None:
        if progress is not None:
            seconds = max(time.monotonic() - start, 1e-6)
            rates = f"{done.pictures / seconds:.0f} images/s, {done.bytes / seconds / 1e6:.0f} MB/s"
            progress(done.pictures, total, f"{rates}, {done.rejects} rejected ({split})")

    return report


def _numbers(plan: Plan) -> dict[str, int]:
    return {name: number for number, name in enumerate(plan.classes)}


def _existing(store: Store) -> Path | None:
    """Return the folder nearest to a local destination that is there already."""
    if store.folder is None:
        return None
    folder = store.folder.absolute()
    return next(one for one in [folder, *folder.parents] if one.is_dir())


def _no_pictures(sources: Sequence[str], corpus: Corpus) -> str:
    where = ", ".join(sources)
    others = f" among {corpus.ignored} files" if corpus.ignored else ""
    return f"no pictures in {where}{others}: name a source that holds .jpg, .png, .webp, ... files"


def _version() -> str:
    try:
        return version("cca-pipeline")
    except PackageNotFoundError:
        return "unknown"
