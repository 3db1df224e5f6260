"""Mount and unmount an image once: only a kernel can replay the log of xfs or of btrfs.

Two ways:

``host``
    This machine's kernel, on a loop device, in mount and process namespaces of its own: with their
    first process everything in them ends, so that nothing stays mounted and no loop device stays in
    use. Only root may do it, and a hostile image meets the kernel of this machine.
``guest``
    A guest's kernel (see `vmbk.consistency.guest`): slower by two seconds or so, and safe.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from time import monotonic, sleep
from typing import Final

from vmbk.consistency.bounded import BoundedRun, run_bounded
from vmbk.consistency.checkers import CheckContext, Tool
from vmbk.consistency.guest import GuestTask, run_task, why_no_guest
from vmbk.errors import InputError, StorageError, VmbkError
from vmbk.units import quoted

WAYS: Final = ("auto", "host", "guest")
"""``auto``: the host where it can, else a guest."""

HOST_FILESYSTEMS: Final = ("xfs",)
"""What this machine's kernel is asked to mount.

Not btrfs: it knows a file system by its id, so that of two states of one capture, checked at the
same time, it may take one for the other.
"""

_OPTIONS: Final = {"xfs": "nouuid"}  # states of one capture share an id
_HARMLESS: Final = "loop,nodev,nosuid,noexec"
_PROGRAMS: Final = (
    Tool("setpriv", "util-linux"),
    Tool("unshare", "util-linux"),
    Tool("mount", "mount"),
    Tool("umount", "mount"),
)
_SCRIPT: Final = 'mount -n -t "$1" -o "$2" -- "$3" "$4" && umount -n -- "$4"'
_RELEASE_S: Final = 20.0


def why_no_mount(filesystem: str, way: str = "auto") -> str | None:
    """Why an image cannot be mounted here; None where it can.

    Raises
    ------
    InputError
        If there is no such way.
    """
    if way not in WAYS:
        raise InputError(f"{quoted(way)} is no way to mount", hint="allowed are " + ", ".join(WAYS))
    reasons = []
    if way != "guest":
        reasons.append(_why_not_here(filesystem))
    if way != "host":
        # Looked for only where it is needed: a guest is built for it.
        reasons.append(why_no_guest(filesystem) if None not in reasons else None)
    return None if None in reasons else "; ".join(str(reason) for reason in reasons)


@dataclass(frozen=True)
class Mounted:
    """What came of a mount.

    Parameters
    ----------
    ok : bool
        It and the unmount worked.
    way : str
        ``"host"`` or ``"guest"``.
    output : str
        The end of what was said.
    timed_out : bool
        It was given up.
    """

    ok: bool
    way: str
    output: str
    timed_out: bool = False

    def __str__(self) -> str:
        ending = "done" if self.ok else "timed out" if self.timed_out else "failed"
        return f"mount ({self.way}): {ending}"


def mount_once(image: Path, filesystem: str, context: CheckContext, way: str = "auto") -> Mounted:
    """Mount an image read and write and unmount it; its log has been replayed then.

    Parameters
    ----------
    image : Path
        A scratch copy: it is changed.
    filesystem : str
    context : CheckContext
        Its folder and its time.
    way : str
        One of `WAYS`.

    Raises
    ------
    InputError
        If no way can mount it here.
    StorageError
        If the scratch space is full, or a loop device stays in use.
    """
    if way != "guest" and why_no_mount(filesystem, "host") is None:
        return _mount_here(image, filesystem, context)
    why = why_no_mount(filesystem, way)
    if why is not None:
        raise InputError(
            f"the log of {filesystem} cannot be replayed here: {why}",
            hint="run as root, or install what a guest needs: apt-get install qemu-system-x86 "
            "linux-image-cloud-amd64 busybox-static",
        )
    task = GuestTask("mount", filesystem)
    run = run_task(task, image, folder=context.folder, timeout_s=context.timeout_s)
    return Mounted(run.seen, "guest", run.output, run.timed_out)


def _mount_here(image: Path, filesystem: str, context: CheckContext) -> Mounted:
    """By a loop device, in namespaces of its own."""
    options = ",".join(filter(None, (_HARMLESS, _OPTIONS.get(filesystem))))
    source = image.resolve()
    try:
        with tempfile.TemporaryDirectory(prefix="mount-", dir=context.folder) as place:
            try:
                run = _unshared(
                    ["/bin/sh", "-c", _SCRIPT, "sh", filesystem, options, str(source), place],
                    Path(place).parent, context.timeout_s,
                )  # fmt: skip
            finally:
                _await_release(source)
    except OSError as error:
        raise StorageError(f"no scratch folder for a mount: {error.strerror}") from error
    output = run.output.replace(place, "").replace(str(source), "the image")
    return Mounted(run.code == 0 and not run.timed_out, "host", output, run.timed_out)


def _unshared(words: list[str], folder: Path, timeout_s: float) -> BoundedRun:
    """Run a command as the first process of namespaces that end with it, or with vmbk."""
    setpriv, unshare = (tool.find() for tool in _PROGRAMS[:2])
    namespaces = ["--mount", "--pid", "--fork", "--kill-child"]
    starter = [setpriv, "--pdeathsig", "KILL", unshare, *namespaces, "--", *words]
    # Killed in the midst of a mount, a process is gone only when the kernel is done with it.
    return run_bounded(starter, folder=folder, timeout_s=timeout_s, settle_s=_RELEASE_S)


def _await_release(image: Path) -> None:
    """Wait until no loop device stands on the image: then all its writes have arrived."""
    until = monotonic() + _RELEASE_S
    while any(_loops_on(image)):
        if monotonic() > until:
            raise StorageError(
                f"a loop device on a scratch copy is still in use after {_RELEASE_S:g} s"
            )
        sleep(0.01)


def _loops_on(image: Path) -> Iterator[Path]:
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):  # gone meanwhile
            if file.read_text().rstrip("\n") == str(image):
                yield file


def _why_not_here(filesystem: str) -> str | None:
    """Why this machine's kernel cannot be asked to mount."""
    if filesystem not in HOST_FILESYSTEMS:
        return f"{filesystem} is mounted by a guest only"
    if os.geteuid() != 0:
        return "only root can mount on this machine"
    return _why_not_by_root(filesystem)


@lru_cache(maxsize=8)
def _why_not_by_root(filesystem: str) -> str | None:
    try:
        for tool in _PROGRAMS:
            tool.find()
        os.close(os.open("/dev/loop-control", os.O_RDWR))
        tried = _unshared(["/bin/true"], Path("/"), 10.0)
    except VmbkError as error:
        return error.message
    except OSError as error:
        return f"there is no loop device: {error.strerror}"
    if tried.code != 0:
        return f"this machine allows no namespaces: {tried.output.strip()[-200:]}"
    known = Path("/proc/filesystems").read_text(encoding="utf-8").split()
    modules = Path("/lib/modules") / os.uname().release / "kernel/fs" / filesystem
    if filesystem not in known and not modules.is_dir():
        return f"the kernel of this machine knows no {filesystem}"
    return None
