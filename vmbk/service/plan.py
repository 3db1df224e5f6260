"""A scenario as the engines take it: columns of whole numbers, every draw and limit settled.

`MODEL.md` says what is done with them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Int64s = NDArray[np.int64]

SECOND: Final = 10**9
HOUR: Final = 3600 * SECOND
DAY: Final = 24 * HOUR
ONE: Final = 1 << 20
"""Full speed."""
ATTEMPTS: Final = 8
MOST_CHURN: Final = 1 << 42
"""Bytes of one disk a day, so that products stay within 63 bits."""

# What becomes of an attempt; the labels are those of a recovery point.
FAIL, RETRY, CRASH, FILESYSTEM, APPLICATION = range(5)
LABELS: Final = ("none", "none", "crash", "filesystem", "application")
STATES: Final = ("Completed", "CompletedWithWarnings", "Failed", "Skipped")
COMPLETED, COMPLETED_WITH_WARNINGS, FAILED, SKIPPED = range(4)
TRANSFERS: Final = ("none", "not due", "skipped", "done", "failed")
NO_TRANSFER, NOT_DUE, TRANSFER_SKIPPED, TRANSFER_DONE, TRANSFER_FAILED = range(5)
MODES: Final = ("none", "initial", "checksum", "tracking", "fallback")
NO_MODE, INITIAL, CHECKSUM, TRACKING, FALLBACK = range(5)
ROTATE, DELETE = range(2)

RULES: Final = (
    "seed", "weekday", "jitter", "install_low", "install_high", "snapshot_low", "snapshot_high",
    "retry", "queue_peak", "commit", "transfer_failure", "overlap", "two_phase", "request",
)  # fmt: skip
"""Numbers that hold for all; `transfer_failure` in units of 2^-32, the last flags 0 or 1."""
VM: Final = ("schedule", "offset", "vault", "kind", "installs")
"""Columns of a VM: indices of its schedule, vault and class of failures, and ns."""
DISK: Final = (
    "vm", "account", "used", "growth", "churn", "spread", "weekend", "added", "full_rate",
    "scan_rate", "send_rate", "extent", "extent_cost", "tracked_cost", "iops", "tracking", "size",
)  # fmt: skip
"""Columns of a disk: bytes, bytes a day, bytes a second, ns; `account` is -1 for a managed one."""
JOB: Final = (
    "scheduled", "start", "install", "snapshot", "snapshot_at", "point", "queue", "place", "scan",
    "send", "commit", "end", "read", "changed", "sent", "extents", "told",
)  # fmt: skip
"""Columns of a job, ns and bytes; absent moments are -1. ``told`` packs the rest: see `TOLD`."""
TOLD: Final = {
    "attempts": (0, 4), "label": (4, 3), "state": (7, 2), "transfer": (9, 3), "initial": (12, 1),
    "fallback": (13, 1), "cause": (16, 16), "critical": (32, 16),
}  # fmt: skip
"""Position and width in bits. `cause` 0 is none; `critical` is 1 + the disk's place in its VM."""
PART: Final = ("mode", "read", "changed", "extents", "scan_end", "send_end")
"""Columns of a disk in a job."""
ACCOUNT_TOLD: Final = (
    "busy", "throttled", "lost", "peak_egress", "peak_backup_egress", "peak_requests",
    "peak_backup_requests",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What an engine runs.

    Attributes
    ----------
    rules : numpy.ndarray of int64, shape (len(RULES),)
    days : int
        Length of the scenario; hours of accounts are counted for so many days.
    queue_curve : numpy.ndarray of int64, shape (24,)
        Thousandths of the longest wait, by hour of the day.
    slot_first : numpy.ndarray of int64, shape (schedules + 1,)
        Slots of schedule s are ``slot_first[s]`` to ``slot_first[s + 1]``.
    slots, slot_due : numpy.ndarray of int64, shape (slots,)
        Times in ns, ascending within a schedule, and 1 where the slot's point goes to the vault.
    vms : numpy.ndarray of int64, shape (VMs, len(VM))
    disks : numpy.ndarray of int64, shape (disks, len(DISK))
        By VM: those of one VM stand together, in the order of the VMs.
    places : numpy.ndarray of int64, shape (vaults,)
        Transfers at once; 0 is any number.
    thresholds : numpy.ndarray of int64, shape (classes, causes)
    consequences : numpy.ndarray of int64, shape (classes, causes + 1, ATTEMPTS)
    lasting : numpy.ndarray of int64, shape (classes, causes + 1)
    accounts : numpy.ndarray of int64, shape (accounts, 2)
        Bytes and requests a second at most.
    guest_egress, guest_requests : numpy.ndarray of int64, shape (accounts, 24)
        The guests' own load a second, by hour of the day.
    events : numpy.ndarray of int64, shape (events, 3)
        Time in ns, ascending; ROTATE or DELETE; index of the account or VM.
    """

    rules: Int64s
    days: int
    queue_curve: Int64s
    slot_first: Int64s
    slots: Int64s
    slot_due: Int64s
    vms: Int64s
    disks: Int64s
    places: Int64s
    thresholds: Int64s
    consequences: Int64s
    lasting: Int64s
    accounts: Int64s
    guest_egress: Int64s
    guest_requests: Int64s
    events: Int64s
    job_first: Int64s = field(init=False)
    disk_first: Int64s = field(init=False)
    part_first: Int64s = field(init=False)

    def __post_init__(self) -> None:
        schedules = self.vms[:, VM.index("schedule")]
        jobs = self.slot_first[schedules + 1] - self.slot_first[schedules]
        counts = np.bincount(self.disks[:, DISK.index("vm")], minlength=len(self.vms))
        for name, lengths in (
            ("job_first", jobs), ("disk_first", counts), ("part_first", jobs * counts)
        ):  # fmt: skip
            first = np.zeros(len(self.vms) + 1, np.int64)
            np.cumsum(lengths, out=first[1:])
            object.__setattr__(self, name, first)

    def rule(self, name: str) -> int:
        """One of `RULES`."""
        return int(self.rules[RULES.index(name)])


@dataclass(frozen=True)
class Outputs:
    """What an engine found; both engines fill the same columns.

    Attributes
    ----------
    jobs : numpy.ndarray of int64, shape (jobs, len(JOB))
        Jobs of VM v are rows ``plan.job_first[v]`` to ``plan.job_first[v + 1]``.
    parts : numpy.ndarray of int64, shape (parts, len(PART)) or (0, len(PART))
        Disk i (0-based within its VM, of n) in job k of VM v is row
        ``plan.part_first[v] + k n + i``; empty where they were not asked for. A disk that took no
        part has mode NO_MODE and zeros; a moment that never was is -1.
    accounts : numpy.ndarray of int64, shape (accounts, len(ACCOUNT_TOLD))
    account_hours : numpy.ndarray of int64, shape (accounts, 24 * days)
        The backups' bytes.
    """

    jobs: Int64s
    parts: Int64s
    accounts: Int64s
    account_hours: Int64s

    @classmethod
    def empty(cls, plan: Plan, *, parts: bool) -> Outputs:
        """Zeros of the right shapes."""
        rows = int(plan.part_first[-1]) if parts else 0
        told = np.zeros((rows, len(PART)), np.int64)
        told[:, [PART.index("scan_end"), PART.index("send_end")]] = -1
        return cls(
            np.zeros((int(plan.job_first[-1]), len(JOB)), np.int64),
            told,
            np.zeros((len(plan.accounts), len(ACCOUNT_TOLD)), np.int64),
            np.zeros((len(plan.accounts), 24 * plan.days), np.int64),
        )


def told(jobs: Int64s, name: str) -> Int64s:
    """A packed column of jobs.

    Parameters
    ----------
    jobs : numpy.ndarray of int64, shape (jobs, len(JOB))
    name : str
        A key of `TOLD`.
    """
    shift, bits = TOLD[name]
    found: Int64s = (jobs[:, JOB.index("told")] >> shift) & ((1 << bits) - 1)
    return found
