"""What a calibration measures: machines, and known changes of them.

Four questions, each a set of cells of which one thing differs: how long the extents are, how small
the writes, how large the disk and where on it the changes, and over how many disks they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vmbk.detect.changes import Settings
from vmbk.disk.tracking_state import GRANULARITY
from vmbk.errors import InputError
from vmbk.units import GIB, KIB, MIB, quoted

SETTINGS: Final = Settings()
"""Blocks of 64 KiB and sub-blocks of 4 KiB: what a backup uses that is told nothing else."""

SPREADS: Final = ("strewn", "clustered", "contiguous", "holed")

MOST_RUNS: Final = 1 << 20
"""Runs of one cell: more take longer to make than to back up."""


@dataclass(frozen=True)
class Machine:
    """A VM to measure on.

    Parameters
    ----------
    name : str
    disks : int
        How many it has, all alike.
    size : int
        Bytes of each.
    data : int
        Bytes at its start that hold data; the rest is a hole.
    """

    name: str
    disks: int
    size: int
    data: int

    def __post_init__(self) -> None:
        if not (self.disks >= 1 and 0 < self.data <= self.size and self.data % GRANULARITY == 0):
            raise InputError(
                f"the machine {quoted(self.name)} is none: {self.disks} disks of {self.size} bytes "
                f"with {self.data} bytes of data",
                hint=f"data is a multiple of {GRANULARITY} bytes and fits on the disk",
            )


@dataclass(frozen=True)
class Churn:
    """A cell: a known change of a machine, and the detector that finds it.

    Parameters
    ----------
    kind : str
        Which question the cell answers: ``extent``, ``write``, ``disk`` or ``disks``.
    machine : str
    detector : {"checksum", "tracking"}
    spread : {"strewn", "clustered", "contiguous", "holed"}
        Where the runs are: at random over all data; side by side with gaps that keep them apart;
        one run of everything; or one write at the start of each sub-block, all side by side,
        which makes one extent that is longer than what was written.
    written : int
        Bytes, over all disks.
    write_size : int
        Bytes of each write; the writes of a run are adjacent, and come in random order.
    run : int
        Bytes of each run.
    """

    kind: str
    machine: str
    detector: str
    spread: str
    written: int
    write_size: int
    run: int

    def __post_init__(self) -> None:
        if self.spread not in SPREADS or self.detector not in ("checksum", "tracking"):
            raise InputError(
                f"no cell has spread {quoted(self.spread)} and detector {quoted(self.detector)}",
                hint=f"spreads: {', '.join(SPREADS)}; detectors: checksum, tracking",
            )
        whole = self.write_size > 0 and self.run > 0 and self.written > 0
        if not whole or self.run % self.write_size or self.written % self.run:
            raise InputError(
                f"{self.written} bytes are no whole number of runs of {self.run} bytes, or those "
                f"no whole number of writes of {self.write_size} bytes"
            )
        if self.runs > MOST_RUNS:
            raise InputError(f"a cell of {self.runs:,} runs; the most is {MOST_RUNS:,}")

    @property
    def runs(self) -> int:
        """Runs of adjacent writes, over all disks."""
        return self.written // self.run

    @property
    def slot(self) -> int:
        """Bytes from one run to the next at the least: no two make one extent unless they shall."""
        grain = SETTINGS.grain
        if self.spread == "contiguous":
            return self.run
        return grain if self.spread == "holed" else -(-self.run // grain) * grain + grain


@dataclass(frozen=True)
class Plan:
    """What is measured: machines, cells, and how often.

    Parameters
    ----------
    machines : tuple of Machine
    cells : tuple of Churn
    rounds : int
        How often each cell is measured; each round has new disks and a new vault.
    """

    machines: tuple[Machine, ...]
    cells: tuple[Churn, ...]
    rounds: int = 3

    def __post_init__(self) -> None:
        if self.rounds < 1 or not self.cells:
            raise InputError("there is nothing to measure", hint="a plan has cells and rounds")
        machines = {machine.name: machine for machine in self.machines}
        for cell in self.cells:
            machine = machines.get(cell.machine)
            if machine is None:
                raise InputError(f"there is no machine {quoted(cell.machine)} in the plan")
            each, left = divmod(cell.runs, machine.disks)
            if left or each * cell.slot > machine.data:
                raise InputError(
                    f"{cell.runs:,} runs of {cell.run} bytes do not fit on {machine.name}: each of "
                    f"its {machine.disks} disks has {machine.data // cell.slot:,} places"
                )


def _extent_cells() -> list[tuple[str, str, str, int, int, int]]:
    """How long extents are: the same bytes in writes of 512 B to 1 MiB, each an extent."""
    sizes = [512 << i for i in range(12)]
    return [
        ("extent", "medium", "strewn", written, size, size)
        for written in (4 * MIB, 16 * MIB, 64 * MIB)
        for size in sizes
        if written // size <= 4096
    ]


def _write_cells() -> list[tuple[str, str, str, int, int, int]]:
    """How small writes are, where the extents are the same: in runs, and a write a sub-block."""
    alike = [
        ("write", "medium", spread, 16 * MIB, size, run)
        for size in (512, 4 * KIB, 64 * KIB)
        for spread, run in (("strewn", 64 * KIB), ("contiguous", 16 * MIB))
    ]
    return alike + [
        ("write", "medium", "holed", size * (8 * MIB // SETTINGS.grain), size, size)
        for size in (512, 1 * KIB, 2 * KIB, 4 * KIB)
    ]


def _disk_cells() -> list[tuple[str, str, str, int, int, int]]:
    """How large the disk is, and where on it the changes are."""
    return [
        ("disk", name, spread, 4 * MIB, run, run)
        for name in ("small", "medium", "large", "sparse")
        for run in (4 * KIB, 64 * KIB, MIB)
        for spread in ("strewn", "clustered")
    ]


def _disks_cells() -> list[tuple[str, str, str, int, int, int]]:
    """Over how many disks the same data and the same changes are spread."""
    return [
        ("disks", name, "strewn", 32 * MIB, run, run)
        for name in ("one-disk", "two-disks", "four-disks")
        for run in (16 * KIB, 256 * KIB)
    ]


PLAN: Final = Plan(
    machines=(
        Machine("small", 1, 128 * MIB, 128 * MIB),
        Machine("medium", 1, 512 * MIB, 384 * MIB),
        Machine("large", 1, GIB, GIB),
        Machine("sparse", 1, 4 * GIB, 128 * MIB),
        Machine("one-disk", 1, 256 * MIB, 256 * MIB),
        Machine("two-disks", 2, 128 * MIB, 128 * MIB),
        Machine("four-disks", 4, 64 * MIB, 64 * MIB),
    ),
    cells=tuple(
        Churn(kind, machine, detector, spread, written, write_size, run)
        for make in (_extent_cells, _write_cells, _disk_cells, _disks_cells)
        for kind, machine, spread, written, write_size, run in make()
        for detector in ("checksum", "tracking")
    ),
)
"""What the shipped table holds."""
