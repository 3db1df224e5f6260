"""A study as it is declared: a grid of experiments in TOML."""

from __future__ import annotations

import hashlib
import json
import os
import tomllib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any, Final

from vmbk.detect.changes import DETECTORS, Settings
from vmbk.errors import InputError, NotFoundError
from vmbk.units import MIB, format_size, parse_duration, parse_size, quoted

MOST_BYTES: Final = MIB
"""Of a declaration; nobody writes a longer one."""

MOST_CELLS: Final = 10_000
"""Experiments of a grid: each makes a disk, a vault and real restores."""


@dataclass(frozen=True)
class Interval:
    """Time between two backups: a share of the capture's requests, or a time.

    Attributes
    ----------
    share : float
        Of all requests, between 0 and 1; 0 where a time is given.
    ns : int
        Nanoseconds of trace time; 0 where a share is given.
    """

    share: float = 0.0
    ns: int = 0

    @classmethod
    def parse(cls, text: Any, field: str) -> Interval:
        """Read ``"25%"`` or ``"2s"``."""
        if isinstance(text, str) and text.strip().endswith("%"):
            try:
                share = float(text.strip()[:-1]) / 100
            except ValueError:
                share = 0.0
            if not 0.001 <= share <= 1:
                raise InputError(f"{field}: {quoted(text)} is not a share from 0.1% to 100%")
            return cls(share=share)
        if not isinstance(text, (str, int, float)) or isinstance(text, bool):
            raise InputError(
                f"{field}: {quoted(text)} is no interval", hint='write it as "25%" or "2s"'
            )
        try:
            ns = parse_duration(text)
        except InputError as error:
            raise InputError(f"{field}: {error.message}", hint=error.hint) from None
        if ns <= 0:
            raise InputError(
                f"{field}: an interval must be longer than nothing, not {quoted(text)}"
            )
        return cls(ns=ns)

    def __str__(self) -> str:
        if self.share:
            return f"{self.share * 100:.12g}%"
        whole, rest = divmod(self.ns, 10**9)  # exact: two intervals must not look the same
        return f"{whole}.{rest:09d}".rstrip("0").rstrip(".") + "s"


@dataclass(frozen=True)
class Cell:
    """One experiment of the grid."""

    dataset: str
    detector: str
    settings: Settings
    interval: Interval

    def __str__(self) -> str:
        sub = self.settings.sub_block_size
        grain = format_size(self.settings.block_size) + (f"/{format_size(sub)}" if sub else "")
        return f"{self.dataset} {self.detector} {grain} every {self.interval}"


def _check_distinct(field: str, values: Iterable[object]) -> None:
    """The same value twice would be counted twice in every total."""
    seen: set[str] = set()
    for value in values:
        shown = str(value)
        if shown in seen:
            if field.endswith("_size"):
                shown = format_size(int(shown)) if int(shown) else "off"
            raise InputError(f"{field}: {quoted(shown)} is there twice", hint="once will do")
        seen.add(shown)


@dataclass(frozen=True)
class Consistency:
    """Which captures are cut, how and how often."""

    datasets: tuple[str, ...] = ()
    model: str = "flush"
    states: int = 12

    def __post_init__(self) -> None:
        _check_distinct("consistency.datasets", self.datasets)


