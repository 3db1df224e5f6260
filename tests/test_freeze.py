"""Freezing file systems: which, in which order, and that they thaw whatever happens."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tools import require_tool
from vmbk.consistency import freeze as module
from vmbk.consistency.checkers import CheckContext
from vmbk.consistency.ext4 import Ext4Checker
from vmbk.consistency.freeze import Freezer, FsFreezer, Mount, freezable_mounts, read_mounts
from vmbk.consistency.script_watchdog import FIFREEZE, FITHAW
from vmbk.errors import InputError, StorageError

MIB = 1 << 20

# What is mounted

MOUNTINFO = b"""\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
23 22 0:21 / /proc rw,nosuid - proc proc rw
24 22 8:17 / /data rw shared:2 master:1 - xfs /dev/sdb1 rw,attr2
25 24 8:33 / /data/with\\040a\\134space rw - ext4 /dev/sdc1 rw
26 22 7:0 / /loop rw - ext4 /dev/loop0 rw
27 22 0:44 /@home /home rw - btrfs /dev/sdd rw,subvol=/@home
28 22 0:44 /@srv /srv rw - btrfs /dev/sdd rw,subvol=/@srv
29 22 8:49 / /old rw - ext3 /dev/sde1 rw
30 22 8:65 / /mnt rw - ext4 /dev/sdf1 rw
31 22 0:50 / /mnt rw - tmpfs none rw
32 22 8:81 / /boot/efi rw - vfat /dev/sdg1 rw
33 22 8:1 /var/log /log rw - ext4 /dev/sda1 rw
"""


def test_what_is_frozen_and_when(tmp_path: Path) -> None:
    (tmp_path / "mountinfo").write_bytes(MOUNTINFO)
    mounts = read_mounts(tmp_path / "mountinfo")
    assert Mount("/data/with a\\space", "ext4", "8:33", "/dev/sdc1") in mounts
    assert [each.kind for each in mounts if each.point == "/mnt"] == ["tmpfs"]
    # Mounted last, frozen first; one place of each; no loop device; "/" last and once.
    order = [each.point for each in freezable_mounts(mounts=mounts)]
    assert order == ["/old", "/srv", "/data/with a\\space", "/data", "/"]
    some = freezable_mounts(["/data", Path("/loop"), "/"], skip=["/data"], mounts=mounts)
    assert [each.point for each in some] == ["/loop", "/"]
    assert freezable_mounts([], mounts=mounts) == ()


def test_what_cannot_be_frozen_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mountinfo").write_bytes(MOUNTINFO)
    mounts = read_mounts(tmp_path / "mountinfo")
    with pytest.raises(InputError, match="'/nowhere' is no mount point"):
        freezable_mounts(["/nowhere"], mounts=mounts)
    with pytest.raises(InputError, match="'/boot/efi' is 'vfat'"):
        freezable_mounts(["/boot/efi"], mounts=mounts)
    with pytest.raises(StorageError, match="cannot read"):
        read_mounts(tmp_path / "none")
    for line in (b"\n", b"1 2 3\n", b"22 1 8:1 / / rw shared:1 ext4 /dev/sda1 rw\n"):
        (tmp_path / "bad").write_bytes(line)
        with pytest.raises(StorageError, match="no known form"):
            read_mounts(tmp_path / "bad")
    with pytest.raises(InputError, match="freeze of 0"):
        FsFreezer((), timeout_s=0)


def test_this_machine_is_read() -> None:
    mounts = read_mounts()
    proc = next(each for each in mounts if each.point == "/proc")
    found = os.stat("/proc").st_dev  # noqa: PTH116
    assert (proc.kind, proc.device) == ("proc", f"{os.major(found)}:{os.minor(found)}")
    assert {each.kind for each in freezable_mounts()} <= {"ext3", "ext4", "xfs", "btrfs"}


NAMES = st.sampled_from(["/", "/a", "/a/b", "/c", "/d"])
ROWS = st.lists(
    st.builds(
        Mount,
        point=NAMES,
        kind=st.sampled_from(["ext4", "xfs", "tmpfs"]),
        device=st.sampled_from(["8:1", "8:2", "8:3"]),
        source=st.sampled_from(["/dev/sda1", "/dev/loop3"]),
    ),
    max_size=6,
    unique_by=lambda each: each.point,
)


@given(ROWS, st.sets(NAMES))
def test_each_file_system_once_and_the_root_last(mounts: list[Mount], skip: set[str]) -> None:
    order = freezable_mounts(skip=skip, mounts=mounts)
    allowed = [
        m for m in mounts
        if m.kind != "tmpfs" and m.source != "/dev/loop3" and m.point not in skip
    ]  # fmt: skip
    assert {m.device for m in order} == {m.device for m in allowed}
    assert len({m.device for m in order}) == len(order)
    assert "/" not in [m.point for m in order[:-1]]
    assert ("/" in [m.point for m in order]) == ("/" in [m.point for m in allowed])
    rest = [m for m in order if m.point != "/"]
    assert rest == sorted(rest, key=mounts.index, reverse=True)


# The watchdog, with ioctls that only note what they are asked, for everybody

FAKE = """
import errno, fcntl, os, runpy, sys, time
def ioctl(file, request, argument):
    point = os.readlink(f"/proc/self/fd/{file}")
    word = {%d: "freeze", %d: "thaw"}[request]
    with open(%r, "a") as log:
        print(word, point, file=log)
    if f"{word} {os.path.basename(point)}" in %r:
        raise OSError(errno.EBUSY, "busy")
    if f"{word} {os.path.basename(point)}" in %r:
        time.sleep(0.5)
