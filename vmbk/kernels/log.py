"""Walking a dm-log-writes log: a chain of entries, each of which says where the next one is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmbk.kernels.jit import I64, U8, OutI64, OutU8, i64, kernel, void

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ENTRY_BYTES = 32  # sector, nr_sectors, flags, data_len: four little-endian 64-bit numbers
DISCARD, MARK = 4, 8

COMPLETE, TRUNCATED, TOO_LARGE, BAD_MARK = 0, 1, 2, 3
"""How a walk ended; unless COMPLETE, the entry after those counted is to blame."""


@kernel(i64(U8, i64))
def number_at(log: NDArray[np.uint8], at: int) -> int:
    """The little-endian 64-bit number at a byte, -1 where it does not fit in 62 bits."""
    value = 0
    for i in range(8):
        value |= i64(log[at + i]) << (8 * i)
    return value if 0 <= value < 1 << 62 else -1


@kernel(i64(U8, i64, i64, OutI64, OutI64, OutI64, OutI64, OutI64, OutI64, OutI64))
def walk_log(
    log: NDArray[np.uint8],
    sector_size: int,
    n_entries: int,
    offset: NDArray[np.int64],
    length: NDArray[np.int64],
    flags: NDArray[np.int64],
    data_start: NDArray[np.int64],
    data_length: NDArray[np.int64],
    end: NDArray[np.int64],
    status: NDArray[np.int64],
) -> int:
    """Read the entries of a log, of which the first stands one sector after the start.

    Parameters
    ----------
    log : ndarray of uint8
        The whole log.
    sector_size : int
        Bytes, at least 512; the unit of every position and size in the log.
    n_entries : int
        How many to read at most.
    offset, length : ndarray of int64, shape (n_entries,), out
        Bytes of the disk that an entry is about.
    flags : ndarray of int64, shape (n_entries,), out
    data_start, data_length : ndarray of int64, shape (n_entries,), out
        Bytes of the log that hold what was written, or a mark's label without its NUL.
    end : ndarray of int64, shape (n_entries,), out
        Byte of the log at which an entry ends.
    status : ndarray of int64, shape (1,), out
        COMPLETE, TRUNCATED (the log ends within an entry), TOO_LARGE (a number over 62 bits) or
        BAD_MARK (a label longer than its sector).

    Returns
    -------
    int
        How many entries were read whole.
    """
    at, size = sector_size, len(log)
    status[0] = COMPLETE
    for i in range(n_entries):
        if at + sector_size > size:
            status[0] = TRUNCATED
            return i
        sector, sectors = number_at(log, at), number_at(log, at + 8)
        flag, inline = number_at(log, at + 16), number_at(log, at + 24)
        limit = (1 << 62) // sector_size
        if sector < 0 or sectors < 0 or flag < 0 or inline < 0 or sector > limit - sectors:
            status[0] = TOO_LARGE
            return i
        count = sectors * sector_size
        stored = 0 if flag & DISCARD else count
        if stored > size - at - sector_size:
            status[0] = TRUNCATED
            return i
        offset[i], length[i], flags[i] = sector * sector_size, count, flag
        data_start[i], data_length[i] = at + sector_size, stored
        if flag & MARK:
            # The label stands in the entry's own sector.
            if inline > sector_size - ENTRY_BYTES:
                status[0] = BAD_MARK
                return i
            label = 0
            while label < inline and log[at + ENTRY_BYTES + label] != 0:
                label += 1
            data_start[i], data_length[i] = at + ENTRY_BYTES, label
        at += sector_size + stored
        end[i] = at
    return n_entries


@kernel(void(U8, I64, I64, OutU8))
def gather_ranges(
    source: NDArray[np.uint8],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    out: NDArray[np.uint8],
) -> None:
    """Copy ranges of bytes one after another.

    Parameters
    ----------
    source : ndarray of uint8
    starts, lengths : ndarray of int64, shape (n,)
        Ranges within ``source``.
    out : ndarray of uint8, shape (sum of lengths,), out
    """
    at = 0
    for i in range(len(starts)):
        start, length = starts[i], lengths[i]
        out[at : at + length] = source[start : start + length]
        at += length
