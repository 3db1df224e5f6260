"""Finding the records of binary traces: each says how long it is, so where the next one begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmbk.kernels.jit import I64, U8, U32, OutI64, OutU8, b1, i64, kernel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TAGGED_BYTES = 48
"""Bytes of a record of blktrace, without what follows it."""

_TAIL = 46  # where a record of blktrace says, in 16 bits, how many bytes follow it


@kernel(b1(U8, i64, U8))
def has_tag(data: NDArray[np.uint8], at: int, tag: NDArray[np.uint8]) -> bool:
    """Whether four bytes that begin at ``at`` are those of the tag."""
    same = True
    for i in range(4):
        same = same and data[at + i] == tag[i]
    return bool(same)


@kernel(i64(U8, U8, b1, OutI64, OutI64))
def walk_tagged(
    data: NDArray[np.uint8],
    tag: NDArray[np.uint8],
    big: bool,
    starts: NDArray[np.int64],
    state: NDArray[np.int64],
) -> int:
    """Find the whole records of blktrace in a piece of a file.

    Where a record should begin and none does, bytes are passed over up to the next tag.

    Parameters
    ----------
    data : ndarray of uint8
    tag : ndarray of uint8, shape (4,)
        What every record begins with.
    big : bool
        Whether numbers are big-endian.
    starts : ndarray of int64, out
        Where a record begins, or ``-1 - at`` where bytes that are no record begin. Room for twice
        the records that fit in the data, and two more, is enough.
    state : ndarray of int64, shape (2,), in and out
        Bytes done with (out); 1 while bytes are being passed over, of which the beginning was told
        already, else 0 (in and out).

    Returns
    -------
    int
        How many of ``starts`` were written.
    """
    at, found, size = 0, 0, len(data)
    lost = state[1]
    while at + 4 <= size:
        if has_tag(data, at, tag):
            lost = 0
            if at + TAGGED_BYTES > size:
                break
            first, second = i64(data[at + _TAIL]), i64(data[at + _TAIL + 1])
            tail = first << 8 | second if big else second << 8 | first
            if at + TAGGED_BYTES + tail > size:
                break
            starts[found] = at
            found += 1
            at += TAGGED_BYTES + tail
        else:
            if lost == 0:
                starts[found] = -1 - at
                found += 1
                lost = 1
            at += 1
    state[0], state[1] = at, lost
    return found


@kernel(i64(U8, i64, i64, OutI64, OutI64))
def walk_sized(
    data: NDArray[np.uint8],
    least: int,
    most: int,
    starts: NDArray[np.int64],
    state: NDArray[np.int64],
) -> int:
    """Find the whole records that begin with their size in a piece of a file.

    Parameters
    ----------
    data : ndarray of uint8
    least, most : int
        Bytes that a record may have, the four of its big-endian size among them.
    starts : ndarray of int64, out
        Where a record begins; room for all that fit in the data is needed.
    state : ndarray of int64, shape (2,), out
        Bytes done with; 1 if what follows them has a size that no record has, else 0.

    Returns
    -------
    int
        How many of ``starts`` were written.
    """
    at, found, end = 0, 0, len(data)
    state[1] = 0
    while at + 4 <= end:
        size = 0
        for i in range(4):
            size = size << 8 | i64(data[at + i])
        if size < least or size > most or size % 4 != 0:
            state[1] = 1
            break
        if at + size > end:
            break
        starts[found] = at
        found += 1
        at += size
    state[0] = at
    return found


@kernel(i64(U32, I64, U8, i64, i64, i64, OutI64, OutI64, OutU8, OutI64, OutI64, OutI64))
def vscsi_requests(
    words: NDArray[np.uint32],
    layout: NDArray[np.int64],
    codes: NDArray[np.uint8],
    version: int,
    most_sector: int,
    most_time: int,
    row: NDArray[np.int64],
    time_ns: NDArray[np.int64],
    op: NDArray[np.uint8],
    offset: NDArray[np.int64],
    length: NDArray[np.int64],
    bad: NDArray[np.int64],
) -> int:
    """Take records of vscsiStats apart.

    Parameters
    ----------
    words : ndarray of uint32
        The records, little-endian numbers of 32 bits.
    layout : ndarray of int64, shape (5,)
        Words of a record; which of them holds the SCSI code (and above it the version), the bytes,
        the lower half of the sector, the lower half of the time.
    codes : ndarray of uint8, shape (256,)
        Operation of each SCSI code, with bit 7 set if it has no place on the disk; 255 for those
        that are no request.
    version : int
        The high byte of every record's version.
    most_sector, most_time : int
        Sectors of 512 bytes, µs; a record beyond is bad.
    row, time_ns, op, offset, length : ndarray, out
        The requests: number of the record, ns, operation, bytes.
    bad : ndarray of int64, out
        First how many there are, then the numbers of the records that are not what they should be;
        room for one more than there are records, as in the others for as many.

    Returns
    -------
    int
        Requests written.
    """
    width, at_code, at_length, at_sector, at_time = layout
    kept = 0
    bad[0] = 0
    for record in range(len(words) // width):
        base = record * width
        word = i64(words[base + at_code])
        code = word & 0xFFFF
        high, low = i64(words[base + at_sector + 1]), i64(words[base + at_sector])
        late, early = i64(words[base + at_time + 1]), i64(words[base + at_time])
        # Halves that would fill the sign are beyond any limit.
        fits = high < 1 << 31 and late < 1 << 31
        sector, time = high << 32 | low, late << 32 | early
        fits = fits and sector <= most_sector and time <= most_time
        if not fits or word >> 24 != version or code > 255:
            bad[0] += 1
            bad[bad[0]] = record
            continue
        kind = codes[code]
        if kind == 255:
            continue
        placed = i64(kind < 128)
        row[kept] = record
        time_ns[kept] = time * 1000
        op[kept] = kind & 127
        offset[kept] = placed * sector * 512
        length[kept] = placed * i64(words[base + at_length])
        kept += 1
    return kept