fcntl.ioctl = ioctl
sys.argv[0] = %r
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Fake:
    """Mounts that are only folders, and what was asked of them."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self._patch = folder, patch
        self._real = str(module._WATCHDOG)
        self.mounts = []
        for name in ("one", "two", "three"):
            (folder / name).mkdir()
            found = (folder / name).stat().st_dev
            device = f"{os.major(found)}:{os.minor(found)}"
            self.mounts.append(Mount(str(folder / name), "ext4", device))
        self.thawed_here: list[str] = []
        self.behave()

    def behave(self, *, refuse: tuple[str, ...] = (), slow: tuple[str, ...] = ()) -> None:
        log = str(self.folder / "log")
        text = FAKE % (FIFREEZE, FITHAW, log, refuse, slow, self._real)
        (self.folder / "watchdog.py").write_text(text)
        self._patch.setattr(module, "_WATCHDOG", self.folder / "watchdog.py")

        def thaw(point: str) -> bool:
            self.thawed_here.append(Path(point).name)
            return True

        self._patch.setattr(module, "_thaw", thaw)

    @property
    def log(self) -> list[str]:
        try:
            lines = (self.folder / "log").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [f"{line.split()[0]} {Path(line.split()[1]).name}" for line in lines]

    def freezer(self, **settings: Any) -> FsFreezer:
        return FsFreezer(self.mounts, **settings)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    yield Fake(tmp_path, monkeypatch)
    until = time.monotonic() + 10
    while (left := running(tmp_path)) and time.monotonic() < until:
        time.sleep(0.02)
    assert left == []


def running(folder: Path) -> list[str]:
    """Processes whose command line names a folder."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes()
        except OSError:
            continue
        if str(folder).encode() in words and int(file.parent.name) != os.getpid():
            found.append(words.decode("utf-8", "replace"))
    return found


FROZEN = ["freeze one", "freeze two", "freeze three"]
THAWED = ["thaw three", "thaw two", "thaw one"]


def test_freeze_and_thaw(fake: Fake) -> None:
    freezer = fake.freezer()
    assert isinstance(freezer, Freezer)
    assert freezer.thaw() == 0
    assert (freezer.freeze(), fake.log) == (0, FROZEN)
    assert freezer.detail.endswith("/three")
    with pytest.raises(InputError, match="frozen already"):
        freezer.freeze()
    assert (freezer.thaw(), fake.log) == (0, FROZEN + THAWED)
    assert freezer.watchdog is None
    assert (freezer.freeze(), freezer.thaw()) == (0, 0)  # once more
    assert fake.thawed_here == []


def test_nothing_to_freeze() -> None:
    freezer = FsFreezer(())
    assert (freezer.freeze(), freezer.detail, freezer.thaw()) == (0, "no file system to freeze", 0)


def test_it_thaws_by_itself(fake: Fake) -> None:
    freezer = fake.freezer(timeout_s=0.2)
    assert freezer.freeze() == 0
    until = time.monotonic() + 10
    while len(fake.log) < 6 and time.monotonic() < until:
        time.sleep(0.02)
    assert fake.log == FROZEN + THAWED
    assert (freezer.thaw(), freezer.detail) == (122, "thawed by itself after 0.2 s")


def test_one_that_cannot_be_frozen_thaws_the_others(fake: Fake) -> None:
    fake.behave(refuse=("freeze three",))
    freezer = fake.freezer()
    assert (freezer.freeze(), fake.log) == (121, [*FROZEN, "thaw two", "thaw one"])
    assert freezer.detail.endswith("/three' cannot be frozen: Device or resource busy")
    assert freezer.thaw() == 0
    assert fake.thawed_here == []


