"""The public face of the vault: creating, opening, points, writers, upkeep."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
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
    back_up,
    changed,
    content,
    disk_record,
    everything_restores,
    extent_table,
    new_vault,
    read_back,
    reopen,
    ticking,
)
from vmbk.errors import (
    InputError,
    IntegrityError,
    NotFoundError,
    StorageError,
)
from vmbk.vault import ChunkRef, DiskRecord, Vault
from vmbk.vault.format import INDEX_PACKS, MAX_CHUNK, MAX_TABLE_CHUNK

DISK = content(1, 20 * BLOCK)


def vault_bytes(folder: Path) -> int:
    return sum(
        path.stat().st_size
        for below in ("packs", "index", "points")
        for path in (folder / "vault" / below).rglob("*")
        if path.is_file()
    )


# Creating and opening


def test_create_makes_the_key_and_a_vault_that_opens(tmp_path: Path) -> None:
    made = Vault.create(tmp_path / "new" / "vault", tmp_path / "key")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    opened = Vault.open(tmp_path / "new" / "vault", tmp_path / "key")
    assert opened.id == made.id
    assert len(opened.id) == 32
    assert opened.points() == ()
    assert opened.check(read_data=True).ok


def test_create_uses_a_key_that_is_there(tmp_path: Path) -> None:
    Vault.create(tmp_path / "a", tmp_path / "key")
    before = (tmp_path / "key").read_bytes()
    other = Vault.create(tmp_path / "b", tmp_path / "key")
    assert (tmp_path / "key").read_bytes() == before
    assert Vault.open(tmp_path / "b", tmp_path / "key").id == other.id


def test_the_key_file_comes_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VMBK_KEY_FILE", raising=False)
    with pytest.raises(InputError, match="no key file") as info:
        Vault.create(tmp_path / "vault")
    assert "VMBK_KEY_FILE" in info.value.hint
    assert not (tmp_path / "vault").exists()
    monkeypatch.setenv("VMBK_KEY_FILE", str(tmp_path / "key"))
    Vault.create(tmp_path / "vault")
    Vault.open(tmp_path / "vault")
    with pytest.raises(InputError, match="no key file"):
        Vault.open(tmp_path / "vault", "")


def test_create_refuses_a_place_in_use(tmp_path: Path) -> None:
    new_vault(tmp_path)
    with pytest.raises(InputError, match="is a vault already"):
        new_vault(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    with pytest.raises(InputError, match=r"thesis\.txt"):
        Vault.create(tmp_path / "full", tmp_path / "key")
    with pytest.raises(InputError, match="not a directory"):
        Vault.create(tmp_path / "key", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_create_refuses_a_key_inside_the_vault(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="inside the vault"):
        Vault.create(tmp_path / "vault", tmp_path / "vault" / "key")
    assert not (tmp_path / "vault").exists()


def test_create_goes_on_where_a_killed_one_stopped(tmp_path: Path) -> None:
    root = tmp_path / "vault"
    for folder in ("packs", "index", "tmp"):
        (root / folder).mkdir(parents=True)
    (root / "tmp" / "77-ab").write_bytes(b"half a config")
    vault = Vault.create(root, tmp_path / "key")
    assert Vault.open(root, tmp_path / "key").id == vault.id


@pytest.mark.parametrize("target", [0, 65535, (64 << 20) + 1])
def test_create_refuses_a_strange_pack_size(tmp_path: Path, target: int) -> None:
    with pytest.raises(InputError, match=str(target)):
        new_vault(tmp_path, pack_target=target)


def test_of_two_creations_at_once_one_wins(tmp_path: Path) -> None:
    (tmp_path / "k").mkdir()
    start = threading.Barrier(4)

    def create(i: int) -> str | None:
        start.wait()
        try:
            return Vault.create(tmp_path / "vault", tmp_path / "k" / str(i)).id
        except (InputError, StorageError):
            return None

    with ThreadPoolExecutor(4) as pool:
        ids = list(pool.map(create, range(4)))
    (winner,) = [i for i, vault_id in enumerate(ids) if vault_id]
    assert Vault.open(tmp_path / "vault", tmp_path / "k" / str(winner)).id == ids[winner]


def test_open_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no vault") as info:
        Vault.open(tmp_path / "nothing", tmp_path / "key")
    assert "vault create" in info.value.hint
    new_vault(tmp_path)
    with pytest.raises(NotFoundError, match="no key file"):
        Vault.open(tmp_path / "vault", tmp_path / "nothing")
    back_up(reopen(tmp_path), {"disk": DISK})
    (tmp_path / "vault" / "config").unlink()
    with pytest.raises(IntegrityError, match="lost its `config`"):
        reopen(tmp_path)


def test_a_key_file_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("not a key")
    (tmp_path / "key").chmod(0o600)
    with pytest.raises(InputError, match="not a vmbk key file"):
        new_vault(tmp_path)
    assert not (tmp_path / "vault").exists()
    assert (tmp_path / "key").read_text() == "not a key"


def test_a_key_file_of_a_newer_version_says_so(tmp_path: Path) -> None:
    new_vault(tmp_path)
    document = json.loads((tmp_path / "key").read_bytes())
    (tmp_path / "key").write_text(json.dumps(document | {"version": 9}))
    with pytest.raises(InputError, match="version 9"):
        reopen(tmp_path)


def test_importing_the_vault_loads_no_arrow() -> None:
    code = "import sys, vmbk.vault; print({'pyarrow', 'polars', 'numba'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# Recovery points


@pytest.fixture
def three(tmp_path: Path) -> tuple[Vault, list[str]]:
    """Two points of the VM ``web`` and between them one of ``db``."""
    vault = new_vault(tmp_path, clock=ticking())
    first = back_up(vault, {"disk": DISK}, vm="web")
    other = back_up(vault, {"a": DISK, "b": DISK[:700]}, vm="db", consistency="application")
    second = back_up(vault, {"disk": changed(1, DISK)}, first, vm="web")
    return vault, [first.id, other.id, second.id]


def test_points_are_listed_by_time_and_vm(three: tuple[Vault, list[str]]) -> None:
    vault, ids = three
    assert [point.id for point in vault.points()] == ids
    assert [point.id for point in vault.points("web")] == [ids[0], ids[2]]
    assert vault.points("nobody") == ()
    other = vault.points("db")[0]
    assert other.consistency == "application"
    assert other.disk("b").size == 700
    assert other.size == len(DISK) + 700
    assert other.created.isoformat().startswith("2026-11-21T10:00:0")
    with pytest.raises(NotFoundError, match="no disk 'c'") as info:
        other.disk("c")
    assert "'a', 'b'" in info.value.hint


def test_a_point_is_found_by_id_prefix_and_latest(three: tuple[Vault, list[str]]) -> None:
    vault, ids = three
    assert vault.point("latest").id == ids[2]
    assert vault.point("latest", vm="db").id == ids[1]
    for point_id in ids:
        assert vault.point(point_id).id == point_id
    # The ids of this clock differ in their last second.
    unique = ids[0][:16]
    assert vault.point(unique).id == ids[0]


def test_a_point_that_is_not_there_lists_what_is(three: tuple[Vault, list[str]]) -> None:
    vault, ids = three
    for which, vm in (("2031", None), (ids[1], "web"), ("", None), ("latest", "nobody")):
        with pytest.raises(NotFoundError) as info:
            vault.point(which, vm=vm)
        if vm != "nobody":
            assert ids[0] in info.value.hint
    with pytest.raises(NotFoundError, match="beginning of 3 points") as info:
        vault.point("2026")
    assert all(point_id in info.value.hint for point_id in ids)


def test_one_damaged_manifest_does_not_block_the_others(
    three: tuple[Vault, list[str]], tmp_path: Path
) -> None:
    vault, ids = three
    (tmp_path / "vault" / "points" / ids[1]).write_bytes(b"damaged")
    vault = reopen(tmp_path)
    with pytest.raises(IntegrityError, match=ids[1]):
        vault.points()
    assert [point.id for point in vault.points(damaged="skip")] == [ids[0], ids[2]]
    assert read_back(vault, vault.point(ids[2]), "disk") == changed(1, DISK)
    assert vault.point("latest").id == ids[2]
    with pytest.raises(IntegrityError, match=ids[1]):
        vault.point(ids[1])
    assert vault.stats().damaged_points == 1
    report = vault.check()
    assert [error for error in report.errors if ids[1] in error]
    # A backup of another VM, and of this one, still works.
    back_up(vault, {"disk": DISK}, vm="web")


def test_an_older_point_never_passes_for_the_latest(
    three: tuple[Vault, list[str]], tmp_path: Path
) -> None:
    _, ids = three
    (tmp_path / "vault" / "points" / ids[2]).write_bytes(b"")
    for vm in (None, "web"):
        with pytest.raises(IntegrityError, match=f"the latest point may be {ids[2]}"):
            reopen(tmp_path).point("latest", vm=vm)


def test_a_strange_file_among_the_points_is_reported(
    three: tuple[Vault, list[str]], tmp_path: Path
) -> None:
    vault, ids = three
    (tmp_path / "vault" / "points" / "notes.txt").write_text("hello")
    with pytest.raises(IntegrityError, match=r"notes\.txt"):
        vault.points()
    assert len(vault.points(damaged="skip")) == 3
    assert vault.point("latest").id == ids[2]
    assert not vault.check().ok


def test_points_of_one_vm_never_go_back_in_time(tmp_path: Path) -> None:
    vault = new_vault(tmp_path, clock=lambda: START_NS)
    times = [back_up(vault, {"disk": DISK}).created_ns for _ in range(3)]
    assert times == [START_NS, START_NS + 1, START_NS + 2]
    earlier = reopen(tmp_path, clock=lambda: START_NS - 10**15)
    assert back_up(earlier, {"disk": DISK}).created_ns == START_NS + 3
    assert back_up(earlier, {"disk": DISK}, vm="other").created_ns == START_NS - 10**15


def test_damaged_is_one_of_two(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'ignore'"):
        new_vault(tmp_path).points(damaged="ignore")  # type: ignore[arg-type]


# Writing


def test_chunks_come_back_and_are_stored_once(tmp_path: Path) -> None:
    vault = new_vault(tmp_path)
    pieces = [b"x", b"y" * 5000, os.urandom(5000), bytes(100_000), np.arange(7, dtype=np.int64)]
    with vault.writer("vm") as writer:
        refs = [writer.put(piece) for piece in pieces]
        again = [writer.put(bytearray(bytes(piece))) for piece in pieces]
        table = writer.put(pieces[0], kind="table")
        writer.commit("vm", [DiskRecord("d", 0, 512)], "crash")
    assert [ref.new for ref in refs] == [True] * 5
    assert [(ref.new, ref.stored) for ref in again] == [(False, 0)] * 5
    assert [ref.id for ref in again] == [ref.id for ref in refs]
    assert table.new, "kinds are apart"
    assert table.id != refs[0].id
    assert refs[2].stored == 5000 + 144
    assert refs[3].stored < 500
    vault = reopen(tmp_path)
    for piece, ref in zip(pieces, refs, strict=True):
        assert vault.get(ref.id) == bytes(piece)
        assert vault.get(ref.id).readonly
    with vault.writer("vm") as writer:
        assert writer.put(pieces[1]) == ChunkRef(refs[1].id, False, 5000, 0)


@pytest.mark.parametrize("data", [b"", np.empty(0, np.uint8), bytes(MAX_CHUNK + 1)], ids=len)
def test_sizes_that_are_no_chunk_are_refused(tmp_path: Path, data: Any) -> None:
    with (
        new_vault(tmp_path).writer("vm") as writer,
        pytest.raises(InputError, match=f"not {len(data)}"),
    ):
        writer.put(data)


def test_data_that_is_not_contiguous_is_refused(tmp_path: Path) -> None:
    with new_vault(tmp_path).writer("vm") as writer:
        for data in (np.zeros(10, np.uint8)[::2], "text", 7):
            with pytest.raises(InputError, match="contiguous"):
                writer.put(data)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="'blob'"):
            writer.put(b"x", kind="blob")


def test_the_largest_chunk_makes_the_round_trip(tmp_path: Path) -> None:
    vault = new_vault(tmp_path)
    data = np.random.default_rng(1).integers(0, 256, MAX_CHUNK, np.uint8)
    with vault.writer("vm") as writer:
        ref = writer.put(data)
        writer.commit("vm", [DiskRecord("d", 0, 512)], "crash")
    assert reopen(tmp_path).get(ref.id) == data.tobytes()


def test_growth_is_accounted_to_the_byte(tmp_path: Path) -> None:
    vault = new_vault(tmp_path)
    point = None
    for i in range(4):
        before = vault_bytes(tmp_path)
        with vault.writer("vm") as writer:
            record = disk_record(writer, vault, "d", content(i, 300 * BLOCK), point)
            point = writer.commit("vm", [record], "crash")
        assert writer.stored_bytes == vault_bytes(tmp_path) - before


def test_threads_that_put_the_same_chunks_store_each_once(tmp_path: Path) -> None:
    vault = new_vault(tmp_path)
    pieces = [os.urandom(3000) for _ in range(200)]
    start = threading.Barrier(4)

    def work(k: int) -> list[ChunkRef]:
        start.wait()
        order = np.random.default_rng(k).permutation(len(pieces))
        return [writer.put(pieces[i]) for i in order]

    with vault.writer("vm") as writer:
        with ThreadPoolExecutor(4) as pool:
            refs = [ref for part in pool.map(work, range(4)) for ref in part]
        writer.commit("vm", [DiskRecord("d", 0, 512)], "crash")
    assert sum(ref.new for ref in refs) == len(pieces)
    assert vault.stats().chunks == len(pieces)
    vault = reopen(tmp_path)
    assert {bytes(vault.get(ref.id)) for ref in refs} == set(pieces)
    assert vault.check(read_data=True).ok


def test_a_long_job_lists_its_packs_as_it_goes(tmp_path: Path) -> None:
    vault = new_vault(tmp_path)
    pieces = [os.urandom(70_000) for _ in range(2 * INDEX_PACKS + 3)]  # a pack each
    with vault.writer("vm") as writer:
        for piece in pieces:
            writer.put(piece)  # and it ends without a commit
    # What the job had stored is found by the next one, also after the last full index file.
    with reopen(tmp_path).writer("vm") as writer:
        again = [writer.put(piece) for piece in pieces]
        assert not any(ref.new for ref in again)
        writer.commit("vm", [DiskRecord("d", 0, 512)], "crash")
    index = list((tmp_path / "vault" / "index").iterdir())
    assert len(index) == 3
    assert reopen(tmp_path).check(read_data=True).ok


def test_packs_of_a_killed_job_are_found_again(tmp_path: Path) -> None:
    """Also those that it had not listed yet; what is no pack stays out of it."""
    vault = new_vault(tmp_path)
    pieces = [os.urandom(70_000) for _ in range(5)]
    with vault.writer("vm") as writer:
        for piece in pieces:
            writer.put(piece)
    packs = tmp_path / "vault" / "packs"
    for path in (tmp_path / "vault" / "index").iterdir():
        path.unlink()  # as if it had been killed just before
    (packs / "00").mkdir(exist_ok=True)
    (packs / "00" / ("00" * 32)).write_bytes(b"no pack")
    (packs / "notes.txt").write_bytes(b"no pack either")
    with reopen(tmp_path).writer("vm") as writer:
        assert not any(writer.put(piece).new for piece in pieces)
        writer.commit("vm", [DiskRecord("d", 0, 512)], "crash")
    assert reopen(tmp_path).stats().packs == 5


def test_a_writer_makes_one_point(tmp_path: Path) -> None:
    vault = new_vault(tmp_path)
    with vault.writer("vm") as writer:
        with pytest.raises(InputError, match="for the VM 'vm', not 'other'"):
            writer.commit("other", [DiskRecord("d", 0, 512)], "crash")
        writer.commit("vm", [DiskRecord("d", 0, 512)], "crash")
        for call in (
            lambda: writer.put(b"x"),
            lambda: writer.commit("vm", [DiskRecord("d", 0, 512)], "crash"),
        ):
            with pytest.raises(InputError, match="writer is done"):
                call()
    assert len(vault.points()) == 1


def test_nothing_is_a_point_before_commit(tmp_path: Path) -> None:
    vault = new_vault(tmp_path)
    with vault.writer("vm") as writer:
        disk_record(writer, vault, "d", DISK)
    assert vault.points() == ()
    assert vault.check(read_data=True).ok


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""}, {"name": "../x"}, {"name": "a/b"}, {"name": ".."}, {"name": "a\nb"},
        {"name": "ä" * 128}, {"name": "\udcff"}, {"size": -1}, {"block_size": 0},
        {"block_size": -5}, {"parent": "x"}, {"digest": "xyz"}, {"digest": "0" * 15},
        {"generation": -1}, {"sent_bytes": 1 << 63}, {"extents": (b"short",)}, {"size": True},
        {"sub_block_size": 1.5}, {"fallback": "x" * 5000}, {"tracker": None},
    ],
)  # fmt: skip
def test_a_record_that_is_not_allowed_makes_no_point(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    vault = new_vault(tmp_path)
    record = DiskRecord(**({"name": "d", "size": 0, "block_size": 512} | change))
    with vault.writer("vm") as writer, pytest.raises(InputError):
        writer.commit("vm", [record], "crash")
    assert vault.points() == ()


def test_a_point_that_is_not_allowed_is_not_made(tmp_path: Path) -> None:
    vault = new_vault(tmp_path)
    disk = DiskRecord("d", 0, 512)
    for disks, consistency, provenance in (
        ([], "crash", {}),
        ([disk, disk], "crash", {}),
        ([disk], "perfect", {}),
        ([disk], "crash", {"x": object()}),
        ([disk], "crash", {"x": float("nan")}),
    ):
        with vault.writer("vm") as writer, pytest.raises(InputError):
            writer.commit("vm", disks, consistency, provenance)
    for vm in ("", "a/b", "\0", "x" * 256):
        with pytest.raises(InputError, match="name of a VM"), vault.writer(vm):
            raise AssertionError("not reached")
    assert vault.points() == ()


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"size": 100}, "gap at offset 50"),
        ({"extents": (bytes(32),)}, "in no index"),
        ({"digests": (bytes(32),)}, "in no index"),
        ({"parent": "20261121T101500Z-1a2b3c4d"}, "ends early"),
    ],
)
def test_a_point_that_would_not_restore_is_not_made(
    tmp_path: Path, fields: dict[str, Any], error: str
) -> None:
    vault = new_vault(tmp_path)
    with vault.writer("vm") as writer:
        chunk = writer.put(b"x" * 100).id
        extents = writer.put_table(extent_table([(0, 50, chunk, 0)]))
        good = {"name": "d", "size": 50, "block_size": 512, "extents": extents}
        with pytest.raises(IntegrityError, match=error):
            writer.commit("vm", [DiskRecord(**(good | fields))], "crash")
    assert vault.points() == ()


def test_a_table_refers_only_to_what_is_stored(tmp_path: Path) -> None:
    with new_vault(tmp_path).writer("vm") as writer:
        for chunk in (bytes(range(32)), bytes(32)):
            with pytest.raises(InputError, match="not in the vault"):
                writer.put_table(extent_table([(0, 1, chunk, 0)]))


# Tables


@settings(max_examples=15)
@given(rows=st.integers(0, 300_000), width=st.integers(1, 4))
def test_tables_make_the_round_trip(
    tmp_path_factory: pytest.TempPathFactory, rows: int, width: int
) -> None:
    folder = tmp_path_factory.mktemp("tables")
    vault = new_vault(folder)
    rng = np.random.default_rng(rows)
    table = pa.table({f"c{i}": rng.integers(0, 1 << 60, rows) for i in range(width)})
    with vault.writer("vm") as writer:
        ids = writer.put_table(table)
        writer.commit("vm", [DiskRecord("d", 0, 512)], "crash")
    assert all(len(vault.get(chunk)) <= MAX_TABLE_CHUNK for chunk in ids)
    assert (len(ids) == 0) == (rows == 0)
    assert vault.get_table(ids, table.schema).equals(table)
    if ids:
        assert reopen(folder).get_table(ids).equals(table)


def test_tables_without_fixed_width_are_split_too(tmp_path: Path) -> None:
    vault = new_vault(tmp_path)
    table = pa.table({"text": ["x" * 100_000 * (i % 3) for i in range(200)]})
    with vault.writer("vm") as writer:
        ids = writer.put_table(table)
        with pytest.raises(InputError, match="one row of a table"):
            writer.put_table(pa.table({"text": ["x" * (MAX_TABLE_CHUNK + 1)]}))
        writer.commit("vm", [DiskRecord("d", 0, 512)], "crash")
    assert len(ids) > 1
    assert vault.get_table(ids).equals(table)


def test_a_table_that_grows_keeps_its_first_chunks(tmp_path: Path) -> None:
    vault = new_vault(tmp_path)
    numbers = np.arange(1_000_000)
    with vault.writer("vm") as writer:
        before = writer.put_table(pa.table({"n": numbers[:-5]}))
        after = writer.put_table(pa.table({"n": numbers}))
    assert before[:-1] == after[: len(before) - 1]


def test_a_table_is_what_was_asked_for(tmp_path: Path) -> None:
    vault = new_vault(tmp_path)
    with vault.writer("vm") as writer:
        one = writer.put_table(pa.table({"a": [1]}))
        two = writer.put_table(pa.table({"b": [1]}))
        data = writer.put(b"no table").id
        wrong = writer.put(b"no table", kind="table").id
        writer.commit("vm", [DiskRecord("d", 0, 512)], "crash")
    with pytest.raises(IntegrityError, match="other columns"):
        vault.get_table(one + two)
    with pytest.raises(IntegrityError, match="not of kind 'table'"):
        vault.get_table((data,))
    with pytest.raises(IntegrityError, match="no valid Arrow table"):
        vault.get_table((wrong,))
    with pytest.raises(InputError, match="no chunks"):
        vault.get_table(())
    with pytest.raises(IntegrityError, match="in no index file"):
        vault.get(bytes(32))
    with pytest.raises(InputError, match="no chunk id"):
        vault.get(b"short")


# Upkeep and display


def test_two_open_vaults_see_each_others_points(tmp_path: Path) -> None:
    one = new_vault(tmp_path)
    other = reopen(tmp_path)
    point = back_up(one, {"d": DISK})
    assert read_back(other, other.point("latest"), "d") == DISK
    back_up(other, {"d": changed(2, DISK)}, point)
    assert read_back(one, one.point("latest"), "d") == changed(2, DISK)


def test_the_index_is_rebuilt_from_the_packs(tmp_path: Path) -> None:
    vault = new_vault(tmp_path)
    first = back_up(vault, {"d": DISK})
    second = back_up(vault, {"d": changed(3, DISK)}, first)
    contents = {first.id: {"d": DISK}, second.id: {"d": changed(3, DISK)}}
    index = sorted((tmp_path / "vault" / "index").iterdir())
    index[0].write_bytes(b"damaged")
    index[1].unlink()
    vault = reopen(tmp_path)
    with pytest.raises(IntegrityError, match=index[0].name) as info, vault.writer("vm"):
        raise AssertionError("a backup must not build on a damaged index")
    assert "rebuild" in info.value.hint
    assert not vault.check().ok
    assert vault.rebuild_index() == 2
    assert reopen(tmp_path).check(read_data=True).ok
    everything_restores(vault, contents)
    everything_restores(reopen(tmp_path), contents)
    assert vault.rebuild_index() == 0
    back_up(vault, {"d": DISK}, second)


def test_rebuilding_lists_what_can_be_listed(tmp_path: Path) -> None:
    vault = new_vault(tmp_path)
    point = back_up(vault, {"d": DISK})
    (tmp_path / "vault" / "packs" / "00").mkdir(exist_ok=True)
    (tmp_path / "vault" / "packs" / "00" / ("00" * 32)).write_bytes(b"no pack")
    for path in (tmp_path / "vault" / "index").iterdir():
        path.unlink()
    with pytest.raises(IntegrityError, match="1 packs were listed, 1 could not be"):
        reopen(tmp_path).rebuild_index()
    assert read_back(reopen(tmp_path), point, "d") == DISK


def test_check_counts(three: tuple[Vault, list[str]]) -> None:
    vault, _ = three
    seen: list[int] = []
    structure, everything = vault.check(), vault.check(read_data=True, on_progress=seen.append)
    stats = vault.stats()
    assert structure.ok
    assert everything.ok
    assert structure.read_bytes == 0
    assert everything.read_bytes == everything.stored_bytes == stats.stored_bytes == sum(seen)
    assert (everything.points, everything.packs) == (3, stats.packs)
    assert everything.chunks == stats.chunks
    assert json.loads(json.dumps(everything.to_dict()))["ok"] is True
    assert stats.to_dict()["vms"] == 2
    assert stats.disk_bytes == sum(point.size for point in vault.points())


def test_frames_say_what_the_vault_holds(three: tuple[Vault, list[str]], tmp_path: Path) -> None:
    vault, ids = three
    frame = vault.index_frame()
    assert frame.height == vault.stats().chunks
    assert frame["raw"].sum() == vault.stats().raw_bytes
    assert set(frame["kind"]) == {"data", "table"}
    packs = {path.name for path in (tmp_path / "vault" / "packs").rglob("*") if path.is_file()}
    assert set(frame["pack"]) == packs
    assert frame["chunk"].str.len_chars().unique().to_list() == [64]
    points = vault.points_frame()
    assert points["point"].to_list() == [ids[0], ids[1], ids[1], ids[2]]
    assert points["disk"].to_list() == ["disk", "a", "b", "disk"]
    assert points["created"][0].year == 2026
    empty = Vault.create(tmp_path / "empty", tmp_path / "key")
    assert empty.index_frame().is_empty()
    assert empty.index_frame().columns == frame.columns
    assert empty.points_frame().columns == points.columns


def test_things_show_themselves_in_a_notebook(tmp_path: Path) -> None:
    vault = new_vault(tmp_path)
    point = back_up(vault, {"<b>disk": DISK}, vm="<script>")
    for thing in (
        vault,
        vault.stats(),
        vault.check(),
        point,
        vault.disk_map(point, "<b>disk"),
    ):
        html = thing._repr_html_()
        assert html.startswith("<table>")
        assert "<script>" not in html
        assert "<b>" not in html
    assert repr(vault) == f"Vault('{tmp_path / 'vault'}')"
    with vault as same:
        assert same is vault
