"""What a study finds: a row a backup, with what it cost, whether it was right, what made it."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import polars as pl

from vmbk.errors import InputError, NotFoundError, StorageError
from vmbk.units import format_duration, format_size


@dataclass(frozen=True)
class ResultColumn:
    """One column of the results: its name, type, unit and meaning."""

    name: str
    dtype: Any
    unit: str
    doc: str


def _columns(*rows: tuple[str, Any, str, str]) -> tuple[ResultColumn, ...]:
    return tuple(ResultColumn(*row) for row in rows)


RUN_LENGTH_CLASSES: Final = tuple(512 << i for i in range(22))
"""Lower edges of the classes of changed-run lengths, in bytes: 512 B, 1 KiB, ... 1 GiB."""

COLUMNS: Final = _columns(
    ("dataset", pl.String, "", "capture that was replayed"),
    ("dataset_digest", pl.String, "", "digest of the capture"),
    ("detector", pl.String, "", "detector that was asked for"),
    ("ran", pl.String, "", "detector that ran"),
    ("fallback", pl.String, "", "why it is not the one asked for; empty where it is"),
    ("block_size", pl.Int64, "bytes", "unit of detection"),
    ("sub_block_size", pl.Int64, "bytes", "unit of drill-down; 0 without"),
    ("interval", pl.String, "", "between backups, as declared"),
    ("backup", pl.Int64, "", "0 is the first backup of the cell"),
    ("request", pl.Int64, "requests", "of the capture that were replayed before it"),
    ("trace_seconds", pl.Float64, "s", "trace time at which it was taken"),
    ("disk_bytes", pl.Int64, "bytes", "size of the disk"),
    ("scanned_bytes", pl.Int64, "bytes", "read to find the changes"),
    ("reported_bytes", pl.Int64, "bytes", "blocks taken as changed, before drill-down"),
    ("changed_bytes", pl.Int64, "bytes", "in the extents, data and zeros"),
    ("extents", pl.Int64, "", "number of extents"),
    ("run_lengths", pl.List(pl.Int64), "", "extents by length class; see RUN_LENGTH_CLASSES"),
    ("sent_bytes", pl.Int64, "bytes", "data handed to the vault"),
    ("new_bytes", pl.Int64, "bytes", "of these, what the vault lacked, before compression"),
    ("stored_bytes", pl.Int64, "bytes", "growth of the vault, metadata included"),
    ("oracle_bytes", pl.Int64, "bytes", "that differ from the base, to 512 B, byte by byte"),
    ("oracle_block_bytes", pl.Int64, "bytes", "blocks that differ from the base in any byte"),
    ("prepare_seconds", pl.Float64, "s", "time of the stage"),
    ("snapshot_seconds", pl.Float64, "s", "time of the stage"),
    ("detect_seconds", pl.Float64, "s", "time of the stage"),
    ("transfer_seconds", pl.Float64, "s", "time of the stage"),
    ("commit_seconds", pl.Float64, "s", "time of the stage"),
    ("backup_seconds", pl.Float64, "s", "time of the whole job"),
    ("restore_seconds", pl.Float64, "s", "time of the restore, verification included"),
    ("covers", pl.Boolean, "", "whether the extents cover every byte that differs"),
    ("verified", pl.Boolean, "", "whether the restored digests equal the stored ones"),
    ("identical", pl.Boolean, "", "whether the restored disk equals the disk, byte by byte"),
    ("seed", pl.Int64, "", "of everything drawn at random"),
    ("config_digest", pl.String, "", "digest of the study's declaration"),
    ("version", pl.String, "", "version of vmbk"),
    ("commit", pl.String, "", "commit of vmbk, with +dirty where files differed"),
    ("provenance", pl.String, "", "machine and library versions, as JSON"),
)  # fmt: skip

RESULTS: Final = "results.parquet"
OUTCOMES: Final = "outcomes.parquet"

SCHEMA: Final = {c.name: c.dtype for c in COLUMNS}

DETECTOR_ORDER: Final = ("full", "differential", "checksum", "tracking", "compare", "auto")


@dataclass(frozen=True)
class StudyResult:
    """A finished study.

    Attributes
    ----------
    rows : polars.DataFrame
        One row a backup, with the columns of `COLUMNS`.
    outcomes : polars.DataFrame
        One row a crash state: capture, file system and database outcome, commits lost.
    results, report : Path
        The Parquet file and the HTML report; None where nothing was written.
    notes : tuple of str
        What could not be run, and why.
    seconds : float
        Wall time.
    """

    rows: pl.DataFrame = field(repr=False)
    outcomes: pl.DataFrame = field(repr=False)
    results: Path | None = None
    report: Path | None = None
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def verified(self) -> bool:
        """Whether every restore was byte-identical and every change set covered the oracle's."""
        return bool(
            len(self.rows)
            and self.rows.select(
                (pl.col("identical") & pl.col("verified") & pl.col("covers")).all()
            ).item()
        )

    def summary(self) -> pl.DataFrame:
        """Totals over the incremental backups of each experiment.

        Returns
        -------
        polars.DataFrame
            One row a data set, interval, block size, drill-down and detector; ``backups`` counts
            the incremental backups, ``good`` those whose restore can be trusted.
        """
        order = {name: i for i, name in enumerate(DETECTOR_ORDER)}
        places = {v: i for i, v in enumerate(self.rows["interval"].unique(maintain_order=True))}
        sums = ("scanned_bytes", "reported_bytes", "changed_bytes", "sent_bytes", "stored_bytes",
                "oracle_bytes", "backup_seconds", "restore_seconds")  # fmt: skip
        return (
            self.rows.filter(pl.col("backup") > 0)
            .group_by("dataset", "interval", "block_size", "sub_block_size", "detector")
            .agg(
                pl.len().alias("backups"),
                *[pl.col(name).sum() for name in sums],
                (pl.col("identical") & pl.col("verified") & pl.col("covers")).sum().alias("good"),
                (pl.col("fallback") != "").sum().alias("fallbacks"),
            )
            .with_columns(
                pl.col("detector").replace_strict(order, default=9).alias("_order"),
                pl.col("interval").replace_strict(places, return_dtype=pl.Int64).alias("_place"),
            )
            .sort(
                "dataset", "_place", "block_size", "sub_block_size", "_order",
                descending=[False, False, False, True, False],
            )
            .drop("_order", "_place")
        )  # fmt: skip

    def text(self) -> str:
        """The table that answers in one look: read, sent, stored, time, and was it identical."""
        found = self.summary()
        header, rows, groups = _table(found)
        cells = [header, *rows]
        first = header.index("backups")  # from here on to the last but one, numbers
        widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
        lines = [
            "  ".join(
                c.rjust(w) if first <= i < len(header) - 1 else c.ljust(w)
                for i, (c, w) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in cells
        ]
        shown = [lines[0], "  ".join("-" * w for w in widths)]
        for i, line in enumerate(lines[1:]):
            if i and groups[i] != groups[i - 1]:
                shown.append("")
            shown.append(line)
        if not rows:
            shown = ["No experiment made an incremental backup."]
        right = int(self.rows.select(
            (pl.col("identical") & pl.col("verified") & pl.col("covers")).sum()
        ).item())  # fmt: skip
        total = len(self.rows)
        verdict = (
            f"all {total:,} are byte-identical to the disk"
            if self.verified
            else f"ONLY {right:,} OF {total:,} CAN BE TRUSTED"
        )
        shown += [
            "",
            f"Restores, those of first backups included: {verdict}.",
            "A row sums the incremental backups of one experiment; its first, full one is left out."
            + _constants(found),
            "read: to find the changes. sent: data handed to the vault. "
            + ("sent whole: the same without drill-down. " if _paired(found) else "")
            + "stored: growth of the vault, compressed.",
        ]
        if len(self.outcomes):
            shown.append(f"Crash states: {self._outcome_text()}.")
        shown += self.notes
        if self.results:
            shown.append(f"Results: {self.results}")
        if self.report:
            shown.append(f"Report:  {self.report}")
        return "\n".join(shown)

    def _outcome_text(self) -> str:
        counts = self.outcomes.group_by("filesystem", "database").len().sort("len", descending=True)
        return ", ".join(
            f"{r['len']} file system {r['filesystem']} and database {r['database']}"
            for r in counts.iter_rows(named=True)
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "results": str(self.results) if self.results else None,
            "report": str(self.report) if self.report else None,
            "verified": self.verified,
            "rows": len(self.rows),
            "backups": len(self.rows),
            "crash_states": len(self.outcomes),
            "notes": list(self.notes),
            "seconds": self.seconds,
            "summary": self.summary().to_dicts(),
        }

    def _repr_html_(self) -> str:
        from vmbk.display import table

        header, rows, _ = _table(self.summary())
        return table("Totals over the incremental backups of each experiment", header, rows)


def _table(found: pl.DataFrame) -> tuple[list[str], list[list[str]], list[tuple[object, ...]]]:
    """A summary for people: header, rows, and the group that each row stands in.

    The interval and the block size are columns where the study has several. Where it ran with one
    drill-down and without, one row tells of both.
    """
    several = [axis for axis in _AXES if found[axis].n_unique() > 1]
    paired = _paired(found)
    if paired:
        keys = ["dataset", "interval", "block_size", "detector"]
        off = found.filter(pl.col("sub_block_size") == 0)
        off = off.select(*keys, whole_bytes="sent_bytes", whole_good="good", whole="backups")
        found = found.filter(pl.col("sub_block_size") > 0)
        found = found.join(off, on=keys, how="left", maintain_order="left").with_columns(
            pl.col("good") + pl.col("whole_good"), restores=pl.col("backups") + pl.col("whole")
        )
    else:
        found = found.with_columns(restores=pl.col("backups"))
        several.append("sub_block_size")
    header = ["data set", *[_AXES.get(axis, "drill-down") for axis in several], "detector",
              "backups", "read", "sent", *["sent whole"] * paired, "stored", "backup time",
              "restores identical"]  # fmt: skip
    rows: list[list[str]] = []
    groups: list[tuple[object, ...]] = []
    for r in found.iter_rows(named=True):
        good = "yes" if r["good"] == r["restores"] else "NO"
        whole = [format_size(r["whole_bytes"])] if paired else []
        rows.append(
            [r["dataset"], *[_axis_text(axis, r[axis]) for axis in several], r["detector"],
             str(r["backups"]), format_size(r["scanned_bytes"]), format_size(r["sent_bytes"]),
             *whole, format_size(r["stored_bytes"]), format_duration(r["backup_seconds"]),
             f"{good} ({r['good']} of {r['restores']})"]
        )  # fmt: skip
        groups.append((r["dataset"], r["interval"], r["block_size"], r["sub_block_size"]))
    return header, rows, groups


def _paired(found: pl.DataFrame) -> bool:
    """Whether every experiment ran both with the one drill-down and without."""
    sizes = found["sub_block_size"].unique().sort().to_list()
    counts = found["sub_block_size"].value_counts()["count"].unique()
    return len(sizes) == 2 and sizes[0] == 0 and len(counts) == 1


_AXES: Final = {"interval": "interval", "block_size": "block"}


def _axis_text(axis: str, value: Any) -> str:
    if axis == "interval":
        return str(value)
    return format_size(value) if value else "off"


def _constants(found: pl.DataFrame) -> str:
    """The axes that the table has no column for."""
    if found.is_empty():
        return ""
    texts = []
    if found["interval"].n_unique() == 1:
        interval = found["interval"][0]
        texts.append(f"interval {interval}" + (" of requests" if interval.endswith("%") else ""))
    if found["block_size"].n_unique() == 1:
        texts.append(f"blocks of {format_size(found['block_size'][0])}")
    if _paired(found):
        texts.append(f"drill-down to {format_size(max(found['sub_block_size'].to_list()))}")
    return f" Of all rows: {', '.join(texts)}." if texts else ""


def write_results(result: StudyResult, folder: Path) -> StudyResult:
    """Write ``results.parquet`` and ``outcomes.parquet``; each appears whole or not at all.

    Returns
    -------
    StudyResult
        With `StudyResult.results`.

    Raises
    ------
    StorageError
        If they cannot be written.
    """
    frames = {RESULTS: result.rows} | ({OUTCOMES: result.outcomes} if len(result.outcomes) else {})
    for name, frame in frames.items():
        partial = folder / f".{name}.partial"
        try:
            # An open file, because Polars knows neither every name nor why a file is refused.
            with partial.open("wb") as file:
                frame.write_parquet(file, compression="zstd")
            partial.replace(folder / name)
        except OSError as error:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise StorageError(
                f"cannot write {str(folder / name)!r}: {error.strerror or error}"
            ) from error
    return replace(result, results=folder / RESULTS)


def read_results(path: str | os.PathLike[str]) -> pl.DataFrame:
    """Read the results of a study.

    Parameters
    ----------
    path : path
        ``results.parquet``, or the folder that holds it.

    Returns
    -------
    polars.DataFrame
        With the columns of `COLUMNS`.
    """
    file = Path(path)
    file = file / RESULTS if file.is_dir() else file
    if not file.exists():
        raise NotFoundError(f"there are no results at {str(path)!r}", hint="run: vmbk study")
    try:
        frame = pl.read_parquet(file)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"cannot read results from {str(file)!r}: {error}") from error
    missing = [name for name in SCHEMA if name not in frame.columns]
    if missing:
        raise InputError(f"{str(file)!r} is no study's result: it lacks {', '.join(missing)}")
    return frame
