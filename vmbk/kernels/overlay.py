"""Laying one sorted list of extents over another."""

from __future__ import annotations

from typing import Any

from vmbk.kernels.jit import I64, OutI64, i64, kernel


@kernel(i64(I64, I64, I64, I64, I64, I64, OutI64, OutI64, OutI64))
def overlay_extents(
    base_offsets: Any,
    base_lengths: Any,
    base_rows: Any,
    top_offsets: Any,
    top_lengths: Any,
    top_rows: Any,
    offsets: Any,
    lengths: Any,
    rows: Any,
) -> Any:
    """Merge two lists of extents; where both cover a byte, the top one counts.

    Each list is sorted by offset and disjoint, its lengths positive. ``rows`` say for each extent
    where it comes from; a part of an extent keeps the row of the whole. The outputs need room for
    ``len(base) + 2 * len(top)``: every top extent can cut one base extent in two.

    Returns how many extents the result has. It is sorted and disjoint as well.
    """
    count = 0
    base, top = 0, 0
    position = 0  # everything of the base before this is written or covered
    while base < len(base_offsets):
        start = max(base_offsets[base], position)
        end = base_offsets[base] + base_lengths[base]
        if start >= end:
            base += 1
        elif top < len(top_offsets) and top_offsets[top] <= start:
            offsets[count] = top_offsets[top]
            lengths[count] = top_lengths[top]
            rows[count] = top_rows[top]
            count += 1
            position = max(position, top_offsets[top] + top_lengths[top])
            top += 1
        else:
            if top < len(top_offsets):
                end = min(end, top_offsets[top])
            offsets[count] = start
            lengths[count] = end - start
            rows[count] = base_rows[base]
            count += 1
            position = end
    while top < len(top_offsets):
        offsets[count] = top_offsets[top]
        lengths[count] = top_lengths[top]
        rows[count] = top_rows[top]
        count += 1
        top += 1
    return count
