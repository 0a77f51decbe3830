"""Rewrite the golden instance beside this file: `python -m tests.codec.golden.regenerate`.

Only after the port has been proven against ../shared (test_golden.py), or when the stream's
format has changed on purpose.
"""

from __future__ import annotations

import json

import torch
from safetensors.torch import save_file

from pipeline.codec import AuxiliaryEntropyModel, Noise, save_model
from tests.codec.conftest import SMALL, make_model
from tests.codec.reference import GOLDEN, gradient_norms, losses, tensors

MODULES = ["g_a", "g_s", "h_a", "h_mean_s", "h_scale_s", "mean_NAF_transforms",
           "scale_NAF_transforms", "mean_cc_transforms", "scale_cc_transforms", "lrp_transforms",
           "z_entropy_bottleneck", "aux_entropymodel"]  # fmt: skip


def picture() -> torch.Tensor:
    """Two pictures, uint8 (2, 3, 64, 128): waves and noise."""
    rows, columns = torch.arange(64.0).view(-1, 1), torch.arange(128.0)
    waves = [
        128 + 90 * torch.sin(rows / (3 + c)) * torch.cos(columns / (5 + 2 * c)) for c in range(3)
    ]
    x = torch.stack([torch.stack(waves), torch.stack(waves[::-1]).flip(2)])
    return (x + 20 * torch.rand_like(x)).clamp(0, 255).round().to(torch.uint8)


def main() -> None:
    """Write weights, tensors, numbers and a stream."""
    torch.manual_seed(7)
    model = make_model(SMALL)
    auxiliary = AuxiliaryEntropyModel(SMALL).eval()
    save_model(model, GOLDEN / "model.safetensors", {"name": "golden"}, auxiliary)
    image = picture()
    x = image.float() / 255
    with torch.no_grad():
        output = model(x)
        aux = auxiliary(output.y, output.hyper)
    recorded = {"x": image, **tensors(output, aux)}
    numbers = {"evaluation": {k: v.item() for k, v in losses(x, output, aux).items()}}
    noises = {
        "y": torch.rand_like(output.y) - 0.5,
        "z": torch.rand_like(output.z) - 0.5,
        "aux_y": torch.rand_like(output.y) - 0.5,
        "aux_factorized": torch.rand_like(output.y) - 0.5,
    }
    recorded |= {f"train_noise_{name}": noise for name, noise in noises.items()}
    (GOLDEN / "picture.cca").write_bytes(model.compress(x[:1, :, :50, :101]))
    noise = Noise(**noises)
    output = model.train()(x, noise)
    aux = auxiliary.train()(output.y, output.hyper, noise)
    found = losses(x, output, aux)
    found["loss_published"].backward()
    numbers["training"] = {k: v.item() for k, v in found.items()}
    numbers["gradient_norms"] = gradient_norms(model, auxiliary, MODULES)
    save_file({k: v.contiguous() for k, v in recorded.items()}, GOLDEN / "tensors.safetensors")
    (GOLDEN / "numbers.json").write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main()
