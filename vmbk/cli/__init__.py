"""The command line: a thin layer over the public API.

`parser` knows the words, `trace`, `vault` and `study` hold the commands, `program` runs one of them
and answers.
"""

from vmbk.cli.program import main

__all__ = ["main"]
