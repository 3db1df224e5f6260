"""Setup for JupyterLab: notebooks that look the same on every run, offline.

Begin a notebook with::

    from vmbk import notebook

    notebook.setup()
"""

from __future__ import annotations

import os
from typing import Any, Final

RENDERER: Final = "vmbk-svg"
"""Name under which Altair knows the renderer."""

ROWS: Final = 24
"""Rows of a Polars frame that are shown, half from its start and half from its end."""


def setup() -> None:
    """Make charts, frames and progress behave in notebooks that are committed and tested.

    - Charts are drawn as SVG by vl-convert: no script and no network, and byte for byte the same
      on every run. (Altair's own default loads scripts and needs a network.) For one chart to
      explore, ``altair.JupyterChart(chart)`` still works.
    - Polars frames show up to `ROWS` rows, every column, long texts, thousands apart and no column
      types.
    - Progress bars are silent, also those of commands that the notebook runs.

    Raises
    ------
    VmbkError
        If Altair or vl-convert is not installed.
    """
    import polars as pl

    from vmbk.charts.style import altair

    alt = altair()
    alt.renderers.register(RENDERER, _svg)
    alt.renderers.enable(RENDERER)
    pl.Config.set_tbl_rows(ROWS)
    pl.Config.set_tbl_cols(-1)
    pl.Config.set_fmt_str_lengths(80)
    pl.Config.set_thousands_separator(",")
    pl.Config.set_tbl_hide_column_data_types(True)
    os.environ["VMBK_PROGRESS"] = "0"


def _svg(spec: dict[str, Any], **_: Any) -> dict[str, str]:
    from vmbk.charts.svg import spec_to_svg

    return {"image/svg+xml": spec_to_svg(spec)}
