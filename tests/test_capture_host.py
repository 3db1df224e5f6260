"""Captures on this machine: programs on a recorded disk, and the block events of a device."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3

from tests.test_capture import naive_image
from tests.tools import require_tool
from vmbk.cli.program import run
from vmbk.errors import (
    InputError,
    IntegrityError,
    NotFoundError,
    StorageError,
    ToolMissingError,
    UnknownFormatError,
    VmbkError,
)
from vmbk.trace.capture import guest, host
from vmbk.trace.capture import tracefs as events
from vmbk.trace.capture.host import capture_host
from vmbk.trace.capture.order import order_daemon
from vmbk.trace.capture.tracefs import Device, capture_device, find_device, read_events
from vmbk.trace.schema import Op
from vmbk.trace.store import read_trace

MIB = 1 << 20


def require_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can capture on this machine")


def require_host() -> None:
    """What a capture on this machine needs: rights and devices, or skip; tools as everywhere."""
    require_root()
    for device in ("/dev/fuse", "/dev/loop-control"):
        try:
            os.close(os.open(device, os.O_RDWR))
        except OSError as error:
            pytest.skip(f"cannot open {device}: {error.strerror}")
    for name, package in (
        ("qemu-storage-daemon", "qemu-system-common"),
        ("losetup", "mount"),
        ("unshare", "util-linux"),
        ("mke2fs", "e2fsprogs"),
        ("mkfs.xfs", "xfsprogs"),
    ):
        require_tool(name, package)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where captures keep their temporary files; checked to hold nothing of them afterwards."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield folder
    assert left_by(folder) == []
    assert list(folder.iterdir()) == []


def left_by(folder: Path) -> list[str]:
    """Mounts, loop devices and processes that have to do with a folder."""
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    found = [line for line in mounts if str(folder) in line]
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if str(folder) in file.read_text():
                found.append(str(file))
        except OSError:
            continue  # it has gone meanwhile
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = process.read_bytes()
        except OSError:
            continue
        if str(folder).encode() in words and int(process.parent.name) != os.getpid():
            found.append(str(words))
    return found


# A program on a recorded disk

COMMITS = """
import os, sqlite3, subprocess
database = sqlite3.connect("data.db", isolation_level=None)
database.execute("PRAGMA journal_mode=WAL")
database.execute("PRAGMA synchronous=FULL")
database.execute("PRAGMA wal_autocheckpoint=20")
database.execute("CREATE TABLE commits(n INTEGER PRIMARY KEY, body BLOB NOT NULL)")
subprocess.run(["mark", "table made"], check=True)
for n in range(1, 61):
    database.execute("INSERT INTO commits VALUES(?, ?)", (n, os.urandom(3000)))
    subprocess.run(["mark", f"commit {n}"], check=True)
database.close()
"""


def rows_of(image: Path) -> list[int]:
    """The commits in the database of an ext4 image, after its journal's replay."""
    e2fsck = require_tool("e2fsck", "e2fsprogs")
    debugfs = require_tool("debugfs", "e2fsprogs")
    assert subprocess.run([e2fsck, "-fy", image], capture_output=True).returncode in (0, 1)
    folder = image.parent / f"{image.name}-files"
    folder.mkdir()
    for name in ("data.db", "data.db-wal"):
        dump = [debugfs, "-R", f"dump /{name} {folder / name}", image]
        subprocess.run(dump, capture_output=True, check=True)
    database = sqlite3.connect(folder / "data.db")
    try:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return [n for (n,) in database.execute("SELECT n FROM commits ORDER BY n")]
    finally:
        database.close()


