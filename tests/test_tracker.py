"""Change tracking: it covers every change, or says that it cannot be trusted and why."""

from __future__ import annotations

import gc
import mmap
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.disk_conformance import read
from tests.test_disk_raw import later_stores_show
from vmbk.disk import sidecar, tracking_state
from vmbk.disk.raw import ImageSignature, RawDisk
from vmbk.disk.tracker import Bitmap, Lost, Tracker, TrackingLostError
from vmbk.errors import BusyError, InputError, OutOfRangeError, StorageError
from vmbk.units import KIB, MIB

GRAIN = 4 * KIB
SIZE = 70 * GRAIN + 100


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A tracked image at rest, whose base 1 was taken when block 3 had been written."""
    path = tmp_path / "disk.raw"
    with RawDisk.create(path, SIZE) as disk:
        disk.start_tracking(GRAIN)
        disk.write(3 * GRAIN, b"x")
        disk.snapshot().delete()
    return path


def blocks(bitmap: Bitmap) -> set[int]:
    flags = np.unpackbits(bitmap.bits, bitorder="little")
    assert len(bitmap.bits) == -(-bitmap.n_blocks // 8)
    assert not flags[bitmap.n_blocks :].any()
    return set(np.flatnonzero(flags).tolist())


def reason(attempt: Callable[[], object]) -> Lost:
    with pytest.raises(TrackingLostError) as caught:
        attempt()
    assert caught.value.reason.value in str(caught.value)
    return caught.value.reason


def why_not(image: Path, base: tuple[str, int]) -> Lost | None:
    """Why a base cannot be used by a job that opens the image now; None where it can."""
    try:
        with RawDisk(image) as disk:
            tracker = Tracker.load(image)
            tracker.verify_base(base[0], base[1], disk.size)
            tracker.changed_since(base[1])
    except TrackingLostError as lost:
        return lost.reason
    return None


def base_of(image: Path) -> tuple[str, int]:
    tracker = Tracker.load(image)
    return tracker.id, tracker.bases[-1]


def test_reasons_are_the_documented_ones() -> None:
    assert {str(r) for r in Lost} == {
        "no tracker", "unclean", "size changed", "generation mismatch", "base snapshot deleted",
        "foreign write", "damaged", "spot check",
    }  # fmt: skip


def test_tracking_lives_through_sessions(image: Path) -> None:
    base = base_of(image)
    assert why_not(image, base) is None
    assert blocks(Tracker.load(image).changed_since(1)) == set()
    assert blocks(Tracker.load(image).changed_since(0)) == {3}
    with RawDisk(image, "rw") as disk:
        disk.write(9 * GRAIN - 1, b"ab")
        disk.zero(SIZE - 1, 1)
        disk.write_batch(
            np.array([20 * GRAIN, 30]), np.array([1, 2]), np.ones(3, np.uint8), np.array([0, 1])
        )
    assert why_not(image, base) is None
    tracker = Tracker.load(image)
    assert blocks(tracker.changed_since(1)) == {0, 8, 9, 20, 70}
    assert blocks(tracker.changed_since(0)) == {0, 3, 8, 9, 20, 70}
    with RawDisk(image) as disk:
        assert disk.tracker is not None
        assert blocks(disk.tracker.changed_since(1)) == {0, 8, 9, 20, 70}


def test_a_job_on_an_image_at_rest(image: Path) -> None:
    """Open for reading, verify, checkpoint, ask; the next job builds on that checkpoint."""
    base = base_of(image)
    with RawDisk(image, "rw") as disk:
        disk.write(5 * GRAIN, b"x")
    with RawDisk(image):
        tracker = Tracker.load(image)
        tracker.verify_base(*base, SIZE)
        closed = tracker.checkpoint()
        assert blocks(tracker.changed_since(base[1], until=closed)) == {5}
    with RawDisk(image, "rw") as disk:
        disk.write(6 * GRAIN, b"x")
    tracker = Tracker.load(image)
    tracker.verify_base(base[0], closed, SIZE)
    assert blocks(tracker.changed_since(closed)) == {6}
    assert blocks(tracker.changed_since(base[1])) == {5, 6}


def test_jobs_of_two_vaults_at_once(image: Path) -> None:
    with RawDisk(image), RawDisk(image):
        one, two = Tracker.load(image), Tracker.load(image)
        first, second = one.checkpoint(), two.checkpoint()
        assert second == first + 1
        assert one.checkpoint() == second + 1
    assert Tracker.load(image).bases == (0, 1, first, second, second + 1)


def test_checkpoints_of_many_processes_are_all_kept(image: Path) -> None:
    with RawDisk(image):
        closed: list[int] = []

        def work() -> None:
            for _ in range(5):
                closed.append(Tracker.load(image).checkpoint())

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(closed) == list(range(2, 22))


def test_an_image_at_rest_must_be_at_rest(image: Path) -> None:
    tracker = Tracker.load(image)
    with RawDisk(image, "rw") as disk:
        for attempt in (tracker.checkpoint, tracker.reset, lambda: tracker.delete_snapshot(1)):
            with pytest.raises(BusyError, match="open for writing"):
                attempt()
        assert disk.tracker is not None
        disk.tracker.checkpoint()
    with pytest.raises(InputError, match="only reads"):
        tracker.mark(0, 1)
    assert Tracker.load(image).bases == (0, 1, 2)


def test_writes_after_the_snapshot_are_left_out(image: Path) -> None:
    with RawDisk(image, "rw") as disk:
        tracker = disk.tracker
        assert tracker is not None
        disk.write(1 * GRAIN, b"x")
        with disk.snapshot() as snapshot:
            disk.write(2 * GRAIN, b"x")
            until = snapshot.generation
            assert blocks(tracker.changed_since(1, until=until)) == {1}
            assert blocks(tracker.changed_since(1)) == {1, 2}
            assert blocks(tracker.changed_since(until)) == {2}
            assert blocks(tracker.changed_since(until, until=until)) == set()
        for wrong in (0, until + 1):
            with pytest.raises(InputError, match=f"until generation {wrong} "):
                tracker.changed_since(1, until=wrong)


def test_not_tracked(tmp_path: Path) -> None:
    with RawDisk.create(tmp_path / "d.raw", SIZE) as disk:
        assert disk.tracker is None
    with RawDisk(tmp_path / "d.raw") as disk:
        assert disk.tracker is None
    assert reason(lambda: Tracker.load(tmp_path / "d.raw")) is Lost.NO_TRACKER


def test_the_file_was_removed(image: Path) -> None:
    base, tracker = base_of(image), Tracker.load(image)
    sidecar.sidecar_path(image).unlink()
    assert why_not(image, base) is Lost.NO_TRACKER
    assert reason(tracker.checkpoint) is Lost.NO_TRACKER
    with RawDisk(image) as disk:
        assert disk.snapshot().generation == 0
    Tracker.create(image, SIZE)
    with RawDisk(image) as disk:
        assert disk.tracker is not None
        sidecar.sidecar_path(image).unlink()
        assert disk.snapshot().generation == 0
        assert disk.tracker is None


@pytest.mark.parametrize("how", ["write", "append", "replace", "touch"])
def test_foreign_write(image: Path, how: str) -> None:
    base = base_of(image)
    before = image.stat()
    if how == "replace":
        shutil.copy2(image, image.with_name("copy"))
        image.with_name("copy").replace(image)
    elif how == "append":
        with image.open("ab") as file:
            file.write(b"more")
    else:
        with image.open("r+b") as file:
            file.write(b"x" if how == "write" else b"")
        os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    expected = Lost.SIZE_CHANGED if how == "append" else Lost.FOREIGN_WRITE
    assert why_not(image, base) is expected
    assert why_not(image, base) is expected  # looking at it changes nothing

    # The next job starts over and builds on that, while the old base stays refused.
    with RawDisk(image) as disk:
        tracker = Tracker.load(image)
        closed = tracker.checkpoint()
        assert tracker.last_loss is expected
        assert tracker.size == disk.size
        assert tracker.granularity == GRAIN
    assert tracker.id != base[0]
    assert why_not(image, (tracker.id, closed)) is None
    assert why_not(image, base) is expected
    with RawDisk(image, "rw") as disk:
        disk.write(0, b"x")
    assert blocks(Tracker.load(image).changed_since(closed)) == {0}


def test_a_foreign_write_in_the_same_tick_as_the_close(image: Path) -> None:
    """File times come from a clock that ticks every few milliseconds."""
    for _ in range(30):
        with RawDisk(image, "rw") as disk:
            assert disk.tracker is not None
            disk.write(0, b"ours")
            base = disk.tracker.id, disk.snapshot().generation
        fd = os.open(image, os.O_WRONLY)
        os.pwrite(fd, b"theirs", 50 * GRAIN)
        os.close(fd)
        assert why_not(image, base) is Lost.FOREIGN_WRITE


def test_a_foreign_write_while_open_before_the_first_of_ours(image: Path) -> None:
    base = base_of(image)
    with RawDisk(image, "rw") as disk:
        with image.open("r+b") as file:
            file.write(b"theirs")
        disk.write(5 * GRAIN, b"ours")
        assert disk.tracker is not None
        assert reason(lambda: disk.tracker.verify_base(*base, SIZE)) is Lost.FOREIGN_WRITE  # type: ignore[union-attr]
    assert why_not(image, base) is Lost.FOREIGN_WRITE


def test_a_store_to_a_page_that_was_dirty_before(tmp_path: Path) -> None:
    """Such a store moves no time by itself. At every moment a signature may come to be believed."""

    def created(path: Path) -> None:
        Tracker.create(path, SIZE)

    def checkpoint(path: Path) -> None:
        with RawDisk(path) as disk:
            disk.snapshot().delete()

    def clean_close(path: Path) -> None:
        with RawDisk(path, "rw") as disk:
            disk.write(0, b"ours")
            mapped[5 * GRAIN] = 7

    def begun_while_open(path: Path) -> None:
        with RawDisk(path, "rw") as disk:
            mapped[5 * GRAIN] = 8
            disk.start_tracking()

    def attached(path: Path) -> None:
        disk = RawDisk(path, "rw")
        mapped[5 * GRAIN] = 9
        disk.snapshot().delete()  # starts over, saves what it finds
        disk.close()

    for moment in (created, checkpoint, clean_close, begun_while_open, attached):
        path = tmp_path / f"{moment.__name__}.raw"
        with RawDisk.create(path, SIZE) as disk:
            disk.write(0, np.ones(SIZE, np.uint8))
            if moment not in (created, begun_while_open):
                disk.start_tracking()
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
            if not later_stores_show(path):
                pytest.skip("stores through a mapping do not show on this file system")
            mapped[5 * GRAIN] = 2  # dirty and writable from here on
            moment(path)
            base = base_of(path)
            assert why_not(path, base) is None
            mapped[5 * GRAIN] = 3
            assert why_not(path, base) is Lost.FOREIGN_WRITE, moment.__name__


@pytest.mark.parametrize("expected", [Lost.FOREIGN_WRITE, Lost.DAMAGED, Lost.NO_TRACKER])
def test_a_tracker_that_starts_over_between_two_questions(image: Path, expected: Lost) -> None:
    """The same number may be a base of the new one; the id tells them apart."""
    base, path = base_of(image), sidecar.sidecar_path(image)
    with RawDisk(image) as disk:
        tracker = disk.tracker
        assert tracker is not None
        tracker.verify_base(*base, SIZE)
        assert blocks(tracker.changed_since(base[1], tracker_id=base[0])) == set()
        if expected is Lost.FOREIGN_WRITE:
            with image.open("r+b") as file:
                file.write(b"theirs")
        elif expected is Lost.DAMAGED:
            path.write_bytes(b"x")
        else:  # removed, and begun anew by somebody else
            path.unlink()
            Tracker.create(image, SIZE, GRAIN)
        snapshot = disk.snapshot()
        until = snapshot.generation
        assert snapshot.tracker_id == tracker.id != base[0]
        why = reason(lambda: tracker.changed_since(base[1], until=until, tracker_id=base[0]))
        known = expected is not Lost.NO_TRACKER
        assert why is (expected if known else Lost.GENERATION_MISMATCH)
        if expected is not Lost.FOREIGN_WRITE:  # the number alone would be taken for a base
            assert blocks(tracker.changed_since(base[1], until=until)) == set()
        changed = tracker.changed_since(until, tracker_id=snapshot.tracker_id)
        assert blocks(changed) == set()


def test_unclean(image: Path) -> None:
    base = base_of(image)
    disk = RawDisk(image, "rw")
    read(disk)
    del disk
    gc.collect()
    assert why_not(image, base) is None  # nothing was written: nothing was missed
    disk = RawDisk(image, "rw")
    disk.write(0, b"x")
    del disk
    gc.collect()
    assert why_not(image, base) is Lost.UNCLEAN
    disk = RawDisk(image, "rw")  # a second session that is lost without a checkpoint
    disk.write(0, b"x")
    del disk
    gc.collect()
    assert why_not(image, base) is Lost.UNCLEAN

    with RawDisk(image, "rw") as disk, disk.snapshot() as snapshot:
        new = snapshot.tracker_id, snapshot.generation
        disk.write(0, b"x")
        assert disk.tracker is not None
        assert blocks(disk.tracker.changed_since(new[1])) == {0}
    assert why_not(image, new) is None
    assert why_not(image, base) is Lost.UNCLEAN


def test_no_number_means_two_moments(image: Path) -> None:
    """A point may name a generation of a session that was lost; no later one may look like it."""
    seen: set[tuple[str, int]] = set()
    for i in range(12):
        disk = RawDisk(image, "rw")
        if i % 3:
            disk.write(0, bytes([i]))
        snapshot = disk.snapshot()
        base = snapshot.tracker_id, snapshot.generation
        assert base not in seen
        seen.add(base)
        if i % 2:
            disk.close()
        else:
            snapshot.delete()
            del disk, snapshot
            gc.collect()


def test_damaged(image: Path) -> None:
    base, path = base_of(image), sidecar.sidecar_path(image)
    whole = path.read_bytes()
    for broken in (b"", b"x", whole[:-1], whole[1:], whole[:-40], whole + b"x", whole[-40:]):
        path.write_bytes(broken)
        assert why_not(image, base) is Lost.DAMAGED
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        assert why_not(image, base) is Lost.DAMAGED
    with RawDisk(image, "rw") as disk:
        assert disk.tracker is not None
        assert reason(lambda: disk.tracker.verify_base(*base, SIZE)) is Lost.DAMAGED  # type: ignore[union-attr]
        disk.write(0, b"x")
    assert why_not(image, base) is Lost.DAMAGED
    path.write_bytes(whole)
    assert why_not(image, base) is Lost.FOREIGN_WRITE


def put_a_pipe(path: Path) -> None:
    os.mkfifo(path)


def put_a_device(path: Path) -> None:
    if os.geteuid():
        pytest.skip("making a device needs root")
    os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero, which never ends


def put_a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(path))  # the name of a socket must be short


def put_a_link(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


def put_a_dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.fixture
def soon() -> Iterator[None]:
    """Fail a test that waits for somebody at the other end of a pipe."""

    def late(number: int, frame: object) -> None:
        raise AssertionError("it hangs")

    former = signal.signal(signal.SIGALRM, late)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, former)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize(
    "put", [put_a_pipe, put_a_device, put_a_socket, put_a_link, put_a_dangling_link]
)
def test_something_else_has_the_name_of_the_file(
    image: Path, monkeypatch: pytest.MonkeyPatch, put: Callable[[Path], None]
) -> None:
    monkeypatch.chdir(image.parent)
    base, path = base_of(image), sidecar.sidecar_path(image)
    path.unlink()
    put(path)
    assert why_not(image, base) is Lost.DAMAGED
    with pytest.raises(InputError, match="tracked already"):
        Tracker.create(image, SIZE)
    with RawDisk(image) as disk:
        assert disk.tracker is not None
        assert disk.tracker.last_loss is Lost.DAMAGED
        snapshot = disk.snapshot()
        new = snapshot.tracker_id, snapshot.generation
    assert stat.S_ISREG(path.lstat().st_mode)  # it was replaced
    assert why_not(image, new) is None
    path.unlink()
    put(path) if put is not put_a_link else path.symlink_to("pipe")
    with RawDisk(image, "rw") as disk:
        disk.write(0, b"x")
    assert why_not(image, new) is Lost.DAMAGED


@pytest.mark.usefixtures("soon")
def test_a_folder_has_the_name_of_the_file(image: Path) -> None:
    base, path = base_of(image), sidecar.sidecar_path(image)
    before = image.read_bytes()
    path.unlink()
    path.mkdir()
    assert why_not(image, base) is Lost.DAMAGED
    for mode in ("r", "rw"):
        with RawDisk(image, mode) as disk:  # type: ignore[arg-type]
            assert disk.tracker is not None
            assert read(disk).tobytes() == before
            with pytest.raises(StorageError, match=r"change tracking .* cannot be saved"):
                disk.snapshot()
    path.rmdir()
    with RawDisk(image) as disk:
        assert disk.tracker is None


def test_generations_that_are_not_known(image: Path) -> None:
    with RawDisk(image, "rw") as disk:
        for _ in range(5):
            disk.snapshot().delete()  # 2 to 6
        tracker = disk.tracker
        assert tracker is not None
        tracker.delete_snapshot(4)
        tracker.forget_before(3)
        assert tracker.bases == (3, 5, 6)
        expected = {1: Lost.GENERATION_MISMATCH, 2: Lost.GENERATION_MISMATCH, 3: None,
                    4: Lost.BASE_DELETED, 5: None, 6: None, 7: Lost.GENERATION_MISMATCH,
                    1 << 70: Lost.GENERATION_MISMATCH, -1: Lost.GENERATION_MISMATCH}  # fmt: skip
        for generation in (4, 7, 99):
            for change in (tracker.delete_snapshot, tracker.forget_before):
                with pytest.raises(InputError, match=f"generation {generation} is no base"):
                    change(generation)
    for generation, why in expected.items():
        assert why_not(image, (tracker.id, generation)) is why
    assert why_not(image, ("0" * 32, 5)) is Lost.GENERATION_MISMATCH
    assert reason(lambda: tracker.verify_base(tracker.id, 5, SIZE + 1)) is Lost.SIZE_CHANGED


def test_deleting_a_base_keeps_its_marks_for_older_ones(image: Path) -> None:
    with RawDisk(image, "rw") as disk:
        tracker = disk.tracker
        assert tracker is not None
        for block in (10, 20, 30):
            disk.write(block * GRAIN, b"x")
            disk.snapshot().delete()  # closes 2, 3, 4
        tracker.delete_snapshot(3)
        assert blocks(tracker.changed_since(1)) == {10, 20, 30}
        assert blocks(tracker.changed_since(2)) == {20, 30}
        assert blocks(tracker.changed_since(4)) == set()
        # What was marked until a deleted snapshot is a part of what was marked until the next.
        assert blocks(tracker.changed_since(1, until=3)) == {10, 20, 30}
        assert blocks(tracker.changed_since(1, until=2)) == {10}
        for generation in (0, 1, 2, 4):
            tracker.delete_snapshot(generation)
        assert tracker.bases == ()
        disk.write(0, b"x")
        closed = disk.snapshot().generation
        disk.write(40 * GRAIN, b"x")
    assert blocks(Tracker.load(image).changed_since(closed)) == {40}


def test_generations_are_bounded(image: Path) -> None:
    with RawDisk(image, "rw") as disk:
        tracker = disk.tracker
        assert tracker is not None
        for i in range(100):
            disk.write(i % 70 * GRAIN, b"x")
            disk.snapshot().delete()
        assert tracker.bases == tuple(range(38, 102))
        assert len(blocks(tracker.changed_since(38))) == 63
        for n in tracker.bases[:-1]:
            tracker.delete_snapshot(n)
    assert sidecar.sidecar_path(image).stat().st_size < 4 * KIB
    assert why_not(image, (tracker.id, 101)) is None


def test_reset_refuses_what_came_before_the_latest_checkpoint(image: Path) -> None:
    base = base_of(image)
    with RawDisk(image, "rw") as disk:
        tracker = disk.tracker
        assert tracker is not None
        disk.write(GRAIN, b"x")
        snapshot = disk.snapshot()
        disk.write(2 * GRAIN, b"x")  # the guest goes on while the job finds tracking wrong
        tracker.reset()
        assert reason(lambda: tracker.verify_base(*base, SIZE)) is Lost.GENERATION_MISMATCH
        assert blocks(tracker.changed_since(snapshot.generation)) == {2}
    assert why_not(image, base) is Lost.GENERATION_MISMATCH
    assert why_not(image, (snapshot.tracker_id, snapshot.generation)) is None
    with RawDisk(image):
        tracker = Tracker.load(image)
        tracker.reset()
        assert tracker.bases == (snapshot.generation,)
        tracker.delete_snapshot(snapshot.generation)
        tracker.reset()
        assert tracker.bases == ()
        assert tracker.checkpoint() > snapshot.generation


def test_marks_outside_the_image(image: Path) -> None:
    with RawDisk(image, "rw") as disk:
        tracker = disk.tracker
        assert tracker is not None
        for offset, length in ((-1, 1), (0, -1), (SIZE, 1), (1 << 62, 1 << 62)):
            with pytest.raises(OutOfRangeError, match=str(offset)):
                tracker.mark(offset, length)
            with pytest.raises(OutOfRangeError, match=str(offset)):
                tracker.mark_many(np.array([0, offset]), np.array([1, length]))
        tracker.mark(SIZE, 0)
        tracker.mark_many(np.zeros(0, np.int64), np.zeros(0, np.int64))
        assert blocks(tracker.changed_since(1)) == set()
    with pytest.raises(InputError, match="closed"):
        tracker.checkpoint()


def test_start_tracking(tmp_path: Path) -> None:
    path = tmp_path / "d.raw"
    with RawDisk.create(path, SIZE) as disk:
        disk.write(0, b"not tracked yet")
        for granularity in (0, 2048, 5000, 128 * MIB):
            with pytest.raises(InputError, match=f"not {granularity}"):
                disk.start_tracking(granularity)
        tracker = disk.start_tracking()
        assert tracker is disk.tracker
        assert (tracker.granularity, tracker.size, tracker.bases) == (64 * KIB, SIZE, (0,))
        with pytest.raises(InputError, match="tracked already"):
            disk.start_tracking()
    sidecar.sidecar_path(path).unlink()
    with pytest.raises(InputError, match=f"{SIZE} bytes, not 5"):
        Tracker.create(path, 5)
    with RawDisk(path) as disk:
        assert disk.start_tracking(GRAIN).checkpoint() == 1
    with RawDisk(path, "rw") as disk:
        disk.write(GRAIN, b"x")
    assert blocks(Tracker.load(path).changed_since(1)) == {1}
    with RawDisk(path, "rw"), pytest.raises(BusyError):
        Tracker.create(path, SIZE)


def test_links_lead_to_one_tracker(image: Path) -> None:
    link = image.with_name("link.raw")
    link.symlink_to(image)
    with RawDisk(link, "rw") as disk:
        disk.write(0, b"x")
    assert blocks(Tracker.load(link).changed_since(1)) == {0}
    assert not sidecar.sidecar_path(link).exists()


def test_no_mark_no_write(image: Path) -> None:
    """Where the sidecar cannot say that a session writes, nothing may be written."""
    if os.geteuid():
        pytest.skip("making a folder immutable needs root")
    before = image.read_bytes()
    disk = RawDisk(image, "rw")
    if subprocess.run(["chattr", "+i", image.parent], capture_output=True, check=False).returncode:
        pytest.skip("this file system has no immutable folders")
    try:
        with pytest.raises(StorageError, match=r"change tracking .* cannot be saved"):
            disk.write(0, b"x")
        with pytest.raises(StorageError, match="cannot be saved"):
            disk.snapshot()
    finally:
        subprocess.run(["chattr", "-i", image.parent], check=True)
    assert image.read_bytes() == before
    disk.write(0, b"x")
    disk.close()
    assert blocks(Tracker.load(image).changed_since(1)) == {0}


def test_the_file_is_an_arrow_table(image: Path) -> None:
    path = sidecar.sidecar_path(image)
    with pa.ipc.open_stream(path) as reader:
        rows = reader.read_all()
    assert rows["generation"].to_pylist() == [0, 1, 2]
    assert len(rows["bitmap"][1].as_py()) == 9
    assert rows.schema.metadata[b"vmbk.tracking.granularity"] == b"4096"
    assert path.stat().st_mode == image.stat().st_mode
    assert sorted(p.name for p in image.parent.iterdir()) == ["disk.raw", "disk.raw.tracking"]


def test_shows_itself(image: Path) -> None:
    tracker = Tracker.load(image)
    assert repr(tracker) == "Tracker('disk.raw', 280.1 KiB, blocks of 4 KiB, generation 2)"
    assert "0, 1" in tracker._repr_html_()


# A file that breaks the rules although its digest is right: somebody made it so.


def forge(
    image: Path,
    change: Callable[[dict[str, str]], None] = lambda texts: None,
    rows: pa.Table | None = None,
    **options: object,
) -> None:
    path = sidecar.sidecar_path(image)
    with pa.ipc.open_stream(path) as reader:
        table = reader.read_all()
    texts = {k.decode(): v.decode() for k, v in table.schema.metadata.items()}
    change(texts)
    table = (table if rows is None else rows).replace_schema_metadata(texts)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, **options) as writer:
        writer.write_table(table)
    body = sink.getvalue().to_pybytes()
    path.write_bytes(body + blake3(body).digest() + sidecar.MAGIC)


HOSTILE = {
    "version": ["", "2"],
    "id": ["", "x" * 32, "0" * 31, "0" * 33, "A" * 32],
    "size": ["", "0", "-5", "1e3", "9" * 19, "9" * 5000, "²", str(SIZE + 1) + " "],
    "granularity": ["0", "1", "4095", "4097", "8192", "2048", str(1 << 40), "-4096"],
    "generation": ["1", "3", "-2", str(1 << 62)],
    "first": ["1", "-1", "99", ""],
    "clean": ["2", "-1", "yes"],
    "signature": ["", "1 2 3 4", "1 2 3 4 5 6", "a b c d e", str(1 << 64) + " 1 2 3 4"],
    "losses": ["x", "=", "=nothing", "0=unclean", "=unclean;" * 9, f"{'0' * 32}=unclean,x"],
}


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, vs in HOSTILE.items() for v in vs])
def test_forged_metadata(image: Path, key: str, value: str) -> None:
    base = base_of(image)
    forge(image, lambda texts: texts.update({f"vmbk.tracking.{key}": value}))
    assert why_not(image, base) is Lost.DAMAGED


def test_forgery_itself_works(image: Path) -> None:
    """Else the tests around this one would prove nothing."""
    base = base_of(image)
    forge(image)
    assert why_not(image, base) is None
    for key in HOSTILE:
        forge(image)
        forge(image, lambda texts, key=key: texts.pop(f"vmbk.tracking.{key}"))
        assert why_not(image, base) is Lost.DAMAGED
        sidecar.sidecar_path(image).unlink()
        image.unlink()
        with RawDisk.create(image, SIZE) as disk:
            disk.start_tracking(GRAIN).checkpoint()
        base = base_of(image)


def test_forged_rows(image: Path) -> None:
    path = sidecar.sidecar_path(image)
    whole, base = path.read_bytes(), base_of(image)

    def table(
        generations: list[int | None], bitmaps: list[bytes | None], **types: pa.DataType
    ) -> pa.Table:
        return pa.table(
            {
                "generation": pa.array(generations, types.get("generation", pa.int64())),
                "bitmap": pa.array(bitmaps, types.get("bitmap", pa.large_binary())),
            },
            schema=None if types or None in generations or None in bitmaps else sidecar._schema(),
        )

    good = b"\0" * 9
    forged = {
        "none": table([], []),
        "short": table([0, 1, 2], [good, good[1:], good]),
        "long": table([0, 1, 2], [good, good, good + b"\0"]),
        "huge": table([0, 1, 2], [good, good, b"\xff" * 500_000]),
        "past the end": table([0, 1, 2], [good, good, b"\0" * 8 + b"\x80"]),
        "order": table([1, 0, 2], [good] * 3),
        "twice": table([0, 2, 2], [good] * 3),
        "negative": table([-1, 0, 2], [good] * 3),
        "null": table([0, None, 2], [good] * 3),
        "null bitmap": table([0, 1, 2], [good, None, good]),
        "type": table([0, 1, 2], [good] * 3, bitmap=pa.binary()),
        "number type": table([0, 1, 2], [good] * 3, generation=pa.int32()),
        "columns": table([0, 1, 2], [good] * 3).append_column("more", pa.array([1, 2, 3])),
    }
    for name, rows in forged.items():
        path.write_bytes(whole)
        forge(image, rows=rows)
        assert why_not(image, base) is Lost.DAMAGED, name
    for last, why in ((2, None), (64, None), (65, Lost.DAMAGED)):  # at most 64 bases and one open
        path.write_bytes(whole)
        count = table(list(range(last + 1)), [good] * (last + 1))
        forge(image, lambda t, last=last: t.update({"vmbk.tracking.generation": str(last)}), count)
        assert why_not(image, base) is why
    path.write_bytes(whole)
    forge(image, options=pa.ipc.IpcWriteOptions(compression="zstd"))
    assert why_not(image, base) is Lost.DAMAGED
    path.write_bytes(b"x" * (3 * MIB))
    assert why_not(image, base) is Lost.DAMAGED


@settings(max_examples=150)
@given(st.data())
def test_any_bytes_with_a_right_digest(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.tracking"
        state = tracking_state.State("0" * 32, SIZE, GRAIN, [])
        state.generations = [tracking_state.Generation(i, state.blank()) for i in range(3)]
        signature = ImageSignature(SIZE, 1, 2, 3, 4)
        sidecar.save(path, sidecar.Stored(state, True, signature), like=path)
        body = bytearray(path.read_bytes()[:-40])
        for _ in range(data.draw(st.integers(1, 6))):
            at = data.draw(st.integers(0, len(body) - 1))
            body[at] = data.draw(st.integers(0, 255))
        if data.draw(st.booleans()):
            del body[data.draw(st.integers(0, len(body))) :]
        path.write_bytes(bytes(body) + blake3(body).digest() + sidecar.MAGIC)
        stored = sidecar.load(path, SIZE)  # must not raise, hang or crash
        if stored is not None and stored.state.size == SIZE:
            n_bytes = -(-stored.state.n_blocks // 8)
            assert all(len(g.bits) == n_bytes for g in stored.state.generations)


# A real process, really killed.

WRITER = """
import sys, random
import numpy as np
from vmbk.disk.raw import ImageSignature, RawDisk
disk = RawDisk(sys.argv[1], "rw")
rng = random.Random(int(sys.argv[2]))
print("open", flush=True)
for i in range(100_000):
    offset = rng.randrange(disk.size - 5000)
    if rng.random() < 0.05:
        disk.snapshot().delete()
    if rng.random() < 0.2:
        disk.zero(offset, 5000)
    else:
        disk.write(offset, bytes([rng.randrange(256)]) * rng.randrange(5000))
    if not i:
        print("wrote", flush=True)
