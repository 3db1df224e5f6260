"""What the fields of a text become: numbers, times, words and digests, as NumPy arrays.

Each kind of field has two ways that must agree: over a whole column that pyarrow's parser has read,
which gives up where anything is unusual, and over strings, which knows what is wrong with which.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

_MOST_SECONDS: Final = 9_000_000_000  # their ns fit in 63 bits
_DIGITS: Final = {"seconds": 9, "milliseconds": 6}  # behind the point, down to 1 ns

_FEW_WORDS: Final = 64  # of a column, up to which comparing each row with all of them pays

ARROW_TYPES: Final[dict[str, Any]] = {
    "int": pa.int64(),
    "text": pa.string(),
    "seconds": pa.string(),
    "milliseconds": pa.string(),
    "digest": pa.string(),
    "hex": pa.string(),
    "grouped": pa.string(),
    "grouped seconds": pa.string(),
}
"""As what pyarrow should parse a field of each kind."""

_GROUPED: Final = r"^(?:[0-9]{1,3}(?:\.[0-9]{3})+|[0-9]+)(?:,[0-9]*)?$"

_NIBBLES: Final = np.full(256, 255, np.uint8)
_NIBBLES[list(b"0123456789abcdef")] = np.arange(16)
_NIBBLES[list(b"ABCDEF")] = np.arange(10, 16)


@dataclass(frozen=True)
class Text:
    """A column of words: a code a row, and the words.

    Parameters
    ----------
    codes : ndarray of int32, shape (n,)
    words : list of str
        Word of each code.
    """

    codes: NDArray[np.int32]
    words: list[str]

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: NDArray[np.bool_]) -> Text:
        return Text(self.codes[rows], self.words)

    def map(self, values: Mapping[str, int], missing: int) -> NDArray[np.int64]:
        """A number for each row by its word, ``missing`` where the word has none."""
        table = np.array([values.get(word, missing) for word in self.words] or [missing], np.int64)
        return table[self.codes]


def unusual(text: bytes, kinds: Mapping[str, str]) -> bool:
    """Whether pyarrow may read a block of lines otherwise than `from_words` does.

    It takes a lone carriage return for an end of line, and hexadecimal digits for an integer.
    """
    if b"\r" in text:
        return True
    # One byte is found several times as fast as two.
    return "int" in kinds.values() and any(x in text and b"0" + x in text for x in (b"x", b"X"))


def from_arrow(column: Any, kind: str) -> Any:
    """A column that pyarrow has parsed, as an array or a `Text`; None where a field is unfit."""
    if column.null_count:
        return None
    column = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if kind in ("hex", "grouped", "grouped seconds"):
        values, bad = from_words(pl.Series(pl.from_arrow(column)), kind)
        return None if bad.any() else values
    if kind == "text":
        return _words(column)
    if kind == "digest":
        return _digests(column)
    if kind in _DIGITS:
        return _decimals(column, _DIGITS[kind])
    return column.to_numpy()


def _buffers(column: Any) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Where each string of a column begins, and all their bytes."""
    if not len(column):
        return np.zeros(1, np.int32), np.zeros(0, np.uint8)
    _, starts, data = column.buffers()
    begins = np.frombuffer(starts, np.int32)[column.offset :][: len(column) + 1]
    return begins, np.frombuffer(data or b"", np.uint8)


def _words(column: Any) -> Text:
    """A column of strings as a `Text`; several times faster than Arrow's where words are few."""
    from vmbk.kernels.text import word_codes

    codes, firsts = np.empty(len(column), np.int32), np.empty(_FEW_WORDS, np.int64)
    found = word_codes(*_buffers(column), codes, firsts)
    if found < 0:
        column = column.dictionary_encode()
        codes, words = column.indices.to_numpy(), column.dictionary.to_pylist()
    else:
        words = [column[row].as_py() for row in firsts[:found].tolist()]
    return Text(codes, [word.strip(" \t") for word in words])


def _decimals(column: Any, digits: int) -> NDArray[np.int64] | None:
    """A column of decimal strings as ns, as `seconds` has them; None where one is unfit."""
    from vmbk.kernels.text import decimal_units

    values = np.empty(len(column), np.int64)
    most = _MOST_SECONDS * 10**9 // 10**digits
    return values if decimal_units(*_buffers(column), digits, most, values) == len(values) else None


