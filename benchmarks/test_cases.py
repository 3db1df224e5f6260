"""The cases, timed by pytest-benchmark: before each round of ours the baseline has its turn."""

from __future__ import annotations

import gc
import os
import time
from typing import Any

import pytest

from benchmarks.cases import CASES, Case
from benchmarks.ratios import Timing, ratios

SHARE = float(os.environ.get("VMBK_BENCH_SHARE", "1"))
"""Of the full size: less for a quick look, which floors do not bind."""

ONLY = os.environ.get("VMBK_BENCH_ONLY", "")
"""Cases whose name has this."""


@pytest.mark.parametrize("case", [c for c in CASES if ONLY in c.name], ids=lambda case: case.name)
def test_case(case: Case, benchmark: Any, request: pytest.FixtureRequest) -> None:
    setup = case.make(SHARE)
    request.addfinalizer(setup.close)
    setup.ours(), setup.baseline()
    other: list[float] = []

    def baseline() -> None:
        gc.collect()
        began = time.perf_counter()
        setup.baseline()
        other.append(time.perf_counter() - began)

    benchmark.pedantic(setup.ours, setup=baseline, rounds=case.rounds)
    ours = Timing(tuple(benchmark.stats.stats.data))
    middle, low, high = ratios(ours, Timing(tuple(other)))
    benchmark.extra_info.update(
        name=case.name, baseline=case.baseline, floor=case.floor, ratio=middle, low=low, high=high,
        amount=setup.amount, unit=setup.unit, seconds=ours.median, share=SHARE,
    )  # fmt: skip
