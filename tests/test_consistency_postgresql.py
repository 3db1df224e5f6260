"""The PostgreSQL checker on captures of real servers, and on clusters damaged or made to harm."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from tests.tools import require_tool
from vmbk.consistency.checkers import CheckContext, Checker
from vmbk.consistency.confined import _unprivileged, nobody, run_confined
from vmbk.consistency.crash import CrashPoint, crash_points, crash_states
from vmbk.consistency.ext4 import Ext4Checker
from vmbk.consistency.extract import UnreadableError, extract_tree
from vmbk.consistency.laboratory import CaptureMarks
from vmbk.consistency.postgres_server import POSTGRES
from vmbk.consistency.postgresql import PostgresChecker, PostgresSpec
from vmbk.consistency.scratch import copy_image
from vmbk.consistency.sqlite import DatabaseVerdict, Invariant
from vmbk.errors import InputError, ToolMissingError
from vmbk.trace import Op, Trace, dataset_path, read_trace

COMMITS = 240  # in each capture
TRANSACTIONS = 800  # of pgbench
BALANCES = Invariant("accounts", "balance", 100_000)
ONE_DISK = PostgresSpec("/data", invariant=BALANCES, history="pgbench_history")
TWO_DISKS = PostgresSpec("/data", invariant=BALANCES, log=("log", "/wal"))
CLUSTER = PostgresSpec("/data", invariant=BALANCES)


@pytest.fixture(scope="module", autouse=True)
def _tools() -> None:
    for name in ("e2fsck", "debugfs", "mke2fs"):
        require_tool(name, package="e2fsprogs")
    try:
        POSTGRES.find(15)  # the version of the captures
    except ToolMissingError as error:
        if os.environ.get("VMBK_REQUIRE_TOOLS") == "1":
            pytest.fail(f"VMBK_REQUIRE_TOOLS=1, but {error}")
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def one_disk() -> Trace:
    return read_trace(dataset_path("ext4-postgresql"))


@pytest.fixture(scope="module")
def two_disks() -> Trace:
    return read_trace(dataset_path("ext4-two-disks"))


def mark_row(trace: Trace, label: str) -> int:
    return next(row for row, text in trace.marks() if text == label)


def verdicts(
    trace: Trace, points: list[CrashPoint], spec: PostgresSpec, folder: Path
) -> list[tuple[CrashPoint, int, DatabaseVerdict]]:
    """Each point, its acknowledged commits and what the checker says of it."""
    marks = CaptureMarks.read(trace)
    done = [(r, int(text.split()[1])) for r, text in trace.marks() if text.startswith("pgbench ")]
    found = []
    first = trace.volumes[0]
    for state in crash_states(trace, points, volume=first.id, folder=folder):
        copies = {name: folder / f"{name}.img" for name in state.images}
        for name, image in state.images.items():
            copy_image(image, copies[name])
        context = marks.context(state.point.row, folder)
        context = dataclasses.replace(context, others=copies)
        image = copies[first.name]
        assert Ext4Checker().check(image, context).state in ("none", "clean", "replayed")
        transactions = max((n for row, n in done if row < state.point.row), default=0)
        checker = PostgresChecker(spec, transactions if spec.history else 0)
        found.append((state.point, len(context.acknowledged), checker.check(image, context)))
    return found


# ---------------------------------------------------------------------------------- the captures


def test_an_honest_disk_loses_nothing(one_disk: Trace, tmp_path: Path) -> None:
    points = crash_points(one_disk, "flush", states=4, seed=1)
    found = verdicts(one_disk, list(points), ONE_DISK, tmp_path)
    assert len(found) == 4
    for _, acknowledged, verdict in found:
        assert verdict.state in ("none", "recovered", "clean"), verdict
        assert verdict.commits_lost == 0
        assert verdict.commits_found - acknowledged in (0, 1)
    assert [v.state for _, _, v in found].count("recovered") >= 2
    assert "log replayed to" in found[-2][2].detail


def test_two_honest_disks_cut_together_lose_nothing(two_disks: Trace, tmp_path: Path) -> None:
    points = crash_points(two_disks, "flush", states=4, seed=2, volume=two_disks.volumes[0].id)
    found = verdicts(two_disks, list(points), TWO_DISKS, tmp_path)
    assert {v.commits_lost for _, _, v in found} == {0}
    states = [v.state for _, _, v in found]
    assert set(states) <= {"none", "recovered", "clean"}
    assert "recovered" in states


def test_a_clean_end_is_clean(one_disk: Trace, two_disks: Trace, tmp_path: Path) -> None:
    for trace, spec in ((one_disk, ONE_DISK), (two_disks, TWO_DISKS)):
        end = CrashPoint(0, len(trace), "request")
        ((_, acknowledged, verdict),) = verdicts(trace, [end], spec, tmp_path)
        assert (verdict.state, verdict.detail) == ("clean", "nothing to replay")
        assert verdict.commits_found == acknowledged == COMMITS


def test_while_initdb_runs_there_is_no_cluster(one_disk: Trace, tmp_path: Path) -> None:
    made = mark_row(one_disk, "cluster made")
    rows = np.linspace(mark_row(one_disk, "mounted"), made, 5).astype(int)
    points = [CrashPoint(i, int(row), "request") for i, row in enumerate(rows)]
    found = verdicts(one_disk, points, ONE_DISK, tmp_path)
    assert {v.state for _, _, v in found} == {"none"}
    assert found[0][2].detail == "no database cluster"
    assert found[-1][2].detail == "no table 'commits'"


def test_a_cache_that_lies_loses_commits(one_disk: Trace, tmp_path: Path) -> None:
    points = []
    op = one_disk.requests.op
    for number in (30, 150):
        row = mark_row(one_disk, f"commit {number}")
        write = np.flatnonzero(op[:row] == Op.WRITE)[-1]
        flush = int(np.flatnonzero(op[:write] == Op.FLUSH)[-1])
        points.append(CrashPoint(number, row + 1, "lying", durable=flush))
    for _, acknowledged, verdict in verdicts(one_disk, points, ONE_DISK, tmp_path):
        assert verdict.state == "lost", verdict
        assert 1 <= verdict.commits_lost <= 2
        assert verdict.commits_found == acknowledged - verdict.commits_lost
        assert f"commits {verdict.commits_found + 1} to {acknowledged}" in verdict.detail


def test_transactions_are_counted_as_well(one_disk: Trace, tmp_path: Path) -> None:
    row = mark_row(one_disk, "pgbench 400")
    write = np.flatnonzero(one_disk.requests.op[:row] == Op.WRITE)[-1]
    point = CrashPoint(0, row + 1, "lying", durable=int(write) - 40)
    ((_, _, verdict),) = verdicts(one_disk, [point], ONE_DISK, tmp_path)
    assert verdict.state == "lost"
    assert verdict.commits_lost > 1
    assert f"{verdict.commits_lost} rows of pgbench_history are missing" in verdict.detail


def test_disks_cut_apart_are_found_out(two_disks: Trace, tmp_path: Path) -> None:
    """The log of an earlier moment than the data: what no single disk can do."""
    data, log = two_disks.volumes
    points = []
    for i, number in enumerate((61, 150, 240)):
        row = mark_row(two_disks, f"commit {number}") + 1
        old = mark_row(two_disks, f"commit {number - 40}")
        points.append(CrashPoint(i, row, "apart", cuts=((data.id, row), (log.id, old))))
    found = verdicts(two_disks, points, TWO_DISKS, tmp_path)
    states = {v.state for _, _, v in found}
    assert states <= {"lost", "corrupt"}
    assert all(v.commits_lost >= 1 for _, _, v in found)
    # The same moments, together.
    for point, _, verdict in verdicts(
        two_disks, [dataclasses.replace(p, cuts=()) for p in points], TWO_DISKS, tmp_path
    ):
        assert (verdict.state, verdict.commits_lost) == ("recovered", 0), point


def test_the_other_volume_is_needed(two_disks: Trace, tmp_path: Path) -> None:
    point = CrashPoint(0, len(two_disks), "request")
    states = crash_states(two_disks, [point], volume=two_disks.volumes[0].id, folder=tmp_path)
    for state in states:
        with pytest.raises(InputError, match="volume 'log', whose image is not given"):
            PostgresChecker(TWO_DISKS).check(state.image, CheckContext(tmp_path))
        # Its link is not followed: the cluster has no log.
        verdict = PostgresChecker(CLUSTER).check(
            state.image, CheckContext(tmp_path, acknowledged=np.arange(1, 9))
        )
        assert verdict.state == "corrupt"
        assert "pg_wal" in verdict.detail


# -------------------------------------------------------------------- clusters changed on purpose


@pytest.fixture(scope="module")
def pristine(two_disks: Trace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cluster as its server left it, in one tree: ``ROOT/data``."""
    root = tmp_path_factory.mktemp("pristine") / "root"
    root.mkdir()
    point = CrashPoint(0, len(two_disks), "request")
    states = crash_states(two_disks, [point], volume=two_disks.volumes[0].id, folder=root.parent)
    for state in states:
        assert extract_tree(state.images["data"], "/data", root / "data", 60) is not None
        assert extract_tree(state.images["log"], "/wal", root / "data/pg_wal", 60) is not None
    (root / "data").chmod(0o700)
    return root


