"""The tables that the hyper-latent z is coded with: masses of a factorised density, in numpy.

Everything is float64. Last bits may differ between machines, which does not matter: `Table.of`
rounds masses to a far coarser grid.

Shapes: Z channels, n places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.codec.symbols import Reals, Table

Places = npt.NDArray[np.int64]

# Symbols in a tail of z's density below this mass share the end of a channel's table.
_TAIL = 1e-7
_WIDEST = 4096


@dataclass(frozen=True)
class Density:
    """The weights of `pipeline.codec.densities.FactorizedDensity`, under the same names.

    `matrices` (Z, a, b), `biases` (Z, a, 1) and `factors` (Z, a, 1) of each layer, a outputs of b
    inputs; `medians` (Z,).
    """

    matrices: Sequence[Reals]
    biases: Sequence[Reals]
    factors: Sequence[Reals]
    medians: Reals

    def logits(self, offsets: Reals) -> Reals:
        """Return the logits (Z, n) of the cumulative distribution at medians + `offsets` (Z, n)."""
        values: Reals = (self.medians[:, None] + offsets)[:, None]
        for i, (matrix, bias) in enumerate(zip(self.matrices, self.biases, strict=True)):
            values = np.matmul(np.logaddexp(0, matrix), values) + bias
            if i < len(self.factors):
                values += np.tanh(self.factors[i]) * np.tanh(values)
        logits: Reals = values[:, 0]
        return logits


def hyper_tables(density: Density) -> list[Table]:
    """Return a table of the symbols round(z - median) for each channel of z."""
    first = _first(lambda k: _sigmoid(density.logits(k + 0.5)) > _TAIL, len(density.medians))
    last = -_first(lambda k: _sigmoid(-density.logits(-k - 0.5)) > _TAIL, len(density.medians))
    narrow = last <= first
    first, last = np.where(narrow, -1, first), np.where(narrow, 1, last)
    # The borders of bins, as many for each channel as the widest channel has.
    bins = np.arange(int((last - first).max()) + 2, dtype=np.float64)
    logits = density.logits(first[:, None] + bins - 0.5)
    below, above, masses = _sigmoid(logits), _sigmoid(-logits), _between(logits)
    tables = []
    for channel, (start, end) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
        count = end - start + 1
        window = masses[channel, :count].copy()
        window[0] += below[channel, 0]
        window[-1] += above[channel, count]
        tables.append(Table.of(start, window))
    return tables


def _first(holds: Callable[[Reals], npt.NDArray[np.bool_]], channels: int) -> Places:
    """Return, for each channel, the first place (Z,) from which on `holds` is true, by bisection.

    `holds` takes places (Z, 1). A channel where it is true at no place gets the place after the
    last.
    """
    before, first = np.full(channels, -_WIDEST - 1), np.full(channels, _WIDEST + 1)
    while (first - before > 1).any():
        middle = (before + first) // 2
        holding = holds(middle[:, None].astype(np.float64))[:, 0]
        before, first = np.where(holding, before, middle), np.where(holding, middle, first)
    return first


def _between(logits: Reals) -> Reals:
    """Return the masses (Z, n - 1) between neighbouring borders."""
    lower, upper = logits[:, :-1], logits[:, 1:]
    # Both on the side where the sigmoid is small, so that no digits are lost.
    sign = np.where(lower > -upper, -1.0, 1.0)
    masses: Reals = np.abs(_sigmoid(sign * upper) - _sigmoid(sign * lower))
    return masses


def _sigmoid(x: Reals) -> Reals:
    y: Reals = np.exp(-np.logaddexp(0, -x))
    return y
