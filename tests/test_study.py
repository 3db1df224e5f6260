"""Studies: what is declared is what runs, every row is right and says what made it."""

from __future__ import annotations

import ast
import json
import math
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import vmbk
from vmbk import datasets, run_study, write_trace
from vmbk.detect.changes import DETECTORS
from vmbk.errors import InputError, NotFoundError
from vmbk.study import read_config, read_results
from vmbk.study.config import MOST_CELLS, Interval, StudyConfig
from vmbk.study.results import SCHEMA
from vmbk.study.runner import MOST_BACKUPS, backup_requests
from vmbk.trace import open_trace


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Every detector on both captures, with and without drill-down."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "study.toml").write_text(
        "seed = 5\n[grid]\ndatasets = ['ext4-sqlite', 'ext4-fragmented']\n"
        "sub_block_size = ['4KiB', 'off']\ninterval = ['33.4%']\n"
    )
    return run_study(folder / "study.toml", out=folder / "out")


def test_every_restore_is_identical_and_every_change_set_covers_the_oracle(study):
    assert study.verified
    assert len(study.rows) == 2 * 2 * len(DETECTORS) * 4
    assert study.rows.select(pl.col("identical", "verified", "covers").all()).row(0) == (
        True, True, True,
    )  # fmt: skip
    assert set(study.rows["ran"]) == set(DETECTORS)
    assert (study.rows["fallback"] == "").all()


def test_detectors_stand_in_the_order_that_theory_gives(study):
    rows = study.rows.filter(pl.col("backup") > 0)
    totals = {
        (r["dataset"], r["sub_block_size"], r["detector"]): r
        for r in rows.group_by("dataset", "sub_block_size", "detector")
        .agg(pl.col("scanned_bytes", "reported_bytes", "sent_bytes", "oracle_block_bytes").sum())
        .iter_rows(named=True)
    }
    for dataset in ("ext4-sqlite", "ext4-fragmented"):
        for sub in (0, 4096):
            found = {d: totals[dataset, sub, d] for d in DETECTORS}
            read = {d: r["scanned_bytes"] for d, r in found.items()}
            sent = {d: r["sent_bytes"] for d, r in found.items()}
            assert read["tracking"] < read["checksum"] == read["full"] < read["compare"]
            assert sent["compare"] <= sent["checksum"] <= sent["tracking"]
            assert sent["checksum"] < sent["differential"] <= sent["full"]
            assert found["checksum"]["reported_bytes"] == found["checksum"]["oracle_block_bytes"]
        for detector in ("differential", "checksum", "tracking", "compare"):
            drilled, whole = totals[dataset, 4096, detector], totals[dataset, 0, detector]
            assert drilled["sent_bytes"] < whole["sent_bytes"]
    # The fragmented capture rewrites blocks with the same bytes: only tracking reports those.
    tracking = totals["ext4-fragmented", 0, "tracking"]
    assert tracking["reported_bytes"] > tracking["oracle_block_bytes"]


def test_rows_carry_provenance_and_can_be_read_back(study):
    rows = read_results(study.results)
    assert rows.equals(study.rows)
    assert rows.schema == SCHEMA
    row = rows.row(0, named=True)
    assert row["seed"] == 5
    assert len(row["dataset_digest"]) == 64
    made = json.loads(row["provenance"])
    assert {"python", "machine", "cpu", "cores", "libraries"} <= set(made)
    assert read_results(study.results.parent).equals(rows)


def test_the_same_declaration_finds_the_same(study, tmp_path):
    config = read_config(study.results.parent.parent / "study.toml")
    small = replace(config, datasets=("ext4-sqlite",), detectors=("tracking",), sub_block_size=(0,))
    again = run_study(small, out=None).rows
    columns = ["request", "scanned_bytes", "reported_bytes", "changed_bytes", "sent_bytes",
               "extents", "run_lengths", "oracle_bytes", "dataset_digest"]  # fmt: skip
    before = study.rows.filter(
        (pl.col("dataset") == "ext4-sqlite") & (pl.col("detector") == "tracking")
        & (pl.col("sub_block_size") == 0)
    )  # fmt: skip
    assert again.select(columns).equals(before.select(columns))


