"""The SQLite checker: recovery, ``integrity_check``, and the acknowledged commits counted.

========= ========================================================================================
none      the database, or its table of commits, is not there, and no commit was acknowledged.
clean     it was consistent as it lay: no frame of a write-ahead log and no hot journal to recover.
recovered SQLite recovered frames of the write-ahead log, or rolled back a hot journal.
lost      consistent, and acknowledged commits are missing at its end; or all of them are, because
          the file or the table is gone.
corrupt   SQLite or ``PRAGMA integrity_check`` says so, the file cannot be read back from its file
          system, the numbers of the commits have a gap, or a total is not what every commit keeps.
========= ========================================================================================

In ``clean`` and ``recovered`` no acknowledged commit is missing. Commits that were not yet
acknowledged may be there: a commit is durable a moment before its program hears of it. Integrity
alone misses lost commits (a database of yesterday is consistent), which is why they are counted.

The database is read back with ``debugfs`` beside its ``-wal`` and its ``-journal``; the ``-shm``
is memory that a power cut takes with it.
"""

from __future__ import annotations

import re
import sqlite3
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, perf_counter
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vmbk.consistency.checkers import CheckContext, Tool, Verdict
from vmbk.consistency.extract import DEBUGFS as DEBUGFS
from vmbk.consistency.extract import PLAIN_PATH, UnreadableError, extract_file
from vmbk.errors import InputError, IntegrityError, StorageError

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_JOURNAL_MAGIC: Final = bytes.fromhex("d9d505f920a163d7")
_OPS_PER_POLL: Final = 50_000  # virtual machine steps between looks at the clock, about 1 ms
_MAX_VALUE: Final = 256 << 20  # bytes; larger than any value of a recipe, far below memory


@dataclass(frozen=True)
class Invariant:
    """A total that every transaction of a workload keeps: half a transaction would change it.

    Parameters
    ----------
    table, column : str
        An integer column.
    total : int
        The sum over the column after every commit.

    Raises
    ------
    InputError
        If a name is not plain.
    """

    table: str
    column: str
    total: int

    def __post_init__(self) -> None:
        _check_names(self.table, self.column)


@dataclass(frozen=True)
class DatabaseSpec:
    """Where a capture's database lies and how its commits are counted.

    Parameters
    ----------
    path : str
        Absolute path within the file system, of plain names: letters, digits, ``.``, ``_``,
        ``+`` and ``-``, none starting with a dot. It becomes part of a debugfs command.
    table, column : str
        A table with one row per commit and its integer column that numbers them without a gap.
    first : int
        Number of the first commit.
    invariant : Invariant, optional
        What holds once there is a commit.

    Raises
    ------
    InputError
        If a name holds anything else.
    """

    path: str
    table: str = "commits"
    column: str = "n"
    first: int = 1
    invariant: Invariant | None = None

    def __post_init__(self) -> None:
        if not PLAIN_PATH.fullmatch(self.path) or len(self.path) > 1024:
            raise InputError(
                f"{self.path!r} is not a usable path of a database",
                hint="write it from the root of its file system, as /data/app.db",
            )
        _check_names(self.table, self.column)


def _check_names(table: str, column: str) -> None:
    """Refuse what is not plain: SQL has no parameters for names."""
    for what, name in (("table", table), ("column", column)):
        if not _NAME.fullmatch(name):
            raise InputError(f"{name!r} is not a plain name of a {what}")


@dataclass(frozen=True)
class DatabaseVerdict(Verdict):
    """A verdict on a database, with its commits counted.

    Parameters
    ----------
    commits_found : int
        Commits that the database holds; 0 where it cannot be read.
    commits_lost : int
        Acknowledged commits that it does not hold.
    """

    commits_found: int = 0
    commits_lost: int = 0


@dataclass(frozen=True)
class SqliteChecker:
    """Judges a SQLite database on an ext4, xfs or btrfs image; the rule is in the module.

    Python's own SQLite opens a scratch copy with an untrusted schema, a bound on the size of a
    value, and a progress handler that ends it when its time is up.
    """

    database: DatabaseSpec
    filesystem: str = "ext4"
    name: str = "sqlite"
    tools: tuple[Tool, ...] = (DEBUGFS,)
    states: tuple[str, ...] = ("none", "clean", "recovered", "lost", "corrupt")

    def check(self, image: Path, context: CheckContext) -> DatabaseVerdict:
        """Judge the database on a file system that was replayed already; see `Checker.check`."""
        started = perf_counter()
        lost = len(context.acknowledged)
        if context.filesystem_made is False:
            return self._verdict("none", "mkfs had not finished", 0, 0, started)
        absent = "lost" if lost else "none"
        with tempfile.TemporaryDirectory(prefix="sqlite-", dir=context.folder) as name:
            folder = Path(name)
            try:
                if not self._extract(image, "", folder, context.timeout_s):
                    return self._verdict(absent, "no database file", 0, lost, started)
                self._extract(image, "-wal", folder, context.timeout_s)
                if self._extract(image, "-journal", folder, context.timeout_s):
                    _refuse_super_journal(folder / "database-journal")
                content = _read(folder / "database", self.database, context.timeout_s)
            except UnreadableError as error:
                return self._verdict("corrupt", str(error), 0, lost, started)
        if content is None:
            return self._verdict(absent, f"no table {self.database.table!r}", 0, lost, started)
        return self._count(content, context, started)

    def _count(self, content: _Content, context: CheckContext, started: float) -> DatabaseVerdict:
        found, first = content.commits, self.database.first
        missing = np.setdiff1d(context.acknowledged, found)
        how = "recovered" if content.recovered else "clean"
        detail = content.recovered or "nothing to recover"
        if not np.array_equal(found, np.arange(first, first + len(found))):
            how = "corrupt"
            detail = f"{len(found)} commits from {found[0]} to {found[-1]}: not from {first} on"
        elif content.broken:
            how, detail = "corrupt", content.broken
        elif len(missing):
            how = "lost"
            detail = f"commits {missing[0]} to {missing[-1]} are missing; {detail}"
        return self._verdict(how, detail, len(found), len(missing), started)

    def _verdict(
        self, state: str, detail: str, found: int, lost: int, started: float
    ) -> DatabaseVerdict:
        seconds = perf_counter() - started
        return DatabaseVerdict(self.name, state, detail, "", seconds, found, lost)

    def _extract(self, image: Path, suffix: str, folder: Path, timeout_s: float) -> bool:
        """Copy the file out of the image as ``database`` + ``suffix``; False where it is absent."""
        path, target = self.database.path + suffix, folder / f"database{suffix}"
        if self.filesystem != "ext4":
            return _extract_from(self.filesystem, image, path, target, timeout_s)
        return extract_file(image, path, target, timeout_s)


