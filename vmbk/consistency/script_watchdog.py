"""The process that freezes file systems and thaws them again, whatever becomes of its caller.

Run as ``python -I -S script_watchdog.py SECONDS DEVICE=MOUNT_POINT...``; it imports nothing of the
package, so that it starts fast and keeps running where nothing can be written. It opens all mount
points, freezes them in the order given and then thaws them, last one first, when

- ``t`` comes on standard input: the caller has its snapshot,
- standard input ends: the caller is dead,
- a signal tells it to end, or
- SECONDS have passed since they were frozen.

On standard output it tells what it did, a line each: ``frozen N`` and ``all``; ``open N ERRNO``,
``freeze N ERRNO`` or ``slow`` where that failed; ``late`` when nobody asked in time, ``dead`` when
the caller had gone, ``signal`` when it was told to end; ``thawed N`` or ``unthawed N ERRNO``.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import sys
from contextlib import suppress
from time import monotonic

FIFREEZE = 0xC0045877  # _IOWR('X', 119, int), linux/fs.h
FITHAW = 0xC0045878  # _IOWR('X', 120, int)

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1,
            signal.SIGUSR2, signal.SIGPIPE, signal.SIGALRM)  # fmt: skip


def _say(text: str) -> None:
    with suppress(OSError):  # nobody listens any more: what counts is to thaw
        os.write(1, f"{text}\n".encode())


class _Watch:
    """Whether it is time to thaw, and why."""

    def __init__(self) -> None:
        told, tell = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, lambda *_: None)
        self._told = told
        self._poll = select.poll()
        self._poll.register(0, select.POLLIN)
        self._poll.register(told, select.POLLIN)

    def wait(self, seconds: float) -> str:
        """Why to thaw; "" if nothing came in the time."""
        end = monotonic() + seconds
        while True:
            ready = dict(self._poll.poll(max(end - monotonic(), 0) * 1000))
            if 0 in ready:
                return "asked" if os.read(0, 1) == b"t" else "dead"
            if self._told in ready:
                return "signal"
            if monotonic() >= end:
                return ""


def main(words: list[str]) -> int:
    """Freeze, wait and thaw; 0 if it was asked to thaw, else 1."""
    timeout_s = float(words[0])
    watch = _Watch()
    with suppress(OSError):  # of all processes not this one, when memory runs out
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        os.write(fd, b"-1000")
        os.close(fd)
    opened: list[int] = []
    frozen: list[int] = []
    try:
        if not _open(words[1:], opened):
            return 1
        end = monotonic() + timeout_s
        for number, file in enumerate(opened):
            if why := watch.wait(0):
                _say(why)
                return 1
            if monotonic() > end:
                _say("slow")
                return 1
            try:
                fcntl.ioctl(file, FIFREEZE, 0)
            except OSError as error:
                _say(f"freeze {number} {error.errno}")
                return 1
            frozen.append(number)
            _say(f"frozen {number}")
        _say("all")
        why = watch.wait(timeout_s)
        if why != "asked":
            _say(why or "late")
        return int(why != "asked")
    finally:
        for number in reversed(frozen):
            try:
                fcntl.ioctl(opened[number], FITHAW, 0)
                _say(f"thawed {number}")
            except OSError as error:
                _say(f"unthawed {number} {error.errno}")


def _open(places: list[str], opened: list[int]) -> bool:
    """Open all before the first is frozen: afterwards it could be too late."""
    for number, place in enumerate(places):
        device, _, point = place.partition("=")
        try:
            file = os.open(point, os.O_RDONLY | os.O_NONBLOCK | os.O_DIRECTORY | os.O_CLOEXEC)
            opened.append(file)
            found = os.fstat(file).st_dev
        except OSError as error:
            _say(f"open {number} {error.errno}")
            return False
        # Something else may have been mounted there since; a subvolume has a device of its own.
        if device and device != f"{os.major(found)}:{os.minor(found)}":
            _say(f"open {number} 0")
            return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
