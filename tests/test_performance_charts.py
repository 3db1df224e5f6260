"""Charts of benchmarks: their data are those of the tables, with units, floors and titles."""

from __future__ import annotations

import json
import math
from datetime import UTC, date, datetime
from typing import Any
from xml.etree import ElementTree

import polars as pl
import pytest

from tests.test_charts import chart_rows, texts
from vmbk import charts
from vmbk.charts.performance import _ticks
from vmbk.errors import InputError

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
CASES = (
    ("hash", "reading", 0.95, 0.9),
    ("bitmap", "NumPy", 8.0, 10.0),
    ("call", "import", 0.2, None),
)


def ratio_rows(days: tuple[int, ...] = (1, 4, 9), machine: str = "a processor, 2 cores") -> Any:
    """Runs on some days, each a little faster than the one before."""
    return pl.DataFrame(
        [
            {
                "date": datetime(2026, 11, day, 8, 30, tzinfo=UTC), "machine": machine,
                "name": name, "baseline": baseline, "ratio": ratio * (1 + day / 100),
                "low": ratio * (1 + day / 100) * 0.8, "high": ratio * (1 + day / 100) * 1.3,
                "floor": floor,
            }
            for day in days
            for name, baseline, ratio, floor in CASES
        ],
        infer_schema_length=None,
    )  # fmt: skip


def peer_rows(image: str = "mixed") -> pl.DataFrame:
    """What three programs took for three steps, and the compressed writes alone."""
    rows: list[dict[str, Any]] = [
        {"step": step, "tool": tool, "seconds": seconds * factor, "stored": int(stored * factor)}
        for step, seconds, stored in (("full", 2.5, GIB), ("incremental", 0.5, 20 * MIB),
                                      ("restore", 2.0, 0))
        for tool, factor in (("vmbk", 1.0), ("vmbk checksum", 1.5), ("restic", 4.0))
    ]  # fmt: skip
    rows.append({"step": "incremental", "tool": "compressed writes", "stored": 19 * MIB})
    return pl.DataFrame(rows, infer_schema_length=None).with_columns(
        image=pl.lit(image), size=pl.lit(2 * GIB)
    )


FRAMES = {"speed_ratios": ratio_rows, "ratio_history": ratio_rows, "peers": peer_rows}
LABELS = {
    "speed_ratios": ("times as fast as the baseline", "hash", "1.04 × reading", "8.72 × NumPy",
                     "at or above its floor", "below its floor", "no floor", "0.5", "10"),
    "ratio_history": ("date of the run, UTC", "ratio", "hash", "bitmap", "call",
                      "a processor, 2 cores", "2026-11-03", "dashed: the floor"),
    "peers": ("time of the whole process, s", "added to the repository", "full", "incremental",
              "restore", "vmbk checksum", "restic", "compressed writes", "2.50 s", "10.0 s",
              "20 MiB", "32 MiB", "mixed, 2 GiB"),
}  # fmt: skip


def draw(name: str, frame: Any) -> Any:
    return getattr(charts, name)(frame)


@pytest.mark.parametrize("name", FRAMES)
def test_figures_name_their_data_and_units(name: str) -> None:
    svg = charts.to_svg(draw(name, FRAMES[name]()))
    words = texts(svg)
    everything = " ".join(words)
    for label in LABELS[name]:
        assert label in everything
    assert not any(bad in everything for bad in ("NaN", "null", "undefined", "Infinity"))
    assert 600 < float(ElementTree.fromstring(svg).attrib["width"]) <= 900


@pytest.mark.parametrize("name", FRAMES)
def test_the_same_data_are_the_same_picture(name: str) -> None:
    assert charts.to_svg(draw(name, FRAMES[name]())) == charts.to_svg(draw(name, FRAMES[name]()))


