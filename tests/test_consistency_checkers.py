"""The checkers on images that are damaged on purpose: each kind of damage must be told apart."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.tools import require_tool
from vmbk.consistency.checkers import OUTPUT_KEPT, CheckContext, Checker, Tool, run_tool
from vmbk.consistency.ext4 import E2FSCK, Ext4Checker, Superblock
from vmbk.consistency.scratch import copy_image
from vmbk.consistency.sqlite import DatabaseSpec, Invariant, SqliteChecker
from vmbk.errors import InputError, NotFoundError, ToolMissingError

COMMITS = 30
CHECKPOINTED = 20  # commits in the database file; the others are in the log only
SPEC = DatabaseSpec("/data/app.db")
TOOL_ENVIRONMENT = {
    "LC_ALL": "C",
    "DEBUGFS_PAGER": "__none__",
    "E2FSPROGS_FAKE_TIME": "1700000000",  # equal content makes equal images
}


def tool(*command: str | Path, check: bool = True) -> str:
    """Run a program of e2fsprogs; ``check`` off where debugfs reports nothing by its exit code."""
    require_tool(str(command[0]), package="e2fsprogs")
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    done = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, check=check, timeout=60,
        env={**TOOL_ENVIRONMENT, "PATH": path},
    )  # fmt: skip
    return done.stdout


def debugfs(image: Path, *commands: str) -> None:
    """Change an image without mounting it."""
    for command in commands:
        tool("debugfs", "-w", "-R", command, image)


def make_image(folder: Path, image: Path, size: str = "16M") -> None:
    """An ext4 image that holds a folder."""
    tool("mke2fs", "-q", "-t", "ext4", "-b", "1024", "-d", folder, image, size)


def make_database(
    path: Path, commits: int = COMMITS, *, checkpointed: int = CHECKPOINTED, skip: int = 0
) -> None:
    """A database with its log, as it lies while a program has it open."""
    values = random.Random(7)
    origin = path.with_name("origin.db")
    connection = sqlite3.connect(origin, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA wal_autocheckpoint=0")
    connection.execute("CREATE TABLE commits(n INTEGER PRIMARY KEY, payload BLOB)")
    for number in range(1, commits + 1):
        if number != skip:
            connection.execute("INSERT INTO commits VALUES(?, ?)", (number, values.randbytes(2000)))
        if number == checkpointed:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for suffix in ("", "-wal"):
        shutil.copy(f"{origin}{suffix}", f"{path}{suffix}")
    connection.close()
    for leftover in path.parent.glob("origin.db*"):
        leftover.unlink()


def overwrite(image: Path, offset: int, data: bytes) -> None:
    with image.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def journal_block(image: Path, path: str, block: int, content: bytes) -> None:
    """Leave a committed transaction in the journal that replaces one block of a file."""
    number = tool("debugfs", "-R", f"bmap {path} {block}", image).strip()
    source = image.with_name("block")
    source.write_bytes(content)
    commands = image.with_name("commands")
    commands.write_text(f"jo\njw -b {number} {source}\njc\n")
    tool("debugfs", "-w", "-f", commands, image)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pristine")
    (folder / "root" / "data").mkdir(parents=True)
    make_database(folder / "root" / "data" / "app.db")
    make_image(folder / "root", folder / "disk.img")
    return folder / "disk.img"


@pytest.fixture
def image(pristine: Path, tmp_path: Path) -> Path:
    copy_image(pristine, tmp_path / "disk.img")
    return tmp_path / "disk.img"


@pytest.fixture
def context(tmp_path: Path) -> CheckContext:
    return CheckContext(tmp_path, filesystem_made=True, acknowledged=np.arange(1, COMMITS + 1))


def ext4(image: Path, context: CheckContext) -> str:
    return Ext4Checker().check(image, context).state


# ------------------------------------------------------------------------------------------ ext4


def test_a_good_file_system_is_clean_and_not_written(image: Path, context: CheckContext) -> None:
    before = image.read_bytes()
    verdict = Ext4Checker().check(image, context)
    assert verdict.state == "clean"
    assert "e2fsck -fn: exit 0" in verdict.detail
    assert verdict.seconds > 0
    assert image.read_bytes() == before


def test_a_journal_is_replayed_before_anything_is_judged(
    image: Path, context: CheckContext
) -> None:
    journal_block(image, "/data/app.db-wal", 0, b"replayed" * 128)
    superblock = Superblock.read(image)
    assert superblock is not None
    assert superblock.needs_recovery
    assert ext4(image, context) == "replayed"
    tool("debugfs", "-R", f"dump /data/app.db-wal {image.with_name('wal')}", image)
    assert image.with_name("wal").read_bytes()[:1024] == b"replayed" * 128
    assert ext4(image, context) == "clean"  # what the replay left


def test_orphans_and_stale_free_counts_are_a_matter_of_replay(
    image: Path, context: CheckContext
) -> None:
    # A file deleted while open: unlinked, on the orphan list, its blocks still allocated.
    inode = (
        tool("debugfs", "-R", "ncheck -c 1", image)
        and tool("debugfs", "-R", "stat /data/app.db-wal", image).split()[1]
    )
    debugfs(
        image,
        "unlink /data/app.db-wal",
        f"sif <{inode}> links_count 0",
        f"ssv last_orphan {inode}",
        "ssv free_blocks_count 1",
        "ssv free_inodes_count 1",
    )
    superblock = Superblock.read(image)
    assert superblock is not None
    assert superblock.orphans
    verdict = Ext4Checker().check(image, context)
    assert verdict.state == "replayed"
    assert "Clearing orphaned inode" in verdict.output


def test_a_wrong_bitmap_is_repaired(image: Path, context: CheckContext) -> None:
    block = tool("debugfs", "-R", "bmap /data/app.db 0", image).strip()
    debugfs(image, f"freeb {block}")
    verdict = Ext4Checker().check(image, context)
    assert verdict.state == "repaired"
    assert "Block bitmap differences" in verdict.output
    assert ext4(image, context) == "clean"


def test_a_wrong_bitmap_behind_a_journal_is_repaired(image: Path, context: CheckContext) -> None:
    block = tool("debugfs", "-R", "bmap /data/app.db 0", image).strip()
    debugfs(image, f"freeb {block}")
    journal_block(image, "/data/app.db-wal", 0, bytes(1024))
    assert ext4(image, context) == "repaired"


def test_a_wrong_link_count_is_repaired(image: Path, context: CheckContext) -> None:
    debugfs(image, "sif /data/app.db links_count 5")
    assert ext4(image, context) == "repaired"


def test_a_lost_superblock_is_repaired_from_its_backup(image: Path, context: CheckContext) -> None:
    overwrite(image, 1024, bytes(1024))
    assert ext4(image, context) == "repaired"


@pytest.mark.parametrize("made", [None, False])
def test_without_a_superblock_there_may_be_no_file_system(
    image: Path, context: CheckContext, made: bool | None
) -> None:
    overwrite(image, 1024, bytes(1024))
    assert ext4(image, dataclasses.replace(context, filesystem_made=made)) == "none"


def test_an_unfinished_mkfs_is_no_file_system(image: Path, context: CheckContext) -> None:
    assert ext4(image, dataclasses.replace(context, filesystem_made=False)) == "none"
    assert ext4(image, dataclasses.replace(context, filesystem_made=None)) == "clean"


def test_an_empty_disk(image: Path, context: CheckContext) -> None:
    size = image.stat().st_size
    os.truncate(image, 0)
    os.truncate(image, size)
    assert ext4(image, context) == "damaged"
    assert ext4(image, dataclasses.replace(context, filesystem_made=None)) == "none"


def test_a_disk_cut_short_is_damaged(image: Path, context: CheckContext) -> None:
    os.truncate(image, 3 << 20)
    assert ext4(image, context) == "damaged"


def test_destroyed_inode_tables_are_no_replay(image: Path, context: CheckContext) -> None:
    overwrite(image, 130 * 1024, random.Random(1).randbytes(600 * 1024))
    assert ext4(image, context) in ("repaired", "damaged")
    verdict = SqliteChecker(SPEC).check(image, context)
    assert (verdict.state, verdict.commits_lost) == ("lost", COMMITS)


def test_random_damage_never_raises(image: Path, context: CheckContext, tmp_path: Path) -> None:
    values = random.Random(11)
    seen = set()
    for round_ in range(12):
        copy = tmp_path / f"{round_}.img"
        copy_image(image, copy)
        for _ in range(20):
            overwrite(copy, values.randrange(1024, 1 << 21), values.randbytes(64))
        verdict = Ext4Checker().check(copy, context)
        assert len(verdict.output.encode()) <= 4 * OUTPUT_KEPT
        assert verdict.state in Ext4Checker().states
        found = SqliteChecker(SPEC).check(copy, context)
        assert found.state in SqliteChecker(SPEC).states
        seen.add((verdict.state, found.state))
    # Some of it falls on blocks in no use; what falls elsewhere must be seen.
    assert any(filesystem == "repaired" for filesystem, _ in seen)


def test_time_is_bounded(image: Path, context: CheckContext) -> None:
    hurried = dataclasses.replace(context, timeout_s=1e-6)
    verdict = Ext4Checker().check(image, hurried)
    assert verdict.state == "damaged"
    assert "timed out" in verdict.detail
    assert SqliteChecker(SPEC).check(image, hurried).state == "corrupt"


def test_a_verdict_does_not_depend_on_the_clock(image: Path, context: CheckContext) -> None:
    # Written in the future: without a fixed clock e2fsck would complain about it, or repair it.
    debugfs(image, "ssv mtime 20370101000000", "ssv wtime 20370101000000")
    verdict = Ext4Checker().check(image, context)
    assert verdict.state == "clean"
    assert "future" not in verdict.output


def test_a_missing_program_names_its_package(tmp_path: Path) -> None:
    with pytest.raises(ToolMissingError, match="apt-get install some-package"):
        run_tool(Tool("no-such-program-of-vmbk", "some-package"), [], folder=tmp_path, timeout_s=1)


def test_arguments_reach_a_program_as_they_are(tmp_path: Path) -> None:
    run = run_tool(Tool("printf", "coreutils"), ["%s", "$(id);`id`"], folder=tmp_path, timeout_s=9)
    assert (run.code, run.output) == (0, "$(id);`id`")


def test_only_the_end_of_an_output_is_kept(tmp_path: Path) -> None:
    run = run_tool(Tool("seq", "coreutils"), ["1", "200000"], folder=tmp_path, timeout_s=30)
    assert len(run.output) == OUTPUT_KEPT
    assert run.output.endswith("199999\n200000\n")


def test_a_program_that_hangs_is_ended(tmp_path: Path) -> None:
    begun = time.monotonic()
    run = run_tool(Tool("sleep", "coreutils"), ["60"], folder=tmp_path, timeout_s=0.2)
    assert time.monotonic() - begun < 20
    assert run.timed_out
    assert not run.ok
    endless = run_tool(Tool("yes", "coreutils"), [], folder=tmp_path, timeout_s=0.2)
    assert endless.timed_out
    assert len(endless.output) == OUTPUT_KEPT


@pytest.mark.parametrize("checker", [Ext4Checker(), SqliteChecker(SPEC)])
def test_checkers_keep_the_contract(checker: Checker, image: Path, context: CheckContext) -> None:
    assert isinstance(checker, Checker)
    assert checker.tools
    assert {t.package for t in checker.tools} == {"e2fsprogs"}
    verdict = checker.check(image, context)
    assert verdict.checker == checker.name
    assert verdict.state in checker.states
    assert [p.name for p in context.folder.iterdir()] == ["disk.img"]  # no scratch is left


def test_e2fsck_is_what_is_run() -> None:
    require_tool("e2fsck", package="e2fsprogs")
    assert Path(E2FSCK.find()).name == "e2fsck"


# ---------------------------------------------------------------------------------------- SQLite


def test_a_log_is_recovered(image: Path, context: CheckContext) -> None:
    verdict = SqliteChecker(SPEC).check(image, context)
    assert verdict.state == "recovered"
    assert (verdict.commits_found, verdict.commits_lost) == (COMMITS, 0)
    assert "frames of the log" in verdict.detail


def test_without_a_log_a_whole_database_is_clean(image: Path, context: CheckContext) -> None:
    debugfs(image, "rm /data/app.db-wal")
    some = dataclasses.replace(context, acknowledged=np.arange(1, CHECKPOINTED + 1))
    verdict = SqliteChecker(SPEC).check(image, some)
    assert (verdict.state, verdict.commits_found) == ("clean", CHECKPOINTED)


def test_a_deleted_log_loses_commits(image: Path, context: CheckContext) -> None:
    debugfs(image, "rm /data/app.db-wal")
    verdict = SqliteChecker(SPEC).check(image, context)
    assert verdict.state == "lost"
    assert verdict.commits_lost == COMMITS - CHECKPOINTED
    assert verdict.commits_found == CHECKPOINTED
    assert f"commits {CHECKPOINTED + 1} to {COMMITS}" in verdict.detail


def test_more_than_was_acknowledged_is_fine(image: Path, context: CheckContext) -> None:
    some = dataclasses.replace(context, acknowledged=np.arange(1, COMMITS - 2))
    verdict = SqliteChecker(SPEC).check(image, some)
    assert (verdict.state, verdict.commits_found, verdict.commits_lost) == ("recovered", COMMITS, 0)


def _with_database(folder: Path, change: Callable[[Path], None]) -> Path:
    """An image whose database a test has changed on the host first."""
    (folder / "root" / "data").mkdir(parents=True)
    make_database(folder / "root" / "data" / "app.db")
    change(folder / "root" / "data" / "app.db")
    make_image(folder / "root", folder / "disk.img")
    return folder / "disk.img"


def test_a_flipped_page_is_corrupt(tmp_path: Path, context: CheckContext) -> None:
    def flip(path: Path) -> None:
        # The third page: a leaf of the table, and not among those that the log replaces.
        overwrite(path, 8192, bytes(b ^ 0xFF for b in path.read_bytes()[8192 : 8192 + 256]))

    verdict = SqliteChecker(SPEC).check(_with_database(tmp_path, flip), context)
    assert verdict.state == "corrupt"
    assert verdict.commits_lost == COMMITS


def test_no_database_at_all_is_corrupt(tmp_path: Path, context: CheckContext) -> None:
    def scribble(path: Path) -> None:
        path.write_bytes(random.Random(3).randbytes(20_000))
        path.with_name("app.db-wal").unlink()

    verdict = SqliteChecker(SPEC).check(_with_database(tmp_path, scribble), context)
    assert verdict.state == "corrupt"
    assert "not a database" in verdict.detail


def test_a_gap_is_corrupt(tmp_path: Path, context: CheckContext) -> None:
    def gap(path: Path) -> None:
        make_database(path, skip=9)

    verdict = SqliteChecker(SPEC).check(_with_database(tmp_path, gap), context)
    assert (verdict.state, verdict.commits_found, verdict.commits_lost) == ("corrupt", 29, 1)


def test_commits_from_another_beginning_are_corrupt(tmp_path: Path, context: CheckContext) -> None:
    def gap(path: Path) -> None:
        make_database(path, skip=1)

    assert SqliteChecker(SPEC).check(_with_database(tmp_path, gap), context).state == "corrupt"


def test_a_missing_table(tmp_path: Path, image: Path, context: CheckContext) -> None:
    spec = DatabaseSpec("/data/app.db", table="others")
    assert SqliteChecker(spec).check(image, context).state == "lost"
    early = CheckContext(tmp_path, filesystem_made=True)
    assert SqliteChecker(spec).check(image, early).state == "none"


def test_a_missing_database(tmp_path: Path, image: Path, context: CheckContext) -> None:
    debugfs(image, "rm /data/app.db")
    verdict = SqliteChecker(SPEC).check(image, context)
    assert (verdict.state, verdict.commits_lost) == ("lost", COMMITS)
    early = CheckContext(tmp_path, filesystem_made=True)
    assert SqliteChecker(SPEC).check(image, early).state == "none"
    nothing = CheckContext(tmp_path, filesystem_made=False)
    assert SqliteChecker(SPEC).check(image, nothing).state == "none"


def test_a_view_is_no_table_of_commits(tmp_path: Path, context: CheckContext) -> None:
    def view(path: Path) -> None:
        with sqlite3.connect(path) as database:
            database.execute("DROP TABLE commits")
            database.execute("CREATE VIEW commits AS SELECT 1 AS n")
        database.close()

    verdict = SqliteChecker(SPEC).check(_with_database(tmp_path, view), context)
    assert verdict.state == "corrupt"
    assert "ordinary table" in verdict.detail


def test_numbers_that_are_none_are_corrupt(tmp_path: Path, context: CheckContext) -> None:
    def text(path: Path) -> None:
        with sqlite3.connect(path) as database:
            database.execute("DROP TABLE commits")
            database.execute("CREATE TABLE commits(n TEXT)")
            database.execute("INSERT INTO commits VALUES('one')")
        database.close()

    verdict = SqliteChecker(SPEC).check(_with_database(tmp_path, text), context)
    assert verdict.state == "corrupt"
    assert "no integer" in verdict.detail


def test_half_a_transaction_is_corrupt(tmp_path: Path, context: CheckContext) -> None:
    def accounts(path: Path) -> None:
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE accounts(id INTEGER PRIMARY KEY, balance INTEGER)")
            database.execute("INSERT INTO accounts VALUES (1, 70), (2, 20)")
        database.close()

    image = _with_database(tmp_path, accounts)
    states = [
        SqliteChecker(dataclasses.replace(SPEC, invariant=invariant)).check(image, context)
        for invariant in (
            Invariant("accounts", "balance", 90),
            Invariant("accounts", "balance", 100),
            Invariant("ledger", "balance", 90),
        )
    ]
    assert [v.state for v in states] == ["clean", "corrupt", "corrupt"]
    assert {(v.commits_found, v.commits_lost) for v in states} == {(COMMITS, 0)}
    assert "is 90, not 100" in states[1].detail


def _hot_journal(path: Path) -> None:
    """A database in rollback mode, cut in the middle of a transaction that changed its pages."""
    for old in path.parent.glob("app.db*"):
        old.unlink()
    origin = path.with_name("origin.db")
    connection = sqlite3.connect(origin, isolation_level=None)
    connection.execute("CREATE TABLE commits(n INTEGER PRIMARY KEY, payload BLOB)")
    for number in range(1, COMMITS + 1):
        connection.execute("INSERT INTO commits VALUES(?, zeroblob(2000))", (number,))
    connection.execute("PRAGMA cache_size=1")  # so that changed pages reach the file at once
    connection.execute("BEGIN")
    connection.execute("UPDATE commits SET payload = randomblob(2000)")
    connection.execute("DELETE FROM commits WHERE n > 5")
    for suffix in ("", "-journal"):
        shutil.copy(f"{origin}{suffix}", f"{path}{suffix}")
    connection.execute("ROLLBACK")
    connection.close()
    origin.unlink()


def test_a_hot_journal_is_rolled_back(tmp_path: Path, context: CheckContext) -> None:
    verdict = SqliteChecker(SPEC).check(_with_database(tmp_path, _hot_journal), context)
    assert (verdict.state, verdict.commits_found) == ("recovered", COMMITS)
    assert "hot journal" in verdict.detail


def test_a_journal_cannot_name_a_file_of_this_machine(
    tmp_path: Path, context: CheckContext
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")

    def name_a_super_journal(path: Path) -> None:
        _hot_journal(path)
        name = str(victim).encode()
        trailer = b"".join(
            (
                (0x40000000 // 4096 + 1).to_bytes(4, "big"),
                name,
                len(name).to_bytes(4, "big"),
                sum(name).to_bytes(4, "big"),
                bytes.fromhex("d9d505f920a163d7"),
            )
        )
        with path.with_name("app.db-journal").open("ab") as journal:
            journal.write(trailer)

    image = _with_database(tmp_path, name_a_super_journal)
    verdict = SqliteChecker(SPEC).check(image, context)
    assert victim.read_bytes() == b"precious"
    assert verdict.state == "corrupt"
    assert "super-journal" in verdict.detail


def test_a_file_larger_than_its_disk_is_not_written_out(image: Path, context: CheckContext) -> None:
    debugfs(image, "sif /data/app.db size 99999999999")
    verdict = SqliteChecker(SPEC).check(image, context)
    assert verdict.state == "corrupt"
    assert "more than its disk has" in verdict.detail


def test_a_folder_in_the_place_of_the_database(image: Path, context: CheckContext) -> None:
    debugfs(image, "rm /data/app.db", "mkdir /data/app.db")
    verdict = SqliteChecker(SPEC).check(image, context)
    assert verdict.state == "corrupt"
    assert "directory" in verdict.detail


def test_a_damaged_database_never_raises(tmp_path: Path, context: CheckContext) -> None:
    (tmp_path / "root" / "data").mkdir(parents=True)
    path = tmp_path / "root" / "data" / "app.db"
    make_database(path)
    good = {suffix: Path(f"{path}{suffix}").read_bytes() for suffix in ("", "-wal")}
    values = random.Random(5)
    states = []
    for round_ in range(10):
        for suffix, content in good.items():
            changed = bytearray(content)
            for _ in range(1 + round_):
                at = values.randrange(len(changed))
                changed[at : at + 8] = values.randbytes(8)
            cut = values.choice((len(changed), values.randrange(100, len(changed))))
            Path(f"{path}{suffix}").write_bytes(changed[:cut])
        image = tmp_path / "disk.img"
        image.unlink(missing_ok=True)
        make_image(tmp_path / "root", image, "4M")
        states.append(SqliteChecker(SPEC).check(image, context).state)
    assert set(states) <= {"lost", "corrupt", "recovered"}
    assert "corrupt" in states


@pytest.mark.parametrize(
    "path",
    [
        "data/app.db",
        "/data/../app.db",
        "/data/app.db; quit",
        '/a"b',
        "/a b",
        "/",
        "",
        "/a\nb",
        "/é",
    ],
)
def test_paths_that_could_be_commands_are_refused(path: str) -> None:
    with pytest.raises(InputError):
        DatabaseSpec(path)


@pytest.mark.parametrize("name", ["", 'c"; DROP', "a b", "1a", "é"])
def test_names_that_could_be_sql_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="table"):
        DatabaseSpec("/app.db", table=name)
    with pytest.raises(InputError, match="column"):
        DatabaseSpec("/app.db", column=name)
    with pytest.raises(InputError, match="table"):
        Invariant(name, "balance", 1)


# ----------------------------------------------------------------------------------------- copies


def test_a_copy_is_equal_and_as_sparse(tmp_path: Path) -> None:
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.truncate(64 << 20)
        for offset in (0, 5 << 20, (64 << 20) - 4096):
            file.seek(offset)
            file.write(random.Random(offset).randbytes(4096))
    copy_image(source, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == source.read_bytes()
    assert (tmp_path / "target").stat().st_blocks <= source.stat().st_blocks + 64


@pytest.mark.parametrize("size", [0, 1, 8192])
def test_a_copy_of_a_hole(tmp_path: Path, size: int) -> None:
    (tmp_path / "source").touch()
    os.truncate(tmp_path / "source", size)
    (tmp_path / "target").write_bytes(b"old" * 10_000)
    copy_image(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == bytes(size)


def test_a_copy_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        copy_image(tmp_path / "absent", tmp_path / "target")
    with pytest.raises(InputError, match="regular"):
        copy_image(tmp_path, tmp_path / "target")
