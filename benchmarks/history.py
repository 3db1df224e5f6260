"""What was measured before: one line of JSON a run, in the repository."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PATH = Path(__file__).resolve().parent / "history.jsonl"


def append(entry: dict[str, Any]) -> None:
    """Keep the figures of a run."""
    with PATH.open("a", encoding="utf-8") as file:
        file.write(json.dumps(short(entry), separators=(",", ":")) + "\n")


def read() -> list[dict[str, Any]]:
    """All runs, the oldest first."""
    if not PATH.exists():
        return []
    return [json.loads(line) for line in PATH.read_text(encoding="utf-8").splitlines()]


def short(value: Any) -> Any:
    """The value with its floats to four digits."""
    if isinstance(value, dict):
        return {key: short(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [short(inner) for inner in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
