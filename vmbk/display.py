"""How objects show themselves in a notebook: small HTML tables, everything escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape


def key_values(title: str, rows: Mapping[str, object]) -> str:
    """A two-column table with a caption."""
    body = "".join(
        f"<tr><th style='text-align:left'>{escape(str(k))}</th>"
        f"<td style='text-align:left'>{escape(str(v))}</td></tr>"
        for k, v in rows.items()
    )
    return f"<table><caption>{escape(title)}</caption>{body}</table>"


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table with a caption and a header row."""
    head = "".join(f"<th>{escape(h)}</th>" for h in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f"<table><caption>{escape(title)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )
