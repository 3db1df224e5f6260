"""A PostgreSQL server on a scratch copy of a cluster: it replays its log and is asked about it.

It runs in single-user mode: the same start, replay and shutdown as of any server, in one process
without a socket, without a password and with nothing in the background. In this mode it also
ignores event triggers and what is set for databases and roles, which a cluster made to harm would
use. The cluster's own configuration is replaced. What stays is code in its catalogues, and that
runs without rights; see `confined`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from vmbk.consistency.checkers import Tool
from vmbk.consistency.confined import ConfinedRun, nobody, run_confined
from vmbk.consistency.extract import UnreadableError
from vmbk.errors import StorageError, ToolMissingError

if TYPE_CHECKING:
    from vmbk.consistency.postgresql import PostgresSpec

LEFT_BEHIND: Final = re.compile(
    r"postgresql(\.auto)?\.conf|pg_(hba|ident)\.conf|recovery\.(conf|signal)|standby\.signal"
    r"|tablespace_map|postmaster\.(pid|opts)|(pg_dynshmem|pg_replslot|pg_stat_tmp)/.*"
)
"""What tells a server how to behave, or belongs to the one that is no more: it is not copied."""

MOST_RANGES: Final = 1000
"""Gapless runs of commits that are read; a table with more of them is corrupt in any case."""

_INSTALLED: Final = ((Path("/usr/lib/postgresql"), "*/bin"), (Path("/usr"), "pgsql-*/bin"))
# Where Debian and Red Hat keep the programs of each major version.

_SETTINGS: Final = """\
# A scratch copy need not last.
fsync = off
full_page_writes = off
synchronous_commit = off
wal_level = minimal
max_wal_senders = 0
wal_init_zero = off
wal_recycle = off
min_wal_size = 2GB
max_wal_size = 4GB
# Nothing outside, nothing in the background.
listen_addresses = ''
unix_socket_directories = ''
archive_mode = off
autovacuum = off
jit = off
max_parallel_workers = 0
dynamic_shared_memory_type = mmap
huge_pages = off
shared_buffers = 16MB
maintenance_work_mem = 32MB
max_connections = 4
max_prepared_transactions = 64
max_locks_per_transaction = 1024
# What is wrong must be seen, and said in a way that can be read.
ignore_checksum_failure = off
zero_damaged_pages = off
log_destination = stderr
logging_collector = off
log_line_prefix = ''
log_min_messages = warning
log_min_error_statement = panic
log_error_verbosity = terse
log_checkpoints = off
lc_messages = 'C'
timezone = 'GMT'
search_path = 'pg_catalog, public'
"""

# With amcheck, what `pg_amcheck --heapallindexed --parent-check` asks for, of one database. The
# cluster may bring an extension of that name that is none.
_CHECKS: Final = (
    "DROP EXTENSION IF EXISTS amcheck CASCADE",
    "CREATE SCHEMA vmbk_check",
    "CREATE EXTENSION amcheck SCHEMA vmbk_check",
    "SELECT c.oid::regclass::text || ', block ' || v.blkno || ': ' || v.msg AS vmbk_heap "
    "FROM pg_class c, LATERAL vmbk_check.verify_heapam(c.oid, check_toast => true) v "
    "WHERE c.relam = 2 AND c.relkind IN ('r', 'm', 't') AND c.relpersistence <> 't' LIMIT 10",
    "SELECT vmbk_check.bt_index_parent_check(c.oid, true) "
    "FROM pg_class c JOIN pg_index i ON i.indexrelid = c.oid "
    "WHERE c.relam = 403 AND c.relkind = 'i' AND c.relpersistence <> 't' "
    "AND i.indisready AND i.indisvalid AND i.indislive",
)

# The server prints a row in single-user mode as one line for each column.
_COLUMN: Final = re.compile(r'^\t *\d+: vmbk_(\w+) = "(.*)"\t\(typeid = ', re.MULTILINE)
_TROUBLE: Final = re.compile(r"^(?:ERROR|FATAL|PANIC):  .*", re.MULTILINE)
_ABSENT: Final = re.compile(r'ERROR:  relation "public\.\w+" does not exist')
_MACHINE: Final = re.compile("shared memory|semaphore|incompatible with operating system")
_REDONE: Final = re.compile(r"redo done at ([0-9A-F]+/[0-9A-F]+)")
_CLUSTER_STATE: Final = re.compile(r"^Database cluster state: +(.*)$", re.MULTILINE)
_CHECKSUMS_ON: Final = re.compile(r"^Data page checksum version: +[1-9]", re.MULTILINE)


@dataclass(frozen=True)
class PostgresTool(Tool):
    """A program of the PostgreSQL server, of which several major versions may be installed."""

    def find(self, major: int | None = None) -> str:
        """Path of the program of a major version; of the newest where none is named.

        Raises
        ------
        ToolMissingError
            If it is not installed; the hint names the package.
        """
        versions = {
            int(number[0]): place / self.name
            for root, pattern in _INSTALLED
            for place in root.glob(pattern)
            if (number := re.findall(r"\d+", place.parent.name)) and (place / self.name).is_file()
        }
        wanted = max(versions, default=0) if major is None else major
        if wanted not in versions:
            package = self.package if major is None else f"{self.package}-{major}"
            raise ToolMissingError(self.name, package)
        return str(versions[wanted])


POSTGRES: Final = PostgresTool("postgres", "postgresql")
CONTROLDATA: Final = PostgresTool("pg_controldata", "postgresql")
CHECKSUMS: Final = PostgresTool("pg_checksums", "postgresql")


@dataclass(frozen=True, eq=False)
class Content:
    """What a cluster holds, as its server says after the replay.

    Parameters
    ----------
    kind : str or None
        Kind of the table of commits and oid of its column's type; None without such a table.
    ranges : ndarray of int64, shape (n, 2)
        First and last number of each gapless run of commits, in ascending order.
    count, history : int
        Rows of the tables of commits and of further transactions.
    total : str or None
        The sum that the invariant is about; None where it cannot be had.
    replayed : str
        What was replayed, "" where the server had been shut down.
    wrong : str
        The first thing that the server or a tool calls wrong, "" where there is none.
    note : str
        What could not be checked, "" where all was.
    """

    kind: str | None
    ranges: NDArray[np.int64]
    count: int
    history: int
    total: str | None
    replayed: str
    wrong: str
    note: str

    def missing(self, commits: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of some numbers of commits that the table does not have."""
        if not len(self.ranges):
            return commits
        reach = np.maximum.accumulate(self.ranges[:, 1])
        place = np.searchsorted(self.ranges[:, 0], commits, side="right") - 1
        return commits[(place < 0) | (commits > reach[place])]


