"""A storage account that restores go into, shared with what applications do there.

All streams into it go on in the same proportion of their full speed, as `MODEL.md` has it of
backups. Numbers are whole; virtual time, in which each stream takes its time at full speed, is kept
exactly.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any, Self

from vmbk.errors import InputError
from vmbk.service.fields import Fields
from vmbk.service.plan import DAY, HOUR, ONE
from vmbk.service.reference_account import ceil_div
from vmbk.units import quoted


@dataclass(frozen=True)
class TargetAccount:
    """A storage account that disks are restored into.

    Parameters
    ----------
    name : str
    requests : int
        A second at most; 20,000 is a standard account's limit.
    ingress : int
        Bytes a second at most; 25 Gbps is an account's in Europe and the United States (2020).
    total : int
        Bytes a second in and out at most, as premium accounts have it (50 Gbps); 0 is no limit.
    load_requests, load_write, load_read : tuple of int, 1 or 24 long
        What applications do there in a second, by hour of the day: requests, bytes, bytes.

    Raises
    ------
    InputError
        If a limit is not positive, or a load negative, too large or of another length.
    """

    name: str
    requests: int = 20_000
    ingress: int = 3_125_000_000
    total: int = 0
    load_requests: tuple[int, ...] = (0,)
    load_write: tuple[int, ...] = (0,)
    load_read: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        if not (0 < self.requests < 1 << 40 and 0 < self.ingress < 1 << 40):
            raise InputError(f"account {quoted(self.name)}: requests and ingress must be positive")
        if not 0 <= self.total < 1 << 40:
            raise InputError(f"account {quoted(self.name)}: total must not be negative")
        for key in ("load_requests", "load_write", "load_read"):
            load = getattr(self, key)
            if len(load) not in (1, 24) or not all(0 <= each < 1 << 40 for each in load):
                raise InputError(
                    f"account {quoted(self.name)}: {key} must be 1 or 24 numbers from 0"
                )

    @classmethod
    def parse(cls, declared: Any, name: str) -> Self:
        """Read one table: ``name``, ``requests``, ``ingress``, ``total`` and the loads."""
        keys = ("name", "requests", "ingress", "total", "load_requests", "load_write", "load_read")
        given = Fields(declared, name, keys)
        most = (1 << 40) - 1
        return cls(
            name=given.text("name"),
            requests=given.whole("requests", 1, most, cls.requests),
            ingress=given.rate("ingress", cls.ingress, least=1, most=most),
            total=given.rate("total", 0, most=most),
            load_requests=(given.whole("load_requests", 0, most, 0),),
            load_write=(given.rate("load_write", 0, most=most),),
            load_read=(given.rate("load_read", 0, most=most),),
        )

    @property
    def loaded(self) -> bool:
        """Applications use it."""
        return any(map(any, (self.load_requests, self.load_write, self.load_read)))

    def at(self, now: int) -> tuple[int, int, int]:
        """Load at a time: requests, bytes written, bytes read a second."""
        hour = now % DAY // HOUR
        load = (self.load_requests, self.load_write, self.load_read)
        requests, write, read = (each[hour % len(each)] for each in load)
        return requests, write, read


class SharedAccount:
    """An account while streams run into it.

    Attributes
    ----------
    virtual : int
        Time that a stream at full speed would have seen, in units of 2^-20 ns.
    now : int
        Up to when that is reckoned, in ns.
    write, requests : int
        What the streams ask for in a second.
    factor : int
        How much of that they get, in units of 2^-20.
    spans : list of tuple
        Each span of time in which nothing changed: start, end, streams, factor, write, requests,
        and the applications' requests, bytes written and bytes read a second.
    """

    def __init__(self, spec: TargetAccount) -> None:
        self.spec = spec
        self.virtual = self.now = self.write = self.requests = 0
        self.factor = ONE
        self.streams: list[tuple[int, int, int, int]] = []  # virtual end in ns, job, rate, requests
        self.spans: list[tuple[int, ...]] = []
        self.varies = any(
            len(set(load)) > 1 for load in (spec.load_requests, spec.load_write, spec.load_read)
        )

    def advance(self, now: int) -> None:
        """Let time pass at the present rates."""
        if self.streams and now > self.now:
            self.virtual += (now - self.now) * self.factor
            self.spans.append(
                (self.now, now, len(self.streams), self.factor, self.write, self.requests,
                 *self.spec.at(self.now))
            )  # fmt: skip
        self.now = now

    def share(self) -> None:
        """How much of full speed each has now: all in the same proportion."""
        requests, write, read = self.spec.at(self.now)
        factor = ONE
        for limit, asked in (
            (self.spec.ingress, self.write + write),
            (self.spec.requests, self.requests + requests),
            (self.spec.total, self.write + write + read),
        ):
            if asked and limit:
                factor = min(factor, (limit << 20) // asked)
        self.factor = max(1, factor)

    def add(self, job: int, work: int, rate: int, requests: int) -> None:
        """A stream that takes `work` ns at full speed, with its demand a second."""
        end = ceil_div(self.virtual, ONE) + work
        heapq.heappush(self.streams, (end, job, rate, requests))
        self.write += rate
        self.requests += requests

    def remove(self, job: int) -> None:
        """A cancelled restore's streams."""
        gone = [each for each in self.streams if each[1] == job]
        self.streams = [each for each in self.streams if each[1] != job]
        heapq.heapify(self.streams)
        self.write -= sum(each[2] for each in gone)
        self.requests -= sum(each[3] for each in gone)

    def over(self) -> list[int]:
        """Jobs of the streams that have ended, one entry a stream."""
        ended = []
        while self.streams and self.streams[0][0] << 20 <= self.virtual:
            _, job, rate, requests = heapq.heappop(self.streams)
            self.write -= rate
            self.requests -= requests
            ended.append(job)
        return ended

    def next_event(self) -> int | None:
        """When a stream ends or the load may change; None where nothing is under way."""
        if not self.streams:
            return None
        end = self.now + ceil_div((self.streams[0][0] << 20) - self.virtual, self.factor)
        return min(end, (self.now // HOUR + 1) * HOUR) if self.varies else end
