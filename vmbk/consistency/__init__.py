"""The consistency laboratory: what a restored machine really has.

The label of a recovery point: `decision` has the rules by which it is given, `vss` and `scripts`
what is done to a machine before its snapshot.

What is then on the disk: `crash` says which states a power cut can leave, `states` builds them,
`machines` says what a captured machine has and who judges it (`ext4`, `xfs`, `btrfs`, `sqlite`,
`postgresql`, `boot`, `command`), `laboratory` puts them together and `outcome` counts what they
found. `vault_laboratory` does the same for a vault. Names are loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_WHERE = {
    "boot": ("BootChecker",),
    "btrfs": ("BtrfsChecker",),
    "checkers": ("CheckContext", "Checker", "Tool", "Verdict"),
    "command": ("CommandChecker",),
    "crash": ("MODELS", "CrashPoint", "CrashState", "crash_points", "crash_states"),
    "decision": ("Case", "Decision", "decide", "decision_table"),
    "ext4": ("Ext4Checker",),
    "freeze": ("FsFreezer", "Mount", "freezable_mounts"),
    "laboratory": ("CaptureMarks", "check_image", "crash_test", "snapshot_points"),
    "log_chain": ("RestorePlan", "SqlBackup", "SqlLogChain"),
    "machines": ("MACHINES", "Machine"),
    "outcome": ("LADDER", "Outcome", "OutcomeTable", "rates"),
    "postgresql": ("PostgresChecker", "PostgresSpec"),
    "script_codes": ("CODES", "Behaviour", "differences"),
    "script_config": ("ScriptConfig", "check_scripts"),
    "script_result": ("Attempt", "SnapshotEvent", "SnapshotRun"),
    "scripts": ("take_snapshot",),
    "sqlite": ("DatabaseSpec", "DatabaseVerdict", "Invariant", "SqliteChecker"),
    "vault_checker": ("VaultChecker", "VaultMarks", "VaultVerdict"),
    "vault_laboratory": ("VaultOutcome", "VaultOutcomes", "vault_crash_test"),
    "vss": ("VssRun", "Writer", "run_vss", "vss_options"),
    "xfs": ("XfsChecker",),
}
_HOME = {name: module for module, names in _WHERE.items() for name in names}

if TYPE_CHECKING:
    from vmbk.consistency.boot import BootChecker
    from vmbk.consistency.btrfs import BtrfsChecker
    from vmbk.consistency.checkers import CheckContext, Checker, Tool, Verdict
    from vmbk.consistency.command import CommandChecker
    from vmbk.consistency.crash import MODELS, CrashPoint, CrashState, crash_points, crash_states
    from vmbk.consistency.decision import Case, Decision, decide, decision_table
    from vmbk.consistency.ext4 import Ext4Checker
    from vmbk.consistency.freeze import FsFreezer, Mount, freezable_mounts
    from vmbk.consistency.laboratory import CaptureMarks, check_image, crash_test, snapshot_points
    from vmbk.consistency.log_chain import RestorePlan, SqlBackup, SqlLogChain
    from vmbk.consistency.machines import MACHINES, Machine
    from vmbk.consistency.outcome import LADDER, Outcome, OutcomeTable, rates
    from vmbk.consistency.postgresql import PostgresChecker, PostgresSpec
    from vmbk.consistency.script_codes import CODES, Behaviour, differences
    from vmbk.consistency.script_config import ScriptConfig, check_scripts
    from vmbk.consistency.script_result import Attempt, SnapshotEvent, SnapshotRun
    from vmbk.consistency.scripts import take_snapshot
    from vmbk.consistency.sqlite import DatabaseSpec, DatabaseVerdict, Invariant, SqliteChecker
    from vmbk.consistency.vault_checker import VaultChecker, VaultMarks, VaultVerdict
    from vmbk.consistency.vault_laboratory import VaultOutcome, VaultOutcomes, vault_crash_test
    from vmbk.consistency.vss import VssRun, Writer, run_vss, vss_options
    from vmbk.consistency.xfs import XfsChecker

__all__ = [
    "CODES",
    "LADDER",
    "MACHINES",
    "MODELS",
    "Attempt",
    "Behaviour",
    "BootChecker",
    "BtrfsChecker",
    "CaptureMarks",
    "Case",
    "CheckContext",
    "Checker",
    "CommandChecker",
    "CrashPoint",
    "CrashState",
    "DatabaseSpec",
    "DatabaseVerdict",
    "Decision",
    "Ext4Checker",
    "FsFreezer",
    "Invariant",
    "Machine",
    "Mount",
    "Outcome",
    "OutcomeTable",
    "PostgresChecker",
    "PostgresSpec",
    "RestorePlan",
    "ScriptConfig",
    "SnapshotEvent",
    "SnapshotRun",
    "SqlBackup",
    "SqlLogChain",
    "SqliteChecker",
    "Tool",
    "VaultChecker",
    "VaultMarks",
    "VaultOutcome",
    "VaultOutcomes",
    "VaultVerdict",
    "Verdict",
    "VssRun",
    "Writer",
    "XfsChecker",
    "check_image",
    "check_scripts",
    "crash_points",
    "crash_states",
    "crash_test",
    "decide",
    "decision_table",
    "differences",
    "freezable_mounts",
    "rates",
    "run_vss",
    "snapshot_points",
    "take_snapshot",
    "vault_crash_test",
    "vss_options",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
