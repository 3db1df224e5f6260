"""`tracking` (Instant Restore): believe the change tracker, but verify.

Reads only blocks that the tracker marked, and of those only what is allocated. Before the rest is
believed to be clean, all of it that is a hole must have been zeros at the base point, and a sample
of what is allocated is hashed and compared with the base point's digests, as benji does: one block
in a thousand, at least ten, half from the start of the disk (where file systems keep what they
always touch), half at random.
"""

from __future__ import annotations

from random import Random
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vmbk.detect.changes import Base, ChangeSet, Settings
from vmbk.detect.conclude import conclude, drill_down, refine
from vmbk.detect.full import blank
from vmbk.detect.scan import flag_ranges, scan, touched_units
from vmbk.disk.base import Ranges, ReadableDisk
from vmbk.progress import Advance

SPOT_CHECK_SHARE: Final = 0.001
SPOT_CHECK_LEAST: Final = 10


class SpotCheckFailed(Exception):
    """A block that the tracker called clean is not what it was at the base point."""

    def __init__(self, read_bytes: int) -> None:
        super().__init__("a block was called clean and is not")
        self.read_bytes = read_bytes


def tracking(
    disk: ReadableDisk,
    base: Base,
    tracked: Ranges,
    settings: Settings,
    *,
    seed: int = 0,
    on_progress: Advance | None = None,
) -> ChangeSet:
    """Report the blocks that were written since the base point.

    Parameters
    ----------
    disk : ReadableDisk
        The snapshot; as large as the base.
    base : Base
        The base point, digested at the same block size, and at the same sub-block size where
        settings ask for drill-down.
    tracked : offsets, lengths
        What the tracker marked since the base point's snapshot.
    settings : Settings
        Without drill-down every tracked block is reported; with it, those that really differ.
    seed : int
        Picks the random half of the spot check.

    Raises
    ------
    SpotCheckFailed
        If a block outside of ``tracked`` differs from the base.
    """
    size, block = disk.size, settings.block_size
    marked = touched_units(tracked, block, size)
    allocated = touched_units(disk.data_extents(), block, size)
    state = blank(size, *settings.units)
    holes_differ = ~marked & ~allocated & (state.digests != base.digests)
    if holes_differ.any():
        raise SpotCheckFailed(0)
    checked = _spot_check(disk, base, np.flatnonzero(~marked & allocated), block, seed)

    np.copyto(state.digests, base.digests, where=~marked)
    ranges = flag_ranges(marked & allocated, block, size)
    scan(disk, ranges, settings.units, state, base.digests, on_progress=on_progress)
    changed = marked
    if state.sub_digests is not None and base.sub_digests is not None:
        changed = marked & (state.digests != base.digests)
        same = refine(~changed, size, settings)
        np.copyto(state.sub_digests, base.sub_digests, where=same)
    return conclude(
        detector="tracking",
        size=size,
        settings=settings,
        state=state,
        grains=drill_down(changed, state, base, size, settings),
        touched=changed,
        reported_blocks=marked,
        base=base,
        extra_scanned=checked,
    )


def _spot_check(
    disk: ReadableDisk, base: Base, clean: NDArray[np.intp], block: int, seed: int
) -> int:
    """Hash a sample of the blocks called clean; return the bytes read."""
    from vmbk.kernels.hash import xxh3_64

    wanted = min(len(clean), max(SPOT_CHECK_LEAST, round(len(clean) * SPOT_CHECK_SHARE)))
    start, rest = clean[: wanted // 2], clean[wanted // 2 :]
    # Python's generator: NumPy's takes as long to load as a small backup.
    random = rest[sorted(Random(seed).sample(range(len(rest)), wanted - len(start)))]
    buffer = np.empty(block, np.uint8)
    read = 0
    for index in [*start.tolist(), *random.tolist()]:
        offset = index * block
        data = buffer[: min(block, disk.size - offset)]
        disk.read_into(offset, data)
        read += len(data)
        if np.uint64(xxh3_64(data)) != base.digests[index]:
            raise SpotCheckFailed(read)
    return read
