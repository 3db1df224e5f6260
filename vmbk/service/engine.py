"""The fast engine: a plan laid out for the kernel, and run in threads, part by part.

VMs that share neither an account nor a vault with limited places cannot touch each other: each such
part of the fleet runs on its own, on any core, and comes out the same.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import numpy as np

from vmbk.progress import progress
from vmbk.service.plan import DISK, ROTATE, VM, Outputs, Plan

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Int64s = NDArray[np.int64]

_BATCH: Final = 100_000
"""Jobs after which progress is told."""


def simulate_fast(plan: Plan, *, parts: bool = False, threads: int | None = None) -> Outputs:
    """Run a plan.

    Parameters
    ----------
    plan : Plan
    parts : bool
        Whether to tell what each disk did in each job.
    threads : int, optional
        As many as there are cores.

    Returns
    -------
    Outputs
    """
    from vmbk.kernels.fleet import simulate_fleet

    outputs = Outputs.empty(plan, parts=parts)
    told = (outputs.jobs, outputs.parts, outputs.accounts, outputs.account_hours)
    flat = [array.reshape(-1) for array in told]
    p = _lay_out(plan, parts)
    components, members, events = _components(plan)
    s = _state(plan, components, members)
    jobs = np.diff(plan.job_first)[members]
    done = np.concatenate(([0], np.cumsum(jobs)))[components[:, 1]]  # jobs up to each component
    stops = np.unique(np.searchsorted(done, np.arange(_BATCH, done[-1] + _BATCH, _BATCH)) + 1)
    stops = np.unique(np.concatenate(([0], np.minimum(stops, len(components)))))

    def run(first: int, last: int) -> int:
        simulate_fleet(p, s, components.reshape(-1), members, events, first, last, *flat)
        return int(done[last - 1] - (done[first - 1] if first else 0))

    pairs = list(zip(stops[:-1].tolist(), stops[1:].tolist(), strict=True))
    with (
        ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool,
        progress("simulate", int(done[-1]), unit="jobs") as advance,
    ):
        for count in pool.map(lambda pair: run(*pair), pairs):
            advance(count)
    return outputs


def _lay_out(plan: Plan, parts: bool) -> Int64s:
    """The plan as the kernel takes it: places of the tables, then the tables."""
    from vmbk.kernels import fleet_work as k

    accounts = plan.disks[:, DISK.index("account")]
    order = np.argsort(accounts, kind="stable")[np.count_nonzero(accounts < 0) :]
    counts = np.bincount(accounts[accounts >= 0], minlength=len(plan.accounts))
    account_first = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
    tables = {
        k.RULES: plan.rules, k.CURVE: plan.queue_curve, k.SLOT_FIRST: plan.slot_first,
        k.SLOTS: plan.slots, k.SLOT_DUE: plan.slot_due, k.VMS: plan.vms, k.DISKS: plan.disks,
        k.DISK_FIRST: plan.disk_first, k.JOB_FIRST: plan.job_first, k.PART_FIRST: plan.part_first,
        k.PLACES: plan.places, k.THRESHOLDS: plan.thresholds, k.CONSEQUENCES: plan.consequences,
        k.LASTING: plan.lasting, k.ACCOUNTS: plan.accounts, k.GUEST_EGRESS: plan.guest_egress,
        k.GUEST_REQUESTS: plan.guest_requests, k.ACCOUNT_FIRST: account_first,
        k.ACCOUNT_DISKS: order, k.EVENTS: plan.events,
    }  # fmt: skip
    head = np.zeros(k.PLAN_TABLES, np.int64)
    pieces, at = [head], k.PLAN_TABLES
    for name, table in tables.items():
        head[name] = at
        pieces.append(np.asarray(table, np.int64).reshape(-1))
        at += pieces[-1].size
    for name, number in (
        (k.N_VMS, len(plan.vms)), (k.N_DISKS, len(plan.disks)), (k.N_ACCOUNTS, len(plan.accounts)),
        (k.N_CAUSES, plan.thresholds.shape[1]), (k.DAYS, plan.days), (k.WANT_PARTS, int(parts)),
    ):  # fmt: skip
        head[name] = number
    return np.concatenate(pieces)


def _state(plan: Plan, components: Int64s, members: Int64s) -> Int64s:
    """What is kept while it runs, as it is at the beginning; and where components' heaps are."""
    from vmbk.kernels import fleet as f
    from vmbk.kernels import fleet_accounts as a
    from vmbk.kernels import fleet_work as k

    vms, disks, accounts = len(plan.vms), len(plan.disks), len(plan.accounts)
    actors = 2 * vms + accounts
    # A heap has its size before it, and holds at most each VM twice and each account.
    sizes = 1 + 2 * (components[:, 1] - components[:, 0]) + components[:, 5]
    heaps = np.concatenate(([0], np.cumsum(sizes)))
    tables = {
        k.VM_STATE: np.zeros(vms * f.VM_KEPT, np.int64),
        k.DISK_STATE: np.zeros(disks * k.DISK_KEPT, np.int64),
        k.ACCOUNT_STATE: np.zeros(accounts * a.ACCOUNT_KEPT, np.int64),
        k.VAULT_STATE: np.full(len(plan.places) * f.VAULT_KEPT, -1, np.int64),
        k.HEAP: np.zeros(heaps[-1], np.int64),
        k.WHERE: np.full(actors, -1, np.int64),
        k.WHEN: np.zeros(actors, np.int64),
        k.RANK: np.zeros(actors, np.int64),
        k.FLOW_HEAP: np.zeros(disks, np.int64),
        k.FLOW_WHERE: np.full(disks, -1, np.int64),
        k.TARGET: np.zeros(disks, np.int64),
        k.FLOW_RANK: np.arange(disks, dtype=np.int64),
    }
    tables[k.DISK_STATE][k.SINCE :: k.DISK_KEPT] = -1
    tables[k.VAULT_STATE][f.RUNNING :: f.VAULT_KEPT] = 0
    head = np.zeros(k.STATE_TABLES, np.int64)
    pieces, at = [head], k.STATE_TABLES
    for name, table in tables.items():
        head[name] = at
        pieces.append(table)
        at += table.size
    components[:, f.HEAP_AT] = head[k.HEAP] + heaps[:-1] + 1
    return np.concatenate(pieces)


