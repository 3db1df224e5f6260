"""What change tracking knows, apart from how it is kept: generations, their bitmaps, lost trust."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vmbk.errors import InputError, VmbkError
from vmbk.units import KIB, MIB, format_size

GRANULARITY: Final = 64 * KIB
MIN_GRANULARITY: Final = 4 * KIB
MAX_GRANULARITY: Final = 64 * MIB
MAX_GENERATIONS: Final = 64
"""Bases that are kept; beyond, the oldest is forgotten. Bounds the file and the time of a save."""

MAX_LOSSES: Final = 8
"""Former ids that are remembered, so that a base of one is refused with its true reason."""


class Lost(StrEnum):
    """Why change tracking cannot be trusted for a base."""

    NO_TRACKER = "no tracker"
    UNCLEAN = "unclean"
    SIZE_CHANGED = "size changed"
    GENERATION_MISMATCH = "generation mismatch"
    BASE_DELETED = "base snapshot deleted"
    FOREIGN_WRITE = "foreign write"
    DAMAGED = "damaged"
    SPOT_CHECK = "spot check"


class TrackingLostError(VmbkError):
    """Tracking cannot say what changed. Not for users: the job falls back to checksum.

    Parameters
    ----------
    reason : Lost
        Why.
    message : str
        What was found, with the values.
    """

    def __init__(self, reason: Lost, message: str) -> None:
        super().__init__(f"change tracking is not trusted ({reason.value}): {message}")
        self.reason = reason


@dataclass
class Generation:
    """What was written between two checkpoints.

    Parameters
    ----------
    number : int
        Closed by the checkpoint of this number.
    bits : ndarray of uint8, shape (ceil(blocks / 8),)
        Bit i is set where block i was written, least significant first.
    """

    number: int
    bits: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Bitmap:
    """Blocks that were written.

    Parameters
    ----------
    bits : ndarray of uint8, shape (ceil(n_blocks / 8),)
        Bit i stands for block i, least significant first; bits past the last block are 0.
    n_blocks : int
    granularity : int
        Bytes per block.
    """

    bits: NDArray[np.uint8]
    n_blocks: int
    granularity: int

    @property
    def count(self) -> int:
        """How many blocks are set."""
        from vmbk.kernels.bitmap import count_set

        return int(count_set(self.bits))


@dataclass
class State:
    """All that change tracking knows.

    Parameters
    ----------
    id : str
        128 random bits in hex; a new one wherever earlier generations can no longer be trusted.
    size : int
        Bytes of the image.
    granularity : int
        Bytes per block of the bitmaps.
    generations : list of Generation
        In order. The last is open; each of the others is a base that may be asked for.
    first : int
        Bases below this one are forgotten or were never known; of the others, those that are not
        in ``generations`` were deleted.
    losses : tuple of (str, Lost)
        Former ids and why they are no longer trusted, newest last. An empty id stands for any.
    """

    id: str
    size: int
    granularity: int
    generations: list[Generation] = field(repr=False)
    first: int = 0
    losses: tuple[tuple[str, Lost], ...] = ()

    @property
    def n_blocks(self) -> int:
        """Blocks of the image."""
        return -(-self.size // self.granularity)

    @property
    def generation(self) -> int:
        """The open generation."""
        return self.generations[-1].number

    @property
    def bases(self) -> tuple[int, ...]:
        """Closed generations, in order."""
        return tuple(g.number for g in self.generations[:-1])

    def blank(self) -> NDArray[np.uint8]:
        """A bitmap with no block set."""
        return np.zeros(-(-self.n_blocks // 8), np.uint8)

    def check_id(self, tracker_id: str) -> None:
        """Raise `TrackingLostError` unless a base of that tracker is a base of this one."""
        if tracker_id == self.id:
            return
        for former, reason in reversed(self.losses):
            if former in ("", tracker_id):
                raise TrackingLostError(reason, f"since tracker {tracker_id!r}")
        raise TrackingLostError(
            Lost.GENERATION_MISMATCH,
            f"the base is of tracker {tracker_id!r}, this is {self.id!r}",
        )

    def check_base(self, generation: int) -> None:
        """Raise `TrackingLostError` unless it is a base."""
        if generation not in self.bases:
            known = self.first <= generation < self.generation
            raise TrackingLostError(
                Lost.BASE_DELETED if known else Lost.GENERATION_MISMATCH,
                f"generation {generation} is none of {list(self.bases)}",
            )

    def place_of_base(self, generation: int) -> int:
        """Index of a base in ``generations``; `InputError` where it is none."""
        if generation not in self.bases:
            raise InputError(
                f"generation {generation} is no base", hint=f"bases are {list(self.bases)}"
            )
        return self.bases.index(generation)

    def changed_since(self, generation: int, until: int | None) -> Bitmap:
        """Blocks written after a base and, where given, not after a later closed generation."""
        from vmbk.kernels.bitmap import union

        self.check_base(generation)
        if until is None:
            until = self.generation
        elif not generation <= until < self.generation:
            raise InputError(
                f"changes until generation {until} were asked for; closed since the base "
                f"are {generation} to {self.generation - 1}"
            )
        bits = self.blank()
        reached = generation
        for row in self.generations:
            # Where the snapshot of `until` was deleted, its bitmap is part of the next one.
            if row.number > generation and reached < until:
                union(bits, row.bits, bits)
                reached = row.number
        return Bitmap(bits, self.n_blocks, self.granularity)


def check_granularity(granularity: int) -> None:
    """Raise `InputError` unless it is a power of two in range."""
    if not MIN_GRANULARITY <= granularity <= MAX_GRANULARITY or granularity & (granularity - 1):
        raise InputError(
            f"the granularity must be a power of two from {format_size(MIN_GRANULARITY)} to "
            f"{format_size(MAX_GRANULARITY)}, not {granularity}"
        )


def fresh(size: int, granularity: int, base: int) -> State:
    """A state that begins now: its one base, of the given number, is the image as it is."""
    state = State(secrets.token_hex(16), size, granularity, [], base)
    state.generations = [Generation(base + i, state.blank()) for i in range(2)]
    return state


def start_over(former: State, reason: Lost, size: int) -> State:
    """A state under a new id that refuses all bases of the former one.

    The number of the generation goes on, for people; the new id alone would do.
    """
    state = fresh(size, former.granularity, former.generation)
    state.losses = (*former.losses, (former.id, reason))[-MAX_LOSSES:]
    return state


def delete_base(state: State, generation: int) -> None:
    """Drop a base; what was written during its generation still counts for older ones."""
    from vmbk.kernels.bitmap import union

    at = state.place_of_base(generation)
    rows = state.generations
    if at:
        union(rows[at + 1].bits, rows[at].bits, rows[at + 1].bits)
    del rows[at]


def forget_before(state: State, generation: int) -> None:
    """Drop every base below a generation."""
    state.generations = [g for g in state.generations if g.number >= generation]
    state.first = generation
    state.generations[0].bits[:] = 0  # nobody can ask for what preceded the oldest base
