"""Systor '17 traces: the block storage under an enterprise's virtual desktops, 28 days of 2016.

``Timestamp,Response,IOType,LUN,Offset,Size`` under a line that says so: decimal seconds since 1970
with nine digits, of which six count; decimal seconds or nothing; ``R`` or ``W``; a number; bytes;
bytes. A row without a type is of a request whose answer was not recorded: nobody knows what it
does, and it is skipped.

Source: Lee, Kumano, Matsuki, Endo, Fukumoto, Sugawara: Understanding Storage Traffic
Characteristics on Enterprise Virtual Desktop Infrastructure, SYSTOR 2017; SNIA IOTTA, trace set
4928, its README.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from vmbk.trace.formats.reading import (
    READ_WRITE,
    Batch,
    Tally,
    decimal,
    delimited,
    mostly,
    volumes,
    whole,
)
from vmbk.trace.formats.source import Source

NAME: Final = "systor"
DOC: Final = "Systor '17 CSV"
FIELDS: Final = ("Timestamp", "Response", "IOType", "LUN", "Offset", "Size")
_KINDS: Final = {"Timestamp": "seconds", "IOType": "text", "LUN": "int", "Offset": "int",
                 "Size": "int"}  # fmt: skip


def detect(head: bytes) -> bool:
    """Whether a file that begins so is one."""
    return mostly(head, _fits)


def _fits(line: bytes) -> bool:
    fields = [field.strip() for field in line.split(b",")]
    if line.strip() == ",".join(FIELDS).encode():
        return True
    return (
        len(fields) == len(FIELDS)
        and decimal(fields[0])
        and (not fields[1] or decimal(fields[1]))
        and fields[2] in (b"R", b"W", b"")
        and whole(*fields[3:])
    )


def read(source: Source, tally: Tally) -> Iterator[Batch]:
    """Requests of a file; a volume is a LUN, named ``lun`` and its number."""
    for rows in delimited(source, tally, ",", FIELDS, _KINDS, header=",".join(FIELDS)):
        rows = rows.without(rows["IOType"].map({"": 1}, 0) == 1)
        rows = rows.without_bad(rows["IOType"].map(READ_WRITE, -1) < 0, "neither R nor W")
        rows = rows.without_bad(rows["LUN"] < 0, "no number of a LUN")
        yield Batch(
            time_ns=rows["Timestamp"],
            op=rows["IOType"].map(READ_WRITE, 0).astype(np.int8),
            volume=volumes(tally, rows["LUN"], prefix="lun"),
            offset=rows["Offset"],
            length=rows["Size"],
            where=rows.where,
        )
