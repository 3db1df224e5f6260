"""What the report of a study says: its sections, sentences and tables, all computed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import polars as pl

from vmbk import charts
from vmbk.charts import readings
from vmbk.charts.report.page import Cell, Figure, Page, Section, Table
from vmbk.charts.style import DETECTOR_COLOURS
from vmbk.charts.svg import inline
from vmbk.charts.tables import drilled, grain_label, ordered
from vmbk.errors import InputError, VmbkError
from vmbk.study.results import COLUMNS, StudyResult
from vmbk.units import format_duration, format_size

GOOD: Final = (pl.col("identical") & pl.col("verified") & pl.col("covers")).sum()
"""Number of backups that can be trusted."""

FIGURES: Final = ("bytes_read", "bytes_sent", "stage_times", "sent_over_time", "run_lengths")
"""The charts of the section on cost; `vmbk.charts` draws and `readings` reads them."""


def study_page(result: StudyResult) -> Page:
    """All that the report of a study says."""
    rows = result.rows
    names = rows["dataset"].unique(maintain_order=True).to_list()
    named = ", ".join(names) if len(names) <= 3 else f"{len(names)} data sets"
    cells = rows.select("dataset", "detector", "block_size", "sub_block_size", "interval")
    verdict, proof = _verdict(result)
    sections = (
        _glance(rows),
        _cost(rows),
        _by_dataset(result),
        _beyond(rows),
        _fallbacks(rows),
        _crashes(result),
        _made(result),
        _glossary(),
    )
    return Page(
        title=f"Backup study of {named or 'nothing'}",
        subtitle=f"{readings.count(cells.n_unique() if len(rows) else 0, 'experiment')}, each on a "
        f"fresh disk and a fresh vault, with {readings.count(len(rows), 'backup')} and as many "
        f"restores; made in {format_duration(result.seconds)} by vmbk "
        f"{_values(rows, 'version') or 'of unknown version'}",
        good=result.verified,
        verdict=verdict,
        proof=proof,
        sections=tuple(section for section in sections if section is not None),
        footer="Made by vmbk from the results alone; the same results give the same file.",
    )


def _values(rows: pl.DataFrame, column: str, show: Callable[[Any], str] = str) -> str:
    return ", ".join(show(v) for v in rows[column].unique(maintain_order=True) if v != "")


def _verdict(result: StudyResult) -> tuple[str, str]:
    rows, total = result.rows, len(result.rows)
    if not total:
        return "Nothing was backed up, so nothing is proven.", "The results hold no row."
    bad = {
        "differ from the disk": int((~rows["identical"]).sum()),
        "do not match the stored digests": int((~rows["verified"]).sum()),
        "come from extents that miss a change": int((~rows["covers"]).sum()),
    }
    if result.verified:
        return (
            f"Every restore is byte-identical: {total:,} of {total:,}.",
            "Each backup was restored and compared with the disk it was taken of, byte by byte; "
            "its digests were verified, and its extents cover every byte that differs.",
        )
    found = [f"{number:,} {what}" for what, number in bad.items() if number]
    good = rows.select(GOOD).item()
    return (
        f"Not every restore can be trusted: {good:,} of {total:,} are right.",
        f"Of all restores, {'; '.join(found)}. The table by data set shows where.",
    )


def _bars(rows: Sequence[dict[str, Any]], column: str, show: Callable[[float], str]) -> list[Cell]:
    largest = max((float(r[column]) for r in rows), default=0.0)
    return [
        Cell(show(r[column]), share=float(r[column]) / largest if largest else 0.0) for r in rows
    ]


def _detector(name: str) -> Cell:
    return Cell(name, colour=DETECTOR_COLOURS.get(name, ""))


def _identical(good: int, total: int) -> Cell:
    return Cell(f"{'✓' if good == total else '✗'} {good} of {total}", good=good == total)


def _glance(rows: pl.DataFrame) -> Section | None:
    """One row a detector: what it read, sent and cost, and whether it was right."""
    later = rows.filter(pl.col("backup") > 0)
    if later.is_empty():
        return None
    names, fine = ordered(later["detector"]), drilled(later)
    sums = ("scanned_bytes", "reported_bytes", "sent_bytes", "stored_bytes", "backup_seconds",
            "restore_seconds")  # fmt: skip
    found = {
        str(r["detector"]): r
        for r in fine.group_by("detector")
        .agg(pl.len().alias("backups"), *[pl.col(name).sum() for name in sums])
        .iter_rows(named=True)
    }
    whole = dict(
        later.filter(pl.col("sub_block_size") == 0)
        .group_by("detector")
        .agg(pl.col("sent_bytes").sum())
        .iter_rows()
    )
    good = {
        str(name): (int(right), int(total))
        for name, right, total in rows.group_by("detector").agg(GOOD, pl.len()).iter_rows()
    }
    names = [name for name in names if name in found]
    lines = [found[name] | {"whole": whole.get(name, 0)} for name in names]
    both = bool(whole) and fine["sub_block_size"].min() != 0
    header = ["detector", "backups", "read", "reported", "sent"]
    columns = [
        [_detector(name) for name in names],
        [f"{line['backups']:,}" for line in lines],
        _bars(lines, "scanned_bytes", format_size),
        _bars(lines, "reported_bytes", format_size),
        _bars(lines, "sent_bytes", format_size),
    ]
    if both:
        header.append("sent, drill-down off")
        columns.append(_bars(lines, "whole", format_size))
    header += ["stored", "backup time", "restore time", "restores identical"]
    columns += [
        _bars(lines, "stored_bytes", format_size),
        _bars(lines, "backup_seconds", format_duration),
        _bars(lines, "restore_seconds", format_duration),
        [_identical(*good[name]) for name in names],
    ]
    table = Table(
        f"Totals over the incremental backups, {grain_label(fine)}; the last column counts every "
        "backup, the first ones too",
        tuple(header),
        tuple(zip(*columns, strict=True)),
        numbers=frozenset(range(1, len(header) - 1)),
    )
    return Section("glance", "At a glance", tables=(table,))


def _cost(rows: pl.DataFrame) -> Section | None:
    figures, texts = _figures(rows, FIGURES)
    if not figures and not texts:
        return None
    return Section("cost", "What was read, sent and spent", texts=texts, figures=figures)


def _figures(
    frame: pl.DataFrame, names: Sequence[str]
) -> tuple[tuple[Figure, ...], tuple[str, ...]]:
    """The charts that the data allow; their readings alone where they cannot be drawn, and why."""
    figures, texts, missing = [], [], []
    for name in names:
        try:
            reading = _sentence(getattr(readings, name)(frame))
        except InputError:
            continue  # nothing of this kind in the results
        try:
            svg = charts.to_svg(getattr(charts, name)(frame))
        except VmbkError as error:
            texts.append(reading)
            missing.append(f"There is no chart, since {error.message}: {error.hint}")
            continue
        figures.append(Figure(reading, inline(svg, name.replace("_", "-"), reading)))
    return tuple(figures), (*texts, *dict.fromkeys(missing))


def _sentence(text: str) -> str:
    """With a capital, and with no line break between a number and its unit."""
    whole = re.sub(r"(\d) (?=(?:[KMGTP]?i?B|ms|µs|s|min)\b)", "\\1\N{NO-BREAK SPACE}", text)
    return whole[:1].upper() + whole[1:]


def _by_dataset(result: StudyResult) -> Section | None:
    """One row an experiment; the axes that do not vary are told in the caption."""
    found = result.summary()
    if found.is_empty():
        return None
    several = [a for a in ("interval", "block_size") if found[a].n_unique() > 1]
    show: dict[str, Callable[[Any], str]] = {
        "interval": str, "block_size": format_size,
    }  # fmt: skip
    lines, apart, previous = [], set(), None
    for i, r in enumerate(found.iter_rows(named=True)):
        group = (r["dataset"], r["interval"], r["block_size"], r["sub_block_size"])
        if previous not in (None, group):
            apart.add(i)
        previous = group
        grain = format_size(r["sub_block_size"]) if r["sub_block_size"] else "off"
        lines.append(
            (r["dataset"], *[show[a](r[a]) for a in several], grain,
             _detector(r["detector"]), str(r["backups"]), format_size(r["scanned_bytes"]),
             format_size(r["reported_bytes"]), format_size(r["sent_bytes"]),
             format_size(r["stored_bytes"]), format_duration(r["backup_seconds"]),
             _identical(r["good"], r["backups"]))
        )  # fmt: skip
    names = {"interval": "interval", "block_size": "block"}
    header = ("data set", *[names[a] for a in several], "drill-down", "detector", "backups",
              "read", "reported", "sent", "stored", "backup time",
              "restores identical")  # fmt: skip
    every = "" if "interval" in several else f", taken every {_interval(found['interval'][0])}"
    table = Table(
        f"Totals over the incremental backups of each experiment{every}",
        header,
        tuple(lines),
        numbers=frozenset(range(header.index("backups"), len(header) - 1)),
        apart=frozenset(apart),
    )
    return Section("datasets", "By data set", tables=(table,))


def _beyond(rows: pl.DataFrame) -> Section | None:
    """Where tracking reported more than the byte oracle."""
    later = rows.filter(pl.col("backup") > 0)
    if later.is_empty():
        return None
    figures, texts = _figures(rows, ("reported_against_compare",))
    keys = ["dataset", "interval", "block_size", "sub_block_size"]
    tracked = drilled(later).filter(pl.col("ran") == "tracking")
    found = (
        tracked.with_columns(
            (pl.col("reported_bytes") - pl.col("oracle_block_bytes")).clip(0).alias("beyond")
        )
        .group_by(keys, maintain_order=True)
        .agg(
            pl.len().alias("backups"),
            (pl.col("beyond") > 0).sum().alias("more"),
            pl.col("reported_bytes", "oracle_block_bytes", "beyond").sum(),
        )
        .filter(pl.col("more") > 0)
    )
    if tracked.is_empty():
        texts += ("Tracking did not run.",)
    elif found.is_empty():
        texts += ("Tracking reported no block in which no byte differs.",)
    else:
        texts += (
            "Tracking reports every block that was written or discarded, compare those of which a "
            "byte differs. The others hold what they held before: they were written with the same "
            "bytes, or were zeros already. With drill-down they are not sent; without it those "
            "that hold data are.",
        )
    lines = tuple(
        (r["dataset"], f"every {r['interval']}", format_size(r["block_size"]),
         f"{r['more']} of {r['backups']}", format_size(r["reported_bytes"]),
         format_size(r["oracle_block_bytes"]), format_size(r["beyond"]),
         f"{r['beyond'] / r['reported_bytes']:.0%}")
        for r in found.iter_rows(named=True)
    )  # fmt: skip
    header = ("data set", "interval", "block", "backups with more", "tracking reported",
              "a byte differs", "beyond", "share")  # fmt: skip
    caption = f"Blocks reported by tracking beyond those that differ, {grain_label(drilled(later))}"
    table = Table(caption, header, lines, numbers=frozenset(range(2, 8)))
    return Section(
        "beyond",
        "Where tracking reported more than compare",
        texts,
        figures,
        (table,) if lines else (),
    )


def _fallbacks(rows: pl.DataFrame) -> Section:
    found = (
        rows.filter(pl.col("fallback") != "")
        .group_by("dataset", "detector", "ran", "fallback", maintain_order=True)
        .agg(pl.len().alias("backups"))
    )
    if found.is_empty():
        return Section(
            "fallbacks", "Fallbacks", ("Every backup was made by the detector asked for.",)
        )
    lines = tuple(
        (r["dataset"], _detector(r["detector"]), _detector(r["ran"]), r["fallback"],
         str(r["backups"]))
        for r in found.iter_rows(named=True)
    )  # fmt: skip
    table = Table(
        "Backups that another detector made than the one asked for",
        ("data set", "asked for", "ran", "reason", "backups"),
        lines,
        numbers=frozenset({4}),
    )
    return Section("fallbacks", "Fallbacks", tables=(table,))


def _crashes(result: StudyResult) -> Section:
    """Outcomes of the crash states."""
    frame, title = result.outcomes, "After a power cut"
    if not len(frame):
        texts = ("No crash state was checked.", *result.notes)
        return Section("crashes", title, texts)
    figures, texts = _figures(frame, ("outcomes",))
    found = (
        frame.group_by("capture", "model", "filesystem", "database", maintain_order=True)
        .agg(
            pl.len().alias("states"),
            pl.col("commits_lost").sum(),
            pl.col("details").first(),
        )
        .sort("capture", "model", maintain_order=True)
    )
    lines = tuple(
        (r["capture"], r["model"], r["filesystem"], r["database"], str(r["states"]),
         Cell(f"{r['commits_lost']:,}", good=not r["commits_lost"]),
         "; ".join(r["details"].splitlines()))
        for r in found.iter_rows(named=True)
    )  # fmt: skip
    table = Table(
        "What the checkers found on the disk as a power cut would have left it",
        ("capture", "crash model", "file system", "database", "states", "commits lost",
         "details of the first state"),
        lines,
        numbers=frozenset({4, 5}),
    )  # fmt: skip
    return Section("crashes", title, (*texts, *result.notes), figures, (table,))


def _made(result: StudyResult) -> Section:
    """Provenance: the declaration, what it ran on, and the digests of what went in."""
    rows = result.rows
    if rows.is_empty():
        return Section("made", "How it was made", ("The results hold no row.",))
    facts = {
        "vmbk": _values(rows, "version"),
        "commit": _values(rows, "commit") or "unknown: not run from a checkout",
        "digest of the declaration": _values(rows, "config_digest"),
        "seed": _values(rows, "seed"),
        "data sets": _values(rows, "dataset"),
        "detectors": ", ".join(ordered(rows["detector"])),
        "block size": _values(rows, "block_size", format_size),
        "drill-down to": _values(
            rows, "sub_block_size", lambda size: format_size(size) if size else "off"
        ),
        "interval between backups": _values(rows, "interval", _interval),
        "time of the study": format_duration(result.seconds),
    }
    machines = [_machine(text) for text in rows["provenance"].unique(maintain_order=True)]
    for number, machine in enumerate(machines, start=1):
        prefix = f"machine {number}: " if len(machines) > 1 else ""
        facts |= {prefix + name: value for name, value in machine.items()}
    inputs = rows.group_by("dataset", "dataset_digest", maintain_order=True).agg(
        pl.col("disk_bytes").max(), pl.col("request").max()
    )
    tables = (
        Table("Declaration and machine", ("what", "value"), tuple(facts.items())),
        Table(
            "Captures that were replayed",
            ("data set", "digest", "disk", "requests"),
            tuple(
                (name, digest, format_size(size), f"{requests:,}")
                for name, digest, size, requests in inputs.iter_rows()
            ),
            numbers=frozenset({2, 3}),
        ),
    )
    return Section("made", "How it was made", tables=tables)


def _interval(text: str) -> str:
    return f"{text} of requests" if text.endswith("%") else text


def _machine(provenance: str) -> dict[str, str]:
    """The facts of a provenance record, those of the libraries in one."""
    try:
        record = json.loads(provenance)
    except ValueError:
        return {"machine": provenance}
    if not isinstance(record, dict):
        return {"machine": provenance}
    return {
        str(name): ", ".join(f"{k} {v}" for k, v in value.items())
        if isinstance(value, dict)
        else str(value)
        for name, value in record.items()
    }


def _glossary() -> Section:
    lines = tuple((c.name, c.unit, c.doc) for c in COLUMNS)
    text = "The results have one row a backup, in a Parquet file beside this report."
    table = Table("Columns of the results", ("column", "unit", "meaning"), lines)
    return Section("columns", "Columns of the results", (text,), tables=(table,))
