"""FastCDC: chunks whose ends are found in the content, so that they move with it.

Written from Xia et al., "The Design of Fast Content-Defined Chunking for Data Deduplication Based
Storage Systems", IEEE TPDS 31(9), 2020, which adds two bytes at a time to Xia et al., "FastCDC",
USENIX ATC 2016. A chunk ends where a hash of the last 48 bytes has zeros in every bit of a mask.
Up to the size that is aimed at the mask has more bits than that size asks for, beyond it fewer, so
that sizes gather there (normalised chunking). The least size that a chunk has is not even hashed.

The table is made by the rule of the authors' own program, which other libraries took over, so that
all of them cut alike.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from vmbk.kernels.compare import _range_is_zero
from vmbk.kernels.hash import xxh3_64
from vmbk.kernels.intrinsics import Bytes, bytes_of, load_word
from vmbk.kernels.jit import I64, U8, OutI64, OutU8, OutU64, b1, i64, kernel, u64, void

if TYPE_CHECKING:
    from numpy.typing import NDArray

# What each byte adds to the hash: the first half of the MD5 of 64 such bytes, as a number that is
# written from its highest byte.
GEAR = np.array(
    [
        int.from_bytes(hashlib.md5(bytes([i]) * 64, usedforsecurity=False).digest()[:8], "big")
        for i in range(256)
    ],
    np.uint64,
)
GEAR_TWICE = GEAR << np.uint64(1)

_NOTHING, _ONE, _TWO, _BYTE = (np.uint64(n) for n in (0, 1, 2, 0xFF))
_N8, _N16, _N24, _N32, _N40, _N48, _N56 = (np.uint64(8 * n) for n in range(1, 8))
# Where the hash of the last byte comes out of a search that found no end.
_NOT_FOUND = -1


@kernel(u64(Bytes, i64, i64))
def _gear_hash(data: Any, start: int, stop: int) -> Any:
    """Hash of the bytes from `start` to `stop`, of which the last 64 count."""
    value = _NOTHING
    for i in range(max(start, stop - 64), stop):
        value = (value << _ONE) + GEAR[data[i]]
    return value


@kernel(i64(Bytes, i64, i64, u64, u64))
def _find_end(data: Any, start: int, stop: int, value: Any, mask: Any) -> int:
    """First byte from `start`, an even number of them, whose hash has none of the mask's bits.

    `value` is the hash of what comes before. The hash of two bytes at a time is four times the one
    before and what they add, so that of the first byte is at hand twice as large as it should be:
    it is compared with twice the mask.
    """
    twice = mask << _ONE
    at = start
    while at + 8 <= stop:
        word = load_word(data, at)
        first, second = GEAR_TWICE[word & _BYTE], GEAR[(word >> _N8) & _BYTE]
        value <<= _TWO
        if (value + first) & twice == _NOTHING:
            return at
        value += first + second
        if value & mask == _NOTHING:
            return at + 1
        first, second = GEAR_TWICE[(word >> _N16) & _BYTE], GEAR[(word >> _N24) & _BYTE]
        value <<= _TWO
        if (value + first) & twice == _NOTHING:
            return at + 2
        value += first + second
        if value & mask == _NOTHING:
            return at + 3
        first, second = GEAR_TWICE[(word >> _N32) & _BYTE], GEAR[(word >> _N40) & _BYTE]
        value <<= _TWO
        if (value + first) & twice == _NOTHING:
            return at + 4
        value += first + second
        if value & mask == _NOTHING:
            return at + 5
        first, second = GEAR_TWICE[(word >> _N48) & _BYTE], GEAR[word >> _N56]
        value <<= _TWO
        if (value + first) & twice == _NOTHING:
            return at + 6
        value += first + second
        if value & mask == _NOTHING:
            return at + 7
        at += 8
    while at < stop:
        value = (value << _ONE) + GEAR[data[at]]
        if value & mask == _NOTHING:
            return at
        at += 1
    return _NOT_FOUND


@kernel(i64(U8, b1, i64, i64, i64, u64, u64, OutI64))
def find_ends(
    data: NDArray[np.uint8],
    last: bool,
    least: int,
    middle: int,
    most: int,
    mask_before: int,
    mask_beyond: int,
    ends: NDArray[np.int64],
) -> int:
    """Cut content into chunks.

    Where a chunk ends depends on nothing but its bytes and the one after them, and on whether the
    data ends within `most` bytes.

    Parameters
    ----------
    data : (n,) uint8
        The content, from the beginning of a chunk.
    last : bool
        Whether nothing follows; otherwise chunks are cut while `most` bytes are there to look at.
    least, middle, most : int64
        Bytes of a chunk: of every one but the last at least, where the mask changes, at most; at
        least 2, and each at least the one before.
    mask_before, mask_beyond : uint64
        Bits that are zero at the end of a chunk of at most `middle` bytes, and of a longer one.
    ends : (at least n / (least - 1) + 1,) int64
        Receives where each chunk ends.

    Returns
    -------
    int64
        How many chunks were cut.
    """
    content = bytes_of(data)
    start = 0
    found = 0
    # As the authors' program does it, pairs of bytes begin and end at even distances.
    skipped = least // 2 * 2
    while start < data.size and (last or data.size - start >= most):
        size = min(data.size - start, most)
        end = start + size
        if size > least:
            change = start + min(middle, size) // 2 * 2
            at = _find_end(content, start + skipped, change, _NOTHING, mask_before)
            if at == _NOT_FOUND:
                value = _gear_hash(content, start + skipped, change)
                at = _find_end(content, change, start + size // 2 * 2, value, mask_beyond)
            if at != _NOT_FOUND:
                end = at
        ends[found] = end
        found += 1
        start = end
    return found


@kernel(void(U8, I64, OutU64, OutU8))
def digest_chunks(
    data: NDArray[np.uint8],
    ends: NDArray[np.int64],
    out: NDArray[np.uint64],
    is_zero: NDArray[np.uint8],
) -> None:
    """XXH3-64 of each chunk, and whether it is all zeros.

    Parameters
    ----------
    data : (n,) uint8
        The content, from the beginning of the first chunk.
    ends : (m,) int64
        Where each chunk ends, none before the one before and none past the data.
    out : (m,) uint64
        Receives one digest per chunk.
    is_zero : (m,) uint8
        Receives 1 where a chunk is all zeros, 0 where it is not.
    """
    content = bytes_of(data)
    start = 0
    for i in range(ends.size):
        out[i] = xxh3_64(data[start : ends[i]])
        is_zero[i] = 1 if _range_is_zero(content, start, ends[i]) else 0
        start = ends[i]
