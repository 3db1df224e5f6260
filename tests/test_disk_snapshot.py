"""Snapshots: the disk as it was, whatever happens to it since."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.disk_conformance import ReadableDiskConformance, read, sample
from vmbk.disk.base import Bytes, ReadableDisk
from vmbk.disk.imagefile import ImageFile
from vmbk.disk.raw import RawDisk
from vmbk.disk.snapshot import BLOCK, Snapshot, _overlaid
from vmbk.disk.tracker import Lost, TrackingLostError
from vmbk.errors import NotFoundError, StorageError
from vmbk.units import MIB


class TestSnapshotOfAQuietDisk(ReadableDiskConformance):
    @contextmanager
    def holding(self, content: Bytes, folder: Path) -> Iterator[ReadableDisk]:
        (folder / "d.raw").write_bytes(content.tobytes())
        with RawDisk(folder / "d.raw", "rw") as disk, disk.snapshot(folder) as snapshot:
            yield snapshot


class TestSnapshotOfAReadOnlyDisk(ReadableDiskConformance):
    @contextmanager
    def holding(self, content: Bytes, folder: Path) -> Iterator[ReadableDisk]:
        (folder / "d.raw").write_bytes(content.tobytes())
        with RawDisk(folder / "d.raw") as disk, disk.snapshot() as snapshot:
            yield snapshot


class TestSnapshotOfAnOverwrittenDisk(ReadableDiskConformance):
    SIZE = 40 * BLOCK + 77

    @contextmanager
    def holding(self, content: Bytes, folder: Path) -> Iterator[ReadableDisk]:
        with RawDisk.create(folder / "d.raw", len(content)) as disk:
            rng = np.random.default_rng(5)
            disk.write(0, content)
            for start in np.flatnonzero(
                np.add.reduceat(content, np.arange(0, len(content), 4096)) == 0
            ):
                disk.zero(int(start) * 4096, min(4096, len(content) - int(start) * 4096))
            with disk.snapshot(folder) as snapshot:
                for _ in range(15):
                    offset = int(rng.integers(0, self.SIZE))
                    length = int(rng.integers(1, min(self.SIZE - offset, 3 * BLOCK) + 1))
                    if rng.integers(2):
                        disk.write(offset, rng.integers(0, 256, length, np.uint8))
                    else:
                        disk.zero(offset, length)
                assert 0 < snapshot.preserved_bytes < self.SIZE
                yield snapshot


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[RawDisk]:
    with RawDisk.create(tmp_path / "d.raw", 20 * BLOCK + 5) as disk:
        disk.write(0, sample(disk.size))
        yield disk


def test_several_snapshots_each_keep_their_moment(disk: RawDisk) -> None:
    rng = np.random.default_rng(0)
    taken = []
    for round_ in range(6):
        taken.append((disk.snapshot(), read(disk)))
        for _ in range(8):
            offset = int(rng.integers(0, disk.size))
            disk.write(offset, rng.integers(0, 256, min(9000, disk.size - offset), np.uint8))
        if round_ == 3:
            taken.pop(1)[0].delete()
    for snapshot, content in taken:
        np.testing.assert_array_equal(read(snapshot), content)


def test_extents_are_those_of_then(tmp_path: Path) -> None:
    with RawDisk.create(tmp_path / "d.raw", 1 << 34) as disk:
        disk.write(3 * BLOCK, b"x" * BLOCK)
        disk.write(1 << 33, b"y" * BLOCK)
        with disk.snapshot() as snapshot:
            disk.zero(0, disk.size)
            disk.write(9 * BLOCK, b"z" * 4 * BLOCK)
            assert snapshot.data_extents()[0].tolist() == [3 * BLOCK, 1 << 33]
            assert snapshot.data_extents()[1].tolist() == [BLOCK, BLOCK]
            assert snapshot.preserved_bytes == 1 << 34


def test_first_writes_are_copied_once_and_holes_never(tmp_path: Path) -> None:
    with RawDisk.create(tmp_path / "d.raw", 64 * MIB) as disk:
        disk.write(0, np.ones(MIB, np.uint8))
        with disk.snapshot() as snapshot:
            for _ in range(3):
                disk.write(0, np.zeros(64 * MIB, np.uint8))
            assert snapshot._overlay is not None
            assert int(snapshot._overlay.extents(0, disk.size)[1].sum()) == MIB
            assert read(snapshot, 0, MIB).all()
            assert not read(snapshot, MIB, MIB).any()


def test_a_deleted_snapshot_says_so_and_frees_its_space(disk: RawDisk) -> None:
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    snapshot = disk.snapshot()
    disk.write(0, np.ones(disk.size, np.uint8))
    snapshot.delete()
    snapshot.delete()
    assert snapshot.deleted
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before
    for attempt in (lambda: read(snapshot, 0, 1), snapshot.data_extents):
        with pytest.raises(NotFoundError, match="'d' was deleted"):
            attempt()
    disk.write(0, b"x")


def test_snapshots_end_with_their_disk(disk: RawDisk) -> None:
    snapshot = disk.snapshot()
    disk.close()
    assert snapshot.deleted
    with pytest.raises(NotFoundError):
        read(snapshot, 0, 1)
    snapshot.delete(base=True)


def test_no_folder_for_the_overlay(disk: RawDisk, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"snapshot of disk 'd' cannot be kept in .*nowhere"):
        disk.snapshot(tmp_path / "nowhere")
    disk.write(0, b"x")


def test_when_the_overlay_is_full_the_disk_goes_on(disk: RawDisk, tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "none", folder],
        capture_output=True, check=False,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip("mounting needs root")
    try:
        before = read(disk)
        doomed, healthy = disk.snapshot(folder), disk.snapshot(tmp_path)
        disk.write(19 * BLOCK, b"fits" * 10)
        np.testing.assert_array_equal(read(doomed), before)
        disk.write(0, np.full(disk.size, 3, np.uint8))
        assert (read(disk) == 3).all()
        with pytest.raises(StorageError, match=r"not valid any more: .*No space"):
            read(doomed, 0, 1)
        with pytest.raises(StorageError, match="not valid any more"):
            doomed.data_extents()
        assert "not valid" in repr(doomed)
        np.testing.assert_array_equal(read(healthy), before)
        doomed.delete()
        disk.write(0, b"on and on")
    finally:
        subprocess.run(["umount", folder], check=True)


def test_readers_see_one_moment_under_a_writer(tmp_path: Path) -> None:
    """The race that matters: a block is overwritten while a reader is on its way to it."""
    size = 24 * BLOCK
    with RawDisk.create(tmp_path / "d.raw", size) as disk:
        stop, wrong = threading.Event(), []
        turn = np.zeros(1, np.uint8)

        def write() -> None:
            rng = np.random.default_rng(1)
            while not stop.is_set():
                offset = int(rng.integers(0, size - 9000))
                if rng.integers(5):
                    disk.write(offset, np.full(9000, rng.integers(1, 256), np.uint8))
                else:
                    disk.zero(offset, 9000)

        def check(snapshot: ReadableDisk, seed: int, first: Bytes) -> None:
            rng = np.random.default_rng(seed)
            for _ in range(60):
                offset = int(rng.integers(0, size))
                length = int(rng.integers(1, size - offset + 1))
                if (read(snapshot, offset, length) != first[offset : offset + length]).any():
                    wrong.append((seed, offset, length))
            outside = np.ones(size, bool)
            for at, count in zip(*snapshot.data_extents(), strict=True):
                outside[at : at + count] = False
            if first[outside].any():
                wrong.append((seed, "extents", int(turn[0])))

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for round_ in range(8):
                with disk.snapshot(tmp_path) as snapshot, disk.snapshot(tmp_path) as later:
                    first, second = read(snapshot), read(later)
                    readers = [
                        threading.Thread(target=check, args=(taken, 10 * round_ + i, content))
                        for i, (taken, content) in enumerate(
                            [(snapshot, first), (later, second), (snapshot, first)]
                        )
                    ]
                    for reader in readers:
                        reader.start()
                    for reader in readers:
                        reader.join()
        finally:
            stop.set()
            writer.join()
        assert wrong == []


class Interrupted:
    """The disk's file, with something happening after the given operation on it."""

    def __init__(self, file: ImageFile, operation: str, happening: Callable[[], None]) -> None:
        self._file = file
        self._operation = operation
        self._happening = happening

    def __getattr__(self, name: str) -> Callable[..., object]:
        def call(*args: int) -> object:
            found = getattr(self._file, name)(*args)
            if name == self._operation:
                self._operation = ""
                self._happening()
            return found

        return call


