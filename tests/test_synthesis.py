"""Synthesis: kernels against their twins, what is declared against what is measured."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests import naive
from vmbk.errors import InputError, NotFoundError
from vmbk.kernels import synthesis as kernels
from vmbk.trace.metrics.windows import measure
from vmbk.trace.schema import Flag, Op
from vmbk.trace.synthesis import Mix, Spec, VolumeSpec, Workload, specs, synthesise
from vmbk.trace.synthesis.generate import SLICE_ROWS
from vmbk.trace.synthesis.intensity import arrival_curve, exponential_table
from vmbk.trace.synthesis.places import Union
from vmbk.trace.synthesis.tables import Choices, Ranks, mix, whole_parts
from vmbk.trace.synthesis.working_set import Layout
from vmbk.trace.table import Trace
from vmbk.units import quoted

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
WORDS = st.integers(0, (1 << 64) - 1)
PATTERNS = ["nowhere", "stream", "sweep", "anywhere", "zipf", "hot_cold"]


@pytest.fixture(autouse=True, scope="module")
def wrapping_arithmetic() -> Iterator[None]:
    """Uncompiled, the kernels compute with NumPy scalars, which warn where they wrap around."""
    with np.errstate(over="ignore"):
        yield


def ints(values: Any) -> np.ndarray:
    return np.array(list(values), np.int64)


def declared(**workload: Any) -> dict[str, Any]:
    """A spec of one volume; `duration` and `size` are the spec's."""
    duration, size = workload.pop("duration", "1h"), workload.pop("size", "8GiB")
    return {"duration": duration, "volumes": [{"size": size}], "workload": workload}


def made(**workload: Any) -> Trace:
    return synthesise(Spec.from_dict(declared(**workload)))


# --- Kernels and their twins ---------------------------------------------------------------------


@given(WORDS, st.integers(0, 1 << 40), st.lists(st.floats(0.01, 100), min_size=1, max_size=40))
def test_draw_kinds(key: int, first: int, weights: list[float]) -> None:
    table = Choices.of(weights)
    out = np.zeros(50, np.int64)
    kernels.draw_kinds(np.uint64(key), first, table.bits, table.edges, table.guide, out)
    assert out.tolist() == naive.draw_kinds(key, first, 50, table.edges.tolist())
    assert out.max() < len(weights)


@given(st.lists(st.integers(0, 3), max_size=40), st.data())
def test_tally_and_advance(kinds: list[int], data: st.DataObject) -> None:
    counter = data.draw(st.lists(st.integers(0, 2), min_size=4, max_size=4))
    weight = data.draw(st.lists(st.integers(0, 99), min_size=4, max_size=4))
    totals, out = ints([5, 6, 7]), np.zeros(len(kinds), np.int64)
    kernels.tally_kinds(ints(kinds), ints(counter), ints(weight), totals)
    assert totals.tolist() == naive.tally_kinds(kinds, counter, weight, [5, 6, 7])
    again = ints([5, 6, 7])
    kernels.advance_kinds(ints(kinds), ints(counter), ints(weight), again, out)
    assert again.tolist() == totals.tolist()
    assert out.tolist() == naive.advance_kinds(kinds, counter, weight, [5, 6, 7])


@given(WORDS, st.data())
def test_line_places(key: int, data: st.DataObject) -> None:
    n_kinds = data.draw(st.integers(1, 5))
    slots = data.draw(st.integers(1, 1000))
    hot = (data.draw(st.integers(1, slots)), data.draw(st.integers(0, 1 << 32)))
    hot = (hot[0], 1 << 32) if hot[0] == slots else hot
    ranks = Ranks.zipf(slots, 0.9)
    table = Choices.of(ranks.weight)
    kinds = []
    for _ in range(n_kinds):
        pattern, step = data.draw(st.sampled_from(PATTERNS)), data.draw(st.integers(1, 64))
        units = data.draw(st.integers(1, 64))
        start = data.draw(st.integers(0, 99)) if pattern != "nowhere" else 0
        own = {"pattern": pattern, "slots": slots, "step": step, "units": units}
        kinds.append((start, own))
    chosen = data.draw(st.lists(st.integers(0, n_kinds - 1), max_size=20))
    cursors = data.draw(st.lists(st.integers(0, 10**6), min_size=20, max_size=20))[: len(chosen)]
    first = data.draw(st.integers(0, 1 << 40))
    out = np.zeros(len(chosen), np.int64)

    def column(name: str) -> np.ndarray:
        return ints(k[1][name] for k in kinds)

    kernels.line_places(
        np.uint64(key), first, ints(chosen), ints(cursors),
        ints(PATTERNS.index(k[1]["pattern"]) for k in kinds), ints(k[0] for k in kinds),
        column("slots"), ints((slots - 1).bit_length() for _ in kinds), column("step"),
        column("units"), *hot, table.bits, table.edges, table.guide, ints(ranks.low),
        ints(ranks.count), out,
    )  # fmt: skip
    requests = [
        (kinds[k][0], {**kinds[k][1], "cursor": c}) for k, c in zip(chosen, cursors, strict=True)
    ]
    assert out.tolist() == naive.line_places(
        first,
        requests,
        key=key,
        hot=hot,
        ranks=table.edges.tolist(),
        bins=list(zip(ranks.low, ranks.count, strict=True)),
    )


