"""xfs after a power cut: its log replayed by a mount, damage told apart, nothing left behind."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from tests.guest_files import xfs_file
from tests.tools import require_guest, require_tool
from vmbk.consistency import crash_points, crash_states
from vmbk.consistency.checkers import CheckContext, Checker
from vmbk.consistency.mounting import mount_once, why_no_mount
from vmbk.consistency.scratch import copy_image
from vmbk.consistency.xfs import XfsChecker, read_xfs_files
from vmbk.errors import InputError, IntegrityError
from vmbk.trace import Trace, dataset_path, read_trace
from vmbk.trace.capture import file_digest

CUTS = 5
GROUP = 320 << 20 >> 2  # bytes of an allocation group of the capture: a quarter of its volume
SECTOR = 512


@pytest.fixture(scope="module", autouse=True)
def _tools() -> None:
    for name in ("xfs_repair", "xfs_logprint", "xfs_db", "mkfs.xfs"):
        require_tool(name, package="xfsprogs")


@pytest.fixture(scope="module")
def capture() -> Trace:
    return read_trace(dataset_path("xfs-sqlite"))


@pytest.fixture(scope="module")
def cuts(capture: Trace, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Disks by the row at which the power failed, from the workload; the last one was unmounted."""
    folder = tmp_path_factory.mktemp("xfs")
    points = [*crash_points(capture, "flush", states=CUTS, seed=2)]
    points.append(crash_points(capture, "request")[-1])
    images = {}
    for state in crash_states(capture, points):
        images[state.point.row] = folder / f"{state.point.row}.img"
        copy_image(state.image, images[state.point.row])
    return images


@pytest.fixture
def context(tmp_path: Path) -> CheckContext:
    return CheckContext(tmp_path, filesystem_made=True)


@pytest.fixture
def whole(cuts: dict[int, Path], tmp_path: Path) -> Path:
    copy_image(cuts[max(cuts)], tmp_path / "whole.img")
    return tmp_path / "whole.img"


@pytest.fixture
def torn(cuts: dict[int, Path], tmp_path: Path) -> Path:
    """A disk with a dirty log."""
    copy_image(sorted(cuts.items())[-2][1], tmp_path / "torn.img")
    return tmp_path / "torn.img"


@pytest.fixture
def host() -> str:
    """The fast way, where it can be gone."""
    return "host" if why_no_mount("xfs", "host") is None else "auto"


def overwrite(image: Path, offset: int, data: bytes) -> None:
    with image.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def log_start(image: Path) -> int:
    """Where the log begins on the disk, in bytes."""
    told = subprocess.run(
        [str(require_tool("xfs_logprint", "xfsprogs")), "-t", str(image)],
        capture_output=True, text=True,
    )  # fmt: skip
    found = re.search(r"log device: \S+ daddr: (\d+)", told.stdout)
    assert found is not None
    return int(found[1]) * SECTOR


def nothing_is_left(folder: Path) -> bool:
    """No mount, no loop device and no folder for one."""
    used = []
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):  # of a test beside this one, and gone meanwhile
            if str(folder) in file.read_text():
                used.append(file)
    return (
        not used
        and str(folder) not in Path("/proc/self/mountinfo").read_text()
        and not [p for p in folder.iterdir() if p.is_dir()]
    )


def acknowledged(capture: Trace, row: int) -> int:
    commits = [int(s[7:]) for r, s in capture.marks() if s.startswith("commit ") and r < row]
    return max(commits, default=0)


def committed(files: dict[str, Path]) -> int:
    """The largest number of a commit in the database, which has to be whole."""
    database = files["/data.db"].rename(files["/data.db"].with_name("data.db"))
    if "/data.db-wal" in files:
        files["/data.db-wal"].rename(database.with_name("data.db-wal"))
    connection = sqlite3.connect(database)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return int(connection.execute("SELECT max(n) FROM commits").fetchone()[0] or 0)
    finally:
        connection.close()


def test_after_a_clean_shutdown_it_is_clean_and_not_written(
    whole: Path, context: CheckContext, tmp_path: Path
) -> None:
    checker = XfsChecker()
    assert isinstance(checker, Checker)
    before = file_digest(whole)
    verdict = checker.check(whole, context)
    assert (verdict.checker, verdict.state) == ("xfs", "clean")
    assert verdict.detail == "log clean; xfs_repair -n: exit 0"
    assert file_digest(whole) == before


def test_power_cuts_leave_a_log_whose_replay_loses_nothing(
    capture: Trace, cuts: dict[int, Path], context: CheckContext, tmp_path: Path, host: str
) -> None:
    checker = XfsChecker(host)
    states = []
    for row in sorted(cuts)[:-1][-CUTS if host == "host" else -1 :]:
        image = tmp_path / f"{row}.img"
        copy_image(cuts[row], image)
        verdict = checker.check(image, context)
        states.append(verdict.state)
        assert verdict.state in ("clean", "replayed"), verdict
        assert verdict.detail.endswith("xfs_repair -n: exit 0")
        assert checker.check(image, context).state == "clean"
        assert nothing_is_left(tmp_path)
        if acknowledged(capture, row):
            files = tmp_path / f"files-{row}"
            files.mkdir()
            found = read_xfs_files(image, ["/data.db", "/data.db-wal"], files)
            assert committed(found) >= acknowledged(capture, row)
            # `nothing_is_left` counts folders.
            files.rename(tmp_path.parent / f"{tmp_path.name}-{row}")
        image.unlink()
    assert "replayed" in states


