"""Which label a recovery point gets, and why: the documents' rules, evaluated.

The rules are data: ``decisions.toml``, in order; the first that matches decides. A profile is an
era of the service: it knows a part of the values (2017 had no retries and no crash policy) and
takes one of the readings of what the seeds say twice. On a stopped machine they contradict
themselves:

==========  =========================================================  =================
reading     a stopped machine gives                                    taken by profile
==========  =========================================================  =================
``table``   a crash-consistent point (tables of consistency of         2017, enhanced
            S0, S1, S2)
``writes``  a file-system-consistent one, "because no application      instant
            writes occur while the VM is stopped" (step 4 of S0, S2,
            S3, S4)
``note``    what its provisioning state says: succeeded is             none by itself
            file-system consistent (note of S0, S2)
==========  =========================================================  =================

S1 has the table only, S3 and S4 have step 4 only. S0 and S2 have all three: there the table and
the note go first (the note decides on running machines too), since the reason that step 4 gives is
older than the table. Any profile can be asked under any reading.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Final

import polars as pl

from vmbk.consistency.decision_rules import (
    ACTIONS,
    LABELS,
    OUTCOMES,
    Axis,
    Rule,
    Rules,
    Value,
    one_of,
    shipped,
)
from vmbk.display import key_values
from vmbk.errors import InputError
from vmbk.units import quoted

MOST_ROWS: Final = 4_000_000
"""Combinations of a table; the shipped rules have some 260,000."""


@dataclass(frozen=True)
class Case:
    """One machine, its policy, and how one attempt to back it up went.

    Parameters
    ----------
    os : str
        ``"windows"`` or ``"linux"``.
    step : str, optional
        How the step went that makes application or file system ready. Windows: ``writers_ok``
        (default), ``writers_failed`` (some), ``vss_failed`` (no shadow copy). Linux: ``no_scripts``
        (default), ``scripts_ok``, ``pre_failed``, ``post_failed``, ``freeze_failed``,
        ``scripts_stop`` (one failed, and the configuration says not to go on).
    power : str
        ``"running"`` or ``"stopped"`` (also: deallocated).
    provisioning : str
        ``"succeeded"``, ``"unavailable"``, ``"failed"``, ``"creating"`` or ``"deleting"``.
    agent : str
        ``"ready"``, ``"missing"`` or ``"unresponsive"``.
    wish : str
        What the policy asks for: ``"application"``, ``"filesystem"``, or ``"crash"`` (agentless).
    attempt : int
        1 to 8.
    policy : str
        ``"standard"`` or ``"enhanced"``.
    storage : str
        The disk, or size of machine, that limits most: ``managed`` (nothing does), ``host_cached``,
        ``unmanaged``, ``not_premium_capable``, ``boost``, ``ultra``, ``premium_v2``, ``ephemeral``,
        ``shared``, ``write_accelerated``.
    disks : int
        How many the machine has.
    """

    os: str = "linux"
    step: str | None = None
    power: str = "running"
    provisioning: str = "succeeded"
    agent: str = "ready"
    wish: str = "application"
    attempt: int = 1
    policy: str = "standard"
    storage: str = "managed"
    disks: int = 1

    def __post_init__(self) -> None:
        if self.step is None:
            step = "writers_ok" if self.os == "windows" else "no_scripts"
            object.__setattr__(self, "step", step)


@dataclass(frozen=True)
class Decision:
    """What becomes of one attempt.

    Attributes
    ----------
    case : Case
    profile, reading : str
        By whose rules.
    action : str
        ``"point"``, ``"retry"`` (no point, another attempt follows) or ``"fail"`` (the job fails).
    label : str or None
        ``"application"``, ``"filesystem"`` or ``"crash"``; None where no point is made.
    across_disks : bool or None
        Whether the documents promise that data on several disks fit together; None where no point
        is made. A crash-consistent point of several disks promises it only where restore points
        keep the order of writes (S1: no guarantee for spanned volumes).
    rule, reason, source : str
        Which rule decided, why in a line, and where that is written.
    """

    case: Case
    profile: str
    reading: str
    action: str
    label: str | None
    across_disks: bool | None
    rule: str
    reason: str
    source: str

    @property
    def outcome(self) -> str:
        """The label, or the action where no point is made."""
        return self.label or self.action

    def _repr_html_(self) -> str:
        outcome = {"retry": "no point: the operation is retried", "fail": "the job fails"}
        promise = {True: "yes", False: "no promise", None: ""}
        return key_values(
            f"Decision of profile {self.profile}, reading {self.reading}",
            {
                **asdict(self.case),
                "outcome": outcome.get(self.outcome, f"a {self.label}-consistent point"),
                "fits across disks": promise[self.across_disks],
                "rule": self.rule,
                "reason": self.reason,
                "source": self.source,
            },
        )


def decide(
    case: Case,
    profile: str = "enhanced",
    *,
    reading: str | None = None,
    rules: Rules | None = None,
) -> Decision:
    """What becomes of one attempt to back up one machine.

    Parameters
    ----------
    case : Case
        The machine, its policy, and how the attempt went.
    profile : str
        An era of the service: ``"2017"``, ``"instant"`` or ``"enhanced"``.
    reading : str, optional
        How a stopped machine is read: ``"table"``, ``"writes"`` or ``"note"``; by default as the
        profile does.
    rules : Rules, optional
        Other rules than the shipped ones.

    Returns
    -------
    Decision
        Label or none, action, and the rule with its reason and source.

    Raises
    ------
    InputError
        If the profile or the reading is unknown, the profile's documents say nothing of a value of
        the case, or no rule decides.
    """
    rules = rules or shipped()
    reading = rules.reading(profile, reading)
    values = _values(case, profile, rules)
    for rule in rules.applicable(profile, reading):
        if all(values[axis] in allowed for axis, allowed in rule.when.items()):
            across = rule.label != "crash" or values["disks"] == 1 or rule.write_order
            return Decision(
                case, profile, reading, rule.action, rule.label, across if rule.label else None,
                rule.name, rule.reason, rule.source,
            )  # fmt: skip
    raise _gap(profile, reading, values)


def decision_table(
    profile: str = "enhanced", *, reading: str | None = None, rules: Rules | None = None
) -> pl.DataFrame:
    """The full decision table of a profile.

    Parameters
    ----------
    profile, reading, rules
        As for `decide`.

    Returns
    -------
    polars.DataFrame
        One row for every combination of the values that the profile knows: ``profile``,
        ``reading``, the fields of a `Case` (``disks`` 2 is two or more), ``outcome`` (the label, or
        the action where no point is made), ``action``, ``label``, ``across_disks``, ``rule``,
        ``reason``, ``source``. Texts of a case are Enums in the order in which they are declared,
        so tables of several profiles can be stacked.

    Raises
    ------
    InputError
        If the profile or the reading is unknown, or a combination has no rule.
    """
    rules = rules or shipped()
    reading = rules.reading(profile, reading)
    applicable = rules.applicable(profile, reading)
    frame = _combinations(profile, rules)
    # Of all rules that match a row, the number of the first.
    number = pl.coalesce(
        *(pl.when(_condition(r)).then(pl.lit(i, pl.Int64)) for i, r in enumerate(applicable)),
        pl.lit(None, pl.Int64),
    )
    frame = frame.with_columns(number.alias("_rule"))
    for gap in frame.filter(pl.col("_rule").is_null()).head(1).iter_rows(named=True):
        raise _gap(profile, reading, {name: gap[name] for name in rules.axes})
    results = pl.DataFrame(
        [
            (i, r.label or r.action, r.action, r.label, r.write_order, r.name, r.reason, r.source)
            for i, r in enumerate(applicable)
        ],
        schema={
            "_rule": pl.Int64, "outcome": pl.Enum(OUTCOMES), "action": pl.Enum(ACTIONS),
            "label": pl.Enum(LABELS), "_order": pl.Boolean, "rule": pl.String,
            "reason": pl.String, "source": pl.String,
        },
        orient="row",
    )  # fmt: skip
    across = (pl.col("label") != "crash") | (pl.col("disks") == 1) | pl.col("_order")
    return frame.join(results, on="_rule", how="left", maintain_order="left").select(
        pl.lit(profile, pl.Enum(list(rules.profiles))).alias("profile"),
        pl.lit(reading, pl.Enum(list(rules.readings))).alias("reading"),
        *(pl.col(axis.name).cast(_type(axis)) for axis in rules.axes.values()),
        "outcome", "action", "label",
        pl.when(pl.col("label").is_not_null()).then(across).alias("across_disks"),
        "rule", "reason", "source",
    )  # fmt: skip


def unreachable_rules(rules: Rules | None = None) -> list[tuple[str, str]]:
    """Rules that decide no combination; none of the shipped ones.

    Returns
    -------
    list of (str, str)
        The rule, and the profile in which it should decide something under one of the readings:
        each that it names, or ``"any"`` where it names none.
    """
    rules = rules or shipped()
    used = {
        profile: {
            name
            for reading in rules.readings
            for name in decision_table(profile, reading=reading, rules=rules)["rule"].unique()
        }
        for profile in rules.profiles
    }
    used["any"] = set().union(*used.values())
    return [
        (rule.name, profile)
        for rule in rules.rules
        for profile in rule.profiles or ("any",)
        if rule.name not in used[profile]
    ]


def _combinations(profile: str, rules: Rules) -> pl.DataFrame:
    """Every combination of the values that a profile knows; a step only where it can happen."""
    known = rules.known(profile)
    happens, systems = known.pop("step"), known.pop("os")
    pairs = [(os, s) for os in systems for s in rules.steps[str(os)] if s in happens]
    rows = len(pairs) * prod(map(len, known.values()))
    if rows > MOST_ROWS:
        raise InputError(f"a table of {rows:,} combinations; the most is {MOST_ROWS:,}")
    frame = pl.DataFrame(pairs, schema={"os": pl.String, "step": pl.String}, orient="row")
    for name, values in known.items():
        frame = frame.join(pl.DataFrame({name: list(values)}), how="cross")
    return frame


def _condition(rule: Rule) -> pl.Expr:
    """Where in a table a rule matches."""
    parts = [pl.col(axis).is_in(list(allowed)) for axis, allowed in rule.when.items()]
    return pl.all_horizontal(pl.lit(True), *parts)


def _type(axis: Axis) -> pl.DataType:
    texts = [value for value in axis.values if isinstance(value, str)]
    return pl.Enum(texts) if texts else pl.Int64()


def _values(case: Case, profile: str, rules: Rules) -> dict[str, Value]:
    """A case by axis, checked against what the profile knows."""
    values: dict[str, Value] = {}
    for name, known in rules.known(profile).items():
        axis, value = rules.axes[name], getattr(case, name)
        good = type(value) is type(axis.values[0])
        if good and axis.more:
            value = min(value, axis.values[-1])
        if not good or value not in axis.values:
            raise InputError(f"{name}: there is no {quoted(value)}", hint=one_of(axis.values))
        if value not in known:
            raise InputError(
                f"the documents of profile {profile} say nothing of {name} {quoted(value)}",
                hint=f"they know {', '.join(map(str, known))}",
            )
        values[name] = value
    happen = rules.steps[str(values["os"])]
    if values["step"] not in happen:
        raise InputError(
            f"step: {values['step']} does not happen on {values['os']}", hint=one_of(happen)
        )
    return values


def _gap(profile: str, reading: str, values: Mapping[str, Value]) -> InputError:
    case = ", ".join(f"{name} {value}" for name, value in values.items())
    return InputError(
        f"no rule of profile {profile}, reading {reading}, decides on: {case}",
        hint="every combination needs a rule",
    )