@given(WORDS, st.data())
def test_lay_out(key: int, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=9))
    gaps = data.draw(st.lists(st.integers(0, 40), min_size=len(lengths), max_size=len(lengths)))
    span = sum(lengths) + sum(gaps) + data.draw(st.integers(0, 9))
    requests = data.draw(
        st.lists(st.tuples(st.integers(0, 5000), st.integers(0, max(lengths))), max_size=30)
    )
    layout = Layout.of(lengths, gaps, span)
    out = np.zeros(len(requests), np.int64)
    kernels.lay_out(
        np.uint64(key), ints(p for p, _ in requests), np.arange(len(requests)),
        ints(u for _, u in requests), layout.lengths, layout.gaps, layout.guide,
        layout.guide_shift, span, 512, 1024, out,
    )  # fmt: skip
    assert out.tolist() == naive.lay_out(key, requests, lengths, gaps, span, 512, 1024)


@given(
    WORDS,
    st.integers(0, 10**6),
    st.integers(0, 60),
    st.booleans(),
    st.lists(st.integers(0, 9), min_size=1, max_size=9),
)
def test_arrival_times(key: int, first: int, count: int, regular: bool, weights: list[int]) -> None:
    assume(any(weights))
    edges = [1000 * i * i for i in range(len(weights) + 1)]
    share = (np.cumsum([0, *weights]) / sum(weights)).tolist()
    quantile, total = exponential_table(kernels.EXPONENTIAL_CELLS), first + count + 5
    out = np.zeros(count, np.int64)
    kernels.arrival_times(
        np.uint64(key), first, total, regular, quantile, ints(edges), np.array(share), out
    )
    assert out.tolist() == naive.arrival_times(
        key, first, total, count, regular, quantile.tolist(), edges, share
    )


@given(WORDS, st.integers(1, 3000))
def test_the_permutation_misses_nothing(key: int, n: int) -> None:
    bits = (n - 1).bit_length()
    assert sorted(int(kernels._permute(i, n, bits, np.uint64(key))) for i in range(n)) == list(
        range(n)
    )


def test_the_permutation_scatters() -> None:
    """Neighbours are no nearer to each other than chance would have them."""
    n = 10_000
    order = [int(kernels._permute(i, n, 14, np.uint64(mix(7)))) for i in range(n)]
    apart = np.abs(np.diff(order))
    assert 0.3 * n < apart.mean() < 0.37 * n  # a third, for independent places
    assert np.mean(apart < n // 100) < 0.04


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.integers(0, 1 << 50))
def test_whole_parts(weights: list[float], total: int) -> None:
    assume(sum(weights) > 1e-3)
    parts = whole_parts(weights, total + len(weights), 1)
    assert sum(parts) == total + len(weights)
    assert min(parts) >= 1
    for part, weight in zip(parts, weights, strict=True):
        share = weight / math.fsum(weights)
        assert abs(part - 1 - total * share) <= len(weights) + 1 + total * 1e-12


@given(st.lists(st.floats(0.001, 100), min_size=1, max_size=33))
def test_tables_of_shares_hold_their_weights(weights: list[float]) -> None:
    table = Choices.of(weights)
    shares = np.diff(table.edges) / (1 << 62)
    assert shares.tolist() == pytest.approx([w / sum(weights) for w in weights], abs=1e-12)
    assert int(table.edges[-1]) == 1 << 62


@given(WORDS, st.integers(1, 2000), st.lists(st.floats(0, 10), min_size=1, max_size=9))
def test_kinds_come_as_often_as_their_share(key: int, n: int, weights: list[float]) -> None:
    assume(sum(weights) > 0.1)
    table, out = Choices.of(weights), np.zeros(n, np.int64)
    kernels.draw_kinds(np.uint64(key), 0, table.bits, table.edges, table.guide, out)
    for kind, weight in enumerate(weights):
        assert abs(int((out == kind).sum()) - n * weight / sum(weights)) <= 1.001


@pytest.mark.parametrize("theta", [0.0, 0.5, 0.99, 1.0, 1.5, 4.0])
@pytest.mark.parametrize("n", [1, 2, 300, 5000])
def test_ranks_are_those_of_zipf(theta: float, n: int) -> None:
    ranks = Ranks.zipf(n, theta)
    exact = np.arange(1, n + 1) ** -theta
    assert ranks.low[-1] + ranks.count[-1] == n
    for low, count, weight in zip(ranks.low, ranks.count, ranks.weight, strict=True):
        assert weight == pytest.approx(exact[low : low + count].sum(), rel=1e-3)


# --- The same trace, however it is made ----------------------------------------------------------

