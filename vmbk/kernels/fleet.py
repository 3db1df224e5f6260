"""A fleet's backup jobs, event by event: the fast twin of `vmbk.service.reference`.

`vmbk/service/MODEL.md` says what happens, and its words are used here. A component is a part of the
fleet that shares nothing with the rest: each has a heap of its own, and they can run in threads.
Whoever waits for a moment is an actor: VM v with its own jobs is actor v, its transfer is V + v,
account a is 2 V + a.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vmbk.kernels.fleet_accounts import (
    ACCOUNT_KEPT,
    COUNT,
    KIND,
    V,
    _begin_flow,
    _bring,
    _end_flow,
    _forget,
    _schedule,
    _set_tick,
)
from vmbk.kernels.fleet_work import (
    ACCOUNT,
    ACCOUNT_DISKS,
    ACCOUNT_FIRST,
    ACCOUNT_STATE,
    ADDED,
    ASKS_EGRESS,
    ASKS_REQUESTS,
    CHANGED_BYTES,
    CLASS,
    COMMIT,
    CONSEQUENCES,
    CURVE,
    DISK_COLUMNS,
    DISK_FIRST,
    DISK_KEPT,
    DISK_STATE,
    DISK_VM,
    DISKS,
    EVENTS,
    FALLBACK,
    FLOW_HEAP,
    HOUR,
    INITIAL,
    INSTALL_HIGH,
    INSTALL_LOW,
    INSTALLS,
    JITTER,
    JOB_FIRST,
    LASTING,
    MODE,
    N_CAUSES,
    N_EXTENTS,
    N_VMS,
    NO_MODE,
    NOTHING,
    OFFSET,
    OVERLAP,
    PART_FIRST,
    PLACES,
    QUEUE_PEAK,
    READ_BYTES,
    RETRY_WAIT,
    RULES,
    SCAN_END,
    SCANNING,
    SCHEDULE,
    SEED,
    SEND_EGRESS,
    SEND_END,
    SEND_REQUESTS,
    SEND_WORK,
    SENDING,
    SINCE,
    SLOT_DUE,
    SLOT_FIRST,
    SLOTS,
    SNAPSHOT_HIGH,
    SNAPSHOT_LOW,
    STAGE,
    TARGET,
    THRESHOLDS,
    TRANSFER_FAILURE,
    TWO_PHASE,
    VAULT,
    VAULT_STATE,
    VM_COLUMNS,
    VM_STATE,
    VMS,
    WANT_PARTS,
    WHEN,
    _between,
    _draw,
    _lay_out_disk,
)
from vmbk.kernels.jit import I64, OutI64, i64, kernel, void

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

ATTEMPTS = 8
FAIL, RETRY = range(2)
(JOB_SCHEDULED, JOB_START, JOB_INSTALL, JOB_SNAPSHOT, JOB_SNAPSHOT_AT, JOB_POINT, JOB_QUEUE,
 JOB_PLACE, JOB_SCAN, JOB_SEND, JOB_COMMIT, JOB_END, JOB_READ, JOB_CHANGED, JOB_SENT, JOB_EXTENTS,
 JOB_TOLD, JOB_COLUMNS) = range(18)  # fmt: skip
(PART_MODE, PART_READ, PART_CHANGED, PART_EXTENTS, PART_SCAN, PART_SEND,
 PART_COLUMNS) = range(7)  # fmt: skip
COMPLETED, WARNINGS, FAILED, SKIPPED = range(4)
NOT_DUE, TRANSFER_SKIPPED, DONE, BROKEN = 1, 2, 3, 4
# Where a job's small numbers stand in the column that packs them.
LABEL_BIT, STATE_BIT, TRANSFER_BIT, INITIAL_BIT, FALLBACK_BIT, CAUSE_BIT, CRITICAL_BIT = (
    4, 7, 9, 12, 13, 16, 32,
)  # fmt: skip

# What is kept of a VM: the job that it waits for or whose snapshot phase it is in, when that began;
# whether it is owing, and has its extension; how often its snapshots were deleted, in all, before
# its last good transfer, before this one; its transfer: job, phase, begin, flows left, end of the
# disks that share nothing, next in line.
(JOB, LAST_START, IN_SNAPSHOT, OWING, INSTALLED, DELETIONS, HONOURED, SEEN, MOVING, PHASE, BEGIN,
 FLOWS, UNTIL, NEXT, VM_KEPT) = range(15)  # fmt: skip
IDLE, QUEUED, WAITING, FLOWING, COMMITTING = range(5)
RUNNING, FIRST, LAST, VAULT_KEPT = range(4)
# Of a component: its VMs, its events, its heap, how many accounts it has.
VM_FROM, VM_TO, EVENT_FROM, EVENT_TO, HEAP_AT, N_SHARED, COMPONENT_COLUMNS = range(7)
EVENT_TIME, EVENT_KIND, EVENT_TARGET, EVENT_COLUMNS = range(4)
ROTATE = 0


@kernel(void(I64, OutI64, OutI64, i64, i64, i64, i64))
def _next_job(p: Ints, s: Ints, jobs: Ints, heap: int, v: int, k: int, now: int) -> None:
    """Let a VM wait for its job k, or the first one after it that does not start before `now`."""
    vm, row = p[VMS] + v * VM_COLUMNS, s[VM_STATE] + v * VM_KEPT
    slot, rules = p[p[SLOT_FIRST] + p[vm + SCHEDULE]], p[RULES]
    count = p[p[JOB_FIRST] + v + 1] - p[p[JOB_FIRST] + v]
    while k < count:
        scheduled = p[p[SLOTS] + slot + k] + p[vm + OFFSET]
        drawn = _draw(p[rules + SEED], v, k, 0)
        start = max(scheduled + _between(0, p[rules + JITTER], drawn), s[row + LAST_START])
        s[row + LAST_START] = start
        job = (p[p[JOB_FIRST] + v] + k) * JOB_COLUMNS
        jobs[job + JOB_SCHEDULED], jobs[job + JOB_START] = scheduled, start
        if start >= now:
            s[row + JOB], s[row + IN_SNAPSHOT] = k, 0
            _schedule(s, heap, v, 5 * KIND + v, start)
            return
        _skip_job(p, s, jobs, v, k)
        k += 1


@kernel(void(I64, OutI64, OutI64, i64, i64))
def _skip_job(p: Ints, s: Ints, jobs: Ints, v: int, k: int) -> None:
    """A job does not run."""
    job = (p[p[JOB_FIRST] + v] + k) * JOB_COLUMNS
    jobs[job + JOB_SNAPSHOT_AT] = jobs[job + JOB_POINT] = -1
    jobs[job + JOB_END] = jobs[job + JOB_START]
    jobs[job + JOB_TOLD] = SKIPPED << STATE_BIT
    if p[p[SLOT_DUE] + p[p[SLOT_FIRST] + p[p[VMS] + v * VM_COLUMNS + SCHEDULE]] + k] != 0:
        s[s[VM_STATE] + v * VM_KEPT + OWING] = 1


@kernel(void(I64, OutI64, OutI64, i64, i64, i64))
def _start_job(p: Ints, s: Ints, jobs: Ints, heap: int, v: int, now: int) -> None:
    """A job starts: its snapshot phase is known at once, since nothing is shared in it."""
    vm, row, rules = p[VMS] + v * VM_COLUMNS, s[VM_STATE] + v * VM_KEPT, p[RULES]
    k, seed, causes = s[row + JOB], p[rules + SEED], p[N_CAUSES]
    if p[rules + OVERLAP] == 0 and s[row + PHASE] != IDLE:
        _skip_job(p, s, jobs, v, k)
        _next_job(p, s, jobs, heap, v, k + 1, now)
        return
    install = 0
    if p[vm + INSTALLS] != 0 and s[row + INSTALLED] == 0:
        drawn = _draw(seed, v, k, 1)
        install = _between(p[rules + INSTALL_LOW], p[rules + INSTALL_HIGH], drawn)
    thresholds = p[THRESHOLDS] + p[vm + CLASS] * causes
    lasting = p[LASTING] + p[vm + CLASS] * (causes + 1)
    consequences = p[CONSEQUENCES] + p[vm + CLASS] * (causes + 1) * ATTEMPTS
    cause = last_cause = label = attempt = 0
    at = begin = now + install
    while attempt < ATTEMPTS:
        attempt += 1
        if cause == 0 or p[lasting + cause] == 0:
            drawn = _draw(seed, v, k, 16 + attempt)
            cause = 0
            while cause < causes and drawn >= p[thresholds + cause]:
                cause += 1
            cause = (cause + 1) % (causes + 1)
        last_cause = cause if cause > 0 else last_cause
        begin = at
        drawn = _draw(seed, v, k, 32 + attempt)
        at += _between(p[rules + SNAPSHOT_LOW], p[rules + SNAPSHOT_HIGH], drawn)
        label = p[consequences + cause * ATTEMPTS + attempt - 1]
        if label != RETRY:
            break
        if attempt < ATTEMPTS:
            at += p[rules + RETRY_WAIT]
    job = (p[p[JOB_FIRST] + v] + k) * JOB_COLUMNS
    good = label > RETRY
    jobs[job + JOB_INSTALL] = install
    jobs[job + JOB_SNAPSHOT] = at - now - install
    jobs[job + JOB_SNAPSHOT_AT] = begin if good else -1
    jobs[job + JOB_POINT] = at if good and p[rules + TWO_PHASE] != 0 else -1
    jobs[job + JOB_TOLD] = (
        attempt | (label if good else FAIL) << LABEL_BIT | last_cause << CAUSE_BIT
    )
    s[row + IN_SNAPSHOT] = 1
    _schedule(s, heap, v, 4 * KIND + v, at)


@kernel(void(I64, OutI64, OutI64, i64, i64, i64))
def _end_snapshot(p: Ints, s: Ints, jobs: Ints, heap: int, v: int, now: int) -> None:
    """A snapshot phase ends: is its point to be transferred?"""
    row, rules = s[VM_STATE] + v * VM_KEPT, p[RULES]
    k = s[row + JOB]
    _next_job(p, s, jobs, heap, v, k + 1, now)  # those that were skipped meanwhile count first
    job = (p[p[JOB_FIRST] + v] + k) * JOB_COLUMNS
    slot = p[p[SLOT_FIRST] + p[p[VMS] + v * VM_COLUMNS + SCHEDULE]] + k
    due = p[p[SLOT_DUE] + slot] != 0
    if jobs[job + JOB_SNAPSHOT_AT] < 0:
        jobs[job + JOB_TOLD] |= FAILED << STATE_BIT
        jobs[job + JOB_END] = now
        if due:
            s[row + OWING] = 1
    else:
        s[row + INSTALLED] = 1
        if not due and s[row + OWING] == 0:
            jobs[job + JOB_TOLD] |= NOT_DUE << TRANSFER_BIT
            jobs[job + JOB_END] = now
        elif s[row + PHASE] != IDLE:
            jobs[job + JOB_TOLD] |= TRANSFER_SKIPPED << TRANSFER_BIT
            jobs[job + JOB_END] = now
            s[row + OWING] = 0
        else:
            q = _draw(p[rules + SEED], v, k, 2) >> 12
            wait = (p[rules + QUEUE_PEAK] >> 20) * ((q * q) >> 20)
            wait = wait * p[p[CURVE] + now // HOUR % 24] // 1000
            jobs[job + JOB_QUEUE] = wait
            s[row + OWING] = 0
            s[row + MOVING], s[row + PHASE] = k, QUEUED
            _schedule(s, heap, p[N_VMS] + v, 3 * KIND + v, now + wait)


@kernel(void(I64, OutI64, OutI64, OutI64, OutI64, i64, i64, i64))
def _end_queue(
    p: Ints, s: Ints, jobs: Ints, told: Ints, hours: Ints, heap: int, v: int, now: int
) -> None:
    """A transfer takes one of its vault's places, or stands in line for it."""
    vault = p[p[VMS] + v * VM_COLUMNS + VAULT]
    line, places = s[VAULT_STATE] + vault * VAULT_KEPT, p[p[PLACES] + vault]
    if places == 0 or s[line + RUNNING] < places:
        _begin_transfer(p, s, jobs, told, hours, heap, v, now)
        return
    s[s[VM_STATE] + v * VM_KEPT + PHASE] = WAITING
    s[s[VM_STATE] + v * VM_KEPT + NEXT] = -1
    if s[line + LAST] >= 0:
        s[s[VM_STATE] + s[line + LAST] * VM_KEPT + NEXT] = v
    else:
        s[line + FIRST] = v
    s[line + LAST] = v