def test_sqlite_commits_at_native_speed(tmp_path: Path, scratch: Path) -> None:
    require_host()
    trace = capture_host(
        [sys.executable, "-c", COMMITS], tmp_path / "t.parquet", size=64 * MIB, keep=tmp_path
    )
    final = (tmp_path / "volume.raw").read_bytes()
    assert len(final) == trace.volumes[0].size == 64 * MIB
    assert naive_image(trace) == final
    assert trace.provenance["image_digest"] == blake3(final).hexdigest()
    assert read_trace(tmp_path / "t.parquet").digest == trace.digest
    assert (trace.metadata.source_format, trace.metadata.clock) == ("capture", "polled")
    assert "/" not in trace.provenance["program"]
    labels = [label for _, label in trace.marks()]
    assert labels == [
        "mkfs done", "mounted", "workload begins", "table made",
        *(f"commit {n}" for n in range(1, 61)), "workload ends", "unmounted",
    ]  # fmt: skip
    # Each commit is acknowledged after it was flushed, and is in the disk cut at its mark.
    rows = {label: row for row, label in trace.marks()}
    for n in range(2, 61):
        ops = trace.requests.op[rows[f"commit {n - 1}"] : rows[f"commit {n}"]]
        assert Op.WRITE in ops
        assert Op.FLUSH in ops
    for n in (1, 17, 60):
        image = tmp_path / f"cut-{n}"
        image.write_bytes(naive_image(trace, rows[f"commit {n}"]))
        assert rows_of(image) == list(range(1, n + 1))


def test_a_program_may_write_to_the_device_itself(tmp_path: Path, scratch: Path) -> None:
    require_host()
    script = "mark \"quoted '$' ü\"; printf hello | dd of=$VMBK_DEVICE bs=512 seek=9 conv=notrunc"
    trace = capture_host(
        ["sh", "-c", script], tmp_path / "t.arrow", size=8 * MIB, filesystem="none", keep=tmp_path
    )
    final = (tmp_path / "volume.raw").read_bytes()
    assert naive_image(trace) == final
    assert final.rstrip(b"\0") == bytes(512 * 9) + b"hello"
    labels = [label for _, label in trace.marks()]
    assert labels == ["workload begins", "quoted '$' ü", "workload ends"]


def test_programs_side_by_side(tmp_path: Path, scratch: Path) -> None:
    require_host()
    script = """
    work() {
        mkdir $1
        for n in $(seq 1 20); do
            head -c $((n * 3000)) /dev/urandom > $1/$n
            fallocate -z -o 8192 -l 16384 $1/$n
            case $n in *5) sync $1/$n; rm $1/$((n - 1)) ;; *0) fstrim . ;; esac
            mark "$1 $n"
        done
    }
    for i in a b c; do work $i & done
    wait
    """
    trace = capture_host(["sh", "-euc", script], tmp_path / "t.arrow", size=64 * MIB, keep=tmp_path)
    assert naive_image(trace) == (tmp_path / "volume.raw").read_bytes()
    labels = [label for _, label in trace.marks()]
    for name in "abc":
        assert [x for x in labels if x[:2] == f"{name} "] == [f"{name} {n}" for n in range(1, 21)]


def test_xfs_discards_and_processes_left_behind(tmp_path: Path, scratch: Path) -> None:
    require_host()
    script = """
    test "$PWD" = "$VMBK_MOUNT" && grep -q " $VMBK_MOUNT xfs " /proc/mounts
    head -c 3000000 /dev/urandom > big && sync && rm big && sync && fstrim .
    echo kept > small
    (trap '' TERM; exec sleep 300 > held) &
    """
    began = time.monotonic()
    trace = capture_host(
        ["sh", "-euc", script],
        tmp_path / "t.arrow",
        size=320 * MIB,
        filesystem="xfs",
        keep=tmp_path,
    )
    assert time.monotonic() - began < 60
    assert Op.DISCARD in trace.requests.op
    assert naive_image(trace) == (tmp_path / "volume.raw").read_bytes()


