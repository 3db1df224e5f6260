"""Synthetic requests: every number of a request is a function of (key, index) and of nothing else.

A *word* is SplitMix64's output function applied to a counter (see `vmbk.kernels.content`); no
state is carried from one request to the next, so any range of requests can be made alone. What
does depend on the requests before (how far a stream has come, how often a size was drawn) are
sums: they are counted per slice first, added up, and handed in.

Only sums, products and quotients of floating-point numbers are taken, which IEEE 754 fixes to the
bit: the same on every machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vmbk.kernels.content import _mix, _random_word
from vmbk.kernels.jit import F64, I64, OutI64, b1, i64, kernel, u64, void

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

# Patterns of access, the values of `pattern` in `line_places`.
NOWHERE, STREAM, SWEEP, ANYWHERE, ZIPF, HOT_COLD = range(6)

EXPONENTIAL_CELLS = 1024
"""Cells of the table of the exponential distribution."""

_LOW_HALF = np.uint64(0xFFFF_FFFF)
_N2, _N12, _N32, _N54 = np.uint64(2), np.uint64(12), np.uint64(32), np.uint64(54)
_LOW_20 = np.uint64(0xF_FFFF)
_ONE, _ALL = np.uint64(1), np.uint64(0xFFFF_FFFF_FFFF_FFFF)
_TO_UNIT = 2.0**-52
_FACTOR = np.uint64(0xD6E8_FEB8_6659_FD93)


@kernel(i64(u64, i64))
def _below(word: Any, n: Any) -> Any:
    """A word as a number from 0 to ``n - 1``. 52 bits are used, so that no product rounds to n."""
    return np.int64(np.float64(word >> _N12) * _TO_UNIT * np.float64(n))


@kernel(i64(u64, i64, I64, I64))
def _choose(word: Any, bits: int, edges: Ints, guide: Ints) -> Any:
    """The outcome k with ``edges[k] <= word / 4 < edges[k + 1]``, sought from its cell's first."""
    k = guide[np.int64(word >> np.uint64(64 - bits))]
    place = np.int64(word >> _N2)
    while edges[k + 1] <= place:
        k += 1
    return k


@kernel(i64(i64, i64, i64, u64))
def _permute(value: Any, n: Any, bits: Any, key: Any) -> Any:
    """A bijection of 0 to ``n - 1``, where n has `bits` bits.

    Odd products and shifted xors are bijections of `bits`-bit numbers; walking on until the value
    is below n makes of them a bijection of the first n.
    """
    if n <= 1:
        return 0
    mask = (_ONE << np.uint64(bits)) - _ONE
    shift = np.uint64((bits + 1) >> 1)
    odd = (key >> _N12) | _ONE
    x = np.uint64(value)
    while True:
        x = ((x + key) * odd) & mask
        x ^= x >> shift
        x = (x * _FACTOR) & mask
        x ^= x >> shift
        x = (x * odd) & mask
        x ^= x >> shift
        if np.int64(x) < n:
            return np.int64(x)


@kernel(void(u64, i64, i64, I64, I64, OutI64))
def draw_kinds(key: Any, first: int, bits: int, edges: Ints, guide: Ints, out: Ints) -> None:
    """Draw the kinds of a slice of requests from a table of shares, in random order.

    The draws are evenly spread over the table from a random start (systematic sampling), not
    independent: each kind comes as often as its share says, to within a few requests a slice.

    Parameters
    ----------
    key : uint64
    first : int64
        Index of the first request, from which the order and the start are drawn.
    bits : int64
        The guide has ``2**bits`` cells; 1 to 31.
    edges : (kinds + 1,) int64
        Running sums of the kinds' shares, from 0 to 2^62.
    guide : (2**bits,) int64
        The kind in whose share each of as many equal parts of 0 to 2^62 begins.
    out : (n,) int64
        Receives the kinds.
    """
    n = out.size
    if n == 0:
        return
    order = _random_word(key, first)
    step = _ALL // np.uint64(n)
    start = _mix(order) % step
    n_bits = 0
    while (n - 1) >> n_bits > 0:
        n_bits += 1
    for i in range(n):
        word = np.uint64(_permute(i, n, n_bits, order)) * step + start
        out[i] = _choose(word, bits, edges, guide)


@kernel(void(I64, I64, I64, OutI64))
def tally_kinds(kind: Ints, counter: Ints, weight: Ints, totals: Ints) -> None:
    """Add each request's weight to its counter.

    Parameters
    ----------
    kind : (n,) int64
    counter, weight : (kinds,) int64
        Which counter a kind adds to, and how much.
    totals : (counters,) int64
        Added to.
    """
    for i in range(kind.size):
        totals[counter[kind[i]]] += weight[kind[i]]


