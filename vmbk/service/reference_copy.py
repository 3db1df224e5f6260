"""A job and its disks in the reference: what each has to scan and to send, and doing so.

See `MODEL.md`, "A job", 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmbk.service.plan import (
    CHECKSUM,
    COMPLETED,
    DAY,
    FALLBACK,
    INITIAL,
    NO_TRANSFER,
    SECOND,
    TOLD,
    TRACKING,
)
from vmbk.service.reference_account import FLOW, Flow, ceil_div, draw

try:
    import simpy
except ImportError:  # `simulate_reference` tells
    simpy = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from types import SimpleNamespace

    from vmbk.service.reference import Machine
    from vmbk.service.reference_account import Steps

DRAW_CHURN: Final = 64


@dataclass
class Job:
    """What is told of a job; the names are those of `JOB` and `TOLD`."""

    number: int
    scheduled: int
    slot_due: int
    start: int = -1
    install: int = 0
    snapshot: int = 0
    snapshot_at: int = -1
    point: int = -1
    queue: int = 0
    place: int = 0
    scan: int = 0
    send: int = 0
    commit: int = 0
    end: int = -1
    read: int = 0
    changed: int = 0
    sent: int = 0
    extents: int = 0
    attempts: int = 0
    label: int = 0
    state: int = COMPLETED
    transfer: int = NO_TRANSFER
    initial: int = 0
    fallback: int = 0
    cause: int = 0
    critical: int = 0

    @property
    def told(self) -> int:
        """The packed column."""
        return sum(int(getattr(self, name)) << shift for name, (shift, _) in TOLD.items())


class Copy:
    """One disk in a transfer (6): what there is to scan and to send, then a scan and a send."""

    process: simpy.Process

    def __init__(
        self, machine: Machine, job: Job, place: int, index: int, disk: SimpleNamespace
    ) -> None:
        self.world, self.place, self.index, self.disk = machine.world, place, index, disk
        self.read = self.extents = 0
        self.scan_end = self.send_end = -1
        used = min(disk.used + disk.growth * (job.snapshot_at // DAY), disk.size)
        since = machine.since.get(index)
        if since is None:
            self.mode, self.changed = INITIAL, used
            self.scan, self.send = self.flow(0, 0, 1, 0), self.flow(used, 0, disk.full_rate, 0)
            return
        self.changed = min(self.churn(since, job.snapshot_at), used)
        self.extents = ceil_div(self.changed, disk.extent)
        if disk.tracking and machine.deletes == machine.deletes_known:
            self.mode = TRACKING
            self.scan = self.flow(0, 0, 1, self.extents * disk.tracked_cost)
        else:
            self.mode = FALLBACK if disk.tracking else CHECKSUM
            self.read = used
            self.scan = self.flow(used, 0, disk.scan_rate, 0)
        extra = self.extents * disk.extent_cost
        self.send = self.flow(self.changed, self.extents, disk.send_rate, extra)

    def flow(self, size: int, extents: int, rate: int, extra: int) -> Flow:
        """A flow of so many bytes; its demands are what it takes at full speed."""
        requests = max(extents, ceil_div(size, self.world.rules.request))
        work = max(
            ceil_div(size * SECOND, rate) + extra, ceil_div(requests * SECOND, self.disk.iops)
        )
        done = self.world.env.event()
        if not requests:  # the scan of a tracker reads nothing
            return Flow(self.index, work, 0, 0, done)
        ms = max(1, work // 10**6)
        egress, operations = min(rate, size * 1000 // ms + 1), requests * 1000 // ms + 1
        return Flow(self.index, work, egress, operations, done)

    def churn(self, since: int, until: int) -> int:
        """Bytes changed between two moments, by whole seconds."""
        (first, a), (last, b) = divmod(since // SECOND, 86400), divmod(until // SECOND, 86400)
        whole = sum(self.churn_of_day(day) for day in range(first, last))
        part = self.churn_of_day(last) * b // 86400 - self.churn_of_day(first) * a // 86400
        return whole + part

    def churn_of_day(self, day: int) -> int:
        """Bytes changed on a day."""
        disk, u = self.disk, draw(self.world.rules.seed, self.index, day, DRAW_CHURN)
        share: int = 65536 - disk.spread + (2 * disk.spread * (u >> 12) >> 20)
        if (self.world.rules.weekday + day) % 7 >= 5:
            share = share * disk.weekend >> 16
        return int(disk.churn * share >> 16)

    def run(self) -> Steps:
        """Scan, then send."""
        try:
            yield from self.carry(self.scan)
            self.scan_end = self.world.now
            yield from self.carry(self.send)
            self.send_end = self.world.now
        except simpy.Interrupt:  # from `stop`
            return

    def carry(self, flow: Flow) -> Steps:
        """A flow on the disk's account; a managed disk takes exactly the work."""
        if flow.work and self.disk.account >= 0:
            yield from self.world.accounts[self.disk.account].carry(flow)
        elif flow.work:
            yield self.world.wait(flow.work, FLOW, len(self.world.accounts) + self.index)

    def stop(self) -> None:
        """The transfer failed: its moments are forgotten."""
        self.scan_end = self.send_end = -1
        if self.process.is_alive:
            self.process.interrupt()
