"""Restores as they go: a queue, the copy into an account that others use too, the machine.

    total = queue + prepare + copy + create, exactly; copy = ideal + slowed

*queue* is the wait behind others (S1: queue wait time), *prepare* brings an archived point back or
mounts one for file recovery, *copy* is from the vault to the target (S1: data copy time), *create*
makes the machine. *ideal* is what the copy takes at full speed, *slowed* what the account's limits
and its other load cost (S0 S1 S2: restore performance). All numbers are whole nanoseconds.

All streams into an account share it with the load of applications there, all in the same
proportion, as `MODEL.md` has it of backups. Managed disks have no account and take their ideal
time. Restores from a snapshot copy nothing.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Final

import polars as pl

from vmbk.display import table
from vmbk.errors import InputError
from vmbk.service.failures import FailureModel
from vmbk.service.plan import DAY, ONE
from vmbk.service.reference_account import between, ceil_div, draw
from vmbk.service.restore_account import SharedAccount, TargetAccount
from vmbk.service.restore_rules import (
    CREATES,
    Finding,
    RestoreRequest,
    RestoreRules,
    precheck,
)
from vmbk.units import format_duration, quoted

STATES: Final = ("Completed", "Failed", "Cancelled", "Expired", "Refused")
MOST_REQUESTS: Final = 100_000
MOST_STREAMS: Final = 200_000
LONGEST: Final = 3660 * DAY
"""After the last request; whatever takes longer is a mistake in the input."""

_WAIT, _REHYDRATE, _MOUNT, _CREATE, _CAUSE = range(128, 133)
_ACCOUNT, _STAGE, _CANCEL, _ARRIVAL = range(4)
_MARKS: Final = ("begun", "prepared", "copied", "created")
_PARTS: Final = ("queue", "prepare", "copy", "create")


@dataclass(frozen=True, eq=False)
class Restores:
    """What became of the requests.

    Attributes
    ----------
    frame : polars.DataFrame
        One row a request, in the order given: ``request``, ``vm``, ``option``, ``tier``,
        ``account``, ``bytes`` (to copy), ``state`` (one of `STATES`), ``cause`` (code of a
        failure), moments ``at``, ``begun``, ``prepared``, ``copied``, ``created``, ``end`` (ns, -1
        where it did not come to that), durations ``queue``, ``prepare``, ``copy``, ``create``,
        ``ideal``, ``slowed``, ``total`` (ns), ``slow`` (longer than 6 h: worth a look).
    timeline : polars.DataFrame
        One row for each span in which an account's rates stayed the same: ``account``, ``start``,
        ``end`` (ns), ``streams``, ``factor`` (of full speed), ``write``, ``requests`` (a second, by
        the restores), ``all_write``, ``all_requests``, ``all_bytes`` (with the applications).
    findings : tuple of Finding
        Refusals and advice.
    rules : RestoreRules
    """

    frame: pl.DataFrame
    timeline: pl.DataFrame
    findings: tuple[Finding, ...]
    rules: RestoreRules

    @property
    def makespan(self) -> int:
        """From the first request to the end of the last restore, in ns."""
        if not len(self.frame):
            return 0
        ends = self.frame.filter(pl.col("state") != "Refused")
        return int(ends.select((pl.col("end").max() - pl.col("at").min()).fill_null(0)).item())

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "restores": self.frame.to_dicts(),
            "findings": [asdict(each) for each in self.findings],
            "makespan_s": self.makespan / 1e9,
            "rules": self.rules.to_dict(),
        }

    def _repr_html_(self) -> str:
        columns = ("vm", "option", "tier", "account", "state", *_PARTS, "slowed", "total")
        rows = [
            (*row[:5], *(format_duration(each / 1e9) for each in row[5:]))
            for row in self.frame.head(50).select(columns).rows()
        ]
        told = [(f"request {f.request}", f.code or "", f.message) for f in self.findings[:50]]
        title = f"Restores ({len(self.frame)} requests)"
        found = table("Findings", ("request", "code", "message"), told) if told else ""
        return table(title, columns, rows) + found


def simulate_restores(
    requests: Sequence[RestoreRequest],
    rules: RestoreRules,
    accounts: Iterable[TargetAccount] = (),
    seed: int = 0,
    failures: FailureModel | None = None,
) -> Restores:
    """Run restores to their end.

    Parameters
    ----------
    requests : sequence of RestoreRequest
        In any order; of those at the same time the earlier in the sequence comes first.
    rules : RestoreRules
    accounts : iterable of TargetAccount
        All that requests name.
    seed : int
        Of the durations that are drawn.
    failures : FailureModel, optional
        Whether machines can be made at all (its phase restore); by default always.

    Returns
    -------
    Restores

    Raises
    ------
    InputError
        If a request names another account, two accounts have the same name, or the restores are
        too many or would take more than ten years.
    """
    targets = list(accounts)
    by_name = {account.name: account for account in targets}
    if len(by_name) < len(targets):
        names = [account.name for account in targets]
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"accounts: two are named {quoted(twice)}")
    if len(requests) > MOST_REQUESTS:
        raise InputError(f"restores: {len(requests):,} are more than {MOST_REQUESTS:,}")
    streams = 0
    for i, request in enumerate(requests):
        if request.account is not None and request.account not in by_name:
            raise InputError(
                f"restores[{i}].account: there is no account {quoted(request.account)}",
                hint=f"declared are {', '.join(sorted(by_name)) or 'none'}",
            )
        streams += sum(-(-size // rules.segment) for size in request.disks)
    if streams > MOST_STREAMS:
        raise InputError(f"restores: {streams:,} streams are more than {MOST_STREAMS:,}")
    run = _Run(requests, rules, by_name, seed, failures)
    run.loop()
    return run.results()


def disaster(
    machines: Mapping[str, Sequence[int]],
    at: int,
    *,
    tier: str = "vault",
    option: str = "create-vm",
    accounts: Sequence[str | None] = (None,),
) -> list[RestoreRequest]:
    """Requests for all machines at once, over some accounts in turn.

    Parameters
    ----------
    machines : mapping of str to sequence of int
        Allocated bytes of each disk, by machine.
    at : int
        Nanoseconds.
    tier, option : str
    accounts : sequence of str or None
        None makes managed disks.
    """
    return [
        RestoreRequest(vm, at, tuple(disks), tier, option, accounts[i % len(accounts)])
        for i, (vm, disks) in enumerate(machines.items())
    ]


@dataclass(eq=False)
class _Job:
    """One restore under way."""

    number: int
    request: RestoreRequest
    marks: list[int] = field(default_factory=list)
    state: str = ""
    cause: str | None = None
    end: int = -1
    begin_v: int = 0
    work: int = 0
    ideal: int = 0
    open_streams: int = 0
    expires: bool = False

    @property
    def files(self) -> bool:
        return self.request.option == "file-recovery"


class _Run:
    """The event loop: what happens next, and what follows from it."""

    def __init__(
        self,
        requests: Sequence[RestoreRequest],
        rules: RestoreRules,
        accounts: Mapping[str, TargetAccount],
        seed: int,
        failures: FailureModel | None,
    ) -> None:
        self.rules, self.seed, self.accounts = rules, seed, accounts
        self.jobs = [_Job(i, request) for i, request in enumerate(requests)]
        self.shared = {name: SharedAccount(spec) for name, spec in accounts.items()}
        self.versions = dict.fromkeys(accounts, 0)
        self.events: list[tuple[int, int, int, int, str]] = []
        self.queue: deque[_Job] = deque()
        self.free = rules.places
        self.findings: list[Finding] = []
        self.accepted: dict[str, deque[int]] = {}
        self.users: dict[str, str] = {}
        self.causes: list[tuple[str, int]] = []
        if failures is not None:
            codes, thresholds = failures.thresholds_of("restore")
            self.causes = list(zip(codes, thresholds.tolist(), strict=True))
        for job in self.jobs:
            self.at(job.request.at, _ARRIVAL, job.number)
        self.deadline = max((r.at for r in requests), default=0) + LONGEST

    def at(self, time: int, kind: int, index: int, version: int = 0, name: str = "") -> None:
        heapq.heappush(self.events, (time, kind, index, version, name))

    def loop(self) -> None:
        while self.events:
            self.now, kind, index, version, name = heapq.heappop(self.events)
            if self.now > self.deadline:
                raise InputError(
                    "the restores would take more than ten years",
                    hint="raise the limits of the accounts or lower the load on them",
                )
            if kind == _ACCOUNT:
                if self.versions[name] == version:
                    self.change(name)
            elif kind == _ARRIVAL:
                self.arrive(self.jobs[index])
            elif self.jobs[index].state:
                pass  # cancelled before this
            elif kind == _CANCEL:
                self.cancel(self.jobs[index])
            elif name == "queued":
                self.queue.append(self.jobs[index])
                self.serve()
            else:
                self.reach(self.jobs[index], name)

    def between(self, job: _Job, low: int, high: int, what: int) -> int:
        return between(low, high, draw(self.seed, job.number, 0, what))

    def arrive(self, job: _Job) -> None:
        request, rules = job.request, self.rules
        found = [*precheck(request, rules, job.number), *self._history(job)]
        self.findings += found
        if any(each.refuses for each in found):
            job.state = "Refused"
            return
        self.accepted.setdefault(request.vm, deque()).append(self.now)
        if request.cancel is not None and request.option != "cross-region":
            self.at(max(self.now, request.cancel), _CANCEL, job.number)
        if job.files:  # a point is mounted without a place in the queue
            self.begin(job)
        else:
            wait = self.between(job, 0, rules.wait_most, _WAIT)
            self.at(self.now + wait, _STAGE, job.number, name="queued")

    def _history(self, job: _Job) -> Iterable[Finding]:
        """What is to be said for what others asked before."""
        request, number = job.request, job.number
        recent = self.accepted.setdefault(request.vm, deque())
        while recent and recent[0] <= self.now - DAY:
            recent.popleft()
        if len(recent) >= self.rules.per_day:
            yield Finding(
                number, True, "",
                f"{quoted(request.vm)} was restored {len(recent)} times within 24 h, as often as "
                "it may be", "support matrix: restores per item",
            )  # fmt: skip
        if request.account is None:
            return
        if self.users.setdefault(request.account, request.vm) != request.vm:
            yield Finding(
                number, False, "",
                f"account {quoted(request.account)} takes several machines; use one for each",
                "S0 S2: restore performance",
            )  # fmt: skip
        if self.accounts[request.account].loaded:
            yield Finding(
                number, False, "",
                f"account {quoted(request.account)} is loaded by applications; take another",
                "S0 S1 S2: restore performance",
            )  # fmt: skip

    def serve(self) -> None:
        """Give free places to those who wait longest."""
        while self.queue and self.free:
            job = self.queue.popleft()
            if not job.state:
                self.free -= 1
                self.begin(job)

    def begin(self, job: _Job) -> None:
        job.marks.append(self.now)
        rules, request = self.rules, job.request
        duration = 0
        if job.files:
            large = len(request.disks) > rules.many_disks
            large = large or max(request.disks, default=0) > rules.large
            low, high = rules.mount_large_low, rules.mount_large_high
            duration = self.between(job, low, high, _MOUNT) if large else rules.mount
        elif request.tier == "archive":
            low, high = rules.rehydrate_low, rules.rehydrate_high
            duration = self.between(job, low, high, _REHYDRATE)
        self.at(self.now + duration, _STAGE, job.number, name="prepared")

    def reach(self, job: _Job, mark: str) -> None:
        """A stage is over; the next begins."""
        job.marks.append(self.now)
        if mark == "prepared":
            self.copy(job)
        elif mark == "copied":
            self.create(job)
        else:
            self.finish(job, "Failed" if job.cause else "Completed")

    def copy(self, job: _Job) -> None:
        request, rules = job.request, self.rules
        if job.files:
            job.work = ceil_div(request.files * 10**9, rules.files_rate)
            job.expires = job.work > rules.files_valid
            job.work = min(job.work, rules.files_valid)
        elif request.tier != "snapshot" and request.account is not None:
            self.share_account(job, request.account)
            return
        elif request.tier != "snapshot":
            times = [t for size in request.disks for t in rules.streams(size, account=False)]
            job.work = max(times, default=0)
        self.at(self.now + job.work, _STAGE, job.number, name="copied")

    def share_account(self, job: _Job, name: str) -> None:
        account, rules = self.shared[name], self.rules
        account.advance(self.now)
        job.begin_v = account.virtual
        for size in job.request.disks:
            rate = rules.stream_rate(size, account=True)
            for work in rules.streams(size, account=True):
                account.add(job.number, work, rate, ceil_div(rate, rules.request))
                job.work = max(job.work, work)
                job.open_streams += 1
        if not job.open_streams:
            self.at(self.now, _STAGE, job.number, name="copied")
        self.change(name)

    def change(self, name: str) -> None:
        """Streams ended, or others share the account now: new rates, and when they change next."""
        account = self.shared[name]
        account.advance(self.now)
        for number in account.over():
            job = self.jobs[number]
            job.open_streams -= 1
            if not job.open_streams:
                self.at(self.now, _STAGE, number, name="copied")
        account.share()
        self.versions[name] += 1
        time = account.next_event()
        if time is not None:
            self.at(time, _ACCOUNT, 0, self.versions[name], name)

    def create(self, job: _Job) -> None:
        rules, option = self.rules, job.request.option
        job.ideal = job.work
        if job.files:
            self.finish(job, "Expired" if job.expires else "Completed")
            return
        if option == "replace-existing":
            low, high = rules.replace_low, rules.replace_high
        elif option in CREATES:
            low, high = rules.create_low, rules.create_high
            u = draw(self.seed, job.number, 0, _CAUSE)
            failed = (code for code, threshold in self.causes if u < threshold)
            job.cause = next(failed, None)
        else:
            low, high = rules.disks_low, rules.disks_high
        duration = self.between(job, low, high, _CREATE)
        self.at(self.now + duration, _STAGE, job.number, name="created")

    def cancel(self, job: _Job) -> None:
        """Possible until the data are there (restore VMs: cancel)."""
        marks = len(job.marks)
        if marks > 2:
            return
        if marks == 2:  # copying
            name = job.request.account
            job.ideal = self.now - job.marks[-1]
            if name is not None and job.open_streams:
                account = self.shared[name]
                account.advance(self.now)
                job.ideal = min(job.ideal, (account.virtual - job.begin_v) >> 20)
                account.remove(job.number)
                self.change(name)
        self.finish(job, "Cancelled")

    def finish(self, job: _Job, state: str) -> None:
        job.state, job.end = state, self.now
        if job.marks and not job.files:
            self.free += 1
        self.serve()

    def results(self) -> Restores:
        rows = []
        for job in self.jobs:
            request = job.request
            end = job.end if job.end >= 0 else request.at
            marks = dict(zip(_MARKS, job.marks, strict=False))
            moments = [request.at, *job.marks, *[end] * (4 - len(job.marks))]
            parts = [b - a for a, b in pairwise(moments)]
            copies = request.tier != "snapshot" and not job.files
            rows.append(
                {
                    "request": job.number, "vm": request.vm, "option": request.option,
                    "tier": request.tier, "account": request.account,
                    "bytes": sum(request.disks) if copies else request.files,
                    "state": job.state, "cause": job.cause, "at": request.at,
                    **{name: marks.get(name, -1) for name in _MARKS},
                    "end": job.end, **dict(zip(_PARTS, parts, strict=True)),
                    "ideal": job.ideal, "slowed": parts[2] - job.ideal, "total": end - request.at,
                    "slow": end - request.at > self.rules.slow,
                }
            )  # fmt: skip
        schema = dict.fromkeys(
            ("at", *_MARKS, "end", *_PARTS, "ideal", "slowed", "total"), pl.Int64
        )
        frame = pl.DataFrame(
            rows,
            schema={
                "request": pl.Int64, "vm": pl.String, "option": pl.String, "tier": pl.String,
                "account": pl.String, "bytes": pl.Int64, "state": pl.Enum(STATES),
                "cause": pl.String, **schema, "slow": pl.Boolean,
            },
        )  # fmt: skip
        findings = sorted(self.findings, key=lambda each: each.request)
        return Restores(frame, self._timeline(), tuple(findings), self.rules)

    def _timeline(self) -> pl.DataFrame:
        columns = ("account", "start", "end", "streams", "share", "asked_write", "asked_requests",
                   "load_requests", "load_write", "load_read")  # fmt: skip
        rows = [(name, *span) for name, each in self.shared.items() for span in each.spans]
        schema = {name: pl.String if name == "account" else pl.Int64 for name in columns}
        spans = pl.DataFrame(rows, schema=schema, orient="row")
        factor = pl.col("share") / ONE
        write, requests = pl.col("asked_write") * factor, pl.col("asked_requests") * factor
        all_write = (pl.col("asked_write") + pl.col("load_write")) * factor
        return spans.select(
            "account", "start", "end", "streams", factor.alias("factor"),
            write.alias("write"), requests.alias("requests"), all_write.alias("all_write"),
            ((pl.col("asked_requests") + pl.col("load_requests")) * factor).alias("all_requests"),
            (all_write + pl.col("load_read") * factor).alias("all_bytes"),
        )  # fmt: skip