GOLDEN = {
    "benchmark": "babe5ebe60d6834c23c84feaa35817b205dda932bf0ea98452fe76c27091e32b",
    "database": "00338c3cf9a647230fd155592f3291ea5a40598c5b55693b2269817cb1bee3fb",
    "fileserver": "50fef09b73fe36cb8633f3fbe08f5f18f54d1578a6c6329709c51f59fd5736ab",
}


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_traces_are_the_golden_ones(name: str) -> None:
    assert synthesise(Spec.load(name).with_requests(100_000)).digest == GOLDEN[name]


def test_every_shipped_spec_has_a_golden_trace() -> None:
    assert set(specs()) == set(GOLDEN)


@pytest.mark.parametrize("name", sorted(GOLDEN))
@pytest.mark.parametrize(("threads", "task_slices"), [(1, 1), (3, 2), (2, 5)])
def test_threads_and_tasks_change_nothing(name: str, threads: int, task_slices: int) -> None:
    requests = 5 * SLICE_ROWS + 123
    trace = synthesise(
        Spec.load(name).with_requests(requests), threads=threads, task_slices=task_slices
    )
    assert len(trace) == requests
    assert trace.digest == synthesise(Spec.load(name).with_requests(requests), threads=2).digest


def test_volumes_of_many_ties_are_merged_in_one_order() -> None:
    """Ten volumes with some thousand requests at the same nanosecond, in tasks of any size."""
    spec = Spec.from_dict(
        {
            "duration": 1e-4,
            "volumes": [{"size": "1GiB"} for _ in range(3)],
            "workload": {"requests": 90_000, "working_set": "1MiB", "arrival": "constant"},
        }
    )
    made = [synthesise(spec, threads=t, task_slices=s) for t, s in ((1, 1), (2, 2), (2, 8))]
    assert len({trace.digest for trace in made}) == 1
    requests = made[0].requests
    order = np.lexsort((requests.volume, requests.time_ns))
    assert np.array_equal(order, np.arange(len(order)))


def test_the_seed_makes_the_difference() -> None:
    one, two = (synthesise(Spec.from_dict(declared(requests=1000) | {"seed": s})) for s in (1, 2))
    assert one.digest != two.digest
    assert one.provenance["seed"] == 1
    assert one.metadata.source_format == "synthetic"


sizes_of = st.dictionaries(
    st.sampled_from(["512", "1KiB", "4KiB", "20KiB", "64KiB", "1MiB"]),
    st.floats(0.01, 10),
    min_size=1,
    max_size=4,
)
share = st.just(0.0) | st.floats(0.001, 1)
workloads = st.fixed_dictionaries(
    {"requests": st.integers(0, 3000)},
    optional={
        "arrival": st.sampled_from(["constant", "poisson", "bursty"]),
        "burst": st.fixed_dictionaries({"factor": st.floats(1, 50), "length": st.just("3s")}),
        "diurnal": st.fixed_dictionaries({"amplitude": share, "peak": st.floats(0, 24)}),
        "profile": st.lists(st.floats(0.1, 9), min_size=1, max_size=20),
        "read_share": share,
        "fua_share": share,
        "flush_every": st.floats(0.5, 100),
        "discard_every": st.floats(0.5, 100),
        "sizes": sizes_of,
        "read_sizes": sizes_of,
        "discard_sizes": sizes_of,
        "alignment": st.sampled_from(["512", "4KiB", "64KiB"]),
        "working_set": st.sampled_from(["2MiB", "1%", "35%"]),
        "extents": st.sampled_from(["2MiB", "20MiB", ["1MiB", "3MiB", "64KiB"]]),
        "mix": st.fixed_dictionaries(
            {"sequential": st.floats(0.01, 1)},
            optional={
                "uniform": share,
                "zipf": share,
                "hot_cold": share,
                "streams": st.integers(1, 9),
                "stream_space": st.floats(0.01, 1),
                "run": st.sampled_from(["0", "64KiB", "1MiB"]),
                "theta": st.floats(0, 3),
                "hot_space": st.floats(0.01, 1),
                "granule": st.sampled_from(["0", "4KiB", "100KiB"]),
            },
        ),
    },
)


@given(st.lists(workloads, min_size=1, max_size=3), st.integers(0, (1 << 63) - 1), st.booleans())
def test_any_spec_makes_its_trace_or_says_why_not(
    made_of: list[dict[str, Any]], seed: int, identities: bool
) -> None:
    spec = Spec.from_dict(
        {
            "seed": seed,
            "duration": "2min",
            "volumes": [{"size": "300MiB", "workload": w} for w in made_of],
            "content": {"identities": identities},
        }
    )
    again = Spec.from_dict(tomllib.loads(spec.to_toml()))
    assert again == spec
    assert again.digest == spec.digest
    try:
        trace = synthesise(spec, threads=2)  # every trace is checked when it is made
    except InputError:  # these cannot hold together
        return
    assert len(trace) == spec.requests
    assert ("content" in trace.table.column_names) == identities
    for i, volume in enumerate(spec.volumes):
        rows = trace.requests.volume == i
        assert rows.sum() == volume.workload.requests
        grid = (trace.requests.offset[rows] % volume.workload.alignment).tolist()
        assert set(grid) <= {0}
    assert synthesise(spec, threads=1, task_slices=1).digest == trace.digest


