"""Which blocks recovery points share, and which are freed when points expire.

A point stores the blocks that changed since the one before it. A stored block is a *version*: it is
what its own point and every later one sees there, up to the next point that stores the same block.
It is freed when none of these is left (recovery points page: an expired point is merged into the
next one, and what that overwrote is freed).

The page's own two examples do not fit its figures: they would free a block that a point in between
still needs. This model follows the rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from vmbk.display import key_values
from vmbk.errors import InputError
from vmbk.units import KIB, quoted

GRANULE: Final = 16 * KIB
"""Bytes that are stored for a change of any size within them (recovery points page)."""


def granules(
    offsets: NDArray[np.int64], lengths: NDArray[np.int64], granule: int = GRANULE
) -> NDArray[np.int64]:
    """The blocks that changes touch.

    Parameters
    ----------
    offsets, lengths : array of int64
        Bytes changed; none of them empty or negative.
    granule : int
        Bytes of a block.

    Returns
    -------
    array of int64
        Numbers of blocks, ascending, no two equal.

    Raises
    ------
    InputError
        If a change is empty or begins before 0.
    """
    if type(granule) is not int or granule < 1:
        raise InputError(f"granule: {quoted(granule)} is no number of bytes")
    if bool((offsets < 0).any() or (lengths < 1).any()):
        raise InputError("offsets, lengths: a change is empty or begins before 0")
    first = offsets // granule
    counts = (offsets + lengths - 1) // granule - first + 1
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    within = np.arange(total, dtype=np.int64) - np.repeat(ends - counts, counts)
    return np.unique(np.repeat(first, counts) + within)


@dataclass(frozen=True, eq=False)
class Versions:
    """All blocks that a chain of points ever stored, by block and then by point.

    Attributes
    ----------
    points : int
        How many points there are.
    block, point : array of int64
        What was stored, and with which point.
    until : array of int64
        The next point that stored the same block; `points` if none did. Points from `point` on and
        before it see this version.
    """

    points: int
    block: NDArray[np.int64]
    point: NDArray[np.int64]
    until: NDArray[np.int64]

    @classmethod
    def of(cls, changes: Sequence[NDArray[np.int64]]) -> Self:
        """Of points that stored these blocks, in order; no block twice in one point."""
        sizes = [len(blocks) for blocks in changes]
        point = np.repeat(np.arange(len(changes), dtype=np.int64), sizes)
        empty = np.empty(0, np.int64)
        block = np.concatenate([empty, *changes]).astype(np.int64)
        order = np.lexsort((point, block))
        block, point = block[order], point[order]
        same = block[1:] == block[:-1]
        if bool((same & (point[1:] == point[:-1])).any()):
            raise InputError("changes: a point stores a block twice")
        until = np.full(len(block), len(changes), np.int64)
        until[:-1][same] = point[1:][same]
        return cls(len(changes), block, point, until)

    def stored(self, live: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which versions are still needed by one of the points that are left.

        Parameters
        ----------
        live : array of bool
            One per point.
        """
        if live.shape != (self.points,):
            raise InputError(f"live: {live.shape} does not fit {self.points:,} points")
        before = np.concatenate([[0], np.cumsum(live)])
        return np.asarray(before[self.until] > before[self.point], np.bool_)

    def blocks_held(self, live: NDArray[np.bool_]) -> NDArray[np.int64]:
        """How many blocks each point answers for once the expired ones are merged into the next.

        Returns
        -------
        array of int64
            One per point, 0 of those that are gone; the sum is the number of stored versions.
        """
        stored = self.stored(live)
        # The next point that is left, from each one on.
        left = np.where(live, np.arange(self.points), self.points)
        following = np.minimum.accumulate(left[::-1])[::-1]
        return np.bincount(following[self.point[stored]], minlength=self.points).astype(np.int64)

    def seen(self, point: int) -> NDArray[np.int64]:
        """The versions that a point consists of: positions in `block`."""
        if type(point) is not int or not 0 <= point < self.points:
            raise InputError(f"point: {quoted(point)} is not from 0 to {self.points - 1}")
        return np.flatnonzero((self.point <= point) & (point < self.until))

    def _repr_html_(self) -> str:
        return key_values(
            "stored blocks", {"points": f"{self.points:,}", "versions": f"{len(self.block):,}"}
        )
