"""Importers: one module a format, and the registry that finds the right one by content."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vmbk.errors import InputError, UnknownFormatError
from vmbk.trace.formats import dm_log_writes
from vmbk.trace.store import IPC_MAGIC, PARQUET_MAGIC, Trace, read_head, read_trace
from vmbk.units import format_size

_HEAD = 4096  # bytes shown to the detectors


@dataclass(frozen=True)
class ImportResult:
    """An imported trace.

    Parameters
    ----------
    trace : Trace
    skipped : int
        Records of the source that carry no request.
    format : str
        Name of the format that was read.
    """

    trace: Trace
    skipped: int
    format: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: what ``vmbk trace import`` prints."""
        summary = self.trace.summary()
        return {
            "requests": summary.requests,
            "writes": summary.writes,
            "volumes": summary.to_dict()["volumes"],
            "skipped": self.skipped,
            "format": self.format,
        }


@dataclass(frozen=True)
class Format:
    """A trace format.

    Parameters
    ----------
    name : str
        How users name it.
    doc : str
        What it is, in one line.
    detect : callable
        Told the first 4096 bytes of a file (fewer where it is shorter); whether they are its.
    read : callable
        Told the path and the volume's size in bytes or None; returns the trace and how many
        records were skipped.
    """

    name: str
    doc: str
    detect: Callable[[bytes], bool]
    read: Callable[[Path, int | None], tuple[Trace, int]]


def _read_own(path: Path, volume_size: int | None) -> tuple[Trace, int]:
    if volume_size is not None:
        raise InputError(
            f"a trace of vmbk knows the sizes of its volumes, {format_size(volume_size)} was given",
            hint="leave the volume's size out",
        )
    return read_trace(path), 0


FORMATS: Final = {
    format.name: format
    for format in (
        Format(
            "vmbk",
            "vmbk's own traces: Arrow IPC or Parquet",
            lambda head: head.startswith((IPC_MAGIC, PARQUET_MAGIC)),
            _read_own,
        ),
        Format(
            dm_log_writes.NAME,
            "log of Linux's dm-log-writes or of QEMU's blklogwrites, payloads included",
            dm_log_writes.detect,
            dm_log_writes.read,
        ),
    )
}


def import_trace(
    source: str | os.PathLike[str], format: str = "auto", volume_size: int | None = None
) -> ImportResult:
    """Read a trace of any known format.

    Parameters
    ----------
    source : path
    format : str
        A name of `FORMATS`, or ``auto`` to go by the file's content.
    volume_size : int, optional
        Bytes, for formats that do not record it; without it, the end of the last request rounded
        up to 1 MiB.

    Raises
    ------
    NotFoundError
        If there is no such file.
    UnknownFormatError
        If the format is not known.
    TraceFormatError, OutOfRangeError
        If the file breaks its format's rules, or a request reaches past the volume.
    """
    path = Path(source)
    head = read_head(path, _HEAD)
    known = "known are " + "; ".join(f"{f.name} ({f.doc})" for f in FORMATS.values())
    if format != "auto":
        if format not in FORMATS:
            raise UnknownFormatError(f"there is no trace format {format!r}", hint=known)
        chosen = FORMATS[format]
    else:
        matching = [f for f in FORMATS.values() if f.detect(head)]
        if not matching:
            raise UnknownFormatError(f"{str(path)!r} is in no trace format known", hint=known)
        chosen = matching[0]
    trace, skipped = chosen.read(path, volume_size)
    return ImportResult(trace, skipped, chosen.name)