@pytest.fixture
def root(pristine: Path) -> Iterator[Path]:
    memory = Path("/dev/shm")  # a thousand files: many times as fast there
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        shutil.copytree(pristine, Path(name) / "root", symlinks=True)
        yield Path(name) / "root"


@pytest.fixture
def context(tmp_path: Path) -> CheckContext:
    (tmp_path / "scratch").mkdir()
    return CheckContext(tmp_path / "scratch", True, np.arange(1, COMMITS + 1))


def e2fsprogs(*command: str | Path, check: bool = True) -> str:
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    done = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, check=check, timeout=60,
        env={"PATH": path, "LC_ALL": "C", "DEBUGFS_PAGER": "__none__"},
    )  # fmt: skip
    return done.stdout


def image_of(root: Path) -> Path:
    image = root.with_suffix(".img")
    image.unlink(missing_ok=True)
    e2fsprogs("mke2fs", "-q", "-t", "ext4", "-O", "^metadata_csum", "-d", root, image, "96M")
    return image


def debugfs(image: Path, *commands: str) -> None:
    for command in commands:
        e2fsprogs("debugfs", "-w", "-R", command, image)


def sql(root: Path, *statements: str) -> str:
    """Change a cluster by a server of one's own; what it printed."""
    user = nobody()
    if user is not None:
        for place in (root / "data", *(root / "data").rglob("*")):
            os.chown(place, *user)
    handle = os.open(root / "data", os.O_RDONLY)
    options = (
        "config_file=/dev/null", "fsync=off", "allow_system_table_mods=on",
        "dynamic_shared_memory_type=mmap",
    )  # fmt: skip
    try:
        run = run_confined(
            POSTGRES.find(15),
            ["--single", "-D", f"/proc/self/fd/{handle}",
             *(word for option in options for word in ("-c", option)), "postgres"],
            folder=root, timeout_s=60, file_size=1 << 30, stdin="\n".join(statements) + "\n",
            keep_open=(handle,),
        )  # fmt: skip
    finally:
        os.close(handle)
    assert run.ok, run.errors
    assert "ERROR" not in run.errors, run.errors
    return run.output


