"""The disk images that the programs back up, made by declaration or from real files."""

from __future__ import annotations

import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vmbk.disk.raw import RawDisk
from vmbk.units import KIB, MIB

AREA = MIB
"""Bytes of one kind that lie together."""

CLUSTER = 16 * KIB
"""Bytes of one write of the churn, aligned to as many."""

_VOLUME_OF_CHURN = 1  # the image's own content is of volume 0


@dataclass(frozen=True)
class Mixed:
    """An image of areas that are holes, text or random bytes.

    Parameters
    ----------
    size : int
        Bytes, a multiple of `AREA`.
    holes, text : float
        Shares of the areas; the rest is random.
    seed : int
    """

    size: int = 2048 * MIB
    holes: float = 0.25
    text: float = 0.45
    seed: int = 0

    def make(self, path: Path) -> None:
        areas = self.size // AREA
        kinds = np.full(areas, 2)
        kinds[: round(areas * self.holes)] = 0
        kinds[round(areas * self.holes) : round(areas * (self.holes + self.text))] = 1
        np.random.default_rng(self.seed).shuffle(kinds)
        with path.open("wb") as file:
            file.truncate(self.size)
            for area in np.flatnonzero(kinds).tolist():
                file.seek(area * AREA)
                text = 100 if kinds[area] == 1 else 0
                file.write(_content(self.seed, 0, area, AREA, text).data)


def make_ext4(path: Path, size: int) -> None:
    """A real ext4 file system that holds this Python's own installation."""
    with path.open("wb") as file:
        file.truncate(size)
    subprocess.run(
        ["mke2fs", "-q", "-t", "ext4", "-E", "lazy_itable_init=1,nodiscard", "-d",
         sysconfig.get_path("stdlib"), str(path)],
        check=True,
    )  # fmt: skip


def churn(
    path: Path, seed: int, writes: int = 1280, *, text_percent: int = 60
) -> NDArray[np.int64]:
    """Write at random places of a disk, as a machine does: through the disk, and tracked.

    Returns
    -------
    ndarray of int64, shape (writes,)
        Offsets in bytes of the writes, `CLUSTER` each, ascending and distinct.
    """
    size = path.stat().st_size
    places = np.random.default_rng(seed).choice(size // CLUSTER, writes, replace=False)
    offsets = np.sort(places) * CLUSTER
    with RawDisk(path, "rw") as disk:
        for offset in offsets.tolist():
            disk.write(offset, _content(seed, _VOLUME_OF_CHURN, offset, CLUSTER, text_percent))
        disk.flush()
    return offsets


def rewrite(path: Path) -> None:
    """Write one block again as it is: a disk in use, nothing changed."""
    with RawDisk(path, "rw") as disk:
        block = np.empty(CLUSTER, np.uint8)
        disk.read_into(0, block)
        disk.write(0, block)
        disk.flush()


def written(path: Path, offsets: NDArray[np.int64]) -> bytes:
    """What the churn's writes hold now, one after the other."""
    with path.open("rb") as file:
        parts = []
        for offset in offsets.tolist():
            file.seek(offset)
            parts.append(file.read(CLUSTER))
    return b"".join(parts)


def _content(
    seed: int, volume: int, block: int, length: int, text_percent: int
) -> NDArray[np.uint8]:
    from vmbk.kernels.content import fill_content

    data = np.empty(length, np.uint8)
    versions = np.zeros(1, np.int64)
    fill_content(data, seed, volume, block, versions, length, 0, text_percent, 0)
    return data
