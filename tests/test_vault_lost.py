"""Packs that are lost, cut short or damaged: nothing new is built on them, and `full` heals."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import vmbk
from tests.test_vault_helpers import (
    BLOCK,
    back_up,
    changed,
    content,
    disk_record,
    everything_restores,
    extent_table,
    new_vault,
    read_back,
    reopen,
)
from vmbk.errors import IntegrityError
from vmbk.vault import DiskRecord, Vault

DISK = content(5, 800 * BLOCK, zeros=0.0)  # several packs of the tests' 64 KiB
OTHER = np.random.default_rng(6).bytes(800 * BLOCK)  # shares no block with it

Damage = Callable[[Path], None]


def gone(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def blank(path: Path) -> None:
    """All entries damaged, the size as it was."""
    path.write_bytes(bytes(path.stat().st_size))


def packs_of(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "vault" / "packs").rglob("*") if path.is_file())


def pack_with(folder: Path, kind: str) -> Path:
    """A pack with data alone, or one with tables."""
    kinds = reopen(folder).index_frame().group_by("pack").agg(pl.col("kind").unique())
    found = {
        pack: set(found) for pack, found in zip(kinds["pack"], kinds["kind"], strict=True)
    }  # fmt: skip
    wanted = [
        pack for pack, held in found.items()
        if (held == {"data"} if kind == "data" else "table" in held)
    ]  # fmt: skip
    return folder / "vault" / "packs" / wanted[0][:2] / wanted[0]


@pytest.mark.parametrize("kind", ["data", "table"])
@pytest.mark.parametrize("damage", [gone, cut, empty, longer])
def test_a_whole_backup_heals_what_was_lost(tmp_path: Path, kind: str, damage: Damage) -> None:
    first = back_up(new_vault(tmp_path), {"d": DISK})
    lost = pack_with(tmp_path, kind)
    frame = reopen(tmp_path).index_frame()
    held = frame.filter(pl.col("pack") == lost.name)
    before = len(packs_of(tmp_path))
    damage(lost)
    second = back_up(reopen(tmp_path), {"d": DISK}, vm="other")
    contents = {first.id: {"d": DISK}, second.id: {"d": DISK}}
    everything_restores(reopen(tmp_path), contents)
    again = reopen(tmp_path).index_frame()
    assert again.height - frame.height == held.height, "only what was lost is stored again"
    third = back_up(reopen(tmp_path), {"d": DISK}, vm="other")
    assert reopen(tmp_path).index_frame().height == again.height, "and once"
    everything_restores(reopen(tmp_path), contents | {third.id: {"d": DISK}})

    vault = reopen(tmp_path)
    assert any(lost.name in error for error in vault.check().errors), "the pack is still damaged"
    vault.rebuild_index()
    if lost.exists():
        assert lost.name in set(vault.index_frame()["pack"]), "what it still holds can be read"
        lost.unlink()
        vault.rebuild_index()
    everything_restores(vault, contents)
    report = reopen(tmp_path).check(read_data=True)
    assert report.ok, report.errors
    assert report.packs == len(packs_of(tmp_path)) >= before


def test_a_backup_with_the_pipeline_heals_too(tmp_path: Path) -> None:
    data = os.urandom(4 << 20)
    vault = new_vault(tmp_path)
    image = tmp_path / "a.raw"
    with vmbk.RawDisk.create(image, 16 << 20) as disk:
        disk.write(0, data)
    first = vmbk.backup([image], vault, "vm", track=False)
    for path in packs_of(tmp_path):
        path.unlink()
    vault = reopen(tmp_path)
    second = vmbk.backup([image], vault, "other", detector="full", track=False)
    for point in (first.point, second.point):
        vmbk.restore(point, vault, tmp_path / point)
        assert (tmp_path / point / "a.raw").read_bytes() == image.read_bytes()


@pytest.mark.parametrize("damage", [gone, cut])
def test_nothing_is_committed_that_needs_a_lost_pack(tmp_path: Path, damage: Damage) -> None:
    first = back_up(new_vault(tmp_path), {"d": DISK})
    newer = changed(1, DISK)
    vault = reopen(tmp_path)
    damage(pack_with(tmp_path, "data"))
    rows = [(0, len(newer), None, 0)]
    with vault.writer("vm") as writer:
        chunk = writer.put(newer[:BLOCK]).id
        record = DiskRecord(
            "d", len(newer), BLOCK, parent=first.id,
            extents=writer.put_table(extent_table([(0, BLOCK, chunk, 0)])),
        )  # fmt: skip
        with pytest.raises(IntegrityError, match=r"needs the chunk .* of the pack") as info:
            writer.commit("vm", [record], "crash")
    assert "vmbk backup --detect full" in info.value.hint
    assert [point.id for point in reopen(tmp_path).points()] == [first.id]
    # Where the lost bytes are all replaced, the point stands.
    with reopen(tmp_path).writer("vm") as writer:
        extents = writer.put_table(extent_table(rows))
        record = DiskRecord("d", len(newer), BLOCK, parent=first.id, extents=extents)
        second = writer.commit("vm", [record], "crash")
    assert read_back(reopen(tmp_path), second, "d") == bytes(len(newer))
    third = back_up(reopen(tmp_path), {"d": newer})
    everything_restores(reopen(tmp_path), {third.id: {"d": newer}})


@pytest.mark.parametrize("kind", ["data", "table"])
def test_a_pack_that_is_lost_during_the_job_is_noticed(tmp_path: Path, kind: str) -> None:
    vault = new_vault(tmp_path)
    first = back_up(vault, {"d": DISK})
    lost = pack_with(tmp_path, kind)
    with vault.writer("vm") as writer:
        record = disk_record(writer, vault, "d", changed(1, DISK), first)
        lost.unlink()
        with pytest.raises(IntegrityError, match=lost.name) as info:
            writer.commit("vm", [record], "crash")
    assert "--detect full" in info.value.hint
    assert [point.id for point in vault.points()] == [first.id]


def test_a_table_cannot_name_what_only_a_lost_pack_holds(tmp_path: Path) -> None:
    vault = new_vault(tmp_path)
    with vault.writer("vm") as writer:
        chunk = writer.put(b"x" * 5000).id
        writer.commit("vm", [DiskRecord("d", 0, 512)], "crash")
    (lost,) = packs_of(tmp_path)
    lost.unlink()
    with vault.writer("vm") as writer:
        table = extent_table([(0, 5000, chunk, 0)])
        with pytest.raises(IntegrityError, match=lost.name) as info:
            writer.put_table(table)
        assert "--detect full" in info.value.hint
        assert writer.put(b"x" * 5000).new
        assert writer.put_table(table)


def test_a_pack_that_comes_back_counts_again(tmp_path: Path) -> None:
    vault = new_vault(tmp_path)
    first = back_up(vault, {"d": DISK})
    lost = pack_with(tmp_path, "data")
    away = lost.rename(tmp_path / "away")
    with vault.writer("vm"):
        pass
    away.rename(lost)
    height = vault.index_frame().height
    second = back_up(vault, {"d": DISK}, vm="other")
    assert vault.index_frame().height == height
    everything_restores(vault, {first.id: {"d": DISK}, second.id: {"d": DISK}})


def test_rebuilding_drops_packs_that_are_gone(tmp_path: Path) -> None:
    """A point that shows none of what they held restores as before."""
    vault = new_vault(tmp_path)
    first = back_up(vault, {"d": DISK})
    lost = pack_with(tmp_path, "data")
    second = back_up(vault, {"d": OTHER}, first)
    everything_restores(vault, {first.id: {"d": DISK}, second.id: {"d": OTHER}})
    away = lost.rename(tmp_path / "away")
    others = {path.name for path in packs_of(tmp_path)}
    assert vault.rebuild_index() == 0
    for same in (vault, reopen(tmp_path)):
        assert set(same.index_frame()["pack"]) == others
        everything_restores(same, {second.id: {"d": OTHER}})
        with pytest.raises(IntegrityError, match="in no index file"):
            same.disk_map(first, "d")
    errors = reopen(tmp_path).check(read_data=True).errors
    assert errors
    assert all(first.id in error for error in errors), errors
    assert vault.rebuild_index() == 0
    # Back again, it is listed by the next job.
    away.rename(lost)
    third = back_up(reopen(tmp_path), {"d": DISK}, second)
    contents = {first.id: {"d": DISK}, second.id: {"d": OTHER}, third.id: {"d": DISK}}
    everything_restores(reopen(tmp_path), contents)
    assert reopen(tmp_path).check(read_data=True).ok


def test_rebuilding_without_any_pack_leaves_no_index(tmp_path: Path) -> None:
    vault = new_vault(tmp_path)
    back_up(vault, {"d": DISK})
    kept = {path: path.read_bytes() for path in packs_of(tmp_path)}
    for path in kept:
        path.unlink()
    assert vault.rebuild_index() == 0
    assert not list((tmp_path / "vault" / "index").iterdir())
    assert vault.stats().chunks == 0
    for path, data in kept.items():
        path.write_bytes(data)
    assert vault.rebuild_index() == len(kept)
    assert reopen(tmp_path).check(read_data=True).ok


# Two copies


def two_copies(folder: Path) -> tuple[dict[str, dict[str, bytes]], list[Path], list[Path]]:
    """A vault that holds every chunk twice; its contents, and the packs of either copy."""
    first = back_up(new_vault(folder), {"d": DISK})
    ones = packs_of(folder)
    hidden = {path: path.read_bytes() for path in ones}
    for path in ones:
        path.unlink()
    second = back_up(reopen(folder), {"d": DISK}, vm="other")
    twos = packs_of(folder)
    for path, data in hidden.items():
        path.write_bytes(data)
    return {first.id: {"d": DISK}, second.id: {"d": DISK}}, ones, twos


@pytest.mark.parametrize("damage", [gone, cut, empty, blank])
def test_where_one_copy_fails_the_other_is_read(tmp_path: Path, damage: Damage) -> None:
    contents, ones, twos = two_copies(tmp_path)
    everything_restores(reopen(tmp_path), contents)
    for copy in (ones, twos):
        kept = {path: path.read_bytes() for path in copy}
        vault = reopen(tmp_path)
        everything_restores(vault, contents)
        for path in copy:
            damage(path)
        everything_restores(vault, contents)
        everything_restores(reopen(tmp_path), contents)
        assert not reopen(tmp_path).check(read_data=True).ok
        for path, data in kept.items():
            path.write_bytes(data)
    for path in (*ones, *twos):
        damage(path)
    for point_id, disks in contents.items():
        with pytest.raises(IntegrityError):
            everything_restores(reopen(tmp_path), {point_id: disks})


def test_a_flipped_byte_in_one_copy_is_read_over(tmp_path: Path) -> None:
    contents, ones, twos = two_copies(tmp_path)
    rng = np.random.default_rng(1)
    for path in (*ones, *twos):
        data = bytearray(path.read_bytes())
        for _ in range(5):
            data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        kept = path.read_bytes()
        path.write_bytes(data)
        everything_restores(reopen(tmp_path), contents)
        path.write_bytes(kept)


def test_a_vault_that_was_open_all_along_finds_what_was_stored_again(tmp_path: Path) -> None:
    vault = new_vault(tmp_path)
    first = back_up(vault, {"d": DISK})
    everything_restores(vault, {first.id: {"d": DISK}})
    for path in packs_of(tmp_path):
        path.unlink()
    with pytest.raises(IntegrityError, match="is missing"):
        everything_restores(vault, {first.id: {"d": DISK}})
    back_up(reopen(tmp_path), {"d": DISK}, vm="other")
    everything_restores(vault, {first.id: {"d": DISK}})


def test_a_flipped_byte_does_not_show_in_a_listing(tmp_path: Path) -> None:
    """So what is damaged within is not stored again; a check that reads tells."""
    first = back_up(new_vault(tmp_path), {"d": DISK})
    path = pack_with(tmp_path, "data")
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    vault = Vault.open(tmp_path / "vault", tmp_path / "key", durability="none")
    with vault.writer("other") as writer:
        assert not any(writer.put(DISK[at : at + BLOCK]).new for at in range(0, len(DISK), BLOCK))
    errors = reopen(tmp_path).check(read_data=True).errors
    assert any(path.name in error and "have changed" in error for error in errors)
    assert any(first.id in error and "cannot be read" in error for error in errors)