@kernel(void(I64, OutI64, OutI64, OutI64, OutI64, i64, i64, i64))
def _give_places(
    p: Ints, s: Ints, jobs: Ints, told: Ints, hours: Ints, heap: int, vault: int, now: int
) -> None:
    """Let those first in line take the places that are free."""
    line = s[VAULT_STATE] + vault * VAULT_KEPT
    while s[line + FIRST] >= 0 and s[line + RUNNING] < p[p[PLACES] + vault]:
        v = s[line + FIRST]
        s[line + FIRST] = s[s[VM_STATE] + v * VM_KEPT + NEXT]
        if s[line + FIRST] < 0:
            s[line + LAST] = -1
        _begin_transfer(p, s, jobs, told, hours, heap, v, now)


@kernel(void(I64, OutI64, i64, i64))
def _leave_line(p: Ints, s: Ints, vault: int, v: int) -> None:
    """Take a VM out of its vault's line."""
    line, states = s[VAULT_STATE] + vault * VAULT_KEPT, s[VM_STATE]
    before, at = -1, s[line + FIRST]
    while at != v:
        before, at = at, s[states + at * VM_KEPT + NEXT]
    after = s[states + v * VM_KEPT + NEXT]
    if before < 0:
        s[line + FIRST] = after
    else:
        s[states + before * VM_KEPT + NEXT] = after
    if after < 0:
        s[line + LAST] = before


