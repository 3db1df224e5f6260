"""What a MARS backup compares its volume with: the cache, or the last point in the vault."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from vmbk.detect.changes import Base, Settings
from vmbk.errors import IntegrityError
from vmbk.pipeline.restore import whole_digest
from vmbk.service.mars_cache import Cache
from vmbk.vault import DiskRecord, RecoveryPoint, Vault

LOG: Final = logging.getLogger("vmbk")

NO_CACHE: Final = "the cache is missing or damaged"
BEHIND: Final = "the cache is not that of the last point"
RESIZED: Final = "the volume's size changed"
OTHER_SETTINGS: Final = "the block size changed"
BASE_DAMAGED: Final = "the last point is damaged"


@dataclass(frozen=True)
class Known:
    """What a backup compares with.

    Attributes
    ----------
    base : Base or None
        Digests of the last point; None where everything is sent.
    point : RecoveryPoint or None
        That point.
    cached : bool
        Whether the cache has its VHD.
    why : str
        Why the cache is not believed, "" where it is or there is no point yet.
    """

    base: Base | None = None
    point: RecoveryPoint | None = None
    cached: bool = False
    why: str = ""


def what_is_known(
    vault: Vault,
    points: Sequence[RecoveryPoint],
    kept: Cache,
    volume: str,
    size: int,
    settings: Settings,
) -> Known:
    """Look for the volume's last point in the cache, and where it is not, in the vault.

    Parameters
    ----------
    vault : Vault
        A writer of it is open, so lost packs are known.
    points : sequence of RecoveryPoint
        Those of the volume, by time.
    kept : Cache
        The volume's, held.
    volume : str
        Its name.
    size : int
        Its bytes now.
    settings : Settings
        Block sizes of this backup.
    """
    if not points:
        return Known()
    last = points[-1]
    record = last.disk(volume)
    try:
        vault.require_restorable(last, volume)  # a new point stands on all of it
        why, base = _cached(vault, last, record, kept, size, settings)
        if base is not None:
            return Known(base, last, True)
        sub = vault.sub_digests(last, volume) if record.sub_block_size else None
        base = Base(
            point=last.id,
            size=record.size,
            block_size=record.block_size,
            sub_block_size=record.sub_block_size,
            digests=vault.digests(last, volume),
            sub_digests=sub,
        )
    except IntegrityError as error:
        LOG.warning("point %s cannot be a base: %s", last.id, error.message)
        return Known(why=BASE_DAMAGED)
    return Known(base, last, False, why)


def _cached(
    vault: Vault,
    last: RecoveryPoint,
    record: DiskRecord,
    kept: Cache,
    size: int,
    settings: Settings,
) -> tuple[str, Base | None]:
    """The cache's checksums where they are those of the last point, else why they are not."""
    try:
        state, base = kept.load()
    except IntegrityError as error:
        LOG.warning("%s", error.message)
        return NO_CACHE, None
    if state.vault != vault.id or state.point != last.id:
        return BEHIND, None
    if whole_digest(base.digests) != record.digest:
        return BEHIND, None
    if state.size != size:
        return RESIZED, None
    if (state.block_size, state.sub_block_size) != settings.units:
        return OTHER_SETTINGS, None
    return "", base
