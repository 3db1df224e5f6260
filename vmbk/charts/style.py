"""The look of every chart: colours, fonts, axes, panels.

Colours are Okabe and Ito's and Tol's, which colour-blind readers tell apart; ink and lines have one
colour each, which the report's style sheet turns light on a dark screen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from vmbk.errors import InputError, VmbkError
from vmbk.study.results import DETECTOR_ORDER

DETECTOR_COLOURS: Final[Mapping[str, str]] = dict(
    zip(
        DETECTOR_ORDER,
        ("#5c5c5c", "#e69f00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9"),
        strict=True,
    )
)
STAGE_COLOURS: Final = ("#bbbbbb", "#66ccee", "#4477aa", "#ccbb44", "#aa3377")
GOOD: Final = "#0072b2"
BAD: Final = "#d55e00"
NOTHING: Final = "#8c8c8c"
INK: Final = "#24292f"
MUTED: Final = "#57606a"
LINE: Final = "#d8dee4"

ROW: Final = 24
"""Pixels of a detector's row."""

MOST_PANELS: Final = 40
"""Panels of a figure that can still be read, and whose data Altair still takes."""

# Liberation Sans comes with vl-convert, so text is measured alike on every machine, and Arial and
# Helvetica have the same widths.
FONT: Final = "Liberation Sans, Arial, Helvetica, sans-serif"

WIDE: Final = 774
"""Pixels of a panel that stands alone; with its axis it fits a page of 900 px."""

NARROW: Final = 375
"""Pixels of each of two panels side by side."""


def altair() -> Any:
    """Altair, or what to install.

    Raises
    ------
    VmbkError
        If Altair or vl-convert, which turns charts into SVG, is not installed.
    """
    try:
        import altair
        import vl_convert  # noqa: F401
    except ImportError as error:
        raise VmbkError(
            f"charts need {error.name or 'altair'}, which is not installed",
            hint="pip install 'vmbk[charts]'",
        ) from error
    return altair


def byte_unit(largest: float) -> tuple[int, str]:
    """Divisor and name of the unit in which sizes up to ``largest`` bytes read well."""
    for power, name in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if largest >= 2 << power:
            return 1 << power, name
    return (1 << 10, "KiB") if largest >= 1 << 10 else (1, "B")


def time_unit(longest: float) -> tuple[float, str]:
    """Factor and name of the unit in which times up to ``longest`` seconds read well."""
    if longest >= 2:
        return 1.0, "s"
    return (1e3, "ms") if longest >= 2e-3 else (1e6, "µs")


BYTES_ON_LOG_AXIS: Final = (
    "datum.value >= 1099511627776 ? datum.value / 1099511627776 + ' TiB' : "
    "datum.value >= 1073741824 ? datum.value / 1073741824 + ' GiB' : "
    "datum.value >= 1048576 ? datum.value / 1048576 + ' MiB' : "
    "datum.value >= 1024 ? datum.value / 1024 + ' KiB' : datum.value + ' B'"
)


def panel_width(panels: Sequence[str]) -> int:
    """Width of a panel where they stand two in a row."""
    return WIDE if len(panels) == 1 else NARROW


def detectors(names: Sequence[str], **options: Any) -> Any:
    """The vertical axis of detectors, in their order."""
    return altair().Y(
        "detector:N",
        sort=list(names),
        title=None,
        axis=altair().Axis(
            ticks=False, domain=False, labelPadding=8, labelFontSize=12, labelColor=INK
        ),
        **options,
    )


def detector_colour(names: Sequence[str], legend: Any = None) -> Any:
    """The colour of each detector; without a legend where the axis names them."""
    return altair().Color(
        "detector:N",
        scale=altair().Scale(
            domain=list(names), range=[DETECTOR_COLOURS.get(n, NOTHING) for n in names]
        ),
        legend=legend,
    )


def part_colour(column: str, colours: Mapping[str, str]) -> Any:
    """The colour of each part by its name, in this order, and a legend."""
    names, scale = list(colours), altair().Scale
    return altair().Color(
        column, sort=names, scale=scale(domain=names, range=list(colours.values()))
    )


def tip(column: str = "tip:N", title: str = " ") -> dict[str, Any]:
    """What a mark says of itself, to screen readers and where the pointer rests."""
    return {"description": column, "tooltip": [altair().Tooltip(column, title=title)]}


def figure(
    chart: Any,
    panels: Sequence[str],
    title: str,
    subtitle: str,
    *,
    height: int = 0,
    beside: int = 0,
    **options: Any,
) -> Any:
    """Small multiples of one layered chart, two in a row, with a title over all.

    Parameters
    ----------
    chart : altair.LayerChart
        With the data of all panels, told apart by their column ``panel``.
    panels : sequence of str
        In the order in which they stand.
    title, subtitle : str
        What is shown, and how it was counted.
    height : int
        Pixels of a panel; 0 where the chart has a size of its own.
    beside : int
        Pixels that a panel leaves for what stands right of it.
    **options
        For ``resolve_scale``.

    Raises
    ------
    InputError
        If there are more than `MOST_PANELS`.
    """
    if len(panels) > MOST_PANELS:
        raise InputError(
            f"a chart of {len(panels)} panels cannot be read; the most is {MOST_PANELS}",
            hint="filter the results by data set, interval or block size",
        )
    alt = altair()
    header = alt.Header(
        labelAnchor="start", labelFontSize=12, labelFontWeight="bold", labelColor=INK,
        labelLimit=panel_width(panels), labelPadding=4,
    )  # fmt: skip
    if height:
        chart = chart.properties(width=panel_width(panels) - beside, height=height)
    many = chart.facet(
        facet=alt.Facet("panel:N", sort=list(panels), title=None, header=header),
        columns=2,
        spacing={"row": 16, "column": 24},
    )
    if options:
        many = many.resolve_scale(**options)
    return finish(many, title, subtitle)


def finish(chart: Any, title: str, subtitle: str) -> Any:
    """Give a chart its title and the common look."""
    alt = altair()
    return (
        chart.properties(
            title=alt.TitleParams(
                title, subtitle=subtitle, anchor="start", fontSize=14, fontWeight="bold",
                subtitleFontSize=12, color=INK, subtitleColor=MUTED, offset=12, subtitlePadding=5,
            ),
            padding=6,
        )
        .configure(font=FONT, background="white")
        .configure_view(stroke=None)
        .configure_axis(
            labelColor=MUTED, titleColor=MUTED, titleFontWeight="normal", titleFontSize=12,
            labelFontSize=11, gridColor=LINE, domainColor=LINE, tickColor=LINE, titlePadding=8,
        )
        .configure_legend(
            orient="top", direction="horizontal", title=None, labelColor=INK, labelFontSize=12,
            symbolSize=90, offset=10, padding=0, columnPadding=16,
        )
        .configure_text(color=INK, fontSize=11)
        .configure_axisY(grid=False)
    )  # fmt: skip
