"""Leaves: what is kept about blocks, a few blocks together, found by a hash table.

A leaf is made when one of its blocks is first touched, so that memory follows what was touched and
neither the trace nor the volumes' sizes. Kernels go over requests in three steps, some hundred
pieces at a time: cut them into pieces that lie in one leaf each, find the leaves, then do the work.
Each step asks the memory for what the next one needs: one after another, two misses for every piece
would be all that a processor does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vmbk.kernels.intrinsics import Bytes, bytes_of, load_word, prefetch
from vmbk.kernels.jit import I64, U8, U32, OutI64, i64, kernel, void

if TYPE_CHECKING:
    from numpy.typing import NDArray

PIECES = 256
"""Pieces that are worked on together."""

ROW, BLOCK, SLOTS = 0, 1, 2
"""Places of a state: the row and the block to go on with (-1: the row's first), leaves in use."""

_GOLDEN = np.uint64(0x9E37_79B9_7F4A_7C15)


@kernel(
    i64(
        U8, U32, I64, I64, i64, i64, i64, I64, I64,
        OutI64, OutI64, OutI64, OutI64, OutI64,
    )
)  # fmt: skip
def cut_requests(
    op: NDArray[np.uint8],
    volume: NDArray[np.uint32],
    offset: NDArray[np.int64],
    length: NDArray[np.int64],
    op_mask: int,
    shift: int,
    leaf_bits: int,
    bases: NDArray[np.int64],
    table: NDArray[np.int64],
    rows: NDArray[np.int64],
    keys: NDArray[np.int64],
    firsts: NDArray[np.int64],
    counts: NDArray[np.int64],
    state: NDArray[np.int64],
) -> int:
    """Cut requests into ranges of blocks within a leaf each.

    Parameters
    ----------
    op, volume, offset, length : (n,)
        The requests; ``volume`` counts volumes from 0.
    op_mask : int64
        Bit c is set where requests of operation c are wanted.
    shift, leaf_bits : int64
        log2 of the bytes of a block, and of the blocks of a leaf.
    bases : (volumes,) int64
        Number of each volume's first leaf among all leaves.
    table : (2 * 2**m,) int64
        Where the leaves will be looked for.
    rows, keys, firsts, counts : (pieces,) int64
        Receive the row of each piece, the number of its leaf, its first block within that, and how
        many blocks it has.
    state : (at least 2,) int64
        ``ROW`` and ``BLOCK`` say where to begin, and then where to go on.

    Returns
    -------
    int64
        How many pieces there are: 0 only when all requests are cut.
    """
    entries, mask = bytes_of(table), (table.size >> 1) - 1
    inside = (1 << leaf_bits) - 1
    n, resume = 0, state[BLOCK]
    row = state[ROW]
    while row < op.size and n < rows.size:
        size, base = length[row], bases[volume[row]]
        wanted = np.int64(size > 0) & (op_mask >> op[row])
        block, last = offset[row] >> shift, (offset[row] + size - 1) >> shift
        leaf = block >> leaf_bits
        if leaf == last >> leaf_bits and resume < 0:
            # Most requests, and no branch for those that are not wanted.
            rows[n], keys[n] = row, base + leaf
            firsts[n], counts[n] = block & inside, last - block + 1
            prefetch(entries, 16 * ((base + leaf) & mask))
            n += wanted & 1
        elif wanted & 1:
            block = resume if resume >= 0 else block
            resume = np.int64(-1)
            while block <= last and n < rows.size:
                stop = min(last, block | inside) + 1
                rows[n], keys[n] = row, base + (block >> leaf_bits)
                firsts[n], counts[n] = block & inside, stop - block
                prefetch(entries, 16 * (keys[n] & mask))
                n += 1
                block = stop
            if block <= last:
                resume = block
                break
        row += 1
    state[ROW], state[BLOCK] = row, resume
    return n


@kernel(i64(I64, i64, OutI64, OutI64, OutI64, i64))
def find_leaves(
    keys: NDArray[np.int64],
    n: int,
    table: NDArray[np.int64],
    leaf_keys: NDArray[np.int64],
    slots: NDArray[np.int64],
    used: int,
) -> int:
    """Find leaves by their numbers, and make those that are missing.

    Parameters
    ----------
    keys : (at least n,) int64
        Numbers of the leaves that are wanted.
    n : int64
    table : (2 * 2**m,) int64
        Hash table of pairs of number and slot, -1 where empty; never more than half full.
    leaf_keys : (room,) int64
        Number of the leaf in each slot; there is room for n more.
    slots : (at least n,) int64
        Receives the slot of each.
    used : int64
        Slots in use.

    Returns
    -------
    int64
        Slots in use now; new leaves have the next ones.
    """
    entries, mask = bytes_of(table), (table.size >> 1) - 1
    for i in range(n):
        key = keys[i]
        at = key & mask
        found = np.int64(load_word(entries, 16 * at))
        if found != key and found != -1:
            # Differs between numbers that begin at the same place, and visits every place.
            step = np.int64((np.uint64(key) * _GOLDEN) >> np.uint64(33)) | 1
            while found != key and found != -1:
                at = (at + step) & mask
                found = np.int64(load_word(entries, 16 * at))
        if found == -1:
            table[2 * at], table[2 * at + 1] = key, used
            leaf_keys[used] = key
            used += 1
        slots[i] = np.int64(load_word(entries, 16 * at + 8))
    return used


@kernel(void(I64, I64, I64, i64, Bytes, i64, i64))
def _prefetch_leaves(
    slots: NDArray[np.int64],
    firsts: NDArray[np.int64],
    counts: NDArray[np.int64],
    n: int,
    leaves: Any,
    words: int,
    leaf_bits: int,
) -> None:
    """Ask for the two ends of what pieces touch in their leaves, of so many words each."""
    for i in range(n):
        at = slots[i] * words
        prefetch(leaves, (at + (firsts[i] * words >> leaf_bits)) << 3)
        prefetch(leaves, (at + ((firsts[i] + counts[i]) * words - 1 >> leaf_bits)) << 3)
