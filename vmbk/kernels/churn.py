"""What writes change, window by window: unique blocks, extents, and how they lie.

The blocks written so far are kept in *leaves*: bitmaps of 4 MiB of a volume each, found through
*pages* of a directory that cover 4 GiB each; both are made when first written. Memory therefore
follows what was written (at blocks of 4 KiB 280 bytes a leaf and 8 KiB a page) and neither the
trace's length nor the volumes' sizes. A leaf has two bitmaps: blocks written in the current window,
and blocks ever written. Page 0 and slot 0 stay empty, so that a search always finds something.

When a window ends, the leaves touched in it are walked once in order of address: that gives its
unique blocks at every granularity up to 4 MiB, its extents and their lengths. A window costs what
was written in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vmbk.kernels.intrinsics import (
    bytes_of,
    count_leading_zeros,
    count_ones,
    count_trailing_zeros,
    load_word,
    prefetch,
    store_word,
)
from vmbk.kernels.jit import I64, U8, U32, U64, OutI64, OutU64, i64, kernel, u64, void

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEAF_SHIFT = 22
"""log2 of the bytes of a leaf; also the coarsest granularity."""

VOLUME_SHIFT = 40
"""A leaf's key is its volume's index shifted by this, plus its number on the volume."""

FIELDS = 26
"""Numbers of a result row: the twelve below, then the blocks of each granularity, finest first."""

WINDOW, VOLUME, WRITES, WRITE_BYTES, BLOCK_WRITES, UNIQUE, NEW = 0, 1, 2, 3, 4, 5, 6
EXTENTS, LEAVES, SQUARES, FIRST, LAST, LEVELS = 7, 8, 9, 10, 11, 12

SLOTS, PAGES, TOUCHED, CURRENT, UNTIL, ROWS, WANTED, STAMP, WANTED_PAGES = 0, 1, 2, 3, 4, 5, 6, 7, 8
"""Places of the state: slots and pages in use, leaves touched in the current window, that window
(-1: none) and its last ns, result rows, slots in use with those of the next request where there is
no room for it, the stamp of the current window, which counts windows with writes from 1, and pages
with those of that request."""

SLOT_BITS = 24
"""A directory's entry is a slot, and above that many bits the stamp of its last window."""

PAGE_BITS = 10
"""log2 of the leaves of a page: 4 GiB."""

SLOT_MASK, PAGE_MASK = (1 << SLOT_BITS) - 1, (1 << PAGE_BITS) - 1

_ALL = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
_NONE = np.uint64(0)
_ONE = np.uint64(1)
_MANY_RUNS = 3  # of a word: from here on they are counted together
_AHEAD = 16  # requests
_WIDE = 1 << 16  # words of bitmaps: 512 KiB
_LAST_NS = np.int64(0x7FFF_FFFF_FFFF_FFFF)
# Bits that stay when 2, 4, ... 64 neighbours are folded into the lowest of them.
_FOLDS = np.array(
    [
        0x5555_5555_5555_5555, 0x1111_1111_1111_1111, 0x0101_0101_0101_0101,
        0x0001_0001_0001_0001, 0x0000_0001_0000_0001, 0x0000_0000_0000_0001,
    ],
    np.uint64,
)  # fmt: skip


@kernel(i64(i64))
def _log2(value: int) -> int:
    """Position of the highest bit of a positive number."""
    position = 0
    while value > 1:
        value >>= 1
        position += 1
    return position


@kernel(void(U64, i64, OutI64))
def _count_levels(bits: NDArray[np.uint64], shift: int, row: NDArray[np.int64]) -> None:
    """Add a leaf's blocks at every granularity coarser than its own to a result row."""
    levels = LEAF_SHIFT - shift
    outer = _NONE  # one bit for each word that is not empty, of 64 words
    for i in range(bits.size):
        word = bits[i]
        if word != _NONE:
            outer |= np.uint64(1) << np.uint64(i & 63)
            for level in range(1, min(levels, 6) + 1):
                word = (word | (word >> np.uint64(1 << (level - 1)))) & _FOLDS[level - 1]
                row[LEVELS + level] += count_ones(word)
        if outer != _NONE and (i + 1 == bits.size or i & 63 == 63):
            for level in range(7, min(levels, 12) + 1):
                outer = (outer | (outer >> np.uint64(1 << (level - 7)))) & _FOLDS[level - 7]
                row[LEVELS + level] += count_ones(outer)
            outer = _NONE
    if levels > 12:
        row[LEVELS + 13] += 1


