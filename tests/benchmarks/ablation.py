"""The runs of recipes side by side, on the same pictures: what docs/ablation.md is made of.

    python -m tests.benchmarks.ablation recipes/ablation-cca.yaml data.train=SHARDS --minutes 6 \
        --stage off-matched --stage adversarial --crops HELD_OUT --out ablation-out

All models are in one process and take turns at each batch, on a GPU each with a stream and graphs
of its own. They have the recipes' models, losses, learning rates, pictures and noise, but no
checkpoints, no MLflow and no evaluation before the end. `--minutes` trains as many steps as these
hold, `--steps` so many; `--batch` and `--warmup` hold for all stages. Prints, for each run, rate
and PSNR over the crops of its last steps, where all runs see the same, and over held-out crops and
pictures; then each stage's BD-rate against the first one's.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.codec import save_model
from pipeline.evaluation.bdrate import BDRateError, RDCurve, bd_rate
from pipeline.evaluation.pictures import find_pictures, read_picture
from recipes.config.load import load_recipe
from recipes.config.schema import Run
from recipes.config.settings import Speed
from recipes.config.stage import Stage
from recipes.training import speed, steps
from recipes.training.data import Feed
from recipes.training.graphs import Replayed
from recipes.training.losses import sample_bits, weights_at
from recipes.training.module import METRICS, build
from recipes.training.optim import GuardedAdam, make_optimizer
from recipes.training.schedule import set_learning_rate
from recipes.training.steps import FLAGS, Piece
from recipes.training.validate import rate_points
from shards import Batch

# Steps that tell how long one takes, for `--minutes`.
TIMED = 40
# Held-out crops in a pass, and their side.
TOGETHER, SIDE = 50, 128

Point = tuple[float, float]


class Model:
    """One run: its module, its steps, and what its last `window` steps found."""

    def __init__(self, run: Run, device: torch.device, settings: Speed, window: int) -> None:
        self.run = run
        # Module.to knows these keywords together, but no overload of it does.
        self.module = build(run).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.module.train()
        speed.apply(self.module, settings)
        optimizer = make_optimizer(self.module.groups(), run, guarded=True)
        assert isinstance(optimizer, GuardedAdam)
        self.optimizer = optimizer
        self.replayed = Replayed(self.module, optimizer, 1)
        self.found = torch.zeros(window, len(METRICS), device=device)
        self.flags = torch.zeros(len(FLAGS), device=device)
        # torch has no types for it.
        self.stream = torch.cuda.Stream() if device.type == "cuda" else None

    def step(self, step: int, stage: Stage, piece: Piece) -> None:
        """Launch a step on the model's own stream, after what the current one was given."""
        with self._aside():
            set_learning_rate(self.optimizer, stage, step)
            vector = self.replayed.launch([piece], lambda found: torch.cat([found, self.flags]))
            self.found[step % len(self.found)].copy_(vector[: len(METRICS)])

    def wait(self) -> None:
        """Let the current stream wait for the model's."""
        if self.stream is not None:
            torch.cuda.current_stream().wait_stream(self.stream)

    def _aside(self) -> AbstractContextManager[Any]:
        if self.stream is None:
            return nullcontext()
        self.stream.wait_stream(torch.cuda.current_stream())
        context: AbstractContextManager[Any] = torch.cuda.stream(self.stream)
        return context

    def trained_on(self) -> dict[str, float]:
        """Return the means over the last steps, of metrics and PSNR in dB."""
        means = dict(zip(METRICS, self.found.mean(0).tolist(), strict=True))
        return means | {"psnr": decibels(means["mse"])}

    @torch.no_grad()
    def held_out(self, batches: Iterable[Tensor]) -> list[Point]:
        """Return mean bpp and PSNR of pictures (N, 3, H, W), rounded latents, at each rate."""
        model, points = self.module.model.eval(), []
        for rate, _ in rate_points(self.run):
            rates, qualities = [], []
            for x in batches:
                output = model(x, rate=rate)
                bits = sample_bits(output.likelihoods["y"]) + sample_bits(output.likelihoods["z"])
                rates.append(bits / (x.shape[2] * x.shape[3]))
                shown = (output.x_hat.clamp(0, 1) * 255).round() / 255
                error = (shown - x).square().mean((1, 2, 3)).clamp(min=1e-10)
                qualities.append(-10 * error.log10())
            points.append((float(torch.cat(rates).mean()), float(torch.cat(qualities).mean())))
        model.train()
        return points