def interrupt(
    snapshot: Snapshot, operation: str, happening: Callable[[], None], part: str = ""
) -> None:
    """Let something happen right after the snapshot's next operation on the disk or overlay."""
    for name in [part] if part else ["_base", "_overlay"]:
        file = getattr(snapshot, name)
        assert isinstance(file, ImageFile)
        setattr(snapshot, name, Interrupted(file, operation, happening))


def test_a_write_right_after_the_disk_was_read(disk: RawDisk) -> None:
    before = read(disk)
    for change in (lambda: disk.write(BLOCK, b"new" * 50_000), lambda: disk.zero(0, disk.size)):
        with disk.snapshot() as snapshot:
            disk.write(7, b"x")  # so that one block is preserved and the others are not
            interrupt(snapshot, "read_into", change)
            np.testing.assert_array_equal(read(snapshot), before)
        disk.write(0, before)


def test_a_hole_right_after_the_disk_was_searched(disk: RawDisk) -> None:
    before = read(disk)
    with disk.snapshot() as snapshot:
        interrupt(snapshot, "extents", lambda: disk.zero(0, disk.size))
        outside = np.ones(disk.size, bool)
        for at, count in zip(*snapshot.data_extents(), strict=True):
            outside[at : at + count] = False
        assert not before[outside].any()
        assert not outside.all()


