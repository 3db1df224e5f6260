"""Interval cost, updates, working sets and request figures against their definitions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from tests import naive
from tests.tools import real_trace
from vmbk.errors import InputError
from vmbk.kernels import leaves as leaf_kernels
from vmbk.kernels import updates as update_kernels
from vmbk.trace.datasets import datasets, open_trace
from vmbk.trace.formats import import_trace
from vmbk.trace.metrics import leaves as leaves_module
from vmbk.trace.metrics import updates as updates_module
from vmbk.trace.metrics.intervals import IntervalPass, interval_cost
from vmbk.trace.metrics.requests import (
    RequestPass,
    activity,
    profile,
    request_sizes,
)
from vmbk.trace.metrics.updates import UpdatePass, bin_edges, updates
from vmbk.trace.metrics.windows import WHOLE, churn
from vmbk.trace.metrics.working_set import BlockPass, spatial, working_set
from vmbk.trace.schema import OP_NAMES, Op, Volume
from vmbk.trace.table import Requests, Trace
from vmbk.units import GIB

SIZE = 48 << 20
IDS = (0, 3, 0xFFFF_FFFF)  # ids need not be dense
VOLUMES = [Volume(id, f"disk {id}", SIZE) for id in IDS]
LAST_NS = (1 << 63) - 1
Rows = list[naive.Write]


@st.composite
def requests(draw: st.DrawFn, most: int = 60) -> Rows:
    # Places that collide: rewritten whole and in part, on and off any grid, near and far.
    place = st.one_of(
        st.integers(0, SIZE - 1),
        st.integers(0, 40).map(lambda k: k * 4096 + (1 << 20) - 20 * 4096),
        st.integers(0, 12).map(lambda k: k * 65536),
        st.sampled_from([0, (64 << 10) - 1, 64 << 10, SIZE - 512, 128 << 10, (128 << 10) + 1]),
    )
    size = st.one_of(st.sampled_from([0, 1, 512, 4096, 8191, 8192, 65536]), st.integers(0, 3 << 20))
    row = st.tuples(
        st.integers(0, 40), st.sampled_from([0, 1, 1, 1, 2, 3, 4, 5]), st.sampled_from(IDS), place,
        size,
    )  # fmt: skip
    rows = sorted(draw(st.lists(row, max_size=most)), key=lambda row: row[0])
    return [(t, op, v, o, min(n, SIZE - o)) for t, op, v, o, n in rows]


def as_requests(rows: Sequence[naive.Write]) -> Requests:
    columns = list(zip(*rows, strict=True)) or [()] * 5
    dtypes = (np.int64, np.int8, np.uint32, np.int64, np.int64)
    arrays = [np.array(c, d) for c, d in zip(columns, dtypes, strict=True)]
    return Requests(*arrays, np.zeros(len(rows), np.uint8))


def as_trace(rows: Sequence[naive.Write], volumes: Sequence[Volume] = VOLUMES) -> Trace:
    r = as_requests(rows)
    return Trace.from_columns(
        volumes=volumes, time_ns=r.time_ns, op=r.op, volume=r.volume, offset=r.offset,
        length=r.length, clock="exact",
    )  # fmt: skip


def followed(work: Any, rows: Sequence[naive.Write], cuts: Sequence[int]) -> Any:
    """The pass after requests that came in batches cut anywhere."""
    edges = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    whole = as_requests(rows)
    for a, b in pairwise(edges):
        work.add(whole[a:b])
    return work


def by_volume(frame: pl.DataFrame, *keys: str) -> dict:
    names = ["volume", *keys]
    found = {tuple(row[n] for n in names): row for row in frame.to_dicts()}
    assert len(found) == len(frame)
    return {key[0] if len(key) == 1 else key: row for key, row in found.items()}


CUTS = st.lists(st.integers(0, 60), max_size=4)
BLOCKS = st.sampled_from([512, 4096, 65536, 4 << 20])
CHANGES = {int(op) for op in (Op.WRITE, Op.DISCARD, Op.WRITE_ZEROES)}


def changing(discards: bool) -> set[int]:
    return CHANGES if discards else {int(Op.WRITE)}


# --- Leaves --------------------------------------------------------------------------------------


@given(requests(30), BLOCKS, st.integers(0, 6), st.integers(1, 9))
def test_requests_are_cut_into_pieces_of_one_leaf(
    rows: Rows, block_size: int, leaf_bits: int, room: int
) -> None:
    rows = [(t, op, IDS.index(v), o, n % (40 * block_size)) for t, op, v, o, n in rows]
    r = as_requests(rows)
    bases = np.array([5, 1 << 30, 1 << 50])
    state = np.array([0, -1, 0])
    found = []
    while True:
        arrays = [np.zeros(room, np.int64) for _ in range(4)]
        n = leaf_kernels.cut_requests(
            r.op.view(np.uint8), r.volume, r.offset, r.length, 0b11010,
            block_size.bit_length() - 1, leaf_bits, bases, np.full(8, -1, np.int64), *arrays, state,
        )  # fmt: skip
        if n == 0:
            break
        for row, key, first, count in zip(*(a[:n].tolist() for a in arrays), strict=True):
            leaf = key - int(bases[rows[row][2]])
            found.append((row, rows[row][2], leaf, list(range(first, first + count))))
    assert state.tolist() == [len(rows), -1, 0]
    assert found == naive.cut_requests(rows, {1, 3, 4}, block_size, 1 << leaf_bits)


@given(st.lists(st.one_of(st.integers(0, 1 << 62), st.integers(0, 9).map(lambda k: k << 40))))
def test_leaves_are_found_where_they_were_made(keys: list[int]) -> None:
    table = np.full(2 << max(2 * len(keys), 1).bit_length(), -1, np.int64)
    made = np.zeros(max(len(keys), 1), np.int64)
    slots, half = np.zeros(len(keys), np.int64), len(keys) // 2
    wanted = np.array(keys, np.int64)
    used = leaf_kernels.find_leaves(wanted[:half], half, table, made, slots, 0)
    rest = len(keys) - half
    used = leaf_kernels.find_leaves(wanted[half:], rest, table, made, slots[half:], used)
    assert slots.tolist() == naive.find_leaves(keys)
    assert made[:used].tolist() == list(dict.fromkeys(keys))


def test_more_blocks_than_allowed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    vast = [Volume(0, "vast", 1 << 62)]
    everything = Trace.from_columns(volumes=vast, op=[1], offset=[0], length=[1 << 62])
    reads = Trace.from_columns(volumes=vast, op=[0], offset=[0], length=[1 << 62])
    for metric in (interval_cost, updates, working_set, spatial):
        with pytest.raises(InputError, match="a request covers 4096 PiB"):
            metric(everything)
    for metric in (interval_cost, updates):
        metric(reads)  # it does not follow reads
    with pytest.raises(InputError, match="4096 PiB"):
        working_set(reads)
    monkeypatch.setattr(updates_module, "_MOST_BLOCKS", 1 << 15)
    strewn = [(0, 1, 0, k << 20, 4096) for k in range(3000)]
    with pytest.raises(InputError, match=r"more and more blocks.*no more than 128 MiB"):
        updates(as_trace(strewn, vast))


def test_no_memory_is_an_error_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = as_trace([(0, 1, 0, k << 16, 1) for k in range(600)])
    monkeypatch.setattr(leaves_module, "_FIRST_LEAVES", 1)

    def scarce(count: int, dtype: object) -> np.ndarray:
        raise MemoryError

    for metric, work in ((updates, UpdatePass(VOLUMES)), (working_set, BlockPass(VOLUMES))):
        metric(trace)
        with monkeypatch.context() as patch:
            patch.setattr(np, "zeros", scarce)
            with pytest.raises(InputError, match="there is no memory"):
                work.add(trace.requests)


def test_volumes_that_cannot_be_numbered_are_refused() -> None:
    with pytest.raises(InputError, match="at most 65536"):
        profile(Trace.from_columns(
            volumes=[Volume(k, "", 512) for k in range((1 << 16) + 1)], op=[], offset=[], length=[],
        ))  # fmt: skip
    vast = [Volume(k, "", 1 << 62) for k in range(1 << 14)]
    with pytest.raises(InputError, match="more than can be numbered"):
        interval_cost(Trace.from_columns(volumes=vast, op=[], offset=[], length=[]), "1h", 512)


# --- Interval cost -------------------------------------------------------------------------------


@given(
    requests(), BLOCKS, st.lists(st.integers(1, 50), min_size=1, max_size=6), st.booleans(), CUTS
)
def test_interval_cost_is_that_of_the_definition(
    rows: Rows, block_size: int, intervals: list[int], discards: bool, cuts: list[int]
) -> None:
    work = IntervalPass(VOLUMES, intervals_ns=intervals, block_size=block_size, discards=discards)
    frame = followed(work, rows, cuts).finish()
    expected = naive.interval_blocks(rows, changing(discards), intervals, block_size)
    assert len(frame) == (len(IDS) + 1) * len(set(intervals))
    assert frame["interval_s"].to_list() == [k / 1e9 for k in sorted(set(intervals))] * (
        len(IDS) + 1
    )
    for (volume, _), row in by_volume(frame, "interval_s").items():
        interval = round(row["interval_s"] * 1e9)
        of = IDS if volume is None else [volume]
        changed = sum(expected.get((v, interval), 0) for v in of)
        unique = sum(expected.get((v, 0), 0) for v in of)
        assert row["changed_bytes"] == changed * block_size
        assert row["unique_bytes"] == unique * block_size
        assert row["cost"] == (changed / unique if unique else None)
        first, last = (rows[0][0], rows[-1][0]) if rows else (0, 0)
        assert row["windows"] == last // interval - first // interval + 1


@given(requests(), st.lists(st.integers(1, 50), min_size=1, max_size=4))
def test_interval_cost_is_the_sum_of_churn(rows: Rows, intervals: list[int]) -> None:
    trace = as_trace(rows)
    found = by_volume(interval_cost(trace, [k / 1e9 for k in intervals]), "interval_s")
    for interval in intervals:
        sums = churn(trace, interval / 1e9).group_by("volume").agg(pl.col("unique_bytes").sum())
        for volume, changed in sums.iter_rows():
            assert found[volume, interval / 1e9]["changed_bytes"] == changed


@pytest.mark.parametrize(
    ("intervals", "quoted"),
    [
        ([], "0 intervals"),
        (["0s"], "interval of 0 ns"),
        (["soon"], "soon"),
        (range(1, 99), "98"),
        (3600, "not 3600"),
        (None, "not None"),
        ([None], "None is not a duration"),
    ],
)
def test_bad_intervals_are_quoted(intervals: Any, quoted: str) -> None:
    with pytest.raises(InputError, match=quoted):
        interval_cost(as_trace([]), intervals)


# --- Updates -------------------------------------------------------------------------------------


def bin_of(value: int) -> int:
    """The bin by the definition: each octave from 16 on has 16 of equal width."""
    if value < 16:
        return value
    octave = value.bit_length() - 5
    return 16 * octave + (value >> octave)


@given(requests(), BLOCKS, st.booleans(), CUTS)
def test_updates_are_those_of_the_definition(
    rows: Rows, block_size: int, discards: bool, cuts: list[int]
) -> None:
    rows = [(t, op, v, o, min(n, 60 * block_size)) for t, op, v, o, n in rows]
    result = followed(
        UpdatePass(VOLUMES, block_size=block_size, discards=discards), rows, cuts
    ).finish()
    expected = naive.block_updates(rows, changing(discards), block_size)
    coverage = by_volume(result.coverage)
    for id, totals in zip(IDS, result.totals, strict=True):
        of = expected.get(id, {"writes": [], "distances": [], "intervals": []})
        times: dict[int, int] = {}
        for block, _ in of["writes"]:
            times[block] = times.get(block, 0) + 1
        for name, place in (("distances", 3), ("intervals", 3 + update_kernels.BINS)):
            histogram = np.bincount([bin_of(x) for x in of[name]], minlength=update_kernels.BINS)
            assert totals[place : place + update_kernels.BINS].tolist() == histogram.tolist()
        row, updated = coverage[id], sum(n > 1 for n in times.values())
        assert row["block_writes"] == len(of["writes"])
        assert row["updates"] == len(of["distances"]) == len(of["writes"]) - len(times)
        assert row["unique_bytes"] == len(times) * block_size
        assert row["updated_bytes"] == updated * block_size
        assert row["updated_share"] == (updated / len(times) if times else None)
        for percent in (10, 20, 40, 80):
            share = row[f"within_{percent}"]
            if not of["distances"]:
                assert share is None
                continue
            # Off by no more than a bin: the share at the limit's own bin's two ends.
            limit = len(times) * percent / 100
            low = sum(d <= limit * 15 / 16 - 1 for d in of["distances"]) / len(of["distances"])
            high = sum(d <= limit * 17 / 16 + 1 for d in of["distances"]) / len(of["distances"])
            assert low - 1e-9 <= share <= high + 1e-9
    every = pl.DataFrame(coverage[None])
    for name in ("block_writes", "updates", "unique_bytes", "updated_bytes"):
        assert every[name].item() == sum(coverage[id][name] for id in IDS)


@given(st.one_of(st.integers(0, 40), st.integers(0, LAST_NS)))
def test_values_lie_within_the_edges_of_their_bins(value: int) -> None:
    edges = bin_edges(update_kernels.BINS)
    assert len(edges) == update_kernels.BINS + 1
    low, high = int(edges[bin_of(value)]), int(edges[bin_of(value) + 1])
    assert low <= value < high
    assert high - low <= max(1, low / 16)


def test_updates_of_known_patterns() -> None:
    # 100 blocks over and over, every second: 99 others lie between two writes of one.
    loop = [(s * 10**9, 1, 0, 4096 * k, 4096) for s in range(11) for k in range(100)]
    row = by_volume(updates(as_trace(loop)).coverage)[0]
    assert (row["block_writes"], row["updates"], row["updated_share"]) == (1100, 1000, 1)
    assert (row["within_10"], row["within_80"]) == (0, 0)
    assert row["distance_p50"] == pytest.approx(99 * 4096, rel=1 / 16)
    assert row["interval_p50"] == pytest.approx(1, rel=1 / 16)
    # One block over and over, among 100 that are written once.
    hot = [(k, 1, 0, 4096 * k if k < 100 else 0, 4096) for k in range(300)]
    result = updates(as_trace(hot))
    row = by_volume(result.coverage)[0]
    assert (row["updates"], row["updated_bytes"]) == (200, 4096)
    assert row["within_10"] == 199 / 200
    first = result.distance.filter(pl.col("volume") == 0).row(0, named=True)
    assert first == {
        "volume": 0, "from_bytes": 0, "to_bytes": 4096.0, "updates": 199, "share": 199 / 200
    }  # fmt: skip
    assert result.interval["from_ns"].to_list()[:2] == [1, 100]


# --- Requests ------------------------------------------------------------------------------------


@given(requests(80), st.integers(1, 50), CUTS)
def test_request_figures_are_those_of_the_definition(
    rows: Rows, window: int, cuts: list[int]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vmbk.trace.metrics.requests._FIRST_ROWS", 1)
        result = followed(
            RequestPass(VOLUMES, window_ns=window, keep_windows=True), rows, cuts
        ).finish()
    expected = naive.profile_requests(rows, window)
    frame = by_volume(result.profile)
    windows = by_volume(result.activity, "window")
    assert len(frame) == len(IDS) + 1
    together: dict[int, int] = {}
    for id in IDS:
        row, of = frame[id], expected.get(id)
        if of is None:
            assert row["reads"] == row["writes"] == row["active_windows"] == 0
            assert row["burstiness"] is None
            continue
        total = of["reads"] + of["writes"]
        assert (row["reads"], row["writes"]) == (of["reads"], of["writes"])
        shares = {
            "write_share": of["writes"] / total,
            "random_share": of["random"] / total,
            "sequential_share": of["sequential"] / total,
        }
        if of["writes"]:
            shares |= {
                "small_write_share": of["small"] / of["writes"],
                "unaligned_share": of["unaligned"] / of["writes"],
                "random_write_share": of["random_writes"] / of["writes"],
            }
        assert {name: row[name] for name in shares} == shares
        peak = max(reads + writes for reads, writes, _, _ in of["windows"].values())
        span = max(of["windows"]) - min(of["windows"]) + 1
        assert row["active_windows"] == len(of["windows"])
        assert row["peak_per_s"] == pytest.approx(peak / (window / 1e9))
        assert row["burstiness"] == pytest.approx(peak / (total / span))
        for number, (reads, writes, read_bytes, write_bytes) in of["windows"].items():
            found = windows.pop((id, number))
            assert (found["reads"], found["writes"]) == (reads, writes)
            assert (found["read_bytes"], found["write_bytes"]) == (read_bytes, write_bytes)
            together[number] = together.get(number, 0) + reads + writes
    left = {number: row["reads"] + row["writes"] for (_, number), row in windows.items()}
    assert left == together
    if together:
        assert frame[None]["active_windows"] == len(together)
        mean = sum(together.values()) / (max(together) - min(together) + 1)
        assert frame[None]["burstiness"] == pytest.approx(max(together.values()) / mean)


@given(requests())
def test_request_sizes_are_a_histogram(rows: Rows) -> None:
    found = by_volume(request_sizes(as_trace(rows)), "op", "from_bytes")
    expected: dict[tuple, list[int]] = {}
    for _, op, volume, _, length in rows:
        size = 1 << length.bit_length() - 1 if length else 0
        for v in (volume, None):
            entry = expected.setdefault((v, OP_NAMES[op], size), [0, 0])
            entry[0] += 1
            entry[1] += length
    assert {key: [row["requests"], row["bytes"]] for key, row in found.items()} == expected


def test_a_request_far_from_the_last_32_is_random() -> None:
    # 128 KiB and a byte beyond the first; and that first one is 33 requests back at the end.
    near = [0, 128 << 10, (256 << 10) + 1]
    rows = [(0, 1, 0, offset, 4096) for offset in near]
    assert by_volume(profile(as_trace(rows)))[0]["random_share"] == 2 / 3
    far = [(0, 0, 0, 20 << 20, 512) for _ in range(32)]
    for count, random in ((31, 2), (32, 3)):
        rows = [(0, 1, 0, 0, 4096), *far[:count], (0, 1, 0, 4096, 4096)]
        row = by_volume(profile(as_trace(rows)))[0]
        assert row["random_share"] == random / (count + 2)
        assert row["sequential_share"] == (3 - random) / (count + 2)


def test_lengths_that_come_to_2_63_bytes_are_refused() -> None:
    vast = [Volume(0, "vast", 1 << 62)]
    trace = Trace.from_columns(volumes=vast, op=[1, 0], offset=[0, 0], length=[1 << 62] * 2)
    with pytest.raises(InputError, match=r"2\^63 bytes"):
        profile(trace)
    most = Trace.from_columns(
        volumes=vast, op=[3, 3], offset=[0, 1], length=[1 << 62, LAST_NS // 2]
    )
    sizes = request_sizes(most).filter(pl.col("volume") == 0)
    assert sizes["bytes"].to_list() == [LAST_NS // 2, 1 << 62]
    with pytest.raises(InputError, match="window of 0 ns"):
        profile(trace, 0)


# --- Working sets --------------------------------------------------------------------------------


@given(requests(), BLOCKS, st.integers(1, 300), st.booleans(), CUTS)
def test_working_sets_are_those_of_the_definition(
    rows: Rows, block_size: int, regions: int, discards: bool, cuts: list[int]
) -> None:
    work = followed(
        BlockPass(VOLUMES, block_size=block_size, regions=regions, discards=discards), rows, cuts
    )
    expected = naive.touch_blocks(rows, changing(discards), block_size)
    found: dict[tuple[int, int], list[int]] = {}
    for place, id in enumerate(IDS):
        of = expected.get(id, {"read": set(), "written": {}, "begins": []})
        assert work.totals[place].tolist() == [
            len(of["read"]), len(of["written"]), sum(n > 1 for n in of["written"].values()),
            len(of["read"] | of["written"].keys()),
        ]  # fmt: skip
        size = 1 << int(work.region_bits[place])
        blocks = -(-SIZE // block_size)
        assert size == 64 or -(-blocks // size) <= regions < -(-blocks // (size // 2))
        for block, times in of["written"].items():
            entry = found.setdefault((id, block // size), [0, 0, 0])
            entry[0] += times
            entry[2] += 1
        for block in of["begins"]:
            found[id, block // size][1] += 1
    frame = spatial(as_trace(rows), regions, block_size, discards=discards)
    assert {
        (row["volume"], row["region"]): [
            row["block_writes"], row["writes"], row["unique_bytes"] // block_size
        ]
        for row in frame.to_dicts()
    } == found  # fmt: skip
    assert (frame["offset"] == frame["region"] * frame["region_bytes"]).all()
    written = frame["block_writes"] * block_size
    assert (frame["unique_bytes"] + frame["rewritten_bytes"] == written).all()


@given(requests(), st.integers(1, 50))
def test_the_working_set_grows_as_the_trace_does(rows: Rows, points: int) -> None:
    trace = as_trace(rows)
    frame = working_set(trace, points)
    for volume in (*IDS, None):
        mine = frame.filter(pl.col("volume").eq_missing(volume))
        assert mine["time_s"].is_sorted()
        for row in mine.to_dicts():
            if rows and rows[0][0] < rows[-1][0]:
                until = round(row["time_s"] * 1e9)
                assert row["requests"] == sum(r[0] <= until for r in rows)
            of = naive.touch_blocks(rows[: row["requests"]], {1}, 4096)
            sets = [of.get(v) for v in (IDS if volume is None else [volume])]
            assert row["write_bytes"] == 4096 * sum(len(s["written"]) for s in sets if s)
            assert row["read_bytes"] == 4096 * sum(len(s["read"]) for s in sets if s)
        assert mine["requests"].to_list()[-1:] == [len(rows)]
        if rows:
            assert mine["time_s"].to_list()[-1] == rows[-1][0] / 1e9
    last = frame.filter(pl.col("volume").is_null()).tail(1)["write_bytes"].item()
    whole = churn(trace, WHOLE).filter(pl.col("volume").is_null())["unique_bytes"].sum()
    assert last == whole


@pytest.mark.parametrize("bad", [0, -1, 1 << 40, 1.5, "5", None])
def test_bad_counts_are_quoted(bad: Any) -> None:
    with pytest.raises(InputError, match=f"^{bad!r} points"):
        working_set(as_trace([]), bad)
    with pytest.raises(InputError, match=f"^{bad!r} regions"):
        spatial(as_trace([]), bad)


def test_the_time_before_the_first_request_counts_for_nothing() -> None:
    hour = 3600 * 10**9
    rows = [(k * hour // 4, 1, 0, k * 4096, 4096) for k in range(400)]
    late = as_trace(rows)[360:]
    row = by_volume(interval_cost(late, ["1h"]))[0]
    assert (row["windows"], row["cost"]) == (10, 1)
    growth = working_set(late, 39).filter(pl.col("volume") == 0)
    assert growth["requests"].to_list() == list(range(2, 41))
    assert growth["time_s"].to_list() == [(361 + k) * 900 for k in range(39)]
    at_once = as_trace([(hour, *row[1:]) for row in rows])
    growth = working_set(at_once, 4).filter(pl.col("volume") == 0)
    assert growth["requests"].to_list() == [100, 200, 300, 400]
    assert growth["time_s"].unique().to_list() == [3600]


def test_without_a_clock_nothing_is_told_of_time() -> None:
    columns = {"op": [1] * 6, "offset": [0] * 6, "length": [4096] * 6}
    timed, untimed = (
        Trace.from_columns(volumes=VOLUMES, time_ns=np.arange(6) * 10**9, clock=clock, **columns)
        for clock in ("exact", "none")
    )
    unknown = {
        "interval_cost": {"cost"},
        "coverage": {"interval_p50", "interval_p90"},
        "profile": {"peak_per_s", "mean_per_s", "burstiness"},
        "activity": {"requests_per_s"},
    }
    for name, columns in unknown.items():
        known, found = TABLES[name](timed), TABLES[name](untimed)
        assert known.schema == found.schema
        for column in known.columns:
            if column in columns:
                assert known[column][0] is not None
                assert found[column].null_count() == len(found)
            else:
                assert found[column].equals(known[column])
    points = working_set(untimed, 3).filter(pl.col("volume") == 0)
    assert points["requests"].to_list() == [2, 6]  # nothing grows at 4
    assert points["time_s"].to_list() == [0, 0]


# --- All of them ---------------------------------------------------------------------------------

TABLES: dict[str, Callable[[Trace], pl.DataFrame]] = {
    "interval_cost": lambda trace: interval_cost(trace, [1e-9, 5e-9, 7e-9]),
    "coverage": lambda trace: updates(trace).coverage,
    "distance": lambda trace: updates(trace).distance,
    "interval": lambda trace: updates(trace).interval,
    "profile": lambda trace: profile(trace, 3e-9),
    "request_sizes": request_sizes,
    "activity": lambda trace: activity(trace, 3e-9),
    "working_set": lambda trace: working_set(trace, 7),
    "spatial": spatial,
}


@pytest.mark.parametrize("table", TABLES)
@given(rows=requests(30), order=st.permutations(IDS))
def test_permuting_volumes_changes_nothing(table: str, rows: Rows, order: list[int]) -> None:
    other = dict(zip(IDS, order, strict=True))
    back = {new: old for old, new in other.items()}
    frame = TABLES[table](as_trace(rows))
    permuted = TABLES[table](as_trace([(t, op, other[v], o, n) for t, op, v, o, n in rows]))
    renamed = permuted.with_columns(pl.col("volume").replace(back))
    keys = [c for c in frame.columns if frame[c].dtype != pl.Float64]
    assert_frame_equal(frame.sort(keys), renamed.sort(keys))


@given(requests())
def test_tables_that_had_to_grow_are_the_same(rows: Rows) -> None:
    expected = {name: table(as_trace(rows)) for name, table in TABLES.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leaves_module, "_FIRST_LEAVES", 1)
        patch.setattr("vmbk.trace.metrics.requests._FIRST_ROWS", 1)
        for name, table in TABLES.items():
            assert table(as_trace(rows)).equals(expected[name])


@pytest.mark.parametrize("table", TABLES)
def test_documented_columns_are_those_of_the_table(table: str) -> None:
    """The docstring's table, row for row."""
    documented = {
        "coverage": type(updates(as_trace([]))).coverage,
        "distance": type(updates(as_trace([]))).distance,
        "interval": type(updates(as_trace([]))).interval,
    }.get(table) or globals()[table]
    short = {pl.UInt32: "u32", pl.Int64: "i64", pl.Float64: "f64", pl.String: "str"}
    lines = [line.split() for line in documented.__doc__.splitlines()]
    listed = {w[0]: w[1] for w in lines if len(w) > 2 and w[1] in short.values()}
    frame = TABLES[table](as_trace([(1, 1, 0, 0, 4096), (2, 1, 0, 0, 4096)]))
    found = {name: short[kind] for name, kind in zip(frame.columns, frame.dtypes, strict=True)}
    brief = {"within_20", "within_40", "within_80", "distance_p90", "interval_p90"}
    assert {k: v for k, v in found.items() if k not in brief} == listed
    assert all(name in documented.__doc__ for name in found)


