"""Content cut into chunks, ways of cutting compared, and blocks measured."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vmbk
from vmbk import charts
from vmbk.content import source
from vmbk.content.chunking import Chunking, cut_chunks
from vmbk.content.comparison import CHUNK_COST, REFERENCE_COST, compare_chunking, replayed_states
from vmbk.content.statistics import content_blocks, content_summary
from vmbk.errors import InputError, NotFoundError
from vmbk.units import KIB, MIB

KINDS = ("zero", "duplicate", "compressible", "incompressible")


def random_bytes(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


# --- Cutting -------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 1 << 32),
    st.lists(st.integers(0, 60_000), max_size=8),
    st.sampled_from([64, 3000, 5000, 1 << 20]),
    st.booleans(),
)
def test_chunks_do_not_depend_on_how_content_comes(
    seed: int, cuts: list[int], piece: int, fixed: bool
) -> None:
    data = random_bytes(60_000, seed)
    data[20_000:35_000] = 0
    how = Chunking.of_size(1000) if fixed else Chunking.fastcdc(512)
    whole = cut_chunks(data, how)
    edges = [0, *sorted(cuts), len(data)]
    parts = [data[a:b].tobytes() for a, b in pairwise(edges)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vmbk.content.chunking.PIECE", piece)
        pieces = cut_chunks(iter(parts), how)
    assert np.array_equal(whole.lengths, pieces.lengths)
    assert np.array_equal(whole.digests, pieces.digests)
    assert np.array_equal(whole.zero, pieces.zero)
    assert whole.size == len(data)
    assert whole.ends[-1] == len(data)


@pytest.mark.parametrize("how", [Chunking.of_size("4KiB"), Chunking.fastcdc("4KiB")])
def test_a_file_is_cut_as_its_bytes_are(tmp_path: Path, how: Chunking) -> None:
    data = np.concatenate([random_bytes(200_001), np.zeros(150_000, np.uint8), random_bytes(9, 1)])
    path = tmp_path / "disk.img"
    path.write_bytes(data.tobytes())
    chunks = cut_chunks(path, how)
    assert np.array_equal(chunks.lengths, cut_chunks(data.tobytes(), how).lengths)
    at = 0
    for length, digest, zero in zip(chunks.lengths, chunks.digests, chunks.zero, strict=True):
        part = data[at : at + length]
        assert zero == (not part.any())
        assert digest == vmbk.hash_blocks(part, int(length)).digests[0]
        at += length
    assert chunks.zero.any()
    assert "zeros aside" in chunks._repr_html_()


def test_pieces_are_regrouped() -> None:
    parts = [b"", b"abc", b"d" * 10, b"", b"e"]
    assert [bytes(p) for p in source.pieces(iter(parts), 4)] == [b"abcd", b"dddd", b"dddd", b"de"]
    assert [bytes(p) for p in source.pieces(b"abcdefgh", 4)] == [b"abcd", b"efgh"]
    assert list(source.pieces(b"")) == []


def test_no_content_has_no_chunks() -> None:
    for how in (Chunking.of_size(64), Chunking.fastcdc(256)):
        assert len(cut_chunks(b"", how)) == 0
        assert cut_chunks(b"", how).unique() == (0, 0)


def test_sizes_gather_around_the_target() -> None:
    data = random_bytes(32 * MIB)
    means, spreads = [], []
    for level in range(4):
        lengths = cut_chunks(data, Chunking.fastcdc("8KiB", level=level)).lengths
        means.append(lengths.mean() / (8 * KIB))
        spreads.append(lengths.std() / lengths.mean())
    assert spreads == sorted(spreads, reverse=True)
    assert means[2] == pytest.approx(1.13, abs=0.03)
    assert max(means) < 1.35


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Chunking.of_size(63), "64 bytes to 256 MiB"),
        (lambda: Chunking.fastcdc(255), "256 bytes to 4 MiB"),
        (lambda: Chunking.fastcdc("8MiB"), "256 bytes to 4 MiB"),
        (lambda: Chunking.fastcdc(4096, least=63), "the least is 64"),
        (lambda: Chunking.fastcdc(4096, least=5000), "target lies between"),
        (lambda: Chunking.fastcdc(4096, most="1GiB"), "256 MiB"),
        (lambda: Chunking.fastcdc(4096, level=4), "level 4"),
        (lambda: cut_chunks(7), "no content in a int"),
        (lambda: cut_chunks([7]), "no content in a int"),
        (lambda: compare_chunking([]), "no states"),
        (lambda: compare_chunking([b"a"], chunk_cost=-1), "none is negative"),
        (lambda: content_blocks(b"a", 63), "64 bytes to 64 MiB"),
        (lambda: content_blocks(b"a", every=0), "every 0 windows"),
        (lambda: content_blocks(b"a", workers=0), "workers must be"),
        (lambda: charts.stored_by_chunks({}), "nothing to draw"),
        (lambda: charts.kinds_of_content({}), "nothing to draw"),
    ],
)
def test_what_is_not_possible(call: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()  # type: ignore[operator]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for function in (cut_chunks, content_blocks):
        with pytest.raises(NotFoundError):
            function(tmp_path / "none")


# --- Comparing -----------------------------------------------------------------------------------


def test_comparison_counts_by_hand() -> None:
    first = np.concatenate([random_bytes(4096), random_bytes(4096, 1), np.zeros(4096, np.uint8)])
    second = first.copy()
    second[0] ^= 1
    row = compare_chunking([first, second], [4096]).filter(pl.col("method") == "fixed").to_dicts()
    overhead = 3 * CHUNK_COST + 4 * REFERENCE_COST
    assert row == [
        {
            "method": "fixed", "size": 4096, "chunks": 4, "unique_chunks": 3, "mean_bytes": 4096.0,
            "bytes": 6 * 4096, "unique_bytes": 3 * 4096, "added_bytes": 4096, "dedup_ratio": 2.0,
            "overhead_bytes": overhead, "stored_bytes": 3 * 4096 + overhead,
        }
    ]  # fmt: skip


def test_fixed_wins_where_blocks_are_overwritten_and_fastcdc_where_they_move() -> None:
    trace = vmbk.read_trace(vmbk.dataset_path("ext4-fragmented"))
    disk = list(replayed_states(trace, 2))
    assert [len(state) for state in disk] == [64 * MIB] * 2
    file = random_bytes(4 * MIB)
    moved = np.concatenate([file[: 1 << 20], random_bytes(100, 1), file[1 << 20 :]])
    sizes = ["4KiB", "64KiB"]
    for states, better, worse in ((disk, "fixed", "fastcdc"), ([file, moved], "fastcdc", "fixed")):
        found = compare_chunking(states, sizes)
        assert found["method"].to_list() == ["fastcdc"] * 2 + ["fixed"] * 2
        stored = {m: found.filter(pl.col("method") == m)["stored_bytes"] for m in (better, worse)}
        assert (stored[better] * 1.5 < stored[worse]).all()
    svg = charts.to_svg(charts.stored_by_chunks({"a disk": found, "another": found}))
    assert "a disk" in svg
    assert "stored, MiB" in svg


def test_states_are_those_of_a_replay(tmp_path: Path) -> None:
    trace = vmbk.read_trace(vmbk.dataset_path("ext4-two-disks"))
    volume = trace.volumes[1]
    states = list(replayed_states(trace, 3, volume=volume.id))
    with pytest.raises(InputError, match="no volume 77"):
        next(replayed_states(trace, 3, volume=77))
    with pytest.raises(InputError, match="0 states"):
        next(replayed_states(trace, 0))
    disks = {v.id: vmbk.RawDisk.create(tmp_path / f"{v.id}.img", v.size) for v in trace.volumes}
    vmbk.replay(trace, disks, stop=len(trace) * 2 // 3)
    for disk in disks.values():
        disk.close()
    data = np.fromfile(tmp_path / f"{volume.id}.img", np.uint8)
    assert np.array_equal(states[1], data)
    assert not np.array_equal(states[0], states[2])


# --- Measuring -----------------------------------------------------------------------------------


def test_blocks_of_each_kind(tmp_path: Path) -> None:
    text = np.frombuffer((b"all work and no play makes a dull disk; " * 2000)[:65536], np.uint8)
    noise = random_bytes(65536)
    data = np.concatenate([text, noise, np.zeros(65536, np.uint8), noise, text[:1000]])
    path = tmp_path / "disk.img"
    path.write_bytes(data.tobytes())
    for blocks in (
        content_blocks(data, workers=1),
        content_blocks(path, "64KiB", workers=3),
        content_blocks(data[at : at + 50_001] for at in range(0, len(data), 50_001)),
    ):
        assert blocks["offset"].to_list() == [i * 65536 for i in range(5)]
        assert blocks["bytes"].to_list() == [65536] * 4 + [1000]
        assert blocks["zero"].to_list() == [False, False, True, False, False]
        assert blocks["duplicate"].to_list() == [False, False, False, True, False]
        assert np.array_equal(blocks["digest"], vmbk.hash_blocks(data, 65536).digests)
        text_bits, noise_bits = blocks["entropy"][0], blocks["entropy"][1]
        assert 3 < text_bits < 5
        assert noise_bits > 7.99
        assert blocks["entropy"][2] == 0
        assert blocks["packed_bytes"][0] < 2000
        assert blocks["packed_bytes"][1] == 65536 + 12
    summary = content_summary(blocks)
    assert summary["kind"].to_list() == list(KINDS)
    assert summary["blocks"].to_list() == [1, 1, 2, 1]
    assert summary["share"].sum() == pytest.approx(1)
    svg = charts.to_svg(charts.kinds_of_content({"mine": summary}))
    assert "incompressible" in svg


def test_no_content_has_no_blocks() -> None:
    blocks = content_blocks(b"")
    assert blocks.height == 0
    summary = content_summary(blocks)
    assert summary["bytes"].to_list() == [0] * 4
    assert summary["entropy"].null_count() == 4
    with pytest.raises(InputError, match="there is no content"):
        charts.kinds_of_content({"none": summary})


def test_duplicates_are_those_of_other_pieces_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmbk.content.statistics.PIECE", 8192)
    data = np.tile(random_bytes(4096), 7)
    assert content_blocks(data, 4096)["duplicate"].to_list() == [False] + [True] * 6


def test_public_names() -> None:
    for name in ("Chunking", "compare_chunking", "content_blocks", "content_summary", "cut_chunks"):
        assert getattr(vmbk, name).__doc__
