"""Windows' Volume Shadow Copy Service in model time: writers, freeze window, write hold.

A run is deterministic. The requestor sends each event to all writers at once and waits for the last
answer: identify, prepare backup, prepare snapshot, freeze; then the volumes hold their writes while
the shadow copy is made (10 s at most); then thaw, post snapshot and, when the requestor has read
what it came for, backup complete. A writer that fails or does not answer in time is left out from
there on and named; the shadow copy is made without it, and is file-system consistent (S0 S1 S2:
some VSS writers failed). A writer must be thawed within its freeze window of 60 s
(``dwTimeoutFreeze``), or it goes on by itself and has failed at freeze. If the volumes cannot flush
and copy within 10 s they release their writes, no shadow copy is made, and all writers are told to
abort.

Sources: the documents of CVssWriter (OnFreeze: 60 s by default), of VSS_WRITER_STATE, and of the
service ("application freeze no longer than 60 s; creation no longer than 10 s").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import polars as pl

from vmbk.display import table
from vmbk.errors import InputError
from vmbk.units import format_duration, parse_duration, quoted

BACKUP_TYPES: Final = ("full", "copy")

FREEZE_TIMEOUT_S: Final = 60.0
"""Between Freeze and Thaw; ``dwTimeoutFreeze`` of a writer changes it."""

WRITE_HOLD_S: Final = 10.0
"""The volumes hold writes no longer, whatever the shadow copy still needs."""

EVENT_TIMEOUT_S: Final = 300.0
"""For a writer's answer to any other event; the documents give no number, this one is assumed."""

LONGEST_NS: Final = 24 * 3600 * 10**9
"""Of any one duration."""


@dataclass(frozen=True)
class Phase:
    """An event that the requestor sends, and the states of a writer before and after it."""

    name: str
    before: str
    after: str
    failed: str


STABLE: Final = "VSS_WS_STABLE"
WAITING_FOR_THAW: Final = "VSS_WS_WAITING_FOR_THAW"

PHASES: Final = (
    Phase("identify", STABLE, STABLE, "VSS_WS_FAILED_AT_IDENTIFY"),
    Phase("prepare backup", STABLE, STABLE, "VSS_WS_FAILED_AT_PREPARE_BACKUP"),
    Phase("prepare snapshot", STABLE, "VSS_WS_WAITING_FOR_FREEZE",
          "VSS_WS_FAILED_AT_PREPARE_SNAPSHOT"),
    Phase("freeze", "VSS_WS_WAITING_FOR_FREEZE", WAITING_FOR_THAW, "VSS_WS_FAILED_AT_FREEZE"),
    Phase("thaw", WAITING_FOR_THAW, "VSS_WS_WAITING_FOR_POST_SNAPSHOT", "VSS_WS_FAILED_AT_THAW"),
    Phase("post snapshot", "VSS_WS_WAITING_FOR_POST_SNAPSHOT", "VSS_WS_WAITING_FOR_BACKUP_COMPLETE",
          "VSS_WS_FAILED_AT_POST_SNAPSHOT"),
    Phase("backup complete", "VSS_WS_WAITING_FOR_BACKUP_COMPLETE", STABLE,
          "VSS_WS_FAILED_AT_BACKUP_COMPLETE"),
)  # fmt: skip
"""What a requestor sends, in order."""

_PHASE: Final = {phase.name: phase for phase in PHASES}

TRANSITIONS: Final = frozenset(
    [(p.name, p.before, p.after) for p in PHASES]
    + [(p.name, p.before, p.failed) for p in PHASES]
    + [
        ("frozen", WAITING_FOR_THAW, WAITING_FOR_THAW),
        ("frozen", WAITING_FOR_THAW, "VSS_WS_FAILED_AT_FREEZE"),
        ("abort", WAITING_FOR_THAW, STABLE),
    ]
)
"""Every (phase, state before, state after) that a writer may go through."""

EVENTS: Final = {
    "start_ns": pl.Int64,
    "end_ns": pl.Int64,
    "actor": pl.String,
    "phase": pl.String,
    "outcome": pl.String,
    "before": pl.String,
    "after": pl.String,
    "detail": pl.String,
}


