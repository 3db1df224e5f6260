"""The blocks that a pass keeps something about: leaves of some blocks each, made when needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from vmbk.errors import InputError
from vmbk.trace.metrics.dirty import checked_block_size, zeros
from vmbk.trace.schema import Volume
from vmbk.units import format_size

if TYPE_CHECKING:
    from vmbk.trace.table import Requests

MOST_VOLUMES: Final = 1 << 16
_FIRST_LEAVES: Final = 1 << 10
_NONE: Final = -1
ROW, BLOCK, SLOTS, UNTIL = range(4)
"""Places of the kernels' state."""

_SPREAD: Final = 0x9E37_79B1


class Leaves:
    """A hash table of leaves and the memory of what they hold, both of which grow.

    Parameters
    ----------
    volumes : sequence of Volume
        In order of id.
    block_size : int
        Bytes: a power of two from 512 to 4 MiB.
    leaf_bits : int
        log2 of the blocks of a leaf.
    words : int
        64-bit words of a leaf.
    most_blocks : int
        Leaves of more blocks than this are not made.

    Raises
    ------
    InputError
        If a value is outside its bounds.
    """

    def __init__(
        self,
        volumes: Iterable[Volume],
        block_size: int,
        *,
        leaf_bits: int,
        words: int,
        most_blocks: int,
    ) -> None:
        self.volumes = checked_volumes(volumes)
        self.block_size = checked_block_size(block_size)
        self.shift = block_size.bit_length() - 1
        self._leaf_bits = leaf_bits
        self._words = words
        self._most_blocks = most_blocks
        # All volumes lie one after another. Gaps of any length between them keep volumes whose
        # sizes are powers of two from beginning at the same places of the hash table.
        bases, after = [], 0
        for place, volume in enumerate(self.volumes):
            after += place * _SPREAD & 0xF_FFFF
            bases.append(after)
            after += (volume.size >> self.shift >> leaf_bits) + 1
        if after >= 1 << 62:
            raise InputError(
                f"volumes of {format_size(sum(v.size for v in self.volumes))} in blocks of "
                f"{block_size} bytes are more than can be numbered",
                hint="measure larger blocks, or fewer volumes",
            )
        self.bases = np.array(bases, np.int64)
        self.table = np.full(4 * _FIRST_LEAVES, -1, np.int64)
        self.keys = np.zeros(_FIRST_LEAVES, np.int64)
        self.words = np.zeros(_FIRST_LEAVES * words, np.int64)
        self.state = np.array([0, _NONE, 0, _NONE], np.int64)

    def follow(self, batch: Requests, op_mask: int, step: Callable[[], int]) -> None:
        """Let a kernel follow requests, with more room for leaves whenever it asks for it.

        Parameters
        ----------
        batch : Requests
        op_mask : int
            Bit c is set where requests of operation c count.
        step : callable
            Calls the kernel with the arrays as they are now; returns 0 for more room.

        Raises
        ------
        InputError
            If the requests touch too many blocks.
        """
        self._check(batch, op_mask)
        self.state[[ROW, BLOCK]] = 0, _NONE
        while not step():
            self._grow()

    def _check(self, batch: Requests, op_mask: int) -> None:
        """Refuse a request that alone is more than can be followed, before memory is spent on it.

        Raises
        ------
        InputError
            Quoting its length.
        """
        most = self._most_blocks * self.block_size
        if not len(batch) or int(batch.length.max()) <= most:
            return
        longest = int(batch.length[(op_mask >> batch.op.astype(np.int64) & 1) > 0].max(initial=0))
        if longest > most:
            raise self._refusal(f"a request covers {format_size(longest)}")

    def _refusal(self, what: str) -> InputError:
        most = format_size(self._most_blocks * self.block_size)
        return InputError(
            f"{what}, and in blocks of {format_size(self.block_size)} no more than {most} can be "
            "followed in one pass",
            hint="measure larger blocks, or a part of the trace: trace[first:stop]",
        )

    def _grow(self) -> None:
        """Make room for as many leaves again.

        Raises
        ------
        InputError
            If that would be too many.
        """
        from vmbk.kernels.leaves import find_leaves

        room, most = len(self.keys), self._most_blocks >> self._leaf_bits
        if room >= most:
            raise self._refusal("the requests touch more and more blocks")
        capacity, used = min(2 * room, most), int(self.state[SLOTS])
        keys = self.keys[:used]
        self.keys = zeros(capacity, np.int64)
        # Fresh memory is zero, and what is never touched of it is never there.
        words = zeros(capacity * self._words, np.int64)
        words[: used * self._words] = self.words[: used * self._words]
        self.words = words
        self.table = zeros(2 << (2 * capacity - 1).bit_length(), np.int64)
        self.table.fill(-1)
        # Numbers entered in the order of their slots get the same slots.
        find_leaves(keys, used, self.table, self.keys, np.zeros(used, np.int64), 0)


class Places:
    """Turns the ids of volumes into their places among the volumes.

    Parameters
    ----------
    volumes : sequence of Volume
        In order of id.
    """

    def __init__(self, volumes: Iterable[Volume]) -> None:
        self.ids = np.array([v.id for v in volumes], np.uint32)
        self._dense = bool((self.ids == np.arange(len(self.ids))).all())

    def __call__(self, batch: Requests) -> Requests:
        """The batch with places for ids."""
        if self._dense:
            return batch
        return replace(batch, volume=np.searchsorted(self.ids, batch.volume).astype(np.uint32))


def checked_volumes(volumes: Iterable[Volume]) -> tuple[Volume, ...]:
    """The volumes, if they are not too many to keep figures of each.

    Raises
    ------
    InputError
        If they are.
    """
    volumes = tuple(volumes)
    if len(volumes) > MOST_VOLUMES:
        raise InputError(f"{len(volumes)} volumes, at most {MOST_VOLUMES} are measured")
    return volumes