@kernel(void(I64, OutI64, OutI64, OutI64, OutI64, i64, i64, i64))
def _begin_transfer(
    p: Ints, s: Ints, jobs: Ints, told: Ints, hours: Ints, heap: int, v: int, now: int
) -> None:
    """All disks of a VM that were there at its snapshot begin at once."""
    row = s[VM_STATE] + v * VM_KEPT
    job = (p[p[JOB_FIRST] + v] + s[row + MOVING]) * JOB_COLUMNS
    waited = jobs[job + JOB_START] + jobs[job + JOB_INSTALL] + jobs[job + JOB_SNAPSHOT]
    jobs[job + JOB_PLACE] = now - waited - jobs[job + JOB_QUEUE]
    s[s[VAULT_STATE] + p[p[VMS] + v * VM_COLUMNS + VAULT] * VAULT_KEPT + RUNNING] += 1
    s[row + PHASE], s[row + BEGIN], s[row + UNTIL], s[row + FLOWS] = FLOWING, now, now, 0
    s[row + SEEN] = s[row + DELETIONS]
    fallback = 1 if s[row + DELETIONS] > s[row + HONOURED] else 0
    for d in range(p[p[DISK_FIRST] + v], p[p[DISK_FIRST] + v + 1]):
        disk, kept = p[DISKS] + d * DISK_COLUMNS, s[DISK_STATE] + d * DISK_KEPT
        s[kept + STAGE], s[kept + MODE] = NOTHING, NO_MODE
        if p[disk + ADDED] > jobs[job + JOB_SNAPSHOT_AT]:
            continue
        scan = _lay_out_disk(p, s, d, jobs[job + JOB_SNAPSHOT_AT], fallback)
        send = s[kept + SEND_WORK]
        jobs[job + JOB_READ] += s[kept + READ_BYTES]
        jobs[job + JOB_CHANGED] += s[kept + CHANGED_BYTES]
        jobs[job + JOB_EXTENTS] += s[kept + N_EXTENTS]
        if s[kept + MODE] == INITIAL:
            jobs[job + JOB_TOLD] |= 1 << INITIAL_BIT
        elif s[kept + MODE] == FALLBACK:
            jobs[job + JOB_TOLD] |= 1 << FALLBACK_BIT
        a = p[disk + ACCOUNT]
        if a < 0 or scan + send == 0:
            s[kept + SCAN_END], s[kept + SEND_END] = now + scan, now + scan + send
            s[row + UNTIL] = max(s[row + UNTIL], now + scan + send)
            continue
        s[row + FLOWS] += 1
        s[kept + STAGE], s[kept + SCAN_END] = SCANNING, now
        _bring(p, s, told, hours, a, now)
        if scan > 0:
            _begin_flow(p, s, d, scan)
        else:
            _begin_send(p, s, d)
        _set_tick(p, s, heap, a, now)
    if s[row + FLOWS] == 0:
        _begin_commit(p, s, heap, v)


