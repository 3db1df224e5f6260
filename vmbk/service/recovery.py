"""The headline of a simulation: how much would be lost in a disaster, how long until it is back."""

from __future__ import annotations

from typing import Final

import polars as pl

from vmbk.service.objectives import Objectives, objectives
from vmbk.service.plan import DAY
from vmbk.service.restore_rules import KNOWN_OPTIONS, RestoreRequest
from vmbk.service.restores import Restores, simulate_restores
from vmbk.service.scenario import Scenario
from vmbk.service.simulation import Simulation

MOST_VMS: Final = 10_000
"""Machines whose restores are simulated; of a larger fleet there is no recovery time objective."""

_BATCH: Final = 500
"""Machines restored one after the other in one run of the restore model, which ends somewhere."""

_APART: Final = 3 * DAY
"""Between restores of single machines, so that they do not wait for each other."""


def recovery(simulation: Simulation) -> Objectives:
    """Recovery point and recovery time objectives of a simulated fleet.

    Parameters
    ----------
    simulation : Simulation

    Returns
    -------
    Objectives
        The disaster comes at a random moment of the scenario. One machine is restored at a time,
        from its snapshot where the era has them; a region with all of its machines at once.
    """
    scenario, jobs = simulation.scenario, simulation.jobs
    if not scenario.profile["two_phase"]:  # no snapshot is restored from
        jobs = jobs.with_columns(pl.lit(-1, pl.Int64).alias("point_ns"))
    restores = _restores(simulation) if len(scenario.vms) <= MOST_VMS else None
    return objectives(
        jobs, end=scenario.days * DAY, restores=restores, targets=_targets(scenario),
        rules=scenario.restores,
    )  # fmt: skip


def _targets(scenario: Scenario) -> dict[str, int]:
    """What the policies in use promise at most: the longest pause between backups."""
    used = {vm.policy for vm in scenario.vms}
    schedules = [scenario.policies[name].schedule for name in used]
    point = max(schedule.longest_gap for schedule in schedules)
    vault = max(max(schedule.longest_gap, DAY) for schedule in schedules)
    if not scenario.profile["two_phase"]:
        point = vault
    region = vault + scenario.restores.replication
    return {"any": point, "snapshot": point, "vault": vault, "secondary": region}


def _restores(simulation: Simulation) -> Restores | None:
    """Each machine alone from each tier, and all at once in the other region."""
    scenario = simulation.scenario
    rules = scenario.restores
    tiers = ("snapshot", "vault") if scenario.profile["two_phase"] else ("vault",)
    options = KNOWN_OPTIONS[scenario.profile.name]
    alone: list[RestoreRequest] = []
    together: list[RestoreRequest] = []
    for i, vm in enumerate(scenario.vms):
        sizes = tuple(disk.used for disk in vm.disks if disk.backed_up)
        redundancy = scenario.vaults[vm.vault].redundancy
        at = i % _BATCH * _APART
        if not sizes:
            continue
        alone += [RestoreRequest(vm.name, at, sizes, tier, redundancy=redundancy) for tier in tiers]
        if redundancy in ("GRS", "RA-GRS") and "cross-region" in options:
            region = RestoreRequest(
                vm.name, 0, sizes, "vault", "cross-region", redundancy=redundancy
            )
            together.append(region)
    batch = _BATCH * len(tiers)
    groups = [together, *(alone[i : i + batch] for i in range(0, len(alone), batch))]
    runs = [simulate_restores(each, rules, seed=scenario.seed) for each in groups if each]
    if not runs:
        return None
    frame = pl.concat([run.frame for run in runs])
    findings = tuple(finding for run in runs for finding in run.findings)
    return Restores(frame, pl.concat([run.timeline for run in runs]), findings, rules)