def from_words(words: pl.Series, kind: str) -> tuple[Any, NDArray[np.bool_]]:
    """A column of strings as an array or a `Text`, and which of them are unfit."""
    words = words.str.strip_chars(" \t")
    if kind == "text":
        return text_of(words), np.zeros(len(words), np.bool_)
    if kind == "digest":
        fit = words.str.contains("^[0-9a-fA-F]{32}$")
        digests = pl.select(pl.when(fit).then(words).otherwise(pl.lit("0" * 32)))
        return _digests(digests.to_series().to_arrow()), ~fit.to_numpy()
    if kind in _DIGITS:
        return seconds(words, _DIGITS[kind])
    values: NDArray[np.int64]
    if kind == "hex":
        digits = words.str.strip_prefix("0x").str.to_integer(base=16, dtype=pl.UInt64, strict=False)
        bad = digits.is_null() | ~words.str.contains("^(?:0x)?[0-9a-fA-F]{1,16}$")
        return digits.fill_null(0).to_numpy().view(np.int64), bad.to_numpy()
    if kind.startswith("grouped"):
        fit = words.str.contains(_GROUPED)
        plain = words.str.replace_all(".", "", literal=True)
        values, unfit = seconds(plain) if kind == "grouped seconds" else whole_numbers(plain)
        return values, unfit | ~fit.to_numpy()
    return whole_numbers(words)


def _digests(column: Any) -> NDArray[np.uint8] | None:
    """The bytes of hexadecimal texts, shape (n, 16); None where one has not 32 digits."""
    if not len(column):
        return np.zeros((0, 16), np.uint8)
    column = column.cast(pa.string())
    offsets = np.frombuffer(column.buffers()[1], np.int32)[column.offset :][: len(column) + 1]
    if (np.diff(offsets) != 32).any():
        return None
    digits = np.frombuffer(column.buffers()[2], np.uint8)[int(offsets[0]) : int(offsets[-1])]
    nibbles = _NIBBLES[digits].reshape(-1, 16, 2)
    if nibbles.max() > 15:
        return None
    return (nibbles[:, :, 0] << 4 | nibbles[:, :, 1]).astype(np.uint8, copy=False)


def whole_numbers(words: pl.Series, base: int = 10) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Integers of texts, and which of them are none or do not fit in 63 bits (0 stands there)."""
    words = words.str.strip_chars(" \t")
    values = words.str.to_integer(base=base, strict=False)
    bad = values.is_null() | words.str.starts_with("+")
    return values.fill_null(0).to_numpy(), bad.to_numpy()


def seconds(words: pl.Series, digits: int = 9) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Nanoseconds of decimal seconds, exactly, and which texts are none.

    A float would round times since 1970 to some 240 ns.

    Parameters
    ----------
    words : Series of str
        A comma may stand for the point.
    digits : int
        Digits behind the point that are taken, the others are cut off: 9 for seconds, 6 where the
        texts are milliseconds.
    """
    pattern = r"^(?<whole>[0-9]*)(?:[.,](?<part>[0-9]*))?$"
    frame = words.str.strip_chars(" \t").str.extract_groups(pattern).struct.unnest()
    part = frame["part"].fill_null("")
    empty = (frame["whole"].fill_null("") + part) == ""
    whole = pl.select(
        pl.when(frame["whole"] == "").then(pl.lit("0")).otherwise(frame["whole"])
    ).to_series().cast(pl.Int64, strict=False)  # fmt: skip
    unit = 10**digits
    most = _MOST_SECONDS * 10**9 // unit
    bad = (whole.is_null() | empty | (whole > most)).fill_null(True).to_numpy()
    fraction = part.str.pad_end(digits, "0").str.slice(0, digits).cast(pl.Int64, strict=False)
    whole_part = np.where(bad, 0, whole.fill_null(0).to_numpy())
    return whole_part * unit + np.where(bad, 0, fraction.fill_null(0).to_numpy()), bad


def text_of(words: pl.Series) -> Text:
    """A `Text` of a series of strings without nulls; words in order of appearance."""
    names = words.unique(maintain_order=True)
    codes = pl.DataFrame({"word": words}).join(
        pl.DataFrame({"word": names, "code": np.arange(len(names), dtype=np.int32)}),
        on="word", how="left", maintain_order="left",
    )["code"]  # fmt: skip
    return Text(codes.to_numpy(), names.to_list())
