"""Importers of logs of Linux's block layer, of fio and of blkreplay: samples and their quirks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.test_formats_text import rows
from tests.tools import real_trace
from vmbk.errors import TraceFormatError
from vmbk.trace import Op
from vmbk.trace.formats import FORMATS, ImportResult, import_trace
from vmbk.trace.formats import blkparse as blkparse_module
from vmbk.trace.formats import blkreplay as blkreplay_module
from vmbk.trace.formats import fio_iolog as fio_module
from vmbk.trace.formats import tracefs as tracefs_module
from vmbk.trace.formats.reading import Tally
from vmbk.trace.formats.source import Source

BLKPARSE = b"""\
#Maj,Mn CPU   SeqNo     Seconds     PID  Evt Typ Sector   +Len Description
#------ --- ------- --------------- -----|--|---|---------+--- -------------
  8,0    3        1     0.000000000  1867  A   W 746579600 + 8 <- (253,3) 578805392
  8,0    3        2     0.000000149  1867  Q  WS 2048 + 8 [jbd2/sda1-8]
  8,0    3        3     0.000000200  1867  G  WS 2048 + 8 [jbd2/sda1-8]
  8,0    3        4     0.000000300  1867  P   N [jbd2/sda1-8]
259,3   11        1     0.001000000  1889  Q FWFS [my own (proc)]
259,3   11        2     0.001000100  1889  G FWFS [my own (proc)]
259,3   11        3     0.001000200   612  D  FN [kworker/11:1H]
259,3   11        4     0.001000300     0  C  FN 0 [0]
259,3   11        5     0.001000400     0  C WFS 575480360 [0]
  8,0    0        0     0.001000500     0  m   N cfq workload slice:300
  8,0    3        5     0.002000000  1867  Q  FWFSM 16 + 2 [x]
  8,0    3        6     0.003000000  1867  Q  RAM 8 + 256 [cat]
  8,0    3        7    12.000000007  1867  Q  DS 4096 + 2048 [fstrim]
  8,0    3        8    12.000000008  1867  Q   R 36 (12 01 00 00 24 00 ..) [smartd]
  8,0    3        9    12.000000009  1867  D  WS 2048 + 8 [jbd2/sda1-8]
  8,0    3       10    12.500000000     0  C  WS 2048 + 8 [0]
  8,0    1        7     3.000000000     0 UT   N [swapper] 1
CPU0 (sda):
 Reads Queued:           0,        0KiB\t Writes Queued:           1,        0KiB
 IO unplugs:             0        \t Timer unplugs:           0

Total (sda):
 PC Reads Queued:        0,        0KiB\t PC Writes Queued:       1,        0KiB

Throughput (R/W): 0KiB/s / 46KiB/s
Events (sda): 19 entries
Skips: 0 forward (0 -   0.0%)
Input file sda.blktrace.0 added
"""
TRACEFS = b"""\
# tracer: nop
#
# entries-in-buffer/entries-written: 9/9   #P:2
#
#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION
#              | |         |   |||||     |         |
    kworker/0:1H-123     [000] .....  1234.000001: block_rq_issue: 8,0 WS 4096 () 2048 + 8 [kworker/0:1H]
 my own - proc-12-77      [001] d..1.  1234.000002: block_rq_issue: 8,0 FF 0 () 0 + 0 none,0,0 [kworker/1:1H]
           <...>-78      [001] d..1.  1234.000002: block_plug: [fio]
           <...>-78      (     78) [001] d..1.  1234.000100: block_rq_issue: 259,3 WFS 512 () 16 + 1 be,0,4 [fio]
           <idle>-0      [001] d.h1.  1234.000200: block_rq_complete: 8,0 WS () 2048 + 8 none,0,0 [0]
           fio-78        [001] .....  1234.000300: block_rq_issue: 8,0 DS 1048576 () 4096 + 2048 none,0,0 [fio]
           fio-78        [001] .....  1234.000400: block_rq_issue: 8,0 N 4096 () 64 + 8 none,0,0 [fio]
           fio-78        [001] .....  1234.000500: block_rq_issue: 8,0 N 36 (12 00 00 00 24 00) 0 + 0 none,0,0 [smartd]
           fio-78        [001] .....  1235.000000: block_rq_issue: 8,0 RA 4096 () 18446744073709551615 + 0 [fio]
           fio-78        [001] .....  1235.000001: block_rq_issue: 8,0 RM 4096 () 8 + 8 [fio]
