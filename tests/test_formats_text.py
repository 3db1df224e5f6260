"""Importers of text formats: what a sample of each means, to the last byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tools import real_trace
from vmbk.errors import TraceFormatError, VmbkError
from vmbk.trace import Op
from vmbk.trace.formats import FORMATS, ImportResult, import_trace

ZERO = b"3df1244f6143869f52abf2a1d73d0c0f"
MSR = (
    b"128166372003061629,hm,0,Read,383496192,32768,413\n"
    b"128166372016382155,hm,1,Write,2822144,4096,240\n"
    b"128166372026382245,web,0,Write,0,512,99\n"
)
FIU = (
    b"89966069260000 4394 kjournald 1152 8 W 6 0 " + ZERO + b"\n"
    b"89966069260777 20782 my own proc 1160 8 R 6 0 56f11b711d91a065a2b6458eca924523\n"
    b"89966069261000 4 pdflush 2 1 W 8 16 56F11B711D91A065A2B6458ECA924523\n"
)
SPC = b"0,303567,3584,w,0.000000\n1, 303567, 4096, R, 0.026214000\n0,8,1024,W,12.5,extra,\n"
ALIBABA = (
    b"419,W,8792731648,16384,1577808144360767\n"
    b"725,R,59110326272,360448,1577808144360813\n"
    b"419,W,0,4096,1577808144360814\n"
)
TENCENT = b"1538323200,12910952,128,0,1063\n1538323200,6338688,8,1,1071\n1538323201,0,8,1,1063\n"
SYSTOR = (
    b"Timestamp,Response,IOType,LUN,Offset,Size\n"
    b"1456135200.013118000,0.000806000,R,4,899056122368,131072\n"
    b"1456135200.014000000,,W,4,4096,8192\n"
    b"1456135200.015000000,,,4,4096,512\n"
    b"1456135202.000000001,0.1,W,2,0,512\n"
)
VSCSI = (
    b"version,time,op,size,lbn\n"
    b"1,5633898,2a,512,42932745\n"
    b"1,5633899,28,6656,40409911\n"
    b"2,5633899,12,36,0\n"
    b"2,5633900,35,512,7\n"
)
ETW = (
    "IO Type;Priority;Process (Name);Init Time (s);Complete Time (s);IO Time (µs);"
    "Disk Service Time (µs);Size (B);Min Offset;Max Offset;QD/I - Queue Depth at Init Time;"
    "QD/C - Queue Depth at Complete Time;Disk;Count\r\n"
    "Read;Normal;System;1,079943800;1,080031000;87,200;87,200;512;0x0000000000000200;"
    "0x00000000000003FF;0;0;1;1\r\n"
    "Write;Normal;System;1.234,5;1.234,6;1.360,300;1;1.048.576;0x0000002CEA59C000;"
    "0x0000002CEA69BFFF;0;0;1;1\r\n"
    "Flush;Normal;System;1,718742000;1,718787700;45,700;45,700;0;0xFFFFFFFFFFFFFFFF;"
    "0xFFFFFFFFFFFFFFFF;0;1;0;1\r\n"
).encode()
DISKSIM_MS = b"0.000000 0 2389 8 1\n0.2505 1\t100   16 0\n 3 0 0 1 0 \n"
MQSIM_NS = b"0 0 2389 8 1\n250500 1 100 16 0\n3000000 0 0 1 0\n"

SAMPLES = {
    "msr": MSR, "fiu": FIU, "spc": SPC, "alibaba": ALIBABA, "tencent": TENCENT,
    "systor": SYSTOR, "vscsi-csv": VSCSI, "etw": ETW, "disksim": DISKSIM_MS,
}  # fmt: skip

Importer = Callable[..., ImportResult]
Row = tuple[int, str, str, int, int]


@pytest.fixture
def load(tmp_path: Path) -> Importer:
    def run(text: bytes, **settings: object) -> ImportResult:
        path = tmp_path / "trace"
        path.write_bytes(text)
        return import_trace(path, **settings)  # type: ignore[arg-type]

    return run


def rows(result: ImportResult) -> list[Row]:
    """Time, operation, name of the volume, offset and length of each request."""
    names = {volume.id: volume.name for volume in result.trace.volumes}
    r = result.trace.requests
    return [
        (time, Op(op).name.lower(), names[volume], offset, length)
        for time, op, volume, offset, length in zip(
            r.time_ns.tolist(), r.op.tolist(), r.volume.tolist(),
            r.offset.tolist(), r.length.tolist(), strict=True,
        )
    ]  # fmt: skip


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_is_known_as_its_own_format_and_as_no_other(name, load):
    for sample in (SAMPLES[name], SAMPLES[name].replace(b"\n", b"\r\n"), SAMPLES[name][:-1]):
        assert [f.name for f in FORMATS.values() if f.detect(sample)] == [name]
    assert load(SAMPLES[name]).format == name


def test_both_units_of_disk_simulators_are_one_format():
    assert [f.name for f in FORMATS.values() if f.detect(MQSIM_NS)] == ["disksim"]


@pytest.mark.parametrize("text", [b"", b"\n\n", b"hello\n", b"1,2,3\n" * 30, b"\0" * 600, b"a b\n"])
def test_other_text_is_in_no_text_format(text):
    assert not any(FORMATS[name].detect(text) for name in SAMPLES)


def test_a_damaged_first_line_hides_no_format():
    for name, sample in SAMPLES.items():
        if name != "etw":  # its first line says where everything is
            assert FORMATS[name].detect(b"#?! what is this\n" + sample), name


def test_msr(load):
    result = load(MSR)
    assert rows(result) == [
        (0, "read", "hm_0", 383496192, 32768),
        (1332052600, "write", "hm_1", 2822144, 4096),
        (2332061600, "write", "web_0", 0, 512),
    ]
    assert [volume.size for volume in result.trace.volumes] == [366 << 20, 3 << 20, 1 << 20]
    header = b"Timestamp,Hostname,DiskNumber,Type,Offset,Size,ResponseTime\n"
    assert rows(load(header + MSR)) == rows(result)


def test_msr_refuses_what_is_no_request(load):
    text = MSR + (
        b"128166372003061629,hm,0,Trim,0,4096,1\n"
        b"128166372003061629,hm,-1,Read,0,4096,1\n"
        b"128166372003061629,hm,0,Read,-1,4096,1\n"
        b"128166372003061629,hm,0,Read,0,9223372036854775807,1\n"
        b"-5,hm,0,Read,0,4096,1\n"
        b"9223372036854775807,hm,0,Read,0,4096,1\n"
        b"128166372003061629,hm,0,Read,0,4096\n"
        b"128166372003061629,hm,0,Read,0x10,4096,1\n"
    )
    result = load(text, format="msr", skip_bad=True)
    assert rows(result) == rows(load(MSR))
    assert result.bad == 8
    assert [example.split(": ")[:2] for example in result.examples] == [
        ["line 4", "neither Read nor Write"],
        ["line 5", "no number of a disk"],
        ["line 6", "no place on a volume"],
        ["line 7", "no place on a volume"],
        ["line 8", "a negative time"],
    ]


def test_fiu_writes_have_their_digests(load):
    result = load(FIU)
    assert rows(result) == [
        (0, "write", "6_0", 1152 * 512, 4096),
        (777, "read", "6_0", 1160 * 512, 4096),
        (1000, "write", "8_16", 1024, 512),
    ]
    assert result.trace.table["content"].to_pylist() == [
        bytes.fromhex(ZERO.decode()),
        None,  # what was read is not what was written
        bytes.fromhex("56f11b711d91a065a2b6458eca924523"),
    ]


def test_fiu_digest_of_a_part_is_no_identity(load):
    result = load(b"0 1 sync 0 16 W 6 0 " + ZERO + b"\n")
    assert result.trace.table["content"].to_pylist() == [None]


def test_fiu_refuses_what_is_no_request(load):
    text = FIU + (
        b"1 1 sync 0 8 W 6 0 3df1\n"
        b"1 1 sync 0 8 W 6 0 " + ZERO[:-1] + b"g\n"
        b"1 1 sync 0 8 X 6 0 " + ZERO + b"\n"
        b"1 1 sync 0 36028797018963968 W 6 0 " + ZERO + b"\n"
        b"1 1 sync W 6 0 " + ZERO + b"\n"
    )
    result = load(text, format="fiu", skip_bad=True)
    assert result.bad == 5
    assert len(result.trace) == 3
    assert [int(e.split()[1].rstrip(":")) for e in result.examples] == [4, 5, 6, 7, 8]


def test_spc(load):
    result = load(SPC)
    assert rows(result) == [
        (0, "write", "asu0", 303567 * 512, 3584),
        (26214000, "read", "asu1", 303567 * 512, 4096),
        (12_500_000_000, "write", "asu0", 4096, 1024),
    ]
    with pytest.raises(TraceFormatError, match="line 1: not 5 fields"):
        load(b"0,8,512,w\n" + SPC)


def test_alibaba(load):
    assert rows(load(ALIBABA)) == [
        (0, "write", "device_419", 8792731648, 16384),
        (46_000, "read", "device_725", 59110326272, 360448),
        (47_000, "write", "device_419", 0, 4096),
    ]
    assert load(b"device_id,opcode,offset,length,timestamp\n" + ALIBABA).bad == 0
    late = b"1,R,0,4096,9223372036854775\n1,W,0,4096,9223372036854776\n"
    assert load(ALIBABA + late, skip_bad=True).bad == 2


def test_tencent(load):
    result = load(TENCENT)
    assert rows(result) == [
        (0, "read", "volume_1063", 12910952 * 512, 65536),
        (0, "write", "volume_1071", 6338688 * 512, 4096),
        (1_000_000_000, "write", "volume_1063", 0, 4096),
    ]
    assert [volume.name for volume in result.trace.volumes] == ["volume_1063", "volume_1071"]
    far = b"1538323200,18014398509481984,8,1,1\n1538323200,0,8,2,1\n1538323200,0,8,1,-4\n"
    assert load(TENCENT + far, skip_bad=True).bad == 3


def test_systor(load):
    result = load(SYSTOR)
    assert rows(result) == [
        (0, "read", "lun4", 899056122368, 131072),
        (882_000, "write", "lun4", 4096, 8192),
        (1_986_882_001, "write", "lun2", 0, 512),
    ]
    assert (result.skipped, result.bad) == (1, 0)
    assert rows(load(SYSTOR.partition(b"\n")[2])) == rows(result)
    with pytest.raises(TraceFormatError, match="line 6: neither R nor W"):
        load(SYSTOR + b"1456135200.0,,T,1,0,512\n")


def test_vscsi_csv(load):
    result = load(VSCSI)
    assert rows(result) == [
        (0, "write", "disk", 42932745 * 512, 512),
        (1_000_000_000, "read", "disk", 40409911 * 512, 6656),
        (2_000_000_000, "flush", "disk", 0, 0),
    ]
    assert (result.skipped, result.bad) == (1, 0)
    bad = b"3,1,2a,512,0\n1,1,zz,512,0\n1,1,12a,512,0\n1,1,,512,0\n1,1,2a,512,-1\n"
    assert load(VSCSI + bad, format="vscsi-csv", skip_bad=True).bad == 5


def test_etw(load):
    result = load(ETW)
    assert rows(result) == [
        (0, "read", "disk1", 512, 512),
        (638_798_200, "flush", "disk0", 0, 0),
        (1_233_420_056_200, "write", "disk1", 0x2CEA59C000, 1 << 20),
    ]


def test_etw_goes_by_the_names_of_columns_wherever_they_stand(load):
    text = "\ufeffDisk;Min Offset;;Size (B);;IO Type;Init Time (s)\n2;0x1000;a;512;b;Write;0\n"
    result = load(text.encode())
    assert rows(result) == [(0, "write", "disk2", 4096, 512)]


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (b"Read;", b"Trim;", "neither Read, Write nor Flush"),
        (b";1,0799", b";1.0799", "a field is not what it should be"),
        (b";512;", b";5.12;", "a field is not what it should be"),
        (b"0x0000000000000200", b"0xFFFFFFFFFFFFFFFF", "no place on a volume"),
        (b"0x0000000000000200", b"0x10000000000000000", "a field is not what it should be"),
        (b"0;0;1;1\r\nWrite", b"0;0;1;2\r\nWrite", "not one request"),
        (b"0;0;1;1\r\nWrite", b"0;0;1\r\nWrite", "not 14 fields"),
    ],
)
def test_etw_refuses_what_is_no_request(load, old, new, why):
    assert old in ETW
    with pytest.raises(TraceFormatError, match=f"line 2: {why}"):
        load(ETW.replace(old, new, 1))


def test_etw_needs_its_columns(load):
    with pytest.raises(TraceFormatError, match="Min Offset"):
        load(ETW.replace(b"Min Offset", b"Least"), format="etw")
    with pytest.raises(TraceFormatError, match="IO Type"):
        load(b"", format="etw")


def test_disk_simulators_count_milliseconds_with_a_point_and_nanoseconds_without(load):
    expected = [
        (0, "read", "dev0", 2389 * 512, 4096),
        (250_500, "write", "dev1", 51200, 8192),
        (3_000_000, "write", "dev0", 0, 512),
    ]
    assert rows(load(DISKSIM_MS)) == expected
    assert rows(load(MQSIM_NS)) == expected
    with pytest.raises(TraceFormatError, match="line 4: neither 0"):
        load(MQSIM_NS + b"5 0 0 1 2\n")


def test_a_point_far_down_among_nanoseconds_is_malformed(load):
    text = MQSIM_NS * 3000 + b"0.5 0 0 1 0\n"
    with pytest.raises(TraceFormatError, match="line 9001"):
        load(text)


STEPS = {"msr": 100, "fiu": 1, "spc": 1, "alibaba": 1000, "tencent": 10**9, "systor": 1,
         "vscsi-csv": 10**9, "etw": 1, "disksim": 1}  # fmt: skip
"""The smallest step of a format's times, in ns."""