def test_one_that_cannot_be_opened_freezes_none(fake: Fake) -> None:
    last = fake.mounts[-1]
    fake.mounts[-1] = Mount(f"{last.point}-gone", "ext4", last.device)
    freezer = fake.freezer()
    assert (freezer.freeze(), fake.log) == (123, [])
    assert freezer.detail.endswith("No such file or directory")
    fake.mounts[-1] = Mount(last.point, "ext4", "259:77")
    freezer = fake.freezer()
    assert (freezer.freeze(), fake.log) == (123, [])
    assert freezer.detail.endswith("something else is mounted there now")
    # A subvolume of btrfs has a device of its own, which says nothing.
    fake.mounts[-1] = Mount(last.point, "btrfs", "0:77")
    freezer = fake.freezer()
    assert (freezer.freeze(), freezer.thaw()) == (0, 0)


def test_freezing_that_takes_too_long(fake: Fake) -> None:
    fake.behave(slow=("freeze two",))
    freezer = fake.freezer(freeze_wait_s=0.3)
    assert (freezer.freeze(), freezer.detail) == (122, "it took too long")
    # It was in the middle of it: what it had frozen is thawed as soon as it could be.
    assert [line for line in fake.log if line.startswith("thaw")] == ["thaw two", "thaw one"]
    (fake.folder / "log").unlink()
    freezer = fake.freezer(timeout_s=0.3)
    assert (freezer.freeze(), freezer.detail) == (122, "it took too long")
    assert fake.log == [*FROZEN[:2], "thaw two", "thaw one"]


def test_a_watchdog_that_is_ended_thaws(fake: Fake) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        freezer = fake.freezer()
        assert freezer.freeze() == 0
        assert freezer.watchdog is not None
        os.kill(freezer.watchdog, number)
        until = time.monotonic() + 10
        while len(fake.log) < 6 and time.monotonic() < until:
            time.sleep(0.01)
        assert fake.log == FROZEN + THAWED
        assert (freezer.thaw(), freezer.detail) == (121, "the watchdog was told to end and thawed")
        (fake.folder / "log").unlink()


def test_a_watchdog_that_is_killed_is_stood_in_for(fake: Fake) -> None:
    freezer = fake.freezer()
    assert freezer.freeze() == 0
    assert freezer.watchdog is not None
    os.kill(freezer.watchdog, signal.SIGKILL)
    assert freezer.thaw() == 0
    assert (fake.log, fake.thawed_here) == (FROZEN, ["three", "two", "one"])


def test_a_watchdog_that_is_stopped_is_stood_in_for(fake: Fake) -> None:
    freezer = fake.freezer(thaw_wait_s=0.1)
    assert freezer.freeze() == 0
    pid = freezer.watchdog
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    assert freezer.thaw() == 0
    assert fake.thawed_here == ["three", "two", "one"]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_somebody_else_thawed(fake: Fake) -> None:
    fake.behave(refuse=("thaw two",))
    freezer = fake.freezer()
    assert freezer.freeze() == 0
    assert freezer.thaw() == 121
    assert freezer.detail.endswith("/two' was thawed by others")
    assert fake.log == FROZEN + THAWED


def test_a_caller_that_is_killed(fake: Fake) -> None:
    code = f"""
import sys
from pathlib import Path
from vmbk.consistency import freeze
freeze._WATCHDOG = Path({str(module._WATCHDOG)!r})
freezer = freeze.FsFreezer({fake.mounts!r}, timeout_s=600)
print(freezer.freeze(), flush=True)
sys.stdin.read()
"""
    code = code.replace("Mount(", "freeze.Mount(")
    caller = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert caller.stdout is not None
    assert caller.stdout.readline() == "0\n"
    assert fake.log == FROZEN
    caller.kill()
    caller.communicate()
    until = time.monotonic() + 10
    while len(fake.log) < 6 and time.monotonic() < until:
        time.sleep(0.02)
    assert fake.log == FROZEN + THAWED


def test_without_a_watchdog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    freezer = FsFreezer([Mount("/proc", "ext4", "")])
    monkeypatch.setattr(module, "_WATCHDOG", tmp_path / "none.py")
    assert (freezer.freeze(), freezer.thaw()) == (124, 0)
    assert freezer.detail == "the watchdog cannot be started: it is not installed"
    monkeypatch.setattr(sys, "executable", "/nonesuch")
    monkeypatch.undo()
    (tmp_path / "broken.py").write_text("raise SystemExit(1)")
    monkeypatch.setattr(module, "_WATCHDOG", tmp_path / "broken.py")
    assert (freezer.freeze(), freezer.detail) == (121, "the watchdog ended too early")


