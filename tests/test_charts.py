"""Charts, drawn from results that are computed by formula in the schema of a study."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from itertools import combinations, pairwise
from typing import Any
from xml.etree import ElementTree

import polars as pl
import pytest

from vmbk import charts, churn, run_lengths
from vmbk.charts import readings
from vmbk.charts.style import STAGE_COLOURS
from vmbk.charts.svg import inline
from vmbk.charts.tables import (
    cumulative_sent,
    run_length_counts,
    short_names,
    stage_means,
    with_panels,
)
from vmbk.errors import InputError, VmbkError
from vmbk.study.results import DETECTOR_ORDER, RUN_LENGTH_CLASSES, SCHEMA, StudyResult
from vmbk.trace import open_trace
from vmbk.units import format_size

KIB, MIB = 1 << 10, 1 << 20
DISK = 64 * MIB
STEPS = {"25%": 4, "10%": 10, "2s": 3}


def run_length_row(extents: int, grain: int) -> list[int]:
    """Half of the extents of one grain, a quarter of two, ...; the rest in the last class."""
    counts = [0] * len(RUN_LENGTH_CLASSES)
    first, left = RUN_LENGTH_CLASSES.index(grain), extents
    for i in range(first, min(first + 5, len(counts))):
        counts[i] = left if i == first + 4 else math.ceil(left / 2)
        left -= counts[i]
    return counts


def backup_row(
    dataset: str, interval: str, sub: int, detector: str, number: int, *, block: int = 64 * KIB
) -> dict[str, object]:
    """One backup of a workload that writes evenly, a fifth of it with the same bytes."""
    scale = 1 + len(dataset) % 3
    steps = STEPS[interval]
    allocated = 6 * MIB + 8 * MIB * number // steps
    blocks = (3 * scale * 20 // steps) + number % 3
    since_first = blocks * number
    first = number == 0
    base_blocks = since_first if detector == "differential" else blocks
    rewritten = blocks // 5 if detector == "tracking" else 0
    whole = first or detector == "full"
    oracle_blocks = DISK if first else base_blocks * block
    reported = DISK if whole else base_blocks * block + rewritten * block
    real = 5 * base_blocks * 4 * KIB
    sent = allocated if whole else (real if sub else reported)
    changed = DISK if whole else (real if sub else reported)
    read = {
        "compare": 3 * allocated,
        "tracking": (blocks + rewritten + 10) * block,
    }.get(detector, allocated)
    extents = max(1, changed // (16 * KIB if sub else 160 * KIB)) if not whole else 1
    lengths = [0] * 22
    if whole:
        lengths[17] = 1
    else:
        lengths = run_length_row(extents, sub or block)
    detect = 0.002 + read / (2 << 30)
    transfer = 0.004 + sent / (400 << 20)
    seconds = {"prepare": 0.0004, "snapshot": 0.0012, "detect": detect, "transfer": transfer,
               "commit": 0.003}  # fmt: skip
    return {
        "dataset": dataset,
        "dataset_digest": f"{len(dataset):02x}" * 16,
        "detector": detector,
        "ran": detector,
        "fallback": "",
        "block_size": block,
        "sub_block_size": sub,
        "interval": interval,
        "backup": number,
        "request": 400 + 1800 * number // steps,
        "trace_seconds": 3.0 * number / steps,
        "disk_bytes": DISK,
        "scanned_bytes": allocated if first else read,
        "reported_bytes": reported,
        "changed_bytes": changed,
        "extents": extents,
        "run_lengths": lengths,
        "sent_bytes": sent,
        "new_bytes": sent * 9 // 10,
        "stored_bytes": sent * 2 // 5 + 4 * KIB,
        "oracle_bytes": DISK if first else real * 9 // 10,
        "oracle_block_bytes": oracle_blocks,
        **{f"{stage}_seconds": value for stage, value in seconds.items()},
        "backup_seconds": sum(seconds.values()),
        "restore_seconds": 0.05,
        "covers": True,
        "verified": True,
        "identical": True,
        "seed": 2026,
        "config_digest": "0123456789abcdef",
        "version": "0.1.0",
        "commit": "c0ffee",
        "provenance": json.dumps(
            {"python": "3.11.7", "machine": "x86_64", "cpu": "a processor", "cores": 2,
             "kernel": "Linux 6.1", "libraries": {"numpy": "2.4.6", "polars": "2.1.0"}},
            sort_keys=True,
        ),
    }  # fmt: skip


def study_rows(
    datasets: tuple[str, ...] = ("ext4-sqlite", "ext4-fragmented"),
    intervals: tuple[str, ...] = ("25%", "10%"),
    subs: tuple[int, ...] = (4 * KIB, 0),
    detectors: tuple[str, ...] = DETECTOR_ORDER[:5],
) -> pl.DataFrame:
    """The results of a study of the given grid."""
    return pl.DataFrame(
        [
            backup_row(dataset, interval, sub, detector, number)
            for dataset in datasets
            for interval in intervals
            for sub in subs
            for detector in detectors
            for number in range(STEPS[interval] + 1)
        ],
        schema=SCHEMA,
    )


def crash_rows(states: int = 12, lost: int = 0, capture: str = "ext4-sqlite") -> pl.DataFrame:
    """Crash states with commits growing evenly, of which the last states lost some."""
    rows = []
    for index in range(states):
        row = 60 + 150 * index
        acknowledged = max(0, (row - 200) // 8)
        missing = lost if index == states - 1 else 0
        rows.append(
            {
                "capture": capture,
                "index": index,
                "row": row,
                "model": "flush",
                "filesystem": "none" if index == 0 else "clean" if index == 1 else "replayed",
                "database": "none" if index < 2 else "lost" if missing else "recovered",
                "commits_acknowledged": acknowledged,
                "commits_found": acknowledged - missing + (index % 3 == 2 and not missing),
                "commits_lost": missing,
                "seconds": 0.02,
                "details": "e2fsck -fy: clean",
            }
        )
    return pl.DataFrame(rows)


def study(**axes: tuple[object, ...]) -> StudyResult:
    """A finished study with crash states."""
    return StudyResult(rows=study_rows(**axes), outcomes=crash_rows(), seconds=61.5)  # type: ignore[arg-type]


FIGURES = ("bytes_read", "bytes_sent", "reported_against_compare", "stage_times", "run_lengths",
           "sent_over_time")  # fmt: skip
DETECTORS = DETECTOR_ORDER[:5]


def draw(name: str, rows: pl.DataFrame) -> Any:
    return getattr(charts, name)(rows)


def texts(svg: str) -> list[str]:
    """The words that the picture shows."""
    root = ElementTree.fromstring(svg)
    return [e.text for e in root.iter("{http://www.w3.org/2000/svg}text") if e.text]


def chart_rows(chart: Any) -> list[dict[str, Any]]:
    """The data that a chart carries."""
    return [row for data in chart.to_dict()["datasets"].values() for row in data]


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    return study_rows()


@pytest.fixture(scope="module")
def pictures(rows: pl.DataFrame) -> dict[str, str]:
    drawn = {name: charts.to_svg(draw(name, rows)) for name in FIGURES}
    return drawn | {"outcomes": charts.to_svg(charts.outcomes(crash_rows(lost=7)))}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_name_their_data_and_units(name: str, pictures: dict[str, str]) -> None:
    words = texts(pictures[name])
    everything = " ".join(words)
    assert "ext4-sqlite · every 25%" in everything
    assert "ext4-fragmented · every 10%" in everything
    assert ("ms" if name == "stage_times" else "KiB" if name == "run_lengths" else "MiB") in (
        everything
    )
    wanted = {
        "run_lengths": ("compare", "drill-down to 4 KiB", "drill-down off"),
        "sent_over_time": ("differential", "checksum, tracking, compare"),
        "reported_against_compare": DETECTORS[1:],
    }.get(name, DETECTORS)
    for detector in wanted:
        assert detector in everything
    width = float(ElementTree.fromstring(pictures[name]).attrib["width"])
    assert 600 < width <= 900


def test_stages_and_measures_are_in_the_legends(pictures: dict[str, str]) -> None:
    assert {"prepare", "snapshot", "detect", "transfer", "commit"} <= set(
        texts(pictures["stage_times"])
    )
    assert {"reported", "changed", "sent"} <= set(texts(pictures["bytes_sent"]))


def test_outcomes_show_counts_and_lost_commits(pictures: dict[str, str]) -> None:
    words = texts(pictures["outcomes"])
    everything = " ".join(words)
    assert "7 lost" in everything
    assert "ext4-sqlite · crash model flush" in words
    for state in ("replayed", "damaged", "recovered", "corrupt", "9"):
        assert state in words
    none = texts(charts.to_svg(charts.outcomes(crash_rows())))
    assert "none lost" in " ".join(none)


def test_outcomes_without_commits_show_no_empty_chart() -> None:
    frame = crash_rows(3).with_columns(
        pl.lit(0).alias("commits_acknowledged"), pl.lit(0).alias("commits_found")
    )
    assert "commits" not in " ".join(texts(charts.to_svg(charts.outcomes(frame))))


@pytest.mark.parametrize("name", FIGURES)
def test_charts_carry_few_rows(name: str, rows: pl.DataFrame) -> None:
    assert 0 < len(chart_rows(draw(name, rows))) < 400


def test_detectors_keep_colour_and_order(rows: pl.DataFrame) -> None:
    for name in ("bytes_read", "bytes_sent", "reported_against_compare", "sent_over_time"):
        spec = json.dumps(draw(name, rows).to_dict())
        scales = re.findall(r'"scale": (\{"domain": \[[^]]*\], "range": \[[^]]*\]\})', spec)
        named = [s for s in map(json.loads, scales) if "checksum" in s["domain"]]
        assert named
        for scale in named:
            known = [d for d in DETECTOR_ORDER if d in scale["domain"]]
            assert scale["domain"] == known
            assert scale["range"] == [charts.DETECTOR_COLOURS[d] for d in known]


def naive(rows: pl.DataFrame) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """The incremental backups of each experiment."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows.iter_rows(named=True):
        if row["backup"]:
            key = (row["dataset"], row["interval"], row["sub_block_size"], row["detector"])
            found.setdefault(key, []).append(row)
    return found


