"""What all importers share: packing, malformed rows, duplicates, order, batches, hostile files."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv as csv
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from tests.test_cli import fails, ok, vmbk
from tests.test_formats_text import FIU, SAMPLES, SYSTOR, TENCENT
from vmbk.errors import (
    InputError,
    NotFoundError,
    OutOfRangeError,
    StorageError,
    TraceFormatError,
    UnknownFormatError,
)
from vmbk.trace import Op, import_trace, read_trace, write_trace
from vmbk.trace import formats as registry
from vmbk.trace.formats import ImportResult
from vmbk.trace.formats import source as source_module
from vmbk.trace.formats.cells import ARROW_TYPES, from_arrow, from_words, unusual
from vmbk.trace.formats.source import LONGEST_LINE, Source
from vmbk.trace.spool import Spool

Importer = Callable[..., ImportResult]
LINE = b"%d,R,4096,512,%d\n"
ALIBABA = b"".join(LINE % (i % 3, 10**15 + i) for i in range(300))


def zstd(data: bytes) -> bytes:
    return pa.Codec("zstd").compress(data, asbytes=True)


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress, "zstd": zstd,
}  # fmt: skip


@pytest.fixture
def load(tmp_path: Path) -> Importer:
    def run(text: bytes, **settings: object) -> ImportResult:
        path = tmp_path / "trace"
        path.write_bytes(text)
        return import_trace(path, **settings)  # type: ignore[arg-type]

    return run


def in_pieces(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Cut every source into chunks of so many bytes."""

    class Pieces(Source):
        def lines(self, ignored: int = 0):
            return super().lines(size)

        def head(self, wanted: int) -> bytes:
            return Source(self.path).head(wanted)

    monkeypatch.setattr(registry, "Source", Pieces)


# Packing


@pytest.mark.parametrize("packing", PACKERS)
def test_packed_sources_are_read_as_they_are(packing, load):
    plain = load(ALIBABA)
    packed = PACKERS[packing](ALIBABA)
    result = load(packed)
    assert result.trace.requests.time_ns.tolist() == plain.trace.requests.time_ns.tolist()
    assert result.trace.metadata.source_digest == blake3(packed).hexdigest()
    assert result.format == "alibaba"


@pytest.mark.parametrize("packing", ["gzip", "bzip2", "xz"])
def test_several_packed_parts_one_after_another_are_one_source(packing, load):
    pack = PACKERS[packing]
    cut = ALIBABA.index(b"\n", 2000) + 3
    result = load(pack(ALIBABA[:cut]) + pack(ALIBABA[cut:]))
    assert len(result.trace) == 300


