"""What content is like, block by block: entropy, compressibility, zeros and duplicates."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vmbk.content.source import PIECE, pieces
from vmbk.detect.scan import default_workers
from vmbk.errors import InputError
from vmbk.units import KIB, MIB, parse_size

if TYPE_CHECKING:
    import polars as pl

EVERY: Final = 4
"""One window of so many is looked at for what repeats."""

_MOST_BLOCK: Final = 64 * MIB
_TERMS: Final = 64 * KIB
_PACKABLE: Final = 0.9
"""Packed size over size up to which a block counts as compressible."""


def content_blocks(
    data: Any,
    block_size: int | str = 64 * KIB,
    *,
    every: int = EVERY,
    workers: int | None = None,
) -> pl.DataFrame:
    """Measure the content of a disk image or of a buffer, block by block.

    Parameters
    ----------
    data : path, buffer, or iterable of buffers
        A file, an image or a block device by its path; anything with the buffer protocol; or
        several of those that continue each other.
    block_size : int or str
        Bytes of a block, 64 bytes to 64 MiB.
    every : int
        Of how many windows of 4 KiB one is looked at for what repeats. 1 looks at all of a block,
        which takes about as long as compressing it; blocks of up to four windows are so anyway.
    workers : int, optional
        Threads; as many as there are processors by default.

    Returns
    -------
    polars.DataFrame
        A row per block:

        ============ ====== ==================================================================
        block        i64    its number
        offset       i64    bytes; where it begins
        bytes        i64    of the block; the last may be short
        zero         bool   whether it is all zeros
        entropy      f64    Shannon entropy of its bytes, bits per byte
        packed_bytes i64    bytes that zstd level 1 would make of it, estimated
        digest       u64    XXH3-64
        duplicate    bool   whether a block before it has the same content; not of zeros
        ============ ====== ==================================================================

    Raises
    ------
    InputError
        If an argument is not possible or the content cannot be read.
    StorageError
        If the operating system refuses to read.

    Notes
    -----
    The estimate against zstd 1, as a mean absolute error in percent of the block: with ``every=1``
    or blocks of at most 16 KiB below 1.5 on text, machine code and file systems; with ``every=4``
    at 64 KiB 2 to 5, always somewhat too large, since what repeats far away is seen less. Zeros and
    random content are told exactly.
    """
    import polars as pl

    unit = parse_size(block_size)
    if not 64 <= unit <= _MOST_BLOCK:
        raise InputError(f"blocks of {block_size!r}: 64 bytes to 64 MiB are possible")
    if not 1 <= every <= 1024:
        raise InputError(f"every {every} windows: 1 to 1024 are possible")
    if workers is not None and workers < 1:
        raise InputError(f"workers must be at least 1, not {workers}")
    threads = workers or default_workers()
    terms = np.arange(_TERMS + 1, dtype=np.float64)
    terms[2:] *= np.log2(terms[2:])
    terms[1] = 0
    found = []
    with ThreadPoolExecutor(threads) as pool:
        for piece in pieces(data, max(PIECE // unit, 1) * unit):
            blocks = -(-len(piece) // unit)
            share = -(-blocks // threads) * unit
            parts = [piece[at : at + share] for at in range(0, len(piece), share)]
            # A piece is valid until the next one is asked for: this waits for all parts of it.
            found += list(pool.map(lambda part: _measure(part, unit, every, terms), parts))
    if not found:
        found.append(_measure(np.empty(0, np.uint8), unit, every, terms))
    entropy, packed, digest, lengths, zero = (np.concatenate(c) for c in zip(*found, strict=True))
    _, first, which = np.unique(digest, return_index=True, return_inverse=True)
    number = np.arange(len(digest))
    return pl.DataFrame(
        {
            "block": number,
            "offset": number * unit,
            "bytes": lengths,
            "zero": zero,
            "entropy": entropy,
            "packed_bytes": packed.astype(np.int64),
            "digest": digest,
            "duplicate": (first[which] != number) & ~zero,
        }
    )


def _measure(part: Any, unit: int, every: int, terms: Any) -> tuple[Any, ...]:
    from vmbk.kernels.compare import zero_blocks
    from vmbk.kernels.hash import xxh3_64_blocks
    from vmbk.kernels.statistics import COUNTERS, PLACES, WINDOW, measure_content

    blocks = -(-len(part) // unit)
    entropy, packed = np.empty(blocks), np.empty(blocks)
    digest, zero = np.empty(blocks, np.uint64), np.empty(blocks, np.uint8)
    counts, places = np.empty(COUNTERS, np.int32), np.empty(PLACES, np.int32)
    # At least four windows of a block are looked at, so that one does not stand for all.
    step = max(min(every, unit // (4 * WINDOW)), 1)
    measure_content(part, unit, step, terms, counts, places, entropy, packed)
    xxh3_64_blocks(part, unit, digest)
    zero_blocks(part, unit, zero)
    lengths = np.full(blocks, unit, np.int64)
    if blocks:
        lengths[-1] = len(part) - unit * (blocks - 1)
    return entropy, packed, digest, lengths, zero.astype(bool)


def content_summary(blocks: pl.DataFrame) -> pl.DataFrame:
    """Sum up blocks by kind: zero, duplicate, compressible and incompressible.

    Parameters
    ----------
    blocks : polars.DataFrame
        As `content_blocks` returns it.

    Returns
    -------
    polars.DataFrame
        A row per kind, each block in the first that it fits: ``zero``, ``duplicate`` (of a block
        before it), ``compressible`` (estimated to shrink by a tenth or more), ``incompressible``.

        ============ ====== ==================================================================
        kind         str
        blocks       i64
        bytes        i64
        share        f64    of all bytes
        entropy      f64    bits per byte, mean over the bytes of these blocks; null without any
        packed_bytes i64    that zstd level 1 would make of each block alone, estimated
        ============ ====== ==================================================================
    """
    import polars as pl

    kinds = ("zero", "duplicate", "compressible", "incompressible")
    size, packed = pl.col("bytes"), pl.col("packed_bytes")
    kind = (
        pl.when("zero").then(pl.lit(kinds[0]))
        .when("duplicate").then(pl.lit(kinds[1]))
        .when(packed <= _PACKABLE * size).then(pl.lit(kinds[2]))
        .otherwise(pl.lit(kinds[3]))
    )  # fmt: skip
    found = blocks.group_by(kind.alias("kind")).agg(
        pl.len().cast(pl.Int64).alias("blocks"),
        size.sum(),
        ((pl.col("entropy") * size).sum() / size.sum()).alias("entropy"),
        packed.sum(),
    )
    total = max(int(blocks["bytes"].sum()), 1)
    return (
        pl.DataFrame({"kind": kinds})
        .join(found, on="kind", how="left", maintain_order="left")
        .with_columns(pl.col("blocks", "bytes", "packed_bytes").fill_null(0))
        .select("kind", "blocks", "bytes", (size / total).alias("share"), "entropy", "packed_bytes")
    )
