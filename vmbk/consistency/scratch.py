"""Scratch copies of disk images, made as cheaply as the file system allows."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from vmbk.errors import InputError, NotFoundError, StorageError

if TYPE_CHECKING:
    from vmbk.consistency.crash import CrashState

T = TypeVar("T")

_FICLONE: Final = 0x40049409  # _IOW(0x94, 9, int), linux/fs.h: share all blocks of another file
_NO_REFLINK: Final = {errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV, errno.ENOSYS}


_MEMORY: Final = Path("/dev/shm")
_SPARE: Final = 4


def scratch_folder(needed: int) -> Path | None:
    """A folder in memory where there is plenty of it, else None: the system's temporary folder.

    Checkers sync what they write, and on a disk that is most of the time that they take. Whoever
    has set ``TMPDIR`` has chosen.

    Parameters
    ----------
    needed : int
        Bytes at most; four times as many must be free.
    """
    if os.environ.get("TMPDIR") or not os.access(_MEMORY, os.W_OK | os.X_OK):
        return None
    try:
        space = os.statvfs(_MEMORY)
        said = re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        return None
    free = min(space.f_bavail * space.f_frsize, int(said[1]) << 10 if said else 0)
    return _MEMORY if free >= _SPARE * needed else None


def copy_image(source: Path, target: Path) -> None:
    """Copy a disk image: by reflink where possible, else only its data, so that holes stay holes.

    Parameters
    ----------
    source, target : Path
        The target is made or replaced.

    Raises
    ------
    NotFoundError, InputError
        If the source is missing or is no regular file.
    StorageError
        If the operating system refuses, as on a full disk.
    """
    if not source.exists():
        raise NotFoundError(f"there is no image {str(source)!r}")
    if not source.is_file():
        raise InputError(f"{str(source)!r} is not a regular file")
    try:
        with source.open("rb") as reader, target.open("wb") as writer:
            if not _reflink(reader.fileno(), writer.fileno()):
                _copy_data(reader.fileno(), writer.fileno())
    except OSError as error:
        raise StorageError(f"cannot copy {str(source)!r}: {error.strerror}") from error


def judge_states(
    built: Iterable[CrashState],
    judge: Callable[[CrashState, Mapping[str, Path], Path], T],
    *,
    workers: int,
    folder: Path | None,
    on_progress: Callable[[int], None] | None = None,
) -> list[T]:
    """Judge scratch copies of crash states by several threads, in the order of the states.

    Parameters
    ----------
    built : iterable of CrashState
        Each is valid until the next is asked for, so it is copied at once.
    judge : callable
        Called with the state, of which only the point and the digest still count, the copies of
        its images by their names, and a folder of its own. The copies are removed after it.
    workers : int
        How many states are judged at once.
    folder : Path or None
        Where the copies are made; the system's temporary folder where None.
    on_progress : callable, optional
        Called with 1 after each state, in the calling thread.

    Raises
    ------
    StorageError
        If the scratch space is full.
    """
    waiting: deque[Future[T]] = deque()
    found: list[T] = []

    def run(state: CrashState, copies: Mapping[str, Path], place: Path) -> T:
        try:
            return judge(state, copies, place)
        finally:
            shutil.rmtree(place, ignore_errors=True)  # what is left goes with the folder above

    def collect() -> None:
        found.append(waiting.popleft().result())
        if on_progress is not None:
            on_progress(1)

    with (
        tempfile.TemporaryDirectory(prefix="vmbk-check-", dir=folder) as scratch,
        ThreadPoolExecutor(workers) as pool,
    ):
        for number, state in enumerate(built):
            place = Path(scratch) / f"state-{number}"
            place.mkdir()
            copies = {name: place / f"{i}.img" for i, name in enumerate(state.images)}
            for name, copy in copies.items():
                copy_image(state.images[name], copy)
            waiting.append(pool.submit(run, state, copies, place))
            if len(waiting) > workers:  # one copy waits while the others are judged
                collect()
        while waiting:
            collect()
    return found


def _reflink(source: int, target: int) -> bool:
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno in _NO_REFLINK:
            return False
        raise
    return True


def _copy_data(source: int, target: int) -> None:
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    end = 0
    while end < size:
        try:
            start = os.lseek(source, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole is left
                return
            raise
        end = os.lseek(source, start, os.SEEK_HOLE)
        os.lseek(source, start, os.SEEK_SET)
        os.lseek(target, start, os.SEEK_SET)
        while start < end:
            # Within the kernel, whatever the two file systems are.
            copied = os.sendfile(target, source, None, end - start)
            if not copied:
                return  # the source was cut meanwhile
            start += copied
