"""``vmbk trace churn``, ``fragmentation`` and ``explain`` as a person and as a script meet them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tests.test_cli import fails, ok, vmbk
from vmbk import churn, explain, fragmentation
from vmbk.cli import metrics
from vmbk.cli.program import run
from vmbk.trace import Trace, Volume, open_trace, write_trace

MIB = 1 << 20
NAMES = ("data", "log\n\x1b[31m" + "x" * 100)


@pytest.fixture(scope="module")
def two_volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 windows of a second, each of which rewrites a block and adds one to the second volume."""
    rows = [row for s in range(120)
            for row in ((s, 0, 0), (s, 0, 0), (s, 9, s * MIB))]  # fmt: skip
    times, volumes, offsets = zip(*rows, strict=True)
    trace = Trace.from_columns(
        volumes=[Volume(0, NAMES[0], 1 << 30), Volume(9, NAMES[1], 1 << 30)],
        time_ns=np.array(times, np.int64) * 10**9,
        op=np.ones(len(rows), np.int8),
        volume=np.array(volumes, np.uint32),
        offset=np.array(offsets, np.int64),
        length=np.full(len(rows), 4096, np.int64),
        clock="exact",
    )
    path = tmp_path_factory.mktemp("metrics") / "two.arrow"
    write_trace(trace, path)
    return path