def test_bytes_read_are_means_with_drill_down(rows: pl.DataFrame) -> None:
    drawn = {
        (r["panel"], r["detector"]): r["read"]
        for r in chart_rows(charts.bytes_read(rows))
        if r["kind"] == "mean"
    }
    groups = {k: v for k, v in naive(rows).items() if k[2]}
    assert len(drawn) == len(groups) == 20
    for (dataset, interval, _, detector), backups in groups.items():
        mean = sum(b["scanned_bytes"] for b in backups) / len(backups) / MIB
        assert drawn[f"{dataset} · every {interval} of requests", detector] == pytest.approx(mean)


def test_bytes_sent_are_means_of_both_drill_downs(rows: pl.DataFrame) -> None:
    drawn = {
        (r["panel"], r["detector"], r["measure"]): r["bytes"]
        for r in chart_rows(charts.bytes_sent(rows))
    }
    groups = naive(rows)
    assert len(drawn) == 3 * len(groups)
    for (dataset, interval, sub, detector), backups in groups.items():
        panel = f"{dataset} · every {interval} · " + (
            "drill-down to 4 KiB" if sub else "drill-down off"
        )
        for measure in ("reported", "changed", "sent"):
            mean = sum(b[f"{measure}_bytes"] for b in backups) / len(backups)
            assert drawn[panel, detector, measure] == pytest.approx(mean)