@kernel(void(I64, OutI64, i64))
def _begin_send(p: Ints, s: Ints, d: int) -> None:
    """A disk's changes are sent, on its account."""
    kept = s[DISK_STATE] + d * DISK_KEPT
    s[kept + STAGE] = SENDING
    s[kept + ASKS_EGRESS] = s[kept + SEND_EGRESS]
    s[kept + ASKS_REQUESTS] = s[kept + SEND_REQUESTS]
    _begin_flow(p, s, d, s[kept + SEND_WORK])


@kernel(void(I64, OutI64, i64, i64))
def _begin_commit(p: Ints, s: Ints, heap: int, v: int) -> None:
    """All disks are over, or will be at a time that is known."""
    row = s[VM_STATE] + v * VM_KEPT
    s[row + PHASE] = COMMITTING
    _schedule(s, heap, p[N_VMS] + v, 2 * KIND + v, s[row + UNTIL] + p[p[RULES] + COMMIT])


@kernel(void(I64, OutI64, OutI64, OutI64, i64, i64, i64))
def _serve_account(p: Ints, s: Ints, told: Ints, hours: Ints, heap: int, a: int, now: int) -> None:
    """An account's flows that have come to their end, and its full hour."""
    _bring(p, s, told, hours, a, now)
    row, flows = s[ACCOUNT_STATE] + a * ACCOUNT_KEPT, s[FLOW_HEAP] + p[p[ACCOUNT_FIRST] + a]
    while s[row + COUNT] > 0 and s[s[TARGET] + s[flows]] <= s[row + V]:
        d = s[flows]
        kept = s[DISK_STATE] + d * DISK_KEPT
        _end_flow(p, s, d)
        if s[kept + STAGE] == SCANNING:
            s[kept + SCAN_END] = now
            if s[kept + SEND_WORK] > 0:
                _begin_send(p, s, d)
                continue
        s[kept + STAGE], s[kept + SEND_END] = NOTHING, now
        v = p[p[DISKS] + d * DISK_COLUMNS + DISK_VM]
        vm = s[VM_STATE] + v * VM_KEPT
        s[vm + UNTIL] = max(s[vm + UNTIL], now)
        s[vm + FLOWS] -= 1
        if s[vm + FLOWS] == 0:
            _begin_commit(p, s, heap, v)
    _set_tick(p, s, heap, a, now)


