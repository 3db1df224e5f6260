"""Words of a column of text: a code a row instead of its bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmbk.kernels.jit import I32, U8, OutI32, OutI64, i64, kernel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@kernel(i64(I32, U8, OutI32, OutI64))
def word_codes(
    starts: NDArray[np.int32],
    data: NDArray[np.uint8],
    codes: NDArray[np.int32],
    firsts: NDArray[np.int64],
) -> int:
    """Number the distinct words of a column in order of appearance.

    Meant for few words: each row is compared with those found so far, the latest match first.

    Parameters
    ----------
    starts : ndarray of int32, shape (n + 1,)
        Where each row's bytes begin in ``data``; the last is where they end.
    data : ndarray of uint8
    codes : ndarray of int32, shape (n,), out
    firsts : ndarray of int64, shape (m,), out
        The first row of each word.

    Returns
    -------
    int
        Words found, or -1 if there are more than ``m``; ``codes`` are then of no use.
    """
    found, last = 0, 0
    for row in range(len(codes)):
        start, size = i64(starts[row]), i64(starts[row + 1]) - i64(starts[row])
        code = -1
        for i in range(found):
            candidate = last + i
            if candidate >= found:
                candidate -= found
            other = firsts[candidate]
            at = i64(starts[other])
            if i64(starts[other + 1]) - at != size:
                continue
            same = True
            for k in range(size):
                if data[at + k] != data[start + k]:
                    same = False
                    break
            if same:
                code = candidate
                break
        if code < 0:
            if found == len(firsts):
                return -1
            firsts[found] = row
            code = found
            found += 1
        codes[row] = code
        last = code
    return found