def test_blocks_beyond_the_oracle(rows: pl.DataFrame) -> None:
    drawn = {
        (r["panel"], r["detector"], r["blocks"]): r["bytes"]
        for r in chart_rows(charts.reported_against_compare(rows))
    }
    assert "full" not in {key[1] for key in drawn}
    for (dataset, interval, sub, detector), backups in naive(rows).items():
        if not sub or detector == "full":
            continue
        panel = f"{dataset} · every {interval} of requests"
        differ = sum(b["oracle_block_bytes"] for b in backups) / len(backups)
        more = sum(b["reported_bytes"] for b in backups) / len(backups) - differ
        assert drawn[panel, detector, "a byte differs"] == pytest.approx(differ)
        assert drawn[panel, detector, "no byte differs"] == pytest.approx(more)
        assert (more > 0) == (detector == "tracking")


def test_stage_times_add_up(rows: pl.DataFrame) -> None:
    means = stage_means(rows)
    for (dataset, interval, sub, detector), backups in naive(rows).items():
        if sub:
            mine = means.filter(
                (pl.col("panel") == f"{dataset} · every {interval} of requests")
                & (pl.col("detector") == detector)
            )
            total = sum(b["backup_seconds"] for b in backups) / len(backups)
            assert mine["seconds"].sum() == pytest.approx(total)
            assert mine["total"].to_list() == pytest.approx([total] * 5)


