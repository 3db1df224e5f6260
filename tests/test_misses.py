"""Silent misses: digests and counts by definition, predictions by hand, findings by theory."""

from __future__ import annotations

import math
import zlib
from fractions import Fraction
from itertools import combinations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vmbk
from tests import naive
from tests.test_charts import chart_rows, texts
from vmbk import charts
from vmbk.errors import InputError, NotFoundError
from vmbk.study import chance, misses, rewrites
from vmbk.study.chance import Fleet, bits_needed, chance_interval, fleet_year
from vmbk.study.digests import (
    DIGESTS,
    crc_tables,
    digest_blocks,
    equal_low_bits,
    equal_pairs,
    widths,
)
from vmbk.study.misses import UPDATES, measure_all_pairs, measure_updates
from vmbk.study.rewrites import study_captures

POLYNOMIALS = {"crc32": 0xEDB88320, "crc32c": 0x82F63B78}


# --- Digests and counts ---------------------------------------------------------------------------


@settings(deadline=None)
@given(
    data=st.binary(max_size=400),
    block_size=st.integers(1, 64),
    name=st.sampled_from(sorted(POLYNOMIALS)),
)
def test_crc_of_blocks(data: bytes, block_size: int, name: str) -> None:
    from vmbk.kernels.sums import crc_blocks

    out = np.zeros(-(-len(data) // block_size), np.uint64)
    tables = crc_tables(POLYNOMIALS[name])
    crc_blocks(np.frombuffer(data, np.uint8), block_size, tables, out)
    assert out.tolist() == naive.crc_blocks(data, block_size, POLYNOMIALS[name])


@settings(deadline=None)
@given(data=st.binary(max_size=400), block_size=st.integers(1, 64))
def test_adler32_of_blocks(data: bytes, block_size: int) -> None:
    from vmbk.kernels.sums import adler32_blocks

    out = np.zeros(-(-len(data) // block_size), np.uint64)
    adler32_blocks(np.frombuffer(data, np.uint8), block_size, out)
    assert out.tolist() == naive.adler32_blocks(data, block_size)


@pytest.mark.parametrize("byte", [0, 1, 255])
@pytest.mark.parametrize("size", [4095, 4096, 4097, 70_001])
def test_checksums_of_long_blocks_are_those_of_zlib(size: int, byte: int) -> None:
    data = np.full(size, byte, np.uint8)
    for name, expected in (("crc32", zlib.crc32(data)), ("adler-32", zlib.adler32(data))):
        assert digest_blocks(data, size, DIGESTS[name]).tolist() == [expected]


def test_digests_are_those_of_their_specifications() -> None:
    data = np.frombuffer(b"123456789", np.uint8)
    found = {name: int(digest_blocks(data, 9, d)[0]) for name, d in DIGESTS.items()}
    assert found["crc32c"] == 0xE3069283  # the check value of CRC-32/ISCSI
    assert found["crc32"] == 0xCBF43926
    assert found["adler-32"] == 0x091E01DE
    assert found["xxh3-64"] == int(vmbk.hash_blocks(b"123456789", 16).digests[0])


WORDS = st.lists(st.integers(0, 40) | st.integers(0, 2**64 - 1), max_size=30)


@given(WORDS, WORDS)
def test_equal_low_bits(old: list[int], new: list[int]) -> None:
    pairs = list(zip(old, new, strict=False))
    a, b = (np.array([p[i] for p in pairs], np.uint64) for i in (0, 1))
    found = equal_low_bits(a, b)
    assert found.tolist() == [sum(x % 2**n == y % 2**n for x, y in pairs) for n in range(65)]


@given(WORDS)
def test_equal_pairs(words: list[int]) -> None:
    bits = [1, 2, 8, 31, 64]
    expected = [sum(a % 2**n == b % 2**n for a, b in combinations(words, 2)) for n in bits]
    assert equal_pairs(np.array(words, np.uint64), bits) == expected


# --- Chance ---------------------------------------------------------------------------------------


def tail(most: int, pairs: int, share: float) -> float:
    """The chance of `most` misses or fewer, exactly."""
    p = Fraction(share)
    return float(sum(math.comb(pairs, i) * p**i * (1 - p) ** (pairs - i) for i in range(most + 1)))


@given(st.integers(1, 60), st.data())
def test_intervals_end_where_what_was_seen_becomes_unlikely(
    pairs: int, data: st.DataObject
) -> None:
    seen = data.draw(st.integers(0, pairs))
    low, high = chance_interval(seen, pairs)
    assert 0 <= low <= seen <= high <= pairs
    if seen < pairs:
        assert tail(seen, pairs, high / pairs) == pytest.approx(0.025, rel=1e-6)
    if seen:
        assert 1 - tail(seen - 1, pairs, low / pairs) == pytest.approx(0.025, rel=1e-6)


def test_intervals_of_tables() -> None:
    low, high = chance_interval(5, 100)
    assert (low, high) == (pytest.approx(1.6432, abs=1e-4), pytest.approx(11.2835, abs=1e-4))
    # With many pairs, those of Poisson's distribution: Garwood's table.
    low, high = chance_interval(10, 1 << 40)
    assert (low, high) == (pytest.approx(4.7954, abs=1e-4), pytest.approx(18.3904, abs=1e-4))
    assert chance_interval(0, 0) == (0, 0)


@pytest.mark.parametrize("pairs", [5000, 1 << 20, 1 << 40])
def test_intervals_hardly_change_where_they_stop_being_exact(
    pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = chance.MOST_EXACT
    exact = chance_interval(seen, pairs)
    monkeypatch.setattr(chance, "MOST_EXACT", 0)
    assert chance_interval(seen, pairs) == pytest.approx(exact, abs=1)


@pytest.mark.parametrize(("seen", "pairs"), [(-1, 5), (6, 5)])
def test_no_interval_for_impossible_counts(seen: int, pairs: int) -> None:
    with pytest.raises(InputError, match=f"{seen} misses of {pairs} pairs"):
        chance_interval(seen, pairs)


def test_a_fleet_year_by_hand() -> None:
    fleet = Fleet(machines=10, disk_bytes=1 << 20, daily_churn=0.5, block_size=1 << 16,
                  backups_per_day=2, sub_blocks=3)  # fmt: skip
    assert fleet.blocks == 160
    assert fleet.changed_blocks == 160 * 0.5 * 2 * 365
    row = fleet_year(fleet, [16]).row(0, named=True)
    assert row["block_misses"] == 58400 / 65536
    assert row["sub_block_misses"] == 3 * 58400 / 65536
    assert row["misses"] == 4 * 58400 / 65536
    assert row["probability"] == pytest.approx(1 - math.exp(-row["misses"]))
    assert row["years_per_miss"] == pytest.approx(65536 / (4 * 58400))
    assert row["lookups"] == 160 * 159 / 2 / 65536


@given(st.floats(1e-30, 1e9), st.integers(1, 10**9))
def test_bits_needed_are_the_fewest(rate: float, machines: int) -> None:
    fleet = Fleet(machines=machines)
    bits = bits_needed(fleet, rate)
    assert fleet_year(fleet, [bits])["misses"][0] < rate
    if bits > 1:
        assert fleet_year(fleet, [bits - 1])["misses"][0] >= rate


def test_a_fleet_that_changes_nothing_misses_nothing() -> None:
    still = Fleet(daily_churn=0)
    row = fleet_year(still, [8]).row(0, named=True)
    assert (row["misses"], row["probability"], row["years_per_miss"]) == (0, 0, None)
    assert bits_needed(still) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Fleet(machines=0), "machines: 0 is not"),
        (lambda: Fleet(daily_churn=1.5), "daily churn: 1.5 is not"),
        (lambda: Fleet(sub_blocks=math.nan), "changed sub-blocks of a block: nan is not"),
        (lambda: fleet_year(bits=[0]), "a digest of 0 bits"),
        (lambda: fleet_year(bits=[True]), "a digest of True bits"),
        (lambda: bits_needed(misses_per_year=0), "misses a year: 0 is not above 0"),
        (lambda: measure_updates(["burn"]), "'burn' is no kind of update"),
        (lambda: measure_updates([]), "no kind of update was named"),
        (lambda: measure_updates(digests=["md5"]), "'md5' is no digest"),
        (lambda: measure_updates(digests=[]), "no digest was named"),
        (lambda: measure_updates(contents=["music"]), "'music' is no kind of content"),
        (lambda: measure_updates(pairs=0), "pairs: 0 is not from 1"),
        (lambda: measure_updates(block_size=1000), "must be a power of two from 512 B"),
        (lambda: measure_all_pairs(seed=-1), "the seed must be 0 to"),
        (lambda: measure_all_pairs(blocks=1 << 40), "blocks: 1099511627776 is not"),
        (lambda: study_captures([]), "there is nothing to replay"),
        (lambda: study_captures(interval="often"), "interval: 'often' is not a duration"),
        (lambda: study_captures(block_sizes=["1KiB"]), "must be a power of two from 4 KiB"),
    ],
)
def test_bad_values_are_refused(make, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


# --- Updates --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def blocks() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Old and new blocks of each kind of update."""
    old = misses._content("random", 1, 0, 0, 500, 1024)
    fresh = misses._content("random", 1, 1, 0, 500, 1024)
    draws = misses._content("random", 1, 2, 0, 500, 32).view(np.uint64)
    kept = old.copy()
    found = {kind: update.apply(old, fresh, draws) for kind, update in UPDATES.items()}
    assert np.array_equal(old, kept)  # updates do not share what they change
    return found


def test_updates_do_what_they_say(blocks) -> None:
    def differing(kind: str) -> np.ndarray:
        old, new = blocks[kind]
        return (old != new).sum(axis=1)

    old, new = blocks["bit"]
    assert (np.bitwise_count(old ^ new).sum(axis=1) == 1).all()
    old, new = blocks["counter"]
    assert ((new - old).sum(axis=1) == 1).all()
    assert (differing("counter") == 1).all()
    old, new = blocks["transfers"]
    assert (differing("transfers") == 4).all()
    old, new = (x.view(np.uint64) for x in blocks["swap"])
    assert np.array_equal(np.sort(old, axis=1), np.sort(new, axis=1))
    assert ((old != new).sum(axis=1) == 2).all()
    old, new = blocks["zero"]
    assert (new[old != new] == 0).all()
    old, new = blocks["append"]
    assert (old[old != new] == 0).all()
    assert (differing("append") <= 512).all()
    for block in blocks["sealed"][1][:20]:
        [crc] = naive.crc_blocks(block[:-4].tobytes(), 2000, POLYNOMIALS["crc32c"])
        assert block[-4:].tobytes() == crc.to_bytes(4, "little")
    assert (differing("rewrite") > 900).all()
    assert all(differing(kind).min() > 0 for kind in UPDATES)


@pytest.fixture(scope="module")
def measured() -> pl.DataFrame:
    return measure_updates(pairs=3000, block_size=1024, seed=7)


def missed(frame: pl.DataFrame, update: str, digest: str, bits: int) -> list[float]:
    """Shares missed, of random content and of text."""
    found = frame.filter(update=update, digest=digest, bits=bits)
    return (found["misses"] / found["pairs"]).to_list()


def test_tables_have_their_columns(measured: pl.DataFrame) -> None:
    assert measured.schema == {c.name: c.dtype for c in misses.COLUMNS}
    assert len(measured) == 2 * len(UPDATES) * sum(len(widths(d)) for d in DIGESTS.values())
    assert (measured["expected"] == measured["pairs"] / 2.0 ** measured["bits"]).all()
    assert measured.select(pl.col("misses").is_between("low", "high").all()).item()
    assert measured["version"].unique().to_list() == [vmbk.__version__]


def test_findings_that_theory_knows(measured: pl.DataFrame) -> None:
    for digest in ("crc32", "crc32c"):  # every burst of up to 32 bits is found
        assert missed(measured, "bit", digest, 32) == [0, 0]
        assert missed(measured, "counter", digest, 32) == [0, 0]
    # A CRC over data and their CRC is a constant; that of another polynomial is not.
    assert all(missed(measured, "sealed", "crc32c", n) == [1, 1] for n in (8, 32))
    assert missed(measured, "sealed", "crc32", 32) == [0, 0]
    # One byte changes the sum by less than its modulus; two words that are swapped do not.
    assert all(missed(measured, "counter", "adler-32", n) == [0, 0] for n in (8, 32))
    assert missed(measured, "swap", "adler-32", 16) == [1, 1]
    # Of random words, sums are equal once in sqrt(2 pi 16 (256^2 - 1) / 12), some 741.
    random, text = missed(measured, "swap", "adler-32", 32)
    assert 0 < random < 0.006
    assert text > random
    assert missed(measured, "transfers", "adler-32", 32)[1] == 1  # no byte of text is 255


def test_xxh3_misses_as_chance_has_it(measured: pl.DataFrame) -> None:
    found = measured.filter(pl.col("digest") == "xxh3-64", pl.col("bits") <= 12)
    kinds = found.group_by("bits").agg(pl.col("misses").sum(), pl.col("expected").sum())
    deviation = (kinds["misses"] - kinds["expected"]) / kinds["expected"].sqrt()
    assert deviation.abs().max() < 4
    assert found.filter(bits=64)["misses"].sum() == 0


def test_pairs_that_do_not_differ_are_not_counted(measured: pl.DataFrame) -> None:
    swapped = measured.filter(content="text", update="swap")["pairs"].unique().item()
    assert 2800 < swapped < 3000  # one in some 64 swaps is of equal words
    assert set(measured.filter(update="bit")["pairs"]) == {3000}


def test_neither_threads_nor_batches_change_anything(
    measured: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = ["swap", "append"]
    expected = measured.filter(pl.col("update").is_in(kinds))
    monkeypatch.setattr(misses, "_BATCH", 300 * 1024)
    for workers in (1, 4):
        again = measure_updates(kinds, pairs=3000, block_size=1024, seed=7, workers=workers)
        assert again.equals(expected)
    assert not measure_updates(kinds, pairs=3000, block_size=1024, seed=8).equals(expected)


def test_all_pairs_are_those_of_the_contents() -> None:
    found = measure_all_pairs(["crc32"], contents=["text"], blocks=300, block_size=512, seed=3)
    data = misses._content("text", 3, 0, 0, 300, 512)
    crcs = [zlib.crc32(block) for block in data]
    for row in found.filter(pl.col("bits") <= 16).iter_rows(named=True):
        mask = (1 << row["bits"]) - 1
        assert row["pairs"] == 300 * 299 // 2
        assert row["misses"] == sum(not (a ^ b) & mask for a, b in combinations(crcs, 2))


def test_all_pairs_meet_the_birthday_bound() -> None:
    found = measure_all_pairs(["xxh3-64"], blocks=1 << 16, block_size=512)
    found = found.filter(pl.col("bits").is_in([16, 20, 24, 64]))
    deviation = (found["misses"] - found["expected"]) / found["expected"].sqrt()
    assert deviation.abs().max() < 4
    assert found.filter(bits=24)["expected"].to_list() == [pytest.approx(128, rel=1e-3)] * 2


# --- Captures -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def captured() -> rewrites.CapturedChanges:
    return study_captures(["ext4-fragmented", "ext4-two-disks"], interval="25%")


def test_rewrites_are_what_the_detectors_themselves_report(captured, tmp_path) -> None:
    (tmp_path / "study.toml").write_text(
        'seed = 1\n[grid]\ndatasets = ["ext4-fragmented"]\ndetectors = ["checksum", "tracking"]\n'
        'sub_block_size = ["off"]\nblock_size = ["64KiB"]\ninterval = ["25%"]\n'
    )
    rows = vmbk.run_study(tmp_path / "study.toml", out=None).rows.filter(pl.col("backup") > 0)
    sums = {
        detector: rows.filter(detector=detector).select(
            pl.col("reported_bytes", "sent_bytes", "oracle_block_bytes").sum()
        ).row(0, named=True)
        for detector in ("checksum", "tracking")
    }  # fmt: skip
    [ours] = captured.rewrites.filter(dataset="ext4-fragmented", block_size=65536).to_dicts()
    assert ours["backups"] == 4
    assert ours["tracked_bytes"] == sums["tracking"]["reported_bytes"]
    assert ours["checksum_bytes"] == sums["checksum"]["reported_bytes"]
    assert ours["differing_bytes"] == sums["checksum"]["oracle_block_bytes"]
    sent_for_nothing = sums["tracking"]["sent_bytes"] - sums["checksum"]["sent_bytes"]
    assert ours["identical_bytes"] == sent_for_nothing > 0


def test_rewrites_add_up(captured) -> None:
    frame = captured.rewrites
    assert frame.schema == {c.name: c.dtype for c in rewrites.COLUMNS}
    parts = pl.col("differing_bytes") + pl.col("identical_bytes") + pl.col("identical_zero_bytes")
    assert frame.select((parts == pl.col("tracked_bytes")).all()).item()
    assert (frame["checksum_bytes"] == frame["differing_bytes"]).all()
    fine, coarse = (frame.filter(block_size=size) for size in (4096, 65536))
    assert (fine["differing_bytes"] == coarse["differing_sub_blocks"] * 4096).all()
    assert (coarse["lone_sub_blocks"] <= coarse["differing_bytes"] // 65536).all()
    assert (fine["tracked_bytes"] <= coarse["tracked_bytes"]).all()


def test_crc32c_does_not_see_blocks_that_carry_it(captured) -> None:
    """What ext4 and PostgreSQL seal with CRC-32C changes, and its CRC-32C stays."""
    frame = captured.missed
    assert frame.schema == {c.name: c.dtype for c in rewrites.MISSED}
    assert set(frame["digest"]) == {"crc32c"}
    blocks = frame.filter(block_size=4096)
    assert set(blocks["structure"]) == {name for name, _, _ in rewrites.STRUCTURES}
    whole = captured.misses.filter(pairing=misses.OLD_AND_NEW, block_size=4096, bits=32)
    counts = dict(whole.select("digest", "misses").iter_rows())
    assert 0 < counts.pop("crc32c") <= blocks["changes"].sum()
    assert set(counts.values()) == {0}


def test_pairs_of_captures_are_different_contents(captured) -> None:
    found = captured.misses.filter(pairing=misses.ALL_PAIRS, digest="xxh3-64", bits=64)
    assert found["misses"].to_list() == [0, 0]
    changes = captured.misses.filter(pairing=misses.OLD_AND_NEW, digest="xxh3-64", bits=64)
    assert changes["pairs"].min() > 500
    assert set(captured.misses["update"]) == {"", rewrites.GUEST}


def test_workers_do_not_change_what_captures_tell(captured) -> None:
    again = study_captures(["ext4-fragmented", "ext4-two-disks"], interval="25%", workers=1)
    assert again.misses.equals(captured.misses)
    assert again.rewrites.equals(captured.rewrites)
    assert again.missed.equals(captured.missed)


def test_a_capture_that_is_nowhere() -> None:
    with pytest.raises(NotFoundError):
        study_captures(["nonesuch"])


# --- Charts ---------------------------------------------------------------------------------------


def test_misses_are_drawn(measured: pl.DataFrame, captured) -> None:
    chart = charts.missed_changes(measured.filter(content="random"))
    words = texts(charts.to_svg(chart))
    assert set(UPDATES) | set(DIGESTS) <= set(words)
    assert "share missed" in words
    rows = [r for r in chart_rows(chart) if r.get("tip")]
    assert all(r["bits"] % 4 == 0 and r["bits"] <= 32 for r in rows)
    swap = next(r for r in rows if r["tip"].startswith("adler-32, 16") and r["panel"] == "swap")
    assert swap["share"] == 1
    pairs = charts.missed_changes(captured.misses.filter(pairing=misses.ALL_PAIRS, block_size=4096))
    assert set(DIGESTS) | {"captures"} <= set(texts(charts.to_svg(pairs)))


def test_charts_refuse_what_they_cannot_draw(measured: pl.DataFrame, captured) -> None:
    with pytest.raises(InputError, match="2 kinds of pairs in one chart"):
        charts.missed_changes(captured.misses)
    with pytest.raises(InputError, match="several contents in one chart"):
        charts.missed_changes(measured)
    with pytest.raises(InputError, match="nothing to draw"):
        charts.missed_changes(measured.clear())
    with pytest.raises(InputError, match="this table lacks misses"):
        charts.fleet_misses(measured.select("bits"))
    with pytest.raises(InputError, match="no block was marked"):
        charts.identical_rewrites(captured.rewrites.clear())
    with pytest.raises(InputError, match="a chart needs a table"):
        charts.identical_rewrites(captured)


def test_fleets_and_rewrites_are_drawn(captured) -> None:
    years = pl.concat(
        fleet_year(Fleet(machines=n)).with_columns(fleet=pl.lit(f"{n} machines")) for n in (10, 99)
    )
    words = texts(charts.to_svg(charts.fleet_misses(years)))
    assert {"10 machines", "99 machines", "expected misses a year", "1e-06 a year"} <= set(words)
    assert charts.to_svg(charts.fleet_misses(fleet_year()))
    words = texts(charts.to_svg(charts.identical_rewrites(captured.rewrites)))
    assert {"ext4-fragmented", "blocks of 64 KiB", "rewritten with the same data"} <= set(words)
