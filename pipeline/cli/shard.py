"""Commands on shards: shard, verify, inspect."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from shards.inspect import SplitFacts
    from shards.run import Summary

Sources = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SOURCE...",
        help="A folder, .tar (also of tars), .tar.gz, .zip, .parquet or list of paths (.txt), "
        "hf:NAME[:SPLIT], or shards:PATTERN.",
    ),
]
Out = Annotated[str, typer.Option("--out", help="Where the shards go: a folder or an fsspec URL.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]
Split = Annotated[str | None, typer.Option(help="The split to look at; all of them by default.")]


def add_to(app: typer.Typer) -> None:
    """Add this room's commands to `app`."""
    app.command()(shard)
    app.command()(verify)
    app.command()(inspect)


def shard(
    out: Out,
    source: Sources = None,
    split: Annotated[
        str, typer.Option(help="The split's name, or several: train=0.98,val=0.02.")
    ] = "train",
    shard_size: Annotated[str, typer.Option(help="About how large a shard is.")] = "256MB",
    seed: Annotated[int, typer.Option(help="Of the order that samples are mixed in.")] = 0,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; all cores by default.")
    ] = None,
    min_side: Annotated[int, typer.Option(help="Pixels of the shorter side, at least.")] = 256,
    max_area: Annotated[int, typer.Option(help="Pixels of a picture, at most.")] = 178_956_970,
    max_aspect: Annotated[float, typer.Option(help="Longer over shorter side; 0: any.")] = 0.0,
    check: Annotated[str, typer.Option(help="full decodes every picture; header; none.")] = "full",
    dedupe: Annotated[
        str, typer.Option(help="Reject pictures that came before: none, exact, near.")
    ] = "none",
    labels: Annotated[
        bool, typer.Option("--labels/--no-labels", help="Class folders become labels.")
    ] = True,
    augment: Annotated[
        str | None, typer.Option(metavar="FILE.yaml", help="Operations to augment pictures with.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where to augment: auto, cpu or cuda.")] = "auto",
    part: Annotated[
        str, typer.Option(metavar="I/N", help="Make shards I, I+N, I+2N, ... only.")
    ] = "0/1",
    finish: Annotated[
        bool, typer.Option("--finish", help="Only write the manifest of complete parts.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Remove what the split holds, and start anew.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List and plan, and write nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make WebDataset shards of pictures; run again, it goes on where it stopped.

    Example:  pipeline shard imagenet/train --out shards-out --workers 8
    """
    from pipeline.cli.progress import progress
    from recipes.shipped import shipped
    from shards.errors import ShardsError
    from shards.options import Options, augment_options, parse_part, parse_size
    from shards.run import finish_splits
    from shards.run import shard as make_shards

    options = Options(
        split=split,
        seed=seed,
        shard_size=parse_size(shard_size),
        min_side=min_side,
        max_area=max_area,
        max_aspect=max_aspect,
        check=check,
        dedupe=dedupe,
        labels=labels,
        augment=augment_options(shipped(augment), device) if augment else None,
    )
    if finish:
        if source:
            raise ShardsError("--finish takes no source: it collects the shards that are there")
        summaries = finish_splits(out)
    else:
        with progress("Sharding", unit="images") as report:
            summaries = make_shards(
                [shipped(one) for one in source or []],
                out,
                options,
                workers=workers,
                part=parse_part(part),
                fresh=fresh,
                dry_run=dry_run,
                progress=report,
            )
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in summaries]))
    else:
        for one in summaries:
            typer.echo(_told(one, out, dry_run))


def verify(
    dest: Annotated[str, typer.Argument(help="Where the shards are.")],
    split: Split = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; all cores by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check every shard and every sample: sizes, checksums, counts, decodes.

    Example:  pipeline verify shards-out
    """
    from pipeline.cli.progress import progress
    from shards.run import default_workers
    from shards.verify import verify as check

    with progress("Verifying", unit="images") as report:
        verdict = check(dest, split=split, workers=workers or default_workers(), progress=report)
    if as_json:
        typer.echo(json.dumps(asdict(verdict)))
    else:
        for problem in verdict.problems:
            typer.echo(str(problem))
        count = len(verdict.problems)
        state = "all is well" if not count else f"{count} problem{'s' if count > 1 else ''}"
        typer.echo(f"{dest}: {verdict.shards} shards, {verdict.samples} samples: {state}")
    if verdict.problems:
        raise typer.Exit(1)


def inspect(
    dest: Annotated[str, typer.Argument(help="Where the shards are.")],
    split: Split = None,
    html: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write a page with histograms and pictures.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what shards hold: counts, bytes, sizes of pictures, rejects by reason.

    Example:  pipeline inspect shards-out --html shards.html
    """
    from shards.inspect import inspect as look

    facts = look(dest, split)
    if html is not None:
        from pathlib import Path

        from shards.page import write_page

        write_page(dest, Path(html), split)
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in facts]))
        return
    for one in facts:
        typer.echo(_described(one))


def _told(one: Summary, out: str, dry_run: bool) -> str:
    """Return what `pipeline shard` says of a split at the end."""
    if dry_run:
        return (
            f"{one.split}: {one.listed} pictures would make {one.shards} shards, "
            f"{_bytes(one.bytes)} ({one.ignored} other files left aside)"
        )
    if not one.complete:
        return (
            f"{one.split}: made {one.made} shards; {one.missing} of {one.shards} are left to "
            "other parts"
        )
    made = f"made {one.made} of {one.shards} shards" if one.made else "nothing left to do"
    reasons = ", ".join(f"{count} {reason}" for reason, count in one.reasons.items())
    return (
        f"{one.split}: {made}; {one.listed} pictures listed = {one.samples} written "
        f"+ {one.rejected} rejected{f' ({reasons})' if reasons else ''}; "
        f"{_bytes(one.bytes)} in {out}"
    )


def _described(one: SplitFacts) -> str:
    """Return what `pipeline inspect` says of a split."""
    lines: list[tuple[str, Any]] = [
        ("shards", f"{one.shards}, {_bytes(one.bytes)}"),
        ("pictures", f"{one.listed} listed = {one.samples} written + {one.rejected} rejected"),
        *((f"rejected, {reason}", count) for reason, count in one.reasons.items()),
        ("formats", _shares(one.formats)),
        ("modes", _shares(one.modes)),
        ("classes", one.classes),
        ("width", _spread(one.width)),
        ("height", _spread(one.height)),
        ("bytes", _spread(one.picture_bytes)),
        ("seed", one.seed),
        ("digest", one.digest),
    ]
    return "\n".join([one.split, *(f"  {name:<24}{value}" for name, value in lines)])


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
