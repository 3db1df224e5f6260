"""What a vault holds, in numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from vmbk.units import format_size
from vmbk.vault.reader import Reader


@dataclass(frozen=True)
class VaultStats:
    """What a vault holds.

    Attributes
    ----------
    vms, points, packs, chunks : int
        How many.
    disk_bytes : int
        Bytes of all disks at all recovery points.
    raw_bytes : int
        Bytes of all chunks before compression.
    stored_bytes : int
        Bytes of all packs.
    damaged_points : int
        Manifests that do not open.
    """

    vms: int
    points: int
    packs: int
    chunks: int
    disk_bytes: int
    raw_bytes: int
    stored_bytes: int
    damaged_points: int

    def to_dict(self) -> dict[str, int]:
        """Plain data for JSON."""
        return asdict(self)

    def _repr_html_(self) -> str:
        from vmbk.display import key_values

        rows = {
            name: format_size(value) if name.endswith("_bytes") else value
            for name, value in self.to_dict().items()
        }
        return key_values("vault", rows)


def vault_stats(reader: Reader) -> VaultStats:
    """Count; damaged manifests are counted apart."""
    good, bad = reader.read_points()
    reader.refresh()
    index = reader.index
    raw = index.columns().get("raw", np.empty(0, np.int32))
    return VaultStats(
        vms=len({point.vm for point in good}),
        points=len(good),
        packs=len(index.pack_sizes),
        chunks=len(index),
        disk_bytes=sum(point.size for point in good),
        raw_bytes=int(raw.sum(dtype=np.int64)),
        stored_bytes=sum(index.pack_sizes.values()),
        damaged_points=len(bad),
    )
