"""The report of a study: one file, offline, deterministic, accessible, and everything escaped."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest

from tests.test_charts import FIGURES, HOSTILE, KIB, crash_rows, study, study_rows
from vmbk.charts.report import write_report
from vmbk.errors import StorageError
from vmbk.study.results import COLUMNS, StudyResult
from vmbk.units import format_size

VOID = {"meta", "br", "img", "link", "input", "hr"}
KNOWN = {
    "html", "head", "meta", "title", "style", "body", "main", "header", "h1", "h2", "p", "strong",
    "div", "span", "section", "figure", "figcaption", "table", "caption", "thead", "tbody", "tr",
    "th", "td", "footer", "svg", "g", "path", "rect", "line", "text", "defs", "clippath",
}  # fmt: skip
FETCHING = {"src", "srcset", "href", "xlink:href", "action", "data", "poster", "background", "ping",
            "formaction", "manifest", "cite"}  # fmt: skip


class Parsed(HTMLParser):
    """A page as a browser reads it, near enough: elements, attributes and texts."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs)
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.texts[tag][-1] += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def report(result: StudyResult, folder: Path) -> tuple[str, Parsed]:
    html = write_report(result, folder / "report.html").read_text(encoding="utf-8")
    return html, Parsed(html)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Parsed]:
    return report(study(), tmp_path_factory.mktemp("report"))


def offline(html: str, parsed: Parsed) -> None:
    """Nothing is fetched and nothing runs."""
    for tag, attributes in parsed.elements:
        assert tag in KNOWN, tag
        assert not FETCHING & set(attributes), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")]
        assert "http-equiv" not in attributes
    styles = "".join(parsed.texts.get("style", [])) + "".join(
        a.get("style", "") for _, a in parsed.elements
    )
    assert "@import" not in styles
    assert "url(" not in styles
    assert "@font-face" not in styles
    drawn = re.findall(r'="url\(([^)]*)\)"', html)
    assert all(reference.startswith("#") for reference in drawn)


def test_nothing_is_fetched_and_nothing_runs(page: tuple[str, Parsed]) -> None:
    html, parsed = page
    offline(html, parsed)
    assert "http" not in html
    assert len(html) < 1_000_000


def test_every_reference_has_one_target(page: tuple[str, Parsed]) -> None:
    html, parsed = page
    ids = [a["id"] for _, a in parsed.elements if "id" in a]
    assert len(ids) == len(set(ids))
    wanted = [a["aria-labelledby"] for _, a in parsed.elements if "aria-labelledby" in a]
    wanted += re.findall(r"url\(#([^)]+)\)", html)
    assert len(wanted) >= 8
    assert set(wanted) <= set(ids)


def test_it_is_accessible(page: tuple[str, Parsed]) -> None:
    html, parsed = page
    assert html.startswith("<!doctype html>\n")
    assert parsed.elements[0] == ("html", {"lang": "en"})
    assert parsed.count("h1") == parsed.count("main") == 1
    assert parsed.count("h2") == parsed.count("section") == 8
    assert parsed.count("table") == parsed.count("caption") >= 6
    drawings = [a for tag, a in parsed.elements if tag == "svg"]
    assert len(drawings) == parsed.count("figcaption") == len(FIGURES) + 1
    assert [a["aria-label"] for a in drawings] == [t.strip() for t in parsed.texts["figcaption"]]
    assert all(a["role"] == "img" and len(a["aria-label"]) > 20 for a in drawings)
    assert all(a.get("scope") in ("col", "row") for tag, a in parsed.elements if tag == "th")
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html


def test_the_verdict_counts_every_restore(page: tuple[str, Parsed], tmp_path: Path) -> None:
    _, parsed = page
    assert parsed.texts["strong"] == ["✓ Every restore is byte-identical: 320 of 320."]
    result = study(datasets=("only",), intervals=("2s",))
    for column, words in (
        ("identical", "2 differ from the disk"),
        ("verified", "2 do not match the stored digests"),
        ("covers", "2 come from extents that miss a change"),
    ):
        wrong = [i not in (7, 20) for i in range(len(result.rows))]
        rows = result.rows.with_columns(pl.Series(column, wrong))
        _, parsed = report(replace(result, rows=rows), tmp_path)
        assert parsed.texts["strong"] == ["✗ Not every restore can be trusted: 38 of 40 are right."]
        assert any(words in text for text in parsed.texts["p"])
        cells = [text for text in parsed.texts["td"] if "✗" in text]
        assert cells.count("✗ 7 of 8") == 2


