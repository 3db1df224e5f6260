"""What the importers share: batches of requests, counting of bad rows, tables of text.

An importer is a module with a `detect` and a generator `read`, which yields a `Batch` for every
few megabytes of its source. Rows that it cannot take go to the `Tally`; everything else (volumes'
sizes, order in time, bounds) is seen to in one place, by `vmbk.trace.formats.import_trace`.
"""

from __future__ import annotations

import os
import re
from bisect import insort
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv as csv
from numpy.typing import NDArray

from vmbk.errors import TraceFormatError
from vmbk.trace.formats.ahead import ahead
from vmbk.trace.formats.cells import ARROW_TYPES, Text, from_arrow, from_words, unusual
from vmbk.trace.formats.cells import seconds as seconds
from vmbk.trace.formats.cells import text_of as text_of
from vmbk.trace.formats.cells import whole_numbers as whole_numbers
from vmbk.trace.formats.source import BOM, CHUNK, Source
from vmbk.trace.schema import Op
from vmbk.units import quoted

_T = TypeVar("_T")
_R = TypeVar("_R")

SECTOR: Final = 512
"""Bytes; the unit of most formats."""

MOST_VOLUMES: Final = 1 << 20
"""Volumes of a trace; the largest public one has some five thousand."""

_MOST_WORKERS: Final = 4  # blocks parsed at a time, each of which takes memory
_EXAMPLES: Final = 5  # bad rows that are quoted
_MOST_FIELDS: Final = 64  # beyond those named; with more of them a row is not worth the fast way
_MOST_TABLE: Final = 1 << 20  # numbers from the least to the greatest, up to which they are few
_SAMPLE: Final = 20  # lines that a detector looks at


@dataclass(frozen=True)
class Batch:
    """Requests of a source, in its order.

    Parameters
    ----------
    time_ns : ndarray of int64, shape (n,)
        ns since any moment that is the same for the whole source.
    op : ndarray of int8, shape (n,)
        Codes of `Op`.
    volume : ndarray of integers, shape (n,)
        Ids from `Tally.volume_ids`.
    offset, length : ndarray of int64, shape (n,)
        Bytes.
    flags : ndarray of uint8, shape (n,), optional
        Bits of `Flag`; none where absent.
    content : ndarray of uint8, shape (n, 16), optional
        Identities of what was written.
    valid : ndarray of bool, shape (n,), optional
        Which rows have an identity; all of them where absent.
    where : ndarray of int64, shape (n,), optional
        Line or record of each row, for messages; counted from `Tally.rows` where absent.
    """

    time_ns: NDArray[np.int64]
    op: NDArray[np.int8]
    volume: NDArray[Any]
    offset: NDArray[np.int64]
    length: NDArray[np.int64]
    flags: NDArray[np.uint8] | None = None
    content: NDArray[np.uint8] | None = None
    valid: NDArray[np.bool_] | None = None
    where: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        for name in ("time_ns", "offset", "length"):
            values = np.ascontiguousarray(getattr(self, name), np.int64)
            object.__setattr__(self, name, values)

    def __len__(self) -> int:
        return len(self.op)

    def take(self, keep: NDArray[np.bool_]) -> Batch:
        """The rows where ``keep`` is true."""
        chosen = {name: values[keep] for name, values in vars(self).items() if values is not None}
        return replace(self, **chosen)


@dataclass
class Tally:
    """What an import counts and names beside its requests.

    Parameters
    ----------
    unit : str
        What a row of the source is called: ``line`` or ``record``.
    """

    unit: str = "line"
    skipped: int = 0
    """Rows that are as they should be and carry no request."""
    bad: int = 0
    """Rows that break the format's rules."""
    first_bad: list[tuple[int, str]] = field(default_factory=list)
    """Where the first bad rows are, and what is wrong with them."""
    names: dict[str, int] = field(default_factory=dict)
    """Volumes by name, in order of appearance; the value is the id."""
    sizes: dict[int, int] = field(default_factory=dict)
    """Bytes of volumes by id, where the source tells."""

    def refuse(self, where: int, text: str, why: str, count: int = 1) -> None:
        """Count bad rows, of which the first is quoted."""
        self.bad += count
        # Reasons are looked at one after the other, so that rows may come out of order.
        insort(self.first_bad, (where, f"{why}: {quoted(text, 120)}"), key=lambda bad: bad[0])
        del self.first_bad[_EXAMPLES:]

    @property
    def examples(self) -> list[str]:
        """The first bad rows, told for people."""
        return [f"{self.unit} {where}: {told}" for where, told in self.first_bad]

    def volume_ids(self, names: Sequence[str]) -> NDArray[np.uint32]:
        """Ids of volumes, new ones in order of appearance.

        Raises
        ------
        TraceFormatError
            If there are more than `MOST_VOLUMES`.
        """
        for name in names:
            self.names.setdefault(name, len(self.names))
        if len(self.names) > MOST_VOLUMES:
            raise TraceFormatError(
                f"more than {MOST_VOLUMES} volumes, the latest is {quoted(names[-1])}"
            )
        return np.array([self.names[name] for name in names], np.uint32)


