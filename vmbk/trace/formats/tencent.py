"""Tencent Cloud's block storage (CBS) traces: some 5,600 volumes for nine days.

``Timestamp,Offset,Size,IOType,VolumeID``: seconds since 1970, sectors of 512 bytes, sectors, 0 for
a read and 1 for a write, a number. The order of requests within a second is that of the rows; what
it was on the disk is lost.

Source: Zhang, Huang, Lu, Lin, Deng, Xu: OSCA, USENIX ATC 2020; SNIA IOTTA, trace set 27917.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from vmbk.trace.formats.reading import SECTOR, Batch, Tally, delimited, mostly, volumes, whole
from vmbk.trace.formats.source import Source
from vmbk.trace.schema import Op

NAME: Final = "tencent"
DOC: Final = "Tencent CBS CSV"
FIELDS: Final = ("Timestamp", "Offset", "Size", "IOType", "VolumeID")
_OPS: Final = np.array([Op.READ, Op.WRITE], np.int8)


def detect(head: bytes) -> bool:
    """Whether a file that begins so is one."""
    return mostly(head, _fits)


def _fits(line: bytes) -> bool:
    fields = line.split(b",")
    return len(fields) == len(FIELDS) and whole(*fields) and fields[3].strip() in (b"0", b"1")


def read(source: Source, tally: Tally) -> Iterator[Batch]:
    """Requests of a file; a volume is named ``volume_`` and its number."""
    kinds = dict.fromkeys(FIELDS, "int")
    for rows in delimited(source, tally, ",", FIELDS, kinds, header=",".join(FIELDS)):
        kind = rows["IOType"]
        rows = rows.without_bad((kind < 0) | (kind > 1), "neither 0 (read) nor 1 (write)")
        rows = rows.without_bad(rows["VolumeID"] < 0, "no number of a volume")
        rows = rows.scaled("Timestamp", 10**9).scaled("Offset", SECTOR).scaled("Size", SECTOR)
        yield Batch(
            time_ns=rows["Timestamp"],
            op=_OPS[rows["IOType"]],
            volume=volumes(tally, rows["VolumeID"], prefix="volume_"),
            offset=rows["Offset"],
            length=rows["Size"],
            where=rows.where,
        )
