"""A backup policy: when to back up (seed S4: schedule), how long to keep it (retention), and how.

A policy is *standard* or *enhanced*. Enhanced ones back up several times a day, keep snapshots for
longer, can do without an agent in the machine, and can never become standard again (enhanced policy
page). Snapshots are kept for a few days beside the vault, for quick restores; that cannot be turned
off (Instant Restore page).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

from vmbk.display import key_values
from vmbk.errors import InputError
from vmbk.service.fields import Fields
from vmbk.service.retention import (
    CLASS_DAYS,
    CLASSES,
    DEFAULT_ENHANCED,
    DEFAULT_STANDARD,
    DEFAULT_STANDARD_WEEKLY,
    MONTHLY,
    TAGS,
    Retention,
)
from vmbk.service.schedule import Schedule
from vmbk.units import quoted

SUBTYPES: Final = ("standard", "enhanced")

WISHES: Final = ("application", "filesystem", "crash")
"""Consistency that a policy asks for; crash is the agentless one, of enhanced policies only."""

TIERINGS: Final = ("never", "recommended", "eligible")
"""What moves to the archive tier: nothing, what the service recommends, all that may."""

ARCHIVE_LEAST_MONTHS: Final = 3
"""Age from which a point may move to the archive tier (archive page)."""

ARCHIVE_REMAINING_MONTHS: Final = 6
"""That a point must still have to live when it moves (archive page)."""

INSTANT_CAPS: Final = {4: 17, 6: 22, 8: 22, 12: 30, 24: 30}
"""Most days of snapshots under an hourly schedule, by hours between slots (enhanced policy page:
4, 6 and 12 hours). For 8 hours none is given; that of 6 is taken (inferred)."""


@dataclass(frozen=True)
class Span:
    """The least, the most and the usual value of a setting."""

    least: int
    most: int
    default: int


def instant_span(subtype: str, schedule: Schedule) -> Span:
    """Days for which snapshots may be kept.

    Parameters
    ----------
    subtype : str
        One of `SUBTYPES`.
    schedule : Schedule

    Returns
    -------
    Span
        Standard 1 to 5, usually 2, and just 5 for a weekly schedule; enhanced 1 to 30, usually 7,
        5 to 20 for a weekly one, and less than 30 the more often an hourly one backs up (Instant
        Restore page, enhanced policy page).
    """
    weekly = schedule.frequency == "weekly"
    if subtype == "standard":
        return Span(5, 5, 5) if weekly else Span(1, 5, 2)
    if weekly:
        return Span(5, 20, 7)
    most = INSTANT_CAPS[schedule.every] if schedule.frequency == "hourly" else 30
    return Span(1, most, 7)


@dataclass(frozen=True)
class Policy:
    """When, how and for how long machines are backed up. Times have no zone.

    Parameters
    ----------
    name : str
    subtype : str
        One of `SUBTYPES`.
    consistency : str
        Wished for: one of `WISHES`.
    schedule : Schedule
    retention : Retention
        In the vault.
    instant_days : int
        For which a snapshot is kept.
    archive : str
        One of `TIERINGS`.
    archive_months : int
        Age at which monthly and yearly points move to the archive tier, where they do.

    Raises
    ------
    InputError
        If it is a policy that the service would refuse; the message begins with the field.
    """

    name: str
    subtype: str = "standard"
    consistency: str = "application"
    schedule: Schedule = field(default_factory=Schedule)
    retention: Retention = DEFAULT_STANDARD
    instant_days: int = 2
    archive: str = "never"
    archive_months: int = ARCHIVE_LEAST_MONTHS

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("subtype", self.subtype, SUBTYPES),
            ("consistency", self.consistency, WISHES),
            ("archive", self.archive, TIERINGS),
        ):
            if value not in allowed:
                raise InputError(f"{name}: {quoted(value)} is not one of {', '.join(allowed)}")
        if self.subtype == "standard":
            hint = 'subtype = "enhanced"'
            if self.consistency == "crash":
                raise InputError("consistency: 'crash' needs an enhanced policy", hint=hint)
            if self.schedule.frequency == "hourly":
                raise InputError("schedule.frequency: 'hourly' needs an enhanced policy", hint=hint)
        try:
            self.retention.fits(self.schedule)
        except InputError as error:
            raise InputError(f"retention.{error.message}", hint=error.hint) from None
        self._check_instant()
        self._check_archive()

    def _check_instant(self) -> None:
        span = instant_span(self.subtype, self.schedule)
        kind = f"{self.subtype} policy, {self.schedule}"
        if type(self.instant_days) is not int or not span.least <= self.instant_days <= span.most:
            raise InputError(
                f"instant_days: {quoted(self.instant_days)} is not from {span.least} to "
                f"{span.most} days ({kind})"
            )
        if self.instant_days > self.retention.shortest_class_days:
            raise InputError(
                f"instant_days: {self.instant_days} days of snapshots are more than the "
                f"{self.retention.shortest_class_days} days that the vault keeps a point"
            )

    def _check_archive(self) -> None:
        months = self.archive_months
        if type(months) is not int or not ARCHIVE_LEAST_MONTHS <= months <= 1188:
            raise InputError(
                f"archive_months: {quoted(months)} is not from {ARCHIVE_LEAST_MONTHS} to 1,188"
            )
        least = (months + ARCHIVE_REMAINING_MONTHS) * CLASS_DAYS[TAGS.index(MONTHLY)]
        if self.archive != "never" and max(self.retention.days[2:]) < least:
            raise InputError(
                f"archive: {quoted(self.archive)} needs monthly or yearly points that are kept for "
                f"{months + ARCHIVE_REMAINING_MONTHS} months",
                hint=f"a point moves after {months} months and has at least "
                f"{ARCHIVE_REMAINING_MONTHS} left then",
            )

    @classmethod
    def parse(cls, table: Any, name: str) -> Self:
        """A declared policy.

        Fields: `name`; `subtype`, `consistency`, `instant_days`, `archive`, `archive_months`;
        tables `schedule` and `retention`. What is absent is as the service sets it by default.

        Raises
        ------
        InputError
            If a field is not what it must be.
        """
        known = ("name", "subtype", "consistency", "schedule", "retention", "instant_days",
                 "archive", "archive_months")  # fmt: skip
        fields = Fields(table, name, known)
        subtype = fields.choice("subtype", SUBTYPES, "standard")
        schedule = Schedule.parse(fields.get("schedule", {}), fields.where("schedule"))
        if "retention" in fields:
            retention = Retention.parse(
                fields.get("retention"), fields.where("retention"), schedule
            )
        else:
            retention = default_retention(subtype, schedule)
        span = instant_span(subtype, schedule)
        arguments: dict[str, Any] = {
            "name": fields.text("name", "DefaultPolicy"),
            "consistency": fields.choice("consistency", WISHES, "application"),
            "instant_days": fields.whole("instant_days", 1, 30, span.default),
            "archive": fields.choice("archive", TIERINGS, "never"),
            "archive_months": fields.whole("archive_months", 3, 1188, ARCHIVE_LEAST_MONTHS),
        }
        try:
            return cls(subtype=subtype, schedule=schedule, retention=retention, **arguments)
        except InputError as error:
            raise InputError(fields.where(error.message), hint=error.hint) from None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "name": self.name,
            "subtype": self.subtype,
            "consistency": self.consistency,
            "schedule": str(self.schedule),
            "retention": self.retention.to_dict(),
            "instant_days": self.instant_days,
            "archive": self.archive,
            "archive_months": self.archive_months,
        }

    def _repr_html_(self) -> str:
        kept = zip(CLASSES, self.retention.counts, strict=True)
        return key_values(
            f"policy {self.name}",
            {
                "subtype": self.subtype,
                "consistency": self.consistency,
                "schedule": self.schedule,
                "kept": ", ".join(f"{name} {count}" for name, count in kept if count),
                "days of snapshots": self.instant_days,
                "archive": self.archive,
            },
        )


def default_retention(subtype: str, schedule: Schedule) -> Retention:
    """What the service keeps unless told: 180 days, 12 weeks, 60 months and 10 years under an
    enhanced policy; of a standard one see `vmbk.service.retention.DEFAULT_STANDARD`.
    """
    weekly = schedule.frequency == "weekly"
    if subtype == "standard":
        chosen = DEFAULT_STANDARD_WEEKLY if weekly else DEFAULT_STANDARD
    else:
        chosen = replace(DEFAULT_ENHANCED, daily=0) if weekly else DEFAULT_ENHANCED
    if not weekly:
        return chosen
    # Points of a weekly schedule that takes no backup on Sundays are kept by their own weekday.
    day = tuple(replace(each, weekday=schedule.weekdays[0]) for each in chosen.monthly_on)
    return replace(chosen, weekly_on=schedule.weekdays, monthly_on=day, yearly_on=day)


DEFAULT_POLICY: Final = Policy("DefaultPolicy")
"""Created with every vault (seed S4): standard and daily. Its 30 days in the vault are inferred;
its two days of snapshots are the default of a standard policy (Instant Restore page)."""


def change(old: Policy, new: Policy) -> Policy:
    """The policy after it was edited, or a machine was moved to another one.

    Raises
    ------
    InputError
        If an enhanced policy would become standard (enhanced policy page).
    """
    if old.subtype == "enhanced" and new.subtype == "standard":
        raise InputError(
            "subtype: an enhanced policy cannot become standard",
            hint="a machine protected by an enhanced policy stays with enhanced ones",
        )
    return new
