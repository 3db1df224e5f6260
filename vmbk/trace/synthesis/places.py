"""Where the requests of a volume go, slice by slice: the part of making that knows no time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from vmbk.trace.schema import Op
from vmbk.trace.synthesis.tables import Ints, mix

if TYPE_CHECKING:
    from vmbk.trace.synthesis.plan import Plan

SLICE_ROWS: Final = 1 << 15
"""Requests made at a time. It is a part of what a spec means: another number, another trace."""

_NAMES: Final = ("kind", "place", "inner", "layout", "gap", "burst")
_MOST_PENDING: Final = 1 << 20


class Places:
    """Kinds and offsets of any slice of a volume's requests.

    Parameters
    ----------
    plan : Plan
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.slices = -(-plan.requests // SLICE_ROWS)
        self.keys = {name: np.uint64(mix(plan.key, 2, i)) for i, name in enumerate(_NAMES)}

    def draw(self, index: int, out: Ints) -> None:
        """Kinds of the requests of a slice."""
        from vmbk.kernels.synthesis import draw_kinds

        choices = self._plan.kinds.choices
        draw_kinds(
            self.keys["kind"], index * SLICE_ROWS, choices.bits, choices.edges, choices.guide, out
        )  # fmt: skip

    def make(self, index: int, before: Ints, kind: Ints, cursor: Ints, out: Ints) -> None:
        """Kinds and offsets of a slice.

        Parameters
        ----------
        index : int
        before : ndarray of int64, shape (counters,)
            What the counters stand at before the slice; moved on to what they do after it.
        kind, cursor, out : ndarray of int64, shape (n,)
            Receive the kinds, what the counters stood at, and the offsets in bytes.
        """
        from vmbk.kernels.synthesis import advance_kinds, lay_out, line_places

        plan, kinds = self._plan, self._plan.kinds
        self.draw(index, kind)
        advance_kinds(kind, kinds.counter, kinds.weight, before, cursor)
        line_places(
            self.keys["place"], index * SLICE_ROWS, kind, cursor, kinds.pattern, kinds.start,
            kinds.slots, kinds.slot_bits, kinds.step, kinds.units, plan.hot_slots,
            plan.hot_threshold, plan.ranks.bits, plan.ranks.edges, plan.ranks.guide,
            plan.rank_low, plan.rank_count, out,
        )  # fmt: skip
        lay_out(
            self.keys["layout"], out, kind, kinds.units, plan.layout.lengths, plan.layout.gaps,
            plan.layout.guide, plan.layout.guide_shift, plan.layout.span, plan.alignment,
            plan.shift, out,
        )  # fmt: skip


def written_units(plan: Plan) -> tuple[int, int]:
    """Units that the writes of a volume cover: each as often as it is written, and each once."""
    places, kinds, union = Places(plan), plan.kinds, Union()
    before, total = np.zeros(kinds.counters, np.int64), 0
    for index in range(places.slices):
        count = min(plan.requests - index * SLICE_ROWS, SLICE_ROWS)
        kind, cursor, offset = (np.empty(count, np.int64) for _ in range(3))
        places.make(index, before, kind, cursor, offset)
        writes = kinds.op[kind] == Op.WRITE
        first = (offset[writes] - plan.shift) // plan.alignment
        units = kinds.units[kind[writes]]
        total += int(units.sum())
        union.add(first, first + units)
    start, stop = union.finish()
    return total, int((stop - start).sum())


class Union:
    """The union of ranges, in memory that follows how many there are and not how far apart."""

    def __init__(self) -> None:
        empty = np.empty(0, np.int64)
        self._merged, self._pending, self._count = (empty, empty), [(empty, empty)], 0

    def add(self, start: Ints, stop: Ints) -> None:
        """Take in ranges; they may overlap, and none is empty."""
        self._pending.append((start, stop))
        self._count += len(start)
        # So seldom that in all no more is sorted than a few times what came.
        if self._count > max(_MOST_PENDING, len(self._merged[0])):
            self.finish()

    def finish(self) -> tuple[Ints, Ints]:
        """Starts and stops of the union's ranges, ascending; those that touch are one."""
        starts, stops = zip(self._merged, *self._pending, strict=True)
        start, stop = np.concatenate(starts), np.concatenate(stops)
        order = np.argsort(start, kind="stable")
        start, reach = start[order], np.maximum.accumulate(stop[order])
        if len(start):
            first = np.flatnonzero(np.concatenate([[True], start[1:] > reach[:-1]]))
            last: NDArray[np.intp] = np.append(first[1:], len(start)) - 1
            start, reach = start[first], reach[last]
        self._merged, self._pending, self._count = (start, reach), [], 0
        return start, reach
