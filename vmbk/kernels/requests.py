"""What requests are like by themselves: sizes, places near earlier ones, and how they crowd."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vmbk.kernels.intrinsics import bytes_of, count_ones, load_word, store_word
from vmbk.kernels.jit import I64, U8, U32, OutI64, i64, kernel
from vmbk.kernels.leaves import PIECES, ROW, SLOTS, _prefetch_leaves, cut_requests, find_leaves
from vmbk.kernels.updates import _add

if TYPE_CHECKING:
    from numpy.typing import NDArray

OPS, SIZES = 6, 64
READ, WRITE = 0, 1
"""Operations, and bins of their lengths by log2; the last bin is for lengths of 0."""

UNALIGNED, RANDOM, RANDOM_WRITES, SEQUENTIAL = 0, 1, 2, 3
FIRST, LAST, PEAK, WINDOWS = 4, 5, 6, 7
FIGURES = 8
"""Places of a volume's row of figures: requests of a kind, then its first and its last window with
requests, the most requests of a window, and how many windows have any."""

NEIGHBOURS = 32
"""Earlier requests of the volume that a request is compared with."""

ROW_FIELDS = 6
"""A row of activity: window, volume, reads, writes, bytes read, bytes written."""

CURRENT, UNTIL, TOUCHED, ROWS, TOTAL = 0, 1, 2, 3, 4
"""Places of the state of `profile_requests`: the current window (-1: none) and its last ns, volumes
with requests in it, rows of activity, bytes of all requests."""

READ_BLOCKS, WRITTEN_BLOCKS, UPDATED_BLOCKS, TOUCHED_BLOCKS = 0, 1, 2, 3
LEAF_BITS, LEAF_WORDS = 8, 12
"""log2 of the blocks of a leaf of `touch_blocks`, and its words: three for each 64 blocks."""

_NEAR = 128 << 10  # bytes; a request farther than this from the earlier ones is random
_AWAY = np.int64(1 << 61)  # added to offsets, so that a place in fresh memory is far from all
_LAST_NS = np.int64(0x7FFF_FFFF_FFFF_FFFF)
_ALL = np.uint64(0xFFFF_FFFF_FFFF_FFFF)


@kernel(i64(i64))
def _size_bin(length: int) -> int:
    """log2 of a length; the last bin for none."""
    filled = length
    for by in (1, 2, 4, 8, 16, 32):
        filled |= filled >> by
    bits: int = count_ones(np.uint64(filled))
    return (bits - 1) & (SIZES - 1)


@kernel(i64(OutI64, OutI64, i64, i64, OutI64, OutI64, i64))
def _end_window(
    current: NDArray[np.int64],
    touched: NDArray[np.int64],
    n_touched: int,
    window: int,
    figures: NDArray[np.int64],
    out: NDArray[np.int64],
    rows: int,
) -> int:
    """Take the window's figures into those of its volumes and, where there is room, into rows."""
    volumes = figures.size // FIGURES - 1
    everything = np.int64(0)
    for i in range(n_touched + 1):
        place = touched[i] if i < n_touched else volumes
        requests = everything
        if i < n_touched:
            requests = current[4 * place] + current[4 * place + 1]
            everything += requests
            if out.size > 0:
                out[ROW_FIELDS * rows] = window
                out[ROW_FIELDS * rows + 1] = place
                for field in range(4):
                    out[ROW_FIELDS * rows + 2 + field] = current[4 * place + field]
                rows += 1
            for field in range(4):
                current[4 * place + field] = 0
        row = FIGURES * place
        if figures[row + WINDOWS] == 0:
            figures[row + FIRST] = window
        figures[row + LAST] = window
        figures[row + PEAK] = max(figures[row + PEAK], requests)
        figures[row + WINDOWS] += 1
    return rows


