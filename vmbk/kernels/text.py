"""Text of traces: its lines, and columns of its fields as numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vmbk.kernels.intrinsics import bytes_of, load_word
from vmbk.kernels.jit import I32, I64, U8, OutI32, OutI64, OutU8, b1, i64, kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ALL = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
_NONE = np.uint64(0)


@kernel(i64(U8, OutU8))
def survey_text(text: NDArray[np.uint8], seen: NDArray[np.uint8]) -> int:
    """Count lines, and look for what makes a text other than plain.

    Parameters
    ----------
    text : ndarray of uint8
    seen : ndarray of uint8, shape (2,), out
        1 if there is a carriage return, else 0; 1 if a byte is not ASCII, else 0.

    Returns
    -------
    int
        Line feeds.
    """
    lines, high, returns = 0, np.uint8(0), np.uint8(0)
    for i in range(len(text)):
        byte = text[i]
        lines += byte == 10
        high |= byte
        returns |= np.uint8(byte == 13)
    seen[0], seen[1] = returns, high >> 7
    return lines


@kernel(b1(U8, i64, i64, i64))
def same_bytes(data: NDArray[np.uint8], a: int, b: int, size: int) -> bool:
    """Whether the bytes at two places are the same."""
    same = True
    for k in range(size):
        same = same and data[a + k] == data[b + k]
    return bool(same)


@kernel(i64(I32, U8, OutI32, OutI64))
def word_codes(
    starts: NDArray[np.int32],
    data: NDArray[np.uint8],
    codes: NDArray[np.int32],
    firsts: NDArray[np.int64],
) -> int:
    """Number the distinct words of a column in order of appearance.

    Meant for few words: each row is compared with all that were found so far.

    Parameters
    ----------
    starts : ndarray of int32, shape (n + 1,)
        Where each row's bytes begin in ``data``; the last is where they end.
    data : ndarray of uint8
    codes : ndarray of int32, shape (n,), out
    firsts : ndarray of int64, shape (m,), out
        The first row of each word.

    Returns
    -------
    int
        Words found, or -1 if there are more than ``m``; ``codes`` are then of no use.
    """
    source, whole = bytes_of(data), len(data) - 8
    heads, sizes = np.empty(len(firsts), np.uint64), np.empty(len(firsts), np.int64)
    found = 0
    for row in range(len(codes)):
        start, size = i64(starts[row]), i64(starts[row + 1]) - i64(starts[row])
        # The first eight bytes tell most words apart, without a branch that depends on them.
        head = _NONE
        if size > 0 and start <= whole:
            head = load_word(source, start) & (_ALL >> np.uint64(64 - 8 * min(size, 8)))
        else:
            for k in range(min(size, 8)):
                head |= np.uint64(data[start + k]) << np.uint64(8 * k)
        code = -1
        for i in range(found):
            alike = (heads[i] == head) & (sizes[i] == size)
            if alike and (size <= 8 or same_bytes(data, start, i64(starts[firsts[i]]), size)):
                code = i
        if code < 0:
            if found == len(firsts):
                return -1
            heads[found], sizes[found], firsts[found] = head, size, row
            code = found
            found += 1
        codes[row] = code
    return found


@kernel(i64(I64, i64, OutI64, OutI64))
def number_codes(
    values: NDArray[np.int64],
    low: int,
    table: NDArray[np.int64],
    codes: NDArray[np.int64],
) -> int:
    """Number the distinct values of a column in order of appearance.

    Parameters
    ----------
    values : ndarray of int64, shape (n,)
    low : int
        The least of them.
    table : ndarray of int64, in and out
        Zeros at first, room for every number from ``low`` to the greatest value; then the code of
        each value plus 1.
    codes : ndarray of int64, shape (n,), out

    Returns
    -------
    int
        How many distinct values there are.
    """
    found = 0
    for row in range(len(values)):
        place = values[row] - low
        code = table[place]
        if code == 0:
            found += 1
            code = found
            table[place] = code
        codes[row] = code - 1
    return found


@kernel(i64(I32, U8, i64, i64, OutI64))
def decimal_units(
    starts: NDArray[np.int32],
    data: NDArray[np.uint8],
    digits: int,
    most: int,
    values: NDArray[np.int64],
) -> int:
    """Read decimal numbers exactly, in units of their last digit that counts.

    A number is digits, with a point or a comma among them or at either end; blanks and tabs around
    it do not count.

    Parameters
    ----------
    starts : ndarray of int32, shape (n + 1,)
        Where each row's bytes begin in ``data``; the last is where they end.
    data : ndarray of uint8
    digits : int
        Digits behind the point that count; further ones are cut off.
    most : int
        Greatest number in front of the point, below 10**17.
    values : ndarray of int64, shape (n,), out

    Returns
    -------
    int
        Rows read: fewer than all where one is no such number.
    """
    unit = 1
    for _ in range(digits):
        unit *= 10
    for row in range(len(values)):
        at, stop = i64(starts[row]), i64(starts[row + 1])
        while at < stop and (data[at] == 32 or data[at] == 9):
            at += 1
        while at < stop and (data[stop - 1] == 32 or data[stop - 1] == 9):
            stop -= 1
        whole, read = 0, 0
        while at < stop:
            digit = i64(data[at]) - 48
            if digit < 0 or digit > 9:
                break
            whole = whole * 10 + digit
            if whole > most:
                return row
            at += 1
            read += 1
        part, places = 0, 0
        if at < stop and (data[at] == 46 or data[at] == 44):
            at += 1
            while at < stop:
                digit = i64(data[at]) - 48
                if digit < 0 or digit > 9:
                    break
                if places < digits:
                    part = part * 10 + digit
                    places += 1
                at += 1
                read += 1
        if at < stop or read == 0:
            return row
        while places < digits:
            part *= 10
            places += 1
        values[row] = whole * unit + part
    return len(values)
