"""Fit: parameters come back, nothing private comes out, and the commands."""

from __future__ import annotations

import json
import re
import tomllib
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vmbk
from vmbk.cli.program import run as answer
from vmbk.errors import InputError
from vmbk.trace import open_trace
from vmbk.trace.metrics.intervals import INTERVALS
from vmbk.trace.schema import Op, Volume
from vmbk.trace.synthesis import Fit, Spec, fit, synthesise
from vmbk.trace.synthesis.fitting import _extents
from vmbk.trace.synthesis.measure import sequential
from vmbk.trace.synthesis.report import compare
from vmbk.trace.table import Trace
from vmbk.units import parse_duration

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
DAY = 86_400 * 10**9


def declared(**workload: Any) -> Spec:
    return Spec.from_dict(
        {"duration": "1h", "volumes": [{"size": "4GiB"}], "workload": workload, "seed": 5}
    )


def differences(fitted: Fit) -> dict[str, float]:
    return dict(fitted.frame.drop_nulls().select("metric", "difference").iter_rows())


def test_parameters_come_back() -> None:
    spec = declared(
        requests=30_000,
        read_share=0.4,
        flush_every=25,
        fua_share=0.2,
        sizes={"4KiB": 0.7, "16KiB": 0.3},
        read_sizes="8KiB",
        rewrite_ratio=3,
        extents="1MiB",
        profile=[1, 2, 3, 4],
        mix={"sequential": 0.3, "uniform": 0.4, "zipf": 0.3, "theta": 1.0},
    )
    fitted = fit(synthesise(spec))
    (volume,), (was,) = fitted.spec.volumes, spec.volumes
    work = volume.workload
    assert work.requests == 30_000
    assert volume.size == was.size
    assert work.read_share == pytest.approx(0.4, abs=0.002)
    assert work.flush_every == pytest.approx(25, rel=0.02)
    assert work.fua_share == pytest.approx(0.2, abs=0.005)
    weights = dict(work.sizes)
    assert set(weights) == {4 * KIB, 16 * KIB}
    assert weights[4 * KIB] / sum(weights.values()) == pytest.approx(0.7, abs=0.005)
    assert [size for size, _ in work.read_sizes] == [8 * KIB]
    assert (work.alignment, work.shift) == (4 * KIB, 0)
    assert work.mix.sequential == pytest.approx(0.3, abs=0.05)
    quarters = np.add.reduceat(work.profile, [0, 16, 32, 48])
    assert quarters / quarters.sum() == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.02)
    off = differences(fitted)
    for name in ("unique_bytes", "write_bytes", "read_bytes", "rewrite_ratio", "interval_cost"):
        assert abs(off[name]) < 0.05, (name, off)
    for name in ("amplification_64k", "sequential_writes", "burstiness", "mean_extent_bytes"):
        assert abs(off[name]) < 0.15, (name, off)


@pytest.mark.parametrize("name", ["ext4-sqlite", "ext4-fragmented"])
def test_captures_are_fitted(name: str) -> None:
    """What a backup costs comes within a few percent on captures of real guests."""
    fitted = fit(open_trace(name))
    off = differences(fitted)
    assert abs(off["unique_bytes"]) < 0.06, off
    assert abs(off["interval_cost"]) < 0.08, off
    for exact in ("requests", "write_bytes", "small_write_share", "writes_per_flush"):
        assert abs(off[exact]) < 0.01, (exact, off)
    shown = fitted._repr_html_()
    assert shown.startswith("<table>")
    assert all(metric in shown for metric in fitted.frame["metric"])


def test_a_fit_reveals_no_place_and_no_name() -> None:
    rng = np.random.default_rng(3)
    offsets = rng.integers(0, 1 << 25, 400) * 512
    trace = Trace.from_columns(
        volumes=[Volume(7, "payroll of ACME", 32 * GIB)],
        op=np.full(400, Op.WRITE), offset=offsets, length=np.full(400, 4096),
        time_ns=np.sort(rng.integers(0, 10**12, 400)), clock="exact",
        provenance={"host": "db1.acme.example"},
    )  # fmt: skip
    fitted = fit(trace)
    text = fitted.spec.to_toml()
    assert "acme" not in text.lower()
    numbers = {int(n) for n in re.findall(r"\b\d{6,}\b", text)}
    assert not numbers & set(offsets.tolist())
    made = synthesise(fitted.spec)
    assert len(set(made.requests.offset.tolist()) & set(offsets.tolist())) < 4  # by chance
    assert "acme" not in json.dumps(made.provenance).lower()


def test_several_volumes_are_fitted_each() -> None:
    spec = Spec.load("database").with_requests(8000)
    fitted = fit(synthesise(spec))
    assert [v.workload.requests for v in fitted.spec.volumes] == [6000, 2000]
    assert fitted.spec.volumes[1].workload.read_share == 0
    assert abs(differences(fitted)["write_bytes"]) < 0.01


