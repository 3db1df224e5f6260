"""From what a scan found to the extents of a `ChangeSet`: drill down, tell zeros, coalesce."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vmbk.detect.changes import Base, ChangeSet, Settings
from vmbk.detect.scan import Scan, flag_ranges, touched_units

Flags = NDArray[np.bool_]


def refine(blocks: Flags, size: int, settings: Settings) -> Flags:
    """The grains of the given blocks."""
    factor = settings.block_size // settings.grain
    return np.repeat(blocks, factor)[: -(-size // settings.grain)]


def drill_down(changed: Flags, state: Scan, base: Base, size: int, settings: Settings) -> Flags:
    """The grains that changed within changed blocks.

    Sub-block digests decide where the base has them; elsewhere the whole block counts. A block
    whose own digest differs while no sub-block's does is sent whole: one of the sub-block digests
    must have collided.
    """
    whole = refine(changed, size, settings)
    if (
        state.sub_digests is None
        or base.sub_digests is None
        or len(base.sub_digests) != len(state.sub_digests)
    ):
        return whole
    grains: Flags = whole & (state.sub_digests != base.sub_digests)
    factor = settings.block_size // settings.grain
    found = np.logical_or.reduceat(grains, np.arange(0, len(grains), factor))
    return grains | refine(changed & ~found, size, settings)


def conclude(
    *,
    detector: str,
    size: int,
    settings: Settings,
    state: Scan,
    grains: Flags,
    touched: Flags,
    reported_blocks: Flags,
    base: Base | None,
    extra_scanned: int = 0,
) -> ChangeSet:
    """Make the `ChangeSet` of the given changed grains.

    Parameters
    ----------
    grains : ndarray of bool, shape (grains,)
        What changed, at the finest granularity.
    touched : ndarray of bool, shape (blocks,)
        Blocks whose digests are stored with the point.
    reported_blocks : ndarray of bool, shape (blocks,)
        What the detector reported before drill-down.
    extra_scanned : int
        Bytes read and hashed beside the scan.
    """
    zero = state.zero.astype(bool)
    data = flag_ranges(grains & ~zero, settings.grain, size, settings.gap)
    unsent = grains & zero & ~touched_units(data, settings.grain, size)
    zeros = flag_ranges(unsent, settings.grain, size)
    short = -size % settings.block_size
    reported = int(np.count_nonzero(reported_blocks)) * settings.block_size
    return ChangeSet(
        detector=detector,
        requested=detector,
        fallback="",
        base=base.point if base else "",
        size=size,
        settings=settings,
        offsets=data[0],
        lengths=data[1],
        zero_offsets=zeros[0],
        zero_lengths=zeros[1],
        digests=state.digests,
        sub_digests=state.sub_digests,
        touched=touched,
        scanned_bytes=state.scanned_bytes + extra_scanned,
        hashed_bytes=state.hashed_bytes + extra_scanned,
        reported_bytes=reported - (short if short and reported_blocks[-1] else 0),
    )
