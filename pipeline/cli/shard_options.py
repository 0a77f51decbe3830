"""The options of the commands on shards: names, types and help."""

from __future__ import annotations

from typing import Annotated

import typer

Sources = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SOURCE...",
        help="Pictures: a folder, .tar (also of tars), .tar.gz (.xz, .bz2, .zst), .zip, .parquet "
        "or list of paths (.txt), as a path or URL; hf:NAME[:SPLIT]; or shards:PATTERN.",
    ),
]
Out = Annotated[str, typer.Option("--out", help="The folder or fsspec URL to write the shards to.")]
NewSplits = Annotated[
    str,
    typer.Option("--split", help="The split's name, or several with shares: train=0.98,val=0.02."),
]
ShardSize = Annotated[str, typer.Option(help="The approximate size of a shard.")]
Seed = Annotated[int, typer.Option(help="Seed of the order in which samples are shuffled.")]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Number of processes. Default: as many as cores and memory allow."),
]
MinSide = Annotated[
    int, typer.Option(help="Reject pictures with a shorter side below this, in pixels.")
]
MaxArea = Annotated[int, typer.Option(help="Reject pictures with more pixels than this.")]
MaxAspect = Annotated[
    float,
    typer.Option(help="Reject pictures with an aspect ratio above this; 0 accepts any."),
]
Check = Annotated[
    str, typer.Option(help="Check of each picture: full (decode it), header or none.")
]
Dedupe = Annotated[str, typer.Option(help="Which duplicates to reject: none, exact or near.")]
Labels = Annotated[bool, typer.Option("--labels/--no-labels", help="Use class folders as labels.")]
Augment = Annotated[
    str | None,
    typer.Option(metavar="FILE.yaml", help="Augment pictures with the operations in this file."),
]
Device = Annotated[
    str, typer.Option(help="The device for --augment: auto, cpu, cuda (all GPUs) or cuda:0,2.")
]
Part = Annotated[str, typer.Option(metavar="I/N", help="Make only shards I, I+N, I+2N, ...")]
Finish = Annotated[
    bool, typer.Option("--finish", help="Only write the manifest, once all parts are complete.")
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Delete the split's shards and start again.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="List pictures and plan shards; write nothing.")
]

Sheet = Annotated[
    str | None,
    typer.Option(
        "--html",
        metavar="FILE",
        help="With --dry-run --augment: write a page with pictures before and after.",
    ),
]

Dest = Annotated[str, typer.Argument(help="The folder or URL of the shards.")]
Split = Annotated[str | None, typer.Option(help="The split to look at. Default: all.")]
Html = Annotated[
    str | None, typer.Option(metavar="FILE", help="Write a page with histograms and pictures.")
]
ForcePage = Annotated[
    bool, typer.Option("--force", help="Replace the FILE of --html, whatever it is.")
]
StreamToo = Annotated[
    bool, typer.Option("--stream", help="Show the bytes, disk and bandwidth that each node needs.")
]
Nodes = Annotated[
    int, typer.Option(min=1, help="With --stream: number of nodes that train together.")
]
Block = Annotated[
    int, typer.Option(min=1, help="With --stream: number of shards shuffled together.")
]
SamplesASecond = Annotated[
    float,
    typer.Option("--samples-per-second", help="With --stream: samples a second over all nodes."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]