def seconds(time: int, point: str = ".") -> str:
    return f"{time // 10**9}{point}{time % 10**9:09d}"


def write(name: str, time: int, wr: bool, volume: int, sector: int, count: int) -> str:
    """A request as a line of a format."""
    offset, length, rw, word = sector * 512, count * 512, "RW"[wr], "Write" if wr else "Read"
    match name:
        case "msr":
            return f"{time // 100 + 10**17},host,{volume},{word},{offset},{length},7"
        case "fiu":
            return f"{time} 1 a b {sector} {count} {rw} {volume} 0 {ZERO.decode()}"
        case "spc":
            return f"{volume},{sector},{length},{rw.lower()},{seconds(time)}"
        case "alibaba":
            return f"{volume},{rw},{offset},{length},{time // 1000}"
        case "tencent":
            return f"{time // 10**9},{sector},{count},{int(wr)},{volume}"
        case "systor":
            return f"{seconds(time)},,{rw},{volume},{offset},{length}"
        case "vscsi-csv":
            return f"1,{time // 10**9},{'2a' if wr else '88'},{length},{sector}"
        case "etw":
            size = f"{length:,}".replace(",", ".")
            return f"{word};{seconds(time, ',')};{size};0x{offset:016X};{volume}"
        case _:
            return f"{time // 10**6}.{time % 10**6:06d} {volume} {sector} {count} {1 - wr}"


