"""The fit of a calibration: what a byte and what an extent cost, from measured backups.

The models are sums of what was counted, each with a cost that cannot be negative:

- checksum: ``seconds = start + disk + scanned + drilled``: bytes of the disk (its digests), bytes
  read, and bytes of changed blocks, which are hashed a second time in sub-blocks;
- tracking: ``seconds = start + disk + scanned + extents``: only blocks that the tracker marked are
  read, and each of its extents is a read of its own;
- send: ``seconds = start + sent + extents + padding``: padding is what is sent because a sub-block
  is larger than the write, and its cost is on top of that of any byte that is sent.

Times span three orders of magnitude, so relative residuals count. Cells, not backups, are what is
fitted: each by the medians of its rounds. Residuals far out weigh less (Huber's weights, 1964);
costs are the least squares among all that are not negative, found by trying every set of terms.
Intervals are percentiles over cells drawn again with replacement (Efron's bootstrap, 1979).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vmbk.errors import InputError
from vmbk.service.calibration import Calibration, Cost, Estimate, Fit, Made

Floats = NDArray[np.float64]

DRAWS: Final = 1000
"""Bootstrap samples; the ends of an interval are the 25th and the 975th of them."""

HUBER: Final = 1.345
"""Standard deviations within which a residual has full weight; 95 % efficient if all is normal."""

_ROUNDS: Final = 6  # of reweighting; the weights have settled by then

_CELL: Final = ("machine", "detector", "spread", "written_bytes", "write_size", "run_bytes")

_COUNTS: Final = ("disk_bytes", "scanned_bytes", "reported_bytes", "tracked_extents", "sent_bytes",
                  "extents")  # fmt: skip

_SECONDS: Final = ("detect_seconds", "transfer_seconds")

_NEEDED: Final = (*_CELL, *_COUNTS, *_SECONDS, "disks", "kind", "seed", "others", "version",
                  "commit", "provenance")  # fmt: skip


@dataclass(frozen=True)
class _Model:
    name: str
    seconds: str
    detector: str  # "" for both
    terms: tuple[tuple[str, str, str], ...]  # name, unit, column

    def columns(self, cells: pl.DataFrame) -> Floats:
        ones = pl.lit(1.0).alias("start")
        return (
            cells.select(ones, *(pl.col(c).cast(pl.Float64) for _, _, c in self.terms[1:]))
            .to_numpy()
            .astype(np.float64)
        )


_START: Final = ("start", "s", "")

MODELS: Final = (
    _Model("checksum", "detect_seconds", "checksum", (
        _START, ("disk", "s/byte", "disk_bytes"), ("scanned", "s/byte", "scanned_bytes"),
        ("drilled", "s/byte", "reported_bytes"),
    )),
    _Model("tracking", "detect_seconds", "tracking", (
        _START, ("disk", "s/byte", "disk_bytes"), ("scanned", "s/byte", "scanned_bytes"),
        ("extents", "s/extent", "tracked_extents"),
    )),
    _Model("send", "transfer_seconds", "", (
        _START, ("sent", "s/byte", "sent_bytes"), ("extents", "s/extent", "extents"),
        ("padding", "s/byte", "padding_bytes"),
    )),
)  # fmt: skip


@dataclass(frozen=True)
class _Fitted:
    """Costs of one model, shape (terms,), and of its bootstrap samples, shape (draws, terms)."""

    model: _Model
    costs: Floats
    drawn: Floats
    residuals: Floats

    def of(self, term: str) -> tuple[float, Floats]:
        at = [name for name, _, _ in self.model.terms].index(term)
        return float(self.costs[at]), self.drawn[:, at]

    def public(self) -> Fit:
        costs = tuple(
            Cost(name, unit, estimate(float(self.costs[i]), self.drawn[:, i]))
            for i, (name, unit, _) in enumerate(self.model.terms)
        )
        return Fit(
            self.model.name, costs, len(self.residuals),
            _short(float(np.median(np.abs(self.residuals)))),
        )  # fmt: skip


def fit_calibration(frame: pl.DataFrame, *, seed: int = 0, draws: int = DRAWS) -> Calibration:
    """Fit the costs to a table of measurements.

    Parameters
    ----------
    frame : polars.DataFrame
        As `vmbk.study.calibration.measure` makes it. Machines of one disk are fitted: where disks
        run beside each other, a stage's time is not the sum of anything.
    seed : int
        Of the bootstrap.
    draws : int
        Samples, at least 1.

    Returns
    -------
    Calibration

    Raises
    ------
    InputError
        If a column is missing, or there are too few cells to tell the terms apart.
    """
    cells = cells_of(frame)
    random = np.random.default_rng(seed)
    fitted = {}
    for model in MODELS:
        mine = cells.filter(detector=model.detector) if model.detector else cells
        fitted[model.name] = _fit(model, mine, random, draws)
    byte, byte_drawn = fitted["send"].of("sent")
    if byte <= 0:
        raise InputError(
            "the measurements say that a byte costs no time to send: nothing can be told in bytes",
            hint="measure changes of more bytes",
        )

    def in_bytes(model: str, term: str) -> Estimate:
        value, drawn = fitted[model].of(term)
        # A sample in which a byte is free says nothing of how many bytes something costs.
        return estimate(value / byte, drawn[byte_drawn > 0] / byte_drawn[byte_drawn > 0])

    first = frame.row(0, named=True)
    machine = _machine(str(first["provenance"]))
    return Calibration(
        extent=in_bytes("send", "extents"),
        tracked_extent=in_bytes("tracking", "extents"),
        padding=in_bytes("send", "padding"),
        scanned=in_bytes("checksum", "scanned"),
        fits=tuple(fitted[model.name].public() for model in MODELS),
        made=Made(
            table=digest(frame), version=str(first["version"]), commit=str(first["commit"]),
            cpu=str(machine.get("cpu", "")), cores=int(machine.get("cores", 0)),
            backups=len(frame), seed=int(first["seed"]), draws=draws,
            others=_short(float(frame["others"].fill_null(0).to_numpy().mean())),
        ),
    )  # fmt: skip


def cells_of(frame: pl.DataFrame) -> pl.DataFrame:
    """Cells of machines with one disk: medians over the rounds, and ``padding_bytes``.

    Returns
    -------
    polars.DataFrame
        In an order of their own, so that a fit does not depend on that of the measurements.

    Raises
    ------
    InputError
        If this is no table of measurements.
    """
    if not isinstance(frame, pl.DataFrame):
        raise InputError("measurements are a polars.DataFrame")
    missing = [name for name in _NEEDED if name not in frame.columns]
    if missing:
        raise InputError(f"these are no measurements: they lack {', '.join(missing)}")
    return (
        frame.filter(pl.col("disks") == 1, pl.col("kind") != "first")
        .group_by(_CELL)
        .agg(*(pl.col(name).median() for name in (*_COUNTS, *_SECONDS)))
        .with_columns(padding_bytes=(pl.col("sent_bytes") - pl.col("written_bytes")).clip(0))
        .sort(_CELL)
    )


def predicted(fit: Fit, cells: pl.DataFrame) -> Floats:
    """Seconds that a fit gives cells, shape (cells,)."""
    model = next(model for model in MODELS if model.name == fit.name)
    costs = np.array([cost.estimate.value for cost in fit.costs])
    return np.asarray(model.columns(cells) @ costs, np.float64)


def _fit(model: _Model, cells: pl.DataFrame, random: np.random.Generator, draws: int) -> _Fitted:
    count = len(cells)
    if count < 2 * len(model.terms):
        raise InputError(
            f"{count} cells are too few to fit the {len(model.terms)} terms of {model.name}",
            hint=f"at least {2 * len(model.terms)}",
        )
    seconds = cells[model.seconds].to_numpy().astype(np.float64)
    if not (np.isfinite(seconds) & (seconds > 0)).all():
        raise InputError(f"a measured {model.seconds} is not above 0")
    columns = model.columns(cells) / seconds[:, None]
    if draws < 1:
        raise InputError(f"{draws} bootstrap samples; at least 1 is possible")
    # What each cell counts: once in the fit itself, in a sample as often as it was drawn.
    times = np.ones((1 + draws, count))
    times[1:] = random.multinomial(count, np.full(count, 1 / count), draws)
    costs = robust(columns, np.ones(count), times)
    return _Fitted(model, costs[0], costs[1:], columns @ costs[0] - 1)


def robust(columns: Floats, wanted: Floats, times: Floats) -> Floats:
    """Costs that are not negative, by least squares with Huber's weights, for many samples at once.

    Parameters
    ----------
    columns : ndarray of float64, shape (cells, terms)
    wanted : ndarray of float64, shape (cells,)
    times : ndarray of float64, shape (samples, cells)
        How often each cell counts in each sample.

    Returns
    -------
    ndarray of float64, shape (samples, terms)
    """
    scale = np.sqrt((columns**2).sum(axis=0))
    scale[scale == 0] = 1
    unit = columns / scale
    weights = times
    costs = non_negative(unit, wanted, weights)
    for _ in range(_ROUNDS):
        residuals = np.abs(costs @ unit.T - wanted)
        spread = 1.4826 * np.median(residuals, axis=1, keepdims=True)
        weights = times * np.minimum(1, HUBER * spread / np.maximum(residuals, 1e-300))
        # A sample that is met exactly has no spread, and needs no weights.
        weights = np.where(spread > 1e-12, weights, times)
        costs = non_negative(unit, wanted, weights)
    return np.asarray(costs / scale, np.float64)


def non_negative(columns: Floats, wanted: Floats, weights: Floats) -> Floats:
    """Least squares among costs that are not negative, exactly, for many weightings at once.

    Every set of terms is tried; the least residual among the solutions without a negative cost is
    the answer (Lawson and Hanson, "Solving Least Squares Problems", 1974, chapter 23).

    Parameters
    ----------
    columns : ndarray of float64, shape (cells, terms)
        Few terms: there are ``2**terms`` sets.
    wanted : ndarray of float64, shape (cells,)
    weights : ndarray of float64, shape (samples, cells)

    Returns
    -------
    ndarray of float64, shape (samples, terms)
    """
    terms = columns.shape[1]
    weighted = weights[:, :, None] * columns
    normal = np.einsum("sci,cj->sij", weighted, columns)
    right = np.einsum("sci,c->si", weighted, wanted)
    best = np.zeros((len(weights), terms))
    least = np.zeros(len(weights))
    eye = np.eye(terms)
    for chosen in product((0.0, 1.0), repeat=terms):
        mask = np.array(chosen)
        if not mask.any():
            continue
        # Terms that are left out have an equation of their own, with the solution 0; the last
        # summand keeps a set solvable whose terms a sample cannot tell apart.
        system = normal * mask[:, None] * mask + eye * (1 - mask) + 1e-12 * eye
        found = np.linalg.solve(system, (right * mask)[:, :, None])[:, :, 0]
        residual = np.einsum("si,sij,sj->s", found, normal, found) - 2 * (found * right).sum(1)
        better = (found >= 0).all(axis=1) & (residual < least)
        best[better], least[better] = found[better], residual[better]
    return best


def estimate(value: float, drawn: Sequence[float] | Floats) -> Estimate:
    """A value with the 2.5th and 97.5th percentile of its bootstrap samples, in four digits."""
    low, high = (
        np.quantile(np.asarray(drawn), [0.025, 0.975]).tolist() if len(drawn) else (value, value)
    )
    return Estimate(_short(value), _short(min(low, value)), _short(max(high, value)))


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def digest(frame: pl.DataFrame) -> str:
    """SHA-256 of a table's content, in 32 hexadecimal digits, whatever file it is in."""
    told = hashlib.sha256(json.dumps(frame.columns).encode())
    for row in frame.iter_rows():
        told.update(json.dumps(row).encode())
    return told.hexdigest()[:32]


