"""Which blocks differ, and which are all zero: the byte oracles.

Both read 256 bytes between two decisions: enough for LLVM to keep whole vectors busy, little enough
that a block whose first bytes tell is left at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vmbk.kernels.intrinsics import Bytes, bytes_of, load_word, prefetch
from vmbk.kernels.jit import U8, OutU8, b1, i64, kernel, void

if TYPE_CHECKING:
    from numpy.typing import NDArray

STEP_WORDS = 32

# Bytes to ask for ahead where two contents are read side by side: alone, the processor looks too
# little ahead for both. Reading past the data is harmless.
AHEAD = 2048

_NOTHING = np.uint64(0)


@kernel(b1(Bytes, Bytes, i64, i64))
def _range_differs(a: Any, b: Any, start: int, stop: int) -> Any:
    """Whether any byte from `start` to `stop` differs."""
    at = start
    while at + 8 * STEP_WORDS <= stop:
        for i in range(STEP_WORDS >> 3):
            prefetch(a, at + 64 * i + AHEAD)
            prefetch(b, at + 64 * i + AHEAD)
        found = _NOTHING
        for i in range(STEP_WORDS):
            found |= load_word(a, at + 8 * i) ^ load_word(b, at + 8 * i)
        if found != _NOTHING:
            return True
        at += 8 * STEP_WORDS
    while at + 8 <= stop:
        if load_word(a, at) != load_word(b, at):
            return True
        at += 8
    for i in range(at, stop):  # noqa: SIM110 (Numba compiles no generator expression)
        if a[i] != b[i]:
            return True
    return False


@kernel(b1(Bytes, i64, i64))
def _range_is_zero(data: Any, start: int, stop: int) -> Any:
    """Whether all bytes from `start` to `stop` are zero."""
    at = start
    while at + 8 * STEP_WORDS <= stop:
        found = _NOTHING
        for i in range(STEP_WORDS):
            found |= load_word(data, at + 8 * i)
        if found != _NOTHING:
            return False
        at += 8 * STEP_WORDS
    while at + 8 <= stop:
        if load_word(data, at) != _NOTHING:
            return False
        at += 8
    for i in range(at, stop):  # noqa: SIM110 (Numba compiles no generator expression)
        if data[i] != 0:
            return False
    return True


@kernel(void(U8, U8, i64, OutU8))
def compare_blocks(
    a: NDArray[np.uint8], b: NDArray[np.uint8], block_size: int, differs: NDArray[np.uint8]
) -> None:
    """Flag each block in which two pieces of content differ.

    Parameters
    ----------
    a, b : (n,) uint8
        The content, of one size; the last block may be short.
    block_size : int64
        Bytes of a block, at least 1.
    differs : (ceil(n / block_size),) uint8
        Receives 1 where a block differs, 0 where it does not.
    """
    left, right = bytes_of(a), bytes_of(b)
    for block in range(differs.size):
        start = block * block_size
        stop = min(start + block_size, a.size)
        differs[block] = 1 if _range_differs(left, right, start, stop) else 0


@kernel(void(U8, i64, OutU8))
def zero_blocks(data: NDArray[np.uint8], block_size: int, is_zero: NDArray[np.uint8]) -> None:
    """Flag each block that holds nothing but zeros.

    Parameters
    ----------
    data : (n,) uint8
        The content; the last block may be short.
    block_size : int64
        Bytes of a block, at least 1.
    is_zero : (ceil(n / block_size),) uint8
        Receives 1 where a block is all zero, 0 where it is not.
    """
    content = bytes_of(data)
    for block in range(is_zero.size):
        start = block * block_size
        stop = min(start + block_size, data.size)
        is_zero[block] = 1 if _range_is_zero(content, start, stop) else 0
