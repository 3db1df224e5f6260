"""The planner's static model: which slot suits a machine, before anything is simulated.

Loads of accounts and transfers of vaults are kept by quarters of an hour, waits are mean ones. A
machine gets the slot that delays the end of the night least, among those that its era's rules of
thumb leave.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vmbk.service.flows import Transfers, vm_most
from vmbk.service.limits import shipped as shipped_limits
from vmbk.service.plan import VM, Plan

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vmbk.service.scenario import Scenario

    Int64s = NDArray[np.int64]
    Floats = NDArray[np.float64]

_BIN: Final = 15 * 60.0
_BINS: Final = 192
"""Of the static model: two days in quarters of an hour."""


@dataclass(frozen=True)
class Rules:
    """How many may be scheduled for the same time; None is any number."""

    at_once: int | None
    of_each_vault: bool
    of_cloud_service: int | None
    of_account: int | None

    @classmethod
    def of(cls, scenario: Scenario) -> Rules:
        """Those of the scenario's era."""
        name, limits = scenario.profile.name, shipped_limits()
        early = name == "2017"
        return cls(
            limits.value("vms_at_once", name), not early,
            limits.value("classic_vms_at_once", name),
            limits.value("disks_per_account", name) if early else None,
        )  # fmt: skip


class StaticModel:
    """The static model: loads by account and quarter of an hour, and who transfers in a vault."""

    def __init__(self, plan: Plan, scenario: Scenario, work: Transfers, accounts: Int64s) -> None:
        self.plan, self.scenario, self.accounts = plan, scenario, accounts
        profile = scenario.profile
        hours = (np.arange(_BINS) * _BIN / 3600).astype(np.int64) % 24
        guests = np.stack((plan.guest_egress, plan.guest_requests), axis=1)
        self.cap = np.maximum(plan.accounts.astype(np.float64), 1)
        self.free = self.cap[:, :, None] - guests[:, :, hours]
        seconds = work.work / 1e9
        self.bins = np.ceil(seconds / _BIN).astype(np.int64).clip(1, _BINS)
        asked = (work.scan.requests * work.scan.work + work.send.requests * work.send.work) / 1e9
        spread = self.bins * _BIN  # a short one is spread over its bin
        self.demand = np.stack(((work.read + work.changed) / spread, asked / spread), axis=1)
        self.longest = vm_most(plan, work.work) / 1e9
        self.steady = (
            profile["start_jitter"] / 2e9
            + (profile["snapshot_least"] + profile["snapshot_most"]) / 2e9
        )
        self.peak = profile["queue_peak"] / 1e9 * plan.queue_curve / 1000
        self.vault = plan.vms[:, VM.index("vault")]

    def assign(
        self, slots: Int64s, movable: NDArray[np.bool_], rules: Rules, care: float
    ) -> tuple[Int64s, int]:
        """Slots of all movable VMs, and how often a rule could not be kept.

        Parameters
        ----------
        slots : numpy.ndarray of int64, shape (slots,)
            Minutes since the midnight of the day on which the window begins, ascending.
        movable : numpy.ndarray of bool, shape (VMs,)
        rules : Rules
        care : float
            How much a second by which an account falls behind counts, beside the night's end.
            Infinite: work is dealt evenly over the slots, whatever the accounts.
        """
        plan, vms = self.plan, self.scenario.vms
        load = np.zeros_like(self.free)
        running = np.zeros((len(plan.places), _BINS))
        seconds = slots * 60.0
        hour = (seconds // 3600).astype(np.int64) % 24
        mean_begin = seconds + self.steady + self.peak[hour] / 3
        tail = seconds + self.steady * 2 + self.peak[hour]
        first = (mean_begin / _BIN).astype(np.int64).clip(0, _BINS - 1)
        chosen = np.full(len(vms), -1, np.int64)
        counts = Counts(rules, vms, self.vault, plan, self.accounts, slots)
        filled = np.zeros(len(slots))
        end, broken = 0.0, 0
        for v in np.argsort(-self.longest, kind="stable").tolist():
            if not movable[v]:
                continue
            own = range(int(plan.disk_first[v]), int(plan.disk_first[v + 1]))
            over = np.zeros(len(slots))
            for d in own:
                a = self.accounts[d]
                if a >= 0:
                    over += self._overflow(load[a], a, d, first)
            bins = max((int(self.bins[d]) for d in own), default=1)
            vault = int(self.vault[v])
            places = int(plan.places[vault])
            if places:
                over += _window((running[vault] >= places) * _BIN, first, bins)
            finish = tail + self.longest[v] + over
            if np.isinf(care):
                cost = filled
            else:
                cost = np.maximum(finish - end, 0) + care * over + seconds * 1e-3
            allowed = counts.allowed(v)
            if not allowed.any():
                broken += 1
                allowed[:] = True
            best = int(np.where(allowed, cost, np.inf).argmin())
            chosen[v] = best
            filled[best] += self.longest[v] + 1
            end = max(end, float(finish[best]))
            counts.add(v, best)
            for d in own:
                if self.accounts[d] >= 0:
                    span = slice(int(first[best]), int(first[best] + self.bins[d]))
                    load[self.accounts[d], :, span] += self.demand[d][:, None]
            running[vault, first[best] : first[best] + bins] += 1
        return np.where(chosen >= 0, slots[chosen] % (24 * 60), -1), broken

    def _overflow(self, load: Floats, account: int, disk: int, first: Int64s) -> Floats:
        """Seconds by which an account falls behind for one disk more, from each slot."""
        free = self.free[account]
        more = load + self.demand[disk][:, None] - free
        behind = (np.maximum(more, 0) - np.maximum(load - free, 0)) / self.cap[account][:, None]
        return _window(behind.max(axis=0) * _BIN, first, int(self.bins[disk]))


def _window(values: Floats, first: Int64s, bins: int) -> Floats:
    total = np.concatenate(([0.0], np.cumsum(values)))
    found: Floats = total[np.minimum(first + bins, _BINS)] - total[first]
    return found


class Counts:
    """How many are scheduled for each slot, and for which there is room."""

    def __init__(
        self, rules: Rules, vms: Sequence[Any], vault: Int64s, plan: Plan, accounts: Int64s,
        slots: Int64s,
    ) -> None:  # fmt: skip
        self.rules, self.vms, self.plan, self.accounts = rules, vms, plan, accounts
        groups = len(plan.places) if rules.of_each_vault else 1
        self.group = vault if rules.of_each_vault else np.zeros_like(vault)
        self.vm_count = np.zeros((groups, len(slots)), np.int64)
        self.disk_count = np.zeros((len(plan.accounts), len(slots)), np.int64)
        self.services: dict[str, Int64s] = {}
        # Row u: slots within an hour from slot u on, as classic machines are counted.
        self.near = (slots[None, :] - slots[:, None]) % (24 * 60) < 60

    def allowed(self, v: int) -> NDArray[np.bool_]:
        """In which slots there is room for a VM."""
        rules = self.rules
        found: NDArray[np.bool_] = np.ones(self.vm_count.shape[1], bool)
        if rules.at_once is not None:
            found &= self.vm_count[self.group[v]] < rules.at_once
        if rules.of_account is not None:
            for a, count in self._disks(v):
                found &= self.disk_count[a] + count <= max(rules.of_account, count)
        service = self.vms[v].cloud_service
        if rules.of_cloud_service is not None and service is not None:
            taken = self.services.get(service)
            if taken is not None:
                fullest = np.where(self.near, taken[:, None], 0).max(axis=0)
                found &= fullest < rules.of_cloud_service
        return found

    def add(self, v: int, slot: int, sign: int = 1) -> None:
        """Count a VM in a slot, or no more with sign -1."""
        self.vm_count[self.group[v], slot] += sign
        for a, count in self._disks(v):
            self.disk_count[a, slot] += sign * count
        service = self.vms[v].cloud_service
        if service is not None:
            taken = self.services.setdefault(service, np.zeros(len(self.near), np.int64))
            taken += sign * self.near[:, slot]

    def _disks(self, v: int) -> Iterator[tuple[int, int]]:
        own = self.accounts[self.plan.disk_first[v] : self.plan.disk_first[v + 1]]
        found, count = np.unique(own[own >= 0], return_counts=True)
        return zip(found.tolist(), count.tolist(), strict=True)
