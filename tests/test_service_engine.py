"""Both engines make the same jobs, to the nanosecond, and so do several threads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests import naive
from tests.service_plans import random_plan
from vmbk.service import plan as p
from vmbk.service.engine import simulate_fast
from vmbk.service.layout import plan_of
from vmbk.service.plan import Outputs, Plan
from vmbk.service.scenario import Scenario

TABLES = ("jobs", "parts", "accounts", "account_hours")


def same(plan: Plan, threads: int = 1) -> Outputs:
    """Run a plan on both engines, compare everything that they tell."""
    ours, twin = simulate_fast(plan, parts=True, threads=threads), naive.simulate_fleet(plan)
    for name in TABLES:
        np.testing.assert_array_equal(getattr(ours, name), getattr(twin, name), err_msg=name)
    return ours


@pytest.mark.parametrize("first", range(0, 200, 20))
def test_both_engines_agree_on_every_job_of_200_random_fleets(first: int) -> None:
    jobs = sum(len(same(random_plan(seed)).jobs) for seed in range(first, first + 20))
    assert jobs > 500


def test_random_fleets_come_to_everything_that_can_happen() -> None:
    """A comparison is worth what its fleets come to."""
    states, transfers, modes, throttled, cut = set(), set(), set(), 0, 0
    for seed in range(60):
        plan = random_plan(seed)
        out = simulate_fast(plan, parts=True)
        states |= set(p.told(out.jobs, "state").tolist())
        transfers |= set(p.told(out.jobs, "transfer").tolist())
        modes |= set(out.parts[:, p.PART.index("mode")].tolist())
        throttled += int((out.accounts[:, p.ACCOUNT_TOLD.index("throttled")] > 0).sum())
        place = out.jobs[:, p.JOB.index("place")]
        cut += int((place > 0).sum())
    assert states == set(range(len(p.STATES)))
    assert transfers == set(range(len(p.TRANSFERS)))
    assert modes == set(range(len(p.MODES)))
    assert throttled > 10
    assert cut > 10


def fleet(days: int = 20) -> Plan:
    """Several parts that share nothing: managed VMs, and VMs on three accounts."""
    return plan_of(
        Scenario.parse(
            {
                "profile": "instant", "days": days, "seed": 3,
                "accounts": [{"name": f"a{i}", "egress": "400Mbps"} for i in range(3)],
                "vaults": [{"name": "few", "places": 2}],
                "vms": [
                    {"name": "managed-{n}", "count": 8, "disks": [
                        {"name": "os", "size": "64GiB", "used": "20GB", "churn": "5%"}]},
                    *[{"name": f"on-{i}-{{n}}", "count": 4, "vault": "few" if i else "vault",
                       "disks": [{"name": "d", "size": "64GiB", "used": "30GB", "churn": "9%",
                                  "churn_spread": "40%", "account": f"a{i}"}]}
                      for i in range(3)],
                ],
            }
        )
    )  # fmt: skip


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_nothing(threads: int) -> None:
    same(fleet(), threads)


def test_parts_change_no_job() -> None:
    plan = fleet()
    np.testing.assert_array_equal(
        simulate_fast(plan, parts=True).jobs, simulate_fast(plan, parts=False).jobs
    )


def test_columns_are_those_that_the_kernel_knows() -> None:
    from vmbk.kernels import fleet as f
    from vmbk.kernels import fleet_accounts as a
    from vmbk.kernels import fleet_work as w

    def places(module: object, names: tuple[str, ...], words: dict[str, str]) -> list[int]:
        return [getattr(module, words.get(name, name.upper())) for name in names]

    assert places(
        w, p.RULES,
        {"retry": "RETRY_WAIT"},
    ) == list(range(len(p.RULES)))  # fmt: skip
    assert places(f, p.VM, {"kind": "CLASS"}) == list(range(f.VM_COLUMNS))
    assert places(w, p.DISK, {"vm": "DISK_VM", "tracking": "HAS_TRACKING"}) == list(
        range(w.DISK_COLUMNS)
    )
    assert [getattr(f, f"JOB_{name.upper()}") for name in p.JOB] == list(range(f.JOB_COLUMNS))
    told = ("mode", "read", "changed", "extents", "scan", "send")
    assert [getattr(f, f"PART_{name.upper()}") for name in told] == list(range(f.PART_COLUMNS))
    assert len(p.PART) == len(told)
    assert places(a, p.ACCOUNT_TOLD, {}) == list(range(a.TOLD_COLUMNS))
    assert (f.FAIL, f.RETRY, f.ATTEMPTS) == (p.FAIL, p.RETRY, p.ATTEMPTS)
    assert tuple(range(4)) == (f.COMPLETED, f.WARNINGS, f.FAILED, f.SKIPPED)
    assert (f.NOT_DUE, f.TRANSFER_SKIPPED, f.DONE, f.BROKEN) == (
        p.NOT_DUE, p.TRANSFER_SKIPPED, p.TRANSFER_DONE, p.TRANSFER_FAILED,
    )  # fmt: skip
    assert [p.TOLD[name][0] for name in list(p.TOLD)[1:]] == [
        f.LABEL_BIT, f.STATE_BIT, f.TRANSFER_BIT, f.INITIAL_BIT, f.FALLBACK_BIT, f.CAUSE_BIT,
        f.CRITICAL_BIT,
    ]  # fmt: skip


def test_the_model_is_written_down() -> None:
    text = (Path(p.__file__).parent / "MODEL.md").read_text(encoding="utf-8")
    for name in (*p.RULES[2:], *p.DISK[2:], *p.ACCOUNT_TOLD[:3]):
        word = {"install_low": "install_low", "vm": "VM"}.get(name, name)
        assert f"{word}" in text, name
