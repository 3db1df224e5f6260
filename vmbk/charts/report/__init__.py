"""The report of a study: its words (`sections`), its parts (`page`), its HTML (`html`)."""

from vmbk.charts.report.html import render, write_report
from vmbk.charts.report.sections import study_page

__all__ = ["render", "study_page", "write_report"]
