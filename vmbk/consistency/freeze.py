"""Freezes this machine's file systems for a snapshot, and never leaves one frozen.

A frozen file system has written out what it had in memory, its journal included, and holds every
new write up: an image copied meanwhile needs no replay. Freezing is ``FIFREEZE`` and thawing
``FITHAW`` of ioctl_fsfreeze(2), both root's. They are made by a process of their own
(`vmbk.consistency.script_watchdog`), which thaws when it is asked to, when its caller dies, when a
signal ends it and in any case after a time: 60 s as the service has it. If that process is killed
itself, the caller thaws. Only what was frozen here is thawed here.

Which file systems, in which order, and the times are those of the service's public extension
(Azure/azure-linux-extensions, ``VMBackup/main/fsfreezer.py`` and ``safefreeze.c``): ext3, ext4, xfs
and btrfs; the one mounted last first, so that none is frozen before what stands on it; ``/`` last.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import select
import subprocess
import sys
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Final, Protocol, runtime_checkable

from vmbk.consistency.bounded import TOOL_ENVIRONMENT
from vmbk.consistency.script_codes import (
    FREEZE_FAILED,
    FREEZE_TIMEOUT,
    FREEZER_MISSING,
    MOUNT_NOT_OPENED,
)
from vmbk.consistency.script_interrupts import Interrupts
from vmbk.consistency.script_watchdog import FITHAW
from vmbk.errors import InputError, StorageError
from vmbk.units import quoted

FREEZABLE: Final = ("ext3", "ext4", "xfs", "btrfs")
"""The file systems that are frozen; every other one is passed over."""

FREEZE_TIMEOUT_S: Final = 60.0
"""Seconds after which a file system thaws by itself."""

_GRACE_S: Final = 6.0  # the caller waits that much longer for the freeze than the freeze may take
_THAW_S: Final = 30.0
_DYING_S: Final = 2.0
_MOUNTINFO: Final = Path("/proc/self/mountinfo")
_WATCHDOG: Final = Path(__file__).with_name("script_watchdog.py")
_STUCK: Final[list[subprocess.Popen[bytes]]] = []
"""Watchdogs that the kernel does not let go while it freezes; they thaw when it does."""

_ESCAPED: Final = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """A mounted file system.

    Parameters
    ----------
    point : str
        Where it is mounted.
    kind : str
        Such as ``ext4``.
    device : str
        Its number, ``major:minor``.
    source : str
        What is mounted, such as ``/dev/sda1``.
    """

    point: str
    kind: str
    device: str
    source: str = ""

    @property
    def is_loop(self) -> bool:
        """Whether it stands on a file of another file system."""
        return self.source.startswith("/dev/loop")


def read_mounts(path: Path = _MOUNTINFO) -> tuple[Mount, ...]:
    """What is mounted, in order, as proc_pid_mountinfo(5) has it.

    Of several that are mounted on one point only the last can be reached, and only it is given.

    Raises
    ------
    StorageError
        If it cannot be read or is in no known form.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    found: dict[str, Mount] = {}
    for line in lines:
        words = line.split(b" ")
        try:
            dash = words.index(b"-", 6)
            device, point, kind, source = words[2], words[4], words[dash + 1], words[dash + 2]
        except (ValueError, IndexError):
            raise StorageError(f"{path} has a line in no known form: {quoted(line)}") from None
        mount = Mount(_text(point), _text(kind), _text(device), _text(source))
        found.pop(mount.point, None)
        found[mount.point] = mount
    return tuple(found.values())


def _text(word: bytes) -> str:
    return os.fsdecode(_ESCAPED.sub(lambda found: bytes([int(found[1], 8) & 0xFF]), word))