def _components(plan: Plan) -> tuple[Int64s, Int64s, Int64s]:
    """Parts of the fleet that share nothing: rows of components, their VMs, their events.

    The last column of a row is the number of its accounts.
    """
    vms = len(plan.vms)
    label = np.arange(vms)
    on = plan.disks[:, DISK.index("account")] >= 0
    disk_vm, disk_account = plan.disks[on][:, [DISK.index("vm"), DISK.index("account")]].T
    vaults = plan.vms[:, VM.index("vault")]
    limited = plan.places[vaults] > 0
    groups = [
        (disk_vm, disk_account, len(plan.accounts)),
        (np.flatnonzero(limited), vaults[limited], len(plan.places)),
    ]
    while True:
        before = label.copy()
        for member, group, count in groups:
            least = np.full(count, vms, np.int64)
            np.minimum.at(least, group, label[member])
            np.minimum.at(label, member, least[group])
        if np.array_equal(before, label):
            break
    roots, component = np.unique(label, return_inverse=True)
    members = np.argsort(component, kind="stable").astype(np.int64)
    n = len(roots)
    rows = np.zeros((n, 6), np.int64)
    vm_stops = np.cumsum(np.bincount(component, minlength=n))
    rows[:, 0], rows[:, 1] = np.concatenate(([0], vm_stops[:-1])), vm_stops
    account_component = np.full(len(plan.accounts), -1)
    account_component[disk_account] = component[disk_vm]
    rows[:, 5] = np.bincount(account_component[account_component >= 0], minlength=n)
    rotates = plan.events[:, 1] == ROTATE
    target = plan.events[:, 2]
    home = np.full(len(plan.events), -1)
    home[rotates] = account_component[target[rotates]]
    home[~rotates] = component[target[~rotates]]
    events = np.argsort(home, kind="stable")[np.count_nonzero(home < 0) :].astype(np.int64)
    event_stops = np.cumsum(np.bincount(home[home >= 0], minlength=n))
    rows[:, 2], rows[:, 3] = np.concatenate(([0], event_stops[:-1])), event_stops
    return rows, members, events
