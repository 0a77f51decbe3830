"""Stream WebDataset tars from any tool into a plain PyTorch loop, in an exact order.

    python examples/stream_tars.py TARS [--batch-size 8] [--crop 128] [--epochs 1]

TARS is a folder that `pipeline shard` wrote, or a pattern of tars that any other tool wrote:
"photos-{000..009}.tar". The loop trains a small autoencoder: put your own model and loss in its
place.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import nn

from shards import stream


def autoencoder() -> nn.Module:
    """Return a network from float32 (N, 3, H, W) in [0, 1] to the same; H and W divide by 4."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 4, stride=2, padding=1),
        nn.GELU(),
        nn.Conv2d(16, 16, 4, stride=2, padding=1),
        nn.GELU(),
        nn.ConvTranspose2d(16, 16, 4, stride=2, padding=1),
        nn.GELU(),
        nn.ConvTranspose2d(16, 3, 4, stride=2, padding=1),
    )


def train(tars: str, batch_size: int, crop: int, epochs: int) -> list[float]:
    """Train on every picture of `tars`, `epochs` times; return the loss of each step."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = autoencoder().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses: list[float] = []
    for epoch in range(epochs):
        # The order and the crops depend on seed, epoch and position alone: neither on the number
        # of processes nor on workers. With torch.distributed, give rank and world_size.
        for batch in stream(tars, batch_size=batch_size, crop=crop, seed=0, epoch=epoch):
            pictures = batch.images.to(device).float() / 255
            loss = nn.functional.mse_loss(model(pictures), pictures)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            print(f"epoch {epoch}, step {len(losses)}: {losses[-1]:.4f}, first {batch.keys[0]}")
    return losses


def main(words: Sequence[str] | None = None) -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tars", metavar="TARS", help="a folder, or a pattern of tars")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--crop", type=int, default=128, help="pixels of a crop's side")
    parser.add_argument("--epochs", type=int, default=1)
    given = parser.parse_args(words)
    train(given.tars, given.batch_size, given.crop, given.epochs)


if __name__ == "__main__":
    main()