@dataclass(frozen=True)
class Writer:
    """A VSS writer: seconds that it takes for each event, and where it fails.

    A phase of more seconds than its limit times out.

    Parameters
    ----------
    name : str
        Such as ``"SqlServerWriter"``.
    identify_s, prepare_backup_s, prepare_snapshot_s, freeze_s, thaw_s, post_snapshot_s, \
backup_complete_s : float
        Seconds until it answers each event.
    fails_at : str
        The phase, one of `PHASES` by name, at whose end it vetoes; "" for none.
    freeze_timeout_s : float, optional
        Its own ``dwTimeoutFreeze``, in seconds; that of the run by default.
    """

    name: str
    identify_s: float = 0.1
    prepare_backup_s: float = 0.1
    prepare_snapshot_s: float = 0.5
    freeze_s: float = 0.5
    thaw_s: float = 0.1
    post_snapshot_s: float = 0.5
    backup_complete_s: float = 0.2
    fails_at: str = ""
    freeze_timeout_s: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise InputError(f"a writer needs a name, not {quoted(self.name)}")
        if self.fails_at not in ("", *_PHASE):
            raise InputError(
                f"{self.name}: there is no phase {quoted(self.fails_at)} to fail at",
                hint=f"phases: {', '.join(_PHASE)}",
            )
        for phase in PHASES:
            self.duration_ns(phase)
        if self.freeze_timeout_s is not None:
            _ns(f"{self.name}: freeze_timeout_s", self.freeze_timeout_s)

    def duration_ns(self, phase: Phase) -> int:
        """Nanoseconds until it answers."""
        field = phase.name.replace(" ", "_") + "_s"
        return _ns(f"{self.name}: {field}", getattr(self, field))


@dataclass(frozen=True)
class WriterOutcome:
    """How a writer ended.

    Attributes
    ----------
    name : str
    state : str
        The last of its documented states.
    succeeded : bool
        It answered every event well and in time.
    detail : str
        Why not.
    """

    name: str
    state: str
    succeeded: bool
    detail: str


@dataclass(frozen=True)
class VssOptions:
    """What registry and writers say of a run, as arguments of `run_vss`."""

    backup_type: str = "full"
    freeze_timeout_s: float = FREEZE_TIMEOUT_S


@dataclass(frozen=True, eq=False)
class VssRun:
    """One shadow copy, taken or not.

    Attributes
    ----------
    backup_type : str
        ``"full"`` or ``"copy"``.
    made : bool
        A shadow copy came about.
    writers : tuple of WriterOutcome
        In the order given.
    events : polars.DataFrame
        ``start_ns``, ``end_ns`` (model time), ``actor`` (a writer, ``"volumes"`` or
        ``"requestor"``), ``phase``, ``outcome`` (``ok``, ``failed``, ``timed out``, ``aborted``),
        ``before`` and ``after`` (states of a writer, null for others), ``detail``.
    """

    backup_type: str
    made: bool
    writers: tuple[WriterOutcome, ...]
    events: pl.DataFrame

    @property
    def failed_writers(self) -> tuple[str, ...]:
        """Names of the writers that vetoed or timed out."""
        return tuple(w.name for w in self.writers if w.state.startswith("VSS_WS_FAILED"))

    @property
    def label(self) -> str | None:
        """``application`` if all writers succeeded, ``filesystem`` if some failed, or None.

        None: no shadow copy came about. What the service then does depends on the profile: ask
        `vmbk.consistency.decide` with `step`.
        """
        if not self.made:
            return None
        return "filesystem" if self.failed_writers else "application"

    @property
    def step(self) -> str:
        """The run as a `Case`'s ``step``: ``writers_ok``, ``writers_failed`` or ``vss_failed``."""
        if not self.made:
            return "vss_failed"
        return "writers_failed" if self.failed_writers else "writers_ok"

    @property
    def write_hold_ns(self) -> int:
        """How long the volumes held writes."""
        hold = self.events.filter(pl.col("phase") == "hold writes")
        return int((hold["end_ns"] - hold["start_ns"]).sum())

    def _repr_html_(self) -> str:
        made = f"{self.label}-consistent" if self.made else "no shadow copy"
        hold = format_duration(self.write_hold_ns / 1e9)
        return table(
            f"VSS {self.backup_type} backup: {made}; writes held {hold}",
            ("writer", "ended in", "succeeded", "why not"),
            [(w.name, w.state, "yes" if w.succeeded else "no", w.detail) for w in self.writers],
        )


