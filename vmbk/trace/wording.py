"""How sentences about a trace put figures and names into words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vmbk.units import format_duration, quoted


def share(value: float, limit: float | None = None) -> str:
    """A share for people: what is not nothing, not all, or not the limit does not look so."""
    for digits in range(6):
        text = f"{value:.{digits}%}"
        if limit is None or value == limit or text != f"{limit:.{digits}%}":
            break
    if value > 0 and text == "0%":
        return "under 1%"
    return "over 99%" if value < 1 and text == "100%" else text


def times(value: float, limit: float) -> str:
    """A factor for people: what is not the limit does not look so."""
    for digits in range(2, 8):
        text = f"{value:,.{digits}f}"
        if value == limit or text != f"{limit:.{digits}f}":
            break
    return text


def volume_name(id: int, names: Mapping[int, str]) -> str:
    """A volume as a sentence names it: a name that a file chose may be empty, odd or not its own.

    Where others have the same name, its id stands beside it.
    """
    name = names[id]
    shown = name if name.isprintable() and name.strip() and len(name) <= 32 else quoted(name, 34)
    alike = sum(other == name for other in names.values()) > 1
    return f"volume {shown} (id {id})" if alike else f"volume {shown}"


def listed(parts: Sequence[str]) -> str:
    """Words as a sentence lists them."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def instant(seconds: float) -> str:
    """An instant since the trace's start."""
    return "0 s" if seconds == 0 else format_duration(seconds)
