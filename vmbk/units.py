"""Sizes and durations as people write and read them."""

from __future__ import annotations

import math
import operator
import re
from datetime import timedelta
from fractions import Fraction
from numbers import Real
from typing import Any, Final, SupportsIndex

from vmbk.errors import InputError

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30

_SIZE_UNITS: Final = {
    "": 1,
    "b": 1,
    **{f"{p}ib": 1 << (10 * i) for i, p in enumerate("kmgtpe", start=1)},
    **{p: 1 << (10 * i) for i, p in enumerate("kmgtpe", start=1)},
    **{f"{p}b": 1000**i for i, p in enumerate("kmgtpe", start=1)},
}
_DURATION_UNITS: Final = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "": 10**9,
                          "m": 60 * 10**9, "min": 60 * 10**9, "h": 3600 * 10**9,
                          "d": 86400 * 10**9}  # fmt: skip
# No size and no duration needs more digits, and numbers without end are slow to turn into one.
_NUMBER_UNIT: Final = re.compile(r"\s*(\d{1,30}(?:\.\d{1,30})?)\s*([a-zA-Z]{0,3})\s*", re.ASCII)


def quoted(value: Any, most: int = 60) -> str:
    """A bad value as an error message quotes it: its ``repr``, of a long one the two ends."""
    try:
        text = repr(value)
    except ValueError:  # an int of more digits than Python prints
        return "a number of thousands of digits"
    except RecursionError:
        return "a value nested without end"
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[:half]}…{text[-half:]}"


def parse_size(text: str | SupportsIndex) -> int:
    """Bytes in a size such as ``64KiB``, ``4MiB``, ``1.5GiB`` or ``65536``.

    ``K``, ``KiB`` are 1024 bytes, ``KB`` 1000. The result must be a whole number of bytes below
    2**63. Numbers may be of any type of whole numbers, such as those of NumPy.

    Raises
    ------
    InputError
        If it is no size, is not whole, or does not fit in 63 bits.
    """
    if not isinstance(text, str):
        try:
            value = Fraction(operator.index(text))
        except TypeError:
            raise InputError(
                f"{quoted(text)} is not a size", hint="write it as '64KiB', '4MiB' or 65536"
            ) from None
    else:
        match = _NUMBER_UNIT.fullmatch(text)
        unit = match[2].lower() if match else "?"
        if match is None or unit not in _SIZE_UNITS:
            raise InputError(
                f"{quoted(text)} is not a size", hint="write it as 64KiB, 4MiB or 65536"
            )
        value = Fraction(match[1]) * _SIZE_UNITS[unit]
    if value.denominator != 1 or not 0 <= value < 1 << 63:
        raise InputError(f"{quoted(text)} is not a whole number of bytes between 0 and 2^63")
    return int(value)


def format_size(size: float) -> str:
    """A size for people: ``1536`` is ``1.5 KiB``."""
    value, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if abs(value) < 1024:
            break
        value, unit = value / 1024, larger
    digits = f"{value:.1f}".removesuffix(".0") if unit != "B" else f"{value:.0f}"
    return f"{digits} {unit}"


def parse_duration(text: str | float | timedelta) -> int:
    """Nanoseconds in a duration such as ``90s``, ``15m``, ``1h`` or ``1.5`` (seconds).

    Raises
    ------
    InputError
        If it is no duration or is negative.
    """
    if isinstance(text, str):
        match = _NUMBER_UNIT.fullmatch(text)
        unit = match[2].lower() if match else "?"
        seconds = Fraction(match[1]) if match and unit in _DURATION_UNITS else None
    else:
        unit, seconds = "s", _seconds(text)
    if seconds is None or seconds < 0:
        raise InputError(f"{quoted(text)} is not a duration", hint="write it as 90s, 15m or 1h")
    value = round(seconds * _DURATION_UNITS[unit])
    if value >= 1 << 63:
        raise InputError(f"{quoted(text)} is longer than 292 years")
    return value


def _seconds(value: Any) -> Fraction | None:
    """A number or a `datetime.timedelta` as it is exactly, or None."""
    if isinstance(value, timedelta):
        return Fraction(value // timedelta(microseconds=1), 10**6)
    try:
        return Fraction(operator.index(value))
    except TypeError:
        pass
    if not isinstance(value, Real) or not math.isfinite(value):
        return None
    return Fraction(float(value))


def format_duration(seconds: float) -> str:
    """A duration for people: ``0.0123`` is ``12 ms``, ``5400`` is ``1 h 30 min``."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def format_interval(seconds: float) -> str:
    """An interval as it was chosen: ``3600`` is ``1 h``; one that is not round as any duration."""
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        if seconds >= unit:
            whole = round(seconds / unit, 9)
            return f"{whole:.0f} {name}" if whole.is_integer() else format_duration(seconds)
    # Below a second in the largest unit of which it is a whole and short number.
    ns = round(seconds * 1e9)
    for each, name in ((10**6, "ms"), (10**3, "µs"), (1, "ns")):
        if ns % each == 0 and 0 < ns // each < 10_000:
            return f"{ns // each} {name}"
    return format_duration(seconds)