def run_vss(
    writers: Iterable[Writer],
    *,
    backup_type: str = "full",
    freeze_timeout_s: float = FREEZE_TIMEOUT_S,
    write_hold_s: float = WRITE_HOLD_S,
    event_timeout_s: float = EVENT_TIMEOUT_S,
    flush_s: float = 0.2,
    commit_s: float = 0.8,
    backup_s: float = 0.0,
) -> VssRun:
    """Take one shadow copy with these writers.

    Parameters
    ----------
    writers : iterable of Writer
        At least one, of distinct names.
    backup_type : str
        ``"full"`` (writers may truncate their logs at backup complete) or ``"copy"``.
    freeze_timeout_s : float
        Seconds between Freeze and Thaw that a writer bears, where it does not say itself.
    write_hold_s : float
        Seconds after which the volumes release writes.
    event_timeout_s : float
        Seconds that the requestor waits for an answer to any other event.
    flush_s, commit_s : float
        Seconds that flushing the file systems and making the shadow copy take; writes are held for
        both.
    backup_s : float
        Seconds for which the requestor reads before it says that the backup is complete.

    Returns
    -------
    VssRun
        With its events, label and failed writers.

    Raises
    ------
    InputError
        If there are no writers, two of one name, an unknown type, or a duration below 0 or above a
        day.
    """
    writers = tuple(writers)
    names = [w.name for w in writers]
    if not writers or len(set(names)) < len(names):
        raise InputError(f"a run needs writers of distinct names, not {quoted(names)}")
    if backup_type not in BACKUP_TYPES:
        raise InputError(f"there is no VSS backup {quoted(backup_type)}", hint="full or copy")
    window_ns = _ns("freeze_timeout_s", freeze_timeout_s)
    hold_ns = _ns("write_hold_s", write_hold_s)
    event_ns = _ns("event_timeout_s", event_timeout_s)
    needed_ns = _ns("flush_s", flush_s) + _ns("commit_s", commit_s)
    backup_ns = _ns("backup_s", backup_s)

    def window(writer: Writer) -> int:
        own = writer.freeze_timeout_s
        return window_ns if own is None else _ns("freeze_timeout_s", own)

    def patience(_: Writer) -> int:
        return event_ns

    run = _Simulation(writers)
    for phase in PHASES[:3]:
        run.send(phase, patience)
    frozen_ns = run.now
    run.send(_PHASE["freeze"], window)
    made = run.hold(needed_ns, hold_ns)
    run.wait_frozen(frozen_ns, window)
    if made:
        run.send(_PHASE["thaw"], patience)
        run.send(_PHASE["post snapshot"], patience)
        run.log(run.now, run.now + backup_ns, "requestor", "backup", "ok")
        run.now += backup_ns
        run.send(_PHASE["backup complete"], patience)
    else:
        run.abort()
    outcomes = tuple(
        WriterOutcome(w.name, run.state[w.name], w.name not in run.why, run.why.get(w.name, ""))
        for w in writers
    )
    events = pl.DataFrame(run.rows, schema=EVENTS, orient="row")
    return VssRun(backup_type, made, outcomes, events.sort("start_ns", maintain_order=True))


