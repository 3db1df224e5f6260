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
    "Chunking": "vmbk.content.chunking",
    "Fleet": "vmbk.study.chance",
    "MarsAgent": "vmbk.service.mars",
    "PointDisk": "vmbk.pipeline.point_disk",
    "RawDisk": "vmbk.disk.raw",
    "RecoveryPoint": "vmbk.vault",
    "RestoreResult": "vmbk.pipeline.results",
    "Scenario": "vmbk.service.scenario",
    "Settings": "vmbk.detect.changes",
    "Simulation": "vmbk.service.simulation",
    "Spec": "vmbk.trace.synthesis",
    "Trace": "vmbk.trace.table",
    "Vault": "vmbk.vault",
    "VmbkError": "vmbk.errors",
    "activity": "vmbk.trace.metrics.requests",
    "advise": "vmbk.service.advice",
    "backup": "vmbk.pipeline.backup",
    "bits_needed": "vmbk.study.chance",
    "capacity": "vmbk.service.capacity",
    "capture": "vmbk.trace.capture",
    "capture_device": "vmbk.trace.capture.tracefs",
    "capture_host": "vmbk.trace.capture.host",
    "churn": "vmbk.trace.metrics.windows",
    "compare_chunking": "vmbk.content.comparison",
    "content_blocks": "vmbk.content.statistics",
    "content_summary": "vmbk.content.statistics",
    "crash_test": "vmbk.consistency",
    "cut_chunks": "vmbk.content.chunking",
    "dataset_path": "vmbk.trace.datasets",
    "datasets": "vmbk.trace.datasets",
    "dispersion": "vmbk.trace.metrics.windows",
    "estimate_cost": "vmbk.service.charges",
    "explain": "vmbk.trace.explain",
    "explain_job": "vmbk.service.explanation",
    "export_trace": "vmbk.trace.export",
    "fit": "vmbk.trace.synthesis",
    "fleet_year": "vmbk.study.chance",
    "fragmentation": "vmbk.trace.metrics.fragmentation",
    "granularity": "vmbk.trace.metrics.windows",
    "hash_blocks": "vmbk.detect.digests",
    "import_trace": "vmbk.trace.formats",
    "interval_cost": "vmbk.trace.metrics.intervals",
    "measure": "vmbk.trace.metrics.windows",
    "measure_all_pairs": "vmbk.study.misses",
    "measure_updates": "vmbk.study.misses",
    "plan_schedule": "vmbk.service.planner",
    "profile": "vmbk.trace.metrics.requests",
    "read_trace": "vmbk.trace.store",
    "recovery": "vmbk.service.recovery",
    "regions": "vmbk.trace.metrics.regions",
    "replay": "vmbk.disk.replay",
    "request_sizes": "vmbk.trace.metrics.requests",
    "restore": "vmbk.pipeline.restore",
    "run_lengths": "vmbk.trace.metrics.windows",
    "run_study": "vmbk.study_job",
    "simulate": "vmbk.service.simulation",
    "simulate_restores": "vmbk.service.restores",
    "spatial": "vmbk.trace.metrics.working_set",
    "study_captures": "vmbk.study.rewrites",
    "sweep": "vmbk.study.sweep",
    "sweep_fleets": "vmbk.study.fleets",
    "synthesise": "vmbk.trace.synthesis",
    "updates": "vmbk.trace.metrics.updates",
    "working_set": "vmbk.trace.metrics.working_set",
    "write_trace": "vmbk.trace.store",
}

__all__ = ["__version__", *sorted(_PUBLIC)]

if TYPE_CHECKING:
    from vmbk.consistency import crash_test as crash_test
    from vmbk.content.chunking import Chunking as Chunking
    from vmbk.content.chunking import cut_chunks as cut_chunks
    from vmbk.content.comparison import compare_chunking as compare_chunking
    from vmbk.content.statistics import content_blocks as content_blocks
    from vmbk.content.statistics import content_summary as content_summary
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
    from vmbk.service.advice import advise as advise
    from vmbk.service.capacity import capacity as capacity
    from vmbk.service.charges import estimate_cost as estimate_cost
    from vmbk.service.explanation import explain_job as explain_job
    from vmbk.service.mars import MarsAgent as MarsAgent
    from vmbk.service.planner import plan_schedule as plan_schedule
    from vmbk.service.recovery import recovery as recovery
    from vmbk.service.restores import simulate_restores as simulate_restores
    from vmbk.service.scenario import Scenario as Scenario
    from vmbk.service.simulation import Simulation as Simulation
    from vmbk.service.simulation import simulate as simulate
    from vmbk.study.chance import Fleet as Fleet
    from vmbk.study.chance import bits_needed as bits_needed
    from vmbk.study.chance import fleet_year as fleet_year
    from vmbk.study.fleets import sweep_fleets as sweep_fleets
    from vmbk.study.misses import measure_all_pairs as measure_all_pairs
    from vmbk.study.misses import measure_updates as measure_updates
    from vmbk.study.rewrites import study_captures as study_captures
    from vmbk.study.sweep import sweep as sweep
    from vmbk.study_job import run_study as run_study
    from vmbk.trace.capture import capture as capture
    from vmbk.trace.capture.host import capture_host as capture_host
    from vmbk.trace.capture.tracefs import capture_device as capture_device
    from vmbk.trace.datasets import dataset_path as dataset_path
    from vmbk.trace.datasets import datasets as datasets
    from vmbk.trace.explain import explain as explain
    from vmbk.trace.export import export_trace as export_trace
    from vmbk.trace.formats import import_trace as import_trace
    from vmbk.trace.metrics.fragmentation import fragmentation as fragmentation
    from vmbk.trace.metrics.intervals import interval_cost as interval_cost
    from vmbk.trace.metrics.regions import regions as regions
    from vmbk.trace.metrics.requests import activity as activity
    from vmbk.trace.metrics.requests import profile as profile
    from vmbk.trace.metrics.requests import request_sizes as request_sizes
    from vmbk.trace.metrics.updates import updates as updates
    from vmbk.trace.metrics.windows import churn as churn
    from vmbk.trace.metrics.windows import dispersion as dispersion
    from vmbk.trace.metrics.windows import granularity as granularity
    from vmbk.trace.metrics.windows import measure as measure
    from vmbk.trace.metrics.windows import run_lengths as run_lengths
    from vmbk.trace.metrics.working_set import spatial as spatial
    from vmbk.trace.metrics.working_set import working_set as working_set
    from vmbk.trace.store import read_trace as read_trace
    from vmbk.trace.store import write_trace as write_trace
    from vmbk.trace.synthesis import Spec as Spec
    from vmbk.trace.synthesis import fit as fit
    from vmbk.trace.synthesis import synthesise as synthesise
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
