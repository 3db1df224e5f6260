"""`check --read-data` on points whose chunks and digests are sound and do not belong together."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_vault_helpers import (
    BLOCK,
    Row,
    back_up,
    blocks_of,
    changed,
    content,
    digest_of_all,
    digest_table,
    everything_restores,
    extent_table,
    new_vault,
    read_back,
    reopen,
)
from vmbk.vault import DiskRecord, RecoveryPoint, Vault
from vmbk.vault.store import LocalStore

DISK = content(3, 7 * BLOCK + 100)


def digests_of(disk: bytes) -> list[int]:
    return [xxhash.xxh3_64_intdigest(block) for block in blocks_of(disk)]


def commit(
    vault: Vault,
    size: int,
    writes: Sequence[tuple[int, bytes]],
    digests: Mapping[int, int],
    whole: Sequence[int] | None,
    parent: RecoveryPoint | None = None,
) -> RecoveryPoint:
    """A point of one disk with just these bytes and these digests, whether they fit or not."""
    with vault.writer("vm") as writer:
        rows: list[Row] = [
            (at, len(data), writer.put(data).id if any(data) else None, 0) for at, data in writes
        ]
        record = DiskRecord(
            name="d",
            size=size,
            block_size=BLOCK,
            parent=parent.id if parent else "",
            extents=writer.put_table(extent_table(rows)),
            digests=writer.put_table(digest_table(digests)),
            digest="" if whole is None else digest_of_all(whole),
        )
        return writer.commit("vm", [record], "crash")


def claim(vault: Vault, disk: bytes, claimed: Mapping[int, int]) -> RecoveryPoint:
    """A whole point of a disk, with other digests for some blocks."""
    digests = digests_of(disk)
    for block, digest in claimed.items():
        digests[block] = digest
    return commit(vault, len(disk), [(0, disk)], dict(enumerate(digests)), digests)


def found_in(folder: Path) -> dict[str, list[int]]:
    """Blocks that a check reports, by point; the check must have nothing else to say."""
    found: dict[str, list[int]] = {}
    report = reopen(folder).check(read_data=True)
    for error in report.errors:
        match = re.fullmatch(
            r"point (\S+) disk 'd': blocks? ([\d, ]+) as stored (is|are) not what was digested",
            error,
        )
        assert match, error
        assert match[1] not in found
        found[match[1]] = [int(block) for block in match[2].split(", ")]
    assert report.ok == (not found)
    return found


@pytest.mark.parametrize("blocks", [[0], [7], [2, 3, 7]])
def test_wrong_digests_are_found(tmp_path: Path, blocks: list[int]) -> None:
    vault = new_vault(tmp_path)
    good = claim(vault, DISK, {})
    assert found_in(tmp_path) == {}
    bad = claim(vault, DISK, dict.fromkeys(blocks, 4711))
    everything_restores(vault, {good.id: {"d": DISK}, bad.id: {"d": DISK}})
    assert reopen(tmp_path).check().ok, "its structure is sound"
    assert found_in(tmp_path) == {bad.id: blocks}


def test_a_write_in_the_middle_of_a_verified_block_is_found(tmp_path: Path) -> None:
    """Such a block begins in the same place as before, and claims the same digest."""
    vault = new_vault(tmp_path)
    first = claim(vault, DISK, {})
    bad = commit(vault, len(DISK), [(2 * BLOCK + 50, b"mid")], {}, digests_of(DISK), first)
    assert found_in(tmp_path) == {bad.id: [2]}


def test_zero_extents_are_verified(tmp_path: Path) -> None:
    vault = new_vault(tmp_path)
    zeros = bytes(6 * BLOCK)
    right = digests_of(zeros)
    wrong = [*right[:4], 1, 2]
    commit(vault, len(zeros), [(0, zeros)], dict(enumerate(right)), right)
    rows = [(0, zeros[: 4 * BLOCK + 5]), (4 * BLOCK + 5, zeros[4 * BLOCK + 5 :])]
    bad = commit(vault, len(zeros), rows, dict(enumerate(wrong)), wrong)
    assert found_in(tmp_path) == {bad.id: [4, 5]}


def test_a_write_without_a_digest_is_found(tmp_path: Path) -> None:
    """What changed within a block that the point gives no new digest."""
    vault = new_vault(tmp_path)
    first = claim(vault, DISK, {})
    newer = bytearray(DISK)
    newer[3 * BLOCK - 10 : 3 * BLOCK + 10] = b"n" * 20
    write = [(3 * BLOCK - 10, b"n" * 20)]
    digests = digests_of(bytes(newer))
    good = commit(vault, len(newer), write, {2: digests[2], 3: digests[3]}, digests, first)
    assert found_in(tmp_path) == {}
    half = [*digests[:3], *digests_of(DISK)[3:]]
    bad = commit(vault, len(newer), write, {2: digests[2]}, half, first)
    assert read_back(vault, bad, "d") == read_back(vault, good, "d") == newer
    assert found_in(tmp_path) == {bad.id: [3]}


def test_what_is_wrong_stays_wrong_until_it_is_replaced(tmp_path: Path) -> None:
    vault = new_vault(tmp_path)
    first = claim(vault, DISK, {1: 1, 5: 5})
    claimed = digests_of(DISK)
    claimed[1], claimed[5] = 1, 5
    same = commit(vault, len(DISK), [], {}, claimed, first)
    new = b"y" * BLOCK
    claimed[1] = xxhash.xxh3_64_intdigest(new)
    better = commit(vault, len(DISK), [(BLOCK, new)], {1: claimed[1]}, claimed, same)
    claimed[5] = digests_of(DISK)[5]
    right = commit(vault, len(DISK), [], {5: claimed[5]}, claimed, better)
    assert found_in(tmp_path) == {first.id: [1, 5], same.id: [1, 5], better.id: [5]}
    assert vault.digests(right, "d").tolist() == claimed


@pytest.mark.parametrize("size", [3 * BLOCK + 50, 7 * BLOCK + 99, 3 * BLOCK, 7 * BLOCK + 101])
def test_the_last_block_of_a_disk_that_changed_size(tmp_path: Path, size: int) -> None:
    vault = new_vault(tmp_path)
    first = claim(vault, DISK, {})
    disk = DISK[:size] + b"g" * (size - len(DISK))
    write = [(len(DISK), b"g" * (size - len(DISK)))] if size > len(DISK) else []
    digests, stale = digests_of(disk), digests_of(DISK)[: -(-size // BLOCK)]
    last = len(digests) - 1
    commit(vault, size, write, {last: digests[last]}, digests, first)
    assert found_in(tmp_path) == {}
    bad = commit(vault, size, write, {}, stale, first)
    assert found_in(tmp_path) == ({bad.id: [last]} if size % BLOCK else {})


def test_a_point_without_digests_has_nothing_to_compare(tmp_path: Path) -> None:
    vault = new_vault(tmp_path)
    first = commit(vault, len(DISK), [(0, DISK)], {}, None)
    second = commit(vault, len(DISK), [], {2: 1, 3: digests_of(DISK)[3]}, None, first)
    assert found_in(tmp_path) == {second.id: [2]}


def test_digests_that_a_smaller_disk_cut_off_do_not_come_back(tmp_path: Path) -> None:
    vault = new_vault(tmp_path)
    first = commit(vault, len(DISK), [(0, DISK)], dict(enumerate(digests_of(DISK))), None)
    small = commit(vault, BLOCK, [], {}, None, first)
    commit(vault, len(DISK), [(BLOCK, bytes(len(DISK) - BLOCK))], {}, None, small)
    assert found_in(tmp_path) == {}, "nothing says what the new bytes must be"


def test_many_blocks_make_one_message(tmp_path: Path) -> None:
    disk = content(1, 30 * BLOCK)
    point = claim(new_vault(tmp_path), disk, dict.fromkeys(range(30), 0))
    (error,) = reopen(tmp_path).check(read_data=True).errors
    assert error == (
        f"point {point.id} disk 'd': blocks 0, 1, 2, 3, 4, 5, 6, 7 and 22 more as stored are not "
        "what was digested"
    )


def test_blocks_that_cannot_be_read_are_told_by_point(tmp_path: Path) -> None:
    vault = new_vault(tmp_path)
    first = back_up(vault, {"d": DISK})
    second = back_up(vault, {"d": changed(1, DISK)}, first)
    third = back_up(vault, {"d": bytes(len(DISK))}, second)
    frame = vault.index_frame()
    disk_map = vault.disk_map(first, "d")
    shown = vault.disk_map(second, "d")
    # A chunk that the second point takes over from the first, and the third does not show.
    at = next(
        i for i in range(len(shown)) if not shown.zero[i] and shown.chunks[i] in disk_map.chunks
    )
    (row,) = frame.filter(frame["chunk"] == shown.chunks[at].tobytes().hex()).to_dicts()
    path = tmp_path / "vault" / "packs" / row["pack"][:2] / row["pack"]
    data = bytearray(path.read_bytes())
    data[row["offset"] + 64] ^= 1
    path.write_bytes(data)
    errors = reopen(tmp_path).check(read_data=True).errors
    told = [error for error in errors if "cannot be read" in error]
    assert len(told) == 2
    for point, error in zip((first, second), told, strict=True):
        assert re.match(
            rf"point {point.id} disk 'd': blocks? .*\b{shown.offsets[at] // BLOCK}\b", error
        )
    assert not any(third.id in error for error in errors)


def test_blocks_too_large_to_be_digested_in_one_piece(tmp_path: Path) -> None:
    vault = new_vault(tmp_path)
    size = 1 << 40
    with vault.writer("vm") as writer:
        record = DiskRecord(
            "d", size, size, extents=writer.put_table(extent_table([(0, size, None, 0)])),
            digests=writer.put_table(digest_table({0: 1})), digest=digest_of_all([1]),
        )  # fmt: skip
        point = writer.commit("vm", [record], "crash")
    (error,) = reopen(tmp_path).check(read_data=True).errors
    assert error.startswith(f"point {point.id} disk 'd': blocks of {size} bytes are too large")


class CountingStore:
    """A store that counts the ranges that are read."""

    def __init__(self, store: LocalStore) -> None:
        self._store = store
        self.ranges = 0

    def get_range(self, name: str, start: int, length: int) -> bytes:
        self.ranges += name.startswith("packs/")
        return self._store.get_range(name, start, length)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def test_what_points_share_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmbk.vault.content.CACHE_BYTES", 0)
    disk = content(1, 300 * BLOCK, zeros=0.0)
    back_up(new_vault(tmp_path), {"d": disk})

    def ranges() -> int:
        stores: list[CountingStore] = []

        def wrap(store: LocalStore) -> CountingStore:
            stores.append(CountingStore(store))
            return stores[0]

        assert reopen(tmp_path, wrap_store=wrap).check(read_data=True).ok
        return stores[0].ranges

    once = ranges()
    assert once > 200
    for k in range(3):
        back_up(reopen(tmp_path), {"d": disk}, vm=f"vm{k}")
    assert ranges() < once + 60


STATE = st.tuples(
    st.integers(0, 1 << 30),  # seed
    st.integers(1, 8 * BLOCK),  # size
    st.integers(0, 3),  # ranges that are written
    st.sets(st.integers(0, 7), max_size=3),  # blocks with a digest that is wrong
    st.sets(st.integers(0, 7), max_size=2),  # blocks whose digest is not renewed
    st.booleans(),  # whether it has a parent
)


@settings(max_examples=60, deadline=None)
@given(states=st.lists(STATE, min_size=1, max_size=5))
def test_a_check_finds_just_what_comparing_everything_finds(
    tmp_path_factory: pytest.TempPathFactory, states: list[Any]
) -> None:
    folder = tmp_path_factory.mktemp("content")
    vault = new_vault(folder)
    parent, disk, claimed = None, b"", list[int]()
    expected = {}
    for seed, size, count, wrong, kept, child in states:
        rng = np.random.default_rng(seed)
        if parent is None or not child:
            parent, disk, claimed = None, b"", []
        new = bytearray(disk[:size] + bytes(max(0, size - len(disk))))
        marks = np.zeros(size, np.bool_)
        marks[len(disk) :] = True
        for _ in range(count):
            at = int(rng.integers(size))
            length = int(rng.integers(1, min(700, size - at) + 1))
            new[at : at + length] = rng.bytes(length) if rng.random() < 0.7 else bytes(length)
            marks[at : at + length] = True
        edges = np.flatnonzero(np.diff(np.concatenate(([0], marks, [0]))))
        writes = [(int(a), bytes(new[a:b])) for a, b in edges.reshape(-1, 2)]
        right = digests_of(bytes(new))
        own = {
            i: digest for i, digest in enumerate(right)
            if i >= len(claimed) or (digest != claimed[i] and i not in kept)
        } | {i: seed + i for i in wrong if i < len(right)}  # fmt: skip
        claimed = [own.get(i, claimed[i] if i < len(claimed) else 0) for i in range(len(right))]
        parent = commit(vault, size, writes, own, claimed, parent)
        disk = bytes(new)
        assert read_back(vault, parent, "d") == disk
        assert vault.digests(parent, "d").tolist() == claimed
        bad = [i for i, digest in enumerate(right) if digest != claimed[i]]
        if bad:
            expected[parent.id] = bad
    assert found_in(folder) == expected
