"""`compare`: the byte oracle. Reads the disk and its base point whole and compares every byte.

Too costly for daily use, and never wrong: what the other detectors are measured against.
"""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from vmbk.detect.changes import Base, ChangeSet, Settings
from vmbk.detect.conclude import conclude
from vmbk.detect.full import blank
from vmbk.detect.scan import WINDOW, align, default_workers, for_each, scan, windows
from vmbk.disk.base import Bytes, Ranges, ReadableDisk
from vmbk.disk.direct import aligned_buffer
from vmbk.errors import InputError
from vmbk.progress import Advance


def compare(
    disk: ReadableDisk, base: Base, settings: Settings, *, on_progress: Advance | None = None
) -> ChangeSet:
    """Report the grains of which a byte differs from the base point's.

    Raises
    ------
    InputError
        If the base's bytes are not at hand.
    """
    if base.disk is None:
        raise InputError(f"the bytes of base point {base.point!r} are not at hand to compare with")
    size, block = disk.size, settings.block_size
    grains, read = differing_grains(disk, base.disk, settings, on_progress=on_progress)
    factor = block // settings.grain
    changed = np.logical_or.reduceat(grains, np.arange(0, len(grains), factor))

    state = blank(size, *settings.units)
    ranges = align(disk.data_extents(), block, size)
    scan(disk, ranges, settings.units, state, None)
    return conclude(
        detector="compare",
        size=size,
        settings=settings,
        state=state,
        grains=grains,
        touched=np.ones(len(changed), bool)
        if size != base.size or _lacks(base, settings)
        else changed,
        reported_blocks=changed,
        base=base,
        extra_scanned=read,
    )


def _lacks(base: Base, settings: Settings) -> bool:
    return bool(settings.sub_block_size) and base.sub_digests is None


def differing_grains(
    disk: ReadableDisk,
    other: ReadableDisk,
    settings: Settings,
    *,
    on_progress: Advance | None = None,
) -> tuple[NDArray[np.bool_], int]:
    """Grains of ``disk`` that hold other bytes than ``other``, and the bytes read from both.

    What lies past the end of ``other`` differs.
    """
    from vmbk.kernels.compare import compare_blocks

    size, grain = disk.size, settings.grain
    differs = np.zeros(-(-size // grain), np.uint8)
    common = min(size, other.size)
    mine, theirs = disk.data_extents(), other.data_extents()
    both: Ranges = (np.concatenate([mine[0], theirs[0]]), np.concatenate([mine[1], theirs[1]]))
    keep = both[0] < common
    order = np.argsort(both[0][keep], kind="stable")
    offsets, lengths = windows(
        align((both[0][keep][order], both[1][keep][order]), settings.block_size, common),
        settings.block_size,
    )
    lock, read = threading.Lock(), 0

    def work(i: int, buffers: tuple[Bytes, Bytes]) -> None:
        nonlocal read
        offset, length = int(offsets[i]), int(lengths[i])
        a, b = buffers[0][:length], buffers[1][:length]
        disk.read_into(offset, a)
        other.read_into(offset, b)
        compare_blocks(a, b, grain, differs[offset // grain : -(-(offset + length) // grain)])
        with lock:
            read += 2 * length
        if on_progress is not None:
            on_progress(length)

    room = max(WINDOW, settings.block_size)
    for_each(
        len(offsets),
        work,
        lambda: (aligned_buffer(room), aligned_buffer(room)),
        default_workers(),
    )
    flags = differs.astype(bool)
    if size != other.size:
        flags[common // grain :] = True
    return flags, read