@kernel(void(I64, OutI64, OutI64, OutI64, i64, i64))
def _tell_parts(p: Ints, s: Ints, jobs: Ints, parts: Ints, v: int, cut: int) -> None:
    """Write down what each disk did in a transfer that is over, and which one was the last."""
    row = s[VM_STATE] + v * VM_KEPT
    first, last = p[p[DISK_FIRST] + v], p[p[DISK_FIRST] + v + 1]
    job = (p[p[JOB_FIRST] + v] + s[row + MOVING]) * JOB_COLUMNS
    critical = -1
    for d in range(first, last):
        kept = s[DISK_STATE] + d * DISK_KEPT
        if s[kept + MODE] != NO_MODE and (
            critical < 0 or s[kept + SEND_END] > s[s[DISK_STATE] + critical * DISK_KEPT + SEND_END]
        ):
            critical = d
        if p[WANT_PARTS] != 0:
            at = p[p[PART_FIRST] + v] + s[row + MOVING] * (last - first) + d - first
            at *= PART_COLUMNS
            parts[at + PART_SCAN] = parts[at + PART_SEND] = -1
            if s[kept + MODE] != NO_MODE:
                parts[at + PART_MODE] = s[kept + MODE]
                parts[at + PART_READ] = s[kept + READ_BYTES]
                parts[at + PART_CHANGED] = s[kept + CHANGED_BYTES]
                parts[at + PART_EXTENTS] = s[kept + N_EXTENTS]
                if cut == 0:
                    parts[at + PART_SCAN] = s[kept + SCAN_END]
                    parts[at + PART_SEND] = s[kept + SEND_END]
    if critical >= 0 and cut == 0:
        kept = s[DISK_STATE] + critical * DISK_KEPT
        jobs[job + JOB_SCAN] = s[kept + SCAN_END] - s[row + BEGIN]
        jobs[job + JOB_SEND] = s[kept + SEND_END] - s[kept + SCAN_END]
        jobs[job + JOB_TOLD] |= (critical - first + 1) << CRITICAL_BIT