@pytest.mark.parametrize(
    ("command", "quoted"),
    [
        (["sh", "-c", "echo x > file; exit 7"], "exit code 7"),
        (["sh", "-c", "kill -9 $$"], "exit code 137"),
        (["mark"], "exit code 2"),
        (["mark", "two\nlines"], "exit code 2"),
        (["mark", "x" * 4097], "exit code 2"),
        (["sh", "-c", "umount -l $VMBK_MOUNT; losetup -d $VMBK_DEVICE"], "umount failed"),
    ],
)
def test_a_command_that_fails_leaves_nothing(
    command: list[str], quoted: str, tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_host()
    if command[0] == "mark":  # in the path of the command only
        command = ["sh", "-c", 'mark "$@"', "sh", *command[1:]]
    with pytest.raises(VmbkError, match=quoted) as caught:
        capture_host(command, tmp_path / "t.arrow", size=16 * MIB)
    assert str(tmp_path) not in str(caught.value)
    assert not (tmp_path / "t.arrow").exists()


def test_the_longest_mark_is_whole(tmp_path: Path, scratch: Path) -> None:
    require_host()
    label = "ü" * 2048
    trace = capture_host(
        ["sh", "-c", f"mark {label}; i=0; while [ $i -lt 300 ]; do mark $i; i=$((i + 1)); done"],
        tmp_path / "t.arrow",
        size=8 * MIB,
        filesystem="none",
    )
    labels = [text for _, text in trace.marks()]
    assert labels[1] == label
    assert labels[2:-1] == [str(i) for i in range(300)]  # more than the area has room for


def test_a_full_disk_of_this_machine_is_said(
    tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_host()
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", small], check=True)
    try:
        monkeypatch.setattr("tempfile.tempdir", str(small))
        for end in ("conv=fsync", ""):  # noticed by the command, and not
            command = ["sh", "-c", f"dd if=/dev/urandom of=x bs=1M count=40 {end}"]
            with pytest.raises(StorageError, match="left for the recorded disk") as caught:
                capture_host(command, tmp_path / "t.arrow", size=64 * MIB)
            assert "TMPDIR" in caught.value.hint
            assert left_by(small) == [
                line for line in Path("/proc/self/mounts").read_text().splitlines()
                if str(small) in line
            ]  # fmt: skip
            assert list(small.iterdir()) == []
        assert not (tmp_path / "t.arrow").exists()
    finally:
        subprocess.run(["umount", small], check=True)


def started(folder: Path, out: Path) -> subprocess.Popen[str]:
    """A process that captures a command without end, once the command runs."""
    code = (
        "import sys; from vmbk.trace.capture.host import capture_host;"
        "capture_host(['sh', '-c', 'echo begun >&2; sleep 600'], sys.argv[1], size=16 << 20)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(out)],
        stderr=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(folder)},
    )  # fmt: skip
    assert process.stderr is not None
    assert process.stderr.readline() == "begun\n"
    assert left_by(folder)
    return process


def gone(folder: Path) -> bool:
    """Whether, after a while, nothing of a capture is left but files."""
    until = time.monotonic() + 20
    while left_by(folder) and time.monotonic() < until:
        time.sleep(0.1)
    return left_by(folder) == []


def test_an_interrupt_takes_everything_down(tmp_path: Path, scratch: Path) -> None:
    require_host()
    process = started(scratch, tmp_path / "t.arrow")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in said
    assert gone(scratch)
    assert not (tmp_path / "t.arrow").exists()


def test_a_capture_that_is_killed_leaves_nothing_mounted(tmp_path: Path) -> None:
    require_host()
    folder = tmp_path / "scratch"
    folder.mkdir()
    process = started(folder, tmp_path / "t.arrow")
    process.kill()
    process.communicate(timeout=60)
    assert gone(folder)


def test_a_daemon_that_dies_is_an_error(tmp_path: Path, scratch: Path) -> None:
    require_host()
    process = started(scratch, tmp_path / "t.arrow")
    (pid,) = (int(file.read_text()) for file in scratch.glob("vmbk-host-*/daemon.pid"))
    os.kill(pid, signal.SIGKILL)
    # The sleeping command does not notice; end it as it would end on a disk that fails.
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if words == b"sleep\x00600\x00" and b"host.sh" in grandparent(int(entry.name)):
            os.kill(int(entry.name), signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert "qemu-storage-daemon ended too early" in said
    assert gone(scratch)


def grandparent(pid: int) -> bytes:
    """The command line of a process's parent's parent."""
    for _ in range(2):
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "t.arrow"
    with pytest.raises(InputError, match="is no command"):
        capture_host([], out)
    with pytest.raises(InputError, match="is no command"):
        capture_host("true", out)
    with pytest.raises(InputError, match="holds a NUL"):
        capture_host(["true", "a\0b"], out)
    with pytest.raises(NotFoundError, match="no program 'nonesuch'"):
        capture_host(["nonesuch"], out)
    for size in (0, MIB, 8 * MIB + 512, 1 << 41):
        with pytest.raises(InputError, match=f"size {size} is not"):
            capture_host(["true"], out, size=size)
    with pytest.raises(InputError, match="too small for xfs"):
        capture_host(["true"], out, size=64 * MIB, filesystem="xfs")
    with pytest.raises(InputError, match="'btrfs' is no file system"):
        capture_host(["true"], out, filesystem="btrfs")
    with pytest.raises(UnknownFormatError):
        capture_host(["true"], tmp_path / "t.csv")
    with pytest.raises(NotFoundError, match="to keep"):
        capture_host(["true"], out, keep=tmp_path / "none")


def test_who_is_not_root_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(InputError, match="only root"):
        capture_host(["true"], tmp_path / "t.arrow")
    with pytest.raises(InputError, match="only root"):
        capture_device("/dev/null", tmp_path / "t.arrow", seconds=1)


def test_a_missing_program_names_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(guest, "_SEARCH", "")
    with pytest.raises(ToolMissingError, match="apt-get install"):
        capture_host(["true"], tmp_path / "t.arrow")
    with pytest.raises(ToolMissingError, match="apt-get install qemu-system-common"):
        order_daemon(2, tmp_path)


@pytest.mark.parametrize("module", ["fuse", "loop"])
def test_a_missing_device_is_named(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_host()
    monkeypatch.setattr(host, "_DEVICES", {module: "/dev/nonesuch"})
    with pytest.raises(StorageError, match="cannot open /dev/nonesuch") as caught:
        capture_host(["true"], tmp_path / "t.arrow")
    assert f"module {module}" in caught.value.hint


# The command line


def test_the_command_line_captures_a_program(tmp_path: Path, scratch: Path) -> None:
    require_host()
    out = tmp_path / "t.arrow"
    script = 'echo told; mark "$1 $2"; echo content > file'
    answer = run(
        ["--json", "trace", "capture", "--host", "--size", "16MiB", "-o", str(out), "--", "sh",
         "-c", script, "sh", "--", "-o"],
    )  # fmt: skip
    reply = json.loads(answer.out)
    assert reply["format"] == "capture"
    assert reply["volumes"] == [{"id": 0, "name": "disk", "size": 16 * MIB, "sector_size": 512}]
    assert "-- -o" in [label for _, label in read_trace(out).marks()]


@pytest.mark.parametrize(
    ("words", "quoted"),
    [
        ([], "not said what to capture"),
        (["--host"], "--host needs a command"),
        (["--host", "--"], "--host needs a command"),
        (["--host", "ext4-sqlite", "--", "true"], "RECIPE 'ext4-sqlite' do not go together"),
        (["--host", "--seconds", "3", "--", "true"], "--seconds 3.0 do not go together"),
        (["--host", "--device", "/dev/vda", "--", "true"], "not allowed with"),
        (["--host", "--fs", "zfs", "--", "true"], "zfs"),
        (["--device", "/dev/vda", "--fs", "xfs", "--", "true"], "do not go together"),
        (["--device", "/dev/vda", "--seconds", "soon"], "'soon' is not a duration"),
        (["ext4-sqlite", "--", "true"], "cannot be run in it"),
        (["ext4-sqlite", "--size", "1GiB"], "do not go together"),
    ],
)
def test_the_command_line_refuses(words: list[str], quoted: str, tmp_path: Path) -> None:
    answer = run(["trace", "capture", "-o", str(tmp_path / "t.arrow"), *words])
    assert answer.code == 2
    assert quoted in answer.err
    assert not (tmp_path / "t.arrow").exists()


# Block events

DISK = Device("loop0", 7 << 20, 64 * MIB, 512, "block_rq_issue")
# As Linux 6.18 wrote it.
RECORDED = """\
              dd-1616    [001] .....  7552.263147: block_rq_issue: 7,0 WS 4096 () 40 + 8 be,0,4 [dd]
              dd-1616    [000] .....  7552.276386: block_rq_issue: 7,0 WS 4096 () 56 + 8 be,0,4 [dd]
    kworker/0:1H-58      [000] .....  7552.277102: block_rq_issue: 7,0 FF 0 () 0 + 0 none,0,0 [kworker/0:1H]
              dd-1617    [000] .....  7552.282945: block_rq_issue: 7,0 RS 65536 () 0 + 128 be,0,4 [dd]
    kworker/0:1H-58      [000] .N...  7552.315665: block_rq_issue: 7,0 DS 65536 () 2048 + 128 be,0,4 [kworker/0:1H]
"""  # noqa: E501


def require_importer() -> None:
    from vmbk.trace.formats import FORMATS

    if "tracefs" not in FORMATS:
        pytest.skip("the importer of tracefs is not there")


def test_recorded_events_become_a_trace(tmp_path: Path) -> None:
    require_importer()
    (tmp_path / "events").write_text(RECORDED)
    trace = read_events(tmp_path / "events", DISK, {"by": "us"})
    r = trace.requests
    assert r.op.tolist() == [Op.WRITE, Op.WRITE, Op.FLUSH, Op.READ, Op.DISCARD]
    assert r.offset.tolist() == [40 * 512, 56 * 512, 0, 0, 2048 * 512]
    assert r.length.tolist() == [4096, 4096, 0, 65536, 65536]
    assert r.time_ns.tolist() == [0, 13_239_000, 13_955_000, 19_798_000, 52_518_000]
    (volume,) = trace.volumes
    assert (volume.name, volume.size, volume.sector_size) == ("loop0", 64 * MIB, 512)
    assert (trace.metadata.source_format, trace.metadata.clock) == ("tracefs", "exact")
    assert trace.provenance == {"by": "us"}


def test_no_events_are_a_trace_without_requests(tmp_path: Path) -> None:
    require_importer()
    (tmp_path / "events").write_text("")
    trace = read_events(tmp_path / "events", DISK, {})
    assert (len(trace), trace.volumes[0].name) == (0, "loop0")


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Path]:
    """A block device of our own."""
    require_root()
    losetup = require_tool("losetup", "mount")
    with (tmp_path / "image").open("wb") as file:
        file.truncate(64 * MIB)
    told = subprocess.run(
        [losetup, "--find", "--show", tmp_path / "image"], capture_output=True, text=True
    )
    if told.returncode:
        pytest.skip(f"no loop device: {told.stderr.strip()}")
    yield Path(told.stdout.strip())
    subprocess.run([losetup, "--detach", told.stdout.strip()], check=True)


def test_a_devices_requests_are_recorded(loop: Path, tmp_path: Path, scratch: Path) -> None:
    require_importer()
    script = f"""
    dd if=/dev/urandom of={loop} bs=4096 count=3 seek=5 oflag=direct conv=fsync,notrunc
    dd if={loop} of=/dev/null bs=65536 count=1 iflag=direct
    blkdiscard -o 1048576 -l 65536 {loop}
    """
    try:
        trace = capture_device(
            loop, tmp_path / "t.arrow", seconds=60, command=["sh", "-euc", script], keep=tmp_path
        )
    except StorageError as error:
        pytest.skip(str(error))
    r = trace.requests
    of = {op: list(zip(r.offset[r.op == op].tolist(), r.length[r.op == op].tolist(), strict=True))
          for op in Op}  # fmt: skip
    assert of[Op.WRITE] == [(20480, 4096), (24576, 4096), (28672, 4096)]
    assert (0, 65536) in of[Op.READ]
    assert of[Op.DISCARD] == [(1048576, 65536)]
    assert len(of[Op.FLUSH]) >= 1
    assert np.flatnonzero(r.op == Op.FLUSH)[0] > np.flatnonzero(r.op == Op.WRITE)[2]
    assert (trace.metadata.source_format, trace.metadata.clock) == ("tracefs", "exact")
    assert not trace.has_payload
    assert trace.volumes[0].name == loop.name
    assert read_trace(tmp_path / "t.arrow").digest == trace.digest
    assert "block_rq_issue" in (tmp_path / "events").read_text()


def test_recording_for_a_time_ends_the_command(loop: Path, tmp_path: Path, scratch: Path) -> None:
    require_importer()
    began = time.monotonic()
    try:
        trace = capture_device(loop, tmp_path / "t.arrow", seconds=0.5, command=["sleep", "600"])
    except StorageError as error:
        pytest.skip(str(error))
    assert time.monotonic() - began < 20
    assert len(trace) == 0
    with pytest.raises(VmbkError, match="exit code 3"):
        capture_device(loop, tmp_path / "u.arrow", command=["sh", "-c", "exit 3"])
    assert not (tmp_path / "u.arrow").exists()


def test_lost_events_are_an_integrity_error(
    loop: Path, tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_BUFFER_KIB", 4)
    monkeypatch.setattr(events, "_LOOK_S", 1.5)
    command = ["dd", f"if={loop}", "of=/dev/null", "bs=512", "count=4000", "iflag=direct"]
    try:
        with pytest.raises(IntegrityError, match=r"the kernel lost [1-9]"):
            capture_device(loop, tmp_path / "t.arrow", seconds=2, command=command)
    except StorageError as error:
        pytest.skip(str(error))


def test_a_kernel_without_tracefs_is_told(
    loop: Path, tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "TRACEFS", ())
    fake = tmp_path / "mount"
    fake.write_text("#!/bin/sh\necho 'mount: unknown filesystem type' >&2\nexit 32\n")
    fake.chmod(0o755)
    monkeypatch.setattr(events, "find_program", lambda name, package: fake)
    with pytest.raises(StorageError, match="no tracefs: mount: unknown filesystem type"):
        capture_device(loop, tmp_path / "t.arrow", seconds=1)
    (tmp_path / "place/instances").mkdir(parents=True)
    monkeypatch.setattr(events, "TRACEFS", (tmp_path / "place",))
    with pytest.raises(StorageError, match="no block events"):
        capture_device(loop, tmp_path / "t.arrow", seconds=1)


def test_what_is_no_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    out = tmp_path / "t.arrow"
    with pytest.raises(InputError, match="not said how long"):
        capture_device("/dev/null", out)
    with pytest.raises(InputError, match="is no block device"):
        capture_device("/dev/null", out, seconds=1)
    with pytest.raises(NotFoundError, match="no device '/dev/nonesuch'"):
        capture_device("/dev/nonesuch", out, seconds=1)
    for seconds in (0.0, -1.0, float("nan"), 1e9):
        with pytest.raises(InputError, match="up to a week"):
            capture_device("/dev/null", out, seconds=seconds)
    with pytest.raises(NotFoundError, match="no program"):
        capture_device("/dev/null", out, command=["nonesuch"])
    with pytest.raises(InputError, match="is no command"):
        capture_device("/dev/null", out, command=[])
    with pytest.raises(UnknownFormatError):
        capture_device("/dev/null", tmp_path / "t.csv", seconds=1)


def test_a_partition_names_its_disk(loop: Path, tmp_path: Path) -> None:
    told = loop.stat().st_rdev
    place = tmp_path / "sys/devices/block/sda/sda1"
    place.mkdir(parents=True)
    (place / "partition").write_text("1\n")
    links = tmp_path / "sys/dev/block"
    links.mkdir(parents=True)
    (links / f"{os.major(told)}:{os.minor(told)}").symlink_to(place)
    with pytest.raises(InputError, match="is a partition") as caught:
        find_device(loop, tmp_path / "sys")
    assert "/dev/sda" in caught.value.hint
    real = find_device(loop)
    assert (real.size, real.event) == (64 * MIB, "block_rq_issue")
