"""A chart of what backup costs, by choice and part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from vmbk.charts.style import INK, WIDE, altair, finish, part_colour, tip
from vmbk.charts.tables import short_names
from vmbk.errors import InputError
from vmbk.units import quoted

if TYPE_CHECKING:
    import altair as alt

    from vmbk.service.cost_tables import CostTable

COST_COLOURS: Final = {
    "instance": "#4477aa",
    "vault": "#66ccee",
    "snapshot": "#ccbb44",
    "archive": "#228833",
    "staging": "#bbbbbb",
    "early deletion": "#aa3377",
}
"""Of the parts of a bill, in order."""

MOST_CHOICES: Final = 40

ROW: Final = 30


def cost_by(table: CostTable) -> alt.LayerChart:
    """What each choice costs, by part of the bill.

    Parameters
    ----------
    table : CostTable
        Of `vmbk.service.cost_tables`: by redundancy, by retention, or of ways to leave.

    Returns
    -------
    altair.LayerChart
        A bar a choice, in the order of the table, with its total and the ratio to the first.

    Raises
    ------
    InputError
        If it is no such table, or its choices are none or too many to read.
    VmbkError
        If Altair is not installed.
    """
    from vmbk.service.cost_tables import CostTable

    if not isinstance(table, CostTable):
        raise InputError(
            f"{quoted(table)} is no table of costs", hint="pass one of vmbk.service.cost_tables"
        )
    if not 0 < len(table.rows) <= MOST_CHOICES:
        raise InputError(f"a chart of {len(table.rows)} choices; 1 to {MOST_CHOICES} can be read")
    choices = pl.Series([row.choice for row in table.rows])
    names = short_names(choices)
    parts, totals = [], []
    for row in table.rows:
        high = 0.0
        for part in table.parts:
            low, high = high, high + float(row.part(part))
            told = f"{row.choice}, {part}: {row.part(part):,.2f} {table.currency}"
            parts.append((names[row.choice], part, low, high, told))
        ratio = table.ratio(row)
        text = f"{row.total:,.0f}" + (f" (× {ratio:.2f})" if row is not table.rows[0] else "")
        totals.append((names[row.choice], float(row.total), text))
    alt = altair()
    y = alt.Y("choice:N", sort=list(names.values()), title=None,
              axis=alt.Axis(ticks=False, domain=False, labelPadding=8, labelFontSize=12,
                            labelLimit=220, labelColor=INK))  # fmt: skip
    bars = alt.Chart(
        pl.DataFrame(parts, schema=["choice", "part", "low", "high", "tip"], orient="row")
    )
    ends = alt.Chart(pl.DataFrame(totals, schema=["choice", "total", "text"], orient="row"))
    shown = {k: v for k, v in COST_COLOURS.items() if k in table.parts}
    most = max(total for _, total, _ in totals)
    chart = alt.layer(
        bars.mark_bar(height=ROW - 10).encode(
            x=alt.X("low:Q", title=table.currency,
                    scale=alt.Scale(domain=[0, most * 1.16 or 1.0], nice=False),
                    axis=alt.Axis(format=",.0f", grid=True, tickCount=6)),
            x2="high:Q", y=y, color=part_colour("part:N", shown), **tip(),
        ),
        ends.mark_text(align="left", dx=6).encode(x="total:Q", y=y, text="text:N"),
    ).properties(width=WIDE - 120, height=ROW * len(table.rows))  # fmt: skip
    return finish(
        chart, f"What backup costs: {table.title}",
        f"{table.currency}, by part of the bill; in brackets the ratio to the first",
    )  # fmt: skip
