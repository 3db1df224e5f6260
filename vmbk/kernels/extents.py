"""Between sets of blocks and extents of bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vmbk.kernels.bitmap import next_clear, next_set
from vmbk.kernels.intrinsics import Bytes, bytes_of, load_word
from vmbk.kernels.jit import U8, OutI64, OutU8, i64, kernel, void

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LOW_BITS = np.uint64(0x7F7F_7F7F_7F7F_7F7F)
_HIGH_BITS = np.uint64(0x8080_8080_8080_8080)
_N7, _N56 = np.uint64(7), np.uint64(56)
# Times this, the lowest bits of eight bytes come to lie side by side in the highest byte.
_GATHER = np.uint64(0x0102_0408_1020_4080)


@kernel(i64(Bytes, i64, i64, i64))
def _extent_stop(bitmap: Any, first: int, n_blocks: int, gap_blocks: int) -> Any:
    """Where the extent that begins at `first` ends: the block after its last set one."""
    stop = next_clear(bitmap, first, n_blocks)
    while stop < n_blocks:
        # Compared by subtraction: "any gap" is the largest int64.
        limit = stop + gap_blocks + 1 if gap_blocks < n_blocks - stop else n_blocks
        following = next_set(bitmap, stop, limit)
        if following == limit:
            break
        stop = next_clear(bitmap, following, n_blocks)
    return stop


@kernel(i64(U8, i64, i64))
def count_extents(bitmap: NDArray[np.uint8], n_blocks: int, gap_blocks: int) -> int:
    """How many extents `bitmap_to_extents` will find, so that the caller can make room.

    Parameters
    ----------
    bitmap : (ceil(n_blocks / 8),) uint8
        The blocks.
    n_blocks : int64
        How many blocks there are.
    gap_blocks : int64
        The most clean blocks that an extent may span between two set ones.
    """
    bits = bytes_of(bitmap)
    count = 0
    first = next_set(bits, 0, n_blocks)
    while first < n_blocks:
        count += 1
        first = next_set(bits, _extent_stop(bits, first, n_blocks, gap_blocks), n_blocks)
    return count


@kernel(i64(U8, i64, i64, i64, i64, OutI64, OutI64))
def bitmap_to_extents(
    bitmap: NDArray[np.uint8],
    n_blocks: int,
    block_size: int,
    gap_blocks: int,
    disk_size: int,
    offsets: NDArray[np.int64],
    lengths: NDArray[np.int64],
) -> int:
    """Extents of the set blocks, in order, coalesced over small gaps.

    Parameters
    ----------
    bitmap : (ceil(n_blocks / 8),) uint8
        The blocks.
    n_blocks : int64
        How many blocks there are: ``ceil(disk_size / block_size)``.
    block_size : int64
        Bytes of a block, at least 1.
    gap_blocks : int64
        Runs of set blocks with at most this many clean blocks between them become one extent.
    disk_size : int64
        Bytes of the disk; the last extent ends there at the latest.
    offsets, lengths : (k,) int64
        Receive the extents in bytes. Those that do not fit are counted and not written.

    Returns
    -------
    int64
        How many extents there are, as `count_extents` says.
    """
    bits = bytes_of(bitmap)
    count = 0
    first = next_set(bits, 0, n_blocks)
    while first < n_blocks:
        stop = _extent_stop(bits, first, n_blocks, gap_blocks)
        if count < offsets.size:
            offsets[count] = first * block_size
            lengths[count] = min(stop * block_size, disk_size) - first * block_size
        count += 1
        first = next_set(bits, stop, n_blocks)
    return count


@kernel(void(U8, OutU8))
def flags_to_bitmap(flags: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Set the blocks whose flag is not zero.

    Parameters
    ----------
    flags : (n,) uint8
        One flag per block, as `compare_blocks` makes them.
    out : (ceil(n / 8),) uint8
        Receives the bitmap.
    """
    source = bytes_of(flags)
    whole = flags.size >> 3
    for i in range(whole):
        word = load_word(source, 8 * i)
        # A byte that is not zero carries into its highest bit, or has it already.
        ones = ((((word & _LOW_BITS) + _LOW_BITS) | word) & _HIGH_BITS) >> _N7
        out[i] = (ones * _GATHER) >> _N56
    if 8 * whole < flags.size:
        last = 0
        for i in range(8 * whole, flags.size):
            if flags[i] != 0:
                last |= 1 << (i & 7)
        out[whole] = last