@pytest.mark.parametrize("detector", [None, "checksum", "full"])
def test_run_lengths_are_counted_by_class(rows: pl.DataFrame, detector: str | None) -> None:
    found = run_length_counts(rows, detector)
    for (dataset, interval, sub, name), backups in naive(rows).items():
        if name != (detector or "compare"):
            continue
        counts = [sum(b["run_lengths"][i] for b in backups) for i in range(22)]
        mine = found.filter(
            (pl.col("panel") == f"{dataset} · every {interval} of requests")
            & (pl.col("sub_block_size") == sub)
        )
        drawn = dict(mine.select("class", "count").iter_rows())
        assert drawn == {
            edge: counts[i] for i, edge in enumerate(RUN_LENGTH_CLASSES) if edge in drawn
        }
        assert sum(drawn.values()) == sum(counts)
        assert mine["share"].sum() == pytest.approx(1)


def test_sent_over_time_sums_and_joins_equal_curves(rows: pl.DataFrame) -> None:
    found = cumulative_sent(rows)
    assert set(found["series"]) == {"differential", "checksum, tracking, compare"}
    for (dataset, interval, sub, detector), backups in naive(rows).items():
        if not sub or detector in ("full", "tracking", "compare"):
            continue
        panel = f"{dataset} · every {interval} of requests"
        mine = found.filter((pl.col("panel") == panel) & (pl.col("detector") == detector))
        sums = [sum(b["sent_bytes"] for b in backups[:i]) for i in range(len(backups) + 1)]
        assert mine["sent"].to_list() == sums
        assert mine["backup"].to_list() == list(range(len(backups) + 1))


def test_sent_over_time_labels_do_not_overlap() -> None:
    drawn = chart_rows(charts.sent_over_time(study_rows(subs=(0,))))
    heights: dict[str, list[float]] = {}
    for row in drawn:
        if row["label"] is not None:
            heights.setdefault(row["panel"], []).append(row["label_y"])
    top = max(row["size"] for row in drawn)
    for values in heights.values():
        assert len(values) == 3
        gaps = [b - a for a, b in pairwise(sorted(values))]
        assert min(gaps) > 0.08 * top


def test_panels_stand_in_the_order_of_the_study() -> None:
    for datasets, wanted in (
        (("b", "a"), ["b · every 25%", "a · every 25%", "b · every 10%", "a · every 10%"]),
        (("b",), ["b · every 25%", "b · every 10%"]),
        (("c", "b", "a"), ["c · every 25%", "c · every 10%", "b · every 25%", "b · every 10%",
                           "a · every 25%", "a · every 10%"]),
    ):  # fmt: skip
        rows = with_panels(study_rows(datasets=datasets, subs=(0,)))
        panels = rows["panel"].unique(maintain_order=True).to_list()
        assert panels == [f"{p} of requests" for p in wanted]
    rows = study_rows(datasets=("a",), intervals=("2s",), subs=(0, 4 * KIB))
    wider = pl.concat([rows, rows.with_columns(pl.lit(128 * KIB, pl.Int64).alias("block_size"))])
    assert with_panels(wider)["panel"].unique(maintain_order=True).to_list() == [
        f"a · every 2s · {block} KiB blocks · {grain}"
        for block in (64, 128)
        for grain in ("drill-down off", "drill-down to 4 KiB")
    ]


def test_one_detector_one_data_set_is_enough() -> None:
    for detector in DETECTORS:
        rows = study_rows(("only",), ("2s",), (4 * KIB,), (detector,))
        for name in FIGURES:
            if (name, detector) != ("sent_over_time", "full"):
                assert detector in " ".join(texts(charts.to_svg(draw(name, rows))))


def test_nothing_sent_is_drawn_as_zero() -> None:
    rows = study_rows(("only",), ("2s",)).with_columns(
        pl.lit(0).alias(name) for name in ("sent_bytes", "changed_bytes", "reported_bytes")
    )
    assert "0 B" in texts(charts.to_svg(charts.bytes_sent(rows)))
    for name in ("reported_against_compare", "sent_over_time"):
        assert charts.to_svg(draw(name, rows))


