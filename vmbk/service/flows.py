"""What disks ask of the service, without the service: works and demands at full speed, and shared.

The arithmetic is that of `MODEL.md` ("A flow", "Accounts"), for many disks at once and for a day
that the caller lays out: no draws, no waits, no failures. The capacity plan rests on it, and tests
hold it against the engine.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vmbk.service.plan import DISK, HOUR, ONE, SECOND, Plan

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vmbk.service.scenario import Scenario

    Int64s = NDArray[np.int64]

BACKUPS: Final = ("initial", "incremental", "checksum")
"""First backups, those by the era's own detector, and those that must compare checksums."""


@dataclass(frozen=True)
class Flows:
    """One scan, or one send, of each disk.

    Attributes
    ----------
    work : numpy.ndarray of int64, shape (disks,)
        Nanoseconds at full speed.
    egress, requests : numpy.ndarray of int64, shape (disks,)
        A second, at full speed; 0 where the work is 0.
    """

    work: Int64s
    egress: Int64s
    requests: Int64s


@dataclass(frozen=True)
class Transfers:
    """A transfer of each disk: what it reads and sends, scan first.

    Attributes
    ----------
    read, changed, extents : numpy.ndarray of int64, shape (disks,)
        Bytes, bytes and a count.
    scan, send : Flows
    """

    read: Int64s
    changed: Int64s
    extents: Int64s
    scan: Flows
    send: Flows

    @property
    def work(self) -> Int64s:
        """Nanoseconds of both at full speed."""
        total: Int64s = self.scan.work + self.send.work
        return total


def disk_column(plan: Plan, name: str) -> Int64s:
    """A column of the plan's disks."""
    found: Int64s = plan.disks[:, DISK.index(name)]
    return found


def busiest_change(scenario: Scenario, plan: Plan) -> Int64s:
    """Bytes that each disk changes, at most, between two backups that go to the vault.

    The most of a week: a daily policy's busiest day, a weekly one's longest pause. Days do not
    differ otherwise here (`churn_spread` is their mean), and no disk changes more than it uses.

    Returns
    -------
    numpy.ndarray of int64, shape (disks,)
    """
    weekend = disk_column(plan, "weekend")
    weights = np.full((len(plan.disks), 7), 1 << 16, np.int64)
    weights[:, 5:] = weekend[:, None]
    spans = {name: _spans(policy.schedule.weekdays) for name, policy in scenario.policies.items()}
    most = np.zeros(len(plan.disks), np.int64)
    policies = np.array([vm.policy for vm in scenario.vms])[disk_column(plan, "vm")]
    for name in np.unique(policies):
        mine = policies == name
        for days in spans[str(name)]:
            most[mine] = np.maximum(most[mine], weights[mine][:, list(days)].sum(axis=1))
    # churn < 2^42, a week's weight < 2^20
    changed = (disk_column(plan, "churn") * most) >> 16
    least: Int64s = np.minimum(changed, disk_column(plan, "used"))
    return least


