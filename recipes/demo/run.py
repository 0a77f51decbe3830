"""The demo: the main job from photographs to a codec's files, with the commands a user would type.

Run it with `make demo`. It prints every command before running it, and at the end what was
reached, measured on eight Kodak pictures. It fails when a promise about quality or files is missed;
the time that it took is shown beside the goal, and a slow machine is no failure.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import sys
import time
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from statistics import mean
from typing import Any

HERE = Path(__file__).resolve().parent
TRAIN, KODAK = HERE / "pictures" / "train", HERE / "pictures" / "kodak"
RECIPE = HERE.parent / "demo.yaml"
NAME, UNTRAINED = "cca-demo", "untrained"
# The classical codecs that take seconds; HEIC and VVC take minutes.
PEERS = "jpeg,webp,avif,jxl"
MINUTES, DECIBELS, BITS = 8.0, 23.0, 1.0


@dataclass(frozen=True)
class Check:
    """One promise of the demo: what it says, what came out, and whether it was kept."""

    promise: str
    outcome: str
    kept: bool


def say(text: str) -> None:
    """Print a line at once, so that it stands before what the next command prints."""
    print(text, flush=True)


def pipeline(*words: str | Path) -> None:
    """Run one `pipeline` command, and end the demo with its exit code when it fails.

    The command runs in this process, so that torch and MLflow are imported once for all.
    """
    (installed,) = entry_points(group="console_scripts", name="pipeline")
    command = installed.load()
    typed = [str(word) for word in words]
    say(f"\n$ {shlex.join(['pipeline', *typed])}")
    try:
        command(typed)
    except SystemExit as end:
        if end.code:
            say(f"demo: this command exited with {end.code}; see above")
            raise
    finally:
        sys.stdout.flush()


def write_untrained(path: Path) -> None:
    """Write the recipe's model as it is before its first step, to compare with."""
    from pipeline.codec import save_model
    from recipes.config.load import load_recipe
    from recipes.training.module import build

    run = load_recipe(RECIPE, []).runs()[0]
    about = {"name": UNTRAINED, "recipe": run.recipe.name, "stage": UNTRAINED}
    save_model(build(run).model, path, about)


def trained_models(runs: Path) -> list[Path]:
    """Return the folders of the finished runs, in the order in which they were trained."""
    return [file.parent for file in sorted(runs.rglob("model.safetensors"), key=_modified)]


def _modified(file: Path) -> float:
    return file.stat().st_mtime


def best_model(report: Path) -> Path:
    """Return the folder of the trained model with the highest PSNR below the demo's rate."""
    _, *models = json.loads((report / "results.json").read_text())["models"]
    return Path(max((m for m in models if m["bpp"] < BITS), key=_psnr, default=models[0])["path"])


def check_report(report: Path) -> list[Check]:
    """Compare `results.json` with what the demo promises."""
    results = json.loads((report / "results.json").read_text())
    untrained, *models = results["models"]
    best = max((m for m in models if m["bpp"] < BITS), key=_psnr, default=untrained)
    curve = sorted((m for m in models if m["name"].startswith("mse/")), key=_bpp)
    rising = len({m["rate_weight"] for m in curve}) >= 3 and all(
        low["bpp"] < high["bpp"] and low["psnr"] < high["psnr"]
        for low, high in itertools.pairwise(curve)
    )
    better = [m for m in models if m["bpp"] <= untrained["bpp"]]
    rival = max(better, key=_psnr, default=best)
    points = ", ".join(f"{m['bpp']:.3f} bpp {m['psnr']:.2f} dB" for m in curve)
    return [
        Check(
            f"at least {DECIBELS:.0f} dB below {BITS:.0f} bpp on Kodak at the best rate",
            f"{best['psnr']:.2f} dB at {best['bpp']:.3f} bpp ({best['name']})",
            best["psnr"] >= DECIBELS and best["bpp"] < BITS,
        ),
        Check(
            "better than before training, at no more bits",
            f"{rival['psnr']:.2f} dB at {rival['bpp']:.3f} bpp ({rival['name']}) against "
            f"{untrained['psnr']:.2f} dB at {untrained['bpp']:.3f} bpp",
            rival["psnr"] > untrained["psnr"] and rival["bpp"] <= untrained["bpp"],
        ),
        Check("a rising curve over three rates or more", points, rising),
        check_bytes(report, results),
    ]


def check_bytes(report: Path, results: dict[str, list[dict[str, Any]]]) -> Check:
    """Count the streams' bytes on disk again and compare with the mean rates reported."""
    pixels = {picture.stem: _pixels(picture) for picture in KODAK.iterdir()}
    folders = sorted(folder for folder in (report / "streams").iterdir() if folder.is_dir())
    counted = [
        mean(file.stat().st_size * 8 / pixels[file.name.split(".")[0]] for file in folder.iterdir())
        for folder in folders
    ]
    reported = [model["bpp"] for model in results["models"]]
    same = [
        abs(one - other) < 1e-9
        for one, other in zip(sorted(counted), sorted(reported), strict=True)
    ]
    promise = "bytes on disk equal the rate reported"
    return Check(promise, f"for {sum(same)} of {len(same)} models", all(same))


def _pixels(picture: Path) -> int:
    from PIL import Image

    with Image.open(picture) as image:
        return image.width * image.height


def check_round_trip(out: Path, model: str) -> Check:
    """Compress one picture to a file and back, through the registry's model."""
    picture, stream, decoded = KODAK / "kodim23.webp", out / "kodim23.cca", out / "kodim23.png"
    pipeline("compress", picture, stream, "--model", model)
    pipeline("decompress", stream, decoded, "--model", model)
    from PIL import Image

    with Image.open(picture) as before, Image.open(decoded) as after:
        same = before.size == after.size
    return Check(
        "one picture to a file and back",
        f"{stream.stat().st_size:,} bytes, {decoded}",
        same and stream.stat().st_size > 0,
    )


def _bpp(model: dict[str, float]) -> float:
    return model["bpp"]


def _psnr(model: dict[str, float]) -> float:
    return model["psnr"]


def run(out: Path) -> list[Check]:
    """Run every command, with results in the folder `out`; return what became of the promises."""
    shards, runs, report = out / "shards", out / "runs", out / "report"
    pipeline("shard", TRAIN, "--out", shards)
    pipeline("train", RECIPE, f"data.train={shards}", f"out={runs}")
    untrained = out / f"{UNTRAINED}.safetensors"
    write_untrained(untrained)
    models = trained_models(runs)
    measured = ("--data", KODAK, "--out", report, "--peers", PEERS)
    pipeline("evaluate", untrained, *models, *measured)
    best = best_model(report)
    for folder in models:
        alias = ("--alias", "champion") if folder == best else ()
        pipeline(
            *("register", folder, "--name", NAME, "--metrics", report / "results.json"), *alias
        )
    pipeline("models", NAME)
    say(f"\nReport: {report / 'report.html'}")
    return [*check_report(report), check_round_trip(out, f"models:/{NAME}@champion")]


def main() -> int:
    """Run the demo; return 0 when every promise was kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="folder for all results")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    # Threads that wait for each other sleep: on a busy machine, spinning ones made training four
    # times slower. Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    start = time.monotonic()
    checks = run(out)
    for check in checks:
        say(f"  [{'ok' if check.kept else 'MISSED'}] {check.promise}: {check.outcome}")
    minutes = (time.monotonic() - start) / 60
    say(f"  [time] {minutes:.1f} minutes; two idle cores need less than {MINUTES:.0f}")
    return 0 if all(check.kept for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
