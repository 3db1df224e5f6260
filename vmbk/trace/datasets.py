"""The captures that travel with vmbk, and their catalogue.

``python -m vmbk.trace.datasets [NAME ...]`` captures them anew (all of them without a name) and
writes the catalogue.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vmbk.errors import NotFoundError, TraceFormatError
from vmbk.units import quoted

if TYPE_CHECKING:
    from vmbk.trace.table import Trace

_PACKAGE: Final = Path(__file__).resolve().parent.parent
_CATALOGUE: Final = "catalogue.json"


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
        The recipe of `vmbk.trace.capture` that makes it.
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
    rows: int
    size: int
    digest: str


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
        Names of shipped recipes.
    folder : Path

    Raises
    ------
    VmbkError
        As `vmbk.trace.capture.capture`.
    """
    from vmbk.trace.capture import Recipe, capture
    from vmbk.trace.store import replacing

    entries: dict[str, dict[str, Any]] = {}
    if (folder / _CATALOGUE).is_file():
        entries = {d.name: asdict(d) | {"file": d.path.name} for d in datasets(folder)}
    for name in names:
        path = folder / f"{name}.parquet"
        trace = capture(name, path)
        entries[name] = {
            "name": name,
            "file": path.name,
            "doc": Recipe.load(name).doc,
            "recipe": name,
            "rows": len(trace),
            "size": path.stat().st_size,
            "digest": trace.digest,
        }
    listed = [entries[name] for name in sorted(entries)]
    for entry in listed:
        entry.pop("path", None)
    with replacing(folder / _CATALOGUE) as temporary:
        text = json.dumps({"datasets": listed}, indent=2, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    from vmbk.trace.capture import recipes

    make_datasets(sys.argv[1:] or recipes(), _PACKAGE.parent / "datasets")
