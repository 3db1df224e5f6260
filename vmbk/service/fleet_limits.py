"""Whether a fleet keeps the service's limits: see ``limits.toml``, where each has its source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from vmbk.errors import InputError
from vmbk.service.fields import Fields
from vmbk.service.limits import Finding, check_limits, shipped
from vmbk.service.plan import DAY

if TYPE_CHECKING:
    from vmbk.service.scenario import Scenario

OFF: Final = "off"
"""A reading that is not kept at all."""


@dataclass(frozen=True)
class LimitReadings:
    """Which of the documents' limits hold, and what becomes of a fleet that does not keep one.

    Attributes
    ----------
    chosen : tuple of (str, str)
        Names of limits and their readings, or `OFF`; those of the era hold for the others.
    refuse : bool
        Such a fleet is refused; otherwise it is simulated, and told of.
    """

    chosen: tuple[tuple[str, str], ...] = ()
    refuse: bool = False

    @classmethod
    def parse(cls, table: Any, name: str) -> LimitReadings:
        """A scenario's ``[limits]``: readings by the names of limits, and ``refuse``.

        Raises
        ------
        InputError
            If there is no such limit or reading.
        """
        known = shipped().limits
        fields = Fields(table, name, (*known, "refuse"))
        return cls(
            tuple(
                (key, fields.choice(key, (*(one.name for one in limit.readings), OFF)))
                for key, limit in known.items()
                if key in fields
            ),
            fields.flag("refuse", False),
        )


def broken_limits(scenario: Scenario) -> Iterator[tuple[str, Finding]]:
    """Limits that a fleet does not keep, each with the part of the scenario that does not.

    Parameters
    ----------
    scenario : Scenario
    """
    chosen = dict(scenario.limits.chosen)
    for where, counts in _counts(scenario):
        wanted = {name: count for name, count in counts.items() if chosen.get(name) != OFF}
        readings = {name: chosen[name] for name in wanted if name in chosen}
        for finding in check_limits(wanted, scenario.profile.name, readings=readings):
            yield where, finding


def require_fleet_limits(scenario: Scenario) -> None:
    """That a fleet keeps every hard limit, where it asks to be refused otherwise.

    Raises
    ------
    InputError
        If it does not; the message names the part of the scenario and the limit.
    """
    if not scenario.limits.refuse:
        return
    for where, finding in broken_limits(scenario):
        if finding.limit.kind == "hard":
            raise InputError(
                f"{where}: {finding}",
                hint=f'to model it all the same: limits.refuse = false, or {finding.field} = "off"',
            )


def _counts(scenario: Scenario) -> Iterator[tuple[str, dict[str, int]]]:
    """What there is of everything that has a limit, by the part of the scenario."""
    vaults = Counter(vm.vault for vm in scenario.vms)
    policies = Counter(vm.policy for vm in scenario.vms)
    of_vault: dict[str, set[str]] = {}
    for vm in scenario.vms:
        of_vault.setdefault(vm.vault, set()).add(vm.policy)
    yield "vaults", {"vaults_per_subscription": len(vaults)}
    for name, count in vaults.items():
        found = {"vms_per_vault": count, "policies_per_vault": len(of_vault[name])}
        yield f"vaults ({name})", found
    for name, count in policies.items():
        policy = scenario.policies[name]
        yield f"policies ({name})", {
            "vms_per_policy": count, "scheduled_per_day": policy.schedule.per_day,
            "instant_days": policy.instant_days,
        }  # fmt: skip
    for vm in scenario.vms:
        own = [disk for disk in vm.disks if not disk.temporary]
        size = sum(disk.size for disk in own)
        yield f"vms ({vm.name})", {"disks_per_vm": max(len(own) - 1, 0), "vm_size": size}
        for disk in own:
            if disk.backed_up:
                yield f"vms ({vm.name}).disks ({disk.name})", {"disk_size": disk.size}
    demands = Counter(
        (event.target, event.at // DAY) for event in scenario.events if event.kind == "back-up"
    )
    for (name, day), count in demands.items():
        yield f"events of {name} on day {day}", {"on_demand_per_day": count}
