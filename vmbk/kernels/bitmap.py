"""Sets of blocks as bitmaps: marking, counting, algebra, change of block size.

A bitmap is an array of uint8. Block i is bit ``i % 8`` of byte ``i // 8``, lowest bit first
(NumPy's ``bitorder="little"``). Bits past the last block are zero: kernels that are told the number
of blocks ignore such bits in their inputs and never set them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vmbk.kernels.intrinsics import (
    Bytes,
    bytes_of,
    count_ones,
    count_trailing_zeros,
    load_word,
    prefetch,
    store_word,
)
from vmbk.kernels.jit import I64, U8, OutU8, i64, kernel, void

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NOTHING, _ALL = np.uint64(0), np.uint64(0xFFFF_FFFF_FFFF_FFFF)
_AHEAD = 16  # ranges whose first byte is asked for before its turn
_SHORT = 57  # blocks that one word holds, whichever bit of its first byte they begin at


@kernel(i64(Bytes, i64, i64))
def next_set(bitmap: Any, start: int, n_blocks: int) -> Any:
    """First set block from `start` on, or `n_blocks` where there is none."""
    last_word = ((n_blocks + 7) >> 3) - 8
    at = start
    while at < n_blocks:
        byte = at >> 3
        if byte <= last_word:
            word, width = load_word(bitmap, byte), 64
        else:
            word, width = np.uint64(bitmap[byte]), 8
        word >>= np.uint64(at & 7)
        if word != _NOTHING:
            return min(at + count_trailing_zeros(word), n_blocks)
        at = (byte << 3) + width
    return n_blocks


@kernel(i64(Bytes, i64, i64))
def next_clear(bitmap: Any, start: int, n_blocks: int) -> Any:
    """First clear block from `start` on, or `n_blocks` where there is none."""
    last_word = ((n_blocks + 7) >> 3) - 8
    at = start
    while at < n_blocks:
        byte = at >> 3
        if byte <= last_word:
            word, width = ~load_word(bitmap, byte), 64
        else:
            word, width = np.uint64(bitmap[byte] ^ 0xFF), 8
        word >>= np.uint64(at & 7)
        if word != _NOTHING:
            return min(at + count_trailing_zeros(word), n_blocks)
        at = (byte << 3) + width
    return n_blocks


@kernel(void(Bytes, i64, i64))
def _set_blocks(bitmap: Any, first: int, stop: int) -> None:
    """Set the blocks from `first` up to, not including, `stop`."""
    if first >= stop:
        return
    head, tail = first >> 3, (stop - 1) >> 3
    head_mask = (0xFF << (first & 7)) & 0xFF
    tail_mask = 0xFF >> (7 - ((stop - 1) & 7))
    if head == tail:
        bitmap[head] |= head_mask & tail_mask
        return
    bitmap[head] |= head_mask
    for i in range(head + 1, tail):
        bitmap[i] = 0xFF
    bitmap[tail] |= tail_mask


@kernel(i64(i64))
def _shift_of(block_size: int) -> Any:
    """By how many bits to shift instead of dividing by a power of two, -1 for another number."""
    if block_size & (block_size - 1) != 0:
        return -1
    return count_trailing_zeros(np.uint64(block_size))


@kernel(void(Bytes, i64, i64, i64, i64, i64))
def _mark(
    bitmap: Any, n_blocks: int, offset: int, length: int, block_size: int, shift: int
) -> None:
    """Set every block that a range of bytes touches, among the first `n_blocks`."""
    end = n_blocks * block_size
    if length > 0 and offset < 0:
        length, offset = length + offset, 0
    if length <= 0 or offset >= end:
        return
    # Compared by subtraction: offset + length may not fit in 63 bits.
    if length < end - offset:
        end = offset + length
    if shift >= 0:  # a division takes as long as all the rest
        first, stop = offset >> shift, ((end - 1) >> shift) + 1
    else:
        first, stop = offset // block_size, (end - 1) // block_size + 1
    # Which bytes a short range falls into is anybody's guess, and the processor's: one word that
    # holds them all needs none.
    if stop - first <= _SHORT and (first >> 3) + 8 <= n_blocks >> 3:
        ones = _ALL >> np.uint64(64 - (stop - first)) << np.uint64(first & 7)
        store_word(bitmap, first >> 3, load_word(bitmap, first >> 3) | ones)
    else:
        _set_blocks(bitmap, first, stop)


@kernel(void(OutU8, i64, i64, i64))
def mark_range(bitmap: NDArray[np.uint8], offset: int, length: int, block_size: int) -> None:
    """Set every block that a range of bytes touches, even in part.

    Parameters
    ----------
    bitmap : (m,) uint8
        Marks are added to it. What lies before it or past its 8 m blocks is dropped: the caller
        sees to it that no range passes the end of the disk, or bits past the last block may be set.
    offset, length : int64
        The range in bytes; an empty range touches nothing.
    block_size : int64
        Bytes of a block, at least 1; times 8 m it fits in 63 bits.
    """
    shift = _shift_of(block_size)
    _mark(bytes_of(bitmap), 8 * bitmap.size, offset, length, block_size, shift)


@kernel(void(OutU8, I64, I64, i64))
def mark_ranges(
    bitmap: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    lengths: NDArray[np.int64],
    block_size: int,
) -> None:
    """Set every block that any of many ranges of bytes touches, as `mark_range` does for one.

    Parameters
    ----------
    bitmap : (m,) uint8
        Marks are added to it; what lies before it or past its 8 m blocks is dropped.
    offsets, lengths : (k,) int64
        The ranges in bytes, in any order; they may overlap.
    block_size : int64
        Bytes of a block, at least 1; times 8 m it fits in 63 bits.
    """
    bits, shift = bytes_of(bitmap), _shift_of(block_size)
    for i in range(offsets.size):
        if shift >= 0 and i + _AHEAD < offsets.size:
            prefetch(bits, offsets[i + _AHEAD] >> (shift + 3))
        _mark(bits, 8 * bitmap.size, offsets[i], lengths[i], block_size, shift)


@kernel(i64(U8))
def count_set(bitmap: NDArray[np.uint8]) -> int:
    """How many blocks are set.

    Parameters
    ----------
    bitmap : (m,) uint8
        The blocks; bits past the last block, were they set, would count.
    """
    bits = bytes_of(bitmap)
    words = bitmap.size >> 3
    count = 0
    for i in range(words):
        count += count_ones(load_word(bits, 8 * i))
    for i in range(8 * words, bitmap.size):
        count += count_ones(np.uint64(bits[i]))
    return count


@kernel(void(U8, U8, OutU8))
def union(a: NDArray[np.uint8], b: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Blocks in either bitmap.

    Parameters
    ----------
    a, b : (m,) uint8
        Two bitmaps of one size.
    out : (m,) uint8
        Receives the result; may be `a` or `b`.
    """
    for i in range(out.size):
        out[i] = a[i] | b[i]


