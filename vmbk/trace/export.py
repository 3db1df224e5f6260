"""Traces as text that other tools replay: fio's iolog, version 3, and blkreplay's loads.

Neither can say all that a trace says. What is left out or changed on the way is counted and told;
everything else comes back the same when the export is imported, times in the format's resolution.

Source: fio, ``HOWTO.rst`` ("Trace file format v3") and ``iolog.c``; blkreplay, ``src/blkreplay.c``.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from vmbk.errors import InputError, NotFoundError, UnknownFormatError
from vmbk.progress import progress
from vmbk.trace.schema import Op
from vmbk.trace.store import replacing
from vmbk.trace.table import checked_trace
from vmbk.units import quoted

if TYPE_CHECKING:
    from vmbk.trace.table import Requests, Trace

__all__ = ["EXPORTS", "ExportResult", "export_trace"]

EXPORTS: Final = ("fio-iolog", "blkreplay")

_BATCH: Final = 1 << 18  # requests written at a time
_SECTOR: Final = 512
_MOST_PART: Final = 1 << 31  # bytes of one action of fio, which keeps them in 32 bits
_MOST_NAME: Final = 240  # characters of a file's name: fio reads 256
_FIO_ACTIONS: Final = {Op.READ: "read", Op.WRITE: "write", Op.FLUSH: "sync", Op.DISCARD: "trim"}
_FIO_START: Final = 1
"""µs: fio takes a gap after time 0 for none, so that the log begins at 1."""

_Writer = Callable[["Requests", "Counter[str]", "Counter[str]"], bytes]


@dataclass(frozen=True)
class ExportResult:
    """What an export came to.

    Parameters
    ----------
    format : str
        One of `EXPORTS`.
    requests : int
        Requests of the trace that were written.
    left_out : dict of str to int
        Requests that the format cannot say, by operation; ``empty`` are those of no bytes.
    changed : dict of str to int
        Requests that are written otherwise: ``flags`` went without them, ``payload`` without the
        bytes, ``widened`` reach to the next sector, ``split`` became several.
    """

    format: str
    requests: int
    left_out: dict[str, int] = field(default_factory=dict)
    changed: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: what ``vmbk trace export`` prints."""
        return dict(vars(self))


def export_trace(
    trace: Trace,
    path: str | os.PathLike[str],
    format: str,
    *,
    files: Mapping[int, str] | None = None,
) -> ExportResult:
    """Write a trace as text that another tool can replay; the file appears whole or not at all.

    Parameters
    ----------
    trace : Trace
    path : path
        File to write.
    format : str
        ``fio-iolog`` (version 3; times in whole µs) or ``blkreplay`` (one volume, reads and writes
        only, whole sectors of 512 bytes).
    files : mapping of int to str, optional
        For fio: the file or device that stands for a volume, by its id. Without, the volume's name,
        in which blanks become ``_``.

    Raises
    ------
    UnknownFormatError
        If the format is another.
    InputError
        If the trace has more volumes than the format can tell apart, or a file's name is one that
        fio cannot read.
    NotFoundError
        If the folder does not exist.
    StorageError
        If the operating system refuses to write it.

    Examples
    --------
    Replay on a file with the size of the volume, by ``fio --name=replay --read_iolog=trace.log
    --replay_redirect=disk.img``.
    """
    checked_trace(trace)
    if format not in EXPORTS:
        raise UnknownFormatError(
            f"a trace cannot be exported as {quoted(format)}",
            hint="known are " + ", ".join(EXPORTS),
        )
    target = Path(path)
    if not target.parent.is_dir():
        raise NotFoundError(f"there is no folder {str(target.parent)!r} for {target.name!r}")
    if target.is_dir():
        raise InputError(f"{str(target)!r} is a folder, not a file to write")
    lead, tail = "", ""
    text: _Writer = _blkreplay_rows
    if format == "blkreplay":
        if len(trace.volumes) > 1:
            raise InputError(
                f"the trace has {len(trace.volumes)} volumes, and a load of blkreplay has one",
                hint="export it as fio-iolog",
            )
        lead = _blkreplay_lead()
    else:
        names = _fio_names(trace, files or {})
        last = int(trace.requests.time_ns[-1]) // 1000 if len(trace) else 0
        lead = "fio version 3 iolog\n" + _fio_files(names, ("add", "open"), _FIO_START)
        tail = _fio_files(names, ("close",), last + _FIO_START)
        text = _fio_rows(names, np.array([volume.id for volume in trace.volumes], np.int64))
    left_out: Counter[str] = Counter()
    changed: Counter[str] = Counter()
    if trace.has_payload:
        payloads = trace.payloads
        assert payloads is not None
        changed["payload"] = int((payloads.valid & (trace.requests.op == Op.WRITE)).sum())
    with (
        progress(f"export {target.name}", len(trace), unit="requests") as advance,
        replacing(target) as temporary,
        temporary.open("wb") as file,
    ):
        file.write(lead.encode())
        for batch in trace.batches(_BATCH):
            file.write(text(batch, left_out, changed))
            advance(len(batch))
        file.write(tail.encode())
    written = len(trace) - sum(left_out.values())
    return ExportResult(format, written, _counts(left_out), _counts(changed))


