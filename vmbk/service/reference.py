"""The simulation to be read: `MODEL.md` in SimPy, one process for each thing that goes on.

A `Machine` is a process that starts its jobs; a job is a process (`Machine.back_up`), its transfer
another (`Machine.transfer`), the copy of each disk one more (`reference_copy.Copy.run`). Flows
share an `Account` (`reference_account`), a vault's places are a `simpy.Resource`.

What MODEL.md calls the order within a nanosecond is the priority of SimPy's events: everything that
has a time is scheduled by `Clock.wait` with a rank. SimPy's own events (a process begins, a flow is
done, a place is free, an interrupt) have priorities 0 and 1, below any rank: they act at once.

It is slow and keeps every number as a Python int; `engine.py` finds the same, to the nanosecond.
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING

from vmbk.errors import VmbkError
from vmbk.service.plan import (
    ACCOUNT_TOLD,
    ATTEMPTS,
    COMPLETED_WITH_WARNINGS,
    DISK,
    FAIL,
    FAILED,
    FALLBACK,
    HOUR,
    INITIAL,
    JOB,
    NO_MODE,
    NOT_DUE,
    PART,
    RETRY,
    ROTATE,
    RULES,
    SKIPPED,
    TRANSFER_DONE,
    TRANSFER_FAILED,
    TRANSFER_SKIPPED,
    VM,
    Outputs,
)
from vmbk.service.reference_account import (
    COMMIT,
    EVENT,
    QUEUED,
    SNAPSHOTTED,
    START,
    Account,
    Clock,
    between,
    draw,
)
from vmbk.service.reference_copy import Copy, Job

try:
    import simpy
except ImportError:  # `simulate_reference` tells
    simpy = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

    from vmbk.service.plan import Int64s, Plan
    from vmbk.service.reference_account import Segment, Steps

DRAW_JITTER, DRAW_INSTALL, DRAW_QUEUE, DRAW_TRANSFER = range(4)
DRAW_CAUSE, DRAW_SNAPSHOT = 16, 32


def simulate_reference(
    plan: Plan, *, parts: bool = False, segments: list[Segment] | None = None
) -> Outputs:
    """Run a plan by the readable engine.

    Parameters
    ----------
    plan : Plan
    parts : bool
        Tell of each disk in each job too.
    segments : list, optional
        Gets, of each step of an account with a flow, ``(account, start, end, egress, requests, F,
        backup_egress)``: ns, demands a second with and without the guests', and the share F of
        full speed in units of 2^-20.

    Returns
    -------
    Outputs

    Raises
    ------
    VmbkError
        SimPy is not installed.
    """
    if simpy is None:
        raise VmbkError(
            "the readable reference of the service model needs SimPy, which is not installed",
            hint="pip install 'simpy>=4.1'",
        )
    world = World(plan, segments)
    world.run(plan.events.tolist())
    outputs = Outputs.empty(plan, parts=parts)
    for machine in world.machines:
        first, first_part = plan.job_first[machine.index], plan.part_first[machine.index]
        for job in machine.jobs:
            outputs.jobs[first + job.number] = [getattr(job, name) for name in JOB]
            if parts and machine.disks:
                row = first_part + job.number * len(machine.disks)
                outputs.parts[row : row + len(machine.disks)] = machine.parts_of(job)
    for account in world.accounts:
        outputs.accounts[account.index] = [account.told[name] for name in ACCOUNT_TOLD]
        outputs.account_hours[account.index] = account.bytes_by_hour
    return outputs


class World(Clock):
    """The plan as plain ints, and all that lives in it."""

    def __init__(self, plan: Plan, segments: list[Segment] | None) -> None:
        super().__init__()
        self.rules = SimpleNamespace(**dict(zip(RULES, plan.rules.tolist(), strict=True)))
        self.queue_curve: list[int] = plan.queue_curve.tolist()
        self.thresholds: list[list[int]] = plan.thresholds.tolist()
        self.consequences: list[list[list[int]]] = plan.consequences.tolist()
        self.lasting: list[list[int]] = plan.lasting.tolist()
        self.disks = named(DISK, plan.disks)
        self.accounts = [Account(self, plan, i, segments) for i in range(len(plan.accounts))]
        # A VM has at most one transfer, so as many places as there are VMs are any number.
        self.vaults = [
            simpy.Resource(self.env, capacity=places or len(plan.vms))
            for places in plan.places.tolist()
        ]
        self.machines = [Machine(self, plan, i, vm) for i, vm in enumerate(named(VM, plan.vms))]

    def run(self, events: list[list[int]]) -> None:
        """Everything, to the end."""
        for index, (time, kind, subject) in enumerate(events):
            happening = self.wait(time, EVENT, index)
            assert happening.callbacks is not None
            act = self.rotate if kind == ROTATE else self.delete
            happening.callbacks.append(partial(act, subject))
        for machine in self.machines:
            self.env.process(machine.live())
        self.env.run()

    def rotate(self, account: int, _: simpy.Event) -> None:
        """The keys of an account are changed: all its transfers fail, then places are given on."""
        for machine in self.machines:
            if machine.moving and any(disk.account == account for disk in machine.disks.values()):
                machine.moving.interrupt()

    def delete(self, vm: int, _: simpy.Event) -> None:
        """A snapshot of the VM is deleted: what changed since can no longer be asked."""
        self.machines[vm].deletes += 1


def named(names: tuple[str, ...], table: Int64s) -> list[SimpleNamespace]:
    """Rows whose columns are attributes."""
    return [SimpleNamespace(**dict(zip(names, row, strict=True))) for row in table.tolist()]


class Machine:
    """A VM, which backs itself up slot by slot."""

    def __init__(self, world: World, plan: Plan, index: int, vm: SimpleNamespace) -> None:
        self.world, self.index, self.vm = world, index, vm
        self.disks = {d: disk for d, disk in enumerate(world.disks) if disk.vm == index}
        slots = slice(*plan.slot_first[vm.schedule : vm.schedule + 2].tolist())
        times, due = plan.slots[slots].tolist(), plan.slot_due[slots].tolist()
        self.jobs = [
            Job(number, time + vm.offset, slot_due)
            for number, (time, slot_due) in enumerate(zip(times, due, strict=True))
        ]
        self.copies: dict[int, list[Copy]] = {}
        """Of each job that began its transfer."""
        self.snapshotting = False
        self.moving: simpy.Process | None = None
        """The transfer that is wanted or under way."""
        self.has_snapshot = False
        self.owing = False
        self.since: dict[int, int] = {}
        """Of each disk, the moment that the vault holds."""
        self.deletes = 0
        self.deletes_known = 0
        """How many there were when the last successful transfer began."""

    def draw(self, job: Job, what: int) -> int:
        """32 random bits of this job."""
        return draw(self.world.rules.seed, self.index, job.number, what)

    def wait(self, delay: int, kind: int) -> simpy.Event:
        """An event of this VM."""
        return self.world.wait(delay, kind, self.index)

    def live(self) -> Steps:
        """Start the jobs, in order (1)."""
        world, rules = self.world, self.world.rules
        for job in self.jobs:
            start = job.scheduled + between(0, rules.jitter, self.draw(job, DRAW_JITTER))
            # Jobs come in order: where the draws would turn two round, the later waits.
            yield self.wait(max(start - world.now, 0), START)
            job.start = world.now
            if self.snapshotting or (self.moving and not rules.overlap):
                job.state, job.end = SKIPPED, world.now
                self.owing |= bool(job.slot_due)
            else:
                self.snapshotting = True
                world.env.process(self.back_up(job))

    def back_up(self, job: Job) -> Steps:
        """Install, snapshot, and then perhaps a transfer (2, 3, 4)."""
        world, rules = self.world, self.world.rules
        if self.vm.installs and not self.has_snapshot:
            job.install = between(
                rules.install_low, rules.install_high, self.draw(job, DRAW_INSTALL)
            )
            yield self.wait(job.install, SNAPSHOTTED)
        began = world.now
        outcome, outcome_at = yield from self.attempt(job)
        job.snapshot = world.now - began
        self.snapshotting = False
        if outcome == FAIL:
            job.state, job.end = FAILED, world.now
            self.owing |= bool(job.slot_due)
            return
        job.label, job.snapshot_at = outcome, outcome_at
        self.has_snapshot = True
        if rules.two_phase:
            job.point = world.now
        if not (job.slot_due or self.owing):
            job.transfer, job.end = NOT_DUE, world.now
            return
        self.owing = False
        if self.moving:
            job.transfer, job.end = TRANSFER_SKIPPED, world.now
        else:
            self.moving = world.env.process(self.transfer(job))

    def attempt(self, job: Job) -> Generator[simpy.Event, Any, tuple[int, int]]:
        """Attempts at a snapshot (3): what became of the last, and when it began."""
        world, rules, kind = self.world, self.world.rules, self.vm.kind
        cause = 0
        while True:
            job.attempts += 1
            began = world.now
            if job.attempts == 1 or not world.lasting[kind][cause]:
                u = self.draw(job, DRAW_CAUSE + job.attempts)
                limits = enumerate(world.thresholds[kind], 1)
                cause = next((i for i, limit in limits if u < limit), 0)
            job.cause = cause or job.cause
            u = self.draw(job, DRAW_SNAPSHOT + job.attempts)
            yield self.wait(between(rules.snapshot_low, rules.snapshot_high, u), SNAPSHOTTED)
            outcome = world.consequences[kind][cause][job.attempts - 1]
            if outcome != RETRY:
                return outcome, began
            if job.attempts == ATTEMPTS:
                return FAIL, began
            yield self.wait(rules.retry, SNAPSHOTTED)

    def transfer(self, job: Job) -> Steps:
        """Queue, wait for a place, copy all disks, commit (5, 6, 7)."""
        world, rules = self.world, self.world.rules
        wanted, queued, begun = world.now, -1, -1
        try:
            yield self.wait(self.queue_time(job), QUEUED)
            queued = world.now
            job.queue = queued - wanted
            with world.vaults[self.vm.vault].request() as place:
                yield place
                begun = world.now
                job.place = begun - queued
                deletes = self.deletes
                copies = self.begin_copies(job)
                yield world.env.all_of([copy.process for copy in copies])
                yield self.wait(rules.commit, COMMIT)
                job.commit = rules.commit
                if copies:
                    last = max(copies, key=lambda copy: (copy.send_end, -copy.place))
                    job.scan, job.send = last.scan_end - begun, last.send_end - last.scan_end
                    job.critical = 1 + last.place
                failed = self.draw(job, DRAW_TRANSFER) < rules.transfer_failure
        except simpy.Interrupt:
            failed = True
            if begun >= 0:
                job.send = world.now - begun
                for copy in self.copies[job.number]:
                    copy.stop()
            elif queued >= 0:
                job.place = world.now - queued
            else:
                job.queue = world.now - wanted
        self.moving = None
        job.end = world.now
        if failed:
            self.owing = True
            job.transfer = TRANSFER_FAILED
            job.state = COMPLETED_WITH_WARNINGS if rules.two_phase else FAILED
            return
        job.transfer, job.sent = TRANSFER_DONE, job.changed
        if not rules.two_phase:
            job.point = world.now
        self.deletes_known = deletes
        for copy in copies:
            self.since[copy.index] = job.snapshot_at

    def parts_of(self, job: Job) -> list[list[int]]:
        """What is told of each disk in a job."""
        rows = [[NO_MODE, 0, 0, 0, -1, -1] for _ in self.disks]
        for copy in self.copies.get(job.number, []):
            rows[copy.place] = [getattr(copy, name) for name in PART]
        return rows

    def queue_time(self, job: Job) -> int:
        """How long the service lets this transfer wait (5)."""
        q = self.draw(job, DRAW_QUEUE) >> 12
        curve = self.world.queue_curve[self.world.now // HOUR % 24]
        peak: int = self.world.rules.queue_peak >> 20
        return peak * (q * q >> 20) * curve // 1000

    def begin_copies(self, job: Job) -> list[Copy]:
        """The disks that the snapshot holds, all at once."""
        copies = [
            Copy(self, job, place, index, disk)
            for place, (index, disk) in enumerate(self.disks.items())
            if disk.added <= job.snapshot_at
        ]
        self.copies[job.number] = copies
        for copy in copies:
            job.read += copy.read
            job.changed += copy.changed
            job.extents += copy.extents
            job.initial |= copy.mode == INITIAL
            job.fallback |= copy.mode == FALLBACK
            copy.process = self.world.env.process(copy.run())
        return copies