@dataclass(frozen=True)
class StudyConfig:
    """A declared study.

    Attributes
    ----------
    datasets, detectors : tuple of str
        Axes of the grid. A data set is a shipped one's name or a trace file.
    block_size, sub_block_size : tuple of int
        Bytes; a sub-block of 0 turns drill-down off.
    interval : tuple of Interval
        Between backups.
    seed : int
        Of everything that is drawn at random.
    consistency : Consistency
        The crash states.
    """

    datasets: tuple[str, ...]
    detectors: tuple[str, ...]
    block_size: tuple[int, ...]
    sub_block_size: tuple[int, ...]
    interval: tuple[Interval, ...]
    seed: int = 0
    consistency: Consistency = Consistency()

    def __post_init__(self) -> None:
        cells = 1
        for axis in ("datasets", "detectors", "block_size", "sub_block_size", "interval"):
            values = getattr(self, axis)
            _check_distinct(f"grid.{axis}", values)
            cells *= len(values)
        if cells > MOST_CELLS:
            raise InputError(
                f"the grid has {cells:,} experiments, and {MOST_CELLS:,} are the most",
                hint="shorten a list of [grid], or split the study",
            )

    @property
    def digest(self) -> str:
        """Digest of the declaration, as results record it."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def cells(self) -> tuple[Cell, ...]:
        """Every experiment of the grid; those on the same data set stand together."""
        return tuple(
            Cell(dataset, detector, Settings(block, sub), interval)
            for dataset, interval, block, sub, detector in product(
                self.datasets, self.interval, self.block_size, self.sub_block_size, self.detectors
            )
        )


def read_config(path: str | os.PathLike[str] | None = None) -> StudyConfig:
    """Read a study's declaration; the default study without a path.

    Raises
    ------
    NotFoundError
        If the file is not there.
    InputError
        If a field is unknown, missing or wrong; the message names it.
    """
    name = "the default study" if path is None else f"the study {quoted(os.fspath(path))}"
    try:
        data = tomllib.loads(_default() if path is None else _read(Path(path), name))
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError
        raise InputError(f"{name} is not TOML: {error}") from error
    return _parse(data)


def _default() -> str:
    return resources.files("vmbk.study").joinpath("default.toml").read_text(encoding="utf-8")


def _read(path: Path, name: str) -> str:
    """The text of a declaration; a device or a pipe would never end."""
    try:
        if not path.exists():
            raise NotFoundError(f"there is no file for {name}")
        if not path.is_file():
            raise InputError(f"{name} is not a regular file")
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise InputError(f"{name} is longer than {format_size(MOST_BYTES)}")
        return content.decode()
    except OSError as error:
        raise InputError(f"cannot read {name}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read {name}: {error}") from error


def _parse(data: dict[str, Any]) -> StudyConfig:
    _known(data, {"seed", "grid", "consistency"}, "the study")
    grid, crash = data.get("grid", {}), data.get("consistency", {})
    if not isinstance(grid, dict) or not isinstance(crash, dict):
        raise InputError("grid and consistency must be tables: [grid], [consistency]")
    axes = {"datasets", "detectors", "block_size", "sub_block_size", "interval"}
    _known(grid, axes, "grid")
    _known(crash, {"datasets", "model", "states"}, "consistency")
    detectors = _texts(grid, "grid.detectors", list(DETECTORS))
    for detector in detectors:
        if detector not in (*DETECTORS, "auto"):
            raise InputError(
                f"grid.detectors: {quoted(detector)} is no detector",
                hint=f"choose from auto, {', '.join(DETECTORS)}",
            )
    model = crash.get("model", "flush")
    if model not in ("flush", "request"):
        raise InputError(f"consistency.model: {quoted(model)} is neither flush nor request")
    config = StudyConfig(
        datasets=_texts(grid, "grid.datasets"),
        detectors=detectors,
        block_size=_sizes(grid, "grid.block_size", ["64KiB"]),
        sub_block_size=_sizes(grid, "grid.sub_block_size", ["4KiB"]),
        interval=tuple(
            Interval.parse(v, "grid.interval") for v in _list(grid, "grid.interval", ["25%"])
        ),
        seed=_whole(data, "seed", 0, 0, (1 << 63) - 1),
        consistency=Consistency(
            datasets=_texts(crash, "consistency.datasets", []),
            model=model,
            states=_whole(crash, "consistency.states", 12, 1, 100_000),
        ),
    )
    config.cells()  # so that a block size that no detector takes fails now, not in mid-run
    return config


def _known(table: dict[str, Any], names: set[str], where: str) -> None:
    unknown = sorted(set(table) - names)
    if unknown:
        raise InputError(
            f"{where} has no field {quoted(unknown[0])}", hint=f"fields: {', '.join(sorted(names))}"
        )


def _list(table: dict[str, Any], field: str, default: list[Any] | None = None) -> list[Any]:
    value = table.get(field.rsplit(".", 1)[-1], default)
    if value is None:
        raise InputError(f"{field} is missing", hint=f"{field.rsplit('.', 1)[-1]} = [...]")
    if not isinstance(value, list) or (not value and default != []):
        raise InputError(f"{field} must be a list of at least one value, not {quoted(value)}")
    return value


def _texts(table: dict[str, Any], field: str, default: list[str] | None = None) -> tuple[str, ...]:
    values = _list(table, field, default)
    for value in values:
        if not isinstance(value, str):
            raise InputError(f"{field} must hold texts, not {quoted(value)}")
    return tuple(values)


def _sizes(table: dict[str, Any], field: str, default: list[str]) -> tuple[int, ...]:
    values = []
    for value in _list(table, field, default):
        if not isinstance(value, (str, int)) or isinstance(value, bool):
            raise InputError(f"{field} must hold sizes, not {quoted(value)}")
        try:
            values.append(0 if value == "off" else parse_size(value))
        except InputError as error:
            raise InputError(f"{field}: {error.message}", hint=error.hint) from None
    return tuple(values)


def _whole(table: dict[str, Any], field: str, default: int, low: int, high: int) -> int:
    value = table.get(field.rsplit(".", 1)[-1], default)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InputError(
            f"{field} must be a whole number from {low} to {high}, not {quoted(value)}"
        )
    return value
