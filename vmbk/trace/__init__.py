"""Traces: the schema, the store, importers (`formats`), captures of real guests (`capture`).

Names are loaded on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmbk.trace.capture import Recipe as Recipe
    from vmbk.trace.capture import capture as capture
    from vmbk.trace.capture.recipe import recipes as recipes
    from vmbk.trace.datasets import Dataset as Dataset
    from vmbk.trace.datasets import dataset_path as dataset_path
    from vmbk.trace.datasets import datasets as datasets
    from vmbk.trace.datasets import open_trace as open_trace
    from vmbk.trace.formats import ImportResult as ImportResult
    from vmbk.trace.formats import import_trace as import_trace
    from vmbk.trace.schema import COLUMNS as COLUMNS
    from vmbk.trace.schema import ColumnSpec as ColumnSpec
    from vmbk.trace.schema import Flag as Flag
    from vmbk.trace.schema import Metadata as Metadata
    from vmbk.trace.schema import Op as Op
    from vmbk.trace.schema import Volume as Volume
    from vmbk.trace.store import read_trace as read_trace
    from vmbk.trace.store import write_trace as write_trace
    from vmbk.trace.summary import TraceSummary as TraceSummary
    from vmbk.trace.table import Payloads as Payloads
    from vmbk.trace.table import Requests as Requests
    from vmbk.trace.table import Trace as Trace

_WHERE = {
    "capture": ("Recipe", "capture", "recipes"),
    "datasets": ("Dataset", "dataset_path", "datasets", "open_trace"),
    "formats": ("ImportResult", "import_trace"),
    "schema": ("COLUMNS", "ColumnSpec", "Flag", "Metadata", "Op", "Volume"),
    "store": ("read_trace", "write_trace"),
    "summary": ("TraceSummary",),
    "table": ("Payloads", "Requests", "Trace"),
}
_HOME = {name: module for module, names in _WHERE.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


class _Package(ModuleType):
    """This package, in which `capture` and `datasets` are functions.

    Their modules bear the same names, and Python would put a module into the function's place as
    soon as it is loaded. ``from vmbk.trace.capture import ...`` works all the same.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
