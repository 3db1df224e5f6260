"""The documents' worked examples, computed by the model."""

from __future__ import annotations

import argparse

from vmbk.cli.reply import Reply, grid


def examples(args: argparse.Namespace) -> Reply:
    """Compute worked examples; exit with 1 where one disagrees with its document."""
    from vmbk.service.examples import plain, run_examples

    found = run_examples(args.only or None)
    reply: Reply = found.to_dict()
    rows = [
        ("yes" if each.agrees else "NO", each.example.name, plain(each.found),
         "" if each.agrees else plain(each.example.documented))
        for each in found
    ]  # fmt: skip
    reply["_text"] = grid(("agrees", "example", "found", "documented, where it differs"), rows)
    reply["_exit"] = 0 if found.agree else 1
    return reply