"""


def kill_a_writer(image: Path, seed: int, wait_for: bytes) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, image, str(seed)], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    try:
        for line in child.stdout:
            if line.strip() == wait_for:
                break
        if wait_for == b"wrote":
            threading.Event().wait(0.01 * seed)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    assert child.returncode == -signal.SIGKILL


@pytest.mark.kill
@pytest.mark.parametrize("seed", [0, 1, 5])
def test_a_killed_writer_is_noticed(image: Path, seed: int) -> None:
    base = base_of(image)
    kill_a_writer(image, seed, b"wrote")
    assert why_not(image, base) is Lost.UNCLEAN
    with RawDisk(image, "rw") as disk, disk.snapshot() as snapshot:
        fresh = snapshot.tracker_id, snapshot.generation
        before = read(snapshot)
        disk.write(33 * GRAIN, b"x")
    assert why_not(image, fresh) is None
    with RawDisk(image) as disk:
        changed = np.flatnonzero(read(disk) != before) // GRAIN
    assert set(changed.tolist()) <= blocks(Tracker.load(image).changed_since(fresh[1]))


@pytest.mark.kill
def test_a_writer_killed_at_any_moment_is_never_believed_wrongly(image: Path) -> None:
    """Either tracking covers what differs from the base, or it is refused."""
    with RawDisk(image) as disk:
        before, base = read(disk), base_of(image)
    kill_a_writer(image, 0, b"open")
    refused = why_not(image, base)
    with RawDisk(image) as disk:
        changed = set((np.flatnonzero(read(disk) != before) // GRAIN).tolist())
        if refused is None:
            assert changed <= blocks(Tracker.load(image).changed_since(base[1]))
        else:
            assert refused is Lost.UNCLEAN
