"""The PostgreSQL checker: a real server replays its log, then everything in it is checked.

========= ========================================================================================
none      the cluster, or its table of commits, is not there or not made yet, and no commit was
          acknowledged.
clean     the server had been shut down: there was no log to replay.
recovered the server replayed its write-ahead log.
lost      consistent, and acknowledged commits are missing at its end; or all of them are, because
          the cluster or the table is gone.
corrupt   the server does not start or says that something is wrong, a heap, an index or a checksum
          is, the cluster cannot be read back from its file system, the numbers of the commits have
          a gap, or a total is not what every commit keeps.
========= ========================================================================================

In ``clean`` and ``recovered`` no acknowledged commit is missing. The checks are those of
``pg_amcheck --heapallindexed --parent-check`` on the database, made by the server's own ``amcheck``
(each heap, each B-tree, and whether each row of the heap is in it), and after a clean stop
``pg_checksums --check`` on the whole cluster.

An emulated crash while ``initdb`` runs leaves half a cluster on which no server starts, and nothing
in it tells that from a damaged one. Where no commit was acknowledged, such a cluster is ``none``.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Final

from vmbk.consistency.checkers import CheckContext, Tool
from vmbk.consistency.confined import PRLIMIT, SETPRIV, UNSHARE
from vmbk.consistency.ext4 import Ext4Checker, Superblock
from vmbk.consistency.extract import DEBUGFS, UnreadableError, extract_tree
from vmbk.consistency.postgres_server import (
    CHECKSUMS,
    CONTROLDATA,
    LEFT_BEHIND,
    POSTGRES,
    Content,
    serve,
)
from vmbk.consistency.scratch import scratch_folder
from vmbk.consistency.sqlite import DatabaseSpec, DatabaseVerdict
from vmbk.errors import InputError
from vmbk.units import quoted

_TOOLS: Final = (DEBUGFS, PRLIMIT, SETPRIV, UNSHARE, POSTGRES, CONTROLDATA, CHECKSUMS)
_INTEGER_TABLES: Final = (
    "r 20",
    "r 21",
    "r 23",
)  # an ordinary table, and the oids of int8, int2, int4


@dataclass(frozen=True)
class PostgresSpec(DatabaseSpec):
    """Where a capture's cluster lies and how its commits are counted; see `DatabaseSpec`.

    Its path is that of the cluster's directory.

    Parameters
    ----------
    database : str
        Name of the database with the tables, which are in its schema ``public``.
    log : tuple of (str, str), optional
        Where the write-ahead log lies if on another volume: that volume's name, and the path of
        the directory on it.
    history : str, optional
        A table with a row for each further transaction, as ``pgbench_history``.

    Raises
    ------
    InputError
        If a name or path is not plain.
    """

    database: str = "postgres"
    log: tuple[str, str] | None = None
    history: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (self.database, self.history):
            if name is not None:
                DatabaseSpec(self.path, table=name)
        if self.log is not None:
            DatabaseSpec(self.log[1])


@dataclass(frozen=True)
class PostgresChecker:
    """Judges a PostgreSQL cluster on an ext4 image; the rule is in the module.

    Parameters
    ----------
    database : PostgresSpec
    transactions : int
        Rows of the table ``history`` that were acknowledged before the cut. Those that are missing
        count as lost commits.
    """

    database: PostgresSpec
    transactions: int = 0
    name: str = "postgresql"
    tools: tuple[Tool, ...] = _TOOLS
    states: tuple[str, ...] = ("none", "clean", "recovered", "lost", "corrupt")

    def check(self, image: Path, context: CheckContext) -> DatabaseVerdict:
        """Judge the cluster on a file system that was replayed already; see `Checker.check`.

        Raises
        ------
        InputError
            If the volume with the write-ahead log is not among ``context.others``.
        """
        started = perf_counter()
        acknowledged = len(context.acknowledged) + self.transactions

        def verdict(state: str, detail: str, found: int, lost: int) -> DatabaseVerdict:
            seconds = perf_counter() - started
            return DatabaseVerdict(self.name, state, detail, "", seconds, found, lost)

        if context.filesystem_made is False:
            return verdict("none", "mkfs had not finished", 0, 0)
        absent = "lost" if acknowledged else "none"
        size = image.stat().st_size
        # A thousand files are made: on a disk, that takes several times as long as all the rest.
        place = scratch_folder(2 * size) or context.folder
        with tempfile.TemporaryDirectory(prefix="vmbk-postgresql-", dir=place) as name:
            folder = Path(name)
            try:
                left_out = self._extract(image, folder, context)
                if left_out is None:
                    return verdict(absent, "no database cluster", 0, acknowledged)
                content = serve(folder, self.database, size, context.timeout_s)
            except UnreadableError as error:
                state = "corrupt" if acknowledged else "none"
                return verdict(state, str(error), 0, acknowledged)
        if content.kind is None:
            return verdict(absent, f"no table {self.database.table!r}", 0, acknowledged)
        missing = content.missing(context.acknowledged)
        behind = max(self.transactions - content.history, 0)
        state = "recovered" if content.replayed else "clean"
        detail = content.replayed or "nothing to replay"
        if wrong := self._wrong(content):
            state, detail = "corrupt", wrong
        elif len(missing):
            state = "lost"
            detail = f"commits {missing[0]} to {missing[-1]} are missing; {detail}"
        elif behind:
            state = "lost"
            detail = f"{behind} rows of {self.database.history} are missing; {detail}"
        if left_out:
            detail += f"; not copied: {', '.join(left_out)[:200]}"
        return verdict(state, detail + content.note, content.count, len(missing) + behind)

    def _extract(self, image: Path, folder: Path, context: CheckContext) -> list[str] | None:
        """Copy the cluster to ``data``; what was left out of it, None where there is no cluster."""
        data = folder / "data"
        tree = extract_tree(
            image, self.database.path, data, context.timeout_s,
            wanted=lambda path: not LEFT_BEHIND.fullmatch(path),
        )  # fmt: skip
        if tree is None or "PG_VERSION" not in tree.files:
            return None
        if self.database.log is None:
            return tree.left_out
        volume, path = self.database.log
        if volume not in context.others:
            raise InputError(
                f"the write-ahead log is on volume {quoted(volume)}, whose image is not given"
            )
        log = context.others[volume]
        superblock = Superblock.read(log)
        if superblock is not None and superblock.needs_recovery:
            Ext4Checker().check(log, context)  # as a mount would
        if "pg_wal" not in tree.left_out:
            raise UnreadableError(f"pg_wal is no link to volume {quoted(volume)}")
        if extract_tree(log, path, data / "pg_wal", context.timeout_s) is None:
            raise UnreadableError(f"volume {quoted(volume)} has no write-ahead log at {path}")
        return [p for p in tree.left_out if p != "pg_wal"]

    def _wrong(self, content: Content) -> str:
        """What makes the cluster corrupt, "" where nothing does."""
        spec = self.database
        if content.kind not in _INTEGER_TABLES:
            return f"{spec.table!r} is no ordinary table with integers in {spec.column!r}"
        if content.wrong or not content.count:
            return content.wrong
        if content.ranges.tolist() != [[spec.first, spec.first + content.count - 1]]:
            low, high = content.ranges[0, 0], content.ranges[-1, 1]
            return f"{content.count} commits from {low} to {high}: not from {spec.first} on"
        rule = spec.invariant
        if rule is not None and content.total != str(rule.total):
            return f"the sum of {rule.table}.{rule.column} is {content.total}, not {rule.total}"
        return ""
