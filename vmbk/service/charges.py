"""What a scenario's fleet costs: its machines as the price list knows them."""

from __future__ import annotations

from vmbk.service.cost_items import CostDisk, CostVM
from vmbk.service.scenario import Disk, Machine, Scenario


def cost_vms(scenario: Scenario) -> tuple[CostVM, ...]:
    """The machines of a scenario; equal ones of one policy and vault stand together, counted.

    Parameters
    ----------
    scenario : Scenario

    Returns
    -------
    tuple of CostVM
        The first disk that is not temporary has the operating system. Changes that count are those
        of a mean day of the week.
    """
    groups: dict[tuple[str, str, tuple[Disk, ...]], list[Machine]] = {}
    for vm in scenario.vms:
        groups.setdefault((vm.policy, vm.vault, vm.disks), []).append(vm)
    return tuple(
        CostVM.under(
            scenario.policies[policy],
            vms[0].name if len(vms) == 1 else f"{vms[0].name} … {vms[-1].name}",
            _disks(disks),
            redundancy=scenario.vaults[vault].redundancy,
            count=len(vms),
        )
        for (policy, vault, disks), vms in groups.items()
    )


def _disks(disks: tuple[Disk, ...]) -> list[CostDisk]:
    system = next((i for i, disk in enumerate(disks) if not disk.temporary), -1)
    return [
        CostDisk(
            disk.name, disk.size, disk.used,
            churn_per_day=min(round(disk.churn * (5 + 2 * disk.weekend) / 7), disk.size),
            growth_per_day=min(disk.growth, disk.size),
            temporary=disk.temporary, excluded=disk.excluded, operating_system=i == system,
        )
        for i, disk in enumerate(disks)
    ]  # fmt: skip
