"""Logs of fio's ``write_iolog`` and ``read_iolog``, versions 2 and 3.

A first line that says ``fio version 2 iolog`` or ``3``, then ``file action`` and ``file action
offset length`` in bytes; in version 3 with a time in µs before. Actions are read, write, trim,
sync and datasync; add, open and close tell of files and are skipped. A volume is a file.

Version 2 has no times but ``file wait microseconds``. They are added up, as fio's manual has it
(its replay takes the number for milliseconds since the start); without any, all
times are 0. Version 3 allows no wait.

Source: fio, ``HOWTO.rst`` ("Trace file format v2", "v3") and ``iolog.c``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import polars as pl

from vmbk.errors import TraceFormatError
from vmbk.trace.formats.reading import Batch, Rows, Tally, matched, text_of, volumes, whole_numbers
from vmbk.trace.formats.source import CHUNK, Source
from vmbk.trace.schema import Op
from vmbk.units import quoted

NAME: Final = "fio-iolog"
DOC: Final = "fio iolog, versions 2 and 3"
FIRST_LINE: Final = "fio version {} iolog"
OPS: Final = {
    "read": Op.READ,
    "write": Op.WRITE,
    "trim": Op.DISCARD,
    "sync": Op.FLUSH,
    "datasync": Op.FLUSH,
}
_FILES: Final = ("add", "open", "close", "unlink")
_LINE: Final = (
    r"[ \t]*(?<file>[^ \t]+)[ \t]+(?<action>[a-z]+)"
    r"(?:[ \t]+(?<offset>[0-9]+)(?:[ \t]+(?<length>[0-9]+))?)?[ \t]*$"
)
_TIME: Final = r"[ \t]*(?<time>[0-9]+)[ \t]+"
_MOST_TIME: Final = (1 << 62) // 1000  # µs whose ns are taken
_MOST_WAIT: Final = 1 << 40  # µs, 13 days: the waits of a chunk add up without leaving 63 bits


def _version(head: bytes) -> int:
    first = head[:64].partition(b"\n")[0].strip()
    return next((v for v in (2, 3) if first == FIRST_LINE.format(v).encode()), 0)


def detect(head: bytes) -> bool:
    """Whether a file that begins so is one."""
    return _version(head) != 0


def read(source: Source, tally: Tally, size: int = CHUNK) -> Iterator[Batch]:
    """Requests of a log.

    Raises
    ------
    TraceFormatError
        If the first line does not say that it is one of these versions.
    """
    head = source.head(64)
    version = _version(head)
    if not version:
        raise TraceFormatError(
            f"{quoted(source.path.name)} begins with {quoted(head.decode(errors='replace'))}",
            hint="versions 2 and 3 are read: the first line says 'fio version 3 iolog'",
        )
    waited = 0
    for rows, others in matched(source, tally, (_TIME if version == 3 else "") + _LINE, size=size):
        others = others.take(others.where != 1)
        others.without_bad(np.ones(len(others), np.bool_), "no action as fio writes it")
        rows = rows.take(rows.where != 1)
        rows = rows.without(rows["action"].is_in(_FILES).to_numpy())
        rows = _with_numbers(rows, version)
        if version == 2:
            time = waited + np.cumsum(rows["waits"])
            rows = rows.with_columns({"time": time})
            waited = int(time[-1]) if len(time) else waited
            rows = rows.without(rows["op"] < 0)
        rows = rows.without_bad(rows["time"] > _MOST_TIME, "a time that is too late")
        yield _requests(rows, tally)


def _with_numbers(rows: Rows, version: int) -> Rows:
    """Rows with operations, places and times or waits as numbers, -1 for the operation of a wait"""
    action = text_of(rows["action"])
    op = action.map(OPS, -2)
    waits = (action.map({"wait": 1}, 0) == 1) & (version == 2)
    op[waits] = -1
    rows = rows.with_columns({"op": op, "waits": waits})
    rows = rows.without_bad(op == -2, "no action that fio knows")
    offset, bad = whole_numbers(rows["offset"].fill_null("0"))
    length, long = whole_numbers(rows["length"].fill_null("0"))
    # A wait has one number, as fio's manual has it, or two, as fio reads it.
    needed = np.where(rows["op"] == -1, rows["offset"].is_null(), rows["length"].is_null())
    bad |= long | (needed.astype(np.bool_) & (rows["op"] != Op.FLUSH))
    bad |= (rows["op"] == -1) & (offset > _MOST_WAIT)
    time: np.ndarray[tuple[int], np.dtype[np.int64]] = np.zeros(len(rows), np.int64)
    if version == 3:
        time, late = whole_numbers(rows["time"])
        bad |= late
    waits = np.where(rows["op"] == -1, offset, 0)
    rows = rows.with_columns({"offset": offset, "length": length, "time": time, "waits": waits})
    return rows.without_bad(bad, "numbers are missing or do not fit")


def _requests(rows: Rows, tally: Tally) -> Batch:
    flush = rows["op"] == Op.FLUSH
    files = rows["file"] if len(rows) else pl.Series([], dtype=pl.String)
    return Batch(
        time_ns=rows["time"] * 1000,
        op=rows["op"].astype(np.int8),
        volume=volumes(tally, text_of(files)) if len(rows) else np.zeros(0, np.uint32),
        offset=np.where(flush, 0, rows["offset"]),
        length=np.where(flush, 0, rows["length"]),
        where=rows.where,
    )
