"""FIU traces with content digests: iodedup's homes, mail and web, and SRCMap's.

``ts pid process lba size op major minor md5``, parted by single spaces: nanoseconds, a number, a
name that may hold spaces itself, sectors of 512 bytes, sectors, ``R`` or ``W``, the device's two
numbers, and an MD5 of the content in 32 hexadecimal digits. It covers 4096 bytes; in the traces of
homes it covers 512. The files hold one request for each piece of content.

The digest becomes the ``content`` of a write whose length is one of these two; the content of a
read is not what was written, and a longer request has parts that the digest does not cover.

Source: Koller, Rangaswami: I/O Deduplication, FAST 2010; Verma et al.: SRCMap, FAST 2010; SNIA
IOTTA, trace set 391.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import polars as pl

from vmbk.trace.formats.reading import (
    READ_WRITE,
    SECTOR,
    Batch,
    Tally,
    delimited,
    mostly,
    volumes,
    whole,
)
from vmbk.trace.formats.source import Source
from vmbk.trace.schema import Op

NAME: Final = "fiu"
DOC: Final = "FIU iodedup and SRCMap, with content digests"
FIELDS: Final = ("ts", "pid", "process", "lba", "size", "op", "major", "minor", "md5")
_KINDS: Final = {"ts": "int", "lba": "int", "size": "int", "op": "text", "major": "int",
                 "minor": "int", "md5": "digest"}  # fmt: skip
_UNITS: Final = (512, 4096)  # bytes that a digest covers
_SPACED: Final = r"^(\S+ \S+) .* (\S+ \S+ \S+ \S+ \S+ \S+)$"


def detect(head: bytes) -> bool:
    """Whether a file that begins so is one."""
    return mostly(head, _fits)


def _fits(line: bytes) -> bool:
    words = line.split()
    return (
        len(words) >= len(FIELDS)
        and whole(*words[:2], *words[-6:-4], *words[-3:-1])
        and words[-4] in (b"R", b"W")
        and len(words[-1]) == 32
        and all(digit in b"0123456789abcdefABCDEF" for digit in words[-1])
    )


def _tidy(text: bytes) -> bytes:
    """The lines with a process's name that holds spaces left out."""
    lines = pl.Series(text.decode().split("\n"), dtype=pl.String)
    return "\n".join(lines.str.replace(_SPACED, "$1 - $2").to_list()).encode()


def read(source: Source, tally: Tally) -> Iterator[Batch]:
    """Requests of a file; a volume is a device, named by its two numbers."""
    for rows in delimited(source, tally, " ", FIELDS, _KINDS, tidy=_tidy):
        rows = rows.without_bad(rows["op"].map(READ_WRITE, -1) < 0, "neither R nor W")
        rows = rows.without_bad((rows["major"] < 0) | (rows["minor"] < 0), "no device's numbers")
        rows = rows.scaled("ts", 1).scaled("lba", SECTOR).scaled("size", SECTOR)
        op = rows["op"].map(READ_WRITE, 0).astype(np.int8)
        yield Batch(
            time_ns=rows["ts"],
            op=op,
            volume=volumes(tally, rows["major"], rows["minor"]),
            offset=rows["lba"],
            length=rows["size"],
            content=rows["md5"],
            valid=(op == Op.WRITE) & np.isin(rows["size"], _UNITS),
            where=rows.where,
        )