@kernel(void(I64, I64, I64, OutI64, OutI64))
def advance_kinds(kind: Ints, counter: Ints, weight: Ints, totals: Ints, out: Ints) -> None:
    """As `tally_kinds`, and note for each request what its counter stood at before it.

    Parameters
    ----------
    kind, counter, weight, totals
        As for `tally_kinds`.
    out : (n,) int64
        Receives the counters' values.
    """
    for i in range(kind.size):
        c = counter[kind[i]]
        out[i] = totals[c]
        totals[c] += weight[kind[i]]


@kernel(
    void(
        u64, i64, I64, I64, I64, I64, I64, I64, I64, I64, i64, i64, i64, I64, I64, I64, I64, OutI64
    )
)
def line_places(
    key: Any,
    first: int,
    kind: Ints,
    cursor: Ints,
    pattern: Ints,
    start: Ints,
    slots: Ints,
    slot_bits: Ints,
    step: Ints,
    units: Ints,
    hot_slots: int,
    hot_threshold: int,
    rank_bits: int,
    rank_edges: Ints,
    rank_guide: Ints,
    rank_low: Ints,
    rank_count: Ints,
    out: Ints,
) -> None:
    """Choose where each request goes on the line, which is the working set laid end to end.

    Parameters
    ----------
    key : uint64
    first : int64
        Index of the first request.
    kind : (n,) int64
    cursor : (n,) int64
        From `advance_kinds`: units that the stream has gone, or sweeps of this size before.
    pattern : (kinds,) int64
        `NOWHERE`: unit 0. `STREAM`: at the cursor, slot by slot in permuted order. `SWEEP`: every
        slot once a round, each round in another order. `ANYWHERE`: any slot. `ZIPF`, `HOT_COLD`:
        a slot by its rank, ranks scattered by a permutation; anywhere within the slot.
    start, slots, slot_bits, step, units : (kinds,) int64
        The line from unit `start` on is cut into `slots` slots of `step` units; `slot_bits` is the
        number of bits of ``slots - 1``. A request covers `units`.
    hot_slots, hot_threshold : int64
        Ranks below `hot_slots` are hot; they are chosen where 32 random bits are below the
        threshold.
    rank_bits, rank_edges, rank_guide
        Table of shares (see `draw_kinds`) of bins of ranks.
    rank_low, rank_count : (bins,) int64
        Least rank of a bin, and how many it holds; equally likely within.
    out : (n,) int64
        Receives the unit at which each request starts; at most ``start + slots * step - 1``.
    """
    place_key, inner_key, order_key = _mix(key + _ONE), _mix(key + _N12), _mix(key + _N32)
    for i in range(kind.size):
        k = kind[i]
        how, n, bits, size = pattern[k], slots[k], slot_bits[k], step[k]
        if how == NOWHERE:
            out[i] = 0
            continue
        slot, inner = 0, 0
        if how == STREAM:
            run = cursor[i] // size
            inner = cursor[i] - run * size
            slot = _permute(run % n, n, bits, order_key)
        elif how == SWEEP:
            turn = cursor[i] // n
            slot = _permute(cursor[i] - turn * n, n, bits, _random_word(order_key, turn))
        else:
            word = _random_word(place_key, first + i)
            if how == ANYWHERE:
                slot = _below(word, n)
            else:
                again = _random_word(inner_key, first + i)
                if how == ZIPF:
                    b = _choose(word, rank_bits, rank_edges, rank_guide)
                    rank = rank_low[b] + _below(again, rank_count[b])
                elif np.int64(word & _LOW_HALF) < hot_threshold:
                    rank = _below(again, hot_slots)
                else:
                    rank = hot_slots + _below(again, n - hot_slots)
                slot = _permute(rank, n, bits, order_key)
                if units[k] < size:
                    inner = _below(_mix(again ^ word), size - units[k] + 1)
        out[i] = start[k] + slot * size + inner


