"""Items that wait for their turn: a binary heap whose items can be moved and taken out.

All of it lies in one array `s`: a heap of items from `heap` on, an item's place in it (or -1) from
`where` on, keys and ranks of items from `key` and `rank` on. First goes the item with the least
key, and among equals the one with the least rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmbk.kernels.jit import I64, OutI64, b1, i64, kernel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]


@kernel(b1(I64, i64, i64, i64, i64))
def _before(s: Ints, key: int, rank: int, a: int, b: int) -> Any:
    """Whether item a goes before item b."""
    if s[key + a] != s[key + b]:
        return s[key + a] < s[key + b]
    return s[rank + a] < s[rank + b]


@kernel(i64(OutI64, i64, i64, i64, i64, i64, i64))
def _settle(s: Ints, heap: int, where: int, key: int, rank: int, size: int, item: int) -> int:
    """Move an item, whose key or place is new, to where it belongs; the heap's size."""
    at = s[where + item]
    while at > 0:  # towards the front
        parent = (at - 1) >> 1
        other = s[heap + parent]
        if not _before(s, key, rank, item, other):
            break
        s[heap + at] = other
        s[where + other] = at
        at = parent
    while True:  # towards the back
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and _before(s, key, rank, s[heap + child + 1], s[heap + child]):
            child += 1
        other = s[heap + child]
        if not _before(s, key, rank, other, item):
            break
        s[heap + at] = other
        s[where + other] = at
        at = child
    s[heap + at] = item
    s[where + item] = at
    return size


@kernel(i64(OutI64, i64, i64, i64, i64, i64, i64))
def _put(s: Ints, heap: int, where: int, key: int, rank: int, size: int, item: int) -> int:
    """Let an item wait, or move one that waits already to its new key; the new size."""
    if s[where + item] < 0:
        s[where + item] = size
        s[heap + size] = item
        size += 1
    return _settle(s, heap, where, key, rank, size, item)


@kernel(i64(OutI64, i64, i64, i64, i64, i64, i64))
def _drop(s: Ints, heap: int, where: int, key: int, rank: int, size: int, item: int) -> int:
    """Take an item out, wherever it is; the new size."""
    at = s[where + item]
    if at < 0:
        return size
    s[where + item] = -1
    size -= 1
    if at < size:
        last = s[heap + size]
        s[where + last] = at
        s[heap + at] = last
        _settle(s, heap, where, key, rank, size, last)
    return size
