"""The VSS model, and the log chain of a database that several tools back up."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmbk.charts import decisions as charts
from vmbk.charts.svg import to_svg
from vmbk.consistency.decision import Case, decide
from vmbk.consistency.log_chain import SqlLogChain
from vmbk.consistency.vss import (
    EVENTS,
    PHASES,
    TRANSITIONS,
    VssRun,
    Writer,
    run_vss,
    vss_options,
)
from vmbk.errors import InputError

S = 10**9
SQL = Writer("SqlServerWriter")
SYSTEM = Writer("System Writer")

# Written from the documents of VSS_WRITER_STATE, the states of a backup only.
STATES = {
    "VSS_WS_STABLE",
    "VSS_WS_WAITING_FOR_FREEZE",
    "VSS_WS_WAITING_FOR_THAW",
    "VSS_WS_WAITING_FOR_POST_SNAPSHOT",
    "VSS_WS_WAITING_FOR_BACKUP_COMPLETE",
    "VSS_WS_FAILED_AT_IDENTIFY",
    "VSS_WS_FAILED_AT_PREPARE_BACKUP",
    "VSS_WS_FAILED_AT_PREPARE_SNAPSHOT",
    "VSS_WS_FAILED_AT_FREEZE",
    "VSS_WS_FAILED_AT_THAW",
    "VSS_WS_FAILED_AT_POST_SNAPSHOT",
    "VSS_WS_FAILED_AT_BACKUP_COMPLETE",
}


def spans(run: VssRun, actor: str) -> list[tuple[str, int, int, str]]:
    """What an actor did: phase, from, to, outcome."""
    rows = run.events.filter(actor=actor)
    return list(rows.select("phase", "start_ns", "end_ns", "outcome").iter_rows())


# --- Runs by hand ---------------------------------------------------------------------------------


def test_a_run_in_which_all_goes_well() -> None:
    slow = replace(SQL, freeze_s=4.0, post_snapshot_s=2.0)
    run = run_vss([SYSTEM, slow], flush_s=1.0, commit_s=2.0, backup_s=10.0)
    assert (run.label, run.step, run.failed_writers) == ("application", "writers_ok", ())
    assert run.write_hold_ns == 3 * S
    # Identify 0.1, prepare backup 0.1, prepare snapshot 0.5; both freeze, and the faster one waits.
    assert spans(run, "System Writer") == [
        ("identify", 0, S // 10, "ok"),
        ("prepare backup", S // 10, 2 * S // 10, "ok"),
        ("prepare snapshot", 2 * S // 10, 7 * S // 10, "ok"),
        ("freeze", 7 * S // 10, 12 * S // 10, "ok"),
        ("frozen", 12 * S // 10, 77 * S // 10, "ok"),
        ("thaw", 77 * S // 10, 78 * S // 10, "ok"),
        ("post snapshot", 78 * S // 10, 83 * S // 10, "ok"),
        ("backup complete", 198 * S // 10, 200 * S // 10, "ok"),
    ]
    assert spans(run, "volumes") == [("hold writes", 47 * S // 10, 77 * S // 10, "ok")]
    assert spans(run, "requestor") == [("backup", 98 * S // 10, 198 * S // 10, "ok")]
    assert dict(run.events.schema) == dict(EVENTS)
    assert [w.state for w in run.writers] == ["VSS_WS_STABLE", "VSS_WS_STABLE"]


@pytest.mark.parametrize("phase", [phase.name for phase in PHASES])
@pytest.mark.parametrize("how", ["fails", "hangs"])
def test_one_writer_that_fails_leaves_a_file_system_point(phase: str, how: str) -> None:
    # 26: "Windows: Some VSS writers failed": file-system consistent, and the writer is named.
    name = phase.replace(" ", "_") + "_s"
    bad = replace(SQL, freeze_timeout_s=20.0)
    bad = replace(bad, fails_at=phase) if how == "fails" else replace(bad, **{name: 1000.0})
    run = run_vss([SYSTEM, bad], event_timeout_s=30.0)
    assert run.made
    assert run.failed_writers == ("SqlServerWriter",)
    assert run.label == "filesystem"
    system, sql = run.writers
    assert system.succeeded
    assert system.state == "VSS_WS_STABLE"
    assert sql.state == f"VSS_WS_FAILED_AT_{phase.replace(' ', '_').upper()}"
    assert not sql.succeeded
    assert phase in sql.detail
    assert decide(Case(os="windows", step=run.step)).label == run.label
    # It takes part in nothing after that.
    assert spans(run, "SqlServerWriter")[-1][0] == phase


def test_writers_fail_one_by_one() -> None:
    writers = [Writer(f"writer {i}") for i in range(4)]
    for failing in range(5):
        run = run_vss(
            [replace(w, fails_at="freeze") if i < failing else w for i, w in enumerate(writers)]
        )
        assert run.failed_writers == tuple(w.name for w in writers[:failing])
        assert run.label == ("filesystem" if failing else "application")


def test_the_freeze_window_takes_others_along() -> None:
    # A slow writer within its window, and a shadow copy that ends after it: all writers that froze
    # with it time out, as users see it ("most writers also time out").
    slow = replace(SQL, freeze_s=59.0)
    assert run_vss([SYSTEM, slow], flush_s=0.0, commit_s=1.0).label == "application"
    run = run_vss([SYSTEM, slow], flush_s=0.0, commit_s=2.0)
    assert run.made
    assert run.failed_writers == ("System Writer", "SqlServerWriter")
    assert {w.state for w in run.writers} == {"VSS_WS_FAILED_AT_FREEZE"}
    assert "not thawed within 60 s" in run.writers[0].detail
    # A longer window of the run, or of the one writer (dwTimeoutFreeze), helps those that have it.
    assert run_vss([SYSTEM, slow], commit_s=2.0, freeze_timeout_s=90).label == "application"
    patient = replace(slow, freeze_timeout_s=90.0)
    run = run_vss([SYSTEM, patient], commit_s=2.0)
    assert run.failed_writers == ("System Writer",)


def test_the_volumes_hold_writes_for_ten_seconds_at_most() -> None:
    assert run_vss([SQL], flush_s=2.0, commit_s=8.0).label == "application"
    run = run_vss([SQL, replace(SYSTEM, fails_at="freeze")], flush_s=2.0, commit_s=8.1)
    assert (run.made, run.label, run.step) == (False, None, "vss_failed")
    assert run.write_hold_ns == 10 * S
    # The writer was told to abort: it is well, but nothing of it is in a shadow copy.
    sql, system = run.writers
    assert (sql.state, sql.succeeded) == ("VSS_WS_STABLE", False)
    assert system.state == "VSS_WS_FAILED_AT_FREEZE"
    assert spans(run, "SqlServerWriter")[-1][0] == "abort"
    # What becomes of the backup depends on the era.
    case = Case(os="windows", step=run.step)
    assert [decide(case, p).outcome for p in ("2017", "instant", "enhanced")] == [
        "filesystem",
        "filesystem",
        "retry",
    ]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: run_vss([]), ("writers",)),
        (lambda: run_vss([SQL, SQL]), ("distinct", "SqlServerWriter")),
        (lambda: run_vss([SQL], backup_type="log"), ("'log'", "full or copy")),
        (lambda: run_vss([SQL], commit_s=-1), ("commit_s", "-1")),
        (lambda: run_vss([SQL], flush_s=float("nan")), ("flush_s", "nan")),
        (lambda: run_vss([SQL], backup_s=1e6), ("backup_s", "a day")),
        (lambda: run_vss([SQL], freeze_timeout_s="soon"), ("freeze_timeout_s", "soon")),  # type: ignore[arg-type]
        (lambda: Writer(""), ("name",)),
        (lambda: Writer("w", fails_at="lunch"), ("'lunch'", "thaw")),
        (lambda: Writer("w", thaw_s=-2), ("w: thaw_s", "-2")),
        (lambda: Writer("w", freeze_timeout_s=-2), ("freeze_timeout_s", "-2")),
    ],
)
def test_what_is_no_run_is_refused(call: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as raised:
        call()
    for word in words:
        assert word in str(raised.value)


def test_a_run_shows_itself_and_escapes() -> None:
    run = run_vss([Writer("<b>", fails_at="thaw"), SQL])
    html = run._repr_html_()
    assert "&lt;b&gt;" in html
    assert "<b>" not in html
    assert "filesystem-consistent" in html
    assert "failed at thaw" in html
    assert "no shadow copy" in run_vss([SQL], commit_s=11)._repr_html_()


# --- Properties of any run ------------------------------------------------------------------------

seconds = st.one_of(
    st.sampled_from([0.0, 0.1, 9.9, 10.0, 59.9, 60.0, 60.1, 301.0]),
    st.floats(0, 100, allow_nan=False),
)
writer_lists = st.lists(
    st.builds(
        Writer,
        name=st.text(min_size=1, max_size=6).filter(str.strip),
        identify_s=seconds,
        prepare_backup_s=seconds,
        prepare_snapshot_s=seconds,
        freeze_s=seconds,
        thaw_s=seconds,
        post_snapshot_s=seconds,
        backup_complete_s=seconds,
        fails_at=st.sampled_from(["", "", "", *(p.name for p in PHASES)]),
        freeze_timeout_s=st.none() | seconds,
    ),
    min_size=1,
    max_size=5,
    unique_by=lambda w: w.name,
).filter(lambda writers: not {w.name for w in writers} & {"volumes", "requestor"})


@given(writer_lists, seconds, seconds, seconds, seconds)
def test_properties_of_any_run(
    writers: list[Writer], window: float, flush: float, commit: float, backup: float
) -> None:
    settings = {
        "freeze_timeout_s": window,
        "flush_s": flush,
        "commit_s": commit,
        "backup_s": backup,
    }
    run = run_vss(writers, **settings)
    again = run_vss(writers, **settings)
    assert run.events.equals(again.events)
    assert run.writers == again.writers

    # Writes are never held for more than 10 s, and every event ends after it starts.
    assert run.write_hold_ns <= 10 * S
    assert (run.events["end_ns"] >= run.events["start_ns"]).all()
    assert run.made == (round(flush * S) + round(commit * S) <= 10 * S)

    # The label is application if and only if all writers succeeded.
    assert (run.label == "application") == all(w.succeeded for w in run.writers)
    assert (run.label is None) == (not run.made)
    assert set(run.failed_writers) == {
        w.name for w in run.writers if w.state.startswith("VSS_WS_FAILED")
    }

    thaws = run.events.filter(phase="thaw")["start_ns"].to_list()
    assert len(set(thaws)) <= 1
    for writer, outcome in zip(writers, run.writers, strict=True):
        rows = run.events.filter(actor=writer.name).rows(named=True)
        # Every step is in the table of transitions, and goes on where the last one ended.
        assert rows[0]["before"] == "VSS_WS_STABLE"
        assert all((r["phase"], r["before"], r["after"]) in TRANSITIONS for r in rows)
        assert all(one["after"] == two["before"] for one, two in pairwise(rows))
        assert all(one["end_ns"] <= two["start_ns"] for one, two in pairwise(rows))
        assert rows[-1]["after"] == outcome.state
        assert outcome.state == "VSS_WS_STABLE" or "FAILED" in outcome.state
        assert all(r["outcome"] == "ok" for r in rows[:-1])
        assert (rows[-1]["outcome"] == "ok") == outcome.succeeded
        assert (outcome.detail == "") == outcome.succeeded
        # A writer is never frozen for longer than its window; one that is has failed at freeze.
        own = window if writer.freeze_timeout_s is None else writer.freeze_timeout_s
        frozen = [r for r in rows if r["phase"] in ("freeze", "frozen")]
        if frozen:
            assert frozen[-1]["end_ns"] - frozen[0]["start_ns"] <= round(own * S)
        if outcome.succeeded:
            assert rows[-1]["phase"] == "backup complete"
            assert thaws[0] - frozen[0]["start_ns"] <= round(own * S)


def test_the_transitions_use_the_documented_states_only() -> None:
    assert {state for _, *states in TRANSITIONS for state in states} == STATES
    # Nothing leads out of a failure but the next run, and every phase may fail.
    assert not any("FAILED" in before for _, before, _ in TRANSITIONS)
    assert {name for name, _, after in TRANSITIONS if "FAILED" in after} == {
        *(p.name for p in PHASES),
        "frozen",
    }


# --- The registry ---------------------------------------------------------------------------------


def test_the_registry_chooses_full_or_copy() -> None:
    # 23: full by default. 24: [HKEY_LOCAL_MACHINE\SOFTWARE\MICROSOFT\BCDRAGENT]
    # "USEVSSCOPYBACKUP"="TRUE"
    path = "HKEY_LOCAL_MACHINE\\SOFTWARE\\MICROSOFT\\BCDRAGENT\\USEVSSCOPYBACKUP"
    assert vss_options({}).backup_type == "full"
    assert vss_options({path: "TRUE"}).backup_type == "copy"
    assert vss_options({"UseVssCopyBackup": "True"}).backup_type == "copy"
    assert vss_options({path: "FALSE"}).backup_type == "full"
    # 2F: on machines registered as SQL Server machines the service sets the copy key.
    assert vss_options({}, sql_registered=True).backup_type == "copy"
    assert vss_options({"UseVssFullBackup": "True"}, sql_registered=True).backup_type == "full"
    assert vss_options({path: "FALSE"}, sql_registered=True).backup_type == "full"
    assert vss_options({}).freeze_timeout_s == 60
    assert vss_options({"dwTimeoutFreeze": 120_000}).freeze_timeout_s == 120


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"USEVSSCOPY": "TRUE"}, ("USEVSSCOPY", "UseVssFullBackup")),
        ({"USEVSSCOPYBACKUP": "yes"}, ("'yes'", "TRUE")),
        ({"USEVSSCOPYBACKUP": 1}, ("1", "TRUE")),
        ({"dwTimeoutFreeze": "60 s"}, ("'60 s'", "milliseconds")),
        ({"dwTimeoutFreeze": -1}, ("-1", "milliseconds")),
    ],
)
def test_registry_values_that_windows_would_ignore_are_named(
    keys: dict[str, str | int], words: tuple[str, ...]
) -> None:
    with pytest.raises(InputError) as raised:
        vss_options(keys)
    for word in words:
        assert word in str(raised.value)


# --- The log chain --------------------------------------------------------------------------------

AZURE, DBA = "Azure VM backup", "DBA"


def chain(*steps: tuple[str, str, int], truncates: bool = False) -> SqlLogChain:
    """Backups at whole seconds; those of the service are by VSS."""
    made = SqlLogChain(vss_truncates=truncates)
    for kind, tool, at in steps:
        made = made.take(kind, tool, at * S, vss=tool == AZURE and kind != "log")
    return made


def test_one_tool_restores_to_any_time() -> None:
    made = chain(("full", DBA, 1), ("log", DBA, 4), ("differential", DBA, 6), ("log", DBA, 8))
    plan = made.restore(7 * S, DBA)
    assert plan.possible
    assert [(b.kind, b.at_ns // S) for b in plan.backups] == [
        ("full", 1), ("differential", 6), ("log", 8)
    ]  # fmt: skip
    early = made.restore(5 * S, DBA)
    assert [b.kind for b in early.backups] == ["full", "log", "log"]
    late = made.restore(9 * S, DBA)
    assert (late.possible, late.reached_ns, late.broken_by) == (False, 8 * S, None)
    assert "no log backup was taken after 8 s" in late.reason
    before = made.restore(0, DBA)
    assert (before.possible, before.reached_ns) == (False, None)
    assert "no full backup" in before.reason


def test_a_full_backup_by_vss_breaks_another_tools_differentials() -> None:
    # Users: azure-docs 9056, 24576, 28686, 90470, 113149, 123301.
    steps = [("full", DBA, 1), ("full", AZURE, 5), ("differential", DBA, 8)]
    made = chain(*steps)
    assert [b.since_ns // S for b in made.backups] == [1, 5, 5]
    plan = made.restore(8 * S, DBA)
    assert not plan.possible
    assert plan.broken_by == made.backups[1]
    assert "Azure VM backup's full backup at 5 s" in plan.reason
    assert made.restore(8 * S).possible, "with both tools' backups at hand it works"
    # 24: a copy backup leaves the base alone.
    copied = chain(("full", DBA, 1), ("copy", AZURE, 5), ("differential", DBA, 8))
    assert copied.restore(8 * S, DBA).possible


def test_whether_a_full_backup_by_vss_truncates_the_log_is_read_in_two_ways() -> None:
    steps = [("full", DBA, 1), ("log", DBA, 3), ("full", AZURE, 5), ("log", DBA, 8)]
    # SQL Server: only a log backup truncates the log.
    kept = chain(*steps)
    assert [b.since_ns // S for b in kept.backups if b.kind == "log"] == [1, 3]
    assert all(kept.restore(t * S, DBA).possible for t in range(1, 9))
    # 23 (S0 S2): "it truncates the logs of application such as SQL Server at the time of backup".
    lost = chain(*steps, truncates=True)
    assert [b.since_ns // S for b in lost.backups if b.kind == "log"] == [1, 5]
    assert [t for t in range(1, 9) if lost.restore(t * S, DBA).possible] == [1, 2, 3]
    plan = lost.restore(7 * S, DBA)
    assert plan.broken_by == lost.backups[2]
    assert "truncated the log from 3 s on" in plan.reason
    assert lost.restore(7 * S).possible
    assert not lost.restore(4 * S).possible, "what was truncated is nowhere"
    # 24: a copy backup preserves the log, in either reading.
    copied = chain(*[("copy", t, a) if t == AZURE else (k, t, a) for k, t, a in steps],
                   truncates=True)  # fmt: skip
    assert all(copied.restore(t * S, DBA).possible for t in range(1, 9))


def test_another_tools_log_backup_holds_a_piece_of_the_log() -> None:
    made = chain(("full", DBA, 1), ("log", "other", 4), ("log", DBA, 7))
    plan = made.restore(6 * S, DBA)
    assert (plan.reached_ns, plan.broken_by) == (1 * S, made.backups[1])
    assert "the log from 1 s on is in other's log backup at 4 s" in plan.reason
    assert made.restore(6 * S, [DBA, "other"]).possible


def test_a_run_of_vss_enters_the_chain_if_the_sql_writer_succeeded() -> None:
    made = SqlLogChain().take("full", DBA, S)
    full = made.take_vss(run_vss([SQL]), AZURE, 5 * S)
    assert full.differential_base_ns == 5 * S
    assert full.backups[-1].vss
    copy = made.take_vss(run_vss([SQL], backup_type="copy"), AZURE, 5 * S)
    assert (copy.backups[-1].kind, copy.differential_base_ns) == ("copy", S)
    for run in (
        run_vss([SYSTEM, replace(SQL, fails_at="freeze")]),
        run_vss([SQL], commit_s=20),
    ):
        assert made.take_vss(run, AZURE, 5 * S) is made
    others = run_vss([SYSTEM, SQL, Writer("x", fails_at="thaw")])
    assert others.label == "filesystem"
    assert made.take_vss(others, AZURE, 5 * S).differential_base_ns == 5 * S
    with pytest.raises(InputError, match="no writer 'Exchange'"):
        made.take_vss(others, AZURE, 5 * S, writer="Exchange")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: chain(("log", DBA, 1)), ("log backup cannot be the first",)),
        (lambda: chain(("copy", DBA, 1), ("log", DBA, 2)), ("cannot be the first",)),
        (lambda: chain(("differential", DBA, 1)), ("cannot be the first",)),
        (lambda: chain(("partial", DBA, 1)), ("'partial'", "differential")),
        (lambda: chain(("full", DBA, 2), ("full", DBA, 2)), ("later", "2000000000")),
        (lambda: SqlLogChain().take("full", DBA, 1.5), ("1.5",)),  # type: ignore[arg-type]
        (lambda: SqlLogChain().take("full", DBA, 1 << 63), ("at_ns",)),
        (lambda: SqlLogChain().take("full", " ", 1), ("name",)),
        (lambda: chain(("full", DBA, 1)).take("log", DBA, 2 * S, vss=True), ("VSS", "log")),
        (lambda: chain(("full", DBA, 1)).restore(S, "nobody"), ("'nobody'", "DBA")),
        (lambda: chain(("full", DBA, 1)).restore(-1), ("-1",)),
    ],
)
def test_what_is_no_chain_is_refused(call: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as raised:
        call()
    for word in words:
        assert word in str(raised.value)


def test_a_chain_shows_itself() -> None:
    made = chain(("full", "<i>", 1), ("log", DBA, 2), ("copy", AZURE, 3))
    html = made._repr_html_()
    assert "&lt;i&gt;" in html
    assert "copy (VSS)" in html
    assert "can be restored" in made.restore(2 * S)._repr_html_()
    assert "cannot be restored: the log from" in made.restore(2 * S, "<i>")._repr_html_()
    assert made.frame()["since_ns"].to_list() == [S, S, 3 * S]
    assert len(SqlLogChain().frame()) == 0


# --- A naive chain: transactions, one a tick, that are really in the backups ----------------------


@dataclass
class NaiveServer:
    """A database that commits transaction number t at tick t, and keeps them in its log."""

    truncates: bool
    tick: int = 0
    log: list[int] = field(default_factory=list)
    base: int | None = None
    """Which backup is the differential base."""
    media: list[dict[str, Any]] = field(default_factory=list)

    def wait(self, until: int) -> None:
        while self.tick < until:
            self.tick += 1
            # Without a full backup the log truncates itself.
            self.log = [*self.log, self.tick] if self.base is not None else []

    def take(self, kind: str, tool: str, vss: bool) -> bool:
        """Take a backup, unless the server refuses."""
        everything = list(range(1, self.tick + 1))
        number = len(self.media)
        media: dict[str, Any] = {"kind": kind, "tool": tool, "number": number, "base": self.base}
        if kind in ("differential", "log") and self.base is None:
            return False
        if kind == "log":
            media["holds"], self.log = self.log, []
        elif kind == "differential":
            base = self.media[self.base or 0]["holds"]
            media["holds"] = [t for t in everything if t not in base]
        else:
            media["holds"] = everything
        if kind == "full":
            self.base = number
            if self.truncates and vss:
                self.log = []
        self.media.append(media)
        return True

    def restorable(self, tools: set[str]) -> set[int]:
        """Ticks to which the database can be brought, by trying everything."""
        mine = [m for m in self.media if m["tool"] in tools]
        logs = [m["holds"] for m in mine if m["kind"] == "log"]
        found: set[int] = set()
        todo: list[int] = []
        for start in mine:
            if start["kind"] in ("full", "copy"):
                todo.append(len(start["holds"]))
                todo += [
                    len(start["holds"]) + len(d["holds"])
                    for d in mine
                    if d["kind"] == "differential" and d["base"] == start["number"]
                ]
        while todo:
            have = todo.pop()
            if have in found:
                continue
            found.add(have)
            for log in logs:
                # The next transaction must be in it; it may be stopped after any one.
                if have + 1 in log:
                    todo += [t for t in log if t > have]
        return found


TOOLS = ("one", "two", "three")
steps = st.lists(
    st.tuples(
        st.integers(1, 3),
        st.sampled_from(["full", "log", "log", "differential", "copy"]),
        st.sampled_from(TOOLS),
        st.booleans(),
    ),
    max_size=9,
)


def played(plan: list[tuple[int, str, str, bool]], truncates: bool) -> tuple[SqlLogChain, Any]:
    """The same backups by the model and by the naive server; what both refuse is left out."""
    model, server = SqlLogChain(vss_truncates=truncates), NaiveServer(truncates)
    for gap, kind, tool, vss in plan:
        server.wait(server.tick + gap)
        vss = vss and kind in ("full", "copy")
        if server.take(kind, tool, vss):
            model = model.take(kind, tool, server.tick, vss=vss)
        else:
            with pytest.raises(InputError, match="cannot be the first"):
                model.take(kind, tool, server.tick, vss=vss)
    return model, server


@given(steps, st.booleans(), st.sets(st.sampled_from(TOOLS), min_size=1))
def test_the_chain_restores_what_a_naive_server_can(
    plan: list[tuple[int, str, str, bool]], truncates: bool, tools: set[str]
) -> None:
    model, server = played(plan, truncates)
    tools &= {b.tool for b in model.backups}
    if not tools:
        return
    able = server.restorable(tools)
    for tick in range(server.tick + 3):
        found = model.restore(tick, tools)
        assert found.possible == (tick in able), (tick, found)
        reach = max((t for t in able if t <= tick), default=None)
        assert found.reached_ns == reach
        assert {b.tool for b in found.backups} <= tools
        assert bool(found.reason) == (not found.possible)
        if found.broken_by is None:
            continue
        assert not found.possible
        # The one to blame has, or threw away, what is missing: with its tool more can be restored.
        culprit = found.broken_by
        if culprit.kind == "log":
            assert culprit.tool not in tools
            more = model.restore(tick, tools | {culprit.tool})
            assert more.reached_ns is not None
            assert more.reached_ns > (-1 if found.reached_ns is None else found.reached_ns)
        elif culprit.tool not in tools and not culprit.vss:
            assert model.restore(tick, tools | {culprit.tool}).possible


@given(steps, st.booleans(), st.integers(0, 9), st.booleans())
def test_a_copy_changes_nothing_for_others(
    plan: list[tuple[int, str, str, bool]], truncates: bool, where: int, vss: bool
) -> None:
    spaced = [(gap + 1, *rest) for gap, *rest in plan]
    model, server = played(spaced, truncates)  # type: ignore[arg-type]
    if not model.backups:
        return
    # The same with a copy by another tool just before one of the backups, or at the end.
    with_copy = SqlLogChain(vss_truncates=truncates)
    for number, backup in enumerate(model.backups):
        if number == where:
            with_copy = with_copy.take("copy", "another", backup.at_ns - 1, vss=vss)
        with_copy = with_copy.take(backup.kind, backup.tool, backup.at_ns, vss=backup.vss)
    if where >= len(model.backups):
        with_copy = with_copy.take("copy", "another", server.tick + 1, vss=vss)
    assert tuple(b for b in with_copy.backups if b.tool != "another") == model.backups
    tools = {b.tool for b in model.backups}
    for tick in range(server.tick + 3):
        assert with_copy.restore(tick, tools) == model.restore(tick, tools)


# --- The figure -----------------------------------------------------------------------------------


def test_the_timeline_shows_phases_and_failures() -> None:
    run = run_vss(
        [SYSTEM, replace(SQL, freeze_s=4.0), Writer("IIS", fails_at="prepare snapshot")],
        commit_s=5.0,
        backup_s=3.0,
    )
    chart = charts.vss_timeline(run)
    svg = to_svg(chart)
    shown = [e.text for e in ElementTree.fromstring(svg).iter() if e.text]
    for word in ("System Writer", "SqlServerWriter", "IIS", "volumes", "requestor", "frozen",
                 "hold writes", "seconds"):  # fmt: skip
        assert word in shown
    assert "A VSS full backup: file-system consistent" in shown
    assert "Writes held for 5.2 s; failed: IIS" in shown
    assert float(ElementTree.fromstring(svg).attrib["width"]) <= 900
    rows = [row for data in chart.to_dict()["datasets"].values() for row in data]
    assert len(rows) == len(run.events)
    hold = next(row for row in rows if row["phase"] == "hold writes")
    assert hold["end"] - hold["start"] == pytest.approx(5.2)
    gone = to_svg(charts.vss_timeline(run_vss([SQL], commit_s=11)))
    assert "A VSS full backup: no shadow copy" in gone


def test_the_timeline_says_what_it_needs() -> None:
    with pytest.raises(InputError, match="no run of VSS"):
        charts.vss_timeline(pl.DataFrame())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="31 writers"):
        charts.vss_timeline(run_vss([Writer(f"w{i}") for i in range(31)]))
    hostile = run_vss([Writer("<script>\x00" + "x" * 400), SQL])
    assert "<script>" not in to_svg(charts.vss_timeline(hostile))
