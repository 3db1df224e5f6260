"""Pick the detector, run it, and fall back with a reason where it cannot be trusted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from vmbk.detect.changes import DETECTORS, Base, ChangeSet, Settings
from vmbk.detect.scan import OnData
from vmbk.disk.base import Ranges, ReadableDisk
from vmbk.errors import InputError
from vmbk.progress import Advance

NO_BASE: Final = "no base point"
OTHER_BLOCK_SIZE: Final = "block size changed"
OTHER_SUB_BLOCK_SIZE: Final = "sub-block size changed"
NO_TRACKER: Final = "no tracker"
SPOT_CHECK: Final = "spot check"


@dataclass(frozen=True)
class Tracked:
    """What the tracker says: the ranges written since the base point, or why it can't be trusted.

    Attributes
    ----------
    ranges : (offsets, lengths) or None
        In bytes.
    lost : str
        The reason for a fallback where ``ranges`` is None.
    """

    ranges: Ranges | None = None
    lost: str = NO_TRACKER


def why_full(detector: str, base: Base | None, settings: Settings) -> str | None:
    """The reason why `detect` will take everything, "" where that is no fallback; else None."""
    if detector == "full" or (detector == "auto" and base is None):
        return ""
    if base is None:
        return NO_BASE
    return OTHER_BLOCK_SIZE if base.block_size != settings.block_size else None


def detect(
    disk: ReadableDisk,
    base: Base | None,
    *,
    detector: str = "auto",
    settings: Settings | None = None,
    tracked: Tracked | None = None,
    seed: int = 0,
    on_progress: Advance | None = None,
    on_data: OnData | None = None,
) -> ChangeSet:
    """Find what changed on a disk since a base point.

    Parameters
    ----------
    disk : ReadableDisk
        A disk at rest or a snapshot.
    base : Base or None
        The point to compare with: the last one, or for ``differential`` the last full one. None
        makes the backup full.
    detector : str
        ``auto`` takes tracking where the disk is tracked, else checksum; or one of `DETECTORS`.
    settings : Settings, optional
        Granularity of detection.
    tracked : Tracked, optional
        What the tracker says, for ``auto`` and ``tracking``.
    seed : int
        For the random part of tracking's spot check.
    on_progress : callable, optional
        Called with bytes read, and by `full` with those of holes.
    on_data : callable, optional
        Called with the data while it is read, see `vmbk.detect.scan.scan`; only where `why_full`
        has a reason.

    Returns
    -------
    ChangeSet
        Its ``detector`` is the one that ran; ``fallback`` says why it is not the one requested.

    Raises
    ------
    InputError
        If the detector is unknown.
    """
    from vmbk.detect.checksum import checksum
    from vmbk.detect.compare import compare
    from vmbk.detect.differential import differential
    from vmbk.detect.full import full
    from vmbk.detect.tracking import SpotCheckFailed, tracking

    settings, tracked = settings or Settings(), tracked or Tracked()
    if detector not in (*DETECTORS, "auto"):
        raise InputError(
            f"{detector!r} is no detector", hint=f"choose one of auto, {', '.join(DETECTORS)}"
        )

    def mark(found: ChangeSet, fallback: str = "") -> ChangeSet:
        return replace(found, requested=detector, fallback=fallback)

    why = why_full(detector, base, settings)
    if base is None or why is not None:
        return mark(full(disk, settings, on_progress=on_progress, on_data=on_data), why or "")
    if base.sub_block_size != settings.sub_block_size:
        base = replace(base, sub_block_size=0, sub_digests=None)
    if detector == "compare":
        return mark(compare(disk, base, settings, on_progress=on_progress))
    if detector == "differential":
        return mark(differential(disk, base, settings, on_progress=on_progress))
    if detector == "checksum":
        return mark(checksum(disk, base, settings, on_progress=on_progress))

    lost, wasted = tracked.lost, 0
    if tracked.ranges is not None and settings.sub_block_size and base.sub_digests is None:
        # Only a job that reads everything can give the clean blocks their sub-block digests.
        lost = OTHER_SUB_BLOCK_SIZE
    elif tracked.ranges is not None:
        try:
            return mark(
                tracking(disk, base, tracked.ranges, settings, seed=seed, on_progress=on_progress)
            )
        except SpotCheckFailed as failed:
            lost, wasted = SPOT_CHECK, failed.read_bytes
    elif detector == "auto" and lost == NO_TRACKER:
        lost = ""
    found = checksum(disk, base, settings, on_progress=on_progress)
    return mark(replace(found, scanned_bytes=found.scanned_bytes + wasted), lost)
