"""Importers: one module a format, and the registry that finds the right one by content."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vmbk.errors import InputError, NotFoundError, TraceFormatError, UnknownFormatError
from vmbk.progress import progress
from vmbk.trace.formats import (
    alibaba,
    blkparse,
    blkreplay,
    blktrace,
    disksim,
    dm_log_writes,
    etw,
    fio_iolog,
    fiu,
    msr,
    oracle_general,
    spc,
    srt,
    systor,
    tencent,
    tracefs,
    vscsi,
    vscsi_csv,
)
from vmbk.trace.formats.ahead import ahead
from vmbk.trace.formats.reading import Batch, Tally
from vmbk.trace.formats.source import Source
from vmbk.trace.schema import MAX_VOLUME_SIZE, Volume
from vmbk.trace.spool import Spool
from vmbk.trace.store import IPC_MAGIC, PARQUET_MAGIC, Trace, read_trace
from vmbk.units import MIB, format_size, quoted

__all__ = ["FORMATS", "Format", "ImportResult", "import_trace"]

_HEAD = 1 << 16  # bytes shown to the detectors
_MOST_TIME = (1 << 62) - 1  # ns either way, some 146 years


@dataclass(frozen=True)
class ImportResult:
    """An imported trace.

    Parameters
    ----------
    trace : Trace
    format : str
        Name of the format that was read.
    skipped : int
        Rows of the source that are as they should be and carry no request.
    bad : int
        Malformed rows that were passed over.
    duplicates : int
        Rows dropped because they repeat the one before.
    examples : tuple of str
        The first malformed rows, for people.
    """

    trace: Trace
    format: str
    skipped: int = 0
    bad: int = 0
    duplicates: int = 0
    examples: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: what ``vmbk trace import`` prints."""
        summary = self.trace.summary()
        return {
            "requests": summary.requests,
            "writes": summary.writes,
            "volumes": summary.to_dict()["volumes"],
            "skipped": self.skipped,
            "bad": self.bad,
            "duplicates": self.duplicates,
            "examples": list(self.examples),
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
        Told the first 64 KiB of a file, unpacked (fewer where it is shorter); whether they are its.
    read : callable, optional
        Yields the requests of a source, and tells a tally what it leaves out.
    read_whole : callable, optional
        Instead of ``read``: told the path and the volume's size in bytes or None, returns the trace
        and how many rows were skipped. For formats that carry payloads.
    clock : str
        What its times are worth, one of `vmbk.trace.schema.CLOCKS`.
    unit : str
        What a row is called: ``line`` or ``record``.
    parts : callable, optional
        For formats that spread a trace over several files: told a path, which need not exist, all
        files of the trace that it names, in order; none where it names no such trace.
    """

    name: str
    doc: str
    detect: Callable[[bytes], bool]
    read: Callable[[Source, Tally], Iterator[Batch]] | None = None
    read_whole: Callable[[Path, int | None], tuple[Trace, int]] | None = None
    clock: str = "exact"
    unit: str = "line"
    parts: Callable[[Path], list[Path]] | None = None


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
            read_whole=_read_own,
        ),
        Format(
            dm_log_writes.NAME,
            "log of Linux's dm-log-writes or of QEMU's blklogwrites, payloads included",
            dm_log_writes.detect,
            read_whole=dm_log_writes.read,
        ),
        Format(vscsi.NAME, vscsi.DOC, vscsi.detect, vscsi.read, unit="record"),
        Format(
            blktrace.NAME,
            blktrace.DOC,
            blktrace.detect,
            blktrace.read,
            unit="record",
            parts=blktrace.parts,
        ),
        Format(srt.NAME, srt.DOC, srt.detect, srt.read, unit="record"),
        Format(
            oracle_general.NAME,
            oracle_general.DOC,
            oracle_general.detect,
            oracle_general.read,
            unit="record",
        ),
        Format(fio_iolog.NAME, fio_iolog.DOC, fio_iolog.detect, fio_iolog.read),
        Format(blkparse.NAME, blkparse.DOC, blkparse.detect, blkparse.read),
        Format(tracefs.NAME, tracefs.DOC, tracefs.detect, tracefs.read),
        Format(blkreplay.NAME, blkreplay.DOC, blkreplay.detect, blkreplay.read),
        Format(msr.NAME, msr.DOC, msr.detect, msr.read),
        Format(fiu.NAME, fiu.DOC, fiu.detect, fiu.read),
        Format(spc.NAME, spc.DOC, spc.detect, spc.read),
        Format(alibaba.NAME, alibaba.DOC, alibaba.detect, alibaba.read),
        Format(tencent.NAME, tencent.DOC, tencent.detect, tencent.read),
        Format(systor.NAME, systor.DOC, systor.detect, systor.read),
        Format(vscsi_csv.NAME, vscsi_csv.DOC, vscsi_csv.detect, vscsi_csv.read),
        Format(etw.NAME, etw.DOC, etw.detect, etw.read),
        Format(disksim.NAME, disksim.DOC, disksim.detect, disksim.read),
    )
}


def import_trace(
    source: str | os.PathLike[str],
    format: str = "auto",
    volume_size: int | None = None,
    *,
    skip_bad: bool = False,
    drop_duplicates: bool = False,
    scratch: str | os.PathLike[str] | None = None,
) -> ImportResult:
    """Read a trace of any known format, also packed by gzip, bzip2, xz or zstd.

    The source is read once, a few megabytes at a time; the rows lie in temporary files, so that a
    trace may be larger than memory. Rows out of order in time are sorted, which takes 16 bytes of
    memory a row.

    Parameters
    ----------
    source : path
        A file, or what the names of several files of one trace have in common.
    format : str
        A name of `FORMATS`, or ``auto`` to go by the file's content.
    volume_size : int, optional
        Bytes of each volume, for formats that do not record it; without it, the end of the last
        request rounded up to 1 MiB.
    skip_bad : bool
        Pass over malformed rows and count them, instead of failing.
    drop_duplicates : bool
        Drop requests that repeat the one before them in every column, as some recorders write them.
    scratch : path, optional
        Folder for the temporary files.

    Raises
    ------
    NotFoundError
        If there is no such file.
    UnknownFormatError
        If the format is not known.
    TraceFormatError
        If the file breaks its format's rules; for rows, quoting the first ones with their lines.
    OutOfRangeError
        If a request reaches past the volume.
    """
    path = Path(source)
    if volume_size is not None and not (
        type(volume_size) is int and 0 <= volume_size <= MAX_VOLUME_SIZE
    ):
        raise InputError(f"a volume's size is 0 to 2^62 bytes, not {quoted(volume_size)}")
    if scratch is not None and not Path(scratch).is_dir():
        raise NotFoundError(f"there is no folder {str(scratch)!r} for temporary files")
    parts = next((found for f in FORMATS.values() if f.parts and (found := f.parts(path))), [path])
    if not path.exists():
        path = parts[0]
    origin = Source(path)
    # Of a trace in several files, those of idle processors are empty.
    heads = (Source(part).head(_HEAD) for part in (path, *parts))
    head = next((head for head in heads if head), b"")
    chosen = _chosen(format, head, path)
    if chosen.read_whole is not None:
        if origin.packing:
            raise InputError(
                f"{quoted(path.name)} is packed by {origin.packing}, and {chosen.name} traces are "
                "read in place",
                hint="unpack it first",
            )
        trace, skipped = chosen.read_whole(path, volume_size)
        return ImportResult(trace, chosen.name, skipped)
    assert chosen.read is not None
    tally = Tally(unit=chosen.unit)
    parts = parts if chosen.parts else [path]
    try:
        with progress(f"import {path.name}", sum(part.stat().st_size for part in parts)) as advance:
            origin = Source(parts[0], advance, parts[1:])
            batches = _checked(chosen.read(origin, tally), tally, path, skip_bad)
            with ahead(batches) as parsed:
                spool, ends, duplicates = _spooled(parsed, scratch, drop_duplicates)
    except TraceFormatError as error:
        seems = next((f.name for f in FORMATS.values() if f.detect(head)), chosen.name)
        if seems != chosen.name:
            error.hint = f"it looks like {seems}: import it as that, or as auto"
        raise
    try:
        volumes = [
            Volume(id, name, _size(tally.sizes.get(id), volume_size, ends.get(id, 0)))
            for name, id in tally.names.items()
        ]
        trace = spool.finish(
            volumes,
            source_format=chosen.name,
            source_digest=origin.whole_digest(),
            clock=chosen.clock,
        )
    finally:
        spool.close()
    return ImportResult(
        trace, chosen.name, tally.skipped, tally.bad, duplicates, tuple(tally.examples)
    )


_CONTAINERS: Final = (
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"Rar!", "a rar archive"),
    (257, b"ustar", "a tar archive"),
)


def _chosen(format: str, head: bytes, path: Path) -> Format:
    known = ", ".join(name for name in FORMATS if name != oracle_general.NAME)
    if format != "auto":
        if format not in FORMATS:
            near = difflib.get_close_matches(str(format).lower(), FORMATS, 1)
            raise UnknownFormatError(
                f"there is no trace format {quoted(format)}",
                hint=(f"perhaps {near[0]}; " if near else "") + f"known are auto, {known}",
            )
        return FORMATS[format]
    for candidate in FORMATS.values():
        if candidate.detect(head):
            return candidate
    if not head:
        raise UnknownFormatError(f"{str(path)!r} is empty")
    for place, magic, name in _CONTAINERS:
        if head[place:].startswith(magic):
            raise UnknownFormatError(
                f"{str(path)!r} is {name}, not a trace", hint="unpack it, import what is in it"
            )
    raise UnknownFormatError(
        f"{str(path)!r} is in no trace format known",
        hint=f"known are {known}; a table of another shape is read with vmbk.Trace.from_frame",
    )


def _checked(batches: Iterator[Batch], tally: Tally, path: Path, skip_bad: bool) -> Iterator[Batch]:
    """The batches without requests that no volume can hold; an error where rows are bad."""
    from vmbk.kernels.checks import LATE, MISPLACED, misplaced

    rows = right = 0
    for batch in batches:
        time_ns, offset, length = batch.time_ns, batch.offset, batch.length
        verdict = np.empty(len(batch), np.uint8)
        # Farther apart, the time between two rows would not fit in 63 bits.
        many = misplaced(time_ns, offset, length, MAX_VOLUME_SIZE, _MOST_TIME, verdict)
        for kind, why in ((MISPLACED, "no place on a volume"), (LATE, "a time out of range")):
            for row in np.flatnonzero(verdict == kind)[:5].tolist() if many else ():
                where = rows + row if batch.where is None else int(batch.where[row])
                told = f"{time_ns[row]} ns, offset {offset[row]}, length {length[row]} bytes"
                tally.refuse(where, told, why, 0)
        tally.bad += many
        rows += len(batch)
        _stop_at_bad(tally, path, skip_bad)
        right += len(batch) - many
        yield batch.take(verdict == 0) if many else batch
    _stop_at_bad(tally, path, skip_bad, right + tally.skipped > 0)


def _stop_at_bad(tally: Tally, path: Path, skip_bad: bool, right: bool = True) -> None:
    if not tally.bad or (skip_bad and right):
        return
    shown = "".join(f"\n  | {example}" for example in tally.examples)
    many = f"{tally.bad} malformed {tally.unit}{'s' if tally.bad > 1 else ''}"
    if skip_bad:
        raise TraceFormatError(
            f"{quoted(path.name)} has {many} and no other{shown}",
            hint="it seems to be in another format",
        )
    raise TraceFormatError(
        f"{quoted(path.name)} has {many} so far{shown}",
        hint="pass over malformed rows with --skip-bad (skip_bad=True)",
    )


def _spooled(
    batches: Iterator[Batch], scratch: str | os.PathLike[str] | None, drop_duplicates: bool
) -> tuple[Spool, dict[int, int], int]:
    """All rows, times counted from the earliest; where each volume's last request ends."""
    from vmbk.kernels.checks import volume_ends

    spool: Spool | None = None
    zero: int | None = None
    ends: NDArray[np.int64] = np.zeros(0, np.int64)
    duplicates, previous = 0, None
    try:
        for batch in batches:
            if spool is None:
                spool = Spool(scratch, content=batch.content is not None)
            if drop_duplicates:
                fresh = _fresh(batch, previous)
                previous = batch if len(batch) else previous
                duplicates += int((~fresh).sum())
                batch = batch.take(fresh)
            if not len(batch):
                continue
            volume = np.ascontiguousarray(batch.volume, np.uint32)
            at_most = int(volume.max()) + 1
            ends = np.concatenate([ends, np.zeros(max(at_most - len(ends), 0), np.int64)])
            volume_ends(volume, batch.offset, batch.length, ends)
            flags = batch.flags if batch.flags is not None else np.zeros(len(batch), np.uint8)
            # Most often the first row is the earliest, and none need be moved again.
            zero = int(batch.time_ns[0]) if zero is None else zero
            spool.append(
                time_ns=batch.time_ns - zero, op=batch.op, volume=volume,
                offset=batch.offset, length=batch.length, flags=flags,
                content=batch.content, valid=batch.valid,
            )  # fmt: skip
        spool = spool or Spool(scratch)
        spool.sort_by_time()
        spool.start_at(spool.first_time())
    except BaseException:
        if spool is not None:
            spool.close()
        raise
    return spool, dict(enumerate(ends.tolist())), duplicates


def _fresh(batch: Batch, previous: Batch | None) -> NDArray[np.bool_]:
    """Which rows differ in some column from the row before them."""
    fresh = np.zeros(len(batch), np.bool_)
    if not len(batch):
        return fresh
    fresh[0] = previous is None
    for name in ("time_ns", "op", "volume", "offset", "length", "flags", "content", "valid"):
        values = getattr(batch, name)
        if values is None:
            continue
        changed = values[1:] != values[:-1]
        fresh[1:] |= changed.any(axis=1) if changed.ndim > 1 else changed
        if previous is not None:
            fresh[0] |= bool(np.any(values[0] != getattr(previous, name)[-1]))
    return fresh


def _size(told: int | None, given: int | None, end: int) -> int:
    if given is not None:
        return given
    return told if told is not None and told >= end else -(-end // MIB) * MIB
