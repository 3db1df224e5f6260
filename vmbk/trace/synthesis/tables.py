"""Tables to draw from: shares, ranks by Zipf's law, keys.

Draws compare integers with integers. The chances of ranks come from the machine's power function
and are rounded to fewer digits than it has, so that another machine's last bit does not show.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import numpy as np
from numpy.typing import NDArray

_WORD: Final = (1 << 64) - 1
_EXACT_RANKS: Final = 256
Ints = NDArray[np.int64]


def mix(*parts: int) -> int:
    """A 64-bit key of some numbers, by SplitMix64's output function."""
    key = 0
    for part in parts:
        key = ((key ^ part) + 0x9E37_79B9_7F4A_7C15) & _WORD
        key = (key ^ key >> 30) * 0xBF58_476D_1CE4_E5B9 & _WORD
        key = (key ^ key >> 27) * 0x94D0_49BB_1331_11EB & _WORD
        key ^= key >> 31
    return key


def whole_parts(weights: Sequence[float], total: int, least: int = 0) -> list[int]:
    """Whole numbers in the proportions of the weights, each at least ``least``, of a given sum.

    Parameters
    ----------
    weights : sequence of float
        None negative, their sum above 0.
    total : int
        At least ``least`` for each weight.
    least : int
    """
    sum_of = math.fsum(weights)
    spare = total - least * len(weights)
    parts = [int(spare * (weight / sum_of)) for weight in weights]
    rest = spare - sum(parts)
    # What rounding left goes to the largest, the first of them.
    parts[max(range(len(weights)), key=weights.__getitem__)] += rest
    return [part + least for part in parts]


@dataclass(frozen=True)
class Choices:
    """Shares of a few outcomes, to draw from; see `vmbk.kernels.synthesis.draw_kinds`."""

    bits: int
    edges: Ints
    guide: Ints

    @classmethod
    def of(cls, weights: Sequence[float]) -> Choices:
        """The table of these weights."""
        whole = 1 << 62
        edges = np.array([0, *accumulate(whole_parts(weights, whole))], np.int64)
        bits = len(weights).bit_length() + 1
        cells = np.arange(1 << bits, dtype=np.int64) << (62 - bits)
        return cls(bits, edges, (np.searchsorted(edges, cells, "right") - 1).astype(np.int64))


@dataclass(frozen=True)
class Ranks:
    """Bins of ranks with their chances by Zipf's law."""

    low: list[int]
    count: list[int]
    weight: list[float]

    @classmethod
    def zipf(cls, n: int, theta: float) -> Ranks:
        """Ranks 0 to ``n - 1``: the first one by one, then bins that grow by a sixteenth.

        Within a bin the chance of a rank falls by no more than ``theta / 17`` of itself, which is
        taken as even.
        """
        edges = list(range(min(n, _EXACT_RANKS) + 1))
        while edges[-1] < n:
            edges.append(min(n, edges[-1] + edges[-1] // 16))
        low, high = edges[:-1], edges[1:]

        def mass(a: int, b: int) -> float:
            if b - a == 1:
                return float((a + 1) ** -theta)
            x, y = a + 0.5, b + 0.5
            if abs(theta - 1) < 1e-9:
                return math.log(y / x)
            return float((y ** (1 - theta) - x ** (1 - theta)) / (1 - theta))

        return cls(
            low,
            [b - a for a, b in zip(low, high, strict=True)],
            [float(f"{mass(a, b):.12g}") for a, b in zip(low, high, strict=True)],
        )
