"""Crash states: which write each sector of a disk holds, as one state follows another.

A *piece* is the run of sectors that a request covers; the sectors of all pieces, numbered through,
are *cells*: a cell is what one request left in one sector. The *owner* of a sector is the number of
the cell that it holds plus 1, or 0 where it was never written.

A state's digest is the sum, modulo 2^64, over its sectors that are not all zero, of a mixture of
where the sector is and the XXH3-64 of its bytes. It follows each change of an owner.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vmbk.kernels.compare import _range_is_zero
from vmbk.kernels.content import _GAMMA, _mix
from vmbk.kernels.intrinsics import bytes_of
from vmbk.kernels.jit import I32, I64, U8, U64, OutI32, OutI64, OutU64, i64, kernel, u64, void
from vmbk.kernels.xxh3 import SECRET, _digest_64

if TYPE_CHECKING:
    from numpy.typing import NDArray

SECTOR = 512
"""Bytes of a sector: what a disk writes whole or not at all."""

UNDONE, TOUCHED = 0, 1
"""Places of the state of `follow_states`."""

_NO_SEED, _NOTHING = np.uint64(0), np.uint64(0)


@kernel(u64(i64, u64))
def _share(place: int, content: Any) -> Any:
    """What a sector adds to the digest."""
    if content == _NOTHING:
        return _NOTHING
    return _mix(content + np.uint64(place + 1) * _GAMMA)


@kernel(void(U8, I64, I64, OutU64))
def sector_digests(
    data: NDArray[np.uint8],
    sources: NDArray[np.int64],
    cells: NDArray[np.int64],
    out: NDArray[np.uint64],
) -> None:
    """XXH3-64 of the bytes of every cell; 0 where they are all zero.

    Parameters
    ----------
    data : (n,) uint8
    sources : (p,) int64
        Where in ``data`` the bytes of each piece begin; negative where it makes zeros.
    cells : (p + 1,) int64
        First cell of each piece.
    out : (cells,) uint64
    """
    content, secret = bytes_of(data), bytes_of(SECRET)
    for p in range(sources.size):
        at = sources[p]
        for cell in range(cells[p], cells[p + 1]):
            if sources[p] < 0 or _range_is_zero(content, at, at + SECTOR):
                out[cell] = _NOTHING
            else:
                out[cell] = _digest_64(content, at, SECTOR, _NO_SEED, secret)
            at += SECTOR


@kernel(void(I64, I64, OutI32, OutI32))
def former_owners(
    sectors: NDArray[np.int64],
    cells: NDArray[np.int64],
    owner: NDArray[np.int32],
    out: NDArray[np.int32],
) -> None:
    """For every cell, who owned its sector until then: what to put back when going back.

    Parameters
    ----------
    sectors : (p,) int64
        First sector of each piece, in the order in which they were written.
    cells : (p + 1,) int64
        First cell of each piece.
    owner : (sectors,) int32
        Zeros; receives the owners after the last piece.
    out : (cells,) int32
    """
    for p in range(sectors.size):
        sector = sectors[p]
        for cell in range(cells[p], cells[p + 1]):
            out[cell] = owner[sector]
            owner[sector] = cell + 1
            sector += 1


@kernel(
    void(
        I64, I64, I32, U64, I64, I64, I64, I64, I64, I64,
        OutI32, OutI64, OutI64, OutI32, OutI64, OutI64, OutU64, OutU64,
    )
)  # fmt: skip
def follow_states(
    sectors: NDArray[np.int64],
    cells: NDArray[np.int64],
    former: NDArray[np.int32],
    contents: NDArray[np.uint64],
    places: NDArray[np.int64],
    stops: NDArray[np.int64],
    run_sectors: NDArray[np.int64],
    run_cells: NDArray[np.int64],
    run_counts: NDArray[np.int64],
    run_stops: NDArray[np.int64],
    owner: NDArray[np.int32],
    at: NDArray[np.int64],
    undo_sectors: NDArray[np.int64],
    undo_owners: NDArray[np.int32],
    touched: NDArray[np.int64],
    state: NDArray[np.int64],
    digest: NDArray[np.uint64],
    digests: NDArray[np.uint64],
) -> None:
    """Go from state to state, touching the sectors between them only.

    A state is a prefix of each volume's pieces, and runs of cells on top of them.

    Parameters
    ----------
    sectors, cells : (p,), (p + 1,) int64
        As for `former_owners`, one volume after the other.
    former : (cells,) int32
        From `former_owners`.
    contents : (cells + 1,) uint64
        By owner: 0, then what `sector_digests` found.
    places : (sectors,) int64
        Where each sector is.
    stops : (n * volumes,) int64
        For each state the piece before which each volume's prefix ends.
    run_sectors, run_cells, run_counts : (runs,) int64
        First sector, first cell and number of cells of each run, in the order of the states.
    run_stops : (n,) int64
        Where the runs of each state end.
    owner : (sectors,) int32
        The owners, kept from call to call.
    at : (volumes,) int64
        Where the prefixes end, kept.
    undo_sectors, undo_owners : (room,)
        What runs have covered, kept; with room for all cells of the runs of any one state.
    touched : (t,) int64
        Receives the sectors that were touched, some more than once; with room for all of them, or
        of no length where nobody wants them.
    state : (2,) int64
        ``UNDONE``: how much there is to be taken back, kept. ``TOUCHED``: how many were touched.
    digest : (1,) uint64
        The digest, kept.
    digests : (n,) uint64
        Receives the digest of each state.
    """
    volumes = at.size
    keep = touched.size > 0
    total = digest[0]
    undone, count, run = state[UNDONE], state[TOUCHED], 0
    for i in range(digests.size):
        # The last that was covered comes first: runs may lie over each other.
        for k in range(undone - 1, -1, -1):
            sector, was = undo_sectors[k], undo_owners[k]
            total -= _share(places[sector], contents[owner[sector]])
            total += _share(places[sector], contents[was])
            owner[sector] = was
            if keep:
                touched[count] = sector
                count += 1
        undone = 0
        for volume in range(volumes):
            here, stop = at[volume], stops[i * volumes + volume]
            for p in range(here, stop):
                sector = sectors[p]
                for cell in range(cells[p], cells[p + 1]):
                    total -= _share(places[sector], contents[owner[sector]])
                    total += _share(places[sector], contents[cell + 1])
                    owner[sector] = cell + 1
                    if keep:
                        touched[count] = sector
                        count += 1
                    sector += 1
            for p in range(here - 1, stop - 1, -1):
                sector = sectors[p]
                for cell in range(cells[p], cells[p + 1]):
                    total -= _share(places[sector], contents[owner[sector]])
                    total += _share(places[sector], contents[former[cell]])
                    owner[sector] = former[cell]
                    if keep:
                        touched[count] = sector
                        count += 1
                    sector += 1
            at[volume] = stop
        for r in range(run, run_stops[i]):
            sector, cell = run_sectors[r], run_cells[r]
            for _ in range(run_counts[r]):
                undo_sectors[undone], undo_owners[undone] = sector, owner[sector]
                undone += 1
                total -= _share(places[sector], contents[owner[sector]])
                total += _share(places[sector], contents[cell + 1])
                owner[sector] = cell + 1
                if keep:
                    touched[count] = sector
                    count += 1
                sector += 1
                cell += 1
        run = run_stops[i]
        digests[i] = total
    digest[0] = total
    state[UNDONE], state[TOUCHED] = undone, count


@kernel(i64(I64, I32, OutI32, OutI64))
def changed_sectors(
    touched: NDArray[np.int64],
    owner: NDArray[np.int32],
    held: NDArray[np.int32],
    out: NDArray[np.int64],
) -> int:
    """Of sectors that were touched those with another owner than an image holds, each once.

    Parameters
    ----------
    touched : (n,) int64
    owner : (sectors,) int32
        The owners as they are to be.
    held : (sectors,) int32
        The owners whose bytes the image holds; brought up to date.
    out : (n,) int64
        Receives the sectors that change.

    Returns
    -------
    int64
        How many change.
    """
    count = 0
    for i in range(touched.size):
        sector = touched[i]
        if held[sector] != owner[sector]:
            held[sector] = owner[sector]
            out[count] = sector
            count += 1
    return count
