"""A SQL Server log chain that several backup tools share: what can be restored, and who broke it.

The database is in the full recovery model. Every tool sees one log and one differential base:

- a *full* backup becomes the base of all later differentials, whoever takes them;
- a *differential* holds what changed since the base, and is of use with exactly that base;
- a *log* backup holds the log since the last one, whoever took that, and truncates it;
- a *copy* (copy-only full) changes nothing for anyone; it can be restored, and log applied to it.

The log begins with the first full backup: before, it truncates itself.

Whether a full backup by VSS truncates the log is read in two ways. S0 and S2 say so ("it truncates
the logs of application such as SQL Server"), and users complain of broken chains; SQL Server's own
documents say that only a log backup truncates. `SqlLogChain.vss_truncates` chooses; the default is
SQL Server's reading, under which a full backup by VSS breaks other tools' differentials only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import polars as pl

from vmbk.consistency.vss import VssRun
from vmbk.display import table
from vmbk.errors import InputError
from vmbk.units import quoted

KINDS: Final = ("full", "differential", "log", "copy")

MOST_NS: Final = (1 << 63) - 1


@dataclass(frozen=True)
class SqlBackup:
    """One backup of the database.

    Attributes
    ----------
    kind : str
        One of `KINDS`.
    tool : str
        Who took it, and has it.
    at_ns : int
        When.
    since_ns : int
        A differential's base, or where a log backup's part of the log begins; else ``at_ns``.
    vss : bool
        Taken by VSS.
    """

    kind: str
    tool: str
    at_ns: int
    since_ns: int
    vss: bool = False

    def __str__(self) -> str:
        return f"{self.tool}'s {self.kind} backup at {self.at_ns / 1e9:g} s"


@dataclass(frozen=True)
class RestorePlan:
    """Whether a moment can be restored from what some tools have.

    Attributes
    ----------
    possible : bool
    at_ns : int
        The moment asked for.
    reached_ns : int or None
        The latest moment up to it that can be restored; None where there is none.
    backups : tuple of SqlBackup
        What to restore, in order, to get there.
    broken_by : SqlBackup or None
        The backup of another tool, or by VSS, that has what is missing or threw it away; None
        where the moment can be restored, or where simply no backup was taken yet.
    reason : str
        One line of why not.
    """

    possible: bool
    at_ns: int
    reached_ns: int | None
    backups: tuple[SqlBackup, ...]
    broken_by: SqlBackup | None = None
    reason: str = ""

    def _repr_html_(self) -> str:
        what = "can be restored" if self.possible else f"cannot be restored: {self.reason}"
        return table(
            f"{self.at_ns / 1e9:g} s {what}",
            ("step", "kind", "tool", "at (s)"),
            [(i, b.kind, b.tool, f"{b.at_ns / 1e9:g}") for i, b in enumerate(self.backups, 1)],
        )


@dataclass(frozen=True)
class SqlLogChain:
    """The backups of one database by all tools, in order of time.

    Parameters
    ----------
    vss_truncates : bool
        A full backup by VSS truncates the log (S0 S2), instead of leaving it (SQL Server).
    backups : tuple of SqlBackup
        Added by `take`.
    """

    vss_truncates: bool = False
    backups: tuple[SqlBackup, ...] = ()

    def take(self, kind: str, tool: str, at_ns: int, *, vss: bool = False) -> SqlLogChain:
        """The chain after one more backup.

        Parameters
        ----------
        kind : str
            ``"full"``, ``"differential"``, ``"log"`` or ``"copy"``.
        tool : str
            Who takes it.
        at_ns : int
            When; later than the last one.
        vss : bool
            By VSS, for full and copy.

        Raises
        ------
        InputError
            If SQL Server would refuse it (a differential or log backup before any full one), VSS
            does not take it, or it is not later than the last.
        """
        if kind not in KINDS:
            raise InputError(
                f"there is no {quoted(kind)} backup", hint=f"one of {', '.join(KINDS)}"
            )
        if not isinstance(tool, str) or not tool.strip():
            raise InputError(f"a tool needs a name, not {quoted(tool)}")
        if vss and kind not in ("full", "copy"):
            raise InputError(f"this model takes no {kind} backup by VSS", hint="full or copy")
        last = self.backups[-1].at_ns if self.backups else -1
        if type(at_ns) is not int or not last < at_ns <= MOST_NS:
            raise InputError(f"at_ns {quoted(at_ns)} is not later than the last backup, at {last}")
        since: int | None = at_ns
        if kind == "differential":
            since = self.differential_base_ns
        elif kind == "log":
            since = self.log_since_ns
        if since is None:
            raise InputError(
                f"a {kind} backup cannot be the first",
                hint="take a full backup before it",
            )
        return replace(self, backups=(*self.backups, SqlBackup(kind, tool, at_ns, since, vss)))

    def take_vss(
        self, run: VssRun, tool: str, at_ns: int, *, writer: str = "SqlServerWriter"
    ) -> SqlLogChain:
        """The chain after a run of VSS: as it was, if the SQL writer did not succeed.

        Raises
        ------
        InputError
            If the run has no such writer, or as for `take`.
        """
        for outcome in run.writers:
            if outcome.name == writer:
                kind = run.backup_type
                return self.take(kind, tool, at_ns, vss=True) if outcome.succeeded else self
        raise InputError(
            f"the run has no writer {quoted(writer)}",
            hint=f"writers: {', '.join(w.name for w in run.writers)}",
        )

    @property
    def differential_base_ns(self) -> int | None:
        """The full backup from which the next differential counts; None before the first."""
        return max((b.at_ns for b in self.backups if b.kind == "full"), default=None)

    @property
    def log_since_ns(self) -> int | None:
        """From when on the log still holds everything; None before the first full backup."""
        since = None
        for backup in self.backups:
            first = backup.kind == "full" and since is None
            if first or backup.kind == "log" or self._truncates(backup):
                since = backup.at_ns
        return since

    def restore(self, at_ns: int, tools: str | Iterable[str] | None = None) -> RestorePlan:
        """Whether a moment can be restored with what some tools have, and who is to blame if not.

        Parameters
        ----------
        at_ns : int
            The moment.
        tools : str or iterable of str, optional
            Whose backups are at hand; all by default.

        Raises
        ------
        InputError
            If a tool has taken no backup, or the moment is no time.
        """
        if type(at_ns) is not int or not 0 <= at_ns <= MOST_NS:
            raise InputError(f"{quoted(at_ns)} is not a time in nanoseconds")
        taken_by = {b.tool for b in self.backups}
        chosen = taken_by if tools is None else {tools} if isinstance(tools, str) else set(tools)
        for tool in sorted(chosen - taken_by, key=str):
            raise InputError(
                f"{quoted(tool)} has taken no backup",
                hint=f"tools: {', '.join(sorted(taken_by)) or 'none'}",
            )
        past = [b for b in self.backups if b.tool in chosen]
        logs = [b for b in past if b.kind == "log"]
        plans = [self._forward(start, logs, at_ns) for start in _starts(past, at_ns)]
        # The furthest of them; of those the one with the fewest log backups: the latest start.
        best = max(plans, key=lambda p: (p.reached_ns, -_logs(p)), default=None)
        if best is not None and best.possible:
            return best
        return self._blame(best, past, logs, at_ns)

    def _truncates(self, backup: SqlBackup) -> bool:
        return self.vss_truncates and backup.vss and backup.kind == "full"

    def _forward(
        self, start: Sequence[SqlBackup], logs: Iterable[SqlBackup], at_ns: int
    ) -> RestorePlan:
        """Apply log backups for as long as each goes on where the last one ended."""
        reached, backups = start[-1].at_ns, list(start)
        for log in logs:
            if reached < at_ns and log.since_ns <= reached < log.at_ns:
                reached = min(log.at_ns, at_ns)
                backups.append(log)
        return RestorePlan(reached >= at_ns, at_ns, reached, tuple(backups))

    def _blame(
        self,
        best: RestorePlan | None,
        past: Sequence[SqlBackup],
        logs: Sequence[SqlBackup],
        at_ns: int,
    ) -> RestorePlan:
        """Why the best plan does not get there."""
        plan = best or RestorePlan(False, at_ns, None, ())
        owned = {b.at_ns for b in past if b.kind == "full"}
        for own in past:
            # A differential whose base another tool took would have done.
            useless = own.kind == "differential" and own.since_ns not in owned
            if useless and own.at_ns <= at_ns and self._forward((own,), logs, at_ns).possible:
                base = next(b for b in self.backups if b.at_ns == own.since_ns)
                return replace(plan, broken_by=base, reason=f"{own} counts from {base}")
        if plan.reached_ns is None:
            return replace(plan, reason="these tools took no full backup before that")
        reached = plan.reached_ns
        for other in self.backups:
            if other.kind == "log" and other.since_ns <= reached < other.at_ns:
                reason = f"the log from {reached / 1e9:g} s on is in {other}"
                return replace(plan, broken_by=other, reason=reason)
            if self._truncates(other) and reached < other.at_ns:
                reason = f"{other} truncated the log from {reached / 1e9:g} s on"
                return replace(plan, broken_by=other, reason=reason)
        return replace(plan, reason=f"no log backup was taken after {reached / 1e9:g} s")

    def frame(self) -> pl.DataFrame:
        """The backups as a table: ``kind``, ``tool``, ``at_ns``, ``since_ns``, ``vss``."""
        return pl.DataFrame(
            [(b.kind, b.tool, b.at_ns, b.since_ns, b.vss) for b in self.backups],
            schema={"kind": pl.Enum(KINDS), "tool": pl.String, "at_ns": pl.Int64,
                    "since_ns": pl.Int64, "vss": pl.Boolean},
            orient="row",
        )  # fmt: skip

    def _repr_html_(self) -> str:
        return table(
            "SQL Server backups",
            ("kind", "tool", "at (s)", "since (s)"),
            [
                (f"{b.kind} (VSS)" if b.vss else b.kind, b.tool, f"{b.at_ns / 1e9:g}",
                 f"{b.since_ns / 1e9:g}")
                for b in self.backups
            ],
        )  # fmt: skip


def _logs(plan: RestorePlan) -> int:
    return sum(b.kind == "log" for b in plan.backups)


def _starts(past: Sequence[SqlBackup], at_ns: int) -> list[tuple[SqlBackup, ...]]:
    """Where a restore may begin: a full backup or a copy, or a full one and its differential."""
    fulls = {b.at_ns: b for b in past if b.kind == "full"}
    starts: list[tuple[SqlBackup, ...]] = []
    for backup in past:
        if backup.at_ns > at_ns:
            break
        if backup.kind in ("full", "copy"):
            starts.append((backup,))
        elif backup.kind == "differential" and backup.since_ns in fulls:
            starts.append((fulls[backup.since_ns], backup))
    return starts