@kernel(i64(u64, i64, OutI64, OutI64))
def _count_runs(
    bits: int, first_bin: int, run_counts: NDArray[np.int64], run_blocks: NDArray[np.int64]
) -> int:
    """Add the runs of a word to bins by log2 of their length; returns how many there are.

    Of a run, as many bits stay as places where ``size`` set bits in a row begin. So the runs that
    are at least so long can be counted, and from the bits that stay follow their lengths.
    """
    kept = np.uint64(bits)
    runs, blocks = count_ones(kept & ~(kept << _ONE)), count_ones(kept)
    all_runs, size, bin = runs, 1, first_bin
    while runs > 0:
        kept &= kept >> np.uint64(size)
        size <<= 1
        longer = count_ones(kept & ~(kept << _ONE))
        longer_blocks = count_ones(kept) + (size - 1) * longer
        run_counts[bin] += runs - longer
        run_blocks[bin] += blocks - longer_blocks
        runs, blocks = longer, longer_blocks
        bin += 1
    return int(all_runs)


@kernel(i64(I64, i64, I64, OutU64, OutU64, i64, i64, i64, i64, OutI64, OutI64, OutI64, OutI64))
def _close_window(
    touched: NDArray[np.int64],
    n_touched: int,
    keys: NDArray[np.int64],
    bits: NDArray[np.uint64],
    ever: NDArray[np.uint64],
    shift: int,
    window: int,
    gap: int,
    first_row: int,
    written: NDArray[np.int64],
    run_counts: NDArray[np.int64],
    run_blocks: NDArray[np.int64],
    out: NDArray[np.int64],
) -> int:
    """Measure the leaves that were touched; returns how many result rows there are then."""
    order = np.empty(n_touched, np.int64)
    sorted_already = True
    for i in range(n_touched):
        order[i] = keys[touched[i]]
        if i > 0 and order[i] < order[i - 1]:
            sorted_already = False
    by_key = np.arange(n_touched) if sorted_already else np.argsort(order)
    blocks_bits = LEAF_SHIFT - shift
    words = max((1 << blocks_bits) >> 6, 1)
    row = np.zeros(FIELDS, np.int64)
    rows, volume, run_start, run_stop, clean = first_row, -1, 0, 0, 0
    for place in range(n_touched + 1):
        slot = touched[by_key[place]] if place < n_touched else 0
        of_volume = keys[slot] >> VOLUME_SHIFT if place < n_touched else -1
        if of_volume != volume:
            if volume >= 0:
                if run_stop > run_start:
                    bin = 64 * volume + _log2(run_stop - run_start)
                    run_counts[bin] += 1
                    run_blocks[bin] += run_stop - run_start - clean
                    row[EXTENTS] += 1
                row[WINDOW], row[VOLUME], row[LAST] = window, volume, run_stop - 1
                row[LEVELS] = row[UNIQUE]
                for field in range(3):
                    row[WRITES + field] = written[3 * volume + field]
                    written[3 * volume + field] = 0
                for field in range(FIELDS):
                    out[FIELDS * rows + field] = row[field]
                    row[field] = 0
                rows += 1
            volume, run_start, run_stop, clean = of_volume, -1, -1, 0
        if place == n_touched:
            break
        start = slot * words
        base = (keys[slot] & ((1 << VOLUME_SHIFT) - 1)) << blocks_bits
        _count_levels(bits[start : start + words], shift, row)
        count = 0
        for i in range(words):
            word = bits[start + i]
            if word == _NONE:
                continue
            count += count_ones(word)
            row[NEW] += count_ones(word & ~ever[start + i])
            ever[start + i] |= word
            at = base + (i << 6)
            starts = word & ~(word << _ONE)
            if gap == 0 and count_ones(starts) > _MANY_RUNS:
                # The first run may go on from the word before, the last into the next; those
                # between are counted together.
                skip = count_trailing_zeros(word)
                stop = skip + count_trailing_zeros(~(word >> np.uint64(skip)))
                last = 63 - count_leading_zeros(starts)
                between = word & (_ALL << np.uint64(stop)) & ~(_ALL << np.uint64(last))
                row[EXTENTS] += _count_runs(between, 64 * volume, run_counts, run_blocks)
                word ^= between
            while word != _NONE:
                skip = count_trailing_zeros(word)
                word >>= np.uint64(skip)
                at += skip
                rest = ~word
                length = count_trailing_zeros(rest) if rest != _NONE else 64
                if run_stop >= 0 and at - run_stop <= gap:
                    clean += at - run_stop
                    run_stop = at + length
                else:
                    if run_stop >= 0:
                        size = run_stop - run_start
                        bin = 64 * volume + (_log2(size) if size > 1 else 0)
                        run_counts[bin] += 1
                        run_blocks[bin] += size - clean
                        row[EXTENTS] += 1
                    else:
                        row[FIRST] = at
                    run_start, run_stop, clean = at, at + length, 0
                at += length
                # A shift by all 64 bits has no meaning.
                word = word >> np.uint64(length) if length < 64 else _NONE
        row[UNIQUE] += count
        row[LEAVES] += 1
        row[SQUARES] += count * count
    return rows


