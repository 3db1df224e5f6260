"""The capacity plan: will the storage accounts carry the backups that are scheduled?

It rebuilds, from its description, the spreadsheet "VM backup capacity planning" to which seed S1
(Capacity planning) points and which is lost: accounts with their caps, disks, churn, the guests'
normal load and the schedule go in; requests and bytes a second by slot of the day against the caps,
overloads, and times of disks and machines come out. It is static: each backup begins at its slot
and asks for full speed; no queue, no failure. `vmbk.service.simulation` is what really happens.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl

from vmbk.display import table
from vmbk.errors import InputError
from vmbk.service.flows import (
    BACKUPS,
    Transfers,
    busiest_change,
    disk_column,
    shared_ends,
    transfers,
    vm_most,
)
from vmbk.service.layout import plan_of
from vmbk.service.limits import shipped as shipped_limits
from vmbk.service.plan import DAY, HOUR, SECOND, Plan
from vmbk.service.scenario import Declared, Scenario
from vmbk.service.schedule import MINUTE_NS
from vmbk.units import format_duration, format_size, parse_duration, quoted

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vmbk.service.calibration import Calibration
    from vmbk.service.scenario import Machine

    Int64s = NDArray[np.int64]

LEAST_SLOT: Final = MINUTE_NS
MOST_SLOTS: Final = 5_000_000
"""Of all accounts: each is a row."""


@dataclass(frozen=True)
class CapacityFinding:
    """Something that the plan does not carry.

    Attributes
    ----------
    kind : str
        ``"overload"`` (an account's cap), ``"guests"`` (the guests' load alone is above it),
        ``"disks"`` (more disks than advised), ``"late"`` (a backup that takes longer than the
        profile's daily bound).
    target : str
        The account or VM.
    message : str
        With the numbers.
    """

    kind: str
    target: str
    message: str

    def to_dict(self) -> dict[str, str]:
        """Plain values."""
        return {"kind": self.kind, "target": self.target, "message": self.message}


@dataclass(frozen=True, eq=False)
class Capacity:
    """A static plan of one day.

    Attributes
    ----------
    name : str
    backup : str
        What the day's backups are: one of `vmbk.service.flows.BACKUPS`.
    slots : polars.DataFrame
        One row an account and slot: ``account``, ``clock`` ("22:30"), ``begin_ns``, ``disks`` (at
        work in it), ``backup_egress`` and ``backup_requests`` (a second, mean of the slot),
        ``peak_egress`` and ``peak_requests`` (their highest), ``guest_egress``,
        ``guest_requests``, ``share_egress`` and ``share_requests`` (peak and guests over the cap),
        ``share`` (the greater), ``overload`` (above 1).
    disks : polars.DataFrame
        One row a disk: ``vm``, ``disk``, ``account``, ``used_bytes``, ``changed_bytes``,
        ``extents``; for each kind of backup its time at full speed and with its account shared by
        all that the day schedules: ``initial_ns``, ``initial_shared_ns``, ``incremental_ns``, …
        ``egress`` and ``requests`` (a second, the highest of this
        day's backup).
    vms : polars.DataFrame
        The same of VMs, whose disks are backed up in parallel: ``vm``, ``policy``, ``clock``,
        ``disks``, ``used_bytes``, ``changed_bytes``, times, ``critical`` (the disk that ends last
        in the day's backup). Snapshot, waits and commit come on top.
    accounts : polars.DataFrame
        One row an account: ``account``, ``kind``, caps ``egress`` and ``requests``, ``vms``,
        ``disks``, ``scheduled`` (most disks under one policy), ``advised`` (most that the era
        advises; null: nothing), ``share`` (highest), ``busiest`` (its clock), ``overloaded_ns`` (a
        day), ``read_bytes`` and ``sent_bytes`` (a day).
    findings : tuple of CapacityFinding
    """

    name: str
    backup: str
    slots: pl.DataFrame
    disks: pl.DataFrame
    vms: pl.DataFrame
    accounts: pl.DataFrame
    findings: tuple[CapacityFinding, ...]

    @property
    def peak(self) -> float:
        """The highest share of a cap; 0 where there is no account."""
        return float(self.accounts["share"].max() or 0.0)  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "name": self.name,
            "backup": self.backup,
            "peak": self.peak,
            "accounts": self.accounts.to_dicts(),
            "slots": self.slots.to_dicts(),
            "vms": self.vms.to_dicts(),
            "disks": self.disks.to_dicts(),
            "findings": [each.to_dict() for each in self.findings],
        }

    def _repr_html_(self) -> str:
        header = ("account", "disks", "scheduled at once", "advised", "highest share", "at",
                  "overloaded a day", "sent a day")  # fmt: skip
        rows = [
            (a["account"], a["disks"], a["scheduled"], "" if a["advised"] is None else a["advised"],
             f"{a['share']:.0%}", a["busiest"], format_duration(a["overloaded_ns"] / SECOND),
             format_size(a["sent_bytes"]))
            for a in self.accounts.iter_rows(named=True)
        ]  # fmt: skip
        html = table(f"{self.name}: storage accounts ({self.backup} backups)", header, rows)
        shares = self.slots.with_columns(hour=pl.col("begin_ns") // HOUR)
        by_hour = shares.group_by("account", "hour", maintain_order=True).agg(pl.col("share").max())
        cells = [
            (name[0], *(f"{share:.0%}" for share in group["share"]))
            for name, group in by_hour.group_by("account", maintain_order=True)
        ]
        hours = ("account", *(f"{hour:02}" for hour in range(24)))
        html += table("Highest share of a cap by hour", hours, cells) if cells else ""
        slowest = self.vms.sort(f"{self.backup}_shared_ns", descending=True)
        times = [
            (v["vm"], v["policy"], v["clock"], v["critical"], _told(v[f"{self.backup}_ns"]),
             _told(v[f"{self.backup}_shared_ns"]), _told(v["initial_ns"]),
             _told(v["checksum_ns"]))
            for v in slowest.head(10).iter_rows(named=True)
        ]  # fmt: skip
        header = ("VM", "policy", "at", "critical disk", self.backup, "account shared", "first",
                  "by checksums")  # fmt: skip
        html += table("The ten longest transfers", header, times)
        found = [(each.kind, each.target, each.message) for each in self.findings[:50]]
        return html + (table("Findings", ("kind", "of", "what"), found) if found else "")


def capacity(
    scenario: Declared,
    *,
    slot: str | float = "1h",
    backup: str = "incremental",
    penalties: Calibration | None = None,
) -> Capacity:
    """The static plan of a fleet's day.

    All policies run on that day, weekly ones too, and each disk has changed as much as it does
    before its busiest backup of a week. A disk's backup begins at its VM's slot of which the point
    goes to the vault (slot plus stagger), and takes at full speed as long as in `MODEL.md`.

    Parameters
    ----------
    scenario : Scenario, Mapping, or path
    slot : str or number of seconds
        Into which the day is divided: from a minute to an hour, which it divides.
    backup : str
        What the day's backups are: ``"incremental"``, ``"initial"`` (all first ones), or
        ``"checksum"`` (as if all snapshots had been deleted).
    penalties : Calibration, optional
        What dispersed and small writes cost; the one that comes with vmbk unless given.

    Returns
    -------
    Capacity

    Raises
    ------
    InputError
        If there is no such backup, the slot does not divide an hour, or there would be too many.
    """
    scenario = Scenario.of(scenario)
    if backup not in BACKUPS:
        raise InputError(f"backup: {quoted(backup)} is not one of {', '.join(BACKUPS)}")
    width = parse_duration(slot)
    if not LEAST_SLOT <= width <= HOUR or HOUR % width:
        raise InputError(
            f"slot: {quoted(slot)} does not divide an hour", hint='such as "1h", "30m" or "15m"'
        )
    if len(scenario.accounts) * (DAY // width) > MOST_SLOTS:
        raise InputError(
            f"slot: {quoted(slot)} makes more than {MOST_SLOTS:,} slots of "
            f"{len(scenario.accounts):,} accounts",
            hint="take longer ones",
        )
    plan = plan_of(scenario, penalties)
    begin = vault_slots(scenario)[disk_column(plan, "vm")]
    changed = busiest_change(scenario, plan)
    kinds = {kind: transfers(plan, kind, changed) for kind in BACKUPS}
    today = kinds[backup]
    slots = _slots(scenario, plan, begin, today, width)
    disks, vms = _times(scenario, plan, begin, kinds, backup)
    accounts = _accounts(scenario, plan, slots, today, width)
    findings = (*_account_findings(accounts, slots), *_late(scenario, vms, backup))
    return Capacity(scenario.name, backup, slots, disks, vms, accounts, findings)


def vault_slots(scenario: Scenario) -> Int64s:
    """Nanosecond of the day at which each VM's backup for the vault is scheduled: int64[VMs]."""
    return np.array([vault_slot(scenario, vm) for vm in scenario.vms], np.int64)


def vault_slot(scenario: Scenario, vm: Machine) -> int:
    """That of one VM."""
    minutes = scenario.policies[vm.policy].schedule.minutes
    return (minutes[-1] * MINUTE_NS + vm.stagger) % DAY


def clock(ns: int) -> str:
    """A nanosecond of the day as a time of day, to the minute."""
    minutes = ns // MINUTE_NS % (24 * 60)
    return f"{minutes // 60:02}:{minutes % 60:02}"


def advised_disks(scenario: Scenario) -> int | None:
    """Most disks of an account, under one schedule (2017) or at all, that the era advises."""
    return shipped_limits().value("disks_per_account", scenario.profile.name)


def _slots(
    scenario: Scenario, plan: Plan, begin: Int64s, work: Transfers, width: int
) -> pl.DataFrame:
    """Loads of all accounts in all slots of a day that repeats itself."""
    count, names = DAY // width, list(scenario.accounts)
    account = disk_column(plan, "account")
    on = np.flatnonzero(account >= 0)
    first = np.arange(count) * width
    mean = np.zeros((3, len(names), count), np.float64)  # disks, egress, requests
    peak = np.zeros((2, len(names), count), np.int64)
    if len(on):
        home = account[on]
        starts = np.stack((begin[on], begin[on] + work.scan.work[on]))
        ends = starts + np.stack((work.scan.work[on], work.send.work[on]))
        for flow, flows in enumerate((work.scan, work.send)):
            for i, at in enumerate(first.tolist()):  # a day has at most 1440 slots
                lies = _within(ends[flow], at, width) - _within(starts[flow], at, width)
                for what, demand in enumerate((flows.egress, flows.requests), 1):
                    load = demand[on] * (lies / width)
                    mean[what, :, i] += np.bincount(home, load, len(names))
        touched = [
            _within(ends[1], at, width) > _within(starts[0], at, width) for at in first.tolist()
        ]
        mean[0] = np.stack([np.bincount(home[t], minlength=len(names)) for t in touched], axis=1)
        for what, name in enumerate(("egress", "requests")):
            asked = [getattr(flows, name)[on] for flows in (work.scan, work.send)]
            peak[what] = _peaks(home, starts, ends, asked, len(names), width)
    hour = first // HOUR
    guests = np.stack((plan.guest_egress, plan.guest_requests))[:, :, hour]
    shares = (peak + guests) / plan.accounts.T[:, :, None]
    flat = {"backup_egress": mean[1], "backup_requests": mean[2]}
    return pl.DataFrame(
        {
            "account": pl.Series(np.repeat(np.array(names, object), count), dtype=pl.String),
            "clock": pl.Series([clock(int(at)) for at in first] * len(names), dtype=pl.String),
            "begin_ns": np.tile(first, len(names)),
            "disks": mean[0].ravel().astype(np.int64),
            **{name: each.ravel() for name, each in flat.items()},
            "peak_egress": peak[0].ravel(), "peak_requests": peak[1].ravel(),
            "guest_egress": guests[0].ravel(), "guest_requests": guests[1].ravel(),
            "share_egress": shares[0].ravel(), "share_requests": shares[1].ravel(),
            "share": shares.max(axis=0).ravel(), "overload": (shares.max(axis=0) > 1).ravel(),
        }
    )  # fmt: skip


def _within(until: Int64s, first: int, width: int) -> Int64s:
    """How much of the time from 0 to `until` lies in one slot of every day."""
    found: Int64s = until // DAY * width + np.clip(until % DAY - first, 0, width)
    return found


def _peaks(
    home: Int64s, starts: Int64s, ends: Int64s, demand: list[Int64s], accounts: int, width: int
) -> Int64s:
    """The highest sum of demands in each slot of each account: int64[accounts, slots]."""
    count = DAY // width
    change: list[tuple[Int64s, Int64s, Int64s]] = []  # account, time of day, by how much
    for start, end, rate in zip(starts, ends, demand, strict=True):
        # One that goes on past midnight has been there since the day's beginning as well.
        begun = start % DAY
        until = begun + (end - start)
        change.append((home, begun, rate))
        change.append((home, until % DAY, -rate))
        change.append((home, np.zeros_like(home), rate * (until // DAY)))
    marks = np.arange(accounts * count)
    change.append((marks // count, marks % count * width, np.zeros_like(marks)))
    where, when, what = (np.concatenate(each) for each in zip(*change, strict=True))
    order = np.lexsort((when, where))
    where, when, what = where[order], when[order], what[order]
    moments = np.flatnonzero((np.diff(where, prepend=-1) != 0) | (np.diff(when, prepend=-1) != 0))
    # Each account's changes add up to nothing but for those across midnight, counted at its start.
    running = np.cumsum(what) - _before(where, what, accounts)[where]
    last = np.append(moments[1:], len(where)) - 1
    found = np.zeros((accounts, count), np.int64)
    np.maximum.at(found, (where[last], when[last] // width), running[last])
    return found


def _before(where: Int64s, what: Int64s, accounts: int) -> Int64s:
    sums = _sums(where, what, accounts)
    return np.cumsum(sums) - sums


def _sums(groups: Int64s, values: Int64s, count: int) -> Int64s:
    sums = np.zeros(count, np.int64)
    np.add.at(sums, groups, values)
    return sums


def _times(
    scenario: Scenario, plan: Plan, begin: Int64s, kinds: dict[str, Transfers], backup: str
) -> tuple[pl.DataFrame, pl.DataFrame]:
    vm, today = disk_column(plan, "vm"), kinds[backup]
    own = [disk for each in scenario.vms for disk in each.disks if disk.backed_up]
    names = [each.name for each in scenario.vms]
    disk_times: dict[str, Any] = {}
    vm_times: dict[str, Any] = {}
    critical = np.full(len(names), -1)
    for kind, work in kinds.items():
        _, end = shared_ends(plan, begin, work)
        shared = end - begin
        disk_times |= {f"{kind}_ns": work.work, f"{kind}_shared_ns": shared}
        vm_times |= {f"{kind}_ns": vm_most(plan, work.work),
                     f"{kind}_shared_ns": vm_most(plan, shared)}  # fmt: skip
        if kind == backup:
            at = np.lexsort((-np.arange(len(vm)), shared))
            critical[vm[at]] = at  # the last to end; the first among equals
    rate = {
        name: np.maximum(getattr(today.scan, name), getattr(today.send, name))
        for name in ("egress", "requests")
    }
    disks = pl.DataFrame(
        {
            "vm": [names[v] for v in vm.tolist()], "disk": [disk.name for disk in own],
            "account": [disk.account for disk in own], "used_bytes": disk_column(plan, "used"),
            "changed_bytes": kinds["incremental"].changed, "extents": kinds["incremental"].extents,
            **disk_times, **rate,
        }, schema_overrides={"account": pl.String, "vm": pl.String, "disk": pl.String},
    )  # fmt: skip
    sums = {
        name: _sums(vm, values, len(names))
        for name, values in (("used_bytes", disk_column(plan, "used")),
                             ("changed_bytes", kinds["incremental"].changed))
    }  # fmt: skip
    vms = pl.DataFrame(
        {
            "vm": names, "policy": [each.policy for each in scenario.vms],
            "clock": [clock(vault_slot(scenario, each)) for each in scenario.vms],
            "disks": np.bincount(vm, minlength=len(names)), **sums, **vm_times,
            "critical": [own[i].name if i >= 0 else None for i in critical.tolist()],
        }, schema_overrides={"critical": pl.String},
    )  # fmt: skip
    return disks, vms


def _accounts(
    scenario: Scenario, plan: Plan, slots: pl.DataFrame, work: Transfers, width: int
) -> pl.DataFrame:
    names = list(scenario.accounts)
    account, vm = disk_column(plan, "account"), disk_column(plan, "vm")
    on = account >= 0
    together: Counter[tuple[int, str]] = Counter()
    users: dict[int, set[int]] = {}
    for a, v in zip(account[on].tolist(), vm[on].tolist(), strict=True):
        together[a, scenario.vms[v].policy] += 1
        users.setdefault(a, set()).add(v)
    scheduled = [max((n for (b, _), n in together.items() if b == a), default=0)
                 for a in range(len(names))]  # fmt: skip
    shares = slots["share"].to_numpy().reshape(len(names), DAY // width)
    sent, read = (
        _sums(account[on], values[on], len(names)) for values in (work.changed, work.read)
    )
    return pl.DataFrame(
        {
            "account": names, "kind": [each.kind for each in scenario.accounts.values()],
            "egress": plan.accounts[:, 0], "requests": plan.accounts[:, 1],
            "vms": [len(users.get(a, ())) for a in range(len(names))],
            "disks": np.bincount(account[on], minlength=len(names)),
            "scheduled": scheduled,
            "advised": [advised_disks(scenario)] * len(names),
            "share": shares.max(axis=1),
            "busiest": [clock(int(i) * width) for i in shares.argmax(axis=1)],
            "overloaded_ns": (shares > 1).sum(axis=1) * width,
            "read_bytes": read, "sent_bytes": sent,
        },
        schema_overrides={"account": pl.String, "kind": pl.String, "vms": pl.Int64,
                          "scheduled": pl.Int64, "advised": pl.Int64, "busiest": pl.String},
    )  # fmt: skip


def _account_findings(accounts: pl.DataFrame, slots: pl.DataFrame) -> list[CapacityFinding]:
    found = []
    worst = slots.filter("overload").group_by("account", maintain_order=True)
    overloads = {str(name[0]): group for name, group in worst}
    for a in accounts.iter_rows(named=True):
        name = a["account"]
        if name in overloads:
            group = overloads[name]
            top = group.row(int(group["share"].arg_max() or 0), named=True)
            what = "egress" if top["share_egress"] >= top["share_requests"] else "requests"
            told = f"{a[what]:,} requests/s" if what == "requests" else f"{a[what] / 1e6:,g} MB/s"
            found.append(
                CapacityFinding(
                    "overload", name,
                    f"{top['share']:.0%} of {told} is asked for at {top['clock']} by {top['disks']}"
                    f" disks and the guests; above the cap for "
                    f"{format_duration(a['overloaded_ns'] / SECOND)} a day",
                )
            )  # fmt: skip
            alone = group.filter(
                (pl.col("guest_egress") > a["egress"]) | (pl.col("guest_requests") > a["requests"])
            )
            if len(alone):
                clocks = ", ".join(alone["clock"].head(5))
                found.append(
                    CapacityFinding("guests", name, f"the guests alone ask for more at {clocks}")
                )
        if a["advised"] is not None and a["scheduled"] > a["advised"]:
            found.append(
                CapacityFinding(
                    "disks", name,
                    f"{a['scheduled']} disks under one policy are more than {a['advised']}",
                )
            )  # fmt: skip
    return found


def _late(scenario: Scenario, vms: pl.DataFrame, backup: str) -> list[CapacityFinding]:
    bound, column = scenario.profile["late"], f"{backup}_shared_ns"
    late = vms.filter(pl.col(column) > bound)
    return [
        CapacityFinding(
            "late", v["vm"],
            f"its transfer takes {_told(v[column])}, at full speed {_told(v[f'{backup}_ns'])}; "
            f"a daily backup is to take less than {_told(bound)}",
        )
        for v in late.iter_rows(named=True)
    ]  # fmt: skip


def _told(ns: int) -> str:
    return format_duration(ns / SECOND)
