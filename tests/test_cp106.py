"""The cell of a notebook on 106 virtual machines, against the numbers known of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tools import real_trace

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "02_traces.ipynb"


def cell() -> str:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    tagged = [c for c in cells if "cp106" in c["metadata"].get("tags", ())]
    assert len(tagged) == 1
    return "import os\nfrom pathlib import Path\nimport polars as pl\n" + "".join(
        tagged[0]["source"]
    )


@pytest.mark.traces
def test_the_medians_come_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMBK_TRACES", str(real_trace("cp106_totals.csv").parent))
    names: dict[str, object] = {}
    exec(cell(), names)
    assert names["medians"] == {
        "machines": 106,
        "windows add up to totals": 106,
        "unique written, TiB": 3.264,
        "working sets, TiB": 10.526,
        "rewrite ratio, median": 9.80,
        "rewrite ratio, least": 1.00,
        "rewrite ratio, most": 217,
        "changed in 30 min, median of medians, MiB": 60.3,
        "changed in 30 min, a tenth is below, MiB": 5.2,
        "changed in 30 min, a tenth is above, MiB": 499,
        "cost of 30 min, median": 5.0,
    }


def test_without_the_files_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("VMBK_TRACES", raising=False)
    exec(cell(), {})
    assert capsys.readouterr().out.startswith("skipped: VMBK_TRACES")