"""  # noqa: E501
FIO_3 = b"""\
fio version 3 iolog
23 /data/a add
23 /data/b add
178 /data/a open
185 /data/a read 61440 4096
208 /data/b write 0 512
209 /data/b sync 0 0
1000209 /data/a trim 1048576 4096
1000210 /data/a datasync 0 0
1000211 /data/a close
"""
FIO_2 = b"""\
fio version 2 iolog
/data/a add
/data/a open
/data/a write 4096 4096
/data/a wait 1500 0
/data/a read 0 512
/data/a wait 500
/data/a sync 0 0
/data/a trim 8192 4096
/data/a close
"""
BLKREPLAY = b"""\
Copyright somebody

This file was automatically generated from 'linux-mysql.blktrace.*'
PLEASE DO NOT EDIT; or else: beware.

start ; sector; length ; op ;  replay_delay=0 ; replay_duration=0
      0.000000000 ;     37766853 ;   64 ; W ; 0.0 ; 0.0
      0.449518165 ;            0 ;    1 ;RA ; 0.0 ; 0.0
      0.449518165 ;            0 ;    1 ;RA ; 0.0 ; 0.0

Copying and distribution of this file, with or without modification,
are permitted.
#################
start ; sector; length ; op ;  replay_delay=0 ; replay_duration=0
   1646.446100205 ;           8 ;    8 ; w ; 0.0 ; 0.0
