"""What a synthetic trace is declared to be: frozen settings, each with its bounds.

Every quantity here can be measured on the trace that is made of it. `vmbk.trace.synthesis.declare`
reads and writes them as TOML.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Final

from vmbk.errors import InputError
from vmbk.trace.schema import canonical_json, is_sector_size
from vmbk.units import KIB, MIB, format_size, quoted

ARRIVALS: Final = ("constant", "poisson", "bursty")
MOST_REQUESTS: Final = 4_000_000_000
"""Of one trace: 120 GB of columns."""
MOST_VOLUMES: Final = 256
MOST_VOLUME_SIZE: Final = 1 << 50
MOST_REQUEST: Final = 1 << 30
"""Bytes of one request."""
MOST_DURATION: Final = 366 * 86_400 * 10**9
MOST_SIZES: Final = 256
MOST_STREAMS: Final = 64
MOST_EXTENTS: Final = 1024
"""Lengths in a list of extents or gaps."""
MOST_WEIGHTS: Final = 10_000
"""Parts of a profile."""
MOST_BURSTS: Final = 1 << 20
MOST_THETA: Final = 4.0
_LEAST_SHARE: Final = 1e-9

Weights = tuple[tuple[int, float], ...]
"""Sizes in bytes with their weights; what counts is each weight over the sum of all."""


def check(good: bool, name: str, value: object, allowed: str) -> None:
    """Refuse a value, quoting it and saying what is allowed.

    Raises
    ------
    InputError
        Unless ``good``.
    """
    if not good:
        raise InputError(f"{name}: {quoted(value)} is not {allowed}")


def _whole(name: str, value: object, low: int, high: int) -> None:
    good = type(value) is int and low <= value <= high
    check(good, name, value, f"a whole number from {low:,} to {high:,}")


def _number(name: str, value: object, low: float, high: float) -> None:
    # NaN is in no range.
    good = type(value) in (int, float) and low <= value <= high  # type: ignore[operator]
    check(good, name, value, f"a number from {low:g} to {high:g}")


def _weights(name: str, values: tuple[float, ...]) -> None:
    for value in values:
        _number(name, value, 0, 1e12)
    # A weight that vanishes beside the others would be lost in rounding, so that what is declared
    # is not what comes out.
    total = sum(values)
    check(total > 0, name, values, "a list of weights of which one is above 0")
    for value in values:
        good = value == 0 or value >= total * _LEAST_SHARE
        check(good, name, value, f"0, or at least {_LEAST_SHARE:g} of the weights' sum")


def _kind(name: str, value: object, kind: type) -> None:
    check(isinstance(value, kind), name, value, f"a {kind.__name__}")


def _as_tuple(settings: object, name: str, allowed: str) -> None:
    """Make a tuple of a list, so that what is frozen stays as it was checked."""
    value = getattr(settings, name)
    check(isinstance(value, list | tuple), name, value, allowed)
    object.__setattr__(settings, name, tuple(value))


def _is_unicode(text: str) -> bool:
    """Whether the text can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _plain(value: Any) -> Any:
    """Plain data in which equal numbers are the same: equal specs have equal digests."""
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


@dataclass(frozen=True)
class Burst:
    """Spells in which requests come faster; the rate in all stays as declared.

    Attributes
    ----------
    factor : float
        Rate within a burst over the mean rate, 1 to 10,000.
    length : int
        ns of a burst.
    share : float
        Share of the time that is within bursts; ``factor * share`` is the share of requests there,
        at most 1. By default half of the requests come in bursts.
    """

    factor: float = 10.0
    length: int = 60 * 10**9
    share: float = 0.0

    def __post_init__(self) -> None:
        _number("burst.factor", self.factor, 1, 10_000)
        _whole("burst.length", self.length, 1000, MOST_DURATION)
        if self.share == 0:
            object.__setattr__(self, "share", 0.5 / self.factor)
        _number("burst.share", self.share, 1e-6, 1)
        inside = self.factor * self.share
        check(inside <= 1, "burst.factor * burst.share", inside, "at most 1, all requests")