def test_the_table_at_a_glance_holds_the_totals(page: tuple[str, Parsed]) -> None:
    _, parsed = page
    rows = study_rows().filter(pl.col("backup") > 0)
    lines = [text for text in parsed.texts["tr"] if "64 of 64" in text]
    detectors = ("full", "differential", "checksum", "tracking", "compare")
    assert len(lines) == len(detectors)
    for line, detector in zip(lines, detectors, strict=True):
        mine = [r for r in rows.iter_rows(named=True) if r["detector"] == detector]
        fine = [r for r in mine if r["sub_block_size"]]
        wanted = [detector, "28"]
        wanted += [
            format_size(sum(r[c] for r in fine))
            for c in ("scanned_bytes", "reported_bytes", "sent_bytes")
        ]
        wanted.append(format_size(sum(r["sent_bytes"] for r in mine if not r["sub_block_size"])))
        wanted.append(format_size(sum(r["stored_bytes"] for r in fine)))
        assert "".join(line.split("\n")).startswith("".join(wanted))


def test_tracking_against_compare_by_data_set(page: tuple[str, Parsed], tmp_path: Path) -> None:
    _, parsed = page
    text = next(t for t in parsed.texts["table"] if "beyond those that differ" in t)
    assert text.count("10 of 10") == 2
    assert text.count("4 of 4") == 2
    assert "15%" in text
    rows = study_rows().with_columns(
        pl.min_horizontal("reported_bytes", "oracle_block_bytes").alias("reported_bytes")
    )
    _, parsed = report(replace(study(), rows=rows), tmp_path)
    assert "Tracking reported no block in which no byte differs." in parsed.texts["p"]
    rows = study_rows(detectors=("full", "checksum"))
    _, parsed = report(replace(study(), rows=rows), tmp_path)
    assert "Tracking did not run." in parsed.texts["p"]


def test_fallbacks_are_told_with_their_reason(page: tuple[str, Parsed], tmp_path: Path) -> None:
    _, parsed = page
    assert "Every backup was made by the detector asked for." in parsed.texts["p"]
    result = study()
    fell = (pl.col("detector") == "tracking") & (pl.col("backup") == 2)
    rows = result.rows.with_columns(
        pl.when(fell).then(pl.lit("spot check")).otherwise("fallback").alias("fallback"),
        pl.when(fell).then(pl.lit("checksum")).otherwise("ran").alias("ran"),
    )
    _, parsed = report(replace(result, rows=rows), tmp_path)
    line = next(t for t in parsed.texts["tr"] if "spot check" in t)
    assert re.sub(r"\s", "", line) == "ext4-sqlitetrackingchecksumspotcheck4"


def test_crash_states_and_notes(tmp_path: Path) -> None:
    result = replace(study(), outcomes=crash_rows(lost=7), notes=("Not checked: <b>xfs</b>.",))
    html, parsed = report(result, tmp_path)
    line = next(t for t in parsed.texts["tr"] if "lost" in t and "replayed" in t)
    assert re.sub(r"\s", "", line) == "ext4-sqliteflushreplayedlost17e2fsck-fy:clean"
    assert "Not checked: <b>xfs</b>." in parsed.texts["p"]
    assert "<b>" not in html
    _, parsed = report(replace(result, outcomes=pl.DataFrame()), tmp_path)
    assert "No crash state was checked." in parsed.texts["p"]
    assert "Not checked: <b>xfs</b>." in parsed.texts["p"]
    assert parsed.count("svg") == len(FIGURES)


def test_provenance_and_every_column_are_in_it(page: tuple[str, Parsed]) -> None:
    _, parsed = page
    cells = {text.strip() for text in parsed.texts["td"]} | {
        text.strip() for text in parsed.texts["th"]
    }
    digests = ("0b" * 16, "0f" * 16)
    for value in ("c0ffee", "0123456789abcdef", "2026", "a processor", "numpy 2.4.6, polars 2.1.0",
                  *digests, "25% of requests, 10% of requests", "4 KiB, off"):  # fmt: skip
        assert value in cells
    for column in COLUMNS:
        assert {column.name, column.unit, column.doc} <= cells


def test_the_same_results_give_the_same_bytes(page: tuple[str, Parsed], tmp_path: Path) -> None:
    html, _ = page
    assert report(study(), tmp_path)[0] == html
    code = (
        "import sys; from pathlib import Path; from tests.test_charts import study;"
        "from vmbk.charts.report import write_report; write_report(study(), Path(sys.argv[1]))"
    )
    root = Path(__file__).resolve().parent.parent
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "again.html")],
        cwd=root, env={**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Kolkata"}, check=True,
    )  # fmt: skip
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == html


