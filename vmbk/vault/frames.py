"""The vault as Polars frames, for notebooks."""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

from vmbk.vault.arrow import id_array
from vmbk.vault.format import KINDS
from vmbk.vault.index import Index
from vmbk.vault.manifest import RecoveryPoint

_KIND_NAMES = {number: name for name, number in KINDS.items()}


def index_frame(index: Index) -> pl.DataFrame:
    """One row per entry; chunk and pack in hexadecimal, sizes in bytes."""
    columns = index.columns()
    schema = {
        "chunk": pl.String, "pack": pl.String, "offset": pl.Int64, "stored": pl.Int32,
        "raw": pl.Int32, "kind": pl.String, "compression": pl.String,
    }  # fmt: skip
    if not columns:
        return pl.DataFrame(schema=schema)
    frame = pl.DataFrame(
        {
            name: pl.from_arrow(id_array(columns[name])) if name in ("chunk", "pack")
            else columns[name]
            for name in schema
        }
    )  # fmt: skip
    return frame.with_columns(
        pl.col("chunk", "pack").bin.encode("hex"),
        pl.col("kind").replace_strict(_KIND_NAMES, return_dtype=pl.String),
        pl.col("compression").replace_strict({0: "raw", 1: "zstd"}, return_dtype=pl.String),
    ).sort("pack", "offset")


def points_frame(points: Iterable[RecoveryPoint]) -> pl.DataFrame:
    """One row per disk of each point, with the sizes and statistics in bytes."""
    names = (
        "size", "block_size", "sub_block_size", "detector", "fallback", "parent", "tracker",
        "generation", "digest", "scanned_bytes", "changed_bytes", "sent_bytes", "new_bytes",
        "stored_bytes",
    )  # fmt: skip
    texts = {"detector", "fallback", "parent", "tracker", "digest"}
    schema: dict[str, pl.DataType] = {
        "point": pl.String(),
        "vm": pl.String(),
        "created": pl.Datetime("ns", "UTC"),
        "consistency": pl.String(),
        "disk": pl.String(),
        **{name: pl.String() if name in texts else pl.Int64() for name in names},
    }
    rows = [
        (point.id, point.vm, point.created_ns, point.consistency, disk.name,
         *(getattr(disk, name) for name in names))
        for point in points
        for disk in point.disks
    ]  # fmt: skip
    plain = {**schema, "created": pl.Int64()}
    return pl.DataFrame(rows, schema=plain, orient="row").with_columns(
        pl.from_epoch("created", time_unit="ns").dt.replace_time_zone("UTC")
    )