def _spans(weekdays: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The weekdays that lie between a backup and the one before."""
    if not weekdays:
        return [(day,) for day in range(7)]
    found = []
    for i, day in enumerate(weekdays):
        gap = (day - weekdays[i - 1]) % 7 or 7
        found.append(tuple((day - back) % 7 for back in range(gap)))
    return found


def transfers(plan: Plan, backup: str, changed: Int64s) -> Transfers:
    """Works and demands of all disks in one kind of backup.

    Parameters
    ----------
    plan : Plan
    backup : str
        One of `BACKUPS`.
    changed : numpy.ndarray of int64, shape (disks,)
        Bytes that changed; a first backup sends what is used instead.

    Returns
    -------
    Transfers
    """
    column = {name: plan.disks[:, i] for i, name in enumerate(DISK)}
    used, every = column["used"], np.arange(len(plan.disks))
    none = np.zeros(len(plan.disks), np.int64)
    if backup == "initial":
        send = flows_of(plan, every, used, column["full_rate"])
        return Transfers(none, used, none, Flows(none, none, none), send)
    extents = _ceil(changed, column["extent"])
    tracked = (column["tracking"] > 0) & (backup == "incremental")
    read = np.where(tracked, 0, used)
    looked = np.where(tracked, extents * column["tracked_cost"], 0)
    scan = flows_of(plan, every, read, column["scan_rate"], looked)
    scan.egress[tracked] = scan.requests[tracked] = 0
    penalty = extents * column["extent_cost"]
    send = flows_of(plan, every, changed, column["send_rate"], penalty, extents)
    return Transfers(read, changed, extents, scan, send)


def flows_of(
    plan: Plan,
    disk: Int64s,
    size: Int64s,
    rate: Int64s,
    extra: Int64s | int = 0,
    least: Int64s | int = 0,
) -> Flows:
    """Flows of some disks.

    Parameters
    ----------
    plan : Plan
    disk : numpy.ndarray of int64
        Which disks.
    size, rate : numpy.ndarray of int64
        Bytes, and bytes a second.
    extra : numpy.ndarray of int64
        Nanoseconds that extents cost.
    least : numpy.ndarray of int64
        Requests that there are at least: extents.
    """
    requests = np.maximum(_ceil(size, plan.rule("request")), least)
    iops = disk_column(plan, "iops")[disk]
    work = np.maximum(_nanoseconds(size, rate) + extra, _nanoseconds(requests, iops))
    ms = np.maximum(work // 10**6, 1)
    some = work > 0
    egress = np.where(some, np.minimum(rate, size * 1000 // ms + 1), 0)
    return Flows(work, egress, np.where(some, requests * 1000 // ms + 1, 0))


def _nanoseconds(count: Int64s, rate: Int64s) -> Int64s:
    """``ceil(count 10^9 / rate)``, for rates below 2^33 without leaving 63 bits."""
    whole: Int64s = count // rate * SECOND + _ceil(count % rate * SECOND, rate)
    return whole


def _ceil(a: Any, b: Any) -> Any:
    return -(-a // b)


def vm_most(plan: Plan, values: Int64s, empty: int = 0) -> Int64s:
    """The largest of each VM's disks' values: int64[VMs]."""
    found = np.full(len(plan.vms), empty, np.int64)
    np.maximum.at(found, disk_column(plan, "vm"), values)
    return found


def shared_ends(plan: Plan, begin: Int64s, work: Transfers) -> tuple[Int64s, Int64s]:
    """When scan and send of each disk end if these transfers, and the guests, share the accounts.

    Parameters
    ----------
    plan : Plan
        One that `vmbk.service.layout.plan_of` made: its transfers end within ten years.
    begin : numpy.ndarray of int64, shape (disks,)
        When each transfer begins, ns.
    work : Transfers

    Returns
    -------
    scan_end, send_end : numpy.ndarray of int64, shape (disks,)
    """
    scan_end = begin + work.scan.work
    send_end = scan_end + work.send.work
    account = disk_column(plan, "account")
    for a in range(len(plan.accounts)):
        mine = np.flatnonzero(account == a)
        if len(mine):
            ends = _share(plan, a, begin[mine], [_take(flows, mine) for flows in
                                                 (work.scan, work.send)])  # fmt: skip
            scan_end[mine], send_end[mine] = ends
    return scan_end, send_end


def _take(flows: Flows, mine: Int64s) -> list[tuple[int, int, int]]:
    rows = np.stack((flows.work, flows.egress, flows.requests), axis=1)[mine].tolist()
    return [(row[0], row[1], row[2]) for row in rows]


def _share(
    plan: Plan, account: int, begin: Int64s, flows: list[list[tuple[int, int, int]]]
) -> Int64s:
    """One account: V is the time that a flow at full speed would have seen, in 2^-20 ns."""
    most_egress, most_requests = plan.accounts[account].tolist()
    guests = np.stack((plan.guest_egress[account], plan.guest_requests[account]), axis=1).tolist()
    starts = [(t, i) for i, t in enumerate(begin.tolist())]
    heapq.heapify(starts)
    ends = np.full((2, len(begin)), -1, np.int64)
    running: list[tuple[int, int, int]] = []  # V at the end, disk, stage
    now = virtual = egress = requests = 0
    while starts or running:
        if not running:
            now = max(now, starts[0][0])
        while starts and starts[0][0] <= now:  # a disk begins its scan, or goes on with its send
            _, i = heapq.heappop(starts)
            stage = 0 if ends[0, i] < 0 else 1
            if not stage and not flows[0][i][0]:  # nothing to scan
                ends[0, i], stage = now, 1
            work, e, r = flows[stage][i]
            if not work:
                ends[stage, i] = now
                continue
            egress, requests = egress + e, requests + r
            heapq.heappush(running, (_ceil(virtual, ONE) * ONE + work * ONE, i, stage))
        if not running:
            continue
        e_guest, r_guest = guests[now // HOUR % 24]
        share = ONE
        for most, asked in ((most_egress, egress + e_guest), (most_requests, requests + r_guest)):
            if asked:
                share = min(share, (most << 20) // asked)
        share = max(share, 1)
        until = min(now + max(_ceil(running[0][0] - virtual, share), 0), (now // HOUR + 1) * HOUR)
        if starts:
            until = min(until, starts[0][0])
        virtual, now = virtual + (until - now) * share, until
        while running and running[0][0] <= virtual:
            _, i, stage = heapq.heappop(running)
            ends[stage, i] = now
            _, e, r = flows[stage][i]
            egress, requests = egress - e, requests - r
            if not stage:
                heapq.heappush(starts, (now, i))
    return ends
