"""Requests and whether they may be: the columns of a trace, looked at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmbk.kernels.jit import I64, U8, U32, OutI64, OutU8, i64, kernel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SOUND, OPERATION, FLAGS, ORDER, VOLUME, PLACE = 0, 1, 2, 3, 4, 5
"""What `first_unsound` finds wrong with a request: nothing, or one of these."""

MISPLACED, LATE = 1, 2
"""What `misplaced` finds wrong with a request."""


@kernel(i64(I64, U8, U32, I64, I64, U8, U32, I64, i64, i64, OutI64))
def first_unsound(
    time_ns: NDArray[np.int64],
    op: NDArray[np.uint8],
    volume: NDArray[np.uint32],
    offset: NDArray[np.int64],
    length: NDArray[np.int64],
    flags: NDArray[np.uint8],
    ids: NDArray[np.uint32],
    sizes: NDArray[np.int64],
    most_op: int,
    known_flags: int,
    found: NDArray[np.int64],
) -> int:
    """Find the first request that no trace may have.

    Parameters
    ----------
    time_ns, op, volume, offset, length, flags : ndarray, shape (n,)
        The columns; times count from 0 and may not fall.
    ids, sizes : ndarray, shape (v,)
        Volumes in order of id, and their bytes.
    most_op : int
        The highest code of an operation.
    known_flags : int
        All flag bits that have a meaning.
    found : ndarray of int64, shape (2,), out
        Row, and place in ``ids`` of its volume if that is known.

    Returns
    -------
    int
        What is wrong with it; `SOUND` if all are as they should be.
    """
    before, place = i64(0), 0
    for row in range(len(op)):
        why = SOUND
        if op[row] > most_op:
            why = OPERATION
        elif flags[row] & ~known_flags:
            why = FLAGS
        elif time_ns[row] < before:
            why = ORDER
        else:
            # Most often it is the volume of the row before, or ids are places.
            id = volume[row]
            if place >= len(ids) or ids[place] != id:
                place = i64(id)
                if place >= len(ids) or ids[place] != id:
                    low, high = 0, len(ids)
                    while low < high:
                        middle = (low + high) >> 1
                        if ids[middle] < id:
                            low = middle + 1
                        else:
                            high = middle
                    place = low
            if place >= len(ids) or ids[place] != id:
                why = VOLUME
            else:
                at, count, size = offset[row], length[row], sizes[place]
                if at < 0 or count < 0 or at > size or count > size - at:
                    why = PLACE
        if why != SOUND:
            found[0], found[1] = row, place
            return why
        before = time_ns[row]
    return SOUND


@kernel(i64(I64, I64, I64, i64, i64, OutU8))
def misplaced(
    time_ns: NDArray[np.int64],
    offset: NDArray[np.int64],
    length: NDArray[np.int64],
    most_bytes: int,
    most_ns: int,
    why: NDArray[np.uint8],
) -> int:
    """Find the requests that no volume can hold, or whose time is out of range.

    Parameters
    ----------
    time_ns, offset, length : ndarray, shape (n,)
    most_bytes : int
        Bytes of the largest volume.
    most_ns : int
        ns that a time may be away from 0, either way.
    why : ndarray of uint8, shape (n,), out
        0, `MISPLACED` or `LATE`; the first that holds.

    Returns
    -------
    int
        How many there are.
    """
    count = 0
    for row in range(len(why)):
        at, size = offset[row], length[row]
        verdict = 0
        if at < 0 or size < 0 or at > most_bytes or size > most_bytes - at:
            verdict = MISPLACED
        elif time_ns[row] > most_ns or time_ns[row] < -most_ns:
            verdict = LATE
        why[row] = verdict
        count += verdict != 0
    return count


@kernel(i64(U32, I64, I64, OutI64))
def volume_ends(
    volume: NDArray[np.uint32],
    offset: NDArray[np.int64],
    length: NDArray[np.int64],
    ends: NDArray[np.int64],
) -> int:
    """Raise each volume's end to that of its last request.

    Parameters
    ----------
    volume, offset, length : ndarray, shape (n,)
        Volumes as places in ``ends``.
    ends : ndarray of int64, shape (v,), in and out
        Bytes.

    Returns
    -------
    int
        Rows done; fewer than all where a volume has no place.
    """
    for row in range(len(volume)):
        if volume[row] >= len(ends):
            return row
        end = offset[row] + length[row]
        if end > ends[volume[row]]:
            ends[volume[row]] = end
    return len(volume)
