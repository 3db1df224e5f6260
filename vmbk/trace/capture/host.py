"""Capture at native speed: any program, on a recorded disk of this machine, with no guest.

qemu-storage-daemon records a disk and shows it as a file, by FUSE; a loop device and a file system
stand on the file. The program runs in that file system, in mount and process namespaces of its
own, so that nothing stays mounted, no loop device stays in use and nothing stays running, however
the capture ends. Only root may do all that.

Marks work as in a guest: the program ``mark`` is in the command's ``PATH``, and ``mark LABEL``
returns once the label stands in the log's one order.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import numpy as np

from vmbk.errors import InputError, NotFoundError, StorageError, VmbkError
from vmbk.provenance import provenance
from vmbk.trace.capture import MARK_AREA, assemble, file_digest
from vmbk.trace.capture.daemon import STORAGE_DAEMON, StorageDaemon, file_node, logging_node
from vmbk.trace.capture.guest import find_program
from vmbk.trace.capture.machine import POLL_S, Run, version_of, watch
from vmbk.trace.schema import Volume
from vmbk.trace.store import Trace, check_target, write_trace
from vmbk.units import GIB, MIB, format_size, quoted

FILESYSTEMS: Final = ("ext4", "xfs", "none")
MIN_SIZE: Final = 8 * MIB
MIN_XFS: Final = 300 * MIB
MAX_SIZE: Final = 1024 * GIB

_SCRIPT: Final = Path(__file__).with_name("host.sh")
_PROGRAMS: Final = {
    "qemu-storage-daemon": "qemu-system-common",
    "setpriv": "util-linux",
    "unshare": "util-linux",
    "losetup": "mount",
    "mount": "mount",
    "umount": "mount",
    "flock": "util-linux",
}
_DEVICES: Final = {"fuse": "/dev/fuse", "loop": "/dev/loop-control"}
_MKFS: Final = {"ext4": ("mke2fs", "e2fsprogs"), "xfs": ("mkfs.xfs", "xfsprogs")}
_RELEASE_S: Final = 20.0
_NO_SPACE: Final = MIB  # bytes left below which the temporary folder counts as full


def capture_host(
    command: Sequence[str],
    out: str | os.PathLike[str],
    *,
    size: int = GIB,
    filesystem: str = "ext4",
    keep: str | os.PathLike[str] | None = None,
) -> Trace:
    """Run a program of this machine on a recorded disk.

    The program runs as it would from the shell, but in the root of the new file system, whose path
    is in ``VMBK_MOUNT``; ``VMBK_DEVICE`` is the device. Its standard output goes to standard
    error. With ``mark LABEL`` it acknowledges what it has made durable. What it leaves running is
    ended with it. The disk and its log lie in the folder for temporary files (``TMPDIR``).

    Parameters
    ----------
    command : sequence of str
        The program and its arguments.
    out : path
        Trace to write, ``.arrow`` or ``.parquet``.
    size : int
        Bytes of the volume; a whole number of MiB from 8 MiB to 1 TiB.
    filesystem : str
        ``ext4``, ``xfs`` (300 MiB at least), or ``none``: the program writes to ``VMBK_DEVICE``.
    keep : path, optional
        Folder for the volume's final image (``volume.raw``) and the log (``log``).

    Returns
    -------
    Trace
        Writes with their payloads, flushes, discards and marks; times are when the log was seen
        to grow.

    Raises
    ------
    InputError
        If this is not root, or an argument is not allowed.
    NotFoundError
        If there is no such program or folder.
    ToolMissingError
        If a program that the capture itself needs is not installed.
    StorageError
        If there is no FUSE, no loop device, or no space left.
    VmbkError
        If the program fails: its exit code is in the message, and no trace is written.
    IntegrityError
        If the marks in the log are not those that were acknowledged.
    """
    words = _check(command, size, filesystem)
    check_target(out)
    if keep is not None and not Path(keep).is_dir():
        raise NotFoundError(f"there is no folder {quoted(str(keep))} to keep the image in")
    _check_machine(filesystem)
    with tempfile.TemporaryDirectory(prefix="vmbk-host-") as name:
        folder = Path(name)
        try:
            run = _run(words, size, filesystem, folder)
        except VmbkError as error:
            _check_space(folder, error)
            raise
        _check_space(folder, None)
        os.truncate(run.disks[0], size)
        made = {
            "host": True,
            "program": Path(command[0]).name,
            "filesystem": filesystem,
            "qemu": run.qemu,
            "image_digest": file_digest(run.disks[0]),
            "log_bytes": run.log.stat().st_size,
            "seconds": round(run.seconds, 1),
            "poll_s": POLL_S,
            "made_by": provenance().to_dict(),
        }
        trace = assemble(run, [Volume(0, "disk", size)], made)
        write_trace(trace, out)
        if keep is not None:
            shutil.move(run.disks[0], Path(keep) / "volume.raw")
            shutil.move(run.log, Path(keep) / "log")
    return trace


def _check(command: Sequence[str], size: int, filesystem: str) -> list[str]:
    """The command, its program by its whole path."""
    if isinstance(command, str) or not command:
        raise InputError(
            f"{quoted(command)} is no command",
            hint="give the program and its arguments as separate words",
        )
    if size % MIB or not MIN_SIZE <= size <= MAX_SIZE:
        raise InputError(f"size {size} is not a whole number of MiB from 8 MiB to 1 TiB")
    if filesystem == "xfs" and size < MIN_XFS:
        raise InputError(f"size {size} is too small for xfs", hint="it needs 300 MiB")
    if filesystem not in FILESYSTEMS:
        raise InputError(
            f"{quoted(filesystem)} is no file system for a capture",
            hint="allowed are " + ", ".join(FILESYSTEMS),
        )
    if any("\0" in word for word in command):
        raise InputError(f"the command {quoted(list(command))} holds a NUL")
    # The program is started from another folder.
    program = shutil.which(command[0])
    if program is None:
        raise NotFoundError(f"there is no program {quoted(command[0])}")
    return [str(Path(program).absolute()), *command[1:]]


def _check_machine(filesystem: str) -> None:
    if os.geteuid() != 0:
        raise InputError(
            "only root can capture on this machine: it mounts a file system",
            hint="use sudo, or a recipe, whose guest needs no rights",
        )
    for name, package in _PROGRAMS.items():
        find_program(name, package)
    if filesystem in _MKFS:
        find_program(*_MKFS[filesystem])
    for module, device in _DEVICES.items():
        try:
            os.close(os.open(device, os.O_RDWR))
        except OSError as error:
            raise StorageError(
                f"cannot open {device}: {error.strerror}",
                hint=f"load the module {module}; a container must be given the device",
            ) from error


def _run(words: list[str], size: int, filesystem: str, folder: Path) -> Run:
    """Set the disk up, run the command on it and take everything down."""
    disk, log, device = folder / "disk.raw", folder / "log", folder / "device"
    try:
        # The program may become another user, who must come through to the file system.
        folder.chmod(0o711)
        for name in ("disk.raw", "log", "device", "lines", "said"):
            (folder / name).touch(0o600)
        for name in ("bin", "mounted"):
            (folder / name).mkdir()
        os.truncate(disk, size + MARK_AREA)
    except OSError as error:
        raise StorageError(f"cannot make a disk: {error.strerror}") from error
    daemon = StorageDaemon(
        [logging_node("logged", file_node(disk), {"driver": "raw", "file": file_node(log)})],
        ["--export", f"type=fuse,id=disk,node-name=logged,mountpoint={device},writable=on"],
        folder,
    )
    namespaces = ["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    starter = [
        *(str(find_program("setpriv", "util-linux")), "--pdeathsig", "KILL"),
        *(str(find_program("unshare", "util-linux")), *namespaces),
        *("/bin/sh", str(_SCRIPT), str(folder), str(size), filesystem, *words),
    ]
    began = time.monotonic_ns()
    with _exported(daemon, device):
        # Standard output is where the answer of a vmbk command goes, and nothing else.
        process = subprocess.Popen(starter, stdout=2)
        try:
            samples = watch(process, log)
        finally:
            _kill(process)
            _await_release(device)
        _check_lines(folder, process.returncode, daemon)
    samples.append((time.monotonic_ns(), log.stat().st_size))
    lines = (folder / "lines").read_text(encoding="utf-8", errors="replace").splitlines()
    return Run(
        log=log,
        disks=(disk,),
        marks=[line[5:] for line in lines if line.startswith("mark ")],
        sample_ns=np.array([when for when, _ in samples], np.int64),
        sample_bytes=np.array([seen for _, seen in samples], np.int64),
        seconds=(time.monotonic_ns() - began) / 1e9,
        qemu=version_of(str(find_program(*STORAGE_DAEMON))),
    )


@contextmanager
def _exported(daemon: StorageDaemon, device: Path) -> Iterator[None]:
    """The daemon, running; afterwards nothing is mounted on the device's file."""
    try:
        with daemon:
            yield
    finally:
        # One that was killed leaves its mount behind, on which every access fails.
        while _is_mounted(device):
            umount = [str(find_program("umount", "mount")), "--lazy", str(device)]
            if subprocess.run(umount, capture_output=True).returncode:
                break