@dataclass(frozen=True)
class Mix:
    """How requests choose their place in the working set, as weights.

    Attributes
    ----------
    sequential : float
        Each request begins where the one before it in its stream ended.
    uniform : float
        Everywhere alike. Writes come back to a place only when all others were written: an order
        without pattern in which none is left out. Reads are drawn independently.
    zipf : float
        The place of rank r is chosen in proportion to 1 / r^theta.
    hot_cold : float
        A hot part of the places takes most requests.
    streams : int
        Sequential streams for writes, and as many for reads, at work at the same time.
    stream_space : float
        Share of the working set that the streams go round in, as a journal does in its place.
    run : int
        Bytes that a stream goes before it jumps; 0 stands for its whole part of the working set.
    theta : float
        Exponent of Zipf's law, 0 to 4.
    hot_access, hot_space : float
        Share of the hot_cold requests that go to the hot part, and its share of the places.
    granule : int
        Bytes of one place of zipf and hot_cold: a request lies anywhere within it. Places of
        neighbouring rank are scattered. 0 stands for the largest request.
    """

    sequential: float = 0.2
    uniform: float = 0.2
    zipf: float = 0.6
    hot_cold: float = 0.0
    streams: int = 1
    stream_space: float = 1.0
    run: int = 0
    theta: float = 0.99
    hot_access: float = 0.8
    hot_space: float = 0.2
    granule: int = 0

    def __post_init__(self) -> None:
        _weights("mix", (self.sequential, self.uniform, self.zipf, self.hot_cold))
        _whole("mix.streams", self.streams, 1, MOST_STREAMS)
        _number("mix.stream_space", self.stream_space, 1e-6, 1)
        _whole("mix.run", self.run, 0, MOST_VOLUME_SIZE)
        _number("mix.theta", self.theta, 0, MOST_THETA)
        _number("mix.hot_access", self.hot_access, 0, 1)
        _number("mix.hot_space", self.hot_space, 1e-6, 1)
        _whole("mix.granule", self.granule, 0, MOST_REQUEST)

    def shares(self) -> dict[str, float]:
        """Share of requests of each pattern."""
        names = ("sequential", "uniform", "zipf", "hot_cold")
        total = sum(getattr(self, name) for name in names)
        return {name: getattr(self, name) / total for name in names}


