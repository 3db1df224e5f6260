"""Capturing real guests: recipes, the guest's parts, marks and times, and whole captures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.test_dm_log_writes import DISCARD, FLUSH, Entry, write_log
from tests.tools import require_guest, require_kernel, require_tool
from vmbk.errors import (
    InputError,
    IntegrityError,
    NotFoundError,
    OutOfRangeError,
    ToolMissingError,
    TraceFormatError,
    UnknownFormatError,
    VmbkError,
)
from vmbk.trace.capture import Recipe, assemble, capture, guest, recipes
from vmbk.trace.capture.guest import (
    Archive,
    build_initramfs,
    find_kernel,
    find_program,
    module_files,
    shared_libraries,
)
from vmbk.trace.capture.machine import Run
from vmbk.trace.schema import Op, Volume
from vmbk.trace.store import Trace, read_trace

MIB = 1 << 20


def naive_image(trace: Trace, stop: int | None = None) -> bytes:
    """The volume after the first ``stop`` requests: what a disk is, one request after another."""
    image = bytearray(trace.volumes[0].size)
    r = trace.requests
    for i in range(len(trace) if stop is None else stop):
        offset, end = int(r.offset[i]), int(r.offset[i] + r.length[i])
        if r.op[i] == Op.WRITE:
            payload = trace.payload(i)
            assert payload is not None
            image[offset:end] = payload
        elif r.op[i] in (Op.DISCARD, Op.WRITE_ZEROES):
            image[offset:end] = bytes(end - offset)
    return bytes(image)


# Recipes

TOML = """
doc = "A test."
volume_size = "16MiB"
mkfs = ["mke2fs", "-q", "-F", "-t", "ext4"]
timeout = "2m"
[programs]
mke2fs = "e2fsprogs"
[environment]
TEXT = "it's here"
"""


def own_recipe(folder: Path, script: str, toml: str = TOML) -> Path:
    (folder / "own.toml").write_text(toml)
    (folder / "own.sh").write_text(script)
    return folder / "own.toml"


def test_shipped_recipes_load() -> None:
    assert {"ext4-fragmented", "ext4-postgresql", "ext4-sqlite", "xfs-sqlite"} <= set(recipes())
    for name in recipes():
        recipe = Recipe.load(name)
        assert recipe.disks
        assert recipe.doc
        assert recipe.doc.count("\n") == 0
    assert len({Recipe.load(name).digest for name in recipes()}) == len(recipes())


def test_an_own_recipe_is_named_by_its_path(tmp_path: Path) -> None:
    recipe = Recipe.load(own_recipe(tmp_path, "true\n"))
    assert (recipe.name, recipe.script, recipe.timeout_s) == ("own", "true\n", 120.0)
    assert recipe.digest != replace(recipe, script="false\n").digest


def test_what_scripts_share_stands_in_a_file_beside_them(tmp_path: Path) -> None:
    own = own_recipe(tmp_path, "a\n#include both.sh\n#include ../own.toml\n #include no.sh\n")
    with pytest.raises(NotFoundError, match=r"both\.sh"):
        Recipe.load(own)
    (tmp_path / "both.sh").write_text("b '\\1'\n")
    assert Recipe.load(own).script == "a\nb '\\1'\n#include ../own.toml\n #include no.sh\n"
    (tmp_path / "own.sh").write_text("#include both.sh")
    assert Recipe.load(own).script == "b '\\1'\n"


@pytest.mark.parametrize(
    ("old", "new", "quoted"),
    [
        ("doc =", "documentation =", r"unknown keys \['documentation'\]"),
        ('"16MiB"', "16", "volume_size is 16"),
        ('"16MiB"', '"4MiB"', "volume size 4194304"),
        ('"16MiB"', '"100000000"', "volume size 100000000"),
        ('"2m"', '"0s"', "timeout 0.0 s"),
        ('"2m"', '"soon"', "'soon' is not a duration"),
        ('"-q"', "7", "mkfs is"),
        ('["mke2fs", ', '["mkfs.xfs", ', "mkfs begins with no program"),
        ("TEXT", '"A-B"', "'A-B' is no variable's name"),
        ("volume_size", "volume size", "cannot read the recipe"),
    ],
)
def test_bad_recipes_are_refused(old: str, new: str, quoted: str, tmp_path: Path) -> None:
    assert old in TOML
    with pytest.raises(InputError, match=quoted):
        Recipe.load(own_recipe(tmp_path, "true\n", TOML.replace(old, new)))


def test_recipes_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no recipe 'ext5'") as caught:
        Recipe.load("ext5")
    assert "ext4-sqlite" in caught.value.hint
    with pytest.raises(NotFoundError, match=r"none\.toml"):
        Recipe.load(tmp_path / "none.toml")
    own_recipe(tmp_path, "").with_suffix(".sh").unlink()
    with pytest.raises(NotFoundError, match=r"own\.sh"):
        Recipe.load(tmp_path / "own.toml")


# The guest's parts


def test_an_archive_is_what_cpio_reads(tmp_path: Path) -> None:
    import gzip

    cpio = require_tool("cpio", "cpio")
    archive = Archive()
    archive.add("a/b/three", 0o100755, b"abc")
    archive.add("a/b/empty", 0o100644)
    archive.add("a/link", 0o120777, b"b/three")
    archive.add("a/b/three", 0o100644, b"the second of a name does not count")
    raw = gzip.decompress(archive.compressed())
    subprocess.run([str(cpio), "-idm", "--quiet"], input=raw, cwd=tmp_path, check=True)
    assert (tmp_path / "a/b/three").read_bytes() == b"abc"
    assert (tmp_path / "a/b/three").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "a/b/empty").read_bytes() == b""
    assert (tmp_path / "a/link").readlink() == Path("b/three")


def fake_kernels(folder: Path, *releases: str) -> tuple[Path, Path]:
    boot, modules = folder / "boot", folder / "modules"
    boot.mkdir()
    for release in releases:
        (boot / f"vmlinuz-{release}").touch()
        (modules / release).mkdir(parents=True)
        (modules / release / "modules.dep").write_text(
            "kernel/c.ko: kernel/b-2.ko kernel/a.ko.xz\nkernel/b-2.ko: kernel/a.ko.xz\n"
            "kernel/a.ko.xz:\nkernel/d.ko: kernel/a.ko.xz\n"
        )
        (modules / release / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\n")
    return boot, modules


def test_the_newest_kernel_with_modules_is_taken(tmp_path: Path) -> None:
    boot, modules = fake_kernels(
        tmp_path, "6.1.0-9-cloud-amd64", "6.1.0-10-cloud-amd64", "6.2.0-1-amd64"
    )
    (boot / "vmlinuz-7.0.0-1-cloud-amd64").touch()  # without modules
    assert find_kernel(boot, modules).release == "6.1.0-10-cloud-amd64"


def test_no_kernel_names_the_package(tmp_path: Path) -> None:
    with pytest.raises(ToolMissingError, match="apt-get install linux-image-cloud-amd64"):
        find_kernel(tmp_path, tmp_path)


def test_modules_come_after_what_they_need(tmp_path: Path) -> None:
    kernel = find_kernel(*fake_kernels(tmp_path, "6.1.0-9-cloud-amd64"))
    names = [path.name for path in module_files(kernel, ["c", "ext4", "b_2", "d"])]
    assert names == ["a.ko.xz", "b-2.ko", "c.ko", "d.ko"]
    with pytest.raises(VmbkError, match="no module 'zfs'"):
        module_files(kernel, ["zfs"])


def test_a_missing_program_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest, "_SEARCH", "")
    with pytest.raises(ToolMissingError, match="apt-get install qemu-system-x86"):
        find_program("qemu-system-x86_64", "qemu-system-x86")


def test_a_missing_tool_skips_a_test_or_fails_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest, "_SEARCH", "")
    monkeypatch.delenv("VMBK_REQUIRE_TOOLS", raising=False)
    with pytest.raises(pytest.skip.Exception, match="apt-get install e2fsprogs"):
        require_tool("e2fsck", package="e2fsprogs")
    monkeypatch.setenv("VMBK_REQUIRE_TOOLS", "1")
    with pytest.raises(pytest.fail.Exception, match="apt-get install e2fsprogs"):
        require_tool("e2fsck", package="e2fsprogs")


def test_the_guest_has_what_its_programs_need() -> None:
    import gzip

    require_guest()
    cpio = require_tool("cpio", "cpio")
    recipe = Recipe.load("ext4-sqlite")
    raw = gzip.decompress(build_initramfs(recipe, require_kernel()))
    listed = subprocess.run(
        [str(cpio), "-t", "--quiet"], input=raw, capture_output=True, check=True
    )
    names = set(listed.stdout.decode().split())
    assert {
        "init",
        "settings",
        "workload",
        "bin/sh",
        "bin/mke2fs",
        "modules/virtio_blk.ko",
    } <= names
    for program in ("mke2fs", "sqlite3"):
        libraries = shared_libraries(find_program(program, program))
        assert any(library.name.startswith("libc.so") for library in libraries)
        assert {str(library).lstrip("/") for library in libraries} <= names


# Marks and times


def block(text: str) -> bytes:
    return text.encode().ljust(4096, b"\0")


END = 8 * MIB // 512  # first sector of the mark area
GUEST: list[Entry] = [
    (0, 8, 0, block("data")),
    (0, 0, FLUSH, b""),
    (END, 8, 0, block("commit 1")),
    (END - 8, 8, 0, block("the volume's last block")),
    (END + 8, 8, 0, block("commit 2 ü")),
]


VOLUME = Volume(0, "disk", 8 * MIB)


def guest_run(folder: Path, entries: list[Entry], marks: list[str]) -> Run:
    (folder / "log").write_bytes(write_log(entries))
    return Run(
        log=folder / "log",
        disks=(folder / "none",),
        marks=marks,
        sample_ns=np.array([100, 250, 700, 900]),
        sample_bytes=np.array([512, 512 + 4608, 512 + 4608 * 2 + 512 + 100, 1 << 30]),
        seconds=1.0,
        qemu="7.2",
    )


def test_writes_behind_the_volume_become_marks(tmp_path: Path) -> None:
    trace = assemble(guest_run(tmp_path, GUEST, ["commit 1", "commit 2 ü"]), [VOLUME], {"by": "us"})
    assert trace.marks() == [(2, "commit 1"), (4, "commit 2 ü")]
    assert trace.requests.op.tolist() == [Op.WRITE, Op.FLUSH, Op.MARK, Op.WRITE, Op.MARK]
    assert trace.requests.offset.tolist() == [0, 0, 0, 8 * MIB - 4096, 0]
    assert trace.requests.length.tolist() == [4096, 0, 0, 4096, 0]
    assert trace.volumes[0].size == 8 * MIB
    assert (trace.metadata.clock, trace.provenance) == ("polled", {"by": "us"})


def test_a_request_has_the_time_at_which_the_log_was_first_seen_to_hold_it(tmp_path: Path) -> None:
    trace = assemble(guest_run(tmp_path, GUEST, ["commit 1", "commit 2 ü"]), [VOLUME], {})
    # Entries end at 5120, 5632, 10240, 14848 and 19456; sizes seen were 512, 5120, 10340, all.
    assert trace.requests.time_ns.tolist() == [0, 450, 450, 650, 650]


@pytest.mark.parametrize(
    "told", [["commit 1"], ["commit 2 ü", "commit 1"], ["commit 1", "commit 2 ü", "commit 3"]]
)
def test_marks_that_were_not_acknowledged_so_are_an_integrity_error(
    told: list[str], tmp_path: Path
) -> None:
    with pytest.raises(IntegrityError, match=f"acknowledged {len(told)}"):
        assemble(guest_run(tmp_path, GUEST, told), [VOLUME], {})


@pytest.mark.parametrize(
    ("entry", "error"),
    [((END - 4, 8, 0, block("x")), OutOfRangeError), ((END, 8, DISCARD, b""), TraceFormatError)],
)
def test_other_requests_behind_the_volume_are_refused(
    entry: Entry, error: type[VmbkError], tmp_path: Path
) -> None:
    with pytest.raises(error):
        assemble(guest_run(tmp_path, [*GUEST, entry], ["commit 1", "commit 2 ü"]), [VOLUME], {})


# Whole captures


def test_where_a_capture_cannot_be_stored_is_said_before_the_guest_boots(tmp_path: Path) -> None:
    recipe = own_recipe(tmp_path, "true\n")
    began = time.monotonic()
    with pytest.raises(UnknownFormatError):
        capture(recipe, tmp_path / "t.csv")
    with pytest.raises(NotFoundError):
        capture(recipe, tmp_path / "none" / "t.arrow")
    with pytest.raises(NotFoundError, match="to keep"):
        capture(recipe, tmp_path / "t.arrow", keep=tmp_path / "none")
    assert time.monotonic() - began < 1


@pytest.mark.guest
def test_a_capture_replays_to_the_guests_own_disk(tmp_path: Path) -> None:
    from blake3 import blake3

    from tests.test_trace_datasets import committed, fsck_is_clean

    require_guest()
    recipe = Recipe.load("ext4-sqlite")
    recipe = replace(recipe, environment=recipe.environment | {"COMMITS": "25", "SEED": "7"})
    keep = tmp_path / "kept"
    keep.mkdir()
    trace = capture(recipe, tmp_path / "t.arrow", keep=keep)
    final = (keep / "volume.raw").read_bytes()
    assert naive_image(trace) == final
    assert trace.provenance["image_digest"] == blake3(final).hexdigest()
    assert fsck_is_clean(keep / "volume.raw")
    assert committed(keep / "volume.raw") == (25, 25, 100_000)
    labels = [label for _, label in trace.marks()]
    assert labels == [
        "mkfs done", "mounted", "workload begins", "tables made",
        *(f"commit {n}" for n in range(1, 26)), "workload ends", "unmounted",
    ]  # fmt: skip
    assert read_trace(tmp_path / "t.arrow").digest == trace.digest
    assert trace.requests.time_ns[0] == 0
    assert 1e9 < trace.requests.time_ns[-1] < 120e9
    assert str(tmp_path) not in (keep / "console").read_text()


@pytest.mark.guest
def test_an_own_recipe_runs_with_its_variables(tmp_path: Path) -> None:
    require_guest()
    debugfs = require_tool("debugfs", "e2fsprogs")
    script = 'printf \'%s\' "$TEXT" > note\nsync note\nmark "$TEXT"\n'
    recipe = own_recipe(tmp_path, script)
    trace = capture(recipe, tmp_path / "t.parquet", keep=tmp_path)
    assert "it's here" in [label for _, label in trace.marks()]
    told = subprocess.run(
        [str(debugfs), "-R", "cat /note", str(tmp_path / "volume.raw")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert told.stdout == "it's here"


def guests_of(process: int) -> list[int]:
    """Processes below this one that are QEMU."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            # "pid (name) state parent ...", and a name may hold anything.
            name, _, rest = (entry / "stat").read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue  # it has ended meanwhile
        if "qemu" in name and int(rest.split()[1]) == process:
            found.append(int(entry.name))
    return found