def test_deleted_right_after_the_disk_was_read(disk: RawDisk) -> None:
    for preserved in (0, 1, 20):
        for operation in ("read_into", "extents"):
            snapshot = disk.snapshot()
            disk.write(0, np.ones(preserved * BLOCK, np.uint8))
            interrupt(snapshot, operation, snapshot.delete)
            with pytest.raises(NotFoundError, match="was deleted"):
                _ = read(snapshot) if operation == "read_into" else snapshot.data_extents()


def test_deleted_between_two_reads_of_the_overlay(disk: RawDisk) -> None:
    snapshot = disk.snapshot()
    disk.write(2 * BLOCK, b"x")
    disk.write(5 * BLOCK, b"x")
    interrupt(snapshot, "read_into", snapshot.delete, "_overlay")
    with pytest.raises(NotFoundError, match="was deleted"):
        read(snapshot)


def test_given_up_right_after_the_disk_was_searched(disk: RawDisk, tmp_path: Path) -> None:
    """Its extents may then lack what was overwritten."""
    snapshot = disk.snapshot()

    def give_up() -> None:
        overlay = snapshot._overlay
        snapshot._overlay = ImageFile(os.open(tmp_path / "d.raw", os.O_RDONLY), "no overlay")
        disk.write(0, np.ones(disk.size, np.uint8))
        snapshot._overlay = overlay

    interrupt(snapshot, "extents", give_up, "_base")
    with pytest.raises(StorageError, match="not valid any more"):
        snapshot.data_extents()
    assert (read(disk) == 1).all()


def test_reading_while_it_is_deleted(disk: RawDisk) -> None:
    """A reader gets what was, or is told that it is gone; never what is now."""
    expected = read(disk)
    for _ in range(20):
        snapshot = disk.snapshot()
        wrong: list[str] = []

        def work(snapshot: ReadableDisk = snapshot, wrong: list[str] = wrong) -> None:
            try:
                while True:
                    if (read(snapshot) != expected).any():
                        wrong.append("content")
            except NotFoundError:
                return

        readers = [threading.Thread(target=work) for _ in range(2)]
        for reader in readers:
            reader.start()
        disk.write(0, np.full(disk.size, 1, np.uint8))
        time.sleep(0.002)
        snapshot.delete()
        disk.write(0, np.full(disk.size, 2, np.uint8))
        for reader in readers:
            reader.join()
        disk.write(0, expected)
        assert wrong == []


def test_a_tracked_snapshot_is_a_base(disk: RawDisk) -> None:
    untracked = disk.snapshot()
    assert (untracked.generation, untracked.tracker_id) == (0, "")
    tracker = disk.start_tracking()
    disk.write(0, b"before")
    with disk.snapshot() as snapshot:
        assert (snapshot.generation, snapshot.tracker_id) == (1, tracker.id)
        disk.write(7 * BLOCK, b"after")
        bitmap = tracker.changed_since(snapshot.generation)
        assert np.flatnonzero(np.unpackbits(bitmap.bits, bitorder="little")).tolist() == [7]
        assert tracker.changed_since(0, until=snapshot.generation).count == 1
    tracker.verify_base(tracker.id, 1, disk.size)
    later = disk.snapshot()
    later.delete(base=True)
    with pytest.raises(TrackingLostError) as lost:
        tracker.verify_base(tracker.id, later.generation, disk.size)
    assert lost.value.reason is Lost.BASE_DELETED
    assert tracker.changed_since(1).count == 1


def test_combining_extents_against_flags() -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        flags = rng.integers(0, 4, (3, 12)) > 1
        ranges = []
        for row in flags:
            edges = np.flatnonzero(np.diff(np.concatenate(([0], row, [0])).astype(int)))
            ranges.append(
                (edges[::2].astype(np.int64), (edges[1::2] - edges[::2]).astype(np.int64))
            )
        offsets, lengths = _overlaid(*ranges)
        found = np.zeros(12, bool)
        for offset, length in zip(offsets, lengths, strict=True):
            assert not found[max(offset - 1, 0) : offset + length].any()  # apart and in order
            found[offset : offset + length] = True
        np.testing.assert_array_equal(found, (flags[0] & ~flags[1]) | flags[2])
