"""What tells whether an image was written in between, without reading it.

A signature is believed only if every write that follows it must show. Two things stand in the way.
A store through a mapping moves the file's times when its page becomes dirty, and never again until
that page is written back; so the file is written back first, which makes the next store show. And
file times come from a clock that ticks every few milliseconds, so that a write in the tick of the
last one leaves the very same times; so the clock must have passed them before.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from dataclasses import dataclass, replace
from typing import Final

from vmbk.disk.opening import storage_error

_CLOCK_REALTIME_COARSE: Final = 5  # linux/time.h: the clock of file times
_SECOND: Final = 1_000_000_000  # ns
_TICK: Final = 20_000_000  # ns; more than any tick takes
_TRIES: Final = 50
_NO_WRITE_BACK: Final = (errno.EINVAL, errno.EROFS, errno.EBADF, errno.EOPNOTSUPP)
"""Answers of file systems that have nothing to write back, or not for one who only reads."""


@dataclass(frozen=True)
class ImageSignature:
    """What tells one state of an image file from another without reading it.

    Parameters
    ----------
    size : int
        Bytes.
    mtime_ns, ctime_ns : int
        Last change of the content, and of the content or the inode; ns since 1970. The node of a
        block device does not record when the device was written.
    inode, device : int
        Which file it is.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int

    def same_content(self, other: ImageSignature) -> bool:
        """Whether nothing says that the content changed in between.

        The device number is left out: it may change when the machine starts anew.
        """
        mine = (self.size, self.mtime_ns, self.ctime_ns, self.inode)
        return mine == (other.size, other.mtime_ns, other.ctime_ns, other.inode)


def signature_of(fd: int) -> ImageSignature:
    """The signature of an open file or block device."""
    found = os.fstat(fd)
    size = os.lseek(fd, 0, os.SEEK_END) if stat.S_ISBLK(found.st_mode) else found.st_size
    return ImageSignature(
        size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev
    )  # fmt: skip


def trusted_signature(fd: int, label: str) -> ImageSignature:
    """A signature of an open image that differs from every one taken after a later write.

    Waits a few milliseconds where the image was written just now, and about two seconds where the
    file system keeps whole seconds only. Where the image is written without a pause, the result
    equals no other signature. What no signature tells: stores through a mapping on a file system
    without storage (tmpfs), and the rest of a write that is under way.

    Parameters
    ----------
    fd : int
        Open descriptor; one for reading will do.
    label : str
        What the file is, for messages.

    Raises
    ------
    StorageError
        If what was written to the image cannot be written back.
    """
    former, seen = None, 0
    for _ in range(_TRIES):
        started, elapsed = time.clock_gettime_ns(_CLOCK_REALTIME_COARSE), time.monotonic_ns()
        _write_back(fd, label)
        found = signature_of(fd)
        # Whole seconds: a file system that keeps no fractions, or even two seconds as FAT does.
        grain = 0 if found.ctime_ns % _SECOND else 2 * _SECOND
        if started > found.ctime_ns + grain:
            return found
        if found != former:
            former, seen = found, time.monotonic_ns()
        elif elapsed - seen > _TICK + grain:  # by another clock than ours, or ours was set back
            return found
        time.sleep(max(0.001, grain / _SECOND / 40))
    return replace(found, ctime_ns=-time.time_ns())


def _write_back(fd: int, label: str) -> None:
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_WRITE_BACK:
            raise storage_error(label, "cannot be flushed", error) from error
