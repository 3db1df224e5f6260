"""Capture: boot a real guest, record every write and flush of its disk, and make that a trace.

The guest acknowledges what it has committed by *marks*: after a commit has returned, it writes a
label to an area behind the end of the volume, on the same disk. In the log's one order a mark
therefore stands behind everything that made the commit durable: a crash state that contains the
mark must contain the commit.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vmbk.errors import IntegrityError, NotFoundError, TraceFormatError
from vmbk.provenance import provenance
from vmbk.trace.capture.guest import build_initramfs, find_kernel, find_program
from vmbk.trace.capture.machine import POLL_S, QEMU, Run, run_guest
from vmbk.trace.capture.recipe import Recipe, recipes
from vmbk.trace.formats.dm_log_writes import LogRows, read_rows, to_trace
from vmbk.trace.schema import Op, Volume
from vmbk.trace.store import Trace, check_target, write_trace
from vmbk.units import MIB

__all__ = ["MARK_AREA", "Recipe", "capture", "recipes"]

MARK_AREA: Final = MIB
"""Bytes of the disk behind the volume, in which the guest writes its marks."""

_PARQUET_LEVEL: Final = 15
"""zstd level: a capture is written once, shipped and read often."""


def capture(
    recipe: Recipe | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    keep: str | os.PathLike[str] | None = None,
) -> Trace:
    """Run a real guest and record what it does to its disk.

    Parameters
    ----------
    recipe : Recipe or str or path
        A recipe, the name of a shipped one (see `recipes`), or the path of a TOML file.
    out : path
        Trace to write, ``.arrow`` or ``.parquet``.
    keep : path, optional
        Folder for the volume's final image as the guest left it (``volume.raw``), QEMU's log
        (``log``) and the guest's console (``console``).

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
        disk_size = recipe.volume_size + MARK_AREA
        run = run_guest(kernel, initramfs, disk_size, recipe.timeout_s, folder)
        os.truncate(run.disk, recipe.volume_size)
        made = {
            "recipe": recipe.name,
            "recipe_digest": recipe.digest,
            "guest_kernel": kernel.release,
            "qemu": run.qemu,
            "image_digest": _file_digest(run.disk),
            "log_bytes": run.log.stat().st_size,
            "seconds": round(run.seconds, 1),
            "poll_s": POLL_S,
            "made_by": provenance().to_dict(),
        }
        trace = assemble(run, recipe.volume_size, made)
        write_trace(trace, out, parquet_level=_PARQUET_LEVEL)
        if keep is not None:
            for source, target in (("disk.raw", "volume.raw"), ("log",) * 2, ("console",) * 2):
                shutil.move(folder / source, Path(keep) / target)
    return trace


def assemble(run: Run, volume_size: int, made: dict[str, Any]) -> Trace:
    """The trace of a guest's run: marks told from writes, times given.

    Raises
    ------
    IntegrityError
        If the marks in the log are not those that the guest acknowledged.
    """
    rows = _with_marks(read_rows(run.log), volume_size)
    volume = Volume(0, "disk", volume_size, rows.sector_size)
    trace = to_trace(
        rows,
        volume,
        time_ns=_times(rows.end, run),
        source_format="capture",
        clock="polled",
        provenance=made,
    )
    logged = [label for _, label in trace.marks()]
    if logged != run.marks:
        differ = next(
            (
                i
                for i, pair in enumerate(zip(logged, run.marks, strict=False))
                if pair[0] != pair[1]
            ),
            min(len(logged), len(run.marks)),
        )
        raise IntegrityError(
            f"the log holds {len(logged)} marks, the guest acknowledged {len(run.marks)}; the "
            f"first that differs is number {differ}: {logged[differ : differ + 1]} in the log, "
            f"{run.marks[differ : differ + 1]} acknowledged"
        )
    return trace


def _with_marks(rows: LogRows, volume_size: int) -> LogRows:
    """Writes behind the end of the volume become marks, labelled by their bytes up to a NUL."""
    from dataclasses import replace

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


def _file_digest(path: Path) -> str:
    from blake3 import blake3

    return str(blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest())
