"""What a detector is asked and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from vmbk.disk.base import Ranges, ReadableDisk
from vmbk.errors import InputError
from vmbk.units import KIB, MIB, format_size

DetectorName = Literal["full", "checksum", "tracking", "differential", "compare"]
DETECTORS: Final[tuple[DetectorName, ...]] = (
    "full",
    "checksum",
    "tracking",
    "differential",
    "compare",
)

Digests = NDArray[np.uint64]


@dataclass(frozen=True)
class Settings:
    """How finely changes are looked for.

    Attributes
    ----------
    block_size : int
        Bytes per block, the unit of detection. A power of two from 512 B to 1 MiB.
    sub_block_size : int
        Bytes per sub-block, the unit of drill-down; 0 turns drill-down off. A power of two of at
        least 512 B that is smaller than the block.
    gap : int
        Bytes of unchanged data that coalescing may send along to join two extents.
    """

    block_size: int = 64 * KIB
    sub_block_size: int = 4 * KIB
    gap: int = 0

    def __post_init__(self) -> None:
        _check_power("block size", self.block_size, 512, MIB)
        if self.sub_block_size:
            _check_power("sub-block size", self.sub_block_size, 512, self.block_size // 2)
        if not 0 <= self.gap <= 64 * MIB:
            raise InputError(f"the gap must be between 0 and 64 MiB, not {self.gap}")

    @property
    def units(self) -> tuple[int, int]:
        """Bytes per block and per sub-block."""
        return self.block_size, self.sub_block_size

    @property
    def grain(self) -> int:
        """Bytes of the smallest unit that is sent."""
        return self.sub_block_size or self.block_size


def _check_power(what: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high or value & (value - 1):
        raise InputError(
            f"the {what} must be a power of two from {format_size(low)} to {format_size(high)}, "
            f"not {value}"
        )


@dataclass(frozen=True)
class Base:
    """What is known of the disk at its base point.

    Attributes
    ----------
    point : str
        The recovery point.
    size : int
        Bytes of the disk then.
    block_size, sub_block_size : int
        Bytes per stored digest; ``sub_block_size`` is 0 where no sub-block digests were stored.
    digests : ndarray of uint64, shape (blocks,)
        XXH3-64 of each block.
    sub_digests : ndarray of uint64, shape (sub-blocks,), or None
        XXH3-64 of each sub-block.
    tracker, generation : str, int
        The tracker's identity and the generation that the point's snapshot closed; "" for none.
    disk : ReadableDisk or None
        The bytes of the base point, which only `compare` reads.
    """

    point: str
    size: int
    block_size: int
    sub_block_size: int
    digests: Digests
    sub_digests: Digests | None = None
    tracker: str = ""
    generation: int = 0
    disk: ReadableDisk | None = field(default=None, repr=False)


@dataclass(frozen=True)
class ChangeSet:
    """What a detector found.

    The extents cover every byte that differs from the base. Data extents are to be sent; zero
    extents now read as zeros and need no data.

    Attributes
    ----------
    detector : str
        The detector that ran.
    requested : str
        The detector that was asked for.
    fallback : str
        Why another one ran, or "".
    base : str
        The base point, "" for a full backup.
    size : int
        Bytes of the disk.
    settings : Settings
        The granularity used.
    offsets, lengths : ndarray of int64, shape (extents,)
        Data extents in bytes, sorted and disjoint.
    zero_offsets, zero_lengths : ndarray of int64
        Zero extents in bytes, sorted and disjoint.
    digests : ndarray of uint64, shape (blocks,)
        XXH3-64 of every block of the disk now.
    sub_digests : ndarray of uint64, shape (sub-blocks,), or None
        XXH3-64 of every sub-block now; None without drill-down.
    touched : ndarray of bool, shape (blocks,)
        Blocks whose digests may differ from the base's, and are stored with the point.
    scanned_bytes : int
        Bytes read from disks to find the changes.
    hashed_bytes : int
        Bytes that went through a digest.
    reported_bytes : int
        Bytes of the blocks that were taken as changed before drill-down.
    """

    detector: str
    requested: str
    fallback: str
    base: str = field(repr=False)
    size: int
    settings: Settings
    offsets: NDArray[np.int64] = field(repr=False)
    lengths: NDArray[np.int64] = field(repr=False)
    zero_offsets: NDArray[np.int64] = field(repr=False)
    zero_lengths: NDArray[np.int64] = field(repr=False)
    digests: Digests = field(repr=False)
    sub_digests: Digests | None = field(repr=False)
    touched: NDArray[np.bool_] = field(repr=False)
    scanned_bytes: int
    hashed_bytes: int
    reported_bytes: int

    @property
    def extents(self) -> int:
        """Number of extents, data and zero."""
        return len(self.offsets) + len(self.zero_offsets)

    @property
    def data_bytes(self) -> int:
        """Bytes of the data extents: what is sent."""
        return int(self.lengths.sum())

    @property
    def changed_bytes(self) -> int:
        """Bytes of all extents."""
        return self.data_bytes + int(self.zero_lengths.sum())

    def all_extents(self) -> Ranges:
        """Data and zero extents together, sorted by offset."""
        offsets = np.concatenate([self.offsets, self.zero_offsets])
        lengths = np.concatenate([self.lengths, self.zero_lengths])
        order = np.argsort(offsets, kind="stable")
        return offsets[order], lengths[order]

    def bitmap(self, granularity: int) -> NDArray[np.uint8]:
        """The extents as a bitmap, one bit per ``granularity`` bytes, LSB first."""
        from vmbk.kernels.bitmap import mark_ranges

        bits = np.zeros((-(-self.size // granularity) + 7) // 8, np.uint8)
        mark_ranges(bits, *self.all_extents(), granularity)
        return bits

    def covers(self, other: ChangeSet) -> bool:
        """Whether every byte that ``other`` reports lies in an extent of this one.

        Raises
        ------
        InputError
            If they are of disks of different sizes.
        """
        if self.size != other.size:
            raise InputError(f"disks of {self.size} and {other.size} bytes cannot be compared")
        unit = min(512, self.size)
        missing = other.bitmap(unit) & ~self.bitmap(unit)
        return not missing.any()

    def _repr_html_(self) -> str:
        from vmbk.display import key_values

        return key_values(
            "ChangeSet",
            {
                "detector": self.detector,
                "fallback": self.fallback or "none",
                "scanned": format_size(self.scanned_bytes),
                "reported": format_size(self.reported_bytes),
                "changed": format_size(self.changed_bytes),
                "to send": format_size(self.data_bytes),
                "extents": f"{self.extents:,}",
            },
        )
