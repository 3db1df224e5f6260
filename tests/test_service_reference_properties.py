"""The readable engine of the service model: what must hold of any plan."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.service_plans import column, of_account, plan_of, random_plan
from vmbk.service.plan import (
    CHECKSUM,
    DAY,
    DISK,
    HOUR,
    INITIAL,
    JOB,
    NO_MODE,
    ONE,
    PART,
    SECOND,
    TRACKING,
    TRANSFER_DONE,
    Outputs,
    Plan,
    told,
)
from vmbk.service.reference import simulate_reference
from vmbk.service.reference_account import draw

PLANS = st.integers(0, 2**32).map(random_plan)
SOME = settings(max_examples=40, deadline=None)


@given(plan=PLANS)
@SOME
def test_a_job_is_the_sum_of_its_phases(plan: Plan) -> None:
    found = simulate_reference(plan)
    jobs = {name: found.jobs[:, JOB.index(name)] for name in JOB}
    phases = ("install", "snapshot", "queue", "place", "scan", "send", "commit")
    assert np.array_equal(jobs["end"] - jobs["start"], sum(jobs[name] for name in phases))
    assert all((jobs[name] >= 0).all() for name in phases)
    assert (jobs["start"] >= jobs["scheduled"]).all()
    done = told(found.jobs, "transfer") == TRANSFER_DONE
    assert np.array_equal(jobs["sent"], np.where(done, jobs["changed"], 0))
    two_phase = bool(plan.rule("two_phase"))
    assert np.array_equal(jobs["point"] >= 0, jobs["snapshot_at"] >= 0 if two_phase else done)
    for v in range(len(plan.vms)):
        mine = slice(plan.job_first[v], plan.job_first[v + 1])
        assert (np.diff(jobs["start"][mine]) >= 0).all()
        # Transfers of a VM never run into one another; without `overlap`, jobs do not either.
        ran = told(found.jobs[mine], "transfer") >= TRANSFER_DONE
        spans = zip(jobs["start"][mine][ran], jobs["end"][mine][ran], strict=True)
        wanted = jobs["start"] + jobs["install"] + jobs["snapshot"]
        if plan.rule("overlap"):
            spans = zip(wanted[mine][ran], jobs["end"][mine][ran], strict=True)
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))


@given(plan=PLANS)
@SOME
def test_accounts_never_give_more_than_they_have(plan: Plan) -> None:
    segments: list[tuple[int, ...]] = []
    found = simulate_reference(plan, segments=segments)
    for a, (egress, requests) in enumerate(plan.accounts.tolist()):
        mine = [segment for segment in segments if segment[0] == a]
        for _, start, end, wanted, operations, share, backup in mine:
            assert 1 <= share <= ONE
            assert start < end <= (start // HOUR + 1) * HOUR
            assert backup <= wanted
            if share > 1:
                assert share * wanted <= egress * ONE
                assert share * operations <= requests * ONE
            if share < ONE:  # and no less than they could
                more = share + 1
                assert more * wanted > egress * ONE or more * operations > requests * ONE
        assert all(before[2] <= after[1] for before, after in pairwise(mine))
        busy = [end - start for _, start, end, *_ in mine]
        slow = [end - start for _, start, end, _, _, share, _ in mine if share < ONE]
        assert of_account(found, "busy", a) == sum(busy)
        assert of_account(found, "throttled", a) == sum(slow)
        assert of_account(found, "peak_egress", a) <= egress
        assert of_account(found, "peak_requests", a) <= requests


def _flows(plan: Plan, found: Outputs) -> list[tuple[int, int, int, int, int]]:
    """Account, begin, end, bytes and rate of every flow that ended."""
    flows = []
    jobs = {name: found.jobs[:, JOB.index(name)] for name in JOB}
    begun = sum(jobs[name] for name in ("start", "install", "snapshot", "queue", "place"))
    for v in range(len(plan.vms)):
        disks = range(plan.disk_first[v], plan.disk_first[v + 1])
        for k in range(plan.job_first[v + 1] - plan.job_first[v]):
            for i, d in enumerate(disks):
                disk = dict(zip(DISK, plan.disks[d].tolist(), strict=True))
                part = dict(
                    zip(PART, found.parts[plan.part_first[v] + k * len(disks) + i], strict=True)
                )
                if part["send_end"] < 0:
                    continue
                start = int(begun[plan.job_first[v] + k])
                rate = disk["full_rate"] if part["mode"] == INITIAL else disk["send_rate"]
                scan_end, send_end = int(part["scan_end"]), int(part["send_end"])
                flows += [
                    (disk["account"], start, scan_end, int(part["read"]), disk["scan_rate"]),
                    (disk["account"], scan_end, send_end, int(part["changed"]), rate),
                ]
    return flows


@given(plan=PLANS)
@SOME
def test_no_window_carries_more_than_its_account_could(plan: Plan) -> None:
    """Told from the outside: bytes of the flows that lie wholly in a window.

    A demand is counted in whole milliseconds, so flows that last less than one are left out.
    """
    segments: list[tuple[int, ...]] = []
    found = simulate_reference(plan, parts=True, segments=segments)
    flows = _flows(plan, found)
    assert all(start <= end for _, start, end, _, _ in flows)
    for _, start, end, size, rate in flows:
        assert size * SECOND <= rate * (end - start)
    for a, (egress, _) in enumerate(plan.accounts.tolist()):
        if any(segment[0] == a and segment[5] == 1 for segment in segments):
            continue
        mine = [
            flow for flow in flows if flow[0] == a and flow[3] * SECOND >= flow[4] * 10**6
        ]  # fmt: skip
        start, end = (np.array([flow[i] for flow in mine], np.int64) for i in (1, 2))
        size = np.array([flow[3] for flow in mine], np.float64)
        for begin in set(start.tolist()):
            within = np.flatnonzero(start >= begin)
            within = within[np.argsort(end[within])]
            carried, room = np.cumsum(size[within]), (end[within] - begin) * (egress / SECOND)
            assert (carried <= room * (1 + 1e-12) + 1e-3).all()


@given(plan=PLANS)
@SOME
def test_what_changed_between_two_points_in_the_vault_is_sent(plan: Plan) -> None:
    """Churn as one ever-growing sum for each disk, against what every transfer was told to send."""
    found = simulate_reference(plan, parts=True)
    snapshot_at, transfer = column(found, "snapshot_at"), column(found, "transfer")
    for d, row in enumerate(plan.disks.tolist()):
        disk = dict(zip(DISK, row, strict=True))
        v = disk["vm"]
        place, count = d - plan.disk_first[v], plan.disk_first[v + 1] - plan.disk_first[v]
        held = -1
        for k, job in enumerate(range(plan.job_first[v], plan.job_first[v + 1])):
            part = found.parts[plan.part_first[v] + k * count + place].tolist()
            mode, read, changed, extents, scan_end, send_end = part
            if mode == NO_MODE:
                assert part == [NO_MODE, 0, 0, 0, -1, -1]
                continue
            at = snapshot_at[job]
            assert at >= disk["added"]
            used = min(disk["used"] + disk["growth"] * (at // DAY), disk["size"])
            if held < 0:
                assert (mode, read, changed, extents) == (INITIAL, 0, used, 0)
            else:
                grown = _changed_until(plan, d, disk, at) - _changed_until(plan, d, disk, held)
                assert changed == min(grown, used)
                assert (extents - 1) * disk["extent"] < changed <= extents * disk["extent"]
                assert read == (0 if mode == TRACKING else used)
                assert disk["tracking"] == (mode != CHECKSUM)
            if transfer[job] == TRANSFER_DONE:
                assert send_end >= scan_end >= 0
                held = at


def _changed_until(plan: Plan, d: int, disk: dict[str, int], time: int) -> int:
    """Bytes changed since the scenario began, every rewrite counted."""
    days, rest = divmod(time // SECOND, 86400)
    total = 0
    for day in range(days + 1):
        u = draw(plan.rule("seed"), d, day, 64) // 4096
        share = 65536 - disk["spread"] + 2 * disk["spread"] * u // 2**20
        if (plan.rule("weekday") + day) % 7 in (5, 6):
            share = share * disk["weekend"] // 65536
        today = disk["churn"] * share // 65536
        total += today * rest // 86400 if day == days else today
    return total


@given(
    churn=st.integers(0, 10**11),
    extents=st.lists(st.integers(512, 2**26), min_size=2, max_size=4, unique=True),
    cost=st.integers(0, 10**6),
    asked=st.integers(0, 10**5),
    iops=st.integers(50, 10**6),
    tracking=st.integers(0, 1),
)
@SOME
def test_more_extents_at_equal_bytes_are_never_faster(
    churn: int, extents: list[int], cost: int, asked: int, iops: int, tracking: int
) -> None:
    before = None
    for extent in sorted(extents, reverse=True):
        disk = {
            "churn": churn, "extent": extent, "extent_cost": cost, "tracked_cost": asked,
            "iops": iops, "tracking": tracking, "weekend": 65536,
        }  # fmt: skip
        found = simulate_reference(plan_of([{}], [disk], [[(0, 1), (30 * DAY, 1)]]))
        now = [column(found, name)[1] for name in ("extents", "scan", "send", "end")]
        changed = column(found, "changed")
        if before is not None:
            assert changed == before[1]
            assert all(old <= new for old, new in zip(before[0], now, strict=True))
        before = (now, changed)


@given(
    work=st.lists(st.integers(1, 600), min_size=2, max_size=9),
    delays=st.lists(st.integers(0, 10**6), min_size=9, max_size=9),
)
@SOME
def test_staggering_within_a_saturated_time_never_lengthens_it(
    work: list[int], delays: list[int]
) -> None:
    """Each flow alone would fill the account, so it stays full however the starts are spread.

    The share is rounded down to 2^-20: of n flows together at most n 2^-20 of the time is lost.
    """
    egress, total = 10**8, sum(work)
    makespans = []
    for offsets in ([0] * len(work), [0, *(d % total * SECOND for d in delays)][: len(work)]):
        # The account must stay busy: no one starts when all that came before may be over.
        order = sorted(range(len(work)), key=lambda i: offsets[i])
        free, started = 0, [0] * len(work)
        for i in order:
            started[i] = min(offsets[i], free)
            free = max(free, 0) + work[i] * SECOND
        plan = plan_of(
            [{"offset": start} for start in started],
            [
                {"vm": v, "account": 0, "used": egress * length, "full_rate": egress}
                for v, length in enumerate(work)
            ],
            [[(0, 1)]],
            accounts=[(egress, 10**9)],
        )
        found = simulate_reference(plan)
        makespans.append(max(column(found, "end")) - 60 * SECOND)
        assert of_account(found, "busy") == makespans[-1]
    together, staggered = makespans
    ideal = total * SECOND
    rounding = (ideal * len(work) >> 20) * 101 // 100 + 4 * len(work)
    assert ideal <= together <= ideal + rounding
    assert ideal <= staggered <= together + rounding


@given(seed=st.integers(0, 2**32))
@SOME
def test_the_same_plan_gives_the_same_jobs(seed: int) -> None:
    plan = random_plan(seed)
    one, two = simulate_reference(plan, parts=True), simulate_reference(random_plan(seed))
    assert np.array_equal(one.jobs, two.jobs)
    assert np.array_equal(one.accounts, two.accounts)
    assert np.array_equal(one.account_hours, two.account_hours)
    assert two.parts.shape == (0, len(PART))
    # Sums of the disks are what is told of the job.
    for v in range(len(plan.vms)):
        count = plan.disk_first[v + 1] - plan.disk_first[v]
        parts = one.parts[plan.part_first[v] : plan.part_first[v + 1]]
        jobs = one.jobs[plan.job_first[v] : plan.job_first[v + 1]]
        for name in ("read", "changed", "extents"):
            sums = parts[:, PART.index(name)].reshape(len(jobs), count).sum(axis=1)
            assert np.array_equal(sums, jobs[:, JOB.index(name)])