def test_a_file_system_that_knows_no_freeze_is_an_error() -> None:
    # /proc cannot be frozen, and nobody but root may ask.
    freezer = FsFreezer([Mount("/proc", "ext4", "")])
    assert freezer.freeze() == 121
    why = errno.EPERM if os.geteuid() else errno.EOPNOTSUPP
    assert freezer.detail == f"'/proc' cannot be frozen: {os.strerror(why)}"


# Real file systems, in mount namespaces of their own, for root

WORLD = r"""
import fcntl, json, os, shutil, signal, subprocess, sys, threading, time
from pathlib import Path
from vmbk.consistency.freeze import FsFreezer, Mount, freezable_mounts, read_mounts
from vmbk.consistency.script_watchdog import FITHAW
from vmbk.consistency.scripts import take_snapshot

folder = Path(sys.argv[1])
outer, inner = folder / "m", folder / "m" / "inner"
outer.mkdir()
subprocess.run(["mount", "-o", "loop", folder / "outer.img", outer], check=True)
inner.mkdir()
subprocess.run(["mount", "-o", "loop", folder / "inner.img", inner], check=True)
found = {}


class Writer(threading.Thread):
    # Writes and syncs without end; how far it has come tells whether it is held up.
    def __init__(self, place):
        super().__init__(daemon=True)
        self.place, self.done, self.over = place, 0, False
        self.start()
    def run(self):
        with open(self.place / "file", "wb", buffering=0) as file:
            while not self.over:
                file.write(os.urandom(4096))
                os.fsync(file.fileno())
                self.done += 1
                time.sleep(0.001)
    def moves(self, seconds=0.1):
        time.sleep(0.05)  # one write may be on its way
        before = self.done
        time.sleep(seconds)
        return self.done > before
    def until_it_moves(self):
        began, before = time.monotonic(), self.done
        while self.done == before and time.monotonic() - began < 20:
            time.sleep(0.005)
        return time.monotonic() - began


def copy(name):
    shutil.copyfile(folder / "outer.img", folder / name)


writer = Writer(outer)
while writer.done < 20:
    time.sleep(0.01)
copy("dirty.img")

# What freezing does
mounts = freezable_mounts([outer, inner])
found["order"] = [each.point for each in mounts]
freezer = FsFreezer(mounts)
found["freeze"] = freezer.freeze()
found["moves while frozen"] = writer.moves()
copy("frozen.img")
found["again"] = FsFreezer(mounts).freeze()  # refused, and must not thaw what is not its own
found["moves after again"] = writer.moves()
found["thaw"] = freezer.thaw()
found["moves when thawed"] = writer.until_it_moves() < 10

# It thaws by itself
freezer = FsFreezer(mounts, timeout_s=0.5)
found["watchdog freeze"] = freezer.freeze()
found["watchdog held"] = not writer.moves()
found["watchdog seconds"] = writer.until_it_moves()
found["watchdog thaw"] = freezer.thaw()

# The inner one is frozen, the outer one is not to be had: the inner one is thawed again.
first = FsFreezer(freezable_mounts([outer]))
first.freeze()
found["second"] = FsFreezer(mounts).freeze()
(inner / "written").write_text("not held up")
found["first"] = first.thaw()

# The caller is killed
caller = subprocess.Popen(
    [sys.executable, "-c", "import sys\n"
     "from vmbk.consistency.freeze import FsFreezer, freezable_mounts\n"
     "print(FsFreezer(freezable_mounts(sys.argv[1:])).freeze(), flush=True)\n"
     "sys.stdin.read()", outer], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
found["caller freeze"] = int(caller.stdout.readline())
found["caller held"] = not writer.moves()
caller.kill()
caller.communicate()
found["caller seconds"] = writer.until_it_moves()

# The watchdog is killed
freezer = FsFreezer(mounts)
freezer.freeze()
os.kill(freezer.watchdog, signal.SIGKILL)
time.sleep(0.05)
found["killed held"] = not writer.moves()
found["killed thaw"] = freezer.thaw()
found["killed moves"] = writer.until_it_moves() < 10

# Somebody else thaws
freezer = FsFreezer(freezable_mounts([outer]))
freezer.freeze()
place = os.open(outer, os.O_RDONLY)
fcntl.ioctl(place, FITHAW, 0)
os.close(place)
found["others thaw"] = freezer.thaw()

# A whole snapshot, and one that Ctrl-C comes into
for name, body in (("pre", "echo quiesced"), ("post", 'echo ran >> "$1"')):
    (folder / name).write_text("#!/bin/sh\n" + body + "\n")
    (folder / name).chmod(0o700)
(folder / "config").write_text(json.dumps({
    "preScriptLocation": str(folder / "pre"), "postScriptLocation": str(folder / "post"),
    "postScriptParams": [str(folder / "ran")]}))
(folder / "config").chmod(0o600)
def snapshot():
    copy("snapshot.img")
    return writer.moves()
run = take_snapshot(folder / "config", snapshot, mounts=[outer], second=0.02)
found["run"] = [run.label, run.state, run.code, run.snapshot, run.frozen_s > 0]
def interrupted():
    found["interrupted held"] = not writer.moves()
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
try:
    take_snapshot(folder / "config", interrupted, mounts=[outer, inner], second=0.02)
except KeyboardInterrupt as error:
    found["interrupted"] = error.__notes__
found["interrupted moves"] = writer.until_it_moves() < 10
found["ran"] = (folder / "ran").read_text()

writer.over = True
writer.join(10)
for place in (inner, outer):
    subprocess.run(["umount", place], check=True)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """What happened to two real file systems; see `WORLD`."""
    if os.geteuid() != 0:
        pytest.skip("only root can freeze a file system")
    try:
        os.close(os.open("/dev/loop-control", os.O_RDWR))
    except OSError as error:
        pytest.skip(f"cannot open /dev/loop-control: {error.strerror}")
    mke2fs = require_tool("mke2fs", "e2fsprogs")
    require_tool("mount", "mount")
    require_tool("e2fsck", "e2fsprogs")
    unshare = require_tool("unshare", "util-linux")
    folder = tmp_path_factory.mktemp("freeze")
    for name in ("outer.img", "inner.img"):
        with (folder / name).open("wb") as file:
            file.truncate(32 * MIB)
        subprocess.run([mke2fs, "-q", "-t", "ext4", folder / name], check=True)
    done = subprocess.run(
        [unshare, "--mount", "--propagation", "private", sys.executable, "-c", WORLD, folder],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    if done.returncode and "mount" in done.stderr and "loop device" in done.stderr:
        pytest.skip(f"no loop device: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def test_a_writer_waits_while_frozen(world: tuple[Path, dict[str, Any]]) -> None:
    folder, found = world
    assert found["order"] == [str(folder / "m/inner"), str(folder / "m")]
    assert (found["freeze"], found["thaw"]) == (0, 0)
    assert not found["moves while frozen"]
    assert found["moves when thawed"]
    # A second one is told no, and leaves the first one's work alone.
    assert (found["again"], found["moves after again"]) == (121, False)
    assert (found["second"], found["first"]) == (121, 0)


def test_a_frozen_image_needs_no_replay(world: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = world
    states = {
        name: Ext4Checker().check(folder / f"{name}.img", CheckContext(tmp_path)).state
        for name in ("dirty", "frozen", "snapshot")
    }
    assert states == {"dirty": "replayed", "frozen": "clean", "snapshot": "clean"}


def test_the_watchdog_releases_real_writers(world: tuple[Path, dict[str, Any]]) -> None:
    _, found = world
    assert (found["watchdog freeze"], found["watchdog thaw"]) == (0, 122)
    assert found["watchdog held"]
    assert found["watchdog seconds"] < 10
    assert (found["caller freeze"], found["caller held"]) == (0, True)
    assert found["caller seconds"] < 10
    assert (found["killed held"], found["killed thaw"], found["killed moves"]) == (True, 0, True)
    assert found["others thaw"] == 121


def test_a_snapshot_of_a_real_file_system(world: tuple[Path, dict[str, Any]]) -> None:
    _, found = world
    assert found["run"] == ["application", "completed", 0, False, True]
    assert found["interrupted held"]
    assert found["interrupted"] == ["the post-script was run: exit code 0"]
    assert found["interrupted moves"]
    assert found["ran"] == "ran\nran\n"


def test_nothing_is_left_of_it(world: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = world
    until = time.monotonic() + 10
    while (left := left_by(folder)) and time.monotonic() < until:
        time.sleep(0.05)
    assert left == []


def left_by(folder: Path) -> list[str]:
    found = running(folder)
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            found += [str(file)] if str(folder) in file.read_text() else []
        except OSError:
            continue  # it has gone meanwhile
    return found
