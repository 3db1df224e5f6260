"""Alibaba Cloud's block traces of 2020: 1000 virtual disks for a month.

``device_id,opcode,offset,length,timestamp``: a number, ``R`` or ``W``, bytes, bytes, microseconds
since 1970. The sizes of the disks are in another file, which is not read.

Source: Li, Wang, Lee, Cui, Liu: An In-Depth Analysis of Cloud Block Storage Workloads, IISWC 2020;
github.com/alibaba/block-traces.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from vmbk.trace.formats.reading import READ_WRITE, Batch, Tally, delimited, mostly, volumes, whole
from vmbk.trace.formats.source import Source

NAME: Final = "alibaba"
DOC: Final = "Alibaba Cloud 2020 CSV"
FIELDS: Final = ("device_id", "opcode", "offset", "length", "timestamp")
_KINDS: Final = {"device_id": "int", "opcode": "text", "offset": "int", "length": "int",
                 "timestamp": "int"}  # fmt: skip


def detect(head: bytes) -> bool:
    """Whether a file that begins so is one."""
    return mostly(head, _fits)


def _fits(line: bytes) -> bool:
    fields = line.split(b",")
    return (
        len(fields) == len(FIELDS)
        and fields[1].strip() in (b"R", b"W")
        and whole(fields[0], *fields[2:])
    )


def read(source: Source, tally: Tally) -> Iterator[Batch]:
    """Requests of a file; a volume is a device, named ``device_`` and its number."""
    for rows in delimited(source, tally, ",", FIELDS, _KINDS, header=",".join(FIELDS)):
        rows = rows.without_bad(rows["opcode"].map(READ_WRITE, -1) < 0, "neither R nor W")
        rows = rows.without_bad(rows["device_id"] < 0, "no number of a device")
        rows = rows.scaled("timestamp", 1000)
        yield Batch(
            time_ns=rows["timestamp"],
            op=rows["opcode"].map(READ_WRITE, 0).astype(np.int8),
            volume=volumes(tally, rows["device_id"], prefix="device_"),
            offset=rows["offset"],
            length=rows["length"],
            where=rows.where,
        )
