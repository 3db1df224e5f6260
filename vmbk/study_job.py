"""The main job: a study is run, its results are written and its report is drawn."""

# It stands above both packages: charts draw studies, so that a study must not know of charts.

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from vmbk.charts.report import write_report
from vmbk.errors import InputError, StorageError
from vmbk.study.config import StudyConfig, read_config
from vmbk.study.results import OUTCOMES, RESULTS, StudyResult, write_results
from vmbk.study.runner import run_grid

REPORT: Final = "report.html"


def run_study(
    config: StudyConfig | str | os.PathLike[str] | None = None,
    *,
    out: str | os.PathLike[str] | None = "results",
    executor: Any = None,
    store: str | os.PathLike[str] | None = None,
) -> StudyResult:
    """Run a study and write its results and its report.

    Parameters
    ----------
    config : StudyConfig or path, optional
        What to run; the default study without it.
    out : path or None
        Folder for ``results.parquet``, ``outcomes.parquet`` and ``report.html``; None writes
        nothing.
    executor : Executor, distributed.Client or int, optional
        What runs the experiments side by side, such as a number of processes; serially without it.
        Timings are longer and noisier then, everything else is the same.
    store : path, optional
        Folder that keeps finished experiments: a study that was stopped goes on from there.

    Returns
    -------
    StudyResult

    Raises
    ------
    InputError
        If the declaration or a data set is wrong, or ``out`` is no folder. Nothing ran then.
    IntegrityError
        If a restore is not what was backed up.
    StorageError
        If nothing can be written to the folder; that is tried before the study runs.
    """
    if not isinstance(config, StudyConfig):
        config = read_config(config)
    folder = None if out is None else _output_folder(Path(out))
    result = run_grid(config, executor=executor, store=store)
    if folder is None:
        return result
    result = write_results(result, folder)
    return replace(result, report=write_report(result, folder / REPORT))


def _output_folder(folder: Path) -> Path:
    """Make the folder and write to it before the work, so that a bad one costs nothing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".vmbk-"):
            pass
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(
            f"{str(folder)!r} is no folder, and none can be made there",
            hint="name a folder for the results and the report, or one that does not exist yet",
        ) from error
    except OSError as error:
        raise StorageError(
            f"cannot write in the folder {str(folder)!r}: {error.strerror or error}"
        ) from error
    for name in (RESULTS, OUTCOMES, REPORT):
        if (folder / name).is_dir():
            raise InputError(
                f"{str(folder / name)!r} is a folder, where a file is to be written",
                hint="move it away, or name another folder",
            )
    return folder
