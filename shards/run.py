"""`pipeline shard`: lists, plans, makes what is missing, and finishes."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from pipeline.common.machine import worker_count
from pipeline.common.progress import Progress
from shards.errors import ShardsError
from shards.making.finish import finish, missing_shards
from shards.making.listing import ListedCorpus, list_corpus
from shards.making.partial import failures_named, sweep
from shards.making.plan import Plan, PlanRows, make_plans
from shards.making.planning import Planner
from shards.making.resume import clear
from shards.making.workers import Done, ShardJob, run_jobs
from shards.making.write import Context, Form, ShardMaker
from shards.manifest import Manifest
from shards.options import Options, crops_of, devices_for, parse_split
from shards.sources import Source, open_sources, read_anywhere
from shards.store import Store

# What a worker may take: an interpreter with its libraries, and a large picture decoded.
WORKER_BYTES = 1 << 30


@dataclass(frozen=True)
class Summary:
    """What a run did for one split; counts of samples are 0 until the split is complete.

    `made` shards were written by this run; `missing` ones are left for other parts. `notes` are
    sentences on what the listing left out.
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
    notes: list[str] = field(default_factory=list)


def shard(
    sources: Sequence[str],
    dest: str | Path,
    options: Options,
    *,
    workers: int | None = None,
    part: tuple[int, int] = (0, 1),
    fresh: bool = False,
    dry_run: bool = False,
    devices: Sequence[str] | None = None,
    sheet: Path | None = None,
    progress: Progress | None = None,
) -> list[Summary]:
    """Make the missing shards of `sources` in `dest`; return a summary for each split.

    Args:
        sources: the SOURCE words of `pipeline shard`: see `shards.sources`.
        dest: a folder or an fsspec URL.
        options: the options that decide the shards' bytes.
        workers: processes (default: the cores this process may use).
        part: (I, N) makes only the shards I, I + N, I + 2 N, ...
        fresh: first remove the shards of these splits from the destination.
        dry_run: list and plan; write nothing.
        devices: torch's names of the devices that augment, in processes of their own (default: all
            GPUs if the options ask for them; without any, workers augment by themselves).
        sheet: with `dry_run`, the path of a page with pictures before and after augmentation.
        progress: called with the number of pictures done, the number to do, and a few words.

    Raises:
        ShardsError: a source cannot be used, the destination has other shards, or `fresh` is used
            with a part, which would remove the shards of the others.
        ShardsRuntimeError: the disk is full, a store does not answer, or a worker was killed.
    """
    store = Store(dest)
    scratch = _existing(store)
    if sheet is not None:
        _check_sheet(sheet, options, dry_run)
    if fresh and part != (0, 1):
        raise ShardsError(
            "--fresh with --part would remove what other parts have made: "
            f"empty {store} once, then run the parts without --fresh"
        )
    with failures_named(store), open_sources(sources, scratch) as opened:
        options = options.going_on(None if fresh else _options_before(store, options))
        workers = workers or default_workers()
        where = tuple(devices_for(options.augment) if devices is None else devices)
        run = _Run(store, opened, options, workers, part, progress, where)
        corpus = list_corpus(opened, options.seed, scratch, progress)
        if not corpus.rows:
            raise ShardsError(_no_pictures(sources, corpus))
        if dry_run:
            return _planned(corpus, options, run if sheet else None, sheet)
        try:
            return run.all(corpus, fresh)
        except BaseException:
            for split in parse_split(options.split):  # of workers that were ended
                sweep(store, split)
            raise


def _options_before(store: Store, options: Options) -> dict[str, Any] | None:
    """Return the options of the plan in `store`, or None when there is none."""
    plans = (Plan.read(store, split) for split in parse_split(options.split))
    return next((plan.options for plan in plans if plan is not None), None)


def finish_splits(dest: str | Path, split: str | None = None) -> list[Summary]:
    """Write the manifest of every planned split of `dest` (or of `split` alone).

    Raises:
        ShardsError: nothing is planned there, or a shard is missing.
    """
    store = Store(dest)
    with failures_named(store):
        return _finish_splits(store, split)


def _finish_splits(store: Store, split: str | None) -> list[Summary]:
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
    """Return how many workers this process's cores and memory are enough for."""
    return worker_count(WORKER_BYTES)


