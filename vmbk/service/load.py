"""What backups and guests asked of each storage account, from moment to moment of a simulation.

An engine tells sums and peaks of a whole run. From what it told of each disk the loads between any
two moments are worked out here again, exactly: each scan and send asks for its full speed from its
begin to its end (`MODEL.md`, "A flow"), and the account's share follows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from vmbk.errors import InputError
from vmbk.service.flows import Flows, disk_column, flows_of
from vmbk.service.plan import (
    CHECKSUM,
    FALLBACK,
    HOUR,
    INITIAL,
    JOB,
    NO_MODE,
    ONE,
    PART,
    TRACKING,
    Outputs,
    Plan,
)

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray

    from vmbk.service.scenario import Scenario

    Int64s = NDArray[np.int64]

_READS: Final = (CHECKSUM, FALLBACK)


@dataclass(frozen=True)
class AccountLoad:
    """Spans of time, by account and begin, in each of which nothing changed.

    Attributes
    ----------
    account : numpy.ndarray of int64, shape (spans,)
        Index of the account.
    begin, end : numpy.ndarray of int64, shape (spans,)
        Nanoseconds.
    flows : numpy.ndarray of int64, shape (spans,)
        Scans and sends that were under way: at least one.
    backup_egress, backup_requests : numpy.ndarray of int64, shape (spans,)
        A second, as they ask for at full speed.
    egress, requests : numpy.ndarray of int64, shape (spans,)
        The same with the guests' own.
    share : numpy.ndarray of int64, shape (spans,)
        How much of it each has, in units of 2^-20.
    """

    account: Int64s
    begin: Int64s
    end: Int64s
    flows: Int64s
    backup_egress: Int64s
    backup_requests: Int64s
    egress: Int64s
    requests: Int64s
    share: Int64s

    @property
    def throttled(self) -> int:
        """Nanoseconds in which an account was at a cap, of all accounts together."""
        return int((self.end - self.begin)[self.share < ONE].sum())

    @property
    def lost(self) -> float:
        """Nanoseconds for which all accounts together as good as stood still."""
        return float(((self.end - self.begin) * ((ONE - self.share) / ONE)).sum())

    def frame(self, scenario: Scenario) -> pl.DataFrame:
        """One row a span, with the account's name, ``share`` from 0 to 1, the rest as above."""
        import polars as pl

        names = np.array(list(scenario.accounts), object)
        return pl.DataFrame(
            {
                "account": pl.Series(names[self.account].tolist(), dtype=pl.String),
                "begin_ns": self.begin, "end_ns": self.end, "flows": self.flows,
                "backup_egress": self.backup_egress, "backup_requests": self.backup_requests,
                "egress": self.egress, "requests": self.requests, "share": self.share / ONE,
            }
        )  # fmt: skip


@dataclass(frozen=True)
class PartFlows:
    """Scans and sends of all disks in all transfers that were not cut off.

    Attributes
    ----------
    job, disk : numpy.ndarray of int64, shape (parts,)
        Row of the job, and index of the disk in the plan.
    begin, scan_end, send_end : numpy.ndarray of int64, shape (parts,)
        Nanoseconds.
    scan, send : Flows
        Works and demands at full speed.
    """

    job: Int64s
    disk: Int64s
    begin: Int64s
    scan_end: Int64s
    send_end: Int64s
    scan: Flows
    send: Flows


