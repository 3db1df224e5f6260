"""What a write meets: when, and how many block writes ago, its blocks were last written.

A leaf (see `vmbk.kernels.leaves`) holds for each of its 16 blocks the time of the last write, as
its complement: 0 means never written, which is how fresh memory comes. Where it is wanted, it also
holds that write's position among the block writes of the volume.

The blocks of a request were mostly written together before, so that what is found is counted in
runs of equal values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vmbk.kernels.intrinsics import Bytes, bytes_of, count_ones, load_word, store_word
from vmbk.kernels.jit import I64, U8, U32, OutI64, b1, i64, kernel, void
from vmbk.kernels.leaves import PIECES, ROW, SLOTS, _prefetch_leaves, cut_requests, find_leaves

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEAF_BITS = 4
"""log2 of the blocks of a leaf."""

UNTIL = 3
"""Place of the state, after those of `vmbk.kernels.leaves`: the last ns of the window that ends
first, -1 at the start."""

SUB_BITS = 4
BINS = (64 - SUB_BITS) << SUB_BITS
"""Bins of a histogram: values below 16 have their own, above it each octave has 16 equal ones."""

BLOCK_WRITES, UNIQUE, UPDATED, DISTANCES, INTERVALS = 0, 1, 2, 3, 3 + BINS
FIELDS = 3 + 2 * BINS
"""Places of a volume's row of what `block_updates` counts."""

_LAST_NS = 0x7FFF_FFFF_FFFF_FFFF


@kernel(void(Bytes, i64, i64))
def _add(totals: Any, place: Any, amount: Any) -> None:
    store_word(totals, place << 3, load_word(totals, place << 3) + np.uint64(amount))


@kernel(i64(i64))
def _bin_of(value: int) -> int:
    """The bin of a value that is not negative."""
    if value < 1 << SUB_BITS:
        return value
    filled = value
    for by in (1, 2, 4, 8, 16, 32):
        filled |= filled >> by
    high: int = count_ones(np.uint64(filled)) - 1
    return ((high - SUB_BITS) << SUB_BITS) + (value >> (high - SUB_BITS))


@kernel(i64(i64, I64, OutI64))
def _begin_windows(time: int, intervals: NDArray[np.int64], starts: NDArray[np.int64]) -> int:
    """Find the windows around a time, latest start first; returns the last ns of the first to end.

    ``starts`` receives the starts, then the number of each one's interval.
    """
    count = intervals.size
    until = _LAST_NS
    for k in range(count):
        start = time - time % intervals[k]
        if intervals[k] - 1 <= _LAST_NS - start:
            until = min(until, start + (intervals[k] - 1))
        place = k
        while place > 0 and starts[place - 1] < start:
            starts[place] = starts[place - 1]
            starts[count + place] = starts[count + place - 1]
            place -= 1
        starts[place], starts[count + place] = start, k
    return until


@kernel(b1(I64, I64))
def _same_order(starts: NDArray[np.int64], others: NDArray[np.int64]) -> bool:
    """Whether the windows stand in the same order of start."""
    same = True
    for place in range(starts.size >> 1, starts.size):
        same &= bool(starts[place] == others[place])
    return same


@kernel(void(OutI64, i64, I64, OutI64, OutI64))
def _take_ranks(
    pending: NDArray[np.int64],
    n_pending: int,
    starts: NDArray[np.int64],
    ranks: NDArray[np.int64],
    totals: NDArray[np.int64],
) -> None:
    """Add blocks, counted by how many windows began after their last write, to their intervals."""
    count = starts.size >> 1
    for i in range(n_pending):
        first = pending[i] * (count + 1)
        blocks = np.int64(0)
        for place in range(count - 1, -1, -1):
            blocks += ranks[first + place + 1]
            ranks[first + place + 1] = 0
            totals[first + starts[count + place]] += blocks
        ranks[first] = 0


@kernel(i64(Bytes, i64, i64))
def _rank(starts: Any, intervals: int, last: Any) -> int:
    """How many windows began after a time."""
    rank = 0
    for k in range(intervals):
        rank += int(np.int64(load_word(starts, k << 3)) > last)
    return rank


