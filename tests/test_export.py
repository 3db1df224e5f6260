"""Exports: what comes back when they are imported, and what the tools that read them do."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.test_formats_text import rows
from tests.tools import require_tool
from vmbk.cli.program import run
from vmbk.errors import InputError, NotFoundError, UnknownFormatError
from vmbk.trace import Op, Trace, Volume, open_trace, write_trace
from vmbk.trace import export as export_module
from vmbk.trace.export import EXPORTS, export_trace
from vmbk.trace.formats import ImportResult, import_trace

MIB = 1 << 20


DISK = (Volume(0, "disk", 64 * MIB),)


def trace_of(requests, volumes=DISK) -> Trace:
    """A trace of (time, op, volume, offset, length, flags)."""
    time, op, volume, offset, length, flags = (
        [list(column) for column in zip(*requests, strict=True)] if requests else [[]] * 6
    )
    return Trace.from_columns(
        volumes=volumes, time_ns=np.array(time, np.int64), op=np.array(op, np.int64),
        volume=np.array(volume, np.int64), offset=np.array(offset, np.int64),
        length=np.array(length, np.int64), flags=np.array(flags, np.int64), clock="exact",
    )  # fmt: skip


ALL = trace_of(
    [
        (1_999, Op.WRITE, 0, 4096, 8192, 3),
        (2_000, Op.READ, 0, 0, 512, 0),
        (1_500_000_000, Op.FLUSH, 0, 0, 0, 2),
        (1_500_000_000, Op.MARK, 0, 0, 0, 0),
        (1_500_000_000, Op.DISCARD, 0, MIB, MIB, 0),
        (1_600_000_000, Op.WRITE_ZEROES, 0, 0, 4096, 0),
        (1_700_000_000, Op.WRITE, 0, 100, 0, 0),
        (1_700_000_999, Op.WRITE, 0, 100, 1000, 0),
    ]
)


def test_fio_log(tmp_path):
    done = export_trace(ALL, tmp_path / "log", "fio-iolog")
    assert (tmp_path / "log").read_text() == (
        "fio version 3 iolog\n1 disk add\n1 disk open\n"
        "2 disk write 4096 8192\n3 disk read 0 512\n1500001 disk sync 0 0\n"
        "1500001 disk trim 1048576 1048576\n1700001 disk write 100 1000\n1700001 disk close\n"
    )
    assert done.to_dict() == {
        "format": "fio-iolog",
        "requests": 5,
        "left_out": {"empty": 1, "mark": 1, "write_zeroes": 1},
        "changed": {"flags": 2},
    }


def test_blkreplay_load(tmp_path):
    done = export_trace(ALL, tmp_path / "load", "blkreplay")
    assert (tmp_path / "load").read_text().splitlines()[2:] == [
        "start ; sector; length ; op ;  replay_delay=0 ; replay_duration=0",
        "0.000001999 ; 8 ; 16 ; W ; 0.0 ; 0.0",
        "0.000002000 ; 0 ; 1 ; R ; 0.0 ; 0.0",
        "1.700000999 ; 0 ; 3 ; W ; 0.0 ; 0.0",
    ]
    assert done.left_out == {"discard": 1, "empty": 1, "flush": 1, "mark": 1, "write_zeroes": 1}
    assert (done.requests, done.changed) == (3, {"flags": 1, "widened": 1})


@pytest.mark.parametrize("format", EXPORTS)
def test_a_trace_without_requests(format, tmp_path):
    done = export_trace(trace_of([]), tmp_path / "empty", format)
    assert (done.requests, done.left_out, done.changed) == (0, {}, {})
    assert len(import_trace(tmp_path / "empty", format=format).trace) == 0


def test_lengths_that_fio_cannot_hold_are_split(tmp_path):
    """fio keeps lengths in 32 bits and says nothing of those that do not fit."""
    big = Volume(0, "big", 1 << 40)
    trace = trace_of([(0, Op.DISCARD, 0, 512, (1 << 32) + 4096, 0)], (big,))
    done = export_trace(trace, tmp_path / "log", "fio-iolog")
    assert (done.requests, done.changed) == (1, {"split": 1})
    assert rows(import_trace(tmp_path / "log")) == [
        (0, "discard", "big", 512, 1 << 31),
        (0, "discard", "big", 512 + (1 << 31), 1 << 31),
        (0, "discard", "big", 512 + (1 << 32), 4096),
    ]


def test_names_of_files(tmp_path):
    volumes = (
        Volume(2, "my disk", MIB), Volume(3, "my\tdisk", MIB), Volume(5, "", MIB),
        Volume(9, "ä\x00" * 300, MIB),
    )  # fmt: skip
    trace = trace_of([(0, Op.WRITE, v.id, 0, 512, 0) for v in volumes], volumes)
    export_trace(trace, tmp_path / "log", "fio-iolog")
    back = import_trace(tmp_path / "log").trace
    names = [volume.name for volume in back.volumes]
    assert names[:3] == ["my_disk", "my_disk_3", "volume5"]
    assert names[3].startswith("ä_ä_")
    assert len(names[3].encode()) <= 240
    export_trace(trace, tmp_path / "log", "fio-iolog", files={2: "/dev/vda", 9: "/dev/vdb"})
    back = import_trace(tmp_path / "log").trace
    assert [volume.name for volume in back.volumes] == [
        "/dev/vda",
        "my_disk",
        "volume5",
        "/dev/vdb",
    ]
    for files in ({2: "a b"}, {2: ""}, {2: "x" * 300}, {2: "same", 3: "same"}, {7: "x"}):
        with pytest.raises(InputError):
            export_trace(trace, tmp_path / "log", "fio-iolog", files=files)


def test_what_cannot_be_exported(tmp_path):
    two = trace_of([], (Volume(0, "a", MIB), Volume(1, "b", MIB)))
    with pytest.raises(InputError, match="2 volumes"):
        export_trace(two, tmp_path / "load", "blkreplay")
    with pytest.raises(UnknownFormatError, match="'csv'"):
        export_trace(ALL, tmp_path / "x", "csv")
    with pytest.raises(NotFoundError, match="no folder"):
        export_trace(ALL, tmp_path / "no" / "x", "blkreplay")
    with pytest.raises(InputError, match="is a folder"):
        export_trace(ALL, tmp_path, "blkreplay")
    assert list(tmp_path.iterdir()) == []


REQUESTS = st.lists(
    st.tuples(
        st.integers(0, 10**12), st.sampled_from((Op.READ, Op.WRITE, Op.DISCARD, Op.FLUSH)),
        st.integers(0, 2), st.integers(0, 1 << 30), st.integers(1, 1 << 20),
    ),
    max_size=60,
)  # fmt: skip


@pytest.mark.parametrize("format", EXPORTS)
@given(requests=REQUESTS, rows_at_a_time=st.sampled_from((1, 7, 1 << 18)))
def test_what_is_exported_comes_back(format, requests, rows_at_a_time, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "text"
    fio = format == "fio-iolog"
    kept = sorted(r for r in requests if fio or (r[1] in (Op.READ, Op.WRITE) and r[2] == 0))
    volumes = [Volume(i, f"disk{i}" if fio else "disk", 1 << 41) for i in range(3 if fio else 1)]
    trace = trace_of(
        [
            (time, op, volume, *((0, 0) if op == Op.FLUSH else (512 * at, 512 * count)), 0)
            for time, op, volume, at, count in kept
        ],
        volumes,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_module, "_BATCH", rows_at_a_time)
        done = export_trace(trace, path, format)
    assert (done.requests, done.left_out, done.changed) == (len(kept), {}, {})
    tick = 1000 if fio else 1
    ticks = [row[0] // tick for row in rows_of(trace)]
    expected = [
        ((t - ticks[0]) * tick, *row[1:]) for t, row in zip(ticks, rows_of(trace), strict=True)
    ]
    assert rows(import_trace(path, format=format)) == expected


def rows_of(trace: Trace) -> list:
    return rows(ImportResult(trace, "vmbk"))


@pytest.mark.parametrize("name", ["ext4-sqlite"])
def test_a_shipped_capture_comes_back(name, tmp_path):
    trace = open_trace(name)
    done = export_trace(trace, tmp_path / "log", "fio-iolog")
    summary, back = trace.summary(), import_trace(tmp_path / "log").trace.summary()
    assert done.left_out == {"mark": summary.marks}
    for key in ("reads", "writes", "flushes", "discards", "read_bytes", "write_bytes",
                "unique_write_blocks"):  # fmt: skip
        assert getattr(back, key) == getattr(summary, key), key
    assert done.changed["payload"] == summary.writes


# --- The real fio --------------------------------------------------------------------------------


def replayed(log: Path, folder: Path, *options: str) -> tuple[dict, str]:
    """What fio says it did when it replayed a log."""
    fio = require_tool("fio", "fio")
    told = folder / "told.json"
    run = subprocess.run(
        [fio, "--name=replay", f"--read_iolog={log}", "--ioengine=psync",
         "--output-format=json", f"--output={told}", *options],
        capture_output=True, text=True, timeout=120, cwd=folder, check=True,
    )  # fmt: skip
    return json.loads(told.read_text())["jobs"][0], run.stdout + run.stderr


def check_replay(trace: Trace, job: dict, said: str) -> None:
    summary = trace.summary()
    assert job["error"] == 0
    assert (job["read"]["total_ios"], job["read"]["io_bytes"]) == (
        summary.reads, summary.read_bytes,
    )  # fmt: skip
    assert (job["write"]["total_ios"], job["write"]["io_bytes"]) == (
        summary.writes, summary.write_bytes,
    )  # fmt: skip
    assert job["sync"]["total_ios"] == summary.flushes
    # Up to 3.33 fio reads trims of a log and then refuses each, in these words.
    assert job["trim"]["total_ios"] + said.count("bad ddir: 2") == summary.discards
    assert "bad iolog" not in said


def test_fio_replays_an_export(tmp_path):
    trace = trace_of(
        [
            (i * 10_000, (Op.WRITE, Op.WRITE, Op.READ, Op.FLUSH)[i % 4], 0,
             0 if i % 4 == 3 else 4096 * (i * 7 % 512), 0 if i % 4 == 3 else 4096 * (1 + i % 5), 0)
            for i in range(400)
        ]
        + [(5_000_000, Op.DISCARD, 0, MIB, MIB, 0)]
    )  # fmt: skip
    disk = tmp_path / "disk.img"
    with disk.open("wb") as file:
        file.truncate(64 * MIB)
    done = export_trace(trace, tmp_path / "log", "fio-iolog", files={0: str(disk)})
    assert done.left_out == {}
    job, said = replayed(tmp_path / "log", tmp_path)
    check_replay(trace, job, said)


def test_fio_replays_a_shipped_capture(tmp_path):
    trace = open_trace("ext4-sqlite")
    with (tmp_path / "disk.img").open("wb") as file:
        file.truncate(trace.volumes[0].size)
    export_trace(trace, tmp_path / "log", "fio-iolog")
    image = tmp_path / "disk.img"
    job, said = replayed(
        tmp_path / "log", tmp_path, f"--replay_redirect={image}", "--replay_no_stall=1"
    )
    check_replay(trace, job, said)


def test_fio_replays_several_volumes_and_keeps_the_gaps(tmp_path):
    """Also the first gap, which fio would not keep after a time of 0."""
    volumes = (Volume(0, "a", MIB), Volume(1, "b", MIB))
    trace = trace_of(
        [(0, Op.WRITE, 0, 0, 4096, 0), (400_000_000, Op.WRITE, 1, 4096, 8192, 0)], volumes
    )
    files = {volume.id: str(tmp_path / volume.name) for volume in volumes}
    for name in files.values():
        Path(name).write_bytes(bytes(MIB))
    export_trace(trace, tmp_path / "log", "fio-iolog", files=files)
    job, said = replayed(tmp_path / "log", tmp_path)
    check_replay(trace, job, said)
    changed = [np.flatnonzero(np.fromfile(name, np.uint8)) for name in files.values()]
    assert [(int(at.min()) // 4096, int(at.max()) // 4096) for at in changed] == [(0, 0), (1, 2)]
    assert job["job_runtime"] >= 390


# --- Command line --------------------------------------------------------------------------------


def test_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_trace(ALL, tmp_path / "t.arrow")
    answer = run(["trace", "export", "t.arrow", "-o", "log", "--file", "disk=/dev/vdz"])
    assert (answer.code, answer.err) == (0, "")
    assert "5 requests as fio-iolog" in answer.out
    assert "1 requests of no bytes, 1 marks, 1 writes of zeroes" in answer.out
    assert "2 /dev/vdz write" in (tmp_path / "log").read_text()
    words = ["trace", "export", "t.arrow", "-o", "load", "--format", "blkreplay", "--json"]
    told = json.loads(run(words).out)
    assert (told["requests"], told["left_out"]["flush"], told["output"]) == (3, 1, "load")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--file", "other=x"], "does not begin with the name of a volume"),
        (["--file", "disk"], "does not begin with the name of a volume"),
        (["--format", "blkreplay", "--file", "disk=x"], "names no files"),
        (["--format", "csv"], "cannot be exported as 'csv'"),
    ],
)
def test_command_refuses(words, why, tmp_path):
    write_trace(ALL, tmp_path / "t.arrow")
    out = tmp_path / "out"
    answer = run(["trace", "export", str(tmp_path / "t.arrow"), "-o", str(out), *words])
    assert answer.code == 2
    assert why in answer.err
    assert not out.exists()
