"""Kernels over the columns of a trace and over fields of text, against their naive twins."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests import naive
from vmbk.kernels import checks
from vmbk.kernels.records import vscsi_requests
from vmbk.kernels.text import (
    decimal_units,
    number_codes,
    same_bytes,
    survey_text,
    word_codes,
)
from vmbk.trace.formats import vscsi
from vmbk.trace.formats.scsi import OPERATIONS
from vmbk.trace.schema import Op

MOST = (1 << 63) - 1
NEAR_LIMITS = st.one_of(
    st.integers(-3, 1000), st.sampled_from([MOST, -MOST - 1, MOST - 1, 1 << 62, (1 << 62) + 1])
)


def columns(rows: list[Any], *dtypes: Any) -> list[np.ndarray]:
    found = zip(*rows, strict=True) if rows else ((),) * len(dtypes)
    return [np.array(list(c), t) for c, t in zip(found, dtypes, strict=True)]


ROW = st.tuples(
    st.one_of(st.integers(0, 9), NEAR_LIMITS), st.integers(0, 7), st.integers(0, 6),
    NEAR_LIMITS, NEAR_LIMITS, st.integers(0, 5),
)  # fmt: skip
SOUND = st.tuples(
    st.just(9), st.integers(0, 5), st.sampled_from([0, 3, 5]), st.integers(0, 50),
    st.integers(0, 50), st.integers(0, 3),
)  # fmt: skip


@given(
    st.lists(SOUND, max_size=8),
    st.lists(ROW, max_size=3),
    st.dictionaries(st.sampled_from([0, 1, 3, 5]), st.sampled_from([100, MOST // 2 + 1])),
)
def test_first_unsound(sound, rows, sizes):
    rows = sound + rows
    time, op, volume, offset, length, flags = columns(
        rows, np.int64, np.uint8, np.uint32, np.int64, np.int64, np.uint8
    )
    ids = sorted(sizes)
    found = np.zeros(2, np.int64)
    why = checks.first_unsound(
        time, op, volume, offset, length, flags, np.array(ids, np.uint32),
        np.array([sizes[i] for i in ids], np.int64), 5, 3, found,
    )  # fmt: skip
    expected = naive.first_unsound(rows, sizes, 5, 3)
    assert (None if why == checks.SOUND else (int(found[0]), why)) == expected
    if why == checks.PLACE:
        assert ids[found[1]] == rows[found[0]][2]


@given(st.lists(st.tuples(NEAR_LIMITS, NEAR_LIMITS, NEAR_LIMITS), max_size=12))
def test_misplaced(rows):
    verdict = np.full(len(rows), 9, np.uint8)
    most, far = 1 << 62, (1 << 62) - 1
    many = checks.misplaced(*columns(rows, np.int64, np.int64, np.int64), most, far, verdict)
    assert verdict.tolist() == naive.misplaced(rows, most, far)
    assert many == np.count_nonzero(verdict)


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1 << 40), st.integers(0, 1 << 40))),
    st.lists(st.integers(0, 1 << 41), min_size=5, max_size=5),
)
def test_volume_ends(rows, before):
    ends = np.array(before, np.int64)
    requests = columns(rows, np.uint32, np.int64, np.int64)
    assert checks.volume_ends(*requests, ends) == len(rows)
    assert ends.tolist() == naive.volume_ends(rows, before)
    assert checks.volume_ends(*columns([(0, 1, 1), (7, 1, 1)], *"Iqq"), ends) == 1


WORD = st.sampled_from(
    [b"", b"R", b"W", b"R\0", b"Read", b"Write", b"r\xc3\xa4", b"12345678", b"123456789",
     b"123456780", b"12345678\0"]
)  # fmt: skip


def strings(words, skipped=0):
    """A column of strings as Arrow has it: where each begins, and the bytes."""
    starts = np.cumsum([0, *map(len, words)]).astype(np.int32)[skipped:]
    return starts, np.frombuffer(b"".join(words), np.uint8)


@given(st.lists(WORD), st.integers(0, 9), st.integers(0, 3))
def test_word_codes(words, most, skipped):
    skipped = min(skipped, len(words))
    starts, data = strings(words, skipped)
    codes, firsts = np.empty(len(starts) - 1, np.int32), np.empty(most, np.int64)
    found = word_codes(starts, data, codes, firsts)
    expected = naive.word_codes(words[skipped:], most)
    if expected is None:
        assert found == -1
    else:
        assert (codes.tolist(), firsts[:found].tolist()) == expected


@given(st.binary(min_size=8, max_size=40), st.data())
def test_same_bytes(text, data):
    a, b = (data.draw(st.integers(0, len(text) - 4)) for _ in range(2))
    text = text if data.draw(st.booleans()) else text[:a] + text[b : b + 4] + text[a + 4 :]
    size = data.draw(st.integers(0, min(4, len(text) - max(a, b))))
    view = np.frombuffer(text, np.uint8)
    assert same_bytes(view, a, b, size) == naive.same_bytes(text, a, b, size)


@given(st.binary(max_size=300).map(lambda b: b.replace(b"\x80", b"\r\n")))
def test_survey_text(text):
    seen = np.empty(2, np.uint8)
    lines = survey_text(np.frombuffer(text, np.uint8), seen)
    assert (lines, bool(seen[0]), bool(seen[1])) == naive.survey_text(text)


@given(st.lists(st.integers(-5, 20)))
def test_number_codes(values):
    codes, table = np.empty(len(values), np.int64), np.zeros(26, np.int64)
    found = number_codes(np.array(values, np.int64), -5, table, codes)
    assert codes.tolist() == naive.number_codes(values)
    assert found == len(set(values))


NUMBER = st.one_of(
    st.text("0123456789", max_size=12), st.text("0123456789.,-+e \tx", max_size=8),
    st.tuples(st.integers(0, 10**12), st.text("0123456789", max_size=14)).map(
        lambda parts: f" {parts[0]}.{parts[1]}\t"
    ),
)  # fmt: skip


@given(st.lists(NUMBER), st.integers(0, 9), st.sampled_from([0, 99, 10**12]))
def test_decimal_units(words, digits, most):
    encoded = [word.encode() for word in words]
    values = np.empty(len(words), np.int64)
    read = decimal_units(*strings(encoded), digits, min(most, 9 * 10**17 // 10**digits), values)
    expected = naive.decimal_units(encoded, digits, min(most, 9 * 10**17 // 10**digits))
    assert values[:read].tolist() == expected


FIELD = st.one_of(st.integers(0, 1000), st.sampled_from([(1 << 32) - 1, 1 << 32, 1 << 62, MOST]))
RECORD = st.tuples(
    st.sampled_from([0x28, 0x2A, 0x35, 0x42, 0x00, 0x12, 0xFF, 0x100, 0xFFFF]),
    st.sampled_from([0x100, 0x1FF, 0x200, 0x2AA, 0x000, 0x300, 0xFF00]),
    st.integers(0, (1 << 32) - 1), FIELD, st.one_of(FIELD, st.just((1 << 64) - 1)),
)  # fmt: skip


@given(st.lists(RECORD, max_size=12), st.sampled_from([1, 2]))
def test_vscsi_requests(records, version):
    if version == 1:
        data = b"".join(
            struct.pack("<IIIHHQQ", 7, length, 1, code, told, sector, time)
            for code, told, length, sector, time in records
        )
    else:
        data = b"".join(
            struct.pack("<HHIIIQQQ", code, told, 7, length, 1, sector, time, 9)
            for code, told, length, sector, time in records
        )
    count = len(records)
    row, time_ns, offset, length = (np.empty(count, np.int64) for _ in range(4))
    op, bad = np.empty(count, np.uint8), np.empty(count + 1, np.int64)
    limits = (1 << 40, 1 << 50)
    kept = vscsi_requests(
        np.frombuffer(data, "<u4"), np.array(vscsi._WORDS[version]), vscsi._CODES, version,
        *limits, row, time_ns, op, offset, length, bad,
    )  # fmt: skip
    told = [column[:kept].tolist() for column in (row, time_ns, op, offset, length)]
    codes = {code: int(op) | (op == Op.FLUSH) << 7 for code, op in OPERATIONS.items()}
    expected, refused = naive.vscsi_requests(data, version, codes, *limits)
    assert list(zip(*told, strict=True)) == expected
    assert bad[1 : 1 + bad[0]].tolist() == refused