def _is_mounted(path: Path) -> bool:
    # The file below the mount is on the folder's file system. A dead mount cannot be asked.
    try:
        return path.stat().st_dev != path.parent.stat().st_dev
    except OSError:
        return path.parent.exists()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the namespaces; with their first process all others in them are killed."""
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
    process.wait()


def _await_release(device: Path) -> None:
    """Wait until no loop device stands on the file: then all its writes have arrived."""
    until = time.monotonic() + _RELEASE_S
    while time.monotonic() < until:
        found = list(_loops_on(device))
        if not found:
            return
        for loop in found:  # one that was not yet given back when the script was killed
            losetup = [str(find_program("losetup", "mount")), "--detach", str(loop)]
            subprocess.run(losetup, capture_output=True)
        time.sleep(0.02)
    raise StorageError(f"a loop device on the recorded disk is still in use after {_RELEASE_S:g} s")


def _loops_on(device: Path) -> Iterator[Path]:
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):  # gone meanwhile
            if file.read_text().strip().startswith(str(device)):
                yield Path("/dev") / file.parent.parent.name


def _check_lines(folder: Path, status: int, daemon: StorageDaemon) -> None:
    """Raise what went wrong, if anything did."""
    lines = (folder / "lines").read_text(encoding="utf-8", errors="replace").splitlines()
    if lines[-1:] == ["done"]:
        return
    last = lines[-1] if lines else ""
    said = (folder / "said").read_text(encoding="utf-8", errors="replace")
    said = said.replace(str(folder), "").strip()[:1000]
    if not daemon.running:
        raise VmbkError(f"qemu-storage-daemon ended too early: {daemon.said()}")
    ended = [line for line in lines if line.startswith("command ")]
    if ended and ended[0] != "command 0":
        raise VmbkError(
            f"the command failed: exit code {ended[0].removeprefix('command ')}",
            hint="no trace is written of a command that fails",
        )
    if last.startswith("failed "):
        raise VmbkError(f"{last.removeprefix('failed ')} failed: {said or 'it said nothing'}")
    raise VmbkError(f"the capture stopped by itself (exit code {status}) {said}".rstrip())


def _check_space(folder: Path, error: VmbkError | None) -> None:
    space = os.statvfs(folder)
    free = space.f_bavail * space.f_frsize
    if free < _NO_SPACE:
        told = f": {error.message}" if error else ""
        raise StorageError(
            f"{format_size(free)} are left for the recorded disk and its log{told}",
            hint="let TMPDIR name a folder with more space",
        ) from error
