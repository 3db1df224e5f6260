"""Storage accounts that a fleet's flows share: virtual time. See `vmbk/service/MODEL.md`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmbk.kernels.fleet_work import (
    ACCOUNT,
    ACCOUNT_FIRST,
    ACCOUNT_STATE,
    ACCOUNTS,
    ASKS_EGRESS,
    ASKS_REQUESTS,
    DAYS,
    DISK_COLUMNS,
    DISK_KEPT,
    DISK_STATE,
    DISKS,
    FLOW_HEAP,
    FLOW_RANK,
    FLOW_WHERE,
    GUEST_EGRESS,
    GUEST_REQUESTS,
    HOUR,
    MS,
    N_VMS,
    RANK,
    TARGET,
    WHEN,
    WHERE,
)
from vmbk.kernels.jit import I64, OutI64, i64, kernel, void
from vmbk.kernels.queue import _drop, _put

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

ONE = 1 << 20
FAR = 1 << 42  # ns of virtual time that no hour holds
KIND = 1 << 40

# What is kept of an account: virtual time, its fraction, when that was, the share of full speed,
# demands of its flows, and how many they are.
V, FRACTION, AT, SPEED, EGRESS, REQUESTS, COUNT, ACCOUNT_KEPT = range(8)
(BUSY, THROTTLED, LOST, PEAK_EGRESS, PEAK_BACKUP_EGRESS, PEAK_REQUESTS, PEAK_BACKUP_REQUESTS,
 TOLD_COLUMNS) = range(8)  # fmt: skip


@kernel(void(I64, OutI64, OutI64, OutI64, i64, i64))
def _bring(p: Ints, s: Ints, told: Ints, hours: Ints, a: int, now: int) -> None:
    """Bring an account to a moment: its virtual time, and what it served until then."""
    row, out = s[ACCOUNT_STATE] + a * ACCOUNT_KEPT, a * TOLD_COLUMNS
    last, speed = s[row + AT], s[row + SPEED]
    s[row + AT] = now
    passed = now - last
    if s[row + COUNT] == 0 or passed == 0:
        return
    moved = s[row + FRACTION] + passed * speed
    s[row + V] += moved >> 20
    s[row + FRACTION] = moved & (ONE - 1)
    told[out + BUSY] += passed
    if speed < ONE:
        told[out + THROTTLED] += passed
        told[out + LOST] += (passed * (ONE - speed)) >> 20
    hour = a * 24 + last // HOUR % 24
    egress, requests = s[row + EGRESS], s[row + REQUESTS]
    all_egress = (speed * (egress + p[p[GUEST_EGRESS] + hour])) >> 20
    all_requests = (speed * (requests + p[p[GUEST_REQUESTS] + hour])) >> 20
    rate = (speed * egress) >> 20
    told[out + PEAK_EGRESS] = max(told[out + PEAK_EGRESS], all_egress)
    told[out + PEAK_BACKUP_EGRESS] = max(told[out + PEAK_BACKUP_EGRESS], rate)
    told[out + PEAK_REQUESTS] = max(told[out + PEAK_REQUESTS], all_requests)
    told[out + PEAK_BACKUP_REQUESTS] = max(
        told[out + PEAK_BACKUP_REQUESTS], (speed * requests) >> 20
    )
    at = a * 24 * p[DAYS] + min(last // HOUR, 24 * p[DAYS] - 1)
    hours[at] += rate * (now // MS - last // MS) // 1000


@kernel(void(I64, OutI64, i64, i64))
def _set_speed(p: Ints, s: Ints, a: int, now: int) -> None:
    """The share of full speed that an account's flows have from now on."""
    row, hour = s[ACCOUNT_STATE] + a * ACCOUNT_KEPT, a * 24 + now // HOUR % 24
    egress = s[row + EGRESS] + p[p[GUEST_EGRESS] + hour]
    requests = s[row + REQUESTS] + p[p[GUEST_REQUESTS] + hour]
    speed = ONE
    if egress > 0:
        speed = min(speed, (p[p[ACCOUNTS] + 2 * a] << 20) // egress)
    if requests > 0:
        speed = min(speed, (p[p[ACCOUNTS] + 2 * a + 1] << 20) // requests)
    s[row + SPEED] = max(speed, 1)


@kernel(void(OutI64, i64, i64, i64, i64))
def _schedule(s: Ints, heap: int, actor: int, rank: int, when: int) -> None:
    """Let an actor wait for a moment; the size of the heap stands before it."""
    s[s[WHEN] + actor] = when
    s[s[RANK] + actor] = rank
    s[heap - 1] = _put(s, heap, s[WHERE], s[WHEN], s[RANK], s[heap - 1], actor)


@kernel(void(OutI64, i64, i64))
def _forget(s: Ints, heap: int, actor: int) -> None:
    """Let an actor wait no more."""
    s[heap - 1] = _drop(s, heap, s[WHERE], s[WHEN], s[RANK], s[heap - 1], actor)


@kernel(void(I64, OutI64, i64, i64, i64))
def _set_tick(p: Ints, s: Ints, heap: int, a: int, now: int) -> None:
    """Set an account's speed, and when it must be looked at again."""
    row, actor = s[ACCOUNT_STATE] + a * ACCOUNT_KEPT, 2 * p[N_VMS] + a
    if s[row + COUNT] == 0:
        _forget(s, heap, actor)
        return
    _set_speed(p, s, a, now)
    at = (now // HOUR + 1) * HOUR
    gap = s[s[TARGET] + s[s[FLOW_HEAP] + p[p[ACCOUNT_FIRST] + a]]] - s[row + V]
    if gap <= FAR:
        needed = max((gap << 20) - s[row + FRACTION], 0)
        at = min(at, now + (needed + s[row + SPEED] - 1) // s[row + SPEED])
    _schedule(s, heap, actor, KIND + a, at)


@kernel(void(I64, OutI64, i64, i64))
def _begin_flow(p: Ints, s: Ints, d: int, work: int) -> None:
    """A flow begins on its disk's account, which has been brought to this moment."""
    a, kept = p[p[DISKS] + d * DISK_COLUMNS + ACCOUNT], s[DISK_STATE] + d * DISK_KEPT
    row = s[ACCOUNT_STATE] + a * ACCOUNT_KEPT
    s[s[TARGET] + d] = s[row + V] + (1 if s[row + FRACTION] > 0 else 0) + work
    s[row + EGRESS] += s[kept + ASKS_EGRESS]
    s[row + REQUESTS] += s[kept + ASKS_REQUESTS]
    first = s[FLOW_HEAP] + p[p[ACCOUNT_FIRST] + a]
    s[row + COUNT] = _put(s, first, s[FLOW_WHERE], s[TARGET], s[FLOW_RANK], s[row + COUNT], d)


@kernel(void(I64, OutI64, i64))
def _end_flow(p: Ints, s: Ints, d: int) -> None:
    """A flow is over, or is cut off; its account has been brought to this moment."""
    a, kept = p[p[DISKS] + d * DISK_COLUMNS + ACCOUNT], s[DISK_STATE] + d * DISK_KEPT
    row = s[ACCOUNT_STATE] + a * ACCOUNT_KEPT
    s[row + EGRESS] -= s[kept + ASKS_EGRESS]
    s[row + REQUESTS] -= s[kept + ASKS_REQUESTS]
    first = s[FLOW_HEAP] + p[p[ACCOUNT_FIRST] + a]
    s[row + COUNT] = _drop(s, first, s[FLOW_WHERE], s[TARGET], s[FLOW_RANK], s[row + COUNT], d)