@kernel(
    i64(
        I64, U8, U32, I64, I64, i64, i64, I64, I64,
        OutI64, OutI64, OutI64, OutI64, OutI64, OutI64,
    )
)  # fmt: skip
def interval_blocks(
    time_ns: NDArray[np.int64],
    op: NDArray[np.uint8],
    volume: NDArray[np.uint32],
    offset: NDArray[np.int64],
    length: NDArray[np.int64],
    op_mask: int,
    shift: int,
    intervals: NDArray[np.int64],
    bases: NDArray[np.int64],
    table: NDArray[np.int64],
    leaf_keys: NDArray[np.int64],
    leaves: NDArray[np.int64],
    starts: NDArray[np.int64],
    totals: NDArray[np.int64],
    state: NDArray[np.int64],
) -> int:
    """Count, for many lengths of a window at once, the blocks that each window changes.

    A block counts in a window when its last write lies before the window's start.

    Parameters
    ----------
    time_ns, op, volume, offset, length : (n,)
        The requests, times not falling; ``volume`` counts volumes from 0.
    op_mask : int64
        Bit c is set where requests of operation c change blocks.
    shift : int64
        log2 of the block size in bytes.
    intervals : (k,) int64
        ns, each at least 1; windows begin at multiples of them.
    bases, table, leaf_keys
        As for `cut_requests` and `find_leaves`.
    leaves : (16 * room,) int64
        Complement of the time of each block's last write; 0 where there was none.
    starts : (2 * k,) int64
        Kept from call to call: the current windows.
    totals : (volumes * (k + 1),) int64
        Blocks of all windows of each interval, then the blocks ever changed.
    state : (4,) int64
        What is carried on; ``ROW`` is 0 and ``BLOCK`` -1 at the start of a batch.

    Returns
    -------
    int64
        1 when all requests were followed, 0 when room for `PIECES` more leaves is needed.
    """
    rows, keys, firsts, counts, slots = (
        np.empty(PIECES, np.int64), np.empty(PIECES, np.int64), np.empty(PIECES, np.int64),
        np.empty(PIECES, np.int64), np.empty(PIECES, np.int64),
    )  # fmt: skip
    n_intervals, until = intervals.size, state[UNTIL]
    # Blocks are counted by how many windows began after their last write, which is the same few
    # intervals as long as the windows begin in the same order; a volume's first number, of no
    # windows, says whether it has any such blocks.
    ranks = np.zeros(totals.size, np.int64)
    pending, n_pending = np.empty(bases.size, np.int64), 0
    later = np.empty_like(starts)
    times, windows, sums, by_rank = (
        bytes_of(leaves), bytes_of(starts), bytes_of(totals), bytes_of(ranks),
    )  # fmt: skip
    newest = starts[0]
    while state[SLOTS] + PIECES <= leaf_keys.size:
        n = cut_requests(
            op, volume, offset, length, op_mask, shift, LEAF_BITS, bases, table,
            rows, keys, firsts, counts, state,
        )  # fmt: skip
        if n == 0:
            break
        state[SLOTS] = find_leaves(keys, n, table, leaf_keys, slots, state[SLOTS])
        _prefetch_leaves(slots, firsts, counts, n, times, 1 << LEAF_BITS, LEAF_BITS)
        for i in range(n):
            row = rows[i]
            time = time_ns[row]
            if time > until:
                until = _begin_windows(time, intervals, later)
                if not _same_order(starts, later):
                    _take_ranks(pending, n_pending, starts, ranks, totals)
                    n_pending = 0
                starts[:] = later
                newest = starts[0]
            place = np.int64(volume[row])
            first = place * (n_intervals + 1)
            if ranks[first] == 0:
                ranks[first] = 1
                pending[n_pending] = place
                n_pending += 1
            at = (slots[i] << LEAF_BITS | firsts[i]) << 3
            before, run = time, np.int64(0)
            for _ in range(counts[i]):
                last = ~np.int64(load_word(times, at))
                store_word(times, at, np.uint64(~time))
                at += 8
                if last != before:
                    if before < newest:
                        _add(by_rank, first + _rank(windows, n_intervals, before), run)
                        _add(sums, first + n_intervals, run & before >> 63)
                    before, run = last, np.int64(0)
                run += 1
            if before < newest:
                _add(by_rank, first + _rank(windows, n_intervals, before), run)
                _add(sums, first + n_intervals, run & before >> 63)
    _take_ranks(pending, n_pending, starts, ranks, totals)
    state[UNTIL] = until
    return int(state[ROW] == time_ns.size)