def freezable_mounts(
    points: Collection[str | os.PathLike[str]] | None = None,
    *,
    skip: Collection[str | os.PathLike[str]] = (),
    mounts: Sequence[Mount] | None = None,
) -> tuple[Mount, ...]:
    """The file systems to freeze, in the order in which they are frozen.

    Parameters
    ----------
    points : collection of path, optional
        Only these mount points; else all of the machine but those that stand on loop devices.
    skip : collection of path
        Mount points to pass over, such as that of the temporary disk (``MountsToSkip``).
    mounts : sequence of Mount, optional
        What is mounted; else it is read from ``/proc/self/mountinfo``.

    Raises
    ------
    InputError
        If one of ``points`` is no mount point, or of a file system that is not frozen.
    StorageError
        If it cannot be read what is mounted.
    """
    known = read_mounts() if mounts is None else tuple(mounts)
    passed = {os.fspath(each) for each in skip}
    chosen = [each for each in known if each.kind in FREEZABLE and not each.is_loop]
    if points is not None:
        by_point = {each.point: each for each in known}
        wanted = {_named(point, by_point).point for point in points}
        chosen = [each for each in known if each.point in wanted]
    chosen = [each for each in chosen if each.point not in passed]
    chosen.reverse()
    chosen.sort(key=lambda each: each.point == "/")
    # A file system that is mounted twice is one file system; where one of its places is "/", it
    # holds up everything and is the last.
    by_device: dict[str, Mount] = {}
    for each in chosen:
        if each.point == "/":
            by_device.pop(each.device, None)
        by_device.setdefault(each.device, each)
    return tuple(by_device.values())


def _named(point: str | os.PathLike[str], by_point: dict[str, Mount]) -> Mount:
    name = os.fspath(point)
    mount = by_point.get(name)
    if mount is None:
        raise InputError(f"{quoted(name)} is no mount point", hint="see findmnt")
    if mount.kind not in FREEZABLE:
        raise InputError(
            f"{quoted(name)} is {quoted(mount.kind)}, which is not frozen",
            hint="frozen are " + ", ".join(FREEZABLE),
        )
    return mount


@runtime_checkable
class Freezer(Protocol):
    """Holds file systems still while a snapshot is taken."""

    @property
    def detail(self) -> str:
        """One line on what the last call did."""

    def freeze(self) -> int:
        """Freeze all, or none: 0, or the code of why not (121 to 124)."""

    def thaw(self) -> int:
        """Thaw what is frozen: 0 if it was frozen until now, 122 if it had thawed by itself, 121
        if anybody else had thawed it. Harmless where nothing is frozen.
        """


