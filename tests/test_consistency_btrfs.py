"""btrfs after a power cut: its log replayed by a guest's mount, damage told apart."""

from __future__ import annotations

import os
import sqlite3
import subprocess
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.tools import require_guest, require_tool
from vmbk.consistency import crash_points, crash_states
from vmbk.consistency.btrfs import BtrfsChecker, read_btrfs_files
from vmbk.consistency.checkers import CheckContext, Checker
from vmbk.consistency.scratch import copy_image
from vmbk.consistency.sqlite import DatabaseSpec, SqliteChecker
from vmbk.errors import InputError, IntegrityError
from vmbk.trace import Trace
from vmbk.trace.capture import Recipe, capture, file_digest
from vmbk.units import MIB

SIZE = 128 * MIB
SUPERBLOCK, COPY = 64 << 10, 64 * MIB
NODE = 16 << 10  # bytes of a block of a tree

WORKLOAD = """
mkdir files
sync
step=0
while [ $step -lt 9 ]; do
    step=$((step + 1))
    awk -v seed=$step 'BEGIN { srand(seed); for (n = 900; n; n--) printf "%d ", rand() * 9999 }' \
        > files/$((step % 4))
    echo "step $step" >> files/log
    sync files/$((step % 4))
    sync files/log
    mark "step $step"
    [ $step != 5 ] || sync
done
"""


@pytest.fixture(scope="module", autouse=True)
def _tools() -> None:
    require_tool("btrfs", package="btrfs-progs")
    require_tool("mkfs.btrfs", package="btrfs-progs")


@pytest.fixture(scope="module")
def content() -> dict[str, bytes]:
    """What the image of `pristine` holds."""
    values = np.random.default_rng(4)
    return {
        "/a.db": values.bytes(300_000),
        "/data/app.db": values.bytes(5_000),
        "/data/deep/er+1_x": b"short",
        "/none": b"",
    }


