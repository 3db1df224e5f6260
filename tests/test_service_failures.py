"""Failures: the data, what a scenario may set, and what engines look up."""

from __future__ import annotations

import re
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmbk.consistency.decision import Case, decide
from vmbk.errors import InputError
from vmbk.service.failures import (
    CERTAIN,
    PHASES,
    Cause,
    CompiledFailures,
    FailureModel,
    MachineTraits,
    causes,
)
from vmbk.service.plan import APPLICATION, ATTEMPTS, CRASH, FAIL, FILESYSTEM, RETRY

PROFILES = ("2017", "instant", "enhanced")
LETTER = "FRCfA"
NO_NETWORK = "ExtensionSnapshotFailedNoNetwork"
GOOD: dict[str, Any] = {
    "code": "X", "phase": "snapshot", "message": "m", "who": "windows", "lasting": True,
    "probability": "1%", "source": "s", "means": {"agent": "unresponsive"},
}  # fmt: skip


def row(model: FailureModel, traits: MachineTraits, code: str | None = None) -> str:
    """What becomes of attempts 1 to 8, a letter each."""
    compiled = model.compile(traits)
    cause = 0 if code is None else compiled.codes.index(code) + 1
    return "".join(LETTER[compiled.of(cause, n)] for n in range(1, ATTEMPTS + 1))


def draw(compiled: CompiledFailures, u: int) -> int:
    """The cause of a draw, as engines are told to take it."""
    for i, threshold in enumerate(compiled.thresholds):
        if u < threshold:
            return i + 1
    return 0


# --- The data ------------------------------------------------------------------------------------


def test_every_cause_says_where_it_is_written() -> None:
    for cause in causes():
        assert re.match(r"(errors|scripts|extension|S[0-4])\b", cause.source), cause.code
        assert cause.message[0].islower(), cause.code
        assert "/" not in cause.source
        assert cause.profiles, cause.code
    assert {cause.phase for cause in causes()} == set(PHASES)
    assert [c.code for c in causes()] == list(dict.fromkeys(c.code for c in causes()))


def test_the_documents_give_no_probability_so_none_claims_to_be_documented() -> None:
    assert {cause.basis for cause in causes()} == {"inferred"}


@pytest.mark.parametrize("os", ["windows", "linux"])
@pytest.mark.parametrize("profile", PROFILES)
def test_about_99_of_100_attempts_go_well(profile: str, os: str) -> None:
    thresholds = FailureModel.default(profile).compile(MachineTraits(os=os)).thresholds
    assert 0.002 < thresholds[-1] / CERTAIN < 0.02


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"means": {}}, "means"),
        ({"blocked": True}, "means"),
        ({"phase": "transfer"}, "means"),
        ({"profiles": ["1999"]}, "profiles"),
        ({"probability": "200%"}, "probability"),
        ({"who": "nobody"}, "who"),
        ({"colour": "red"}, "colour"),
        ({"means": {"agents": "x"}}, "agents"),
    ],
)
def test_a_bad_cause_is_named(change: dict[str, Any], field: str) -> None:
    assert Cause.parse(GOOD, "causes[0]").inside
    with pytest.raises(InputError, match=rf"causes\[0\].*{field}"):
        Cause.parse({**GOOD, **change}, "causes[0]")


# --- What a scenario sets ------------------------------------------------------------------------


def test_a_scenario_sets_a_probability() -> None:
    model = FailureModel.parse({NO_NETWORK: "0.5%"}, "failures", "instant")
    before, after = (
        m.compile(MachineTraits()).thresholds for m in (FailureModel.default("instant"), model)
    )
    at = model.codes.index(NO_NETWORK)
    assert after[at] - after[at - 1] == pytest.approx(0.005 * CERTAIN, abs=2)
    assert (before[:at] == after[:at]).all()
    told = {c["code"]: (c["probability"], c["basis"]) for c in model.to_dict()["causes"]}
    assert told[NO_NETWORK] == (0.005, "set")
    assert told["UserErrorGuestAgentStatusUnavailable"] == (0.001, "inferred")
    assert "0.500%" in model._repr_html_()