def serve(folder: Path, spec: PostgresSpec, file_size: int, timeout_s: float) -> Content:
    """Let a server replay the cluster in ``folder/data``, check it and shut it down.

    Parameters
    ----------
    folder : Path
        A scratch directory; the cluster in it is changed.
    spec : PostgresSpec
    file_size : int
        Bytes that any file may grow to.
    timeout_s : float
        Seconds for each program.

    Raises
    ------
    UnreadableError
        If the server does not start, or not end.
    ToolMissingError
        If no server of the cluster's version is installed.
    StorageError
        If the scratch space is full, or this machine cannot run a server.
    """
    major = _major(folder / "data")
    programs = {tool: tool.find(major) for tool in (POSTGRES, CONTROLDATA, CHECKSUMS)}
    amcheck = (Path(programs[POSTGRES]).parents[1] / "lib" / "amcheck.so").is_file()
    (folder / "postgresql.conf").write_text(_SETTINGS)
    _hand_over(folder)
    with _place(folder) as (place, handle):

        def run(
            tool: PostgresTool, *arguments: str, stdin: str = "", unprivileged: bool = True
        ) -> ConfinedRun:
            ended = run_confined(
                programs[tool], arguments, folder=folder, timeout_s=timeout_s, file_size=file_size,
                stdin=stdin, keep_open=(handle,), unprivileged=unprivileged,
            )  # fmt: skip
            if "No space left on device" in ended.errors:
                raise StorageError("no space for the scratch copy of a database")
            if ended.timed_out:
                raise UnreadableError(f"{tool.name} did not finish in {timeout_s:g} s")
            return ended

        control = run(CONTROLDATA, "-D", f"{place}/data", unprivileged=False).output
        server = run(
            POSTGRES, "--single", "-D", f"{place}/data",
            "-c", f"config_file={place}/postgresql.conf", spec.database,
            stdin="".join(f"{s}\n" for s in _statements(spec, amcheck)),
        )  # fmt: skip
        rows: dict[str, list[str]] = {}
        for name, value in _COLUMN.findall(server.output):
            rows.setdefault(name, []).append(value)
        said = [t[0] for t in _TROUBLE.finditer(server.errors)]
        if "done" not in rows or server.code:
            why = said[-1] if said else server.errors.strip()[-300:]
            # The cluster is not to blame if the server says nothing of it, or of this machine.
            if _MACHINE.search(why) or (server.code > 0 and not said):
                raise StorageError(f"the database server cannot run: {why[:500]}")
            ending = why or f"signal {-server.code}"
            raise UnreadableError(f"the server ended: {ending[:500]}")
        wrong = [s for s in said if not _ABSENT.match(s)] + rows.get("heap", [])
        if not wrong and _CHECKSUMS_ON.search(control):
            checked = run(CHECKSUMS, "--check", "-D", f"{place}/data")
            if not checked.ok:
                wrong.append(f"pg_checksums: {(checked.errors or checked.output).strip()}")
    state = _CLUSTER_STATE.search(control)
    replayed = ""
    if state is None or state[1] != "shut down":
        redone = _REDONE.search(server.errors)
        replayed = f"log replayed to {redone[1]}" if redone else "no log to replay"
    ranges = [r.split() for r in rows.get("range", [])]
    return Content(
        kind=rows["kind"][0] if "kind" in rows else None,
        ranges=np.array(ranges, np.int64).reshape(-1, 2),
        count=int(rows.get("count", ["0"])[0]),
        history=int(rows.get("history", ["0"])[0]),
        total=rows.get("total", [None])[0],
        replayed=replayed,
        wrong=wrong[0][:500] if wrong else "",
        note="" if amcheck else "; amcheck is not installed",
    )


