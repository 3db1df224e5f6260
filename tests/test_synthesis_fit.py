"""Fit: parameters come back, nothing private comes out, and the commands."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmbk.cli.program import run as answer
from vmbk.errors import InputError
from vmbk.trace import open_trace
from vmbk.trace.schema import Op, Volume
from vmbk.trace.synthesis import Fit, Spec, fit, synthesise
from vmbk.trace.synthesis.measure import figures, sequential
from vmbk.trace.table import Trace

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


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


def test_figures_of_a_trace_by_hand() -> None:
    trace = Trace.from_columns(
        volumes=[Volume(0, "v", 16 * MIB)], clock="exact",
        op=[Op.WRITE, Op.READ, Op.WRITE, Op.FLUSH, Op.WRITE, Op.MARK],
        offset=[0, 0, 4096, 0, 8 * MIB, 0], length=[4096, 512, 8192, 0, 4096, 0],
        time_ns=[0, 10**9, 2 * 10**9, 3 * 10**9, 4 * 10**9, 5 * 10**9 - 1],
    )  # fmt: skip
    found = figures(trace)
    assert found["requests"] == 5
    assert found["duration_s"] == 5
    assert found["read_share"] == 0.25
    assert found["writes_per_flush"] == 3
    assert (found["read_bytes"], found["write_bytes"]) == (512, 16384)
    assert found["small_write_share"] == pytest.approx(2 / 3)
    assert found["sequential_writes"] == pytest.approx(1 / 3)
    assert found["unique_bytes"] == 16384
    assert (found["rewrite_ratio"], found["extents"]) == (1, 2)
    assert found["amplification_64k"] == 32 / 4
    assert found["amplification_2m"] == 2 * 512 / 4
    assert found["interval_cost"] == 1
    assert found["top_10"] == pytest.approx(1 / 3)


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
    assert {row["metric"] for row in reply["metrics"]} >= {"rewrite_ratio", "extents"}
    assert Spec.load(spec).digest == reply["spec"]
    assert run("trace", "synth", spec, "-o", made)["requests"] == 2000


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
