"""What dispersion and small writes cost, measured on vmbk's own pipeline.

The documents say that throughput drops significantly where changes are dispersed over the disk, and
that writes below 8 KiB hurt, and give no numbers (seed S1, table of throughput and "Why am I
observing longer"). `vmbk.study.calibration` measures both here, and `vmbk.service.fit` fits them.
What is carried over to the service has no unit of time: how many bytes more could have been sent in
the time that one more extent takes. At the published best rate, that is the service's penalty.

Measured where both disk and vault are local, these are costs of processing. A service that reads a
remote disk also waits for a round trip each; no document says how long. That is `request_latency`,
always apart, 0 unless it is given, and inferred wherever it is not.

The numbers are in ``calibration.toml``, which ``python -m vmbk.study.calibration`` writes.
"""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Final, Self

from vmbk.display import table
from vmbk.errors import InputError
from vmbk.service.fields import Fields, read_declaration
from vmbk.units import KIB, format_size, quoted

CALIBRATION: Final = Path(__file__).with_name("calibration.toml")
"""The fit that comes with vmbk."""

GRAIN: Final = 4 * KIB
"""Bytes of the sub-blocks with which was measured: less than one is never sent."""

RECOMMENDED: Final = 8 * KIB
"""Bytes of the least write that is recommended (seed S1, "Why am I observing longer")."""

FITS: Final = ("checksum", "tracking", "send")
"""What is fitted: finding changes by either detector, and sending them."""

_MOST: Final = 1e18


@dataclass(frozen=True)
class Estimate:
    """A value with its interval at 95 %."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g})"

    @classmethod
    def parse(cls, table: Any, name: str) -> Self:
        """From a declaration."""
        fields = Fields(table, name, ("value", "low", "high"))
        found = cls(*(fields.number(key, 0, _MOST) for key in ("value", "low", "high")))
        if not found.low <= found.value <= found.high:
            raise fields.fail("value", f"is not from {found.low:g} to {found.high:g}")
        return found


@dataclass(frozen=True)
class Cost:
    """A term of a fit: seconds for one byte or extent."""

    name: str
    unit: str
    estimate: Estimate

    @classmethod
    def parse(cls, table: Any, name: str) -> Self:
        """From a declaration."""
        fields = Fields(table, name, ("name", "unit", "value", "low", "high"))
        interval = {key: fields.get(key) for key in ("value", "low", "high")}
        return cls(
            fields.text("name"), fields.choice("unit", ("s", "s/byte", "s/extent")),
            Estimate.parse(interval, name),
        )  # fmt: skip


@dataclass(frozen=True)
class Fit:
    """How the time of a stage is made up.

    Attributes
    ----------
    name : {"checksum", "tracking", "send"}
    costs : tuple of Cost
        What it is the sum of; see `vmbk.service.fit`.
    cells : int
        Changes to which it was fitted.
    residual : float
        Median of the relative residuals' sizes: half of the cells are met more closely.
    """

    name: str
    costs: tuple[Cost, ...]
    cells: int
    residual: float

    def cost(self, name: str) -> Estimate:
        """A term's cost.

        Raises
        ------
        InputError
            If the fit has no such term.
        """
        for cost in self.costs:
            if cost.name == name:
                return cost.estimate
        raise InputError(
            f"the fit of {self.name} has no term {quoted(name)}",
            hint=f"terms: {', '.join(cost.name for cost in self.costs)}",
        )

    @classmethod
    def parse(cls, table: Any, name: str) -> Self:
        """From a declaration; the last part of its name is the fit's."""
        fields = Fields(table, name, ("cells", "residual", "costs"))
        costs = tuple(
            Cost.parse(each, f"{fields.where('costs')}[{i}]")
            for i, each in enumerate(fields.tables("costs", 16))
        )
        if not costs:
            raise fields.fail("costs", "holds no cost")
        return cls(
            name.rpartition(".")[2], costs, fields.whole("cells", 1, 1 << 40),
            fields.number("residual", 0, 1e9),
        )  # fmt: skip