def test_long_studies_are_thinned_and_wide_ones_refused() -> None:
    one = study_rows(("only",), ("2s",), (4 * KIB,)).filter(pl.col("backup") == 1)
    many = pl.concat([one.with_columns(pl.lit(i, pl.Int64).alias("backup")) for i in range(2000)])
    for name in FIGURES:
        assert len(chart_rows(draw(name, many))) < 5000
        assert charts.to_svg(draw(name, many))
    assert "strokes are the least and the most" in json.dumps(charts.bytes_read(many).to_dict())
    ends = [r for r in chart_rows(charts.sent_over_time(many)) if r["label"] is not None]
    sent = one.filter(pl.col("detector") == "checksum")["sent_bytes"][0]
    assert {r["backup"] for r in ends} == {1999}
    assert min(r["size"] for r in ends) == pytest.approx(1999 * sent / MIB)
    wide = pl.concat([one.with_columns(pl.lit(f"d{i}").alias("dataset")) for i in range(41)])
    for name in FIGURES:
        with pytest.raises(InputError, match="41 panels cannot be read") as error:
            draw(name, wide)
        assert "filter the results" in error.value.hint
    states = charts.outcomes(crash_rows(9000, lost=3))
    assert len(chart_rows(states)) < 5000
    assert any(r.get("commits_lost") == 3 for r in chart_rows(states))
    with pytest.raises(InputError, match="13 captures cannot be read"):
        charts.outcomes(pl.concat([crash_rows(2, capture=f"c{i}") for i in range(13)]))


def test_errors_say_what_is_missing(rows: pl.DataFrame) -> None:
    for name in FIGURES:
        with pytest.raises(InputError, match="none of these 40 backups is incremental"):
            draw(name, rows.filter(pl.col("backup") == 0))
        with pytest.raises(InputError, match="none of these 0 backups"):
            draw(name, rows.clear())
    with pytest.raises(InputError, match="nothing of 'magic'") as error:
        charts.run_lengths(rows, "magic")
    assert "full, differential, checksum" in error.value.hint
    with pytest.raises(InputError, match="full sends the same"):
        charts.sent_over_time(rows.filter(pl.col("detector") == "full"))
    with pytest.raises(InputError, match="no crash state was checked"):
        charts.outcomes(pl.DataFrame())
    with pytest.raises(InputError, match="they lack commits_lost"):
        charts.outcomes(crash_rows().drop("commits_lost"))
    still = rows.with_columns(pl.col("run_lengths").list.eval(pl.element() * 0))
    with pytest.raises(InputError, match="compare found no changed run"):
        charts.run_lengths(still)


