"""One disk on its way through a backup job."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vmbk.detect.changes import Base, ChangeSet
from vmbk.detect.choose import Tracked
from vmbk.disk.base import ReadableDisk
from vmbk.disk.raw import RawDisk
from vmbk.disk.signature import ImageSignature
from vmbk.errors import InputError
from vmbk.vault import RecoveryPoint

DISK_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
"""Names of VMs and disks: safe as file names. Anything else is refused, in a manifest too."""

SENT: Final = np.dtype(
    [("offset", "<i8"), ("length", "<i8"), ("stored", "<i8"), ("new", "?"), ("chunk", "u1", 32)]
)
"""A piece that the vault has taken: sizes in bytes, whether its chunk was new, and the chunk's id.
"""


@dataclass
class DiskJob:
    """The state of one disk on its way through the stages."""

    name: str
    disk: RawDisk
    base: Base | None = None
    base_point: RecoveryPoint | None = None
    damaged_base: bool = False
    trusted: bool = False
    tracked: Tracked = field(default_factory=Tracked)
    view: ReadableDisk | None = None
    tracker_id: str = ""
    generation: int = 0
    signature: ImageSignature | None = None
    changes: ChangeSet | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    sent: NDArray[Any] = field(default_factory=lambda: np.empty(0, SENT))
    """Pieces that were handed to the vault, sorted by offset."""

    @property
    def sent_bytes(self) -> int:
        """Bytes handed to the vault."""
        return int(self.sent["length"].sum())

    @property
    def new_bytes(self) -> int:
        """Of these, bytes that the vault did not have yet."""
        return int(self.sent["length"][self.sent["new"]].sum())

    @property
    def stored_bytes(self) -> int:
        """Bytes that this took in the vault."""
        return int(self.sent["stored"].sum())


def open_disks(
    disks: Sequence[RawDisk | str | os.PathLike[str]], exclude: Sequence[str], stack: ExitStack
) -> tuple[list[DiskJob], tuple[str, ...]]:
    """Open and lock what is backed up; every disk by its name."""
    if isinstance(disks, (str, bytes, os.PathLike, RawDisk)):
        raise InputError(f"disks must be a list of disks, not {disks!r} alone", hint="[disk]")
    named: dict[str, RawDisk | Path] = {}
    for disk in disks:
        name, source = _name(disk)
        if not DISK_NAME.fullmatch(name):
            raise InputError(
                f"{name!r} is no name for a disk",
                hint="name it: name=path, with letters, digits, dots, dashes and underscores",
            )
        if name in named:
            raise InputError(f"two disks are named {name!r}", hint="name them: name=path")
        named[name] = source
    unknown = sorted(set(exclude) - set(named))
    if unknown:
        raise InputError(
            f"there is no disk {unknown[0]!r} to exclude", hint=f"disks: {', '.join(named)}"
        )
    jobs = []
    for name, source in named.items():
        if name in exclude:
            continue
        if isinstance(source, RawDisk):
            jobs.append(DiskJob(name, source))
        else:
            jobs.append(DiskJob(name, stack.enter_context(RawDisk(source, "r", name))))
    if not jobs:
        raise InputError("there is no disk to back up", hint="name at least one that stays in")
    return jobs, tuple(name for name in named if name in exclude)


def _name(disk: RawDisk | str | os.PathLike[str]) -> tuple[str, RawDisk | Path]:
    """A disk's name: its own, what stands before ``=``, or the file's stem."""
    if isinstance(disk, RawDisk):
        return disk.name, disk
    if not isinstance(disk, (str, os.PathLike)) or isinstance(text := os.fspath(disk), bytes):
        raise InputError(f"{disk!r} is no disk", hint="give a RawDisk or a path")
    name, equals, path = text.partition("=")
    if equals and "/" not in name:
        return name, Path(path)
    return Path(text).stem, Path(text)