def _counts(counter: Counter[str]) -> dict[str, int]:
    return {name: count for name, count in sorted(counter.items()) if count}


def _kept(
    batch: Requests, ops: Iterable[int], left_out: Counter[str], changed: Counter[str]
) -> NDArray[np.int64]:
    """Rows of a batch that can be said; the others and what is lost of these are counted."""
    known = np.isin(batch.op, list(ops))
    for op in Op:
        left_out[op.name.lower()] += int(((batch.op == op) & ~known).sum())
    empty = known & (batch.op != Op.FLUSH) & (batch.length == 0)
    left_out["empty"] += int(empty.sum())
    keep = known & ~empty
    changed["flags"] += int((keep & (batch.flags != 0)).sum())
    return np.flatnonzero(keep)


# --- fio -----------------------------------------------------------------------------------------


def _fio_names(trace: Trace, files: Mapping[int, str]) -> list[str]:
    """The file of each volume, in the volumes' order, no two alike."""
    unknown = set(files) - {volume.id for volume in trace.volumes}
    if unknown:
        raise InputError(
            f"the trace has no volume {quoted(min(unknown, key=str))}",
            hint=f"it has {quoted([volume.id for volume in trace.volumes])}",
        )
    names: list[str] = []
    for volume in trace.volumes:
        given = files.get(volume.id)
        name = given if given is not None else _plain(volume.name) or f"volume{volume.id}"
        if given is None and name in names:
            name = f"{name}_{volume.id}"
        if not name or name != _plain(name) or name in names:
            raise InputError(
                f"volume {volume.id} cannot be the file {quoted(name)} in a log of fio",
                hint=f"names have no blanks and at most {_MOST_NAME} bytes, and each file is given "
                "once",
            )
        names.append(name)
    return names


def _plain(name: str) -> str:
    """A name as fio reads it: printable, without blanks, not too long."""
    words = "".join("_" if c.isspace() or not c.isprintable() else c for c in name)
    return words.encode("utf-8", "replace")[:_MOST_NAME].decode("utf-8", "ignore")


def _fio_files(names: list[str], actions: tuple[str, ...], time_us: int) -> str:
    return "".join(f"{time_us} {name} {action}\n" for action in actions for name in names)


def _fio_rows(names: list[str], ids: NDArray[np.int64]) -> _Writer:
    import polars as pl

    files = pl.Series(names, dtype=pl.String)
    words = pl.Series([_FIO_ACTIONS.get(op, "") for op in Op], dtype=pl.String)

    def write(batch: Requests, left_out: Counter[str], changed: Counter[str]) -> bytes:
        rows = _kept(batch, _FIO_ACTIONS, left_out, changed)
        length = batch.length[rows]
        parts = np.maximum(-(-length // _MOST_PART), 1)
        changed["split"] += int((parts > 1).sum())
        row = np.repeat(rows, parts)
        part = np.arange(len(row)) - np.repeat(np.cumsum(parts) - parts, parts)
        done = part * _MOST_PART
        flush = batch.op[row] == Op.FLUSH
        volume = np.searchsorted(ids, batch.volume[row])
        frame = pl.DataFrame(
            {
                "time": batch.time_ns[row] // 1000 + _FIO_START,
                "file": files.gather(volume),
                "action": words.gather(batch.op[row]),
                "offset": np.where(flush, 0, batch.offset[row] + done),
                # fio takes a sync without numbers for no action at all.
                "length": np.where(flush, 0, np.minimum(batch.length[row] - done, _MOST_PART)),
            }
        )
        return _csv(frame, " ")

    return write


# --- blkreplay -----------------------------------------------------------------------------------


def _blkreplay_lead() -> str:
    from vmbk.trace.formats.blkreplay import HEADING

    return f"made by vmbk\n\n{HEADING}\n"


def _blkreplay_rows(batch: Requests, left_out: Counter[str], changed: Counter[str]) -> bytes:
    import polars as pl

    rows = _kept(batch, (Op.READ, Op.WRITE), left_out, changed)
    first = batch.offset[rows] // _SECTOR
    sectors = -(-(batch.offset[rows] + batch.length[rows]) // _SECTOR) - first
    widened = (batch.offset[rows] % _SECTOR != 0) | (batch.length[rows] % _SECTOR != 0)
    changed["widened"] += int(widened.sum())
    time_ns = batch.time_ns[rows]
    # blkreplay reads what stands behind the point as a number of ns: all nine digits are needed.
    fraction = pl.Series(time_ns % 10**9).cast(pl.String).str.zfill(9)
    frame = pl.DataFrame(
        {
            "start": pl.Series(time_ns // 10**9).cast(pl.String) + "." + fraction + " ",
            "sector": pl.Series(first).cast(pl.String) + " ",
            "length": pl.Series(sectors).cast(pl.String) + " ",
            "op": pl.Series(["R ", "W "]).gather((batch.op[rows] == Op.WRITE).astype(np.uint32)),
            "delay": pl.repeat("0.0 ", len(rows), eager=True),
            "duration": pl.repeat("0.0", len(rows), eager=True),
        }
    )
    return _csv(frame, ";").replace(b" ;", b" ; ")


def _csv(frame: Any, separator: str) -> bytes:
    text: str = frame.write_csv(include_header=False, separator=separator, quote_style="never")
    return text.encode()
