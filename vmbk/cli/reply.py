"""What commands answer, and how people see it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Reply = dict[str, Any]
"""What a command answers: the JSON object; ``_text`` is what people see instead, ``_exit`` the exit
code where it is not 0."""


def lines(rows: Sequence[tuple[str, object]]) -> str:
    """Names and values, one pair a line."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def grid(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in columns."""
    cells = [list(header), *[[str(c) for c in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells
    )
