"""The fingerprint of a model: a digest of its configuration and weights."""

from __future__ import annotations

import hashlib
import json

import torch

from pipeline.codec.config import Config
from pipeline.codec.scales import Scales, digested


def fingerprint(config: Config, module: torch.nn.Module, scales: Scales | None = None) -> str:
    """Return the hex SHA-256 of `config`, names and float32 values of all weights, and `scales`."""
    digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode())
    for name, tensor in sorted(module.state_dict().items()):
        values = tensor.detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name} {tuple(values.shape)}".encode())
        digest.update(values.numpy().astype("<f4", copy=False).data)
    if scales:
        digest.update(digested(scales))
    return digest.hexdigest()