REQUESTS = st.lists(
    st.tuples(
        st.integers(0, 10**15), st.booleans(), st.integers(0, 3),
        st.integers(0, 1 << 40), st.integers(1, 1 << 20),
    ), min_size=1, max_size=30,
)  # fmt: skip


@pytest.mark.parametrize("name", SAMPLES)
@given(requests=REQUESTS)
def test_what_is_written_is_read(name, requests, tmp_path_factory):
    step = STEPS[name]
    if name == "vscsi-csv":
        requests = [(time, wr, 0, *place) for time, wr, _, *place in requests]
    lines = [write(name, *request) for request in requests]
    if name == "etw":
        lines.insert(0, "IO Type;Init Time (s);Size (B);Min Offset;Disk")
    path = tmp_path_factory.mktemp("trace") / "trace"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    result = import_trace(path, format=name)
    first = min(time for time, *_ in requests) // step * step
    order = sorted(range(len(requests)), key=lambda i: requests[i][0] // step)
    seen: dict[int, int] = {}
    for request in requests:
        seen.setdefault(request[2], len(seen))
    r = result.trace.requests
    assert r.time_ns.tolist() == [requests[i][0] // step * step - first for i in order]
    assert r.op.tolist() == [int(requests[i][1]) for i in order]
    assert r.volume.tolist() == [seen[requests[i][2]] for i in order]
    assert r.offset.tolist() == [requests[i][3] * 512 for i in order]
    assert r.length.tolist() == [requests[i][4] * 512 for i in order]
    assert (result.skipped, result.bad, result.duplicates) == (0, 0, 0)


@pytest.mark.parametrize("name", SAMPLES)
@given(data=st.data())
def test_a_damaged_sample_is_read_or_refused(name, data, tmp_path_factory):
    sample = bytearray(SAMPLES[name])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(sample) - 1))
        sample[at : at + data.draw(st.integers(0, 3))] = data.draw(
            st.one_of(
                st.binary(max_size=3),
                st.sampled_from([b"-", b"9" * 19, b"9" * 40, b"\r", b"\n", b",", b" ", b"1e9"]),
            )
        )
        sample = sample or bytearray(b"\n")
    path = tmp_path_factory.mktemp("trace") / "trace"
    path.write_bytes(sample)
    for skip in (False, True):
        try:
            result = import_trace(path, format=name, skip_bad=skip)
        except VmbkError:
            continue
        assert skip or not result.bad
        assert (np.diff(result.trace.requests.time_ns) >= 0).all()