def _major(data: Path) -> int:
    """The cluster's major version."""
    text = (data / "PG_VERSION").read_bytes()[:10].strip()
    if not text.isdigit():
        raise UnreadableError(f"PG_VERSION is {text!r}")
    return int(text)


def _hand_over(folder: Path) -> None:
    """Give the cluster to the user that the server runs as."""
    data = folder / "data"
    data.chmod(0o700)
    user = nobody()
    if user is None:
        return
    folder.chmod(0o711)
    os.chown(data, *user)
    for place in data.rglob("*"):
        os.chown(place, *user, follow_symlinks=False)


@contextmanager
def _place(folder: Path) -> Generator[tuple[str, int]]:
    """A path of the folder for programs that inherit the handle, and the handle.

    It is short, and leads there although another user may not pass the folders above.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{handle}", handle
    finally:
        os.close(handle)


def _statements(spec: PostgresSpec, amcheck: bool) -> Generator[str]:
    """What the server is asked, a statement a line; all names are plain."""
    commits = f'ONLY public."{spec.table}"'
    yield (
        "SELECT c.relkind::text || ' ' || a.atttypid AS vmbk_kind "
        "FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid "
        f"WHERE c.relnamespace = to_regnamespace('public') AND c.relname = '{spec.table}' "
        f"AND a.attname = '{spec.column}' AND a.attnum > 0 AND NOT a.attisdropped"
    )
    yield f"SELECT count(*) AS vmbk_count FROM {commits}"
    # The difference of a number and its rank is the same all along a gapless run.
    yield (
        "SELECT min(n) || ' ' || max(n) AS vmbk_range FROM "
        f"(SELECT n, n - row_number() OVER (ORDER BY n) AS run FROM "
        f'(SELECT "{spec.column}"::int8 AS n FROM {commits}) AS numbers) AS runs '
        f"GROUP BY run ORDER BY min(n), max(n) LIMIT {MOST_RANGES}"
    )
    if spec.invariant is not None:
        yield (
            f'SELECT sum("{spec.invariant.column}") AS vmbk_total '
            f'FROM ONLY public."{spec.invariant.table}"'
        )
    if spec.history is not None:
        yield f'SELECT count(*) AS vmbk_history FROM ONLY public."{spec.history}"'
    if amcheck:
        yield from _CHECKS
    yield "SELECT 1 AS vmbk_done"
