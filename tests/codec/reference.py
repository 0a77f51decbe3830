"""What the golden files record of a model: tensors, scalars and gradient norms."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.codec import AuxiliaryEntropyModel, CCAModel, CCAOutput, Noise
from pipeline.codec.architectures.cca.auxiliary import AuxiliaryOutput
from pipeline.codec.architectures.cca.published import published_names

GOLDEN = Path(__file__).parent / "golden"
RATE_WEIGHT, DISTORTION_WEIGHT = 0.3, 0.05


def relative(found: Tensor | float, expected: Tensor | float) -> float:
    """The relative L2 error of a tensor or number."""
    a = torch.as_tensor(found).detach().double()
    b = torch.as_tensor(expected).double()
    assert a.shape == b.shape
    return float((a - b).norm() / b.norm())


def tensors(output: CCAOutput, auxiliary: AuxiliaryOutput) -> dict[str, Tensor]:
    assert auxiliary.likelihoods_factorized is not None
    found = {
        "y": output.y,
        "z": output.z,
        "y_hat": output.y_hat,
        "x_hat": output.x_hat,
        "y_scales": output.scales,
        "y_likelihoods": output.likelihoods["y"],
        "z_likelihoods": output.likelihoods["z"],
        "aux_y_likelihoods": auxiliary.likelihoods_y,
        "aux_factorized_likelihoods": auxiliary.likelihoods_factorized,
    }
    return {name: tensor.detach().contiguous() for name, tensor in found.items()}


def losses(x: Tensor, output: CCAOutput, auxiliary: AuxiliaryOutput) -> dict[str, Tensor]:
    """The scalars of CCA.md, in the published form of the loss."""
    factorized = auxiliary.likelihoods_factorized
    assert factorized is not None
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    bits_y = -output.likelihoods["y"].log2().sum()
    bits_z = -output.likelihoods["z"].log2().sum()
    bits_auxiliary = -auxiliary.likelihoods_y.log2().sum()
    cross = (auxiliary.likelihoods_y * -factorized.log2()).sum() / pixels
    mse = (x - output.x_hat).square().mean()
    bpp, cca = (bits_y + bits_z) / pixels, (bits_y - bits_auxiliary) / pixels
    return {
        "bits_y": bits_y,
        "bits_z": bits_z,
        "bits_y_auxiliary": bits_auxiliary,
        "auxiliary_cross_entropy_bpp": cross,
        "mse": mse,
        "cca_loss": cca,
        "bpp": bpp,
        "loss_published": DISTORTION_WEIGHT * 255**2 * mse + RATE_WEIGHT * bpp + cca + cross,
    }


def gradient_norms(
    model: CCAModel, auxiliary: AuxiliaryEntropyModel, modules: list[str]
) -> dict[str, float]:
    """The L2 norm over all parameters of each module, under its published name."""
    gradients = {}
    parts: list[CCAModel | AuxiliaryEntropyModel] = [model, auxiliary]
    for part in parts:
        names = published_names(part)
        for name, parameter in part.named_parameters():
            if parameter.grad is not None:
                gradients[names[name]] = parameter.grad
    return {
        module: float(
            nn.utils.get_total_norm(
                [g for name, g in gradients.items() if name.startswith(f"{module}.")]
            )
        )
        for module in modules
    }


def noise_of(recorded: dict[str, Tensor]) -> Noise:
    return Noise(
        y=recorded["train_noise_y"],
        z=recorded["train_noise_z"],
        aux_y=recorded["train_noise_aux_y"],
        aux_factorized=recorded["train_noise_aux_factorized"],
    )