def test_a_notebook_theme_does_not_change_the_report(
    page: tuple[str, Parsed], tmp_path: Path
) -> None:
    import altair as alt

    @alt.theme.register("loud", enable=False)
    def loud() -> alt.theme.ThemeConfig:
        return {"config": {"title": {"fontSize": 40}, "axis": {"labelFontSize": 30}}}

    try:
        with alt.theme.enable("loud"):
            assert report(study(), tmp_path)[0] == page[0]
            assert alt.theme.active == "loud"
    finally:
        alt.theme.unregister("loud")


def test_hostile_names_are_text(tmp_path: Path) -> None:
    rows = study_rows(datasets=HOSTILE, intervals=("2s",)).with_columns(
        pl.lit("<i>why</i>").alias("fallback"),
        pl.lit("not JSON <script>").alias("provenance"),
        pl.lit("</style><script>").alias("commit"),
    )
    crash = pl.concat([crash_rows(2, capture=name) for name in HOSTILE]).with_columns(
        pl.lit("<svg onload=alert(1)>").alias("details")
    )
    result = StudyResult(rows=rows, outcomes=crash, notes=("{{ 7 * 7 }} <script>",))
    html, parsed = report(result, tmp_path)
    offline(html, parsed)
    assert parsed.count("script") == parsed.count("img") == parsed.count("i") == 0
    assert any('"><script>alert(1)</script>' in t for t in parsed.texts["th"])
    assert any("<i>why</i>" in t for t in parsed.texts["td"])
    assert "{{ 7 * 7 }} <script>" in parsed.texts["p"]
    assert "<svg onload=alert(1)>" in {t.strip() for t in parsed.texts["td"]}


def test_results_without_incremental_backups_or_without_rows(tmp_path: Path) -> None:
    first = study_rows().filter(pl.col("backup") == 0)
    html, parsed = report(StudyResult(rows=first, outcomes=pl.DataFrame()), tmp_path)
    offline(html, parsed)
    assert parsed.count("svg") == 0
    assert parsed.texts["strong"] == ["✓ Every restore is byte-identical: 40 of 40."]
    nothing = StudyResult(rows=first.clear(), outcomes=pl.DataFrame())
    html, parsed = report(nothing, tmp_path)
    offline(html, parsed)
    assert parsed.texts["strong"] == ["✗ Nothing was backed up, so nothing is proven."]


def test_too_many_data_sets_for_a_chart_keep_their_tables(tmp_path: Path) -> None:
    rows = study_rows(tuple(f"d{i}" for i in range(41)), ("2s",), (4 * KIB,))
    html, parsed = report(StudyResult(rows=rows, outcomes=pl.DataFrame()), tmp_path)
    offline(html, parsed)
    assert parsed.count("svg") == 0
    assert sum("41 panels cannot be read" in text for text in parsed.texts["p"]) == 2
    assert sum(text.startswith("d404 KiB") for text in parsed.texts["tr"]) == 5


def test_one_detector_without_drill_down(tmp_path: Path) -> None:
    for detector in ("full", "tracking"):
        rows = study_rows(("only",), ("2s",), (0,), (detector,))
        html, parsed = report(StudyResult(rows=rows, outcomes=pl.DataFrame()), tmp_path)
        offline(html, parsed)
        assert parsed.texts["strong"] == ["✓ Every restore is byte-identical: 4 of 4."]
        assert "sent, drill-down off" not in html
        assert parsed.count("svg") == (5 if detector == "full" else 6)


@pytest.mark.parametrize("missing", [("altair",), ("vl_convert",)])
def test_without_the_extra_it_is_written_without_charts(
    missing: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    result = replace(study(), notes=("<b>note</b>",))
    html, parsed = report(result, tmp_path)
    assert not FETCHING & {name for _, a in parsed.elements for name in a}
    assert "http" not in html
    assert parsed.count("svg") == parsed.count("b") == 0
    told = [text for text in parsed.texts["p"] if "pip install 'vmbk[charts]'" in text]
    assert told
    assert missing[0] in told[0]
    assert "Every restore is byte-identical: 320 of 320." in parsed.texts["strong"][0]
    assert any("tracking read" in text for text in parsed.texts["p"])
    assert sum("64 of 64" in text for text in parsed.texts["tr"]) == 5
    assert any("<b>note</b>" in text for text in parsed.texts["p"])


def test_it_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    target.write_text("old", encoding="utf-8")
    small = StudyResult(rows=study_rows(("only",), ("2s",), (4 * KIB,)), outcomes=pl.DataFrame())
    assert write_report(small, target) == target
    assert target.read_text(encoding="utf-8").endswith("</html>\n")
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(StorageError, match="cannot write the report"):
        write_report(small, tmp_path / "nowhere" / "report.html")
    folder = tmp_path / "folder.html"
    folder.mkdir()
    with pytest.raises(StorageError, match=r"folder\.html"):
        write_report(small, folder)
    assert {file.name for file in tmp_path.iterdir()} == {"folder.html", "report.html"}