class FsFreezer:
    """Freezes mounted file systems by a watchdog process; see the module.

    Parameters
    ----------
    mounts : sequence of Mount
        In the order in which they are frozen, as `freezable_mounts` gives them. There may be none:
        then freezing does nothing, as in the service.
    timeout_s : float
        Seconds after which they thaw by themselves.
    freeze_wait_s : float, optional
        Seconds in which all must be frozen; 6 more than the timeout, as in the service.
    thaw_wait_s : float
        Seconds in which the watchdog must thaw; else it is done from here.
    """

    def __init__(
        self,
        mounts: Sequence[Mount],
        *,
        timeout_s: float = FREEZE_TIMEOUT_S,
        freeze_wait_s: float | None = None,
        thaw_wait_s: float = _THAW_S,
    ) -> None:
        if not timeout_s > 0:
            raise InputError(f"a freeze of {quoted(timeout_s)} s is none")
        self.mounts = tuple(mounts)
        self.detail = ""
        self._timeout_s = timeout_s
        self._wait_s = timeout_s + _GRACE_S if freeze_wait_s is None else freeze_wait_s
        self._thaw_s = thaw_wait_s
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._lines: list[list[str]] = []
        self._rest = b""

    @property
    def watchdog(self) -> int | None:
        """The number of the process that freezes, while there is one."""
        return self._watchdog.pid if self._watchdog else None

    def freeze(self) -> int:
        """See `Freezer.freeze`."""
        if self._watchdog is not None:
            raise InputError("the file systems are frozen already", hint="thaw them first")
        _STUCK[:] = [each for each in _STUCK if each.poll() is None]
        self._lines, self._rest = [], b""
        if not self.mounts:
            self.detail = "no file system to freeze"
            return 0
        try:
            self._start()
        except OSError as error:
            self.detail = f"the watchdog cannot be started: {error.strerror}"
            return FREEZER_MISSING
        code = FREEZE_FAILED
        try:
            code = self._frozen()
        finally:
            if code:
                self._release()
        return code

    def thaw(self) -> int:
        """See `Freezer.thaw`."""
        if self._watchdog is None:
            return 0
        with Interrupts():
            return self._thaw()

    def _thaw(self) -> int:
        assert self._watchdog is not None
        assert self._watchdog.stdin is not None
        with suppress(OSError):  # it has ended
            self._watchdog.stdin.write(b"t")
        self._read_until(monotonic() + self._thaw_s, "")
        others = self._release()
        late, dead = self._said("late"), self._said("dead")
        failed = self._said("unthawed")
        self.detail = f"{len(self.mounts)} file systems"
        if late:
            self.detail = f"thawed by itself after {self._timeout_s:g} s"
            return FREEZE_TIMEOUT
        if self._said("signal") or dead:
            self.detail = "the watchdog was told to end and thawed"
            return FREEZE_FAILED
        if failed or others:
            self.detail = f"{self._point(failed) if failed else others} was thawed by others"
            return FREEZE_FAILED
        return 0

    def _start(self) -> None:
        if not sys.executable or not _WATCHDOG.is_file():
            raise FileNotFoundError(errno.ENOENT, "it is not installed")
        places: list[str | bytes] = []
        for each in self.mounts:
            device = "" if each.kind == "btrfs" else each.device
            places.append(os.fsencode(f"{device}={each.point}"))
        words = [sys.executable, "-I", "-S", str(_WATCHDOG), repr(self._timeout_s), *places]
        with Interrupts():
            self._watchdog = subprocess.Popen(
                words, cwd="/", env=dict(TOOL_ENVIRONMENT), start_new_session=True, bufsize=0,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip

    def _frozen(self) -> int:
        """Wait until all are frozen; the code of why they are not."""
        ended = self._read_until(monotonic() + self._wait_s, "all")
        if self._said("all"):
            self.detail = ", ".join(each.point for each in self.mounts)
            return 0
        if failed := self._said("open"):
            self.detail = f"{self._point(failed)} cannot be opened: {_why(failed)}"
            return MOUNT_NOT_OPENED
        if failed := self._said("freeze"):
            self.detail = f"{self._point(failed)} cannot be frozen: {_why(failed)}"
            return FREEZE_FAILED
        if self._said("slow") or not ended:
            self.detail = "it took too long"
            return FREEZE_TIMEOUT
        self.detail = "the watchdog ended too early"
        return FREEZE_FAILED

    def _read_until(self, deadline: float, word: str) -> bool:
        """Read what the watchdog tells, to a word or to its end; whether either came in time."""
        assert self._watchdog is not None
        assert self._watchdog.stdout is not None
        pipe = self._watchdog.stdout.fileno()
        waiting = select.poll()
        waiting.register(pipe, select.POLLIN)
        while not (word and self._said(word)):
            if not waiting.poll(max(deadline - monotonic(), 0) * 1000):
                return False
            chunk = os.read(pipe, 4096)
            if not chunk:
                return True
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            self._lines += [line.decode("ascii", "replace").split(" ") for line in lines]
        return True

    def _said(self, word: str) -> list[str]:
        """The first line of a word; empty if it was not said."""
        return next((line for line in self._lines if line[0] == word), [])

    def _point(self, line: list[str]) -> str:
        return quoted(self.mounts[int(line[1])].point)

    def _release(self) -> str:
        """Let the watchdog go, and thaw what it has left frozen.

        While it freezes it is never killed: the kernel would finish freezing for it, and nobody
        would thaw. Its input has ended, and so it thaws as soon as it can.

        Returns
        -------
        str
            The mount point of one that was left frozen and that others have thawed, else "".
        """
        watchdog = self._watchdog
        if watchdog is None:
            return ""
        others = ""
        try:
            assert watchdog.stdin is not None
            with suppress(OSError):
                watchdog.stdin.close()
            self._read_until(monotonic() + self._thaw_s, "")
        finally:
            self._watchdog = None
            if self._said("all"):
                watchdog.kill()
            try:
                watchdog.wait(_DYING_S)
            except subprocess.TimeoutExpired:
                _STUCK.append(watchdog)
            for number in self._left_frozen():
                if not _thaw(self.mounts[number].point):
                    others = quoted(self.mounts[number].point)
            assert watchdog.stdout is not None
            watchdog.stdout.close()
        return others

    def _left_frozen(self) -> list[int]:
        """What the watchdog has frozen and not thawed, last one first."""
        frozen = [int(line[1]) for line in self._lines if line[0] == "frozen"]
        done = {int(line[1]) for line in self._lines if line[0] in ("thawed", "unthawed")}
        return [number for number in reversed(frozen) if number not in done]


def _why(line: list[str]) -> str:
    number = int(line[2])
    return os.strerror(number) if number else "something else is mounted there now"


def _thaw(point: str) -> bool:
    """Thaw a file system from here; whether it was frozen."""
    try:
        file = os.open(point, os.O_RDONLY | os.O_NONBLOCK | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.ioctl(file, FITHAW, 0)
    except OSError:
        return False
    finally:
        os.close(file)
    return True
