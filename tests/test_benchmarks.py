"""The benchmarks run, and what they compare agrees; how fast it is no test says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import history, suite
from benchmarks.cases import CASES, Case
from benchmarks.ratios import Timing, ratios, take_turns

ROOT = Path(__file__).parent.parent


def test_ratios_are_of_the_same_round() -> None:
    ours, other = Timing((1.0, 2.0, 4.0)), Timing((3.0, 4.0, 20.0))
    assert ratios(ours, other) == (3.0, 2.0, 5.0)
    assert (ours.median, ours.spread) == (2.0, (1.0, 4.0))


def test_alternatives_take_turns() -> None:
    calls: list[str] = []
    times = take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert calls == ["a", "b"] * 3  # the first round does not count
    assert [len(times[name].seconds) for name in ("a", "b")] == [2, 2]


def test_the_table_of_traces(tmp_path: Path) -> None:
    told = tmp_path / "figures.json"
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.traces", "--requests", "200_000",
         "--text-requests", "20_000", "--rounds", "1", "--json", str(told)],
        capture_output=True, text=True, timeout=300, cwd=ROOT,
        env=os.environ | {"VMBK_LIBCACHESIM_PYTHON": "no-such-python"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "libcachesim is not installed" in run.stderr
    results = json.loads(told.read_text())["results"]
    assert [r["what"].partition(",")[0] for r in results] == [
        "churn per hour", "churn per hour", "churn", "peak memory of its own",
        "import of text (MSR CSV)",
    ]  # fmt: skip
    for result in results:
        if "ratio" in result:
            assert result["ratio_low"] <= result["ratio"] <= result["ratio_high"]
        else:
            assert result["before_bytes"] <= result["peak_bytes"] < 1 << 30
    assert len(run.stdout.splitlines()) == len(results)


PROCESSES = {"first call in a fresh process", "first call on a machine: compiling"}
"""Cases that start a process and have no result."""


def test_every_case_but_those_of_processes_has_a_result() -> None:
    assert {case.name for case in CASES} > PROCESSES


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.name not in PROCESSES], ids=lambda case: case.name
)
def test_all_ways_of_a_case_agree(case: Case) -> None:
    setup = case.make(0.001)
    try:
        ours = setup.ours()
        assert setup.same
        for name, way in setup.same.items():
            assert np.array_equal(np.asarray(ours), np.asarray(way())), name
        setup.baseline()
    finally:
        setup.close()


def test_the_suite_measures_and_tells_what_is_low() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "vmbk", "bench", "--only", "bitmap to", "--json"],
        capture_output=True, text=True, timeout=300, cwd=ROOT,
        # Within pytest-xdist, pytest-benchmark would not measure.
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
        | {"VMBK_BENCH_SHARE": "0.001"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)
    (figure,) = told["ratios"]
    assert figure["name"] == "bitmap to extents"
    assert figure["low"] <= figure["ratio"] <= figure["high"]
    assert told["made_by"]["cores"] >= 1
    low = figure | {"ratio": 0.5 * figure["floor"]}
    assert suite.is_low(low)
    assert not suite.is_low(figure | {"floor": None})
    assert "below its floor: bitmap to extents" in suite.table([low])


def test_no_case_of_that_name() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "vmbk", "bench", "--only", "no such"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert run.returncode == 2
    assert "no case has 'no such' in its name" in run.stderr
    assert "bitmap to extents" in run.stderr


def test_the_history_is_one_line_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "PATH", tmp_path / "history.jsonl")
    assert history.read() == []
    history.append({"ratios": [{"ratio": 1.23456789}]})
    history.append({"ratios": []})
    assert history.read() == [{"ratios": [{"ratio": 1.235}]}, {"ratios": []}]
