"""The report of a study: one HTML file that needs neither network nor script.

It is made from the results alone, so two reports of the same results are the same byte for byte.
"""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from vmbk.charts.report.page import Page
from vmbk.charts.report.sections import study_page
from vmbk.errors import StorageError

if TYPE_CHECKING:
    from vmbk.study.results import StudyResult


def write_report(result: StudyResult, path: str | os.PathLike[str]) -> Path:
    """Write the report of a study.

    Parameters
    ----------
    result : StudyResult
        A finished study.
    path : path
        The HTML file. It appears whole or not at all.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    StorageError
        If it cannot be written.

    Notes
    -----
    Without the extra ``charts`` the report holds its tables alone and says what to install.
    """
    target = Path(path)
    html = render(study_page(result))
    partial = target.with_name(f".{target.name}.partial")
    try:
        partial.write_text(html, encoding="utf-8", newline="\n")
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StorageError(
            f"cannot write the report {str(target)!r}: {error.strerror or error}"
        ) from error
    return target


def render(page: Page) -> str:
    """A page as HTML, all of its texts escaped.

    Parameters
    ----------
    page : Page
        As `vmbk.charts.report.sections.study_page` makes it.

    Returns
    -------
    str
        One document, without references to anything outside of it.
    """
    from jinja2 import Environment, StrictUndefined

    template = resources.files("vmbk.charts.report").joinpath("report.html.j2")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = template.read_text(encoding="utf-8")
    return environment.from_string(source).render(page=page) + "\n"
