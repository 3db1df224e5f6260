"""Traces for disk simulators in ASCII: DiskSim, SSDsim, MQSim and their kin.

``time device sector sectors flag``, parted by blanks: the sector and their number in units of 512
bytes, and 1 for a read, 0 for a write. The unit of time goes by the tool, and the numbers show
which: DiskSim writes milliseconds with a point, SSDsim and MQSim write whole nanoseconds. One point
among the first 64 KiB makes all of the file milliseconds.

Source: DiskSim 4.0 Reference Manual, section "ASCII input"; MQSim, README, "Defining an ASCII
trace"; SSDsim, its sample traces.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from vmbk.trace.formats.reading import (
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
from vmbk.trace.schema import Op

NAME: Final = "disksim"
DOC: Final = "ASCII traces of DiskSim, SSDsim and MQSim"
FIELDS: Final = ("time", "device", "sector", "sectors", "flag")
_SAMPLE: Final = 1 << 16
_OPS: Final = np.array([Op.WRITE, Op.READ], np.int8)


def detect(head: bytes) -> bool:
    """Whether a file that begins so is one."""
    return mostly(head, _fits)


def _fits(line: bytes) -> bool:
    words = line.split()
    return (
        len(words) == len(FIELDS)
        and (whole(words[0]) or decimal(words[0]))
        and whole(*words[1:4])
        and words[4] in (b"0", b"1")
    )


def _tidy(text: bytes) -> bytes:
    """The lines with one space between words, and none around them."""
    text = text.replace(b"\t", b" ")
    while b"  " in text:
        text = text.replace(b"  ", b" ")
    text = text.replace(b" \n", b"\n").replace(b"\n ", b"\n")
    return text.removeprefix(b" ")


def read(source: Source, tally: Tally) -> Iterator[Batch]:
    """Requests of a file; a volume is a device, named ``dev`` and its number."""
    lines = (line.split() for line in source.head(_SAMPLE).split(b"\n")[:-1])
    points = any(line and b"." in line[0] for line in lines)
    kinds = dict.fromkeys(FIELDS, "int") | ({"time": "milliseconds"} if points else {})
    for rows in delimited(source, tally, " ", FIELDS, kinds, tidy=_tidy):
        flag = rows["flag"]
        rows = rows.without_bad((flag < 0) | (flag > 1), "neither 0 (write) nor 1 (read)")
        rows = rows.without_bad(rows["device"] < 0, "no number of a device")
        rows = rows.scaled("time", 1).scaled("sector", SECTOR).scaled("sectors", SECTOR)
        yield Batch(
            time_ns=rows["time"],
            op=_OPS[rows["flag"]],
            volume=volumes(tally, rows["device"], prefix="dev"),
            offset=rows["sector"],
            length=rows["sectors"],
            where=rows.where,
        )