def answer(*words: object) -> dict[str, Any]:
    """A command's JSON, without the cost of a process."""
    done = run([*map(str, words), "--json"])
    assert done.code == 0, done.err
    found = json.loads(done.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert isinstance(found, dict)
    return found


def text(*words: object) -> str:
    done = run([*map(str, words)])
    assert done.code == 0, done.err
    return done.out


def test_churn_has_the_windows_of_the_metric() -> None:
    found = ok("trace", "churn", "ext4-sqlite", "--window", "1s")
    frame = churn(open_trace("ext4-sqlite"), "1s").filter(pl.col("volume").is_null())
    assert found["windows"] == frame.select(metrics._WINDOW_KEYS).to_dicts()
    assert found["window_s"] == 1
    assert found["block_size"] == 4096
    total = found["total"]
    summary = open_trace("ext4-sqlite").summary()
    assert (total["writes"], total["write_bytes"]) == (summary.writes, summary.write_bytes)
    assert total["unique_bytes"] == summary.unique_write_blocks * 4096
    assert total["windows_bytes"] == frame["unique_bytes"].sum()
    assert total["cost"] == total["windows_bytes"] / total["unique_bytes"]
    assert "volumes" not in found


def test_churn_by_default_is_hourly_and_follows_discards() -> None:
    found = answer("trace", "churn", "ext4-trim")
    assert found["window_s"] == 3600
    assert [w["start_s"] for w in found["windows"]] == [0]
    whole = answer("trace", "churn", "ext4-trim", "--window", "whole", "--discards")
    assert whole["window_s"] is None
    assert whole["total"]["unique_bytes"] > found["total"]["unique_bytes"]
    assert whole["total"]["writes"] >= found["total"]["writes"]


def test_churn_of_several_volumes(two_volumes: Path) -> None:
    found = answer("trace", "churn", two_volumes, "--window", "1s")
    assert len(found["windows"]) == 120
    assert all(w["unique_bytes"] == 8192 and w["rewrite_ratio"] == 1.5 for w in found["windows"])
    assert [v["volume"] for v in found["volume_windows"]] == [0] * 120 + [9] * 120
    assert {(v["volume"], v["name"], v["unique_bytes"], v["rewrite_ratio"], v["cost"])
            for v in found["volumes"]} == {
        (0, NAMES[0], 4096, 240, 120), (9, NAMES[1], 480 << 10, 1, 1)}  # fmt: skip


def test_many_windows_are_cut_short_for_people(two_volumes: Path) -> None:
    shown = text("trace", "churn", two_volumes, "--window", "1s")
    assert "… and 72 windows more: --json prints all" in shown
    assert len(shown.splitlines()) < 65
    assert "\x1b" not in shown
    assert "'log\\n\\x1b" in shown
    assert max(map(len, shown.splitlines())) < 120
    few = text("trace", "churn", two_volumes, "--window", "30s")
    assert "more" not in few
    assert "4 windows with writes, 30 s each; together 496 KiB" in few


def test_fragmentation_has_the_figures_of_the_metric(two_volumes: Path) -> None:
    for name, options in (
        ("ext4-fragmented", []),
        (two_volumes, ["--window", "10s", "--block-size", "1MiB"]),
        (two_volumes, ["--gap", "1MiB", "--discards"]),
    ):
        found = answer("trace", "fragmentation", name, *options)
        wanted = fragmentation(
            open_trace(str(name)),
            "1MiB" if "1MiB" in options and "--gap" not in options else "64KiB",
            "10s" if "10s" in options else "whole",
            gap="1MiB" if "--gap" in options else 0,
        ).to_dict()
        for volume in found.get("volumes", []):
            assert volume.pop("name") in NAMES
        assert found == wanted
        assert {"extents", "mean_extent_bytes", "amplification", "dispersion"} <= set(found)
    shown = text("trace", "fragmentation", two_volumes)
    assert "granularity  amplification" in shown
    assert "\x1b" not in shown
    assert "2 MiB" in shown


def test_explain_has_the_findings() -> None:
    wanted = explain(open_trace("ext4-fragmented"), "2s", "128KiB")
    options = ("trace", "explain", "ext4-fragmented", "--interval", "2s", "--block-size", "128KiB")
    assert answer(*options) == json.loads(json.dumps(wanted.to_dict()))
    assert text(*options) == str(wanted)


def test_traces_without_writes_or_clock(tmp_path: Path) -> None:
    empty = tmp_path / "empty.arrow"
    write_trace(open_trace("ext4-sqlite")[:0], empty)
    found = answer("trace", "churn", empty)
    assert found["windows"] == []
    assert found["total"]["rewrite_ratio"] is None
    assert text("trace", "churn", empty).startswith("written")
    assert answer("trace", "fragmentation", empty)["mean_extent_bytes"] is None
    assert "extents" in text("trace", "fragmentation", empty)
    assert "Nothing is written" in text("trace", "explain", empty)
    still = tmp_path / "still.arrow"
    write_trace(
        Trace.from_columns(
            volumes=[Volume(0, "disk", MIB)], op=np.ones(2, np.int8),
            offset=np.array([0, 0]), length=np.array([4096, 0]),
        ),
        still,
    )  # fmt: skip
    assert metrics.NO_CLOCK in text("trace", "churn", still)
    assert len(answer("trace", "churn", still)["windows"]) == 1
    numbered = tmp_path / "numbered.arrow"  # numbers where times would be are not times
    write_trace(
        Trace.from_columns(
            volumes=[Volume(0, "disk", MIB)], op=np.ones(9, np.int8), offset=np.zeros(9, np.int64),
            length=np.full(9, 4096), time_ns=np.arange(9) * 10**13,
        ),
        numbered,
    )  # fmt: skip
    found = answer("trace", "churn", numbered)
    assert (found["window_s"], len(found["windows"]), found["total"]["cost"]) == (None, 1, 1)
    spread = answer("trace", "fragmentation", numbered, "--window", "1h")
    assert (spread["window_s"], spread["changed_bytes"]) == (None, 65536)
    assert "whole trace" in text("trace", "fragmentation", numbered, "--window", "1h")
    gaps = answer("trace", "fragmentation", numbered, "--block-size", "4MiB")
    assert gaps["amplification"]["4096"] == 1


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["churn", "ext4-sqlite", "--window", "soon"], "'soon' is not a duration"),
        (["churn", "ext4-sqlite", "--window", "0"], "'0' has no length"),
        (["churn", "ext4-sqlite", "--window", "0.1ns"], "'0.1ns' has no length"),
        (["churn", "ext4-sqlite", "--block-size", "3KiB"], "not a power of two"),
        (["churn", "no-such-trace"], "there is no file and no shipped data set"),
        (["fragmentation", "ext4-sqlite", "--block-size", "8MiB"], "not a power of two"),
        (["fragmentation", "ext4-sqlite", "--gap", "-1"], "argument --gap"),
        (["explain", "ext4-sqlite", "--interval", "-5s"], "argument --interval"),
        (["explain", "ext4-sqlite", "--block-size", "1"], "not a power of two"),
        (["explain"], "required: TRACE"),
    ],
)
def test_odd_arguments_are_explained(words: list[str], complaint: str) -> None:
    done = run(["trace", *words])
    assert done.code == 2
    assert complaint in done.err
    assert done.out == ""


def test_the_program_itself() -> None:
    fails(2, "trace", "explain", "no-such-trace", words="no-such-trace")
    done = vmbk("trace", "explain", "ext4-sqlite", "--interval", "2s")
    assert done.returncode == 0
    assert done.stdout.startswith("Incrementals every 2 s would be")
    for verb in ("churn", "fragmentation", "explain"):
        assert "--block-size" in vmbk("trace", verb, "--help").stdout
