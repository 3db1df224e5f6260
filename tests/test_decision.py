"""The decision model: every sentence of the seeds, the whole table, and a second evaluator."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, fields, replace
from typing import Any
from xml.etree import ElementTree

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmbk.charts import decisions as charts
from vmbk.charts.svg import to_svg
from vmbk.consistency.decision import Case, decide, decision_table, unreachable_rules
from vmbk.consistency.decision_rules import AXES, LABELS, OUTCOMES, Axis, parse, shipped
from vmbk.errors import InputError

PROFILES = ("2017", "instant", "enhanced")
READINGS = ("table", "writes", "note")
LINUX, WINDOWS = Case(os="linux"), Case(os="windows")
SHARED = replace(LINUX, disks=3)
ENHANCED = Case(policy="enhanced")


@pytest.fixture(scope="module")
def tables() -> dict[tuple[str, str], pl.DataFrame]:
    """Every table, by profile and reading."""
    return {(p, r): decision_table(p, reading=r) for p in PROFILES for r in READINGS}


# --- What the seeds say, by the number of the item ------------------------------------------------

ALL = PROFILES
LATE = ("instant", "enhanced")
SENTENCES: list[tuple[str, Case, tuple[str, ...], str]] = [
    # 22: "For Windows VMs that are running, Azure Backup coordinates with Windows Volume Shadow
    # Copy Service (VSS) to take an app-consistent snapshot of the VM."
    ("22", WINDOWS, ALL, "application"),
    # 25: "Windows: All VSS writers succeeded"
    ("25", replace(WINDOWS, step="writers_ok"), ALL, "application"),
    # 26: "Windows: Some VSS writers failed"
    ("26", replace(WINDOWS, step="writers_failed"), ALL, "filesystem"),
    # 26 (S1): "VSS failure during backup for Windows VMs in Azure."
    ("26 S1", replace(WINDOWS, step="vss_failed"), ("2017",), "filesystem"),
    # C7 (S3 S4): "If Backup can't take an app-consistent snapshot, then it takes a file-consistent
    # snapshot of the underlying storage"
    ("C7 step 4", replace(WINDOWS, step="vss_failed"), ("instant",), "filesystem"),
    # 27: "For Linux VMs, Backup takes a file-consistent backup."
    ("27", LINUX, ALL, "filesystem"),
    # 28: "If the pre-scripts and post-scripts execute successfully, Azure Backup marks the recovery
    # point as application-consistent."
    ("28", replace(LINUX, step="scripts_ok"), ALL, "application"),
    # 27, 28: "Linux: Default (if pre/post scripts aren't configured or failed)"
    ("28 pre", replace(LINUX, step="pre_failed"), ALL, "filesystem"),
    ("28 post", replace(LINUX, step="post_failed"), ALL, "filesystem"),
    # 33a: "You have opted for agentless crash consistent backups"; 3: "If you have opted for
    # crash-consistent backups, no agents are required in the VMs."
    ("33a", replace(ENHANCED, wish="crash"), ("enhanced",), "crash"),
    ("3", replace(ENHANCED, wish="crash", agent="missing"), ("enhanced",), "crash"),
    # 33b: "When you have opted for application/file-system backup and VM is in shutdown (stopped/
    # deallocated) state"; S1: "Crash consistency typically happens when the Azure virtual machine
    # is shut down at the time of backup."
    ("33b", replace(LINUX, power="stopped"), ("2017", "enhanced"), "crash"),
    ("33b Windows", replace(WINDOWS, power="stopped"), ("2017", "enhanced"), "crash"),
    # C7 (S3 S4): "(because no application writes occur while the VM is stopped)"
    ("C7 stopped", replace(LINUX, power="stopped"), ("instant",), "filesystem"),
    # 33c: "Azure Backup also takes crash-consistent backups [...] when application/file-consistent
    # backups fail" and "when the snapshot is retried"
    ("33c", replace(LINUX, step="freeze_failed", attempt=2), LATE, "crash"),
    ("33c first", replace(LINUX, step="freeze_failed"), LATE, "retry"),
    # 34: "If the provisioning state is succeeded, Azure Backup takes file-system consistent
    # backups."
    ("34", replace(LINUX, provisioning="succeeded"), ALL, "filesystem"),
    # 34: "If the provisioning state is unavailable or failed, crash-consistent backups are taken."
    ("34", replace(LINUX, provisioning="unavailable"), ("enhanced",), "crash"),
    ("34", replace(WINDOWS, provisioning="failed"), ("enhanced",), "crash"),
    # 34: "If the provisioning state is creating or deleting, that means Azure Backup is retrying
    # the operations."
    ("34", replace(LINUX, provisioning="creating"), ("enhanced",), "retry"),
    ("34", replace(WINDOWS, provisioning="deleting", power="stopped"), ("enhanced",), "retry"),
    # 36: application and file system are both "the default setting": the one is tried, the other is
    # what is left of it.
    ("36", Case(os="windows", step="writers_ok", wish="application"), ALL, "application"),
    ("36", Case(os="windows", step="writers_failed", wish="application"), ALL, "filesystem"),
    # 2F: UserErrorVmProvisioningStateFailed, UserErrorVmNotInDesirableState
    ("2F", replace(LINUX, provisioning="failed"), ("instant",), "fail"),
    ("2F", replace(LINUX, provisioning="creating"), ("instant",), "fail"),
    # 2F: UserErrorGuestAgentStatusUnavailable, ExtensionFailedVssServiceInBadState
    ("2F agent", replace(LINUX, agent="unresponsive"), LATE, "retry"),
    ("2F agent", replace(LINUX, agent="unresponsive", attempt=8), LATE, "fail"),
    ("2F VSS", replace(WINDOWS, step="vss_failed"), ("enhanced",), "retry"),
    # 2E: "Setting this to false fails the backup if there's a script failure (except when you have
    # a single-disk VM that falls back to crash-consistent backup regardless of this setting)."
    ("2E", replace(SHARED, step="scripts_stop", attempt=8), LATE, "fail"),
    ("2E", replace(LINUX, step="scripts_stop", attempt=2), LATE, "crash"),
    # 2E: crash fallback "only if managed VM, [...] backupRetryCount > 0 and exactly one disk"
    ("2E", replace(SHARED, step="freeze_failed", attempt=2), LATE, "retry"),
    ("2E", replace(LINUX, step="freeze_failed", attempt=2, storage="unmanaged"), LATE, "retry"),
    # 2G: "Agentless crash-consistent backup is supported only with Enhanced Policy."
    ("2G", Case(wish="crash", policy="standard"), ("enhanced",), "fail"),
    # 2B: Enhanced is needed for Ultra, Premium v2, shared-disk exclusion.
    ("2B", Case(storage="ultra", policy="standard"), ("enhanced",), "fail"),
    ("2B", Case(storage="ultra", policy="enhanced"), ("enhanced",), "filesystem"),
]


@pytest.mark.parametrize(("item", "case", "profiles", "outcome"), SENTENCES)
def test_each_sentence_of_the_seeds(
    item: str, case: Case, profiles: tuple[str, ...], outcome: str
) -> None:
    for profile in profiles:
        decision = decide(case, profile)
        assert decision.outcome == outcome, (item, profile, decision)
        assert decision.reason
        assert decision.source


@pytest.mark.parametrize("attempt", range(1, 9))
def test_crash_fallback_on_attempts_4_6_8(attempt: int) -> None:
    # Golden vector G12, restore points: "crash fallback on attempts 4, 6, 8; crash-only: straight".
    case = replace(ENHANCED, step="scripts_ok", attempt=attempt, disks=4)
    assert decide(case).label == ("crash" if attempt in (4, 6, 8) else "application")
    for agent in ("missing", "unresponsive"):
        lost = decide(replace(case, agent=agent))
        assert lost.outcome == ("crash" if attempt in (4, 6, 8) else "retry")
    assert decide(replace(case, wish="crash")).label == "crash"
    # A Standard policy has no such fallback.
    standard = decide(replace(case, policy="standard", agent="missing"))
    assert standard.outcome == ("fail" if attempt == 8 else "retry")


@pytest.mark.parametrize(
    "storage",
    ["unmanaged", "not_premium_capable", "boost", "ultra", "premium_v2", "ephemeral", "shared",
     "write_accelerated"],
)  # fmt: skip
def test_what_multi_disk_crash_consistency_excludes(storage: str) -> None:
    # 2G: "premium-capable sizes; not Ultra, Premium v2, ephemeral, shared, write-accelerated; not
    # Azure Boost [...]"
    case = Case(policy="enhanced", storage=storage, disks=2)
    assert decide(replace(case, wish="crash")).outcome == "fail"
    assert decide(replace(case, attempt=4, step="freeze_failed")).outcome == "retry"
    assert decide(replace(case, attempt=8, step="freeze_failed")).outcome == "fail"
    assert decide(case).outcome == "filesystem"


def test_only_ordered_crash_points_fit_across_disks() -> None:
    # 32 (S1): "When data is spread across multiple virtual disks (like spanned volumes), a
    # crash-consistent recovery point provides no guarantees for the correctness of the data."
    assert decide(Case(power="stopped", disks=2), "2017").across_disks is False
    assert decide(Case(power="stopped", disks=1), "2017").across_disks is True
    # 35: agentless multi-disk crash-consistent points keep the order of writes, but not what is in
    # the host cache (2G, 31).
    crash = Case(policy="enhanced", wish="crash", disks=2)
    assert decide(crash).across_disks is True
    assert decide(replace(crash, storage="host_cached")).across_disks is False
    assert decide(replace(crash, storage="host_cached")).label == "crash"
    assert decide(Case(disks=9)).across_disks is True
    assert decide(Case(agent="missing", disks=2)).across_disks is None


# --- The stopped machine --------------------------------------------------------------------------


def test_readings_differ_on_stopped_machines_only(
    tables: dict[tuple[str, str], pl.DataFrame],
) -> None:
    for profile in PROFILES:
        outcomes = [tables[profile, reading]["outcome"].cast(pl.String) for reading in READINGS]
        frame = tables[profile, "table"].with_columns(
            pl.Series("differs", outcomes[0] != outcomes[1]) | (outcomes[0] != outcomes[2])
        )
        differing = frame.filter("differs")
        assert len(differing)
        assert differing["power"].unique().to_list() == ["stopped"]
        assert differing["provisioning"].unique().to_list() == ["succeeded"]
    # The three readings of one machine, each with its source.
    stopped = Case(power="stopped", policy="enhanced")
    found = [decide(stopped, reading=reading) for reading in READINGS]
    assert [d.label for d in found] == ["crash", "filesystem", "filesystem"]
    assert [d.source.split(":")[0] for d in found] == ["S1", "S0 S2 S3 S4", "S0 S2"]


def test_each_profile_takes_its_reading() -> None:
    taken = {p: decide(Case(power="stopped"), p) for p in PROFILES}
    assert {p: d.reading for p, d in taken.items()} == {
        "2017": "table",
        "instant": "writes",
        "enhanced": "table",
    }
    assert {p: d.label for p, d in taken.items()} == {
        "2017": "crash",
        "instant": "filesystem",
        "enhanced": "crash",
    }


# --- The table ------------------------------------------------------------------------------------


def test_the_table_is_total_and_every_rule_decides(
    tables: dict[tuple[str, str], pl.DataFrame],
) -> None:
    rules = shipped()
    for (profile, reading), frame in tables.items():
        known = rules.known(profile)
        rows = sum(s in known["step"] for steps in rules.steps.values() for s in steps)
        for name in AXES:
            if name not in ("os", "step"):
                rows *= len(known[name])
        assert len(frame) == frame.select(AXES).n_unique() == rows
        assert frame["outcome"].null_count() == 0
        assert frame["reading"].unique().to_list() == [reading]
        point = frame["action"].cast(pl.String) == "point"
        assert (frame["label"].is_not_null() == point).all()
        assert (frame["across_disks"].is_not_null() == point).all()
    assert len(tables["enhanced", "table"]) == 9 * 2 * 5 * 3 * 3 * 8 * 2 * 10 * 2
    assert unreachable_rules() == []


def test_tables_of_profiles_stack(tables: dict[tuple[str, str], pl.DataFrame]) -> None:
    whole = pl.concat(tables[p, "table"] for p in PROFILES)
    assert whole["profile"].unique(maintain_order=True).to_list() == list(PROFILES)
    assert whole["outcome"].dtype == pl.Enum(OUTCOMES)


def cases(profile: str) -> st.SearchStrategy[Case]:
    """Every case that a profile knows."""
    rules = shipped()
    known = rules.known(profile)

    def made(os: str) -> st.SearchStrategy[Case]:
        values = {
            name: st.sampled_from(known[name]) for name in AXES if name not in ("os", "disks")
        }
        values["step"] = st.sampled_from([s for s in rules.steps[os] if s in known["step"]])
        return st.builds(Case, os=st.just(os), disks=st.integers(1, 64), **values)

    return st.sampled_from(known["os"]).flatmap(made)


@given(st.data())
def test_decide_is_total_and_deterministic_and_in_the_table(
    tables: dict[tuple[str, str], pl.DataFrame], data: st.DataObject
) -> None:
    profile = data.draw(st.sampled_from(PROFILES))
    reading = data.draw(st.sampled_from(READINGS))
    case = data.draw(cases(profile))
    decision = decide(case, profile, reading=reading)
    assert decision == decide(case, profile, reading=reading)
    values = asdict(case) | {"disks": min(case.disks, 2)}
    row = tables[profile, reading].filter(**values).row(0, named=True)
    assert (row["outcome"], row["across_disks"]) == (decision.outcome, decision.across_disks)
    assert (row["rule"], row["reason"]) == (decision.rule, decision.reason)
    assert (row["action"], row["source"]) == (decision.action, decision.source)


# --- A second evaluator, from the documents -------------------------------------------------------

EXCLUDED = {"not_premium_capable", "boost", "ultra", "premium_v2", "ephemeral", "shared",
            "write_accelerated", "unmanaged"}  # fmt: skip


def naive(profile: str, reading: str, c: dict[str, Any]) -> str:
    """What becomes of a backup, as one would tell it: by era, state, and then by what happened."""
    enhanced_policy = c["policy"] == "enhanced"
    if profile == "enhanced":
        if c["wish"] == "crash" and (not enhanced_policy or c["storage"] in EXCLUDED):
            return "fail"
        if not enhanced_policy and c["storage"] in ("ultra", "premium_v2", "shared"):
            return "fail"
        if c["provisioning"] in ("creating", "deleting"):
            return "retry"
        late = c["attempt"] >= 4 and c["attempt"] % 2 == 0
        eligible = enhanced_policy and c["storage"] not in EXCLUDED
        if c["wish"] == "crash" or c["provisioning"] != "succeeded" or (late and eligible):
            return "crash"
    elif c["provisioning"] != "succeeded":
        return "fail"
    if c["power"] == "stopped":
        return "crash" if reading == "table" else "filesystem"
    if c["agent"] == "ready":
        label = naive_step(profile, c)
        if label is not None:
            return label
    return "fail" if profile == "2017" or c["attempt"] == 8 else "retry"


def naive_step(profile: str, c: dict[str, Any]) -> str | None:
    """The label of a running machine whose agent answers; None where the snapshot failed."""
    if c["step"] in ("writers_ok", "scripts_ok"):
        return str(c["wish"])
    if c["step"] in ("writers_failed", "no_scripts", "pre_failed", "post_failed"):
        return "filesystem"
    if c["os"] == "windows":
        return None if profile == "enhanced" else "filesystem"
    falls_back = c["attempt"] > 1 and c["disks"] == 1 and c["storage"] != "unmanaged"
    return "crash" if falls_back else None


@pytest.mark.parametrize("profile", PROFILES)
def test_a_naive_evaluator_agrees_on_every_row(
    profile: str, tables: dict[tuple[str, str], pl.DataFrame]
) -> None:
    for reading in READINGS:
        frame = tables[profile, reading]
        if reading != "table":  # where the readings differ
            frame = frame.filter(power="stopped")
        rows = frame.select(*AXES, "outcome").rows(named=True)
        wrong = [row for row in rows if naive(profile, reading, row) != row["outcome"]]
        assert not wrong, (reading, wrong[0])


# --- Monotone: nothing that is worse gives a better label -----------------------------------------

RANK = {label: rank for rank, label in enumerate(LABELS)}


def pairs(frame: pl.DataFrame, axis: str, better: str | int, worse: str | int) -> pl.DataFrame:
    """Rows that differ in one axis only, side by side."""
    others = [name for name in AXES if name != axis]
    at = {
        value: frame.filter(pl.col(axis) == value).select(
            *others, pl.col("label").cast(pl.String), "across_disks"
        )
        for value in (better, worse)
    }
    return at[better].join(at[worse], on=others, suffix="_worse")


def better_labels(joined: pl.DataFrame) -> pl.DataFrame:
    """Pairs in which the worse machine got the better label."""
    rank = [pl.col(name).replace_strict(RANK, default=None) for name in ("label", "label_worse")]
    return joined.filter(rank[1] < rank[0])


def gained_points(joined: pl.DataFrame) -> pl.DataFrame:
    """Pairs in which only the worse machine got a point."""
    return joined.filter(pl.col("label").is_null() & pl.col("label_worse").is_not_null())


WORSE: list[tuple[str, str | int, str | int]] = [
    ("agent", "ready", "missing"),
    ("agent", "ready", "unresponsive"),
    ("step", "writers_ok", "writers_failed"),
    ("step", "writers_failed", "vss_failed"),
    ("step", "scripts_ok", "no_scripts"),
    ("step", "scripts_ok", "pre_failed"),
    ("step", "scripts_ok", "post_failed"),
    ("step", "no_scripts", "freeze_failed"),
    ("step", "pre_failed", "scripts_stop"),
    ("provisioning", "succeeded", "unavailable"),
    ("provisioning", "succeeded", "failed"),
    ("provisioning", "unavailable", "creating"),
    ("provisioning", "failed", "deleting"),
    ("wish", "application", "filesystem"),
    ("wish", "filesystem", "crash"),
    ("disks", 1, 2),
]


@pytest.mark.parametrize(("axis", "better", "worse"), WORSE)
def test_nothing_worse_gives_a_better_label(
    axis: str,
    better: str | int,
    worse: str | int,
    tables: dict[tuple[str, str], pl.DataFrame],
) -> None:
    seen = 0
    for frame in tables.values():
        joined = pairs(frame, axis, better, worse)
        seen += len(joined)
        assert better_labels(joined).is_empty()
        if axis in ("agent", "step", "disks") or worse in ("creating", "deleting"):
            assert gained_points(joined).is_empty()
        if axis == "disks":
            assert joined.filter(~pl.col("across_disks") & pl.col("across_disks_worse")).is_empty()
    assert seen


def test_power_is_monotone_by_the_table_and_not_by_step_4(
    tables: dict[tuple[str, str], pl.DataFrame],
) -> None:
    for profile in PROFILES:
        frame = tables[profile, "table"]
        assert better_labels(pairs(frame, "power", "running", "stopped")).is_empty()
    # The reading that contradicts the table does what a contradiction does: a machine whose freeze
    # failed gets a crash-consistent point, and a better one when it is switched off.
    odd = better_labels(pairs(tables["instant", "writes"], "power", "running", "stopped"))
    assert set(odd["step"].unique()) == {"freeze_failed", "scripts_stop"}


def test_the_fallback_attempts_are_the_only_ones_out_of_order(
    tables: dict[tuple[str, str], pl.DataFrame],
) -> None:
    frame = tables["enhanced", "table"]
    # On attempts 4, 6, 8 a machine that crash consistency excludes is tried as before: a worse disk
    # may get a better label there, and nowhere else.
    for storage in frame["storage"].unique().to_list():
        odd = better_labels(pairs(frame, "storage", "managed", storage))
        assert set(odd["attempt"]) <= {4, 6, 8}
    # From one attempt to the next the label may rise again only after a fallback.
    for attempt in range(1, 8):
        odd = better_labels(pairs(frame, "attempt", attempt, attempt + 1))
        assert odd.is_empty() == (attempt not in (4, 6)), attempt


# --- What is asked wrongly ------------------------------------------------------------------------


def test_the_axes_are_the_fields_of_a_case() -> None:
    assert set(AXES) == {f.name for f in fields(Case)} == set(shipped().axes)
    assert Case(os="windows").step == "writers_ok"
    assert Case().step == "no_scripts"


@pytest.mark.parametrize(
    ("case", "profile", "words"),
    [
        (Case(os="plan9"), "enhanced", ("os", "'plan9'", "windows")),
        (Case(power="asleep"), "enhanced", ("power", "'asleep'", "stopped")),
        (Case(step="writers_ok"), "enhanced", ("writers_ok", "linux", "no_scripts")),
        (Case(attempt=9), "enhanced", ("attempt", "9")),
        (Case(attempt=0), "enhanced", ("attempt", "0")),
        (Case(attempt="4"), "enhanced", ("attempt", "'4'")),  # type: ignore[arg-type]
        (Case(attempt=True), "enhanced", ("attempt", "True")),
        (Case(disks=0), "enhanced", ("disks", "0")),
        (Case(disks=2.0), "enhanced", ("disks", "2.0")),  # type: ignore[arg-type]
        (Case(agent=None), "enhanced", ("agent", "None")),  # type: ignore[arg-type]
        (Case(provisioning="failed"), "2017", ("2017", "provisioning", "succeeded")),
        (Case(attempt=2), "2017", ("2017", "attempt 2")),
        (Case(wish="crash"), "instant", ("instant", "wish", "filesystem")),
        (Case(step="freeze_failed"), "2017", ("2017", "freeze_failed")),
        (Case(), "1999", ("'1999'", "2017, instant, enhanced")),
        (Case(), 2017, ("2017", "instant")),
    ],
)
def test_what_is_asked_wrongly_is_named(case: Case, profile: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as raised:
        decide(case, profile)
    for word in words:
        assert word in str(raised.value)


def test_an_unknown_reading_is_named() -> None:
    with pytest.raises(InputError, match="there is no reading 'tea'"):
        decision_table("2017", reading="tea")


def test_a_decision_shows_itself_and_escapes() -> None:
    html = decide(Case(os="windows", step="writers_failed"))._repr_html_()
    for word in ("filesystem-consistent point", "some VSS writers failed", "S0 S2", "enhanced"):
        assert word in html
    assert "retried" in decide(Case(agent="missing"))._repr_html_()
    assert "the job fails" in decide(Case(agent="missing"), "2017")._repr_html_()


# --- The declaration ------------------------------------------------------------------------------

TEXT = """
steps = {windows = ["writers_ok"], linux = ["no_scripts"]}
readings = {table = "as it stands"}
[axes]
os = {doc = "system", values = ["windows", "linux"]}
step = {doc = "step", values = ["writers_ok", "no_scripts"]}
power = {doc = "power", values = ["running", "stopped"]}
provisioning = {doc = "state", values = ["succeeded"]}
agent = {doc = "agent", values = ["ready"]}
wish = {doc = "wish", values = ["application"]}
attempt = {doc = "attempt", values = [1]}
policy = {doc = "policy", values = ["standard"]}
storage = {doc = "storage", values = ["managed"]}
disks = {doc = "disks", values = [1, 2], more = true}
[profiles.now]
doc = "today"
reading = "table"
[[rules]]
name = "off"
when = {power = "stopped"}
action = "point"
label = "crash"
reason = "off"
source = "here"
[[rules]]
name = "on"
when = {power = "running"}
action = "retry"
reason = "on"
source = "here"
"""


def changed(old: str, new: str) -> str:
    assert TEXT.count(old) == 1, old
    return TEXT.replace(old, new)


def test_other_rules_can_be_asked() -> None:
    rules = parse(TEXT)
    assert decide(Case(power="stopped", disks=3), "now", rules=rules).across_disks is False
    assert len(decision_table("now", rules=rules)) == 2 * 2 * 2
    assert unreachable_rules(rules) == []


def test_a_combination_without_a_rule_is_named() -> None:
    rules = parse(changed('when = {power = "running"}', 'when = {power = "running", disks = 1}'))
    with pytest.raises(InputError, match=r"no rule of profile now.*power running.*disks 2"):
        decision_table("now", rules=rules)
    with pytest.raises(InputError, match="every combination needs a rule"):
        decide(Case(disks=7), "now", rules=rules)


def test_a_rule_that_never_decides_is_named() -> None:
    late = '[[rules]]\nname = "late"\naction = "fail"\nreason = "never"\nsource = "here"\n'
    assert unreachable_rules(parse(TEXT + late)) == [("late", "any")]
    named = late.replace('"late"', '"late"\nprofiles = ["now"]')
    assert unreachable_rules(parse(TEXT + named)) == [("late", "now")]


@pytest.mark.parametrize("name", [rule.name for rule in shipped().rules])
def test_every_shipped_rule_is_needed(
    name: str, tables: dict[tuple[str, str], pl.DataFrame]
) -> None:
    """Without it, what it decides has no rule, or gets another answer."""
    rules = shipped()
    rule = next(r for r in rules.rules if r.name == name)
    without = replace(rules, rules=tuple(r for r in rules.rules if r is not rule))
    profile = rule.profiles[-1] if rule.profiles else "2017"
    reading = rule.readings[0] if rule.readings else "table"
    for row in tables[profile, reading].filter(rule=name).head(1).iter_rows(named=True):
        case = Case(**{axis: row[axis] for axis in AXES})
        before = decide(case, profile, reading=reading)
        assert before.rule == name
        with suppress(InputError):
            after = decide(case, profile, reading=reading, rules=without)
            assert (after.outcome, after.across_disks, after.reason) != (
                before.outcome,
                before.across_disks,
                before.reason,
            )
        return
    pytest.fail(f"{name} decides nothing in {profile}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("= 3", ("TOML",)),
        ("[[[[" * 100, ("TOML",)),
        (changed('when = {power = "stopped"}', 'when = {pover = "stopped"}'), ("'off'", "'pover'")),
        (changed('when = {power = "stopped"}', 'when = {power = "off"}'), ("power", "'off'")),
        (changed('when = {power = "stopped"}', "when = {power = 1}"), ("power", "1")),
        (changed('when = {power = "stopped"}', "when = {disks = true}"), ("disks", "True")),
        (changed('when = {power = "stopped"}', "when = {power = []}"), ("names no value",)),
        (changed('when = {power = "stopped"}', "when = 3"), ("no table", "3")),
        (changed('label = "crash"', 'label = "good"'), ("label", "'good'", "filesystem")),
        (changed('label = "crash"', "label = 3"), ("label", "3")),
        (changed('label = "crash"\n', ""), ("'off'", "label")),
        (changed('action = "retry"', 'action = "retry"\nlabel = "crash"'), ("'on'", "label")),
        (changed('action = "retry"', 'action = "wait"'), ("action", "'wait'")),
        (changed('action = "retry"', 'action = "retry"\nwrite_order = true'), ("write_order",)),
        (changed('name = "on"', 'name = "off"'), ("two rules", "'off'")),
        (changed('name = "on"', 'name = "on"\ncolour = "red"'), ("rule 2", "'colour'")),
        (changed('name = "on"', 'name = "on"\nprofiles = ["then"]'), ("'then'", "now")),
        (changed('name = "on"', 'name = "on"\nprofiles = "now"'), ("profiles", "list")),
        (changed('name = "on"', 'name = "on"\nreadings = ["leaves"]'), ("'leaves'", "table")),
        (changed('name = "on"\n', ""), ("rule 2", "name")),
        (changed('reason = "on"', 'reason = " "'), ("reason",)),
        (changed('reason = "on"\n', ""), ("reason",)),
        (changed('reading = "table"', 'reading = "aloud"'), ("profiles.now", "'aloud'")),
        (changed('reading = "table"', 'reading = "table"\nknows = {os = "beos"}'), ("'beos'",)),
        (changed('reading = "table"', 'reading = "table"\nknows = {x = 1}'), ("'x'",)),
        (changed("values = [1, 2]", "values = [1, 1]"), ("axes.disks", "distinct")),
        (changed("values = [1, 2]", 'values = [1, "2"]'), ("axes.disks",)),
        (changed("values = [1, 2]", "values = []"), ("axes.disks",)),
        (changed("values = [1, 2]", "values = [[1]]"), ("axes.disks",)),
        (changed("values = [1, 2]", "values = 2"), ("axes.disks",)),
        (changed("more = true", "more = 1"), ("axes.disks.more",)),
        (changed('"agent", values', '"agent", more = true, values'), ("axes.agent.more",)),
        (changed('agent = {doc = "agent", values = ["ready"]}\n', ""), ("axes", "agent")),
        (changed('linux = ["no_scripts"]', 'linux = ["none"]'), ("steps.linux", "'none'")),
        (changed(', linux = ["no_scripts"]', ""), ("operating system", "linux")),
        (changed('{table = "as it stands"}', "{table = 3}"), ("readings.table",)),
        (changed('{table = "as it stands"}', "{}"), ("[readings]",)),
        (TEXT.split("[[rules]]")[0], ("no rules",)),
        (TEXT + "[more]\n", ("'more'",)),
        ("a" * (1 << 20) + "a", ("1 MiB",)),
    ],
)  # fmt: skip
def test_a_bad_declaration_is_refused_by_name(text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as raised:
        parse(text)
    for word in words:
        assert word in str(raised.value)


def test_a_table_too_large_is_refused() -> None:
    axis = Axis("attempt", "attempt", tuple(range(1, 1_000_002)))
    rules = parse(TEXT)
    large = replace(rules, axes={**rules.axes, "attempt": axis})
    with pytest.raises(InputError, match="8,000,008 combinations"):
        decision_table("now", rules=large)


# --- The figure -----------------------------------------------------------------------------------


def words(svg: str) -> list[str]:
    root = ElementTree.fromstring(svg)
    return [e.text for e in root.iter() if e.text and e.tag.endswith(("}text", "}tspan"))]


def chart_rows(chart: Any) -> list[dict[str, Any]]:
    return [row for data in chart.to_dict()["datasets"].values() for row in data]


def plain(frame: pl.DataFrame) -> pl.DataFrame:
    """The table of one policy, at its first attempt."""
    return frame.filter(
        policy="enhanced", wish="application", attempt=1, storage="managed", disks=2
    )


def test_the_grid_shows_each_outcome_in_words(
    tables: dict[tuple[str, str], pl.DataFrame],
) -> None:
    frame = plain(tables["enhanced", "table"])
    chart = charts.decision_grid(frame)
    svg = to_svg(chart)
    shown = words(svg)
    for word in ("application", "file system", "crash", "retried", "succeeded", "deleting",
                 "stopped", "unresponsive", "Windows, some VSS writers failed",
                 "Linux, no scripts"):  # fmt: skip
        assert word in shown
    assert float(ElementTree.fromstring(svg).attrib["width"]) <= 900
    # The agent of a stopped machine is not asked: 9 panels, 5 states, 3 agents and one stopped.
    rows = chart_rows(chart)
    assert len(rows) == 9 * 5 * (3 + 1)
    for row in rows:
        here = frame.filter(
            pl.col("provisioning") == row["y"],
            pl.col("power") == row["x"].split(", ")[0],
        )
        assert row["outcome"] in here["outcome"].cast(pl.String).to_list()
        assert row["word"] in row["tip"]


def test_the_grid_shows_attempts_and_readings(
    tables: dict[tuple[str, str], pl.DataFrame],
) -> None:
    frame = tables["enhanced", "table"].filter(
        wish="application", storage="managed", disks=2, power="running", provisioning="succeeded",
        agent="ready",
    )  # fmt: skip
    chart = charts.decision_grid(frame, x="attempt", y="step", panel="policy")
    cells = {(r["panel"], r["x"], r["y"]): r["outcome"] for r in chart_rows(chart)}
    assert cells["policy enhanced", "attempt 4", "no scripts"] == "crash"
    assert cells["policy enhanced", "attempt 5", "no scripts"] == "filesystem"
    assert cells["policy standard", "attempt 4", "no scripts"] == "filesystem"
    assert float(ElementTree.fromstring(to_svg(chart)).attrib["width"]) <= 900
    stacked = pl.concat(
        plain(tables["enhanced", r]).filter(os="linux", step="no_scripts") for r in READINGS
    )
    readings = chart_rows(charts.decision_grid(stacked, panel="reading"))
    stopped = {r["panel"]: r["outcome"] for r in readings if r["x"] == "stopped" and
               r["y"] == "succeeded"}  # fmt: skip
    assert sorted(stopped.values()) == ["crash", "filesystem", "filesystem"]


def test_a_cell_of_several_outcomes_says_so(tables: dict[tuple[str, str], pl.DataFrame]) -> None:
    frame = tables["enhanced", "table"].filter(policy="enhanced", wish="application", attempt=1)
    rows = chart_rows(charts.decision_grid(frame, panel="os"))
    ready = next(
        r for r in rows if (r["x"], r["y"]) == ("running, agent ready", "succeeded")
        and r["panel"] == "Windows"
    )  # fmt: skip
    assert ready["word"] == "depends"
    assert "application or file system or retried" in ready["tip"]
    assert "depends" in words(to_svg(charts.decision_grid(frame, panel="os")))


def test_the_grid_says_what_it_needs(tables: dict[tuple[str, str], pl.DataFrame]) -> None:
    frame = plain(tables["enhanced", "table"])
    for wrong, word in (
        ("x", "a chart needs a table"),
        (frame.drop("outcome"), "outcome"),
        (frame.filter(pl.col("disks") == 9), "nothing to draw"),
    ):
        with pytest.raises(InputError, match=word):
            charts.decision_grid(wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="names no columns"):
        charts.decision_grid(frame, x=[])
    with pytest.raises(InputError, match="cannot be read"):
        charts.decision_grid(tables["enhanced", "table"], y=("attempt", "storage", "provisioning"))
