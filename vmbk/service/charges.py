"""What a scenario's fleet costs: its machines as the price list knows them."""

from __future__ import annotations

from vmbk.errors import InputError
from vmbk.service.cost import CostEstimate, estimate
from vmbk.service.cost_items import CostDisk, CostVM
from vmbk.service.prices import Prices
from vmbk.service.scenario import Declared, Disk, Machine, Scenario


def estimate_cost(
    scenario: Declared,
    prices: Prices | None = None,
    *,
    redundancy: str | None = None,
    months: int = 12,
    first_month: int = 0,
) -> CostEstimate:
    """What a scenario's fleet costs, month by month; see `vmbk.service.cost.estimate`.

    Parameters
    ----------
    scenario : Scenario, Mapping, or path
        Declared in any of these ways.
    prices : Prices, optional
        The price list that comes with vmbk unless given.
    redundancy : str, optional
        Of all vaults, instead of their own.
    months, first_month : int
        How many months of 31 days, after how many.

    Raises
    ------
    InputError
        If a field of the scenario or an argument is not what it must be.
    """
    vms = cost_vms(Scenario.of(scenario))
    return estimate(
        vms, prices or Prices.load(), redundancy, months=months, first_month=first_month
    )


def cost_vms(scenario: Scenario) -> tuple[CostVM, ...]:
    """The machines of a scenario; equal ones of one policy and vault stand together, counted.

    Parameters
    ----------
    scenario : Scenario

    Returns
    -------
    tuple of CostVM
        The first disk that is not temporary has the operating system. Changes that count are those
        of a mean day of the week. Eras without Instant Restore keep no snapshots.

    Raises
    ------
    InputError
        If a policy backs up on several days of the week, but not on all.
    """
    groups: dict[tuple[str, str, tuple[Disk, ...]], list[Machine]] = {}
    for vm in scenario.vms:
        if len(scenario.policies[vm.policy].schedule.weekdays) > 1:
            raise InputError(
                f"policies ({vm.policy}).schedule.weekdays: costs are estimated of daily backups, "
                "or of one a week",
                hint="estimate it as daily: that is the most it can cost",
            )
        groups.setdefault((vm.policy, vm.vault, vm.disks), []).append(vm)
    return tuple(
        CostVM.under(
            scenario.policies[policy],
            vms[0].name if len(vms) == 1 else f"{vms[0].name} … {vms[-1].name}",
            _disks(disks),
            redundancy=scenario.vaults[vault].redundancy,
            count=len(vms),
            snapshots=bool(scenario.profile["two_phase"]),
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
