"""The consistency laboratory: crash states of a capture, judged by the real checkers.

`crash` builds the disk at the moment of a power cut, `ext4` and `sqlite` judge it, `outcome` counts
what they found; `laboratory` puts them together. Names are loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_WHERE = {
    "checkers": ("CheckContext", "Checker", "Tool", "Verdict"),
    "crash": ("CrashPoint", "CrashState", "crash_points", "crash_states"),
    "ext4": ("Ext4Checker",),
    "laboratory": ("CaptureMarks", "check_image", "crash_test"),
    "outcome": ("Outcome", "OutcomeTable"),
    "sqlite": ("DatabaseSpec", "DatabaseVerdict", "Invariant", "SqliteChecker"),
}
_HOME = {name: module for module, names in _WHERE.items() for name in names}

if TYPE_CHECKING:
    from vmbk.consistency.checkers import CheckContext, Checker, Tool, Verdict
    from vmbk.consistency.crash import CrashPoint, CrashState, crash_points, crash_states
    from vmbk.consistency.ext4 import Ext4Checker
    from vmbk.consistency.laboratory import CaptureMarks, check_image, crash_test
    from vmbk.consistency.outcome import Outcome, OutcomeTable
    from vmbk.consistency.sqlite import (
        DatabaseSpec,
        DatabaseVerdict,
        Invariant,
        SqliteChecker,
    )

__all__ = [
    "CaptureMarks",
    "CheckContext",
    "Checker",
    "CrashPoint",
    "CrashState",
    "DatabaseSpec",
    "DatabaseVerdict",
    "Ext4Checker",
    "Invariant",
    "Outcome",
    "OutcomeTable",
    "SqliteChecker",
    "Tool",
    "Verdict",
    "check_image",
    "crash_points",
    "crash_states",
    "crash_test",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