def to_toml(found: Calibration) -> str:
    """A calibration as the file that `Calibration.load` reads."""
    return "\n".join(_lines(found)) + "\n"


def _lines(found: Calibration) -> Iterator[str]:
    yield "# What dispersed and small writes cost: measured on vmbk's own pipeline, in bytes."
    yield "# Written by `python -m vmbk.study.calibration`; change the measurements, not this file."
    yield ""
    yield "# How many bytes could be sent in the time of one more extent, tracked extent, byte of"
    yield "# padding (beyond the byte itself), byte that is only read. Source: the fits below."
    yield "[equivalent]"
    for key in ("extent", "tracked_extent", "padding", "scanned"):
        yield f"{key} = {_inline(getattr(found, key))}"
    for fit in found.fits:
        yield ""
        yield f"[fits.{fit.name}]"
        yield f"cells = {fit.cells}"
        yield f"residual = {fit.residual!r}"
        yield "costs = ["
        for cost in fit.costs:
            name, unit, rest = json.dumps(cost.name), json.dumps(cost.unit), _inline(cost.estimate)
            yield f"    {{ name = {name}, unit = {unit}, {rest[2:]},"
        yield "]"
    yield ""
    yield "[made]"
    for key in Made.__dataclass_fields__:
        value = getattr(found.made, key)
        if value != "":
            yield f"{key} = {json.dumps(value)}"


def _inline(found: Estimate) -> str:
    return f"{{ value = {found.value!r}, low = {found.low!r}, high = {found.high!r} }}"


def _machine(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise InputError(f"the measurements' provenance is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise InputError("the measurements' provenance is no table")
    return found
