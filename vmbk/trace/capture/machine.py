"""Running a guest in QEMU with every write and flush of its disks recorded."""

from __future__ import annotations

import json
import math
import re
import subprocess
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vmbk.errors import StorageError, VmbkError
from vmbk.trace.capture.daemon import file_node, logging_node
from vmbk.trace.capture.guest import Kernel, find_program
from vmbk.trace.capture.order import order_daemon
from vmbk.units import MIB

QEMU: Final = ("qemu-system-x86_64", "qemu-system-x86")
POLL_S: Final = 0.002
"""Seconds between two looks at the log's size: the resolution of a capture's clock."""

_CONSOLE_LINES = 30  # quoted where a guest fails


@dataclass(frozen=True)
class Run:
    """What is left of a guest that ended well.

    Parameters
    ----------
    log : Path
        Log of blklogwrites; where there are several disks, of their logs (see `order`).
    disks : tuple of Path
        The disks' final images, the first with its mark area.
    marks : list of str
        Labels in the order in which the guest acknowledged them.
    sample_ns, sample_bytes : ndarray of int64, shape (n,)
        When the log was first seen to have grown to which size.
    seconds : float
    qemu : str
        QEMU's version.
    logs : Path, optional
        The disks' own logs, where there are several.
    """

    log: Path
    disks: tuple[Path, ...]
    marks: list[str]
    sample_ns: NDArray[np.int64]
    sample_bytes: NDArray[np.int64]
    seconds: float
    qemu: str
    logs: Path | None = None


def run_guest(
    kernel: Kernel,
    initramfs: bytes,
    disk_sizes: Sequence[int],
    timeout_s: float,
    folder: Path,
    memory: int = 256 * MIB,
) -> Run:
    """Boot the guest on new, empty disks and wait until it has powered off.

    Parameters
    ----------
    kernel : Kernel
    initramfs : bytes
    disk_sizes : sequence of int
        Bytes of each disk.
    timeout_s : float
        Seconds; the guest is killed after them, and whenever this function is left. Should this
        process be killed, the guest ends by itself soon after them.
    folder : Path
        An empty folder for disks, logs and console.
    memory : int
        Bytes of the guest's memory, a whole number of MiB.

    Raises
    ------
    ToolMissingError
        If QEMU is not installed.
    VmbkError
        If the guest fails, panics, or does not end in time, with the console's last lines.
    """
    qemu = str(find_program(*QEMU))
    disks = tuple(folder / f"disk{id}.raw" for id in range(len(disk_sizes)))
    log = folder / "log"
    try:
        (folder / "initramfs").write_bytes(initramfs)
        for disk, size in zip(disks, disk_sizes, strict=True):
            with disk.open("wb") as file:
                file.truncate(size)
        for name in ("log", "console", "lines"):
            (folder / name).touch()
        daemon, log_nodes = (
            (nullcontext(), [{"driver": "raw", "file": file_node(log)}])
            if len(disks) == 1
            else order_daemon(len(disks), folder)
        )
        nodes = [
            logging_node(f"logged{id}", file_node(disk), node)
            for id, (disk, node) in enumerate(zip(disks, log_nodes, strict=True))
        ]
        began = time.monotonic_ns()
        with daemon:
            samples = _watch(_command(qemu, kernel, folder, memory, nodes), log, timeout_s, folder)
            if len(disks) > 1:
                # The daemon may still have had something to write when QEMU ended.
                samples.append((time.monotonic_ns(), log.stat().st_size))
        seconds = (time.monotonic_ns() - began) / 1e9
        lines = (folder / "lines").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise StorageError(f"cannot run the guest: {error}") from error
    if lines[-1:] != ["exit 0"]:
        why = lines[-1] if lines and lines[-1].startswith("exit ") else "it stopped by itself"
        raise VmbkError(f"the guest failed ({why}){_last_lines(folder)}")
    return Run(
        log=log,
        disks=disks,
        marks=[line[5:] for line in lines if line.startswith("mark ")],
        sample_ns=np.array([when for when, _ in samples], np.int64),
        sample_bytes=np.array([size for _, size in samples], np.int64),
        seconds=seconds,
        qemu=version_of(qemu),
        logs=folder / "logs" if len(disks) > 1 else None,
    )


def _command(
    qemu: str, kernel: Kernel, folder: Path, memory: int, nodes: list[dict[str, Any]]
) -> list[str]:
    disks: list[str] = []
    for node in nodes:
        disks += ["-blockdev", json.dumps(node)]
        disks += ["-device", f"virtio-blk-pci,drive={node['node-name']},write-cache=on"]
    return [
        *(qemu, "-accel", "tcg", "-machine", "pc", "-smp", "1", "-m", f"{memory // MIB}M"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-nic", "none", "-no-reboot"),
        # A fixed date makes time stamps within the file system the same in every capture.
        *("-rtc", "base=2024-01-01T00:00:00,clock=vm"),
        *("-serial", f"file:{folder / 'console'}", "-serial", f"file:{folder / 'lines'}"),
        *("-kernel", str(kernel.image), "-initrd", str(folder / "initramfs")),
        *("-append", "console=ttyS0 loglevel=3 panic=-1 mitigations=off random.trust_cpu=on"),
        *disks,
    ]


def _watch(command: list[str], log: Path, timeout_s: float, folder: Path) -> list[tuple[int, int]]:
    """Run QEMU to its end; when the log was seen to have which size."""
    with (folder / "qemu").open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=folder
        )
    try:
        samples = watch(process, log, timeout_s)
    except TimeoutError:
        raise VmbkError(
            f"the guest did not end within {timeout_s:g} s{_last_lines(folder)}",
            hint="give the recipe a longer timeout",
        ) from None
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
    if process.returncode:
        raise VmbkError(f"QEMU ended with status {process.returncode}{_last_lines(folder)}")
    return samples


def watch(
    process: subprocess.Popen[bytes], log: Path, timeout_s: float = math.inf
) -> list[tuple[int, int]]:
    """Wait for a process; when (ns) the log was first seen to have which size (bytes).

    Raises
    ------
    TimeoutError
        If it still runs after that many seconds.
    """
    samples: list[tuple[int, int]] = []
    start, size = time.monotonic_ns(), 0
    while True:
        ended = process.poll() is not None
        now, grown = time.monotonic_ns(), log.stat().st_size
        if grown != size:
            samples.append((now, grown))
            size = grown
        if ended:
            return samples
        if now - start > timeout_s * 1e9:
            raise TimeoutError
        time.sleep(POLL_S)


def _last_lines(folder: Path) -> str:
    """The end of what QEMU and the guest's console said, and before it a panic's first line."""
    said = []
    for name in ("qemu", "console"):
        text = (folder / name).read_text(encoding="utf-8", errors="replace")
        said += [line for line in text.replace(str(folder), "").splitlines() if line.strip()]
    # The stack that follows a panic can be longer than what is shown.
    panic = [line for line in said[:-_CONSOLE_LINES] if "Kernel panic" in line]
    return "".join(f"\n  | {line}" for line in panic[-1:] + said[-_CONSOLE_LINES:])


def version_of(qemu: str) -> str:
    """QEMU's version number."""
    told = subprocess.run([qemu, "--version"], capture_output=True, text=True, timeout=30)
    match = re.search(r"version (\S+)", told.stdout)
    return match[1] if match else "unknown"
