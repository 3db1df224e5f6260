"""Direct I/O: large transfers between memory and the device, past the page cache.

Copying into fresh pages of the cache costs more than all the rest of writing where the system has
to find them first, as a guest does whose host gives memory out late. What was written so is read
back from the device, not from memory.
"""

from __future__ import annotations

import errno
import fcntl
import os
from typing import Final

import numpy as np
from numpy.typing import NDArray

ALIGNMENT: Final = 4096
"""Bytes that places in the file, places in memory and lengths are multiples of."""

_O_DIRECT: Final[int] = getattr(os, "O_DIRECT", 0)  # not on macOS


def aligned_buffer(size: int) -> NDArray[np.uint8]:
    """Memory that direct I/O can use.

    Returns
    -------
    ndarray of uint8, shape (size,)
        It begins at a multiple of `ALIGNMENT`; its content is undefined.
    """
    room = np.empty(size + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + size]


def aligned_length(view: memoryview, offset: int = 0) -> int:
    """How many bytes from the start of ``view`` can be moved directly to or from ``offset``."""
    if len(view) < ALIGNMENT or offset % ALIGNMENT:
        return 0
    if np.frombuffer(view, np.uint8).ctypes.data % ALIGNMENT:
        return 0
    return len(view) - len(view) % ALIGNMENT


def set_direct(fd: int, on: bool) -> bool:
    """Switch direct I/O of an open file; False where its file system has none."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | _O_DIRECT if on else flags & ~_O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return bool(_O_DIRECT)


def write_directly(fd: int, view: memoryview) -> int:
    """Write as much of ``view`` directly as can be, to the start of an empty file.

    Returns
    -------
    int
        Bytes written, 0 where direct I/O is not possible; the rest is the caller's to write. The
        file's position is behind them.

    Raises
    ------
    OSError
        If the operating system refuses.
    """
    wanted = aligned_length(view)
    if not wanted or not set_direct(fd, True):
        return 0
    written = 0
    try:
        while written < wanted and written % ALIGNMENT == 0:
            written += os.write(fd, view[written:wanted])
    except OSError as error:
        if error.errno != errno.EINVAL:  # a device that wants more than pages
            raise
    finally:
        set_direct(fd, False)
    return written