@dataclass(frozen=True)
class Made:
    """With what a calibration was made.

    Attributes
    ----------
    table : str
        SHA-256 of the measurements, 32 digits; see `vmbk.service.fit.digest`.
    version, commit, cpu : str
        What measured.
    cores : int
    backups : int
        Measurements, first backups included.
    seed, draws : int
        Of the measurements; and samples of the bootstrap.
    others : float
        Share of the processors that other processes used meanwhile; 0 where unknown.
    """

    table: str
    version: str
    commit: str
    cpu: str
    cores: int
    backups: int
    seed: int
    draws: int
    others: float = 0.0

    @classmethod
    def parse(cls, table: Any, name: str) -> Self:
        """From a declaration."""
        fields = Fields(table, name, tuple(cls.__dataclass_fields__))
        most = 1 << 62
        return cls(
            table=fields.text("table"), version=fields.text("version", ""),
            commit=fields.text("commit", ""), cpu=fields.text("cpu", ""),
            cores=fields.whole("cores", 0, most), backups=fields.whole("backups", 0, most),
            seed=fields.whole("seed", 0, most), draws=fields.whole("draws", 0, most),
            others=fields.number("others", 0, 1, 0.0),
        )  # fmt: skip


@dataclass(frozen=True)
class Calibration:
    """Penalties of dispersed and small writes, in bytes.

    Attributes
    ----------
    extent : Estimate
        Bytes that could be sent in the time that one more extent takes to send.
    tracked_extent : Estimate
        The same of an extent that change tracking looks at.
    padding : Estimate
        What a byte costs that is sent only because a sub-block is larger than the write, on top of
        what any byte costs.
    scanned : Estimate
        What a byte costs that is only read and hashed; one that is sent is 1.
    fits : tuple of Fit
        Where these come from, in seconds of the machine that measured.
    made : Made
    """

    extent: Estimate
    tracked_extent: Estimate
    padding: Estimate
    scanned: Estimate
    fits: tuple[Fit, ...]
    made: Made

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None) -> Self:
        """Read a calibration; the one that comes with vmbk where no path is given.

        Raises
        ------
        NotFoundError
            If there is no such file.
        InputError
            If it is no calibration; the field is named.
        """
        return cls.parse(read_declaration(CALIBRATION if path is None else path, "calibration"), "")

    @classmethod
    def parse(cls, table: Any, name: str) -> Self:
        """From a declaration."""
        fields = Fields(table, name, ("equivalent", "fits", "made"))
        keys = ("extent", "tracked_extent", "padding", "scanned")
        where = fields.where("equivalent")
        equivalent = Fields(fields.get("equivalent"), where, keys)
        fits = Fields(fields.get("fits"), fields.where("fits"), FITS)
        return cls(
            **{key: Estimate.parse(equivalent.get(key), equivalent.where(key)) for key in keys},
            fits=tuple(Fit.parse(fits.get(key), fits.where(key)) for key in FITS),
            made=Made.parse(fields.get("made"), fields.where("made")),
        )

    def __repr__(self) -> str:
        return f"<Calibration: one more extent costs {_told(self.extent)}>"

    @property
    def extent_bytes_equivalent(self) -> float:
        """Bytes that could be sent in the time of one more extent."""
        return self.extent.value

    @property
    def tracked_extent_bytes_equivalent(self) -> float:
        """Bytes that could be sent in the time in which tracking looks at one more extent."""
        return self.tracked_extent.value

    def fit(self, name: str) -> Fit:
        """One of the fits, by its name.

        Raises
        ------
        InputError
            If there is none.
        """
        for fit in self.fits:
            if fit.name == name:
                return fit
        raise InputError(f"there is no fit {quoted(name)}", hint=f"fits: {', '.join(FITS)}")

    def ends(self) -> tuple[Calibration, Calibration]:
        """This with every penalty at the low end, and at the high end of its interval."""
        return self._at("low"), self._at("high")

    def _at(self, end: str) -> Calibration:
        def only(found: Estimate) -> Estimate:
            value = getattr(found, end)
            return Estimate(value, value, value)

        return replace(
            self, extent=only(self.extent), tracked_extent=only(self.tracked_extent),
            padding=only(self.padding), scanned=only(self.scanned),
        )  # fmt: skip

    def sent_bytes(self, extent: float, write_size: float) -> float:
        """Bytes sent, on average, for an extent of so many written bytes.

        Writes are on multiples of their size, and whole sub-blocks of 4 KiB are sent. An extent of
        smaller writes begins and ends within one: that much more is sent.
        """
        _positive(extent, "an extent")
        _positive(write_size, "a write")
        return extent + max(0.0, GRAIN - min(write_size, extent))

    def extent_cost(self, rate: float, write_size: float = RECOMMENDED) -> int:
        """Nanoseconds that one more extent takes, beside those of its bytes at this rate.

        Parameters
        ----------
        rate : float
            The best rate, bytes a second.
        write_size : float
            Bytes of the application's writes.

        Returns
        -------
        int
        """
        _positive(rate, "a rate")
        padding = max(0.0, GRAIN - _positive(write_size, "a write"))
        return math.ceil((self.extent.value + padding * (1 + self.padding.value)) * 1e9 / rate)

    def tracked_cost(self, rate: float) -> int:
        """Nanoseconds in which tracking looks at one more extent, where this is the best rate."""
        return math.ceil(self.tracked_extent.value * 1e9 / _positive(rate, "a rate"))

    def effective_rate(
        self,
        best_rate: float,
        mean_extent_bytes: float,
        write_size: float = RECOMMENDED,
        *,
        request_latency: float = 0.0,
    ) -> float:
        """Changed bytes that are sent in a second.

        Parameters
        ----------
        best_rate : float
            Bytes a second, where all is one extent; published: 20 MB/s and 80 MB/s.
        mean_extent_bytes : float
            Changed bytes over extents.
        write_size : float
            Bytes of the application's writes; those of an extent are no larger than it.
        request_latency : float
            Seconds of waiting for each extent, one after the other. Inferred: no document has it.

        Returns
        -------
        float

        Raises
        ------
        InputError
            If something is not above 0, or the latency is negative.
        """
        _positive(best_rate, "a rate")
        if not (math.isfinite(request_latency) and request_latency >= 0):
            raise InputError(f"a request latency of {request_latency} s: at least 0 is possible")
        sent = self.sent_bytes(mean_extent_bytes, write_size)
        cost = sent + (sent - mean_extent_bytes) * self.padding.value + self.extent.value
        return mean_extent_bytes / (cost / best_rate + request_latency)

    def small_write_factor(self, write_size: float) -> float:
        """How many times as long the same changed bytes take as in writes of 8 KiB.

        Each write is an extent of its own, as where they are dispersed; 1 from 8 KiB on. Writes
        that lie side by side cost what one large one does, whatever their size.
        """
        _positive(write_size, "a write")
        size = min(write_size, RECOMMENDED)
        return self.effective_rate(1, RECOMMENDED, RECOMMENDED) / self.effective_rate(1, size, size)

    def small_write_interval(self, write_size: float) -> Estimate:
        """`small_write_factor` with its interval."""
        low, high = (end.small_write_factor(write_size) for end in self.ends())
        value = self.small_write_factor(write_size)
        return Estimate(value, min(low, value), max(high, value))

    def summary(self) -> dict[str, str]:
        """What it says, for people."""
        return {
            "one more extent": _told(self.extent),
            "one more tracked extent": _told(self.tracked_extent),
            "a byte of padding, beyond the byte": f"{self.padding} bytes",
            "a byte that is only read": f"{self.scanned} bytes",
            **{
                f"writes of {format_size(size)}": f"{self.small_write_interval(size)} times 8 KiB's"
                for size in (512, KIB, 2 * KIB, 4 * KIB)
            },
            **{
                f"fit of {fit.name}": f"{fit.cells} cells, median residual {fit.residual:.1%}"
                for fit in self.fits
            },
        }  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def _repr_html_(self) -> str:
        rows = [*self.summary().items()]
        rows += [
            (f"{fit.name}: {cost.name}", f"{cost.estimate} {cost.unit}")
            for fit in self.fits
            for cost in fit.costs
        ]
        made = self.made
        rows.append(("measured by", f"vmbk {made.version} on {made.cores} × {made.cpu}"))
        return table("Calibration: penalties in bytes, intervals at 95 %", ("what", "costs"), rows)


@cache
def calibration() -> Calibration:
    """The calibration that comes with vmbk, read once."""
    return Calibration.load()


def _told(found: Estimate) -> str:
    return f"{format_size(found.value)} ({format_size(found.low)} to {format_size(found.high)})"


def _positive(value: float, what: str) -> float:
    if not (isinstance(value, int | float) and 0 < value < _MOST):
        raise InputError(f"{what} of {quoted(value)}: a number above 0 is needed")
    return float(value)
