"""What the checks of the advice are given, and what they give."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from vmbk.service.capacity import Capacity, capacity, vault_slot
from vmbk.service.limits import shipped
from vmbk.service.plan import DAY
from vmbk.service.simulation import Simulation, simulate

if TYPE_CHECKING:
    from vmbk.service.scenario import Disk, Machine, Scenario


@dataclass(frozen=True)
class Hit:
    """Something that a rule found.

    Attributes
    ----------
    finding : str
        With the numbers.
    targets : tuple of str
        VMs, accounts, disks or policies.
    changed : Scenario or None
        As it is when the advice is followed, where a simulation can show it.
    span : str
        Of what the effect is measured: ``"ordinary"`` days, or ``"whole"`` with all events.
    only : tuple of str
        VMs of which the effect is measured; all where there is none.
    numbers : mapping of str to (float, float)
        Effects that the check found by itself, before and after, by what they are.
    """

    finding: str
    targets: tuple[str, ...] = ()
    changed: Scenario | None = None
    span: str = "ordinary"
    only: tuple[str, ...] = ()
    numbers: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """A scenario with what checks want to know of it."""

    scenario: Scenario
    effects: bool

    @property
    def era(self) -> str:
        """Name of its profile."""
        return self.scenario.profile.name

    def limit(self, name: str) -> int:
        """A limit of the era; the rule holds only where there is one."""
        found = shipped().value(name, self.era)
        return (1 << 62) if found is None else found

    @cached_property
    def capacity(self) -> Capacity:
        """Its static plan."""
        return capacity(self.scenario)

    @cached_property
    def simulation(self) -> Simulation:
        """It, simulated as it stands."""
        return simulate(self.scenario)

    @cached_property
    def slots(self) -> dict[str, int]:
        """Nanosecond of the day of each VM's backup."""
        return {vm.name: vault_slot(self.scenario, vm) for vm in self.scenario.vms}

    def shifted(self, by: Mapping[str, int]) -> Scenario:
        """The scenario with some VMs later, by so many ns (modulo a day)."""
        vms = tuple(
            replace(vm, stagger=(vm.stagger + by[vm.name]) % DAY) if vm.name in by else vm
            for vm in self.scenario.vms
        )
        return replace(self.scenario, vms=vms)

    def disks(self) -> Iterator[tuple[Machine, Disk]]:
        """All disks that are backed up, with their machines."""
        for vm in self.scenario.vms:
            for disk in vm.disks:
                if disk.backed_up:
                    yield vm, disk

    def with_disks(self, change: Callable[[Machine, Disk], tuple[Disk, ...]]) -> Scenario:
        """The scenario with other disks instead of those that are backed up."""
        vms = tuple(
            replace(
                vm,
                disks=tuple(
                    new
                    for disk in vm.disks
                    for new in (change(vm, disk) if disk.backed_up else (disk,))
                ),
            )
            for vm in self.scenario.vms
        )
        return replace(self.scenario, vms=vms)


def names(found: Iterable[str], most: int = 4) -> str:
    """The first names of some, and how many more."""
    every = list(found)
    more = f" and {len(every) - most:,} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more


def counted(n: int, what: str) -> str:
    """``1 machine``, ``2 machines``."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"