@kernel(void(I64, OutI64, OutI64, i64, i64, i64))
def _fail_transfer(p: Ints, s: Ints, jobs: Ints, v: int, now: int, place: int) -> None:
    """A transfer of a VM fails; `place` is 1 where it has one of its vault's."""
    row = s[VM_STATE] + v * VM_KEPT
    job = (p[p[JOB_FIRST] + v] + s[row + MOVING]) * JOB_COLUMNS
    state = WARNINGS if p[p[RULES] + TWO_PHASE] != 0 else FAILED
    jobs[job + JOB_TOLD] |= state << STATE_BIT | BROKEN << TRANSFER_BIT
    jobs[job + JOB_END] = now
    s[row + PHASE], s[row + OWING] = IDLE, 1
    s[s[VAULT_STATE] + p[p[VMS] + v * VM_COLUMNS + VAULT] * VAULT_KEPT + RUNNING] -= place


@kernel(void(I64, OutI64, OutI64, OutI64, OutI64, OutI64, i64, i64, i64))
def _end_commit(
    p: Ints, s: Ints, jobs: Ints, parts: Ints, told: Ints, hours: Ints, heap: int, v: int, now: int
) -> None:
    """A transfer is over: its point is in the vault, or it failed after all."""
    row, rules = s[VM_STATE] + v * VM_KEPT, p[RULES]
    k, vault = s[row + MOVING], p[p[VMS] + v * VM_COLUMNS + VAULT]
    job = (p[p[JOB_FIRST] + v] + k) * JOB_COLUMNS
    _tell_parts(p, s, jobs, parts, v, 0)
    jobs[job + JOB_COMMIT] = p[rules + COMMIT]
    if _draw(p[rules + SEED], v, k, 3) < p[rules + TRANSFER_FAILURE]:
        _fail_transfer(p, s, jobs, v, now, 1)
    else:
        jobs[job + JOB_TOLD] |= DONE << TRANSFER_BIT
        jobs[job + JOB_END] = now
        jobs[job + JOB_SENT] = jobs[job + JOB_CHANGED]
        if p[rules + TWO_PHASE] == 0:
            jobs[job + JOB_POINT] = now
        for d in range(p[p[DISK_FIRST] + v], p[p[DISK_FIRST] + v + 1]):
            kept = s[DISK_STATE] + d * DISK_KEPT
            if s[kept + MODE] != NO_MODE:
                s[kept + SINCE] = jobs[job + JOB_SNAPSHOT_AT]
        s[row + HONOURED], s[row + PHASE] = s[row + SEEN], IDLE
        s[s[VAULT_STATE] + vault * VAULT_KEPT + RUNNING] -= 1
    _give_places(p, s, jobs, told, hours, heap, vault, now)


@kernel(void(I64, OutI64, OutI64, OutI64, OutI64, OutI64, i64, i64, i64))
def _cut_off(
    p: Ints, s: Ints, jobs: Ints, parts: Ints, told: Ints, hours: Ints, heap: int, v: int, now: int
) -> None:
    """A transfer that is wanted or under way fails now."""
    row, phase = s[VM_STATE] + v * VM_KEPT, s[s[VM_STATE] + v * VM_KEPT + PHASE]
    job = (p[p[JOB_FIRST] + v] + s[row + MOVING]) * JOB_COLUMNS
    _forget(s, heap, p[N_VMS] + v)
    ready = jobs[job + JOB_START] + jobs[job + JOB_INSTALL] + jobs[job + JOB_SNAPSHOT]
    if phase == QUEUED:
        jobs[job + JOB_QUEUE] = now - ready
    elif phase == WAITING:
        jobs[job + JOB_PLACE] = now - ready - jobs[job + JOB_QUEUE]
        _leave_line(p, s, p[p[VMS] + v * VM_COLUMNS + VAULT], v)
    else:
        for d in range(p[p[DISK_FIRST] + v], p[p[DISK_FIRST] + v + 1]):
            kept, a = s[DISK_STATE] + d * DISK_KEPT, p[p[DISKS] + d * DISK_COLUMNS + ACCOUNT]
            if s[kept + STAGE] != NOTHING:
                _bring(p, s, told, hours, a, now)
                _end_flow(p, s, d)
                s[kept + STAGE] = NOTHING
                _set_tick(p, s, heap, a, now)
        _tell_parts(p, s, jobs, parts, v, 1)
        jobs[job + JOB_SEND] = now - s[row + BEGIN]
    _fail_transfer(p, s, jobs, v, now, 1 if phase >= FLOWING else 0)


