"""HP's SRT traces, version 1.3: disk I/O of HP-UX machines, such as Cello's.

A header of text that ends in a form feed (0x0C), then records of big-endian u32: size of the record
in bytes, version and type, time in s and µs, start and stop, bytes, block, device, driver,
cylinder, flags (bit 0: read), information, length of the queue. A block is 256 bytes of the disk
itself; the disk is the second byte of the device, and a volume. Records too short to hold all of
these are no requests.

Source: Ruemmler, Wilkes: UNIX Disk Access Patterns, USENIX Winter 1993 (the traces).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vmbk.errors import TraceFormatError
from vmbk.trace.formats.reading import Batch, Tally, volumes
from vmbk.trace.formats.source import RECORDS, Source
from vmbk.trace.schema import Op
from vmbk.units import quoted

NAME: Final = "srt"
DOC: Final = "HP SRT 1.3"
BLOCK: Final = 256
"""Bytes; the unit of places."""

FIELDS: Final = ("size", "kind", "seconds", "micros", "start", "stop", "bytes", "block", "device",
                 "driver", "cylinder", "flags", "information", "queue")  # fmt: skip
_LEAST, _MOST = 8, 1 << 16  # bytes of a record
_HEADER: Final = 1 << 15  # bytes that the text may have
_TEXT: Final = bytes(range(32, 127)) + b"\t\r\n"


def detect(head: bytes) -> bool:
    """Whether a file that begins so is one."""
    text, end, rest = head[:_HEADER].partition(b"\f")
    rest = head[len(text) + 1 :]
    if not end or not text.strip() or text.translate(None, _TEXT):
        return False
    starts, broken = _starts(np.frombuffer(rest, np.uint8))[::2]
    if broken or not len(starts):
        return False
    rows, _ = _fields(np.frombuffer(rest, np.uint8), starts)
    return bool((rows["micros"] < 10**6).all())


def read(source: Source, tally: Tally, size: int = RECORDS) -> Iterator[Batch]:
    """Requests of a file.

    Raises
    ------
    TraceFormatError
        If the file has no header of text.
    """
    rest, first, text = b"", 1, True
    for chunk in source.chunks(size):
        rest += chunk
        if text:
            end = rest.find(b"\f")
            if end < 0 and len(rest) <= _HEADER:
                continue
            if not 0 <= end < _HEADER:
                break
            rest, text = rest[end + 1 :], False
        data = np.frombuffer(rest, np.uint8)
        starts, done, broken = _starts(data)
        yield _requests(data, starts, first, tally)
        first += len(starts)
        rest = rest[done:]
        if broken:
            break
    if text:
        raise TraceFormatError(f"{quoted(source.path.name)} has no header that ends in a form feed")
    if rest:
        why = "a size that no record has" if len(rest) >= 4 else "a cut-off record"
        whole = int.from_bytes(rest[:4], "big")
        if _LEAST <= whole <= _MOST and whole % 4 == 0:
            why = "a cut-off record"
        tally.refuse(first, rest[:56].hex(" ", 4), why)


def _starts(data: NDArray[np.uint8]) -> tuple[NDArray[np.int64], int, bool]:
    """Where whole records begin, how many bytes they take, and whether what follows is none."""
    from vmbk.kernels.records import walk_sized

    starts, state = np.empty(len(data) // _LEAST + 1, np.int64), np.zeros(2, np.int64)
    count = walk_sized(data, _LEAST, _MOST, starts, state)
    return starts[:count], int(state[0]), bool(state[1])


def _fields(
    data: NDArray[np.uint8], starts: NDArray[np.int64]
) -> tuple[dict[str, NDArray[np.int64]], NDArray[np.bool_]]:
    """The numbers of the records that have all of them, and which those are."""
    width = 4 * len(FIELDS)
    sizes = _numbers(data, starts, 4)[:, 0]
    full = sizes >= width
    numbers = _numbers(data, starts[full], width)
    return {name: numbers[:, i] for i, name in enumerate(FIELDS)}, full


def _numbers(data: NDArray[np.uint8], starts: NDArray[np.int64], width: int) -> Any:
    if not len(starts):
        return np.zeros((0, width // 4), np.int64)
    rows = np.lib.stride_tricks.sliding_window_view(data, width)[starts]
    return rows.reshape(-1).view(">u4").astype(np.int64).reshape(-1, width // 4)


def _requests(
    data: NDArray[np.uint8], starts: NDArray[np.int64], first: int, tally: Tally
) -> Batch:
    rows, full = _fields(data, starts)
    where = np.arange(first, first + len(starts))[full]
    tally.skipped += int((~full).sum())
    bad = rows["micros"] >= 10**6
    for row in np.flatnonzero(bad)[:5].tolist():
        told = ", ".join(f"{name} {values[row]}" for name, values in rows.items())
        tally.refuse(int(where[row]), told, "a million microseconds or more", 0)
    tally.bad += int(bad.sum())
    rows = {name: values[~bad] for name, values in rows.items()}
    disk = rows["device"] >> 8 & 255
    return Batch(
        time_ns=rows["seconds"] * 10**9 + rows["micros"] * 1000,
        op=np.where(rows["flags"] & 1, int(Op.READ), int(Op.WRITE)).astype(np.int8),
        volume=volumes(tally, disk, prefix="disk") if len(disk) else np.zeros(0, np.uint32),
        offset=rows["block"] * BLOCK,
        length=rows["bytes"],
        where=where[~bad],
    )
