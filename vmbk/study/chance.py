"""What chance predicts: missed changes of an ideal digest, and what they come to in a fleet's year.

An ideal digest of n bits gives two different contents the same digest once in 2^n. A detector
compares the old and the new digest of a block, so of m changed blocks it misses m / 2^n. Where
every one of k contents is compared with every other, as a lookup by digest does, there are
k (k - 1) / 2 pairs, and 2^(n / 2) contents are enough for the first that are taken for the same:
the *birthday bound* (Menezes, van Oorschot and Vanstone, Handbook of Applied Cryptography, 1996,
section 2.1.5). Of an ideal digest any two of those pairs are independent, so that the count has
the mean and the variance of as many independent trials.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from vmbk.errors import InputError
from vmbk.units import GIB, KIB, quoted

if TYPE_CHECKING:
    import polars as pl

LEVEL: Final = 0.95
"""Of intervals: one in twenty does not hold the truth."""

MOST_EXACT: Final = 1000
"""Misses up to which intervals are exact."""

DAYS: Final = 365
FLEET_BITS: Final = (8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96, 128)

_NORMAL: Final = 1.959963984540054  # quantile of LEVEL, both sides


def chance_interval(misses: int, pairs: int) -> tuple[float, float]:
    """Expected misses that are compatible with those seen, at 95 %.

    Parameters
    ----------
    misses, pairs : int
        0 <= misses <= pairs.

    Returns
    -------
    float, float
        The least and the most expected misses: `pairs` times the interval of Clopper and Pearson
        (The use of confidence or fiducial limits illustrated in the case of the binomial, 1934) for
        the share. It is exact up to `MOST_EXACT` misses, or as many pairs not missed; between them
        it is Wilson's (1927) with correction for continuity, which differs by less than one miss.

    Raises
    ------
    InputError
        If there are fewer than 0 misses, or more than pairs.
    """
    if not 0 <= misses <= pairs:
        raise InputError(f"{misses} misses of {pairs} pairs")
    if pairs == 0:
        return 0.0, 0.0
    if min(misses, pairs - misses) > MOST_EXACT:
        return _wilson(misses, pairs)
    if misses > pairs - misses:
        low, high = chance_interval(pairs - misses, pairs)
        return pairs - high, pairs - low
    tail = (1 - LEVEL) / 2
    high = pairs * _share_at(misses, pairs, tail)
    low = pairs * _share_at(misses - 1, pairs, 1 - tail) if misses else 0.0
    return low, high


def _share_at(most: int, pairs: int, chance: float) -> float:
    """The share of which `most` misses or fewer have this chance."""
    i = np.arange(most + 1, dtype=np.float64)
    ways = np.concatenate([[0.0], np.cumsum(np.log((pairs - i[1:] + 1) / i[1:]))])
    low, high = 0.0, min(1.0, (most + 20 + 20 * math.sqrt(most + 1)) / pairs)
    for _ in range(60):
        share = (low + high) / 2
        logs = ways + i * (math.log(share) - math.log1p(-share)) + pairs * math.log1p(-share)
        if np.exp(logs).sum() > chance:
            low = share
        else:
            high = share
    return (low + high) / 2


def _wilson(misses: int, pairs: int) -> tuple[float, float]:
    z, bounds = _NORMAL, []
    for count, sign in ((misses - 0.5, -1), (misses + 0.5, 1)):
        share = count / pairs
        middle = share + z * z / (2 * pairs)
        half = z * math.sqrt(share * (1 - share) / pairs + (z / (2 * pairs)) ** 2)
        bounds.append(pairs * (middle + sign * half) / (1 + z * z / pairs))
    return max(bounds[0], 0.0), min(bounds[1], float(pairs))


@dataclass(frozen=True)
class Fleet:
    """Machines that are backed up by comparing digests.

    The defaults are of 2026: as many machines as one vault of Azure Backup takes, a disk of a size
    that it offers, and a churn amid the 2 to 7 % a day that its documents call typical (see the
    pages on limits and on Instant Restore). They are round on purpose: misses are in proportion to
    each of them, and each bit of the digest halves them.

    Attributes
    ----------
    machines : int
        Each with one disk.
    disk_bytes : int
        Bytes of a disk.
    daily_churn : float
        Share of a disk's blocks that a day changes.
    backups_per_day : int
        Every block that a day changes counts as changed between every two backups of that day,
        which is the worst case.
    block_size : int
        Bytes per block.
    sub_blocks : float
        Changed sub-blocks of a changed block, where drill-down compares a second digest; 0 without
        drill-down. A sub-block that is the only one to have changed in its block does not count:
        a changed block in which no sub-block differs is sent whole. The default is what the shipped
        captures have at 64 KiB and 4 KiB, rounded up (`vmbk.study.rewrites.study_captures`).
    """

    machines: int = 1000
    disk_bytes: int = 128 * GIB
    daily_churn: float = 0.05
    backups_per_day: int = 1
    block_size: int = 64 * KIB
    sub_blocks: float = 9.0

    def __post_init__(self) -> None:
        for what, value, least, most in (
            ("machines", self.machines, 1, 10**12),
            ("bytes of a disk", self.disk_bytes, 1, 1 << 63),
            ("daily churn", self.daily_churn, 0, 1),
            ("backups a day", self.backups_per_day, 1, 86400),
            ("block size", self.block_size, 1, 1 << 40),
            ("changed sub-blocks of a block", self.sub_blocks, 0, 1 << 31),
        ):
            if not least <= value <= most:
                raise InputError(f"{what}: {quoted(value)} is not from {least} to {most}")

    @property
    def blocks(self) -> int:
        """Blocks of all disks."""
        return self.machines * -(-self.disk_bytes // self.block_size)

    @property
    def changed_blocks(self) -> float:
        """Changed blocks that all backups of a year compare."""
        return self.blocks * self.daily_churn * self.backups_per_day * DAYS

    @property
    def comparisons(self) -> float:
        """Changed blocks and sub-blocks of a year: each may be missed."""
        return self.changed_blocks * (1 + self.sub_blocks)


def fleet_year(fleet: Fleet | None = None, bits: Sequence[int] = FLEET_BITS) -> pl.DataFrame:
    """Silent misses that a fleet's year is to expect.

    Parameters
    ----------
    fleet : Fleet, optional
        By default `Fleet()`.
    bits : sequence of int
        Of ideal digests, 1 to 1024 each.

    Returns
    -------
    polars.DataFrame
        A row per number of bits:

        ================= ====== =============================================================
        bits              i64    of the digest
        block_misses      f64    expected changed blocks a year whose digest stays the same
        sub_block_misses  f64    expected changed sub-blocks a year that drill-down misses
        misses            f64    both together
        probability       f64    of at least one in a year
        years_per_miss    f64    mean years from one to the next; null where none is expected
        lookups           f64    expected pairs of different blocks, of all disks at one time,
                                 that a lookup by this digest would take for the same: the
                                 birthday bound, for comparison
        ================= ====== =============================================================

    Raises
    ------
    InputError
        If a number of bits is out of bounds.

    Notes
    -----
    A missed block stays wrong in every later recovery point until it changes again, or until a
    detector that compares no digests reads it. The chance is that of accidents: XXH3 and CRC do
    not withstand one who chooses content to collide.
    """
    import polars as pl

    fleet = fleet or Fleet()
    rows = []
    for n in _checked_bits(bits):
        blocks = math.ldexp(fleet.changed_blocks, -n)
        subs = math.ldexp(fleet.changed_blocks * fleet.sub_blocks, -n)
        misses = blocks + subs
        rows.append(
            (n, blocks, subs, misses, -math.expm1(-misses), 1 / misses if misses else None,
             math.ldexp(fleet.blocks * (fleet.blocks - 1) / 2, -n))
        )  # fmt: skip
    names = ("block_misses", "sub_block_misses", "misses", "probability", "years_per_miss",
             "lookups")  # fmt: skip
    schema = {"bits": pl.Int64, **dict.fromkeys(names, pl.Float64)}
    return pl.DataFrame(rows, schema=schema, orient="row")


def bits_needed(fleet: Fleet | None = None, misses_per_year: float = 1e-6) -> int:
    """The shortest ideal digest that keeps a fleet's silent misses below a rate.

    Parameters
    ----------
    fleet : Fleet, optional
        By default `Fleet()`.
    misses_per_year : float
        Expected ones; a millionth is one in a million fleet-years.

    Returns
    -------
    int
        Bits.

    Raises
    ------
    InputError
        If the rate is not positive.
    """
    if not misses_per_year > 0:
        raise InputError(f"misses a year: {quoted(misses_per_year)} is not above 0")
    comparisons = (fleet or Fleet()).comparisons
    if not comparisons:
        return 1
    bits = max(math.floor(math.log2(comparisons / misses_per_year)), 0)
    while math.ldexp(comparisons, -bits) >= misses_per_year:
        bits += 1
    return max(bits, 1)


def _checked_bits(bits: Iterable[int]) -> list[int]:
    found = list(bits)
    for n in found:
        if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= 1024:
            raise InputError(f"a digest of {quoted(n)} bits: 1 to 1024 are possible")
    return found