@kernel(void(I64, OutI64, OutI64, OutI64, OutI64, OutI64, i64, i64, i64))
def _rotate_keys(
    p: Ints, s: Ints, jobs: Ints, parts: Ints, told: Ints, hours: Ints, heap: int, a: int, now: int
) -> None:
    """All transfers of VMs with a disk on an account fail; then places are given on."""
    first, last = p[p[ACCOUNT_FIRST] + a], p[p[ACCOUNT_FIRST] + a + 1]
    for i in range(first, last):
        v = p[p[DISKS] + p[p[ACCOUNT_DISKS] + i] * DISK_COLUMNS + DISK_VM]
        if s[s[VM_STATE] + v * VM_KEPT + PHASE] != IDLE:
            _cut_off(p, s, jobs, parts, told, hours, heap, v, now)
    for i in range(first, last):
        v = p[p[DISKS] + p[p[ACCOUNT_DISKS] + i] * DISK_COLUMNS + DISK_VM]
        vault = p[p[VMS] + v * VM_COLUMNS + VAULT]
        _give_places(p, s, jobs, told, hours, heap, vault, now)


@kernel(i64(I64, OutI64, I64, I64, I64, i64, i64, OutI64, OutI64, OutI64, OutI64))
def simulate_fleet(
    p: Ints, s: Ints, components: Ints, members: Ints, events: Ints, first: int, last: int,
    jobs: Ints, parts: Ints, told: Ints, hours: Ints,
) -> Any:  # fmt: skip
    """Run some components of a fleet from beginning to end.

    Parameters
    ----------
    p, s : (n,) and (m,) int64
        The plan and what is kept, as `vmbk.service.engine` lays them out.
    components : (components x COMPONENT_COLUMNS,) int64
        From and to which of `members` and `events` it has, and where its heap begins in `s`.
    members : (VMs,) int64
        VMs by component.
    events : (events,) int64
        Rows of the plan's events by component, in their order.
    first, last : int64
        Components to run.
    jobs, parts, told, hours : (n,) int64
        Receive what `vmbk.service.plan.Outputs` holds.

    Returns
    -------
    int64
        Events that were handled.
    """
    handled = 0
    n_vms = p[N_VMS]
    for c in range(first, last):
        component = c * COMPONENT_COLUMNS
        heap = components[component + HEAP_AT]
        for i in range(components[component + VM_FROM], components[component + VM_TO]):
            _next_job(p, s, jobs, heap, members[i], 0, 0)
        e, e_last = components[component + EVENT_FROM], components[component + EVENT_TO]
        while e < e_last or s[heap - 1] > 0:
            handled += 1
            if e < e_last:
                event = p[EVENTS] + events[e] * EVENT_COLUMNS
                now = p[event + EVENT_TIME]
                if s[heap - 1] == 0 or now <= s[s[WHEN] + s[heap]]:
                    e += 1
                    target = p[event + EVENT_TARGET]
                    if p[event + EVENT_KIND] == ROTATE:
                        _rotate_keys(p, s, jobs, parts, told, hours, heap, target, now)
                    else:
                        s[s[VM_STATE] + target * VM_KEPT + DELETIONS] += 1
                    continue
            actor = s[heap]
            now = s[s[WHEN] + actor]
            if actor >= 2 * n_vms:
                _serve_account(p, s, told, hours, heap, actor - 2 * n_vms, now)
                continue
            _forget(s, heap, actor)
            v = actor % n_vms
            row = s[VM_STATE] + v * VM_KEPT
            if actor < n_vms:
                if s[row + IN_SNAPSHOT] != 0:
                    _end_snapshot(p, s, jobs, heap, v, now)
                else:
                    _start_job(p, s, jobs, heap, v, now)
            elif s[row + PHASE] == QUEUED:
                _end_queue(p, s, jobs, told, hours, heap, v, now)
            else:
                _end_commit(p, s, jobs, parts, told, hours, heap, v, now)
    return handled
