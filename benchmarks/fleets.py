"""The service model's fast engine: beside the readable one, and at full size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from benchmarks.cases import Setup
    from vmbk.service.plan import Plan

VMS, DAYS = 10_000, 365


def fleet(vms: int, days: int) -> Plan:
    """Half on managed disks, half on storage accounts that are at their limits every night."""
    from vmbk.service.layout import plan_of
    from vmbk.service.scenario import Scenario

    half, accounts = -(-vms // 2), -(-vms // 80)
    disks = [
        {"name": "os", "size": "128GiB", "used": "30GB", "churn": "1GB", "churn_spread": "30%"},
        {"name": "data", "size": "512GiB", "used": "150GB", "churn": "6GB", "growth": "100MB",
         "churn_spread": "50%", "weekend": "30%", "write_size": "8KiB"},
    ]  # fmt: skip
    shared = [
        {
            "name": f"shared-{i}-{{n}}", "count": min(40, vms - half - 40 * i), "policy": "nightly",
            "disks": [disk | {"account": f"account-{i}"} for disk in disks],
        }
        for i in range(accounts)
        if vms - half - 40 * i > 0
    ]  # fmt: skip
    return plan_of(
        Scenario.parse(
            {
                "profile": "instant", "days": days, "seed": 1,
                "policies": [{"name": "nightly", "schedule": {"at": "23:00"}}],
                "vaults": [{"name": "vault", "places": 0}],
                "accounts": [
                    {"name": f"account-{i}", "kind": "gpv1-grs", "guest_egress": "900MB/s"}
                    for i in range(accounts)
                ],
                "vms": [
                    {"name": "managed-{n}", "count": half, "policy": "nightly", "disks": disks},
                    *shared,
                ],
            }
        )
    )  # fmt: skip


def beside_reference(share: float) -> Setup:
    """The same fleet by both engines."""
    from benchmarks.cases import Setup, scaled
    from vmbk.service.engine import simulate_fast
    from vmbk.service.reference import simulate_reference

    plan = fleet(scaled(800, share, 2), 30)

    def told(found: Any) -> Any:
        return np.concatenate([table.ravel() for table in (found.jobs, found.account_hours)])

    return Setup(
        lambda: told(simulate_fast(plan)),
        lambda: told(simulate_reference(plan)),
        {"reference": lambda: told(simulate_reference(plan))},
        int(plan.job_first[-1]), "jobs",
    )  # fmt: skip


def year(share: float) -> Setup:
    """A year of 10,000 VMs, beside a hundredth of the fleet simulated a hundred times."""
    from benchmarks.cases import Setup, scaled
    from vmbk.service.engine import simulate_fast

    large, small = fleet(scaled(VMS, share, 2), DAYS), fleet(scaled(VMS // 100, share, 2), DAYS)

    def ends(plan: Plan, threads: int | None = None) -> int:
        return int(np.bitwise_xor.reduce(simulate_fast(plan, threads=threads).jobs, axis=None))

    return Setup(
        lambda: ends(large), lambda: [ends(small) for _ in range(100)],
        {"one thread": lambda: ends(large, 1)}, int(large.job_first[-1]), "jobs",
    )  # fmt: skip
