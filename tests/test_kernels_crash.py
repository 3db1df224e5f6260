"""The kernels that follow crash states, against their naive twins."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import naive
from vmbk.kernels.crash import (
    TOUCHED,
    changed_sectors,
    follow_states,
    former_owners,
    sector_digests,
)

SECTORS = 12  # of each volume
Piece = tuple[int, int]


@pytest.fixture(autouse=True, scope="module")
def wrapping_arithmetic() -> Iterator[None]:
    """Uncompiled, the kernels compute with NumPy scalars, which warn where they wrap around."""
    with np.errstate(over="ignore"):
        yield


def ints(values: list[int]) -> np.ndarray:
    return np.array(values, np.int64)


def first_cells(pieces: list[Piece]) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(ints([count for _, count in pieces])))).astype(np.int64)


@given(st.lists(st.sampled_from([b"\0", b"a", b"b", b"\0" * 511 + b"z"]), max_size=9), st.data())
@settings(max_examples=60, deadline=None)
def test_sector_digests(content: list[bytes], given: st.DataObject) -> None:
    data = b"head" + b"".join((part * 512)[:512] for part in content)
    pieces = []
    for _ in range(given.draw(st.integers(0, 4))):
        first = given.draw(st.integers(0, len(content)))
        count = given.draw(st.integers(0, len(content) - first))
        pieces.append((given.draw(st.sampled_from([-1, 4 + 512 * first])), count))
    cells = first_cells(pieces)
    found = np.ones(int(cells[-1]), np.uint64)
    starts = ints([start for start, _ in pieces])
    sector_digests(np.frombuffer(data, np.uint8), starts, cells, found)
    assert found.tolist() == naive.sector_digests(data, pieces)


def draw_pieces(draw: st.DrawFn, volumes: int) -> tuple[list[Piece], list[int]]:
    """Pieces of each volume, one volume behind the other, and where each volume's begin."""
    pieces, bounds = [], [0]
    for volume in range(volumes):
        for _ in range(draw(st.integers(0, 6))):
            first = draw(st.integers(0, SECTORS - 1))
            count = draw(st.integers(1, min(SECTORS - first, 5)))
            pieces.append((volume * SECTORS + first, count))
        bounds.append(len(pieces))
    return pieces, bounds


@st.composite
def walks(draw: st.DrawFn) -> tuple[list[Piece], list[int], list[int], list, list[int]]:
    volumes = draw(st.integers(1, 3))
    pieces, bounds = draw_pieces(draw, volumes)
    cells = first_cells(pieces)
    word = st.sampled_from([0, 1, 2, (1 << 64) - 1, 1 << 63])
    contents = [0, *draw(st.lists(word, min_size=int(cells[-1]), max_size=int(cells[-1])))]
    states = []
    for _ in range(draw(st.integers(0, 6))):
        stops = [draw(st.integers(*bounds[v : v + 2])) for v in range(volumes)]
        runs = []
        for _ in range(draw(st.integers(0, 4)) if pieces else 0):
            p = draw(st.integers(0, len(pieces) - 1))
            skip = draw(st.integers(0, pieces[p][1] - 1))
            count = draw(st.integers(0, pieces[p][1] - skip))
            runs.append((pieces[p][0] + skip, int(cells[p]) + skip, count))
        states.append((stops, runs))
    places = sorted(
        draw(st.sets(st.integers(0, 1 << 40), min_size=volumes * SECTORS,
                     max_size=volumes * SECTORS))
    )  # fmt: skip
    return pieces, bounds, contents, states, places


@given(walks(), st.integers(1, 3))
@settings(max_examples=200, deadline=None)
def test_follow_states(walk: tuple, at_once: int) -> None:
    pieces, bounds, contents, states, places = walk
    sectors, cells = ints([first for first, _ in pieces]), first_cells(pieces)
    former, last = np.zeros(int(cells[-1]), np.int32), np.zeros(len(places), np.int32)
    former_owners(sectors, cells, last, former)
    assert former.tolist() == naive.former_owners(pieces)

    expected = naive.follow_states(pieces, contents, places, bounds[:-1], states)
    owner, held = np.zeros(len(places), np.int32), np.zeros(len(places), np.int32)
    at, state = ints(bounds[:-1]), np.zeros(2, np.int64)
    undo = np.zeros(1000, np.int64), np.zeros(1000, np.int32)
    digest = np.zeros(1, np.uint64)
    for first in range(0, len(states), at_once):
        group = states[first : first + at_once]
        runs = [run for _, runs in group for run in runs]
        run_stops = np.cumsum([len(runs) for _, runs in group])
        digests, touched = np.zeros(len(group), np.uint64), np.zeros(9000, np.int64)
        state[TOUCHED] = 0
        follow_states(
            sectors, cells, former, np.array(contents, np.uint64), ints(places),
            ints([stop for stops, _ in group for stop in stops]),
            *(ints([run[i] for run in runs]) for i in range(3)), ints(run_stops),
            owner, at, *undo, touched, state, digest, digests,
        )  # fmt: skip
        told = expected[first : first + at_once]
        assert digests.tolist() == [number for _, number in told]
        assert owner.tolist() == told[-1][0]
        touched = touched[: state[TOUCHED]]
        out = np.zeros(len(touched), np.int64)
        wanted = naive.changed_sectors(touched.tolist(), owner.tolist(), held.tolist())
        assert wanted == {i for i in range(len(places)) if owner[i] != held[i]}
        count = changed_sectors(touched, owner, held, out)
        assert sorted(out[:count].tolist()) == sorted(wanted)
        assert np.array_equal(held, owner)


@given(walks())
@settings(max_examples=30, deadline=None)
def test_digests_alone_are_the_same(walk: tuple) -> None:
    pieces, bounds, contents, states, places = walk
    sectors, cells = ints([first for first, _ in pieces]), first_cells(pieces)
    former = np.zeros(int(cells[-1]), np.int32)
    former_owners(sectors, cells, np.zeros(len(places), np.int32), former)
    runs = [run for _, runs in states for run in runs]
    digests, state = np.zeros(len(states), np.uint64), np.zeros(2, np.int64)
    follow_states(
        sectors, cells, former, np.array(contents, np.uint64), ints(places),
        ints([stop for stops, _ in states for stop in stops]),
        *(ints([run[i] for run in runs]) for i in range(3)),
        np.cumsum(ints([len(runs) for _, runs in states])), np.zeros(len(places), np.int32),
        ints(bounds[:-1]), np.zeros(1000, np.int64), np.zeros(1000, np.int32),
        np.zeros(0, np.int64), state, np.zeros(1, np.uint64), digests,
    )  # fmt: skip
    expected = naive.follow_states(pieces, contents, places, bounds[:-1], states)
    assert digests.tolist() == [number for _, number in expected]
    assert state[TOUCHED] == 0
