"""Outcomes: the ladder, and what a count says of a probability."""

from __future__ import annotations

import math

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmbk.consistency.outcome import (
    DATABASE_STATES,
    FILESYSTEM_STATES,
    LADDER,
    Outcome,
    OutcomeTable,
    rates,
)
from vmbk.errors import InputError

RUNGS = list(LADDER)


def outcome(filesystem: str = "clean", database: str = "none", **more: object) -> Outcome:
    fixed = {
        "capture": "c", "index": 0, "row": 1, "model": "flush", "label": "crash", "freeze": "",
        "commits_acknowledged": 0, "commits_found": 0, "commits_lost": 0, "seconds": 0.1,
        "details": "",
    }  # fmt: skip
    return Outcome(**(fixed | {"filesystem": filesystem, "database": database} | more))  # type: ignore[arg-type]


@given(st.sampled_from(FILESYSTEM_STATES), st.sampled_from(DATABASE_STATES))
def test_the_outcome_is_the_worst_that_was_found(filesystem: str, database: str) -> None:
    found = outcome(filesystem, database).outcome
    assert found in (filesystem, database)
    assert RUNGS.index(found) >= max(RUNGS.index(filesystem), RUNGS.index(database))


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"boot": "boots"}, "clean"),
        ({"boot": "no-boot"}, "no-boot"),
        ({"boot": "not tried"}, "clean"),
        ({"command": "passed"}, "clean"),
        ({"command": "failed"}, "failed"),
        ({"command": "error"}, "failed"),
        ({"boot": "no-boot", "command": "failed"}, "failed"),
    ],
)
def test_boot_and_the_users_own_command_count(more: dict[str, str], expected: str) -> None:
    found = outcome(**more)  # type: ignore[arg-type]
    assert found.outcome == expected
    assert found.consistent == (expected == "clean")


@pytest.mark.parametrize("rung", RUNGS)
def test_what_comes_up_by_itself(rung: str) -> None:
    states = {"boot": rung} if rung == "no-boot" else {}
    states |= {"command": rung} if rung == "failed" else {}
    filesystem = rung if rung in FILESYSTEM_STATES else "clean"
    database = rung if rung in DATABASE_STATES else "none"
    found = outcome(filesystem, database, **states)
    assert found.outcome == rung
    assert found.consistent == (rung in ("none", "clean", "replayed", "recovered"))


def naive_interval(states: int, of: int) -> tuple[float, float]:
    """The two roots of (p - p0)^2 = z^2 p (1 - p) / n, which is how Wilson put it in 1927."""
    z2, share = 1.959963984540054**2, states / of
    a, b, c = 1 + z2 / of, -(2 * share + z2 / of), share * share
    root = math.sqrt(max(b * b - 4 * a * c, 0.0))
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


@given(st.lists(st.sampled_from(RUNGS), min_size=1, max_size=60), st.integers(1, 3))
def test_rates_are_those_of_wilson(found: list[str], groups: int) -> None:
    frame = pl.DataFrame({"outcome": found, "model": [f"m{i % groups}" for i in range(len(found))]})
    judged = frame.filter(pl.col("outcome") != "none")
    shares = rates(frame, ["model"])
    assert shares["states"].sum() == len(judged)
    assert shares["outcome"].unique().len() == judged["outcome"].unique().len()
    for row in shares.iter_rows(named=True):
        mine = judged.filter(model=row["model"])
        assert row["of"] == len(mine)
        assert row["states"] == len(mine.filter(outcome=row["outcome"]))
        low, high = naive_interval(row["states"], row["of"])
        assert row["low"] == pytest.approx(max(low, 0), abs=1e-9)
        assert row["high"] == pytest.approx(min(high, 1), abs=1e-9)
        assert row["low"] <= row["share"] <= row["high"] + 1e-12
    order = [RUNGS.index(name) for name in shares.filter(model="m0")["outcome"]]
    assert order == sorted(order)


def test_an_interval_of_the_books() -> None:
    """Of 0 in 10, up to 27.75 %; of 10 in 50, 11.24 to 33.04 % (the usual worked figures)."""
    frame = pl.DataFrame({"outcome": ["lost"] * 10 + ["clean"] * 40, "model": "a"})
    none = pl.DataFrame({"outcome": ["clean"] * 10, "model": "b"})
    shares = rates(pl.concat([frame, none]), ["model"]).filter(outcome="lost")
    found = [tuple(round(100 * x, 2) for x in row) for row in shares.select("low", "high").rows()]
    assert found == [(11.24, 33.04), (0.0, 27.75)]


def test_what_is_no_table_of_outcomes_is_refused() -> None:
    with pytest.raises(InputError, match="lack outcome"):
        rates(pl.DataFrame({"label": ["crash"]}))
    with pytest.raises(InputError, match="lack colour"):
        rates(OutcomeTable((outcome(),)).frame(), ["colour"])


def test_the_frame_has_a_type_for_every_column() -> None:
    empty, one = OutcomeTable(()).frame(), OutcomeTable((outcome(),)).frame()
    assert empty.schema == one.schema
    assert one["outcome"].to_list() == ["clean"]
    assert one["seconds_since_flush"].dtype == pl.Float64