@pytest.fixture(scope="module")
def pristine(content: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("btrfs")
    for path, data in content.items():
        target = folder / "root" / path[1:]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    (folder / "root" / "link").symlink_to("/etc/passwd")
    image = folder / "disk.img"
    with image.open("wb") as file:
        file.truncate(SIZE)
    mkfs = str(require_tool("mkfs.btrfs", "btrfs-progs"))
    subprocess.run(
        [mkfs, "-q", "--rootdir", str(folder / "root"), str(image)], check=True, capture_output=True
    )
    return image


@pytest.fixture
def image(pristine: Path, tmp_path: Path) -> Path:
    copy_image(pristine, tmp_path / "disk.img")
    return tmp_path / "disk.img"


@pytest.fixture
def context(tmp_path: Path) -> CheckContext:
    return CheckContext(tmp_path, filesystem_made=True)


def overwrite(image: Path, offset: int, data: bytes) -> None:
    with image.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def nodes(image: Path) -> list[int]:
    """Where blocks of trees lie: each begins, behind its checksum, with the file system's id."""
    with image.open("rb") as file:
        file.seek(SUPERBLOCK + 32)
        fsid = file.read(16)
        found = []
        for at in range(0, SIZE, 4096):
            file.seek(at + 32)
            if file.read(16) == fsid and at not in (SUPERBLOCK, COPY):
                found.append(at)
    return found


def test_a_good_file_system_is_clean_and_not_written(image: Path, context: CheckContext) -> None:
    checker = BtrfsChecker()
    assert isinstance(checker, Checker)
    before = file_digest(image)
    verdict = checker.check(image, context)
    assert (verdict.checker, verdict.state) == ("btrfs", "clean")
    assert verdict.detail == "check --readonly --check-data-csum: exit 0"
    assert file_digest(image) == before


def test_before_there_is_a_file_system(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(MIB))
    checker = BtrfsChecker()
    assert checker.check(image, CheckContext(tmp_path)).state == "none"
    made = CheckContext(tmp_path, filesystem_made=False)
    assert checker.check(image, made).state == "none"
    lost = CheckContext(tmp_path, filesystem_made=True)
    assert checker.check(image, lost).state == "damaged"


def test_a_lost_superblock_is_found_in_its_copy(image: Path, context: CheckContext) -> None:
    overwrite(image, SUPERBLOCK, bytes(4096))
    verdict = BtrfsChecker().check(image, context)
    assert verdict.state == "repaired"
    assert verdict.detail.startswith("rescue super-recover -y: exit 2; check")
    assert BtrfsChecker().check(image, context).state == "clean"


def test_one_of_two_copies_of_a_tree_is_enough(image: Path, context: CheckContext) -> None:
    """A kernel reads the other one; `btrfs check` says so and finds nothing wrong."""
    overwrite(image, nodes(image)[-1] + 100, b"\xa5" * 512)
    assert BtrfsChecker().check(image, context).state == "clean"


def test_data_that_is_not_what_was_written_is_damage(
    image: Path, context: CheckContext, content: dict[str, bytes]
) -> None:
    with image.open("rb") as file:
        at = file.read().index(content["/a.db"][8192 : 8192 + 64])
    overwrite(image, at, b"torn")
    verdict = BtrfsChecker().check(image, context)
    assert verdict.state == "damaged"
    assert verdict.detail.startswith("check --readonly --check-data-csum: exit 1")


def test_without_any_tree_nothing_is_left_to_repair(image: Path, context: CheckContext) -> None:
    for at in nodes(image):
        overwrite(image, at, bytes(NODE))
    assert BtrfsChecker().check(image, context).state == "damaged"


def test_noise_is_damage_and_no_more(image: Path, context: CheckContext) -> None:
    values = np.random.default_rng(3)
    places = nodes(image)
    for at in values.choice(places, 6, replace=False).tolist():
        overwrite(image, at + int(values.integers(0, NODE - 64)), values.bytes(64))
    verdict = BtrfsChecker().check(image, context)
    assert verdict.state in ("clean", "repaired", "damaged")
    assert verdict.output


# A log, made by a real kernel


@pytest.fixture(scope="module")
def synced(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """A capture of files that are synced one by one: each goes into a log."""
    require_guest()
    recipe = Recipe(
        name="btrfs", doc="", volume_size=SIZE, script=WORKLOAD, timeout_s=300,
        mkfs=("mkfs.btrfs", "-q", "-K", "-b", "{bytes}", "{disk}"), modules=("btrfs",),
        programs={"mkfs.btrfs": "btrfs-progs"}, environment={},
    )  # fmt: skip
    return capture(recipe, tmp_path_factory.mktemp("capture") / "btrfs.arrow")


@pytest.mark.guest
def test_a_log_is_replayed_and_what_was_synced_is_there(
    synced: Trace, tmp_path: Path, context: CheckContext
) -> None:
    assert BtrfsChecker().usable() is None
    marks = {label: row for row, label in synced.marks()}
    states = []
    points = crash_points(synced, "flush")
    wanted = ["mounted", "step 8", "unmounted"]
    chosen = [
        max((p for p in points if p.row <= marks[w] + 1), key=lambda p: p.row) for w in wanted
    ]
    for state in crash_states(synced, chosen):
        image = tmp_path / "state.img"
        copy_image(state.image, image)
        verdict = BtrfsChecker().check(image, context)
        states.append(verdict.state)
        found = read_btrfs_files(image, ["/files/log"], tmp_path)
        log = found["/files/log"].read_text() if found else ""
        done = sum(row < state.point.row for label, row in marks.items() if label[:4] == "step")
        assert log.splitlines()[:done] == [f"step {n}" for n in range(1, done + 1)]
        if verdict.state == "replayed":
            assert "mount (guest): done" in verdict.detail
            assert BtrfsChecker().check(image, context).state == "clean"
    assert states == ["clean", "replayed", "clean"]
    assert not list(tmp_path.glob("guest-*"))


@pytest.mark.guest
def test_a_log_that_nobody_can_replay_is_thrown_away(
    synced: Trace, tmp_path: Path, context: CheckContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = next(row for row, label in synced.marks() if label == "step 8") + 1
    points = [p for p in crash_points(synced, "flush") if p.row <= row]
    image = tmp_path / "state.img"
    for state in crash_states(synced, points[-1:]):
        copy_image(state.image, image)
    monkeypatch.setattr("vmbk.consistency.mounting.why_no_guest", lambda _: "there is no kernel")
    assert "there is no kernel" in str(BtrfsChecker().usable())
    with pytest.raises(InputError, match="log of btrfs cannot be replayed"):
        BtrfsChecker().check(image, context)
    with image.open("rb") as file:
        file.seek(SUPERBLOCK + 0x60)
        assert int.from_bytes(file.read(8), "little") > 0
    from vmbk.consistency.mounting import Mounted

    refused = Mounted(False, "guest", "given up")
    monkeypatch.setattr("vmbk.consistency.btrfs.mount_once", lambda *_: refused)
    copy_image(image, tmp_path / "slow.img")
    verdict = BtrfsChecker().check(image, context)
    assert verdict.state == "repaired"
    assert "mount (guest): failed; rescue zero-log: exit 0" in verdict.detail
    assert BtrfsChecker().check(image, context).state == "clean"
    # One that takes too long proves nothing about the log, which is not thrown away.
    slow = Mounted(False, "guest", "", timed_out=True)
    monkeypatch.setattr("vmbk.consistency.btrfs.mount_once", lambda *_: slow)
    verdict = BtrfsChecker().check(tmp_path / "slow.img", context)
    assert (verdict.state, verdict.detail) == ("damaged", "mount (guest): timed out")


# Files read from an image


def test_files_are_read_whole_and_nothing_else_is(
    image: Path, tmp_path: Path, content: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    found = read_btrfs_files(image, [*content, "/absent", "/data/absent", "/data", "/link"], out)
    assert {path: copy.read_bytes() for path, copy in found.items()} == content
    assert sorted(p.name for p in out.iterdir()) == ["0", "1", "2", "3"]
    for path in ("a", "/a b", "/../a", "/.a", "/a\n", "/", "/a|b", "/a(b"):
        with pytest.raises(InputError, match="not a usable path"):
            read_btrfs_files(image, [path], out)


def test_a_dot_in_a_name_is_no_pattern(tmp_path: Path, image: Path) -> None:
    assert read_btrfs_files(image, ["/axdb", "/data/er+1.x"], tmp_path) == {}


def test_what_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    image = tmp_path / "noise.img"
    image.write_bytes(os.urandom(MIB))
    with pytest.raises(IntegrityError, match=r"/data\.db cannot be read back"):
        read_btrfs_files(image, ["/data.db"], tmp_path)


def test_noise_instead_of_trees(image: Path, tmp_path: Path) -> None:
    values = np.random.default_rng(6)
    places = nodes(image)
    for _ in range(8):
        at = int(values.choice(places)) + int(values.integers(0, NODE - 128))
        overwrite(image, at, values.bytes(128))
        with suppress(IntegrityError):
            found = read_btrfs_files(image, ["/a.db", "/data/app.db"], tmp_path, timeout_s=20)
            assert all(copy.stat().st_size <= SIZE for copy in found.values())


def test_a_database_on_btrfs_is_judged(tmp_path: Path, context: CheckContext) -> None:
    root, image = tmp_path / "root", tmp_path / "disk.img"
    root.mkdir()
    with closing(sqlite3.connect(root / "data.db")) as database:
        database.execute("CREATE TABLE commits(n INTEGER PRIMARY KEY)")
        database.executemany("INSERT INTO commits VALUES(?)", [(1,), (2,)])
        database.commit()
    with image.open("wb") as file:
        file.truncate(128 << 20)
    mkfs = require_tool("mkfs.btrfs", package="btrfs-progs")
    subprocess.run([mkfs, "-q", "--rootdir", str(root), str(image)], check=True)
    spec = DatabaseSpec("/data.db")
    known = replace(context, acknowledged=np.array([1, 2]))
    assert SqliteChecker(spec, "btrfs").check(image, known).state == "clean"
    more = replace(context, acknowledged=np.array([1, 2, 3]))
    found = SqliteChecker(spec, "btrfs").check(image, more)
    assert (found.state, found.commits_lost) == ("lost", 1)
    absent = SqliteChecker(DatabaseSpec("/other.db"), "btrfs").check(image, context)
    assert absent.state == "none"
