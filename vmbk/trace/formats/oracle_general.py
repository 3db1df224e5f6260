"""libCacheSim's oracleGeneral, which is recognised and refused: it does not tell reads from writes.

Records of 24 bytes, little-endian: u32 time in s; u64 object; u32 bytes; i64 when the object is
asked for next, counted in requests, -1 or 2^63 - 1 for never.

Source: libCacheSim, ``oracleGeneralBin.h``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from vmbk.errors import TraceFormatError
from vmbk.trace.formats.reading import Batch, Tally
from vmbk.trace.formats.source import Source
from vmbk.units import quoted

NAME: Final = "oracle-general"
DOC: Final = "libCacheSim's oracleGeneral (recognised and refused: it holds no operations)"
LAYOUT: Final[Any] = np.dtype(
    [("time", "<u4"), ("object", "<u8"), ("length", "<u4"), ("next", "<i8")]
)
_PROBED: Final = 256  # records that the detector looks at
_NEVER: Final = (-1, (1 << 63) - 1)
_LARGEST: Final = 1 << 30  # bytes of an object
_FARTHEST: Final = 1 << 40  # requests


def detect(head: bytes) -> bool:
    """Whether a file that begins so is one."""
    count = min(len(head) // LAYOUT.itemsize, _PROBED)
    if count < 2:
        return False
    rows = np.frombuffer(head, LAYOUT, count)
    next_one = rows["next"]
    later = (next_one > np.arange(count)) & (next_one < _FARTHEST)
    return bool(
        (rows["time"][1:] >= rows["time"][:-1]).all()
        and ((rows["length"] > 0) & (rows["length"] < _LARGEST)).all()
        and (later | np.isin(next_one, _NEVER)).all()
    )


def read(source: Source, tally: Tally) -> Iterator[Batch]:
    """No requests.

    Raises
    ------
    TraceFormatError
        Always: the format does not tell reads from writes.
    """
    raise TraceFormatError(
        f"{quoted(source.path.name)} is an oracleGeneral trace, which does not tell reads from "
        "writes, and nothing can be said of changes without that",
        hint="import what it was made of, such as the .vscsi file or the CSV",
    )
    yield  # a generator, as every reader is