# --- What is declared is what is measured --------------------------------------------------------


def written(trace: Trace, block: int = 4096) -> np.ndarray:
    """How often each block of the first volume was written."""
    r = trace.requests
    rows = (r.op == Op.WRITE) & (r.volume == 0)
    first = r.offset[rows] // block
    stop = -(-(r.offset[rows] + r.length[rows]) // block)
    steps = np.zeros(-(-trace.volumes[0].size // block) + 1, np.int64)
    np.add.at(steps, first, 1)
    np.add.at(steps, stop, -1)
    return np.cumsum(steps)[:-1]


def runs(mask: np.ndarray) -> np.ndarray:
    """Lengths of the runs of True."""
    steps = np.diff(np.concatenate([[0], mask.astype(np.int8), [0]]))
    return np.flatnonzero(steps == -1) - np.flatnonzero(steps == 1)


MIXES = {
    "sequential": {"sequential": 1, "uniform": 0, "zipf": 0, "streams": 4},
    "uniform": {"sequential": 0, "uniform": 1, "zipf": 0},
    "zipf": {"sequential": 0, "uniform": 0, "zipf": 1},
    "hot_cold": {"sequential": 0, "uniform": 0, "zipf": 0, "hot_cold": 1},
    "all": {"sequential": 1, "uniform": 1, "zipf": 1, "hot_cold": 1, "stream_space": 0.3},
}


def ratio_of(trace: Trace) -> float:
    blocks = written(trace)
    return float(blocks.sum() / (blocks > 0).sum())


@pytest.mark.parametrize("mix_name", MIXES)
@pytest.mark.parametrize("ratio", [2.4, 3.5, 10])
@pytest.mark.parametrize("sizes", ["4KiB", {"4KiB": 0.7, "64KiB": 0.3}])
def test_rewrite_ratio(mix_name: str, ratio: float, sizes: Any) -> None:
    trace = made(requests=200_000, rewrite_ratio=ratio, sizes=sizes, extents="4MiB",
                 mix=MIXES[mix_name], size="64GiB")  # fmt: skip
    assert ratio_of(trace) == pytest.approx(ratio, rel=0.02)


@pytest.mark.parametrize("mix_name", MIXES)
@pytest.mark.parametrize("extents", [[], "64KiB", "256KiB", ["64KiB"] * 3])
def test_rewrite_ratio_of_short_extents(mix_name: str, extents: Any) -> None:
    """Extents as long as the largest request, by the mean or each of them, and in one piece."""
    for ratio in (3, 10):
        trace = made(requests=100_000, rewrite_ratio=ratio, extents=extents, mix=MIXES[mix_name],
                     size="64GiB")  # fmt: skip
        assert ratio_of(trace) == pytest.approx(ratio, rel=0.05)


@pytest.mark.parametrize("mix_name", MIXES)
def test_rewrite_ratio_of_more_requests_than_a_trial_has(mix_name: str) -> None:
    trace = made(requests=1_000_000, read_share=0.5, rewrite_ratio=4, extents="128KiB",
                 mix=MIXES[mix_name], size="1TiB")  # fmt: skip
    churn = measure(trace, "whole").churn
    assert churn["rewrite_ratio"][0] == pytest.approx(4, rel=0.04)


def test_rewrite_ratio_that_short_extents_cannot_make() -> None:
    work = {"requests": 50_000, "rewrite_ratio": 1.05, "extents": "64KiB", "size": "64GiB"}
    with pytest.raises(InputError, match=r"1\.05 cannot come of these writes.* more than 1\.[1-9]"):
        made(mix=MIXES["sequential"], **work)
    assert ratio_of(made(mix=MIXES["uniform"], **work)) == pytest.approx(1.05, rel=0.04)


@given(st.lists(st.lists(st.tuples(st.integers(-9, 99), st.integers(1, 9)), max_size=9)))
def test_union(batches: list[list[tuple[int, int]]]) -> None:
    union = Union()
    for batch in batches:
        start = ints(a for a, _ in batch)
        union.add(start, start + ints(n for _, n in batch))
        if len(batch) == 3:
            union.finish()
    start, stop = union.finish()
    covered = {x for batch in batches for a, n in batch for x in range(a, a + n)}
    assert [x for a, b in zip(start, stop, strict=True) for x in range(a, b)] == sorted(covered)
    assert (start[1:] > stop[:-1]).all()


@pytest.mark.parametrize("mix_name", ["sequential", "uniform"])
def test_a_workload_that_hardly_rewrites(mix_name: str) -> None:
    trace = made(requests=200_000, rewrite_ratio=1.05, sizes="16KiB", mix=MIXES[mix_name])
    blocks = written(trace)
    assert blocks.sum() / (blocks > 0).sum() == pytest.approx(1.05, rel=0.01)


@pytest.mark.parametrize("name", ["uniform", "sequential"])
def test_working_set_and_its_extents(name: str) -> None:
    trace = made(requests=400_000, read_share=0, sizes="4KiB", working_set="1GiB", size="16GiB",
                 extents="256KiB", mix=MIXES[name])  # fmt: skip
    blocks = written(trace) > 0
    assert blocks.sum() * 4096 == pytest.approx(GIB, rel=0.002)
    found = runs(blocks) * 4096
    assert found.mean() == pytest.approx(256 * KIB, rel=0.02)
    assert found.std() == pytest.approx(256 * KIB, rel=0.15)  # exponential: as large as the mean
    quarters = [int(part.sum()) for part in np.array_split(blocks, 4)]
    assert max(quarters) < 1.1 * min(quarters)  # all over the volume


def test_extents_of_declared_lengths() -> None:
    trace = made(requests=200_000, read_share=0, sizes="4KiB", working_set="400MiB",
                 extents=["16KiB", "64KiB", "1MiB"], gaps=[1, 1, 50],
                 mix=MIXES["uniform"])  # fmt: skip
    found = runs(written(trace) > 0) * 4096
    lengths, counts = np.unique(found, return_counts=True)
    common = sorted(lengths[np.argsort(-counts)][:3].tolist())
    assert common == pytest.approx([16 * KIB, 64 * KIB, MIB], rel=0.3)


def test_a_working_set_in_one_piece() -> None:
    trace = made(requests=100_000, read_share=0, sizes="4KiB", working_set="50MiB",
                 mix=MIXES["uniform"])  # fmt: skip
    assert (runs(written(trace) > 0) * 4096).tolist() == [50 * MIB]


def test_operations_and_sizes() -> None:
    sizes = {"4KiB": 3, "32KiB": 1}
    trace = made(requests=100_000, read_share=0.25, flush_every=10, discard_every=20,
                 fua_share=0.1, sizes=sizes, read_sizes="8KiB", discard_sizes="1MiB")  # fmt: skip
    r = trace.requests
    counts = np.bincount(r.op, minlength=6)
    assert counts[Op.READ] / (counts[Op.READ] + counts[Op.WRITE]) == pytest.approx(0.25, abs=1e-3)
    assert counts[Op.WRITE] / counts[Op.FLUSH] == pytest.approx(10, rel=0.01)
    assert counts[Op.WRITE] / counts[Op.DISCARD] == pytest.approx(20, rel=0.01)
    writes = r.op == Op.WRITE
    assert np.mean(r.length[writes] == 4 * KIB) == pytest.approx(0.75, abs=1e-3)
    assert set(r.length[writes].tolist()) == {4 * KIB, 32 * KIB}
    assert set(r.length[r.op == Op.READ].tolist()) == {8 * KIB}
    assert set(r.length[r.op == Op.DISCARD].tolist()) == {MIB}
    assert not r.length[r.op == Op.FLUSH].any()
    assert np.mean(r.flags[writes] == Flag.FUA) == pytest.approx(0.1, abs=1e-3)
    assert not r.flags[~writes].any()


@pytest.mark.parametrize("theta", [0.6, 0.99, 1.4])
def test_zipf_slope(theta: float) -> None:
    trace = made(requests=1_000_000, read_share=0, sizes="4KiB", working_set="400MiB",
                 mix={"sequential": 0, "uniform": 0, "zipf": 1, "theta": theta})  # fmt: skip
    blocks = written(trace)
    hits = np.sort(blocks)[::-1][:1000]
    ranks = np.arange(1, 1001)
    part = slice(4, 500)
    slope = np.polyfit(np.log(ranks[part]), np.log(hits[part]), 1)[0]
    assert -slope == pytest.approx(theta, abs=0.05)
    hottest = np.flatnonzero(blocks >= hits[99])
    assert np.mean(np.diff(np.sort(hottest)) == 1) < 0.05  # scattered, not side by side


def test_hot_and_cold() -> None:
    trace = made(requests=1_000_000, read_share=0, sizes="4KiB", working_set="200MiB",
                 mix=MIXES["hot_cold"] | {"hot_access": 0.9, "hot_space": 0.1})  # fmt: skip
    hits = np.sort(written(trace))[::-1][: 50 * MIB * 4 // 4096]
    assert hits[: len(hits) // 10].sum() / hits.sum() == pytest.approx(0.9, abs=0.01)


def test_sequential_share_and_streams() -> None:
    trace = made(requests=50_000, read_share=0, sizes="16KiB", working_set="1GiB",
                 mix={"sequential": 0.4, "uniform": 0.6, "zipf": 0, "streams": 3})  # fmt: skip
    r, found = trace.requests, np.zeros(50_000, bool)
    ends = r.offset + r.length
    for lag in range(1, 64):
        found[lag:] |= r.offset[lag:] == ends[:-lag]
    assert found.mean() == pytest.approx(0.4, abs=0.01)


def test_reads_and_writes_of_a_stream_do_not_mix() -> None:
    trace = made(requests=10_000, read_share=0.5, sizes="4KiB", working_set="1GiB",
                 mix=MIXES["sequential"] | {"streams": 1})  # fmt: skip
    for op in (Op.READ, Op.WRITE):
        at = trace.requests.offset[trace.requests.op == op]
        assert set(np.diff(at).tolist()) == {4096}


@pytest.mark.parametrize("arrival", ["constant", "poisson"])
def test_arrivals(arrival: str) -> None:
    trace = made(requests=200_000, arrival=arrival, duration="200s", flush_every=0)
    gaps = np.diff(trace.requests.time_ns) / 1e6  # ms, 1 on average
    assert gaps.mean() == pytest.approx(1, rel=0.001)
    if arrival == "constant":
        assert gaps.std() < 1e-5
    else:
        assert gaps.std() == pytest.approx(1, rel=0.02)
        assert np.mean(gaps > 3) == pytest.approx(math.exp(-3), rel=0.05)
        per_100ms = np.bincount(trace.requests.time_ns // 10**8)
        assert per_100ms.var() / per_100ms.mean() == pytest.approx(1, abs=0.15)


def test_bursts() -> None:
    trace = made(requests=500_000, arrival="bursty", duration="10h",
                 burst={"factor": 20, "length": "4min"})  # fmt: skip
    per_minute = np.bincount(trace.requests.time_ns // (60 * 10**9), minlength=600)
    peak = np.sort(per_minute)[-5:].mean() / per_minute.mean()
    assert peak == pytest.approx(20, rel=0.1)
    assert np.sort(per_minute)[-20:].sum() / per_minute.sum() == pytest.approx(0.5, abs=0.2)


def test_days_and_profiles() -> None:
    trace = made(requests=480_000, duration="48h", diurnal={"amplitude": 0.8, "peak": 14})
    hours = np.bincount(trace.requests.time_ns // (3600 * 10**9), minlength=48).reshape(2, 24)
    assert hours[0] == pytest.approx(hours[1], rel=0.1)
    assert hours.sum(axis=0).argmax() in (13, 14)
    assert hours.max() / hours.min() == pytest.approx(1.8 / 0.2, rel=0.15)
    trace = made(requests=100_000, duration="1h", profile=[1, 0, 3])
    thirds = np.bincount(trace.requests.time_ns * 3 // (3600 * 10**9), minlength=3)
    assert thirds.tolist() == pytest.approx([25_000, 0, 75_000], abs=300)


@given(st.sampled_from(["constant", "bursty"]), st.integers(0, 99), st.data())
def test_arrival_curves_rise_from_0_to_1(arrival: str, key: int, data: st.DataObject) -> None:
    spec = Spec.from_dict(
        declared(
            requests=10,
            arrival=arrival,
            duration=data.draw(st.sampled_from([1e-6, 1, "1h", "30d"])),
            burst={"factor": data.draw(st.floats(1, 1000)), "length": "1h"},
            diurnal=data.draw(st.lists(st.floats(0.5, 9), min_size=24, max_size=24)),
            profile=[0.0, *data.draw(st.lists(st.floats(0.5, 9), min_size=1, max_size=9))],
        )
    )
    edges, before = arrival_curve(spec.volumes[0].workload, spec.duration, key)
    assert (edges[0], edges[-1]) == (0, spec.duration)
    assert (before[0], before[-1]) == (0, 1)
    assert (np.diff(edges) > 0).all()
    assert (np.diff(before) >= 0).all()


def test_content_has_its_shares() -> None:
    spec = Spec.from_dict(
        declared(requests=100_000, read_share=0.1)
        | {"content": {"zero": 10, "duplicate": 30, "compressible": 20, "identities": True}}
    )
    column = synthesise(spec).table.column("content").combine_chunks()
    ids = column.drop_null().to_pylist()
    assert len(ids) == 90_000
    values, counts = np.unique(np.array([i.hex() for i in ids]), return_counts=True)
    assert values[0] == "00" * 16
    assert counts[0] / len(ids) == pytest.approx(0.1, abs=0.01)
    assert len(values) == pytest.approx(1 + 1024 + 0.6 * len(ids), rel=0.01)


def test_replay_takes_the_declared_shares(tmp_path: Any) -> None:
    from vmbk.disk.raw import RawDisk
    from vmbk.disk.replay import ContentMix, replay

    spec = declared(requests=300, read_share=0, sizes="4KiB", working_set="1MiB", size="8MiB")
    zeros = {"content": {"zero": 100, "compressible": 0, "duplicate": 0}}
    trace = synthesise(Spec.from_dict(spec | zeros))
    assert ContentMix.of(trace) == ContentMix(zero=100, compressible=0, duplicate=0)
    with RawDisk.create(tmp_path / "disk.raw", 8 * MIB) as disk:
        replay(trace, disk)
    assert not any((tmp_path / "disk.raw").read_bytes())


# --- Declarations --------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
BAD = [
    NAN,
    INF,
    -INF,
    1e308,
    -1,
    -0.5,
    "x",
    "-1GiB",
    None,
    [],
    {},
    True,
    10**400,
    [NAN],
    {"4KiB": NAN},
]
FIELDS = ["requests", "arrival", "read_share", "flush_every", "fua_share", "alignment", "shift",
          "working_set", "rewrite_ratio", "extents", "sizes", "mix", "burst", "diurnal", "profile",
          "gaps"]  # fmt: skip
EMPTY = {"extents": [], "gaps": [], "diurnal": [], "profile": [], "mix": {}, "burst": {}}
"""What may be empty, and stands for the default then."""


@pytest.mark.parametrize("value", BAD, ids=lambda value: repr(value)[:12])
@pytest.mark.parametrize("field", FIELDS)
def test_bad_values_are_refused(field: str, value: Any) -> None:
    if field == "diurnal" and value == {}:
        return  # a cosine by default
    if field in EMPTY and value == EMPTY[field]:
        assert len(made(**{"requests": 3, field: value})) == 3
        return
    with pytest.raises(InputError) as caught:
        Spec.from_dict(declared(**{"requests": 3, field: value}))
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("value", BAD, ids=lambda value: repr(value)[:12])
@pytest.mark.parametrize(
    "where",
    ["seed", "duration", "volumes", "content", "doc", "size", "name", "workload", "sector_size",
     "zero", "identities", "theta", "streams", "factor", "length", "rate"],
)  # fmt: skip
def test_bad_values_elsewhere_are_refused(where: str, value: Any) -> None:
    spec: dict[str, Any] = declared(requests=3)
    volume = spec["volumes"][0]
    if where in ("size", "name", "workload", "sector_size"):
        volume[where] = value
    elif where in ("zero", "identities"):
        spec["content"] = {where: value}
    elif where in ("theta", "streams"):
        spec["workload"]["mix"] = {where: value}
    elif where in ("factor", "length"):
        spec["workload"]["burst"] = {where: value}
    elif where == "rate":
        spec["workload"] = {where: value}
    else:
        spec[where] = value
    good = [("content", {}), ("workload", {}), ("name", "x"), ("name", "-1GiB"), ("doc", "x"),
            ("doc", "-1GiB"), ("identities", True)]  # fmt: skip
    if any(where == name and value == allowed for name, allowed in good):
        assert Spec.from_dict(spec).requests == 3
        return
    with pytest.raises(InputError) as caught:
        Spec.from_dict(spec)
    assert len(str(caught.value)) < 500


def python_spec(**workload: Any) -> Spec:
    work = Workload(**{"requests": 10, "working_set": MIB} | workload)
    return Spec(10**9, (VolumeSpec("a", GIB, work),))


def test_lists_tables_and_single_lengths_are_taken_as_meant() -> None:
    plain = python_spec(sizes=((4096, 1.0), (512, 2.0)), extents=(65536,), diurnal=(1.0,) * 24)
    for spec in (
        python_spec(sizes=[(4096, 1.0), [512, 2.0]], extents=65536, diurnal=[1.0] * 24),
        python_spec(sizes={4096: 1.0, 512: 2.0}, extents=[65536], diurnal=(1.0,) * 24),
        Spec(10**9, list(plain.volumes)),
    ):
        assert spec == plain
        assert spec.digest == plain.digest
        assert Spec.from_dict(tomllib.loads(spec.to_toml())) == plain


WRONG = [None, "x", 1.5, object(), {"a": 1}, {4096}, [None], [[4096]], [(4096, 1.0, 2)], b"x"]


@pytest.mark.parametrize("value", WRONG, ids=lambda value: repr(value)[:8])
@pytest.mark.parametrize("name", [*FIELDS, "flush_every", "read_sizes", "discard_sizes"])
def test_values_of_wrong_types_are_refused(name: str, value: Any) -> None:
    if isinstance(value, float) and name in ("flush_every", "rewrite_ratio"):
        return
    with pytest.raises(InputError, match=rf"^{name}: .* is not ") as caught:
        python_spec(**{"working_set": 0 if name == "rewrite_ratio" else MIB, name: value})
    if not isinstance(value, list | dict | set):
        assert quoted(value) in str(caught.value)


@pytest.mark.parametrize("value", [None, "x", 3, [None], {}], ids=repr)
def test_parts_of_wrong_types_are_refused(value: Any) -> None:
    good = python_spec()
    with pytest.raises(InputError, match=r"^workload: "):
        VolumeSpec("a", GIB, value)
    with pytest.raises(InputError, match=r"^volumes: "):
        Spec(10**9, value)
    with pytest.raises(InputError, match=r"^content: "):
        Spec(10**9, good.volumes, content=value)
    with pytest.raises(InputError, match=r"^spec: .* is not a Spec"):
        synthesise(value)
    with pytest.raises(InputError):
        Mix(sequential=value if value != 3 else -3)


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=200)
@given(
    st.sampled_from(["seed", "duration", "volumes", "workload", "content", "doc", "other"]),
    st.sampled_from([*FIELDS, "rate", "nonsense"]),
    json_like,
)
def test_whatever_is_declared_an_input_error_says_so(key: str, field: str, value: Any) -> None:
    for spec in (
        declared(requests=10) | {key: value},
        declared(**{"requests": 10, field: value}),
    ):
        try:
            parsed = Spec.from_dict(spec)
        except InputError:
            continue
        assert Spec.from_dict(tomllib.loads(parsed.to_toml())) == parsed


@pytest.mark.parametrize(
    ("workload", "message"),
    [
        ({"requests": 10, "rate": 10}, "one of the two"),
        ({}, "one of the two"),
        ({"requests": 5_000_000_000}, "4,000,000,000"),
        ({"requests": 10, "working_set": "1GiB", "rewrite_ratio": 3}, "cannot stand together"),
        ({"requests": 10, "working_set": "20GiB"}, "larger than the volume"),
        ({"requests": 10, "sizes": {"4KiB": 0.0}}, "above 0"),
        ({"requests": 10, "sizes": {"4KiB": 1, "4096": 1}}, "different sizes"),
        ({"requests": 10, "sizes": "1000"}, "multiple of 512"),
        ({"requests": 10, "surprise": 1}, "surprise"),
        ({"requests": 10, "mix": {"zipff": 1}}, "zipff"),
        ({"requests": 10, "arrival": "often"}, "constant, poisson, bursty"),
        ({"requests": 10, "arrival": "bursty", "burst": {"factor": 10, "share": 0.5}}, "at most 1"),
        ({"requests": 10, "arrival": "bursty", "burst": {"length": "1us"}}, "burst.length"),
    ],
)
def test_contradictions_are_refused(workload: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Spec.from_dict(declared(**workload))


@pytest.mark.parametrize(
    ("workload", "message"),
    [
        ({"requests": 10, "working_set": "4KiB"}, "holds no request"),
        ({"requests": 10, "size": "8MiB", "working_set": "99%", "extents": "4KiB"}, "no room"),
        ({"requests": 10, "working_set": "1GiB", "extents": "4KiB"}, "no extent holds"),
        ({"requests": 10, "working_set": "1GiB", "extents": "1KiB"}, "shorter than"),
        ({"requests": 10_000_000, "rewrite_ratio": 1.01}, "cannot come of these writes"),
        ({"requests": 100, "rewrite_ratio": 1e6}, "cannot come of these writes"),
        ({"requests": 1, "size": "32KiB"}, "does not fit"),
    ],
)
def test_what_cannot_be_made_is_refused(workload: dict[str, Any], message: str) -> None:
    spec = Spec.from_dict(
        declared(**({"working_set": "50%"} if "32KiB" in str(workload) else {}), **workload)
    )
    with pytest.raises(InputError, match=message):
        synthesise(spec)


def test_a_short_spec_is_enough(tmp_path: Any) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('duration = "10min"\n[[volumes]]\nsize = "1GiB"\n[workload]\nrate = 100\n')
    trace = synthesise(Spec.load(path))
    assert len(trace) == 60_000
    assert trace.provenance["spec"] == Spec.load(path).digest


def test_a_volume_overrides_what_is_shared() -> None:
    spec = Spec.from_dict(
        {
            "duration": "1h",
            "workload": {"rate": 10, "working_set": "10%", "mix": {"theta": 1.2}},
            "volumes": [
                {"size": "1GiB", "workload": {"requests": 5, "rewrite_ratio": 2}},
                {"size": "2GiB", "workload": {"mix": {"streams": 3}}},
            ],
        }
    )
    one, two = (volume.workload for volume in spec.volumes)
    assert (one.requests, one.working_set, one.rewrite_ratio, one.mix.theta) == (5, 0, 2, 1.2)
    assert (two.requests, two.working_set) == (36_000, 2 * GIB // 10)
    assert (two.mix.streams, two.mix.theta) == (3, 0.99)  # a table is replaced whole


def test_another_number_of_requests_keeps_the_proportions() -> None:
    spec = Spec.load("database").with_requests(1001)
    assert [v.workload.requests for v in spec.volumes] == [750, 251]
    assert spec.with_requests(0).requests == 0
    assert len(synthesise(spec.with_requests(0))) == 0


@pytest.mark.parametrize("text", ["", "seed = ", "a = 1", "\xff\xfe"])
def test_files_that_are_no_spec(text: str, tmp_path: Any) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError):
        Spec.load(path)


def test_specs_that_are_not_there(tmp_path: Any) -> None:
    for name in ("nosuch", str(tmp_path / "nosuch.toml")):
        with pytest.raises(NotFoundError):
            Spec.load(name)
    with pytest.raises(InputError, match="regular file"):
        Spec.load(_folder(tmp_path / "folder.toml"))


def _folder(path: Any) -> Any:
    path.mkdir()
    return path
