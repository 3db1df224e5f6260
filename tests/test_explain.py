"""Explain: sentences whose figures are those of the metrics, verdicts that follow the limits."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings

from tests.test_metrics_spread import IDS, Row, rows, trace_of
from vmbk import churn, explain, fragmentation, interval_cost
from vmbk.errors import InputError
from vmbk.trace import Op, Trace, Volume, open_trace
from vmbk.trace.explain import Explanation
from vmbk.trace.metrics.requests import profile, request_sizes
from vmbk.trace.metrics.windows import granularity
from vmbk.trace.wording import share, times

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
HOUR = 3600 * 10**9
TOPICS = ["change", "hours", "regions", "rewrites", "small writes", "granularity", "dispersion",
          "discards", "frequency"]  # fmt: skip


def one_volume(requests: list[tuple[int, int, int, int]], **more: Any) -> Trace:
    """A trace of (time in ns, op, offset, length)."""
    times, ops, offsets, lengths = zip(*sorted(requests), strict=True)
    return Trace.from_columns(
        volumes=[Volume(0, "disk", 1 << 40)],
        time_ns=np.array(times, np.int64), op=np.array(ops, np.int8),
        offset=np.array(offsets, np.int64), length=np.array(lengths, np.int64),
        clock=more.get("clock", "exact"),
    )  # fmt: skip


def together(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.filter(pl.col("volume").is_null())


@pytest.mark.parametrize("name", ["ext4-sqlite", "ext4-fragmented", "ext4-trim"])
@pytest.mark.parametrize("block", ["4KiB", "64KiB", "512"])
def test_the_figures_are_those_of_the_metrics(name: str, block: str) -> None:
    trace = open_trace(name)
    found = explain(trace, "1s", block)
    assert [f.topic for f in found.findings] == TOPICS
    windows = together(churn(trace, "1s"))
    sent = int(windows["unique_bytes"].sum())
    change = found["change"].figures
    assert change["changed_bytes"] == sent
    assert change["largest_bytes"] == windows["unique_bytes"].max()
    assert change["mean_bytes"] * change["windows"] == pytest.approx(sent)
    assert change["write_bytes"] == trace.summary().write_bytes
    hours = found["hours"].figures
    best = windows.sort("unique_bytes", "start_s", descending=[True, False])
    assert [w["start_s"] for w in hours["fullest"]] == best["start_s"][:3].to_list()
    half = hours["half_in"]
    assert best["unique_bytes"][:half].sum() * 2 >= sent
    assert best["unique_bytes"][: half - 1].sum() * 2 < sent
    assert hours["peak_to_mean"] == pytest.approx(change["largest_bytes"] / change["mean_bytes"])
    rewrites = found["rewrites"].figures
    assert rewrites["touched_bytes"] == windows["block_writes"].sum() * 4096
    assert rewrites["rewritten_share"] == pytest.approx(1 - sent / rewrites["touched_bytes"])
    assert rewrites["ever_changed_bytes"] == trace.summary().unique_write_blocks * 4096
    small = found["small writes"].figures
    row = together(profile(trace)).row(0, named=True)
    assert small == {key: row[key] for key in small}
    factors = together(granularity(trace, "1s"))
    by_size = dict(factors.select("block_size", "amplification").iter_rows())
    figures = found["granularity"].figures
    assert figures["amplification"] == by_size[figures["block_size"]]
    assert figures["amplification_2097152"] == by_size[2 << 20]
    spread = fragmentation(trace, block, "1s").indices()
    figures = found["dispersion"].figures
    assert figures["extents"] == spread["extents"]
    for key in ("mean_extent_bytes", "extents_per_gib", "region_fill"):
        assert figures[key] == pytest.approx(spread[key])
    discards = found["discards"].figures
    ops = together(request_sizes(trace)).filter(pl.col("op") == "discard")
    assert (discards["requests"], discards["bytes"]) == (ops["requests"].sum(), ops["bytes"].sum())
    wider = together(churn(trace, "1s", discards=True))["unique_bytes"].sum()
    assert discards["changed_bytes_with_discards"] == wider
    for cost in found["frequency"].figures["cost"]:
        one = together(interval_cost(trace, [cost["interval_s"]]))
        assert cost["cost"] == one["cost"][0]
    regions = found["regions"].figures
    assert regions["region_bytes"] == 4 * MIB
    assert sum(r["share"] for r in regions["fullest"]) <= 1
    assert found["regions"].figures["half_in"] <= regions["regions"]


def test_sentences_and_forms() -> None:
    found = explain(open_trace("ext4-fragmented"), "1s")
    text = str(found)
    assert text.startswith("Incrementals every 1 s would be large because of ")
    assert all(len(line) <= 100 for line in text.splitlines())
    flat = re.sub(r"\s+", " ", text)
    for finding in found.findings:
        assert finding.sentence in flat
        assert finding.sentence.endswith(".")
        assert "nan" not in finding.sentence
        assert "None" not in finding.sentence
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert [f["topic"] for f in plain["findings"]] == TOPICS
    assert set(plain["findings"][0]) == {"topic", "verdict", "sentence", "figures"}
    assert found.frame()["sentence"].to_list() == [f.sentence for f in found.findings]
    page = found._repr_html_()
    assert "changes that lie apart" in page
    assert page.count("<tr>") == len(TOPICS) + 1
    assert str(explain(open_trace("ext4-fragmented"), "1s")) == text
    with pytest.raises(KeyError):
        found["weather"]


def verdicts(found: Explanation) -> dict[str, str]:
    return {f.topic: f.verdict for f in found.findings}


def test_a_long_sequential_log_is_neither_large_nor_slow() -> None:
    trace = one_volume([(h * HOUR + 1, 1, h * 64 * MIB, 64 * MIB) for h in range(30)])
    found = explain(trace)
    assert set(verdicts(found).values()) == {"fine", "note"}
    assert found.summary == "Nothing here makes incrementals every 1 h large or slow."
    assert found["frequency"].figures["cost"][2] == {"interval_s": 3600.0, "cost": 1.0}


def test_small_scattered_rewrites_are_everything() -> None:
    # Every hour the same 300 pieces of 512 bytes, far apart; a peak in the fifth hour.
    requests = [(h * HOUR + i, 1, i * 3 * MIB + 512, 512) for h in range(10) for i in range(300)]
    requests += [(4 * HOUR + i, 1, (1 << 39) + i * 3 * MIB, 512) for i in range(9000)]
    found = explain(one_volume(requests))
    assert verdicts(found) == {
        "change": "fine", "hours": "large", "regions": "note", "rewrites": "note",
        "small writes": "slow", "granularity": "large", "dispersion": "slow", "discards": "fine",
        "frequency": "fine",
    }  # fmt: skip
    assert found["small writes"].figures["small_write_share"] == 1
    assert found["granularity"].figures["amplification"] == 16
    assert found["dispersion"].figures["mean_extent_bytes"] == 65536
    assert "at 4 h" in found["hours"].sentence or "at 240 min" in found["hours"].sentence


def test_blocks_that_every_backup_sends_again() -> None:
    trace = one_volume([(h * HOUR, 1, 0, 8 * MIB) for h in range(48)])
    found = explain(trace)
    assert found["frequency"].verdict == "large"
    costs = {c["interval_s"]: c["cost"] for c in found["frequency"].figures["cost"]}
    assert costs == {900.0: 48, 1800.0: 48, 3600.0: 48, 7200.0: 24, 14400.0: 12, 86400.0: 2}
    assert found["rewrites"].figures["sent_before_share"] == pytest.approx(47 / 48)
    assert "98% of what incrementals send had been sent" in found["rewrites"].sentence


def test_more_than_200_gb_a_day_is_large() -> None:
    hourly = 9 * GIB
    few = [(h * HOUR, 1, h * hourly, hourly) for h in range(25)]
    found = explain(one_volume(few), block_size="4MiB")["change"]
    assert found.verdict == "large"
    assert found.figures["daily_bytes"] == pytest.approx(25 * hourly)
    assert "above the 186.3 GiB" in found.sentence
    less = [(t, op, at, length // 2) for t, op, at, length in few]
    assert explain(one_volume(less), block_size="4MiB")["change"].verdict == "fine"


def test_discards_may_dwarf_the_writes() -> None:
    trace = one_volume([(0, 1, 0, MIB), (2 * HOUR, int(Op.DISCARD), 0, 64 * MIB)])
    found = explain(trace)["discards"]
    assert found.verdict == "large"
    assert found.figures == {
        "requests": 1, "bytes": 64 * MIB, "changed_bytes": MIB,
        "changed_bytes_with_discards": 65 * MIB,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("clock", "interval", "verdict", "why"),
    [
        ("none", "1h", "unknown", "the trace has no clock"),
        ("exact", "whole", "note", "All of the trace is one interval, which has no "),
        ("exact", "1d", "unknown", "the trace covers 2 h 0 min, less than one interval of 1 d;"),
    ],
)
def test_without_a_course_of_time_nothing_is_said_about_it(
    clock: str, interval: str, verdict: str, why: str
) -> None:
    times = [0, 0, 0] if clock == "none" else [0, HOUR, 2 * HOUR - 1]
    trace = one_volume([(t, 1, i * MIB, MIB) for i, t in enumerate(times)], clock=clock)
    found = explain(trace, interval)
    assert found["hours"].verdict == found["frequency"].verdict == verdict
    assert ("shorter" in str(found)) == (interval == "1d")
    assert found["hours"].figures == found["frequency"].figures == {}
    assert why in found["hours"].sentence
    assert why in found["frequency"].sentence
    if clock == "none":
        assert found.interval_s is None
        assert "has no clock" in found["change"].sentence
    assert found["change"].figures["changed_bytes"] == 3 * MIB


def test_a_trace_without_writes() -> None:
    for trace in (open_trace("ext4-sqlite")[:0], one_volume([(0, 0, 0, 4096)])):
        found = explain(trace)
        assert str(found).endswith("Nothing is written: incrementals are empty.")
        assert verdicts(found) == {"change": "fine"}


def test_discards_without_writes_are_told() -> None:
    for op in (Op.DISCARD, Op.WRITE_ZEROES):
        trace = one_volume([(0, 0, 0, MIB), (HOUR, int(op), 0, 8 * MIB), (HOUR, int(op), 0, MIB)])
        found = explain(trace)
        assert verdicts(found) == {"change": "fine", "discards": "large"}
        assert found["change"].sentence == (
            "Nothing is written: incrementals are empty where a backup does not take discards and "
            "write_zeroes for changes."
        )
        assert found["discards"].figures == {
            "requests": 2, "bytes": 9 * MIB, "changed_bytes": 0,
            "changed_bytes_with_discards": 8 * MIB,
        }  # fmt: skip
        assert found.summary == "Incrementals every 1 h would be large because of discards."


@pytest.mark.parametrize("late", [12 * HOUR, 30000 * HOUR])
def test_a_part_of_a_trace_is_what_it_would_be_alone(late: int) -> None:
    """A part keeps its times; what comes before its first request is no part of it."""
    rng = np.random.default_rng(3)
    times = np.sort(rng.integers(late, late + HOUR, 500)).tolist()
    times[0], times[-1] = late, late + HOUR - 1
    requests = [(t, 1, int(rng.integers(1 << 15)) * 4096, 8192) for t in times]
    before = [(late - HOUR, 1, 0, 4096)]
    part = one_volume([*before, *requests])[1:]
    assert part.requests.time_ns[0] == late
    alone = one_volume([(t - late, *rest) for t, *rest in requests])
    for interval in ("10m", "1h", "whole"):
        found, wanted = explain(part, interval), explain(alone, interval)
        for one, other in zip(found.findings, wanted.findings, strict=True):
            assert one.verdict == other.verdict
            if one.topic != "hours":  # it names instants
                assert (one.sentence, one.figures) == (other.sentence, other.figures)
        if interval == "10m":
            assert found["change"].figures["windows"] == found["hours"].figures["windows"] == 6
            assert found["hours"].figures["peak_to_mean"] < 2
    assert "less than one interval" in explain(part, "2h")["hours"].sentence


def test_intervals_of_a_nanosecond() -> None:
    found = explain(one_volume([(t, 1, t % 3 * MIB, 4096) for t in range(9)]), "1ns")
    assert found.summary.startswith("Incrementals every 1 ns would be ")
    assert "Incrementals every 1 ns send" in found["frequency"].sentence
    assert "twice as often" not in found["frequency"].sentence
    assert "half as often" in found["frequency"].sentence


def test_several_volumes_are_told_apart() -> None:
    found = explain(trace_of([(0, 1, 0, 0, MIB), (5, 1, 1, 8 * MIB, 3 * MIB)]), 1e-9)
    assert found["volumes"].figures["volumes"] == [
        {"volume": IDS[1], "unique_bytes": 3 * MIB, "share": 0.75, "name": f"disk {IDS[1]}"},
        {"volume": IDS[0], "unique_bytes": MIB, "share": 0.25, "name": f"disk {IDS[0]}"},
    ]
    assert found["volumes"].sentence == (
        "Of what changes, volume disk 70 has 75% and volume disk 3 has 25%."
    )
    assert "75% from 8 MiB on of volume disk 70" in found["regions"].sentence


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (("data", "log"), ("volume data has", "volume log has")),
        (("x", "x"), ("volume x (id 0) has", "volume x (id 1) has")),
        (("a\x1b[31m", ""), (r"volume 'a\x1b[31m' has", "volume '' has")),
        (("n" * 99, " "), (f"volume 'nnnnnnnnnnnnnnn…{'n' * 15}' has", "volume ' ' has")),
    ],
)
def test_volumes_are_named(names: tuple[str, str], shown: tuple[str, str]) -> None:
    volumes = [Volume(id, name, 1 << 30) for id, name in enumerate(names)]
    trace = Trace.from_columns(
        volumes=volumes, time_ns=np.arange(2), op=np.ones(2, np.int8),
        volume=np.arange(2, dtype=np.uint32), offset=np.zeros(2, np.int64),
        length=np.array([8192, 4096]), clock="exact",
    )  # fmt: skip
    found = explain(trace)
    for words in shown:
        assert words in found["volumes"].sentence
    assert str(found).replace("\n", "").isprintable()


def test_a_trace_shorter_than_an_interval_says_so_first() -> None:
    """Two discards of mkfs are no ground for what an hour would be like."""
    found = explain(open_trace("ext4-sqlite"), "1h")
    assert found.duration_s == found.to_dict()["duration_s"] == pytest.approx(15.1, abs=0.1)
    assert found.summary == (
        "The trace covers only 15.1 s of an interval of 1 h; going by that, incrementals would be "
        "large because of discards."
    )
    assert explain(open_trace("ext4-sqlite"), "15s").summary.startswith("Incrementals every 15 s ")
    quiet = explain(one_volume([(0, 0, 0, 4096), (HOUR // 2, 0, 0, 4096)]))
    assert quiet.summary == (
        "The trace covers only 30 min of an interval of 1 h; going by that, nothing here makes "
        "incrementals large or slow."
    )
    assert explain(one_volume([(0, 0, 0, 1)], clock="none")).duration_s is None


def test_almost_an_interval_is_not_one_that_looks_the_same() -> None:
    trace = one_volume([(0, 1, 0, MIB), (HOUR - HOUR // 36000, 1, 8 * MIB, MIB)])
    found = explain(trace)
    wanted = "the trace covers 100 ms less than one interval of 1 h; choose a shorter one"
    assert wanted in found["hours"].sentence
    assert wanted in found["frequency"].sentence
    assert found.summary.startswith(("Incrementals every 1 h", "Nothing here makes"))
    assert "at this pace 48 MiB a day" in found["change"].sentence  # an hour, less a breath
    short = explain(one_volume([(0, 1, 0, MIB), (HOUR * 59 // 60, 1, 8 * MIB, MIB)]))
    assert "the trace covers only 59 min" in short["change"].sentence


@pytest.mark.parametrize(
    ("small", "shown", "verdict"),
    [(497, "49.7%", "fine"), (500, "50%", "slow"), (503, "50.3%", "slow"), (300, "30%", "fine"),
     (1, "under 1%", "fine"), (999, "over 99%", "slow")],
)  # fmt: skip
def test_other_verdicts_have_other_figures(small: int, shown: str, verdict: str) -> None:
    """What rounds to the limit and is not it has a digit more."""
    requests = [(i, 1, i * MIB, 4096 if i < small else 8192) for i in range(1000)]
    finding = explain(one_volume(requests), "1us")["small writes"]
    assert finding.verdict == verdict
    assert finding.sentence.startswith(f"{shown} of the writes are below 8 KiB, ")
    assert finding.sentence.endswith("From 50% of small ones on, this is slow.")


def test_factors_near_their_limit_have_more_digits() -> None:
    assert [times(value, 2) for value in (2.0, 1.9999, 2.004, 2.01, 1.5, 2345.678)] == [
        "2.00", "1.9999", "2.004", "2.01", "1.50", "2,345.68"
    ]  # fmt: skip
    assert [share(value, 0.5) for value in (0.5, 0.4999, 0.0, 1.0)] == [
        "50%", "49.99%", "0%", "100%"
    ]  # fmt: skip


def test_what_all_intervals_find_together_can_be_read() -> None:
    found = explain(one_volume([(h * HOUR, 1, h * MIB, MIB) for h in range(3)]))
    assert found["change"].sentence.startswith(
        "An incremental finds 1 MiB changed on average and 1 MiB at most, all 3 of them together "
        "3 MiB; at this pace "
    )


@settings(max_examples=25)
@given(rows(25))
def test_whatever_the_trace_the_answer_is_plain_data(found: list[Row]) -> None:
    for clock in ("exact", "none"):
        timed = found if clock == "exact" else [(0, *row[1:]) for row in found]
        for interval in ("3ns", "1h"):
            answer = explain(trace_of(timed, clock=clock), interval)
            json.dumps(answer.to_dict(), allow_nan=False)
            for finding in answer.findings:
                for value in finding.figures.values():
                    assert not (isinstance(value, float) and not math.isfinite(value))


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"interval": "soon"}, "'soon' is not a duration"),
        ({"interval": 0}, "at least 1 ns"),
        ({"block_size": "3KiB"}, "not a power of two"),
        ({"block_size": "8MiB"}, "not a power of two"),
    ],
)
def test_odd_settings_are_refused(settings_: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        explain(open_trace("ext4-sqlite"), **settings_)