@dataclass(frozen=True)
class Workload:
    """What is done to one volume.

    Attributes
    ----------
    requests : int
        In all: reads, writes, flushes and discards.
    arrival : str
        ``constant``: equal gaps. ``poisson``: independent. ``bursty``: as poisson, with spells of
        a higher rate (`burst`).
    burst : Burst
        Only for ``bursty``.
    diurnal : tuple of float
        24 weights, the rate in each hour of a day; the trace begins at hour 0. Empty: even.
    profile : tuple of float
        Weights of equal parts of the whole duration, on top of `diurnal`. Empty: even.
    read_share : float
        Reads over reads and writes.
    flush_every, discard_every : float
        Writes per flush and per discard; 0 for none.
    fua_share : float
        Share of the writes that are to be durable when they are done (FUA).
    sizes, read_sizes, discard_sizes : tuple of (bytes, weight)
        Lengths of writes, reads and discards; empty for reads and discards: those of writes.
    alignment : int
        Offsets are multiples of it, plus `shift`. A power of two from 512 B to 1 MiB. Where sizes
        are no multiples of it, sequential streams skip what is left.
    shift : int
        Where the grid begins, below `alignment`, in whole sectors.
    working_set : int
        Bytes of the volume that requests may go to. 0: what `rewrite_ratio` asks for. A request
        that would pass the end of its extent is moved back into it, or on to a longer one. So the
        first bytes of extents come less often, and where extents are hardly longer than requests,
        or writes too few, a part of it is never reached.
    rewrite_ratio : float
        Written bytes over unique bytes written, in whole units of `alignment`, from which the
        working set follows; 0 where `working_set` is given. It is found by trials, comes within
        5 %, and is refused where it cannot be reached: the shorter the extents, the more writes
        overlap.
    extents : tuple of int
        How the working set lies in the volume. One number: the mean length of its extents, whose
        lengths and gaps are exponential. Several: their lengths, each as frequent as the others.
        Empty: in one piece.
    gaps : tuple of float
        Weights of the gaps between extents, each as frequent as the others. Empty: exponential.
    mix : Mix
    """

    requests: int
    arrival: str = "poisson"
    burst: Burst = field(default_factory=Burst)
    diurnal: tuple[float, ...] = ()
    profile: tuple[float, ...] = ()
    read_share: float = 0.3
    flush_every: float = 0.0
    discard_every: float = 0.0
    fua_share: float = 0.0
    sizes: Weights = ((4 * KIB, 0.6), (16 * KIB, 0.2), (64 * KIB, 0.2))
    read_sizes: Weights = ()
    discard_sizes: Weights = ()
    alignment: int = 4 * KIB
    shift: int = 0
    working_set: int = 0
    rewrite_ratio: float = 0.0
    extents: tuple[int, ...] = ()
    gaps: tuple[float, ...] = ()
    mix: Mix = field(default_factory=Mix)

    def __post_init__(self) -> None:
        _whole("requests", self.requests, 0, MOST_REQUESTS)
        check(self.arrival in ARRIVALS, "arrival", self.arrival, f"one of {', '.join(ARRIVALS)}")
        _kind("burst", self.burst, Burst)
        _kind("mix", self.mix, Mix)
        for name in ("diurnal", "profile", "gaps"):
            _as_tuple(self, name, "a list of weights")
        check(len(self.diurnal) in (0, 24), "diurnal", self.diurnal, "a list of 24 weights")
        for name in ("diurnal", "profile", "gaps"):
            most = MOST_EXTENTS if name == "gaps" else MOST_WEIGHTS
            values = getattr(self, name)
            check(len(values) <= most, name, values, f"a list of at most {most:,} weights")
            if values:
                _weights(name, values)
        _number("read_share", self.read_share, 0, 1)
        _number("fua_share", self.fua_share, 0, 1)
        for name in ("flush_every", "discard_every"):
            value = getattr(self, name)
            if value != 0:
                _number(name, value, 1e-6, 1e9)
        self._check_space()
        self._check_sizes()

    def _check_space(self) -> None:
        power = type(self.alignment) is int and self.alignment & (self.alignment - 1) == 0
        power &= type(self.alignment) is int and 512 <= self.alignment <= MIB
        check(power, "alignment", self.alignment, "a power of two from 512 B to 1 MiB")
        _whole("shift", self.shift, 0, self.alignment - 1)
        check(self.shift % 512 == 0, "shift", self.shift, "a multiple of 512")
        _whole("working_set", self.working_set, 0, MOST_VOLUME_SIZE)
        if self.rewrite_ratio != 0:
            _number("rewrite_ratio", self.rewrite_ratio, 1, 1e9)
        if bool(self.working_set) == bool(self.rewrite_ratio):
            raise InputError(
                f"working_set {format_size(self.working_set)} and rewrite_ratio "
                f"{self.rewrite_ratio:g} cannot stand together",
                hint="give one of the two; the other follows from it",
            )
        given: Any = self.extents
        if type(given) is int:
            object.__setattr__(self, "extents", (given,))
        _as_tuple(self, "extents", "a length, or a list of lengths")
        few = len(self.extents) <= MOST_EXTENTS
        check(few, "extents", self.extents, f"a list of at most {MOST_EXTENTS:,} lengths")
        for length in self.extents:
            _whole("extents", length, 512, MOST_VOLUME_SIZE)

    def _check_sizes(self) -> None:
        for name in ("sizes", "read_sizes", "discard_sizes"):
            if isinstance(given := getattr(self, name), dict):
                object.__setattr__(self, name, tuple(given.items()))
            _as_tuple(self, name, "a table of sizes and weights")
            table = getattr(self, name)
            pairs = all(isinstance(item, list | tuple) and len(item) == 2 for item in table)
            check(pairs, name, table, "a table of sizes and weights")
            table = tuple((length, weight) for length, weight in table)
            object.__setattr__(self, name, table)
            few = len(table) <= MOST_SIZES and (bool(table) or name != "sizes")
            check(few, name, table, f"a table of 1 to {MOST_SIZES:,} sizes")
            lengths = [length for length, _ in table]
            for length in lengths:
                _whole(name, length, 512, MOST_REQUEST)
                check(length % 512 == 0, name, length, "a multiple of 512 bytes")
            check(len(set(lengths)) == len(lengths), name, lengths, "a table of different sizes")
            if table:
                _weights(name, tuple(weight for _, weight in table))

    @property
    def largest(self) -> int:
        """Bytes of the largest request that can come."""
        tables = [self.sizes, self.read_sizes]
        tables += [self.discard_sizes] if self.discard_every else []
        return max(length for table in tables for length, weight in table if weight)


@dataclass(frozen=True)
class VolumeSpec:
    """One volume of a synthetic trace.

    Attributes
    ----------
    name : str
    size : int
        Bytes, a multiple of 512.
    workload : Workload
    sector_size : int
        Bytes.
    """

    name: str
    size: int
    workload: Workload
    sector_size: int = 512

    def __post_init__(self) -> None:
        named = isinstance(self.name, str) and 0 < len(self.name) <= 200
        check(named, "name", self.name, "a name of 1 to 200 characters")
        check(_is_unicode(self.name), "name", self.name, "valid Unicode")
        _whole("size", self.size, 512, MOST_VOLUME_SIZE)
        check(self.size % 512 == 0, "size", self.size, "a multiple of 512 bytes")
        _kind("workload", self.workload, Workload)
        sector = type(self.sector_size) is int and is_sector_size(self.sector_size)
        check(sector, "sector_size", self.sector_size, "a power of two from 512 to 65536")
        lengths = [length for length, _ in self.workload.sizes + self.workload.read_sizes]
        for value in (self.workload.alignment, self.workload.shift, *lengths):
            whole = value % self.sector_size == 0
            check(whole, "sizes, alignment, shift", value, f"in sectors of {self.sector_size}")
        room = self.workload.working_set <= self.size - self.workload.shift
        if not room:
            raise InputError(
                f"volume {quoted(self.name)}: a working set of "
                f"{format_size(self.workload.working_set)} is larger than the volume of "
                f"{format_size(self.size)}"
            )


