"""The MARS agent on real images: what it sends, what it restores, and what a kill leaves."""

from __future__ import annotations

import shutil
import signal
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.guest_files import fsck_is_clean
from tests.memory_disk import MemoryDisk
from tests.tools import require_tool
from vmbk import RawDisk, Settings, Vault, dataset_path, hash_blocks, read_trace, replay
from vmbk.errors import (
    BusyError,
    ChangedDuringBackupError,
    InputError,
    IntegrityError,
    NotFoundError,
    TargetTooSmallError,
    VmbkError,
)
from vmbk.service import mars_base, mars_cache, vhd
from vmbk.service.mars import MarsAgent
from vmbk.service.mars_cache import Cache
from vmbk.service.mars_records import MarsRules, mars_rules
from vmbk.service.plan import DAY as DAY_NS
from vmbk.service.vhd import BLOCK, SECTOR, DifferencingVhd, write_differencing
from vmbk.vault.writer import VaultWriter

KIB, MIB = 1 << 10, 1 << 20
SIZE = 5 * MIB + 3 * SECTOR


@pytest.fixture
def vault(tmp_path: Path):
    with Vault.create(tmp_path / "vault", tmp_path / "key", durability="none") as made:
        yield made


@pytest.fixture
def agent(tmp_path: Path, vault: Vault) -> MarsAgent:
    return MarsAgent(tmp_path / "cache", vault, "files-1")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "c.raw"
    with RawDisk.create(path, SIZE) as disk:
        disk.write(300 * KIB, noise(MIB))
        disk.write(3 * MIB, bytes(200 * KIB))
        disk.write(SIZE - 900, noise(900, 1))
    return path


def noise(length: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, length, np.uint8).tobytes()


def change(path: Path, seed: int) -> None:
    """Some writes and a range of zeros."""
    with RawDisk(path, mode="rw") as disk:
        rng = np.random.default_rng(seed)
        for _ in range(3):
            disk.write(int(rng.integers(0, SIZE - 9000)), noise(9000, seed))
        disk.zero(int(rng.integers(0, SIZE - 70_000)), 70_000)


def content(path: Path) -> bytes:
    """The bytes of the disk in a fixed VHD, without its footer."""
    data = path.read_bytes()
    assert data[-SECTOR:].startswith(b"conectix")
    return data[:-SECTOR]


def same(raw: Path, image: Path) -> bool:
    """What qemu-img says of a raw image and a VHD."""
    qemu = require_tool("qemu-img", "qemu-utils")
    command = [qemu, "compare", "-f", "raw", "-F", "vpc", raw, image]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout == "Images are identical.\n"  # a warning where the sizes differ


def check(agent: MarsAgent, image: Path, point: str, folder: Path) -> None:
    """The point restores the image as it is, and the cache is that state."""
    agent.restore(point, folder)
    assert content(folder / "c.vhd") == image.read_bytes()
    assert agent.verify_cache("c") == point
    base = agent.cache_of("c").folder / "base.vhd"
    assert content(base) == image.read_bytes()
    _, known = agent.cache_of("c").load()
    np.testing.assert_array_equal(known.digests, hash_blocks(image).digests)


# What it backs up


