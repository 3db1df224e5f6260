"""Capture: boot a real guest, record every write and flush of its disks, and make that a trace.

The guest acknowledges what it has committed by *marks*: after a commit has returned, it writes a
label to an area behind the end of its first volume, on the same disk. In the log's one order, which
several disks share (see `order`), a mark therefore stands behind everything that made the commit
durable: a crash state that contains the mark must contain the commit.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vmbk.errors import IntegrityError, NotFoundError, TraceFormatError
from vmbk.provenance import provenance
from vmbk.trace.capture.guest import build_initramfs, find_kernel, find_program
from vmbk.trace.capture.machine import POLL_S, QEMU, Run, run_guest
from vmbk.trace.capture.order import read_order
from vmbk.trace.capture.recipe import Recipe, recipes
from vmbk.trace.formats.dm_log_writes import LogRows, read_rows, to_trace
from vmbk.trace.schema import Op, Volume
from vmbk.trace.store import Trace, check_target, write_trace
from vmbk.units import MIB

__all__ = ["MARK_AREA", "Recipe", "capture", "recipes"]

MARK_AREA: Final = MIB
"""Bytes of the first disk behind its volume, in which the guest writes its marks."""

PARQUET_LEVEL: Final = 15
"""zstd level: a capture is written once, shipped and read often."""


def capture(
    recipe: Recipe | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    keep: str | os.PathLike[str] | None = None,
) -> Trace:
    """Run a real guest and record what it does to its disks.

    Parameters
    ----------
    recipe : Recipe or str or path
        A recipe, the name of a shipped one (see `recipes`), or the path of a TOML file.
    out : path
        Trace to write, ``.arrow`` or ``.parquet``.
    keep : path, optional
        Folder for the volume's final image as the guest left it (``volume.raw``; where there are
        several, each one's name and ``.raw``), QEMU's log (``log``) and the guest's console
        (``console``).

    Returns
    -------
    Trace
        Writes with their payloads, flushes, discards and marks; times are when the log was seen
        to grow.

    Raises
    ------
    ToolMissingError
        If QEMU, the guest's kernel or one of its programs is not installed.
    VmbkError
        If the guest fails or does not end in time.
    IntegrityError
        If the marks in the log are not those that the guest acknowledged.
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    check_target(out)
    if keep is not None and not Path(keep).is_dir():
        raise NotFoundError(f"there is no folder {str(keep)!r} to keep the image in")
    find_program(*QEMU)
    kernel = find_kernel()
    initramfs = build_initramfs(recipe, kernel)
    with tempfile.TemporaryDirectory(prefix="vmbk-capture-") as name:
        folder = Path(name)
        disks = recipe.disks
        sizes = [disks[0].size + MARK_AREA, *(disk.size for disk in disks[1:])]
        run = run_guest(kernel, initramfs, sizes, recipe.timeout_s, folder, recipe.memory)
        os.truncate(run.disks[0], disks[0].size)
        made = {
            "recipe": recipe.name,
            "recipe_digest": recipe.digest,
            "guest_kernel": kernel.release,
            "qemu": run.qemu,
            **_image_digests(run, recipe),
            "log_bytes": run.log.stat().st_size,
            "seconds": round(run.seconds, 1),
            "poll_s": POLL_S,
            "made_by": provenance().to_dict(),
        }
        volumes = [Volume(id, disk.name, disk.size) for id, disk in enumerate(disks)]
        trace = assemble(run, volumes, made)
        write_trace(trace, out, parquet_level=PARQUET_LEVEL)
        if keep is not None:
            one = len(disks) == 1
            names = ["volume.raw"] if one else [f"{disk.name}.raw" for disk in disks]
            for image, name in zip(run.disks, names, strict=True):
                shutil.move(image, Path(keep) / name)
            for name in ("log", "console"):
                shutil.move(folder / name, Path(keep) / name)
    return trace


def _image_digests(run: Run, recipe: Recipe) -> dict[str, Any]:
    """``image_digest`` of the one volume, or ``image_digests`` of several by their names."""
    digests = [file_digest(disk) for disk in run.disks]
    if len(digests) == 1:
        return {"image_digest": digests[0]}
    names = [disk.name for disk in recipe.disks]
    return {"image_digests": dict(zip(names, digests, strict=True))}