def check(root: Path, context: CheckContext, spec: PostgresSpec = CLUSTER) -> DatabaseVerdict:
    return PostgresChecker(spec).check(image_of(root), context)


def test_the_changed_tree_is_judged_as_the_disk_it_came_from(
    root: Path, context: CheckContext
) -> None:
    verdict = check(root, context)
    assert (verdict.state, verdict.commits_found, verdict.commits_lost) == ("clean", COMMITS, 0)


@pytest.mark.parametrize(
    ("statements", "state", "lost", "why"),
    [
        (["DELETE FROM commits WHERE n > 230"], "lost", 10, "commits 231 to 240"),
        (["DELETE FROM commits WHERE n = 9"], "corrupt", 1, "not from 1 on"),
        (["DELETE FROM commits WHERE n = 1"], "corrupt", 1, "239 commits from 2 to 240"),
        (["UPDATE accounts SET balance = balance + 1 WHERE id = 7"], "corrupt", 0, "100001"),
        (["DROP TABLE accounts"], "corrupt", 0, "is None, not 100000"),
        (["DROP TABLE commits"], "lost", COMMITS, "no table 'commits'"),
        (
            ["ALTER TABLE commits RENAME TO c", "CREATE VIEW commits AS SELECT n FROM c"],
            "corrupt", 0, "no ordinary table",
        ),
        (["ALTER TABLE commits ALTER n TYPE text"], "corrupt", None, "no ordinary table"),
        # Rows that their index does not have: only --heapallindexed sees it.
        (
            ["UPDATE pg_index SET indisready = false WHERE indrelid = 'accounts'::regclass",
             "UPDATE accounts SET id = id + 1000 WHERE id = 7",
             "UPDATE pg_index SET indisready = true WHERE indrelid = 'accounts'::regclass"],
            "corrupt", 0, "lacks matching index tuple",
        ),
    ],
)  # fmt: skip
def test_what_a_server_can_say(
    root: Path,
    context: CheckContext,
    statements: list[str],
    state: str,
    lost: int | None,
    why: str,
) -> None:
    sql(root, *statements)
    verdict = check(root, context)
    assert verdict.state == state, verdict
    assert why in verdict.detail
    if lost is not None:
        assert verdict.commits_lost == lost


