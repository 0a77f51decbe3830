"""`pipeline verify`: reads every byte of a destination and names everything that is wrong."""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from pipeline.common.documents import parse
from pipeline.common.progress import Progress
from pipeline.common.workers import Tell, work_in_processes
from shards.errors import ShardsError, ShardsRuntimeError
from shards.making.finish import read_sidecar, rejects_name
from shards.manifest import Manifest, ShardInfo, splits
from shards.options import Options, crops_of
from shards.samples.check import RejectedError, examine
from shards.store import Store
from shards.tables import read_rows

CHUNK = 1 << 20
# A disk that fails, or a store that does not answer: other files may still be read.
UNREADABLE = (OSError, ShardsRuntimeError)


@dataclass(frozen=True)
class Problem:
    """A problem: its file, its sample if it concerns one, and what is wrong."""

    file: str
    what: str
    key: str = ""

    def __str__(self) -> str:
        return f"{self.file}: {f'{self.key}: ' if self.key else ''}{self.what}"


@dataclass(frozen=True)
class Verdict:
    """The result of a verification."""

    splits: tuple[str, ...]
    shards: int
    samples: int
    problems: tuple[Problem, ...]


def verify(
    dest: str | Path,
    *,
    split: str | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> Verdict:
    """Check every shard and every sample of `dest`: sizes, checksums, counts, decodes.

    Raises:
        ShardsError: there is nothing to verify.
    """
    store = Store(dest)
    chosen = [split] if split else _splits(store)
    problems: list[Problem] = []
    shards = samples = 0
    for one in chosen:
        try:
            manifest = Manifest.read(dest, one)
        except OSError as error:
            problems.append(Problem(Manifest.file_name(one), _cannot_be_read(error)))
            continue
        except ShardsError as error:
            if Manifest.file_name(one) not in store.names():
                raise
            problems.append(Problem(Manifest.file_name(one), str(error)))
            continue
        problems += _manifest_problems(store, manifest)
        problems += _shard_problems(store, manifest, workers, progress)
        shards += len(manifest.shards)
        samples += manifest.samples
    return Verdict(tuple(chosen), shards, samples, tuple(problems))


def _splits(store: Store) -> list[str]:
    """Return the splits that have a manifest, or shards of which it is missing."""
    tars = {re.sub(r"-\d{6}\.tar$", "", name) for name in store.names() if name.endswith(".tar")}
    found = sorted(tars | set(splits(store)))
    if not found:
        raise ShardsError(f"{store} holds no shards: name a folder that `pipeline shard` wrote")
    return found


def _manifest_problems(store: Store, manifest: Manifest) -> Iterator[Problem]:
    """Yield contradictions within the manifest, and between it, the rejects and the files."""
    name = Manifest.file_name(manifest.split)
    if sum(manifest.sizes) != manifest.samples:
        yield Problem(name, f"says {manifest.samples} samples, its shards {sum(manifest.sizes)}")
    crops = crops_of(manifest.options.get("augment"))
    if manifest.samples != crops * (manifest.listed - manifest.rejected):
        yield Problem(
            name,
            f"{manifest.listed} listed are not {manifest.samples} samples"
            f" and {manifest.rejected} rejected",
        )
    if parse(store.read(name)).get("digest") != manifest.digest:
        yield Problem(name, "was edited: its digest is not that of its contents")
    yield from _plan_problems(store, manifest)
    yield from _rejects_problems(store, manifest)
    known = {file for info in manifest.shards for file in (info.tar, info.sidecar)}
    ours = re.compile(rf"{re.escape(manifest.split)}-\d{{6}}\.(tar|parquet)")
    for file in sorted(store.names()):
        if ours.fullmatch(file) and file not in known:
            yield Problem(file, "is not in the manifest")


def _plan_problems(store: Store, manifest: Manifest) -> Iterator[Problem]:
    """Yield differences between the manifest and the plan."""
    try:
        plan = parse(store.read(f".{manifest.split}.plan.json"))
    except UNREADABLE as error:
        if not isinstance(error, FileNotFoundError):
            yield Problem(f".{manifest.split}.plan.json", _cannot_be_read(error))
        return
    except ValueError:
        return  # a destination may be copied without its hidden files
    name = Manifest.file_name(manifest.split)
    for field in ("options", "source_digest", "listed"):
        if plan.get(field) != getattr(manifest, field):
            yield Problem(name, f"its {field} is not the plan's")
    if plan.get("shards") != len(manifest.shards):
        yield Problem(name, f"lists {len(manifest.shards)} shards of {plan.get('shards')} planned")
    if manifest.seed != manifest.options.get("seed"):
        yield Problem(name, "its seed is not that of its options")


def _rejects_problems(store: Store, manifest: Manifest) -> Iterator[Problem]:
    file = rejects_name(manifest.split)
    try:
        with store.open(file) as stream:
            reasons = Counter(read_rows(stream, ["reason"])["reason"].to_pylist())
    except FileNotFoundError:
        yield Problem(file, "is missing")
    except UNREADABLE as error:
        yield Problem(file, _cannot_be_read(error))
    except pa.ArrowException as error:
        yield Problem(file, f"cannot be read: {error}")
    else:
        if dict(reasons) != manifest.reasons or reasons.total() != manifest.rejected:
            yield Problem(file, f"holds {reasons.total()} rejects, not as the manifest counts them")


def _shard_problems(
    store: Store,
    manifest: Manifest,
    workers: int,
    progress: Progress | None,
) -> list[Problem]:
    problems: dict[str, list[Problem]] = {}
    done = 0
    for info, found in _each_shard(store, manifest, workers):
        problems[info.tar] = found
        done += info.samples
        if progress is not None:
            count = sum(map(len, problems.values()))
            progress(done, manifest.samples, f"{info.tar}, {count} problems")
    return [problem for info in manifest.shards for problem in problems[info.tar]]


def _each_shard(
    store: Store, manifest: Manifest, workers: int
) -> Iterator[tuple[ShardInfo, list[Problem]]]:
    options = Options.from_dict(manifest.options)
    if workers == 1 or not store.shared_between_processes:
        for info in manifest.shards:
            yield info, check_shard(store, info, options)
        return
    start = partial(_checker, store, options)
    yield from work_in_processes(start, manifest.shards, min(workers, len(manifest.shards)))


def _checker(store: Store, options: Options, tell: Tell) -> Callable[[ShardInfo], list[Problem]]:
    return lambda info: check_shard(store, info, options)


def check_shard(store: Store, info: ShardInfo, options: Options) -> list[Problem]:
    """Return everything that is wrong with one shard."""
    try:
        said, _ = read_sidecar(store, info.name)
        with store.open(info.sidecar) as stream:
            rows = read_rows(stream).to_pylist()
    except FileNotFoundError:
        return [*_missing_tar(store, info), Problem(info.sidecar, "is missing")]
    except UNREADABLE as error:
        return [*_missing_tar(store, info), Problem(info.sidecar, _cannot_be_read(error))]
    except (ShardsError, pa.ArrowException, ValueError):
        return [*_missing_tar(store, info), Problem(info.sidecar, "is damaged")]
    problems = []
    if replace(said, name=info.name) != info or len(rows) != info.samples:
        problems.append(Problem(info.sidecar, "is not of the shard that the manifest lists"))
    try:
        with store.open(info.tar) as stream:
            problems += _tar_problems(stream, info, rows, options)
    except FileNotFoundError:
        problems.append(Problem(info.tar, "is missing"))
    except UNREADABLE as error:
        problems.append(Problem(info.tar, _cannot_be_read(error)))
    return problems


def _cannot_be_read(error: Exception) -> str:
    """Return the problem that `error` of a disk or a store is."""
    return f"cannot be read: {getattr(error, 'strerror', None) or error}"


def _missing_tar(store: Store, info: ShardInfo) -> list[Problem]:
    return [] if info.tar in store.names() else [Problem(info.tar, "is missing")]


def _tar_problems(
    stream: IO[bytes], info: ShardInfo, rows: list[dict[str, Any]], options: Options
) -> list[Problem]:
    problems = [Problem(info.tar, what) for what in _file_problems(stream, info)]
    unreadable = 0
    end = stream.seek(0, os.SEEK_END)
    for row in rows:
        try:
            stream.seek(row["offset"])
            what = _sample_problem(stream.read(min(row["size"], end)), row, options)
        except OSError as error:  # one bad sector, and the rest may be whole
            what = _cannot_be_read(error)
            unreadable += 1
        if what:
            problems.append(Problem(info.tar, what, row["key"]))
    if rows and unreadable == len(rows):
        return problems[:1]  # it is not its samples that are bad
    if not problems:
        problems += _member_problems(stream, info, rows)
    return problems


def _file_problems(stream: IO[bytes], info: ShardInfo) -> Iterator[str]:
    """Yield problems of the tar as a whole."""
    try:
        size, digest = _checksum(stream)
    except OSError as error:
        yield _cannot_be_read(error)
        return
    if size != info.bytes:
        yield f"has {size} bytes, not {info.bytes}"
    elif digest != info.sha256:
        yield "has another checksum than the manifest"


def _checksum(stream: IO[bytes]) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    while chunk := stream.read(CHUNK):
        digest.update(chunk)
        size += len(chunk)
    return size, digest.hexdigest()


def _sample_problem(data: bytes, row: dict[str, Any], options: Options) -> str:
    if len(data) != row["size"]:
        return "is cut off"
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        return "has another checksum"
    if options.check == "none":
        return ""
    try:
        facts = examine(data, replace(options, check="full", min_side=0, max_aspect=0.0))
    except RejectedError as error:
        return f"cannot be used: {error}"
    if (facts.width, facts.height) != (row["width"], row["height"]):
        return f"is {facts.width} x {facts.height}, not {row['width']} x {row['height']}"
    return ""


def _member_problems(
    stream: IO[bytes], info: ShardInfo, rows: list[dict[str, Any]]
) -> Iterator[Problem]:
    """Yield where the tar's members are not those of the sidecar."""
    stream.seek(0)
    places = {row["member"]: (row["offset"], row["size"]) for row in rows}
    keys = {row["key"] for row in rows}
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        for member in tar:
            if places.pop(member.name, None) == (member.offset_data, member.size):
                continue
            folder, slash, name = member.name.rpartition("/")
            if folder + slash + name.partition(".")[0] not in keys:
                yield Problem(info.tar, "is a member that the sidecar does not list", member.name)
    for name in places:
        yield Problem(info.sidecar, "lists a member that the tar does not have", name)