def test_volumes_of_a_few_long_writes_are_fitted_wherever_they_stand() -> None:
    """What ratio so few writes can make is chance, and the chance is another for each volume."""
    rng, rows = np.random.default_rng(0), np.arange(42)
    trace = Trace.from_columns(
        volumes=[Volume(i, f"v{i}", MIB) for i in range(6)], op=np.full(42, Op.WRITE),
        volume=rows % 6, offset=rng.integers(0, 1500, 42) * 512,
        length=rng.integers(1, 300, 42) * 512, time_ns=rows * 10**9, clock="exact",
    )  # fmt: skip
    works = [volume.workload for volume in fit(trace).spec.volumes]
    assert [work.requests for work in works] == [7] * 6
    assert any(work.rewrite_ratio for work in works)
    assert any(work.working_set for work in works)


def test_what_cannot_be_fitted_says_so() -> None:
    with pytest.raises(InputError, match="without requests"):
        fit(Trace.from_columns(volumes=[Volume(0, "v", MIB)], op=[], offset=[], length=[]))


requests = st.lists(
    st.tuples(
        st.sampled_from([int(op) for op in Op if op != Op.MARK]),
        st.integers(0, 1),
        st.integers(0, 5000),
        st.integers(0, 600),
        st.integers(0, 10**6),
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=12)
@given(requests, st.sampled_from([1, 512]), st.sampled_from(["none", "exact"]))
def test_any_trace_is_fitted(rows: list[tuple[int, ...]], unit: int, clock: str) -> None:
    op, volume, offset, length, gap = (np.array(column) for column in zip(*rows, strict=True))
    size = 5600 * 512 + 300
    trace = Trace.from_columns(
        volumes=[Volume(3, "a", size), Volume(9, "b", size)], op=op, volume=np.where(volume, 9, 3),
        offset=np.where(op == Op.FLUSH, 0, offset * unit),
        length=np.where(op == Op.FLUSH, 0, length * unit),
        time_ns=np.cumsum(gap) if clock == "exact" else np.zeros(len(op), int), clock=clock,
    )  # fmt: skip
    fitted = fit(trace)
    made = synthesise(Spec.from_dict(tomllib.loads(fitted.spec.to_toml())))
    assert len(made) == fitted.spec.requests
    assert len(made) <= len(trace)


def test_sequential_writes_are_those_that_go_on() -> None:
    at = np.array([0, 100, 10, 110, 20, 500, 0])
    size = np.full(7, 10)
    assert sequential(at, size).tolist() == [False, False, True, True, True, False, False]
    assert sequential(at[:1], size[:1]).tolist() == [False]


BY_HAND: dict[str, Any] = {
    "volumes": [Volume(0, "v", 16 * MIB)],
    "clock": "exact",
    "op": [Op.WRITE, Op.READ, Op.WRITE, Op.FLUSH, Op.WRITE, Op.MARK],
    "offset": [0, 0, 4096, 0, 8 * MIB, 0],
    "length": [4096, 512, 8192, 0, 4096, 0],
}


@pytest.mark.parametrize("begin", [0, 7 * 10**9, 10**18])
def test_figures_of_a_trace_by_hand(begin: int) -> None:
    """Whenever it begins."""
    seconds = np.array([0, 1, 2, 3, 4, 5])
    trace = Trace.from_columns(**BY_HAND, time_ns=begin + seconds * 10**9 - (seconds == 5))
    found = compare(trace, trace)
    assert not found.filter(pl.col("difference") != 0).height
    figures = dict(found.select("metric", "original").iter_rows())
    assert figures["requests"] == 5
    assert figures["duration_s"] == 5
    assert figures["write_share"] == 0.75
    assert figures["writes_per_flush"] == 3
    assert (figures["read_bytes"], figures["write_bytes"]) == (512, 16384)
    assert figures["small_write_share"] == pytest.approx(2 / 3)
    assert figures["sequential_writes"] == pytest.approx(1 / 3)
    assert figures["unique_bytes"] == 16384
    assert (figures["rewrite_ratio"], figures["extents"]) == (1, 2)
    assert figures["amplification_64k"] == 32 / 4
    assert figures["amplification_2m"] == 2 * 512 / 4
    assert figures["interval_cost"] == 1
    assert figures["top_1"] == pytest.approx(1 / 3)
    assert figures["distance_p50"] is None  # nothing is written twice
    assert figures["run_length_distance"] == 0


def test_the_report_has_the_public_metrics() -> None:
    """What has a name of a public metric is that metric, of both traces."""
    one, two = (synthesise(replace(Spec.load("database"), seed=s).with_requests(4000))
                for s in (1, 2))  # fmt: skip
    frame = compare(one, two)
    assert frame["metric"].is_unique().all()
    together = pl.col("volume").is_null()
    for trace, column in ((one, "original"), (two, "synthetic")):
        found = dict(frame.select("metric", column).iter_rows())
        # Windows begin with the first request, which is not at 0.
        r = trace.requests
        trace = Trace.from_columns(
            volumes=trace.volumes, clock="exact", time_ns=r.time_ns - r.time_ns[0], op=r.op,
            volume=r.volume, offset=r.offset, length=r.length, flags=r.flags,
        )  # fmt: skip
        whole = vmbk.measure(trace, "whole")
        amplification = dict(
            whole.granularity.filter(together).select("block_size", "amplification").iter_rows()
        )
        costs = vmbk.interval_cost(trace).filter(together)
        shorter = [name for name in INTERVALS if parse_duration(name) < 8 * 3600 * 10**9]
        expected = {
            **dict(zip((f"interval_cost_{name}" for name in shorter), costs["cost"], strict=False)),
            "amplification_64k": amplification[1 << 16],
            "amplification_2m": amplification[1 << 21],
            "interval_cost": vmbk.interval_cost(trace, [-(-found["duration_s"] // 10)])["cost"][-1],
        }
        for table in (
            vmbk.profile(trace), whole.churn, whole.dispersion, vmbk.updates(trace).coverage
        ):  # fmt: skip
            (row,) = table.filter(together).to_dicts()
            expected |= {name: row[name] for name in found if name in row}
        assert len(expected) >= 30
        assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-3)
    left = {"requests", "duration_s", "writes_per_flush", "sequential_writes", "top_1", "top_10"}
    distances = {"read_size_distance", "write_size_distance", "run_length_distance"}
    assert set(frame["metric"]) == set(expected) | left | distances


def test_distances_of_sizes_and_runs() -> None:
    """A quarter of the writes, and half of the bytes changed, are in another power of two."""

    def trace(offset: list[int], length: list[int]) -> Trace:
        return Trace.from_columns(volumes=[Volume(0, "v", 16 * MIB)], op=[Op.WRITE] * len(offset),
                                  offset=offset, length=length)  # fmt: skip

    one = trace([0, 8 * KIB, 64 * KIB, 128 * KIB], [4 * KIB] * 4)
    two = trace([0, 8 * KIB, 64 * KIB, 64 * KIB], [4 * KIB, 4 * KIB, 4 * KIB, 8 * KIB])
    found = dict(compare(one, two).select("metric", "synthetic").iter_rows())
    assert found["write_size_distance"] == 0.25
    assert found["run_length_distance"] == 0.5
    assert found["read_size_distance"] == 0


def shifted(trace: Trace, by: int) -> Trace:
    r = trace.requests
    return Trace.from_columns(volumes=trace.volumes, clock="exact", time_ns=r.time_ns + by, op=r.op,
                              volume=r.volume, offset=r.offset, length=r.length,
                              flags=r.flags)  # fmt: skip


def test_a_trace_that_does_not_begin_at_0() -> None:
    """The time before the first request is no part of it, on several volumes too."""
    trace = synthesise(Spec.load("database").with_requests(3000))
    trace = shifted(trace, -int(trace.requests.time_ns[0]))
    one, two = fit(trace), fit(shifted(trace, 40 * 366 * DAY))
    assert one.spec == two.spec
    assert one.frame.equals(two.frame)
    assert two.spec.duration == int(trace.requests.time_ns[-1]) + 1


def test_a_volume_that_is_used_late_has_its_time() -> None:
    volumes = [Volume(0, "a", MIB), Volume(1, "b", MIB)]
    rows = np.arange(2000)
    trace = Trace.from_columns(
        volumes=volumes, clock="exact", op=np.full(2000, Op.WRITE), volume=(rows >= 1000) * 1,
        offset=rows % 200 * 4096, length=np.full(2000, 4096), time_ns=10**15 + rows * 10**9,
    )  # fmt: skip
    early, late = (volume.workload.profile for volume in fit(trace).spec.volumes)
    half = len(early) // 2
    assert sum(late[: half - 1]) == sum(early[half + 1 :]) == 0
    assert sum(late) == sum(early) == 1000


def test_longer_than_a_year_is_refused_in_days() -> None:
    times = np.array([0, 399 * DAY, 400 * DAY])
    trace = Trace.from_columns(volumes=[Volume(0, "v", MIB)], op=[Op.WRITE] * 3, offset=[0] * 3,
                               length=[512] * 3, time_ns=times, clock="exact")  # fmt: skip
    with pytest.raises(InputError, match=r"400\.0 days is longer than can be fitted, 366 days"):
        fit(trace)
    assert fit(trace[1:]).spec.requests == 2


@pytest.mark.parametrize("power", [47, 49, 50])
@pytest.mark.parametrize("grain", [4 * KIB, 64 * KIB])
def test_memory_follows_what_is_written_not_the_volume(power: int, grain: int) -> None:
    """Also where a coarse grid begins off 0, on which a volume has a great many units."""
    rng = np.random.default_rng(1)
    offset = rng.integers(0, (1 << power) // grain, 60) * grain + 512 * (grain > 4 * KIB)
    offset = np.append(np.minimum(offset, (1 << power) - 2 * grain), 512)
    trace = Trace.from_columns(
        volumes=[Volume(0, "v", 1 << power)], op=np.full(61, Op.WRITE), offset=offset,
        length=np.full(61, grain), time_ns=np.arange(61) * 10**9, clock="exact",
    )  # fmt: skip
    tracemalloc.start()
    fitted = fit(trace)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * MIB
    assert fitted.spec.volumes[0].size == 1 << power
    assert abs(differences(fitted)["unique_bytes"]) < 0.1


def test_volumes_that_no_spec_has_are_refused_at_once() -> None:
    for size in ((1 << 50) + 512, 1 << 55, 1 << 62):
        trace = Trace.from_columns(volumes=[Volume(0, "v", size)], op=[Op.WRITE], offset=[0],
                                   length=[512])  # fmt: skip
        with pytest.raises(InputError, match=r"'v' of .* is larger than can be fitted, 1 PiB"):
            fit(trace)


writes = st.lists(st.tuples(st.integers(0, 300), st.integers(1, 40)), min_size=1, max_size=20)


@given(writes, st.sampled_from([1, 2, 8]), st.data())
def test_extents_and_gaps(rows: list[tuple[int, int]], units: int, data: st.DataObject) -> None:
    """Of a grid that begins at a shift; one more unit holds what lies before it."""
    shift = data.draw(st.integers(0, units - 1))
    offset, length = (512 * np.array(column) for column in zip(*rows, strict=True))
    trace = Trace.from_columns(volumes=[Volume(0, "v", MIB)], op=np.full(len(rows), Op.WRITE),
                               offset=offset, length=length)  # fmt: skip
    touched = {(sector - shift) // units for a, n in rows for sector in range(a, a + n)}
    marks = "".join("x" if unit in touched else "." for unit in range(-1, 400))
    extents, gaps = _extents(trace, Op.WRITE, 512 * units, 512 * shift)
    assert (extents // 512 // units).tolist() == sorted(map(len, re.findall("x+", marks)))
    found = [len(run) for run in re.findall(r"(\.*)x+", marks)]
    assert (gaps // 512 // units).tolist() == sorted(found)


# --- Commands ------------------------------------------------------------------------------------


def run(*words: object) -> dict[str, Any]:
    said = answer([*map(str, words), "--json"])
    assert said.code == 0, said
    return json.loads(said.out)


def test_synth_and_fit_as_commands(tmp_path: Path) -> None:
    made, spec = tmp_path / "made.arrow", tmp_path / "fitted.toml"
    reply = run("trace", "synth", "fileserver", "-o", made, "--requests", 2000, "--seed", 9)
    assert (reply["requests"], reply["skipped"], reply["format"]) == (2000, 0, "synthetic")
    assert [v["name"] for v in reply["volumes"]] == ["share"]
    assert open_trace(str(made)).provenance["seed"] == 9
    reply = run("trace", "fit", made, "-o", spec)
    names = {row["metric"] for row in reply["metrics"]}
    assert names >= {"rewrite_ratio", "extents", "random_write_share", "distance_p50",
                     "updated_share", "dispersion_index", "interval_cost_1h",
                     "write_size_distance"}  # fmt: skip
    shown = answer(["trace", "fit", str(made), "-o", str(tmp_path / "again.toml")])
    assert shown.code == 0
    assert all(f"{name} " in shown.out for name in names)
    assert Spec.load(spec).digest == reply["spec"]
    assert run("trace", "synth", spec, "-o", tmp_path / "again.arrow")["requests"] == 2000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["synth", "nosuch", "-o", "x.arrow"], "shipped are benchmark"),
        (["synth", "database", "-o", "x.csv"], "names no trace format"),
        (["synth", "database", "-o", "no/such/folder/x.arrow"], "no folder"),
        (["synth", "database", "-o", "x.arrow", "--requests", "9999999999"], "9999999999"),
        (["fit", "ext4-sqlite", "-o", "x.json"], "names no spec"),
        (["fit", "ext4-sqlite", "-o", "no/such/folder/x.toml"], "no folder"),
    ],
)
def test_bad_usage(words: list[str], message: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    said = answer(["trace", *words])
    assert said.code == 2
    assert message in said.err
    assert not list(tmp_path.iterdir())
