"""Studies: declared grids of experiments, run, verified and recorded with provenance.

`vmbk.run_study` runs one and writes its results and its report.
"""

from vmbk.study.config import StudyConfig, read_config
from vmbk.study.results import StudyResult, read_results, write_results
from vmbk.study.runner import run_grid

__all__ = ["StudyConfig", "StudyResult", "read_config", "read_results", "run_grid", "write_results"]
