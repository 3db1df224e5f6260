"""XXH3-64 of blocks: the digest by which blocks are told apart. The seed is 0.

Other seeds and 128 bits are in `vmbk.kernels.seeded`, so that a backup need not compile them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vmbk.kernels.intrinsics import bytes_of
from vmbk.kernels.jit import U8, OutU64, i64, kernel, u64, void
from vmbk.kernels.xxh3 import SECRET, _digest_64

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NO_SEED = np.uint64(0)


@kernel(u64(U8))
def xxh3_64(data: NDArray[np.uint8]) -> int:
    """XXH3-64 with seed 0.

    Parameters
    ----------
    data : (n,) uint8
        Any number of bytes, none included, at any alignment.

    Returns
    -------
    uint64
        The digest.
    """
    digest: int = _digest_64(bytes_of(data), 0, data.size, _NO_SEED, bytes_of(SECRET))
    return digest


@kernel(void(U8, i64, OutU64))
def xxh3_64_blocks(data: NDArray[np.uint8], block_size: int, out: NDArray[np.uint64]) -> None:
    """XXH3-64 of each block, with seed 0.

    Parameters
    ----------
    data : (n,) uint8
        The bytes; the last block may be short.
    block_size : int64
        Bytes of a block, at least 1.
    out : (ceil(n / block_size),) uint64
        Receives one digest per block.
    """
    content, secret = bytes_of(data), bytes_of(SECRET)
    for block in range(out.size):
        start = block * block_size
        length = min(block_size, data.size - start)
        out[block] = _digest_64(content, start, length, _NO_SEED, secret)