@pytest.mark.parametrize("table", TABLES)
def test_nothing_and_the_last_moment_are_measured(table: str) -> None:
    metric = TABLES[table]
    nothing = metric(as_trace([]))
    assert nothing.schema == metric(as_trace([(0, 1, 3, 0, 1)])).schema
    assert metric(Trace.from_columns(volumes=[], op=[], offset=[], length=[])).schema == (
        nothing.schema
    )
    vast = [Volume(9, "vast", 1 << 62), Volume(11, "none", 0), Volume(12, "odd", 513)]
    ends = [
        (0, 1, 9, 0, 4096), (0, 5, 11, 0, 0), (1, 0, 12, 512, 1), (1, 1, 12, 0, 513),
        (LAST_NS, 1, 9, (1 << 62) - 4096, 4096), (LAST_NS, 1, 9, 0, 4096),
    ]  # fmt: skip
    frame = metric(as_trace(ends, vast))
    assert frame.schema == nothing.schema
    assert len(frame)


def test_the_last_moment_in_figures() -> None:
    rows = [(0, 1, 0, 0, 4096), (LAST_NS, 1, 0, 0, 4096)]
    trace = as_trace(rows)
    cost = by_volume(interval_cost(trace, [1e-9, 9e9]), "interval_s")
    assert cost[0, 1e-9]["cost"] == 2
    assert cost[0, 1e-9]["windows"] == LAST_NS
    assert cost[0, 9e9]["cost"] == 2
    assert updates(trace).interval["updates"].to_list() == [1, 1]
    assert activity(trace, 1e-9)["window"].to_list() == [0, LAST_NS] * 2


