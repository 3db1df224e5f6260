"""Digests that a checksum detector could use, and how often two of them are equal.

A detector that compares digests misses a change where the digest of the old content is that of the
new. Digests are cut to their *low* bits, as a table index or a field of a record would do it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vmbk.errors import InputError
from vmbk.units import quoted

Words = NDArray[np.uint64]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Digest:
    """A digest of the study.

    Attributes
    ----------
    name : str
    bits : int
        Of the whole digest.
    doc : str
        What is known about the changes that it misses.
    source : str
        Where that is said.
    """

    name: str
    bits: int
    doc: str
    source: str


DIGESTS: Final[Mapping[str, Digest]] = {
    d.name: d
    for d in (
        Digest(
            "xxh3-64", 64,
            "mixes every bit into every other; made to be fast, not to withstand an enemy",
            "xxHash specification (xxhash_spec.md), section XXH3",
        ),
        Digest(
            "crc32c", 32,
            "linear: whether a change is missed depends on what it flips, never on the content; "
            "finds every burst of up to 32 bits, so every change within 4 bytes",
            "Peterson and Brown, Cyclic codes for error detection, 1961; polynomial of RFC 3720",
        ),
        Digest(
            "crc32", 32,
            "as crc32c, by the polynomial of Ethernet and zlib",
            "Peterson and Brown, Cyclic codes for error detection, 1961; RFC 1952, section 8",
        ),
        Digest(
            "adler-32", 32,
            "two sums modulo 65521: short blocks fill few of their values, and changes that keep "
            "the sum of the bytes are told apart by one half only",
            "RFC 1950, section 8.2; Stone, Greenwald, Partridge and Hughes, Performance of "
            "checksums and CRCs over real data, 1998; RFC 3309, section 1",
        ),
    )
}  # fmt: skip
"""Digests by name."""

WIDTHS: Final = (*range(8, 33), 64)
"""Bits to which digests are cut; those of 32 bits end there."""

CRC32: Final = 0xEDB88320
"""The polynomial of CRC-32, reflected: the highest power last."""


def chosen(names: Sequence[str] | None) -> list[Digest]:
    """Digests by name, all of them by default.

    Raises
    ------
    InputError
        If there is none of a name.
    """
    names = list(DIGESTS) if names is None else list(names)
    wrong = [name for name in names if name not in DIGESTS]
    if wrong or not names:
        raise InputError(
            f"{quoted(wrong[0])} is no digest" if wrong else "no digest was named",
            hint=f"choose from {', '.join(DIGESTS)}",
        )
    return [DIGESTS[name] for name in dict.fromkeys(names)]


def widths(digest: Digest) -> list[int]:
    """The bits of `WIDTHS` that a digest has."""
    return [bits for bits in WIDTHS if bits <= digest.bits]


def digest_blocks(data: Bytes, block_size: int, digest: Digest) -> Words:
    """The digest of every block.

    Parameters
    ----------
    data : ndarray of uint8, shape (n,)
        Whole blocks.
    block_size : int
        Bytes.
    digest : Digest

    Returns
    -------
    ndarray of uint64, shape (n / block_size,)
        Shorter digests in the low bits.
    """
    out = np.empty(len(data) // block_size, np.uint64)
    _blocks_kernel(digest.name)(data, block_size, out)
    return out


@cache
def _blocks_kernel(name: str) -> Callable[[Bytes, int, Words], None]:
    """What digests blocks, of a family of kernels that is loaded on first use."""
    if name == "xxh3-64":
        from vmbk.kernels.hash import xxh3_64_blocks

        return xxh3_64_blocks
    if name == "crc32c":
        from vmbk.kernels.crc import crc32c_blocks

        def widened(data: Bytes, block_size: int, out: Words) -> None:
            found = np.empty(len(out), np.uint32)
            crc32c_blocks(data, block_size, found)
            out[:] = found

        return widened
    from vmbk.kernels.sums import adler32_blocks, crc_blocks

    if name == "adler-32":
        return adler32_blocks
    tables = crc_tables(CRC32)
    return lambda data, block_size, out: crc_blocks(data, block_size, tables, out)


def crc_tables(polynomial: int) -> Words:
    """Tables of `vmbk.kernels.sums.crc_blocks`.

    Parameters
    ----------
    polynomial : int
        Reflected, 32 bits.

    Returns
    -------
    ndarray of uint64, shape (2048,)
        Eight tables of 256: the remainder of each byte, followed by 0 to 7 zero bytes.
    """
    one, eight = np.uint64(1), np.uint64(8)
    tables = np.zeros((8, 256), np.uint64)
    tables[0] = np.arange(256)
    for _ in range(8):
        odd = tables[0] & one
        tables[0] = (tables[0] >> one) ^ (odd * np.uint64(polynomial))
    for k in range(1, 8):
        last = (tables[k - 1] & np.uint64(0xFF)).astype(np.int64)
        tables[k] = (tables[k - 1] >> eight) ^ tables[0][last]
    return tables.reshape(-1)


def equal_low_bits(old: Words, new: Words) -> NDArray[np.int64]:
    """How many pairs of digests are equal in their low bits, for every number of bits at once.

    Parameters
    ----------
    old, new : ndarray of uint64, shape (pairs,)

    Returns
    -------
    ndarray of int64, shape (65,)
        Item n: pairs that are equal in their low n bits.
    """
    differs = old ^ new
    lowest = differs & (~differs + np.uint64(1))
    equal = np.bitwise_count(lowest - np.uint64(1))  # 64 where nothing differs
    histogram = np.bincount(equal, minlength=65)
    return histogram[::-1].cumsum()[::-1].astype(np.int64)


def equal_pairs(digests: Words, bits: Sequence[int]) -> list[int]:
    """How many of all pairs among digests are equal in their low bits.

    Parameters
    ----------
    digests : ndarray of uint64, shape (k,)
    bits : sequence of int
        From 1 to 64 each.

    Returns
    -------
    list of int
        For each number of bits, of k (k - 1) / 2 pairs.
    """
    # Sorted by their bits in reverse, those that share low bits lie together for every number.
    ordered = np.sort(_reversed_bits(digests))
    step = ordered[1:] ^ ordered[:-1]
    found = []
    for n in bits:
        last = np.flatnonzero(step >> np.uint64(64 - n))
        sizes = np.diff(np.concatenate([[-1], last, [len(ordered) - 1]]))
        found.append(int((sizes * (sizes - 1) // 2).sum()) if len(ordered) else 0)
    return found


def _reversed_bits(words: Words) -> Words:
    for shift, mask in (
        (1, 0x5555_5555_5555_5555), (2, 0x3333_3333_3333_3333), (4, 0x0F0F_0F0F_0F0F_0F0F),
    ):  # fmt: skip
        by, keep = np.uint64(shift), np.uint64(mask)
        words = ((words >> by) & keep) | ((words & keep) << by)
    return words.byteswap()