@kernel(void(Bytes, i64, i64, i64, i64, i64))
def _count_updates(
    totals: Any, first: Any, distance: Any, interval: Any, blocks: Any, updated: Any
) -> None:
    """Count blocks that were written together before (``interval`` -1: never) in a volume's row."""
    if interval < 0:
        _add(totals, first + UNIQUE, blocks)
        return
    _add(totals, first + UPDATED, updated)
    _add(totals, first + DISTANCES + _bin_of(distance), blocks)
    _add(totals, first + INTERVALS + _bin_of(interval), blocks)


@kernel(
    i64(
        I64, U8, U32, I64, I64, i64, i64, I64,
        OutI64, OutI64, OutI64, OutI64, OutI64,
    )
)  # fmt: skip
def block_updates(
    time_ns: NDArray[np.int64],
    op: NDArray[np.uint8],
    volume: NDArray[np.uint32],
    offset: NDArray[np.int64],
    length: NDArray[np.int64],
    op_mask: int,
    shift: int,
    bases: NDArray[np.int64],
    table: NDArray[np.int64],
    leaf_keys: NDArray[np.int64],
    leaves: NDArray[np.int64],
    totals: NDArray[np.int64],
    state: NDArray[np.int64],
) -> int:
    """Count block writes by how long ago, and how many block writes ago, the block was written.

    Parameters
    ----------
    time_ns, op, volume, offset, length, op_mask, shift, bases, table, leaf_keys, state
        As for `interval_blocks`; ``UNTIL`` is not used.
    leaves : (32 * room,) int64
        For each block the complement of the time of its last write, 0 where there was none; and
        twice that write's position among the block writes of the volume, odd once it was an update.
    totals : (volumes * FIELDS,) int64
        For each volume: block writes, unique blocks, blocks written more than once, then the
        updates by bin of their distance (block writes between), and of their interval in ns.

    Returns
    -------
    int64
        As for `interval_blocks`.
    """
    rows, keys, firsts, counts, slots = (
        np.empty(PIECES, np.int64), np.empty(PIECES, np.int64), np.empty(PIECES, np.int64),
        np.empty(PIECES, np.int64), np.empty(PIECES, np.int64),
    )  # fmt: skip
    writes, sums = bytes_of(leaves), bytes_of(totals)
    while state[SLOTS] + PIECES <= leaf_keys.size:
        n = cut_requests(
            op, volume, offset, length, op_mask, shift, LEAF_BITS, bases, table,
            rows, keys, firsts, counts, state,
        )  # fmt: skip
        if n == 0:
            break
        state[SLOTS] = find_leaves(keys, n, table, leaf_keys, slots, state[SLOTS])
        _prefetch_leaves(slots, firsts, counts, n, writes, 2 << LEAF_BITS, LEAF_BITS)
        for i in range(n):
            time = time_ns[rows[i]]
            first = np.int64(volume[rows[i]]) * FIELDS
            position = totals[first + BLOCK_WRITES]
            totals[first + BLOCK_WRITES] += counts[i]
            at = (slots[i] << LEAF_BITS | firsts[i]) << 4
            run, updated, distance, interval = (
                np.int64(0), np.int64(0), np.int64(0), np.int64(0),
            )  # fmt: skip
            for _ in range(counts[i]):
                last = ~np.int64(load_word(writes, at))
                place = np.int64(load_word(writes, at + 8))
                again = np.int64(last >= 0)
                store_word(writes, at, np.uint64(~time))
                store_word(writes, at + 8, np.uint64(position << 1 | again))
                ago = time - last if last >= 0 else np.int64(-1)
                between = position - (place >> 1) - 1
                if ago != interval or (between != distance and ago >= 0):
                    if run > 0:
                        _count_updates(sums, first, distance, interval, run, updated)
                    run, updated, distance, interval = np.int64(0), np.int64(0), between, ago
                run += 1
                updated += again & ~place
                position += 1
                at += 16
            _count_updates(sums, first, distance, interval, run, updated)
    return int(state[ROW] == time_ns.size)
