"""Whether a point can be restored, by what the index and a listing of the packs can tell."""

from __future__ import annotations

from typing import Final

import numpy as np

from vmbk.errors import IntegrityError
from vmbk.vault.diskmap import build_map, chain
from vmbk.vault.format import KINDS, pack_name
from vmbk.vault.manifest import RecoveryPoint
from vmbk.vault.reader import Reader

HEAL_HINT: Final = (
    "run `vmbk backup --detect full`: it stores again what lost packs held of the disks as they are"
)


def require_restorable(reader: Reader, point: RecoveryPoint, disk_name: str) -> None:
    """Raise unless all that a disk is put together from is there.

    Packs are not read: the caller has looked which are there (`Reader.look_for_packs`).

    Raises
    ------
    IntegrityError
        If the chain is broken, the map does not cover the disk, or a table or a chunk of data is
        in no index file or only in lost packs.
    """
    where = f"disk {disk_name!r}"
    for record in chain(reader, point, disk_name):
        for chunk in (*record.extents, *record.digests, *record.sub_digests):
            if reader.places(chunk)[0].pack in reader.index.lost:
                raise lost_error(reader, chunk, where)
    disk_map = build_map(reader, point, disk_name)
    index = reader.index
    if index.lost:
        chunks = disk_map.chunks[~disk_map.zero]
        lost = index.raw_lengths(chunks, KINDS["data"], present=True) < 0
        if bool(lost.any()):
            raise lost_error(reader, chunks[np.argmax(lost)].tobytes(), where)


def lost_error(reader: Reader, chunk: bytes, where: str) -> IntegrityError:
    """The error for a chunk that only lost packs hold."""
    name = pack_name(reader.places(chunk)[0].pack)
    return IntegrityError(
        f"{where} needs the chunk {chunk.hex()[:16]} of the pack {name!r}, which is missing or cut "
        "short",
        hint=HEAL_HINT,
    )
