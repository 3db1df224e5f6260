"""The benchmark suite, which lies beside the package in its repository."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

import vmbk
from vmbk.cli.reply import Reply
from vmbk.errors import InputError, NotFoundError


def bench(args: argparse.Namespace) -> Reply:
    """Measure the cases and compare each with its baseline of the same run."""
    root = Path(vmbk.__file__).resolve().parent.parent
    if not (root / "benchmarks" / "cases.py").is_file():
        raise NotFoundError(
            "the benchmarks are not installed with the package",
            hint="run it in a checkout of the repository",
        )
    sys.path.insert(0, str(root))
    try:
        cases, suite = import_module("benchmarks.cases"), import_module("benchmarks.suite")
    except ModuleNotFoundError as error:
        raise InputError(
            f"the benchmarks need {error.name!r}", hint="install vmbk with its extra: vmbk[test]"
        ) from error
    if not any(args.only in case.name for case in cases.CASES):
        names = "; ".join(case.name for case in cases.CASES)
        raise NotFoundError(f"no case has {args.only!r} in its name", hint=f"there are: {names}")
    found = suite.measure(args.only)
    low = any(map(suite.is_low, found))
    reply: Reply = {**suite.entry(found), "_text": suite.table(found)}
    return reply | ({"_exit": 1} if args.check and low else {})