@kernel(i64(i64, i64, i64, I64, I64, OutI64))
def _missing(
    base: int,
    first: int,
    last: int,
    root: NDArray[np.int64],
    pages: NDArray[np.int64],
    state: NDArray[np.int64],
) -> int:
    """How many of a range of leaves are not there yet; the state receives how many pages."""
    leaves = no_pages = np.int64(0)
    leaf = first
    while leaf <= last:
        stop = min(last, leaf | PAGE_MASK) + 1
        page = root[base + (leaf >> PAGE_BITS)]
        if page == 0:
            no_pages += 1
            leaves += stop - leaf
        else:
            for at in range(leaf, stop):
                leaves += np.int64(pages[(page << PAGE_BITS) + (at & PAGE_MASK)] == 0)
        leaf = stop
    state[WANTED_PAGES] = no_pages
    return int(leaves)


@kernel(
    i64(
        i64, I64, U8, U32, I64, I64, i64, i64, i64, i64,
        I64, OutI64, OutI64, OutI64, OutI64, OutU64, OutU64, OutI64, OutI64, OutI64, OutI64, OutI64,
    )
)  # fmt: skip
def churn_windows(
    first: int,
    time_ns: NDArray[np.int64],
    op: NDArray[np.uint8],
    volume: NDArray[np.uint32],
    offset: NDArray[np.int64],
    length: NDArray[np.int64],
    op_mask: int,
    window_ns: int,
    shift: int,
    gap: int,
    bases: NDArray[np.int64],
    root: NDArray[np.int64],
    pages: NDArray[np.int64],
    keys: NDArray[np.int64],
    touched: NDArray[np.int64],
    bits: NDArray[np.uint64],
    ever: NDArray[np.uint64],
    written: NDArray[np.int64],
    run_counts: NDArray[np.int64],
    run_blocks: NDArray[np.int64],
    out: NDArray[np.int64],
    state: NDArray[np.int64],
) -> int:
    """Follow requests, and measure each window that they end.

    Parameters
    ----------
    first : int64
        Row to begin with.
    time_ns, op, volume, offset, length : (n,)
        The requests, times not falling; ``volume`` counts volumes from 0, below 2**20.
    op_mask : int64
        Bit c is set where requests of operation c change blocks.
    window_ns : int64
        Length of a window, at least 1.
    shift : int64
        log2 of the block size in bytes, 9 to 22.
    gap : int64
        Most clean blocks that an extent may span.
    bases : (volumes,) int64
        Where in ``root`` each volume begins.
    root : (regions,) int64
        Page of every 4 GiB of every volume, 0 where there is none.
    pages : (1024 * pages,) int64
        Entry of every leaf of a page: its slot, and above ``SLOT_BITS`` its last window's stamp.
    keys, touched : (slots,) int64
        Key of each slot, and the slots of this window.
    bits, ever : (slots * words,) uint64
        Bitmaps of the current window and of all, ``words = max(2**(22 - shift) / 64, 1)`` a slot.
    written : (3 * volumes,) int64
        Requests, bytes and blocks written in the current window.
    run_counts, run_blocks : (64 * volumes,) int64
        Extents of windows and their changed blocks, by volume and log2 of their length, which
        counts the clean blocks that they span.
    out : (rows * FIELDS,) int64
        Receives a row for each window and volume with writes.
    state : (9,) int64
        What is carried on; at the start 1, 1, 0, -1, 0, 0, 0, 1, 0.

    Returns
    -------
    int64
        The first row that was not taken: n, or fewer where ``out`` or the slots have no room. Then
        ``state[WANTED]`` is 0 for lack of result rows; else there must be room for so many slots,
        and for ``state[WANTED_PAGES]`` pages.
    """
    leaf_bits = LEAF_SHIFT - shift
    word_bits = min(leaf_bits, 6)  # of a word that are used
    word_mask, leaf_words = (1 << word_bits) - 1, leaf_bits - word_bits
    whole = _ALL >> np.uint64(64 - (1 << word_bits))
    words = 1 << leaf_words
    slots, n_pages, n_touched = state[SLOTS], state[PAGES], state[TOUCHED]
    current, until, stamp = state[CURRENT], state[UNTIL], state[STAMP]
    rows, room, volumes = state[ROWS], out.size // FIELDS, written.size // 3
    room_pages = pages.size >> PAGE_BITS
    bitmaps = bytes_of(bits)
    of_volume, base = np.int64(-1), np.int64(0)
    requests = total = blocks = 0
    state[WANTED] = 0
    taken = time_ns.size
    # Looking ahead pays once the bitmaps no longer fit in the nearest caches.
    ahead = time_ns.size - _AHEAD if slots * words > _WIDE else 0
    for i in range(first, time_ns.size):
        if i < ahead:
            place = offset[i + _AHEAD]
            leaf = place >> LEAF_SHIFT
            page = root[bases[volume[i + _AHEAD]] + (leaf >> PAGE_BITS)]
            slot = pages[(page << PAGE_BITS) + (leaf & PAGE_MASK)] & SLOT_MASK
            inside = (place >> (shift + word_bits)) & (words - 1)
            prefetch(bitmaps, ((slot << leaf_words) + inside) << 3)
        size = length[i]
        if size <= 0 or not (op_mask >> op[i]) & 1:
            continue
        if time_ns[i] > until or current < 0:
            if n_touched > 0:
                if rows + min(volumes, n_touched) > room:
                    taken = i
                    break
                written[3 * of_volume] += requests
                written[3 * of_volume + 1] += total
                written[3 * of_volume + 2] += blocks
                requests, total, blocks = 0, 0, 0
                rows = _close_window(
                    touched, n_touched, keys, bits, ever, shift, current, gap, rows,
                    written, run_counts, run_blocks, out,
                )  # fmt: skip
                n_touched = 0
                stamp += 1
            current = time_ns[i] // window_ns
            left = window_ns - 1 - time_ns[i] % window_ns
            until = time_ns[i] + min(left, _LAST_NS - time_ns[i])
        block, last = offset[i] >> shift, (offset[i] + size - 1) >> shift
        leaves = (last >> leaf_bits) - (block >> leaf_bits) + 1
        if slots + leaves > keys.size or n_pages + (leaves >> PAGE_BITS) + 2 > room_pages:
            # Most of them may be there already: what is missing is counted where it matters.
            missing = _missing(
                bases[volume[i]], block >> leaf_bits, last >> leaf_bits, root, pages, state
            )
            wanted_pages = n_pages + state[WANTED_PAGES] + 2
            if slots + missing > keys.size or wanted_pages > room_pages:
                state[WANTED], state[WANTED_PAGES] = slots + missing, wanted_pages
                taken = i
                break
        if volume[i] != of_volume:
            if of_volume >= 0:
                written[3 * of_volume] += requests
                written[3 * of_volume + 1] += total
                written[3 * of_volume + 2] += blocks
                requests, total, blocks = 0, 0, 0
            of_volume = np.int64(volume[i])
            base = bases[of_volume]
        requests += 1
        total += size
        blocks += last - block + 1
        word, last_word = block >> word_bits, last >> word_bits
        mask = whole & (_ALL << np.uint64(block & word_mask))
        while word <= last_word:
            if word == last_word:
                mask &= _ALL >> np.uint64(63 - (last & word_mask))
            leaf = word >> leaf_words
            region = base + (leaf >> PAGE_BITS)
            at = (root[region] << PAGE_BITS) + (leaf & PAGE_MASK)
            entry = pages[at]
            if entry >> SLOT_BITS != stamp:
                if root[region] == 0:
                    root[region] = n_pages
                    at = (n_pages << PAGE_BITS) + (leaf & PAGE_MASK)
                    n_pages += 1
                    entry = pages[at]
                if entry == 0:
                    entry = slots
                    keys[slots] = (of_volume << VOLUME_SHIFT) | leaf
                    slots += 1
                entry = (stamp << SLOT_BITS) | (entry & SLOT_MASK)
                pages[at] = entry
                slot = entry & SLOT_MASK
                touched[n_touched] = slot
                n_touched += 1
                for k in range(slot * words, (slot + 1) * words):
                    bits[k] = _NONE
            place = (((entry & SLOT_MASK) << leaf_words) + (word & (words - 1))) << 3
            store_word(bitmaps, place, load_word(bitmaps, place) | mask)
            mask = whole
            word += 1
    if of_volume >= 0:
        written[3 * of_volume] += requests
        written[3 * of_volume + 1] += total
        written[3 * of_volume + 2] += blocks
    state[SLOTS], state[PAGES], state[TOUCHED] = slots, n_pages, n_touched
    state[CURRENT], state[UNTIL], state[ROWS], state[STAMP] = current, until, rows, stamp
    return taken


