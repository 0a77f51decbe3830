"""The model and its auxiliary model as one module whose forward gives the loss.

One module, because data-parallel and sharding wrappers see parameters only through the forward
of what they wrap.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from pipeline.codec import (
    AuxiliaryModel,
    CodecOutput,
    Config,
    Model,
    Noise,
    architectures,
    load_auxiliary,
    load_model,
)
from recipes.config.schema import Run
from recipes.config.settings import RecipeError
from recipes.training.initial_model import model_info, starting_model
from recipes.training.losses import (
    Weights,
    auxiliary_terms,
    balanced,
    clamp_share,
    distortion,
    early_share,
    early_term,
    final_weight,
    sample_bits,
    squared_error,
)

log = logging.getLogger(__name__)

# The metrics of every training pass, in this order: processes add their vectors up.
METRICS = (
    "loss",
    "cost",
    "distortion",
    "mse",
    "bpp",
    "r_main",
    "r_z",
    "r_aux",
    "gap",
    "l_aux",
    "clamp_share",
    "clamp_share_main",
    "early_share",
    "quantile_loss",
)


def model_config(model: str | Mapping[str, Any], variable_rate: Sequence[float] = ()) -> Config:
    """Return the config of the model that a recipe names, with gains for `variable_rate`.

    Raises `CodecError` when there is no such architecture, preset or field.
    """
    if isinstance(model, Mapping) and "rate_weights" in model:
        raise RecipeError("model: rate_weights are a stage's: name them as its variable_rate")
    return replace(architectures.config_of(model), rate_weights=tuple(variable_rate))


def run_config(run: Run) -> Config:
    """Return the config of a run's model.

    Raises `RecipeError` when the recipe asks for what its architecture doesn't have, and
    `CodecError` as `model_config` does.
    """
    config = model_config(run.model, run.variable_rate)
    made = architectures.load(config.architecture)
    where = f"stage {run.stage.name}: the architecture {made.name}"
    if run.recipe.start != "random" and run.recipe.start not in made.starts:
        known = ", ".join(("random", *made.starts))
        raise RecipeError(f"{where} can't start as {run.recipe.start}, only as: {known}")
    if run.cca.mode != "off" and made.auxiliary is None:
        raise RecipeError(
            f"{where} has no auxiliary model for the causal context adjustment term: set"
            " cca.mode=off"
        )
    if run.cca.early_share is not None and not made.early_groups(config):
        raise RecipeError(f"{where} codes all latents at once: leave cca.early_share out")
    return config


def can_start_from(config: Config, parent: Config) -> bool:
    """Tell whether a model can take the weights of `parent`: all, or all but its gains."""
    return parent in (config, replace(config, rate_weights=()))


def shares_tensors(config: Config, parent: Config) -> bool:
    """Tell whether a model of `parent` has any tensor of a name and shape that `config` has."""
    with torch.device("meta"):
        own, given = (
            {name: tensor.shape for name, tensor in model.state_dict().items()}
            for model in (
                architectures.load(one.architecture).model(one) for one in (config, parent)
            )
        )
    return any(own.get(name) == shape for name, shape in given.items())


class TrainingModule(nn.Module):
    """What is trained in a run: `model`, and beside it `auxiliary` unless the CCA term is off."""

    def __init__(self, run: Run, model: Model, auxiliary: AuxiliaryModel | None) -> None:
        super().__init__()
        self.model = model
        self.auxiliary = auxiliary
        self.run = run
        self.early_groups = architectures.load(model.config.architecture).early_groups(model.config)
        freeze(self, run)

    def forward(
        self, x: Tensor, noise: Noise, weights: Weights, rates: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the loss of pictures x, (N, 3, H, W) in [0, 1], and the `METRICS` as a vector.

        `rates` (N,) are those of the pictures where the model has several. The loss is the mean of
        the pictures', each under its own `weights`.
        """
        run, output = self.run, self.model(x, noise, rates)
        pixels = x.shape[2] * x.shape[3]
        distorted = distortion(x, output.x_hat, run.stage.distortion, run.loss)
        r_main = sample_bits(output.likelihoods["y"]) / pixels
        r_z = self._side_bits(output) / pixels
        rated = weights.rate * (r_main + r_z)
        cost = distorted + rated
        groups = self.model.group_bits(-output.likelihoods["y"].log2())
        share = early_share(groups, self.early_groups)
        loss = distorted + weights.grown * rated + early_term(share, r_main, run.cca)
        quantiles = self.model.quantile_loss()
        found = {
            "distortion": distorted,
            "mse": squared_error(x, output.x_hat.detach()),
            "bpp": r_main + r_z,
            "r_main": r_main,
            "r_z": r_z,
            "clamp_share_main": clamp_share(output.likelihoods["y"]),
            "early_share": share,
        }
        if self.auxiliary is not None:
            extra, more = auxiliary_terms(self.auxiliary, output, noise, run.cca, weights)
            loss = loss + weights.main * r_main + extra
            if run.cca.mode == "published":
                quantiles = quantiles + self.auxiliary.quantile_loss()
            found |= more | {"gap": more["r_aux"] - r_main}
        loss = balanced(loss, weights, run.loss)
        found |= {"loss": loss, "cost": cost, "quantile_loss": quantiles}
        zero = x.new_zeros(())
        metrics = torch.stack([found.get(name, zero).detach().mean() for name in METRICS])
        return loss.mean() + quantiles, metrics

    def train(self, mode: bool = True) -> Self:
        """Set the mode; models whose rates are counted on rounded latents stay in evaluation's."""
        return super().train(mode and self.run.stage.quantisation == "noise")

    def _side_bits(self, output: CodecOutput) -> Tensor:
        """Return the bits (N,) of the latents that are coded beside y."""
        sides = [bits for name, bits in output.likelihoods.items() if name != "y"]
        return sum((sample_bits(bits) for bits in sides), output.y.new_zeros(len(output.y)))

    def groups(self) -> Iterator[dict[str, Any]]:
        """Yield the groups of trained parameters: weights of each model, and the quantiles."""
        quantiles = {id(parameter) for parameter in self.quantiles()}
        for name, part in (("main", self.model), ("auxiliary", self.auxiliary)):
            weights = [
                parameter
                for parameter in (part.parameters() if part is not None else ())
                if parameter.requires_grad and id(parameter) not in quantiles
            ]
            if weights:
                yield {"name": name, "params": weights}
        trained = [parameter for parameter in self.quantiles() if parameter.requires_grad]
        if trained:
            yield {"name": "quantiles", "params": trained}

    def quantiles(self) -> list[nn.Parameter]:
        """Return the parameters that the quantile losses alone train."""
        auxiliary = self.auxiliary.quantiles() if self.auxiliary is not None else []
        return [*self.model.quantiles(), *auxiliary]


