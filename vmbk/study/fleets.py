"""Fleets as cells of a sweep: a scenario under every combination of some changes, on many cores.

::

    found = sweep_fleets(
        "small-company",
        {"service.queue_peak": ["2h", "8h"], "profile": ["2017", "instant"]},
        replicates=5, executor=2, store="results",
    )
    found.rows      # one row a combination and replicate
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, Final

from vmbk.errors import InputError
from vmbk.study.sweep import SweepResult, sweep
from vmbk.units import quoted

if TYPE_CHECKING:
    from concurrent.futures import Executor

MOST_CELLS: Final = 100_000
_STRIDE: Final = 0x9E3779B97F4A7C15
"""Odd, so that no two of 2^63 replicates have the same seed."""


def sweep_fleets(
    scenario: Mapping[str, Any] | str | os.PathLike[str],
    changes: Mapping[str, Sequence[Any]],
    *,
    replicates: int = 1,
    store: str | os.PathLike[str] | None = None,
    executor: Executor | int | Any | None = None,
) -> SweepResult:
    """Simulate a scenario under every combination of some changes.

    Parameters
    ----------
    scenario : Mapping or path
        As it is declared; or the name of a shipped one.
    changes : mapping of str to sequence
        Values by field: ``"days"``, ``"service.queue_peak"``, ``"policies.0.schedule.at"``.
    replicates : int
        Each combination is simulated so often. Replicate 0 has the scenario's own seed; replicate
        r of one combination has the seed of replicate r of every other, so that they differ in
        nothing but the changes.
    store, executor
        As of `vmbk.study.sweep.sweep`: what is finished is kept, and it may run anywhere.

    Returns
    -------
    SweepResult
        One row a cell: the changed fields, ``replicate``, and what the jobs came to.

    Raises
    ------
    InputError
        If a field is not one of the scenario, or there are no cells or too many. What a cell's
        scenario gets wrong is in its result.
    """
    from vmbk.service.scenario import scenario_table

    declared = dict(scenario) if isinstance(scenario, Mapping) else scenario_table(scenario)
    if type(replicates) is not int or not 1 <= replicates <= MOST_CELLS:
        raise InputError(f"replicates: {quoted(replicates)} is not from 1 to {MOST_CELLS:,}")
    count = replicates
    for field, values in changes.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise InputError(f"changes: {field} needs a list of values, not {quoted(values)}")
        count *= len(values)
    if count > MOST_CELLS:
        raise InputError(f"changes: {count:,} cells are more than {MOST_CELLS:,}")
    cells = []
    for values in product(*changes.values()):
        made = _plain(declared)
        for field, value in zip(changes, values, strict=True):
            _set(made, field, value)
        named = dict(zip(changes, values, strict=True))
        cells += [{"scenario": made, "changes": named, "replicate": r} for r in range(replicates)]
    return sweep(simulate_cell, cells, store=store, executor=executor)


def simulate_cell(cell: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """One fleet, wherever a sweep has it run.

    Parameters
    ----------
    cell : Mapping
        ``scenario``, ``changes`` (told in the row), ``replicate``.
    seed : int
        Not used: replicates have seeds of their own, see `sweep_fleets`.

    Returns
    -------
    dict
    """
    from dataclasses import replace

    from vmbk.service.objectives import objectives
    from vmbk.service.plan import DAY
    from vmbk.service.scenario import Scenario
    from vmbk.service.simulation import simulate

    scenario = Scenario.parse(cell["scenario"])
    own = (scenario.seed + cell["replicate"] * _STRIDE) & ((1 << 63) - 1)
    found = simulate(replace(scenario, seed=own))
    told = found.summary()
    vault = objectives(found.jobs, end=scenario.days * DAY).of("vault")
    row: dict[str, Any] = {f"{field}": str(value) for field, value in cell["changes"].items()}
    row |= {"replicate": cell["replicate"], "fleet_seed": own, "jobs": told["jobs"]}
    for name in ("first_backup_s", "incremental_s"):
        spread = told[name] or {}
        row |= {f"{name}_{key}": spread.get(key) for key in ("median", "p95", "max")}
    row |= {key: told[key] for key in ("late", "slow", "fallbacks", "sent_bytes", "read_bytes")}
    row |= {f"{name}_s": seconds for name, seconds in told["parts_s"].items()}
    row |= {
        "failed": told["states"].get("Failed", 0),
        "vault_rpo_p95_s": None if vault["p95"] is None else vault["p95"] / 1e9,
        "throttled_s": float(found.accounts["throttled_ns"].sum()) / 1e9,
    }
    return row


def _plain(value: Any) -> Any:
    """A copy of a declaration that JSON can hold; dates become text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value.isoformat() if hasattr(value, "isoformat") else value


def _set(table: Any, field: str, value: Any) -> None:
    """Set a field by its name, with tables on the way made where they are absent."""
    *path, last = field.split(".")
    at = table
    for key in path:
        if isinstance(at, list):
            if not key.isdecimal() or int(key) >= len(at):
                raise InputError(f"changes: {quoted(field)}: there is no element {quoted(key)}")
            at = at[int(key)]
        elif isinstance(at, dict):
            at = at.setdefault(key, {})
        else:
            raise InputError(f"changes: {quoted(field)} is no field: {quoted(key)} has none")
    if not isinstance(at, dict):
        raise InputError(f"changes: {quoted(field)} is no field")
    at[last] = value