def test_each_case_shows_its_latest_run() -> None:
    """The last case was measured in the first run only; the order of rows does not matter."""
    frame = ratio_rows().filter((pl.col("name") != "call") | (pl.col("date").dt.day() == 1))
    rows = [r for r in chart_rows(charts.speed_ratios(frame[::-1])) if "name" in r]
    found = {r["name"]: r for r in rows}
    assert len(found) == len(rows) == 3
    for name, _, ratio, floor in CASES:
        factor = 1.01 if name == "call" else 1.09
        shown = [found[name][key] for key in ("ratio", "low", "high")]
        assert shown == pytest.approx([ratio * factor * k for k in (1, 0.8, 1.3)])
        assert found[name]["floor"] == floor
    assert {n: r["state"] for n, r in found.items()} == {
        "hash": "at or above its floor", "bitmap": "below its floor", "call": "no floor"
    }  # fmt: skip


def ratio_scale(frame: pl.DataFrame) -> Any:
    layers = charts.speed_ratios(frame).to_dict()["layer"]
    axes = [layer["encoding"].get("x", {}) for layer in layers]
    return next(axis["scale"] for axis in axes if "scale" in axis)


def test_ratios_are_on_a_logarithmic_axis_that_holds_all_marks() -> None:
    """The spread, the floor and 1 are all in sight, however far they are apart."""
    frame = ratio_rows((1,)).with_columns(pl.lit(40.0).alias("floor"))
    scale = ratio_scale(frame)
    low, high = scale["domain"]
    assert scale["type"] == "log"
    assert low < frame["low"].min() < 40 < high
    fast = frame.with_columns(pl.col("ratio", "low", "high") * 100)
    low, high = ratio_scale(fast)["domain"]
    assert low < 1 < high


def test_the_history_has_all_runs_and_their_dates_are_utc() -> None:
    frame = pl.concat([ratio_rows((1, 4)), ratio_rows((9,), machine="another, 64 cores")])
    chart = charts.ratio_history(frame)
    rows = chart_rows(chart)
    assert [r["ratio"] for r in rows] == frame["ratio"].to_list()
    assert {r["at"] for r in rows} == set(frame["date"].dt.epoch("ms"))
    spec = json.dumps(chart.to_dict())
    assert '"type": "utc"' in spec
    words = texts(charts.to_svg(chart))
    assert {"a processor, 2 cores", "another, 64 cores"} <= set(words)
    assert [w for w in words if w in ("hash", "bitmap", "call")] == ["hash", "bitmap", "call"]


def test_dates_of_any_kind_are_the_same_instants() -> None:
    frame = ratio_rows()
    naive = frame.with_columns(pl.col("date").dt.replace_time_zone(None))
    berlin = frame.with_columns(pl.col("date").dt.convert_time_zone("Europe/Berlin"))
    picture = charts.to_svg(charts.ratio_history(frame))
    assert picture == charts.to_svg(charts.ratio_history(naive))
    assert picture == charts.to_svg(charts.ratio_history(berlin))
    days = frame.with_columns(pl.lit(date(2026, 11, 2)).alias("date"))
    assert {r["at"] for r in chart_rows(charts.ratio_history(days))} == {1793577600000}


@pytest.mark.parametrize("days", [(1,), (1, 4, 9)])
def test_the_last_floor_is_a_line_across_its_panel(days: tuple[int, ...]) -> None:
    frame = ratio_rows(days).with_columns(
        pl.when(pl.col("date") == pl.col("date").max()).then("floor").otherwise(99.0)
    )  # fmt: skip
    chart = charts.ratio_history(frame)
    assert [r["floor"] for r in chart_rows(chart) if r["floor"] is not None] == [0.9, 10.0]
    root = ElementTree.fromstring(charts.to_svg(chart))
    dashed = [e for e in root.iter() if e.get("stroke-dasharray") == "4,3"]
    assert len(dashed) == 2
    assert all(abs(float(e.attrib["x2"])) > 300 for e in dashed)


@pytest.mark.parametrize("days", [(5,), (5, 6)])
def test_a_short_history_has_times_on_its_axis(days: tuple[int, ...]) -> None:
    words = texts(charts.to_svg(charts.ratio_history(ratio_rows(days))))
    assert any(w.startswith("11-05 ") for w in words)


