"""The readable engine of the service model: jobs worked out by hand."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from tests.service_plans import column, of_account, plan_of, seconds, with_rules
from vmbk.service.plan import (
    APPLICATION,
    ATTEMPTS,
    CHECKSUM,
    COMPLETED,
    COMPLETED_WITH_WARNINGS,
    CRASH,
    DAY,
    DELETE,
    FAIL,
    FAILED,
    FALLBACK,
    HOUR,
    INITIAL,
    NO_MODE,
    NOT_DUE,
    ONE,
    PART,
    RETRY,
    ROTATE,
    SECOND,
    SKIPPED,
    TOLD,
    TRACKING,
    TRANSFER_DONE,
    TRANSFER_FAILED,
    TRANSFER_SKIPPED,
)
from vmbk.service.reference import simulate_reference
from vmbk.service.reference_account import draw, mix

# One disk of 30GB that changes by 10 kB a second. An initial copy at 100 MB/s sends for 300 s, a
# scan at 200 MB/s reads for 150 s. A day's 864 MB are 13184 extents of 64 KiB; at 50 MB/s and 1 ms
# an extent they are sent in 17.28 s + 13.184 s; asking the tracker costs 1 us an extent.
DISK_10K = {"churn": 864_000_000, "extent_cost": 10**6, "tracked_cost": 1000, "weekend": 65536}
TEN_AT_NIGHT = [(day * DAY + 22 * HOUR, 1) for day in range(4)]
SENT = 30_464_000_000
ASKED = 13_184_000


# Worked out by hand


def test_mix_is_the_finalizer_of_splitmix64() -> None:
    # The first two outputs of SplitMix64 from seed 0, as published with the generator.
    golden = 0x9E3779B97F4A7C15
    assert mix(golden) == 0xE220A8397B1DCDAF
    assert mix(2 * golden % 2**64) == 0x6E789E6AA1B965F4
    assert draw(0, 0, 0, 0) == mix((mix((mix(golden) + golden) % 2**64) + golden) % 2**64) >> 32
    assert draw(-1, 5, 6, 7) == draw(2**64 - 1, 5, 6, 7)


def test_a_managed_disk_is_copied_whole_then_by_its_tracker() -> None:
    plan = plan_of([{}], [DISK_10K], [TEN_AT_NIGHT], commit=30 * SECOND)
    found = simulate_reference(plan, parts=True)
    start = [time for time, _ in TEN_AT_NIGHT]
    assert column(found, "start") == column(found, "snapshot_at") == start
    assert column(found, "point") == [time + 60 * SECOND for time in start]
    assert column(found, "scan") == [0, ASKED, ASKED, ASKED]
    assert column(found, "send") == [300 * SECOND, SENT, SENT, SENT]
    assert column(found, "end")[0] == start[0] + 390 * SECOND
    assert column(found, "end")[1] == start[1] + 90 * SECOND + ASKED + SENT
    assert column(found, "changed") == column(found, "sent") == [30 * 10**9, *[864_000_000] * 3]
    assert column(found, "extents") == [0, 13184, 13184, 13184]
    assert column(found, "read") == [0, 0, 0, 0]
    assert column(found, "initial") == [1, 0, 0, 0]
    assert column(found, "critical") == [1, 1, 1, 1]
    assert set(column(found, "label")) == {APPLICATION}
    begun = start[1] + 60 * SECOND
    row = [TRACKING, 0, 864_000_000, 13184, begun + ASKED, begun + ASKED + SENT]
    assert found.parts[1].tolist() == row
    assert found.parts[:, PART.index("mode")].tolist() == [INITIAL, *[TRACKING] * 3]


def test_a_disk_without_a_tracker_is_read_whole() -> None:
    plan = plan_of([{}], [DISK_10K | {"tracking": 0}], [TEN_AT_NIGHT])
    found = simulate_reference(plan, parts=True)
    assert seconds(found, "scan") == [0, 150, 150, 150]
    assert column(found, "send")[1:] == [SENT] * 3
    assert column(found, "read") == [0, *[30 * 10**9] * 3]
    assert found.parts[:, PART.index("mode")].tolist() == [INITIAL, *[CHECKSUM] * 3]
    assert column(found, "fallback") == [0] * 4


@pytest.mark.parametrize(
    ("time", "fallbacks"),
    [
        (DAY, [0, 1, 0, 0]),
        (DAY + 22 * HOUR, [0, 1, 0, 0]),  # as the slot is: what happens comes before starts
        (DAY + 22 * HOUR + 59 * SECOND, [0, 1, 0, 0]),  # in the snapshot phase
        (DAY + 22 * HOUR + 60 * SECOND, [0, 1, 0, 0]),  # as it ends
        (DAY + 22 * HOUR + 60 * SECOND + 1, [0, 0, 1, 0]),  # the transfer has begun
        (DAY + 22 * HOUR + HOUR, [0, 0, 1, 0]),
        (0, [0, 0, 0, 0]),  # before the first there is nothing to fall back from
    ],
)
def test_g20_a_deleted_snapshot_makes_exactly_the_next_job_read_all(
    time: int, fallbacks: list[int]
) -> None:
    found = simulate_reference(
        plan_of([{}], [DISK_10K], [TEN_AT_NIGHT], events=[(time, DELETE, 0)]), parts=True
    )
    assert column(found, "fallback") == fallbacks
    assert column(found, "changed") == [30 * 10**9, *[864_000_000] * 3]
    scans = [0, ASKED, ASKED, ASKED]
    assert column(found, "scan") == [
        150 * SECOND if fallback else scan for fallback, scan in zip(fallbacks, scans, strict=True)
    ]
    modes = found.parts[:, PART.index("mode")].tolist()
    assert modes == [
        INITIAL, *(FALLBACK if fallback else TRACKING for fallback in fallbacks[1:])
    ]  # fmt: skip


def test_a_fallback_that_fails_falls_back_again() -> None:
    slot = DAY + 22 * HOUR
    plan = plan_of(
        [{}],
        [DISK_10K | {"account": 0}],
        [TEN_AT_NIGHT],
        accounts=[(10**9, 10**9)],
        events=[(slot - 1, DELETE, 0), (slot + 100 * SECOND, ROTATE, 0)],
    )
    found = simulate_reference(plan)
    assert column(found, "fallback") == [0, 1, 1, 0]
    assert column(found, "transfer") == [
        TRANSFER_DONE, TRANSFER_FAILED, TRANSFER_DONE, TRANSFER_DONE
    ]  # fmt: skip
    # What the failed one had found changed is sent by the next: two days of churn.
    assert column(found, "changed")[1:] == [864_000_000, 2 * 864_000_000, 864_000_000]
    assert column(found, "sent")[1:] == [0, 2 * 864_000_000, 864_000_000]


@pytest.mark.parametrize("two_phase", [0, 1])
def test_rotated_keys_fail_a_transfer_at_once(two_phase: int) -> None:
    """VM 0 is in its transfer, VM 1 waits for the only place, VM 2 is in another account."""
    disks = [DISK_10K | {"vm": v, "account": account} for v, account in ((0, 0), (1, 0), (2, 1))]
    plan = plan_of(
        [{}, {}, {}],
        disks,
        [[(0, 1), (HOUR, 1)]],
        places=(1,),
        accounts=[(10**9, 10**9)] * 2,
        events=[(200 * SECOND, ROTATE, 0)],
        two_phase=two_phase,
        commit=7 * SECOND,
    )
    found = simulate_reference(plan, parts=True)
    first = slice(None, None, 2)  # the first job of each VM
    assert column(found, "transfer")[first] == [TRANSFER_FAILED, TRANSFER_FAILED, TRANSFER_DONE]
    failed = COMPLETED_WITH_WARNINGS if two_phase else FAILED
    assert column(found, "state")[first] == [failed, failed, COMPLETED]
    assert seconds(found, "end")[first] == [200, 200, 507]
    assert seconds(found, "place")[first] == [0, 140, 140]
    assert seconds(found, "send")[first] == [140, 0, 300]
    assert column(found, "commit")[first] == [0, 0, 7 * SECOND]
    assert column(found, "changed")[first] == [30 * 10**9, 0, 30 * 10**9]
    assert column(found, "sent")[first] == [0, 0, 30 * 10**9]
    assert column(found, "critical")[first] == [0, 0, 1]
    assert column(found, "initial") == [1, 1, 0, 1, 1, 0]
    point = [60 * SECOND] * 3 if two_phase else [-1, -1, 507 * SECOND]
    assert column(found, "point")[first] == point
    assert found.parts[first].tolist() == [
        [INITIAL, 0, 30 * 10**9, 0, -1, -1],
        [NO_MODE, 0, 0, 0, -1, -1],
        [INITIAL, 0, 30 * 10**9, 0, 200 * SECOND, 500 * SECOND],
    ]


def test_a_commit_that_ends_as_keys_are_rotated_comes_too_late() -> None:
    plan = plan_of(
        [{}], [{"account": 0}], [[(0, 1)]], accounts=[(10**9, 10**9)], commit=5 * SECOND,
        events=[(365 * SECOND, ROTATE, 0)],
    )  # fmt: skip
    found = simulate_reference(plan)
    assert column(found, "transfer") == [TRANSFER_FAILED]
    assert seconds(found, "send") == [305]
    assert column(found, "commit") == [0]


def test_a_rotation_counts_disks_that_are_not_there_yet() -> None:
    plan = plan_of(
        [{}], [{}, {"account": 0, "added": DAY}], [[(0, 1)]], accounts=[(10**9, 10**9)],
        events=[(100 * SECOND, ROTATE, 0)],
    )  # fmt: skip
    assert column(simulate_reference(plan), "transfer") == [TRANSFER_FAILED]


def test_jobs_overlap_by_phase_or_not_at_all() -> None:
    """Snapshot 0-60 s, transfer 60-360 s, commit to 390 s; then slots at 120 s and 400 s."""
    slots = [(0, 1), (120 * SECOND, 1), (400 * SECOND, 0)]
    plan = plan_of([{}], [DISK_10K], [slots], commit=30 * SECOND, overlap=1)
    found = simulate_reference(plan)
    assert column(found, "state") == [COMPLETED] * 3
    assert column(found, "transfer") == [TRANSFER_DONE, TRANSFER_SKIPPED, NOT_DUE]
    assert seconds(found, "end") == [390, 180, 460]
    assert seconds(found, "point") == [60, 180, 460]

    found = simulate_reference(with_rules(plan, overlap=0))
    assert column(found, "state") == [COMPLETED, SKIPPED, COMPLETED]
    assert seconds(found, "end")[1] == seconds(found, "start")[1] == 120
    # The skipped job was due, so the VM owes: the next snapshot goes to the vault, due or not.
    assert column(found, "transfer") == [TRANSFER_DONE, 0, TRANSFER_DONE]
    assert column(found, "changed") == [30 * 10**9, 0, 400 * 10_000]
    assert column(found, "snapshot_at") == [0, -1, 400 * SECOND]
    assert column(found, "told")[1] == SKIPPED << TOLD["state"][0]


def test_a_start_at_the_very_end_of_what_was_before_is_no_overlap() -> None:
    slots = [(0, 1), (390 * SECOND - 1, 0), (390 * SECOND, 0)]
    plan = plan_of([{}], [DISK_10K], [slots], commit=30 * SECOND)
    assert column(simulate_reference(plan), "state") == [COMPLETED, SKIPPED, COMPLETED]
    slots = [(0, 0), (60 * SECOND - 1, 0), (60 * SECOND, 0)]
    found = simulate_reference(plan_of([{}], [DISK_10K], [slots], overlap=1))
    assert column(found, "state") == [COMPLETED, SKIPPED, COMPLETED]
    assert set(column(found, "transfer")) == {0, NOT_DUE}


def test_attempts_end_in_a_label_or_in_failure() -> None:
    slots = [[(0, 1), (HOUR, 0)]]
    row = [RETRY] * 3 + [CRASH] * 5
    plan = plan_of(
        [{}], [DISK_10K], slots, thresholds=[[2**32]], lasting=[[0, 1]],
        consequences=[[[APPLICATION] * ATTEMPTS, row]],
    )  # fmt: skip
    found = simulate_reference(plan)
    assert column(found, "attempts") == [4, 4]
    assert seconds(found, "snapshot") == [420, 420]  # four of 60 s, three waits of 60 s
    assert seconds(found, "snapshot_at") == [360, 3960]
    assert column(found, "label") == [CRASH] * 2
    assert column(found, "cause") == [1, 1]
    for row, attempts, lasts in (([RETRY] * 8, 8, 900), ([RETRY, FAIL] + [CRASH] * 6, 2, 180)):
        consequences = np.array([[[APPLICATION] * ATTEMPTS, row]])
        found = simulate_reference(replace(plan, consequences=consequences))
        assert column(found, "attempts") == [attempts] * 2
        assert column(found, "state") == [FAILED] * 2
        assert seconds(found, "end") == [lasts, 3600 + lasts]
        assert column(found, "snapshot_at") == column(found, "point") == [-1, -1]
        assert set(column(found, "label") + column(found, "transfer")) == {0}


def test_a_lasting_cause_stays_and_a_passing_one_is_drawn_again() -> None:
    """Seed by seed, with causes from the draws; the cause told is the last that was one."""
    slots = [[(0, 1)]]
    rows = [[APPLICATION] * ATTEMPTS, [RETRY] * 3 + [CRASH] * 5, [RETRY] * 3 + [FAIL] * 5]
    seen = set()
    for seed in range(300):
        plan = plan_of(
            [{}], [], slots, thresholds=[[2**31, 3 * 2**30]], lasting=[[0, 1, 0]],
            consequences=[rows], seed=seed,
        )  # fmt: skip
        drawn = [draw(seed, 0, 0, 16 + n) * 4 >> 32 for n in range(1, 5)]
        causes: list[int] = []
        for quarter in drawn:
            if not causes or causes[-1] == 2:
                causes.append({0: 1, 1: 1, 2: 2, 3: 0}[quarter])
            else:
                causes.append(causes[-1])
            if causes[-1] == 0:
                break
        found = simulate_reference(plan)
        assert column(found, "attempts") == [len(causes)]
        assert column(found, "cause") == [next((c for c in reversed(causes) if c), 0)]
        label = {0: APPLICATION, 1: CRASH, 2: FAIL}[causes[-1]]
        assert column(found, "label") == [label]
        seen.add((len(causes), causes[0], causes[-1]))
    assert {(1, 0, 0), (4, 1, 1), (2, 2, 0), (4, 2, 1)} <= seen


def test_the_extension_is_installed_until_a_snapshot_succeeds() -> None:
    slots = [[(hour * HOUR, 0) for hour in range(4)]]
    rules = {"install_low": 90 * SECOND, "install_high": 90 * SECOND}
    found = simulate_reference(plan_of([{"installs": 1}, {}], [], slots, **rules))
    assert seconds(found, "install") == [90, 0, 0, 0] + [0] * 4
    assert seconds(found, "snapshot_at")[:2] == [90, 3600]
    assert seconds(found, "end")[0] == 150
    # Where all snapshots fail, each job installs.
    plan = plan_of(
        [{"installs": 1}], [], slots, thresholds=[[2**32]], lasting=[[0, 0]],
        consequences=[[[FAIL] * ATTEMPTS] * 2], **rules,
    )  # fmt: skip
    assert seconds(simulate_reference(plan), "install") == [90] * 4


def test_a_transfer_queues_by_the_hour_in_which_the_snapshot_ends() -> None:
    curve = [0] * 24
    curve[1] = 250
    slots = [[(0, 1), (HOUR - 60 * SECOND, 1), (HOUR, 1)]]
    peak = 4 * HOUR
    plan = plan_of([{}, {}], [], slots, queue_peak=peak, queue_curve=curve, seed=9, overlap=1)
    found = simulate_reference(plan)
    expected = []
    for v in range(2):
        q = draw(9, v, 1, 2) // 4096
        expected += [0, peak // 2**20 * (q * q // 2**20) * 250 // 1000, 0]
    assert column(found, "queue") == expected
    assert 0 < expected[1] <= HOUR
    assert column(found, "transfer") == [TRANSFER_DONE, TRANSFER_DONE, TRANSFER_SKIPPED] * 2


def test_each_extent_is_a_request() -> None:
    # 13184 extents at 200 operations a second last longer than their bytes do.
    disk = DISK_10K | {"iops": 200, "extent_cost": 0}
    found = simulate_reference(plan_of([{}], [disk], [TEN_AT_NIGHT]))
    assert seconds(found, "send")[1:] == [13184 / 200] * 3
    # A whole copy is 14306 requests of 2 MiB, in 300 s by its bytes.
    assert seconds(found, "send")[0] == 300


def test_a_failed_snapshot_of_a_due_slot_leaves_the_vm_owing() -> None:
    """The class fails with probability one half; whatever comes next pays the debt."""
    slots = [(hour * HOUR, int(hour == 0)) for hour in range(20)]
    plan = plan_of(
        [{}], [DISK_10K], [slots], thresholds=[[2**31]], lasting=[[0, 0]],
        consequences=[[[APPLICATION] * ATTEMPTS, [FAIL] * ATTEMPTS]],
    )  # fmt: skip
    late = 0
    for seed in range(12):
        found = simulate_reference(with_rules(plan, seed=seed))
        states = column(found, "state")
        first = states.index(COMPLETED)
        late += first > 0
        kinds = [TRANSFER_DONE] + [NOT_DUE] * (len(states) - states.count(FAILED) - 1)
        assert [kind for kind in column(found, "transfer") if kind] == kinds
        assert column(found, "transfer")[first] == TRANSFER_DONE
    assert late >= 3


def test_two_flows_share_an_account_in_proportion() -> None:
    """Each wants all of 100 MB/s for 300 s; the second begins 100 s after the first."""
    plan = plan_of(
        [{}, {"offset": 100 * SECOND}], [{"vm": 0, "account": 0}, {"vm": 1, "account": 0}],
        [[(0, 1)]], accounts=[(10**8, 10**9)],
    )  # fmt: skip
    found = simulate_reference(plan)
    assert seconds(found, "end") == [560, 660]  # 100 s alone, 400 s together, 100 s alone
    assert of_account(found, "busy") == 600 * SECOND
    assert of_account(found, "throttled") == 400 * SECOND
    assert of_account(found, "lost") == 200 * SECOND
    assert of_account(found, "peak_egress") == of_account(found, "peak_backup_egress") == 10**8
    assert found.account_hours[0, 0] == 60 * 10**9
    assert found.account_hours.sum() == 60 * 10**9


def test_guests_slow_a_flow_from_the_full_hour_on() -> None:
    guests = np.zeros((2, 1, 24), np.int64)
    guests[0, 0, 1] = 3 * 10**8
    plan = plan_of(
        [{}], [{"account": 0}], [[(3440 * SECOND, 1)]], accounts=[(10**8, 10**9)], guests=guests
    )
    segments: list[tuple[int, ...]] = []
    found = simulate_reference(plan, segments=segments)
    assert seconds(found, "end") == [4400]  # 100 s at full speed, 200 s of work at a quarter
    assert found.account_hours[0, :3].tolist() == [10**10, 2 * 10**10, 0]
    requests = -(-30 * 10**9 // 2**21) * 1000 // 300_000 + 1
    assert segments == [
        (0, 3500 * SECOND, 3600 * SECOND, 10**8, requests, ONE, 10**8),
        (0, 3600 * SECOND, 4400 * SECOND, 4 * 10**8, requests, ONE // 4, 10**8),
    ]


def test_requests_limit_as_bytes_do() -> None:
    # 30GB in requests of 2 MiB are 14306, in 300 s: 47 (and 1) a second, of which 24 are had.
    plan = plan_of([{}], [{"account": 0}], [[(0, 1)]], accounts=[(10**9, 24)])
    found = simulate_reference(plan)
    assert seconds(found, "send") == [600]
    assert of_account(found, "peak_requests") == 24


def test_the_critical_disk_is_the_last_and_the_lowest_among_equals() -> None:
    disks = [{"used": 10**9}, DISK_10K, DISK_10K, {"added": HOUR}]
    found = simulate_reference(plan_of([{}, {}], disks, [[(0, 1)]]), parts=True)
    assert column(found, "critical") == [2, 0]
    assert seconds(found, "send") == [300, 0]
    assert column(found, "transfer") == [TRANSFER_DONE] * 2
    assert found.parts[:, PART.index("mode")].tolist() == [INITIAL] * 3 + [NO_MODE]


def test_weekends_change_less() -> None:
    """Day 0 is a Friday: the second job's changes are 2 h of Friday and 22 h of Saturday."""
    plan = plan_of([{}], [DISK_10K | {"weekend": 32768}], [TEN_AT_NIGHT], weekday=4)
    found = simulate_reference(plan)
    assert column(found, "changed")[1:3] == [10_000 * 7200 + 5_000 * 79_200, 5_000 * 86_400]


def test_without_simpy_one_is_told_what_to_install() -> None:
    code = (
        "import sys; sys.modules['simpy'] = None\n"
        "from vmbk.service.reference import simulate_reference\n"
        "from vmbk.errors import VmbkError\n"
        "try: simulate_reference(None)\n"
        "except VmbkError as error: print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'simpy" in run.stdout
