"""Raw disks, beyond what every disk must do."""

from __future__ import annotations

import errno
import gc
import mmap
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.disk_conformance import DiskConformance, ReadableDiskConformance, read, sample
from tests.memory_disk import MemoryDisk
from tests.tools import require_tool
from vmbk.disk.base import Bytes, Disk, ReadableDisk
from vmbk.disk.imagefile import ImageFile
from vmbk.disk.raw import RawDisk
from vmbk.disk.signature import trusted_signature
from vmbk.disk.tracker import Tracker, TrackingLostError
from vmbk.errors import (
    BusyError,
    InputError,
    NotFoundError,
    OutOfRangeError,
    StorageError,
    VmbkError,
)
from vmbk.units import MIB


class TestRawDisk(DiskConformance):
    @contextmanager
    def blank(self, size: int, folder: Path) -> Iterator[Disk]:
        with RawDisk.create(folder / "disk.raw", size) as disk:
            yield disk


class TestReadOnlyRawDisk(ReadableDiskConformance):
    @contextmanager
    def holding(self, content: Bytes, folder: Path) -> Iterator[ReadableDisk]:
        (folder / "disk.raw").write_bytes(content.tobytes())
        with RawDisk(folder / "disk.raw") as disk:
            yield disk


class TestRawDiskOfOddSize(TestRawDisk):
    SIZE = TestRawDisk.SIZE + 77


class TestMemoryDisk(DiskConformance):
    """The model that other tests compare with."""

    @contextmanager
    def blank(self, size: int, folder: Path) -> Iterator[Disk]:
        yield MemoryDisk(size)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(sample(4 * MIB + 5).tobytes())
    return path


def test_image_is_sparse_and_holes_are_extents(tmp_path: Path) -> None:
    with RawDisk.create(tmp_path / "d.raw", 1 << 36) as disk:
        disk.write(5 << 30, b"x" * 4096)
        disk.write(9 << 30, b"y" * 8192)
        disk.flush()
        offsets, lengths = disk.data_extents()
        assert offsets.tolist() == [5 << 30, 9 << 30]
        assert lengths.tolist() == [4096, 8192]
        disk.zero(0, 8 << 30)
        assert disk.data_extents()[0].tolist() == [9 << 30]
        assert disk.path.stat().st_blocks * 512 < MIB


def test_writing_zeros_where_holes_cannot_be_punched(image: Path) -> None:
    expected = np.fromfile(image, np.uint8)
    expected[777 : 777 + 3 * MIB] = 0
    file = ImageFile(os.open(image, os.O_RDWR), "disk 'd'")
    file.write_zeros(777, 3 * MIB)
    file.close()
    np.testing.assert_array_equal(np.fromfile(image, np.uint8), expected)


def test_one_writer_or_many_readers(image: Path) -> None:
    with RawDisk(image) as one, RawDisk(image) as two:
        np.testing.assert_array_equal(read(one), read(two))
        with pytest.raises(BusyError, match="in use") as caught:
            RawDisk(image, "rw")
        assert "close it" in caught.value.hint
    with RawDisk(image, "rw"):
        for mode in ("r", "rw"):
            with pytest.raises(BusyError):
                RawDisk(image, mode)  # type: ignore[arg-type]
    RawDisk(image, "rw").close()


def test_lock_holds_between_processes(image: Path) -> None:
    code = (
        "import sys\nfrom vmbk.disk.raw import RawDisk\nfrom vmbk.errors import BusyError\n"
        "try:\n    RawDisk(sys.argv[1], sys.argv[2]).close()\nexcept BusyError:\n    sys.exit(9)\n"
    )

    def open_elsewhere(mode: str) -> int:
        return subprocess.run([sys.executable, "-c", code, image, mode], check=False).returncode

    with RawDisk(image, "rw"):
        assert open_elsewhere("r") == 9
    with RawDisk(image):
        assert open_elsewhere("rw") == 9
        assert open_elsewhere("r") == 0


def test_a_failed_open_holds_no_lock(tmp_path: Path) -> None:
    empty = tmp_path / "empty.raw"
    empty.touch()
    for _ in range(2):
        with pytest.raises(InputError, match="is empty"):
            RawDisk(empty, "rw")