def test_an_ext4_volume_over_some_days(tmp_path, agent):
    mke2fs = require_tool("mke2fs", "e2fsprogs")
    debugfs = require_tool("debugfs", "e2fsprogs")
    root, image = tmp_path / "root", tmp_path / "d.raw"
    root.mkdir()
    (root / "kept.bin").write_bytes(noise(400_000))
    (root / "old.bin").write_bytes(noise(300_000, 1))
    command = [str(mke2fs), "-q", "-t", "ext4", "-d", str(root), str(image), "16M"]
    subprocess.run(command, check=True)
    days = []
    for day in range(4):
        new = tmp_path / f"day{day}"
        new.write_bytes(noise(50_000 + day, day))
        for order in (f"write {new} day{day}.bin", "rm old.bin" if day == 2 else "stat kept.bin"):
            subprocess.run(
                [str(debugfs), "-w", "-R", order, str(image)], check=True, capture_output=True
            )
        done = agent.back_up(image, day * DAY_NS)
        assert done.fallback == ""
        assert done.detector == ("checksum" if day else "full")
        assert done.changed_bytes < 1 * MIB or not day
        copy = tmp_path / f"then{day}.raw"
        shutil.copyfile(image, copy)
        days.append((done, copy))
    for done, copy in days:
        result = agent.restore(done.point, tmp_path / "out")
        assert result.verified
        restored = tmp_path / "out" / "d.vhd"
        assert same(copy, restored)
        assert fsck_is_clean(restored)
    assert same(days[-1][1], agent.cache_of("d").folder / "base.vhd")
    assert not same(days[0][1], agent.cache_of("d").folder / "base.vhd")
    back = tmp_path / "back.bin"
    order = f"dump day3.bin {back}"
    subprocess.run([str(debugfs), "-R", order, str(restored)], check=True, capture_output=True)
    assert back.read_bytes() == noise(50_003, 3)
    assert agent.vault.check(read_data=True).ok


