"""The optimizers of recipes: what they step, what they keep, and where they are refused."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from recipes.config.load import load_recipe
from recipes.config.schema import Run
from recipes.config.settings import RecipeError
from recipes.training import speed
from recipes.training.clipping import Clipping
from recipes.training.module import METRICS, TrainingModule, build, model_config
from recipes.training.optim import ClippedAdam, GuardedAdam, make_optimizer
from recipes.training.preflight import for_processes
from recipes.training.schedule import set_learning_rate
from recipes.training.state import gather, restore
from recipes.training.steps import FLAGS, Eager, Piece, pieces

OF_MATRICES = pytest.mark.skipif(
    importlib.util.find_spec("pytorch_optimizer") is None, reason="needs the extra optimizers"
)
SETTINGS = [
    "adam",
    "{name: adam, betas: [0.9, 0.99]}",
    "{name: adamw, weight_decay: 0.1}",
    pytest.param("{name: soap, precondition_every: 2}", marks=OF_MATRICES),
    pytest.param("{name: soap, precondition_up_to: 8}", marks=OF_MATRICES),
    pytest.param("{name: muon, kernel_lr: 5e-3}", marks=OF_MATRICES),
]
RunOf = Callable[..., Run]


@pytest.fixture
def run_of(write_recipe) -> RunOf:
    def make(*changes: str) -> Run:
        return load_recipe(write_recipe(), ["stages.0.warmup=3", *changes]).runs()[0]

    return make


def given(run: Run, step: int) -> Iterator[Piece]:
    crops = torch.rand(2, 3, 64, 64, generator=torch.manual_seed(step))
    config = model_config(run.model, run.variable_rate)
    return pieces(run, config, crops, step, range(2))


class Trained:
    """A run in the making, without data, files or processes."""

    def __init__(self, run: Run, state: dict[str, torch.Tensor] | None = None, step: int = 0):
        self.run, self.step = run, step
        self.module: TrainingModule = build(run).train()
        self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        speed.apply(self.module, run.speed)
        self.optimizer: Clipping = make_optimizer(self.module.groups(), run)
        if state is not None:
            weights = {
                name.removeprefix("weights."): tensor
                for name, tensor in state.items()
                if name.startswith("weights.")
            }
            self.module.load_state_dict(weights)
        self.stepper = Eager(Accelerator(cpu=True), self.module, self.optimizer, 1)
        if state is not None:
            restore(self.module, self.optimizer, state, step)

    def train(self, steps: int) -> Trained:
        for _ in range(steps):
            set_learning_rate(self.optimizer, self.run.stage, self.step)  # type: ignore[arg-type]
            self.stepper.step(
                given(self.run, self.step),
                lambda totals: torch.cat([totals, torch.zeros(len(FLAGS))]),
            )
            self.step += 1
        return self

    def state(self) -> dict[str, torch.Tensor]:
        return gather(self.module, self.optimizer)


@pytest.mark.parametrize("optimizer", SETTINGS)
def test_a_run_goes_on_to_the_last_bit(run_of: RunOf, optimizer: str) -> None:
    assert_goes_on(run_of(f"optimizer={optimizer}", "cca.mode=off"))


@pytest.mark.parametrize(
    "optimizer",
    ["adamw", pytest.param("soap", marks=OF_MATRICES), pytest.param("muon", marks=OF_MATRICES)],
)
def test_a_run_in_bf16_goes_on_to_the_last_bit(run_of: RunOf, optimizer: str) -> None:
    changes = ["cca.mode=off", "speed.precision=bf16", f"optimizer={optimizer}"]
    assert_goes_on(run_of(*changes))


def assert_goes_on(run: Run) -> None:
    begun = Trained(run).train(2)
    kept = begun.state()
    through = begun.train(3).state()
    again = Trained(run, kept, 2).train(3).state()
    assert again.keys() == through.keys()
    different = [name for name in through if not torch.equal(through[name], again[name])]
    assert not different
    # By the names of parameters, in tensors alone, each of which a file may hold.
    names = {name for name, _ in Trained(run).module.named_parameters()}
    assert all(name.partition(".")[2] in names for name in kept if name[:8] != "weights.")


@pytest.mark.parametrize("optimizer", SETTINGS)
def test_every_trained_weight_moves_and_no_other(run_of: RunOf, optimizer: str) -> None:
    run = run_of(f"optimizer={optimizer}", "stages.0.frozen=[analysis]")
    begun = Trained(run)
    before = {name: p.detach().clone() for name, p in begun.module.named_parameters()}
    begun.train(2)
    for name, parameter in begun.module.named_parameters():
        # A last layer that starts at 0 may get no gradient.
        if parameter.grad is not None and parameter.grad.any():
            assert not torch.equal(parameter, before[name]), name
        if not parameter.requires_grad:
            assert torch.equal(parameter, before[name]), name
    assert set(begun.optimizer.norms) == {"main", "auxiliary", "quantiles"}


@pytest.mark.parametrize("optimizer", SETTINGS)
def test_the_groups_are_clipped_apart_as_a_whole(run_of: RunOf, optimizer: str) -> None:
    run = run_of(f"optimizer={optimizer}", "stages.0.clip=1e-3")
    begun = Trained(run)
    set_learning_rate(begun.optimizer, run.stage, 0)  # type: ignore[arg-type]
    piece = next(given(run, 0))
    loss, _ = begun.module(piece.x, piece.noise, piece.weights, piece.rates)
    loss.backward()
    begun.optimizer.clip()
    for name in ("main", "auxiliary"):
        gradients = begun.optimizer._gradients()[name]
        assert float(torch.nn.utils.get_total_norm(gradients)) == pytest.approx(1e-3, rel=1e-3)


def test_adamw_decays_weights_and_no_quantiles(run_of: RunOf) -> None:
    run = run_of("optimizer={name: adamw, weight_decay: 0.5}")
    optimizer = make_optimizer(build(run).groups(), run)
    assert {group["name"]: group["weight_decay"] for group in optimizer.param_groups} == {
        "main": 0.5,
        "auxiliary": 0.5,
        "quantiles": 0.0,
    }
    guarded = make_optimizer(build(run).groups(), run, guarded=True)
    assert isinstance(guarded, GuardedAdam)
    assert guarded.defaults["decoupled_weight_decay"]
    plain = make_optimizer(build(run_of()).groups(), run_of())
    assert isinstance(plain, ClippedAdam)
    assert plain.defaults["betas"] == (0.9, 0.999)


@OF_MATRICES
def test_muon_takes_dense_kernels_and_leaves_the_rest_to_adam(run_of: RunOf) -> None:
    run = run_of("optimizer={name: muon, kernel_lr: 5e-3}", "stages.0.warmup=0")
    optimizer = make_optimizer(build(run).groups(), run)
    set_learning_rate(optimizer, run.stage, 0)
    for group in optimizer.param_groups:
        dense = [p.ndim == 4 and min(p.shape[:2]) > 1 for p in group["params"]]
        assert set(dense) == {group["use_muon"]}
        expected = {True: 5e-3, False: 1e-3}[group["use_muon"]]
        assert group["lr"] == pytest.approx(1e-3 if group["name"] == "quantiles" else expected)


@OF_MATRICES
@pytest.mark.parametrize("name", ["soap", "muon"])
def test_optimizers_of_matrices_are_refused_where_there_are_none(run_of: RunOf, name: str) -> None:
    def processes(kind: str, device: str) -> Any:
        state = SimpleNamespace(deepspeed_plugin=None)
        kinds = SimpleNamespace(value=kind)
        return SimpleNamespace(
            num_processes=1,
            state=state,
            distributed_type=kinds,
            device=torch.device(device),
        )

    run = run_of(f"stages.0.optimizer={name}")
    for_processes([run], processes("NO", "cpu"))
    with pytest.raises(RecipeError, match=f"{name} steps whole kernels, and DeepSpeed"):
        for_processes([run], processes("DEEPSPEED", "cpu"))
    with pytest.raises(RecipeError, match="can't replay"):
        for_processes(
            [run_of(f"optimizer={name}", "speed.cuda_graphs=true")], processes("NO", "cuda")
        )


@pytest.mark.parametrize(
    ("optimizer", "piece"),
    [
        ("adamm", "optimizer: input should be"),
        ("{name: adam, weight_decay: 0.1}", "adam has no weight_decay"),
        ("{name: soap, kernel_lr: 1e-3}", "soap has no kernel_lr"),
        ("{betas: [0.9, 1.0]}", "optimizer.betas"),
        ("{betas: [0.9]}", "optimizer.betas"),
    ],
)
def test_a_wrong_optimizer_is_one_sentence(write_recipe, optimizer: str, piece: str) -> None:
    with pytest.raises(RecipeError, match=piece):
        load_recipe(write_recipe(), [f"optimizer={optimizer}"])


def test_the_quantile_loss_is_among_the_metrics(run_of: RunOf) -> None:
    run = run_of()
    piece = next(given(run, 0))
    module = build(run)
    _, metrics = module(piece.x, piece.noise, piece.weights, piece.rates)
    found = dict(zip(METRICS, metrics.tolist(), strict=True))
    assert found["quantile_loss"] == pytest.approx(module.model.quantile_loss().item())