@pytest.mark.parametrize("module", ["altair", "vl_convert"])
def test_a_missing_extra_is_named(
    module: str, rows: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    for name in FIGURES:
        with pytest.raises(VmbkError, match=module) as error:
            draw(name, rows)
        assert "pip install 'vmbk[charts]'" in str(error.value)
    with pytest.raises(VmbkError, match=module):
        charts.outcomes(crash_rows())


def test_drawing_twice_gives_the_same_bytes(rows: pl.DataFrame, pictures: dict[str, str]) -> None:
    for name in FIGURES:
        assert charts.to_svg(draw(name, rows)) == pictures[name]


def test_ids_do_not_depend_on_what_was_drawn_before() -> None:
    import altair as alt

    chart = alt.Chart(pl.DataFrame({"x": [1, 2], "y": [3, 5]})).mark_line(clip=True)
    chart = chart.encode(x="x:Q", y="y:Q", color=alt.Color("y:Q"))
    first, second = charts.to_svg(chart), charts.to_svg(chart)
    assert 'id="id0"' in first
    assert "url(#id0)" in first
    assert first == second
    page = inline(first, "one", "a") + inline(second, "two", "b")
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(ids)
    assert "url(#one-id0)" in page
    assert "url(#two-id0)" in page


def test_inline_svg_has_titles_for_pointers_and_a_label_for_readers(
    pictures: dict[str, str],
) -> None:
    element = inline(pictures["bytes_read"], "read", 'a "label" & more')
    assert element.startswith("<svg ")
    assert "http" not in element
    assert 'aria-label="a &quot;label&quot; &amp; more"' in element
    assert "<title>tracking: 4.1 MiB a backup, mean of 4</title>" in element
    assert "<title>compare, backup 4: 42 MiB</title>" in element
    assert "aria-roledescription" not in element


HOSTILE = (
    '"><script>alert(1)</script>',
    "]]></svg><img src=http://example.invalid/x>",
    "a\x00b\x01c\x1b[31m\n\t\x7f",
    "\ufffe\uffff datum['x'] ${y}",
    "/a/very/long/folder/of/traces/that/nobody/can/read/on/a/chart/a.parquet",
    "/b/very/long/folder/of/traces/that/nobody/can/read/on/a/chart/a.parquet",
    "",
)


def test_hostile_names_are_text() -> None:
    rows = study_rows(datasets=HOSTILE, intervals=("2s",))
    for name in FIGURES:
        svg = charts.to_svg(draw(name, rows))
        tags = {e.tag.rpartition("}")[2] for e in ElementTree.fromstring(svg).iter()}
        assert tags <= {"svg", "g", "path", "rect", "line", "text", "defs", "clipPath", "tspan"}
        assert '"><script>alert(1)</script> · every 2s' in " ".join(texts(svg))
    crash = pl.concat([crash_rows(2, capture=name) for name in HOSTILE])
    assert '"><script>alert(1)</script>' in " ".join(texts(charts.to_svg(charts.outcomes(crash))))


def test_short_names_stay_apart() -> None:
    names = pl.Series([*HOSTILE, "x" * 40, "y" * 40, "…" + "x" * 31, "…" + "x" * 31 + " (2)"])
    short = short_names(names)
    assert list(short) == names.to_list()
    assert len(set(short.values())) == len(names)
    assert max(map(len, short.values())) <= 32 + len(" (2)") * 2
    assert short[HOSTILE[4]].endswith("/a.parquet")


# Machado, Oliveira and Fernandes 2009, severity 1.0: how dichromats see linear RGB.
DICHROMATS = {
    "normal": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
               [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
               [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
               [0.004733, 0.691367, 0.303900]],
}  # fmt: skip


def cie_lab(colour: str, sight: list[list[float]]) -> list[float]:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    seen = [min(1, max(0, sum(a * b for a, b in zip(row, linear, strict=True)))) for row in sight]
    x = (0.4124 * seen[0] + 0.3576 * seen[1] + 0.1805 * seen[2]) / 0.9505
    y = 0.2126 * seen[0] + 0.7152 * seen[1] + 0.0722 * seen[2]
    z = (0.0193 * seen[0] + 0.1192 * seen[1] + 0.9505 * seen[2]) / 1.089
    fx, fy, fz = (v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x, y, z))
    return [116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)]


@pytest.mark.parametrize("sight", DICHROMATS)
def test_colours_differ_for_colour_blind_readers(sight: str) -> None:
    for palette in (tuple(charts.DETECTOR_COLOURS.values()), STAGE_COLOURS):
        for a, b in combinations(palette, 2):
            distance = math.dist(cie_lab(a, DICHROMATS[sight]), cie_lab(b, DICHROMATS[sight]))
            assert distance > 15, (a, b)


def test_readings_say_what_the_numbers_say(rows: pl.DataFrame) -> None:
    groups = naive(rows)

    def total(detector: str, column: str, grain: int = 4 * KIB) -> str:
        return format_size(
            sum(b[column] for k, v in groups.items() for b in v if k[2:] == (grain, detector))
        )

    read = readings.bytes_read(rows)
    assert total("tracking", "scanned_bytes") in read
    assert total("checksum", "scanned_bytes") in read
    assert "28 incremental backups" in read
    sent = readings.bytes_sent(rows)
    assert f"With drill-down to 4 KiB checksum sent {total('checksum', 'sent_bytes')}" in sent
    assert f"without it {total('checksum', 'sent_bytes', 0)}" in sent
    assert f"full sent {total('full', 'sent_bytes')}" in sent
    beyond = readings.reported_against_compare(rows)
    assert "checksum reported no block in which no byte differs" in beyond
    assert "15% of what it reported" in beyond
    assert "ms with tracking" in readings.stage_times(rows)
    assert "compare found with drill-down to 4 KiB" in readings.run_lengths(rows)
    assert "differential had sent 20.4 MiB where checksum had sent 3.7 MiB, 5.5 times" in (
        readings.sent_over_time(rows)
    )
    assert readings.outcomes(crash_rows()) == (
        "All 12 crash states come up by themselves; no acknowledged commit is lost."
    )
    assert readings.outcomes(crash_rows(lost=7)) == (
        "11 of 12 crash states come up by themselves; 7 acknowledged commits lost in 1 state."
    )