@pytest.mark.parametrize("packing", PACKERS)
def test_a_packed_source_cut_off_anywhere_is_damaged(packing, load):
    text = random.Random(1).randbytes(3000).hex().encode()
    packed = PACKERS[packing](ALIBABA + b"0,W,0,512,1," + text + b"\n")
    for size in (len(packed) // 2, len(packed) - 5, 20, 11):
        for format in ("auto", "alibaba"):
            with pytest.raises(TraceFormatError, match=f"damaged {packing}|malformed"):
                load(packed[:size], format=format)


@pytest.mark.parametrize("packing", PACKERS)
def test_a_packed_source_with_flipped_bits_is_never_a_traceback(packing, load):
    packed = PACKERS[packing](ALIBABA)
    chance = random.Random(packing)
    for _ in range(60):
        bad = bytearray(packed)
        bad[chance.randrange(4, len(bad))] ^= 1 << chance.randrange(8)
        try:
            result = load(bytes(bad), format="alibaba", skip_bad=True)
        except TraceFormatError:
            continue
        assert len(result.trace) + result.bad <= 600


@pytest.mark.parametrize(
    ("packing", "byte"), [("gzip", b"\0"), ("bzip2", b"x"), ("xz", b"7"), ("zstd", b"\n")]
)
def test_a_bomb_takes_little_memory(packing, byte, tmp_path):
    path = tmp_path / "bomb"
    path.write_bytes(PACKERS[packing](byte * (128 << 20)))
    assert path.stat().st_size < 1 << 20
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            import_trace(path)
        if byte == b"\n":
            assert len(import_trace(path, format="alibaba").trace) == 0  # lines, but blank ones
        else:
            with pytest.raises(TraceFormatError, match="longer than"):
                import_trace(path, format="alibaba")
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()


def test_a_packed_trace_of_vmbk_must_be_unpacked_first(load, tmp_path):
    write_trace(load(ALIBABA).trace, tmp_path / "t.arrow")
    with pytest.raises(InputError, match=r"packed by gzip.*vmbk"):
        load(gzip.compress((tmp_path / "t.arrow").read_bytes()))


@pytest.mark.parametrize(
    ("data", "word"),
    [(b"PK\x03\x04rest", "zip"), (b"x" * 257 + b"ustar\0", "tar"), (b"", "empty")],
)
def test_what_holds_no_trace_is_said(data, word, load):
    with pytest.raises(UnknownFormatError, match=word):
        load(data)
    with pytest.raises(UnknownFormatError, match=word):
        load(gzip.compress(data))


# Files that are none


def test_wrong_sources_are_told_apart(tmp_path, load):
    with pytest.raises(NotFoundError, match="nowhere"):
        import_trace(tmp_path / "nowhere")
    with pytest.raises(InputError, match="not a regular file"):
        import_trace(tmp_path)
    with pytest.raises(InputError, match="not a regular file"):
        import_trace("/dev/null")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not a regular file"):
        import_trace(tmp_path / "pipe")
    with pytest.raises(UnknownFormatError, match=r"'Alibab'(.|\n)*perhaps alibaba"):
        load(ALIBABA, format="Alibab")
    with pytest.raises(NotFoundError, match="no folder"):
        load(ALIBABA, scratch=tmp_path / "none")
    for size in (-1, 1.5, True, "64MiB", 1 << 63):
        with pytest.raises(InputError, match="size"):
            load(ALIBABA, volume_size=size)


def test_an_empty_file_of_a_told_format_has_no_requests(load):
    for name in SAMPLES:
        if name != "etw":
            for text in (b"", b"\n\n", b" \n\r\n"):
                result = load(text, format=name)
                assert (len(result.trace), result.skipped, result.bad) == (0, 0, 0)


# Malformed rows


def test_the_first_malformed_rows_are_quoted_with_their_lines(load):
    text = ALIBABA + b"x\n" + ALIBABA + b"1,R,-5,512,7\n" + b"y,R,0,512,7\n" * 9
    with pytest.raises(TraceFormatError) as caught:
        load(text)
    assert "11 malformed lines" in caught.value.message
    assert "line 301: not 5 fields: 'x'" in caught.value.message
    assert "line 602: no place on a volume: " in caught.value.message
    assert "line 603: a field is not what it should be: 'y,R,0,512,7'" in caught.value.message
    assert "line 606" not in caught.value.message
    assert "--skip-bad" in caught.value.hint
    result = load(text, skip_bad=True)
    assert (len(result.trace), result.bad, len(result.examples)) == (600, 11, 5)


def test_a_source_with_nothing_but_malformed_rows_is_refused_all_the_same(load):
    with pytest.raises(TraceFormatError, match="300 malformed lines and no other"):
        load(ALIBABA, format="msr", skip_bad=True)


def test_hostile_text_is_quoted_harmlessly(load):
    with pytest.raises(TraceFormatError) as caught:
        load(ALIBABA + b"\x1b[31m\xff" + b"A" * 5000 + b"\n")
    shown = caught.value.message
    assert "\x1b" not in shown
    assert len(shown) < 1000


def test_a_last_line_without_an_end_counts_and_a_cut_one_is_malformed(load):
    assert len(load(ALIBABA[:-1]).trace) == 300
    with pytest.raises(TraceFormatError, match="line 300: not 5 fields"):
        load(ALIBABA[:-20])


def test_blank_lines_windows_ends_and_a_byte_order_mark_change_nothing(load):
    plain = load(ALIBABA).trace.requests
    text = b"\xef\xbb\xbf" + ALIBABA.replace(b"\n", b"\r\n \r\n")
    found = load(text).trace.requests
    assert found.time_ns.tolist() == plain.time_ns.tolist()


def test_lines_count_on_behind_blank_ones(load):
    with pytest.raises(TraceFormatError, match="line 603:"):
        load(ALIBABA.replace(b"\n", b"\n\n") + b"\n\nx\n")


def test_times_too_far_apart_are_malformed(load):
    text = b"0 0 0 8 1\n9000000000000000000 0 0 8 1\n"
    with pytest.raises(TraceFormatError, match="line 2: a time out of range"):
        load(text)


def test_a_volume_of_malformed_rows_alone_is_empty(load):
    text = b"1,R,0,512,5\n2,R,-1,512,6\n3,W,0,4096,7\n"
    trace = load(text, format="alibaba", skip_bad=True).trace
    assert [(v.name, v.size) for v in trace.volumes] == [
        ("device_1", 1 << 20), ("device_2", 0), ("device_3", 1 << 20),
    ]  # fmt: skip


# Huge lines


@pytest.mark.parametrize("size", [999, 1 << 16, 16 << 20])
def test_a_line_without_end_is_refused_wherever_it_stands(size, monkeypatch, load):
    in_pieces(monkeypatch, size)
    long = b"z" * (LONGEST_LINE + 1)
    with pytest.raises(TraceFormatError, match=r"line 301 .* longer than 1 MiB"):
        load(ALIBABA + long + b"\n" + ALIBABA, format="alibaba", skip_bad=True)
    with pytest.raises(TraceFormatError, match=r"line 301 .* longer than 1 MiB"):
        load(ALIBABA + long, format="alibaba", skip_bad=True)


@pytest.mark.parametrize("size", [999, 1 << 16, 16 << 20])
def test_the_longest_line_is_a_malformed_row_like_any_other(size, monkeypatch, load):
    in_pieces(monkeypatch, size)
    for filler in (b"z", b",", b" "):
        long = filler * LONGEST_LINE
        result = load(ALIBABA + long + b"\n" + ALIBABA, format="alibaba", skip_bad=True)
        assert (len(result.trace), result.bad) == (600, filler != b" ")


# Duplicates, order, sizes


def test_adjacent_duplicates_are_dropped_on_request(load):
    lines = ALIBABA.splitlines(keepends=True)
    text = lines[0] * 3 + lines[1] + lines[0] + lines[2] * 2
    assert len(load(text).trace) == 7
    result = load(text, drop_duplicates=True)
    assert (len(result.trace), result.duplicates) == (4, 3)


def test_requests_of_other_content_are_no_duplicates(load):
    first = FIU.splitlines(keepends=True)[0]
    other = first.replace(b"3df1", b"4df1")
    result = load(first + other + other, drop_duplicates=True)
    assert (len(result.trace), result.duplicates) == (2, 1)


def test_requests_out_of_order_are_sorted_and_those_of_one_time_stay(load):
    text = b"7,30,8,1,1\n5,10,8,1,1\n7,20,8,0,2\n5,11,8,1,1\n"
    result = load(text, format="tencent")
    r = result.trace.requests
    assert r.time_ns.tolist() == [0, 0, 2 * 10**9, 2 * 10**9]
    assert (r.offset // 512).tolist() == [10, 11, 30, 20]
    assert [v.name for v in result.trace.volumes] == ["volume_1", "volume_2"]


def test_content_follows_its_request_when_sorted(load):
    lines = FIU.splitlines(keepends=True)
    straight, turned = load(FIU).trace, load(b"".join(lines[::-1])).trace
    assert turned.table["content"].to_pylist() == straight.table["content"].to_pylist()


def test_sizes_of_volumes(load):
    assert {v.size for v in load(ALIBABA).trace.volumes} == {1 << 20}
    assert {v.size for v in load(ALIBABA, volume_size=5000).trace.volumes} == {5000}
    with pytest.raises(OutOfRangeError, match="4607"):
        load(ALIBABA, volume_size=4607)


# However the source is cut


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("size", [1, 7, 64, 150, 1000])
def test_chunks_change_nothing(name, size, monkeypatch, load):
    lines = SAMPLES[name].splitlines(keepends=True)
    text = lines[0] + b"".join(lines[1:] + lines[::-1][:-1]) * 3
    text = text + b"what is this?\n\n" + lines[-1] * 2 + b" \n" + lines[1]
    settings = {"format": name, "skip_bad": True, "drop_duplicates": True}
    whole = load(text, **settings)
    in_pieces(monkeypatch, size)
    cut = load(text, **settings)
    assert cut.trace.digest == whole.trace.digest
    assert cut.trace.metadata == whole.trace.metadata
    assert (cut.skipped, cut.bad, cut.duplicates) == (whole.skipped, whole.bad, whole.duplicates)
    assert cut.examples == whole.examples


CELLS = st.one_of(
    st.text(st.sampled_from("0123456789+-.,eExX \tNaAfF\x00٣\x0b"), max_size=12),
    st.sampled_from([
        "9223372036854775807", "9223372036854775808", "-9223372036854775808", "NA", "null", "",
        "nan", "inf", "1e3", "0x1F", "9000000000.000000001", "9000000000", "1_000", "0" * 30 + "5",
        "1.1234567891", "-0", "3df1244f6143869f52abf2a1d73d0c0f",
        "3DF1244F6143869F52ABF2A1D73D0C0G",
        "18446744073709551615", "1.234,5", "1.23,5", "FFFFFFFFFFFFFFFF", "٣",
    ]),
)  # fmt: skip


@pytest.mark.parametrize("kind", ARROW_TYPES)
@given(cells=st.lists(CELLS, min_size=1, max_size=3))
def test_both_ways_of_reading_a_field_agree(kind, cells):
    """Where the fast way does not give up, the careful one finds the same and nothing unfit."""
    cells = [cell.replace(",", "") if "grouped" not in kind else cell for cell in cells]
    text = "".join(f"a;{cell};b\n" for cell in cells).encode()
    careful, unfit = from_words(pl.Series(cells, dtype=pl.String), kind)
    assert len(careful) == len(unfit) == len(cells)
    if unusual(text, {"cell": kind}):
        return
    try:
        column = csv.read_csv(
            pa.BufferReader(text),
            csv.ReadOptions(column_names=["a", "cell", "b"]),
            csv.ParseOptions(delimiter=";", quote_char=False),
            csv.ConvertOptions(
                column_types={"cell": ARROW_TYPES[kind]}, quoted_strings_can_be_null=False
            ),
        )["cell"]
    except pa.ArrowInvalid:
        return
    fast = from_arrow(column, kind)
    if fast is None:
        return
    assert not unfit.any()
    if kind == "text":
        fast = [fast.words[code] for code in fast.codes]
        careful = [careful.words[code] for code in careful.codes]
    assert np.array_equal(fast, careful)


# The spool


def test_a_spool_gives_back_what_it_took_in_any_batches():
    chance = np.random.default_rng(5)
    count = 1000
    times = chance.integers(0, 50, count)
    columns = {
        "time_ns": times, "op": chance.integers(0, 3, count).astype(np.int8),
        "volume": chance.integers(0, 2, count).astype(np.uint32),
        "offset": chance.integers(0, 1000, count), "length": chance.integers(0, 24, count),
        "flags": chance.integers(0, 8, count).astype(np.uint8),
    }  # fmt: skip
    content = chance.integers(0, 256, (count, 16), np.uint8)
    valid = chance.random(count) < 0.5
    order = np.argsort(times, kind="stable")
    for cuts in ([], [1, 2, 500], list(range(0, count, 17))):
        spool = Spool(content=True)
        for part in np.split(np.arange(count), cuts):
            spool.append(
                **{name: values[part] for name, values in columns.items()},
                content=content[part], valid=valid[part],
            )  # fmt: skip
        assert not spool.in_order
        spool.sort_by_time()
        spool.start_at(spool.first_time())
        volumes = [registry.Volume(i, str(i), 1024) for i in range(2)]
        trace = spool.finish(volumes, source_format="test")
        for name, values in columns.items():
            shift = times.min() if name == "time_ns" else 0
            assert np.array_equal(getattr(trace.requests, name), values[order] - shift), name
        expected = [bytes(content[i]) if valid[i] else None for i in order.tolist()]
        assert trace.table["content"].to_pylist() == expected


def test_a_full_disk_for_temporary_files_is_a_storage_error(monkeypatch, load):
    def full(self, file, values):
        raise StorageError("cannot write a temporary file: No space left on device")

    monkeypatch.setattr(Spool, "_write", full)
    with pytest.raises(StorageError, match="No space"):
        load(ALIBABA)


def test_temporary_files_leave_nothing_behind(load, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    trace = load(ALIBABA, scratch=scratch).trace
    with pytest.raises(TraceFormatError):
        load(ALIBABA + b"x\n", scratch=scratch)
    assert list(scratch.iterdir()) == []
    assert len(trace) == 300  # what is mapped stays


def test_an_imported_trace_is_written_and_read_back(load, tmp_path):
    trace = load(FIU).trace
    for suffix in (".arrow", ".parquet"):
        path = tmp_path / f"t{suffix}"
        write_trace(trace, path)
        assert read_trace(path).digest == trace.digest


def test_progress_counts_every_byte_of_the_file(tmp_path):
    path = tmp_path / "trace"
    packed = gzip.compress(ALIBABA)
    path.write_bytes(packed + b"\0" * 40)  # padding, as tapes leave it
    counts: list[int] = []
    source = Source(path, counts.append)
    assert b"".join(source.chunks(100)) == ALIBABA
    assert sum(counts) == len(packed) + 40


def test_a_file_that_cannot_be_read_is_a_storage_error(load, monkeypatch):
    class Broken(source_module._Counted):
        def read(self, size=-1):
            raise OSError(5, "Input/output error")

        readinto = read

    monkeypatch.setattr(source_module, "_Counted", Broken)
    with pytest.raises(StorageError, match="Input/output error"):
        load(ALIBABA)


def test_many_volumes_have_names_in_order_of_appearance(load):
    text = b"".join(b"5,%d,8,%d,%d\n" % (i, i % 2, 99_999 - i) for i in range(20_000))
    trace = load(text).trace
    assert [v.name for v in trace.volumes[:3]] == ["volume_99999", "volume_99998", "volume_99997"]
    assert trace.requests.volume.tolist() == list(range(20_000))


def test_more_volumes_than_any_trace_has_are_refused(load, monkeypatch):
    monkeypatch.setattr("vmbk.trace.formats.reading.MOST_VOLUMES", 2)
    with pytest.raises(TraceFormatError, match="more than 2 volumes"):
        load(ALIBABA)


def test_a_result_tells_what_was_left_out(load):
    result = load(TENCENT * 2 + b"x\n", skip_bad=True)
    told = result.to_dict()
    assert told["requests"] == 6
    assert (told["skipped"], told["bad"], told["duplicates"]) == (0, 1, 0)
    assert told["examples"] == ["line 7: not 5 fields: 'x'"]
    assert int((result.trace.requests.op == Op.WRITE).sum()) == told["writes"] == 4


# The command


def test_the_command_tells_what_it_left_out(tmp_path):
    path, out = tmp_path / "trace", tmp_path / "t.parquet"
    path.write_bytes(SYSTOR + b"what?\n" + SYSTOR.splitlines(keepends=True)[-1] * 2)
    fails(2, "trace", "import", path, "-o", out, words="line 6: not 6 fields: 'what?'")
    fails(2, "trace", "import", path, "-o", out, words="--skip-bad")
    assert not out.exists()
    words = ("trace", "import", path, "-o", out, "--skip-bad", "--drop-duplicates")
    done = ok(*words)
    told = {key: done[key] for key in ("requests", "writes", "skipped", "bad", "duplicates")}
    assert told == {"requests": 3, "writes": 2, "skipped": 1, "bad": 1, "duplicates": 2}
    assert done["examples"] == ["line 6: not 6 fields: 'what?'"]
    assert len(read_trace(out)) == 3
    fails(2, *words, words="exists already")
    shown = vmbk(*words, "--force").stdout
    assert "1 skipped, 1 malformed, 2 duplicates dropped" in shown
    assert "line 6: not 6 fields: 'what?'" in shown


def test_the_command_refuses_what_cannot_be_done_before_it_reads(tmp_path):
    path = tmp_path / "trace"
    path.write_bytes(ALIBABA)
    out = tmp_path / "t.arrow"
    fails(2, "trace", "import", path, "-o", tmp_path / "no" / "t.arrow", words="no folder")
    fails(2, "trace", "import", path, "-o", tmp_path / "t.csv", words="t.csv")
    fails(2, "trace", "import", tmp_path, "-o", out, words="not a regular file")
    fails(2, "trace", "import", tmp_path / "nowhere", "-o", out, words="nowhere")
    fails(2, "trace", "import", path, "-o", out, "--format", "alibabba", words="perhaps alibaba")
    fails(2, "trace", "import", path, "-o", out, "--volume-size", "4KB", words="4000 bytes")
    fails(2, "trace", "import", path, "-o", out, "--volume-size", "7EiB", words="2^62")
    fails(2, "trace", "import", path, "-o", out, "--skip-bad=yes", words="skip-bad")
    fails(2, "trace", "import", path, "-o", out, "--skip", words="--skip")
    fails(2, "trace", "import", path, words="-o")
    assert not out.exists()


def test_the_wrong_format_is_told_the_right_one(tmp_path):
    path = tmp_path / "trace"
    path.write_bytes(SAMPLES["msr"])
    for wrong in ("alibaba", "vscsi", "fio-iolog"):
        with pytest.raises(TraceFormatError) as told:
            import_trace(path, format=wrong)
        assert told.value.hint == "it looks like msr: import it as that, or as auto"
    with pytest.raises(UnknownFormatError) as unknown:
        import_trace(path, format="csv")
    assert "msr" in unknown.value.hint
    assert "oracle-general" not in unknown.value.hint
