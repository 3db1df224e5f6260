"""Studies: declared grids of experiments, run, verified and recorded with provenance.

`vmbk.run_study` runs one and writes its results and its report. `vmbk.study.sweep` runs whatever
has cells on many cores or machines.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmbk.study.config import StudyConfig, read_config
    from vmbk.study.results import StudyResult, read_results, write_results
    from vmbk.study.runner import run_grid

__all__ = ["StudyConfig", "StudyResult", "read_config", "read_results", "run_grid", "write_results"]

# Loaded when they are used: a worker of a sweep starts twice as fast without the pipeline.
_MODULES = {
    "StudyConfig": "config", "read_config": "config", "StudyResult": "results",
    "read_results": "results", "write_results": "results", "run_grid": "runner",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'vmbk.study' has no attribute {name!r}")
    return getattr(import_module(f"vmbk.study.{_MODULES[name]}"), name)
