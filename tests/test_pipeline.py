"""Backup and restore, end to end, on real files: byte for byte, whatever happens in between."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.memory_disk import MemoryDisk
from tests.tools import require_tool
from vmbk import PointDisk, RawDisk, Settings, Vault, backup, restore
from vmbk.detect.scan import PIECE
from vmbk.errors import (
    BusyError,
    ChangedDuringBackupError,
    InputError,
    IntegrityError,
    NotFoundError,
    TargetTooSmallError,
)
from vmbk.pipeline.restore import restore_disk
from vmbk.pipeline.results import BackupResult

BLOCK = 64 * 1024
SIZE = 40 * BLOCK + 512


@pytest.fixture
def vault(tmp_path: Path):
    with Vault.create(tmp_path / "vault", tmp_path / "key", durability="none") as made:
        yield made


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image at rest with data, zeros and holes."""
    path = tmp_path / "image.raw"
    with RawDisk.create(path, SIZE) as disk:
        disk.write(3 * BLOCK + 100, noise(5 * BLOCK))
        disk.write(20 * BLOCK, bytes(2 * BLOCK))
        disk.write(SIZE - 700, noise(700))
    return path


def noise(length: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, length, np.uint8).tobytes()


def poke(path: Path, offset: int, data: bytes) -> None:
    """Write behind vmbk's back."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize("detector", ["full", "checksum", "tracking", "differential", "compare"])
def test_every_point_restores_what_the_image_was(tmp_path, vault, image, detector):
    images = []
    for i in range(4):
        with RawDisk(image, mode="rw") as disk:
            disk.write(i * 7 * BLOCK + 5, noise(9000, seed=i))
            disk.zero(30 * BLOCK - i * 1000, 5000)
        done = backup([image], vault, "vm", detector=detector)
        assert done.disks[0].detector == (detector if i else "full")
        images.append((done.point, image.read_bytes()))
    for point, content in images:
        result = restore(point, vault, tmp_path / "out")
        assert result.verified
        assert (tmp_path / "out" / "image.raw").read_bytes() == content
    assert vault.check(read_data=True).ok


ops = st.lists(
    st.tuples(
        st.sampled_from(["write", "zero", "same", "backup", "reopen"]),
        st.integers(0, 8 * BLOCK),
        st.integers(0, BLOCK + 5000),
        st.integers(0, 3),
    ),
    max_size=25,
)


@given(
    ops,
    st.sampled_from(["checksum", "tracking", "differential", "compare", "auto"]),
    st.sampled_from([Settings(), Settings(BLOCK, 0), Settings(4096, 512, gap=4096)]),
)
@settings(max_examples=40)
def test_any_history_restores(tmp_path_factory, history, detector, granularity):
    """Random writes, zeros, rewrites, reopens and backups; every point against a copy in memory."""
    folder = tmp_path_factory.mktemp("history")
    size = 8 * BLOCK + 1000
    model, points = MemoryDisk(size), []
    disk = RawDisk.create(folder / "d.raw", size)
    disk.start_tracking()
    with Vault.create(folder / "v", folder / "k", durability="none") as vault:
        for action, offset, length, seed in [*history, ("backup", 0, 0, 0)]:
            length = min(length, size - offset)
            if action == "write":
                data = noise(length, seed)
                disk.write(offset, data)
                model.write(offset, data)
            elif action == "zero":
                disk.zero(offset, length)
                model.zero(offset, length)
            elif action == "same":
                disk.write(offset, model.data[offset : offset + length].copy())
            elif action == "reopen":
                disk.close()
                disk = RawDisk(folder / "d.raw", mode="rw")
            else:
                done = backup([disk], vault, "vm", detector=detector, settings=granularity)
                assert not (done.disks[0].base and done.disks[0].fallback)
                points.append((done.point, model.data.copy()))
        disk.close()
        target = MemoryDisk(noise(size + 100, 9))
        for point, content in points:
            assert restore_disk(vault, vault.point(point), "d", target).verified
            assert np.array_equal(target.data[:size], content)
        assert target.data[size:].tobytes() == noise(size + 100, 9)[size:]
    shutil.rmtree(folder)


def test_several_disks_make_one_point_and_the_temporary_disk_stays_out(tmp_path, vault, image):
    other = tmp_path / "other.raw"
    shutil.copy(image, other)
    poke(other, 0, b"other")
    scratch = tmp_path / "tmp.raw"
    scratch.write_bytes(b"s" * BLOCK)
    disks = [f"os={image}", f"data={other}", f"temporary={scratch}"]
    done = backup(disks, vault, "vm", exclude=["temporary"])
    assert [d.name for d in done.disks] == ["os", "data"]
    assert done.excluded == ("temporary",)
    assert set(done.seconds) == {"prepare", "snapshot", "detect", "transfer", "commit", "total"}
    assert len(vault.points()) == 1
    restore("latest", vault, tmp_path / "out", disks=["data"])
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["data.raw"]
    assert (tmp_path / "out" / "data.raw").read_bytes() == other.read_bytes()


def test_equal_disks_are_stored_once(tmp_path, vault, image):
    other = tmp_path / "other.raw"
    shutil.copy(image, other)
    done = backup([image, other], vault, "vm")
    assert sum(d.new_bytes for d in done.disks) == done.disks[0].sent_bytes


def test_a_restored_image_is_sparse_and_qemu_finds_it_identical(tmp_path, vault, image):
    require_tool("qemu-img", package="qemu-utils")
    backup([image], vault, "vm")
    restore("latest", vault, tmp_path / "out")
    restored = tmp_path / "out" / "image.raw"
    assert restored.stat().st_blocks * 512 < SIZE // 2
    compare = ["qemu-img", "compare", "-f", "raw", "-F", "raw", str(image), str(restored)]
    assert "identical" in subprocess.run(compare, capture_output=True, text=True, check=True).stdout


def test_restore_replaces_an_image_only_when_it_succeeded(tmp_path, vault, image):
    backup([image], vault, "vm")
    target = tmp_path / "out" / "image.raw"
    target.parent.mkdir()
    target.write_bytes(b"old" * 100000)
    packs = [p for p in (tmp_path / "vault" / "packs").rglob("*") if p.is_file()]
    for pack in packs:
        poke(pack, pack.stat().st_size // 2, b"\xff\x00\xff")
    with pytest.raises(IntegrityError):
        restore("latest", vault, tmp_path / "out")
    assert target.read_bytes() == b"old" * 100000
    assert [p.name for p in target.parent.iterdir()] == ["image.raw"]


def test_a_write_behind_the_trackers_back_falls_back_for_one_job(tmp_path, vault, image):
    backup([image], vault, "vm")
    poke(image, 9 * BLOCK, b"sneaky")
    second = backup([image], vault, "vm").disks[0]
    assert (second.detector, second.fallback) == ("checksum", "foreign write")
    restore("latest", vault, tmp_path / "out")
    assert (tmp_path / "out" / "image.raw").read_bytes() == image.read_bytes()
    with RawDisk(image, mode="rw") as disk:
        disk.write(0, b"tracked")
    third = backup([image], vault, "vm").disks[0]
    assert (third.detector, third.fallback, third.reported_bytes) == ("tracking", "", BLOCK)


def test_a_grown_disk_falls_back_and_restores(tmp_path, vault, image):
    backup([image], vault, "vm")
    os.truncate(image, SIZE + 3 * BLOCK)
    poke(image, SIZE + BLOCK, b"in the new part")
    done = backup([image], vault, "vm").disks[0]
    assert (done.detector, done.fallback) == ("checksum", "size changed")
    restore("latest", vault, tmp_path / "out")
    assert (tmp_path / "out" / "image.raw").read_bytes() == image.read_bytes()
    os.truncate(image, 5 * BLOCK + 7)
    backup([image], vault, "vm")
    restore("latest", vault, tmp_path / "out")
    assert (tmp_path / "out" / "image.raw").read_bytes() == image.read_bytes()


def test_a_lost_tracker_falls_back(vault, image):
    backup([image], vault, "vm")
    Path(f"{image}.tracking").unlink()
    done = backup([image], vault, "vm", detector="tracking").disks[0]
    assert (done.detector, done.fallback) == ("checksum", "no tracker")
    assert backup([image], vault, "vm", detector="tracking").disks[0].detector == "tracking"


def test_a_tracker_that_started_anew_knows_no_base(vault, image):
    backup([image], vault, "vm")
    Path(f"{image}.tracking").unlink()
    with RawDisk(image, mode="rw") as disk:
        disk.start_tracking()
        disk.write(0, b"anew")
    done = backup([image], vault, "vm").disks[0]
    assert (done.detector, done.fallback) == ("checksum", "generation mismatch")
    assert backup([image], vault, "vm").disks[0].detector == "tracking"


def test_a_writer_that_was_killed_leaves_tracking_unclean(tmp_path, vault, image):
    """A real process opens the disk, writes, and dies without closing it."""
    backup([image], vault, "vm")
    code = (
        "import os, signal, sys; from vmbk import RawDisk; disk = RawDisk(sys.argv[1], 'rw'); "
        "disk.write(70000, b'killed'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(image)], check=False)
    assert killed.returncode == -signal.SIGKILL
    done = backup([image], vault, "vm").disks[0]
    assert (done.detector, done.fallback) == ("checksum", "unclean")
    assert done.sent_bytes == 4096
    restore("latest", vault, tmp_path / "out")
    assert (tmp_path / "out" / "image.raw").read_bytes() == image.read_bytes()
    assert backup([image], vault, "vm").disks[0].detector == "tracking"


def test_a_tracker_that_cannot_be_saved_costs_tracking_not_the_backup(tmp_path, vault):
    if os.geteuid() != 0:
        pytest.skip("making a folder immutable needs root")
    folder = tmp_path / "locked"
    folder.mkdir()
    image = folder / "image.raw"
    with RawDisk.create(image, SIZE) as disk:
        disk.write(0, noise(BLOCK))
    backup([image], vault, "vm")
    if subprocess.run(["chattr", "+i", folder], capture_output=True, check=False).returncode:
        pytest.skip("this file system has no immutable folders")
    try:
        done = backup([image], vault, "vm").disks[0]
    finally:
        subprocess.run(["chattr", "-i", folder], check=True)
    assert (done.detector, done.fallback) == ("checksum", "checkpoint not saved")
    restore("latest", vault, tmp_path / "out")
    assert (tmp_path / "out" / "image.raw").read_bytes() == image.read_bytes()


def test_two_vaults_can_track_the_same_disk(tmp_path, vault, image):
    with Vault.create(tmp_path / "second", tmp_path / "key2", durability="none") as second:
        for content in (b"a", b"b", b"c"):
            with RawDisk(image, mode="rw") as disk:
                disk.write(4 * BLOCK, content * 600)
            for v in (vault, second):
                done = backup([image], v, "vm").disks[0]
                assert done.detector == ("full" if content == b"a" else "tracking")
        restore("latest", second, tmp_path / "out")
    assert (tmp_path / "out" / "image.raw").read_bytes() == image.read_bytes()


def test_a_long_chain_is_cut_and_every_point_restores(tmp_path, vault):
    from vmbk.pipeline.record import MAX_CHAIN

    contents = []
    with RawDisk.create(tmp_path / "d.raw", 50 * BLOCK) as disk:
        disk.start_tracking()
        for i in range(MAX_CHAIN + 5):
            disk.write(i * BLOCK + 17, noise(300, i))
            done = backup([disk], vault, "vm")
            contents.append((done.point, (tmp_path / "d.raw").read_bytes()))
            assert vault.chain_length(vault.point(done.point), "d") <= MAX_CHAIN
        assert all(d.sent_bytes <= 8192 for d in done.disks)
    for point, content in contents[::6] + contents[-3:]:
        disk = PointDisk(vault, vault.point(point), "d")
        buffer = np.empty(disk.size, np.uint8)
        disk.read_into(0, buffer)
        assert buffer.tobytes() == content


def test_a_disk_written_during_the_backup_makes_no_point(tmp_path, vault, image, monkeypatch):
    """The image is really written, between two stages; only the moment is arranged."""
    from vmbk.pipeline import backup as module

    original = module.transfer

    def late_write(job, *rest):
        poke(image, 4 * BLOCK, b"late")
        original(job, *rest)

    monkeypatch.setattr(module, "transfer", late_write)
    with pytest.raises(ChangedDuringBackupError, match="image"):
        backup([image], vault, "vm")
    assert vault.points() == ()
    monkeypatch.undo()
    backup([image], vault, "vm")
    restore("latest", vault, tmp_path / "out")
    assert (tmp_path / "out" / "image.raw").read_bytes() == image.read_bytes()


def test_a_write_that_no_file_time_shows_is_noticed(tmp_path, vault, image):
    """Bytes that change between detection and transfer, through a mapping that is dirty already."""
    import mmap
    import threading

    with image.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[4 * BLOCK] = 1
        stop = threading.Event()

        def scribble() -> None:
            number = 0
            while not stop.is_set():
                number = (number + 1) % 256
                mapped[4 * BLOCK] = mapped[7 * BLOCK] = number

        thread = threading.Thread(target=scribble)
        thread.start()
        try:
            for _ in range(2):  # it is noticed, or what is committed can be restored
                try:
                    point = backup([image], vault, "vm", track=False, detector="full").point
                except ChangedDuringBackupError:
                    continue
                assert restore(point, vault, tmp_path / "out").verified
        finally:
            stop.set()
            thread.join()
        assert vault.check(read_data=True).ok
        # A store to a page that is dirty already moves no time by itself.
        backup([image], vault, "vm")
        mapped[5 * BLOCK] = 77
        backup([image], vault, "vm")
        mapped[5 * BLOCK] = 78
        backup([image], vault, "vm")
        restore("latest", vault, tmp_path / "out")
        assert (tmp_path / "out" / "image.raw").read_bytes() == image.read_bytes()


def test_what_is_sent_is_what_was_digested(vault, image, monkeypatch):
    """The image is really written between detection and transfer, its times put back."""
    from vmbk.pipeline import backup as module

    first = backup([image], vault, "vm").point
    poke(image, 3 * BLOCK, noise(2 * BLOCK))
    original = module.transfer

    def late_write(job, *rest):
        times = image.stat()
        poke(image, 4 * BLOCK, b"late")
        os.utime(image, ns=(times.st_atime_ns, times.st_mtime_ns))
        original(job, *rest)

    monkeypatch.setattr(module, "transfer", late_write)
    monkeypatch.setattr(module, "_check_unchanged", lambda job: None)
    with pytest.raises(ChangedDuringBackupError):
        backup([image], vault, "vm", detector="checksum")
    assert [point.id for point in vault.points()] == [first]


everything = st.tuples(
    st.integers(0, 1 << 22), st.integers(1, 1 << 20), st.sampled_from(["data", "zeros", "hole"])
)


@given(
    st.integers(1, 3 << 20),
    st.lists(everything, max_size=12),
    st.tuples(st.integers(9, 20), st.integers(8, 19)),
    st.booleans(),
    st.sampled_from(["full", "auto", "checksum"]),
)
@settings(max_examples=60)
@example(2 << 20, [(0, 1 << 21, "data")], (20, 8), False, "full")
@example((2 << 20) + 1, [(0, 1 << 21, "data"), (1 << 20, 512, "hole")], (9, 8), True, "full")
def test_reading_once_makes_the_same_point_as_detect_then_transfer(
    tmp_path_factory, size, writes, powers, open_for_writing, detector
):
    """Tables and chunks of a full backup against those of the two stages run one by one."""
    from vmbk.pipeline import backup as module

    folder = tmp_path_factory.mktemp("once")
    block, sub = 1 << powers[0], 1 << powers[1]
    granularity = Settings(block, sub if 512 <= sub < block else 0)
    disk = RawDisk.create(folder / "d.raw", size)
    for i, (offset, length, kind) in enumerate(writes):
        length = min(length, size - offset % size)
        if kind == "hole":
            disk.zero(offset % size, length)
        else:
            disk.write(offset % size, noise(length, i) if kind == "data" else bytes(length))
    content = np.empty(size, np.uint8)
    disk.read_into(0, content)
    source = disk
    if not open_for_writing:
        disk.close()
        source = folder / "d.raw"
    with Vault.create(folder / "v", folder / "k", durability="none") as vault:

        def make(vm: str) -> BackupResult:
            return backup([source], vault, vm, detector=detector, settings=granularity)

        once = make("once")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "why_full", lambda *arguments: None)
            twice = make("twice")
        a, b = (vault.point(done.point).disks[0] for done in (once, twice))
        # Tables name the same chunks, whose ids are of their content.
        assert (a.extents, a.digests, a.sub_digests) == (b.extents, b.digests, b.sub_digests)
        assert a.digest == b.digest
        for one, two in zip(once.disks, twice.disks, strict=True):
            assert one.detector == two.detector == "full"
            assert (one.fallback, one.extents, one.sent_bytes, one.changed_bytes) == (
                two.fallback, two.extents, two.sent_bytes, two.changed_bytes,
            )  # fmt: skip
            assert (one.scanned_bytes, two.new_bytes) == (two.scanned_bytes, 0)
        map_of = vault.disk_map(vault.point(once.point), "d")
        assert (map_of.lengths <= PIECE).all() or map_of.zero[map_of.lengths > PIECE].all()
        target = MemoryDisk(size)
        assert restore_disk(vault, vault.point(once.point), "d", target).verified
        assert np.array_equal(target.data, content)
    disk.close()
    shutil.rmtree(folder)


def test_a_full_backup_reads_its_data_once(tmp_path, vault, monkeypatch):
    """A new disk beside one that has a base, and one whose blocks were of another size."""
    from vmbk.disk.imagefile import ImageFile

    images = [tmp_path / f"{name}.raw" for name in ("known", "new")]
    for i, path in enumerate(images):
        with RawDisk.create(path, 3 * PIECE + 700) as disk:
            disk.write(PIECE // 2, noise(PIECE, i))
            disk.write(3 * PIECE, noise(700, i))
    backup(images[:1], vault, "vm")
    poke(images[0], PIECE, b"changed")
    reads: list[int] = []
    original = ImageFile.read_into

    def counted(self, offset, buffer):
        reads.append(len(buffer))
        original(self, offset, buffer)

    monkeypatch.setattr(ImageFile, "read_into", counted)
    first = backup(images, vault, "vm", detector="checksum")
    known, new = first.disks
    assert (known.detector, known.sent_bytes) == ("checksum", 4096)
    assert (new.detector, new.fallback, new.sent_bytes) == ("full", "no base point", PIECE + 700)
    assert sum(reads) == known.scanned_bytes + known.sent_bytes + new.scanned_bytes
    assert new.detect_seconds < new.transfer_seconds
    reads.clear()
    second = backup(images, vault, "vm", settings=Settings(4096, 512))
    assert {d.fallback for d in second.disks} == {"block size changed"}
    assert sum(reads) == second.total("scanned_bytes")
    assert second.total("sent_bytes") == 2 * (PIECE + 700)
    reads.clear()
    third = backup(images, vault, "vm", detector="full", settings=Settings(gap=4096))
    assert sum(reads) == third.total("scanned_bytes") + third.total("sent_bytes")
    for point in (first.point, second.point, third.point):
        restore(point, vault, tmp_path / point)
        for path in images:
            assert (tmp_path / point / path.name).read_bytes() == path.read_bytes()


def test_a_full_backup_of_a_disk_in_use_has_what_it_was_at_the_snapshot(
    tmp_path, vault, image, monkeypatch
):
    from vmbk.pipeline import backup as module

    content, original = image.read_bytes(), module.transfer
    with RawDisk(image, mode="rw") as disk:

        def written_meanwhile(job, *rest):
            disk.write(2 * BLOCK + 9, noise(3 * BLOCK, 5))
            disk.zero(SIZE - 700, 100)
            original(job, *rest)

        monkeypatch.setattr(module, "transfer", written_meanwhile)
        point = backup([disk], vault, "vm", detector="full").point
        monkeypatch.undo()
        after = backup([disk], vault, "vm")
        assert after.disks[0].detector == "tracking"
    for name, expected in ((point, content), (after.point, image.read_bytes())):
        assert restore(name, vault, tmp_path / name).verified
        assert (tmp_path / name / "image.raw").read_bytes() == expected


def test_pieces_that_are_not_the_extents_make_no_point(vault, image, monkeypatch):
    from vmbk.pipeline import transfer as module

    monkeypatch.setattr(module, "PIECE", BLOCK)
    with pytest.raises(IntegrityError, match="image"):
        backup([image], vault, "vm")
    assert vault.points() == ()


def test_an_image_that_is_open_is_not_replaced(tmp_path, vault, image):
    backup([image], vault, "vm")
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(image, out / "image.raw")
    with RawDisk(out / "image.raw", mode="rw") as disk:
        with pytest.raises(BusyError):
            restore("latest", vault, out)
        disk.write(0, b"committed")
        disk.flush()
    assert (out / "image.raw").read_bytes()[:9] == b"committed"
    restore("latest", vault, out)
    assert (out / "image.raw").read_bytes() == image.read_bytes()


def test_two_restores_at_once_do_not_share_a_file(tmp_path, vault, image):
    """While one restore is under way, another of the same image runs from start to end."""
    from vmbk.pipeline import restore as module

    backup([image], vault, "vm")
    original, inner = module.restore_disk, []

    def slow(*arguments, **options):
        if not inner:
            inner.append(None)
            restore("latest", vault, tmp_path / "out")
        return original(*arguments, **options)

    module.restore_disk = slow
    try:
        result = restore("latest", vault, tmp_path / "out")
    finally:
        module.restore_disk = original
    assert result.verified
    assert (tmp_path / "out" / "image.raw").read_bytes() == image.read_bytes()
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["image.raw"]


def test_what_a_killed_restore_left_behind_goes(tmp_path, vault, image):
    backup([image], vault, "vm")
    out = tmp_path / "out"
    out.mkdir()
    (out / ".image.raw.0badcafe.partial").write_bytes(b"left")
    restore("latest", vault, out)
    assert [p.name for p in out.iterdir()] == ["image.raw"]


def test_a_damaged_base_point_is_passed_over(tmp_path, vault, image):
    """An older point serves as base; without one the backup is full and says why."""
    points = []
    for i in range(3):
        with RawDisk(image, mode="rw") as disk:
            disk.write(i * BLOCK, noise(500, i))
        points.append(backup([image], vault, "vm").point)
    (tmp_path / "vault" / "points" / points[1]).unlink()  # the last point stands on it
    with Vault.open(tmp_path / "vault", tmp_path / "key", durability="none") as again:
        done = backup([image], again, "vm").disks[0]
        assert done.base == points[0]
        restore("latest", again, tmp_path / "out")
        assert (tmp_path / "out" / "image.raw").read_bytes() == image.read_bytes()
    for point in (tmp_path / "vault" / "points").iterdir():
        point.write_bytes(point.read_bytes()[:-1])
    with Vault.open(tmp_path / "vault", tmp_path / "key", durability="none") as again:
        done = backup([image], again, "vm").disks[0]
        assert (done.detector, done.base) == ("full", "")


def test_drill_down_comes_back_after_a_job_without_it(vault, image):
    backup([image], vault, "vm", settings=Settings(BLOCK, 0))
    found = []
    for i in range(3):
        with RawDisk(image, mode="rw") as disk:
            disk.write(i * 9 * BLOCK, b"x%d" % i)
        found.append(backup([image], vault, "vm").disks[0])
    assert [(d.detector, d.fallback) for d in found] == [
        ("checksum", "sub-block size changed"), ("tracking", ""), ("tracking", ""),
    ]  # fmt: skip
    assert [d.changed_bytes for d in found] == [BLOCK, 4096, 4096]


def test_an_interrupt_ends_the_job_soon(tmp_path):
    """Ctrl-C on a real job: it stops within moments, and the vault is as it was."""
    import time

    image = tmp_path / "big.raw"
    with RawDisk.create(image, 512 << 20) as disk:
        for i in range(0, 512, 8):
            disk.write(i << 20, noise(1 << 20, i) * 8)
    Vault.create(tmp_path / "v", tmp_path / "k")
    command = [sys.executable, "-m", "vmbk", "backup", str(image), "--vault", str(tmp_path / "v"),
               "--vm", "vm", "--key-file", str(tmp_path / "k")]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not any((tmp_path / "v" / "packs").rglob("*")):
        assert process.poll() is None
        time.sleep(0.002)
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (0, 130)
    assert b"Traceback" not in errors
    assert time.monotonic() - begin < 20
    with Vault.open(tmp_path / "v", tmp_path / "k") as vault:
        assert vault.check().ok
        backup([image], vault, "vm")
        assert vault.check(read_data=True).ok


def test_a_disk_that_is_open_for_writing_elsewhere_is_busy(vault, image):
    with RawDisk(image, mode="rw"), pytest.raises(BusyError):
        backup([image], vault, "vm")


def test_targets_that_are_too_small(tmp_path, vault, image):
    backup([image], vault, "vm")
    with (
        RawDisk.create(tmp_path / "small.raw", SIZE - 512) as small,
        pytest.raises(TargetTooSmallError, match=r"small"),
    ):
        restore_disk(vault, vault.point("latest"), "image", small)


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (["/nonexistent/x.raw"], {}, "nonexistent"),
        ([], {}, "no disk"),
        (["{image}"], {"vm": "../x"}, "../x"),
        (["../a b={image}"], {}, "a b"),
        (["{image}", "{image}"], {}, "two disks"),
        (["{image}"], {"exclude": ["data"]}, "data"),
        (["{image}"], {"exclude": ["image"]}, "no disk to back up"),
        (["{image}"], {"detector": "magic"}, "magic"),
        (["{image}"], {"consistency": "perfect"}, "perfect"),
    ],
)
def test_bad_arguments_are_quoted(vault, image, arguments, options, words):
    disks = [a.format(image=image) for a in arguments]
    with pytest.raises(InputError, match=words):
        backup(disks, vault, options.pop("vm", "vm"), **options)
    assert vault.points() == ()


def test_unknown_points_and_disks_list_what_there_is(tmp_path, vault, image):
    with pytest.raises(NotFoundError):
        restore("latest", vault, tmp_path / "out")
    backup([image], vault, "vm")
    with pytest.raises(NotFoundError, match="image"):
        restore("latest", vault, tmp_path / "out", disks=["swap"])
