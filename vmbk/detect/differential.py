"""`differential`: everything that changed since the last full backup, however often it was sent."""

from __future__ import annotations

from dataclasses import replace

from vmbk.detect.changes import Base, ChangeSet, Settings
from vmbk.detect.checksum import checksum
from vmbk.disk.base import ReadableDisk
from vmbk.progress import Advance


def differential(
    disk: ReadableDisk, last_full: Base, settings: Settings, *, on_progress: Advance | None = None
) -> ChangeSet:
    """Report the blocks whose digest differs from the last full point's.

    The same comparison as `checksum`; what makes it differential is that the caller hands in the
    last point made by `full`, not the last point.
    """
    found = checksum(disk, last_full, settings, on_progress=on_progress)
    return replace(found, detector="differential", requested="differential")
