"""What goes wrong, how often, and what becomes of an attempt that it befalls.

Causes are data with their sources: ``failures.toml``. What a cause does to a job is not written
there: it says how an attempt looks to the decision model (`vmbk.consistency.decision`), and that
says whether the attempt gives a point, and of which label, is tried again or fails the job. So the
fallback to crash consistency at attempts 4, 6 and 8 (restore points: attempts 4, 6, 8) is written
once, in ``decisions.toml``.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl

from vmbk.consistency.decision import Case, decide
from vmbk.consistency.decision_rules import shipped as shipped_rules
from vmbk.display import table
from vmbk.errors import InputError
from vmbk.service.fields import Fields
from vmbk.service.plan import APPLICATION, ATTEMPTS, CRASH, FAIL, FILESYSTEM, RETRY
from vmbk.units import quoted

if TYPE_CHECKING:
    from numpy.typing import NDArray

CERTAIN: Final = 1 << 32
"""Probability 1 in the units in which engines draw."""

PHASES: Final = ("snapshot", "transfer", "restore")
WHO: Final = ("windows", "linux", "agent", "network", "host", "quota", "settings")
_BASES: Final = ("documented", "inferred")
_OUTCOMES: Final = {
    "fail": FAIL, "retry": RETRY, "crash": CRASH, "filesystem": FILESYSTEM,
    "application": APPLICATION,
}  # fmt: skip
_KEYS: Final = ("code", "phase", "message", "who", "os", "profiles", "scripts", "means", "blocked",
                "lasting", "probability", "basis", "source")  # fmt: skip
_MEANINGS: Final = ("step", "agent", "provisioning")


@dataclass(frozen=True)
class Cause:
    """One thing that can go wrong.

    Attributes
    ----------
    code : str
        The service's, or the extension's, own name of it.
    message : str
        In plain words.
    phase : str
        ``"snapshot"``, ``"transfer"`` or ``"restore"``: of which one attempt it is drawn.
    who : str
        Where it lies; one of `WHO`.
    os : str or None
        The only operating system that it befalls.
    profiles : tuple of str
        Eras that know it.
    scripts : bool
        It befalls only machines with scripts.
    step, agent, provisioning : str or None
        How the attempt looks to the decision model; None leaves the machine's own.
    blocked : bool
        No snapshot of any kind can be made.
    lasting : bool
        It stays for all attempts of a job; otherwise each attempt draws anew.
    probability : float
        By default, of one attempt (transfer, restore).
    basis : str
        Whether the documents give the probability (``"documented"``) or it is ``"inferred"``.
    source : str
        Where the cause is written.
    """

    code: str
    message: str
    phase: str
    who: str
    os: str | None
    profiles: tuple[str, ...]
    scripts: bool
    step: str | None
    agent: str | None
    provisioning: str | None
    blocked: bool
    lasting: bool
    probability: float
    basis: str
    source: str

    @property
    def inside(self) -> bool:
        """It lies inside the machine, where a stopped or an agentless one is not touched."""
        return not self.blocked and self.provisioning is None

    def befalls(self, traits: MachineTraits, profile: str) -> bool:
        """Whether such a machine can have it in this era."""
        return (
            profile in self.profiles
            and self.os in (None, traits.os)
            and (traits.scripts == "ok" or not self.scripts)
            and not (self.inside and (traits.power == "stopped" or traits.wish == "crash"))
        )

    @classmethod
    def parse(cls, declared: Any, name: str) -> Cause:
        """Read one ``[[causes]]`` table."""
        fields = Fields(declared, name, _KEYS)
        means = Fields(fields.get("means", {}), fields.where("means"), _MEANINGS)
        profiles = shipped_rules().profiles
        who = fields.choice("who", WHO)
        inside = who if who in ("windows", "linux") else None
        cause = cls(
            code=fields.text("code"),
            message=fields.text("message"),
            phase=fields.choice("phase", PHASES),
            who=who,
            os=fields.choice("os", ("windows", "linux"), inside),
            profiles=fields.words("profiles", tuple(profiles)),
            scripts=fields.flag("scripts", False),
            step=means.text("step", None),
            agent=means.text("agent", None),
            provisioning=means.text("provisioning", None),
            blocked=fields.flag("blocked", False),
            lasting=fields.flag("lasting"),
            probability=fields.share("probability"),
            basis=fields.choice("basis", _BASES, "inferred"),
            source=fields.text("source"),
        )
        for profile in cause.profiles:
            if profile not in profiles:
                raise fields.fail("profiles", f"names {quoted(profile)}, which is no profile")
        if bool(means.table) + cause.blocked != (cause.phase == "snapshot"):
            raise fields.fail(
                "means",
                "does not fit: either that or blocked = true is said of phase snapshot only",
            )
        return cause


@cache
def causes() -> tuple[Cause, ...]:
    """Every cause that the documents name, with its source, in a fixed order."""
    file = resources.files("vmbk.service").joinpath("failures.toml")
    declared = Fields(tomllib.loads(file.read_text(encoding="utf-8")), "", ("causes",))
    found = tuple(
        Cause.parse(each, f"causes[{i}]") for i, each in enumerate(declared.tables("causes"))
    )
    if len({cause.code for cause in found}) < len(found):
        raise InputError("two causes have the same code")
    return found


@dataclass(frozen=True)
class MachineTraits:
    """What of a machine and its policy decides what becomes of an attempt.

    Parameters
    ----------
    os : str
        ``"windows"`` or ``"linux"``.
    scripts : str
        ``"none"``, or ``"ok"`` for a Linux machine whose scripts are configured and succeed.
    power, provisioning, agent, wish, policy, storage, disks
        As in a `vmbk.consistency.decision.Case`.

    Raises
    ------
    InputError
        If `scripts` is none of these, or a Windows machine has some.
    """

    os: str = "linux"
    scripts: str = "none"
    power: str = "running"
    provisioning: str = "succeeded"
    agent: str = "ready"
    wish: str = "application"
    policy: str = "standard"
    storage: str = "managed"
    disks: int = 1

    def __post_init__(self) -> None:
        if self.scripts not in ("none", "ok"):
            raise InputError(f"scripts: {quoted(self.scripts)} is not one of none, ok")
        if self.scripts == "ok" and self.os != "linux":
            raise InputError(
                f"scripts: {quoted(self.os)} machines have none; they have VSS writers"
            )

    def case(self, attempt: int, cause: Cause | None = None) -> Case:
        """One attempt, with what a cause makes of it."""
        step = "scripts_ok" if self.scripts == "ok" else None
        case = Case(
            self.os, step, self.power, self.provisioning, self.agent, self.wish, attempt,
            self.policy, self.storage, self.disks,
        )  # fmt: skip
        if cause is None:
            return case
        return replace(
            case,
            step=cause.step or case.step,
            agent=cause.agent or case.agent,
            provisioning=cause.provisioning or case.provisioning,
        )


@dataclass(frozen=True, eq=False)
class CompiledFailures:
    """What engines look up for the machines of one kind.

    Attributes
    ----------
    codes : tuple of str
        Of the causes, in order; the same for all machines of a model.
    thresholds : numpy.ndarray of int64, shape (causes,)
        A draw u in [0, 2^32) takes the first cause with ``u < threshold``, else none. A cause that
        cannot befall the machine has the threshold of the one before.
    consequence : numpy.ndarray of uint8, shape ((causes + 1) * 8,)
        `FAIL`, `RETRY`, `CRASH`, `FILESYSTEM` or `APPLICATION` by cause (row 0 is none, row i + 1
        cause i) and attempt.
    lasting : numpy.ndarray of bool, shape (causes + 1,)
        Rows as above: the cause, once drawn, is that of all later attempts.
    """

    codes: tuple[str, ...]
    thresholds: NDArray[np.int64]
    consequence: NDArray[np.uint8]
    lasting: NDArray[np.bool_]

    def of(self, cause: int, attempt: int) -> int:
        """What becomes of an attempt (1 to 8) with a cause (0 is none)."""
        return int(self.consequence[cause * ATTEMPTS + attempt - 1])


@dataclass(frozen=True)
class FailureModel:
    """How probable each cause is.

    Parameters
    ----------
    profile : str
        The era.
    probabilities : tuple of float
        Of `causes()`, in order; 0 for those that the era does not know.
    """

    profile: str
    probabilities: tuple[float, ...]

    @classmethod
    def default(cls, profile: str) -> FailureModel:
        """As ``failures.toml`` has it.

        Raises
        ------
        InputError
            If there is no such profile.
        """
        return cls.parse({}, "failures", profile)

    @classmethod
    def never(cls, profile: str) -> FailureModel:
        """Nothing goes wrong."""
        return cls.parse({"defaults": False}, "failures", profile)

    @classmethod
    def parse(cls, table: Any, name: str, profile: str) -> FailureModel:
        """Read a scenario's ``[failures]``: probabilities by code.

        Parameters
        ----------
        table : Mapping
            Such as ``{"ExtensionSnapshotFailedNoNetwork": "0.5%"}``, of one attempt. ``defaults =
            false``: causes that are not named do not happen.
        name : str
            How errors call it.
        profile : str
            The era.

        Raises
        ------
        InputError
            If a code is not known, or not in this era, a probability is not from 0% to 100%, or
            those that one machine can have add up to more than 100%.
        """
        shipped_rules().known(profile)
        known = causes()
        fields = Fields(table, name, (*(cause.code for cause in known), "defaults"))
        defaults = fields.flag("defaults", True)
        found = []
        for cause in known:
            if cause.code in fields and profile not in cause.profiles:
                raise fields.fail(
                    cause.code,
                    f"is said of a cause that profile {profile} does not know",
                    f"profiles that do: {', '.join(cause.profiles)}",
                )
            usual = cause.probability if defaults and profile in cause.profiles else 0.0
            found.append(fields.share(cause.code, usual))
        model = cls(profile, tuple(found))
        for phase in PHASES:
            for os in ("windows", "linux"):
                total = sum(
                    p for cause, p in zip(known, found, strict=True)
                    if cause.phase == phase and cause.os in (None, os)
                )  # fmt: skip
                if total > 1 + 1e-9:
                    raise InputError(
                        f"{name}: the probabilities of phase {phase} on {os} add up to {total:.1%}",
                        hint="they exclude one another, so that they add up to 100% at most",
                    )
        return model

    @property
    def codes(self) -> tuple[str, ...]:
        """Codes of the snapshot phase, in the order of `CompiledFailures`."""
        return tuple(cause.code for cause in causes() if cause.phase == "snapshot")

    def compile(
        self, traits: MachineTraits, profile: str | None = None, reading: str | None = None
    ) -> CompiledFailures:
        """The tables that engines look up; made once for each kind of machine.

        Parameters
        ----------
        traits : MachineTraits
        profile : str, optional
            By default the model's own.
        reading : str, optional
            Of what the documents say of stopped machines (see `vmbk.consistency.decision`); by
            default the one that the profile takes.

        Returns
        -------
        CompiledFailures

        Raises
        ------
        InputError
            If the profile's documents say nothing of a trait.
        """
        return _compile(self, traits, profile or self.profile, reading)

    def thresholds_of(self, phase: str) -> tuple[tuple[str, ...], NDArray[np.int64]]:
        """Codes and cumulative thresholds (units of 2^-32) of phase transfer or restore."""
        chosen = [
            (c.code, p) for c, p in zip(causes(), self.probabilities, strict=True)
            if c.phase == phase
        ]  # fmt: skip
        return tuple(code for code, _ in chosen), _thresholds([p for _, p in chosen])

    @property
    def transfer_failure(self) -> int:
        """Of one transfer, in units of 2^-32."""
        return int(self.thresholds_of("transfer")[1][-1])

    @property
    def frame(self) -> pl.DataFrame:
        """One row a cause that the era knows: its fields, and ``probability`` as it is set."""
        return pl.DataFrame(
            [
                {
                    "code": c.code, "phase": c.phase, "who": c.who, "probability": p,
                    "basis": c.basis if p == c.probability else "set",
                    "lasting": c.lasting, "blocked": c.blocked, "step": c.step, "agent": c.agent,
                    "provisioning": c.provisioning, "message": c.message, "source": c.source,
                }
                for c, p in zip(causes(), self.probabilities, strict=True)
                if self.profile in c.profiles
            ],
            schema_overrides={"step": pl.String, "agent": pl.String, "provisioning": pl.String},
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {"profile": self.profile, "causes": self.frame.to_dicts()}

    def _repr_html_(self) -> str:
        rows = self.frame.select("code", "phase", "who", "probability", "basis", "message").rows()
        return table(
            f"Failures of profile {self.profile}",
            ("code", "phase", "who", "probability", "basis", "message"),
            [(*row[:3], f"{row[3]:.3%}", *row[4:]) for row in rows],
        )


def _thresholds(probabilities: list[float]) -> NDArray[np.int64]:
    """Cumulative, in units of 2^-32; a cause of probability 0 keeps the threshold before it."""
    summed = np.cumsum(np.asarray(probabilities, np.float64))
    return np.minimum(np.rint(summed * CERTAIN), CERTAIN).astype(np.int64)


@lru_cache(maxsize=4096)
def _compile(
    model: FailureModel, traits: MachineTraits, profile: str, reading: str | None
) -> CompiledFailures:
    chosen = [
        (cause, p)
        for cause, p in zip(causes(), model.probabilities, strict=True)
        if cause.phase == "snapshot"
    ]
    befalls = [cause.befalls(traits, profile) for cause, _ in chosen]
    thresholds = _thresholds([p * b for (_, p), b in zip(chosen, befalls, strict=True)])
    # A cause that cannot befall the machine is never drawn; its row is that of none.
    possible = [c if b else None for (c, _), b in zip(chosen, befalls, strict=True)]
    rows = [_row(traits, profile, reading, cause) for cause in (None, *possible)]
    consequence = np.array(rows, np.uint8).ravel()
    lasting = np.array([False, *(cause.lasting for cause, _ in chosen)])
    for array in (thresholds, consequence, lasting):
        array.flags.writeable = False
    return CompiledFailures(tuple(c.code for c, _ in chosen), thresholds, consequence, lasting)


def _row(
    traits: MachineTraits, profile: str, reading: str | None, cause: Cause | None
) -> list[int]:
    """What becomes of attempts 1 to 8."""
    known = shipped_rules().known(profile)["attempt"]
    retries = len(known) > 1
    row = []
    for attempt in range(1, ATTEMPTS + 1):
        if cause is not None and cause.blocked:
            outcome = FAIL if cause.lasting or not retries else RETRY
        elif attempt not in known:
            outcome = FAIL  # an era without retries gets no further than its first attempt
        else:
            case = traits.case(attempt, cause)
            outcome = _OUTCOMES[decide(case, profile, reading=reading).outcome]
        row.append(outcome)
    if row[-1] == RETRY:
        row[-1] = FAIL
    return row
