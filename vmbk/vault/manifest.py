"""Recovery points: what is known of each disk at one moment, and its manifest.

Section "Manifest" of `FORMAT.md`.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from dataclasses import dataclass, field, fields
from typing import Any, Final

import pyarrow as pa

from vmbk.errors import InputError, IntegrityError, NotFoundError, VmbkError
from vmbk.units import format_size
from vmbk.vault.arrow import ID_TYPE, from_ipc, to_ipc
from vmbk.vault.format import CHECK_HINT, ID_SIZE, POINT_ID, Buffer

CONSISTENCIES: Final = ("application", "filesystem", "crash")
MAX_NAME: Final = 255
"""Bytes of a VM's or disk's name: what a file system takes."""
_MAX_INT: Final = (1 << 63) - 1
_POINT_KEY: Final = b"vmbk.point"
_NAME: Final = re.compile(r"[^/\x00-\x1f\x7f-\x9f\ud800-\udfff]+")
_NAME_HINT: Final = f"1 to {MAX_NAME} bytes, no control characters, no '/', not '.' or '..'"
_DIGEST: Final = re.compile(r"([0-9a-f]{16})?", re.ASCII)

DISK_SCHEMA: Final = pa.schema(
    [
        pa.field(name, type_, nullable=False)
        for name, type_ in (
            ("name", pa.string()),
            ("size", pa.int64()),
            ("block_size", pa.int64()),
            ("sub_block_size", pa.int64()),
            ("detector", pa.string()),
            ("fallback", pa.string()),
            ("parent", pa.string()),
            ("extents", pa.list_(pa.field("item", ID_TYPE, nullable=False))),
            ("digests", pa.list_(pa.field("item", ID_TYPE, nullable=False))),
            ("sub_digests", pa.list_(pa.field("item", ID_TYPE, nullable=False))),
            ("tracker", pa.string()),
            ("generation", pa.int64()),
            ("digest", pa.string()),
            ("scanned_bytes", pa.int64()),
            ("changed_bytes", pa.int64()),
            ("sent_bytes", pa.int64()),
            ("new_bytes", pa.int64()),
            ("stored_bytes", pa.int64()),
        )
    ]
)
"""Columns of a manifest, one row per disk."""


@dataclass(frozen=True)
class DiskRecord:
    """One disk at one recovery point.

    Attributes
    ----------
    name : str
        Name within the VM; restored as a file of this name.
    size : int
        Bytes.
    block_size : int
        Bytes per block digest.
    sub_block_size : int
        Bytes per sub-block digest; 0 without.
    detector : str
        Detector that found the changes.
    fallback : str
        Why tracking was not trusted; empty if it was, or was not asked.
    parent : str
        Point whose tables these apply to; empty if these tables are whole.
    extents, digests, sub_digests : tuple of bytes
        Chunk ids of the tables.
    tracker : str
        Identity of the change tracker; empty without.
    generation : int
        Its generation at this point.
    digest : str
        XXH3-64, 16 hex, over the little-endian array of all block digests of the whole disk; empty
        if it is not known.
    scanned_bytes : int
        Bytes read to find the changes.
    changed_bytes : int
        Bytes found changed.
    sent_bytes : int
        Bytes handed to the vault.
    new_bytes : int
        Bytes of chunks that the vault did not have.
    stored_bytes : int
        Bytes by which the vault grew.
    """

    name: str
    size: int
    block_size: int
    sub_block_size: int = 0
    detector: str = ""
    fallback: str = ""
    parent: str = ""
    extents: tuple[bytes, ...] = field(default=(), repr=False)
    digests: tuple[bytes, ...] = field(default=(), repr=False)
    sub_digests: tuple[bytes, ...] = field(default=(), repr=False)
    tracker: str = ""
    generation: int = 0
    digest: str = ""
    scanned_bytes: int = 0
    changed_bytes: int = 0
    sent_bytes: int = 0
    new_bytes: int = 0
    stored_bytes: int = 0


@dataclass(frozen=True)
class RecoveryPoint:
    """A committed, restorable state of all disks of one VM.

    Attributes
    ----------
    id : str
        Such as ``20261121T101500Z-1a2b3c4d``; the time is that of ``created_ns``.
    vm : str
        Name of the VM.
    created_ns : int
        UTC, nanoseconds since 1970.
    consistency : str
        ``"application"``, ``"filesystem"`` or ``"crash"``: what is claimed.
    disks : tuple of DiskRecord
        In the order in which they were given.
    provenance : dict
        Plain data on what made the point.
    """

    id: str
    vm: str
    created_ns: int
    consistency: str
    disks: tuple[DiskRecord, ...]
    provenance: dict[str, Any] = field(default_factory=dict, hash=False, repr=False)

    @property
    def size(self) -> int:
        """Bytes of all disks."""
        return sum(disk.size for disk in self.disks)

    @property
    def created(self) -> dt.datetime:
        """UTC time of the point, to the microsecond."""
        return _EPOCH + dt.timedelta(microseconds=self.created_ns // 1000)

    def disk(self, name: str) -> DiskRecord:
        """The disk of this name.

        Raises
        ------
        NotFoundError
            Listing the disks that the point has.
        """
        for disk in self.disks:
            if disk.name == name:
                return disk
        names = ", ".join(repr(disk.name) for disk in self.disks)
        raise NotFoundError(f"the point {self.id} has no disk {name!r}", hint=f"it has {names}")

    def _repr_html_(self) -> str:
        from vmbk.display import table

        return table(
            f"recovery point {self.id}: {self.vm}, {self.consistency}",
            ("disk", "size", "detector", "fallback", "changed", "stored"),
            [
                (d.name, format_size(d.size), d.detector, d.fallback,
                 format_size(d.changed_bytes), format_size(d.stored_bytes))
                for d in self.disks
            ],
        )  # fmt: skip


_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_LAST_NS: Final = 253_402_300_799 * 10**9  # the last second of the year 9999


def new_point_id(created_ns: int, suffix: bytes) -> str:
    """Point id of a moment and four random bytes.

    Raises
    ------
    InputError
        If the moment is not between 1970 and 9999.
    """
    if not 0 <= created_ns <= _LAST_NS:
        raise InputError(
            f"{created_ns} ns is no time between 1970 and 9999",
            hint="set the clock of this machine",
        )
    moment = _EPOCH + dt.timedelta(seconds=created_ns // 10**9)
    return f"{moment:%Y%m%dT%H%M%SZ}-{suffix.hex()}"


def check_vm(vm: str) -> str:
    """The name, if a VM may have it; else `InputError`."""
    if not _is_name(vm):
        raise InputError(f"{vm!r} cannot be the name of a VM", hint=_NAME_HINT)
    return vm


def _is_name(name: object) -> bool:
    return (
        isinstance(name, str)
        and bool(_NAME.fullmatch(name))
        and name not in (".", "..")
        and len(name.encode()) <= MAX_NAME
    )


def check_point(point: RecoveryPoint, error: type[VmbkError], where: str) -> None:
    """Refuse a recovery point that the format does not allow.

    Parameters
    ----------
    error : type
        `InputError` for what a caller gave, `IntegrityError` for what was read.
    where : str
        For messages.
    """

    def require(condition: bool, what: str, hint: str = "") -> None:
        if not condition:
            raise error(f"{where}: {what}", hint=hint)

    require(
        isinstance(point.id, str) and bool(POINT_ID.fullmatch(point.id)),
        f"{point.id!r} is no point id",
    )
    require(_is_name(point.vm), f"{point.vm!r} cannot be the name of a VM", _NAME_HINT)
    require(
        point.consistency in CONSISTENCIES,
        f"consistency {point.consistency!r} is not one of {', '.join(CONSISTENCIES)}",
    )
    require(
        _is_count(point.created_ns) and point.created_ns <= _LAST_NS,
        f"creation time {point.created_ns!r} is out of range",
    )
    require(isinstance(point.provenance, dict), "the provenance is not an object")
    require(bool(point.disks), "there is no disk")
    names = [disk.name for disk in point.disks]
    require(len(set(names)) == len(names), f"two disks have one name: {names!r}")
    for disk in point.disks:
        require(_is_name(disk.name), f"{disk.name!r} cannot be the name of a disk", _NAME_HINT)
        for item in fields(disk):
            value = getattr(disk, item.name)
            about = f"{item.name} {value!r} of disk {disk.name!r} is not allowed"
            if item.type == "int":
                require(_is_count(value), about)
            elif item.type == "str":
                require(isinstance(value, str) and len(value) <= 4096, about)
            else:
                require(all(isinstance(c, bytes) and len(c) == ID_SIZE for c in value), about)
        require(disk.block_size > 0, f"block size 0 of disk {disk.name!r}")
        require(
            disk.parent == ""
            or (disk.parent != point.id and bool(POINT_ID.fullmatch(disk.parent))),
            f"parent {disk.parent!r} of disk {disk.name!r} is not another point",
        )
        require(
            bool(_DIGEST.fullmatch(disk.digest)),
            f"digest {disk.digest!r} of disk {disk.name!r} is not 16 hex",
        )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_INT


def to_payload(point: RecoveryPoint) -> memoryview:
    """A point, checked before, as the payload of its manifest."""
    head = {
        "version": 1,
        "id": point.id,
        "vm": point.vm,
        "created_ns": point.created_ns,
        "consistency": point.consistency,
        "provenance": point.provenance,
    }
    try:
        text = json.dumps(head, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"the provenance of a point must be plain data: {error}") from None
    columns = [
        pa.array([getattr(disk, item.name) for disk in point.disks], item.type)
        for item in DISK_SCHEMA
    ]
    schema = DISK_SCHEMA.with_metadata({_POINT_KEY: text.encode()})
    return to_ipc(pa.Table.from_arrays(columns, schema=schema))


def from_payload(payload: Buffer, point_id: str, where: str) -> RecoveryPoint:
    """Read a manifest's payload and refuse what the format does not allow.

    Raises
    ------
    IntegrityError
        Naming ``where``.
    """
    table = from_ipc(payload, where, DISK_SCHEMA)
    try:
        head = json.loads((table.schema.metadata or {})[_POINT_KEY])
        version = head.pop("version")
        if version != 1:
            raise IntegrityError(
                f"{where} is a manifest of version {version!r}", hint="use a newer vmbk"
            )
        rows = table.to_pylist()
        for row in rows:
            for name in ("extents", "digests", "sub_digests"):
                row[name] = tuple(row[name])
        point = RecoveryPoint(disks=tuple(DiskRecord(**row) for row in rows), **head)
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        raise IntegrityError(f"{where} is no valid manifest", hint=CHECK_HINT) from None
    check_point(point, IntegrityError, where)
    if point.id != point_id:
        raise IntegrityError(f"{where} is the manifest of {point.id!r}", hint=CHECK_HINT)
    return point
