"""Restore: a recovery point back onto disks, byte for byte, verified against stored digests."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vmbk.detect.changes import Digests
from vmbk.detect.full import blank as blank_state
from vmbk.detect.scan import (
    PIECE,
    Scan,
    align,
    default_workers,
    flag_ranges,
    for_each,
    load_kernels,
    scan,
    split,
    touched_units,
)
from vmbk.disk.base import Bytes, Disk
from vmbk.disk.direct import aligned_buffer
from vmbk.disk.raw import RawDisk
from vmbk.errors import (
    InputError,
    IntegrityError,
    NotFoundError,
    StorageError,
    TargetTooSmallError,
    VmbkError,
)
from vmbk.pipeline.job import DISK_NAME
from vmbk.pipeline.point_disk import PointDisk
from vmbk.pipeline.results import RestoredDisk, RestoreResult
from vmbk.progress import Advance, progress
from vmbk.units import format_size
from vmbk.vault import DiskRecord, RecoveryPoint, Vault


def restore(
    point: str | RecoveryPoint,
    vault: Vault,
    to: str | os.PathLike[str],
    *,
    disks: Sequence[str] | None = None,
    verify: bool = True,
) -> RestoreResult:
    """Restore disks of a recovery point as raw sparse images ``TO/<disk>.raw``.

    Each image is written beside its final name, read back and verified, and then put in place, so
    that an image which stands there already is lost only to a restore that succeeded. One that is
    open for writing is not replaced.

    Parameters
    ----------
    point : str or RecoveryPoint
        A point, its id or a unique beginning of it, or ``latest``.
    vault : Vault
        Where it is.
    to : path
        Folder to restore to; made where it is absent.
    disks : sequence of str, optional
        Which disks; all by default.
    verify : bool
        Read the images back and compare with the stored digests.

    Raises
    ------
    NotFoundError
        If the point or a disk does not exist.
    BusyError
        If an image of that name is open elsewhere.
    TargetTooSmallError
        If the file system has too little room; nothing was written then.
    IntegrityError
        If what is stored or what was written is not what was backed up.
    """
    load_kernels()
    started = time.perf_counter()
    if isinstance(point, str):
        point = vault.point(point)
    if isinstance(disks, str):
        raise InputError(f"disks must be a list of names, not {disks!r} alone")
    names = [d.name for d in point.disks] if disks is None else list(disks)
    if not names:
        raise InputError("there is no disk to restore", hint="name at least one")
    records = [disk_record(point, name) for name in names]
    for record in records:
        if not DISK_NAME.fullmatch(record.name):
            raise IntegrityError(f"the point names a disk {record.name!r}, which is no file name")
    sources = [PointDisk(vault, point, record.name) for record in records]
    folder = _folder(to)
    needed = sum(int(source.data_extents()[1].sum()) for source in sources)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise TargetTooSmallError(
            f"{str(folder)!r} has {format_size(free)} free; the point needs {format_size(needed)}",
            hint="restore to another folder, or fewer disks with --disk NAME",
        )
    done = []
    with ExitStack() as locks, progress(f"restore {point.id}", (1 + verify) * needed) as advance:
        finals = [folder / f"{record.name}.raw" for record in records]
        for final in finals:  # all of them before the first is touched
            _hold(final, locks)
        for record, source, final in zip(records, sources, finals, strict=True):
            with _partial(final, record.size) as target:
                result = restore_disk(
                    vault, point, record.name, target,
                    blank=True, verify=verify, source=source, on_progress=advance,
                )  # fmt: skip
                target.path.replace(final)
            done.append(replace(result, path=final))
    return RestoreResult(point.id, tuple(done), verify, time.perf_counter() - started)


def _folder(to: str | os.PathLike[str]) -> Path:
    """The folder to restore to, made where it is absent."""
    if not isinstance(to, (str, os.PathLike)):
        raise InputError(f"cannot restore to {to!r}", hint="name a folder")
    folder = Path(to)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{str(folder)!r} is not a folder", hint="name a folder to restore to")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot restore to {str(folder)!r}: {error.strerror}") from error
    return folder


def _hold(final: Path, locks: ExitStack) -> None:
    """Lock an image that will be replaced: whoever has it open would go on writing to nothing."""
    if final.is_dir():
        raise InputError(f"{str(final)!r} is a folder", hint="restore to another folder")
    if final.is_file() and final.stat().st_size:
        locks.enter_context(RawDisk(final, mode="rw"))


@contextmanager
def _partial(final: Path, size: int) -> Iterator[RawDisk]:
    """A fresh image beside its final name, removed again unless it was put in place.

    Its name is its own, so that two restores never share one; what a killed restore left behind is
    not locked any more, and goes.
    """
    for left in final.parent.glob(f".{final.name}.*.partial"):
        with suppress(VmbkError, OSError), RawDisk(left, mode="rw"):
            left.unlink()
    path = final.parent / f".{final.name}.{secrets.token_hex(4)}.partial"
    try:
        with RawDisk.create(path, size, direct=True) as target:
            yield target
    except OSError as error:
        raise StorageError(f"cannot write {str(final)!r}: {error.strerror}") from error
    finally:
        path.unlink(missing_ok=True)


def disk_record(point: RecoveryPoint, name: str) -> DiskRecord:
    """The record of one disk of a point, or a `NotFoundError` that lists those there are."""
    for record in point.disks:
        if record.name == name:
            return record
    raise NotFoundError(
        f"point {point.id} has no disk {name!r}",
        hint=f"it has: {', '.join(d.name for d in point.disks)}",
    )


def restore_disk(
    vault: Vault,
    point: RecoveryPoint,
    name: str,
    target: Disk,
    *,
    blank: bool = False,
    verify: bool = True,
    source: PointDisk | None = None,
    on_progress: Advance | None = None,
) -> RestoredDisk:
    """Restore one disk of a point onto a disk that is open for writing.

    Parameters
    ----------
    target : Disk
        At least as large as the disk of the point. What it holds is overwritten, zeros included;
        anything past the point's size is left alone.
    blank : bool
        Whether the target is known to be all zeros, so that zeros need not be written.
    verify : bool
        Read the target back and compare every block digest with those stored.

    Raises
    ------
    TargetTooSmallError
        If the target is smaller than the disk of the point; nothing was written then.
    IntegrityError
        If what is stored, or what was read back, is not what was backed up.
    """
    record = disk_record(point, name)
    source = source or PointDisk(vault, point, name)
    if target.size < record.size:
        raise TargetTooSmallError(
            f"target {target.name!r} has {format_size(target.size)}; "
            f"disk {name!r} of the point has {format_size(record.size)}",
            hint="restore to a larger disk",
        )
    offsets, lengths = split(align(source.data_extents(), 4096, record.size), PIECE)
    if not blank:
        _zero_the_rest(target, record.size, offsets, lengths)
    # A block may have several extents: whoever restores a piece of the disk restores all of it.
    pieces, first = np.unique(offsets // PIECE, return_index=True)
    last = np.append(first[1:], len(offsets))
    found = blank_state(record.size, record.block_size, 0)

    def work(i: int, buffer: Bytes) -> None:
        for k in range(int(first[i]), int(last[i])):
            data = buffer[: int(lengths[k])]
            assert len(data) == lengths[k]
            source.read_into(int(offsets[k]), data)
            target.write(int(offsets[k]), data)
        written = int(lengths[first[i] : last[i]].sum())
        if on_progress is not None:
            on_progress(written)
        if verify:
            _read_back(target, record, int(pieces[i]) * PIECE, buffer, found.digests)
            if on_progress is not None:
                on_progress(written)

    # More threads than processors: they wait for the disk half of the time.
    workers = 2 * default_workers()
    for_each(len(pieces), work, lambda: aligned_buffer(PIECE), workers)
    target.flush()
    if verify:
        _verify(vault, point, record, target, pieces, found)
    path = getattr(target, "path", None)
    return RestoredDisk(name, path, record.size, int(lengths.sum()), record.digest, verify)


def _read_back(
    target: Disk, record: DiskRecord, offset: int, buffer: Bytes, digests: Digests
) -> None:
    """Digest the blocks of one piece of the disk as it lies there now."""
    from vmbk.kernels.hash import xxh3_64_blocks

    data = buffer[: min(PIECE, record.size - offset)]
    target.read_into(offset, data)
    begin = offset // record.block_size
    count = -(-len(data) // record.block_size)
    xxh3_64_blocks(data, record.block_size, digests[begin : begin + count])


def _zero_the_rest(
    target: Disk, size: int, offsets: np.ndarray[tuple[int], np.dtype[np.int64]],
    lengths: np.ndarray[tuple[int], np.dtype[np.int64]],
) -> None:  # fmt: skip
    """Zero what no data extent will overwrite: a used target must not show its old bytes."""
    starts = np.concatenate([[0], offsets + lengths])
    ends = np.concatenate([offsets, [size]])
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        if end > start:
            target.zero(start, end - start)


def _verify(
    vault: Vault,
    point: RecoveryPoint,
    record: DiskRecord,
    target: Disk,
    pieces: NDArray[np.int64],
    found: Scan,
) -> None:
    """Compare what was read back with what is stored; where nothing was written must be zeros."""
    extents = target.data_extents()
    inside = extents[0] < record.size
    extents = extents[0][inside], np.minimum(extents[1], record.size - extents[0])[inside]
    rest = touched_units(extents, PIECE, record.size)
    rest[pieces] = False
    ranges = flag_ranges(rest, PIECE, record.size)
    scan(target, ranges, (record.block_size, 0), found, None)
    stored = vault.digests(point, record.name)
    wrong = np.flatnonzero(found.digests != stored)
    if len(wrong) or whole_digest(found.digests) != record.digest:
        where = f"first at byte {int(wrong[0]) * record.block_size}" if len(wrong) else "in its sum"
        raise IntegrityError(
            f"disk {record.name!r} as restored is not what was backed up: "
            f"{len(wrong)} blocks differ, {where}",
            hint="run: vmbk vault check --read-data; the target's disk may be failing",
        )


def whole_digest(digests: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> str:
    """XXH3-64, hex, over the little-endian array of all block digests of a disk."""
    from vmbk.kernels.hash import xxh3_64

    return f"{int(xxh3_64(digests.astype('<u8', copy=False).view(np.uint8))):016x}"