def part_flows(plan: Plan, outputs: Outputs) -> PartFlows:
    """What each disk did in each transfer.

    Parameters
    ----------
    plan : Plan
    outputs : Outputs
        With parts.

    Raises
    ------
    InputError
        If the parts were not kept.
    """
    if not len(outputs.parts) and plan.part_first[-1]:
        raise InputError("the disks were not kept", hint="simulate(…, disks=True)")
    part = {name: outputs.parts[:, i] for i, name in enumerate(PART)}
    there = np.flatnonzero((part["mode"] != NO_MODE) & (part["send_end"] >= 0))
    part = {name: values[there] for name, values in part.items()}
    vm = np.searchsorted(plan.part_first, there, side="right") - 1
    inner = there - plan.part_first[vm]
    of = np.diff(plan.disk_first)[vm]
    job, disk = plan.job_first[vm] + inner // of, plan.disk_first[vm] + inner % of
    jobs = {name: outputs.jobs[job, JOB.index(name)] for name in
            ("start", "install", "snapshot", "queue", "place")}  # fmt: skip
    begin = sum(jobs.values(), np.zeros(len(job), np.int64))
    mode, changed, extents = part["mode"], part["changed"], part["extents"]
    read = np.where(np.isin(mode, _READS), part["read"], 0)
    looked = np.where(mode == TRACKING, extents * disk_column(plan, "tracked_cost")[disk], 0)
    scan = flows_of(plan, disk, read, disk_column(plan, "scan_rate")[disk], looked)
    tracked = mode == TRACKING
    scan.egress[tracked] = scan.requests[tracked] = 0
    rate = np.where(
        mode == INITIAL, disk_column(plan, "full_rate")[disk], disk_column(plan, "send_rate")[disk]
    )
    cost = extents * disk_column(plan, "extent_cost")[disk]
    send = flows_of(plan, disk, changed, rate, cost, extents)
    # A disk without anything to scan is told to end its scan when it begins.
    scan_end = np.where(part["scan_end"] < 0, begin, part["scan_end"])
    return PartFlows(job, disk, begin, scan_end, part["send_end"], scan, send)


def account_load(
    plan: Plan, outputs: Outputs, begin: int = 0, end: int | None = None
) -> AccountLoad:
    """Loads of all accounts between two moments.

    Parameters
    ----------
    plan : Plan
    outputs : Outputs
        With parts; a transfer that was cut off (its account's keys were rotated) is not in them.
    begin, end : int
        Nanoseconds; all there is unless told.

    Returns
    -------
    AccountLoad
    """
    parts = part_flows(plan, outputs)
    home = disk_column(plan, "account")[parts.disk]
    last = int(parts.send_end.max(initial=0))
    until = last if end is None else min(end, last)
    rows: list[tuple[Int64s, ...]] = []  # account, when, flows, egress, requests
    for first, stop, flow in (
        (parts.begin, parts.scan_end, parts.scan),
        (parts.scan_end, parts.send_end, parts.send),
    ):
        on = (home >= 0) & (flow.work > 0) & (stop > begin) & (first < until)
        one = np.ones(int(on.sum()), np.int64)
        a, egress, requests = home[on], flow.egress[on], flow.requests[on]
        rows.append((a, np.clip(first[on], begin, until), one, egress, requests))
        rows.append((a, np.clip(stop[on], begin, until), -one, -egress, -requests))
    used = np.unique(home[home >= 0])
    hours = np.arange(begin // HOUR + 1, max(-(-until // HOUR), begin // HOUR + 1)) * HOUR
    marks = np.repeat(used, len(hours))
    rows.append((marks, np.tile(hours, len(used)), *[np.zeros_like(marks)] * 3))
    where, when, *change = (np.concatenate(each) for each in zip(*rows, strict=True))
    order = np.lexsort((when, where))
    where, when = where[order], when[order]
    flows, egress, requests = (np.cumsum(each[order]) for each in change)  # 0 after each account
    kept = np.flatnonzero((np.diff(when, append=-1) != 0) | (np.diff(where, append=-1) != 0))
    follows = np.append(kept[1:], len(where) - 1) if len(kept) else kept
    spans = kept[(flows[kept] > 0) & (where[follows] == where[kept])]
    ends = follows[np.searchsorted(kept, spans)]
    a, hour = where[spans], when[spans] // HOUR % 24
    all_egress = egress[spans] + plan.guest_egress[a, hour]
    all_requests = requests[spans] + plan.guest_requests[a, hour]
    share = np.full(len(spans), ONE, np.int64)
    for i, asked in enumerate((all_egress, all_requests)):
        some = asked > 0
        limit = (plan.accounts[a, i][some] << 20) // asked[some]
        share[some] = np.minimum(share[some], limit)
    return AccountLoad(
        a, when[spans], when[ends], flows[spans], egress[spans], requests[spans],
        all_egress, all_requests, np.maximum(share, 1),
    )  # fmt: skip
