"""Stores that fail, disks that fill up, processes that are killed, and processes that meet."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.test_vault_helpers import (
    BLOCK,
    FaultyStore,
    back_up,
    changed,
    content,
    disk_record,
    everything_restores,
    new_vault,
    reopen,
)
from vmbk.errors import BusyError, IntegrityError, StorageError
from vmbk.vault import DiskRecord, Vault, VaultWriter
from vmbk.vault.store import LocalStore

DISK = content(5, 800 * BLOCK, zeros=0.0)  # several packs of the tests' 64 KiB
NEWER = changed(6, DISK, 400)


def big_backup(vault: Vault) -> str:
    """A job of several packs on top of the latest point."""
    return back_up(vault, {"d": NEWER}, vault.point("latest")).id


# Stores that fail


@pytest.mark.parametrize(
    "error",
    [StorageError("no space left"), RuntimeError("out of the blue"), KeyboardInterrupt()],
    ids=lambda error: type(error).__name__,
)
def test_a_job_can_stop_at_any_put(tmp_path: Path, error: Exception) -> None:
    """Whichever file fails: the earlier points restore, and the job can be run again."""
    before, after = {"d": DISK}, {"d": NEWER}
    first = back_up(new_vault(tmp_path), before)
    for puts in range(100):
        folder = tmp_path / str(puts)
        shutil.copytree(tmp_path / "vault", folder / "vault")
        shutil.copy(tmp_path / "key", folder / "key")
        faults: list[FaultyStore] = []

        def wrap(store: LocalStore, puts: int = puts, faults: list[FaultyStore] = faults):
            faults.append(FaultyStore(store, puts, error))
            return faults[0]

        broken = reopen(folder, wrap_store=wrap)
        if ends_well(broken):
            assert not faults[0].fired
            break
        assert faults[0].fired, "the job must fail by the planned fault, and by no other"
        vault = reopen(folder)
        assert [point.id for point in vault.points()] == [first.id]
        everything_restores(vault, {first.id: before})
        report = vault.check(read_data=True)
        assert report.ok, report.errors
        second = big_backup(vault)
        everything_restores(reopen(folder), {first.id: before, second: after})
    assert puts > 6, "several packs, an index file and a manifest"


def ends_well(vault: Vault) -> bool:
    try:
        big_backup(vault)
    except (StorageError, RuntimeError, KeyboardInterrupt):
        return False
    return True


def put_much(writer: VaultWriter) -> None:
    for _ in range(20):
        writer.put(os.urandom(70_000))


def test_a_writer_that_failed_refuses_to_commit(tmp_path: Path) -> None:
    """A chunk that was promised is missing, so no point may be made of it."""
    new_vault(tmp_path)
    wrap = lambda store: FaultyStore(store, 0, StorageError("the disk is gone"))  # noqa: E731
    vault = reopen(tmp_path, wrap_store=wrap)
    with vault.writer("vm") as writer:
        with pytest.raises(StorageError, match="the disk is gone"):
            put_much(writer)
        with pytest.raises(StorageError, match="the disk is gone") as info:
            writer.commit("vm", [DiskRecord("d", 0, 512)], "crash")
    assert "intact" in info.value.hint
    assert reopen(tmp_path).points() == ()


def test_many_threads_end_when_the_store_fails(tmp_path: Path) -> None:
    """Threads that wait for a pack to be stored must not wait for ever."""
    new_vault(tmp_path)
    wrap = lambda store: FaultyStore(store, 3, StorageError("the disk is gone"))  # noqa: E731
    vault = reopen(tmp_path, wrap_store=wrap)

    def work(_: int) -> str:
        try:
            while True:
                writer.put(os.urandom(30_000))
        except StorageError as error:
            return error.message

    with vault.writer("vm") as writer, ThreadPoolExecutor(8) as pool:
        messages = list(pool.map(work, range(8), timeout=60))
    assert all("the disk is gone" in message for message in messages)


# A full file system


@contextmanager
def tmpfs(folder: Path, size: int) -> Iterator[Path]:
    """A real file system of this size in bytes."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        capture_output=True, text=True, check=False,
    ) if os.geteuid() == 0 else None  # fmt: skip
    if done is None or done.returncode:
        reason = "mounting a tmpfs needs root" if done is None else done.stderr.strip()
        if os.environ.get("VMBK_REQUIRE_TOOLS") == "1":
            pytest.fail(f"VMBK_REQUIRE_TOOLS=1, but {reason}")
        pytest.skip(reason)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def resize(folder: Path, size: int) -> None:
    options = f"remount,size={size}"
    subprocess.run(["mount", "-o", options, str(folder)], check=True)