def test_without_defaults_only_what_is_named_happens() -> None:
    assert FailureModel.never("enhanced").compile(MachineTraits()).thresholds[-1] == 0
    table = {"defaults": False, NO_NETWORK: 1.0}
    compiled = FailureModel.parse(table, "failures", "enhanced").compile(MachineTraits())
    assert compiled.codes[draw(compiled, CERTAIN - 1) - 1] == NO_NETWORK


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"ExtensionSnapshotFailedNoNetwrk": "1%"},
            "did you mean ExtensionSnapshotFailedNoNetwork",
        ),
        ({NO_NETWORK: "101%"}, f"failures.{NO_NETWORK}: '101%' is not a share"),
        ({NO_NETWORK: -0.1}, f"failures.{NO_NETWORK}: -0.1 is not a share"),
        ({NO_NETWORK: "nan"}, "is not a share"),
        ({NO_NETWORK: True}, "True is not a share"),
        ({NO_NETWORK: {"often": 1}}, "is not a share"),
        ({"defaults": "no"}, "'no' is not true or false"),
        ({NO_NETWORK: 1, "UserErrorGuestAgentStatusUnavailable": 1}, "add up to 20"),
        ([], "failures must be a table"),
    ],
)
def test_what_cannot_be_is_an_error_that_names_the_field(table: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        FailureModel.parse(table, "failures", "instant")


def test_a_cause_of_another_era_is_an_error() -> None:
    with pytest.raises(InputError, match="profile 2017 does not know") as told:
        FailureModel.parse({"UserErrorFsFreezeFailed": "1%"}, "failures", "2017")
    assert "instant, enhanced" in told.value.hint
    with pytest.raises(InputError, match="there is no profile '1999'"):
        FailureModel.default("1999")


def test_traits_that_cannot_be() -> None:
    with pytest.raises(InputError, match="'maybe' is not one of none, ok"):
        MachineTraits(scripts="maybe")
    with pytest.raises(InputError, match="'windows' machines have none"):
        MachineTraits(os="windows", scripts="ok")
    with pytest.raises(InputError, match="profile 2017 say nothing of storage 'ultra'"):
        FailureModel.default("2017").compile(MachineTraits(storage="ultra"))


# --- What engines look up ------------------------------------------------------------------------


def test_g12_crash_fallback_at_attempts_4_6_and_8() -> None:
    """Restore points: attempts 4, 6 and 8 of an Enhanced policy fall back to crash consistency."""
    model = FailureModel.default("enhanced")
    machine = MachineTraits(os="windows", policy="enhanced", disks=4)
    compiled = model.compile(machine)
    for cause in causes():
        if cause.phase == "snapshot" and cause.inside and cause.befalls(machine, "enhanced"):
            at = compiled.codes.index(cause.code) + 1
            gives = [n for n in range(1, 9) if compiled.of(at, n) == CRASH]
            assert gives == [4, 6, 8], cause.code
    assert row(model, machine, "ExtensionFailedVssServiceInBadState") == "RRRCRCRC"
    # A Standard policy has no such fallback: the eighth attempt fails.
    standard = MachineTraits(os="windows", disks=4)
    assert row(model, standard, "ExtensionFailedVssServiceInBadState") == "RRRRRRRF"
    # Crash consistency that was asked for comes at the first attempt.
    asked = MachineTraits(policy="enhanced", wish="crash")
    assert row(model, asked) == "CCCCCCCC"


@pytest.mark.parametrize(
    ("profile", "traits", "code", "expected"),
    [
        # 2017 has one attempt.
        ("2017", MachineTraits(os="windows"), None, "AFFFFFFF"),
        ("2017", MachineTraits(), None, "fFFFFFFF"),
        ("2017", MachineTraits(), "UserErrorGuestAgentStatusUnavailable", "FFFFFFFF"),
        ("2017", MachineTraits(os="windows"), "ExtensionFailedVssServiceInBadState", "fFFFFFFF"),
        ("2017", MachineTraits(power="stopped"), None, "CFFFFFFF"),
        # Seeds: some writers failed, and scripts failed, give a file-system consistent point.
        ("instant", MachineTraits(os="windows"), "ExtensionFailedVssWriterInBadState", "ffffffff"),
        ("instant", MachineTraits(scripts="ok"), None, "AAAAAAAA"),
        ("instant", MachineTraits(scripts="ok"), "Pre-ScriptExecutionFailed", "ffffffff"),
        # Extension: a machine of one managed disk falls back on a retry.
        ("instant", MachineTraits(), "UserErrorFsFreezeFailed", "RCCCCCCC"),
        ("instant", MachineTraits(disks=2), "UserErrorFsFreezeFailed", "RRRRRRRF"),
        # Seeds: unavailable or failed is crash-consistent; creating is tried again.
        ("enhanced", MachineTraits(), "UserErrorVmProvisioningStateFailed", "CCCCCCCC"),
        ("instant", MachineTraits(), "UserErrorVmProvisioningStateFailed", "FFFFFFFF"),
        ("enhanced", MachineTraits(policy="enhanced"), "VmBetweenStates", "RRRRRRRF"),
        # Nothing helps where no snapshot can be made.
        ("enhanced", MachineTraits(policy="enhanced"), "FailedHostSnapshotRemoteServerError",
         "RRRRRRRF"),
        ("enhanced", MachineTraits(policy="enhanced"), "ExtensionFailedSnapshotLimitReachedError",
         "FFFFFFFF"),
        ("instant", MachineTraits(agent="missing"), None, "RRRRRRRF"),
    ],
)  # fmt: skip
def test_what_becomes_of_attempts(
    profile: str, traits: MachineTraits, code: str | None, expected: str
) -> None:
    assert row(FailureModel.default(profile), traits, code) == expected


def test_what_lies_inside_a_machine_does_not_befall_a_stopped_one() -> None:
    model = FailureModel.parse({NO_NETWORK: "50%"}, "failures", "enhanced")
    at = model.codes.index(NO_NETWORK)
    for traits in (MachineTraits(power="stopped"), MachineTraits(policy="enhanced", wish="crash")):
        thresholds = model.compile(traits).thresholds
        assert thresholds[at] == thresholds[at - 1]
    assert model.compile(MachineTraits()).thresholds[-1] > CERTAIN // 2


def test_compiled_tables_are_made_once_and_cannot_be_written() -> None:
    model = FailureModel.default("enhanced")
    compiled = model.compile(MachineTraits())
    assert FailureModel.default("enhanced").compile(MachineTraits()) is compiled
    assert compiled.thresholds.dtype == np.int64
    assert compiled.consequence.dtype == np.uint8
    assert compiled.lasting.dtype == np.bool_
    assert len(compiled.consequence) == len(compiled.lasting) * ATTEMPTS
    assert len(compiled.lasting) == len(compiled.thresholds) + 1
    with pytest.raises(ValueError, match="read-only"):
        compiled.thresholds[0] = 1


def test_transfers_and_restores_fail_too() -> None:
    model = FailureModel.parse(
        {"CopyingVHDsFromBackUpVaultTakingLongTime": "25%"}, "failures", "instant"
    )
    assert model.transfer_failure == CERTAIN // 4
    codes, thresholds = model.thresholds_of("restore")
    assert codes[0] == "UserErrorSkuNotAvailable"
    assert 0 < thresholds[0] < thresholds[1] < CERTAIN // 100


TRAITS = st.builds(
    MachineTraits,
    os=st.sampled_from(["windows", "linux"]),
    power=st.sampled_from(["running", "stopped"]),
    agent=st.sampled_from(["ready", "missing", "unresponsive"]),
    policy=st.sampled_from(["standard", "enhanced"]),
    disks=st.integers(1, 3),
)


@settings(max_examples=25, deadline=None)
@given(traits=TRAITS, shares=st.lists(st.floats(0, 0.02), min_size=1, max_size=12), seed=st.data())
def test_thresholds_and_consequences_are_as_defined(
    traits: MachineTraits, shares: list[float], seed: st.DataObject
) -> None:
    known = [c for c in causes() if c.phase == "snapshot" and "enhanced" in c.profiles]
    table = {c.code: p for c, p in zip(known, shares, strict=False)}
    model = FailureModel.parse({"defaults": False, **table}, "failures", "enhanced")
    compiled = model.compile(traits)
    widths = np.diff(compiled.thresholds, prepend=0)
    assert (widths >= 0).all()
    for cause, width in zip(
        (c for c in causes() if c.phase == "snapshot"), widths.tolist(), strict=True
    ):
        share = table.get(cause.code, 0.0) * cause.befalls(traits, "enhanced")
        assert abs(width - share * CERTAIN) <= 1.01
    # A naive reading of one cause and attempt.
    cause = draw(compiled, seed.draw(st.integers(0, CERTAIN - 1)))
    attempt = seed.draw(st.integers(1, ATTEMPTS))
    found = None if cause == 0 else known_by(compiled.codes[cause - 1])
    assert compiled.lasting[cause] == (found is not None and found.lasting)
    if found is not None and found.blocked:
        expected = FAIL if found.lasting or attempt == ATTEMPTS else RETRY
    else:
        step = found.step if found else None
        case = Case(
            os=traits.os, step=step, power=traits.power, policy=traits.policy, disks=traits.disks,
            agent=(found.agent if found else None) or traits.agent, attempt=attempt,
            provisioning=(found.provisioning if found else None) or "succeeded",
        )  # fmt: skip
        outcome = decide(case, "enhanced").outcome
        last = FAIL if attempt == ATTEMPTS else RETRY
        expected = {"fail": FAIL, "retry": last, "crash": CRASH, "filesystem": FILESYSTEM,
                    "application": APPLICATION}[outcome]  # fmt: skip
    assert compiled.of(cause, attempt) == expected


def known_by(code: str) -> Cause:
    """A cause by its code."""
    return next(cause for cause in causes() if cause.code == code)


def test_compiling_is_quick() -> None:
    begin = time.perf_counter()
    for disks in range(2, 12):
        FailureModel.default("enhanced").compile(MachineTraits(disks=disks, policy="enhanced"))
    assert time.perf_counter() - begin < 5
