"""MSR Cambridge block traces: one week of 36 volumes of enterprise servers.

``Timestamp,Hostname,DiskNumber,Type,Offset,Size,ResponseTime``, mostly without a header: a Windows
FILETIME in units of 100 ns, a host's name, a number, ``Read`` or ``Write``, bytes, bytes, 100 ns.

Source: Narayanan, Donnelly, Rowstron: Write Off-Loading, FAST 2008; SNIA IOTTA, trace set 388.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from vmbk.trace.formats.reading import Batch, Tally, delimited, mostly, volumes, whole
from vmbk.trace.formats.source import Source
from vmbk.trace.schema import Op

NAME: Final = "msr"
DOC: Final = "MSR Cambridge CSV"
HEADER: Final = "Timestamp,Hostname,DiskNumber,Type,Offset,Size,ResponseTime"
FIELDS: Final = ("timestamp", "hostname", "disk", "type", "offset", "size", "response")
_KINDS: Final = {"timestamp": "int", "hostname": "text", "disk": "int", "type": "text",
                 "offset": "int", "size": "int"}  # fmt: skip
_OPS: Final = {"Read": Op.READ, "Write": Op.WRITE}
_MOST_TICKS: Final = (1 << 62) // 100  # of 100 ns, between two rows of a trace: 146 years


def detect(head: bytes) -> bool:
    """Whether a file that begins so is one."""
    return mostly(head, _fits)


def _fits(line: bytes) -> bool:
    fields = line.split(b",")
    return (
        len(fields) == len(FIELDS)
        and fields[3].strip() in (b"Read", b"Write")
        and whole(fields[0], fields[2], fields[4], fields[5])
    )


def read(source: Source, tally: Tally) -> Iterator[Batch]:
    """Requests of a file; a volume is a host's disk."""
    start = None
    for rows in delimited(source, tally, ",", FIELDS, _KINDS, header=HEADER):
        rows = rows.with_columns({"op": rows["type"].map(_OPS, -1)})
        rows = rows.without_bad(rows["op"] < 0, "neither Read nor Write")
        rows = rows.without_bad((rows["disk"] < 0) | (rows["disk"] > 9999), "no number of a disk")
        rows = rows.without_bad(rows["timestamp"] < 0, "a negative time")
        if not len(rows):
            continue
        # Ticks since 1601 do not fit in 63 bits of ns, those since the first row do.
        if start is None:
            start = int(rows["timestamp"][0])
        rows = rows.with_columns({"since": rows["timestamp"] - start})
        far = (rows["since"] > _MOST_TICKS) | (rows["since"] < -_MOST_TICKS)
        rows = rows.without_bad(far, "a time far from the first")
        yield Batch(
            time_ns=rows["since"] * 100,
            op=rows["op"].astype(np.int8),
            volume=volumes(tally, rows["hostname"], rows["disk"]),
            offset=rows["offset"],
            length=rows["size"],
            where=rows.where,
        )