def _extract_from(filesystem: str, image: Path, path: str, copy: Path, timeout_s: float) -> bool:
    """The same for the other file systems."""
    from vmbk.consistency.btrfs import read_btrfs_files
    from vmbk.consistency.xfs import read_xfs_files

    read = {"xfs": read_xfs_files, "btrfs": read_btrfs_files}[filesystem]
    try:
        found = read(image, [path], copy.parent, timeout_s=timeout_s)
    except IntegrityError as error:
        raise UnreadableError(error.message) from error
    if path in found:
        found[path].replace(copy)
    return path in found


@dataclass(frozen=True, eq=False)
class _Content:
    commits: NDArray[np.int64]  # their numbers, ascending
    recovered: str  # what was recovered, "" where nothing was
    broken: str  # how the invariant is broken, "" where it is not


def _refuse_super_journal(journal: Path) -> None:
    """Raise where a journal names a super-journal: SQLite would open, and delete, that path.

    The trailer is described in SQLite's "Database File Format", section 3. A transaction over
    several database files makes one; an image made to harm could name any file of this machine.
    """
    with journal.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - len(_JOURNAL_MAGIC)))
        if size >= 28 and file.read() == _JOURNAL_MAGIC:
            raise UnreadableError("its rollback journal names a super-journal, which is refused")


def _read(path: Path, spec: DatabaseSpec, timeout_s: float) -> _Content | None:
    """Recover, check and count; None where the table is not there."""
    journal = path.with_name(path.name + "-journal")
    hot = journal.is_file() and journal.stat().st_size > 0
    deadline = monotonic() + timeout_s
    try:
        with closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None)
        ) as database:
            database.text_factory = bytes
            database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_VALUE)
            database.set_progress_handler(lambda: monotonic() > deadline, _OPS_PER_POLL)
            database.execute("PRAGMA trusted_schema=OFF")
            database.execute("PRAGMA cell_size_check=ON")
            # The first read recovers: it plays back a hot journal or indexes the log's frames.
            wrong = [row[0] for row in database.execute("PRAGMA integrity_check(20)")]
            if wrong != [b"ok"]:
                said = b"; ".join(bytes(w) for w in wrong).decode("utf-8", "replace")
                raise UnreadableError(f"integrity_check: {said[:1000]}")
            rolled_back = hot and not journal.exists()
            commits = _commits(database, spec)
            broken = ""
            if commits is not None and len(commits) and spec.invariant is not None:
                broken = _broken(database, spec.invariant)
            # The log's frames as SQLite counts them after recovery; -1 without a log.
            _, frames, _ = database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    except (sqlite3.Error, MemoryError, OverflowError, ValueError) as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise StorageError("no space for the scratch copy of a database") from error
        if monotonic() > deadline:
            raise UnreadableError(f"SQLite did not finish in {timeout_s:g} s") from error
        raise UnreadableError(f"SQLite: {error}") from error
    if commits is None:
        return None
    recovered = f"{frames} frames of the log" if frames > 0 else ""
    recovered = recovered or ("hot journal rolled back" if rolled_back else "")
    return _Content(commits, recovered, broken)


def _commits(database: sqlite3.Connection, spec: DatabaseSpec) -> NDArray[np.int64] | None:
    """The numbers of the commits, ascending; None where there is no such ordinary table."""
    if not _is_table(database, spec.table):
        return None
    numbers = [row[0] for row in database.execute(f'SELECT "{spec.column}" FROM "{spec.table}"')]
    odd = [n for n in numbers if type(n) is not int]
    if odd:
        raise UnreadableError(f"a commit is numbered {str(odd[0])[:60]}, which is no integer")
    return np.sort(np.array(numbers, np.int64))


def _broken(database: sqlite3.Connection, invariant: Invariant) -> str:
    """How the invariant is broken, "" where it holds."""
    if not _is_table(database, invariant.table):
        return f"there are commits and no table {invariant.table!r}"
    name = f'"{invariant.column}"'
    (total,) = database.execute(f'SELECT sum({name}) FROM "{invariant.table}"').fetchone()
    if total == invariant.total:
        return ""
    return f"the sum of {invariant.table}.{invariant.column} is {total}, not {invariant.total}"


def _is_table(database: sqlite3.Connection, name: str) -> bool:
    """Whether there is such a table; raises where it is a view or a virtual table."""
    kinds = database.execute(
        "SELECT type, rootpage FROM sqlite_master WHERE name = ?", (name,)
    ).fetchall()
    if kinds and (len(kinds) > 1 or kinds[0][0] != b"table" or not kinds[0][1]):
        raise UnreadableError(f"{name!r} is not an ordinary table")
    return bool(kinds)
