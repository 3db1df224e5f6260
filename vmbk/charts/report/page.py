"""What a page of a report is made of, whatever draws it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """A table's cell that is more than its text.

    Attributes
    ----------
    text : str
        What it says.
    share : float or None
        Length of the bar beneath, from 0 to 1.
    colour : str
        Of the dot in front.
    good : bool or None
        Whether what it says is good or bad news.
    """

    text: str
    share: float | None = None
    colour: str = ""
    good: bool | None = None

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Table:
    """A table: ``numbers`` are the columns aligned right, ``apart`` the rows that begin a group."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str | Cell, ...], ...]
    numbers: frozenset[int] = frozenset()
    apart: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Figure:
    """A chart as an SVG element, and what to see in it."""

    reading: str
    svg: str


@dataclass(frozen=True)
class Section:
    """A section of the report."""

    id: str
    title: str
    texts: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True)
class Page:
    """The whole report."""

    title: str
    subtitle: str
    good: bool
    verdict: str
    proof: str
    sections: tuple[Section, ...]
    footer: str