def train(models: Sequence[Model], feed: Feed, total: int | None, minutes: float) -> int:
    """Train `models` on the same batches, `total` or as many as `minutes` hold; return how many."""
    start = timed = time.perf_counter()
    for step, batch in enumerate(feed.from_step(0)):
        if step in (1, TIMED) or step % 100 == 0:
            check(models)
            print(f"step {step}, {time.perf_counter() - start:.0f} s", flush=True)
        if step == 1:
            # Compiling and recording are done.
            timed = time.perf_counter()
        if step == TIMED and total is None:
            each = (time.perf_counter() - timed) / (TIMED - 1)
            total = TIMED + int((60 * minutes - (time.perf_counter() - start)) / each)
            print(f"{each:.3f} s for a step of {len(models)} models: {total} steps", flush=True)
        # Kept until all streams have read it.
        given = list(pieces(models, batch, step))
        for model, piece in zip(models, given, strict=True):
            planned = {"steps": total or model.run.stage.steps}
            model.step(step, model.run.stage.model_copy(update=planned), piece)
        for model in models:
            model.wait()
        if step + 1 == total:
            break
    check(models)
    return step + 1


def check(models: Iterable[Model]) -> None:
    """Wait for all that was launched; raises `NonFiniteError` for a step that was left out."""
    for model in models:
        model.optimizer.check()


def pieces(models: Sequence[Model], batch: Batch, step: int) -> Iterator[Piece]:
    """Yield what each model's pass is computed from; what is the same for several is made once."""
    made: dict[Any, Piece] = {}
    for model in models:
        run, config = model.run, model.module.model.config
        draws = (run.stage.draws or run.id, run.recipe.seed)
        shape = (*draws, config.latent_channels, config.hyper_latent_channels)
        if shape not in made or run.variable_rate:
            (made[shape],) = steps.pieces(run, config, batch.images, step, batch.slots)
        piece = made[shape]
        yield replace(piece, weights=weights_at(step, run, piece.rates))


def decibels(error: float) -> float:
    """Return the PSNR of a mean squared error of values in [0, 1]."""
    return -10 * math.log10(error)


def crops(folder: Path, device: torch.device) -> list[Tensor]:
    """Return batches of the central crops of a folder's pictures."""
    found = []
    for path in find_pictures(folder):
        picture = read_picture(path)
        top, left = ((length - SIDE) // 2 for length in picture.shape[:2])
        if min(top, left) >= 0:
            found.append(picture[top : top + SIDE, left : left + SIDE])
    starts = range(0, len(found), TOGETHER)
    return [_tensor(np.stack(found[start : start + TOGETHER]), device) for start in starts]


def whole(folder: Path, device: torch.device) -> list[Tensor]:
    """Return the pictures of a folder, each a batch."""
    return [_tensor(read_picture(path)[None], device) for path in find_pictures(folder)]


def _tensor(pictures: np.ndarray, device: torch.device) -> Tensor:
    x = torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2)
    return (x.float() / 255).contiguous(memory_format=torch.channels_last)


def curves(models: Iterable[Model], held_out: dict[str, list[Tensor]]) -> list[dict[str, Any]]:
    """Return what is known of each run: of its last crops, and of the pictures `held_out`."""
    return [
        {
            "recipe": model.run.recipe.name,
            "stage": model.run.stage.name,
            "weight": model.run.rate_weight or list(model.run.variable_rate),
            "trained": model.trained_on(),
            "held_out": {name: model.held_out(given) for name, given in held_out.items()},
        }
        for model in models
    ]