def build(run: Run) -> TrainingModule:
    """Return the run's module before its first step.

    It has its parent's weights, or random ones that the recipe's seed decides. Raises
    `RecipeError` when the parent has not been trained or has another architecture.
    """
    config = run_config(run)
    architecture = architectures.load(config.architecture)
    torch.manual_seed(run.recipe.seed)
    model = architecture.model(config)
    if run.recipe.start in architecture.starts:
        architecture.starts[run.recipe.start](model)
    if model.gains is not None:
        weights = [final_weight(run, weight) for weight in run.variable_rate]
        model.gains.start(weights, _reference(run))
    make = architecture.auxiliary if run.cca.mode != "off" else None
    auxiliary = None if make is None else make(config)
    start = starting_model(run)
    if start is not None:
        _inherit(run, start, model, auxiliary)
    return TrainingModule(run, model, auxiliary)


def _reference(run: Run) -> float | None:
    """Return the weight at which an inherited model's gain is 1: the one it was trained at."""
    if run.parent is not None:
        weight, at = run.parent.rate_weight, run.parent
    elif run.init_model is not None:
        # Of another recipe: its terms beside the rate are taken to be as here.
        weight, at = model_info(_start(run)).rate_weight, run
    else:
        return None
    return None if weight is None else final_weight(at, float(weight))


def _start(run: Run) -> Path:
    start = starting_model(run)
    assert start is not None
    return start


def _inherit(run: Run, start: Path, model: Model, auxiliary: AuxiliaryModel | None) -> None:
    origin = run.parent.id if run.parent is not None else run.init_model
    if run.parent is not None and not (start / "model.safetensors").is_file():
        raise RecipeError(
            f"{run.id} starts from {origin}, which has no trained model in {start}:"
            f" train stage {run.parent.stage.name} first"
        )
    trained = load_model(start)
    whole = can_start_from(model.config, trained.config)
    if not whole and not run.stage.init_partial:
        raise RecipeError(
            f"{run.id} starts from {origin}, whose model in {start} has another architecture:"
            " give both the same `model`, or take what fits by init_partial=true"
        )
    # A parent with a single rate has no gains: those stay as they start.
    about = f"{run.id} takes from {origin}, the model"
    _take(model, trained.state_dict(), about, partial=not whole)
    inherited = load_auxiliary(start)
    if auxiliary is not None and inherited is not None:
        about = f"{run.id} takes from {origin}, the auxiliary model"
        _take(auxiliary, inherited.state_dict(), about, partial=not whole)


def _take(module: nn.Module, given: Mapping[str, Tensor], about: str, *, partial: bool) -> None:
    """Load the tensors that `module` names; if `partial`, only those of its own shapes."""
    own = module.state_dict()
    taken = {
        name: tensor
        for name, tensor in given.items()
        if not partial or (name in own and own[name].shape == tensor.shape)
    }
    if partial:
        log.warning("%s: %d of %d tensors, which fit", about, len(taken), len(own))
    module.load_state_dict(own | taken)


def freeze(module: TrainingModule, run: Run) -> None:
    """Stop gradients to what the stage freezes, and to the density that its mode doesn't train.

    Raises `RecipeError` when a pattern of `frozen` names nothing, or all of them everything.
    """
    if module.auxiliary is not None and run.cca.mode != "published":
        module.auxiliary.density.requires_grad_(False)
    parameters = dict(module.model.named_parameters())
    for name in frozen_names(run, module.model):
        parameters[name].requires_grad_(False)


def frozen_names(run: Run, model: Model) -> set[str]:
    """Return the parameters of `model` that a run's stage freezes; raises as `freeze` does."""
    names = [name for name, _ in model.named_parameters()]
    found: set[str] = set()
    for pattern in run.stage.frozen:
        meant = [name for name in names if _names(pattern, name)]
        if not meant:
            parts = ", ".join(name for name, _ in model.named_children())
            raise RecipeError(
                f"stage {run.stage.name}: frozen names {pattern}, which is no part of the model"
                f" (its parts: {parts})"
            )
        found.update(meant)
    if len(found) == len(names):
        raise RecipeError(f"stage {run.stage.name}: frozen leaves nothing of the model to train")
    return found


def _names(pattern: str, name: str) -> bool:
    return name == pattern or name.startswith(f"{pattern}.") or fnmatch(name, pattern)
