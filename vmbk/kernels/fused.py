"""Several looks at the same blocks in one pass: the later ones find the bytes in the caches.

Memory is slower than any of these looks. A block is hashed, tested for zeros, compared and hashed
again in smaller pieces before the next one is read, so that each byte comes from memory once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vmbk.kernels.compare import _range_differs, _range_is_zero
from vmbk.kernels.intrinsics import bytes_of
from vmbk.kernels.jit import U8, U64, OutU8, OutU64, i64, kernel, void
from vmbk.kernels.xxh3 import SECRET, _digest_64

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NO_SEED = np.uint64(0)


@kernel(i64(U8, i64, i64, U64, OutU64, OutU64, OutU8))
def scan_blocks(
    data: NDArray[np.uint8],
    block_size: int,
    grain: int,
    base: NDArray[np.uint64],
    digests: NDArray[np.uint64],
    sub_digests: NDArray[np.uint64],
    is_zero: NDArray[np.uint8],
) -> int:
    """XXH3-64 of each block, zeros of each grain, and XXH3-64 of the grains of changed blocks.

    Parameters
    ----------
    data : (n,) uint8
        The bytes; the last block may be short.
    block_size : int64
        Bytes of a block, at least 1.
    grain : int64
        Bytes of a grain, of which a block holds a whole number.
    base : (any number,) uint64
        Digests of the first blocks as they were; blocks that it lacks count as changed.
    digests : (ceil(n / block_size),) uint64
        Receives one digest per block.
    sub_digests : (ceil(n / grain),) or (0,) uint64
        Receives one digest per grain of a changed block; others stay as they are. None is computed
        where it is empty.
    is_zero : (ceil(n / grain),) uint8
        Receives 1 where a grain holds nothing but zeros, 0 where it does not.

    Returns
    -------
    int64
        Bytes hashed again for ``sub_digests``.
    """
    content, secret = bytes_of(data), bytes_of(SECRET)
    per_block, drilled = block_size // grain, 0
    for block in range(digests.size):
        start = block * block_size
        length = min(block_size, data.size - start)
        digest = _digest_64(content, start, length, _NO_SEED, secret)
        digests[block] = digest
        drill = sub_digests.size > 0 and (block >= base.size or base[block] != digest)
        first = block * per_block
        for i in range(first, min(first + per_block, is_zero.size)):
            at = i * grain
            stop = min(at + grain, data.size)
            is_zero[i] = 1 if _range_is_zero(content, at, stop) else 0
            if drill:
                sub_digests[i] = _digest_64(content, at, stop - at, _NO_SEED, secret)
        if drill:
            drilled += length
    return drilled


@kernel(void(U8, U8, i64, OutU8, OutU64))
def compare_and_hash_blocks(
    a: NDArray[np.uint8],
    b: NDArray[np.uint8],
    block_size: int,
    differs: NDArray[np.uint8],
    digests: NDArray[np.uint64],
) -> None:
    """Flag each block in which two pieces of content differ, and take XXH3-64 of the first's.

    Parameters
    ----------
    a, b : (n,) uint8
        The content, of one size; the last block may be short.
    block_size : int64
        Bytes of a block, at least 1.
    differs : (ceil(n / block_size),) uint8
        Receives 1 where a block differs, 0 where it does not.
    digests : (ceil(n / block_size),) uint64
        Receives the digest of each block of ``a``.
    """
    left, right, secret = bytes_of(a), bytes_of(b), bytes_of(SECRET)
    for block in range(differs.size):
        start = block * block_size
        stop = min(start + block_size, a.size)
        differs[block] = 1 if _range_differs(left, right, start, stop) else 0
        digests[block] = _digest_64(left, start, stop - start, _NO_SEED, secret)
