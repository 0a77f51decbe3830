"""What may be given to the commands on shards: each option's name, type and help."""

from __future__ import annotations

from typing import Annotated

import typer

Sources = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SOURCE...",
        help="A folder, .tar (also of tars), .tar.gz, .zip, .parquet or list of paths (.txt), "
        "hf:NAME[:SPLIT], or shards:PATTERN.",
    ),
]
Out = Annotated[str, typer.Option("--out", help="Where the shards go: a folder or an fsspec URL.")]
NewSplits = Annotated[
    str, typer.Option("--split", help="The split's name, or several: train=0.98,val=0.02.")
]
ShardSize = Annotated[str, typer.Option(help="About how large a shard is.")]
Seed = Annotated[int, typer.Option(help="Of the order that samples are mixed in.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes; all cores by default.")]
MinSide = Annotated[int, typer.Option(help="Pixels of the shorter side, at least.")]
MaxArea = Annotated[int, typer.Option(help="Pixels of a picture, at most.")]
MaxAspect = Annotated[float, typer.Option(help="Longer over shorter side; 0: any.")]
Check = Annotated[str, typer.Option(help="full decodes every picture; header; none.")]
Dedupe = Annotated[str, typer.Option(help="Reject pictures that came before: none, exact, near.")]
Labels = Annotated[bool, typer.Option("--labels/--no-labels", help="Class folders become labels.")]
Augment = Annotated[
    str | None, typer.Option(metavar="FILE.yaml", help="Operations to augment pictures with.")
]
Device = Annotated[str, typer.Option(help="Where to augment: auto, cpu or cuda.")]
Part = Annotated[str, typer.Option(metavar="I/N", help="Make shards I, I+N, I+2N, ... only.")]
Finish = Annotated[
    bool, typer.Option("--finish", help="Only write the manifest of complete parts.")
]
Fresh = Annotated[
    bool, typer.Option("--fresh", help="Remove what the split holds, and start anew.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="List and plan, and write nothing.")]

Dest = Annotated[str, typer.Argument(help="Where the shards are.")]
Split = Annotated[str | None, typer.Option(help="The split to look at; all of them by default.")]
Html = Annotated[
    str | None, typer.Option(metavar="FILE", help="Write a page with histograms and pictures.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]