@kernel(
    void(OutI64, OutU64, OutU64, OutI64, i64, i64, OutI64, OutI64, OutI64, OutI64, OutI64)
)  # fmt: skip
def churn_finish(
    keys: NDArray[np.int64],
    bits: NDArray[np.uint64],
    ever: NDArray[np.uint64],
    touched: NDArray[np.int64],
    shift: int,
    gap: int,
    written: NDArray[np.int64],
    run_counts: NDArray[np.int64],
    run_blocks: NDArray[np.int64],
    out: NDArray[np.int64],
    state: NDArray[np.int64],
) -> None:
    """Measure the last window, as `churn_windows` does those before it.

    Parameters
    ----------
    keys, bits, ever, touched, shift, gap, written, run_counts, run_blocks, out, state
        As for `churn_windows`; ``out`` has room for another row of every volume.
    """
    if state[TOUCHED] > 0:
        state[ROWS] = _close_window(
            touched, state[TOUCHED], keys, bits, ever, shift, state[CURRENT], gap, state[ROWS],
            written, run_counts, run_blocks, out,
        )  # fmt: skip
        state[TOUCHED] = 0


@kernel(void(I64, I64, i64, U64, i64, I64, OutI64, OutI64, OutI64, OutI64, OutU64, OutI64))
def merge_leaves(
    from_keys: NDArray[np.int64],
    from_touched: NDArray[np.int64],
    n_touched: int,
    from_bits: NDArray[np.uint64],
    shift: int,
    bases: NDArray[np.int64],
    root: NDArray[np.int64],
    pages: NDArray[np.int64],
    keys: NDArray[np.int64],
    touched: NDArray[np.int64],
    bits: NDArray[np.uint64],
    state: NDArray[np.int64],
) -> None:
    """Add what another pass saw in the same window, so that two can share a window's requests.

    Parameters
    ----------
    from_keys, from_touched, n_touched, from_bits
        Keys, touched slots and bitmaps of the other pass.
    shift : int64
        log2 of the block size in bytes.
    bases, root, pages, keys, touched, bits, state
        As for `churn_windows`; they have room for the slots and pages that they lack.
    """
    words = max((1 << (LEAF_SHIFT - shift)) >> 6, 1)
    for i in range(n_touched):
        other = from_touched[i]
        key = from_keys[other]
        leaf = key & ((1 << VOLUME_SHIFT) - 1)
        region = bases[key >> VOLUME_SHIFT] + (leaf >> PAGE_BITS)
        if root[region] == 0:
            root[region] = state[PAGES]
            state[PAGES] += 1
        at = (root[region] << PAGE_BITS) + (leaf & PAGE_MASK)
        if pages[at] == 0:
            pages[at] = state[SLOTS]
            keys[state[SLOTS]] = key
            state[SLOTS] += 1
        slot = pages[at] & SLOT_MASK
        fresh = pages[at] >> SLOT_BITS != state[STAMP]
        if fresh:
            pages[at] = (state[STAMP] << SLOT_BITS) | slot
            touched[state[TOUCHED]] = slot
            state[TOUCHED] += 1
        for word in range(words):
            before = _NONE if fresh else bits[slot * words + word]
            bits[slot * words + word] = before | from_bits[other * words + word]