@pytest.mark.parametrize("interval", ["25%", "10%", "40%", "33.4%", "100%", "0.5s", "7s", "1000s"])
def test_backups_are_spread_over_the_workload(interval):
    trace = open_trace("ext4-sqlite")
    found = Interval.parse(interval, "interval")
    stops = backup_requests(trace, found)
    assert stops == sorted(set(stops))
    assert stops[-1] == len(trace)
    begin = next(
        i for i in range(len(trace)) if bytes(trace.payload(i) or b"") == b"workload begins"
    )
    assert stops[0] == begin + 1
    if found.share:
        assert len(stops) == math.ceil(1 / found.share) + 1
    else:
        times = np.asarray(trace.requests.time_ns)
        assert all(
            times[stop] - times[stops[0]] >= i * found.ns for i, stop in enumerate(stops[:-1])
        )


def test_missing_and_foreign_results(tmp_path):
    with pytest.raises(NotFoundError, match="vmbk study"):
        read_results(tmp_path)
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "results.parquet")
    with pytest.raises(InputError, match="dataset"):
        read_results(tmp_path)
    (tmp_path / "results.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match="results"):
        read_results(tmp_path)


def test_the_default_study_is_declared_over_everything_shipped():
    config = read_config()
    assert set(config.detectors) == set(DETECTORS)
    assert len(config.cells()) == 40
    assert config.digest == read_config().digest
    assert replace(config, seed=1).digest != config.digest


def test_the_summary_keeps_intervals_and_block_sizes_apart(tmp_path):
    config = StudyConfig(
        datasets=("ext4-sqlite",), detectors=("tracking", "full"),
        block_size=(65536, 4096), sub_block_size=(0,),
        interval=(Interval(share=0.5), Interval(ns=4 * 10**9)),
    )  # fmt: skip
    study = run_study(config, out=None)
    found = study.summary()
    keys = ["dataset", "interval", "block_size", "sub_block_size", "detector"]
    assert found.select(keys).rows() == [
        ("ext4-sqlite", interval, block, 0, detector)
        for interval, block, detector in product(("50%", "4s"), (4096, 65536), ("full", "tracking"))
    ]  # fmt: skip
    for row in found.iter_rows(named=True):
        mine = study.rows.filter(*(pl.col(k) == row[k] for k in keys), pl.col("backup") > 0)
        assert row["backups"] == len(mine)
        assert row["sent_bytes"] == mine["sent_bytes"].sum()
        assert row["good"] == len(mine)
    lines = study.text().splitlines()
    assert lines[0].split()[:4] == ["data", "set", "interval", "block"]
    assert [line.split()[1:5] for line in lines if line.endswith("(2 of 2)")] == [
        ["50%", "4", "KiB", "off"], ["50%", "4", "KiB", "off"],
        ["50%", "64", "KiB", "off"], ["50%", "64", "KiB", "off"],
    ]  # fmt: skip
    assert "4s" in study._repr_html_()
    one = replace(study, rows=study.rows.filter(interval="50%", block_size=4096))
    assert one.text().splitlines()[0].split()[:4] == ["data", "set", "drill-down", "detector"]
    assert "interval 50% of requests, blocks of 4 KiB" in one.text()
    wrong = replace(one, rows=one.rows.with_columns(identical=pl.col("detector") != "full"))
    assert "NO (0 of 2)" in wrong.text()
    assert "ONLY 3 OF 6 CAN BE TRUSTED" in wrong.text()
    nothing = replace(study, rows=study.rows.clear())
    assert "No experiment made an incremental backup." in nothing.text()
    assert not nothing.verified


@pytest.mark.parametrize(
    ("axis", "values"),
    [
        ("datasets", ["a", "b", "a"]),
        ("detectors", ["full", "full"]),
        ("block_size", ["64KiB", 65536]),
        ("sub_block_size", ["off", 0]),
        ("interval", ["1m", "60s"]),
        ("interval", ["25%", "25.0%"]),
    ],
)
def test_the_same_value_twice_is_refused(tmp_path, axis, values):
    axes = {"datasets": ["ext4-sqlite"]} | {axis: values}
    lines = ["[grid]", *(f"{name} = {json.dumps(value)}" for name, value in axes.items())]
    (tmp_path / "study.toml").write_text("\n".join(lines))
    with pytest.raises(InputError, match=rf"grid\.{axis}: .* is there twice"):
        read_config(tmp_path / "study.toml")


def test_captures_to_cut_are_named_once(tmp_path):
    (tmp_path / "study.toml").write_text(
        "[grid]\ndatasets = ['a']\n[consistency]\ndatasets = ['a', 'a']"
    )
    with pytest.raises(InputError, match=r"consistency\.datasets: 'a' is there twice"):
        read_config(tmp_path / "study.toml")


def test_a_grid_has_bounds():
    config = read_config()
    with pytest.raises(InputError, match="experiments"):
        replace(config, interval=tuple(Interval(ns=i) for i in range(1, MOST_CELLS)))


def test_an_interval_is_shown_exactly():
    for text in ("25%", "33.4%", "0.1%", "2s", "0.000000001s", "100000000.5s"):
        assert str(Interval.parse(text, "interval")) == text


def test_backups_of_a_cell_have_bounds():
    trace = open_trace("ext4-sqlite")
    span = int(trace.requests.time_ns[-1])
    with pytest.raises(InputError, match=r"grid\.interval: 0\.000000001s makes [0-9,]{14} backups"):
        backup_requests(trace, Interval(ns=1))
    assert len(backup_requests(trace, Interval(ns=span // MOST_BACKUPS + 1))) > 100


def test_a_file_comes_before_a_shipped_capture_of_its_name(tmp_path, monkeypatch):
    shipped = open_trace("ext4-sqlite")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ext4-sqlite").mkdir()
    assert open_trace("ext4-sqlite").digest == shipped.digest
    (tmp_path / "ext4-sqlite").rmdir()
    other = open_trace("ext4-fragmented")
    write_trace(other, tmp_path / "copy.parquet")
    (tmp_path / "copy.parquet").rename("ext4-sqlite")
    assert open_trace("ext4-sqlite").digest == other.digest
    config = StudyConfig(("ext4-sqlite",), ("tracking",), (65536,), (4096,), (Interval(share=1.0),))
    assert set(run_study(config, out=None).rows["dataset_digest"]) == {other.digest}


@pytest.mark.parametrize("name", ["nonesuch", "x" * 5000, "a\0b", "", "/nonexistent/trace.arrow"])
def test_a_trace_that_is_nowhere(name):
    with pytest.raises(NotFoundError) as caught:
        open_trace(name)
    assert all(d.name in caught.value.hint for d in datasets())
    assert len(str(caught.value)) < 400


def test_imports_point_one_way():
    """Each package uses only those before it, lazy imports included."""
    order = ("kernels", "trace", "disk", "detect", "content", "vault", "pipeline", "consistency",
             "study", "charts", "study_job", "cli")  # fmt: skip
    root = Path(vmbk.__file__).parent
    checked = 0
    for file in root.rglob("*.py"):
        here = file.relative_to(root).parts[0].removesuffix(".py")
        if here not in order:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            modules = []
            if isinstance(node, ast.ImportFrom) and node.module == "vmbk":
                modules = [f"vmbk.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            elif isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            for module in modules:
                used = module.split(".")[1:2]
                if module.startswith("vmbk.") and used[0] in order:
                    checked += 1
                    assert order.index(used[0]) <= order.index(here), (file, module)
    assert checked > 100
