"""Churn, granularity, run lengths and dispersion against their definitions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import naive
from vmbk.errors import InputError
from vmbk.kernels import churn as kernels
from vmbk.trace.datasets import dataset_path
from vmbk.trace.metrics import dirty
from vmbk.trace.metrics.dirty import CHANGES, WRITES, DirtyPass, DirtyResult
from vmbk.trace.metrics.windows import WHOLE, churn, dispersion, granularity, measure, run_lengths
from vmbk.trace.schema import Op, Volume
from vmbk.trace.store import read_trace
from vmbk.trace.table import Requests, Trace

SIZE = 64 << 20
IDS = (0, 3, 7)  # ids need not be dense


@st.composite
def requests(draw: st.DrawFn, most: int = 60) -> list[naive.Write]:
    # Places that collide: few regions, offsets off any grid, lengths over borders of regions.
    place = st.one_of(
        st.integers(0, SIZE - 1),
        st.integers(0, 40).map(lambda k: k * 4096 + 5 * (4 << 20) - 20 * 4096),
        st.sampled_from([0, (4 << 20) - 1, 4 << 20, SIZE - 512]),
    )
    size = st.one_of(st.sampled_from([0, 1, 512, 4096, 65536]), st.integers(0, 9 << 20))
    rows = draw(
        st.lists(
            st.tuples(
                st.integers(0, 40), st.sampled_from([0, 1, 1, 1, 3, 4]), st.sampled_from(IDS),
                place, size,
            ),
            max_size=most,
        )
    )  # fmt: skip
    rows.sort(key=lambda row: row[0])
    return [(t, op, v, o, min(n, SIZE - o)) for t, op, v, o, n in rows]


def as_requests(rows: Sequence[naive.Write]) -> Requests:
    columns = list(zip(*rows, strict=True)) or [()] * 5
    dtypes = (np.int64, np.int8, np.uint32, np.int64, np.int64)
    arrays = [np.array(c, d) for c, d in zip(columns, dtypes, strict=True)]
    return Requests(*arrays, np.zeros(len(rows), np.uint8))


def as_trace(rows: Sequence[naive.Write]) -> Trace:
    r = as_requests(rows)
    return Trace.from_columns(
        volumes=[Volume(id, f"disk {id}", SIZE) for id in IDS], time_ns=r.time_ns, op=r.op,
        volume=r.volume, offset=r.offset, length=r.length, clock="exact",
    )  # fmt: skip


def run(rows: Sequence[naive.Write], cuts: Sequence[int] = (), **settings: object) -> DirtyResult:
    work = DirtyPass([Volume(id, f"disk {id}", SIZE) for id in IDS], **settings)  # type: ignore[arg-type]
    edges = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    whole = as_requests(rows)
    for a, b in pairwise(edges):
        work.add(whole[a:b])
    return work.finish()


def figures(result: DirtyResult) -> dict[tuple[int, int], dict]:
    levels = (dirty.COARSEST // result.block_size).bit_length()
    found = {}
    for row in result.windows.tolist():
        found[row[kernels.WINDOW], IDS[row[kernels.VOLUME]]] = {
            "writes": row[kernels.WRITES],
            "write_bytes": row[kernels.WRITE_BYTES],
            "block_writes": row[kernels.BLOCK_WRITES],
            "unique": row[kernels.UNIQUE],
            "new": row[kernels.NEW],
            "extents": row[kernels.EXTENTS],
            "leaves": row[kernels.LEAVES],
            "squares": row[kernels.SQUARES],
            "first": row[kernels.FIRST],
            "last": row[kernels.LAST],
            "levels": row[kernels.LEVELS : kernels.LEVELS + levels],
        }
    assert len(found) == len(result.windows)
    return found


def histogram(result: DirtyResult) -> dict[tuple[int, int], list[int]]:
    places = zip(*(axis.tolist() for axis in np.nonzero(result.run_counts)), strict=True)
    return {
        (IDS[v], k): [int(result.run_counts[v, k]), int(result.run_blocks[v, k])] for v, k in places
    }


@given(
    requests(),
    st.sampled_from([1, 2, 7, 1000]),
    st.sampled_from([512, 4096, 65536, 1 << 20, 4 << 20]),
    st.sampled_from([0, 4096, 300_000]),
    st.booleans(),
    st.lists(st.integers(0, 60), max_size=4),
)
def test_windows_are_those_of_the_definition(
    rows: list[naive.Write], window: int, block: int, gap: int, discards: bool, cuts: list[int]
) -> None:
    ops = {int(Op.WRITE)} | ({int(Op.DISCARD), int(Op.WRITE_ZEROES)} if discards else set())
    result = run(rows, cuts, window_ns=window, block_size=block, gap=gap, discards=discards)
    expected, lengths = naive.churn_windows(rows, ops, window, block, gap)
    assert figures(result) == expected
    assert histogram(result) == lengths
    # In order of window, then of volume.
    keys = [(row[0], row[1]) for row in result.windows.tolist()]
    assert keys == sorted(keys)


@given(
    st.lists(st.tuples(st.sampled_from(IDS), st.integers(0, 300), st.integers(1, 9)), min_size=1),
    st.sampled_from([0, 1, 3, 70]),
)
def test_extents_with_gaps_count_the_changed_blocks_in_them(
    places: list[tuple[int, int, int]], gap: int
) -> None:
    rows = [(0, 1, v, at * 4096 + 5 * 4096, n * 4096) for v, at, n in places]
    result = run(rows, (), window_ns=None, gap=gap * 4096)
    expected, lengths = naive.churn_windows(rows, {1}, 1, 4096, gap * 4096)
    assert figures(result) == expected
    assert histogram(result) == lengths
    unique = sum(of["unique"] for of in expected.values())
    assert result.run_blocks.sum() == unique


@given(requests(), st.integers(1, 30), st.integers(1, 8))
def test_threads_that_share_a_window_change_nothing(
    rows: list[naive.Write], window: int, shared: int
) -> None:
    expected, lengths = naive.churn_windows(rows, {1}, window, 4096, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dirty, "_SHARED_ROWS", shared)
        patch.setattr(dirty, "_PROBE_ROWS", 1)
        result = run(rows, (), window_ns=window, threads=3)
    assert figures(result) == expected
    assert histogram(result) == lengths


@given(requests())
def test_leaves_and_rows_are_found_again_after_the_tables_have_grown(
    rows: list[naive.Write],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dirty, "_FIRST_LEAVES", 2)
        patch.setattr(dirty, "_FIRST_ROWS", 1)
        patch.setattr(dirty, "_FIRST_PAGES", 1)
        result = run(rows, (), window_ns=3)
    assert figures(result) == naive.churn_windows(rows, {1}, 3, 4096, 0)[0]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_wide_working_set(threads: int) -> None:
    """Wide enough for the kernel to look ahead, and for several rounds of growth."""
    rng = np.random.default_rng(5)
    count, size = 400_000, 1 << 44
    offset = rng.integers(0, 60_000, count) * (size // 60_000 // 512 * 512) + 512 * 3
    time_ns = np.sort(rng.integers(0, 4, count))
    batch = Requests(
        time_ns, np.ones(count, np.int8), np.zeros(count, np.uint32), offset,
        np.full(count, 8192), np.zeros(count, np.uint8),
    )  # fmt: skip
    work = DirtyPass([Volume(0, "wide", size)], window_ns=1, threads=threads)
    work.add(batch[:1000])
    work.add(batch[1000:])
    rows = work.finish().windows
    for window, row in enumerate(rows.tolist()):
        places = np.unique(offset[time_ns == window])
        assert (
            row[kernels.UNIQUE]
            == np.unique(
                np.concatenate([places // 4096, places // 4096 + 1, (places + 8191) // 4096])
            ).size
        )
        assert row[kernels.WRITES] == (time_ns == window).sum()


@given(requests(30), st.permutations(IDS))
def test_permuting_volumes_changes_nothing(rows: list[naive.Write], order: list[int]) -> None:
    other = dict(zip(IDS, order, strict=True))
    frame = churn(as_trace(rows), 1e-8)
    permuted = churn(as_trace([(t, op, other[v], o, n) for t, op, v, o, n in rows]), 1e-8)
    back = {new: old for old, new in other.items()}
    renamed = permuted.with_columns(pl.col("volume").replace(back))
    assert frame.sort("volume", "window").equals(renamed.sort("volume", "window"))


@given(requests())
def test_the_tables_agree_with_each_other(rows: list[naive.Write]) -> None:
    trace = as_trace(rows)
    measured = measure(trace, 1e-8)
    found = measured.churn
    per_volume, together = (
        found.filter(pl.col("volume").is_not_null()),
        found.filter(pl.col("volume").is_null()),
    )
    for name in ("writes", "write_bytes", "block_writes", "unique_bytes", "new_bytes", "extents"):
        assert per_volume[name].sum() == together[name].sum()
    assert (found["rewrite_ratio"] >= 1).all()
    whole = churn(trace, WHOLE).filter(pl.col("volume").is_null())
    assert together["new_bytes"].sum() == whole["unique_bytes"].sum()
    assert trace.summary().unique_write_blocks == whole["unique_blocks"].sum()
    levels = measured.granularity.filter(pl.col("volume").is_null())
    assert levels.filter(pl.col("block_size") == 4096)["changed_bytes"].sum() == (
        together["unique_bytes"].sum()
    )
    lengths = measured.run_lengths.filter(pl.col("volume").is_null())
    assert lengths["runs"].sum() == together["extents"].sum()
    assert lengths["changed_bytes"].sum() == together["unique_bytes"].sum()
    spread = measured.dispersion
    assert ((spread["fragmentation"] > 0) & (spread["fragmentation"] <= 1)).all()
    assert ((spread["region_fill"] > 0) & (spread["region_fill"] <= 1)).all()
    assert (spread["span_bytes"] >= spread["unique_bytes"]).all()


def test_dispersion_of_known_patterns() -> None:
    def spread(offsets: Sequence[int]) -> dict[str, float]:
        rows = [(0, 1, 0, offset, 4096) for offset in offsets]
        return dispersion(as_trace(rows), WHOLE).filter(pl.col("volume") == 0).to_dicts()[0]

    mib = 1 << 20
    one_run = spread(range(0, mib, 4096))
    assert (one_run["extents"], one_run["mean_extent_bytes"]) == (1, mib)
    assert one_run["fragmentation"] == 1 / 256
    alone = spread(range(0, 64 * mib, 8192))
    assert alone["fragmentation"] == 1
    assert alone["region_fill"] == 0.5
    assert alone["extents_per_gib"] == 1 << 18
    assert alone["dispersion_index"] == 0  # each region changed by as much: no variance
    rng = np.random.default_rng(1)
    index = spread((rng.choice(SIZE // 4096, 2000, replace=False) * 4096).tolist())
    assert 0.3 < index["dispersion_index"] < 2  # strewn at random: about 1
    clustered = spread([*range(0, mib, 4096), SIZE - 4096])
    assert clustered["dispersion_index"] > 100


def test_granularity_from_sectors_to_4_mib() -> None:
    trace = as_trace([(0, 1, 0, 4096 * k * 512 + 512, 1024) for k in range(8)])
    frame = granularity(trace).filter(pl.col("volume") == 0)
    assert frame["block_size"].to_list() == [512 << k for k in range(14)]
    amplification = dict(zip(frame["block_size"], frame["amplification"], strict=True))
    assert amplification[4096] == 1
    assert amplification[512] == 0.25
    assert amplification[2 << 20] == 512
    assert run_lengths(trace).filter(pl.col("volume") == 0)["runs"].to_list() == [8]
    for block in (8192, 4 << 20):
        with pytest.raises(InputError, match=f"finest is {block}: .*4 KiB"):
            granularity(trace, finest=block)
        coarse = measure(trace, WHOLE, block).granularity  # cannot know what 4 KiB would be
        assert coarse["amplification"].null_count() == len(coarse)
        assert coarse.schema == frame.schema
    from_4k = measure(trace, WHOLE).granularity.filter(pl.col("volume") == 0)
    assert from_4k.equals(frame.filter(pl.col("block_size") >= 4096))


@pytest.mark.parametrize(
    ("settings", "quoted"),
    [
        ({"block_size": 3000}, "3000"),
        ({"block_size": 256}, "256"),
        ({"block_size": "8MiB"}, "8388608"),
        ({"window": 0}, "window of 0 ns"),
        ({"window": "soon"}, "soon"),
        ({"gap": "-1"}, "-1"),
    ],
)
def test_bad_settings_are_quoted(settings: dict, quoted: str) -> None:
    with pytest.raises(InputError, match=quoted):
        measure(as_trace([]), **settings)


def test_a_write_of_everything_is_refused_before_it_fills_the_memory() -> None:
    vast = Trace.from_columns(
        volumes=[Volume(0, "vast", 1 << 56)], op=[1], offset=[0], length=[1 << 56]
    )
    with pytest.raises(InputError, match="64 TiB"):
        measure(vast)
    huge = Trace.from_columns(volumes=[Volume(0, "huge", 1 << 62)], op=[], offset=[], length=[])
    with pytest.raises(InputError, match="64 PiB"):
        measure(huge)
    far = Trace.from_columns(
        volumes=[Volume(0, "far", 1 << 56)], op=[1, 1], offset=[0, (1 << 56) - 4096],
        length=[4096, 4096], time_ns=[0, (1 << 63) - 1], clock="exact",
    )  # fmt: skip
    assert churn(far, WHOLE)["unique_blocks"].to_list() == [2, 2]
    assert churn(far, 1e-9)["window"].to_list() == [0, (1 << 63) - 1] * 2


@pytest.mark.parametrize("threads", [1, 2])
def test_what_is_there_already_needs_no_room(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    monkeypatch.setattr(dirty, "_MOST_LEAVES", SIZE // dirty.COARSEST + 1)
    monkeypatch.setattr(dirty, "_MOST_PAGES", 6)
    monkeypatch.setattr(dirty, "_FIRST_LEAVES", 2)
    monkeypatch.setattr(dirty, "_FIRST_PAGES", 1)
    monkeypatch.setattr(dirty, "_SHARED_ROWS", 1)
    monkeypatch.setattr(dirty, "_PROBE_ROWS", 1)
    half = SIZE // 2 + 4096
    again = [(0, 1, 0, 0, half), (0, 1, 0, half, SIZE - half)]
    again += [(t, 1, 0, 0, SIZE) for t in range(9)]
    work = DirtyPass([Volume(0, "all of it", SIZE)], window_ns=3, threads=threads)
    work.add(as_requests(again))
    assert len(work._keys) == dirty._MOST_LEAVES
    assert work.finish().windows[:, kernels.UNIQUE].tolist() == [SIZE // 4096] * 3
    wide = DirtyPass([Volume(0, "", SIZE)], window_ns=3, threads=threads)
    monkeypatch.setattr(wide, "_most_leaves", 1000)
    wide.add(as_requests(again))
    assert len(wide._keys) < 2 * dirty._MOST_LEAVES
    more = DirtyPass([Volume(k, "", SIZE) for k in range(2)], window_ns=3, threads=threads)
    with pytest.raises(InputError, match="more than 68 MiB in all"):
        more.add(as_requests([*again, (9, 1, 1, 0, 1)]))
    monkeypatch.setattr(dirty, "_MOST_LEAVES", 1000)
    strewn = DirtyPass([Volume(0, "", 1 << 40)], window_ns=3, threads=threads)
    with pytest.raises(InputError, match="regions of 4 GiB of more than 24 GiB in all"):
        strewn.add(as_requests([(0, 1, 0, k << 32, 1) for k in range(200)]))


def test_small_blocks_take_no_more_memory_than_large_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dirty, "_MOST_BYTES", 1 << 20)
    monkeypatch.setattr(dirty, "_FIRST_LEAVES", 2)
    trace = Trace.from_columns(
        volumes=[Volume(0, "", 1 << 40)], op=[1], offset=[0], length=[3 << 30]
    )  # fmt: skip
    assert measure(trace, WHOLE, 4096).churn["unique_bytes"].to_list() == [3 << 30] * 2
    with pytest.raises(InputError, match=r"more than 2 GiB in all.*blocks of 512 B"):
        measure(trace, WHOLE, 512)
    for block, most in ((512, 8), (4096, 64), (4 << 20, 64)):
        monkeypatch.undo()
        vast = Trace.from_columns(
            volumes=[Volume(0, "", 1 << 50)], op=[1], offset=[0], length=[1 << 50]
        )  # fmt: skip
        with pytest.raises(InputError, match=f"more than {most} TiB in all"):
            measure(vast, WHOLE, block)


def test_no_memory_is_an_error_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="8 PiB more cannot be had") as caught:
        dirty.zeros(1 << 50, np.int64)
    assert "trace[first:stop]" in str(caught.value.hint)
    monkeypatch.setattr(dirty, "_FIRST_LEAVES", 2)
    work = DirtyPass([Volume(0, "", SIZE)], window_ns=None)
    batch = as_requests([(0, 1, 0, 0, SIZE)])

    def scarce(count: int, dtype: object) -> np.ndarray:
        raise MemoryError

    monkeypatch.setattr(dirty.np, "zeros", scarce)
    with pytest.raises(InputError, match="there is no memory"):
        work.add(batch)


def test_a_long_stretch_without_a_write_takes_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    count, steps = 400_000, 0
    follow = DirtyPass._follow

    def counted(self: DirtyPass, batch: Requests) -> None:
        nonlocal steps
        steps += 1
        follow(self, batch)

    monkeypatch.setattr(DirtyPass, "_follow", counted)
    op = np.zeros(count, np.int8)
    op[[0, 300_000]] = 1
    batch = Requests(
        np.arange(count), op, np.zeros(count, np.uint32), np.zeros(count, np.int64),
        np.full(count, 4096), np.zeros(count, np.uint8),
    )  # fmt: skip
    work = DirtyPass([Volume(0, "", SIZE)], window_ns=200_000, threads=2)
    work.add(batch)
    assert steps < 60
    assert work.finish().windows[:, [kernels.WINDOW, kernels.WRITES]].tolist() == [[0, 1], [1, 1]]


def test_an_empty_trace_has_empty_tables() -> None:
    for table in (churn, run_lengths, dispersion):
        assert table(as_trace([])).is_empty()
    nothing = granularity(as_trace([]))
    assert nothing["blocks"].sum() == 0
    assert nothing["amplification"].null_count() == len(nothing)
    assert measure(Trace.from_columns(volumes=[], op=[], offset=[], length=[])).churn.is_empty()


def test_a_real_capture_counts_as_its_detectors_do() -> None:
    trace = read_trace(dataset_path("ext4-fragmented"))
    whole = churn(trace, WHOLE).filter(pl.col("volume") == 0)
    assert whole["unique_blocks"].item() == trace.summary().unique_write_blocks
    with_trims = churn(trace, WHOLE, discards=True).filter(pl.col("volume") == 0)
    assert with_trims["unique_blocks"].item() > whole["unique_blocks"].item()
    assert WRITES != CHANGES


def leaves(work: DirtyPass) -> dict[int, set[int]]:
    """Key of each leaf of the current window, and its blocks."""
    found = {}
    for slot in work._touched[: work._state[kernels.TOUCHED]].tolist():
        words = work._bits[slot * work._words : (slot + 1) * work._words]
        found[int(work._keys[slot])] = naive.to_blocks(words.view(np.uint8))
    return found


@given(requests(30), requests(30))
def test_leaves_of_two_passes_merge(one: list[naive.Write], two: list[naive.Write]) -> None:
    volumes = [Volume(id, f"disk {id}", SIZE) for id in IDS]
    a, b = (DirtyPass(volumes, window_ns=None) for _ in range(2))
    a.add(as_requests(one))
    b.add(as_requests(two))
    expected = naive.merge_leaves(leaves(a), leaves(b))
    kernels.merge_leaves(
        b._keys, b._touched, int(b._state[kernels.TOUCHED]), b._bits, 12,
        a._bases, a._root, a._pages, a._keys, a._touched, a._bits, a._state,
    )  # fmt: skip
    assert leaves(a) == expected


@given(requests(30))
def test_the_last_window_is_measured_at_the_end(rows: list[naive.Write]) -> None:
    work = DirtyPass([Volume(id, f"disk {id}", SIZE) for id in IDS], window_ns=7)
    work.add(as_requests(rows))
    before = int(work._state[kernels.ROWS])
    last = figures(work.finish())
    every = naive.churn_windows(rows, {1}, 7, 4096, 0)[0]
    assert dict(list(last.items())[before:]) == naive.churn_finish(every)


@given(st.one_of(st.integers(0, naive.WORD), st.lists(st.integers(0, 63)).map(
    lambda places: sum(1 << place for place in set(places)))))  # fmt: skip
def test_runs_of_a_word_that_are_counted_together(bits: int) -> None:
    counts, blocks = np.zeros(70, np.int64), np.zeros(70, np.int64)
    found = kernels._count_runs(np.uint64(bits), 3, counts, blocks)
    expected_counts, expected_blocks = [0] * 70, [0] * 70
    runs = [run for run in f"{bits:b}".split("0") if run]
    for run in runs:
        expected_counts[3 + len(run).bit_length() - 1] += 1
        expected_blocks[3 + len(run).bit_length() - 1] += len(run)
    assert found == len(runs)
    assert (counts.tolist(), blocks.tolist()) == (expected_counts, expected_blocks)


@given(st.lists(st.integers(0, 3000), min_size=300, max_size=900), st.sampled_from([0, 4096]))
def test_strewn_blocks_have_the_runs_of_the_definition(blocks: list[int], gap: int) -> None:
    """Several runs in a word, runs over the edges of words and of leaves."""
    count = len(blocks)
    trace = Trace.from_columns(
        volumes=[Volume(0, "disk", 1 << 24)], op=np.full(count, Op.WRITE, np.int8),
        offset=4096 * np.array(blocks, np.int64), length=np.full(count, 4096, np.int64),
    )  # fmt: skip
    lengths, run = [], 0
    changed = set(blocks)
    for block in range(3003):
        if block in changed:
            run += 1
        elif run and not (gap and block + 1 in changed):
            lengths.append(run)
            run = 0
    found = measure(trace, WHOLE, gap=gap)
    assert found.churn["extents"].to_list()[0] == len(lengths)
    assert found.dispersion["unique_bytes"].to_list()[0] == 4096 * len(changed)
    together = found.run_lengths.filter(pl.col("volume").is_null())
    assert together["runs"].sum() == len(lengths)
    assert together["changed_bytes"].sum() == 4096 * len(changed)
