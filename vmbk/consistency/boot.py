"""The boot checker: a machine is started from the disk, and a program on it has to say so.

========= ========================================================================================
boots     the disk's own first program ran, did what it had to do, and a marker appeared on the
          console: the number that this boot was given on the kernel's command line.
no-boot   a panic, a machine that switched itself off without the marker, or the time was up.
not tried making the file system had not finished.
========= ========================================================================================

Debian's cloud kernel is booted directly with a small first file system, which mounts the disk as
the kernel finds it (its log is replayed, nothing else repaired), read and write, and gives control
to ``/sbin/init`` of the disk. That has the number in its environment as ``vmbk_nonce`` and, once
all is up, writes the line ``booted`` with it to the console. An init that knows nothing of vmbk is
judged by a text that it writes anyway, such as ``login:``; then the disk could fake it.

QEMU writes into an overlay: the image stays as it is. There is no network, and no KVM.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Final

from vmbk.consistency.checkers import CheckContext, Tool, Verdict
from vmbk.consistency.guest import (
    GUEST_FILESYSTEMS,
    QEMU,
    SETPRIV,
    GuestTask,
    run_task,
    why_no_guest,
)
from vmbk.errors import InputError
from vmbk.units import quoted

_DEVICE: Final = re.compile(r"/dev/vda[0-9]{0,3}", re.ASCII)
_INIT: Final = re.compile(r"(/[A-Za-z0-9_+-][A-Za-z0-9._+-]*)+", re.ASCII)
_UNPRINTABLE: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[^\t\n\x20-\x7e\xa0-\U0010ffff]")
_SIGNS: Final = ("Kernel panic", "given up", "switch_root", "failed")
"""Of the console's lines the last with one of these tells why; looked for in this order."""


@dataclass(frozen=True)
class BootChecker:
    """Judges a disk by booting it; the rule is in the module.

    Parameters
    ----------
    filesystem : str
        Of the root: ext4, xfs or btrfs.
    root : str
        The root's device: ``/dev/vda``, where a file system fills the disk, or a partition,
        ``/dev/vda1``.
    init : str
        The disk's first program.
    marker : str
        Text on the console at which the disk counts as booted; ``booted NONCE`` where empty.
    timeout_s : float
        Seconds after which a boot is given up, and never more than those of the context.

    Raises
    ------
    InputError
        If one of them is not allowed.
    """

    filesystem: str = "ext4"
    root: str = "/dev/vda"
    init: str = "/sbin/init"
    marker: str = ""
    timeout_s: float = 120.0
    name: str = "boot"
    tools: tuple[Tool, ...] = (QEMU, SETPRIV)
    states: tuple[str, ...] = ("boots", "no-boot", "not tried")

    def __post_init__(self) -> None:
        if self.filesystem not in GUEST_FILESYSTEMS:
            raise InputError(
                f"{quoted(self.filesystem)} is no file system to boot from",
                hint="allowed are " + ", ".join(GUEST_FILESYSTEMS),
            )
        if not _DEVICE.fullmatch(self.root):
            raise InputError(
                f"{quoted(self.root)} is no root to boot", hint="write /dev/vda or /dev/vda1"
            )
        if not _INIT.fullmatch(self.init) or len(self.init) > 256:
            raise InputError(
                f"{quoted(self.init)} is no first program", hint="write its path, as /sbin/init"
            )
        if len(self.marker) > 1024 or not self.marker.isprintable():
            raise InputError(f"{quoted(self.marker)} is no text to wait for")
        if not 0 < self.timeout_s < math.inf:
            raise InputError(f"a boot cannot be given {quoted(self.timeout_s)} s")

    def usable(self) -> str | None:
        """Why this checker cannot work on this machine; None where it can."""
        return why_no_guest(self.filesystem)

    def check(self, image: Path, context: CheckContext) -> Verdict:
        """Boot the disk and leave the image as it is; see `Checker.check`.

        Raises
        ------
        VmbkError
            If QEMU itself fails.
        """
        started = perf_counter()
        if context.filesystem_made is False:
            return Verdict(self.name, "not tried", "mkfs had not finished")
        limit = min(self.timeout_s, context.timeout_s)
        task = GuestTask("boot", self.filesystem, self.root, init=self.init)
        run = run_task(task, image, folder=context.folder, timeout_s=limit, marker=self.marker)
        seconds = perf_counter() - started
        console = _UNPRINTABLE.sub("", run.output)
        if run.seen:
            return Verdict(self.name, "boots", f"marker after {seconds:.1f} s", console, seconds)
        why = f"nothing after {limit:g} s" if run.timed_out else _why(console)
        return Verdict(self.name, "no-boot", why, console, seconds)


def _why(console: str) -> str:
    """One line of why a machine ended without the marker."""
    lines = [line.strip() for line in console.splitlines() if line.strip()]
    for sign in _SIGNS:
        for line in reversed(lines):
            if sign in line:
                return line[:200]
    return f"switched itself off: {lines[-1][:200] if lines else 'nothing on the console'}"
