"""The log of Linux's dm-log-writes target and of QEMU's blklogwrites driver.

Layout, all numbers little-endian, positions and sizes in the log's own sectors:

- sector 0, the superblock: u64 magic, u64 version, u64 number of entries, u32 sector size in bytes;
- from sector 1 the entries, each one sector (u64 sector, u64 sectors, u64 flags, u64 data length)
  followed by the sectors that were written, none for a discard. A mark's label stands in the
  entry's sector, right after the four numbers, and has the data length.

Source: Linux, ``drivers/md/dm-log-writes.c`` and ``Documentation/admin-guide/device-mapper/
log-writes.rst``; QEMU, ``block/blklogwrites.c``.

QEMU updates the number of entries at every flush and every so many entries only, so that a log cut
short holds entries which the superblock does not count. They are not read: nothing tells a whole
one from one whose data never arrived.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vmbk.errors import InputError, OutOfRangeError, StorageError, TraceFormatError
from vmbk.trace.schema import OP_NAMES, Flag, Op, Volume, is_sector_size
from vmbk.trace.table import Trace
from vmbk.units import MIB, format_size

NAME: Final = "dm-log-writes"
MAGIC: Final = 0x6A736677736872
VERSION: Final = 1
FLUSH, FUA, DISCARD, MARK, METADATA = 1, 2, 4, 8, 16
_KNOWN_FLAGS: Final = FLUSH | FUA | DISCARD | MARK | METADATA


@dataclass(frozen=True)
class LogRows:
    """The requests of a log, whose payloads still lie in it.

    Parameters
    ----------
    log : ndarray of uint8
        The log, memory-mapped.
    sector_size : int
        Bytes.
    op : ndarray of int8, shape (n,)
    offset, length : ndarray of int64, shape (n,)
        Bytes of the disk.
    flags : ndarray of uint8, shape (n,)
    data_start, data_length : ndarray of int64, shape (n,)
        Where in the log the payload lies; used for writes and marks only.
    end : ndarray of int64, shape (n,)
        Byte of the log by which the request had been recorded.
    skipped : int
        Entries that say nothing.
    """

    log: NDArray[np.uint8]
    sector_size: int
    op: NDArray[np.int8]
    offset: NDArray[np.int64]
    length: NDArray[np.int64]
    flags: NDArray[np.uint8]
    data_start: NDArray[np.int64]
    data_length: NDArray[np.int64]
    end: NDArray[np.int64]
    skipped: int


def detect(head: bytes) -> bool:
    """Whether a file that begins so is such a log, or would be one had it not been cut short."""
    return head[:8] == MAGIC.to_bytes(8, "little") or (len(head) >= 512 and not any(head))


def read(path: Path, volume_size: int | None = None) -> tuple[Trace, int]:
    """Read a log.

    Parameters
    ----------
    path : Path
    volume_size : int, optional
        Bytes; the end of the last request rounded up to 1 MiB where absent.

    Returns
    -------
    Trace, int
        The trace, which has no times, and how many entries say nothing.

    Raises
    ------
    TraceFormatError
        If the log is damaged, truncated, or was never begun.
    OutOfRangeError
        If a request reaches past ``volume_size``.
    """
    rows = read_rows(path)
    if volume_size is None:
        last = int((rows.offset + rows.length).max(initial=0))
        volume_size = -(-last // MIB) * MIB
    return to_trace(rows, Volume(0, "disk", volume_size, rows.sector_size)), rows.skipped


def read_rows(path: Path, first: int = 0, size: int | None = None) -> LogRows:
    """Read the entries of a log and turn them into requests, leaving the payloads where they are.

    A flush with data becomes a flush and then a write, for that is the order it promises.

    Parameters
    ----------
    path : Path
    first, size : int
        The file's byte at which the log begins, and how many it takes; all of them by default.

    Raises
    ------
    TraceFormatError
        As for `read`.
    """
    log = _map(path)[first:]
    log = log if size is None else log[:size]
    sector_size, n_entries = _superblock(log)
    from vmbk.kernels.log import BAD_MARK, COMPLETE, TOO_LARGE, TRUNCATED, walk_log

    room = len(log) // sector_size - 1  # every entry takes a sector at least
    n_whole = max(min(n_entries, room), 0)
    offset, length, flags, start, stored, end = (np.empty(n_whole, np.int64) for _ in range(6))
    status = np.zeros(1, np.int64)
    count = walk_log(log, sector_size, n_whole, offset, length, flags, start, stored, end, status)
    why = {
        COMPLETE: "",
        TRUNCATED: "the file ends within it",
        TOO_LARGE: "its numbers are impossible",
        BAD_MARK: "its label is longer than a sector",
    }[int(status[0])]
    if count < n_entries:
        raise TraceFormatError(
            f"the log's superblock counts {n_entries} entries, {count} can be read: entry {count} "
            f"is cut off or damaged ({why or 'the file ends before it'}; {len(log)} bytes)",
            hint="copy the log again after the machine that writes it has stopped",
        )
    strange = (flags & ~np.int64(_KNOWN_FLAGS)) != 0
    if strange.any():
        entry = int(np.argmax(strange))
        raise TraceFormatError(f"entry {entry} of the log has unknown flags {flags[entry]:#x}")
    return _expand(log, sector_size, offset, length, flags, start, stored, end)


def _expand(
    log: NDArray[np.uint8],
    sector_size: int,
    offset: NDArray[np.int64],
    length: NDArray[np.int64],
    entry_flags: NDArray[np.int64],
    start: NDArray[np.int64],
    stored: NDArray[np.int64],
    end: NDArray[np.int64],
) -> LogRows:
    """Requests of entries: none where an entry says nothing, two for a flush with data."""
    mark = (entry_flags & MARK) != 0
    discard = ~mark & ((entry_flags & DISCARD) != 0)
    write = ~mark & ~discard & (length > 0)
    flush = ~mark & ((entry_flags & FLUSH) != 0)
    main = mark | (discard & (length > 0)) | write
    entry = np.repeat(np.arange(len(offset)), flush.astype(np.int64) + main)
    # Of an entry's two requests the flush is the first.
    first = np.ones(len(entry), np.bool_)
    first[1:] = entry[1:] != entry[:-1]
    is_flush = first & flush[entry]
    kind = np.select([mark, discard], [Op.MARK, Op.DISCARD], Op.WRITE).astype(np.int8)
    op = np.where(is_flush, np.int8(Op.FLUSH), kind[entry])
    nowhere = is_flush | (op == Op.MARK)
    has_flags = (op == Op.WRITE) | (op == Op.DISCARD)
    meaning = np.where(entry_flags & FUA, int(Flag.FUA), 0) | np.where(
        entry_flags & METADATA, int(Flag.META), 0
    )
    return LogRows(
        log=log,
        sector_size=sector_size,
        op=op,
        offset=np.where(nowhere, 0, offset[entry]),
        length=np.where(nowhere, 0, length[entry]),
        flags=np.where(has_flags, meaning[entry], 0).astype(np.uint8),
        data_start=start[entry],
        data_length=stored[entry],
        end=end[entry],
        skipped=int((~flush & ~main).sum()),
    )


def to_trace(
    rows: LogRows,
    volume: Volume,
    *,
    time_ns: NDArray[np.int64] | None = None,
    source_format: str = NAME,
    clock: str = "none",
    provenance: dict[str, Any] | None = None,
) -> Trace:
    """The trace of a log's requests, with their payloads.

    Parameters
    ----------
    rows : LogRows
    volume : Volume
        The disk that was logged.
    time_ns : ndarray of int64, shape (n,), optional
    source_format, clock, provenance
        As in `vmbk.trace.schema.Metadata`.

    Raises
    ------
    TraceFormatError
        If a mark's label is not UTF-8.
    OutOfRangeError
        If a request reaches past the volume.
    InputError
        If the payloads do not fit in this machine's memory.
    """
    from blake3 import blake3

    count = len(rows.op)
    outside = rows.offset + rows.length > volume.size
    if outside.any():
        row = int(np.argmax(outside))
        raise OutOfRangeError(
            f"request {row} of the log covers {rows.length[row]} bytes at offset "
            f"{rows.offset[row]}, outside a volume of {volume.size} bytes"
        )
    columns = {
        "time_ns": np.zeros(count, np.int64) if time_ns is None else time_ns,
        "op": pa.DictionaryArray.from_arrays(pa.array(rows.op), pa.array(OP_NAMES)),
        "volume": np.full(count, volume.id, np.uint32),
        "offset": rows.offset,
        "length": rows.length,
        "flags": rows.flags,
        "payload": _payload_column(rows),
    }
    return Trace.from_arrow(
        pa.table(columns),
        volumes=[volume],
        source_format=source_format,
        source_digest=blake3(rows.log.data, max_threads=blake3.AUTO).hexdigest(),
        clock=clock,
        provenance=provenance,
    )


def _payload_column(rows: LogRows) -> Any:
    from vmbk.kernels.log import gather_ranges

    valid = (rows.op == Op.WRITE) | (rows.op == Op.MARK)
    lengths = np.where(valid, rows.data_length, 0)
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    total, memory = int(offsets[-1]), _memory()
    if total > memory:
        raise InputError(
            f"the log's payloads of {format_size(total)} do not fit in this machine's memory of "
            f"{format_size(memory)}"
        )
    data = np.empty(total, np.uint8)
    gather_ranges(rows.log, rows.data_start, lengths, data)
    bitmap = np.packbits(valid, bitorder="little")
    buffers = [pa.py_buffer(bitmap), pa.py_buffer(offsets), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.large_binary(), len(valid), buffers)


def _superblock(log: NDArray[np.uint8]) -> tuple[int, int]:
    """Sector size in bytes and number of entries."""
    head = log[:512].tobytes()
    if len(head) < 512:
        raise TraceFormatError(
            f"a file of {len(head)} bytes is no log: its superblock alone takes 512"
        )
    if not any(head):
        raise TraceFormatError(
            "the log's superblock is all zero: the capture was killed before its first flush",
            hint="let the guest flush once, or shut it down, before the log is taken",
        )
    magic, version, n_entries = (int.from_bytes(head[i : i + 8], "little") for i in (0, 8, 16))
    sector_size = int.from_bytes(head[24:28], "little")
    if magic != MAGIC:
        raise TraceFormatError(f"the log's magic number is {magic:#x}, not {MAGIC:#x}")
    if version != VERSION:
        raise TraceFormatError(f"the log has version {version}, only {VERSION} is known")
    if not is_sector_size(sector_size):
        raise TraceFormatError(
            f"the log's sector size {sector_size} is not a power of two from 512 to 65536"
        )
    return sector_size, n_entries


def _map(path: Path) -> NDArray[np.uint8]:
    try:
        with path.open("rb") as file:
            if file.seek(0, 2) == 0:
                return np.zeros(0, np.uint8)  # an empty file cannot be mapped
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except OSError as error:
        raise StorageError(f"cannot read {str(path)!r}: {error.strerror}") from error


def _memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
