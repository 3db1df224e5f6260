"""`checksum` and `differential`: hash every block and compare with stored digests.

Reads all that is allocated. A block rewritten with the same bytes is not reported. A changed block
whose 64-bit digest collides with the old one would be missed; by chance that is one in 2**64 for a
changed block.
"""

from __future__ import annotations

import numpy as np

from vmbk.detect.changes import Base, ChangeSet, Settings
from vmbk.detect.conclude import conclude, drill_down
from vmbk.detect.full import blank
from vmbk.detect.scan import align, scan
from vmbk.disk.base import ReadableDisk
from vmbk.progress import Advance


def checksum(
    disk: ReadableDisk, base: Base, settings: Settings, *, on_progress: Advance | None = None
) -> ChangeSet:
    """Report the blocks whose XXH3-64 differs from the base point's.

    The base must have been digested at the same block size. Where the disk has grown, the new
    blocks are reported; where it has shrunk, the missing ones are not.
    """
    state = blank(disk.size, *settings.units)
    blocks = len(state.digests)
    comparable = disk.size == base.size
    same_subs = comparable and state.sub_digests is not None and base.sub_digests is not None
    ranges = align(disk.data_extents(), settings.block_size, disk.size)
    # Unless the base has sub-block digests to keep, all are computed: the next job can drill down.
    scan(
        disk,
        ranges,
        settings.units,
        state,
        base.digests if same_subs else None,
        on_progress=on_progress,
    )
    changed = np.ones(blocks, bool)
    known = min(blocks, len(base.digests))
    changed[:known] = state.digests[:known] != base.digests[:known]
    if same_subs and state.sub_digests is not None and base.sub_digests is not None:
        factor = settings.block_size // settings.sub_block_size
        clean = np.repeat(~changed, factor)[: len(state.sub_digests)]
        np.copyto(state.sub_digests, base.sub_digests, where=clean)
    return conclude(
        detector="checksum",
        size=disk.size,
        settings=settings,
        state=state,
        grains=drill_down(changed, state, base, disk.size, settings),
        # Sub-block digests that the base lacks are stored for every block.
        touched=changed if same_subs or not settings.sub_block_size else np.ones(blocks, bool),
        reported_blocks=changed,
        base=base,
    )
