"""`full`: everything that is not zero, whatever was sent before."""

from __future__ import annotations

import numpy as np

from vmbk.detect.changes import ChangeSet, Settings
from vmbk.detect.conclude import conclude
from vmbk.detect.scan import OnData, Scan, align, scan, zero_digests
from vmbk.disk.base import ReadableDisk
from vmbk.progress import Advance


def blank(size: int, block: int, sub: int) -> Scan:
    """The state of a disk of which nothing was read yet: all zeros."""
    return Scan(
        digests=zero_digests(size, block),
        sub_digests=zero_digests(size, sub) if sub else None,
        zero=np.ones(-(-size // (sub or block)), np.uint8),
    )


def full(
    disk: ReadableDisk,
    settings: Settings,
    *,
    on_progress: Advance | None = None,
    on_data: OnData | None = None,
) -> ChangeSet:
    """Report the whole disk as changed; read only where it may hold data."""
    state = blank(disk.size, *settings.units)
    ranges = align(disk.data_extents(), settings.block_size, disk.size)
    if on_progress is not None:
        on_progress(disk.size - int(ranges[1].sum()))  # holes, and done
    scan(disk, ranges, settings.units, state, None, on_progress=on_progress, on_data=on_data)
    every = np.ones(len(state.digests), bool)
    return conclude(
        detector="full",
        size=disk.size,
        settings=settings,
        state=state,
        grains=np.ones(len(state.zero), bool),
        touched=every,
        reported_blocks=every,
        base=None,
    )
