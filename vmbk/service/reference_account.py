"""What the reference rests on: the clock, the draws, and an account that flows share.

See `MODEL.md`, "Numbers", "Accounts" and "Order within a nanosecond".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmbk.service.plan import ACCOUNT_TOLD, HOUR, ONE

try:
    import simpy
except ImportError:  # `simulate_reference` tells
    simpy = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

    from vmbk.service.plan import Plan

    Steps = Generator[simpy.Event, Any, None]
    Segment = tuple[int, int, int, int, int, int, int]

EVENT, FLOW, COMMIT, QUEUED, SNAPSHOTTED, START = range(6)
"""Kinds of what happens at the same nanosecond, in their order."""
WORD: Final = (1 << 64) - 1


def mix(x: int) -> int:
    """The finalizer of SplitMix64, on 64 bits."""
    x ^= x >> 30
    x = x * 0xBF58476D1CE4E5B9 & WORD
    x ^= x >> 27
    x = x * 0x94D049BB133111EB & WORD
    return x ^ (x >> 31)


def draw(seed: int, a: int, b: int, c: int) -> int:
    """32 random bits that depend on these four numbers alone."""
    x = seed & WORD
    for word in (a, b, c):
        x = mix((x + 0x9E3779B97F4A7C15 + word) & WORD)
    return x >> 32


def between(low: int, high: int, u: int) -> int:
    """The value between two that the 32 bits `u` choose."""
    return low + ((high - low) >> 20) * (u >> 12)


def ceil_div(a: int, b: int) -> int:
    """The quotient, rounded up."""
    return -(-a // b)


class Clock:
    """SimPy's environment, with the model's order within a nanosecond."""

    def __init__(self) -> None:
        self.env = simpy.Environment(initial_time=0)

    @property
    def now(self) -> int:
        """The time in ns."""
        return int(self.env.now)

    def wait(self, delay: int, kind: int, index: int) -> simpy.Event:
        """An event after `delay` ns; at the same nanosecond the kind decides, then the index."""
        event = simpy.Event(self.env)
        event._ok, event._value = True, None
        # One more than the kind: the lowest rank is then above SimPy's own priorities 0 and 1.
        rank = ((kind + 1) << 40) + index
        self.env.schedule(event, simpy.events.EventPriority(rank), delay)
        return event


@dataclass(eq=False)
class Flow:
    """A scan or a send: its work is its time at full speed, its demands are those at full speed."""

    disk: int
    work: int
    egress: int
    requests: int
    done: simpy.Event
    target: int = 0
    """Virtual time of the account at which it is over, in 2^-20 ns."""


class Account:
    """A storage account, whose flows are all slowed in the same proportion."""

    def __init__(
        self, clock: Clock, plan: Plan, index: int, segments: list[Segment] | None
    ) -> None:
        self.clock, self.index, self.segments = clock, index, segments
        self.most_egress, self.most_requests = plan.accounts[index].tolist()
        self.guest_egress: list[int] = plan.guest_egress[index].tolist()
        self.guest_requests: list[int] = plan.guest_requests[index].tolist()
        self.told = dict.fromkeys(ACCOUNT_TOLD, 0)
        self.bytes_by_hour = [0] * (24 * plan.days)
        self.flows: list[Flow] = []
        self.virtual = 0  # in 2^-20 ns
        self.last = 0
        self.share = ONE
        self.egress = self.requests = self.backup_egress = self.backup_requests = 0
        self.alarm: simpy.Event | None = None
        """The next end of a flow or full hour; an older alarm is ignored."""

    def carry(self, flow: Flow) -> Steps:
        """Take part until the work is done or the transfer fails."""
        self.step()
        flow.target = (ceil_div(self.virtual, ONE) + flow.work) * ONE
        self.flows.append(flow)
        self.change()
        try:
            yield flow.done
        except simpy.Interrupt:
            self.step()
            self.flows.remove(flow)
            self.change()
            raise

    def step(self) -> None:
        """Count the time since the account's last event; nothing changed in it."""
        start, end = self.last, self.clock.now
        self.last = end
        length = end - start
        if not self.flows or not length:
            return
        self.virtual += length * self.share
        self.told["busy"] += length
        self.told["throttled"] += length if self.share < ONE else 0
        self.told["lost"] += length * (ONE - self.share) >> 20
        for name, demand in (
            ("peak_egress", self.egress), ("peak_backup_egress", self.backup_egress),
            ("peak_requests", self.requests), ("peak_backup_requests", self.backup_requests),
        ):  # fmt: skip
            self.told[name] = max(self.told[name], self.share * demand >> 20)
        hour = min(start // HOUR, len(self.bytes_by_hour) - 1)
        speed = self.share * self.backup_egress >> 20
        self.bytes_by_hour[hour] += speed * (end // 10**6 - start // 10**6) // 1000
        if self.segments is not None:
            demands = self.egress, self.requests, self.share, self.backup_egress
            self.segments.append((self.index, start, end, *demands))

    def change(self) -> None:
        """Flows or the hour changed: share the account out anew."""
        self.alarm = None
        if not self.flows:
            return
        now = self.clock.now
        hour = now // HOUR % 24
        self.backup_egress = sum(flow.egress for flow in self.flows)
        self.backup_requests = sum(flow.requests for flow in self.flows)
        self.egress = self.backup_egress + self.guest_egress[hour]
        self.requests = self.backup_requests + self.guest_requests[hour]
        share = ONE
        if self.egress:
            share = min(share, (self.most_egress << 20) // self.egress)
        if self.requests:
            share = min(share, (self.most_requests << 20) // self.requests)
        self.share = max(share, 1)
        first_end = ceil_div(self.first().target - self.virtual, self.share)
        next_hour = HOUR - now % HOUR
        self.alarm = self.clock.wait(min(max(first_end, 0), next_hour), FLOW, self.index)
        assert self.alarm.callbacks is not None
        self.alarm.callbacks.append(self.ring)

    def first(self) -> Flow:
        """The flow that ends first."""
        return min(self.flows, key=lambda flow: (flow.target, flow.disk))

    def ring(self, alarm: simpy.Event) -> None:
        """One flow ends, or the hour does; where more flows end now, the next alarm is now too."""
        if alarm is not self.alarm:
            return
        self.step()
        first = self.first()
        if first.target <= self.virtual:
            self.flows.remove(first)
            first.done.succeed()
        self.change()