@pytest.mark.traces
def test_cloudphysics_table():
    result = import_trace(real_trace("cloudPhysicsIO.csv"))
    summary = result.trace.summary()
    assert result.format == "vscsi-csv"
    assert (summary.requests, summary.writes, result.skipped, result.bad) == (113872, 66898, 0, 0)
    assert round(summary.write_bytes / 2**30, 3) == 2.243
    assert round(summary.unique_write_blocks * 4096 / 2**30, 3) == 0.796
    assert summary.duration_s == 7200


@pytest.mark.traces
def test_cloudphysics_table_holds_the_requests_of_the_binary_trace():
    """The same requests in the same order; of the times the table keeps the whole seconds."""
    if not any(name.startswith("vscsi") and name != "vscsi-csv" for name in FORMATS):
        pytest.skip("no importer of binary vscsiStats traces")
    table = import_trace(real_trace("cloudPhysicsIO.csv")).trace
    binary = import_trace(real_trace("cloudPhysicsIO.vscsi")).trace
    for name in ("op", "volume", "offset", "length", "flags"):
        assert np.array_equal(getattr(table.requests, name), getattr(binary.requests, name)), name
    assert table.volumes == binary.volumes
    apart = binary.requests.time_ns - table.requests.time_ns
    assert np.ptp(apart) < 10**9


@pytest.mark.traces
def test_windows_boot():
    result = import_trace(real_trace("windows-etw.csv.bz2"))
    summary = result.trace.summary()
    assert result.format == "etw"
    assert (summary.reads, summary.writes, summary.flushes) == (156028, 16259, 343)
    assert (result.skipped, result.bad) == (0, 0)
    assert round(summary.duration_s) == 51