def test_wide_enough_for_tables_to_grow_many_times() -> None:
    rng = np.random.default_rng(7)
    count = 200_000
    block = rng.integers(0, 50_000, count) * 1001
    volume = rng.integers(0, 2, count).astype(np.uint32)
    trace = Trace.from_columns(
        volumes=[Volume(k, "", 1 << 40) for k in range(2)], op=np.ones(count, np.int8),
        volume=volume, offset=block * 4096, length=np.full(count, 4096),
        time_ns=np.arange(count) * 10**6, clock="exact",
    )  # fmt: skip
    frame = pl.DataFrame({"v": volume, "b": block, "t": np.arange(count) // 10_000})
    unique = frame.select("v", "b").n_unique() * 4096
    cost = by_volume(interval_cost(trace, ["10s"]))[None]
    assert cost["changed_bytes"] == frame.n_unique() * 4096
    assert cost["unique_bytes"] == unique
    coverage = by_volume(updates(trace).coverage)[None]
    assert coverage["unique_bytes"] == unique
    assert coverage["updates"] == count - unique // 4096
    assert working_set(trace, 1)["write_bytes"].to_list()[-1] == unique


def recomputed(trace: Trace) -> dict[str, int]:
    """Figures over all volumes by Polars alone, block by block."""
    frame = trace.frame().with_row_index("row").filter(
        (pl.col("op") == "write") & (pl.col("length") > 0)
    )  # fmt: skip
    first, last = pl.col("offset") // 4096, (pl.col("offset") + pl.col("length") - 1) // 4096
    blocks = frame.select(
        "volume", "time_ns", pl.int_ranges(first, last + 1).alias("block")
    ).explode("block")  # fmt: skip
    blocks = blocks.with_columns(place=pl.int_range(pl.len()).over("volume"))
    again = blocks.with_columns(
        gap=pl.col("time_ns").diff().over("volume", "block"),
        distance=pl.col("place").diff().over("volume", "block"),
    ).drop_nulls()  # fmt: skip
    return {
        "writes": len(frame),
        "small": int((frame["length"] < 8192).sum()),
        "unaligned": int(((frame["offset"] % 4096 > 0) | (frame["length"] % 4096 > 0)).sum()),
        "block_writes": len(blocks),
        "unique": blocks.select("volume", "block").n_unique(),
        "updated": again.select("volume", "block").n_unique(),
        "gaps": int((again["gap"] < 16).sum()),
        "distances": int((again["distance"] <= 16).sum()),
        "per_second": blocks.select("volume", pl.col("time_ns") // 10**9, "block").n_unique(),
    }


@pytest.mark.parametrize("name", [dataset.name for dataset in datasets()])
def test_shipped_captures_are_as_polars_counts_them(name: str) -> None:
    trace = open_trace(name)
    expected, found = recomputed(trace), updates(trace)
    row, requests_row = by_volume(found.coverage)[None], by_volume(profile(trace))[None]
    cost = interval_cost(trace, ["1s"]).tail(1).row(0, named=True)
    near = pl.col("volume").is_null()
    distances = found.distance.filter(near & (pl.col("from_bytes") < 16 * 4096))["updates"].sum()
    gaps = found.interval.filter(near & (pl.col("from_ns") < 16))["updates"].sum()
    assert expected == {
        "writes": requests_row["writes"],
        "small": round(requests_row["small_write_share"] * requests_row["writes"]),
        "unaligned": round(requests_row["unaligned_share"] * requests_row["writes"]),
        "block_writes": row["block_writes"],
        "unique": row["unique_bytes"] // 4096,
        "updated": row["updated_bytes"] // 4096,
        "gaps": gaps,
        "distances": distances,
        "per_second": cost["changed_bytes"] // 4096,
    }


def test_figures_of_a_published_trace() -> None:
    """Those that its readers published, and the others by hand from its rows."""
    trace = import_trace(real_trace("cloudPhysicsIO.vscsi")).trace
    row = by_volume(profile(trace))[None]
    assert row["write_share"] == pytest.approx(0.587, abs=5e-4)
    assert row["write_bytes"] / GIB == pytest.approx(2.243, abs=5e-4)
    assert row["unaligned_share"] == pytest.approx(0.999, abs=5e-4)
    coverage = by_volume(updates(trace).coverage)[None]
    assert coverage["unique_bytes"] / GIB == pytest.approx(0.796, abs=5e-4)
    assert coverage["block_writes"] * 4096 / coverage["unique_bytes"] == pytest.approx(
        3.14, abs=5e-3
    )
    expected = recomputed(trace)
    assert coverage["updated_bytes"] == expected["updated"] * 4096
    cost = interval_cost(trace, ["1s"]).tail(1)
    assert cost["changed_bytes"].item() == expected["per_second"] * 4096
