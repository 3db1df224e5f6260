"""``python -m benchmarks``: measure all cases, print ratios, keep them.

With ``--check`` it fails where a ratio is below its floor and keeps nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.history import append
from benchmarks.suite import entry, is_low, measure, table


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", default="", help="cases whose name has this; keeps nothing")
    parser.add_argument("--check", action="store_true", help="fail below a floor, keep nothing")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args(words)
    found = measure(args.only)
    print(table(found), flush=True)
    made = entry(found)
    if args.json is not None:
        args.json.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    if not args.only and not args.check:
        append(made)
    return int(args.check and any(map(is_low, found)))


if __name__ == "__main__":
    sys.exit(main())
