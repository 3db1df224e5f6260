"""Charts of trace metrics: their data are those of the tables, few, with units and titles."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest

from tests.test_charts import chart_rows, texts
from vmbk import charts, churn, fragmentation, interval_cost
from vmbk.charts.fragmentation import _powers
from vmbk.charts.places import MOST_CELLS
from vmbk.charts.requests import POINTS
from vmbk.charts.shares import PROFILE
from vmbk.charts.traces import MOST_BARS, clock_unit, duration_ticks
from vmbk.errors import InputError
from vmbk.trace import Op, Trace, Volume
from vmbk.trace.metrics.regions import regions
from vmbk.trace.metrics.requests import activity, profile, request_sizes
from vmbk.trace.metrics.updates import updates
from vmbk.trace.metrics.windows import granularity, measure
from vmbk.trace.metrics.working_set import spatial, working_set

KIB, MIB = 1 << 10, 1 << 20
SECOND = 10**9


def workload(seconds: int = 60, *, clock: str = "exact", volumes: int = 1, seed: int = 1) -> Trace:
    """Each second some reads, and writes of which half go to one hot MiB."""
    rng = np.random.default_rng(seed)
    count = 20 * seconds
    hot = rng.random(count) < 0.5
    place = np.where(hot, rng.integers(0, 256, count), rng.integers(0, 1 << 14, count)) * 4096
    return Trace.from_columns(
        volumes=[Volume(id, f"disk {id}", 64 * MIB + 64 * KIB) for id in range(volumes)],
        time_ns=np.zeros(count, np.int64) if clock == "none"
        else np.sort(rng.integers(0, seconds * SECOND, count)),
        op=np.where(rng.random(count) < 0.2, int(Op.READ), int(Op.WRITE)).astype(np.int8),
        volume=rng.integers(0, volumes, count).astype(np.uint32),
        offset=place,
        length=4096 << rng.integers(0, 5, count),
        clock=clock,
    )  # fmt: skip


Draw = Callable[[Trace, "int | None", float], Any]
FIGURES: dict[str, tuple[Draw, str, tuple[str, ...]]] = {
    "churn_over_time": (
        lambda t, v, w: charts.churn_over_time(churn(t, w), v), "KiB per window",
        ("first written", "changed again", "rewritten within the window"),
    ),
    "sent_so_far": (
        lambda t, v, w: charts.sent_so_far(churn(t, w), v), "MiB",
        ("ever written", "sent by incrementals so far"),
    ),
    "interval_cost": (
        lambda t, v, w: charts.interval_cost(interval_cost(t, ["1s", "2s", "5s", "1h"]), v),
        "sent ÷ unique bytes", ("1 s", "2 s", "5 s", "1 longer than the trace left out"),
    ),
    "amplification": (
        lambda t, v, w: charts.amplification(fragmentation(t).granularity, v),
        "reported ÷ reported at 4 KiB", ("512 B", "4 MiB", "1.00"),
    ),
    "profile": (
        lambda t, v, w: charts.profile(profile(t, w), v), "share",
        ("writes below 8 KiB", "requests at random places", "of the reads and writes",
         "on average", "times the mean rate", "100%"),
    ),
    "update_coverage": (
        lambda t, v, w: charts.update_coverage(updates(t).coverage, v), "share",
        ("written more than once", "within 10% of the working set", "of the updates", "100%"),
    ),
    "rewrites_over_time": (
        lambda t, v, w: charts.rewrites_over_time(churn(t, w), v), "block writes per block",
        ("the first time", "again"),
    ),
    "dispersion_indices": (
        lambda t, v, w: charts.dispersion_indices(fragmentation(t, "64KiB", w).dispersion, v),
        "extents per GiB", ("fragmentation", "dispersion index", "%"),
    ),
    "changed_runs": (
        lambda t, v, w: charts.changed_runs(fragmentation(t, "4KiB", w).run_lengths, v),
        "length of a run, from", ("runs", "bytes changed", "4 KiB"),
    ),
    "dispersion_over_time": (
        lambda t, v, w: charts.dispersion_over_time(fragmentation(t, "64KiB", w).dispersion, v),
        "mean extent", ("region fill",),
    ),
    "request_sizes": (
        lambda t, v, w: charts.request_sizes(request_sizes(t), v), "length of a request, from",
        ("read", "write", "4 KiB", "64 KiB"),
    ),
    "activity": (
        lambda t, v, w: charts.activity(activity(t, w), v), "per s", ("written", "read")
    ),
    "working_set": (
        lambda t, v, w: charts.working_set(working_set(t, 20), v), "MiB",
        ("read", "written", "written again", "read or written"),
    ),
    "write_map": (
        lambda t, v, w: charts.write_map(spatial(t), v), "place on the volume, MiB",
        ("once", "again"),
    ),
    "churn_map": (
        lambda t, v, w: charts.churn_map(regions(t, w), v), "place on the volume, MiB", ()
    ),
    "update_distances": (
        lambda t, v, w: charts.update_distances(updates(t).distance, v),
        "bytes of the blocks written in between", ("100%",),
    ),
    "update_intervals": (
        lambda t, v, w: charts.update_intervals(updates(t).interval, v),
        "time since the block was last written", ("100%",),
    ),
}  # fmt: skip
OVER_TIME = ("churn_over_time", "sent_so_far", "rewrites_over_time", "dispersion_over_time",
             "dispersion_indices", "activity", "churn_map")  # fmt: skip


def draw(name: str, trace: Trace, volume: int | None = None, window: float = 1) -> Any:
    return FIGURES[name][0](trace, volume, window)


@pytest.fixture(scope="module")
def trace() -> Trace:
    return workload()


@pytest.mark.parametrize("name", FIGURES)
def test_figures_name_their_data_and_units(name: str, trace: Trace) -> None:
    svg = charts.to_svg(draw(name, trace))
    words = texts(svg)
    everything = " ".join(words)
    _, unit, labels = FIGURES[name]
    assert unit in everything
    for label in labels:
        assert label in everything
    assert "all volumes together" in everything or "volume 0" in everything
    assert not any(bad in everything for bad in ("NaN", "null", "undefined", "Infinity"))
    if name in OVER_TIME:
        assert "time since the start of the trace, s" in everything
    width = float(ElementTree.fromstring(svg).attrib["width"])
    assert 600 < width <= 900


@pytest.mark.parametrize("name", FIGURES)
def test_one_volume_is_what_its_own_trace_shows(name: str) -> None:
    """The rows of volume 1 in a trace of three."""
    whole = workload(20, volumes=3)
    drawn = chart_rows(draw(name, whole, volume=1))
    assert drawn != chart_rows(draw(name, whole))
    assert "volume 1" in " ".join(texts(charts.to_svg(draw(name, whole, volume=1))))
    with pytest.raises(InputError, match="no rows for volume 7"):
        draw(name, whole, volume=7)


@pytest.mark.parametrize("name", FIGURES)
def test_long_traces_are_thinned(name: str) -> None:
    chart = draw(name, workload(3000))
    limit = MOST_CELLS[0] * MOST_CELLS[1] if name == "churn_map" else 4 * (MOST_BARS + 1)
    assert 0 < len(chart_rows(chart)) <= limit
    assert len(charts.to_svg(chart)) < 250_000


@pytest.mark.parametrize("name", FIGURES)
def test_the_same_data_are_the_same_picture(name: str, trace: Trace) -> None:
    assert charts.to_svg(draw(name, trace)) == charts.to_svg(draw(name, workload()))


def test_bars_hold_all_the_bytes(trace: Trace) -> None:
    frame = churn(trace, 1).filter(pl.col("volume").is_null())
    for window, each in ((1, 1), (0.05, 5)):
        rows = chart_rows(charts.churn_over_time(churn(trace, window)))
        found = churn(trace, window).filter(pl.col("volume").is_null())
        wanted = {
            "first written": found["new_bytes"].sum(),
            "changed again": found["unique_bytes"].sum() - found["new_bytes"].sum(),
            "rewritten within the window": (found["block_writes"] * 4096).sum()
            - found["unique_bytes"].sum(),
        }
        for part, total in wanted.items():
            mine = [r for r in rows if r["part"] == part]
            assert sum(r["bytes"] for r in mine) == total
            heights = sum(r["high"] - r["low"] for r in mine)
            assert heights * MIB == pytest.approx(total) or heights * KIB == pytest.approx(total)
            assert all(r["to"] - r["from"] == pytest.approx(window * each) for r in mine)
    assert sum(wanted.values()) == (frame["block_writes"] * 4096).sum()


def test_curves_end_at_the_totals(trace: Trace) -> None:
    frame = churn(trace, 1).filter(pl.col("volume").is_null())
    ends = {r["curve"]: r for r in chart_rows(charts.sent_so_far(churn(trace, 1)))}
    assert ends["ever written"]["size"] * MIB == frame["new_bytes"].sum()
    assert ends["sent by incrementals so far"]["size"] * MIB == frame["unique_bytes"].sum()
    ends = {r["kind"]: r for r in chart_rows(charts.working_set(working_set(trace)))}
    last = working_set(trace).row(-1, named=True)
    columns = {"read": "read_bytes", "written": "write_bytes", "written again": "update_bytes",
               "read or written": "total_bytes"}  # fmt: skip
    for kind, column in columns.items():
        assert ends[kind]["size"] * MIB == last[column]


def test_shares_add_up(trace: Trace) -> None:
    for kind in ("runs", "bytes changed"):
        rows = chart_rows(charts.changed_runs(fragmentation(trace).run_lengths))
        assert sum(r["share"] for r in rows if r["kind"] == kind) == pytest.approx(1)
    rows = chart_rows(charts.request_sizes(request_sizes(trace)))
    for op in ("read", "write"):
        assert sum(r["share"] for r in rows if r["op"] == op) == pytest.approx(1)
    for chart in (charts.update_distances(updates(trace).distance),
                  charts.update_intervals(updates(trace).interval)):  # fmt: skip
        shares = [r["share"] for r in chart_rows(chart)]
        assert shares == sorted(shares)
        assert shares[-1] == pytest.approx(1)


def test_maps_hold_all_the_bytes(trace: Trace) -> None:
    rows = chart_rows(charts.write_map(spatial(trace)))
    whole = spatial(trace)
    once = sum(r["bytes"] for r in rows if r["kind"] == "once")
    again = sum(r["bytes"] for r in rows if r["kind"] == "again")
    assert once == whole["unique_bytes"].sum()
    assert once + again == whole["block_writes"].sum() * 4096
    frame = regions(trace, 1)
    cells = chart_rows(charts.churn_map(frame))
    total = sum(r["size"] for r in cells)
    assert any(total * unit == pytest.approx(frame["unique_bytes"].sum()) for unit in (KIB, MIB))
    assert max(r["to"] for r in cells) == pytest.approx(60)


@pytest.mark.parametrize("block_size", ["4KiB", "64KiB", "1MiB"])
def test_a_map_needs_not_be_told_the_block_size(block_size: str, trace: Trace) -> None:
    whole = spatial(trace, block_size=block_size)
    rows = chart_rows(charts.write_map(whole))
    written = whole["unique_bytes"].sum() + whole["rewritten_bytes"].sum()
    assert sum(r["bytes"] for r in rows) == written
    assert all(r["high"] > r["low"] >= 0 for r in rows)
    tallest = max(r["high"] for r in rows)
    highest = (whole["unique_bytes"] + whole["rewritten_bytes"]).max()
    assert any(tallest * unit == pytest.approx(highest) for unit in (KIB, MIB))


@pytest.mark.parametrize("volume", [None, 1])
def test_shares_are_those_of_the_table(volume: int | None) -> None:
    trace = workload(20, volumes=3)
    chosen = pl.col("volume").is_null() if volume is None else pl.col("volume") == volume
    row = profile(trace).filter(chosen).row(0, named=True)
    chart = charts.profile(profile(trace), volume)
    found = {r["what"]: (r["share"], r["whole"]) for r in chart_rows(chart)}
    assert found == {name: (row[column], whole) for name, (column, whole) in PROFILE.items()}
    words = " ".join(texts(charts.to_svg(chart)))
    for figure in (f"{row['writes']:,} writes", f"{row['reads']:,} reads",
                   f"{row['burstiness']:.1f} times", f"{row['small_write_share']:.1%}",
                   ):  # fmt: skip
        assert figure in words
    row = updates(trace).coverage.filter(chosen).row(0, named=True)
    chart = charts.update_coverage(updates(trace).coverage, volume)
    shares = [r["share"] for r in chart_rows(chart)]
    assert shares == [row["updated_share"], row["updates"] / row["block_writes"],
                      *(row[f"within_{percent}"] for percent in (10, 20, 40, 80))]  # fmt: skip


def test_shares_of_nothing_are_left_out() -> None:
    once = Trace.from_columns(
        volumes=[Volume(0, "disk", MIB)], offset=np.arange(4) * 8192, length=np.full(4, 4096),
        op=np.ones(4, np.int8), time_ns=np.arange(4), clock="exact",
    )  # fmt: skip
    rows = chart_rows(charts.update_coverage(updates(once).coverage))
    assert [(r["what"], r["label"]) for r in rows] == [
        ("written more than once", "0%"), ("to blocks written before", "0%")
    ]  # fmt: skip
    rows = chart_rows(charts.profile(profile(once).with_columns(
        pl.lit(None, pl.Float64).alias("small_write_share"), pl.lit(1e-9).alias("random_share"),
        pl.lit(1 - 1e-9).alias("sequential_share"), pl.lit(None, pl.Float64).alias("burstiness"),
    )))  # fmt: skip
    labels = {r["what"]: r["label"] for r in rows}
    assert "writes below 8 KiB" not in labels
    assert labels["requests at random places"] == "< 0.1%"
    assert labels["requests in sequence"] == "> 99.9%"
    assert labels["writes"] == "100%"


def test_rewrites_are_ratios_of_sums(trace: Trace) -> None:
    for window, each in ((1, 1), (0.05, 5)):
        frame = churn(trace, window)
        rows = chart_rows(charts.rewrites_over_time(frame))
        found = {round(r["from"] / (window * each)): r["high"] for r in rows}
        sums = (
            frame.filter(pl.col("volume").is_null())
            .group_by(pl.col("window") // each)
            .agg(pl.col("block_writes", "unique_blocks").sum())
        )
        wanted = {bar: writes / blocks for bar, writes, blocks in sums.iter_rows() if blocks}
        assert found == pytest.approx(wanted)
        assert {r["low"] for r in rows} == {0, 1}


def test_indices_of_joined_windows_are_those_over_them(trace: Trace) -> None:
    result = fragmentation(trace, "64KiB", 1)
    table = result.dispersion.filter(pl.col("volume").is_null())
    rows = [r for r in chart_rows(charts.dispersion_indices(result.dispersion)) if "per_gib" in r]
    assert [r["per_gib"] for r in rows] == pytest.approx(table["extents_per_gib"].to_list())
    assert [r["fragmentation"] for r in rows] == pytest.approx(table["fragmentation"].to_list())
    assert [r["index"] for r in rows] == pytest.approx(table["dispersion_index"].to_list())
    # 60 s in 60 ms: bars of five windows each.
    result = fragmentation(trace, "64KiB", 0.06)
    drawn = chart_rows(charts.dispersion_indices(result.dispersion))
    rows = sorted((r for r in drawn if "per_gib" in r), key=lambda r: r["bar"])
    third = result.dispersion.filter(
        pl.col("volume").is_null() & (pl.col("window") // 5 == rows[2]["bar"])
    )
    part = dataclasses.replace(result, dispersion=third).indices()
    assert rows[2]["per_gib"] == pytest.approx(part["extents_per_gib"])
    assert rows[2]["fragmentation"] == pytest.approx(part["fragmentation"])
    assert rows[2]["index"] == pytest.approx(part["dispersion_index"])


@pytest.mark.parametrize("name", [*OVER_TIME, "working_set"])
def test_a_late_part_of_a_trace_fills_its_chart(name: str) -> None:
    """A part keeps its times; the axis begins where it does, not long before."""
    trace = workload(3000)
    first = int(np.searchsorted(trace.requests.time_ns, 2700 * SECOND))
    spec = json.dumps(draw(name, trace[first:], window=5).to_dict())
    axes = re.findall(r'"domain": \[([\d.]+), ([\d.]+)\]', spec)
    spans = [(float(begin), float(end)) for begin, end in axes]
    assert (45, 50) in [(round(begin), round(end)) for begin, end in spans]  # minutes
    words = texts(charts.to_svg(draw(name, trace[first:], window=5)))
    assert "time since the start of the trace, min" in words
    assert {"46", "46.0"} & set(words)


def test_amplification_needs_what_changes_at_4_kib(trace: Trace) -> None:
    frame = granularity(trace).with_columns(pl.lit(None, pl.Float64).alias("amplification"))
    frame = frame.filter(pl.col("block_size") >= 65536)
    for table in (frame, measure(trace, 1, "64KiB").granularity):
        with pytest.raises(InputError, match="found in blocks of 64 KiB") as caught:
            charts.amplification(table)
        assert "vmbk.granularity(trace)" in str(caught.value)


def test_rates_are_bytes_per_second(trace: Trace) -> None:
    frame = activity(trace, 1).filter(pl.col("volume").is_null())
    rows = chart_rows(charts.activity(activity(trace, 1)))
    top = max(r["high"] for r in rows)
    most = (frame["read_bytes"] + frame["write_bytes"]).max()
    assert any(top * unit == pytest.approx(most) for unit in (1, KIB, MIB))
    assert math.isclose(min(r["low"] for r in rows), 0)


def test_costs_are_those_of_the_table(trace: Trace) -> None:
    frame = interval_cost(trace, ["500ms", "1s", "1d"])
    rows = chart_rows(charts.interval_cost(frame))
    together = frame.filter(pl.col("volume").is_null())
    assert [r["cost"] for r in rows] == together["cost"].to_list()[:2]
    assert [r["every"] for r in rows] == ["500 ms", "1 s"]
    spec = json.dumps(charts.interval_cost(frame).to_dict())
    assert '"type": "log"' in spec


@pytest.mark.parametrize("name", OVER_TIME)
def test_one_window_shows_no_course_of_time(name: str, trace: Trace) -> None:
    with pytest.raises(InputError, match="all requests are in one window"):
        draw(name, trace, window=3600)


def test_without_a_clock_the_working_set_grows_with_the_requests() -> None:
    chart = charts.working_set(working_set(workload(clock="none")))
    assert "requests since the start of the trace" in texts(charts.to_svg(chart))


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_to_draw_is_said(name: str) -> None:
    empty = workload()[:0]
    with pytest.raises(InputError, match="nothing to draw"):
        draw(name, empty)


@pytest.mark.parametrize("name", FIGURES)
def test_another_table_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="this table lacks"):
        getattr(charts, name)(pl.DataFrame({"volume": [0], "colour": ["red"]}))


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("what", [None, "churn.csv", pl.LazyFrame({"volume": [0]})])
def test_what_is_no_table_is_refused(name: str, what: Any) -> None:
    with pytest.raises(InputError, match="a chart needs a table, not "):
        getattr(charts, name)(what)


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("volume", ["x", 1.5, [0]])
def test_a_volume_is_a_number(name: str, volume: Any, trace: Trace) -> None:
    with pytest.raises(InputError, match=re.escape(f"{volume!r} is not the id of a volume")):
        draw(name, trace, volume)


@pytest.mark.parametrize(
    ("longest", "unit"),
    [(9e-7, "µs"), (0.5, "ms"), (20, "s"), (600, "min"), (86400, "h"), (864000, "days")],
)
def test_units_of_time(longest: float, unit: str) -> None:
    assert clock_unit(longest)[1] == unit


def test_thinned_curves_keep_their_ends() -> None:
    frame = updates(workload(3000)).interval
    drawn = chart_rows(charts.update_intervals(frame))
    assert len(drawn) <= POINTS + 1
    assert drawn[-1]["to"] == pytest.approx(frame["to_ns"].max() / 1e9)


def test_intervals_that_are_longer_than_the_trace_cost_nothing_to_show(trace: Trace) -> None:
    with pytest.raises(InputError, match="no interval is shorter than the trace") as caught:
        charts.interval_cost(interval_cost(trace, ["61s", "1h", "7d"]))
    assert "vmbk.interval_cost(trace, ['1s', '10s'])" in str(caught.value)
    one = charts.interval_cost(interval_cost(trace, ["1s", "1h"]))
    assert [r["every"] for r in chart_rows(one)] == ["1 s"]
    assert "NaN" not in charts.to_svg(one)
    assert "left out" not in charts.to_svg(charts.interval_cost(interval_cost(trace, ["1s", "2s"])))


def test_labels_of_intervals_have_room() -> None:
    """A week at the intervals that are measured by default: 6 h and 8 h lie close."""
    found = interval_cost(workload(4)).with_columns(
        pl.lit(9).alias("windows"), pl.lit(29.5).alias("cost")
    )
    svg = charts.to_svg(charts.interval_cost(found))
    frame = ElementTree.fromstring(svg)
    ends: dict[str, list[tuple[float, float]]] = {}
    for mark in frame.iter():
        words = (mark.text or "").strip()
        kind = (
            "cost" if words == "29.50" else "axis" if re.fullmatch(r"\d+ (min|h|d)", words) else ""
        )
        place = re.match(r"translate\(([\d.]+),", mark.get("transform", ""))
        if kind and place:
            half = 3 * len(words)
            ends.setdefault(kind, []).append((float(place[1]) - half, float(place[1]) + half))
    width = float(frame.attrib["width"])
    for kind, most in (("cost", 13), ("axis", 13)):
        assert 8 < len(ends[kind]) <= most
        spans = sorted(ends[kind])
        assert all(b[0] > a[1] for a, b in pairwise(spans))
        assert spans[-1][1] < width
    words = texts(svg)
    assert {"1 min", "6 h", "12 h", "7 d"} <= set(words)
    intervals = sorted(set(found["interval_s"]))
    axis = json.dumps(charts.interval_cost(found).to_dict())
    assert f'"values": {json.dumps(intervals)}' in axis  # each has a tick


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (0.009, 10.5, ["10 ms", "100 ms", "1 s", "10 s"]),
        (0.5, 90000, ["1 s", "10 s", "1 min", "10 min", "1 h", "1 d"]),
        (2e-9, 3e-4, ["10 ns", "100 ns", "1 µs", "10 µs", "100 µs"]),
        (3, 100, ["5 s", "10 s", "20 s", "30 s", "1 min"]),
        (3.1, 3.2, ["3.1 s", "3.2 s"]),
    ],
)
def test_ticks_of_durations_are_round(low: float, high: float, wanted: list[str]) -> None:
    assert [tick for tick in duration_ticks(low, high) if not low <= tick <= high] == []
    frame = pl.DataFrame(
        {"volume": [None, None], "from_ns": [0, 1], "to_ns": [low * 1e9, high * 1e9],
         "share": [0.5, 1.0]}, schema_overrides={"volume": pl.UInt32},
    )  # fmt: skip
    words = texts(charts.to_svg(charts.update_intervals(frame)))
    shown = [word for word in words if re.fullmatch(r"[\d.]+ (ns|µs|ms|s|min|h|d)", word)]
    assert shown == wanted


def test_subtitles_tell_windows_and_volumes() -> None:
    whole = workload(20, volumes=2)
    for name in ("changed_runs", "amplification"):
        assert "over all windows" in " ".join(texts(charts.to_svg(draw(name, whole))))
        assert "; 2 volumes together" in " ".join(texts(charts.to_svg(draw(name, whole))))
    for name in ("churn_map", "write_map"):
        words = " ".join(texts(charts.to_svg(draw(name, whole))))
        assert "volume 0, one of 2 (volume=1 shows the other)" in words
        words = " ".join(texts(charts.to_svg(draw(name, whole, volume=0))))
        assert "volume 0, one of 2" in words
        assert "volume=" not in words
        words = " ".join(texts(charts.to_svg(draw(name, workload(20, volumes=3)))))
        assert "volume 0, one of 3 (volume=1 shows another)" in words
        assert "one of" not in " ".join(texts(charts.to_svg(draw(name, workload(20)))))


def test_the_last_step_has_room(trace: Trace) -> None:
    chart = charts.sent_so_far(churn(trace, 5))
    ends = [r for r in chart_rows(chart) if r["curve"] == "ever written"][-2:]
    assert [r["size"] for r in ends] == [ends[0]["size"]] * 2
    assert ends[0]["from"] == 60
    assert '"domain": [0.0, 61.8' in json.dumps(chart.to_dict())


@pytest.mark.parametrize(("least", "most"), [(4096, 4096), (5000, 9000), (4096, 1 << 22), (1, 1)])
def test_a_logarithmic_axis_of_sizes_has_several_labels(least: int, most: int) -> None:
    powers = _powers(pl.Series([least, most]))
    assert powers[0] <= least <= most <= powers[-1]
    assert 2 <= len(powers) <= 6
    assert len(powers) >= 4 or most / least < 8


def test_a_chart_says_which_part_it_needs(trace: Trace) -> None:
    pairs: list[tuple[Any, Any, str]] = [
        (charts.amplification, fragmentation(trace), "granularity"),
        (charts.changed_runs, fragmentation(trace), "run_lengths"),
        (charts.dispersion_over_time, fragmentation(trace), "dispersion"),
        (charts.dispersion_indices, fragmentation(trace), "dispersion"),
        (charts.update_intervals, updates(trace), "interval"),
        (charts.update_distances, updates(trace), "distance"),
        (charts.update_coverage, updates(trace), "coverage"),
        (charts.churn_over_time, measure(trace, 1), "churn"),
    ]
    for chart, whole, part in pairs:
        name = type(whole).__name__
        with pytest.raises(InputError, match=f"needs a table, not a whole {name}") as caught:
            chart(whole)
        assert f"pass its .{part}" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "made", "column"),
    [("write_map", spatial, "region_bytes"),
     ("churn_map", lambda t: regions(t, 5.0), "length")],
)  # fmt: skip
def test_regions_without_bytes_are_refused(
    name: str, made: Callable[[Trace], pl.DataFrame], column: str, trace: Trace
) -> None:
    table = made(trace).with_columns(pl.lit(0, pl.Int64).alias(column))
    with pytest.raises(InputError, match="regions of 0 bytes"):
        getattr(charts, name)(table)
