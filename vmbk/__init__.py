"""vmbk: the laboratory for VM disk backup.

Replay a real disk workload, back the disk up the way real systems do, restore it, and measure what
it cost, how fast it was, whether it was correct and what consistency the restored machine has.

Everything public is here and is loaded on first use: ``import vmbk`` loads neither Numba nor Arrow.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "BackupResult": "vmbk.pipeline.results",
    "BlockDigests": "vmbk.detect.digests",
    "ChangeSet": "vmbk.detect.changes",
    "PointDisk": "vmbk.pipeline.point_disk",
    "RawDisk": "vmbk.disk.raw",
    "RecoveryPoint": "vmbk.vault",
    "RestoreResult": "vmbk.pipeline.results",
    "Settings": "vmbk.detect.changes",
    "Trace": "vmbk.trace.table",
    "Vault": "vmbk.vault",
    "VmbkError": "vmbk.errors",
    "backup": "vmbk.pipeline.backup",
    "capture": "vmbk.trace.capture",
    "crash_test": "vmbk.consistency",
    "dataset_path": "vmbk.trace.datasets",
    "datasets": "vmbk.trace.datasets",
    "hash_blocks": "vmbk.detect.digests",
    "import_trace": "vmbk.trace.formats",
    "read_trace": "vmbk.trace.store",
    "replay": "vmbk.disk.replay",
    "restore": "vmbk.pipeline.restore",
    "run_study": "vmbk.study_job",
    "write_trace": "vmbk.trace.store",
}

__all__ = ["__version__", *sorted(_PUBLIC)]

if TYPE_CHECKING:
    from vmbk.consistency import crash_test as crash_test
    from vmbk.detect.changes import ChangeSet as ChangeSet
    from vmbk.detect.changes import Settings as Settings
    from vmbk.detect.digests import BlockDigests as BlockDigests
    from vmbk.detect.digests import hash_blocks as hash_blocks
    from vmbk.disk.raw import RawDisk as RawDisk
    from vmbk.disk.replay import replay as replay
    from vmbk.errors import VmbkError as VmbkError
    from vmbk.pipeline.backup import backup as backup
    from vmbk.pipeline.point_disk import PointDisk as PointDisk
    from vmbk.pipeline.restore import restore as restore
    from vmbk.pipeline.results import BackupResult as BackupResult
    from vmbk.pipeline.results import RestoreResult as RestoreResult
    from vmbk.study_job import run_study as run_study
    from vmbk.trace.capture import capture as capture
    from vmbk.trace.datasets import dataset_path as dataset_path
    from vmbk.trace.datasets import datasets as datasets
    from vmbk.trace.formats import import_trace as import_trace
    from vmbk.trace.store import read_trace as read_trace
    from vmbk.trace.store import write_trace as write_trace
    from vmbk.trace.table import Trace as Trace
    from vmbk.vault import RecoveryPoint as RecoveryPoint
    from vmbk.vault import Vault as Vault


def __getattr__(name: str) -> Any:
    module = _PUBLIC.get(name)
    if module is None:
        raise AttributeError(f"module 'vmbk' has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