def assemble(run: Run, volumes: Sequence[Volume], made: dict[str, Any]) -> Trace:
    """The trace of a run: marks told from writes, times given, disks brought into one order.

    Parameters
    ----------
    run : Run
    volumes : sequence of Volume
        One for each disk; behind the end of the first one are the marks.
    made : dict
        Provenance.

    Raises
    ------
    IntegrityError
        If the marks in the log are not those that the guest acknowledged, or the common order
        lacks a request.
    """
    said: dict[str, Any] = {"source_format": "capture", "clock": "polled", "provenance": made}
    if run.logs is None:
        rows = _with_marks(_unwiped(read_rows(run.log), volumes[0].size), volumes[0].size)
        volume = replace(volumes[0], sector_size=rows.sector_size)
        trace = to_trace(rows, volume, time_ns=_times(rows.end, run), **said)
    else:
        trace = _one_order(run, run.logs, volumes, said)
    _check_marks([label for _, label in trace.marks()], run.marks)
    return trace


def _one_order(run: Run, logs: Path, volumes: Sequence[Volume], said: dict[str, Any]) -> Trace:
    """The trace of several disks' requests."""
    ordered = read_order(run.log, logs, len(volumes))
    ordered.disks[0] = _with_marks(ordered.disks[0], volumes[0].size)
    volumes = [
        replace(volume, sector_size=rows.sector_size)
        for volume, rows in zip(volumes, ordered.disks, strict=True)
    ]
    traces = [to_trace(rows, volume) for rows, volume in zip(ordered.disks, volumes, strict=True)]
    # A flush and the write that came with it share a rank and stay as they are.
    order = np.argsort(np.concatenate(ordered.rank), kind="stable")
    table = pa.concat_tables([trace.table for trace in traces]).combine_chunks().take(order)
    times = _times(np.concatenate(ordered.end)[order], run)
    table = table.set_column(table.column_names.index("time_ns"), "time_ns", pa.array(times))
    return Trace.from_arrow(table, volumes=volumes, source_digest=file_digest(run.log), **said)


def _check_marks(logged: list[str], acknowledged: list[str]) -> None:
    if logged == acknowledged:
        return
    pairs = enumerate(zip(logged, acknowledged, strict=False))
    differ = next(
        (i for i, (one, other) in pairs if one != other), min(len(logged), len(acknowledged))
    )
    raise IntegrityError(
        f"the log holds {len(logged)} marks, the guest acknowledged {len(acknowledged)}; the "
        f"first that differs is number {differ}: {logged[differ : differ + 1]} in the log, "
        f"{acknowledged[differ : differ + 1]} acknowledged"
    )


def _unwiped(rows: LogRows, volume_size: int) -> LogRows:
    """The requests without writes of zeros behind the end of the volume.

    mkfs.xfs wipes the end of the device, whatever size it is told to use.
    """
    behind = (rows.op == Op.WRITE) & (rows.offset >= volume_size)
    keep = np.ones(len(behind), np.bool_)
    for row in np.flatnonzero(behind).tolist():
        start = int(rows.data_start[row])
        keep[row] = rows.log[start : start + int(rows.data_length[row])].any()
    return replace(
        rows,
        op=rows.op[keep],
        offset=rows.offset[keep],
        length=rows.length[keep],
        flags=rows.flags[keep],
        data_start=rows.data_start[keep],
        data_length=rows.data_length[keep],
        end=rows.end[keep],
    )


def _with_marks(rows: LogRows, volume_size: int) -> LogRows:
    """Writes behind the end of the volume become marks, labelled by their bytes up to a NUL."""
    behind = rows.offset >= volume_size
    behind &= rows.length > 0
    if (behind & (rows.op != Op.WRITE)).any():
        raise TraceFormatError("the guest did something else than write to the area of its marks")
    op, lengths = rows.op.copy(), rows.data_length.copy()
    op[behind] = Op.MARK
    for row in np.flatnonzero(behind).tolist():
        start = int(rows.data_start[row])
        label = rows.log[start : start + int(lengths[row])].tobytes()
        lengths[row] = len(label.partition(b"\0")[0])
    return replace(
        rows,
        op=op,
        data_length=lengths,
        offset=np.where(behind, 0, rows.offset),
        length=np.where(behind, 0, rows.length),
        flags=np.where(behind, 0, rows.flags).astype(np.uint8),
    )


def _times(end: NDArray[np.int64], run: Run) -> NDArray[np.int64]:
    """When each request had been recorded: the first look at the log that found it there."""
    if not len(end):
        return np.zeros(0, np.int64)
    seen = np.searchsorted(np.maximum.accumulate(run.sample_bytes), end)
    # The last look came after QEMU's end, when the log was whole.
    when: NDArray[np.int64] = run.sample_ns[np.minimum(seen, len(run.sample_ns) - 1)]
    when -= when[0]
    return when


def file_digest(path: Path) -> str:
    """BLAKE3 (hex) of a file."""
    from blake3 import blake3

    return str(blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest())
