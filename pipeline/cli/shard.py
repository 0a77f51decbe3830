"""Commands on shards: shard, verify, inspect."""

from __future__ import annotations

import atexit
import gc
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pipeline.cli import is_program
from pipeline.cli import shard_options as given
from pipeline.cli.output import echo

if TYPE_CHECKING:
    from shards.inspecting.summary import SplitFacts
    from shards.options import Options
    from shards.run import Summary


def add_to(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.command()(shard)
    app.command()(verify)
    app.command()(inspect)


def shard(
    out: given.Out,
    source: given.Sources = None,
    split: given.NewSplits = "train",
    shard_size: given.ShardSize = "256MB",
    seed: given.Seed = 0,
    workers: given.Workers = None,
    min_side: given.MinSide = 256,
    max_area: given.MaxArea = 178_956_970,
    max_aspect: given.MaxAspect = 0.0,
    check: given.Check = "full",
    dedupe: given.Dedupe = "none",
    labels: given.Labels = True,
    augment: given.Augment = None,
    device: given.Device = "auto",
    part: given.Part = "0/1",
    finish: given.Finish = False,
    fresh: given.Fresh = False,
    dry_run: given.DryRun = False,
    html: given.Sheet = None,
    as_json: given.Json = False,
) -> None:
    """Pack pictures into WebDataset shards.

    To continue after a stop, run the same command again: it makes only the missing shards.

    Example: pipeline shard imagenet/train --out shards-out --workers 8
    """
    from pipeline.common.sizes import parse_size
    from recipes.config.bundled import shipped
    from shards.options import Options, augment_options, parse_devices, parse_part

    if is_program():
        # At exit, memory need not be collected, which would take a tenth of a second.
        atexit.register(gc.freeze)
    options = Options(
        split=split,
        seed=seed,
        shard_size=parse_size(shard_size, "--shard-size"),
        min_side=min_side,
        max_area=max_area,
        max_aspect=max_aspect,
        check=check,
        dedupe=dedupe,
        labels=labels,
        augment=augment_options(shipped(augment), device) if augment else None,
    )
    if finish:
        summaries = _finish(source, out)
    else:
        more = {
            "workers": workers,
            "part": parse_part(part),
            "fresh": fresh,
            "dry_run": dry_run,
            "sheet": Path(html) if html else None,
            "devices": (parse_devices(device) if augment else None) or None,
        }
        summaries = _make(source, out, options, more)
    if as_json:
        echo(json.dumps([asdict(summary) for summary in summaries]))
    else:
        for note in dict.fromkeys(note for summary in summaries for note in summary.notes):
            echo(note, err=True)
        for summary in summaries:
            echo(_message(summary, out, dry_run))
        if html:
            echo(f"pictures before and after augmentation: {html}")


def _finish(source: list[str] | None, out: str) -> list[Summary]:
    from shards.errors import ShardsError
    from shards.run import finish_splits

    if source:
        raise ShardsError("--finish takes no source: it collects the shards that are there")
    return finish_splits(out)


def _make(
    source: list[str] | None, out: str, options: Options, more: dict[str, Any]
) -> list[Summary]:
    from pipeline.common.progress import progress
    from recipes.config.bundled import shipped
    from shards.run import shard as make_shards

    names = [shipped(name) for name in source or []]
    with progress("Sharding", unit="images") as report:
        return make_shards(names, out, options, progress=report, **more)


def verify(
    dest: given.Dest,
    split: given.Split = None,
    workers: given.Workers = None,
    as_json: given.Json = False,
) -> None:
    """Check every shard and sample: sizes, checksums, counts and decoding.

    Example: pipeline verify shards-out
    """
    from pipeline.common.progress import progress
    from shards.inspecting.verify import verify as check
    from shards.run import default_workers

    with progress("Verifying", unit="images") as report:
        verdict = check(dest, split=split, workers=workers or default_workers(), progress=report)
    if as_json:
        echo(json.dumps(asdict(verdict)))
    else:
        for problem in verdict.problems:
            echo(str(problem))
        count = len(verdict.problems)
        state = "all is well" if not count else f"{count} problem{'s' if count > 1 else ''}"
        echo(f"{dest}: {verdict.shards} shards, {verdict.samples} samples: {state}")
    if verdict.problems:
        raise typer.Exit(1)


def inspect(
    dest: given.Dest,
    split: given.Split = None,
    html: given.Html = None,
    force: given.ForcePage = False,
    stream: given.StreamToo = False,
    nodes: given.Nodes = 1,
    block: given.Block = 8,
    rate: given.SamplesASecond = 1000.0,
    as_json: given.Json = False,
) -> None:
    """Show what shards contain: counts, bytes, picture sizes, rejects by reason.

    With --stream, show instead how much each node will read in training.

    Example: pipeline inspect shards-out --html shards.html

    Example: pipeline inspect s3://bucket/shards --stream --nodes 8 --samples-per-second 20000
    """
    if stream:
        _inspect_stream(dest, split or "train", nodes, block, rate, as_json)
        return
    from shards.inspecting.summary import inspect as look

    facts = look(dest, split)
    if html is not None:
        from shards.inspecting.page import write_page

        write_page(dest, Path(html), split, force)
    if as_json:
        echo(json.dumps([asdict(split_facts) for split_facts in facts]))
        return
    for split_facts in facts:
        echo(_description(split_facts))


def _inspect_stream(
    dest: str, split: str, nodes: int, block: int, rate: float, as_json: bool
) -> None:
    from shards.inspecting.streaming import stream_facts

    facts = stream_facts(dest, split, nodes, block=block, rate=rate)
    if as_json:
        echo(json.dumps(asdict(facts)))
        return
    echo(
        f"{split} on {nodes} node{'s' if nodes > 1 else ''} ({facts.groups} groups, "
        f"blocks of {block}):\n"
        f"  each node fetches up to {_bytes(facts.fetched)} in an epoch, "
        f"{facts.share:.1%} of the corpus\n"
        f"  with {_bytes(facts.once)} of disk, nothing is fetched after the first epoch; "
        f"with {_bytes(facts.kept)}, nothing is fetched twice in an epoch\n"
        f"  {rate:g} samples/s over all nodes need {_bytes(round(facts.bandwidth))}/s on each"
    )


def _message(split: Summary, out: str, dry_run: bool) -> str:
    """Return the last message of `pipeline shard` about a split."""
    if dry_run:
        return (
            f"{split.split}: {split.listed} pictures would make {split.shards} shards, "
            f"{_bytes(split.bytes)} ({split.ignored} other files ignored)"
        )
    if not split.complete:
        return (
            f"{split.split}: made {split.made} shards; {split.missing} of {split.shards} are left "
            "to other parts"
        )
    made = f"made {split.made} of {split.shards} shards" if split.made else "nothing left to do"
    reasons = ", ".join(f"{count} {reason}" for reason, count in split.reasons.items())
    return (
        f"{split.split}: {made}; {split.listed} pictures listed = {split.samples} written "
        f"+ {split.rejected} rejected{f' ({reasons})' if reasons else ''}"
        f"{f'; {split.ignored} other files ignored' if split.ignored else ''}; "
        f"{_bytes(split.bytes)} in {out}"
    )


def _description(facts: SplitFacts) -> str:
    """Return the description of a split that `pipeline inspect` prints."""
    from shards.making.finish import rejects_name

    lines: list[tuple[str, Any]] = [
        ("shards", f"{facts.shards}, {_bytes(facts.bytes)}"),
        (
            "pictures",
            f"{facts.listed} listed = {facts.samples} written + {facts.rejected} rejected",
        ),
        *((f"rejected, {reason}", count) for reason, count in facts.reasons.items()),
        *([("each rejected one", f"in {rejects_name(facts.split)}")] if facts.rejected else []),
        ("formats", _shares(facts.formats)),
        ("modes", _shares(facts.modes)),
        ("classes", facts.classes),
        ("width", _spread(facts.width)),
        ("height", _spread(facts.height)),
        ("bytes", _spread(facts.picture_bytes)),
        ("seed", facts.seed),
        ("digest", facts.digest),
    ]
    return "\n".join([facts.split, *(f"  {name:<24}{value}" for name, value in lines)])


def _spread(spread: Any) -> str:
    return f"{spread.least:.0f} to {spread.greatest:.0f}, median {spread.median:.0f}"


def _shares(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name or 'unknown'}" for name, count in counts.items())


def _bytes(count: float) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