def test_a_captured_workload_backed_up_while_it_is_written(tmp_path, agent):
    trace = read_trace(dataset_path("ext4-sqlite"))
    rows, copies = len(trace), []
    with RawDisk.create(tmp_path / "e.raw", 67108864) as disk:
        for part in range(3):
            replay(trace, disk, start=part * rows // 3, stop=(part + 1) * rows // 3)
            done = agent.back_up(disk, part)
            shutil.copyfile(disk.path, tmp_path / f"{part}.raw")
            copies.append(done)
    for part, done in enumerate(copies):
        agent.restore(done.point, tmp_path / "out")
        assert same(tmp_path / f"{part}.raw", tmp_path / "out" / "e.vhd")
    assert agent.verify_cache("e") == copies[-1].point
    # What was sent lies within what changed, and what changed within what a byte compare finds.
    before = np.fromfile(tmp_path / "1.raw", np.uint8).reshape(-1, 4096)
    after = np.fromfile(tmp_path / "2.raw", np.uint8).reshape(-1, 4096)
    assert copies[2].changed_bytes == 4096 * int((before != after).any(axis=1).sum())
    assert copies[2].sent_bytes <= copies[2].changed_bytes == copies[2].merged_bytes


def test_a_snapshot_is_what_is_sent(tmp_path, agent, image, monkeypatch):
    """Writes that come while the backup runs are not in it."""
    whole = Cache.make_whole
    with RawDisk(image, mode="rw") as disk:
        then = image.read_bytes()

        def writing(self, view):
            disk.write(310 * KIB, b"later" * 9000)
            return whole(self, view)

        monkeypatch.setattr(Cache, "make_whole", writing)
        done = agent.back_up(disk)
    agent.restore(done.point, tmp_path / "out")
    assert content(tmp_path / "out" / "c.vhd") == then != image.read_bytes()


def test_bytes_that_are_written_again_are_not_sent(agent, image):
    first = agent.back_up(image)
    with RawDisk(image, mode="rw") as disk:
        data = np.empty(MIB, np.uint8)
        disk.read_into(300 * KIB, data)
        disk.write(300 * KIB, data)
    again = agent.back_up(image)
    assert again.changed_bytes == again.sent_bytes == again.image_bytes == again.merged_bytes == 0
    assert again.scanned_bytes >= MIB
    assert again.stored_bytes < 4000 < first.stored_bytes
    assert agent.verify_cache("c") == again.point


def test_zeros_that_come_are_not_sent_and_make_holes(tmp_path, agent, image):
    agent.back_up(image)
    with RawDisk(image, mode="rw") as disk:
        disk.zero(320 * KIB, 512 * KIB)
    done = agent.back_up(image)
    assert (done.sent_bytes, done.changed_bytes) == (0, 512 * KIB)
    base = agent.cache_of("c").folder / "base.vhd"
    assert base.stat().st_blocks * 512 < MIB
    check(agent, image, done.point, tmp_path / "out")


def test_what_is_stored_is_encrypted_and_compressed(agent, image):
    text = b"the quick brown fox jumps over the lazy dog. " * 20_000
    with RawDisk(image, mode="rw") as disk:
        disk.write(2 * MIB, text)
    done = agent.back_up(image)
    packs = b"".join(p.read_bytes() for p in agent.vault.path.rglob("*") if p.is_file())
    assert b"quick brown" not in packs
    assert done.stored_bytes < done.sent_bytes - len(text) // 2


def test_the_numbers_of_a_backup(agent, image):
    done = agent.back_up(image, 7)
    assert list(done.seconds) == ["snapshot", "scan", "image", "send", "merge", "total"]
    assert sum(done.seconds.values()) <= 2 * done.seconds["total"]
    assert done.to_dict()["at_ns"] == 7
    assert "MARS backup of c" in done._repr_html_()
    assert done.consistency == agent.vault.point(done.point).consistency == "filesystem"


def test_two_volumes_of_a_machine(tmp_path, agent, image):
    other = tmp_path / "d.raw"
    shutil.copyfile(image, other)
    for day in range(2):
        agent.back_up(image, day * DAY_NS)
        agent.back_up(other, day * DAY_NS)
        change(other, day)
    done = agent.back_up(f"c={other}", 2 * DAY_NS)
    assert done.fallback == ""
    assert len(agent.points()) == 5
    check(agent, other, done.point, tmp_path / "out")


# Its rules


def test_only_windows():
    with pytest.raises(InputError, match="does not run on 'linux'"):
        MarsAgent("cache", None, "m", os="linux")
    with pytest.raises(InputError, match="no name for a machine"):
        MarsAgent("cache", None, "../m")


def test_three_backups_a_day(agent, image):
    for hour in range(3):
        agent.back_up(image, hour)
    with pytest.raises(InputError, match="3 a day at most"):
        agent.back_up(image, DAY_NS - 1)
    agent.back_up(image, DAY_NS)
    with pytest.raises(InputError, match="before the last backup"):
        agent.back_up(image, DAY_NS - 1)
    for wrong in (-1, 1.5, None, True):
        with pytest.raises(InputError, match="is no time"):
            agent.back_up(image, wrong)
    assert len(agent.points("c")) == 4
    assert agent.points("d") == ()


def test_a_failed_backup_does_not_count(agent, image, monkeypatch):
    for hour in range(2):
        agent.back_up(image, hour)
    with monkeypatch.context() as patch:
        patch.setattr(VaultWriter, "commit", fail)
        with pytest.raises(OSError, match="injected"):
            agent.back_up(image, 2)
    agent.back_up(image, 3)


def test_the_largest_volume(agent, image):
    assert mars_rules().volume_most == 54_400 * 10**9
    agent.rules = replace(agent.rules, volume_most=SIZE - 1)
    with pytest.raises(InputError, match=f"{SIZE:,} bytes is larger than the {SIZE - 1:,}"):
        agent.back_up(image)
    assert agent.points() == ()


def test_the_cache_needs_room(agent, image, monkeypatch, caplog):
    data = MIB + 1 * KIB
    free = SimpleNamespace(free=data // 2)
    monkeypatch.setattr(mars_cache.shutil, "disk_usage", lambda _: free)
    with pytest.raises(TargetTooSmallError, match="cache folder"):
        agent.back_up(image)
    assert not (agent.cache_of("c").folder / "base.vhd").exists()
    free.free = 100 * MIB
    agent.back_up(image)
    free.free = data * 8 // 100  # between 5 and 10 % of the data, and nothing changed
    agent.back_up(image)
    assert "less than 10 % of the data" in caplog.text
    free.free = data * 4 // 100
    with pytest.raises(TargetTooSmallError, match="cache folder"):
        agent.back_up(image)


def test_the_rules_are_read_strictly():
    good = {
        "systems": {"value": ["windows"], "source": "s"},
        "consistency": {"value": "filesystem", "source": "s"},
        "a_day": {"value": 3, "source": "s"},
        "volume_most": {"value": "1TB", "source": "s"},
        "cache_least": {"value": "5%", "source": "s"},
        "cache_wanted": {"value": 0.1, "source": "s"},
    }
    assert MarsRules.parse(good, "mars").volume_most == 10**12
    for key, value, match in (
        ("a_day", {"value": 0, "source": "s"}, "mars.a_day.value"),
        ("a_day", {"value": 3}, "mars.a_day.source is missing"),
        ("consistency", {"value": "application", "source": "s"}, "mars.consistency.value"),
        ("volume_most", {"value": "-3", "source": "s"}, "mars.volume_most.value"),
        ("cache_least", 5, "mars.cache_least must be a table"),
    ):
        with pytest.raises(InputError, match=match):
            MarsRules.parse({**good, key: value}, "mars")
    with pytest.raises(InputError, match=r"mars.a_day is missing"):
        MarsRules.parse({k: v for k, v in good.items() if k != "a_day"}, "mars")


def test_volumes_that_no_vhd_holds(tmp_path, agent):
    with RawDisk.create(tmp_path / "odd.raw", 1000) as disk:
        disk.write(0, b"x")
    with pytest.raises(InputError, match="whole sectors"):
        agent.back_up(tmp_path / "odd.raw")
    with RawDisk.create(tmp_path / "vast.raw", 2041 << 30):
        pass
    with pytest.raises(InputError, match="a VHD holds 2 TiB at most"):
        vhd.Footer.new(2041 << 30, vhd.FIXED)


def test_points_that_are_not_there(tmp_path, agent, image):
    with pytest.raises(NotFoundError, match="no point"):
        agent.restore("latest", tmp_path / "out")
    agent.back_up(image)
    with pytest.raises(NotFoundError, match="no point"):
        MarsAgent(agent.cache_dir, agent.vault, "other").restore("latest", tmp_path / "out")
    with pytest.raises(IntegrityError, match="not there"):
        agent.verify_cache("d")
    with pytest.raises(InputError, match="no name for a volume"):
        agent.verify_cache("../c")


# What a failure leaves


def fail(*_, **__):
    raise OSError("injected")


STEPS = {
    "copy_extents": mars_cache,
    "write_differencing": mars_cache,
    "commit": VaultWriter,
    "forget": Cache,
    "replace_file": mars_cache,
    "save_file": mars_cache,
    "save": Cache,
}
CASES = [
    *((True, name, after) for name in ("commit", "replace_file", "save_file") for after in (0, 1)),
    *((False, name, after) for name in ("commit", "forget", "save_file") for after in (0, 1)),
    (True, "copy_extents", 1), (False, "copy_extents", 0), (False, "copy_extents", 1),
    (False, "write_differencing", 1), (False, "save", 1),
]  # fmt: skip


@pytest.mark.parametrize(("first", "name", "after"), CASES)
def test_the_backup_after_a_failure_is_right(
    tmp_path, agent, image, monkeypatch, first, name, after
):
    owner = STEPS[name]
    if not first:
        agent.back_up(image)
        change(image, 1)
    step = getattr(owner, name)

    def failing(*args, **kwargs):
        if after:
            step(*args, **kwargs)
        fail()

    before = len(agent.points())
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failing)
        with pytest.raises(OSError, match="injected"):
            agent.back_up(image)
    committed = len(agent.points()) - before
    change(image, 2)
    done = agent.back_up(image, DAY_NS)
    early = name == "write_differencing" or (first and name == "copy_extents")
    assert committed == (after if name == "commit" else 1 - early)
    # Until the cache says that it is the new point's, it is not believed.
    assert bool(done.fallback) == (committed == 1 and name != "save")
    check(agent, image, done.point, tmp_path / "out")
    change(image, 3)
    done = agent.back_up(image, DAY_NS)
    assert (done.fallback, done.detector) == ("", "checksum")
    check(agent, image, done.point, tmp_path / "out")


def test_a_merge_that_was_cut_short(tmp_path, agent, image, monkeypatch):
    """Half of what changed is in the base, and nobody believes it."""
    agent.back_up(image)
    change(image, 1)

    def half(source, ranges, target, **_):
        vhd.copy_extents(source, (ranges[0][:2], ranges[1][:2]), target)
        fail()

    with monkeypatch.context() as patch:
        patch.setattr(mars_cache, "copy_extents", half)
        with pytest.raises(OSError, match="injected"):
            agent.back_up(image)
    with pytest.raises(IntegrityError, match="not there"):
        agent.verify_cache("c")
    # The point was made: nothing has changed since, and nothing is sent.
    done = agent.back_up(image)
    assert (done.fallback, done.sent_bytes) == (mars_base.NO_CACHE, 0)
    check(agent, image, done.point, tmp_path / "out")


KILLED = """
import os, signal, sys
from vmbk import Vault
from vmbk.service import mars_cache
from vmbk.service.mars import MarsAgent
from vmbk.vault.writer import VaultWriter
owner, name, after, vault, key, cache, image = sys.argv[1:]
owner = {"writer": VaultWriter, "files": mars_cache, "cache": mars_cache.Cache}[owner]
step = getattr(owner, name)
def killing(*args, **kwargs):
    if after == "1":
        step(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(owner, name, killing)
with Vault.open(vault, key, durability="none") as opened:
    MarsAgent(cache, opened, "files-1").back_up(image)
"""


@pytest.mark.kill
@pytest.mark.parametrize(
    ("owner", "name", "after"),
    [("writer", "commit", 0), ("writer", "commit", 1), ("files", "copy_extents", 1),
     ("files", "save_file", 1)],
)  # fmt: skip
def test_killed_between_two_steps(tmp_path, agent, image, owner, name, after):
    agent.back_up(image)
    change(image, 1)
    words = [owner, name, str(after), agent.vault.path, tmp_path / "key", agent.cache_dir, image]
    done = subprocess.run([sys.executable, "-c", KILLED, *(str(w) for w in words)])
    assert done.returncode == -signal.SIGKILL
    assert len(agent.points()) == (1 if (name, after) == ("commit", 0) else 2)
    change(image, 2)
    again = agent.back_up(image)
    assert bool(again.fallback) == (len(agent.points()) == 3)
    check(agent, image, again.point, tmp_path / "out")


@pytest.mark.parametrize("damage", ["state", "checksums", "base.vhd", "gone", "foreign", "junk"])
def test_a_damaged_cache_is_not_believed(tmp_path, agent, image, damage):
    agent.back_up(image)
    folder = agent.cache_of("c").folder
    if damage == "gone":
        shutil.rmtree(agent.cache_dir)
    elif damage == "foreign":
        shutil.copyfile(image, tmp_path / "d.raw")
        agent.back_up(tmp_path / "d.raw")
        shutil.copyfile(agent.cache_of("d").folder / "base.vhd", folder / "base.vhd")
    elif damage == "junk":
        (folder / "state").write_bytes(b"[" * 60_000)
    else:
        data = bytearray((folder / damage).read_bytes())
        data[-100] ^= 1
        (folder / damage).write_bytes(data)
    change(image, 1)
    done = agent.back_up(image)
    # A flipped bit of the state may be one of the point's name.
    assert done.fallback == (mars_base.BEHIND if damage == "state" else mars_base.NO_CACHE)
    assert done.detector == "checksum"
    assert done.sent_bytes < MIB  # compared in full, with what the vault knows
    check(agent, image, done.point, tmp_path / "out")


def test_a_cache_that_differs_from_its_checksums_is_found(agent, image):
    agent.back_up(image)
    base = agent.cache_of("c").folder / "base.vhd"
    with base.open("r+b") as file:
        file.seek(400 * KIB)
        file.write(b"?")
    with pytest.raises(IntegrityError, match=f"1 blocks, first at byte {384 * KIB}"):
        agent.verify_cache("c")


def test_another_vault_with_the_same_cache(tmp_path, agent, image):
    agent.back_up(image)
    with Vault.create(tmp_path / "second", tmp_path / "key2", durability="none") as second:
        other = MarsAgent(agent.cache_dir, second, agent.machine)
        assert other.back_up(image).detector == "full"
        change(image, 1)
        done = agent.back_up(image)
        assert done.fallback == mars_base.BEHIND
        check(agent, image, done.point, tmp_path / "out")


def test_a_lost_pack_makes_it_send_everything(tmp_path, agent, image):
    agent.back_up(image)
    for pack in (agent.vault.path / "packs").rglob("*"):
        if pack.is_file():
            pack.unlink()
    done = agent.back_up(image)
    assert (done.detector, done.fallback) == ("full", mars_base.BASE_DAMAGED)
    check(agent, image, done.point, tmp_path / "out")


def test_a_volume_that_grows_and_other_blocks(tmp_path, agent, image):
    agent.back_up(image)
    with image.open("r+b") as file:
        file.truncate(SIZE + 64 * KIB)
    grown = agent.back_up(image)
    assert grown.fallback == mars_base.RESIZED
    check(agent, image, grown.point, tmp_path / "out")
    agent.settings = Settings(16 * KIB, 0)
    finer = agent.back_up(image)
    assert (finer.fallback, finer.detector) == (mars_base.OTHER_SETTINGS, "full")
    assert agent.verify_cache("c") == finer.point


def test_a_volume_written_behind_the_agent(agent, image, monkeypatch):
    whole = Cache.make_whole

    def writing(self, view):
        made = whole(self, view)
        with image.open("r+b") as file:
            file.write(b"late")
        return made

    monkeypatch.setattr(Cache, "make_whole", writing)
    with pytest.raises(ChangedDuringBackupError, match="was written"):
        agent.back_up(image)
    assert agent.points() == ()


@pytest.mark.parametrize("name", ["make_whole", "make_increment"])
def test_a_vhd_that_is_damaged_is_not_sent(tmp_path, agent, image, monkeypatch, name):
    """The bytes that are sent come from the VHD, and are what was digested."""
    if name == "make_increment":
        agent.back_up(image)
        with RawDisk(image, mode="rw") as disk:
            disk.write(2 * MIB, noise(MIB, 5))
    make, before = getattr(Cache, name), agent.points()

    def damaging(self, *args):
        made = make(self, *args)
        path = self.folder / ("increment.vhd" if name == "make_increment" else "base.vhd.new")
        data = path.read_bytes()
        with path.open("r+b") as file:
            file.seek(data.index(noise(MIB, 5 if before else 0)[5000:5100]))
            file.write(b"damage")
        return made

    with monkeypatch.context() as patch:
        patch.setattr(Cache, name, damaging)
        with pytest.raises(ChangedDuringBackupError, match="no point was made"):
            agent.back_up(image)
    assert agent.points() == before
    check(agent, image, agent.back_up(image).point, tmp_path / "out")


def test_one_backup_at_a_time(agent, image):
    with agent.cache_of("c").held(), pytest.raises(BusyError, match="in use"):
        agent.back_up(image)
    with agent.vault.writer(agent.machine), pytest.raises(BusyError):
        agent.back_up(image)
    agent.back_up(image)


@settings(max_examples=12)
@given(
    rounds=st.lists(
        st.tuples(
            st.lists(
                st.tuples(
                    st.integers(0, 2 * MIB + SECTOR - 1), st.integers(1, 70_000), st.booleans()
                ),
                max_size=4,
            ),
            st.sampled_from(["", "", "make_increment", "commit", "copy_extents", "save_file"]),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_whatever_changes_and_fails_the_points_are_right(tmp_path_factory, rounds):
    tmp_path = tmp_path_factory.mktemp("mars")
    size = 2 * MIB + SECTOR
    expected, model, image = {}, bytearray(size), tmp_path / "c.raw"
    owners = {"make_increment": Cache, "commit": VaultWriter}
    with (
        Vault.create(tmp_path / "v", tmp_path / "key", durability="none") as vault,
        RawDisk.create(image, size) as disk,
    ):
        agent = MarsAgent(tmp_path / "cache", vault, "m")
        for day, (writes, failure) in enumerate(rounds):
            for i, (offset, length, zero) in enumerate(writes):
                data = bytes(min(length, size - offset))
                data = data if zero else noise(len(data), 100 * day + i)
                model[offset : offset + len(data)] = data
                disk.write(offset, data)
            with pytest.MonkeyPatch.context() as patch:
                if failure:
                    patch.setattr(owners.get(failure, mars_cache), failure, fail)
                try:
                    done = agent.back_up(disk, day * DAY_NS)
                except OSError:
                    assert failure
                else:
                    expected[done.point] = bytes(model)
        done = agent.back_up(disk, len(rounds) * DAY_NS)
        expected[done.point] = bytes(model)
        for point, then in expected.items():
            agent.restore(point, tmp_path / "out")
            assert content(tmp_path / "out" / "c.vhd") == then
        assert agent.verify_cache("c") == done.point
        assert content(agent.cache_of("c").folder / "base.vhd") == bytes(model)
        assert vault.check(read_data=True).ok
    shutil.rmtree(tmp_path)


# The VHD format


def naive_sectors(data: bytes) -> dict[int, bytes]:
    """Sectors that a differencing VHD holds, read as the specification tells it."""
    footer = data[-512:]
    assert footer[:8] == data[:8] == b"conectix"
    assert footer == data[:512]
    assert struct.unpack(">I", footer[60:64])[0] == 4
    header = struct.unpack(">Q", footer[16:24])[0]
    assert data[header : header + 8] == b"cxsparse"
    for start, length, at in ((0, 512, 64), (header, 1024, 36)):
        part = data[start : start + length]
        total = sum(part) - sum(part[at : at + 4])
        assert struct.unpack(">I", part[at : at + 4])[0] == ~total & 0xFFFFFFFF
    table = struct.unpack(">Q", data[header + 16 : header + 24])[0]
    entries, block = struct.unpack(">II", data[header + 28 : header + 36])
    found = {}
    for i in range(entries):
        sector = struct.unpack(">I", data[table + 4 * i : table + 4 * i + 4])[0]
        if sector == 0xFFFFFFFF:
            continue
        bitmap = data[512 * sector : 512 * sector + block // 512 // 8]
        for k in range(block // 512):
            if bitmap[k // 8] >> (7 - k % 8) & 1:
                at = 512 * sector + len(bitmap) + 512 * k
                found[i * block // 512 + k] = data[at : at + 512]
    return found


@settings(max_examples=15)
@given(st.sets(st.integers(0, 3 * BLOCK // SECTOR + 2), max_size=12), st.integers(1, 9))
def test_a_differencing_vhd_holds_what_it_was_given(tmp_path_factory, starts, wide):
    size = 3 * BLOCK + 3 * SECTOR
    sectors = sorted({s for start in starts for s in range(start, min(start + wide, size // 512))})
    path = tmp_path_factory.mktemp("vhd") / "x.vhd"
    data = np.frombuffer(noise(size), np.uint8)
    disk = MemoryDisk(size)
    disk.write(0, data)
    index = np.array(sectors, np.int64)
    first = np.flatnonzero(np.diff(index, prepend=-9) != 1)
    ends = np.append(first[1:], len(index))
    ranges = index[first] * SECTOR, (ends - first) * SECTOR
    parent = vhd.Footer.new(size, vhd.FIXED)
    write_differencing(path, disk, ranges, parent, "base.vhd")
    raw = data.tobytes()
    assert naive_sectors(path.read_bytes()) == {s: raw[s * 512 : s * 512 + 512] for s in sectors}
    with DifferencingVhd(path) as made:
        assert (made.size, made.parent) == (size, parent.id)
        offsets, lengths = made.data_extents()
        assert int(lengths.sum()) == 512 * len(sectors)
        for offset, length in zip(offsets.tolist(), lengths.tolist(), strict=True):
            got = np.empty(length, np.uint8)
            made.read_into(offset, got)
            assert got.tobytes() == raw[offset : offset + length]
        for s in set(range(size // 512)) - set(sectors):
            with pytest.raises(IntegrityError, match="does not hold"):
                made.read_into(s * 512, np.empty(512, np.uint8))
            break


def test_qemu_opens_an_increment(tmp_path, agent, image, monkeypatch):
    qemu = require_tool("qemu-img", "qemu-utils")
    agent.back_up(image)
    change(image, 1)
    merge = Cache.merge

    def keeping(self, increment):
        shutil.copyfile(self.folder / "increment.vhd", tmp_path / "kept.vhd")
        return merge(self, increment)

    monkeypatch.setattr(Cache, "merge", keeping)
    agent.back_up(image)
    command = [str(qemu), "info", "--output=json", str(tmp_path / "kept.vhd")]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert '"format": "vpc"' in told
    assert f'"virtual-size": {SIZE}' in told
    # An independent merge: sector by sector, by the specification.
    raw = image.read_bytes()
    held = naive_sectors((tmp_path / "kept.vhd").read_bytes())
    assert held
    assert all(raw[s * 512 : s * 512 + 512] == sector for s, sector in held.items())
    assert not (agent.cache_of("c").folder / "increment.vhd").exists()


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 6000), st.integers(0, 255)), max_size=6), st.data())
def test_a_damaged_vhd_never_raises_anything_else(tmp_path_factory, pokes, data):
    path = tmp_path_factory.mktemp("vhd") / "x.vhd"
    size = BLOCK + SECTOR
    disk = MemoryDisk(size)
    ranges = np.array([0, BLOCK], np.int64), np.array([4096, SECTOR], np.int64)
    write_differencing(path, disk, ranges, vhd.Footer.new(size, vhd.FIXED), "base.vhd")
    bad = bytearray(path.read_bytes())
    for offset, value in pokes:
        bad[offset if offset < 3000 else -(offset - 2999)] = value
    if data.draw(st.booleans()):
        del bad[data.draw(st.integers(0, len(bad) - 1)) :]
    path.write_bytes(bad)
    try:
        with DifferencingVhd(path) as made:
            offsets, lengths = made.data_extents()
            assert (lengths > 0).all()
            assert not len(offsets) or int((offsets + lengths).max()) <= made.size
    except VmbkError:
        pass


def test_the_golden_footer(monkeypatch):
    """Bytes of a footer as qemu-img and Hyper-V read them."""
    footer = vhd.Footer(40 * MIB, vhd.FIXED, bytes(range(16)), 0x1234)
    data = footer.to_bytes()
    assert len(data) == 512
    assert data[:64].hex() == (
        "636f6e656374697800000002" "00010000" "ffffffffffffffff" "00001234" "77696e20" "00010000"
        "5769326b" "0000000002800000" "0000000002800000" "03c30511" "00000002"
    )  # fmt: skip
    assert vhd.Footer.parse(data, "it") == footer
    assert data[68:84] == bytes(range(16))
    assert not any(data[84:])
