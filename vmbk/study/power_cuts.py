"""The study of power cuts: thousands of crash states of captured machines, judged by real checkers.

What is cut is declared in `PLAN`: each capture under the crash models that say something of it. The
table that comes with vmbk was made by ``python -m vmbk.study.power_cuts``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import polars as pl
import pyarrow.parquet as pq

from vmbk.consistency.laboratory import crash_test
from vmbk.consistency.vault_laboratory import vault_crash_test
from vmbk.errors import InputError
from vmbk.progress import progress
from vmbk.provenance import provenance
from vmbk.trace import Trace, dataset_path, read_trace


@dataclass(frozen=True)
class Cuts:
    """Crash states of one capture.

    Parameters
    ----------
    capture : str
        Name of a data set.
    model : str
        One of `vmbk.consistency.MODELS`, or ``"snapshot"``.
    states : int or None
        How many at most; all where None.
    honest : bool
        Whether the disk keeps what it promises: everything before a flush, all disks at one moment.
    durable : bool
        Whether the workload has a commit made durable before it acknowledges it.
    boot : bool
        Whether each disk is booted as well.
    """

    capture: str
    model: str
    states: int | None
    honest: bool = True
    durable: bool = True
    boot: bool = False


PLAN: Final = (
    Cuts("ext4-sqlite", "flush", None),
    Cuts("ext4-sqlite", "request", 300),
    Cuts("ext4-sqlite", "epoch", 600),
    Cuts("ext4-sqlite", "torn", 400),
    Cuts("ext4-sqlite", "lying", 300, honest=False),
    Cuts("ext4-fsfreeze", "flush", None),
    Cuts("ext4-fsfreeze", "epoch", 300),
    Cuts("ext4-fsfreeze", "snapshot", None),
    Cuts("ext4-sqlite-off", "flush", 400, durable=False),
    Cuts("ext4-sqlite-off", "epoch", 300, durable=False),
    Cuts("ext4-sqlite-off", "snapshot", None, durable=False),
    Cuts("ext4-fileserver", "flush", None),
    Cuts("ext4-fileserver", "epoch", 300),
    Cuts("ext4-fileserver", "lying", 200, honest=False),
    Cuts("xfs-sqlite", "flush", 150),
    Cuts("xfs-sqlite", "lying", 75, honest=False),
    Cuts("ext4-postgresql", "flush", 120),
    Cuts("ext4-postgresql", "epoch", 60),
    Cuts("ext4-postgresql", "lying", 60, honest=False),
    Cuts("ext4-quiesce", "snapshot", None, durable=False),
    Cuts("ext4-two-disks", "flush", 100),
    Cuts("ext4-two-disks", "apart", 150, honest=False),
    Cuts("ext4-boot", "epoch", 16, boot=True),
)
"""What the shipped table holds."""

VAULT_PLAN: Final = (
    Cuts("vault", "flush", None),
    Cuts("vault", "request", None),
    Cuts("vault", "epoch", 200),
    Cuts("vault", "torn", 200),
    Cuts("vault", "lying", 100, honest=False),
)
"""The same for a disk with a vault on it."""

SHIPPED: Final = "power-cuts.parquet"
"""Name of the shipped table, beside the notebooks."""

SHIPPED_VAULT: Final = "vault-cuts.parquet"
"""The same of `VAULT_PLAN`."""


def study_power_cuts(
    plan: Sequence[Cuts] = PLAN, *, seed: int = 0, share: float = 1.0
) -> pl.DataFrame:
    """Judge the crash states of a plan.

    Parameters
    ----------
    plan : sequence of Cuts
    seed : int
        Seed of every sample.
    share : float
        Part of each number of states that is made, more than 0 and at most 1: a sample of the
        plan, for a first look. States differ from those of the whole plan.

    Returns
    -------
    polars.DataFrame
        One row a state: the columns of `vmbk.consistency.Outcome`, ``honest``, ``durable``, and
        with what it was made: ``seed``, ``version``, ``commit``, ``provenance``.

    Raises
    ------
    InputError
        If the share is out of range, or nothing is planned.
    ToolMissingError
        If a checker's program is not installed.
    """
    _check(plan, share)
    frames = []
    for cuts in plan:
        trace, states = _of(cuts, share)
        with progress(f"{cuts.capture}, {cuts.model}", states or 0, unit="states") as advance:
            found = crash_test(
                trace, model=cuts.model, states=states, seed=seed, on_progress=advance,
                boot=cuts.boot,
            )  # fmt: skip
        kind = {"honest": pl.lit(cuts.honest), "durable": pl.lit(cuts.durable)}
        frames.append(found.frame().with_columns(**kind))
    return _made(pl.concat(frames), seed)


def study_vault_cuts(
    plan: Sequence[Cuts] = VAULT_PLAN, *, seed: int = 0, share: float = 1.0
) -> pl.DataFrame:
    """Judge what power cuts leave of a vault: does every acknowledged recovery point restore?

    Parameters and errors are those of `study_power_cuts`.

    Returns
    -------
    polars.DataFrame
        One row a state: the columns of `vmbk.consistency.VaultOutcome`, ``honest``, and with what
        it was made.
    """
    _check(plan, share)
    frames = []
    for cuts in plan:
        trace, states = _of(cuts, share)
        with progress(f"{cuts.capture}, {cuts.model}", states or 0, unit="states") as advance:
            found = vault_crash_test(
                trace, model=cuts.model, states=states, seed=seed, resume=8, on_progress=advance
            )
        frames.append(found.frame().with_columns(honest=pl.lit(cuts.honest)))
    return _made(pl.concat(frames), seed)


def _check(plan: Sequence[Cuts], share: float) -> None:
    if not 0 < share <= 1:
        raise InputError(f"a share of {share} of the states: more than 0 and at most 1 is possible")
    if not plan:
        raise InputError("there is nothing to cut", hint="name captures, as in `PLAN`")


def _of(cuts: Cuts, share: float) -> tuple[Trace, int | None]:
    """The capture, and how many of its states are wanted."""
    states = cuts.states
    if share < 1:
        states = max(1, round((states or 200) * share))
    return read_trace(dataset_path(cuts.capture)), states


def _made(frame: pl.DataFrame, seed: int) -> pl.DataFrame:
    """With what the results were made."""
    made = provenance().to_dict()
    return frame.with_columns(
        seed=pl.lit(seed),
        version=pl.lit(str(made.pop("version"))),
        commit=pl.lit(str(made.pop("commit"))),
        provenance=pl.lit(json.dumps(made, sort_keys=True)),
    )


def main(words: list[str] | None = None) -> int:
    """Make the shipped tables anew."""
    parser = argparse.ArgumentParser(prog="python -m vmbk.study.power_cuts", description=__doc__)
    parser.add_argument("-o", "--out", type=Path, default=Path("notebooks"), help="folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="part of the states, 0 to 1")
    parser.add_argument("--only", choices=["machines", "vault"], help="one of the tables")
    args = parser.parse_args(words)
    studies = {
        "machines": (study_power_cuts, SHIPPED, ["capture", "model", "outcome"]),
        "vault": (study_vault_cuts, SHIPPED_VAULT, ["model", "filesystem", "vault"]),
    }
    for name, (study, file, columns) in studies.items():
        if args.only not in (None, name):
            continue
        found = study(seed=args.seed, share=args.share)
        partial = args.out / f".{file}.partial"
        pq.write_table(found.to_arrow(), partial, compression="zstd")
        partial.replace(args.out / file)
        for row in found.group_by(columns, maintain_order=True).len().iter_rows():
            print(*row, file=sys.stderr)
        print(f"{len(found)} states in {args.out / file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
