"""What the captured machines have on their disks, and who judges it.

A capture says by which recipe it was made; the recipe says what there is to judge.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vmbk.consistency.checkers import CheckContext, Checker
from vmbk.consistency.postgresql import PostgresChecker, PostgresSpec
from vmbk.consistency.sqlite import DatabaseSpec, DatabaseVerdict, Invariant, SqliteChecker
from vmbk.errors import InputError

if TYPE_CHECKING:
    from vmbk.trace.table import Trace

_ACCOUNTS: Final = Invariant("accounts", "balance", 100_000)


@dataclass(frozen=True)
class Machine:
    """What is on the disks of a machine.

    Parameters
    ----------
    filesystem : {"ext4", "xfs", "btrfs"}
        Of every volume.
    system : str
        Name of the volume that is judged first; "" where there is one only.
    database : DatabaseSpec, optional
        The database, a `PostgresSpec` or one of SQLite.
    boots : bool
        Whether the system volume can be booted.
    """

    filesystem: str = "ext4"
    system: str = ""
    database: DatabaseSpec | None = None
    boots: bool = False

    def filesystem_checker(self) -> Checker:
        """Who judges the file systems."""
        if self.filesystem == "xfs":
            from vmbk.consistency.xfs import XfsChecker

            return XfsChecker()
        if self.filesystem == "btrfs":
            from vmbk.consistency.btrfs import BtrfsChecker

            return BtrfsChecker()
        if self.filesystem != "ext4":
            raise InputError(
                f"there is no checker for a file system {self.filesystem!r}",
                hint="there are ext4, xfs and btrfs",
            )
        from vmbk.consistency.ext4 import Ext4Checker

        return Ext4Checker()

    def check_database(
        self, image: Path, context: CheckContext, transactions: int
    ) -> DatabaseVerdict:
        """Judge the database on a file system that was judged already."""
        if self.database is None:
            return DatabaseVerdict("sqlite", "none", "the capture names no database")
        if isinstance(self.database, PostgresSpec):
            return PostgresChecker(self.database, transactions).check(image, context)
        return SqliteChecker(self.database, self.filesystem).check(image, context)

    def require_tools(self) -> None:
        """Fail before the first state rather than at it.

        Raises
        ------
        ToolMissingError
            If a program that a checker runs is not installed.
        InputError
            If a checker cannot work on this machine for another reason.
        """
        checkers: list[Checker] = [self.filesystem_checker()]
        if isinstance(self.database, PostgresSpec):
            checkers.append(PostgresChecker(self.database))
        elif self.database is not None:
            checkers.append(SqliteChecker(self.database, self.filesystem))
        for checker in checkers:
            for tool in checker.tools:
                tool.find()
            reason = checker.usable() if hasattr(checker, "usable") else None
            if reason:
                raise InputError(reason)


_SQLITE: Final = Machine(database=DatabaseSpec("/data.db", invariant=_ACCOUNTS))
_POSTGRESQL: Final = Machine(database=PostgresSpec("/data", invariant=_ACCOUNTS))

MACHINES: Final = {
    "ext4-boot": Machine(boots=True),
    "ext4-fsfreeze": _SQLITE,
    "ext4-postgresql": Machine(
        database=PostgresSpec("/data", invariant=_ACCOUNTS, history="pgbench_history")
    ),
    "ext4-quiesce": _POSTGRESQL,
    "ext4-sqlite": _SQLITE,
    "ext4-sqlite-off": _SQLITE,
    "ext4-two-disks": Machine(
        system="data",
        database=PostgresSpec("/data", invariant=_ACCOUNTS, log=("log", "/wal")),
    ),
    "xfs-sqlite": replace(_SQLITE, filesystem="xfs"),
}
"""What the recipes in ``vmbk.trace.capture`` leave on their disks, by the recipe's name."""


def capture_name(trace: Trace) -> str:
    """Name of the recipe that a trace was captured with, "" where it says none."""
    return str(trace.provenance.get("recipe", ""))


def capture_machine(trace: Trace) -> Machine:
    """What is on the disks of a capture: ext4 without a database where nobody knows better."""
    kind = trace.provenance.get("filesystem", "ext4")  # of a capture on this machine
    return MACHINES.get(capture_name(trace), Machine(kind if kind in ("xfs", "btrfs") else "ext4"))