@kernel(
    i64(
        i64, I64, U8, U32, I64, I64, i64, i64,
        OutI64, OutI64, OutI64, OutI64, OutI64, OutI64, OutI64, OutI64,
    )
)  # fmt: skip
def profile_requests(
    first: int,
    time_ns: NDArray[np.int64],
    op: NDArray[np.uint8],
    volume: NDArray[np.uint32],
    offset: NDArray[np.int64],
    length: NDArray[np.int64],
    window_ns: int,
    is_last: int,
    sizes: NDArray[np.int64],
    near: NDArray[np.int64],
    ends: NDArray[np.int64],
    figures: NDArray[np.int64],
    current: NDArray[np.int64],
    touched: NDArray[np.int64],
    out: NDArray[np.int64],
    state: NDArray[np.int64],
) -> int:
    """Count requests by what they are like, and by window.

    Sizes are those of all requests, everything else is about reads and writes of at least a byte.

    Parameters
    ----------
    first : int64
        Row to begin with.
    time_ns, op, volume, offset, length : (n,)
        The requests, times not falling; ``volume`` counts volumes from 0.
    window_ns : int64
        Length of a window, at least 1.
    is_last : int64
        1 to end the current window after these requests.
    sizes : (volumes * OPS * SIZES * 2,) int64
        Requests, and bytes of them, by volume, operation and log2 of the length.
    near : (volumes * NEIGHBOURS,) int64
        Offsets of each volume's last requests, `_AWAY` added; zeros at the start.
    ends : (volumes * (NEIGHBOURS + 1),) int64
        Where these requests end, `_AWAY` added, and then how many requests there were.
    figures : ((volumes + 1) * FIGURES,) int64
        Of each volume, and in the last row of all volumes, which has the windows only.
    current : (4 * volumes,) int64
        Reads, writes and their bytes in the current window.
    touched : (volumes,) int64
        Volumes with requests in it.
    out : (rows * ROW_FIELDS,) int64
        Receives a row for each window and volume with requests; none are written where it has no
        room at all.
    state : (5,) int64
        What is carried on; -1 as the current window at the start.

    Returns
    -------
    int64
        n; the row to go on with where ``out`` lacks room (n + 1: to end the last window); or -1
        where all lengths come to 2**63 bytes.
    """
    room = out.size // ROW_FIELDS
    window, until, n_touched = state[CURRENT], state[UNTIL], state[TOUCHED]
    rows, total = state[ROWS], state[TOTAL]
    counts, totals = bytes_of(sizes), bytes_of(figures)
    taken = time_ns.size
    for i in range(first, time_ns.size):
        code, size, place = np.int64(op[i]), length[i], np.int64(volume[i])
        wanted = code <= WRITE and size > 0
        if wanted and (time_ns[i] > until or window < 0):
            if n_touched > 0:
                if room > 0 and rows + n_touched > room:
                    taken = i
                    break
                rows = _end_window(current, touched, n_touched, window, figures, out, rows)
                n_touched = 0
            window = time_ns[i] // window_ns
            left = window_ns - 1 - time_ns[i] % window_ns
            until = time_ns[i] + left if left <= _LAST_NS - time_ns[i] else _LAST_NS
        if size > _LAST_NS - total:
            taken = -1
            break
        total += size
        bin = ((place * OPS + code) * SIZES + _size_bin(size)) << 1
        _add(counts, bin, 1)
        _add(counts, bin + 1, size)
        if not wanted:
            continue
        here = offset[i] + _AWAY
        close, follows = 0, 0
        neighbours, befores = place * NEIGHBOURS, place * (NEIGHBOURS + 1)
        for k in range(NEIGHBOURS):
            # Distances as unsigned numbers: one comparison for both sides.
            close |= int(np.uint64(near[neighbours + k] - here + _NEAR) <= np.uint64(2 * _NEAR))
            follows |= int(ends[befores + k] == here)
        turn = ends[befores + NEIGHBOURS]
        ends[befores + NEIGHBOURS] = turn + 1
        near[neighbours + (turn & (NEIGHBOURS - 1))] = here
        ends[befores + (turn & (NEIGHBOURS - 1))] = here + size
        row = place * FIGURES
        _add(totals, row + UNALIGNED, code & int((offset[i] | size) & 4095 != 0))
        _add(totals, row + RANDOM, 1 - close)
        _add(totals, row + RANDOM_WRITES, (1 - close) & code)
        _add(totals, row + SEQUENTIAL, follows)
        if current[4 * place] + current[4 * place + 1] == 0:
            touched[n_touched] = place
            n_touched += 1
        current[4 * place + code] += 1
        current[4 * place + 2 + code] += size
    if is_last and taken == time_ns.size and n_touched > 0:
        if room > 0 and rows + n_touched > room:
            taken += 1
        else:
            rows = _end_window(current, touched, n_touched, window, figures, out, rows)
            n_touched = 0
    state[CURRENT], state[UNTIL], state[TOUCHED] = window, until, n_touched
    state[ROWS], state[TOTAL] = rows, total
    return taken


