"""The MARS agent's cache of one volume: its last state as a VHD, and a checksum for each block.

====================  ==========================================================================
file                  what
====================  ==========================================================================
``base.vhd``          fixed VHD: the volume as it was at the last backup
``checksums``         XXH3-64 of each block of it, and of each sub-block; little-endian
``state``             which recovery point that is, in which vault; only what it says is believed
``increment.vhd``     differencing VHD: what changed since; gone when it is merged
``base.vhd.new``      a whole image on its way to become ``base.vhd``
====================  ==========================================================================

The state is the last file written and the first one removed: while ``base.vhd`` is being changed
there is none. So whoever finds a state finds the image and the checksums that belong to it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np

from vmbk.detect.changes import Base, ChangeSet, Digests, Settings
from vmbk.detect.full import blank
from vmbk.detect.scan import align, scan
from vmbk.disk.base import ReadableDisk
from vmbk.disk.opening import lock_image, storage_error
from vmbk.disk.raw import RawDisk
from vmbk.errors import IntegrityError, TargetTooSmallError, VmbkError
from vmbk.pipeline.restore import whole_digest
from vmbk.progress import progress
from vmbk.service.durable import remove_files, replace_file, save_file
from vmbk.service.vhd import (
    DifferencingVhd,
    copy_extents,
    create_fixed,
    fixed_footer,
    write_differencing,
)
from vmbk.units import format_size

MOST_STATE: Final = 64 * 1024
"""Bytes of the state; nobody writes a longer one."""


@dataclass(frozen=True)
class CacheState:
    """What the cache is the state of. Sizes in bytes.

    Attributes
    ----------
    vault, point : str
        Ids of the vault and of the recovery point.
    size, block_size, sub_block_size : int
        Of the volume, and of what has a checksum.
    image : str
        Identity of ``base.vhd``, hex.
    digest : str
        XXH3-64, hex, over the file of checksums.
    """

    vault: str
    point: str
    size: int
    block_size: int
    sub_block_size: int
    image: str
    digest: str

    @classmethod
    def parse(cls, data: bytes) -> CacheState:
        """Read what `to_bytes` wrote; `ValueError` for anything else."""
        told = json.loads(data)
        kinds = {"size": int, "block_size": int, "sub_block_size": int}
        good = isinstance(told, dict) and sorted(told) == sorted(cls.__dataclass_fields__)
        if not good or any(type(told[name]) is not kinds.get(name, str) for name in told):
            raise ValueError("this is no state of a cache")
        state = cls(**told)
        Settings(state.block_size, state.sub_block_size)
        if not 0 < state.size < 1 << 63:
            raise ValueError("a volume has at least one byte")
        return state

    def to_bytes(self) -> bytes:
        """As JSON."""
        return json.dumps(asdict(self), sort_keys=True).encode()


class Cache:
    """The cache of one volume.

    Parameters
    ----------
    folder : Path
        Made where it is absent.
    volume : str
        The volume's name, for messages.
    """

    def __init__(self, folder: Path, volume: str) -> None:
        self.folder, self.volume = folder, volume
        self._base = folder / "base.vhd"
        self._new = folder / "base.vhd.new"
        self._increment = folder / "increment.vhd"
        self._state = folder / "state"
        self._checksums = folder / "checksums"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the cache alone, and remove what a killed backup left.

        Raises
        ------
        BusyError
            If another backup uses it.
        StorageError
            If the folder cannot be made or written.
        """
        label = f"the cache {str(self.folder)!r}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            fd = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise storage_error(label, "cannot be used", error) from error
        try:
            lock_image(fd, label, exclusive=True)
            remove_files(self._new, self._increment)
            yield
        finally:
            with suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)

    def load(self) -> tuple[CacheState, Base]:
        """What the last backup left.

        Raises
        ------
        IntegrityError
            If there is nothing, or anything that does not belong together.
        """
        lost = f"the cache of the volume {self.volume!r}"
        try:
            with self._state.open("rb") as file:
                state = CacheState.parse(file.read(MOST_STATE))
            blocks = -(-state.size // state.block_size)
            subs = -(-state.size // state.sub_block_size) if state.sub_block_size else 0
            if self._checksums.stat().st_size != 8 * (blocks + subs):
                raise IntegrityError(f"{lost} has not a checksum for each block")
            digests = np.fromfile(self._checksums, "<u8").astype(np.uint64, copy=False)
            with RawDisk(self._base, "r") as image:
                footer = fixed_footer(image)
        except (OSError, ValueError, RecursionError, VmbkError) as error:
            raise IntegrityError(f"{lost} is not there, or damaged: {error}") from error
        if len(digests) != blocks + subs or whole_digest(digests) != state.digest:
            raise IntegrityError(f"{lost} has damaged checksums")
        if footer.id.hex() != state.image or footer.size != state.size:
            raise IntegrityError(f"{lost} has the image of something else")
        base = Base(
            point=state.point,
            size=state.size,
            block_size=state.block_size,
            sub_block_size=state.sub_block_size,
            digests=digests[:blocks],
            sub_digests=digests[blocks:] if subs else None,
        )
        return state, base

    def require_room(self, image: int, data: int, least: float) -> int:
        """Raise unless the file system has room for an image and the share it must have free.

        Parameters
        ----------
        image : int
            Bytes that the images of this backup take.
        data : int
            Bytes of data of the volume.
        least : float
            Share of the data.

        Returns
        -------
        int
            Bytes that are free.

        Raises
        ------
        TargetTooSmallError
            If there is too little; nothing was written then.
        """
        free = shutil.disk_usage(self.folder).free
        needed = max(image, int(least * data))
        if free < needed:
            raise TargetTooSmallError(
                f"the cache folder {str(self.folder)!r} has {format_size(free)} free; the backup "
                f"of {self.volume!r} needs {format_size(needed)}",
                hint="put the cache folder on a larger disk",
            )
        return free

    # The images of a backup

    def drop(self) -> None:
        """Remove the state and the image: a new one is to be made, and room is scarce."""
        self.forget()
        remove_files(self._base)

    def make_whole(self, view: ReadableDisk) -> RawDisk:
        """An image of the whole volume, ``base.vhd.new``, durable; open for writing."""
        disk, _ = create_fixed(self._new, view.size)
        try:
            ranges = view.data_extents()
            with progress(f"image {self.volume}", int(ranges[1].sum())) as advance:
                copy_extents(view, ranges, disk, on_progress=advance)
            disk.flush()
        except BaseException:
            disk.close()
            raise
        return disk

    def make_increment(self, view: ReadableDisk, changes: ChangeSet) -> DifferencingVhd:
        """An image of what changed, ``increment.vhd``, durable; open for reading."""
        with RawDisk(self._base, "r") as base:
            parent = fixed_footer(base)
        with progress(f"image {self.volume}", changes.changed_bytes) as advance:
            write_differencing(
                self._increment, view, changes.all_extents(), parent, self._base.name,
                on_progress=advance,
            )  # fmt: skip
        return DifferencingVhd(self._increment)

    # After the point was made

    def forget(self) -> None:
        """Remove the state, durably: from here on nobody believes the image."""
        remove_files(self._state)

    def put_whole(self, image: RawDisk) -> None:
        """Make ``base.vhd.new`` the base."""
        image.close()
        self.forget()
        replace_file(self._new, self._base)

    def merge(self, increment: DifferencingVhd) -> int:
        """Write what the differencing VHD holds into its parent, ``base.vhd``, durably.

        Returns
        -------
        int
            Bytes that were written.

        Raises
        ------
        IntegrityError
            If ``base.vhd`` is not its parent; nothing is written then.
        """
        self.forget()
        with RawDisk(self._base, "rw") as base:
            if fixed_footer(base).id != increment.parent:
                raise IntegrityError(f"{str(self._base)!r} is not what the increment builds on")
            merged = copy_extents(increment, increment.data_extents(), base)
            base.flush()
        return merged

    def save(self, vault: str, point: str, changes: ChangeSet) -> None:
        """Store the checksums and then the state, durably: the image is that of the point."""
        with RawDisk(self._base, "r") as image:
            identity = fixed_footer(image).id.hex()
        digests = _joined(changes.digests, changes.sub_digests)
        sub_size = changes.settings.sub_block_size if changes.sub_digests is not None else 0
        state = CacheState(
            vault, point, changes.size, changes.settings.block_size, sub_size, identity,
            whole_digest(digests),
        )  # fmt: skip
        save_file(self._checksums, digests.astype("<u8", copy=False).tobytes())
        save_file(self._state, state.to_bytes())
        remove_files(self._increment)

    def verify(self) -> CacheState:
        """Read the image whole and compare it with the checksums.

        Raises
        ------
        IntegrityError
            If they differ, or there is nothing to compare.
        """
        state, base = self.load()
        found = blank(state.size, state.block_size, 0)
        with RawDisk(self._base, "r") as image:
            offsets, lengths = image.data_extents()
            inside = offsets < state.size  # the footer is no part of the volume
            offsets, lengths = offsets[inside], lengths[inside]
            ranges = offsets, np.minimum(lengths, state.size - offsets)
            scan(
                image, align(ranges, state.block_size, state.size), (state.block_size, 0),
                found, None,
            )  # fmt: skip
        wrong = np.flatnonzero(found.digests != base.digests)
        if len(wrong):
            raise IntegrityError(
                f"the cache of the volume {self.volume!r} differs from its checksums in "
                f"{len(wrong)} blocks, first at byte {int(wrong[0]) * state.block_size}",
                hint="remove the cache folder: the next backup compares in full",
            )
        return state


def _joined(digests: Digests, sub_digests: Digests | None) -> Digests:
    return digests if sub_digests is None else np.concatenate([digests, sub_digests])
