"""The captures that travel with vmbk, and their catalogue.

``python -m vmbk.trace.datasets [NAME ...]`` captures them anew and writes the catalogue; without a
name, those whose capture is not there yet, and ``--all`` all of them. Most are of guests; those of
`HOST_RECIPES` run on this machine and need root.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vmbk.errors import NotFoundError, TraceFormatError
from vmbk.units import MIB, quoted

if TYPE_CHECKING:
    from vmbk.trace.capture import Recipe
    from vmbk.trace.table import Trace

_PACKAGE: Final = Path(__file__).resolve().parent.parent
_CATALOGUE: Final = "catalogue.json"
_DATABASES: Final = {"sqlite3": "SQLite", "postgres": "PostgreSQL"}
"""Databases by the programs that a guest brings for them."""


@dataclass(frozen=True)
class HostRecipe:
    """What a capture of a program of this machine is made of; see `vmbk.trace.capture.host`.

    Parameters
    ----------
    name : str
    doc : str
        What the program does, in a line or two.
    module : str
        The program, a module of Python.
    size : int
        Bytes of the volume.
    file_system : str
        What it is formatted with.
    """

    name: str
    doc: str
    module: str
    size: int
    file_system: str = "ext4"

    @property
    def digest(self) -> str:
        """BLAKE3 (hex) of what is declared and of the program's source."""
        from blake3 import blake3

        source = _PACKAGE.parent.joinpath(*self.module.split(".")).with_suffix(".py")
        declared = json.dumps(asdict(self), sort_keys=True).encode()
        return blake3(declared + b"\n" + source.read_bytes()).hexdigest()


HOST_RECIPES: Final = {
    recipe.name: recipe
    for recipe in (
        HostRecipe(
            name="vault",
            doc="vmbk itself: a vault on ext4, into which disks of 2 to 4 MiB that lie elsewhere "
            "are backed up in whole, by checksum and by tracking, by two jobs at once and by jobs "
            "that are killed, with a restore, a check, a deletion and a rebuilt index between; "
            "each recovery point is acknowledged by a mark as soon as the backup has returned.",
            module="vmbk.consistency.vault_workload",
            size=160 * MIB,  # two groups of blocks, so that there is a copy of the superblock
        ),
    )
}
"""Shipped captures of programs on this machine, by name."""


@dataclass(frozen=True)
class Dataset:
    """A shipped capture.

    Parameters
    ----------
    name : str
    path : Path
        Its Parquet file.
    doc : str
        What it holds.
    recipe : str
        The recipe of `vmbk.trace.capture`, or of `HOST_RECIPES`, that makes it.
    file_system : str
        What its volumes were formatted with.
    database : str or None
        The database that ran on them, if any.
    volume_size : int
        Bytes of all volumes together.
    duration_s : float
        Seconds of real time that the trace covers.
    acknowledged : int
        Marks that the workload wrote: commits, syncs and the like that had to be durable.
    rows : int
        Requests.
    size : int
        Bytes of the file.
    digest : str
        `Trace.digest`.
    """

    name: str
    path: Path
    doc: str
    recipe: str
    file_system: str
    database: str | None
    volume_size: int
    duration_s: float
    acknowledged: int
    rows: int
    size: int
    digest: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self) | {"path": str(self.path)}


def datasets_folder() -> Path:
    """The folder of the shipped captures: in the package, or in the checkout around it.

    Raises
    ------
    NotFoundError
        If there is neither.
    """
    for folder in (_PACKAGE / "_datasets", _PACKAGE.parent / "datasets"):
        if (folder / _CATALOGUE).is_file():
            return folder
    raise NotFoundError(
        "this installation of vmbk came without its data sets",
        hint="install it from a wheel, or run it in a checkout",
    )


def datasets(folder: Path | None = None) -> list[Dataset]:
    """The shipped captures, by name.

    Parameters
    ----------
    folder : Path, optional
        A folder with a catalogue, instead of vmbk's own.

    Raises
    ------
    NotFoundError
        If there is no catalogue.
    TraceFormatError
        If it is damaged.
    """
    folder = datasets_folder() if folder is None else folder
    path = folder / _CATALOGUE
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        found = [Dataset(path=folder / item.pop("file"), **item) for item in listed["datasets"]]
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no catalogue {str(path)!r}") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise TraceFormatError(f"the catalogue {str(path)!r} is damaged: {error}") from error
    return sorted(found, key=lambda dataset: dataset.name)


def dataset_path(name: str) -> Path:
    """The file of a shipped capture.

    Raises
    ------
    NotFoundError
        If there is none of this name.
    """
    known = {dataset.name: dataset.path for dataset in datasets()}
    if name not in known:
        raise NotFoundError(
            f"there is no data set {name!r}", hint="there are " + ", ".join(sorted(known))
        )
    return known[name]


