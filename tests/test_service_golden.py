"""The documents' worked examples, G1 to G20: through the API and through the command line.

Numbers are written here as the documents tell them. Each example is asked of the model through
`vmbk service examples` as well; where a scenario can say it, a scenario file says it to
`vmbk service simulate` or `cost`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vmbk.cli.program import run
from vmbk.consistency.decision import Case, decide
from vmbk.errors import InputError
from vmbk.service.blocks import GRANULE, Versions, granules
from vmbk.service.databases import blocks_sent
from vmbk.service.deletion import soft_deleted_days
from vmbk.service.examples import EXAMPLES, Example, Examples, Outcome, run_examples
from vmbk.service.plan import DAY, HOUR
from vmbk.service.points import Term, count_held, keep, snapshots_gone
from vmbk.service.policy import Policy, instant_span
from vmbk.service.prices import Prices
from vmbk.service.protected_instance import instance_price
from vmbk.service.restore_rules import RestoreRules
from vmbk.service.retention import MonthDay, Retention
from vmbk.service.scenario import Scenario
from vmbk.service.schedule import HOUR_NS, Schedule
from vmbk.service.simulation import simulate

GB = 10**9
QUIET = """
[failures]
defaults = false
[readings]
queue_curve = "never"
[service]
start_jitter = "0s"
"""


def program(*words: object, code: int = 0) -> Any:
    """What the program says with --json."""
    answer = run([*map(str, words), "--json"])
    assert answer.code == code, answer.err
    return json.loads(answer.out)


def process(*words: object) -> Any:
    """The same from a process of its own."""
    ran = subprocess.run(
        [sys.executable, "-m", "vmbk", *map(str, words), "--json"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return json.loads(ran.stdout)


def found(number: str, name: str) -> Any:
    """What the model says of an example, the same through the API and the command line."""
    (outcome,) = run_examples(number)
    reply = program("service", "examples", "--only", name)
    (told,) = reply["examples"]
    assert (told["number"], told["name"], told["agrees"], reply["agree"]) == (
        number, name, True, True,
    )  # fmt: skip
    assert told["found"] == told["documented"] == outcome.found
    assert told["source"]
    assert outcome.agrees
    return told["found"]


def written(folder: Path, text: str) -> Path:
    path = folder / "scenario.toml"
    path.write_text(text)
    return path


def test_g1_backup_types_full_differential_incremental() -> None:
    want = {"full": [10, 10, 10], "differential": [10, 4, 5], "incremental": [10, 4, 1]}
    assert found("G1", "backup-types") == want
    assert blocks_sent(10, [np.array([1, 2, 3, 8]), np.array([4])]).to_dict() == want


def test_g2_points_store_2_3_5_blocks_and_merge_safely() -> None:
    assert found("G2", "shared-blocks") == {"stored": [2, 3, 5], "left_as_they_expire": [5, 3]}
    # Blocks 1 and 2; then 3; then 2 and 3 anew. When the first point expires, the second still
    # needs the first's block 2; when the second goes too, that and the old block 3 are free.
    versions = Versions.of([np.array([1, 2]), np.array([3]), np.array([2, 3])])
    names = list(zip(versions.block.tolist(), versions.point.tolist(), strict=True))

    def stored(*live: bool) -> set[tuple[int, int]]:
        return {names[i] for i in np.flatnonzero(versions.stored(np.array(live)))}

    assert stored(False, True, True) == {(1, 0), (2, 0), (3, 1), (2, 2), (3, 2)}
    assert stored(False, False, True) == {(1, 0), (2, 2), (3, 2)}
    # Without the second alone, nothing needs the old block 3.
    assert stored(True, False, True) == {(1, 0), (2, 0), (2, 2), (3, 2)}


def test_g3_a_change_of_1_kb_stores_16_kb() -> None:
    assert found("G3", "stored-granule") == {"stored_bytes": 16_384}
    assert len(granules(np.array([100]), np.array([1024]))) * GRANULE == 16_384


SEED_VM = """
disks = [
    {{ name = "os", size = "{most}", used = "17GB" }},
    {{ name = "temp", size = "135GiB", used = "5GB", temporary = true }},
    {{ name = "data1", size = "{most}", used = "30GB" }},
    {{ name = "data2", size = "{most}", used = "0GB" }},
]
"""


@pytest.mark.parametrize(("profile", "most"), [("2017", "1023GiB"), ("instant", "32TiB")])
def test_g4_17_30_and_0_gb_are_a_protected_instance_of_47_gb(
    tmp_path: Path, profile: str, most: str
) -> None:
    want = {"2017": 47 * GB, "instant": 47 * GB}
    assert found("G4", "protected-size") == want
    text = f'profile = "{profile}"\ndays = 1\n{QUIET}[[vms]]\nname = "a2"\n'
    path = written(tmp_path, text + SEED_VM.format(most=most))
    cost = program("service", "cost", path, "--months", 1)
    assert cost["protected_bytes"] == 47 * GB
    assert cost["parts"]["instance"] == 5.0
    # What is not billed is not sent either.
    assert program("service", "simulate", path)["sent_bytes"] == 47 * GB


@pytest.mark.parametrize(("subtype", "size"), [("standard", 10 * GB), ("enhanced", 108 * GB)])
def test_g5_five_days_of_snapshots_are_10_gb_or_108_gb(
    tmp_path: Path, subtype: str, size: int
) -> None:
    assert found("G5", "snapshot-size") == {"standard": 10 * GB, "enhanced": 108 * GB}
    path = written(tmp_path, f"""
        profile = "enhanced"
        [[policies]]
        name = "p"
        subtype = "{subtype}"
        instant_days = 5
        [[vms]]
        name = "vm"
        policy = "p"
        disks = [{{ name = "d", size = "128GiB", used = "100GB", churn = "2%" }}]
    """)  # fmt: skip
    reply = program("service", "cost", path, "--months", 1, "--first-month", 1)
    assert [line["bytes"] for line in reply["lines"] if line["part"] == "snapshot"] == [size]


def test_g6_protected_instances_cost_5_10_10_20_40_dollars(tmp_path: Path) -> None:
    want = {50: 5, 51: 10, 500: 10, 501: 20, 2000: 40}
    assert found("G6", "instance-price") == {f"{size} GB": price for size, price in want.items()}
    prices = Prices.load()
    assert [instance_price(size * GB, prices) for size in want] == list(want.values())
    machines = "\n".join(
        f'[[vms]]\nname = "vm-{size}"\ndisks = [{{ name = "d", size = "4TiB", used = "{size}GB" }}]'
        for size in want
    )
    reply = process("service", "cost", written(tmp_path, machines), "--months", 1)
    bills = {x["vm"]: x["amount"] for x in reply["lines"] if x["part"] == "instance"}
    assert bills == {f"vm-{size}": price for size, price in want.items()}


def test_g7_soft_delete_of_60_days_undeleted_after_52_bills_46_and_frees_6() -> None:
    assert found("G7", "soft-delete-days") == {"billed": 46, "free": 6}
    assert soft_deleted_days(60, 60).to_dict() == {"billed": 46, "free": 14}
    assert soft_deleted_days(14, 14).to_dict() == {"billed": 0, "free": 14}


def test_g8_twelve_months_are_372_days() -> None:
    assert found("G8", "months-of-31-days") == {"days": 372}
    retention = Retention(daily=7, monthly=12, monthly_on=(MonthDay(1),))
    kept = keep(
        np.arange(40, dtype=np.int64) * DAY, date(2026, 1, 1),
        [Term(0, Policy("p", retention=retention))],
    )  # fmt: skip
    lives = (kept.expiry - kept.times) // DAY
    assert np.flatnonzero(lives == 372).tolist() == [0, 31]
    assert set(lives.tolist()) == {7, 372}


def test_g9_a_policy_of_n_days_has_n_plus_1_snapshots() -> None:
    assert found("G9", "one-more-snapshot") == {"1": 2, "2": 3, "3": 4, "4": 5, "5": 6}
    times = np.arange(60, dtype=np.int64) * DAY + 8 * HOUR
    for days in (1, 2, 5, 7, 30):
        gone = snapshots_gone(times, days)
        assert count_held(times, gone, times).max() == days + 1
        late = snapshots_gone(times, days, late_days=2)
        assert count_held(times, late, times).max() == days + 1 + 2


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_g10_100_machines_at_02_00_all_run_by_04_00(tmp_path: Path, engine: str) -> None:
    want = {"machines": 100, "started_from_2_to_4": 100}
    assert found("G10", "start-within-two-hours") == want
    path = written(tmp_path, """
        days = 3
        [[policies]]
        name = "two"
        schedule = { at = "02:00" }
        [[vms]]
        name = "vm-{n}"
        count = 100
        policy = "two"
        disks = [{ name = "d", size = "64GiB", used = "20GB" }]
    """)  # fmt: skip
    jobs = program("service", "simulate", path, "--engine", engine, "--seed", 7)["jobs"]
    starts = np.array([job["start_ns"] for job in jobs])
    of_day = starts % DAY
    assert len(starts) == 300
    assert of_day.min() >= 2 * HOUR
    assert of_day.max() <= 4 * HOUR
    assert of_day.max() - of_day.min() > HOUR, "they are spread over the two hours"


def test_g11_job_states_of_all_five_rows(tmp_path: Path) -> None:
    rows = [
        ["completed", "in progress", "InProgress"],
        ["completed", "skipped", "Completed"],
        ["completed", "completed", "Completed"],
        ["completed", "failed", "CompletedWithWarnings"],
        ["failed", "failed", "Failed"],
    ]
    assert found("G11", "job-states") == rows
    text = f"""
        profile = "enhanced"
        days = 2
        events = [{{ at = "2h", kind = "rotate-keys", account = "a" }}]
        {QUIET}
        [[accounts]]
        name = "a"
        [[vms]]
        name = "large"
        disks = [{{ name = "d", size = "8TiB", used = "5TB" }}]
        [[vms]]
        name = "rotated"
        disks = [{{ name = "d", size = "1TiB", used = "500GB", account = "a" }}]
        [[vms]]
        name = "broken"
        os = "windows"
        disks = [{{ name = "d", size = "1TiB", used = "500GB" }}]
    """
    broken = 'ExtensionFailedVssServiceInBadState = "100%"'
    path = written(tmp_path, text.replace("[failures]", f"[failures]\n{broken}"))
    reply = program("service", "simulate", path)
    seen = {(x["vm"], x["job"]): (x["state"], x["transfer"]) for x in reply["jobs"]}
    assert seen[("large", 0)] == ("Completed", "done")
    assert seen[("large", 1)] == ("Completed", "skipped")
    assert seen[("rotated", 0)] == ("CompletedWithWarnings", "failed")
    assert seen[("broken", 0)] == ("Failed", "none")
    simulation = simulate(path)
    at = simulation.at(DAY + 12 * HOUR)
    told = {(vm, job): [*rest] for vm, job, *rest in at.select(
        "vm", "job", "snapshot", "transfer", "state").rows()}  # fmt: skip
    assert told[("large", 0)] == rows[0]
    assert told[("large", 1)] == rows[1]
    assert told[("rotated", 1)] == rows[2]
    assert told[("rotated", 0)] == rows[3]
    assert told[("broken", 0)] == rows[4]


def test_g12_an_enhanced_policy_falls_back_to_crash_at_attempts_4_6_8(tmp_path: Path) -> None:
    assert found("G12", "crash-fallback") == {"crash_attempts": [4, 6, 8]}
    for case in ({"os": "windows", "step": "vss_failed"}, {"agent": "missing"}):
        labels = {
            n: decide(Case(**case, policy="enhanced", attempt=n), "enhanced").label  # type: ignore[arg-type]
            for n in range(1, 9)
        }
        assert [n for n, label in labels.items() if label == "crash"] == [4, 6, 8]
    path = written(tmp_path, f"""
        profile = "enhanced"
        days = 2
        {QUIET}
        [[policies]]
        name = "p"
        subtype = "enhanced"
        [[vms]]
        name = "vm"
        policy = "p"
        agent = "unresponsive"
        disks = [{{ name = "d", size = "64GiB", used = "20GB" }}]
    """)  # fmt: skip
    jobs = program("service", "simulate", path)["jobs"]
    assert {(job["attempts"], job["label"]) for job in jobs} == {(4, "crash")}


def test_g13_the_secondary_region_is_36_hours_behind_at_most(tmp_path: Path) -> None:
    assert found("G13", "secondary-region") == {"hours": 36.0}
    for profile in ("instant", "enhanced"):
        assert RestoreRules.default(profile).secondary_promise == 36 * HOUR
    # What a backup itself takes comes on top of it.
    path = written(tmp_path, f"""
        days = 10
        {QUIET}
        [[vms]]
        name = "vm"
        disks = [{{ name = "d", size = "64GiB", used = "1GB", churn = "0GB" }}]
    """)  # fmt: skip
    reply = program("service", "simulate", path)
    rows = reply["objectives"]["rpo"]
    secondary = next(r for r in rows if r["tier"] == "secondary" and r["label"] == "crash")
    longest = max(job["end_ns"] - job["snapshot_at_ns"] for job in reply["jobs"])
    assert 36 * HOUR < secondary["max"] <= 36 * HOUR + longest + HOUR // 2
    assert secondary["target"] == 36 * HOUR


def test_g14_2_tb_at_30_mb_a_second_take_18_5_hours() -> None:
    assert found("G14", "vault-restore") == {"hours": 18.5}
    rules = RestoreRules.default("enhanced")
    assert rules.segment_rate == 30_000_000
    assert rules.streams(2 * 10**12, account=False) == [-(-2 * 10**12 * 10**9 // 30_000_000)]
    # 16 TB in segments of 2 TB side by side take no longer.
    assert max(rules.streams(16 * 10**12, account=False)) / HOUR == pytest.approx(18.5, abs=0.05)


def test_g15_excluding_two_of_three_equal_disks_saves_66_7_percent(tmp_path: Path) -> None:
    assert found("G15", "excluded-disks") == {"saved_percent": 66.7}
    sent, stored = [], []
    for excluded in ("false", "true"):
        disks = ", ".join(
            f'{{ name = "d{i}", size = "128GiB", used = "90GB", churn = "5%", '
            f"excluded = {excluded if i else 'false'} }}"
            for i in range(3)
        )
        path = written(
            tmp_path, f'days = 3\n{QUIET}[[vms]]\nname = "vm"\ndisks = [{disks}]\n'
        )  # fmt: skip
        sent.append(program("service", "simulate", path)["sent_bytes"])
        lines = program("service", "cost", path, "--months", 1)["lines"]
        stored.append(next(x["bytes"] for x in lines if x["part"] == "vault"))
    for all_disks, one in (sent, stored):
        assert round(100 * (1 - one / all_disks), 1) == 66.7


def test_g16_a_churn_of_10_of_200_gb_is_5_percent(tmp_path: Path) -> None:
    want = {"first_bytes": 200 * GB, "later_bytes": 10 * GB, "percent": 5.0}
    assert found("G16", "churn-share") == want
    sent = {}
    for churn in ("5%", "10GB"):
        path = written(tmp_path, f"""
            days = 4
            {QUIET}
            [[vms]]
            name = "vm"
            disks = [{{ name = "d", size = "1TiB", used = "200GB", churn = "{churn}" }}]
        """)  # fmt: skip
        jobs = program("service", "simulate", path)["jobs"]
        sent[churn] = [job["sent_bytes"] for job in jobs]
    assert sent["5%"] == sent["10GB"]
    assert sent["5%"][0] == 200 * GB
    assert sent["5%"][2:] == [10 * GB, 10 * GB]


def test_g17_snapshots_are_kept_17_22_or_30_days_at_most(tmp_path: Path) -> None:
    want = {4: 17, 6: 22, 12: 30}
    assert found("G17", "snapshot-days") == {f"{hours} h": days for hours, days in want.items()}
    for hours, days in want.items():
        schedule = Schedule("hourly", 480, every=hours, window=24 * HOUR_NS)
        assert instant_span("enhanced", schedule).most == days
        text = """
            profile = "enhanced"
            days = 1
            [[policies]]
            name = "p"
            subtype = "enhanced"
            schedule = {{ frequency = "hourly", every = "{hours}h" }}
            instant_days = {days}
            [[vms]]
            name = "vm"
            policy = "p"
            disks = [{{ name = "d", size = "64GiB", used = "20GB" }}]
        """
        good = written(tmp_path, text.format(hours=hours, days=days))
        assert program("service", "simulate", good)["vms"] == 1
        bad = written(tmp_path, text.format(hours=hours, days=days + 1))
        error = program("service", "simulate", bad, code=2)["error"]
        assert error.startswith("policies[0].instant_days")


def test_g18_the_same_churn_on_more_disks_takes_less_time(tmp_path: Path) -> None:
    assert found("G18", "churn-spread") == {"order": ["VM2", "VM3", "VM1"]}
    machines = "\n".join(
        f'[[vms]]\nname = "{name}"\ndisks = [\n'
        + "".join(
            f'{{ name = "d{i}", size = "{size}TB", used = "{size}TB", '
            f'churn = "{100 // count}GB" }},'
            for i in range(count)
        )
        + "]"
        for name, count, size in (("VM1", 1, 4), ("VM2", 4, 1), ("VM3", 2, 2))
    )
    for profile in ("2017", "instant", "enhanced"):
        path = written(tmp_path, f'profile = "{profile}"\ndays = 9\n{QUIET}{machines}')
        jobs = program("service", "simulate", path)["jobs"]
        for initial in (True, False):
            took = {
                name: max(
                    job["end_ns"] - job["start_ns"]
                    for job in jobs
                    if job["vm"] == name and job["transfer"] == "done" and job["initial"] == initial
                )
                for name in ("VM1", "VM2", "VM3")
            }
            assert took["VM2"] < took["VM3"] < took["VM1"], (profile, initial)


def test_g19_an_identical_rewrite_is_counted_by_tracking_and_not_by_checksums() -> None:
    want = {"written_bytes": 65_536, "tracking_bytes": 65_536, "checksum_bytes": 0}
    assert found("G19", "identical-rewrite") == want
    (told,) = process("service", "examples", "--only", "G19")["examples"]
    assert told["found"] == want


def test_g20_after_a_deleted_snapshot_the_next_job_alone_reads_all(tmp_path: Path) -> None:
    modes = ["initial", "tracking", "fallback", "tracking", "tracking"]
    reads = [0, 0, 100 * GB, 0, 0]
    assert found("G20", "deleted-snapshot") == {"modes": modes, "read_bytes": reads}
    path = written(tmp_path, f"""
        days = 7
        {QUIET}
        [[vms]]
        name = "vm"
        disks = [{{ name = "d", size = "4TiB", used = "3TB", churn = "1GB" }}]
        [[events]]
        at = "4d"
        clock = "23:00"
        kind = "delete-snapshots"
        vm = "vm"
    """)  # fmt: skip
    for engine in ("fast", "reference"):
        jobs = program("service", "simulate", path, "--engine", engine)["jobs"]
        assert [job["fallback"] for job in jobs] == [i == 5 for i in range(7)]
        assert [job["read_bytes"] for job in jobs] == [0] * 5 + [3000 * GB, 0]
        took = [job["end_ns"] - job["start_ns"] for job in jobs]
        assert took[5] > 10 * HOUR > took[6], "reading 3 TB takes more than half a day"


# --- All of them ----------------------------------------------------------------------------------


def test_the_program_tells_all_twenty() -> None:
    reply = process("service", "examples")
    assert [each["number"] for each in reply["examples"]] == [f"G{n}" for n in range(1, 21)]
    assert len({each["name"] for each in reply["examples"]}) == 20
    assert all(each["agrees"] for each in reply["examples"])
    assert reply["agree"] is True


def test_the_table_that_people_see() -> None:
    answer = run(["service", "examples", "--only", "churn-spread", "--only", "G7"])
    assert answer.code == 0
    assert [line.split()[:2] for line in answer.out.splitlines()[1:]] == [
        ["yes", "soft-delete-days"], ["yes", "churn-spread"],
    ]  # fmt: skip
    assert "billed: 46, free: 6" in answer.out


def test_an_example_that_disagrees_is_told_and_exits_with_1(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrong = Example("G1", "wrong", "t", {"days": 1}, "nowhere", lambda: {"days": 2})
    monkeypatch.setattr("vmbk.service.examples.EXAMPLES", (wrong,))
    (told,) = program("service", "examples", code=1)["examples"]
    assert (told["documented"], told["found"], told["agrees"]) == ({"days": 1}, {"days": 2}, False)
    answer = run(["service", "examples"])
    assert answer.code == 1
    assert answer.out.splitlines()[1].split() == ["NO", "wrong", "days:", "2", "days:", "1"]


def test_an_unknown_example_is_an_error() -> None:
    assert "'nothing'" in program("service", "examples", "--only", "nothing", code=2)["error"]
    with pytest.raises(InputError, match="'G21'"):
        run_examples(["G1", "G21"])


def test_the_frame_and_the_notebook_show_them() -> None:
    examples = run_examples(["G7", "job-states"])
    assert isinstance(examples, Examples)
    assert len(examples) == 2
    frame = examples.frame
    assert frame["example"].to_list() == ["soft-delete-days", "job-states"]
    assert frame["agrees"].to_list() == [True, True]
    assert json.loads(frame["found"][0]) == {"billed": 46, "free": 6}
    html = Examples((*examples, Outcome(EXAMPLES[0], {"<b>": 1})))._repr_html_()
    assert "completed skipped Completed" in html
    assert "<b>" not in html
    assert not Examples((Outcome(EXAMPLES[0], None),)).agree
    assert len(run_examples([]).frame) == 0


def test_the_shared_scenarios_of_examples_are_quiet() -> None:
    """Nothing but what an example is about happens in it."""
    from vmbk.service.example_runs import churn_spread_scenario, deleted_scenario

    for scenario in (churn_spread_scenario(), deleted_scenario()):
        assert isinstance(scenario, Scenario)
        jobs = simulate(scenario).jobs
        assert set(jobs["cause"].to_list()) == {""}
        assert jobs["queue_ns"].sum() == 0
        assert (jobs["start_ns"] == jobs["scheduled_ns"]).all()
