"""What a fleet's disks have to do: draws, changes, flows. See `vmbk/service/MODEL.md`, whose words
are used here.

A plan is one array `p`, what is kept while it runs another, `s`. Both begin with the places of
their tables, which lie in them row after row; columns are the ones of `vmbk.service.plan`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vmbk.kernels.content import _mix
from vmbk.kernels.jit import I64, OutI64, i64, kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

SECOND = 10**9
HOUR = 3600 * SECOND
DAY = 24 * HOUR
MS = 10**6

# Where the tables of a plan begin, or how many rows there are.
(RULES, CURVE, SLOT_FIRST, SLOTS, SLOT_DUE, VMS, DISKS, DISK_FIRST, JOB_FIRST, PART_FIRST, PLACES,
 THRESHOLDS, CONSEQUENCES, LASTING, ACCOUNTS, GUEST_EGRESS, GUEST_REQUESTS, ACCOUNT_FIRST,
 ACCOUNT_DISKS, EVENTS, N_VMS, N_DISKS, N_ACCOUNTS, N_CAUSES, DAYS, WANT_PARTS,
 PLAN_TABLES) = range(27)  # fmt: skip
# Where the tables of what is kept begin.
(VM_STATE, DISK_STATE, ACCOUNT_STATE, VAULT_STATE, HEAP, WHERE, WHEN, RANK, FLOW_HEAP, FLOW_WHERE,
 TARGET, FLOW_RANK, STATE_TABLES) = range(13)  # fmt: skip

(SEED, WEEKDAY, JITTER, INSTALL_LOW, INSTALL_HIGH, SNAPSHOT_LOW, SNAPSHOT_HIGH, RETRY_WAIT,
 QUEUE_PEAK, COMMIT, TRANSFER_FAILURE, OVERLAP, TWO_PHASE, REQUEST) = range(14)  # fmt: skip
SCHEDULE, OFFSET, VAULT, CLASS, INSTALLS, VM_COLUMNS = range(6)
(DISK_VM, ACCOUNT, USED, GROWTH, CHURN, SPREAD, WEEKEND, ADDED, FULL_RATE, SCAN_RATE, SEND_RATE,
 EXTENT, EXTENT_COST, TRACKED_COST, IOPS, HAS_TRACKING, SIZE, DISK_COLUMNS) = range(18)  # fmt: skip
NO_MODE, INITIAL, CHECKSUM, TRACKING, FALLBACK = range(5)

# What is kept of a disk: the moment that its last point holds; the flow at hand and what it asks
# for; the send to come; when scan and send ended; and what its transfer is.
(SINCE, STAGE, ASKS_EGRESS, ASKS_REQUESTS, SEND_WORK, SEND_EGRESS, SEND_REQUESTS, SCAN_END,
 SEND_END, MODE, READ_BYTES, CHANGED_BYTES, N_EXTENTS, DISK_KEPT) = range(14)  # fmt: skip
NOTHING, SCANNING, SENDING = range(3)

_N32 = np.uint64(32)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@kernel(i64(i64, i64, i64, i64))
def _draw(seed: Any, a: Any, b: Any, c: Any) -> Any:
    """32 bits for a purpose."""
    x = _mix(np.uint64(seed) + _GOLDEN + np.uint64(a))
    x = _mix(x + _GOLDEN + np.uint64(b))
    x = _mix(x + _GOLDEN + np.uint64(c))
    return np.int64(x >> _N32)


@kernel(i64(i64, i64, i64))
def _between(low: int, high: int, drawn: int) -> int:
    """A number from `low` to `high` for 32 bits."""
    return low + ((high - low) >> 20) * (drawn >> 12)


@kernel(i64(i64, i64))
def _nanoseconds(amount: int, rate: int) -> Any:
    """How long an amount takes, rounded up, with no product beyond 63 bits."""
    return amount // rate * SECOND + (amount % rate * SECOND + rate - 1) // rate


@kernel(i64(I64, i64, i64))
def _day_bytes(p: Ints, d: int, day: int) -> Any:
    """What a day changes of a disk."""
    row, rules = p[DISKS] + d * DISK_COLUMNS, p[RULES]
    spread = p[row + SPREAD]
    factor = 65536 - spread + ((2 * spread * (_draw(p[rules + SEED], d, day, 64) >> 12)) >> 20)
    if (p[rules + WEEKDAY] + day) % 7 >= 5:
        factor = (factor * p[row + WEEKEND]) >> 16
    return (p[row + CHURN] * factor) >> 16


@kernel(i64(I64, i64, i64, i64))
def _churn(p: Ints, d: int, since: int, until: int) -> Any:
    """Bytes that change on a disk between two moments."""
    if p[p[DISKS] + d * DISK_COLUMNS + CHURN] == 0:
        return 0
    a, b = since // SECOND, until // SECOND
    first, last = a // 86400, b // 86400
    total = _day_bytes(p, d, last) * (b % 86400) // 86400
    total -= _day_bytes(p, d, first) * (a % 86400) // 86400
    for day in range(first, last):
        total += _day_bytes(p, d, day)
    return total


@kernel(i64(I64, OutI64, i64, i64, i64))
def _lay_out_disk(p: Ints, s: Ints, d: int, snapshot_at: int, fallback: int) -> int:
    """Write down what a disk has to do in a transfer; its scan's work."""
    row, kept = p[DISKS] + d * DISK_COLUMNS, s[DISK_STATE] + d * DISK_KEPT
    request, iops = p[p[RULES] + REQUEST], p[row + IOPS]
    used = min(p[row + USED] + p[row + GROWTH] * (snapshot_at // DAY), p[row + SIZE])
    read, changed, extents, extra = 0, used, 0, 0
    mode, rate, scan_work, egress, requests = INITIAL, p[row + FULL_RATE], 0, 0, 0
    if s[kept + SINCE] >= 0:
        changed = min(_churn(p, d, s[kept + SINCE], snapshot_at), used)
        extents = (changed + p[row + EXTENT] - 1) // p[row + EXTENT]
        extra = extents * p[row + EXTENT_COST]
        rate = p[row + SEND_RATE]
        if p[row + HAS_TRACKING] != 0 and fallback == 0:
            mode, scan_work = TRACKING, extents * p[row + TRACKED_COST]
        else:
            mode = FALLBACK if p[row + HAS_TRACKING] != 0 else CHECKSUM
            read = used
            count = (read + request - 1) // request
            scan_work = max(_nanoseconds(read, p[row + SCAN_RATE]), _nanoseconds(count, iops))
            ms = max(1, scan_work // MS)
            egress = min(p[row + SCAN_RATE], read * 1000 // ms + 1)
            requests = count * 1000 // ms + 1
    count = max(extents, (changed + request - 1) // request)
    send_work = max(_nanoseconds(changed, rate) + extra, _nanoseconds(count, iops))
    ms = max(1, send_work // MS)
    s[kept + ASKS_EGRESS], s[kept + ASKS_REQUESTS] = egress, requests
    s[kept + SEND_WORK] = send_work
    s[kept + SEND_EGRESS] = min(rate, changed * 1000 // ms + 1)
    s[kept + SEND_REQUESTS] = count * 1000 // ms + 1
    s[kept + MODE], s[kept + READ_BYTES] = mode, read
    s[kept + CHANGED_BYTES], s[kept + N_EXTENTS] = changed, extents
    return scan_work
