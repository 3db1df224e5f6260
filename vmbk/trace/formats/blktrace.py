"""Binary traces of Linux's blktrace, version 7: a file for each processor, merged by time.

A record is, in the byte order of the machine that made it, u32 magic (0x65617400 and the version),
u32 sequence, u64 time in ns, u64 sector of 512 bytes, u32 bytes, u32 action, u32 process, u32
device, u32 processor, u16 error, u16 length of what follows, and what follows. The low 16 bits of
the action are its kind, the high ones its categories; see `block_layer` for which kind is counted.
Messages and names of processes stand between the requests and are skipped, as are commands that
bypass the file system and completions with an error. A volume is a device, named ``major,minor``.

The files are ``X.blktrace.0``, ``X.blktrace.1`` and so on. To name one of them or ``X`` is to name
them all; their records are numbered through. Where bytes are no record, one bad row is counted and
reading goes on at the next magic.

Source: Linux, ``include/uapi/linux/blktrace_api.h``; blktrace 1.2, ``blktrace.h``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vmbk.errors import StorageError
from vmbk.trace.formats.block_layer import MOST_SECTORS, Events
from vmbk.trace.formats.reading import SECTOR, Batch, Tally
from vmbk.trace.formats.source import RECORDS, Source
from vmbk.trace.schema import Flag, Op

NAME: Final = "blktrace"
DOC: Final = "binary blktrace, all files X.blktrace.N of a trace"
RECORD: Final = np.dtype(
    [("magic", "<u4"), ("sequence", "<u4"), ("time", "<u8"), ("sector", "<u8"), ("bytes", "<u4"),
     ("action", "<u4"), ("pid", "<u4"), ("device", "<u4"), ("cpu", "<u4"), ("error", "<u2"),
     ("tail", "<u2")]
)  # fmt: skip
TAGS: Final = {b"\x07tae": False, b"eat\x07": True}
"""What a record begins with, and whether its numbers are big-endian."""

QUEUE, ISSUE, COMPLETE = 1, 7, 8
_RANKED: Final = (QUEUE, ISSUE, COMPLETE)
_KIND: Final = 0xFF  # bit 8 says that a cgroup is told behind the record
_CATEGORY: Final = {"write": 1, "flush": 2, "sync": 3, "command": 9, "notify": 10, "meta": 12,
                    "discard": 13, "fua": 15}  # fmt: skip
_PART: Final = re.compile(r"(?P<trace>.*\.blktrace)\.(?P<cpu>[0-9]{1,6})(?P<packed>\.\w{2,4})?")


def detect(head: bytes) -> bool:
    """Whether a file that begins so is one."""
    return head[:4] in TAGS


def parts(path: Path) -> list[Path]:
    """All files of the trace that a path names, in the order of their processors.

    Parameters
    ----------
    path : Path
        One of the files, or what their names have in common, with or without ``.blktrace``.

    Raises
    ------
    StorageError
        If the folder cannot be read.
    """
    named = _PART.fullmatch(path.name)
    if named is not None:
        trace, packed = named["trace"], named["packed"]
    elif path.exists():
        return []
    else:
        trace, packed = path.name.removesuffix(".blktrace") + ".blktrace", None
    found = []
    try:
        for other in path.parent.iterdir() if path.parent.is_dir() else ():
            match = _PART.fullmatch(other.name)
            if match and (match["trace"], match["packed"]) == (trace, packed) and other.is_file():
                found.append((int(match["cpu"]), other))
    except OSError as error:
        raise StorageError(f"cannot read {str(path.parent)!r}: {error.strerror}") from error
    return [other for _, other in sorted(found)]


def read(source: Source, tally: Tally, size: int = RECORDS) -> Iterator[Batch]:
    """Requests of a file and its companions, one file after another."""
    kind = _counted_kind(source, size)
    first = 1
    for part in (source, *source.companions):
        for rows, bad in _records(part, size):
            where = np.arange(first, first + len(rows))
            first += len(rows)
            for row in np.flatnonzero(bad)[:5].tolist():
                told = f"{part.path.name}, {bytes(rows[row : row + 1].view(np.uint8)).hex()}"
                tally.refuse(int(where[row]), told, "no record", 0)
            tally.bad += int(bad.sum())
            yield _requests(rows[~bad], where[~bad], kind, tally)


def _counted_kind(source: Source, size: int) -> int:
    best = len(_RANKED)
    for part in (source, *source.companions):
        for rows, bad in _records(Source(part.path), size):
            kinds = _kinds(rows[~bad])
            best = next((i for i, kind in enumerate(_RANKED[:best]) if (kinds == kind).any()), best)
            if best == 0:
                return QUEUE
    return _RANKED[best] if best < len(_RANKED) else QUEUE


def _kinds(rows: Any) -> NDArray[np.int64]:
    """Kind of each record that tells of a request, -1 of the others."""
    action = rows["action"].astype(np.int64)
    other = _has(action, "notify") | _has(action, "command")
    return np.where(other, -1, action & _KIND)


def _has(action: NDArray[np.int64], category: str) -> NDArray[np.bool_]:
    return (action >> (16 + _CATEGORY[category]) & 1).astype(np.bool_)


def _records(source: Source, size: int) -> Iterator[tuple[Any, NDArray[np.bool_]]]:
    """The records of one file, and which of them are none: bytes passed over, or a cut-off end."""
    from vmbk.kernels.records import walk_tagged

    rest, big = b"", None
    tag = np.frombuffer(b"\x07tae", np.uint8)
    state = np.zeros(2, np.int64)
    for chunk in source.chunks(size):
        data = rest + chunk
        if big is None and len(data) >= 4:
            big = TAGS.get(data[:4], False)
            tag = tag[::-1].copy() if big else tag
        view = np.frombuffer(data, np.uint8)
        starts = np.empty(2 * (len(data) // RECORD.itemsize) + 2, np.int64)
        found = starts[: walk_tagged(view, tag, bool(big), starts, state)]
        rest = data[int(state[0]) :]
        yield _fields(view, found, bool(big))
    if rest and not state[1]:
        view = np.frombuffer(rest, np.uint8)
        yield _fields(view, np.array([-1]), bool(big))


def _fields(
    data: NDArray[np.uint8], starts: NDArray[np.int64], big: bool
) -> tuple[Any, NDArray[np.bool_]]:
    bad = starts < 0
    data = np.pad(data, (0, max(RECORD.itemsize - len(data), 0)))
    # Bytes that are no record may be fewer than one: what is quoted then begins before them.
    at = np.minimum(np.where(bad, -1 - starts, starts), len(data) - RECORD.itemsize)
    rows = np.lib.stride_tricks.sliding_window_view(data, RECORD.itemsize)[at]
    layout = RECORD.newbyteorder(">") if big else RECORD
    return rows.reshape(-1).view(layout), bad


def _requests(rows: Any, where: NDArray[np.int64], kind: int, tally: Tally) -> Batch:
    counted = _kinds(rows) == kind
    if kind == COMPLETE:
        counted &= rows["error"] == 0
    tally.skipped += int((~counted).sum())
    rows, where = rows[counted], where[counted]
    action, length = rows["action"].astype(np.int64), rows["bytes"].astype(np.int64)
    bad = (length > 0) & (rows["sector"] > MOST_SECTORS) | (rows["time"] > 1 << 62)
    for row in np.flatnonzero(bad)[:5].tolist():
        told = f"time {rows['time'][row]}, sector {rows['sector'][row]}, {length[row]} bytes"
        tally.refuse(int(where[row]), told, "out of range", 0)
    tally.bad += int(bad.sum())
    rows, where, action, length = rows[~bad], where[~bad], action[~bad], length[~bad]
    flags = np.zeros(len(rows), np.uint8)
    for name, flag in (("fua", Flag.FUA), ("sync", Flag.SYNC), ("meta", Flag.META)):
        flags[_has(action, name)] |= np.uint8(flag)
    write = np.where(_has(action, "write"), int(Op.WRITE), int(Op.READ))
    return Events(
        time_ns=rows["time"].astype(np.int64),
        volume=_volumes(rows["device"].astype(np.int64), tally),
        flush=_has(action, "flush"),
        op=np.where(_has(action, "discard"), int(Op.DISCARD), write).astype(np.int8),
        offset=np.where(length > 0, rows["sector"].astype(np.int64) * SECTOR, 0),
        length=length,
        flags=flags,
        where=where,
    ).requests(tally)


def _volumes(devices: NDArray[np.int64], tally: Tally) -> NDArray[np.uint32]:
    """Ids of the volumes, new ones in the order of their records."""
    values, first, which = np.unique(devices, return_index=True, return_inverse=True)
    order = np.argsort(first)
    names = [f"{value >> 20},{value & 0xFFFFF}" for value in values[order].tolist()]
    ids = np.zeros(len(values), np.uint32)
    if names:
        ids[order] = tally.volume_ids(names)
    chosen: NDArray[np.uint32] = ids[which]
    return chosen
