"""Traces in the Storage Performance Council's format, such as those of UMass.

``ASU,LBA,size,opcode,timestamp`` and, in some files, further fields: the number of an address space
(application specific unit), sectors of 512 bytes, bytes, ``R`` or ``W`` in either case, decimal
seconds. A field may have blanks before it.

Source: SPC I/O Trace File Format Specification, revision 1.0.1; UMass Trace Repository, Storage.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from vmbk.trace.formats.reading import (
    READ_WRITE,
    SECTOR,
    Batch,
    Tally,
    decimal,
    delimited,
    mostly,
    volumes,
    whole,
)
from vmbk.trace.formats.source import Source

NAME: Final = "spc"
DOC: Final = "SPC 1.0.1, as of the UMass repository"
FIELDS: Final = ("asu", "lba", "size", "opcode", "timestamp")
_KINDS: Final = {"asu": "int", "lba": "int", "size": "int", "opcode": "text",
                 "timestamp": "seconds"}  # fmt: skip


def detect(head: bytes) -> bool:
    """Whether a file that begins so is one."""
    return mostly(head, _fits)


def _fits(line: bytes) -> bool:
    fields = line.split(b",")
    return (
        len(fields) >= len(FIELDS)
        and whole(*fields[:3])
        and fields[3].strip() in (b"R", b"W", b"r", b"w")
        and (whole(fields[4]) or decimal(fields[4]))
    )


def read(source: Source, tally: Tally) -> Iterator[Batch]:
    """Requests of a file; a volume is an address space, named ``asu`` and its number."""
    for rows in delimited(source, tally, ",", FIELDS, _KINDS, more=True):
        rows = rows.without_bad(rows["opcode"].map(READ_WRITE, -1) < 0, "neither R nor W")
        rows = rows.without_bad(rows["asu"] < 0, "no number of an address space")
        rows = rows.scaled("lba", SECTOR)
        yield Batch(
            time_ns=rows["timestamp"],
            op=rows["opcode"].map(READ_WRITE, 0).astype(np.int8),
            volume=volumes(tally, rows["asu"], prefix="asu"),
            offset=rows["lba"],
            length=rows["size"],
            where=rows.where,
        )