@kernel(
    i64(
        U8, U32, I64, I64, i64, i64, I64, I64, I64,
        OutI64, OutI64, OutI64, OutI64, OutI64, OutI64,
    )
)  # fmt: skip
def touch_blocks(
    op: NDArray[np.uint8],
    volume: NDArray[np.uint32],
    offset: NDArray[np.int64],
    length: NDArray[np.int64],
    op_mask: int,
    shift: int,
    region_bits: NDArray[np.int64],
    first_region: NDArray[np.int64],
    bases: NDArray[np.int64],
    table: NDArray[np.int64],
    leaf_keys: NDArray[np.int64],
    leaves: NDArray[np.int64],
    totals: NDArray[np.int64],
    regions: NDArray[np.int64],
    state: NDArray[np.int64],
) -> int:
    """Keep which blocks are read, written and written again, and count them.

    Parameters
    ----------
    op, volume, offset, length : (n,)
        The requests; ``volume`` counts volumes from 0.
    op_mask : int64
        Bit c is set where requests of operation c change blocks; reads are followed besides.
    shift : int64
        log2 of the block size in bytes.
    region_bits, first_region : (volumes,) int64
        log2 of the blocks of a region of each volume, at least 6, and the number of its first one.
    bases, table, leaf_keys, state
        As for `interval_blocks`; the state has no ``UNTIL``.
    leaves : (12 * room,) int64
        For each 64 blocks a word of those read, one of those written, one of those written again.
    totals : (4 * volumes,) int64
        Blocks read, written, written again, and read or written, each once.
    regions : (3 * all regions,) int64
        Block writes, the requests that they belong to, and the blocks written, each once.

    Returns
    -------
    int64
        As for `interval_blocks`.
    """
    rows, keys, firsts, counts, slots = (
        np.empty(PIECES, np.int64), np.empty(PIECES, np.int64), np.empty(PIECES, np.int64),
        np.empty(PIECES, np.int64), np.empty(PIECES, np.int64),
    )  # fmt: skip
    words, sums, places = bytes_of(leaves), bytes_of(totals), bytes_of(regions)
    while state[SLOTS] + PIECES <= leaf_keys.size:
        n = cut_requests(
            op, volume, offset, length, op_mask | 1 << READ, shift, LEAF_BITS, bases, table,
            rows, keys, firsts, counts, state,
        )  # fmt: skip
        if n == 0:
            break
        state[SLOTS] = find_leaves(keys, n, table, leaf_keys, slots, state[SLOTS])
        _prefetch_leaves(slots, firsts, counts, n, words, LEAF_WORDS, LEAF_BITS)
        for i in range(n):
            row = rows[i]
            place, code = np.int64(volume[row]), op[row]
            # Blocks from the start of the volume, as regions count them.
            block = ((keys[i] - bases[place]) << LEAF_BITS) + firsts[i]
            begins = block == offset[row] >> shift
            at, stop = firsts[i], firsts[i] + counts[i]
            while at < stop:
                bit = at & 63
                here = min(stop - at, 64 - bit)
                new = (_ALL >> np.uint64(64 - here)) << np.uint64(bit)
                word = (slots[i] * LEAF_WORDS + 3 * (at >> 6)) << 3
                read, written = load_word(words, word), load_word(words, word + 8)
                _add(sums, 4 * place + TOUCHED_BLOCKS, count_ones(new & ~(read | written)))
                if code == READ:
                    store_word(words, word, read | new)
                    _add(sums, 4 * place + READ_BLOCKS, count_ones(new & ~read))
                else:
                    again = load_word(words, word + 16)
                    store_word(words, word + 8, written | new)
                    store_word(words, word + 16, again | (written & new))
                    unique = count_ones(new & ~written)
                    _add(sums, 4 * place + WRITTEN_BLOCKS, unique)
                    _add(sums, 4 * place + UPDATED_BLOCKS, count_ones(written & new & ~again))
                    region = 3 * (first_region[place] + (block >> region_bits[place]))
                    _add(places, region, here)
                    _add(places, region + 1, int(begins))
                    _add(places, region + 2, unique)
                begins = False
                at += here
                block += here
    return int(state[ROW] == op.size)