@kernel(void(u64, I64, I64, I64, I64, I64, I64, i64, i64, i64, i64, OutI64))
def lay_out(
    key: Any,
    place: Ints,
    kind: Ints,
    units: Ints,
    lengths: Ints,
    gaps: Ints,
    guide: Ints,
    guide_shift: int,
    span: int,
    unit: int,
    shift: int,
    out: Ints,
) -> None:
    """Turn places on the line into offsets on the volume.

    The line is cut into groups of the same extents, and the volume into cells of equal size, one a
    group. In each cell the group's extents lie in the declared order, begun at a random one, and
    so do the gaps between them. A request that would leave its extent is moved back into it, and
    where it is longer than the extent, on to the next extent of the group that holds it.

    Parameters
    ----------
    key : uint64
    place : (n,) int64
        From `line_places`.
    kind : (n,) int64
    units : (kinds,) int64
        Units that a request covers; no more than the longest extent. 0 puts it at offset 0.
    lengths, gaps : (2 * extents + 1,) int64
        Running sums, from 0, of the extents' lengths and of the gaps after them, the whole list
        twice in a row. In units.
    guide : (cells,) int64
    guide_shift : int64
        For each ``2**guide_shift`` units of the lengths, the extent in which they begin: a search
        without a halving of ranges, whose branches nobody could predict.
    span : int64
        Units of a cell, the sum of all lengths and gaps or more.
    unit, shift : int64
        Bytes of a unit, and offset at which unit 0 of the volume begins.
    out : (n,) int64
        Receives the offsets, in bytes. May be `place` itself.
    """
    n = (lengths.size - 1) >> 1
    extents = np.uint64(n)
    group_units = lengths[n]
    for i in range(place.size):
        need = units[kind[i]]
        if need == 0:
            out[i] = 0
            continue
        group = place[i] // group_units
        within = place[i] - group * group_units
        word = _random_word(key, group)
        a = np.int64((word & _LOW_HALF) * extents >> _N32)  # the extent and gap that come first
        b = np.int64((word >> _N32) * extents >> _N32)
        target = lengths[a] + within
        low = guide[target >> guide_shift]
        while lengths[low + 1] <= target:
            low += 1
        inner = target - lengths[low]
        length = lengths[low + 1] - lengths[low]
        if inner + need > length:
            if need <= length:
                inner = length - need
            else:
                for _ in range(n):
                    low = low + 1 if low + 1 < a + n else a
                    length = lengths[low + 1] - lengths[low]
                    if length >= need:
                        break
                inner = within % (length - need + 1)
        lead = _below(_mix(word), gaps[b + n] - gaps[b + n - 1] + 1)
        before = lead + gaps[b + low - a] - gaps[b] + lengths[low] - lengths[a]
        out[i] = shift + (group * span + before + inner) * unit


@kernel(i64(u64, I64))
def _exponential(word: Any, quantile: Ints) -> Any:
    """A draw by the inverse of the distribution, linear within a cell of the table.

    The last cell has no end. What lies past its beginning is distributed as the whole is, so a
    new draw is added to it.
    """
    cells = quantile.size
    value = np.int64(0)
    for _ in range(8):
        cell = np.int64(word >> _N54)
        if cell < cells - 1:
            part = np.int64((word >> _N12) & _LOW_20)
            return value + quantile[cell] + (((quantile[cell + 1] - quantile[cell]) * part) >> 20)
        value += quantile[cells - 1]
        word = _mix(word)
    return value


@kernel(void(u64, i64, i64, b1, I64, I64, F64, OutI64))
def arrival_times(
    key: Any,
    first: int,
    total: int,
    regular: bool,
    quantile: Ints,
    edges: Ints,
    share: NDArray[np.float64],
    out: Ints,
) -> None:
    """Draw the times of a slice of requests.

    On the clock on which requests come at an even rate, the slice has its fixed part: from
    ``first / total`` to ``(first + n) / total``. Within it, the gaps between requests are equal,
    or they are exponential and stretched to fill it, which makes the times those of n uniform
    draws, sorted: a Poisson process of which the number of requests is known. `share` turns that
    clock into time.

    Parameters
    ----------
    key : uint64
    first, total : int64
        Index of the first request, and number of requests in all.
    regular : bool
        Equal gaps.
    quantile : (`EXPONENTIAL_CELLS`,) int64
        The exponential distribution's quantiles at 0, 1/1024, 2/1024, ... in any unit.
    edges : (m + 1,) int64
        Ascending times in ns.
    share : (m + 1,) float64
        Share of all requests before each edge, from 0 to 1.
    out : (n,) int64
        Receives the times, in ns; they never fall, nor from one slice to the next.
    """
    n = out.size
    if n == 0:
        return
    low, high = np.float64(first) / np.float64(total), np.float64(first + n) / np.float64(total)
    whole = np.int64(0)
    for i in range(n):
        if not regular:
            whole += _exponential(_random_word(key, first + i), quantile)
        out[i] = whole
        if regular:
            whole += 1
    if not regular:
        whole += _exponential(_random_word(_mix(key), first), quantile)
    scale = (high - low) / np.float64(whole if whole > 0 else 1)
    # The last edge with a share of at most `low`, by halving; from there on, step by step.
    b, end = 0, share.size - 1
    while end - b > 1:
        middle = (b + end) >> 1
        if share[middle] <= low:
            b = middle
        else:
            end = middle
    for i in range(n):
        at = min(low + scale * np.float64(out[i]), high)
        while b < share.size - 2 and share[b + 1] <= at:
            b += 1
        rise = share[b + 1] - share[b]
        part = (at - share[b]) / rise if rise > 0.0 else 0.0
        time = edges[b] + np.int64(part * np.float64(edges[b + 1] - edges[b]))
        out[i] = min(max(time, edges[b]), edges[b + 1])
