"""Small nasty plans for the engines of the service model, built as columns of whole numbers."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np

from vmbk.service.plan import (
    ACCOUNT_TOLD,
    APPLICATION,
    ATTEMPTS,
    CRASH,
    DAY,
    DELETE,
    DISK,
    FAIL,
    FILESYSTEM,
    HOUR,
    JOB,
    MOST_CHURN,
    RETRY,
    ROTATE,
    RULES,
    SECOND,
    TOLD,
    VM,
    Outputs,
    Plan,
    told,
)

MIB, GIB = 2**20, 2**30
MS = 10**6

RULES_PLAIN = dict.fromkeys(RULES, 0) | {
    "snapshot_low": 60 * SECOND, "snapshot_high": 60 * SECOND, "retry": 60 * SECOND,
    "two_phase": 1, "request": 2 * MIB,
}  # fmt: skip
VM_PLAIN = dict.fromkeys(VM, 0)
DISK_PLAIN = dict.fromkeys(DISK, 0) | {
    "account": -1, "used": 30 * 10**9, "full_rate": 10**8, "scan_rate": 2 * 10**8,
    "send_rate": 5 * 10**7, "extent": 65536, "iops": 10**6, "tracking": 1,
    "size": 1 << 60,
}  # fmt: skip


def table(names: tuple[str, ...], rows: list[dict[str, int]]) -> np.ndarray:
    """Rows as columns in the order of the names."""
    assert all(set(row) == set(names) for row in rows)
    return np.array([[row[name] for name in names] for row in rows], np.int64).reshape(
        len(rows), len(names)
    )


def plan_of(
    vms: list[dict[str, int]],
    disks: list[dict[str, int]],
    schedules: list[list[tuple[int, int]]],
    *,
    days: int = 3,
    places: tuple[int, ...] = (0,),
    accounts: list[tuple[int, int]] | None = None,
    guests: np.ndarray | None = None,
    thresholds: Any = None,
    consequences: Any = None,
    lasting: Any = None,
    events: list[tuple[int, int, int]] | None = None,
    queue_curve: Any = None,
    **rules: int,
) -> Plan:
    """A plan in which all that is not said is plain: no failure, no wait, no limit.

    A row of `vms` and `disks` says what differs from `VM_PLAIN` and `DISK_PLAIN`; `schedules` are
    pairs of time and due; `guests` has shape (2, accounts, 24): egress, requests.
    """
    assert set(rules) <= set(RULES)
    accounts = accounts or []
    if guests is None:
        guests = np.zeros((2, len(accounts), 24), np.int64)
    slots = [slot for schedule in schedules for slot in schedule]
    if consequences is None:
        consequences = [[[APPLICATION] * ATTEMPTS]]
        thresholds, lasting = np.zeros((1, 0)), [[0]]
    lengths = [0, *(len(schedule) for schedule in schedules)]
    whole = np.int64
    return Plan(
        rules=table(RULES, [RULES_PLAIN | rules])[0],
        days=days,
        queue_curve=np.array([1000] * 24 if queue_curve is None else queue_curve, whole),
        slot_first=np.cumsum(lengths).astype(whole),
        slots=np.array([time for time, _ in slots], whole),
        slot_due=np.array([due for _, due in slots], whole),
        vms=table(VM, [VM_PLAIN | vm for vm in vms]),
        disks=table(DISK, [DISK_PLAIN | disk for disk in disks]),
        places=np.array(places, whole),
        thresholds=np.array(thresholds, whole),
        consequences=np.array(consequences, whole),
        lasting=np.array(lasting, whole),
        accounts=np.array(accounts, whole).reshape(len(accounts), 2),
        guest_egress=np.array(guests[0], whole).reshape(len(accounts), 24),
        guest_requests=np.array(guests[1], whole).reshape(len(accounts), 24),
        events=np.array(events or [], whole).reshape(len(events or []), 3),
    )


def random_plan(seed: int) -> Plan:
    """A small plan that saturates, collides and fails.

    The same seed gives the same plan. Seeds differ in how nasty they are: some have no jitter and
    identical VMs, so that many things happen at the same nanosecond.
    """
    r = random.Random(f"plan of {seed}")
    days = r.choice((1, 2, 5, 9))
    ties = r.random() < 0.35
    schedules = [_slots(r, days) for _ in range(r.randint(1, 3))]
    accounts = [
        (r.choice((10**6, 5 * 10**6, 20 * 10**6, 60 * 10**6, 10**9, 123_456_789)),
         r.choice((50, 500, 20_000, 10**6)))
        for _ in range(r.choice((0, 1, 1, 2, 4)))
    ]  # fmt: skip
    guests = np.zeros((2, len(accounts), 24), np.int64)
    for a in range(len(accounts)):
        for hour in range(24):
            for what in range(2):
                if r.random() < 0.5:
                    share = r.choice((3, 10, 60, 99, 100, 250))
                    guests[what, a, hour] = accounts[a][what] * share // 100
        if r.random() < 0.5:
            guests[:, a] = 0
    places = tuple(r.choice((0, 1, 1, 2)) for _ in range(r.randint(1, 2)))
    classes = r.randint(1, 3)
    thresholds, consequences, lasting = _failures(r, classes)
    vms, disks = _machines(r, ties, days, len(schedules), len(accounts), len(places), classes)
    low = r.choice((0, 1, 30 * SECOND, 15 * 60 * SECOND))
    rules = {
        "seed": r.choice((0, 1, -1, 2**63 - 1, r.getrandbits(62))),
        "weekday": r.randrange(7),
        "jitter": 0 if ties else r.choice((0, 2 * HOUR, 2 * HOUR, 3 * SECOND)),
        "install_low": r.choice((0, 60 * SECOND)),
        "install_high": r.choice((60 * SECOND, 20 * 60 * SECOND)),
        "snapshot_low": low,
        "snapshot_high": low if ties else low + r.choice((0, 60 * SECOND, 5 * HOUR)),
        "retry": r.choice((0, 1, 120 * SECOND, HOUR)),
        "queue_peak": 0 if ties else r.choice((0, 0, 600 * SECOND, 8 * HOUR)),
        "commit": r.choice((0, 0, 1, 45 * SECOND, HOUR)),
        "transfer_failure": r.choice((0, 0, 0, 2**28, 2**31, 2**31, 2**32)),
        "overlap": r.randrange(2),
        "two_phase": r.randrange(2),
        "request": r.choice((4096, 65536, 2 * MIB, 8 * MIB)),
    }
    return plan_of(
        vms,
        disks,
        schedules,
        days=days,
        places=places,
        accounts=accounts,
        guests=guests,
        thresholds=thresholds,
        consequences=consequences,
        lasting=lasting,
        events=_events(r, days, schedules, len(accounts), len(vms)),
        queue_curve=[r.choice((0, 1, 500, 1000)) for _ in range(24)],
        **rules,
    )


def _slots(r: random.Random, days: int) -> list[tuple[int, int]]:
    """Daily, many a day, weekly or odd slots; few or all of them due."""
    kind = r.randrange(5)
    if kind == 0:
        times = [day * DAY + 22 * HOUR for day in range(days)]
    elif kind == 1:
        times = list(range(0, days * DAY, 4 * HOUR))[:24]
    elif kind == 2:
        times = list(range(8 * HOUR, days * DAY, r.choice((HOUR, 10 * 60 * SECOND))))[:30]
    elif kind == 3:
        times = sorted(r.randrange(days * DAY) for _ in range(r.randint(1, 12)))
    else:
        times = [0] if r.random() < 0.8 else []
    due = r.choice(("all", "all", "last of day", "some", "none"))
    last = {time // DAY: time for time in times}
    return [
        (time, int(due == "all" or (due == "last of day" and last[time // DAY] == time)
                   or (due == "some" and r.random() < 0.5)))
        for time in times
    ]  # fmt: skip


def _failures(r: random.Random, classes: int) -> tuple[Any, Any, Any]:
    """Causes with every consequence, lasting or passing; some classes never fail."""
    causes = r.randint(0, 4)
    thresholds, consequences, lasting = [], [], []
    for _ in range(classes):
        never = r.random() < 0.5
        cuts = sorted(r.getrandbits(32) for _ in range(causes))
        thresholds.append([0 if never else cut // r.choice((1, 2)) for cut in cuts])
        thresholds[-1].sort()
        label = r.choice((CRASH, FILESYSTEM, APPLICATION))
        rows = [[label] * ATTEMPTS]
        for _ in range(causes):
            row = [r.choice((FAIL, RETRY, RETRY, CRASH, FILESYSTEM)) for _ in range(ATTEMPTS)]
            rows.append(r.choice((row, [RETRY] * ATTEMPTS, [FAIL] * ATTEMPTS, [CRASH] * ATTEMPTS)))
        consequences.append(rows)
        lasting.append([0, *(r.randrange(2) for _ in range(causes))])
    shape = np.zeros((classes, causes), np.int64)
    shape[:] = np.array(thresholds, np.int64).reshape(classes, causes)
    return shape, consequences, lasting


def _machines(
    r: random.Random,
    ties: bool,
    days: int,
    schedules: int,
    accounts: int,
    vaults: int,
    classes: int,
) -> tuple[list[dict[str, int]], list[dict[str, int]]]:
    """VMs with their disks; with ties they are all the same, except for vault and account."""
    vms: list[dict[str, int]] = []
    disks: list[dict[str, int]] = []
    size = r.choice((5 * MIB, GIB, 30 * 10**9))
    like = [_disk(r, size, days, accounts) for _ in range(r.randint(0, 3))]
    first = _vm(r, schedules, vaults, classes)
    for v in range(r.randint(1, 12)):
        if ties:
            vms.append(first | {"vault": r.randrange(vaults)})
            mine = like
        else:
            vms.append(_vm(r, schedules, vaults, classes))
            mine = [_disk(r, size, days, accounts) for _ in range(r.choice((0, 1, 1, 2, 4)))]
        moved = r.random() < 0.3
        for disk in mine:
            where = r.randrange(-1, accounts) if moved else disk["account"]
            disks.append(disk | {"vm": v, "account": where})
    return vms, disks


def _vm(r: random.Random, schedules: int, vaults: int, classes: int) -> dict[str, int]:
    return {
        "schedule": r.randrange(schedules),
        "offset": r.choice((0, 0, 0, 1, HOUR, 37 * 60 * SECOND + 11)),
        "vault": r.randrange(vaults),
        "kind": r.randrange(classes),
        "installs": r.randrange(2),
    }


def _disk(r: random.Random, size: int, days: int, accounts: int) -> dict[str, int]:
    used = r.choice((0, 1, size, size, size + r.randrange(size), 100 * size))
    return {
        "vm": 0,
        "account": r.choice((-1, *range(accounts), *range(accounts))),
        "used": used,
        "growth": r.choice((0, 0, used // 50, 1)),
        "churn": r.choice((0, 1, used // 20, used // 3, 5 * used, MOST_CHURN)),
        "spread": r.choice((0, 20_000, 65536)),
        "weekend": r.choice((0, 10_000, 65536)),
        "added": r.choice((0, 0, 0, 0, DAY // 2, 8 * HOUR, r.randrange(days * DAY))),
        "full_rate": r.choice((10**6, 30 * 10**6, 500 * 10**6, 3 * 10**6 + 1)),
        "scan_rate": r.choice((10**7, 60 * 10**6, 10**9)),
        "send_rate": r.choice((10**6, 20 * 10**6, 150 * 10**6)),
        "extent": r.choice((4096, 65536, MIB, 64 * MIB)),
        "extent_cost": r.choice((0, 1, 20_000, MS)),
        "tracked_cost": r.choice((0, 0, 1000, 50_000)),
        "iops": r.choice((60, 500, 5000, 10**6)),
        "tracking": int(r.random() < 0.7),
        "size": r.choice((1 << 60, used, used + used // 20)),
    }


def _events(
    r: random.Random, days: int, schedules: list[list[tuple[int, int]]], accounts: int, vms: int
) -> list[tuple[int, int, int]]:
    """Rotations and deletions at any time, at slots, at full hours and together."""
    slots = [time for schedule in schedules for time, _ in schedule]
    events = []
    for _ in range(r.choice((0, 2, 8, 30))):
        what = r.randrange(4)
        if what == 0 and slots:
            time = r.choice(slots) + r.choice((0, 0, 1, 30 * SECOND, 15 * 60 * SECOND))
        elif what == 1 and events:
            time = r.choice(events)[0]
        elif what == 2:
            time = r.randrange(24 * days) * HOUR
        else:
            time = r.randrange(days * DAY)
        if accounts and r.random() < 0.6:
            events.append((time, ROTATE, r.randrange(accounts)))
        else:
            events.append((time, DELETE, r.randrange(vms)))
    return sorted(events, key=lambda event: event[0])


def column(outputs: Outputs, name: str) -> list[int]:
    """A column of the jobs, packed or not; moments and durations in ns."""
    if name in TOLD:
        return [int(value) for value in told(outputs.jobs, name)]
    return [int(value) for value in outputs.jobs[:, JOB.index(name)]]


def seconds(outputs: Outputs, name: str) -> list[float]:
    return [value / SECOND for value in column(outputs, name)]


def of_account(outputs: Outputs, name: str, account: int = 0) -> int:
    return int(outputs.accounts[account, ACCOUNT_TOLD.index(name)])


def with_rules(plan: Plan, **changes: int) -> Plan:
    """A plan with some rules replaced."""
    rules = plan.rules.copy()
    for name, value in changes.items():
        rules[RULES.index(name)] = value
    return replace(plan, rules=rules)
