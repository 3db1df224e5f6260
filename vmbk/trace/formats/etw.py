"""Disk activity of Windows, as the Performance Analyzer exports it from an event trace (ETW).

A table under a line that names its columns, which the user of that program may arrange. Fields are
parted by semicolons, as in countries that write numbers with a decimal comma and a point before
every third digit. Read are ``IO Type`` (``Read``, ``Write``, ``Flush``), ``Init Time (s)`` in
decimal seconds since the trace began, ``Size (B)`` in bytes, ``Min Offset`` in bytes and in
hexadecimal digits, ``Disk``, and ``Count``, where there: a row that sums up several requests is no
request.

A flush has the greatest offset there is; it gets 0.

Source: Windows Performance Analyzer, "Disk Usage" table; a published export of a boot.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from vmbk.errors import TraceFormatError
from vmbk.trace.formats.reading import Batch, Tally, delimited, volumes
from vmbk.trace.formats.source import BOM, Source
from vmbk.trace.schema import Op
from vmbk.units import quoted

NAME: Final = "etw"
DOC: Final = "Windows disk activity (ETW), as CSV with semicolons"
_WANTED: Final = {
    "IO Type": "text",
    "Init Time (s)": "grouped seconds",
    "Size (B)": "grouped",
    "Min Offset": "hex",
    "Disk": "int",
}
_KINDS: Final = _WANTED | {"Count": "int"}
_OPS: Final = {"Read": Op.READ, "Write": Op.WRITE, "Flush": Op.FLUSH}
_HEAD: Final = 1 << 16


def _header(head: bytes) -> str:
    return head.removeprefix(BOM).partition(b"\n")[0].decode("utf-8", "replace").strip()


def _columns(header: str) -> list[str]:
    return [name.strip() for name in header.split(";")]


def detect(head: bytes) -> bool:
    """Whether a file that begins so is one."""
    return set(_WANTED) <= set(_columns(_header(head)))


def read(source: Source, tally: Tally) -> Iterator[Batch]:
    """Requests of a file; a volume is a disk, named ``disk`` and its number."""
    header = _header(source.head(_HEAD))
    fields = _columns(header)
    missing = [name for name in _WANTED if fields.count(name) != 1]
    if missing:
        raise TraceFormatError(
            f"the first line of {quoted(source.path.name)} has not one column {missing[0]!r}: "
            f"{quoted(header, 120)}",
            hint="export the table with the columns " + "; ".join(_WANTED),
        )
    # Names of columns that nobody reads may be doubled or empty.
    names = [name if name in _KINDS else f"column {i}" for i, name in enumerate(fields)]
    kinds = {name: kind for name, kind in _KINDS.items() if names.count(name) == 1}
    for rows in delimited(source, tally, ";", names, kinds, header=header):
        rows = rows.without_bad(rows["IO Type"].map(_OPS, -1) < 0, "neither Read, Write nor Flush")
        rows = rows.without_bad((rows["Disk"] < 0) | (rows["Disk"] > 9999), "no number of a disk")
        if "Count" in kinds:
            rows = rows.without_bad(rows["Count"] != 1, "not one request")
        op = rows["IO Type"].map(_OPS, 0).astype(np.int8)
        flush = op == Op.FLUSH
        yield Batch(
            time_ns=rows["Init Time (s)"],
            op=op,
            volume=volumes(tally, rows["Disk"], prefix="disk"),
            offset=np.where(flush, 0, rows["Min Offset"]),
            length=np.where(flush, 0, rows["Size (B)"]),
            where=rows.where,
        )
