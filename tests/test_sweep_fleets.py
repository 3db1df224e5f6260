"""Fleets swept on processes come out as one after the other."""

from __future__ import annotations

from pathlib import Path

import pytest

import vmbk
from vmbk.errors import InputError
from vmbk.study.fleets import sweep_fleets

CHANGES = {"service.queue_peak": ["1h", "8h"], "policies.0.schedule.at": ["00:00", "12:00"]}


def test_processes_give_what_one_after_the_other_gives(tmp_path: Path) -> None:
    shorter = {**CHANGES, "days": [6]}
    alone = sweep_fleets("small-company", shorter, replicates=2).check()
    spread = sweep_fleets("small-company", shorter, replicates=2, executor=2, store=tmp_path)
    assert spread.check().rows.equals(alone.rows)
    assert (spread.run, spread.found) == (8, 0)
    again = sweep_fleets("small-company", shorter, replicates=2, store=tmp_path).check()
    assert (again.run, again.found) == (0, 8)
    assert again.rows.equals(alone.rows)


def test_a_row_is_what_the_simulation_says() -> None:
    rows = sweep_fleets("small-company", {"days": [5], "service.queue_peak": ["0s"]}).check().rows
    from vmbk.service.scenario import scenario_table

    table = scenario_table("small-company") | {"days": 5, "service": {"queue_peak": "0s"}}
    told = vmbk.simulate(table).summary()
    assert rows["jobs"].to_list() == [told["jobs"]]
    assert rows["incremental_s_p95"].to_list() == [told["incremental_s"]["p95"]]
    assert rows["queue_s"].to_list() == [0.0]


def test_replicates_share_their_seeds_across_combinations() -> None:
    rows = sweep_fleets("small-company", {"days": [2, 3]}, replicates=3).check().rows
    seeds = rows.group_by("days", maintain_order=True).agg("fleet_seed")["fleet_seed"].to_list()
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0])) == 3


def test_shorter_waits_make_shorter_backups() -> None:
    rows = sweep_fleets("small-company", {"days": [8], "service.queue_peak": ["1h", "8h"]}).rows
    short, long = rows["incremental_s_median"].to_list()
    assert short < long


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"days": 3}, "days needs a list"),
        ({"days": []}, "days needs a list"),
        ({"policies.9.name": ["a"]}, "no element '9'"),
        ({"name.x": ["a"]}, "is no field"),
        ({"days": list(range(1, 400)), "seed": list(range(400))}, "cells are more than"),
    ],
)
def test_what_is_no_sweep(changes: dict[str, object], match: str) -> None:
    with pytest.raises(InputError, match=match):
        sweep_fleets("small-company", changes)  # type: ignore[arg-type]


def test_a_wrong_value_is_that_cells_error_and_names_the_field() -> None:
    found = sweep_fleets("small-company", {"days": [2, -1]})
    assert (found.run, found.failed) == (1, 1)
    with pytest.raises(vmbk.VmbkError, match="days: -1 is not"):
        found.check()
