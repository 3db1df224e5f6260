"""Transfer: a disk's data into the vault, in pieces of at most a chunk, by several threads."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

import numpy as np

from vmbk.detect.changes import Digests
from vmbk.detect.scan import PIECE, default_workers, for_each, split
from vmbk.disk.base import Bytes
from vmbk.disk.direct import aligned_buffer
from vmbk.errors import ChangedDuringBackupError, IntegrityError
from vmbk.pipeline.job import SENT, DiskJob
from vmbk.progress import Advance
from vmbk.vault import VaultWriter

_PACKED: Final = struct.Struct("<qqq?32s")  # one record of `SENT`


def transfer(
    job: DiskJob, writer: VaultWriter, find: Callable[..., None], advance: Advance
) -> None:
    """Hand the data of one disk to the vault.

    Parameters
    ----------
    find : callable
        Called as ``find(job, advance, on_data)`` where the job has no changes yet: it finds them,
        and the data is sent while it is in memory.

    Raises
    ------
    ChangedDuringBackupError
        If the disk does not hold what was digested when its changes were found.
    IntegrityError
        If the pieces sent are not the data found: extents and chunks would not belong together.
    """
    sent: list[bytes] = []  # appended to by all threads, which needs no lock

    def send(offset: int, data: Bytes) -> None:
        ref = writer.put(data)
        sent.append(_PACKED.pack(offset, ref.raw, ref.stored, ref.new, ref.id))

    if job.changes is None:
        find(job, advance, send)
    else:
        _read_changes(job, send, advance)
    assert job.changes is not None
    pieces = np.frombuffer(b"".join(sent), SENT)
    job.sent = pieces[np.argsort(pieces["offset"])]
    offsets, lengths = split((job.changes.offsets, job.changes.lengths), PIECE)
    if not (
        np.array_equal(job.sent["offset"], offsets) and np.array_equal(job.sent["length"], lengths)
    ):
        raise IntegrityError(f"disk {job.name!r}: what was sent is not the data that was found")


def _read_changes(job: DiskJob, send: Callable[[int, Bytes], None], advance: Advance) -> None:
    """Read the data extents, and send them if they still are what was digested."""
    assert job.changes is not None
    assert job.view is not None
    view = job.view
    offsets, lengths = split((job.changes.offsets, job.changes.lengths), PIECE)

    def work(i: int, buffers: tuple[Bytes, Digests]) -> None:
        offset, data = int(offsets[i]), buffers[0][: int(lengths[i])]
        view.read_into(offset, data)
        _check_still(job, offset, data, buffers[1])
        send(offset, data)
        advance(len(data))

    grains = PIECE // job.changes.settings.grain
    for_each(
        len(offsets),
        work,
        lambda: (aligned_buffer(PIECE), np.empty(grains, np.uint64)),
        default_workers(),
    )


def _check_still(job: DiskJob, offset: int, data: Bytes, scratch: Digests) -> None:
    """What is sent must be what was digested: a restore is verified against those digests."""
    from vmbk.kernels.hash import xxh3_64_blocks

    changes = job.changes
    assert changes is not None
    grain = changes.settings.grain
    expected = changes.digests if changes.sub_digests is None else changes.sub_digests
    found = scratch[: -(-len(data) // grain)]
    xxh3_64_blocks(data, grain, found)
    first = offset // grain
    if not np.array_equal(found, expected[first : first + len(found)]):
        raise changed(job)


def changed(job: DiskJob) -> ChangedDuringBackupError:
    """The error for a disk that somebody wrote to during its backup."""
    return ChangedDuringBackupError(
        f"disk {job.name!r} was written while it was being backed up; no point was made",
        hint="stop what writes to it, or back up a snapshot of it",
    )
