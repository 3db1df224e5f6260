"""Declarations read strictly: every error names the field, quotes its value and says what fits.

A scenario, a price list and a profile are TOML files that people write by hand and that strangers
send. `Fields` is one table of such a file with the name by which errors call it.
"""

from __future__ import annotations

import difflib
import math
import os
import tomllib
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Any, Final

from vmbk.errors import InputError, NotFoundError
from vmbk.units import parse_duration, parse_size, quoted

MOST_BYTES: Final = 8 << 20
"""Of a declaration; nobody writes a longer one."""

MOST_DOTS: Final = 5_000
"""In one line of a declaration."""

MOST: Final = 1 << 62
"""No size, rate or time of a scenario reaches this: sums of two stay within 63 bits."""

_ABSENT: Final[Any] = object()


def read_declaration(path: str | os.PathLike[str], what: str) -> dict[str, Any]:
    """A TOML file as a table.

    Parameters
    ----------
    path : path
        Of the file.
    what : str
        What it is, for errors: ``"scenario"``.

    Returns
    -------
    dict

    Raises
    ------
    NotFoundError
        If there is none.
    InputError
        If it is no regular file, too long, or no TOML.
    """
    text = os.fspath(path)
    try:
        if not os.path.lexists(text):
            raise NotFoundError(f"there is no {what} {quoted(text)}")
        if not Path(text).is_file():
            raise InputError(f"the {what} {quoted(text)} is not a regular file")
        with Path(text).open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise InputError(f"the {what} {quoted(text)} is longer than {MOST_BYTES:,} bytes")
        text_of = content.decode()
        if any(line.count(".") > MOST_DOTS for line in text_of.splitlines() if len(line) > 1000):
            # keys of very many parts take the parser quadratic time
            raise InputError(f"the {what} {quoted(text)} has a line with over {MOST_DOTS:,} points")
        return tomllib.loads(text_of)
    except (OSError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, or not TOML
        raise InputError(f"cannot read the {what} {quoted(text)}: {error}") from error


class Fields:
    """One table of a declaration.

    Parameters
    ----------
    table : Mapping
        As TOML gives it.
    name : str
        How errors call it, such as ``vms[2].disks[0]``; "" at the top.
    known : iterable of str
        Keys that it may have.

    Raises
    ------
    InputError
        If it is no table, or has another key.
    """

    def __init__(self, table: Any, name: str, known: Iterable[str]) -> None:
        if not isinstance(table, Mapping):
            raise InputError(f"{name} must be a table, not {quoted(table)}")
        self.table, self.name = table, name
        names = tuple(known)
        for key in table:
            if key not in names:
                close = difflib.get_close_matches(str(key), names, 1)
                hint = f"did you mean {close[0]}?" if close else f"keys: {', '.join(sorted(names))}"
                raise InputError(f"{self.where(str(key)[:60])}: there is no such field", hint=hint)

    def __contains__(self, key: str) -> bool:
        return key in self.table

    def where(self, key: str) -> str:
        """A field's whole name."""
        return f"{self.name}.{key}" if self.name else key

    def fail(self, key: str, what: str, hint: str = "") -> InputError:
        """The error that a field's value deserves; to be raised."""
        return InputError(f"{self.where(key)}: {quoted(self.table.get(key))} {what}", hint=hint)

    def get(self, key: str, default: Any = _ABSENT) -> Any:
        """The value as it stands; `default` where it is absent, or an error where there is none."""
        if key in self.table:
            return self.table[key]
        if default is _ABSENT:
            raise InputError(f"{self.where(key)} is missing")
        return default

    def _typed(self, key: str, default: Any, kinds: tuple[type, ...], what: str) -> Any:
        value = self.get(key, default)
        if key in self.table and type(value) not in kinds:
            raise self.fail(key, f"is not {what}")
        return value

    def text(self, key: str, default: Any = _ABSENT, most: int = 200) -> Any:
        """A string that can be printed, of 1 to `most` characters."""
        value = self._typed(key, default, (str,), "a text")
        if key in self.table and not (0 < len(value) <= most and value.isprintable()):
            raise self.fail(key, f"is not a printable text of 1 to {most} characters")
        return value

    def flag(self, key: str, default: Any = _ABSENT) -> Any:
        """True or false."""
        return self._typed(key, default, (bool,), "true or false")

    def whole(self, key: str, low: int, high: int, default: Any = _ABSENT) -> Any:
        """A whole number from `low` to `high`."""
        value = self._typed(key, default, (int,), "a whole number")
        if key in self.table and not low <= value <= high:
            raise self.fail(key, f"is not a whole number from {low:,} to {high:,}")
        return value

    def number(self, key: str, low: float, high: float, default: Any = _ABSENT) -> Any:
        """A real number from `low` to `high`."""
        value = self._typed(key, default, (int, float), "a number")
        if key in self.table:
            if not low <= value <= high:  # a comparison with NaN is false
                raise self.fail(key, f"is not a number from {low:g} to {high:g}")
            value = float(value)
        return value

    def choice(self, key: str, allowed: Iterable[str], default: Any = _ABSENT) -> Any:
        """One of some words."""
        value = self._typed(key, default, (str,), "a text")
        words = tuple(allowed)
        if key in self.table and value not in words:
            close = difflib.get_close_matches(value, words, 1)
            hint = f"did you mean {close[0]}?" if close else ""
            raise self.fail(key, f"is not one of {', '.join(words)}", hint)
        return value

    def size(self, key: str, default: Any = _ABSENT, *, least: int = 0, most: int = MOST) -> Any:
        """Bytes: ``"128GiB"``, ``"30GB"`` or a number."""
        value = self._typed(key, default, (str, int), 'a size, such as "128GiB" or "30GB"')
        if key not in self.table:
            return value
        try:
            found = parse_size(value)
        except InputError as error:
            raise InputError(f"{self.where(key)}: {error.message}", hint=error.hint) from None
        if not least <= found <= most:
            raise self.fail(key, f"is not a size from {least:,} to {most:,} bytes")
        return found

    def rate(self, key: str, default: Any = _ABSENT, *, least: int = 0, most: int = MOST) -> Any:
        """Bytes a second: ``"60MB/s"``, ``"640Mbps"``, ``"50Gbps"`` or a number."""
        value = self._typed(key, default, (str, int), 'a rate, such as "60MB/s" or "640Mbps"')
        if key not in self.table:
            return value
        found = parse_rate(value, self.where(key))
        if not least <= found <= most:
            raise self.fail(key, f"is not a rate from {least:,} to {most:,} bytes a second")
        return found

    def duration(
        self, key: str, default: Any = _ABSENT, *, least: int = 0, most: int = MOST
    ) -> Any:
        """Nanoseconds: ``"90s"``, ``"4h"``, ``"2d"`` or a number of seconds."""
        value = self._typed(key, default, (str, int, float), 'a duration, such as "90s" or "4h"')
        if key not in self.table:
            return value
        try:
            found = parse_duration(value)
        except (InputError, OverflowError) as error:
            told = str(error).splitlines()[0]
            raise InputError(
                f"{self.where(key)}: {told}", hint="write it as 90s, 4h or 2d"
            ) from None
        if not least <= found <= most:
            raise self.fail(key, f"is not from {least / 1e9:,.0f} to {most / 1e9:,.0f} seconds")
        return found

    def share(self, key: str, default: Any = _ABSENT, *, most: float = 1.0) -> Any:
        """A share of a whole: ``"5%"`` or ``0.05``."""
        value = self._typed(key, default, (str, int, float), 'a share, such as "5%" or 0.05')
        if key not in self.table:
            return value
        try:
            found = float(value[:-1]) / 100 if str(value).endswith("%") else float(value)
        except (ValueError, TypeError, OverflowError):
            found = math.nan
        if not 0 <= found <= most:
            raise self.fail(key, f"is not a share from 0% to {most:.0%}")
        return found

    def day(self, key: str, default: Any = _ABSENT) -> Any:
        """A date: ``2026-01-05``."""
        value = self.get(key, default)
        if key in self.table and isinstance(value, str):
            try:
                value = date.fromisoformat(value)
            except ValueError:
                raise self.fail(key, "is not a date, such as 2026-01-05") from None
        if key in self.table and type(value) is not date:
            raise self.fail(key, "is not a date, such as 2026-01-05")
        return value

    def clock(self, key: str, default: Any = _ABSENT) -> Any:
        """Minutes since midnight of a time of day: ``"02:30"``."""
        value = self._typed(key, default, (str,), 'a time of day, such as "02:30"')
        if key not in self.table:
            return value
        hours, colon, minutes = value.partition(":")
        good = (
            colon
            and hours.isascii()
            and hours.isdigit()
            and minutes.isascii()
            and minutes.isdigit()
            and len(hours) <= 2
            and len(minutes) == 2
        )
        if not good or int(hours) > 23 or int(minutes) > 59:
            raise self.fail(key, 'is not a time of day, such as "02:30"')
        return int(hours) * 60 + int(minutes)

    def words(self, key: str, default: Any = _ABSENT, most: int = 10_000) -> Any:
        """A list of texts."""
        value = self._typed(key, default, (list,), "a list")
        if key in self.table:
            good = len(value) <= most and all(isinstance(v, str) and v.isprintable() for v in value)
            if not good:
                raise self.fail(key, f"is not a list of at most {most:,} texts")
            value = tuple(value)
        return value

    def tables(self, key: str, most: int = 1_000_000) -> list[Any]:
        """A list of tables, each to be read by `Fields`; none where the field is absent."""
        value = self._typed(key, [], (list,), f"a list of tables: [[{self.where(key)}]]")
        if len(value) > most:
            raise InputError(f"{self.where(key)}: {len(value):,} tables are more than {most:,}")
        return list(value)


def parse_rate(value: str | int, where: str) -> int:
    """Bytes a second in ``"60MB/s"``, ``"640Mbps"`` (bits) or a number.

    Raises
    ------
    InputError
        If it is none; the message begins with `where`.
    """
    hint = 'write it as "60MB/s", "640Mbps" or 60000000'
    bits = False
    text: str | int = value
    if isinstance(value, str):
        text = value.strip()
        if text.lower().endswith("bps"):
            bits, text = True, f"{text[:-3]}B"
        elif text.endswith("/s"):
            text = text[:-2]
    try:
        found = parse_size(text)
    except InputError:
        raise InputError(f"{where}: {quoted(value)} is not a rate", hint=hint) from None
    return found // 8 if bits else found