def test_readings_of_one_detector_compare_with_nothing() -> None:
    for detector in DETECTORS:
        rows = study_rows(("only",), ("2s",), (0,), (detector,))
        assert readings.bytes_read(rows).startswith(f"{detector} read ")
        assert readings.bytes_sent(rows).startswith(f"{detector} reported ")
        assert "without drill-down" in readings.run_lengths(rows)
        assert f"with {detector};" in readings.stage_times(rows)
        beyond = "no block" if detector not in ("full", "tracking") else "MiB of blocks"
        assert f"{detector} reported " in readings.reported_against_compare(rows)
        assert beyond in readings.reported_against_compare(rows)
        if detector != "full":
            sent = rows.filter(pl.col("backup") > 0)["sent_bytes"].sum()
            assert readings.sent_over_time(rows) == (
                f"By the last backup of only · every 2s {detector} had sent {format_size(sent)}."
            )


@pytest.mark.parametrize(
    ("more", "less", "text"),
    [(10, 10, ""), (10, 0, ""), (11, 10, "1.1 times"), (99, 10, "9.9 times"),
     (100, 10, "10 times"), (12_345, 1, "12,345 times")],
)  # fmt: skip
def test_times(more: float, less: float, text: str) -> None:
    assert readings.times(more, less) == text


def test_notebook_setup_draws_svg_and_shows_frames_alike(
    rows: pl.DataFrame, pictures: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import altair as alt

    from vmbk import notebook

    monkeypatch.setenv("VMBK_PROGRESS", "1")
    before = alt.renderers.active
    with pl.Config():
        try:
            assert notebook.setup() is None
            assert notebook.setup() is None
            bundle = draw("bytes_read", rows)._repr_mimebundle_()
            shown = repr(rows.select("dataset", "scanned_bytes"))
        finally:
            alt.renderers.enable(before)
    assert bundle == {"image/svg+xml": pictures["bytes_read"]}
    assert "---" not in shown
    assert "i64" not in shown
    assert "6,291,456" in shown
    assert os.environ["VMBK_PROGRESS"] == "0"


@pytest.mark.parametrize("name", FIGURES)
def test_a_study_chart_says_which_columns_it_needs(name: str) -> None:
    trace = open_trace("ext4-sqlite")
    own = {"stage_times": "prepare_seconds", "run_lengths": "run_lengths"}.get(name, "bytes")
    for table in (churn(trace, "1s"), run_lengths(trace, "1s")):
        with pytest.raises(InputError, match="the chart needs the columns dataset, ") as caught:
            draw(name, table)
        assert own in str(caught.value)
        assert re.search("lacks (all of them|dataset, interval)", str(caught.value))
    if name == "run_lengths":
        assert "charts.changed_runs" in str(caught.value)
    if name == "sent_over_time":
        assert "charts.sent_so_far" in str(caught.value)
    with pytest.raises(InputError, match=r"this table lacks interval\n"):
        draw(name, study_rows().drop("interval"))
    with pytest.raises(InputError, match=r"pass its \.rows"):
        draw(name, study())  # type: ignore[arg-type]


def test_labels_beside_bars_stay_in_their_panel() -> None:
    """The longest bar may have the longest label."""
    rows = study_rows().with_columns(
        (pl.col("reported_bytes") * pl.when(pl.col("backup") > 0).then(10).otherwise(1))
        .alias("reported_bytes")
    )  # fmt: skip
    for chosen in (rows, rows.filter(dataset="ext4-sqlite", interval="25%")):
        chart = charts.reported_against_compare(chosen)
        drawn = chart_rows(chart)
        assert any(r["label"].endswith(" beyond") for r in drawn)
        spec = json.loads(json.dumps(chart.to_dict()))["spec"]
        width = spec["width"]
        top = spec["layer"][0]["encoding"]["x"]["scale"]["domain"][1]
        for row in drawn:
            assert row["end"] / top * width + 6 + 6 * len(row["label"]) <= width


@pytest.mark.parametrize("what", ["x", None, 5, pl.DataFrame({"a": [1]})])
def test_what_is_no_chart_is_not_drawn(what: Any) -> None:
    with pytest.raises(InputError, match="is not a chart"):
        charts.to_svg(what)


@pytest.mark.parametrize("what", ["x", None, 5])
def test_outcomes_are_a_table(what: Any) -> None:
    with pytest.raises(InputError, match="a chart needs a table"):
        charts.outcomes(what)
    with pytest.raises(InputError, match=r"pass its \.outcomes"):
        charts.outcomes(study())  # type: ignore[arg-type]
