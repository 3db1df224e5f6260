"""Silent misses, measured: how often a digest is the same before and after a change.

Two ways to make pairs of contents. *Old and new* is what a detector does: a block, and the block
after an update of a declared kind. *All pairs* compares every one of many contents with every
other, which makes so many pairs that long digests can be measured as well.

Content and updates follow from the seed alone, by the counter-based generator of
`vmbk.kernels.content`; the number of threads changes nothing.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vmbk.detect.scan import default_workers, for_each
from vmbk.errors import InputError
from vmbk.progress import progress
from vmbk.provenance import provenance
from vmbk.study.chance import chance_interval
from vmbk.study.digests import (
    DIGESTS,
    Digest,
    Words,
    chosen,
    digest_blocks,
    equal_low_bits,
    equal_pairs,
    widths,
)
from vmbk.study.results import ResultColumn
from vmbk.units import MIB, parse_size, quoted

Blocks = NDArray[np.uint8]
"""Blocks of one size, shape (blocks, bytes)."""

OLD_AND_NEW: Final = "old and new"
ALL_PAIRS: Final = "all pairs"

COLUMNS: Final = tuple(
    ResultColumn(*row)
    for row in (
        ("pairing", pl.String, "", f"'{OLD_AND_NEW}' of an update, or '{ALL_PAIRS}' of contents"),
        ("content", pl.String, "", "what the blocks hold: random, text, or 'captures'"),
        ("update", pl.String, "", "kind of the update, of `UPDATES` or 'guest'; '' for all pairs"),
        ("digest", pl.String, "", "name of the digest, of `vmbk.study.digests.DIGESTS`"),
        ("bits", pl.Int64, "", "low bits of the digest that were compared"),
        ("block_size", pl.Int64, "bytes", "of a block"),
        ("pairs", pl.Int64, "", "of different contents that were compared"),
        ("misses", pl.Int64, "", "pairs with equal digests"),
        ("expected", pl.Float64, "", "pairs / 2^bits: misses of an ideal digest"),
        ("low", pl.Float64, "", "least expected misses compatible with those seen, at 95 %"),
        ("high", pl.Float64, "", "most expected misses compatible with those seen, at 95 %"),
        ("seed", pl.Int64, "", "of content and updates; null for captures"),
        ("version", pl.String, "", "version of vmbk"),
        ("commit", pl.String, "", "commit of vmbk, with +dirty where files differed"),
        ("provenance", pl.String, "", "machine and library versions, as JSON"),
    )
)
"""Columns of measured misses."""

_BATCH: Final = 4 * MIB  # of blocks made at once: they stay in the processor's cache
_MOST_PAIRS: Final = 1 << 40
_MOST_CONTENTS: Final = 1 << 28
_TAIL: Final = 512  # bytes that an append adds, at most


# --- Updates --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Update:
    """A kind of change to a block.

    Attributes
    ----------
    doc : str
        What changes.
    apply : callable
        Of old blocks, blocks of fresh content and random words, shape (blocks, 4), to the old and
        the new blocks. Arguments are not written to.
    """

    doc: str
    apply: Callable[[Blocks, Blocks, Words], tuple[Blocks, Blocks]]


def _rewrite(old: Blocks, fresh: Blocks, draws: Words) -> tuple[Blocks, Blocks]:
    return old, fresh


def _bit(old: Blocks, fresh: Blocks, draws: Words) -> tuple[Blocks, Blocks]:
    new, rows = old.copy(), np.arange(len(old))
    place = _below(draws[:, 0], 8 * old.shape[1])
    new[rows, place >> 3] ^= np.left_shift(1, place & 7).astype(np.uint8)
    return old, new


def _counter(old: Blocks, fresh: Blocks, draws: Words) -> tuple[Blocks, Blocks]:
    new, rows = old.copy(), np.arange(len(old))
    new[rows, _below(draws[:, 0], old.shape[1])] += np.uint8(1)
    return old, new


def _transfers(old: Blocks, fresh: Blocks, draws: Words) -> tuple[Blocks, Blocks]:
    new, rows, size = old.copy(), np.arange(len(old)), old.shape[1]
    step = 1 + _below(draws[:, 0], size // 4)
    first = _below(draws[:, 1], size // 4)
    second = size // 2 + _below(draws[:, 2], size // 4)
    for place, by in ((first, 1), (first + step, 255), (second, 255), (second + step, 1)):
        new[rows, place] += np.uint8(by)
    return old, new


def _swap(old: Blocks, fresh: Blocks, draws: Words) -> tuple[Blocks, Blocks]:
    new, rows = old.copy(), np.arange(len(old))
    words, count = new.view(np.uint64), old.shape[1] // 8
    first = _below(draws[:, 0], count)
    second = (first + 1 + _below(draws[:, 1], count - 1)) % count
    words[rows, first], words[rows, second] = words[rows, second], words[rows, first]
    return old, new


def _zero(old: Blocks, fresh: Blocks, draws: Words) -> tuple[Blocks, Blocks]:
    new, count = old.copy(), old.shape[1] // 8
    first = _below(draws[:, 0], count)[:, None]
    length = 1 + _below(draws[:, 1], count)[:, None]
    places = np.arange(count)
    new.view(np.uint64)[(places >= first) & (places < first + length)] = 0
    return old, new


def _append(old: Blocks, fresh: Blocks, draws: Words) -> tuple[Blocks, Blocks]:
    size = old.shape[1]
    used = _below(draws[:, 0], size)[:, None]
    length = 1 + _below(draws[:, 1], min(_TAIL, size))[:, None]
    places = np.arange(size)
    before = np.where(places < used, old, np.uint8(0))
    return before, np.where((places >= used) & (places < used + length), fresh, before)


def _seal(old: Blocks, fresh: Blocks, draws: Words) -> tuple[Blocks, Blocks]:
    before, after, rows = old.copy(), old.copy(), np.arange(len(old))
    word = _below(draws[:, 0], old.shape[1] // 8 - 1)
    after.view(np.uint64)[rows, word] = fresh.view(np.uint64)[rows, word]
    for blocks in (before, after):
        body = np.ascontiguousarray(blocks[:, :-4])
        crc = digest_blocks(body.reshape(-1), body.shape[1], DIGESTS["crc32c"])
        blocks.view("<u4")[:, -1] = crc.astype(np.uint32)
    return before, after


def _below(draws: Words, limit: int) -> NDArray[np.int64]:
    """Numbers from 0 to below a limit that is small beside 2^63."""
    return ((draws >> np.uint64(1)) % np.uint64(limit)).astype(np.int64)


UPDATES: Final[Mapping[str, Update]] = {
    "rewrite": Update("all of the block is written with other content", _rewrite),
    "bit": Update("one bit is flipped", _bit),
    "counter": Update("one byte counts up by 1, from 255 to 0", _counter),
    "transfers": Update(
        "one byte counts up and another down, and elsewhere, as far apart, the other way round",
        _transfers,
    ),
    "swap": Update("two aligned words of 8 bytes change places", _swap),
    "zero": Update("a part of whole words of 8 bytes becomes zeros", _zero),
    "sealed": Update(
        "a word of 8 bytes changes, in a block whose last 4 bytes are the CRC-32C of the others: "
        "blocks of ext4's extent trees end so",
        _seal,
    ),
    "append": Update("up to 512 bytes are added where zeros begin", _append),
}
"""Kinds of updates by name."""

CONTENTS: Final[Mapping[str, int]] = {"random": 0, "text": 100}
"""Kinds of content, and the percent of it that is text; see `vmbk.kernels.content`."""


# --- Measurements ---------------------------------------------------------------------------------


def measure_updates(
    updates: Sequence[str] | None = None,
    digests: Sequence[str] | None = None,
    *,
    contents: Sequence[str] | None = None,
    pairs: int = 1 << 15,
    block_size: int | str = "4KiB",
    seed: int = 0,
    workers: int | None = None,
) -> pl.DataFrame:
    """Count the updates that each digest misses, whole and cut to fewer bits.

    Parameters
    ----------
    updates : sequence of str, optional
        Kinds of `UPDATES`; all by default.
    digests : sequence of str, optional
        Names of `vmbk.study.digests.DIGESTS`; all by default.
    contents : sequence of str, optional
        ``random``, ``text``, or both, as by default.
    pairs : int
        Updates of each kind, each of a block of its own. Those that leave a block as it was, as
        a swap of equal words does, are not counted.
    block_size : int or str
        Bytes: a power of two from 512 B to 1 MiB.
    seed : int
        0 to 2^63 - 1.
    workers : int, optional
        Threads; as many as there are processors by default.

    Returns
    -------
    polars.DataFrame
        With the columns of `COLUMNS`: a row per content, update, digest and number of bits.

    Raises
    ------
    InputError
        If a name is unknown, or a number out of bounds.

    Notes
    -----
    The contents of each pair are drawn anew, so that pairs are independent and the interval for an
    ideal digest is exact.
    """
    kinds = _named("update", updates, UPDATES)
    functions = chosen(digests)
    size = _checked(block_size, pairs, _MOST_PAIRS, "pairs", seed)
    made = _named("content", contents, CONTENTS)
    rows = []
    with progress("measure updates", len(made) * pairs, unit="blocks") as advance:
        for content in made:
            tally = _Tally(kinds, functions)

            def work(
                first: int, number: int, content: str = content, tally: _Tally = tally
            ) -> None:
                _follow(tally, content, first, number, size, seed)
                advance(number)

            _in_batches(pairs, size, work, workers)
            rows += [
                (OLD_AND_NEW, content, kind, digest.name, n, size, tally.changed[kind],
                 int(tally.equal[kind, digest.name][n]), seed)
                for kind in kinds for digest in functions for n in widths(digest)
            ]  # fmt: skip
    return measured(rows)


def measure_all_pairs(
    digests: Sequence[str] | None = None,
    *,
    contents: Sequence[str] | None = None,
    blocks: int = 1 << 16,
    block_size: int | str = "4KiB",
    seed: int = 0,
    workers: int | None = None,
) -> pl.DataFrame:
    """Count the pairs with equal digests among many different contents.

    Parameters
    ----------
    digests, contents, block_size, seed, workers
        As for `measure_updates`.
    blocks : int
        Contents, each compared with every other: 2^16 make 2^31 pairs.

    Returns
    -------
    polars.DataFrame
        With the columns of `COLUMNS`: a row per content, digest and number of bits.

    Raises
    ------
    InputError
        If a name is unknown, or a number out of bounds.

    Notes
    -----
    Pairs that share a content are not independent of each other all together, but any two are, for
    an ideal digest. Its count therefore has the mean and the variance of independent pairs, and
    while misses are few, their distribution too (that of Poisson): the interval is then as good.
    """
    functions = chosen(digests)
    size = _checked(block_size, blocks, _MOST_CONTENTS, "blocks", seed)
    made = _named("content", contents, CONTENTS)
    rows = []
    with progress("measure all pairs", len(made) * blocks, unit="blocks") as advance:
        for content in made:
            found = {digest.name: np.empty(blocks, np.uint64) for digest in functions}

            def work(
                first: int, number: int, content: str = content,
                found: Mapping[str, Words] = found,
            ) -> None:  # fmt: skip
                data = _content(content, seed, _OLD, first, number, size)
                for digest in functions:
                    found[digest.name][first : first + number] = _digests(data, digest)
                advance(number)

            _in_batches(blocks, size, work, workers)
            rows += all_pairs(found, content, size, seed)
    return measured(rows)


Row = tuple[str, str, str, str, int, int, int, int, int | None]
"""The first columns of `COLUMNS`, without those that follow from others."""


def all_pairs(
    digests: Mapping[str, Words], content: str, block_size: int, seed: int | None
) -> list[Row]:
    """Rows of one set of different contents, by the digests of all of them."""
    rows: list[Row] = []
    for digest in chosen(list(digests)):
        words = digests[digest.name]
        pairs, bits = len(words) * (len(words) - 1) // 2, widths(digest)
        rows += [
            (ALL_PAIRS, content, "", digest.name, n, block_size, pairs, misses, seed)
            for n, misses in zip(bits, equal_pairs(words, bits), strict=True)
        ]
    return rows


def measured(rows: Sequence[Row]) -> pl.DataFrame:
    """The table of `COLUMNS` for what was counted: with prediction, interval and provenance."""
    made = provenance()
    machine = {k: v for k, v in made.to_dict().items() if k not in ("version", "commit")}
    names = ("pairing", "content", "update", "digest", "bits", "block_size", "pairs", "misses",
             "seed")  # fmt: skip
    types = {c.name: c.dtype for c in COLUMNS}
    frame = pl.DataFrame(list(rows), schema={name: types[name] for name in names}, orient="row")
    bounds = {
        key: chance_interval(*key)
        for key in dict.fromkeys(zip(frame["misses"], frame["pairs"], strict=True))
    }
    keys = list(zip(frame["misses"], frame["pairs"], strict=True))
    return frame.with_columns(
        (pl.col("pairs") * 2.0 ** -pl.col("bits")).alias("expected"),
        pl.Series("low", [bounds[key][0] for key in keys], dtype=pl.Float64),
        pl.Series("high", [bounds[key][1] for key in keys], dtype=pl.Float64),
        pl.lit(made.version).alias("version"),
        pl.lit(made.commit).alias("commit"),
        pl.lit(json.dumps(machine, sort_keys=True)).alias("provenance"),
    ).select(*types)


# --- How they are made ----------------------------------------------------------------------------

# Volumes of the generator: what is drawn for one purpose is never drawn for another.
_OLD, _FRESH, _DRAWS = 0, 1, 2


class _Tally:
    """Sums over the batches of a measurement of updates."""

    def __init__(self, kinds: Sequence[str], functions: Sequence[Digest]) -> None:
        self.kinds, self.functions = kinds, functions
        self.changed = dict.fromkeys(kinds, 0)
        self.equal = {(k, d.name): np.zeros(65, np.int64) for k in kinds for d in functions}
        self.lock = threading.Lock()


def _follow(
    tally: _Tally, content: str, first: int, number: int, block_size: int, seed: int
) -> None:
    """Update blocks in every way, and count what differs and which digests do not."""
    from vmbk.kernels.compare import compare_blocks

    old = _content(content, seed, _OLD, first, number, block_size)
    fresh = _content(content, seed, _FRESH, first, number, block_size)
    known = {digest.name: _digests(old, digest) for digest in tally.functions}
    differs = np.empty(number, np.uint8)
    for kind in tally.kinds:
        draws = _content("random", seed, _DRAWS + list(UPDATES).index(kind), first, number, 32)
        before, after = UPDATES[kind].apply(old, fresh, draws.view(np.uint64))
        compare_blocks(before.reshape(-1), after.reshape(-1), block_size, differs)
        real = differs.view(bool)
        equal = {}
        for digest in tally.functions:
            was = known[digest.name] if before is old else _digests(before, digest)
            equal[digest.name] = equal_low_bits(was[real], _digests(after, digest)[real])
        with tally.lock:
            tally.changed[kind] += int(np.count_nonzero(real))
            for name, counts in equal.items():
                tally.equal[kind, name] += counts


def _content(
    content: str, seed: int, volume: int, first: int, number: int, block_size: int
) -> Blocks:
    """Blocks of content, which depend on their number but not on their batch."""
    from vmbk.kernels.content import fill_content

    data = np.empty(number * block_size, np.uint8)
    versions = np.zeros(number, np.int64)
    fill_content(data, seed, volume, first, versions, block_size, 0, CONTENTS[content], 0)
    return data.reshape(number, block_size)


def _digests(blocks: Blocks, digest: Digest) -> Words:
    return digest_blocks(blocks.reshape(-1), blocks.shape[1], digest)


def _in_batches(
    blocks: int, block_size: int, work: Callable[[int, int], None], workers: int | None
) -> None:
    """Call ``work(first, number)`` for batches of blocks, shared out among threads."""
    step = max(_BATCH // block_size, 1)
    for_each(
        -(-blocks // step),
        lambda i, _: work(i * step, min(step, blocks - i * step)),
        lambda: None,
        default_workers() if workers is None else workers,
    )


def _named(what: str, names: Sequence[str] | None, known: Mapping[str, object]) -> list[str]:
    found = list(known) if names is None else list(dict.fromkeys(names))
    wrong = [name for name in found if name not in known]
    if wrong or not found:
        raise InputError(
            f"{quoted(wrong[0])} is no kind of {what}" if wrong else f"no kind of {what} was named",
            hint=f"choose from {', '.join(known)}",
        )
    return found


def _checked(block_size: int | str, count: int, most: int, what: str, seed: int) -> int:
    size = parse_size(block_size)
    if not 512 <= size <= MIB or size & (size - 1):
        raise InputError(
            f"the block size must be a power of two from 512 B to 1 MiB, not {quoted(block_size)}"
        )
    if not 1 <= count <= most:
        raise InputError(f"{what}: {quoted(count)} is not from 1 to {most}")
    if not 0 <= seed < 1 << 63:
        raise InputError(f"the seed must be 0 to 2^63 - 1, not {quoted(seed)}")
    return size
