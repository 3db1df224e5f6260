"""The index against a dictionary, and against hostile tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmbk.errors import IntegrityError
from vmbk.vault.arrow import ID_TYPE, to_ipc
from vmbk.vault.format import ENTRY_DTYPE, PACK_LIMIT, EntryHeader
from vmbk.vault.index import INDEX_SCHEMA, Index, IndexRows
from vmbk.vault.pack import PackEntries


def pack_of(number: int, chunks: list[tuple[bytes, int, int]]) -> PackEntries:
    """A pack with entries of (chunk id, kind, plaintext length), not compressed."""
    headers = b"".join(
        EntryHeader(kind, 0, raw, raw + 16, chunk, bytes(12)).to_bytes()
        for chunk, kind, raw in chunks
    )
    return PackEntries(number.to_bytes(32, "big"), np.frombuffer(headers, ENTRY_DTYPE))


# Ids that share their first eight bytes, or nearly all of them: what a sorted list of prefixes
# could confuse.
IDS = st.builds(
    lambda head, middle, tail: bytes([head] * 8) + bytes([middle] * 16) + bytes([tail] * 8),
    st.sampled_from([0, 1, 127, 128, 255]),
    st.integers(0, 1),
    st.integers(0, 2),
)
PACKS = st.lists(
    st.lists(st.tuples(IDS, st.sampled_from([1, 2]), st.integers(1, 3000)), min_size=1, max_size=9),
    max_size=12,
)


@given(packs=PACKS, absent=st.lists(IDS, max_size=5), batch=st.integers(1, 4))
def test_finds_what_a_dictionary_finds(
    packs: list[list[tuple[bytes, int, int]]], absent: list[bytes], batch: int
) -> None:
    index = Index()
    places: dict[bytes, list[tuple[bytes, int, int, int]]] = {}
    parts = []
    for number, chunks in enumerate(packs):
        pack = pack_of(number, chunks)
        offset = 32
        for chunk, kind, raw in chunks:
            places.setdefault(chunk, []).append((pack.digest, offset, kind, raw))
            offset += 64 + raw + 16
        parts.append(IndexRows.of([pack]))
    for first in range(0, len(parts), batch):
        index.add(parts[first : first + batch])
    assert len(index) == sum(map(len, packs))
    asked = [*places, *absent]
    for chunk in asked:
        found = index.find(chunk)
        expected = places.get(chunk, [])
        if found is None:
            assert not expected
        else:
            header = found.header
            assert (found.pack, found.offset, header.kind, header.raw) in expected
            assert header.stored == header.raw + 16
    ids = np.frombuffer(b"".join(asked), np.uint8).reshape(-1, 32)
    for kind in (1, 2):
        lengths = index.raw_lengths(ids, kind).tolist()
        for chunk, length in zip(asked, lengths, strict=True):
            possible = {raw for _, _, k, raw in places.get(chunk, []) if k == kind}
            assert length in (possible or {-1})
    assert index.pack_sizes == {
        number.to_bytes(32, "big"): 32 + sum(64 + raw + 16 + 64 for _, _, raw in chunks) + 64
        for number, chunks in enumerate(packs)
    }
    listed = dict(index.rows_of_packs())
    for number, chunks in enumerate(packs):
        pack = pack_of(number, chunks)
        assert listed[pack.digest].agree_with(pack)
        other = pack_of(number, [*chunks[:-1], (b"z" * 32, *chunks[-1][1:])])
        assert not listed[pack.digest].agree_with(other)


def test_random_ids_in_many_small_parts() -> None:
    rng = np.random.default_rng(1)
    index, known = Index(), []
    for number in range(100):
        chunks = [(rng.bytes(32), 1, 100) for _ in range(rng.integers(1, 30))]
        known += chunks
        index.add([IndexRows.of([pack_of(number, chunks)])])
    assert all(index.find(chunk) is not None for chunk, _, _ in known)
    assert index.find(rng.bytes(32)) is None
    assert len(index._segments) <= 12, "look-ups must not slow down with every part"
    ids = np.frombuffer(b"".join(chunk for chunk, _, _ in known), np.uint8).reshape(-1, 32)
    assert (index.raw_lengths(ids, 1) == 100).all()


def good_rows() -> dict[str, Any]:
    packs = [
        pack_of(1, [(bytes([i]) * 32, 1, 100 + i) for i in range(3)]),
        pack_of(2, [(bytes([i]) * 32, 2, 50 + i) for i in range(2)]),
    ]
    table = IndexRows.of(packs).to_table()
    return {name: table.column(name).to_pylist() for name in table.schema.names}


def payload_of(columns: dict[str, Any], schema: Any = INDEX_SCHEMA) -> memoryview:
    arrays = []
    for field in schema:
        values = columns[field.name]
        if isinstance(values, pa.Array):
            arrays.append(values)
        elif field.name == "pack":
            names = list(dict.fromkeys(values))
            rows = pa.array([names.index(v) for v in values], pa.int32())
            arrays.append(pa.DictionaryArray.from_arrays(rows, pa.array(names, ID_TYPE)))
        else:
            arrays.append(pa.array(values, field.type))
    return to_ipc(pa.Table.from_arrays(arrays, schema=schema))


def test_an_index_makes_the_round_trip() -> None:
    rows = IndexRows.from_payload(payload_of(good_rows()), "x")
    assert {
        name: rows.to_table().column(name).to_pylist() for name in INDEX_SCHEMA.names
    } == good_rows()


ONE, TWO = (1).to_bytes(32, "big"), (2).to_bytes(32, "big")


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("offset", [32, 212, 394, 32, 162]),  # one byte off
        ("offset", [0, 180, 361, 0, 130]),
        ("offset", [-32, 212, 393, 32, 162]),
        ("offset", [32, 212, 393, 1 << 62, 162]),
        ("stored", [116, 117, 118, 66, 0]),
        ("stored", [116, 117, -118, 66, 67]),
        ("stored", [116, 117, 119, 66, 67]),
        ("raw", [100, 101, 102, 50, 0]),
        ("raw", [100, 101, -102, 50, 51]),
        ("raw", [100, 101, (16 << 20) + 1, 50, 51]),
        ("kind", [1, 1, 1, 2, 3]),
        ("kind", [1, 1, 1, 2, 0]),
        ("compression", [0, 0, 0, 0, 2]),
        ("compression", [0, 0, 0, 0, 1]),
        ("pack", [ONE, ONE, TWO, ONE, ONE]),
        ("pack", [ONE, ONE, ONE, ONE, ONE]),
        ("pack", [ONE, TWO, ONE, TWO, ONE]),
    ],
)
def test_rows_that_break_a_rule_are_refused(column: str, values: list[Any]) -> None:
    with pytest.raises(IntegrityError, match=r"^x "):
        IndexRows.from_payload(payload_of(good_rows() | {column: values}), "x")


def test_an_entry_beyond_the_limit_of_a_pack_is_refused() -> None:
    size = 16 << 20
    count = PACK_LIMIT // size + 2
    chunks = [(bytes([i]) * 32, 1, size) for i in range(count)]
    with pytest.raises(IntegrityError, match="do not follow each other"):
        IndexRows.from_payload(IndexRows.of([pack_of(1, chunks)]).to_payload(), "x")


def dictionary(rows: list[int], names: list[bytes | None]) -> Any:
    return pa.DictionaryArray.from_arrays(pa.array(rows, pa.int32()), pa.array(names, ID_TYPE))


@pytest.mark.parametrize(
    "packs",
    [
        dictionary([0, 0, 0, 1, 1], [ONE, ONE]),
        dictionary([0, 0, 0, 1, 1], [ONE, TWO, bytes(32)]),
        dictionary([0, 0, 0, 1, 1], [ONE, None]),
        dictionary([0, 0, 0, None, 1], [ONE, TWO]),  # type: ignore[list-item]
    ],
    ids=["repeated", "not used", "without a name", "null"],
)
def test_strange_pack_names_are_refused(packs: Any) -> None:
    with pytest.raises(IntegrityError, match=r"^x "):
        IndexRows.from_payload(payload_of(good_rows() | {"pack": packs}), "x")


def test_a_pack_number_outside_the_dictionary_is_refused() -> None:
    rows = pa.array([0, 0, 0, 1, 7], pa.int32())
    bad = pa.DictionaryArray.from_arrays(rows, pa.array([ONE, TWO], ID_TYPE), safe=False)
    with pytest.raises(IntegrityError, match=r"^x "):
        IndexRows.from_payload(payload_of(good_rows() | {"pack": bad}), "x")


def test_other_schemas_are_refused() -> None:
    rows = good_rows()
    nulls = {"raw": pa.array([1, None, 3, 4, 5], pa.int32())}
    with pytest.raises(IntegrityError, match="nulls in 'raw'"):
        IndexRows.from_payload(payload_of(rows | nulls), "x")
    for schema in (
        INDEX_SCHEMA.remove(6),
        INDEX_SCHEMA.append(pa.field("more", pa.int8())),
        INDEX_SCHEMA.set(2, pa.field("offset", pa.uint64())),
        pa.schema(list(INDEX_SCHEMA)[::-1], metadata=INDEX_SCHEMA.metadata),
    ):
        with pytest.raises(IntegrityError, match="other columns"):
            IndexRows.from_payload(payload_of(rows | {"more": [0] * 5}, schema), "x")
    for metadata in ({}, {b"vmbk.index": b"2"}):
        schema = INDEX_SCHEMA.with_metadata(metadata)
        with pytest.raises(IntegrityError, match="unknown version"):
            IndexRows.from_payload(payload_of(rows, schema), "x")
    empty = {name: [] for name in rows}
    with pytest.raises(IntegrityError, match="no rows"):
        IndexRows.from_payload(payload_of(empty), "x")


def test_bytes_that_are_no_table_are_refused() -> None:
    good = bytes(payload_of(good_rows()))
    for bad in (b"", b"x", b"\0" * 100, b"\xff" * 100, good[:-200], good[:100]):
        with pytest.raises(IntegrityError, match=r"^x holds no valid Arrow table"):
            IndexRows.from_payload(bad, "x")


def test_two_index_files_that_disagree_on_a_pack_are_refused() -> None:
    index = Index()
    index.add([IndexRows.of([pack_of(1, [(b"a" * 32, 1, 100)])])])
    with pytest.raises(IntegrityError, match="disagree"):
        index.add([IndexRows.of([pack_of(1, [(b"a" * 32, 1, 101)])])])
    assert len(index) == 1
    index.add([IndexRows.of([pack_of(1, [(b"a" * 32, 1, 100)])])])
    assert index.find(b"a" * 32) is not None


@given(packs=PACKS, lost=st.sets(st.integers(0, 11)), batch=st.integers(1, 4))
def test_what_only_lost_packs_hold_does_not_count(
    packs: list[list[tuple[bytes, int, int]]], lost: set[int], batch: int
) -> None:
    index = Index(frozenset(number.to_bytes(32, "big") for number in lost))
    parts = [IndexRows.of([pack_of(number, chunks)]) for number, chunks in enumerate(packs)]
    for first in range(0, len(parts), batch):
        index.add(parts[first : first + batch])
    places: dict[bytes, list[tuple[int, int, int]]] = {}
    for number, chunks in enumerate(packs):
        for chunk, kind, raw in chunks:
            places.setdefault(chunk, []).append((number, kind, raw))
    for chunk, expected in places.items():
        found = index.places(chunk)
        numbers = [int.from_bytes(place.pack, "big") for place in found]
        assert sorted(numbers) == [number for number, _, _ in expected]
        assert [number in lost for number in numbers] == sorted(n in lost for n in numbers)
        assert index.holds(chunk) == (not lost.issuperset(numbers))
    ids = np.frombuffer(b"".join(places), np.uint8).reshape(-1, 32)
    for kind in (1, 2):
        lengths = index.raw_lengths(ids, kind, present=True).tolist()
        for chunk, length in zip(places, lengths, strict=True):
            possible = {raw for number, k, raw in places[chunk] if k == kind and number not in lost}
            assert length in (possible or {-1})


@given(packs=PACKS.filter(bool), gone=st.sets(st.integers(0, 11)))
def test_rows_without_some_packs_are_the_rows_of_the_others(
    packs: list[list[tuple[bytes, int, int]]], gone: set[int]
) -> None:
    made = [pack_of(number, chunks) for number, chunks in enumerate(packs)]
    kept = [pack for number, pack in enumerate(made) if number not in gone]
    found = IndexRows.of(made).without({number.to_bytes(32, "big") for number in gone})
    if not kept:
        assert len(found) == 0
        return
    expected = IndexRows.of(kept)
    assert found.to_table().equals(expected.to_table())
    assert IndexRows.from_payload(found.to_payload(), "x").pack_sizes() == expected.pack_sizes()