def test_states_of_one_capture_share_an_id_and_are_judged_at_once(
    torn: Path, context: CheckContext, tmp_path: Path, host: str
) -> None:
    if host != "host":
        pytest.skip("only root can mount on this machine")
    images = [tmp_path / f"{n}.img" for n in range(6)]
    for image in images:
        copy_image(torn, image)
    with ThreadPoolExecutor(6) as pool:
        states = list(pool.map(lambda i: XfsChecker("host").check(i, context).state, images))
    assert states == ["replayed"] * 6
    assert nothing_is_left(tmp_path)


@pytest.mark.guest
def test_a_guest_replays_the_log_as_this_machine_does(
    torn: Path, context: CheckContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_guest()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "only root" in str(why_no_mount("xfs", "host"))
    checker = XfsChecker()
    assert checker.usable() is None
    verdict = checker.check(torn, context)
    assert verdict.state == "replayed"
    assert "mount (guest): done" in verdict.detail
    assert checker.check(torn, context).state == "clean"
    assert nothing_is_left(tmp_path)


def test_before_there_is_a_file_system(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    assert XfsChecker().check(image, CheckContext(tmp_path)).state == "none"
    made = CheckContext(tmp_path, filesystem_made=False)
    assert XfsChecker().check(image, made).state == "none"
    # Where one had been made and nothing of it is left, that is damage.
    lost = CheckContext(tmp_path, filesystem_made=True)
    verdict = XfsChecker().check(image, lost)
    assert verdict.state == "damaged"
    assert "mount" not in verdict.detail


def test_a_wrong_header_of_free_space_is_repaired(whole: Path, context: CheckContext) -> None:
    overwrite(whole, GROUP + SECTOR, b"\xa5" * SECTOR)  # the second group's AGF
    verdict = XfsChecker().check(whole, context)
    assert verdict.state == "repaired"
    assert verdict.detail.startswith("log clean; xfs_repair -n: exit 1; xfs_repair: exit 0")
    assert XfsChecker().check(whole, context).state == "clean"


def test_a_lost_superblock_is_found_in_its_copies(whole: Path, context: CheckContext) -> None:
    overwrite(whole, 0, bytes(4096))
    verdict = XfsChecker().check(whole, context)
    assert verdict.state == "repaired"
    assert XfsChecker().check(whole, context).state == "clean"


def test_a_log_whose_last_records_are_torn_is_replayed_up_to_them(
    torn: Path, context: CheckContext, host: str
) -> None:
    start = log_start(torn)
    with torn.open("rb") as file:
        file.seek(start)
        sectors = np.frombuffer(file.read(8 << 20), np.uint8).reshape(-1, SECTOR)
    magic = np.frombuffer(bytes.fromhex("feedbabe"), np.uint8)
    for record in np.flatnonzero((sectors[:, :4] == magic).all(axis=1))[-3:].tolist():
        overwrite(torn, start + (record + 1) * SECTOR + 64, os.urandom(256))
    assert XfsChecker(host).check(torn, context).state == "replayed"


def test_what_a_mount_refuses_after_the_replay_is_repaired(
    torn: Path, context: CheckContext, tmp_path: Path, host: str
) -> None:
    overwrite(torn, 3 * GROUP + SECTOR, b"\xa5" * SECTOR)  # the AGF of a group that is not used
    verdict = XfsChecker(host).check(torn, context)
    assert verdict.state == "repaired", verdict
    assert "failed; xfs_repair: exit 0" in verdict.detail
    assert XfsChecker(host).check(torn, context).state == "clean"
    assert nothing_is_left(tmp_path)


def test_a_log_that_nobody_can_read_is_thrown_away(
    torn: Path, context: CheckContext, tmp_path: Path, host: str
) -> None:
    overwrite(torn, log_start(torn), np.random.default_rng(1).bytes(1 << 20))
    verdict = XfsChecker(host).check(torn, context)
    assert verdict.state == "repaired", verdict
    assert verdict.detail.startswith("log unreadable; mount")
    assert "failed; xfs_repair: exit 2; xfs_repair -L: exit 0" in verdict.detail
    assert nothing_is_left(tmp_path)


def test_noise_where_a_file_system_was(tmp_path: Path, context: CheckContext) -> None:
    image = tmp_path / "noise.img"
    image.write_bytes(b"XFSB" + os.urandom((4 << 20) - 4))
    verdict = XfsChecker().check(image, context)
    assert verdict.state == "damaged", verdict
    assert nothing_is_left(tmp_path)


def test_when_time_is_up_nothing_stays_mounted(torn: Path, tmp_path: Path, host: str) -> None:
    if host != "host":
        pytest.skip("only root can mount on this machine")
    for timeout_s in np.linspace(0.002, 0.1, 24).tolist():
        context = CheckContext(tmp_path, filesystem_made=True, timeout_s=timeout_s)
        mount_once(torn, "xfs", context, "host")
        assert nothing_is_left(tmp_path)
    patient = CheckContext(tmp_path, filesystem_made=True)
    assert XfsChecker("host").check(torn, patient).state in ("replayed", "clean")


def test_a_machine_that_cannot_mount_says_so(
    torn: Path, whole: Path, context: CheckContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr("vmbk.consistency.mounting.why_no_guest", lambda _: "there is no kernel")
    checker = XfsChecker()
    assert checker.usable() == "only root can mount on this machine; there is no kernel"
    # What has a clean log can be judged all the same.
    assert checker.check(whole, context).state == "clean"
    with pytest.raises(InputError, match="log of xfs cannot be replayed") as caught:
        checker.check(torn, context)
    assert "run as root" in caught.value.hint
    with pytest.raises(InputError, match="no way to mount"):
        XfsChecker("by hand")


# Files read from an image


def make_xfs(folder: Path, image: Path) -> None:
    """An image with files of every shape, made without a mount from a prototype."""
    files = {"a": b"short", "none": b"", "b": os.urandom(300_000)}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    lines = ["/stand/diskboot", "0 0", "d--755 0 0"]
    lines += [f"{name} ---644 0 0 {folder / name}" for name in files]
    lines += ["pipe p--644 0 0", "link l--777 0 0 /etc/passwd", "sub d--755 0 0"]
    lines += [f"deep.db ---600 0 0 {folder / 'b'}", "$", "$", ""]
    (folder / "prototype").write_text("\n".join(lines))
    with image.open("wb") as file:
        file.truncate(320 << 20)
    mkfs = require_tool("mkfs.xfs", "xfsprogs")
    subprocess.run([str(mkfs), "-q", "-p", str(folder / "prototype"), str(image)], check=True)


def test_files_are_read_whole_and_nothing_else_is(tmp_path: Path) -> None:
    image, out = tmp_path / "disk.img", tmp_path / "out"
    out.mkdir()
    make_xfs(tmp_path, image)
    paths = ["/a", "/sub/deep.db", "/absent", "/none", "/a/b", "/b", "/absent/b"]
    found = read_xfs_files(image, paths, out)
    assert sorted(found) == ["/a", "/b", "/none", "/sub/deep.db"]
    for path, source in (("/a", "a"), ("/b", "b"), ("/sub/deep.db", "b"), ("/none", "none")):
        assert found[path].read_bytes() == (tmp_path / source).read_bytes()
    for path in ("/sub", "/pipe", "/link"):
        with pytest.raises(IntegrityError, match="not a regular file"):
            read_xfs_files(image, [path], out)
    for path in ("a", "/a b", "/../a", "/.a", "/a\n", "/", "/a;"):
        with pytest.raises(InputError, match="not a usable path"):
            read_xfs_files(image, [path], out)


def test_two_readers_of_a_captured_disk_agree(whole: Path, tmp_path: Path) -> None:
    found = read_xfs_files(whole, ["/data.db"], tmp_path)
    assert found["/data.db"].read_bytes() == xfs_file(whole, "/data.db")


def test_files_that_lie_about_themselves(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    make_xfs(tmp_path, image)
    xfs_db = str(require_tool("xfs_db", "xfsprogs"))

    def change(path: str, *commands: str) -> None:
        words = [word for command in (f"path {path}", *commands) for word in ("-c", command)]
        subprocess.run([xfs_db, "-x", "-f", *words, str(image)], check=True, capture_output=True)

    change("/a", "write core.size 1000000000000")
    with pytest.raises(IntegrityError, match="claims 1000000000000 bytes"):
        read_xfs_files(image, ["/a"], tmp_path)
    change("/b", "write u3.bmx[0].startblock 300000")
    with pytest.raises(IntegrityError, match=r"beyond the end of its disk|cannot be read back"):
        read_xfs_files(image, ["/b"], tmp_path)


def test_noise_instead_of_directories_is_an_error_or_an_absent_file(
    whole: Path, tmp_path: Path
) -> None:
    values = np.random.default_rng(8)
    for _ in range(12):
        # The root directory's inode and what lies around it.
        at = int(values.integers(0, 256 << 10)) // SECTOR * SECTOR
        overwrite(whole, at, values.bytes(SECTOR))
        with suppress(IntegrityError):
            found = read_xfs_files(whole, ["/data.db", "/data.db-wal"], tmp_path, timeout_s=20)
            assert all(path.stat().st_size <= whole.stat().st_size for path in found.values())
