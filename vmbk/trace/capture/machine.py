"""Running a guest in QEMU with every write and flush of its disk recorded."""

from __future__ import annotations

import json
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vmbk.errors import StorageError, VmbkError
from vmbk.trace.capture.guest import Kernel, find_program

QEMU: Final = ("qemu-system-x86_64", "qemu-system-x86")
POLL_S: Final = 0.002
"""Seconds between two looks at the log's size: the resolution of a capture's clock."""

_MEMORY_MIB = 256
_CONSOLE_LINES = 30  # quoted where a guest fails


@dataclass(frozen=True)
class Run:
    """What is left of a guest that ended well.

    Parameters
    ----------
    log : Path
        Log of blklogwrites.
    disk : Path
        The disk's final image, mark area included.
    marks : list of str
        Labels in the order in which the guest acknowledged them.
    sample_ns, sample_bytes : ndarray of int64, shape (n,)
        When the log was first seen to have grown to which size.
    seconds : float
    qemu : str
        QEMU's version.
    """

    log: Path
    disk: Path
    marks: list[str]
    sample_ns: NDArray[np.int64]
    sample_bytes: NDArray[np.int64]
    seconds: float
    qemu: str


def run_guest(
    kernel: Kernel, initramfs: bytes, disk_size: int, timeout_s: float, folder: Path
) -> Run:
    """Boot the guest on a new, empty disk and wait until it has powered off.

    Parameters
    ----------
    kernel : Kernel
    initramfs : bytes
    disk_size : int
        Bytes.
    timeout_s : float
        Seconds; the guest is killed after them, and whenever this function is left. Should this
        process be killed, the guest ends by itself soon after them.
    folder : Path
        An empty folder for disk, log and console.

    Raises
    ------
    ToolMissingError
        If QEMU is not installed.
    VmbkError
        If the guest fails, panics, or does not end in time, with the console's last lines.
    """
    qemu = str(find_program(*QEMU))
    disk, log = folder / "disk.raw", folder / "log"
    try:
        (folder / "initramfs").write_bytes(initramfs)
        with disk.open("wb") as file:
            file.truncate(disk_size)
        for name in ("log", "console", "lines"):
            (folder / name).touch()
        began = time.monotonic_ns()
        samples = _watch(_command(qemu, kernel, folder), log, timeout_s, folder)
        seconds = (time.monotonic_ns() - began) / 1e9
        lines = (folder / "lines").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise StorageError(f"cannot run the guest: {error}") from error
    if lines[-1:] != ["exit 0"]:
        why = lines[-1] if lines and lines[-1].startswith("exit ") else "it stopped by itself"
        raise VmbkError(f"the guest failed ({why}){_last_lines(folder)}")
    return Run(
        log=log,
        disk=disk,
        marks=[line[5:] for line in lines if line.startswith("mark ")],
        sample_ns=np.array([when for when, _ in samples], np.int64),
        sample_bytes=np.array([size for _, size in samples], np.int64),
        seconds=seconds,
        qemu=_version(qemu),
    )


def _command(qemu: str, kernel: Kernel, folder: Path) -> list[str]:
    def file(name: str) -> dict[str, Any]:
        # Flushes need not reach this machine's disk: a capture that dies is made again.
        cache = {"direct": False, "no-flush": True}
        return {"driver": "file", "filename": str(folder / name), "cache": cache}

    node = {
        "driver": "blklogwrites",
        "node-name": "logged",
        "discard": "unmap",
        "detect-zeroes": "off",
        "log-sector-size": 512,
        "file": {
            "driver": "raw",
            "discard": "unmap",
            "detect-zeroes": "off",
            "file": file("disk.raw") | {"discard": "unmap"},
        },
        "log": {"driver": "raw", "file": file("log")},
    }
    return [
        *(qemu, "-accel", "tcg", "-machine", "pc", "-smp", "1", "-m", f"{_MEMORY_MIB}M"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-nic", "none", "-no-reboot"),
        # A fixed date makes time stamps within the file system the same in every capture.
        *("-rtc", "base=2024-01-01T00:00:00,clock=vm"),
        *("-serial", f"file:{folder / 'console'}", "-serial", f"file:{folder / 'lines'}"),
        *("-kernel", str(kernel.image), "-initrd", str(folder / "initramfs")),
        *("-append", "console=ttyS0 loglevel=3 panic=-1 mitigations=off random.trust_cpu=on"),
        *("-blockdev", json.dumps(node)),
        *("-device", "virtio-blk-pci,drive=logged,write-cache=on"),
    ]


def _watch(command: list[str], log: Path, timeout_s: float, folder: Path) -> list[tuple[int, int]]:
    """Run QEMU to its end; when the log was seen to have which size."""
    samples: list[tuple[int, int]] = []
    with (folder / "qemu").open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        start, size = time.monotonic_ns(), 0
        while True:
            ended = process.poll() is not None
            now, grown = time.monotonic_ns(), log.stat().st_size
            if grown != size:
                samples.append((now, grown))
                size = grown
            if ended:
                break
            if now - start > timeout_s * 1e9:
                raise VmbkError(
                    f"the guest did not end within {timeout_s:g} s{_last_lines(folder)}",
                    hint="give the recipe a longer timeout",
                )
            time.sleep(POLL_S)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
    if process.returncode:
        raise VmbkError(f"QEMU ended with status {process.returncode}{_last_lines(folder)}")
    return samples


def _last_lines(folder: Path) -> str:
    """The end of what QEMU and the guest's console said, and before it a panic's first line."""
    said = []
    for name in ("qemu", "console"):
        text = (folder / name).read_text(encoding="utf-8", errors="replace")
        said += [line for line in text.replace(str(folder), "").splitlines() if line.strip()]
    # The stack that follows a panic can be longer than what is shown.
    panic = [line for line in said[:-_CONSOLE_LINES] if "Kernel panic" in line]
    return "".join(f"\n  | {line}" for line in panic[-1:] + said[-_CONSOLE_LINES:])


def _version(qemu: str) -> str:
    """QEMU's version number."""
    told = subprocess.run([qemu, "--version"], capture_output=True, text=True, timeout=30)
    match = re.search(r"version (\S+)", told.stdout)
    return match[1] if match else "unknown"