class _Simulation:
    """States of the writers, the clock, and what happened."""

    def __init__(self, writers: tuple[Writer, ...]) -> None:
        self.writers = writers
        self.state = dict.fromkeys((w.name for w in writers), STABLE)
        self.why: dict[str, str] = {}
        """Why a writer did not succeed."""
        self.rows: list[tuple[int, int, str, str, str, str | None, str | None, str]] = []
        self.now = 0
        self.froze: dict[str, int] = {}
        """When a writer had frozen."""

    def log(
        self, start: int, end: int, actor: str, phase: str, outcome: str, after: str | None = None,
        detail: str = "",
    ) -> None:  # fmt: skip
        before = self.state.get(actor)
        self.rows.append((start, end, actor, phase, outcome, before, after, detail))
        if after is not None:
            self.state[actor] = after
        if outcome != "ok" and actor in self.state:
            self.why[actor] = detail

    def send(self, phase: Phase, limit: Callable[[Writer], int]) -> None:
        """Send an event to all writers that wait for it; the clock goes on to the last answer."""
        start = end = self.now
        for writer in self.writers:
            name = writer.name
            if self.state[name] != phase.before or name in self.why:
                continue
            took, most = writer.duration_ns(phase), limit(writer)
            answered = start + min(took, most)
            if took > most:
                detail = f"did not answer {phase.name} within {_seconds(most)}"
                self.log(start, answered, name, phase.name, "timed out", phase.failed, detail)
            elif writer.fails_at == phase.name:
                detail = f"failed at {phase.name}"
                self.log(start, answered, name, phase.name, "failed", phase.failed, detail)
            else:
                self.log(start, answered, name, phase.name, "ok", phase.after)
                if phase.name == "freeze":
                    self.froze[name] = answered
            end = max(end, answered)
        self.now = end

    def hold(self, needed: int, most: int) -> bool:
        """Hold the volumes' writes while the shadow copy is made, and no longer than allowed."""
        end = self.now + min(needed, most)
        made = needed <= most
        detail = "" if made else f"the shadow copy needed {_seconds(needed)}"
        self.log(self.now, end, "volumes", "hold writes", "ok" if made else "timed out",
                 detail=detail)  # fmt: skip
        self.now = end
        return made

    def wait_frozen(self, since: int, window: Callable[[Writer], int]) -> None:
        """Frozen writers wait until now; one whose window ends before has failed, and goes on."""
        for writer in self.writers:
            name, bears = writer.name, window(writer)
            if self.state[name] != WAITING_FOR_THAW:
                continue
            if since + bears < self.now:
                detail = f"was not thawed within {_seconds(bears)}"
                self.log(self.froze[name], since + bears, name, "frozen", "timed out",
                         _PHASE["freeze"].failed, detail)  # fmt: skip
            else:
                self.log(self.froze[name], self.now, name, "frozen", "ok", WAITING_FOR_THAW)

    def abort(self) -> None:
        """No shadow copy came about: the writers that still wait go back to normal."""
        for writer in self.writers:
            if self.state[writer.name] == WAITING_FOR_THAW:
                self.log(self.now, self.now, writer.name, "abort", "aborted", STABLE,
                         "no shadow copy was made")  # fmt: skip


def vss_options(keys: Mapping[str, str | int], *, sql_registered: bool = False) -> VssOptions:
    """What the registry asks of a run.

    The type is full, but copy on a machine that is registered as a SQL Server machine, whose key
    the service sets itself since December 2022. ``UseVssFullBackup`` is for those who want full all
    the same, so it wins over ``USEVSSCOPYBACKUP`` (inferred: no document has both).

    Parameters
    ----------
    keys : mapping of str to str or int
        ``USEVSSCOPYBACKUP`` and ``UseVssFullBackup`` (``"TRUE"`` or ``"FALSE"``; under
        ``HKLM\\SOFTWARE\\Microsoft\\BcdrAgent``, with or without the path), ``dwTimeoutFreeze``
        (milliseconds). Case does not count.
    sql_registered : bool
        The machine is registered with the SQL Server agent extension.

    Raises
    ------
    InputError
        If a key or its value is unknown: Windows would ignore it in silence.
    """
    found: dict[str, str | int] = {}
    for path, value in keys.items():
        name = str(path).rsplit("\\", 1)[-1].casefold()
        if name not in ("usevsscopybackup", "usevssfullbackup", "dwtimeoutfreeze"):
            raise InputError(
                f"the registry value {quoted(path)} says nothing of VSS",
                hint="USEVSSCOPYBACKUP, UseVssFullBackup or dwTimeoutFreeze",
            )
        if name == "dwtimeoutfreeze":
            if type(value) is not int or not 0 <= value < 1 << 32:
                raise InputError(f"{path}: {quoted(value)} is not a number of milliseconds")
        elif not isinstance(value, str) or value.casefold() not in ("true", "false"):
            raise InputError(f"{path}: {quoted(value)} is neither TRUE nor FALSE")
        found[name] = value.casefold() if isinstance(value, str) else value
    copy = found.get("usevsscopybackup", "true" if sql_registered else "false") == "true"
    full = found.get("usevssfullbackup") == "true"
    window = found.get("dwtimeoutfreeze")
    return VssOptions(
        backup_type="copy" if copy and not full else "full",
        freeze_timeout_s=FREEZE_TIMEOUT_S if window is None else int(window) / 1000,
    )


def _ns(name: str, seconds: float) -> int:
    try:
        ns = parse_duration(seconds)
    except InputError as error:
        raise InputError(f"{name}: {error.message}", hint=error.hint) from None
    if ns > LONGEST_NS:
        raise InputError(f"{name}: {quoted(seconds)} is longer than a day")
    return ns


def _seconds(ns: int) -> str:
    return f"{ns / 1e9:g} s"
