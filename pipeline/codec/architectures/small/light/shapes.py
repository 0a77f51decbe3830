"""The names and shapes of a small model's weights; a model file must hold exactly these."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.codec.architectures.small.config import PATCH, SmallConfig

Shapes = Iterator[tuple[str, tuple[int, ...]]]

# Inputs and outputs of the layers of a factorised density.
_DENSITY = ((1, 3), (3, 3), (3, 3), (3, 3), (3, 1))


def shapes(config: SmallConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight by its name."""
    m, z, k = config.latent_channels, config.hyper_latent_channels, config.vectors
    return {
        **dict(_transforms(config)),
        **dict(_hyper(config)),
        **dict(_context(config)),
        **dict(_density(z)),
        "steps.y": (k, m),
        "steps.z": (k, z),
    }


def _transforms(config: SmallConfig) -> Shapes:
    m, width = config.latent_channels, config.width
    yield from _layer("analysis.embed", width, 3, PATCH)
    yield from _layer("analysis.down", m, width, 2)
    yield from _layer("synthesis.up", 4 * width, m)
    yield from _layer("synthesis.last", 3 * PATCH**2, width)
    for transform in ("analysis", "synthesis"):
        for i in range(config.blocks):
            yield from _block(f"{transform}.blocks.{i}", width, config.inner_width, config)
        for i in range(config.latent_blocks):
            name = f"{transform}.latent_blocks.{i}"
            yield from _block(name, m, config.latent_inner_width, config)


def _hyper(config: SmallConfig) -> Shapes:
    width, z = config.hyper_channels, config.hyper_latent_channels
    yield from _layer("hyper_analysis.enter", width, config.latent_channels)
    yield from _layer("hyper_analysis.down", width, width, 2)
    yield from _layer("hyper_analysis.leave", z, width, 2)
    yield from _layer("hyper_synthesis.enter", 4 * width, z)
    yield from _layer("hyper_synthesis.up", 4 * width, width)
    for network in ("hyper_analysis", "hyper_synthesis"):
        for part in ("first", "second"):
            yield from _block(f"{network}.{part}", width, width, config)


def _context(config: SmallConfig) -> Shapes:
    width, sizes = config.context_channels, config.slice_sizes
    for i, size in enumerate(sizes):
        name = f"context.slices.{i}"
        yield from _layer(f"{name}.enter", width, config.hyper_channels + sum(sizes[:i]))
        for j in range(config.context_blocks):
            yield from _block(f"{name}.blocks.{j}", width, width, config)
        yield from _layer(f"{name}.mean", size, width)
        yield from _layer(f"{name}.log_scale", size, width)
        yield from _layer(f"{name}.correct", width, width + size)
        yield from _layer(f"{name}.correction", size, width // 2)


def _density(channels: int) -> Shapes:
    for i, (before, after) in enumerate(_DENSITY):
        yield f"hyper_density.matrices.{i}", (channels, after, before)
        yield f"hyper_density.biases.{i}", (channels, after, 1)
    for i, (_, after) in enumerate(_DENSITY[:-1]):
        yield f"hyper_density.factors.{i}", (channels, after, 1)
    yield "hyper_density.quantiles", (channels, 1, 3)


def _layer(name: str, outputs: int, inputs: int, side: int = 1) -> Shapes:
    yield f"{name}.weight", (outputs, inputs, side, side)
    yield f"{name}.bias", (outputs,)


def _block(name: str, channels: int, inner: int, config: SmallConfig) -> Shapes:
    for part in ("weight", "bias"):
        yield f"{name}.norm.{part}", (channels,)
    for part in ("scale", "shift"):
        yield f"{name}.affine.{part}", (config.vectors, channels)
    yield from _layer(f"{name}.depthwise", channels, 1, 3)
    yield from _layer(f"{name}.expand", 2 * inner, channels)
    yield from _layer(f"{name}.project", channels, inner)