@dataclass(frozen=True)
class Rows:
    """Rows of a text that were understood so far.

    Parameters
    ----------
    where : ndarray of int64, shape (n,)
        Line of each row.
    columns : dict of str to ndarray or Text
        Arrays of one value a row, or `Text`.
    line : callable
        The text of a line, told its number.
    tally : Tally
    """

    where: NDArray[np.int64]
    columns: dict[str, Any]
    line: Callable[[int], str]
    tally: Tally

    def __len__(self) -> int:
        return len(self.where)

    def __getitem__(self, name: str) -> Any:
        return self.columns[name]

    def take(self, keep: NDArray[np.bool_]) -> Rows:
        """The rows where ``keep`` is true."""
        if keep.all():
            return self
        mask = pl.Series(keep)
        columns = {
            name: values.filter(mask) if isinstance(values, pl.Series) else values[keep]
            for name, values in self.columns.items()
        }
        return replace(self, where=self.where[keep], columns=columns)

    def with_columns(self, columns: Mapping[str, Any]) -> Rows:
        """The rows with more columns, or others under the same names."""
        return replace(self, columns={**self.columns, **columns})

    def without_bad(self, bad: NDArray[np.bool_], why: str) -> Rows:
        """The rows that are not ``bad``; those are counted, the first ones quoted."""
        if not bad.any():
            return self
        for row in np.flatnonzero(bad)[:_EXAMPLES].tolist():
            number = int(self.where[row])
            self.tally.refuse(number, self.line(number), why, 0)
        self.tally.bad += int(bad.sum())
        return self.take(~bad)

    def scaled(self, name: str, factor: int) -> Rows:
        """The rows with a column of whole numbers times ``factor``.

        Rows where it is negative, or where the product leaves 63 bits, are bad.
        """
        values = self[name]
        most = ((1 << 63) - 1) // factor
        rows = self.without_bad((values < 0) | (values > most), f"{name} out of range")
        return replace(rows, columns={**rows.columns, name: rows[name] * factor})

    def without(self, skipped: NDArray[np.bool_]) -> Rows:
        """The rows that are not ``skipped``: they are right, and carry no request."""
        self.tally.skipped += int(skipped.sum())
        return self.take(~skipped)


def delimited(
    source: Source,
    tally: Tally,
    separator: str,
    fields: Sequence[str],
    kinds: Mapping[str, str],
    *,
    header: str = "",
    more: bool = False,
    tidy: Callable[[bytes], bytes] | None = None,
    size: int = CHUNK,
) -> Iterator[Rows]:
    """Parse a table of text.

    Lines of blanks are passed over. A row with too few or too many fields, or with one that is not
    what it should be, is bad. Blanks around a field do not count.

    Parameters
    ----------
    source : Source
    tally : Tally
    separator : str
        One character.
    fields : sequence of str
        Names of all fields of a row, in order.
    kinds : mapping of str to str
        What each field that is wanted holds; the others may hold anything. ``int``: whole numbers;
        ``seconds`` and ``milliseconds``: decimals, as ns; ``hex``: up to 16 hexadecimal digits, of
        which 2**63 and more are negative; ``grouped`` and ``grouped seconds``: the same as
        ``int`` and ``seconds`` with a decimal comma and a point before every third digit; ``text``:
        a `Text`; ``digest``: 32 hexadecimal digits, as bytes of shape (n, 16).
    header : str
        A first line of this text, in whatever case, is no row.
    more : bool
        Whether a row may have more fields than those named.
    tidy : callable, optional
        Told lines that are no table yet, returns as many lines that are; must leave alone what is
        right already.
    size : int
        Bytes parsed at a time.
    """

    def parse(block: tuple[int, int, bytes]) -> _Parsed:
        first, count, text = block
        if first == 1 and header:
            stop = text.index(b"\n")
            if text[:stop].decode().strip().lower() == header.lower():
                first, count, text = 2, count - 1, text[stop + 1 :]
        if text.isspace() or not text:
            return _Parsed(first, b"", b"", None)
        columns = _parse_fast(text, count, separator, fields, kinds, more)
        if columns is not None or tidy is None:
            return _Parsed(first, text, text, columns)
        tidied = tidy(text)
        columns = _parse_fast(tidied, count, separator, fields, kinds, more)
        return _Parsed(first, text, tidied, columns)

    for parsed in _in_order(parse, _lines(source, size)):
        first, columns = parsed.first, parsed.columns
        if columns is not None:
            where = np.arange(first, first + len(columns[next(iter(kinds))]))
            yield Rows(where, columns, _liner(parsed.shown, first), tally)
        elif parsed.text:
            rows = Rows(np.zeros(0, np.int64), {}, _liner(parsed.shown, first), tally)
            yield _parse_with_care(rows, parsed.text, first, separator, fields, kinds, more)