def test_bars_are_seconds_and_points_are_bytes() -> None:
    frame = peer_rows()
    rows = chart_rows(charts.peers(frame))
    timed = [r for r in rows if r["label"].endswith(" s")]
    stored = [r for r in rows if not r["label"].endswith(" s")]
    assert [r["seconds"] for r in timed] == frame["seconds"].drop_nulls().to_list()
    assert [r["stored"] for r in stored] == frame.filter(pl.col("stored") > 0)["stored"].to_list()
    assert "restore" not in {r["step"] for r in stored}
    assert "compressed writes" not in {r["tool"] for r in timed}


def test_programs_that_stored_nothing_have_no_second_panel() -> None:
    frame = peer_rows().filter(step="restore")
    assert len(charts.peers(frame).to_dict()["hconcat"]) == 1
    assert "added to the repository" not in " ".join(texts(charts.to_svg(charts.peers(frame))))


def test_names_are_cut_and_fit_for_a_picture() -> None:
    frame = ratio_rows().with_columns(
        name=pl.col("name") + "\x00<b>" + "x" * 100, machine=pl.lit("\x1b[31m"),
        baseline=pl.lit("y" * 500 + "\ufffe"),
    )  # fmt: skip
    for name in ("speed_ratios", "ratio_history"):
        svg = charts.to_svg(draw(name, frame))
        assert float(ElementTree.fromstring(svg).attrib["width"]) <= 1000
    assert max(len(r["name"]) for r in chart_rows(charts.speed_ratios(frame)) if "name" in r) < 60


@pytest.mark.parametrize("name", FRAMES)
def test_another_table_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="this table lacks"):
        draw(name, pl.DataFrame({"name": ["hash"], "colour": ["red"]}))
    with pytest.raises(InputError, match="nothing to draw: the table is empty"):
        draw(name, FRAMES[name]()[:0])


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("what", [None, "history.jsonl", [{"name": "hash"}], pl.LazyFrame()])
def test_what_is_no_table_is_refused(name: str, what: Any) -> None:
    with pytest.raises(InputError, match="a chart needs a table, not "):
        draw(name, what)


@pytest.mark.parametrize(
    ("name", "column", "value", "words"),
    [
        ("speed_ratios", "ratio", "fast", "the column ratio holds String, not numbers"),
        ("speed_ratios", "baseline", 1, "the column baseline holds Int32, not texts"),
        ("speed_ratios", "date", "2026-11-01", "the column date holds String, not dates"),
        ("speed_ratios", "name", None, "the column name holds Null, not texts"),
        ("speed_ratios", "ratio", math.nan, "the column ratio holds what is no finite number"),
        ("speed_ratios", "high", math.inf, "the column high holds what is no finite number"),
        ("speed_ratios", "low", 0.0, "the ratios of 'hash' are not above 0"),
        ("ratio_history", "floor", -1.0, "the ratios of 'hash' are not above 0"),
        ("ratio_history", "low", None, "only floor may be null"),
        ("peers", "seconds", None, "no program was timed"),
        ("peers", "stored", "much", "the column stored holds String, not numbers"),
        ("peers", "tool", "vmbk", "several runs in one chart"),
    ],
)
def test_what_cannot_be_drawn_is_said(name: str, column: str, value: Any, words: str) -> None:
    frame = FRAMES[name]().with_columns(pl.lit(value).alias(column))
    with pytest.raises(InputError, match=words):
        draw(name, frame)


def test_one_chart_shows_one_run_of_the_programs() -> None:
    with pytest.raises(InputError, match="several runs") as caught:
        charts.peers(pl.concat([peer_rows(), peer_rows("ext4")]))
    assert "pass the rows of one run" in str(caught.value)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0.15, 12, [0.2, 0.5, 1, 2, 5, 10]), (0.9, 1.1, [1]), (0.4, 60, [0.5, 1, 2, 5, 10, 20, 50])],
)
def test_ticks_of_ratios_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert _ticks(low, high) == ticks