@dataclass(frozen=True)
class _Run:
    """One run of `shard`: what it works with, and its steps."""

    store: Store
    sources: Sequence[Source]
    options: Options
    workers: int
    part: tuple[int, int]
    progress: Progress | None
    devices: Sequence[str]

    def all(self, corpus: ListedCorpus, fresh: bool) -> list[Summary]:
        """Plan and make every split."""
        for split in parse_split(self.options.split):
            sweep(self.store, split)
            if fresh:
                clear(self.store, split)
        planner = Planner(
            self.store, self.sources, self.options, self.workers, self.part, self.progress
        )
        return [self.make(plan) for plan in planner.plans(corpus)]

    def make(self, plan: Plan) -> Summary:
        """Make the shards of `plan` that are missing; finish if then all are there."""
        mine = set(plan.part(self.part))
        todo = [one for one in missing_shards(self.store.names(), plan) if one in mine]
        if todo:
            self._make_shards(plan, todo)
        names = self.store.names()
        missing = missing_shards(names, plan)
        if missing:
            return _summary(plan, made=len(todo), missing=len(missing))
        if not todo and Manifest.file_name(plan.split) in names:
            return _summary(plan, made=0, manifest=Manifest.read(self.store.url, plan.split))
        return _finished(self.store, plan, made=len(todo))

    def _make_shards(self, plan: Plan, numbers: Sequence[int]) -> None:
        classes = {name: number for number, name in enumerate(plan.classes)}
        form = Form(classes, plan.ending, tuple(plan.members))
        with (
            self._servers() as servers,
            PlanRows.of(self.store, plan) as rows,
        ):
            context = Context(
                plan.split, self.store, self.sources, self.options, form, servers, plan.identity
            )
            total = sum(rows.counts[number] for number in numbers)
            jobs = (ShardJob(number, rows.shard(number)) for number in numbers)
            workers = self.workers if read_anywhere(self.sources) else 1
            told = _Told(plan.split, crops_of(self.options.augment), len(servers))
            report = _reporter(self.progress, total, told)
            run_jobs(context, jobs, len(numbers), workers, report)

    def _servers(self) -> contextlib.AbstractContextManager[Sequence[str]]:
        """Start the processes that augment, if there are to be any."""
        spec = self.options.spec
        if spec is None or not self.devices:
            return contextlib.nullcontext(())
        from shards.augment.server import servers

        return servers(spec, self.options.seed, self.devices)

    def show(self, sheet: Path, plan: Plan, rows: IO[bytes]) -> None:
        """Write a page of pictures of a plan's first shard, before and after augmentation."""
        from shards.making.sheet import SHOWN, write_sheet

        form = Form({name: number for number, name in enumerate(plan.classes)})
        maker = ShardMaker(Context(plan.split, self.store, self.sources, self.options, form))
        rows.seek(0)
        with contextlib.closing(maker), PlanRows(rows, plan) as planned:
            few = planned.shard(0).slice(0, SHOWN).to_pylist() if planned.counts else []
            write_sheet(sheet, self.options, few, maker.prepare)


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
        "notes": plan.notes,
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


def _planned(
    corpus: ListedCorpus, options: Options, run: _Run | None = None, sheet: Path | None = None
) -> list[Summary]:
    with contextlib.ExitStack() as stack:
        files: dict[str, IO[bytes]] = {
            split: stack.enter_context(tempfile.TemporaryFile())
            for split in parse_split(options.split)
        }
        plans = make_plans(corpus, options, files)
        if run is not None and sheet is not None:
            run.show(sheet, *next(zip(plans.values(), files.values(), strict=True)))
    return [_summary(plan, made=0, missing=plan.shards) for plan in plans.values()]


def _check_sheet(sheet: Path, options: Options, dry_run: bool) -> None:
    if not dry_run or options.augment is None:
        raise ShardsError("--html shows what --augment would do: give it with --dry-run --augment")
    from shards.making.sheet import check_sheet

    check_sheet(sheet)


@dataclass(frozen=True)
class _Told:
    """What the progress line says beside counts: `devices` augment for the workers."""

    split: str
    crops: int = 1
    devices: int = 0


def _reporter(progress: Progress | None, total: int, told: _Told) -> Callable[[Done], None]:
    start = time.monotonic()

    def report(done: Done) -> None:
        if progress is None:
            return
        seconds = max(time.monotonic() - start, 1e-6)
        words = [f"{done.pictures / seconds:.0f} images/s"]
        if told.crops > 1:
            words.append(f"{done.samples / seconds:.0f} crops/s")
        words.append(f"{done.bytes / seconds / 1e6:.0f} MB/s")
        words.append(f"{done.rejects} rejected ({told.split})")
        more = done.spent.words(seconds, told.devices)
        progress(done.pictures, total, "; ".join([", ".join(words), *more]))

    return report


def _existing(store: Store) -> Path | None:
    """Return the folder nearest to a local destination that is there already."""
    if store.folder is None:
        return None
    folder = store.folder.absolute()
    found = next(one for one in [folder, *folder.parents] if one.exists())
    if not found.is_dir():
        raise ShardsError(f"{found} is a file, and shards go into a folder: name another --out")
    return found


def _no_pictures(sources: Sequence[str], corpus: ListedCorpus) -> str:
    where = ", ".join(sources)
    others = f" among {corpus.ignored} files" if corpus.ignored else ""
    tars = [name for name in sources if "://" not in name and any(Path(name).glob("*.tar"))]
    if tars:
        return (
            f"no pictures in {where}{others}: {tars[0]} holds tars; "
            f"give them one by one ({tars[0]}/*.tar) where each is a class, or as "
            f"'shards:{tars[0]}/*.tar' where they are WebDataset shards (img2dataset's are)"
        )
    return f"no pictures in {where}{others}: name a source that holds .jpg, .png, .webp, ... files"


def _version() -> str:
    try:
        return version("cca-pipeline")
    except PackageNotFoundError:
        return "unknown"
