"""Text of blkparse, as it prints events by default.

``maj,min cpu sequence seconds pid action rwbs [sector + sectors] [[process]]``, sectors of 512
bytes. Around the events stand a heading, summaries of each processor and in all, and lines of
other actions, which are skipped. A volume is a device, named ``maj,min``.

An event without an extent is written without one: a flush that data should follow (``Q FWFS``) is
completed as ``FN`` at sector 0 and then as ``WFS`` with a sector and no length. See `block_layer`
for which action is counted.

Source: blktrace 1.2, ``blkparse_fmt.c`` (``process_default``) and ``blkparse.1``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import numpy as np

from vmbk.trace.formats.block_layer import counted_action, text_events
from vmbk.trace.formats.reading import Batch, Tally, matched
from vmbk.trace.formats.source import CHUNK, Source

NAME: Final = "blkparse"
DOC: Final = "text of blkparse"
ACTIONS: Final = ("Q", "D", "C")

_LINE: Final = (
    r"[ \t]*(?<dev>[0-9]+,[0-9]+)[ \t]+[0-9]+[ \t]+[0-9]+[ \t]+(?<time>[0-9]+\.[0-9]+)"
    r"[ \t]+[0-9]+[ \t]+(?<action>[A-Za-z]{1,2})[ \t]+(?<rest>.*)$"
)
_EXTENT: Final = r"^(?<rwbs>[A-Z]+)(?:[ \t]+(?<sector>[0-9]+) \+ (?<count>[0-9]+))?(?:[ \t].*)?$"
_WITHOUT: Final = r"^[A-Z]+(?:[ \t]+[0-9]+)?(?:[ \t]+\([^)]*\)?)?(?:[ \t]+\[.*)?$"
_EVENT: Final = re.compile(
    rb"^[ \t]*[0-9]+,[0-9]+[ \t]+[0-9]+[ \t]+[0-9]+[ \t]+[0-9]+\.[0-9]+[ \t]+[0-9]+[ \t]+"
    rb"[A-Za-z]{1,2}[ \t]"
)
_PROSE: Final = (
    r"^(?:#|CPU[0-9]+ \(|Total \(|Throughput |Events |Skips: |Input file |cpu [0-9]+ trace"
    r"|[ \t]+(?:PC )?(?:Read|Write|IO |Timer )|[^0-9,]+ \([0-9, .]*\)$)"
)


def detect(head: bytes) -> bool:
    """Whether a file that begins so is one."""
    lines = [line for line in head.split(b"\n", 40)[:40] if line.strip() and line[:1] != b"#"]
    hits = sum(_EVENT.match(line) is not None for line in lines)
    return 2 * hits > len(lines)


def read(source: Source, tally: Tally, size: int = CHUNK) -> Iterator[Batch]:
    """Requests of a file."""
    starts = [_EVENT.pattern.replace(b"[A-Za-z]{1,2}", action.encode()) for action in ACTIONS]
    wanted = ACTIONS[counted_action(source, starts, size)]
    for rows, others in matched(source, tally, _LINE, size=size):
        others = others.without(others["line"].str.contains(_PROSE).to_numpy())
        others.without_bad(np.ones(len(others), np.bool_), "no event")
        rows = rows.without((rows["action"] != wanted).to_numpy())
        rest = rows["rest"].str.strip_chars()
        parts = rest.str.extract_groups(_EXTENT).struct.unnest()
        told = parts["count"].is_not_null() | rest.str.contains(_WITHOUT)
        rows = rows.with_columns({name: parts[name] for name in parts.columns})
        yield text_events(rows.without_bad(~told.to_numpy(), "no extent as it should be"), tally)