@pytest.mark.guest
@pytest.mark.parametrize(
    ("script", "timeout", "quoted"),
    [
        ("echo before the fall\nexit 3\n", "2m", r"exit 3\)(.|\n)*before the fall"),
        ("false\n", "2m", r"the workload failed \(1\)"),
        ("sleep 600\n", "8s", "did not end within 8 s"),
        ("echo c > /proc/sysrq-trigger\nsleep 60\n", "1m", r"stopped by itself(.|\n)*panic"),
        ("echo 'mark never written' > /dev/ttyS1\n", "2m", "acknowledged"),
    ],
)
def test_a_guest_that_fails_says_why_and_leaves_nothing(
    script: str, timeout: str, quoted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_guest()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    recipe = own_recipe(tmp_path, script, TOML.replace("2m", timeout))
    with pytest.raises(VmbkError, match=quoted) as caught:
        capture(recipe, tmp_path / "t.arrow")
    assert str(tmp_path) not in str(caught.value)
    assert not guests_of(os.getpid())
    assert not list(scratch.iterdir())
    assert not (tmp_path / "t.arrow").exists()


def started(folder: Path, timeout: str) -> tuple[subprocess.Popen[bytes], int]:
    """A process that captures a guest which never ends, and the QEMU that it runs."""
    recipe = own_recipe(folder, "sleep 600\n", TOML.replace("2m", timeout))
    code = "import sys; from vmbk.trace.capture import capture; capture(*sys.argv[1:])"
    command = [sys.executable, "-c", code, str(recipe), str(folder / "t.arrow")]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, env=os.environ | {"TMPDIR": str(folder)}
    )
    deadline = time.monotonic() + 60
    while not (running := guests_of(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    if not running:
        process.kill()
    (pid,) = running
    return process, pid


def is_running(pid: int) -> bool:
    """Whether a process lives and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.guest
def test_an_interrupt_takes_the_guest_along(tmp_path: Path) -> None:
    require_guest()
    process, pid = started(tmp_path, "2m")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert b"KeyboardInterrupt" in said
    assert not is_running(pid)
    assert not list(tmp_path.glob("vmbk-capture-*"))


@pytest.mark.guest
def test_a_guest_whose_capture_was_killed_ends_by_itself(tmp_path: Path) -> None:
    require_guest()
    process, pid = started(tmp_path, "5s")
    process.kill()
    process.communicate(timeout=30)
    assert is_running(pid)
    deadline = time.monotonic() + 60
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    alive = is_running(pid)
    if alive:
        os.kill(pid, signal.SIGKILL)
    assert not alive