def compare(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Return each stage's BD-rate against the first one's, in percent, on each set of crops."""
    found: dict[str, dict[str, list[Point]]] = {}
    for row in rows:
        sets = found.setdefault(f"{row['recipe']}/{row['stage']}", {})
        if not isinstance(row["weight"], list):
            trained = row["trained"]
            sets.setdefault("training", []).append((trained["bpp"], trained["psnr"]))
        for name, points in row["held_out"].items():
            sets.setdefault(name, []).extend(points)
    anchor = next(iter(found.values()))
    return {
        stage: {
            name: _bd_rate(anchor[name], points) for name, points in sets.items() if name in anchor
        }
        for stage, sets in found.items()
    }


def _bd_rate(anchor: Sequence[Point], test: Sequence[Point]) -> float | None:
    one, other = (RDCurve(*zip(*points, strict=True)) for points in (anchor, test))
    try:
        return round(bd_rate(one, other), 2)
    except BDRateError:
        return None


def asked() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="+", metavar="RECIPE|KEY=VALUE")
    parser.add_argument("--stage", action="append", help="of these stages only (repeat it)")
    parser.add_argument("--rate-weight", action="append", type=float, help="at these rates only")
    parser.add_argument("--bf16", action="append", default=[], help="a stage to train in bf16")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=150)
    parser.add_argument("--window", type=int, default=1000, help="last steps that are averaged")
    parser.add_argument("--crops", type=Path, help="a folder of held-out pictures, for crops")
    parser.add_argument("--whole", type=Path, help="one for whole pictures")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_intermixed_args()


def chosen(given: argparse.Namespace) -> list[Run]:
    """Return the runs that the command line asks for."""
    changes = [word for word in given.words if "=" in word]
    recipes = [load_recipe(Path(word), changes) for word in given.words if "=" not in word]
    update = {"batch": given.batch, "warmup": given.warmup}
    return [
        replace(run, stage=run.stage.model_copy(update=update))
        for recipe in recipes
        for run in recipe.runs()
        if given.stage is None or run.stage.name in given.stage
        if given.rate_weight is None or run.rate_weight in (None, *given.rate_weight)
    ]


def main() -> None:
    """Train, measure, print, and write results.json and the models."""
    given = asked()
    runs = chosen(given)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    feed = Feed(runs[0], 0, 1, device)
    models = [Model(run, device, _speed(run, given.bf16), given.window) for run in runs]
    done = train(models, feed, given.steps, given.minutes)
    feed.close()
    sets = {"crops": (crops, given.crops), "whole": (whole, given.whole)}
    rows = curves(models, {name: read(at, device) for name, (read, at) in sets.items() if at})
    for model in models:
        keep(model, given.out)
    result = {"steps": done, "runs": rows, "bd_rate": compare(rows)}
    (given.out / "results.json").write_text(json.dumps(result, indent=1))
    for row in rows:
        trained = {name: round(value, 4) for name, value in row["trained"].items()}
        print(row["stage"], row["weight"], trained, row["held_out"])
    print(json.dumps(result["bd_rate"], indent=1))


def keep(model: Model, out: Path) -> None:
    """Write a run's model where training would, so that `pipeline evaluate` knows its curve."""
    run = model.run
    info = {"recipe": run.recipe.name, "stage": run.stage.name, "distortion": run.stage.distortion}
    weight = "all" if run.variable_rate else f"w{run.rate_weight:g}"
    save_model(
        model.module.model.cpu(),
        out / run.stage.name / weight,
        info | {"rate_weight": run.rate_weight},
    )


def _speed(run: Run, lower: Sequence[str]) -> Speed:
    return Speed(precision="bf16" if run.stage.name in lower else "fp32", cuda_graphs=True)


if __name__ == "__main__":
    main()
