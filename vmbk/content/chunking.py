"""Chunks of content: of a fixed size, or with ends that are found in the content (FastCDC)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from vmbk.content.source import PIECE, pieces
from vmbk.detect.changes import Digests
from vmbk.disk.base import Bytes
from vmbk.display import key_values
from vmbk.errors import InputError
from vmbk.units import KIB, MIB, format_size, parse_size

Ints = NDArray[np.int64]

LEVEL: Final = 2
"""How far sizes are drawn to the one that is aimed at; what the authors of FastCDC advise."""

_LEAST_CHUNK: Final = 64  # of the hash, 48 bytes count at most
_LEAST_TARGET: Final = 256
_MOST_TARGET: Final = 4 * MIB
_MOST_CHUNK: Final = 256 * MIB

# Masks of 5 to 25 bits, by their number, as the authors' program has them; those of 11 and 13 bits
# are in the paper. Their bits are spread, as the low bits of the hash depend on few bytes only.
_MASKS: Final = (
    0x0000_0000_0180_4110, 0x0000_0000_0180_3110, 0x0000_0000_1803_5100, 0x0000_0018_0003_5300,
    0x0000_0190_0035_3000, 0x0000_5900_0353_0000, 0x0000_D900_0353_0000, 0x0000_D901_0353_0000,
    0x0000_D903_0353_0000, 0x0000_D903_1353_0000, 0x0000_D90F_0353_0000, 0x0000_D903_0353_7000,
    0x0000_D907_0353_7000, 0x0000_D907_0753_7000, 0x0000_D917_0753_7000, 0x0000_D917_4753_7000,
    0x0000_D917_6753_7000, 0x0000_D937_6753_7000, 0x0000_D937_7753_7000, 0x0000_D937_7757_7000,
    0x0000_DB37_7757_7000,
)  # fmt: skip
_FEWEST_BITS: Final = 5


@dataclass(frozen=True)
class Chunking:
    """How content is cut.

    Parameters
    ----------
    target : int
        Bytes that a chunk is to have. Those of FastCDC are larger in the mean: at level 2 by about
        an eighth on random content, and up to eight times as large on zeros.
    least, most : int
        Bytes of a chunk: at least, but for the last one, and at most.
    level : int
        0 to 3: of FastCDC's normalised chunking. The higher, the nearer sizes are to `target`.
    fixed : bool
        Whether every chunk but the last has `target` bytes.
    """

    target: int
    least: int
    most: int
    level: int
    fixed: bool = False

    @classmethod
    def of_size(cls, size: int | str) -> Chunking:
        """Chunks of a fixed size.

        Raises
        ------
        InputError
            If it is not 64 bytes to 256 MiB.
        """
        target = parse_size(size)
        if not _LEAST_CHUNK <= target <= _MOST_CHUNK:
            raise InputError(f"chunks of {size!r}: 64 bytes to 256 MiB are possible")
        return cls(target, target, target, 0, fixed=True)

    @classmethod
    def fastcdc(
        cls,
        target: int | str = 64 * KIB,
        *,
        least: int | str | None = None,
        most: int | str | None = None,
        level: int = LEVEL,
    ) -> Chunking:
        """Chunks with ends that are found in the content.

        Parameters
        ----------
        target : int or str
            256 bytes to 4 MiB.
        least, most : int or str, optional
            A quarter of the target, and eight times as much, by default. At least 64 bytes, and at
            most 256 MiB.
        level : int
            0 to 3.

        Raises
        ------
        InputError
            If a value is not among those.
        """
        middle = parse_size(target)
        if not _LEAST_TARGET <= middle <= _MOST_TARGET:
            raise InputError(f"chunks of about {target!r}: 256 bytes to 4 MiB are possible")
        low = middle // 4 if least is None else parse_size(least)
        high = middle * 8 if most is None else parse_size(most)
        if not _LEAST_CHUNK <= low <= middle <= high <= _MOST_CHUNK:
            raise InputError(
                f"chunks of {low} to {high} bytes, {middle} if possible: the target lies between "
                "both, the least is 64 bytes and the most 256 MiB"
            )
        if level not in (0, 1, 2, 3):
            raise InputError(f"level {level!r} of normalised chunking: there are 0 to 3")
        return cls(middle, low, high, level)

    def masks(self) -> tuple[int, int]:
        """Bits of the hash that are zero at ends up to the target, and beyond it."""
        bits = round(float(np.log2(self.target))) - _FEWEST_BITS
        return _MASKS[bits + self.level], _MASKS[bits - self.level]


@dataclass(frozen=True)
class Chunks:
    """Content that was cut, in the order of its bytes.

    Attributes
    ----------
    chunking : Chunking
    lengths : ndarray of int64, shape (chunks,)
        Bytes of each chunk.
    digests : ndarray of uint64, shape (chunks,)
        XXH3-64 of each chunk.
    zero : ndarray of bool, shape (chunks,)
        Which chunks are all zeros.
    """

    chunking: Chunking
    lengths: Ints = field(repr=False)
    digests: Digests = field(repr=False)
    zero: NDArray[np.bool_] = field(repr=False)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def size(self) -> int:
        """Bytes of all chunks."""
        return int(self.lengths.sum())

    @property
    def ends(self) -> Ints:
        """Where each chunk ends, in bytes from the beginning; int64."""
        return np.cumsum(self.lengths)

    def unique(self) -> tuple[int, int]:
        """How many different chunks there are, zeros aside, and their bytes."""
        _, first = np.unique(self.digests[~self.zero], return_index=True)
        return len(first), int(self.lengths[~self.zero][first].sum())

    def _repr_html_(self) -> str:
        kinds, stored = self.unique()
        rows = {
            "content": format_size(self.size),
            "chunks": f"{len(self):,}",
            "mean": format_size(self.size / max(len(self), 1)),
            "zero": f"{int(self.zero.sum()):,}",
            "different": f"{kinds:,} ({format_size(stored)}), zeros aside",
        }
        return key_values("Chunks", rows)


def cut_chunks(data: Any, chunking: Chunking | int | str = 64 * KIB) -> Chunks:
    """Cut content into chunks.

    Content of any length streams through a few chunks' worth of memory. Where chunks end does not
    depend on how it comes.

    Parameters
    ----------
    data : path, buffer, or iterable of buffers
        A file, an image or a block device by its path; anything with the buffer protocol; or
        several of those that continue each other.
    chunking : Chunking, or int or str
        A size stands for ``Chunking.fastcdc(size)``.

    Returns
    -------
    Chunks

    Raises
    ------
    InputError
        If the chunking is not possible or the content cannot be read.
    StorageError
        If the operating system refuses to read.

    Notes
    -----
    FastCDC as in Xia et al., IEEE TPDS 31(9), 2020; boundaries are those of the authors' program
    and of the libraries that follow it.

    Examples
    --------
    >>> cut_chunks(bytes(100_000), "16KiB").lengths.tolist()
    [100000]
    """
    how = chunking if isinstance(chunking, Chunking) else Chunking.fastcdc(chunking)
    found = list(_fixed(data, how.target) if how.fixed else _fastcdc(data, how))
    lengths, digests, zero = ([part[i] for part in found] for i in range(3))
    return Chunks(
        how,
        np.concatenate([np.empty(0, np.int64), *lengths]),
        np.concatenate([np.empty(0, np.uint64), *digests]),
        np.concatenate([np.empty(0, np.uint8), *zero]).astype(bool),
    )


def _fixed(data: Any, size: int) -> Iterator[tuple[Ints, Digests, Bytes]]:
    from vmbk.kernels.compare import zero_blocks
    from vmbk.kernels.hash import xxh3_64_blocks

    for piece in pieces(data, max(PIECE // size, 1) * size):
        blocks = -(-len(piece) // size)
        digests, zero = np.empty(blocks, np.uint64), np.empty(blocks, np.uint8)
        xxh3_64_blocks(piece, size, digests)
        zero_blocks(piece, size, zero)
        lengths = np.full(blocks, size, np.int64)
        lengths[-1] = len(piece) - size * (blocks - 1)
        yield lengths, digests, zero


def _fastcdc(data: Any, how: Chunking) -> Iterator[tuple[Ints, Digests, Bytes]]:
    from vmbk.kernels.chunk import digest_chunks, find_ends

    before, beyond = (cast(int, np.uint64(mask)) for mask in how.masks())
    source = pieces(data, max(PIECE, how.most))
    held: Bytes = np.empty(0, np.uint8)  # what belongs to a chunk that has not ended yet
    piece = next(source, None)
    while piece is not None:
        content = np.concatenate((held, piece))
        piece = next(source, None)
        ends = np.empty(len(content) // (how.least - 1) + 1, np.int64)
        found = find_ends(
            content, piece is None, how.least, how.target, how.most, before, beyond, ends
        )
        ends = ends[:found]
        digests, zero = np.empty(found, np.uint64), np.empty(found, np.uint8)
        digest_chunks(content, ends, digests, zero)
        held = content[int(ends[-1]) if found else 0 :]
        yield np.diff(ends, prepend=0), digests, zero
