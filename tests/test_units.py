"""Sizes, durations, and how errors quote them."""

from __future__ import annotations

from datetime import timedelta
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmbk.errors import InputError
from vmbk.units import format_interval, format_size, parse_duration, parse_size, quoted


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0), ("65536", 65536), (65536, 65536), ("64KiB", 65536), ("64k", 65536),
        ("64 KB", 64000), ("1.5GiB", 3 << 29), ("2.3KB", 2300), (" 7 TiB ", 7 << 40),
        (np.int64(4096), 4096), (np.uint8(7), 7),
        ("9007199254740993.0", 9007199254740993), (f"{(1 << 63) - 1}", (1 << 63) - 1),
    ],
)  # fmt: skip
def test_sizes_are_exact(text, size):
    assert parse_size(text) == size


@given(st.integers(0, (1 << 63) - 1))
def test_every_size_reads_as_itself(size):
    assert parse_size(str(size)) == parse_size(f"{size}B") == parse_size(size) == size


@pytest.mark.parametrize(
    "text",
    ["", "KiB", "-1", -1, "1.5", "1e3", "1/2", "0x10", "٣", "1 KiBB", 1 << 63, "8EiB",
     np.int64(-1), 4096.0, np.float64(1), float("nan"), None, b"4096", [4096], Fraction(4096)],
)  # fmt: skip
def test_what_is_no_size(text):
    with pytest.raises(InputError) as caught:
        parse_size(text)
    assert quoted(text) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("90s", 90 * 10**9), ("15m", 900 * 10**9), ("1h", 3600 * 10**9), (2, 2 * 10**9),
        (0.5, 5 * 10**8), (np.int64(2), 2 * 10**9), (np.float32(0.5), 5 * 10**8),
        (timedelta(days=106_000, microseconds=1), 106_000 * 86400 * 10**9 + 1000),
        (timedelta(0), 0), (1e-8, 10), ("0.000000001", 1), ("1ns", 1), ("1.1us", 1100),
    ],
)  # fmt: skip
def test_durations(text, ns):
    assert parse_duration(text) == ns


@pytest.mark.parametrize(
    "text",
    ["", "s", "-1s", -1, "1y", float("nan"), float("inf"), 1e300, 10**400, "300000d",
     timedelta(-1), timedelta.max, None, b"1s", [1], 1j, np.float32("inf")],
)  # fmt: skip
def test_what_is_no_duration(text):
    with pytest.raises(InputError) as caught:
        parse_duration(text)
    assert quoted(text) in str(caught.value)


@pytest.mark.parametrize("digits", [31, 400, 5000, 100_000])
@pytest.mark.parametrize("tail", ["", ".5", "h", ".5KiB"])
@pytest.mark.parametrize("parse", [parse_size, parse_duration])
def test_numbers_without_end_are_refused_in_a_short_message(parse, digits, tail):
    with pytest.raises(InputError) as caught:
        parse("9" * digits + tail)
    assert (digits < 60) or "999…999" in str(caught.value)
    assert len(str(caught.value)) < 200
    with pytest.raises(InputError) as caught:
        parse("1." + "3" * digits)
    assert len(str(caught.value)) < 200


def test_quoted():
    assert quoted("a\n\udcff") == "'a\\n\\udcff'"
    assert quoted("x" * 58) == repr("x" * 58)
    assert len(quoted("x" * 10**6)) <= 60
    assert "digits" in quoted(1 << 10**6)
    assert quoted(7) == "7"


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1536, "1.5 KiB"), (4 << 20, "4 MiB"), (1 << 40, "1 TiB")]
)
def test_sizes_for_people(size, text):
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (1, "1 ns"), (1500, "1500 ns"), (2000, "2 µs"), (10**6, "1 ms"), (333_333_333, "333 ms"),
        (1_500_000, "1500 µs"), (10**9, "1 s"), (3600 * 10**9, "1 h"), (5400 * 10**9, "90 min"),
    ],
)  # fmt: skip
def test_intervals_are_told_as_they_were_chosen(ns, text):
    assert format_interval(ns / 1e9) == text
