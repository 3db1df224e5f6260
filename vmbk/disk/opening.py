"""Opening an image file or a block device so that nobody else writes it meanwhile."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import Final

from vmbk.errors import BusyError, InputError, NotFoundError, StorageError

_BLKFLSBUF: Final = 0x1261  # linux/fs.h: write back and drop the buffer cache of a device
_HINTS: Final = {
    errno.ENOSPC: "free some space on that file system",
    errno.EDQUOT: "the disk quota is used up",
    errno.EIO: "the device below reports an error; look at the system's log",
    errno.EROFS: "the file system is mounted read-only",
    errno.EFBIG: "the file system cannot hold a file of this size",
}


def is_block_device(path: Path) -> bool:
    """Whether a path names a block device; never raises."""
    try:
        return stat.S_ISBLK(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def open_image(path: Path, flags: int) -> int:
    """Open a regular file, or a block device alone and as it is on the device.

    What is mounted would be read as it was some time ago: a file system writes past the cache
    that serves readers of its device.

    Raises
    ------
    NotFoundError
        If it does not exist.
    InputError
        If it is something else.
    BusyError
        If it is a device that is mounted, or claimed by anybody.
    StorageError
        If the operating system refuses.
    """
    label = f"disk image {str(path)!r}"
    try:
        # Before opening: opening a pipe would wait for somebody at its other end.
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise InputError(
                f"{str(path)!r} is neither a regular file nor a block device",
                hint="name a raw disk image",
            )
        if stat.S_ISREG(mode):
            return os.open(path, flags)
        fd = os.open(path, flags | os.O_EXCL)
        try:
            _drop_cache(fd)
        except BaseException:
            os.close(fd)
            raise
        return fd
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no disk image {str(path)!r}") from error
    except ValueError as error:  # a NUL in the name
        raise InputError(f"{str(path)!r} is no path") from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise InputError(f"{str(path)!r} is a link that leads to itself") from error
        if error.errno == errno.EBUSY:
            raise BusyError(
                f"{str(path)!r} is mounted or otherwise in use",
                hint="unmount it" if flags & os.O_RDWR else "back up a snapshot of it",
            ) from error
        raise storage_error(label, "cannot be opened", error) from error


def _drop_cache(fd: int) -> None:
    """Make a device be read anew: what its cache holds may be older than what is on it."""
    try:
        fcntl.ioctl(fd, _BLKFLSBUF)
    except PermissionError:  # only root may; anybody may say that pages are not needed any more
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def lock_image(fd: int, label: str, *, exclusive: bool) -> None:
    """Take the lock that keeps writers of an image alone: exclusive to write, shared to read.

    It is dropped when the descriptor is closed, also by the death of the process.

    Raises
    ------
    BusyError
        If somebody holds a lock that excludes this one.
    StorageError
        If the file system has no locks.
    """
    try:
        fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BusyError(
            f"{label} is in use" if exclusive else f"{label} is open for writing",
            hint="close it there first; to read a disk while it is written, take a snapshot of it",
        ) from error
    except OSError as error:
        raise storage_error(label, "cannot be locked", error) from error


def storage_error(label: str, what: str, error: OSError) -> StorageError:
    """A `StorageError` that names the disk and says what the operating system said."""
    reason = error.strerror or str(error)
    return StorageError(f"{label} {what}: {reason}", hint=_HINTS.get(error.errno or 0, ""))
