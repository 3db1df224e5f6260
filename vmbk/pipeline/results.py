"""What jobs return: frozen records that show themselves and turn into JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vmbk.detect.changes import ChangeSet
from vmbk.display import table
from vmbk.units import format_duration, format_size


@dataclass(frozen=True)
class DiskBackup:
    """What one job did to one disk. All sizes in bytes, times in seconds.

    Attributes
    ----------
    name : str
        The disk.
    size : int
        Its size.
    detector, fallback : str
        The detector that ran, and why it is not the one requested ("" where it is).
    base : str
        The base point, "" for a full backup.
    scanned_bytes : int
        Read to find the changes.
    reported_bytes : int
        Taken as changed before drill-down.
    changed_bytes : int
        In the extents, data and zeros.
    extents : int
        Number of extents.
    sent_bytes : int
        Data handed to the vault.
    new_bytes : int
        Of these, what the vault did not have yet, before compression.
    stored_bytes : int
        What that took in the vault, compressed and encrypted.
    detect_seconds, transfer_seconds : float
        Time of the disk's own stages. Where everything was taken and the settings have no gap, the
        disk was read once, in transfer, and detect took no time.
    changes : ChangeSet
        The extents themselves.
    """

    name: str
    size: int
    detector: str
    fallback: str
    base: str
    scanned_bytes: int
    reported_bytes: int
    changed_bytes: int
    extents: int
    sent_bytes: int
    new_bytes: int
    stored_bytes: int
    detect_seconds: float
    transfer_seconds: float
    changes: ChangeSet = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {k: getattr(self, k) for k in self.__dataclass_fields__ if k != "changes"}


@dataclass(frozen=True)
class BackupResult:
    """A finished backup job.

    Attributes
    ----------
    point : str
        The recovery point that was committed.
    vm : str
        The VM.
    disks : tuple of DiskBackup
        One for each disk that was backed up.
    excluded : tuple of str
        Disks that were left out.
    seconds : dict of str to float
        Wall time of the stages ``prepare``, ``snapshot``, ``detect``, ``transfer``, ``commit``
        and of the job (``total``). Disks run in parallel; a stage's time is the longest disk's.
    stored_bytes : int
        What the vault grew by, tables, index and manifest included.
    """

    point: str
    vm: str
    disks: tuple[DiskBackup, ...]
    excluded: tuple[str, ...]
    seconds: dict[str, float]
    stored_bytes: int

    def total(self, attribute: str) -> int:
        """Sum of an attribute over the disks."""
        return sum(int(getattr(d, attribute)) for d in self.disks)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; the keys that the design promises are totals over the disks."""
        return {
            "point": self.point,
            "vm": self.vm,
            "detector": "+".join(sorted({d.detector for d in self.disks})),
            "fallback": "; ".join(sorted({d.fallback for d in self.disks if d.fallback})),
            "scanned_bytes": self.total("scanned_bytes"),
            "reported_bytes": self.total("reported_bytes"),
            "changed_bytes": self.total("changed_bytes"),
            "extents": self.total("extents"),
            "sent_bytes": self.total("sent_bytes"),
            "new_bytes": self.total("new_bytes"),
            "stored_bytes": self.stored_bytes,
            "seconds": self.seconds,
            "disks": [d.to_dict() for d in self.disks],
            "excluded": list(self.excluded),
        }

    def _repr_html_(self) -> str:
        header = ("disk", "detector", "fallback", "read", "changed", "extents", "sent", "stored")
        rows = [
            (d.name, d.detector, d.fallback or "none", format_size(d.scanned_bytes),
             format_size(d.changed_bytes), f"{d.extents:,}", format_size(d.sent_bytes),
             format_size(d.stored_bytes))
            for d in self.disks
        ]  # fmt: skip
        return table(f"Backup of {self.vm}: recovery point {self.point}", header, rows)


@dataclass(frozen=True)
class RestoredDisk:
    """One restored disk: its name, where it is, its bytes, and the digest that was verified."""

    name: str
    path: Path | None
    size: int
    written_bytes: int
    digest: str
    verified: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self) | {"path": str(self.path) if self.path else None}


@dataclass(frozen=True)
class RestoreResult:
    """A finished restore.

    Attributes
    ----------
    point : str
        The recovery point.
    disks : tuple of RestoredDisk
        One for each disk.
    verified : bool
        Whether every disk was read back and its digests equal those stored with the point: what
        was restored is what was backed up.
    seconds : float
        Wall time.
    """

    point: str
    disks: tuple[RestoredDisk, ...]
    verified: bool
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "point": self.point,
            "disks": [d.to_dict() for d in self.disks],
            "bytes": sum(d.size for d in self.disks),
            "written_bytes": sum(d.written_bytes for d in self.disks),
            "verified": self.verified,
            "seconds": self.seconds,
        }

    def _repr_html_(self) -> str:
        rows = [
            (d.name, format_size(d.size), format_size(d.written_bytes), d.digest,
             "yes" if d.verified else "no")
            for d in self.disks
        ]  # fmt: skip
        title = f"Restore of {self.point} in {format_duration(self.seconds)}"
        return table(title, ("disk", "size", "written", "digest", "verified"), rows)