@kernel(void(U8, U8, OutU8))
def intersect(a: NDArray[np.uint8], b: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Blocks in both bitmaps.

    Parameters
    ----------
    a, b : (m,) uint8
        Two bitmaps of one size.
    out : (m,) uint8
        Receives the result; may be `a` or `b`.
    """
    for i in range(out.size):
        out[i] = a[i] & b[i]


@kernel(void(U8, U8, OutU8))
def subtract(a: NDArray[np.uint8], b: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Blocks in the first bitmap and not in the second.

    Parameters
    ----------
    a, b : (m,) uint8
        Two bitmaps of one size.
    out : (m,) uint8
        Receives the result; may be `a` or `b`.
    """
    for i in range(out.size):
        out[i] = a[i] & (b[i] ^ 0xFF)


@kernel(void(U8, i64, i64, OutU8))
def coarsen(bitmap: NDArray[np.uint8], n_blocks: int, factor: int, out: NDArray[np.uint8]) -> None:
    """Set a coarse block where any of its fine blocks is set.

    Parameters
    ----------
    bitmap : (ceil(n_blocks / 8),) uint8
        The fine blocks.
    n_blocks : int64
        How many fine blocks there are.
    factor : int64
        Fine blocks of a coarse one, at least 1; the last coarse block may have fewer.
    out : (ceil(ceil(n_blocks / factor) / 8),) uint8
        Receives the coarse blocks; may not be `bitmap`.
    """
    fine, coarse = bytes_of(bitmap), bytes_of(out)
    for i in range(out.size):
        out[i] = 0
    at = next_set(fine, 0, n_blocks)
    while at < n_blocks:
        block = at // factor
        coarse[block >> 3] |= 1 << (block & 7)
        at = next_set(fine, (block + 1) * factor, n_blocks)


@kernel(void(U8, i64, i64, i64, OutU8))
def refine(
    bitmap: NDArray[np.uint8], n_blocks: int, factor: int, n_fine: int, out: NDArray[np.uint8]
) -> None:
    """Set every fine block of each coarse block that is set.

    Parameters
    ----------
    bitmap : (ceil(n_blocks / 8),) uint8
        The coarse blocks.
    n_blocks : int64
        How many coarse blocks there are.
    factor : int64
        Fine blocks of a coarse one, at least 1.
    n_fine : int64
        How many fine blocks there are; the last coarse block may have fewer than `factor`.
    out : (ceil(n_fine / 8),) uint8
        Receives the fine blocks; may not be `bitmap`.
    """
    coarse, fine = bytes_of(bitmap), bytes_of(out)
    for i in range(out.size):
        out[i] = 0
    first = next_set(coarse, 0, n_blocks)
    while first < n_blocks:
        stop = next_clear(coarse, first, n_blocks)
        _set_blocks(fine, first * factor, min(stop * factor, n_fine))
        first = next_set(coarse, stop, n_blocks)
