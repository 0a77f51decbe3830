"""The tables of the hyper-latent are those that looking at every symbol would find."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.codec.densities import FactorizedDensity
from pipeline.codec.hyper_tables import hyper_tables
from pipeline.codec.symbols import SymbolEncoder, Table

WIDEST, TAIL = 4096, 1e-7


def by_every_symbol(density: FactorizedDensity) -> list[Table]:
    """The definition in docs/bitstream.md, computed by torch over all symbols there are."""
    steps = torch.arange(-WIDEST, WIDEST + 1, dtype=torch.float64)
    medians = density.quantiles[:, :, 1:2]
    with torch.no_grad():
        below = torch.sigmoid(density.logits(medians + steps - 0.5)).squeeze(1).numpy()
        above = torch.sigmoid(-density.logits(medians + steps + 0.5)).squeeze(1).numpy()
        mass = density.mass(medians + steps).squeeze(1).numpy()
    tables = []
    for low, high, masses in zip(below, above, mass, strict=True):
        inside = np.flatnonzero((low + masses > TAIL) & (high + masses > TAIL))
        first, last = (inside[0], inside[-1]) if len(inside) > 1 else (WIDEST - 1, WIDEST + 1)
        window = masses[first : last + 1].copy()
        window[0] += low[first]
        window[-1] += high[last]
        tables.append(Table.of(int(first) - WIDEST, window))
    return tables


@pytest.mark.parametrize("width", [0.001, 0.05, 1.0, 30.0, 1e5])
def test_tables_are_those_of_every_symbol(width: float) -> None:
    torch.manual_seed(0)
    density = FactorizedDensity(6).double().requires_grad_(False)
    for weights in (*density.matrices, *density.biases, *density.factors):
        weights.add_(torch.randn_like(weights) * 0.5)
    density.matrices[0].copy_(torch.full_like(density.matrices[0], 1 / width).expm1().log())
    density.quantiles.add_(torch.randn_like(density.quantiles))
    found, wanted = hyper_tables(density.as_arrays()), by_every_symbol(density)
    for mine, theirs in zip(found, wanted, strict=True):
        assert (mine.first, mine.count) == (theirs.first, theirs.count)
        symbols = np.arange(mine.first - 2, mine.first + mine.count + 2, dtype=np.int32)
        assert np.array_equal(_words(symbols, mine), _words(symbols, theirs))


def _words(symbols: np.ndarray, table: Table) -> np.ndarray:
    encoder = SymbolEncoder()
    encoder.encode(symbols, np.zeros(len(symbols), np.uint8), [table])
    return encoder.words