def test_a_full_file_system_costs_nothing_that_was_there(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", 1 << 20) as small:
        Vault.create(small / "vault", tmp_path / "key", pack_target=1 << 16)
        (small / "key").symlink_to(tmp_path / "key")
        vault = reopen(small, durability="file")
        first = back_up(vault, {"d": DISK})
        big = os.urandom(2 << 20)
        with pytest.raises(StorageError, match="No space left") as info:
            back_up(vault, {"d": big}, first)
        assert "intact" in info.value.hint
        assert info.value.exit_code == 1
        # Full as it is, the vault reads, and nothing half-written is left.
        vault = reopen(small, durability="file")
        assert [point.id for point in vault.points()] == [first.id]
        everything_restores(vault, {first.id: {"d": DISK}})
        assert vault.check(read_data=True).ok
        assert not list((small / "vault" / "tmp").iterdir())
        resize(small, 8 << 20)
        with vault.writer("vm") as writer:
            record = disk_record(writer, vault, "d", big, first)
            second = writer.commit("vm", [record], "crash")
        blocks = len(big) // BLOCK
        assert writer.stored_bytes < blocks * (BLOCK + 144), "what was stored is found again"
        everything_restores(reopen(small), {first.id: {"d": DISK}, second.id: {"d": big}})
        assert reopen(small).check(read_data=True).ok


def test_no_room_for_a_vault_leaves_none(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", 1 << 16) as small:
        (small / "ballast").write_bytes(bytes(16 * 4096))
        with pytest.raises(StorageError, match="No space left"):
            Vault.create(small / "vault", tmp_path / "key")
        (small / "ballast").unlink()
        Vault.create(small / "vault", tmp_path / "key")


def test_a_read_only_vault_can_be_read(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "medium", 8 << 20) as medium:
        vault = new_vault(medium)
        point = back_up(vault, {"d": DISK})
        subprocess.run(["mount", "-o", "remount,ro", str(medium)], check=True)
        vault = reopen(medium)
        everything_restores(vault, {point.id: {"d": DISK}})
        assert vault.check(read_data=True).ok
        with pytest.raises(StorageError, match="Read-only file system"):
            back_up(vault, {"d": NEWER}, point)


# Killed processes


def in_child(action: Callable[[], None]) -> int:
    """Run something in a forked process; its wait status."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads at a fork: the child has none
        child = os.fork()
    if child == 0:
        try:
            action()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitpid(child, 0)[1]


@pytest.mark.kill
def test_killed_at_every_system_call_of_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL before each write, sync, naming and removal: points stay, the job can be redone."""
    vault = new_vault(tmp_path)
    first = back_up(vault, {"d": DISK})
    calls = {name: getattr(os, name) for name in ("writev", "fsync", "link", "unlink")}
    # pathlib removes files by a call of its own.
    remove = Path.unlink
    killed = tmp_files = 0
    for moment in range(1000):
        count = iter(range(moment, -1, -1))

        def before(call: Callable[..., object], count: Iterator[int] = count):
            def doomed(*args: object, **options: object) -> object:
                if next(count) == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **options)

            return doomed

        def job(before: Callable[..., object] = before) -> None:
            for name, call in calls.items():
                setattr(os, name, before(call))
            Path.unlink = before(remove)  # type: ignore[method-assign, assignment]
            big_backup(reopen(tmp_path, durability="file"))

        status = in_child(job)
        vault = reopen(tmp_path)
        points = vault.points()
        report = vault.check(read_data=True)
        assert report.ok, report.errors
        tmp_files = max(tmp_files, len(list((tmp_path / "vault" / "tmp").iterdir())))
        everything_restores(vault, {first.id: {"d": DISK}})
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL
            killed += 1
            for point in points[1:]:  # killed after its manifest had its name: it is committed
                everything_restores(vault, {point.id: {"d": NEWER}})
                (tmp_path / "vault" / "points" / point.id).unlink()
            continue
        assert os.WEXITSTATUS(status) == 0
        everything_restores(vault, {points[-1].id: {"d": NEWER}})
        break
    assert killed > 10
    assert tmp_files > 0, "no kill fell between writing and naming"
    assert not list((tmp_path / "vault" / "tmp").iterdir()), "the last job cleaned up"


# Locks


def test_one_backup_of_a_vm_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmbk.vault.locks.WAIT", 0.0)
    vault = new_vault(tmp_path)
    with vault.writer("web") as writer:
        started = time.monotonic()
        with (
            pytest.raises(BusyError, match="another backup of the VM 'web'") as info,
            reopen(tmp_path).writer("web"),
        ):
            raise AssertionError("not reached")
        assert time.monotonic() - started < 10
        assert "other VMs" in info.value.hint
        with reopen(tmp_path).writer("shop") as other:
            other.commit("shop", [DiskRecord("d", 0, 512)], "crash")
        writer.commit("web", [DiskRecord("d", 0, 512)], "crash")
    back_up(reopen(tmp_path), {"d": DISK}, vm="web")
    names = {path.name for path in (tmp_path / "vault" / "locks").iterdir()}
    assert len(names) == 3
    assert not any("web" in name or "shop" in name for name in names)


def test_exclusive_and_shared_holders_exclude_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmbk.vault.locks.WAIT", 0.0)
    vault, other = new_vault(tmp_path), reopen(tmp_path)
    with (
        vault.reading(),
        other.reading(),
        pytest.raises(BusyError, match="is in use"),
        vault.exclusive(wait=0),
    ):
        raise AssertionError("not reached")
    with vault.exclusive():
        for use in (other.reading, lambda: other.writer("vm"), lambda: other.exclusive(wait=0)):
            with pytest.raises(BusyError), use():
                raise AssertionError("not reached")
    with vault.writer("vm"), pytest.raises(BusyError), other.exclusive(wait=0):
        raise AssertionError("not reached")
    with pytest.raises(BusyError), vault.reading():
        other.rebuild_index()


def test_a_short_hold_is_waited_for(tmp_path: Path) -> None:
    vault, other = new_vault(tmp_path), reopen(tmp_path)
    holding, go = threading.Event(), threading.Event()

    def hold() -> None:
        with vault.exclusive():
            holding.set()
            go.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    holding.wait()
    threading.Timer(0.2, go.set).start()
    with other.reading():
        thread.join()


def test_a_lock_dies_with_its_process(tmp_path: Path) -> None:
    new_vault(tmp_path)
    code = (
        "import sys, time; from vmbk.vault import Vault\n"
        "with Vault.open(sys.argv[1], sys.argv[2]).writer('vm'):\n"
        "    print('held', flush=True); time.sleep(600)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "vault"), str(tmp_path / "key")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(BusyError), reopen(tmp_path).writer("vm"):
            raise AssertionError("not reached")
        process.kill()
        process.wait()
    back_up(reopen(tmp_path), {"d": DISK})


def test_leftovers_are_cleaned_by_the_next_job_alone(tmp_path: Path) -> None:
    vault = new_vault(tmp_path)
    leftover = tmp_path / "vault" / "tmp" / "4711-beef"
    leftover.write_bytes(bytes(1000))
    with vault.reading():
        back_up(reopen(tmp_path), {"d": DISK})
        assert leftover.exists(), "somebody else may be writing it"
    back_up(reopen(tmp_path), {"d": DISK})
    assert not leftover.exists()


# Processes that meet

JOBS = """
import sys
sys.path.insert(0, sys.argv[3])
from pathlib import Path
from tests.test_vault_helpers import BLOCK, back_up, changed, content, reopen
folder, vm = Path(sys.argv[1]), sys.argv[2]
vault, point, disk = reopen(folder), None, content(7, 300 * BLOCK, zeros=0.1)
for seed in range(6):
    point = back_up(vault, {"d": disk}, point, vm=vm)
    print(point.id, seed, flush=True)
    disk = changed(seed + 100 * len(vm), disk, 40)
"""


def test_two_processes_back_up_two_vms_at_once(tmp_path: Path) -> None:
    """Both store the same first content at the same time, then their own changes."""
    new_vault(tmp_path)
    root = Path(__file__).parent.parent
    running = {
        vm: subprocess.Popen(
            [sys.executable, "-c", JOBS, str(tmp_path), vm, str(root)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for vm in ("web", "mail")
    }  # fmt: skip
    ids = {}
    for vm, process in running.items():
        out, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        ids[vm] = [line.split()[0] for line in out.splitlines()]
    vault = reopen(tmp_path)
    report = vault.check(read_data=True)
    assert report.ok, report.errors
    for vm, points in ids.items():
        assert [point.id for point in vault.points(vm)] == points
        disk = content(7, 300 * BLOCK, zeros=0.1)
        for seed, point_id in enumerate(points):
            everything_restores(vault, {point_id: {"d": disk}})
            disk = changed(seed + 100 * len(vm), disk, 40)


def test_two_vms_of_one_process_back_up_at_once(tmp_path: Path) -> None:
    vault = new_vault(tmp_path)

    def run(k: int) -> tuple[str, bytes]:
        disk = changed(k, DISK, 50)
        return back_up(vault, {"d": disk}, vm=f"vm{k}").id, disk

    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(run, range(8)))
    everything_restores(reopen(tmp_path), {point: {"d": disk} for point, disk in done})
    assert reopen(tmp_path).check(read_data=True).ok


# Packs that go missing


def test_one_lost_pack_costs_only_what_it_held(tmp_path: Path) -> None:
    vault = new_vault(tmp_path)
    first = back_up(vault, {"d": DISK}, vm="one")
    packs = set((tmp_path / "vault" / "packs").rglob("*/*"))
    other = back_up(vault, {"d": os.urandom(5 * BLOCK)}, vm="two")
    (lost,) = set((tmp_path / "vault" / "packs").rglob("*/*")) - packs
    lost.unlink()
    vault = reopen(tmp_path)
    everything_restores(vault, {first.id: {"d": DISK}})
    with pytest.raises(IntegrityError, match=f"'packs/.*{lost.name}' is missing") as info:
        everything_restores(vault, {other.id: {"d": b""}})
    assert "check --read-data" in info.value.hint
    report = vault.check()
    assert [error for error in report.errors if "is missing" in error]


def test_a_system_error_while_reading_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault = new_vault(tmp_path)
    point = back_up(vault, {"d": DISK})

    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(StorageError, match="Input/output error"):
        everything_restores(vault, {point.id: {"d": DISK}})
    report = vault.check(read_data=True)
    assert not report.ok
    assert all("Input/output error" in error for error in report.errors)
