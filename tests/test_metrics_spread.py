"""Fragmentation as one result, and churn by region, against their definitions."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmbk import fragmentation
from vmbk.errors import InputError
from vmbk.trace import Op, Trace, Volume
from vmbk.trace.metrics.regions import regions
from vmbk.trace.metrics.windows import churn, dispersion, granularity, run_lengths

IDS = (3, 70, 4_000_000_000)
SIZE = 64 << 20
Row = tuple[int, int, int, int, int]  # time, op, place of the volume, offset, length


def trace_of(rows: list[Row], *, clock: str = "exact", size: int = SIZE) -> Trace:
    times, ops, places, offsets, lengths = (
        zip(*sorted(rows, key=lambda r: r[0]), strict=True) if rows else ((),) * 5
    )
    return Trace.from_columns(
        volumes=[Volume(id, f"disk {id}", size) for id in IDS],
        time_ns=np.array(times, np.int64),
        op=np.array(ops, np.int8),
        volume=np.array([IDS[p] for p in places], np.uint32),
        offset=np.array(offsets, np.int64),
        length=np.array(lengths, np.int64),
        clock=clock,
    )


def rows(most: int = 40) -> st.SearchStrategy[list[Row]]:
    sectors = st.integers(0, SIZE // 512 - 1)
    lengths = st.one_of(st.integers(1, 40), st.integers(1, 40_000))

    def row(time: int, op: int, place: int, at: int, length: int) -> Row:
        offset = at * 512
        return time, op, place, offset, min(length * 512, SIZE - offset)

    ops = st.sampled_from([Op.READ, Op.WRITE, Op.WRITE, Op.WRITE, Op.DISCARD, Op.WRITE_ZEROES])
    one = st.builds(row, st.integers(0, 30), ops.map(int), st.integers(0, 2), sectors, lengths)
    return st.lists(one, max_size=most)


@given(
    rows(),
    st.sampled_from([5, 1000]),
    st.sampled_from([512, 4096, 1 << 20, 4 << 20]),
    st.booleans(),
    st.sampled_from([1, 6, 64]),
)
def test_regions_hold_the_blocks_that_lie_in_them(
    found: list[Row], window: int, block: int, discards: bool, most: int
) -> None:
    frame = regions(trace_of(found), window / 1e9, block, most=most, discards=discards)
    counts: dict[tuple[int, int, int], int] = defaultdict(int)
    unique: dict[tuple[int, int, int], set[int]] = defaultdict(set)
    wanted = {Op.WRITE} | ({Op.DISCARD, Op.WRITE_ZEROES} if discards else set())
    length = int(frame["length"].max() or 4 << 20)  # type: ignore[arg-type]
    assert length % (4 << 20) == 0
    for time, op, place, offset, size in found:
        if op in wanted:
            for number in range(offset // block, -(-(offset + size) // block)):
                key = IDS[place], time // window, number * block // length
                counts[key] += 1
                unique[key].add(number)
    assert {
        (r["volume"], r["window"], r["offset"] // length): (r["block_writes"], r["unique_bytes"])
        for r in frame.iter_rows(named=True)
    } == {key: (counts[key], len(unique[key]) * block) for key in counts}
    assert frame.select("volume", "offset").n_unique() <= max(most, len(IDS))


@given(rows(), st.sampled_from([5, 1000]), st.booleans())
def test_regions_add_up_to_churn(found: list[Row], window: int, discards: bool) -> None:
    trace = trace_of(found)
    keys = ["volume", "window"]
    by_region = regions(trace, window / 1e9, discards=discards).group_by(keys).agg(
        pl.col("start_s").first(), pl.col("block_writes", "unique_bytes").sum()
    )  # fmt: skip
    whole = churn(trace, window / 1e9, discards=discards).filter(pl.col("volume").is_not_null())
    assert by_region.sort(keys).equals(whole.select(by_region.columns).sort(keys))


def test_a_huge_volume_has_few_long_regions() -> None:
    huge = 1 << 45
    trace = trace_of([(0, 1, 0, 0, 4096), (1, 1, 0, huge - 4096, 4096)], size=huge)
    frame = regions(trace, "whole")
    assert frame["length"].unique().to_list() == [huge >> 6]
    assert frame["offset"].to_list() == [0, huge - (huge >> 6)]


def test_volumes_of_very_different_sizes_have_regions() -> None:
    sizes = [(1 << 46) + 512, *[1 << 40] * 999]
    trace = Trace.from_columns(
        volumes=[Volume(k, "", size) for k, size in enumerate(sizes)],
        op=np.ones(1000, np.int8), volume=np.arange(1000), length=np.full(1000, 512),
        offset=np.array([1 << 46, *[0] * 999]), time_ns=np.arange(1000), clock="exact",
    )  # fmt: skip
    frame = regions(trace, "whole")
    assert frame["volume"].to_list() == list(range(1000))
    assert frame["block_writes"].sum() == 1000
    assert frame["offset"][0] <= 1 << 46 < frame["offset"][0] + frame["length"][0]


@pytest.mark.parametrize("most", [0, -1, 1 << 20, 2.5, "5", None])
def test_regions_refuses_odd_counts(most: Any) -> None:
    with pytest.raises(InputError, match=f"^{most!r} regions: from 1 to 65536"):
        regions(trace_of([]), most=most)


@given(rows(), st.sampled_from(["whole", 5e-9]), st.sampled_from([4096, 65536, 4 << 20]))
def test_fragmentation_holds_the_tables(found: list[Row], window: str | float, block: int) -> None:
    trace = trace_of(found)
    result = fragmentation(trace, block, window)
    assert result.granularity.equals(granularity(trace, window))
    assert result.run_lengths.equals(run_lengths(trace, window, block))
    spread = dispersion(trace, window, block)
    assert result.dispersion.equals(spread)
    for id in (*IDS, None):
        mine = spread.filter(pl.col("volume").eq_missing(id))
        indices = result.indices(id)
        bytes_, extents = mine["unique_bytes"].sum(), mine["extents"].sum()
        assert (indices["unique_bytes"], indices["extents"]) == (bytes_, extents)
        if not bytes_:
            assert indices["mean_extent_bytes"] is indices["dispersion_index"] is None
            continue
        assert indices["mean_extent_bytes"] == pytest.approx(bytes_ / extents)
        assert indices["extents_per_gib"] == pytest.approx(extents * 2**30 / bytes_)
        assert indices["fragmentation"] == pytest.approx(extents * block / bytes_)
        assert indices["region_fill"] == pytest.approx(bytes_ / (mine["regions"].sum() << 22))
        if len(mine) == 1:
            row = mine.row(0, named=True)
            for name in ("mean_extent_bytes", "fragmentation", "region_fill", "span_bytes",
                         "dispersion_index"):  # fmt: skip
                assert indices[name] == pytest.approx(row[name], abs=1e-9)


def test_fragmentation_of_a_known_layout() -> None:
    # Two blocks of 64 KiB at either end of a region, and one of 4 KiB alone in another.
    trace = trace_of([(0, 1, 0, 0, 65536), (1, 1, 0, (4 << 20) - 65536, 65536), (2, 1, 1, 0, 4096)])
    found = fragmentation(trace).to_dict()
    assert found["extents"] == 3
    assert found["changed_bytes"] == 3 * 65536
    assert found["mean_extent_bytes"] == 65536
    assert found["amplification"]["4096"] == 1
    assert found["amplification"]["65536"] == pytest.approx(48 / 33)
    assert found["amplification"][str(4 << 20)] == pytest.approx((8 << 20) / (33 * 4096))
    assert found["dispersion"]["regions"] == 2
    assert found["run_lengths"] == [{"from_bytes": 65536, "runs": 3, "changed_bytes": 3 * 65536}]
    assert [v["volume"] for v in found["volumes"]] == list(IDS)
    assert [v["dispersion"]["extents"] for v in found["volumes"]] == [2, 1, 0]
    page = fragmentation(trace)._repr_html_()
    assert "3 of 64 KiB blocks" in page
    assert "192 KiB" in page


def test_extents_with_gaps_hold_the_changed_bytes_only() -> None:
    trace = trace_of([(0, 1, 0, 65536 * k, 4096) for k in (0, 2, 3, 40)])
    found = fragmentation(trace, gap="64KiB").to_dict()
    assert (found["extents"], found["changed_bytes"]) == (2, 4 * 65536)
    assert found["run_lengths"] == [
        {"from_bytes": 65536, "runs": 1, "changed_bytes": 65536},
        {"from_bytes": 262144, "runs": 1, "changed_bytes": 3 * 65536},
    ]


def test_fragmentation_of_nothing() -> None:
    found = fragmentation(trace_of([(0, 0, 0, 0, 4096)]))
    assert found.to_dict()["mean_extent_bytes"] is None
    assert all(value is None for value in found.amplification().values())
    assert "0 of 64 KiB blocks" in found._repr_html_()
    assert not any(isinstance(v, float) and math.isnan(v) for v in found.indices().values())