def test_what_is_no_image_is_refused(tmp_path: Path, image: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    refused: list[tuple[str | Path, type[VmbkError]]] = [
        (tmp_path, InputError),
        (tmp_path / "pipe", InputError),
        ("/dev/null", InputError),
        (tmp_path / "loop", InputError),
        ("nul\0in it", InputError),
        (tmp_path / "nowhere", NotFoundError),
        (tmp_path / "dangling", NotFoundError),
        (image / "below a file", VmbkError),
        (tmp_path / ("x" * 300), VmbkError),
    ]
    for path, error in refused:
        with pytest.raises(error):
            RawDisk(path)
    with pytest.raises(InputError, match="'w'"):
        RawDisk(image, "w")  # type: ignore[arg-type]


def test_symbolic_links_are_followed(tmp_path: Path, image: Path) -> None:
    link = tmp_path / "link.img"
    link.symlink_to(image)
    with RawDisk(link, "rw") as disk:
        assert disk.path == image
        assert disk.name == "disk"
        with pytest.raises(BusyError):
            RawDisk(image)


def test_create(tmp_path: Path) -> None:
    path = tmp_path / "d.raw"
    (tmp_path / "d.raw.tracking").write_bytes(b"of another image")
    with RawDisk.create(path, 12345, name="data") as disk:
        assert (disk.size, disk.name, disk.mode, disk.tracker) == (12345, "data", "rw", None)
        disk.write(0, b"kept")
    with pytest.raises(InputError, match="exists"):
        RawDisk.create(path, 12345)
    with pytest.raises(InputError, match="12345 bytes, not 1"):
        RawDisk.create(path, 1, exist_ok=True)
    with RawDisk.create(path, 12345, exist_ok=True) as disk:
        assert read(disk, 0, 4).tobytes() == b"kept"
    for size in (0, -1, 1 << 63):
        with pytest.raises(InputError, match=str(size)):
            RawDisk.create(tmp_path / "e.raw", size)
    with pytest.raises(NotFoundError, match="no folder"):
        RawDisk.create(tmp_path / "no" / "d.raw", 1)
    with pytest.raises(StorageError):
        RawDisk.create(tmp_path / "e.raw", 1 << 62)
    assert not (tmp_path / "e.raw").exists()


def test_reading_only_refuses_writes(image: Path) -> None:
    before = image.read_bytes()
    none = np.zeros(0, np.int64)
    with RawDisk(image) as disk:
        for attempt in (
            lambda: disk.write(0, b"x"),
            lambda: disk.zero(0, 1),
            lambda: disk.write_batch(none, none, np.zeros(0, np.uint8), none),
        ):
            with pytest.raises(InputError, match="reading only"):
                attempt()
    assert image.read_bytes() == before


def test_a_closed_disk_says_so(image: Path) -> None:
    disk = RawDisk(image, "rw")
    disk.close()
    assert disk.closed
    for attempt in (
        lambda: disk.write(0, b"x"),
        lambda: disk.zero(0, 1),
        lambda: disk.read_into(0, np.zeros(1, np.uint8)),
        lambda: disk.snapshot(),
        lambda: disk.start_tracking(),
        lambda: disk.flush(),
        lambda: disk.data_extents(),
        lambda: disk.signature(),
    ):
        with pytest.raises(InputError, match="closed"):
            attempt()


def test_buffers_are_checked(image: Path) -> None:
    with RawDisk(image, "rw") as disk:
        fixed = np.zeros(8, np.uint8)
        fixed.flags.writeable = False
        with pytest.raises(InputError, match="read-only"):
            disk.read_into(0, fixed)
        with pytest.raises(InputError, match="contiguous"):
            disk.read_into(0, np.zeros(8, np.uint8)[::2])
        with pytest.raises(InputError, match="contiguous"):
            disk.write(0, "text")  # type: ignore[arg-type]


def test_image_cut_short_behind_our_back(image: Path) -> None:
    with RawDisk(image, name="web") as disk:
        os.truncate(image, MIB)
        read(disk, 0, MIB)
        with pytest.raises(StorageError, match=f"'web' ends at offset {MIB}"):
            read(disk, MIB - 10, 20)


def test_no_space_names_the_disk(tmp_path: Path) -> None:
    """On a file system of 1 MiB, where this machine lets us mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], capture_output=True, check=False
    )
    try:
        if mounted.returncode:
            pytest.skip("mounting needs root")
        with RawDisk.create(folder / "small.raw", 8 * MIB) as disk:
            with pytest.raises(StorageError, match=r"'small' cannot be written .* No space") as e:
                disk.write(0, np.ones(8 * MIB, np.uint8))
            assert "free some space" in e.value.hint
            disk.zero(0, 8 * MIB)
            disk.write(0, b"goes on")
            assert read(disk, 0, 7).tobytes() == b"goes on"
    finally:
        if not mounted.returncode:
            subprocess.run(["umount", folder], check=True)


@pytest.fixture
def backing(tmp_path: Path) -> Path:
    """What `device` keeps its bytes in."""
    with RawDisk.create(tmp_path / "backing.raw", 4 * MIB) as disk:
        disk.write(MIB, b"on the device")
    return tmp_path / "backing.raw"


@pytest.fixture
def device(backing: Path) -> Iterator[str]:
    losetup = require_tool("losetup", "mount")
    if os.geteuid():
        pytest.skip("loop devices need root")
    made = subprocess.run(
        [losetup, "-f", "--show", backing], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"no loop device: {made.stderr.strip()}")
    device = made.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run([losetup, "-d", device], check=True)


def test_block_device(tmp_path: Path, device: str) -> None:
    with RawDisk(device, "rw") as disk:
        assert disk.is_block_device
        assert disk.size == 4 * MIB
        assert read(disk, MIB, 13).tobytes() == b"on the device"
        disk.write(5, b"odd")
        disk.zero(6, 1)
        disk.zero(MIB, 4096)
        disk.flush()
        offsets, lengths = disk.data_extents()
        assert int(lengths.sum()) + int(offsets[0]) >= 8
        with disk.snapshot(tmp_path) as snapshot:
            disk.write(5, b"new")
            assert read(snapshot, 4, 5).tobytes() == b"\0o\0d\0"
    content = Path(device).read_bytes()
    assert content[4:9] == b"\0new\0"
    assert not any(content[MIB : MIB + 13])


def test_a_block_device_is_opened_alone(device: str) -> None:
    claimed = os.open(device, os.O_RDONLY | os.O_EXCL)  # as a mount does
    try:
        for mode, hint in (("r", "back up a snapshot of it"), ("rw", "unmount it")):
            with pytest.raises(BusyError, match="mounted or otherwise in use") as caught:
                RawDisk(device, mode)  # type: ignore[arg-type]
            assert caught.value.hint == hint
    finally:
        os.close(claimed)
    with RawDisk(device), pytest.raises(BusyError, match="otherwise in use"):
        RawDisk(device)


def test_a_mounted_block_device_is_not_read(tmp_path: Path, device: str) -> None:
    """Its file system writes past the cache from which the device is read."""
    subprocess.run([require_tool("mke2fs", "e2fsprogs"), "-q", "-F", device], check=True)
    folder = tmp_path / "mounted"
    folder.mkdir()
    mounted = subprocess.run(["mount", device, folder], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount here: {mounted.stderr.decode().strip()}")
    try:
        with pytest.raises(BusyError, match="mounted"):
            RawDisk(device)
    finally:
        subprocess.run(["umount", folder], check=True)
    RawDisk(device).close()


@pytest.mark.parametrize("privileged", [True, False])
def test_a_block_device_is_read_as_it_is(device: str, backing: Path, *, privileged: bool) -> None:
    """Somebody holds the device open, and so its cache, which does not know of later writes."""
    mode = Path(device).stat().st_mode & 0o777
    holder = os.open(device, os.O_RDONLY)
    try:
        assert os.pread(holder, 13, MIB) == b"on the device"
        with backing.open("r+b") as file:
            file.seek(MIB)
            file.write(b"changed below")
        assert os.pread(holder, 13, MIB) == b"on the device", "no stale cache: nothing is tested"
        if not privileged:
            Path(device).chmod(0o666)
            os.seteuid(65534)
        try:
            with RawDisk(device) as disk:
                assert read(disk, MIB, 13).tobytes() == b"changed below"
        finally:
            os.seteuid(0)
    finally:
        Path(device).chmod(mode)
        os.close(holder)


def test_a_block_device_is_never_tracked(tmp_path: Path, device: str) -> None:
    """A good sidecar lies beside it, left from an image of that name."""
    node = tmp_path / "node.raw"
    with RawDisk.create(node, 4 * MIB) as disk:
        disk.start_tracking()
        assert not disk.is_block_device
    tracking = node.with_name("node.raw.tracking")
    before = tracking.read_bytes()
    node.unlink()
    os.mknod(node, 0o600 | stat.S_IFBLK, Path(device).stat().st_rdev)
    try:
        RawDisk(node).close()
    except StorageError as error:
        pytest.skip(f"no devices on this file system: {error}")
    for path in (node, device):
        for mode in ("r", "rw"):
            with RawDisk(path, mode) as disk:  # type: ignore[arg-type]
                assert disk.tracker is None
                with pytest.raises(InputError, match="block device and cannot be tracked"):
                    disk.start_tracking()
                with disk.snapshot(tmp_path) as snapshot:
                    assert (snapshot.tracker_id, snapshot.generation) == ("", 0)
                if mode == "rw":
                    disk.write(0, b"not marked anywhere")
        with pytest.raises(InputError, match="cannot be tracked"):
            Tracker.create(path, 4 * MIB)
        with pytest.raises(TrackingLostError, match="no tracker"):
            Tracker.load(path)
    assert tracking.read_bytes() == before
    assert not Path(f"{device}.tracking").exists()


def test_a_signature_is_not_given_where_writes_are_lost(tmp_path: Path) -> None:
    """A device whose storage is full takes writes into its cache and fails to write them back."""
    losetup = require_tool("losetup", "mount")
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    device = ""
    try:
        RawDisk.create(folder / "small.raw", 8 * MIB).close()
        made = subprocess.run(
            [losetup, "-f", "--show", folder / "small.raw"],
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode:
            pytest.skip(f"no loop device: {made.stderr.strip()}")
        device = made.stdout.strip()
        with RawDisk(device, "rw") as disk:
            disk.write(0, np.ones(8 * MIB, np.uint8))
            with pytest.raises(StorageError, match="cannot be flushed"):
                disk.signature()
    finally:
        if device:
            subprocess.run([losetup, "-d", device], check=True)
        subprocess.run(["umount", folder], check=True)


ranges = st.tuples(st.integers(0, 299_999), st.integers(0, 80_000), st.booleans())


@given(st.lists(ranges, max_size=25), st.booleans())
def test_a_batch_is_its_writes_in_order(
    requests: list[tuple[int, int, bool]], neighbours: bool
) -> None:
    size = 300_000
    offsets, lengths, starts, place = [], [], [], 0
    for offset, length, zero in requests:
        at = offset
        if neighbours and offsets:
            at = offsets[-1] + lengths[-1]
        at, count = min(at, size), min(length, size - min(at, size))
        offsets.append(at)
        lengths.append(count)
        starts.append(-1 if zero else place)
        place += 0 if zero else count
    data = np.random.default_rng(0).integers(1, 256, place, np.uint8)
    model = np.full(size, 9, np.uint8)
    for offset, length, start in zip(offsets, lengths, starts, strict=True):
        model[offset : offset + length] = data[start : start + length] if start >= 0 else 0
    with (
        tempfile.TemporaryDirectory() as folder,
        RawDisk.create(Path(folder) / "d.raw", size) as disk,
    ):
        disk.write(0, np.full(size, 9, np.uint8))
        before = disk.snapshot(folder)
        disk.write_batch(
            np.array(offsets, np.int64), np.array(lengths, np.int64), data,
            np.array(starts, np.int64),
        )  # fmt: skip
        np.testing.assert_array_equal(read(disk), model)
        assert (read(before) == 9).all()


@pytest.mark.parametrize(
    ("offset", "length", "start"),
    [(-1, 1, 0), (0, -1, 0), (4096, 1, 0), (1 << 62, 1 << 62, -1), (0, 20, 0), (0, 1, 10)],
)
def test_a_batch_outside_writes_nothing(
    tmp_path: Path, offset: int, length: int, start: int
) -> None:
    with RawDisk.create(tmp_path / "d.raw", 4096) as disk:
        with pytest.raises(OutOfRangeError):
            disk.write_batch(
                np.array([0, offset]), np.array([5, length]), np.ones(10, np.uint8),
                np.array([0, start]),
            )  # fmt: skip
        assert not read(disk).any()


def test_closing_waits_for_readers(image: Path) -> None:
    """No thread may read from a descriptor that already belongs to another file."""
    expected = np.fromfile(image, np.uint8)
    for _ in range(10):
        disk = RawDisk(image)
        wrong: list[str] = []

        def work(disk: RawDisk = disk, wrong: list[str] = wrong) -> None:
            try:
                while True:
                    if (read(disk) != expected).any():
                        wrong.append("content")
            except InputError as error:
                if "closed" not in str(error):
                    wrong.append(str(error))
            except VmbkError as error:
                wrong.append(str(error))

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        disk.close()
        other = os.open("/dev/zero", os.O_RDONLY)
        for thread in threads:
            thread.join()
        os.close(other)
        assert wrong == []


def test_a_descriptor_in_use_is_not_closed(image: Path) -> None:
    file = ImageFile(os.open(image, os.O_RDONLY), "disk 'd'")
    closing = threading.Thread(target=file.close)
    with file._descriptor as fd:
        closing.start()
        closing.join(0.05)
        assert closing.is_alive()
        assert os.pread(fd, 1, 0) == b"\0"
        with pytest.raises(InputError, match="'d' is closed"):
            file.signature()
    closing.join(5)
    assert not closing.is_alive()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_forgotten_disk_lets_go_of_its_lock(image: Path) -> None:
    disk = RawDisk(image, "rw")
    disk.write(0, b"x")
    del disk
    gc.collect()
    RawDisk(image, "rw").close()


def test_signature_notices_writes(image: Path) -> None:
    with RawDisk(image) as disk:
        before = disk.signature()
        assert disk.signature() == before
        read(disk)
        assert disk.signature().same_content(before)
        with image.open("r+b") as file:
            file.write(b"foreign")
        os.utime(image, ns=(1, before.mtime_ns))  # the times of inode changes cannot be set back
        assert not disk.signature().same_content(before)


def test_signature_notices_stores_to_a_page_that_was_dirty_before(image: Path) -> None:
    if not later_stores_show(image):
        pytest.skip("stores through a mapping do not show on this file system")
    with image.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped, RawDisk(image) as disk:
        for value in range(20):
            mapped[0] = value  # the page is dirty and writable from here on
            before = disk.signature()
            assert disk.signature() == before
            mapped[0] = value + 1
            assert disk.signature() != before


def later_stores_show(image: Path) -> bool:
    """Whether a store to a page moves the times of its file, once the page was written back."""
    with image.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[0] = mapped[0]
        os.fsync(file.fileno())
        before = image.stat().st_mtime_ns
        time.sleep(0.05)
        mapped[0] = mapped[0]
        return image.stat().st_mtime_ns != before


def test_the_signature_of_what_is_written_without_pause_equals_no_other(image: Path) -> None:
    """However often the page is written back, it is dirty again before the times are read."""
    if not later_stores_show(image):
        pytest.skip("stores through a mapping do not show on this file system")
    stores, stop = [0], threading.Event()
    with image.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped, RawDisk(image) as disk:

        def store() -> None:
            while not stop.is_set():
                mapped[0] ^= 1
                stores[0] += 1

        writer = threading.Thread(target=store)
        writer.start()
        try:
            before, done = disk.signature(), stores[0]
            while stores[0] < done + 10:
                time.sleep(0.001)
        finally:
            stop.set()
            writer.join()
        assert disk.signature() != before


def test_signature_where_file_times_are_whole_seconds(tmp_path: Path) -> None:
    mke2fs = require_tool("mke2fs", "e2fsprogs")
    folder, storage = tmp_path / "old", tmp_path / "storage"
    folder.mkdir()
    with storage.open("wb") as file:
        file.truncate(4 * MIB)
    subprocess.run([mke2fs, "-q", "-F", "-I", "128", storage], check=True, capture_output=True)
    command = ["mount", "-o", "loop", storage, folder]
    mounted = subprocess.run(command, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount here: {mounted.stderr.decode().strip()}")
    try:
        image = folder / "d.raw"
        image.write_bytes(b"x" * 4096)
        assert not image.stat().st_ctime_ns % 10**9
        with RawDisk(image) as disk:
            before = disk.signature()
            with image.open("r+b") as file:
                file.write(b"foreign")
            assert disk.signature() != before
    finally:
        subprocess.run(["umount", folder], check=True)


def test_signature_where_nothing_can_be_written_back(image: Path) -> None:
    for path, flags, code in ((image, os.O_PATH, errno.EBADF), ("/dev/null", 0, errno.EINVAL)):
        fd = os.open(path, flags)
        try:
            with pytest.raises(OSError) as refused:
                os.fsync(fd)
            assert refused.value.errno == code
            assert trusted_signature(fd, "it").inode == Path(path).stat().st_ino
        finally:
            os.close(fd)


def test_signature_of_an_image_from_the_future(image: Path) -> None:
    """Its own time is ahead of the clock; the next write shows all the same."""
    os.utime(image, ns=(1 << 62, 1 << 62))
    with RawDisk(image) as disk:
        before = disk.signature()
        assert disk.signature() == before
        with image.open("r+b") as file:
            file.write(b"foreign")
        assert disk.signature() != before


def test_shows_itself(image: Path, tmp_path: Path) -> None:
    evil = tmp_path / "<b>.raw"
    shutil.copy(image, evil)
    with RawDisk(evil, "rw") as disk:
        assert repr(disk) == f"RawDisk('<b>', 4 MiB, rw, {str(evil)!r})"
        assert "&lt;b&gt;" in disk._repr_html_()
        assert "4 MiB" in disk._repr_html_()
        with disk.snapshot(tmp_path) as snapshot:
            assert repr(snapshot) == "Snapshot('<b>', 4 MiB, 0 B preserved)"
            assert "&lt;b&gt;" in snapshot._repr_html_()
        assert "deleted" in repr(snapshot)
    assert "closed" in repr(disk)
    assert "<td" in disk._repr_html_()