def open_trace(name: str) -> Trace:
    """A trace by its file, or a shipped capture by its name; where both are there, the file.

    Parameters
    ----------
    name : str
        As people give it to commands and studies.

    Raises
    ------
    NotFoundError
        If there is neither.
    VmbkError
        As `vmbk.trace.store.read_trace`.
    """
    from vmbk.trace.store import read_trace

    # Unlike their namesakes in pathlib, these take any name, however long or odd.
    if os.path.isfile(name):  # noqa: PTH113
        return read_trace(name)
    try:
        shipped = {dataset.name: dataset.path for dataset in datasets()}
    except NotFoundError:  # an installation without them reads files all the same
        shipped = {}
    if name in shipped:
        return read_trace(shipped[name])
    if os.path.lexists(name):
        return read_trace(name)  # says what is wrong with it
    raise NotFoundError(
        f"there is no file and no shipped data set {quoted(name)}",
        hint=f"shipped are {', '.join(sorted(shipped)) or 'none'}",
    )


def make_datasets(names: Iterable[str], folder: Path) -> None:
    """Capture data sets anew into a folder and enter them in its catalogue.

    Parameters
    ----------
    names : iterable of str
        Names of shipped recipes, of guests or of this machine.
    folder : Path

    Raises
    ------
    VmbkError
        As `vmbk.trace.capture.capture` and `vmbk.trace.capture.host.capture_host`.
    """
    from vmbk.trace.capture import Recipe, capture

    for name in names:
        path = folder / f"{name}.parquet"
        if name in HOST_RECIPES:
            made = describe(HOST_RECIPES[name], _capture_here(HOST_RECIPES[name], path), path)
        else:
            made = describe(Recipe.load(name), capture(name, path), path)
        # After each one, and read anew: what has been captured stays, should a later one fail or
        # another process capture as well.
        known = {d.name: d for d in datasets(folder)} if (folder / _CATALOGUE).is_file() else {}
        _write_catalogue((known | {name: made}).values(), folder)


def _capture_here(recipe: HostRecipe, path: Path) -> Trace:
    """Run a recipe of this machine, and write its trace as those of guests are written."""
    from vmbk.trace.capture import PARQUET_LEVEL
    from vmbk.trace.capture.host import capture_host
    from vmbk.trace.store import write_trace
    from vmbk.trace.table import Trace

    command = [sys.executable, "-m", recipe.module]
    with tempfile.TemporaryDirectory(prefix="vmbk-dataset-") as folder:
        here = Path(folder) / "trace.arrow"
        trace = capture_host(command, here, size=recipe.size, filesystem=recipe.file_system)
        named = {"recipe": recipe.name, "recipe_digest": recipe.digest}
        trace = Trace.from_arrow(
            trace.table,
            volumes=trace.volumes,
            source_format=trace.metadata.source_format,
            source_digest=trace.metadata.source_digest,
            clock=trace.metadata.clock,
            provenance=named | trace.provenance,
        )
        write_trace(trace, path, parquet_level=PARQUET_LEVEL)
    return trace


def describe(recipe: Recipe | HostRecipe, trace: Trace, path: Path) -> Dataset:
    """The catalogue's entry of a capture.

    Parameters
    ----------
    recipe : Recipe or HostRecipe
        The recipe that made it.
    trace : Trace
    path : Path
        The trace's file.
    """
    labels = [label for _, label in trace.marks()]
    # The phases are marked before and after what the workload itself acknowledges.
    first, last = labels.index("workload begins"), labels.index("workload ends")
    if isinstance(recipe, HostRecipe):
        file_system, brought = recipe.file_system, []
    else:
        file_system = ", ".join(dict.fromkeys(_file_system(disk.mkfs) for disk in recipe.disks))
        brought = [*recipe.programs, *recipe.files]
    return Dataset(
        name=recipe.name,
        path=path,
        doc=recipe.doc,
        recipe=recipe.name,
        file_system=file_system,
        database=next(
            (kind for program, kind in _DATABASES.items() if any(program in b for b in brought)),
            None,
        ),
        volume_size=sum(volume.size for volume in trace.volumes),
        duration_s=round(trace.summary().duration_s, 1),
        acknowledged=last - first - 1,
        rows=len(trace),
        size=path.stat().st_size,
        digest=trace.digest,
    )


def _file_system(mkfs: tuple[str, ...]) -> str:
    """What ``mkfs.xfs ...`` or ``mke2fs -t ext4 ...`` makes."""
    if "-t" in mkfs[:-1]:
        return mkfs[mkfs.index("-t") + 1]
    return mkfs[0].removeprefix("mkfs.")


def _write_catalogue(found: Iterable[Dataset], folder: Path) -> None:
    from vmbk.trace.store import replacing

    listed = []
    for dataset in sorted(found, key=lambda dataset: dataset.name):
        entry = asdict(dataset)
        name = entry.pop("name")
        listed.append({"name": name, "file": entry.pop("path").name} | entry)
    with replacing(folder / _CATALOGUE) as temporary:
        text = json.dumps({"datasets": listed}, indent=2, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def _main(words: list[str], folder: Path) -> None:
    from vmbk.trace.capture import recipes

    there = {path.stem for path in folder.glob("*.parquet")}
    every = [*recipes(), *HOST_RECIPES]
    if words == ["--all"]:
        names = every
    else:
        names = words or [name for name in every if name not in there]
    make_datasets(names, folder)


if __name__ == "__main__":
    _main(sys.argv[1:], _PACKAGE.parent / "datasets")
