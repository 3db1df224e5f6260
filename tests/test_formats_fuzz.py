"""Importers and hostile files: only vmbk's errors, in bounded time and memory, without warnings.

``VMBK_FUZZ_EXAMPLES=5000`` fuzzes longer than CI does.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import resource
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_dm_log_writes import write_log
from tests.test_formats_binary import BINARY
from tests.test_formats_logs import LOGS
from tests.test_formats_text import DISKSIM_MS, MQSIM_NS, SAMPLES
from vmbk.errors import VmbkError
from vmbk.trace import Op, Trace, Volume, write_trace
from vmbk.trace.formats import FORMATS, import_trace

EXAMPLES = int(os.environ.get("VMBK_FUZZ_EXAMPLES", "12"))  # of each kind, of each format
LONGEST_S = 10.0  # for one file of some kilobytes, on a slow machine
MIB = 1 << 20
MOST_MEMORY = 100 * MIB  # of Python's and NumPy's, for one such file


def zstd(data: bytes) -> bytes:
    return pa.compress(data, "zstd", asbytes=True)


PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes, "gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress, "zstd": zstd,
}  # fmt: skip


def own_traces() -> list[bytes]:
    import tempfile

    trace = Trace.from_columns(
        volumes=[Volume(0, "disk", MIB)], op=[Op.WRITE, Op.FLUSH, Op.MARK], offset=[0, 0, 0],
        length=[4, 0, 0], payload=[b"abcd", None, b"here"],
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("t.arrow", "t.parquet")]
        for path in paths:
            write_trace(trace, path)
        return [path.read_bytes() for path in paths]


CORPUS: dict[str, list[bytes]] = {
    **{name: [sample] for name, sample in SAMPLES.items()}, **BINARY, **LOGS,
    "disksim": [DISKSIM_MS, MQSIM_NS],
    "dm-log-writes": [write_log([(0, 8, 0, bytes(4096)), (8, 0, 1, b""), (0, 0, 8, b"mark")])],
    "vmbk": own_traces(),
}  # fmt: skip


def test_every_format_is_fuzzed():
    assert set(CORPUS) == set(FORMATS)


def test_no_two_formats_claim_one_sample():
    for name, samples in CORPUS.items():
        for sample in samples:
            assert [f.name for f in FORMATS.values() if f.detect(sample)] == [name]


def check_message(error: VmbkError) -> None:
    """Short, and without characters of the file that a terminal would act on."""
    assert 0 < len(str(error)) < 20_000
    assert str(error).replace("\n  | ", "").replace("\n  hint: ", "").isprintable()


def feed(path: Path, data: bytes, format: str) -> None:
    """Import it, as told and by what it looks like; any error but ours, or a warning, fails."""
    path.write_bytes(data)
    for chosen in (format, "auto"):
        for skip_bad in (False, True):
            begun = time.monotonic()
            try:
                result = import_trace(path, format=chosen, skip_bad=skip_bad)
                summary = result.trace.summary()
                assert summary.requests == len(result.trace)
                assert result.bad == 0 or skip_bad
            except VmbkError as error:
                check_message(error)
            assert time.monotonic() - begun < LONGEST_S


@st.composite
def mutated(draw: st.DrawFn, samples: list[bytes]) -> bytes:
    """A sample that someone has damaged, with some intent."""
    data = draw(st.sampled_from(samples))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        other = draw(st.integers(at, min(at + 200, len(data))))
        kind = draw(st.integers(0, 9))
        if kind == 0:
            data = data[:at]
        elif kind == 1 and at < len(data):
            flip = bytes([data[at] ^ 1 << draw(st.integers(0, 7))])
            data = data[:at] + flip + data[at + 1 :]
        elif kind == 2:
            insert = draw(st.binary(max_size=40))
            data = data[:at] + insert + data[other:]
        elif kind == 3:
            huge = draw(st.sampled_from((b"9" * 19, b"9" * 20, b"9" * 5000, b"-1", b"1e308", b"nan",
                                         b"0x7fffffffffffffff", b"9223372036854775807",
                                         b"4611686018427387904", b"\xff" * 8,
                                         b"\xff" * 7 + b"\x7f")))  # fmt: skip
            data = data[:at] + huge + data[other:]
        elif kind == 4:
            data = data[:at] + bytes(draw(st.integers(1, 600))) + data[other:]
        elif kind == 5:
            data = data[:at] + b"\xff\xfe\xc3\x28\xed\xa0\x80" + data[at:]
        elif kind == 6:
            data = data[:at] + draw(st.sampled_from((b"a", b" ", b",", b"1", b"("))) * 100_000
        elif kind == 7:
            data = data[:at] + data[at:other] * draw(st.integers(2, 500)) + data[other:]
        elif kind == 8:
            data = data[:at] + draw(st.sampled_from(list(CORPUS.values())))[0][at:]
        else:
            data = data[:at] + draw(st.sampled_from((b"\n", b"\r", b"\r\n", b"\0", b";", b'"', b"'",
                                                     "\u2028٣".encode(), b"\x1b[2J")))  + data[at:]  # fmt: skip  # noqa: E501
    return draw(st.sampled_from(list(PACKINGS.values())))(data)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_damaged_samples(name, data, tmp_path_factory):
    feed(tmp_path_factory.mktemp("fuzz") / "trace", data.draw(mutated(CORPUS[name])), name)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=EXAMPLES)
@given(data=st.one_of(st.binary(max_size=300), st.text(max_size=100).map(str.encode)),
       pack=st.sampled_from(list(PACKINGS.values())))  # fmt: skip
def test_any_bytes(name, data, pack, tmp_path_factory):
    feed(tmp_path_factory.mktemp("fuzz") / "trace", pack(data), name)


LONG = {
    "a line without end": b"1" * (3 * MIB),
    "blanks": b" " * (3 * MIB),
    "empty lines": b"\n" * (MIB // 4),
    "NULs": bytes(3 * MIB),
    "commas": b"," * MIB,
    "short lines": b"x\n" * (MIB // 8),
    "numbers of many digits": (b"9" * 900_000 + b"\n") * 3,
    "opening brackets": b"(" * MIB + b"\n",
}


@pytest.mark.parametrize("kind", LONG)
def test_long_files_take_bounded_time(kind, tmp_path):
    """Bytes of one kind behind a sound sample of every format."""
    begun = time.monotonic()
    path = tmp_path / "trace"
    for name, samples in CORPUS.items():
        path.write_bytes(samples[0] + LONG[kind])
        try:
            import_trace(path, format=name, skip_bad=True)
        except VmbkError as error:
            check_message(error)
    assert time.monotonic() - begun < LONGEST_S * len(CORPUS) / 4


@pytest.mark.parametrize("name", FORMATS)
def test_damage_takes_little_memory(name, tmp_path):
    """Numbers in every place of a sample that would ask for a lot, were they believed."""
    sample, path = CORPUS[name][0], tmp_path / "trace"
    step = max(len(sample) // 12, 1)
    tracemalloc.start()
    try:
        for at in range(0, len(sample), step):
            for huge in (b"\xff" * 8, b"99999999999999"):
                path.write_bytes(sample[:at] + huge + sample[at + len(huge) :])
                try:
                    import_trace(path, format=name, skip_bad=True)
                except VmbkError:
                    continue
        assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
    finally:
        tracemalloc.stop()


BOMB = """
import re, sys
from vmbk.errors import VmbkError
from vmbk.trace.formats import import_trace
for name in sys.argv[2].split(","):
    try:
        import_trace(sys.argv[1], format=name, skip_bad=True)
    except VmbkError as error:
        assert len(str(error)) < 20_000
print(re.search(r"VmHWM:\\s*([0-9]+) kB", open("/proc/self/status").read())[1])
"""


def test_what_unpacks_to_much_takes_little_memory(tmp_path):
    """480 MiB of NULs in a small file; the peak is that of the process in all."""
    names = [f.name for f in FORMATS.values() if f.read is not None]
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(bytes(8 * MIB), 6) * 60)
    limit = 4 << 30  # of addresses, which maps and threads use up as well
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", BOMB, str(path), ",".join(names)],
        capture_output=True, text=True, timeout=120,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < 600 * MIB