def relation(root: Path, name: str) -> Path:
    """The file of a table or index."""
    said = sql(root, f"SELECT pg_relation_filepath('{name}') AS place")
    return root / "data" / said.split('place = "')[1].split('"')[0]


def flip(file: Path, offset: int) -> None:
    with file.open("r+b") as handle:
        handle.seek(offset)
        byte = handle.read(1)[0]
        handle.seek(offset)
        handle.write(bytes([byte ^ 0x10]))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("commits", "invalid page in block 3"),
        ("accounts_pkey", "invalid page in block 0"),
        ("", "pg_checksums"),
    ],
)
def test_a_flipped_bit_is_corrupt(root: Path, context: CheckContext, name: str, why: str) -> None:
    # Without a name: a page of a template database, to which no server connects.
    file = relation(root, name) if name else root / "data/base/4/1255"
    flip(file, 5000 + (3 * 8192 if name == "commits" else 0))
    verdict = check(root, context)
    assert verdict.state == "corrupt", verdict
    assert why in verdict.detail


def test_a_table_cut_short_is_corrupt(root: Path, context: CheckContext) -> None:
    file = relation(root, "commits")
    os.truncate(file, file.stat().st_size // 2 // 8192 * 8192)
    verdict = check(root, context)
    assert verdict.state == "corrupt"
    assert 0 < verdict.commits_found < COMMITS
    assert verdict.commits_lost == COMMITS - verdict.commits_found


@pytest.mark.parametrize("gone", ["pg_wal", "global/pg_control", "base/5", "pg_xact/0000"])
def test_missing_parts_are_corrupt(root: Path, context: CheckContext, gone: str) -> None:
    place = root / "data" / gone
    if gone == "pg_wal":
        for segment in place.glob("0000*"):
            segment.unlink()
    elif place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink()
    verdict = check(root, context)
    assert (verdict.state, verdict.commits_lost) == ("corrupt", COMMITS), verdict


def test_nothing_there(root: Path, context: CheckContext) -> None:
    shutil.rmtree(root / "data")
    (root / "data").mkdir()
    nothing = dataclasses.replace(context, acknowledged=np.empty(0, np.int64))
    assert check(root, context).state == "lost"
    assert check(root, context).commits_lost == COMMITS
    assert check(root, nothing).state == "none"
    unmade = dataclasses.replace(context, filesystem_made=False)
    assert check(root, unmade).state == "none"
    (root / "data").rmdir()
    assert check(root, context).state == "lost"
    (root / "data").write_text("a file")
    assert check(root, context).state == "corrupt"


def test_a_version_that_is_not_installed(root: Path, context: CheckContext) -> None:
    (root / "data/PG_VERSION").write_text("99\n")
    with pytest.raises(ToolMissingError, match="apt-get install postgresql-99"):
        check(root, context)
    (root / "data/PG_VERSION").write_text("../../bin\n")
    assert check(root, context).state == "corrupt"


# -------------------------------------------------------------------------- clusters made to harm


@pytest.fixture
def prey() -> Iterator[Path]:
    """A folder of which a program could reach and change everything."""
    with tempfile.TemporaryDirectory(prefix="vmbk-prey-") as name:
        folder = Path(name)
        folder.chmod(0o777)
        (folder / "precious").write_text("precious")
        (folder / "precious").chmod(0o666)
        yield folder
        assert [p.name for p in folder.iterdir()] == ["precious"]
        assert (folder / "precious").read_text() == "precious"


def test_the_clusters_settings_are_not_obeyed(
    root: Path, context: CheckContext, prey: Path
) -> None:
    data = root / "data"
    bait = f"touch {prey}/bait"
    settings = f"""
        archive_mode = on
        archive_command = '{bait}'
        archive_cleanup_command = '{bait}'
        recovery_end_command = '{bait}'
        restore_command = '{bait}'
        shared_preload_libraries = '{prey}/library'
        session_preload_libraries = '{prey}/library'
        ssl = on
        ssl_passphrase_command = '{bait}'
        logging_collector = on
        log_directory = '{prey}'
        external_pid_file = '{prey}/pid'
        stats_temp_directory = '{prey}'
        unix_socket_directories = '{prey}'
        data_directory = '{prey}'
        include_dir = '{prey}'
        port = 1
        listen_addresses = '*'
    """
    for name in ("postgresql.conf", "postgresql.auto.conf"):
        (data / name).write_text(settings)
    (data / "recovery.signal").touch()
    (data / "tablespace_map").write_text(f"16384 {prey}\n")
    (data / "postmaster.pid").write_text(f"{os.getpid()}\n{prey}\n0\n5432\n{prey}\n*\n0 0\n")
    verdict = check(root, context)
    assert verdict.state == "clean", verdict


def test_the_clusters_triggers_and_roles_do_nothing(
    root: Path, context: CheckContext, prey: Path
) -> None:
    sql(
        root,
        "CREATE FUNCTION bait() RETURNS event_trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN COPY (SELECT 1) TO '{prey}/bait'; END $$",
        "CREATE EVENT TRIGGER bait ON ddl_command_start EXECUTE FUNCTION bait()",
        f"ALTER DATABASE postgres SET session_preload_libraries = '{prey}/library'",
        f"ALTER ROLE postgres SET local_preload_libraries = '{prey}/library'",
        "CREATE SCHEMA amcheck",
        "CREATE EXTENSION amcheck SCHEMA amcheck",
        "CREATE OR REPLACE FUNCTION amcheck.bt_index_parent_check(index regclass, "
        "heapallindexed boolean) RETURNS void "
        f"LANGUAGE plpgsql AS $$ BEGIN COPY (SELECT 1) TO '{prey}/bait'; END $$",
    )
    assert check(root, context).state == "clean"


def test_code_in_a_cluster_reaches_nothing(root: Path, context: CheckContext, prey: Path) -> None:
    """What cannot be refused, as an index may be of any function; it runs without rights."""
    if "--mount" not in _unprivileged():
        pytest.skip("this needs root, and a kernel that lets it have mounts of its own")
    harm = f"cat > /dev/null; touch {prey}/bait; echo no > {prey}/precious"
    sql(
        root,
        "CREATE FUNCTION bait(integer) RETURNS integer IMMUTABLE LANGUAGE plpgsql AS "
        "$$ BEGIN RETURN $1; END $$",
        "CREATE INDEX baited ON accounts (bait(id))",
        "CREATE OR REPLACE FUNCTION bait(integer) RETURNS integer VOLATILE LANGUAGE plpgsql AS "
        f"$$ BEGIN COPY (SELECT 1) TO PROGRAM '{harm}'; RETURN $1; END $$",
    )
    verdict = check(root, context)
    assert verdict.state == "corrupt"
    assert "program" in verdict.detail  # it was run,
    assert "failed" in verdict.detail  # and could not write


def test_links_lead_nowhere(root: Path, context: CheckContext, prey: Path) -> None:
    data = root / "data"
    shutil.rmtree(data / "pg_xact")
    (data / "pg_xact").symlink_to(prey)
    (data / "pg_tblspc/16384").symlink_to(prey)
    (data / "base/5/1").symlink_to(prey / "precious")
    verdict = check(root, context)
    assert verdict.state == "corrupt"
    (data / "pg_xact").unlink()


def test_one_name_twice_is_refused(root: Path, context: CheckContext, prey: Path) -> None:
    """A link, and a file of the same name that would be written through it."""
    (root / "data/twice-a").symlink_to(prey / "precious")
    (root / "data/twice-b").write_text("no")
    image = image_of(root)
    image.write_bytes(image.read_bytes().replace(b"twice-b", b"twice-a"))
    verdict = PostgresChecker(CLUSTER).check(image, context)
    assert verdict.state == "corrupt"
    assert "is there twice" in verdict.detail


def test_names_that_could_be_commands_are_refused(root: Path, context: CheckContext) -> None:
    for name in ("a b", "-x;y", "x\n/12/100644/0/0/y/5/", "é"):
        place = root / "data" / name.replace("/", "_")
        place.write_text("x")
        verdict = check(root, context)
        assert verdict.state == "corrupt"
        assert "has an entry" in verdict.detail
        place.unlink()


def test_sizes_beyond_the_disk_are_not_written_out(root: Path, context: CheckContext) -> None:
    image = image_of(root)
    debugfs(image, "sif /data/pg_xact/0000 size 99999999999")
    begun = time.monotonic()
    verdict = PostgresChecker(CLUSTER).check(image, context)
    assert verdict.state == "corrupt"
    assert "more than its disk has" in verdict.detail
    assert time.monotonic() - begun < 30


def test_a_directory_within_itself_is_refused(root: Path, context: CheckContext) -> None:
    image = image_of(root)
    debugfs(image, "ln /data /data/base/again")
    verdict = PostgresChecker(CLUSTER).check(image, context)
    assert verdict.state == "corrupt"
    assert "within itself" in verdict.detail


def test_a_destroyed_file_system_never_raises(root: Path, context: CheckContext) -> None:
    image = image_of(root)
    values = np.random.default_rng(7)
    states = []
    for _ in range(4):
        with image.open("r+b") as file:
            for offset in values.integers(1024, 4 << 20, 60):
                file.seek(int(offset))
                file.write(values.bytes(64))
        states.append(PostgresChecker(CLUSTER).check(image, context).state)
    assert states[-1] in ("lost", "corrupt")


def test_a_tree_is_copied_as_it_is(root: Path, tmp_path: Path) -> None:
    tree = extract_tree(image_of(root), "/data", tmp_path / "copy", 60)
    assert tree is not None
    assert tree.left_out == []
    places = {str(p.relative_to(root / "data")) for p in (root / "data").rglob("*") if p.is_file()}
    assert set(tree.files) == places
    for place, size in tree.files.items():
        content = (tmp_path / "copy" / place).read_bytes()
        assert len(content) == size
        assert content == (root / "data" / place).read_bytes()
    empty = {p.name for p in (root / "data").iterdir() if p.is_dir()}
    assert empty == {p.name for p in (tmp_path / "copy").iterdir() if p.is_dir()}
    assert extract_tree(image_of(root), "/absent", tmp_path / "none", 60) is None
    with pytest.raises(UnreadableError, match="not a directory"):
        extract_tree(image_of(root), "/data/PG_VERSION", tmp_path / "none", 60)


# ------------------------------------------------------------------------------ bounds, contract


def test_time_is_bounded(root: Path, context: CheckContext) -> None:
    hurried = dataclasses.replace(context, timeout_s=1e-6)
    verdict = check(root, hurried)
    assert verdict.state == "corrupt"
    assert "timed out" in verdict.detail


def _running(word: str) -> set[str]:
    """Numbers of the processes with this in their command line."""
    found = set()
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if word.encode() in place.read_bytes():
                found.add(place.parent.name)
    return found


def _stays(seen: Callable[[], set[str]]) -> set[str]:
    """What is there now and does not go: tests beside this one have servers too, which do."""
    left, until = seen(), time.monotonic() + 60
    while left and time.monotonic() < until:
        time.sleep(0.1)
        left &= seen()
    return left


def test_all_that_a_program_started_ends_with_it(tmp_path: Path) -> None:
    # In a session of its own only where processes can be confined as well.
    alone = "setsid " if "--pid" in _unprivileged() else ""
    begun = time.monotonic()
    run = run_confined(
        "/bin/sh", ["-c", f"{alone}sleep 3171.25 & sleep 3171.5"], folder=tmp_path,
        timeout_s=0.5, file_size=0,
    )  # fmt: skip
    assert run.timed_out
    assert time.monotonic() - begun < 20
    for _ in range(100):
        if not _running("sleep\0003171."):
            break
        time.sleep(0.05)
    assert not _running("sleep\0003171.")


def test_a_program_is_confined(tmp_path: Path) -> None:
    script = "id -u; grep NoNewPrivs /proc/self/status; head -c 99999999 /dev/zero"
    run = run_confined("/bin/sh", ["-c", script], folder=tmp_path, timeout_s=60, file_size=0)
    user = nobody()
    who, privileges, *_ = run.output.splitlines()
    assert int(who) == (user[0] if user else os.getuid())
    assert privileges.split() == ["NoNewPrivs:", "1"]
    assert run.code != 0  # its output was cut
    assert len(run.output) <= 16 << 20
    killed = run_confined(
        "/bin/sh", ["-c", "kill -SEGV $$"], folder=tmp_path, timeout_s=60, file_size=0,
        unprivileged=False,
    )  # fmt: skip
    assert killed.code == -signal.SIGSEGV


def test_shared_memory_that_is_left_over_is_removed(tmp_path: Path) -> None:
    """A server that is killed leaves a segment, where it had no shared memory of its own."""
    ipcmk = require_tool("ipcmk", package="util-linux")
    run = run_confined(
        str(ipcmk), ["-M", "4096"], folder=tmp_path, timeout_s=60, file_size=0, unprivileged=False
    )
    number = run.output.split()[-1]
    assert number.isdigit(), run
    rows = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    assert number not in {row.split()[1] for row in rows}


def test_the_checker_keeps_the_contract_in_several_threads(
    root: Path, context: CheckContext
) -> None:
    checker = PostgresChecker(CLUSTER)
    assert isinstance(checker, Checker)
    assert {tool.package for tool in checker.tools} == {"e2fsprogs", "util-linux", "postgresql"}
    assert all(Path(tool.find()).is_file() for tool in checker.tools)
    images = [image_of(root)]
    images += [root.with_name(f"{i}.img") for i in range(2)]
    for copy in images[1:]:
        copy_image(images[0], copy)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda image: checker.check(image, context), images))
    assert [v.state for v in found] == ["clean"] * 3
    assert all(v.checker == checker.name and v.seconds > 0 for v in found)
    assert list(context.folder.iterdir()) == []
    assert not _stays(lambda: {p.name for p in Path("/dev/shm").glob("vmbk-postgresql-*")})
    assert not _stays(lambda: _running("config_file=/proc/self/fd"))


