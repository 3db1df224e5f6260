"""A guest that mounts or boots the disk under test: a kernel of its own, emulated, no network.

A hostile file system meets the guest's kernel, not that of this machine, and neither root nor a
loop device is needed. QEMU emulates (no KVM); a boot takes about two seconds.
"""

from __future__ import annotations

import secrets
import stat
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from vmbk.consistency.bounded import TOOL_ENVIRONMENT, BoundedRun, run_bounded
from vmbk.consistency.checkers import Tool
from vmbk.errors import StorageError, VmbkError
from vmbk.units import MIB

QEMU: Final = Tool("qemu-system-x86_64", "qemu-system-x86")
SETPRIV: Final = Tool("setpriv", "util-linux")

GUEST_FILESYSTEMS: Final = ("ext4", "xfs", "btrfs")
"""What a guest can mount: the kernel's modules of these names."""

_INIT: Final = Path(__file__).with_name("guest.sh")
_MEMORY: Final = 256 * MIB
_HASTE: Final = (
    "mitigations=off nokaslr rodata=off no_timer_check tsc=reliable cryptomgr.notests "
    "random.trust_cpu=on"
)
"""What a kernel can leave out of its start where nothing but a disk is looked at."""


@dataclass(frozen=True)
class GuestTask:
    """What a guest does with the disk that it is given.

    Parameters
    ----------
    task : str
        ``"mount"``: mount it, unmount it, power off; the image is changed. ``"boot"``: go on as its
        first program; the image stays as it is.
    filesystem : str
        One of `GUEST_FILESYSTEMS`.
    device : str
        Where the file system is: ``/dev/vda`` or a partition.
    options : str
        Of the mount.
    init : str
        The disk's first program.
    """

    task: str
    filesystem: str
    device: str = "/dev/vda"
    options: str = ""
    init: str = "/sbin/init"


def why_no_guest(filesystem: str) -> str | None:
    """Why no guest can be booted that knows this file system; None where one can."""
    try:
        QEMU.find()
        SETPRIV.find()
        _initramfs(filesystem)
    except VmbkError as error:
        return error.message
    return None


def run_task(
    task: GuestTask, image: Path, *, folder: Path, timeout_s: float, marker: str = ""
) -> BoundedRun:
    """Boot a guest on an image.

    Parameters
    ----------
    task : GuestTask
    image : Path
        A raw image of whole sectors.
    folder : Path
        Where scratch files are made.
    timeout_s : float
        Seconds after which the guest is killed.
    marker : str, optional
        Text on the console at which a boot counts as done. Where absent it is ``booted NONCE``
        with a number that is drawn for this boot and stands on the kernel's command line as
        ``vmbk_nonce=NONCE``: whatever was on the disk before cannot say it, only a program that
        runs.

    Returns
    -------
    BoundedRun
        ``seen`` says whether the task was done; the output is the console's end.

    Raises
    ------
    ToolMissingError
        If QEMU, the guest's kernel or BusyBox is not installed.
    StorageError
        If the scratch space is full.
    VmbkError
        If QEMU itself fails: nothing is known about the disk then.
    """
    nonce = secrets.token_hex(8)
    done = f"mounted {nonce}" if task.task == "mount" else marker or f"booted {nonce}"
    try:
        with tempfile.TemporaryDirectory(prefix="guest-", dir=folder) as name:
            initramfs = Path(name) / "initramfs"
            kernel, content = _initramfs(task.filesystem)
            initramfs.write_bytes(content)
            run = run_bounded(
                _command(task, image, kernel, initramfs, nonce), folder=Path(name),
                # An overlay in which a boot writes lies in this folder, already unlinked.
                timeout_s=timeout_s, environment={**TOOL_ENVIRONMENT, "TMPDIR": name},
                stop_at=done.encode(),
            )  # fmt: skip
    except OSError as error:
        raise StorageError(f"cannot run a guest: {error.strerror or error}") from error
    if run.code != 0 and not run.seen and not run.timed_out:
        # Of a guest that panics or switches itself off QEMU makes no failure: this is its own.
        raise VmbkError(f"QEMU ended with status {run.code}: {run.output.strip()[-300:]}")
    return run


def _command(task: GuestTask, image: Path, kernel: str, initramfs: Path, nonce: str) -> list[str]:
    said = {
        "vmbk_task": task.task,
        "vmbk_nonce": nonce,
        "vmbk_device": task.device,
        "vmbk_type": task.filesystem,
        "vmbk_options": task.options,
        "vmbk_init": task.init,
    }
    # A task that changes the image needs none of it on this machine's disk.
    how = "cache=unsafe" if task.task == "mount" else "snapshot=on"
    where = str(image.absolute()).replace(",", ",,")
    return [
        # Should vmbk be killed, the guest is too.
        *(SETPRIV.find(), "--pdeathsig", "KILL"),
        *(QEMU.find(), "-accel", "tcg", "-machine", "pc", "-smp", "1", "-m", f"{_MEMORY // MIB}M"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-nic", "none", "-no-reboot"),
        # What runs in the guest comes from a disk that nobody trusts.
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        *("-rtc", "base=2024-01-02T00:00:00,clock=vm", "-serial", "stdio"),
        *("-kernel", kernel, "-initrd", str(initramfs).replace(",", ",,")),
        "-append",
        f"console=ttyS0 loglevel=3 panic=-1 {_HASTE} "
        + " ".join(f"{name}={value}" for name, value in said.items() if value),
        "-drive",
        f"if=none,id=disk,format=raw,file.driver=file,file.filename={where},{how}",
        *("-device", "virtio-blk-pci,drive=disk"),
    ]


@lru_cache(maxsize=len(GUEST_FILESYSTEMS))
def _initramfs(filesystem: str) -> tuple[str, bytes]:
    """Path of the kernel, and the first file system: BusyBox and the modules."""
    from vmbk.trace.capture.guest import (
        DISK_MODULES,
        Archive,
        add_busybox,
        find_kernel,
        module_files,
        plain_module,
    )

    kernel = find_kernel()
    archive = Archive()
    archive.add("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    for folder in ("proc", "sys"):
        archive.add(folder, stat.S_IFDIR | 0o755)
    try:
        add_busybox(archive)
        files = module_files(kernel, [*DISK_MODULES, filesystem])
        names = [file.name.partition(".ko")[0] for file in files]
        for module, file in zip(names, files, strict=True):
            archive.add(f"modules/{module}.ko", stat.S_IFREG | 0o644, plain_module(file))
        order = "".join(f"{name}\n" for name in names)
        archive.add("modules/order", stat.S_IFREG | 0o644, order.encode())
        archive.add("init", stat.S_IFREG | 0o755, _INIT.read_bytes())
    except OSError as error:
        raise StorageError(f"cannot build a guest: {error}") from error
    return str(kernel.image), archive.compressed()