@dataclass(frozen=True)
class _Parsed:
    """A block of lines: its first line's number, as it was, tidied, and as columns if it fits."""

    first: int
    shown: bytes
    text: bytes
    columns: dict[str, Any] | None


def _in_order(work: Callable[[_T], _R], items: Iterator[_T]) -> Iterator[_R]:
    """What ``work`` makes of each item, in their order, several at a time."""
    workers = min(len(os.sched_getaffinity(0)), _MOST_WORKERS)
    with ThreadPoolExecutor(workers, "vmbk-parse") as pool:
        waiting: deque[Future[_R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _lines(source: Source, size: int) -> Iterator[tuple[int, int, bytes]]:
    """Lines of a source, which are read, unpacked and digested while others are parsed."""
    with ahead(source.lines(size)) as lines:
        yield from lines


def _liner(text: bytes, first: int) -> Callable[[int], str]:
    return lambda number: text.split(b"\n")[number - first].decode()


def _parse_fast(
    text: bytes,
    count: int,
    separator: str,
    fields: Sequence[str],
    kinds: Mapping[str, str],
    more: bool,
) -> dict[str, Any] | None:
    """Columns of a block where every row is right, by pyarrow's parser; None otherwise."""
    if unusual(text, kinds):
        return None
    names = list(fields)
    if more:
        extra = text[: text.index(b"\n")].count(separator.encode()) + 1 - len(names)
        names += [f"more_{i}" for i in range(min(extra, _MOST_FIELDS))]
    try:
        table = csv.read_csv(
            pa.BufferReader(text),
            # One piece, by one thread: several blocks are parsed at a time instead.
            csv.ReadOptions(column_names=names, block_size=len(text) + 1, use_threads=False),
            csv.ParseOptions(delimiter=separator, quote_char=False),
            csv.ConvertOptions(
                include_columns=list(kinds),
                column_types={name: ARROW_TYPES[kind] for name, kind in kinds.items()},
                check_utf8=False,  # the block is UTF-8 already
                null_values=[],  # looking for them takes a quarter of the time
            ),
        )
    except pa.ArrowInvalid:
        return None
    if table.num_rows != count:  # blank lines are no rows
        return None
    columns = {name: from_arrow(table.column(name), kind) for name, kind in kinds.items()}
    return None if any(values is None for values in columns.values()) else columns


def _parse_with_care(
    rows: Rows,
    text: bytes,
    first: int,
    separator: str,
    fields: Sequence[str],
    kinds: Mapping[str, str],
    more: bool,
) -> Rows:
    """Rows of a block of which some are bad: slower, and knows which."""
    lines = pl.Series("line", text.decode().split("\n")[:-1], pl.String)
    where = np.arange(first, first + len(lines))
    kept = (lines.str.strip_chars() != "").to_numpy()
    count = lines.str.count_matches(separator, literal=True).to_numpy().astype(np.int64) + 1
    wrong = count < len(fields) if more else count != len(fields)
    rows = replace(rows, where=where[kept])
    rows = rows.without_bad(wrong[kept], f"not {len(fields)} fields")
    lines = lines.filter(pl.Series(kept & ~wrong))
    parts = lines.str.splitn(separator, len(fields) + 1).struct.unnest()
    columns: dict[str, Any] = {}
    unfit = np.zeros(len(lines), np.bool_)
    for name, kind in kinds.items():
        columns[name], bad = from_words(parts.to_series(list(fields).index(name)), kind)
        unfit |= bad
    rows = replace(rows, columns=columns)
    return rows.without_bad(unfit, "a field is not what it should be")


def volumes(tally: Tally, *keys: Text | NDArray[np.int64], prefix: str = "") -> NDArray[np.uint32]:
    """Ids of the volumes that one or several columns name together, such as a host and a disk.

    Parameters
    ----------
    tally : Tally
    *keys : Text or ndarray of int64, shape (n,)
    prefix : str
        What the names begin with; the keys follow, joined by ``_``.

    Returns
    -------
    ndarray of uint32, shape (n,)
        New volumes get ids in the order of their rows, however the rows are cut into batches.
    """
    codes: NDArray[np.int64] = np.zeros(len(keys[0]), np.int64)
    labels = [""]
    for key in keys:
        if isinstance(key, Text):
            inner: NDArray[Any] = key.codes
            words = key.words
        else:
            inner = key
            words = None
        if words is not None and len(words) == 1 and len(labels) == 1:  # nothing to tell apart
            labels = [f"{labels[0]}_{words[0]}"]
            continue
        if words is None:
            values, inner = _numbered(inner)
            words = [str(value) for value in values.tolist()]
            if len(labels) == 1:
                codes, labels = inner, [f"{labels[0]}_{word}" for word in words]
                continue
        pairs, codes = _numbered(codes * len(words) + inner)
        labels = [
            f"{labels[pair // len(words)]}_{words[pair % len(words)]}" for pair in pairs.tolist()
        ]
    ids = tally.volume_ids([prefix + label[1:] for label in labels])
    chosen: NDArray[np.uint32] = ids[codes]
    return chosen


def _numbered(values: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The values that occur, in order of appearance, and for each row the place of its own."""
    from vmbk.kernels.text import number_codes

    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    if high - low < _MOST_TABLE:
        table, codes = np.zeros(high - low + 1, np.int64), np.empty(len(values), np.int64)
        number_codes(np.ascontiguousarray(values, np.int64), low, table, codes)
        there = np.flatnonzero(table)
        return there[np.argsort(table[there])] + low, codes
    found, firsts, inverse = np.unique(values, return_index=True, return_inverse=True)
    order = np.argsort(firsts)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return found[order], place[inverse]


def matched(
    source: Source, tally: Tally, pattern: str, *, size: int = CHUNK
) -> Iterator[tuple[Rows, Rows]]:
    """Take lines apart by a regular expression with named groups.

    Parameters
    ----------
    source : Source
    tally : Tally
    pattern : str
        In the syntax of Rust's ``regex``, which runs in linear time; matched from the line's start.
        Its first group is not optional.
    size : int
        Bytes parsed at a time.

    Yields
    ------
    Rows
        Those that match; every column is a ``pl.Series`` of strings, null where a group is absent.
    Rows
        Those that do not and are not blank, as a column ``line``.
    """
    for first, _, block in _lines(source, size):
        lines = pl.Series("line", block.decode().split("\n")[:-1], pl.String)
        groups = lines.str.extract_groups(f"^(?:{pattern})").struct.unnest()
        everything = Rows(
            np.arange(first, first + len(lines)),
            {"line": lines, **{name: groups[name] for name in groups.columns}},
            _liner(block, first),
            tally,
        )
        hit = groups[groups.columns[0]].is_not_null().to_numpy()
        blank = (lines.str.strip_chars() == "").to_numpy()
        yield everything.take(hit), everything.take(~hit & ~blank)


READ_WRITE: Final = {"R": Op.READ, "W": Op.WRITE, "r": Op.READ, "w": Op.WRITE}
"""One letter for an operation, as most formats write it."""


def mostly(head: bytes, fits: Callable[[bytes], bool]) -> bool:
    """Whether of the first lines of a file, blank ones apart, more than half are as told.

    A line may be damaged, or be a header that someone has put there, and the format is still known.
    """
    whole = head.removeprefix(BOM).replace(b"\r\n", b"\n")
    ended = whole[: whole.rfind(b"\n") + 1] or whole
    lines = [line for line in ended.split(b"\n", 4 * _SAMPLE)[: 4 * _SAMPLE] if line.strip()]
    hits = [fits(line) for line in lines[:_SAMPLE]]
    return 2 * sum(hits) > len(hits)


def whole(*fields: bytes) -> bool:
    """Whether all fields are non-negative whole numbers, blanks around them apart."""
    return all(field.strip(b" \t").isdigit() for field in fields)


def decimal(field: bytes) -> bool:
    """Whether a field is a decimal number with a point."""
    return re.fullmatch(rb"[ \t]*[0-9]+\.[0-9]*[ \t]*", field) is not None
