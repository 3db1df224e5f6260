"""Maps and digests of disks over chains of points, against a plain array; and hostile tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_vault_helpers import (
    BLOCK,
    START_NS,
    Row,
    back_up,
    blocks_of,
    changed,
    content,
    digest_table,
    extent_table,
    new_vault,
    read_back,
    reopen,
    seeded,
)
from vmbk.errors import IntegrityError, NotFoundError
from vmbk.vault import DIGEST_SCHEMA, EXTENT_SCHEMA, DiskRecord, RecoveryPoint, Vault
from vmbk.vault.crypto import SEALED_POINT
from vmbk.vault.diskmap import Extents, overlay
from vmbk.vault.format import MAX_CHAIN
from vmbk.vault.manifest import new_point_id, to_payload
from vmbk.vault.sealed import seal

# The overlay against an array that holds, for every byte, whose it is

TABLE = st.lists(st.tuples(st.integers(0, 12), st.integers(1, 15), st.booleans()), max_size=8)


def table_of(gaps: list[tuple[int, int, bool]], size: int, number: int) -> Extents:
    """Extents with these gaps before and lengths, as far as the disk goes."""
    rows, position = [], 0
    for gap, length, zero in gaps:
        start, end = position + gap, min(position + gap + length, size)
        if start < end:
            rows.append((start, end - start, zero))
        position = position + gap + length
    chunk = np.zeros((len(rows), 32), np.uint8)
    chunk[:, 0], chunk[:, 1] = number, np.arange(len(rows))
    return Extents(
        offset=np.array([row[0] for row in rows], np.int64),
        length=np.array([row[1] for row in rows], np.int64),
        chunk=chunk,
        chunk_offset=np.array([1000 * number + row[0] for row in rows], np.int64),
        zero=np.array([row[2] for row in rows], np.bool_),
    )


@given(base=st.booleans(), parts=st.lists(st.tuples(TABLE, st.integers(0, 120)), max_size=5))
def test_overlay_is_what_writing_to_an_array_gives(
    base: bool, parts: list[tuple[list[tuple[int, int, bool]], int]]
) -> None:
    tables, sizes = [], []
    if base:
        sizes.append(parts[0][1] if parts else 100)
        tables.append(table_of([(0, 1000, False)], sizes[0], 99))
    for number, (gaps, size) in enumerate(parts):
        tables.append(table_of(gaps, size, number))
        sizes.append(size)
    if not tables:
        return
    owner: list[Any] = []
    for table, size in zip(tables, sizes, strict=True):
        owner = owner[:size] + [None] * (size - len(owner))
        for i in range(len(table.offset)):
            for byte in range(table.offset[i], table.offset[i] + table.length[i]):
                if table.zero[i]:
                    owner[byte] = "zero"
                else:
                    at = int(table.chunk_offset[i] + byte - table.offset[i])
                    owner[byte] = (table.chunk[i].tobytes(), at)
    if None in owner:
        with pytest.raises(IntegrityError, match=f"gap at offset {owner.index(None)}:"):
            overlay(tables, sizes, "a disk")
        return
    found = overlay(tables, sizes, "a disk")
    assert found.size == len(owner)
    assert (found.lengths > 0).all()
    assert (np.append(found.offsets, found.size)[1:] == found.offsets + found.lengths).all()
    result: list[Any] = []
    for i in range(len(found)):
        for byte in range(found.lengths[i]):
            if found.zero[i]:
                result.append("zero")
                assert not found.chunks[i].any()
                assert found.chunk_offsets[i] == 0
            else:
                result.append((found.chunks[i].tobytes(), int(found.chunk_offsets[i]) + byte))
    assert result == owner


# Whole vaults


@settings(max_examples=25)
@given(
    size=st.integers(0, 8 * BLOCK),
    steps=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 8 * BLOCK)), max_size=6),
    reopened=st.booleans(),
)
def test_any_chain_gives_back_every_state(
    tmp_path_factory: pytest.TempPathFactory,
    size: int,
    steps: list[tuple[int, int]],
    reopened: bool,
) -> None:
    """Disks that change, grow and shrink."""
    folder = tmp_path_factory.mktemp("chain")
    vault = new_vault(folder, random=seeded(size))
    states, points = [content(size, size)], []
    points.append(back_up(vault, {"disk": states[0]}))
    for seed, new_size in steps:
        disk = states[-1][:new_size]
        if new_size > len(disk):
            disk += content(seed, new_size)[len(disk) :]
        states.append(changed(seed, disk) if disk else disk)
        points.append(back_up(vault, {"disk": states[-1]}, points[-1]))
    if reopened:
        vault = reopen(folder)
    for length, (state, point) in enumerate(zip(states, points, strict=True), start=1):
        assert read_back(vault, point, "disk") == state
        assert vault.chain_length(point, "disk") == length
        digests = vault.digests(point, "disk")
        assert digests.dtype == np.uint64
        assert len(digests) == len(blocks_of(state))
    report = vault.check(read_data=True)
    assert report.ok, report.errors


def test_what_a_smaller_disk_cut_off_does_not_come_back(tmp_path: Path) -> None:
    vault = new_vault(tmp_path)
    first = back_up(vault, {"d": b"a" * 4 * BLOCK})
    second = back_up(vault, {"d": b"a" * 2 * BLOCK}, first)
    # Grown again, and nothing is said of the new part: it must not be the old content.
    record = replace(second.disks[0], size=4 * BLOCK, parent=second.id, extents=(), digests=())
    with vault.writer("vm") as writer, pytest.raises(IntegrityError, match=f"offset {2 * BLOCK}"):
        writer.commit("vm", [record], "crash")
    point = forced(vault, record)
    with pytest.raises(IntegrityError, match="not every block"):
        vault.digests(point, "d")


def test_sub_digests_come_whole_or_not_at_all(tmp_path: Path) -> None:
    vault = new_vault(tmp_path)

    def point(
        digests: dict[int, int], parent: RecoveryPoint | None = None, sub: int = 128
    ) -> RecoveryPoint:
        with vault.writer("vm") as writer:
            zeros = writer.put_table(extent_table([(0, 500, None, 0)]))
            record = DiskRecord(
                "d", 500, 256, sub, parent=parent.id if parent else "", extents=zeros,
                sub_digests=writer.put_table(digest_table(digests)),
            )  # fmt: skip
            return writer.commit("vm", [record], "crash")

    whole = point({0: 5, 1: 1 << 63, 2: 7, 3: 8})
    found = vault.sub_digests(whole, "d")
    assert found is not None
    assert found.tolist() == [5, 1 << 63, 7, 8]
    newer = vault.sub_digests(point({1: 6}, whole), "d")
    assert newer is not None
    assert newer.tolist() == [5, 6, 7, 8]
    assert vault.sub_digests(point({0: 5, 1: 6}), "d") is None
    assert vault.sub_digests(point({}, whole, sub=64), "d") is None
    assert vault.sub_digests(point({}, sub=0), "d") is None
    with pytest.raises(NotFoundError, match="block digests"):
        vault.digests(whole, "d")
    report = vault.check(read_data=True)
    assert report.ok, report.errors


def test_the_digest_of_all_digests_is_checked(tmp_path: Path) -> None:
    vault = new_vault(tmp_path)
    disk = content(1, 5 * BLOCK)
    good = back_up(vault, {"d": disk})
    with vault.writer("vm") as writer:
        record = replace(good.disks[0], digest="0123456789abcdef")
        point = writer.commit("vm", [record], "crash")
    with pytest.raises(IntegrityError, match="do not match their digest"):
        vault.digests(point, "d")
    assert not vault.check().ok
    assert read_back(vault, point, "d") == disk


def test_a_million_extents_do_not_take_long(tmp_path: Path) -> None:
    vault = new_vault(tmp_path)
    count = 1_000_000
    with vault.writer("vm") as writer:
        chunk = writer.put(b"x" * 4096).id
        offsets = np.arange(count, dtype=np.int64) * 4096
        table = pa.table(
            [offsets, np.full(count, 4096), pa.array([chunk] * count, pa.binary(32)),
             np.zeros(count, np.int64)],
            schema=EXTENT_SCHEMA,
        )  # fmt: skip
        extents = writer.put_table(table)
        point = writer.commit("vm", [DiskRecord("d", count * 4096, 4096, extents=extents)], "crash")
    found = vault.disk_map(point, "d")
    assert len(found) == count
    assert (found.chunks == np.frombuffer(chunk, np.uint8)).all()


# What only a faulty or hostile writer makes


def forced(
    vault: Vault, *disks: DiskRecord, vm: str = "vm", point_id: str | None = None, **fields: Any
) -> RecoveryPoint:
    """A point with these records, authentic, and never checked by anybody."""
    created = START_NS + forced.counter * 10**9
    forced.counter += 1
    point_id = point_id or new_point_id(created, forced.counter.to_bytes(4, "big"))
    point = RecoveryPoint(
        **({"id": point_id, "vm": vm, "created_ns": created, "consistency": "crash",
            "disks": disks} | fields)
    )  # fmt: skip
    data = seal(vault._keys, SEALED_POINT, point_id, to_payload(point), seeded(created))
    vault._store.put(f"points/{point_id}", data)
    return point


forced.counter = 0  # type: ignore[attr-defined]


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return new_vault(tmp_path)


def stored(vault: Vault, table: Any, size: int = 1000) -> tuple[bytes, ...]:
    """A table that is stored, with the chunk ``x`` * 100 beside it."""
    with vault.writer("other") as writer:
        writer.put(b"x" * 100)
        ids = writer.put_table(table)
        writer.commit("other", [DiskRecord("d", 0, 512)], "crash")
    return ids


def chunk_of(vault: Vault) -> bytes:
    return vault._keys.chunk_id(1, b"x" * 100)


X: Any = "the chunk of 100 bytes"
HUGE = (1 << 63) - 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(0, 1000, X, 0)], "reaches outside its chunk"),
        ([(0, 100, X, 1)], "reaches outside its chunk"),
        ([(0, 1, X, -1)], "reaches outside its chunk"),
        ([(0, 1, X, HUGE)], "reaches outside its chunk"),
        ([(0, 1, X, -HUGE)], "reaches outside its chunk"),
        ([(-1, 1, None, 0)], "outside the disk"),
        ([(0, 1001, None, 0)], "outside the disk"),
        ([(1001, 1, None, 0)], "outside the disk"),
        ([(999, 2, None, 0)], "outside the disk"),
        ([(0, 0, None, 0)], "outside the disk"),
        ([(0, -5, None, 0)], "outside the disk"),
        ([(HUGE, HUGE, None, 0)], "outside the disk"),
        ([(1, HUGE, None, 0)], "outside the disk"),
        ([(0, 600, None, 0), (500, 500, None, 0)], "overlaps"),
        ([(500, 500, None, 0), (0, 500, None, 0)], "overlaps"),
        ([(0, 500, None, 0)], "gap at offset 500"),
        ([(1, 999, None, 0)], "gap at offset 0"),
        ([(0, 400, None, 0), (401, 599, None, 0)], "gap at offset 400"),
        ([], "gap at offset 0"),
    ],
)
def test_extents_that_break_a_rule_are_refused(vault: Vault, rows: list[Row], message: str) -> None:
    rows = [(o, length, chunk_of(vault) if c is X else c, at) for o, length, c, at in rows]
    with vault.writer("first") as writer:
        writer.put(b"x" * 100)
        writer.commit("first", [DiskRecord("d", 0, 512)], "crash")
    point = forced(vault, DiskRecord("d", 1000, 512, extents=stored(vault, extent_table(rows))))
    with pytest.raises(IntegrityError, match=message):
        vault.disk_map(point, "d")
    report = vault.check()
    assert [error for error in report.errors if message in error]


def test_extents_of_chunks_that_are_no_data_are_refused(vault: Vault) -> None:
    table = stored(vault, digest_table({0: 1}))[0]
    for chunk in (bytes(32), table):
        other = pa.array([chunk], pa.binary(32))
        columns = pa.table({"offset": [0], "length": [10], "other": other, "chunk_offset": [0]})
        ids = stored(vault, columns)  # the writer looks at a column ``chunk`` only
        with pytest.raises(IntegrityError, match="other columns"):
            vault.disk_map(forced(vault, DiskRecord("d", 10, 512, extents=ids)), "d")
    with vault.writer("raw") as writer:
        renamed = columns.rename_columns(EXTENT_SCHEMA.names)
        from vmbk.vault.arrow import to_ipc

        ids = (writer.put(to_ipc(renamed), "table").id,)
        writer.commit("raw", [DiskRecord("d", 0, 512)], "crash")
    with pytest.raises(IntegrityError, match="refers to a chunk of data that is in no index"):
        vault.disk_map(forced(vault, DiskRecord("d", 10, 512, extents=ids)), "d")


@pytest.mark.parametrize(
    "blocks",
    [[-1, 0], [0, 0], [1, 0], [0, 2], [0, HUGE], [-HUGE, 1]],
)
def test_digests_out_of_order_or_range_are_refused(vault: Vault, blocks: list[int]) -> None:
    ids = stored(vault, pa.table([blocks, [1] * len(blocks)], schema=DIGEST_SCHEMA))
    point = forced(vault, DiskRecord("d", 600, 512, digests=ids, digest="0" * 16))
    with pytest.raises(IntegrityError, match="out of order or outside 0 to 1"):
        vault.digests(point, "d")


def test_a_size_that_only_a_manifest_claims_is_not_allocated(vault: Vault) -> None:
    ids = stored(vault, digest_table({0: 1}))
    record = DiskRecord("d", 1 << 62, 1, 1, digests=ids, sub_digests=ids, digest="0" * 16)
    point = forced(vault, record)
    with pytest.raises(IntegrityError, match="not every block"):
        vault.digests(point, "d")
    assert vault.sub_digests(point, "d") is None
    with pytest.raises(IntegrityError, match="gap at offset 0"):
        vault.disk_map(point, "d")


def test_block_sizes_that_change_within_a_chain_are_refused(vault: Vault) -> None:
    with vault.writer("vm") as writer:
        zeros = writer.put_table(extent_table([(0, 600, None, 0)]))
        all_digests = writer.put_table(digest_table({0: 1, 1: 2}))
        record = DiskRecord("d", 600, 512, extents=zeros, digests=all_digests)
        point = writer.commit("vm", [record], "crash")
    child = forced(vault, DiskRecord("d", 600, 256, parent=point.id))
    with pytest.raises(IntegrityError, match="block_size of disk 'd' changes"):
        vault.digests(child, "d")


def test_broken_chains_are_refused(vault: Vault) -> None:
    a, b = "20261121T101500Z-00000001", "20261121T101500Z-00000002"
    circle = forced(vault, DiskRecord("d", 0, 512, parent=b), point_id=a)
    forced(vault, DiskRecord("d", 0, 512, parent=a), point_id=b)
    other = forced(vault, DiskRecord("d", 0, 512), vm="other")
    lost = forced(vault, DiskRecord("d", 0, 512, parent="20201121T101500Z-1a2b3c4d"))
    stolen = forced(vault, DiskRecord("d", 0, 512, parent=other.id))
    renamed = forced(vault, DiskRecord("new", 0, 512, parent=lost.id))
    for point, name, message in (
        (circle, "d", "runs in a circle"),
        (lost, "d", "ends early"),
        (stolen, "d", "leaves the VM"),
        (renamed, "new", "ends early"),
    ):
        for ask in (vault.disk_map, vault.digests, vault.sub_digests, vault.chain_length):
            with pytest.raises(IntegrityError, match=message):
                ask(point, name)
    report = vault.check()
    assert len([error for error in report.errors if "chain" in error]) >= 5
    with pytest.raises(NotFoundError, match="no disk 'x'"):
        vault.disk_map(circle, "x")


def test_a_chain_without_end_is_refused(vault: Vault) -> None:
    parent = ""
    for _ in range(MAX_CHAIN + 1):
        point = forced(vault, DiskRecord("d", 0, 512, parent=parent))
        previous, parent = parent, point.id
    with pytest.raises(IntegrityError, match=f"longer than {MAX_CHAIN}"):
        vault.chain_length(point, "d")
    assert vault.chain_length(vault.point(previous), "d") == MAX_CHAIN


GOOD = DiskRecord("d", 0, 512)


@pytest.mark.parametrize(
    ("disks", "fields"),
    [
        ([replace(GOOD, name="../../etc/passwd")], {}),
        ([replace(GOOD, name="")], {}),
        ([replace(GOOD, size=-1)], {}),
        ([replace(GOOD, block_size=0)], {}),
        ([replace(GOOD, parent="../config")], {}),
        ([replace(GOOD, digest="x" * 16)], {}),
        ([GOOD, GOOD], {}),
        ([], {}),
        ([GOOD], {"vm": "a/b"}),
        ([GOOD], {"vm": 5}),
        ([GOOD], {"consistency": "perfect"}),
        ([GOOD], {"consistency": ["crash"]}),
        ([GOOD], {"created_ns": -1}),
        ([GOOD], {"created_ns": 1 << 63}),
        ([GOOD], {"created_ns": 1.5}),
        ([GOOD], {"provenance": [1]}),
        ([GOOD], {"id": "20261121T101500Z-1a2b3c4d"}),
        ([GOOD], {"id": 7}),
    ],
)
def test_a_hostile_manifest_is_refused(
    vault: Vault, disks: list[DiskRecord], fields: dict[str, Any]
) -> None:
    name = "20301121T101500Z-1a2b3c4d"
    point = RecoveryPoint(
        **({"id": name, "vm": "vm", "created_ns": START_NS, "consistency": "crash",
            "disks": tuple(disks)} | fields)
    )  # fmt: skip
    data = seal(vault._keys, SEALED_POINT, name, to_payload(point), seeded(1))
    vault._store.put(f"points/{name}", data)
    with pytest.raises(IntegrityError, match=name):
        vault.point(name)
    assert not vault.check().ok


@pytest.mark.parametrize(
    "head",
    [b"", b"[]", b"{}", b'{"version":1}', b'{"version":1,"x":2}', b"\xff", b"[" * 5000, None],
)
def test_a_manifest_without_its_head_is_refused(vault: Vault, head: bytes | None) -> None:
    from vmbk.vault.arrow import from_ipc, to_ipc

    name = "20301121T101500Z-1a2b3c4d"
    point = RecoveryPoint(name, "vm", START_NS, "crash", (GOOD,))
    table = from_ipc(to_payload(point), "x")
    table = table.replace_schema_metadata({} if head is None else {b"vmbk.point": head})
    vault._store.put(
        f"points/{name}", seal(vault._keys, SEALED_POINT, name, to_ipc(table), seeded(1))
    )
    with pytest.raises(IntegrityError, match="no valid manifest"):
        vault.point(name)


def test_a_manifest_of_a_newer_version_says_so(vault: Vault) -> None:
    import json

    from vmbk.vault.arrow import from_ipc, to_ipc

    name = "20301121T101500Z-1a2b3c4d"
    point = RecoveryPoint(name, "vm", START_NS, "crash", (GOOD,))
    table = from_ipc(to_payload(point), "x")
    head = json.loads(table.schema.metadata[b"vmbk.point"]) | {"version": 2}
    table = table.replace_schema_metadata({b"vmbk.point": json.dumps(head)})
    data = seal(vault._keys, SEALED_POINT, name, to_ipc(table), seeded(1))
    vault._store.put(f"points/{name}", data)
    with pytest.raises(IntegrityError, match="version 2") as info:
        vault.point(name)
    assert "newer vmbk" in info.value.hint