def test_pg_amcheck_agrees(root: Path, context: CheckContext) -> None:
    """The real program, on a server of its own, finds what the checker finds and no more."""
    sql(root, "CREATE EXTENSION amcheck")
    assert check(root, context).state == "clean"
    assert pg_amcheck(root) == (0, "")
    sql(
        root,
        "UPDATE pg_index SET indisready = false WHERE indrelid = 'accounts'::regclass",
        "UPDATE accounts SET id = id + 1000 WHERE id = 7",
        "UPDATE pg_index SET indisready = true WHERE indrelid = 'accounts'::regclass",
    )
    code, said = pg_amcheck(root)
    assert code == 2
    verdict = check(root, context)
    assert verdict.state == "corrupt"
    assert verdict.detail.removeprefix("ERROR:  ") in said


def pg_amcheck(root: Path) -> tuple[int, str]:
    """How it ends, and what it says, on a server that only this machine's socket reaches."""
    programs = Path(POSTGRES.find(15)).parent
    user = nobody()
    drop: dict[str, object] = {}
    if user is not None:
        drop = {"user": user[0], "group": user[1], "extra_groups": []}
    handle = os.open(root / "data", os.O_RDONLY)
    place = f"/proc/self/fd/{handle}"
    (root / "data/hba").write_text("local all all trust\n")
    options = {
        "config_file": "/dev/null", "hba_file": f"{place}/hba", "ident_file": "/dev/null",
        "listen_addresses": "", "unix_socket_directories": place, "fsync": "off",
    }  # fmt: skip

    def start(name: str, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
            [str(programs / name), *arguments], cwd="/", pass_fds=(handle,), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"}, **drop,
        )  # fmt: skip

    server = start(
        "postgres", "-D", place, *(w for k, v in options.items() for w in ("-c", f"{k}={v}"))
    )
    try:
        assert server.stdout is not None
        while "ready to accept connections" not in server.stdout.readline():
            assert server.poll() is None
        with start(
            "pg_amcheck", "-h", place, "-U", "postgres", "-d", "postgres",
            "--heapallindexed", "--parent-check",
        ) as run:  # fmt: skip
            said = run.communicate(timeout=60)[0]
        return run.returncode, said
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=60)
        os.close(handle)


@pytest.mark.parametrize(
    "make",
    [
        lambda: PostgresSpec("/data; quit"),
        lambda: PostgresSpec("/data", database='x"; DROP'),
        lambda: PostgresSpec("/data", history="a b"),
        lambda: PostgresSpec("/data", log=("log", "../wal")),
        lambda: PostgresSpec("/data", table="1"),
    ],
)
def test_names_that_are_not_plain_are_refused(make: Callable[[], PostgresSpec]) -> None:
    with pytest.raises(InputError):
        make()