@dataclass(frozen=True)
class Content:
    """What is written, in percent of blocks; the rest is random.

    A replay makes up its content by these shares. The names and defaults are those of
    `vmbk.disk.replay.ContentMix`.

    Attributes
    ----------
    zero, compressible, duplicate : int
        Together at most 100.
    identities : bool
        Also fill the ``content`` column: equal for writes of equal content, zeros for zero.
    """

    zero: int = 5
    compressible: int = 50
    duplicate: int = 10
    identities: bool = False

    def __post_init__(self) -> None:
        for name in ("zero", "compressible", "duplicate"):
            _whole(f"content.{name}", getattr(self, name), 0, 100)
        total = self.zero + self.compressible + self.duplicate
        check(total <= 100, "content in all", total, "at most 100 (percent)")
        check(type(self.identities) is bool, "content.identities", self.identities, "true or false")


@dataclass(frozen=True)
class Spec:
    """A synthetic trace, declared.

    Attributes
    ----------
    duration : int
        ns.
    volumes : tuple of VolumeSpec
    seed : int
        0 to 2^63 - 1.
    content : Content
    doc : str
        What it stands for.
    """

    duration: int
    volumes: tuple[VolumeSpec, ...]
    seed: int = 0
    content: Content = field(default_factory=Content)
    doc: str = ""

    def __post_init__(self) -> None:
        _whole("duration", self.duration, 1000, MOST_DURATION)
        _whole("seed", self.seed, 0, (1 << 63) - 1)
        _as_tuple(self, "volumes", "a list of volumes")
        _kind("content", self.content, Content)
        some = 1 <= len(self.volumes) <= MOST_VOLUMES
        check(some, "volumes", len(self.volumes), f"a list of 1 to {MOST_VOLUMES} volumes")
        for volume in self.volumes:
            _kind("volumes", volume, VolumeSpec)
        _whole("requests of all volumes", self.requests, 0, MOST_REQUESTS)
        text = isinstance(self.doc, str) and len(self.doc) <= 10_000 and _is_unicode(self.doc)
        check(text, "doc", self.doc, "a text of at most 10,000 characters")
        for volume in self.volumes:
            dense = volume.workload.requests <= self.duration
            check(dense, "requests", volume.workload.requests, "at most one a nanosecond")
            burst, arrival = volume.workload.burst, volume.workload.arrival
            bursts = self.duration * burst.share / burst.length if arrival == "bursty" else 0
            good = bursts <= MOST_BURSTS
            check(good, "burst.length", burst.length, f"so long that at most {MOST_BURSTS:,} fit")

    @property
    def requests(self) -> int:
        """Requests of all volumes."""
        return sum(volume.workload.requests for volume in self.volumes)

    @property
    def digest(self) -> str:
        """BLAKE3 (hex) of all that is declared."""
        from blake3 import blake3

        return str(blake3(canonical_json(_plain(self)).encode()).hexdigest())

    def with_requests(self, requests: int) -> Spec:
        """The same with another number of requests in all, in the volumes' proportions.

        Raises
        ------
        InputError
            If the number is out of range.
        """
        _whole("requests", requests, 0, MOST_REQUESTS)
        now, given, volumes = 0, 0, []
        for volume in self.volumes:  # each gets what brings the sum so far to its share
            now += volume.workload.requests
            upto = requests * now // max(self.requests, 1)
            volumes.append(
                replace(volume, workload=replace(volume.workload, requests=upto - given))
            )
            given = upto
        return replace(self, volumes=tuple(volumes))

    @classmethod
    def load(cls, name: str | os.PathLike[str]) -> Spec:
        """A shipped spec by name, or one's own by the path of its TOML file.

        Raises
        ------
        NotFoundError
            If there is none.
        InputError
            If it is not what a spec is; the message quotes the value.
        """
        from vmbk.trace.synthesis.declare import load

        return load(name)

    @classmethod
    def from_dict(cls, declared: dict[str, Any]) -> Spec:
        """A spec as TOML gives it; see `vmbk.trace.synthesis.declare`.

        Raises
        ------
        InputError
            If a field is unknown, missing or wrong; the message quotes the value.
        """
        from vmbk.trace.synthesis.declare import from_dict

        return from_dict(declared)

    def to_toml(self) -> str:
        """The spec as TOML, which `load` reads back as the same spec."""
        from vmbk.trace.synthesis.declare import to_toml

        return to_toml(self)