1646.5 ; 8 ; 8 ; R
"""

LOGS = {
    "blkparse": [BLKPARSE],
    "tracefs": [TRACEFS],
    "fio-iolog": [FIO_2, FIO_3],
    "blkreplay": [BLKREPLAY],
}
MODULES = {
    "blkparse": blkparse_module,
    "tracefs": tracefs_module,
    "fio-iolog": fio_module,
    "blkreplay": blkreplay_module,
}

Importer = Callable[..., ImportResult]


@pytest.fixture
def load(tmp_path: Path) -> Importer:
    def run(text: bytes, **settings: object) -> ImportResult:
        path = tmp_path / "trace"
        path.write_bytes(text)
        return import_trace(path, **settings)  # type: ignore[arg-type]

    return run


def flags(result: ImportResult) -> list[int]:
    return result.trace.requests.flags.tolist()


@pytest.mark.parametrize("name", LOGS)
def test_a_sample_is_known_as_its_own_format_and_as_no_other(name, load):
    for text in LOGS[name]:
        for sample in (text, text.replace(b"\n", b"\r\n"), text[:-1]):
            assert [f.name for f in FORMATS.values() if f.detect(sample)] == [name]
            assert rows(load(sample)) == rows(load(text))


@pytest.mark.parametrize(
    "text", [b"", b"\n\n", b"hello\n", b"fio version 1 iolog\n", b"a b\n" * 99]
)
def test_other_text_is_in_no_log_format(text):
    assert not any(FORMATS[name].detect(text) for name in LOGS)


# --- blkparse ------------------------------------------------------------------------------------


def test_blkparse(load):
    result = load(BLKPARSE)
    assert rows(result) == [
        (0, "write", "8,0", 1 << 20, 4096),
        (999_851, "flush", "259,3", 0, 0),
        (1_999_851, "flush", "8,0", 0, 0),
        (1_999_851, "write", "8,0", 8192, 1024),
        (2_999_851, "read", "8,0", 4096, 131072),
        (11_999_999_858, "discard", "8,0", 2 << 20, 1 << 20),
    ]
    assert flags(result) == [2, 0, 0, 1 | 2 | 4, 4, 2]
    # Sixteen lines that are no request, an inquiry to the drive, and the heading.
    assert (result.skipped, result.bad) == (BLKPARSE.count(b"\n") - 2 - 5, 0)


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ("D", ["flush", "write", "write"]),  # the flush and then the data of the same request
        ("C", ["flush", "write", "write"]),
    ],
)
def test_blkparse_without_queue_events_counts_what_there_is(action, expected, load):
    text = (
        b"8,0 1 1 0.1 1 D FN [k]\n8,0 1 2 0.2 1 C FN 0 [0]\n8,0 1 3 0.3 1 D WFS 8 + 8 [k]\n"
        b"8,0 1 4 0.4 1 C WFS 8 + 8 [0]\n8,0 1 5 0.5 1 D W 16 + 8 [k]\n"
        b"8,0 1 6 0.6 1 C W 16 + 8 [0]\n"
    )
    kept = [line for line in text.splitlines(True) if action == "D" or b" C " in line]
    result = load(b"".join(kept))
    assert [row[1] for row in rows(result)] == expected
    assert flags(result) == [0, 3, 0]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"8,0 1 1 0.1 1 Q W 8 8 [x]", "no extent as it should be"),
        (b"8,0 1 1 0.1 1 Q XYZ 8 + 8 [x]", "letters that no request has"),
        (b"8,0 1 1 0.1 1 Q W 99999999999999999 + 8 [x]", "no place on a volume"),
        (b"8,0 1 1 0.1 1 Q W 8 + 99999999999999999999 [x]", "no place on a volume"),
        (b"8,0 1 1 99999999999.1 1 Q W 8 + 8 [x]", "no time in seconds"),
        (b"8,0 1 1 0.1 1", "no event"),
        (b"259,", "no event"),
        (b"\xff\xfe what", "no event"),
    ],
)
def test_blkparse_refuses_what_is_no_event(line, why, load):
    lines = BLKPARSE.splitlines(keepends=True)
    text = b"".join([*lines[:8], line + b"\n", *lines[8:]])
    with pytest.raises(TraceFormatError, match=f"line 9: {why}"):
        load(text)
    result = load(text, skip_bad=True)
    assert (result.bad, rows(result)) == (1, rows(load(BLKPARSE)))


# --- tracefs -------------------------------------------------------------------------------------


def test_tracefs(load):
    result = load(TRACEFS)
    assert rows(result) == [
        (0, "write", "8,0", 1 << 20, 4096),
        (1000, "flush", "8,0", 0, 0),
        (99_000, "write", "259,3", 8192, 512),
        (299_000, "discard", "8,0", 2 << 20, 1 << 20),
        (399_000, "write_zeroes", "8,0", 32768, 4096),
        (1_000_000_000, "read", "8,0", 4096, 4096),
    ]
    assert flags(result) == [2, 0, 3, 2, 0, 4]
    assert (result.skipped, result.bad) == (10, 0)


def test_tracefs_prefers_what_was_queued(load):
    queued = b" dd-9 [000] ..... 1234.000000: block_bio_queue: 253,1 FWFS 8 + 8 [dd]\n"
    result = load(TRACEFS + queued)
    assert rows(result) == [(0, "flush", "253,1", 0, 0), (0, "write", "253,1", 4096, 4096)]
    assert flags(result) == [0, 3]


def test_tracefs_of_completions_only(load):
    kept = [line for line in TRACEFS.splitlines(True) if b"block_rq_issue" not in line]
    assert rows(load(b"".join(kept))) == [(0, "write", "8,0", 1 << 20, 4096)]


@pytest.mark.parametrize(
    "line",
    [
        b"       fio-78    [001]  1234.5: block_rq_issue:       8,0 WS 4096 () 2048 + 8 [fio]\n",
        b"fio    78 [001]  1234.500000: block:block_rq_issue: 8,0 WS 4096 () 2048 + 8 [fio]\n",
        b"  a: b-78 [001] d..4 1234.500000: block_rq_issue: 8,0 WS 4096 () 2048 + 8 be,0,4 [b]\n",
    ],
    ids=["trace-cmd", "perf", "a task with a colon"],
)
def test_tracefs_of_other_tools(line, load):
    result = load(line)
    assert result.format == "tracefs"
    assert rows(result) == [(0, "write", "8,0", 1 << 20, 4096)]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"CPU:3 [LOST 512 EVENTS]", "no event"),
        (b" a-1 [000] ..... 1.0: block_rq_issue: 8,0 W 8 () 8 +", "no extent as it should be"),
        (b" a-1 [000] ..... 1.0: block_rq_issue: 8,0 QQ 8 () 8 + 8 [a]", "letters that no request"),
        (b" a-1 [000] ..... 12345: block_rq_issue: 8,0 W 8 () 8 + 8 [a]", "no event"),
    ],
)
def test_tracefs_refuses_what_is_no_event(line, why, load):
    text = TRACEFS + line + b"\n"
    with pytest.raises(TraceFormatError, match=f"line 17: {why}"):
        load(text)
    assert len(load(text, skip_bad=True).trace) == 6


# --- fio -----------------------------------------------------------------------------------------


def test_fio_version_3(load):
    result = load(FIO_3)
    assert rows(result) == [
        (0, "read", "/data/a", 61440, 4096),
        (23_000, "write", "/data/b", 0, 512),
        (24_000, "flush", "/data/b", 0, 0),
        (1_000_024_000, "discard", "/data/a", 1 << 20, 4096),
        (1_000_025_000, "flush", "/data/a", 0, 0),
    ]
    assert (result.skipped, result.bad) == (4, 0)


def test_fio_version_2_adds_its_waits_up(load):
    result = load(FIO_2)
    assert rows(result) == [
        (0, "write", "/data/a", 4096, 4096),
        (1_500_000, "read", "/data/a", 0, 512),
        (2_000_000, "flush", "/data/a", 0, 0),
        (2_000_000, "discard", "/data/a", 8192, 4096),
    ]
    assert (result.skipped, result.bad) == (5, 0)


@pytest.mark.parametrize(
    ("version", "line"),
    [
        (3, b"5 /data/a wait 100 0"), (3, b"5 /data/a erase 0 0"), (3, b"/data/a read 0 512"),
        (3, b"99999999999999999999 /data/a read 0 512"), (3, b"5 /data/a read 0"),
        (3, b"5 /data/a read 0 -512"), (3, b"5 /data/a read 99999999999999999999 1"),
        (3, b"9999999999999999 /data/a read 0 512"),
        (2, b"/data/a wait"), (2, b"/data/a wait 99999999999999999 0"), (2, b"/data/a write 5"),
        (2, b"7 /data/a write 0 512"), (2, b"fio version 2 iolog"),
    ],
)  # fmt: skip
def test_fio_refuses_what_is_no_action(version, line, load):
    sample = FIO_3 if version == 3 else FIO_2
    lines = sample.splitlines(keepends=True)
    text = b"".join([*lines[:4], line + b"\n", *lines[4:]])
    with pytest.raises(TraceFormatError, match="line 5: "):
        load(text)
    result = load(text, skip_bad=True)
    assert (result.bad, rows(result)) == (1, rows(load(sample)))


def test_fio_of_another_version_is_refused(load):
    with pytest.raises(TraceFormatError, match="begins with 'fio version 1 iolog"):
        load(b"fio version 1 iolog\n0, 0, 512\n", format="fio-iolog")


def test_fio_waits_end_where_times_do(load):
    waits = b"/a wait 1099511627776 0\n" * 5000
    with pytest.raises(TraceFormatError, match="a time that is too late"):
        load(b"fio version 2 iolog\n" + waits + b"/a read 0 512\n")


# --- blkreplay -----------------------------------------------------------------------------------


def test_blkreplay(load):
    result = load(BLKREPLAY)
    assert rows(result) == [
        (0, "write", "disk", 37766853 * 512, 32768),
        (449_518_165, "read", "disk", 0, 512),
        (449_518_165, "read", "disk", 0, 512),
        (1_646_446_100_205, "write", "disk", 4096, 4096),
        (1_646_500_000_000, "read", "disk", 4096, 4096),
    ]
    assert (result.skipped, result.bad, result.duplicates) == (8, 0, 0)
    once = load(BLKREPLAY, drop_duplicates=True)
    assert (len(once.trace), once.duplicates) == (4, 1)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"0.5 ; 8 ; 8", "no row as blkreplay writes it"),
        (b"0.5 ; x ; 8 ; W ; 0.0 ; 0.0", "no row as blkreplay writes it"),
        (b"0.5 ; -8 ; 8 ; W ; 0.0 ; 0.0", "no row as blkreplay writes it"),
        (b"0.5 ; 8 ; 8 ; X ; 0.0 ; 0.0", "neither R, W nor D"),
        (b"0.5 ; 99999999999999999 ; 8 ; W ; 0.0 ; 0.0", "no place on a volume"),
        (b"99999999999.5 ; 8 ; 8 ; W ; 0.0 ; 0.0", "no time in seconds"),
        (b"4.032348247 ;     3776", "no row as blkreplay writes it"),
    ],
)
def test_blkreplay_refuses_what_is_no_row(line, why, load):
    lines = BLKREPLAY.splitlines(keepends=True)
    text = b"".join([*lines[:7], line + b"\n", *lines[7:]])
    with pytest.raises(TraceFormatError, match=f"line 8: {why}"):
        load(text)
    assert rows(load(text, skip_bad=True)) == rows(load(BLKREPLAY))


# --- All of them ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 64, 150, 1000])
@pytest.mark.parametrize("name", LOGS)
def test_chunks_change_nothing(name, size, tmp_path):
    for sample in LOGS[name]:
        middle = sample.index(b"\n", len(sample) // 2) + 1
        for text in (sample, sample[:middle] + b"nothing; of; the; sort\n" + sample[middle:]):
            path = tmp_path / "trace"
            path.write_bytes(text)
            told = []
            for cut in (size, 1 << 20):
                tally = Tally()
                batches = list(MODULES[name].read(Source(path), tally, cut))
                columns = [
                    np.concatenate([getattr(batch, field) for batch in batches]).tolist()
                    for field in ("time_ns", "op", "volume", "offset", "length", "where")
                ]
                told.append((columns, tally.bad, tally.skipped, tally.names, tally.examples))
            assert told[0] == told[1]


REQUESTS = st.lists(
    st.tuples(
        st.integers(0, 10**9), st.sampled_from(("R", "W", "D", "F")), st.integers(0, 1 << 40),
        st.integers(1, 1 << 22), st.integers(0, 3), st.booleans(),
    ),
    max_size=40,
)  # fmt: skip
NAMES = {"R": "read", "W": "write", "D": "discard", "F": "flush"}


def written(name: str, requests: list[tuple]) -> bytes:
    """A log of these requests; times in µs."""
    out = []
    for time, op, sector, count, disk, sync in requests:
        told = f"{time // 10**6}.{time % 10**6:06d}"
        letters = ("FN" if op == "F" else op) + ("S" if sync else "")
        if name == "blkparse":
            extent = "" if op == "F" else f"{sector} + {count} "
            out.append(f"{disk},1 0 1 {told}000 9 Q {letters} {extent}[a b]")
        elif name == "tracefs":
            where = "0 + 0" if op == "F" else f"{sector} + {count}"
            out.append(f" a-1 [000] ..... {told}: block_rq_issue: {disk},1 "
                       f"{letters.replace('FN', 'FF')} 0 () {where} none,0,0 [a]")  # fmt: skip
        elif name == "fio-iolog":
            action = {"R": "read", "W": "write", "D": "trim", "F": "sync"}[op]
            out.append(f"{time} {disk},1 {action} {512 * sector} {512 * count}")
        elif op != "F":
            out.append(f"{told}000 ; {sector} ; {count} ; {op} ; 0.0 ; 0.0")
    head = "fio version 3 iolog\n" if name == "fio-iolog" else ""
    return (head + "".join(line + "\n" for line in out)).encode()


@pytest.mark.parametrize("name", LOGS)
@given(requests=REQUESTS)
def test_what_is_written_is_read(name, requests, tmp_path_factory):
    if name == "blkreplay":
        requests = [request for request in requests if request[1] != "F"]
    path = tmp_path_factory.mktemp("logs") / "trace"
    path.write_bytes(written(name, requests))
    result = import_trace(path, format=name)
    first = min((request[0] for request in requests), default=0)
    ordered = sorted(requests, key=lambda request: request[0])
    assert rows(result) == [
        (
            1000 * (time - first),
            NAMES[op],
            "disk" if name == "blkreplay" else f"{disk},1",
            0 if op == "F" else 512 * sector,
            0 if op == "F" else 512 * count,
        )
        for time, op, sector, count, disk, _ in ordered
    ]
    if name in ("blkparse", "tracefs"):
        told = [2 if sync and op != "F" else 0 for _, op, _, _, _, sync in ordered]
        assert flags(result) == told


# --- Published traces ----------------------------------------------------------------------------


@pytest.mark.traces
def test_load_of_a_database_server():
    result = import_trace(real_trace("linux-mysql.load.gz"))
    summary = result.trace.summary()
    assert (result.format, summary.requests, result.bad) == ("blkreplay", 80_794, 0)
    assert round(100 * summary.writes / summary.requests) == 91
    assert round(summary.unique_write_blocks * 4096 / 2**30, 3) == 0.474
    assert round(summary.duration_s) == 3600


@pytest.mark.traces
def test_flushes_with_data_in_a_real_trace_of_blkparse():
    result = import_trace(real_trace("fwfs.blkparse.txt"))
    summary = result.trace.summary()
    # What blkparse's own summary says at the end of the file: 248 queued, 1,154 KiB.
    assert (result.format, summary.requests, result.bad) == ("blkparse", 248, 0)
    assert (summary.flushes, summary.write_bytes) == (23, 1154 << 10)
    fua = (result.trace.requests.flags & 1 != 0) & (result.trace.requests.op == Op.WRITE)
    assert int(fua.sum()) == 21
