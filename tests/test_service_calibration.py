"""The calibration: that the fit finds what is there, that it is the shipped one, what follows."""

from __future__ import annotations

import dataclasses
import itertools
import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_charts import texts
from vmbk import charts
from vmbk.charts.calibration import documented_times, service_throughput, time_by_extent
from vmbk.errors import InputError, NotFoundError
from vmbk.service.calibration import CALIBRATION, GRAIN, Calibration, calibration
from vmbk.service.fit import (
    cells_of,
    digest,
    fit_calibration,
    non_negative,
    predicted,
    robust,
    to_toml,
)
from vmbk.service.validation import (
    EXTENTS,
    THRESHOLD_BYTES,
    THRESHOLD_SECONDS,
    Rates,
    implied_latency,
    measured_spread,
    threshold_extent,
    validate,
)
from vmbk.study.calibration import SHIPPED, main, measure, tracked_extents
from vmbk.study.calibration_plan import PLAN, Churn, Machine, Plan
from vmbk.units import KIB, MIB

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"

TRUE = {
    "checksum": {"start": 0.004, "disk": 2e-12, "scanned": 1.5e-10, "drilled": 5e-11},
    "tracking": {"start": 0.003, "disk": 3e-12, "scanned": 2e-10, "extents": 1.4e-4},
    "send": {"start": 0.002, "sent": 2.5e-9, "extents": 3.5e-4, "padding": 0.0},
}
SIZES = {m.name: (m.size, m.data) for m in PLAN.machines}


def synthetic(noise: float = 0.05, seed: int = 0, outliers: float = 0.0) -> pl.DataFrame:
    """Measurements of the shipped plan as they would be if the model were the truth."""
    random = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for number, cell in itertools.product(range(3), PLAN.cells):
        machine = next(m for m in PLAN.machines if m.name == cell.machine)
        runs = 1 if cell.spread == "holed" else cell.runs
        sent = max(cell.written, cell.runs * min(GRAIN, cell.slot))
        blocks = min(machine.data * machine.disks, sent + cell.runs * 60 * KIB)
        tracked = max(1, runs // 2) if cell.spread == "strewn" else 1
        scanned = blocks if cell.detector == "tracking" else machine.data * machine.disks
        disk = machine.size * machine.disks
        cost = TRUE[cell.detector]
        detect = cost["start"] + cost["disk"] * disk + cost["scanned"] * scanned
        detect += cost.get("drilled", 0) * blocks + cost.get("extents", 0) * tracked
        cost = TRUE["send"]
        send = cost["start"] + cost["sent"] * sent + cost["extents"] * runs
        factor = np.exp(random.normal(0, noise, 2))
        factor[random.random(2) < outliers] *= 5
        rows.append({
            "round": number, "turn": 0, "kind": cell.kind, "machine": cell.machine,
            "disks": machine.disks, "disk_bytes": disk, "detector": cell.detector,
            "spread": cell.spread, "written_bytes": cell.written, "write_size": cell.write_size,
            "run_bytes": cell.run, "runs": cell.runs, "tracked_extents": tracked,
            "scanned_bytes": scanned, "reported_bytes": blocks, "extents": runs,
            "sent_bytes": sent, "detect_seconds": detect * factor[0],
            "transfer_seconds": send * factor[1], "seed": 0, "others": 0.02, "version": "1",
            "commit": "c", "provenance": json.dumps({"cpu": "a processor", "cores": 2}),
        })  # fmt: skip
    return pl.DataFrame(rows)


@pytest.fixture(scope="module")
def fitted() -> Calibration:
    return fit_calibration(synthetic())


class TestFit:
    def test_without_noise_the_costs_are_found_exactly(self) -> None:
        found = fit_calibration(synthetic(noise=0), draws=20)
        for fit in found.fits:
            for cost in fit.costs:
                assert cost.estimate.value == pytest.approx(TRUE[fit.name][cost.name], rel=2e-3)
            assert fit.residual < 1e-3
        assert found.extent.value == pytest.approx(3.5e-4 / 2.5e-9, rel=2e-3)

    def test_with_noise_most_intervals_cover_the_truth(self) -> None:
        covered, count = 0, 0
        for seed in range(5):
            found = fit_calibration(synthetic(noise=0.1, seed=seed), draws=150)
            for fit in found.fits:
                for cost in fit.costs:
                    truth = TRUE[fit.name][cost.name]
                    covered += cost.estimate.low * 0.999 <= truth <= cost.estimate.high * 1.001
                    count += 1
        assert covered / count > 0.85  # 95 % are meant; bootstrap intervals are a little short

    def test_the_penalty_is_covered_and_near(self, fitted: Calibration) -> None:
        truth = 3.5e-4 / 2.5e-9
        assert fitted.extent.low <= truth <= fitted.extent.high
        assert fitted.extent.high / fitted.extent.low < 1.3
        assert fitted.tracked_extent.low <= 1.4e-4 / 2.5e-9 <= fitted.tracked_extent.high
        assert fitted.scanned.low <= 1.5e-10 / 2.5e-9 <= fitted.scanned.high

    def test_backups_that_something_disturbed_do_not_carry_the_fit(self) -> None:
        found = fit_calibration(synthetic(outliers=0.08), draws=50)
        assert found.extent.value == pytest.approx(3.5e-4 / 2.5e-9, rel=0.15)

    def test_it_is_the_same_again_and_in_any_order(self, fitted: Calibration) -> None:
        assert fit_calibration(synthetic()) == fitted
        shuffled = synthetic().sample(fraction=1, shuffle=True, seed=1)
        other = fit_calibration(shuffled)
        assert other.fits == fitted.fits
        assert fit_calibration(shuffled, seed=1, draws=50) != fitted

    @given(st.integers(0, 2**32), st.integers(1, 4))
    @settings(max_examples=25, deadline=None)
    def test_costs_are_the_least_squares_that_are_not_negative(self, seed: int, terms: int) -> None:
        random = np.random.default_rng(seed)
        columns, wanted = random.normal(size=(12, terms)), random.normal(size=12)
        weights = random.random((1, 12)) + 0.1
        found = non_negative(columns, wanted, weights)[0]
        assert (found >= 0).all()
        # The conditions of Karush, Kuhn and Tucker: no cost can be changed for the better.
        slope = (weights[0] * (columns @ found - wanted)) @ columns
        assert (slope > -1e-6).all()
        assert np.abs(slope[found > 0]).max(initial=0) < 1e-6

    def test_samples_are_fitted_as_one_by_one(self) -> None:
        random = np.random.default_rng(1)
        columns = np.abs(random.normal(size=(30, 3)))
        times = random.multinomial(30, np.full(30, 1 / 30), 4).astype(float)
        together = robust(columns, np.ones(30), times)
        for i in range(4):
            alone = robust(columns, np.ones(30), times[i : i + 1])
            assert together[i] == pytest.approx(alone[0])

    def test_what_is_no_table_of_measurements_is_refused(self) -> None:
        with pytest.raises(InputError, match="lack"):
            fit_calibration(pl.DataFrame({"kind": ["extent"]}))
        with pytest.raises(InputError, match="too few"):
            fit_calibration(synthetic().filter(pl.col("kind") == "disks"))
        with pytest.raises(InputError, match="not above 0"):
            fit_calibration(synthetic().with_columns(transfer_seconds=pl.lit(0.0)))
        with pytest.raises(InputError, match="JSON"):
            fit_calibration(synthetic().with_columns(provenance=pl.lit("{")), draws=1)


class TestPenalties:
    @given(
        st.floats(1e3, 1e10), st.floats(512, 1e9), st.floats(1, 100),
        st.sampled_from([512, 1024, 4096, 8192, 65536]), st.floats(0, 0.1),
    )  # fmt: skip
    @settings(max_examples=80, deadline=None)
    def test_more_extents_at_equal_bytes_are_never_faster(
        self, rate: float, extent: float, times: float, write: int, latency: float
    ) -> None:
        found = calibration_of()
        many = found.effective_rate(rate, extent, write, request_latency=latency)
        few = found.effective_rate(rate, extent * times, write, request_latency=latency)
        assert 0 < many <= few * (1 + 1e-12)
        assert few < rate

    @given(st.floats(1, 1e7), st.floats(1, 1e7))
    @settings(max_examples=80, deadline=None)
    def test_smaller_writes_are_never_faster(self, one: float, other: float) -> None:
        found = calibration_of()
        small, large = sorted((one, other))
        assert found.small_write_factor(small) >= found.small_write_factor(large) >= 1
        assert found.effective_rate(8e7, 1e5, small) <= found.effective_rate(8e7, 1e5, large)

    def test_from_8_kib_on_the_size_of_a_write_costs_nothing(self, fitted: Calibration) -> None:
        assert fitted.small_write_factor(8 * KIB) == fitted.small_write_factor(MIB) == 1
        interval = fitted.small_write_interval(512)
        assert interval.low <= interval.value <= interval.high
        assert 8 < interval.value < 20  # 16 times the extents, and each is a sub-block

    def test_the_rate_is_the_bytes_and_the_extents(self, fitted: Calibration) -> None:
        rate, extent = 80e6, 256 * KIB
        seconds = extent / rate + fitted.extent_cost(rate) / 1e9
        assert fitted.effective_rate(rate, extent) == pytest.approx(extent / seconds)
        small = (extent) / rate + fitted.extent_cost(rate, 512) / 1e9
        assert fitted.effective_rate(rate, extent, 512) == pytest.approx(extent / small)
        assert fitted.tracked_cost(rate) == pytest.approx(
            fitted.tracked_extent_bytes_equivalent / rate * 1e9, abs=1
        )

    def test_latency_is_apart_and_adds_for_each_extent(self, fitted: Calibration) -> None:
        plain = MIB / fitted.effective_rate(8e7, MIB)
        waiting = MIB / fitted.effective_rate(8e7, MIB, request_latency=0.01)
        assert waiting - plain == pytest.approx(0.01)

    def test_the_ends_are_the_interval(self, fitted: Calibration) -> None:
        low, high = fitted.ends()
        assert low.extent.value == fitted.extent.low
        assert high.padding.value == fitted.padding.high
        rates = [each.effective_rate(8e7, 1e5) for each in (high, fitted, low)]
        assert rates == sorted(rates)

    @pytest.mark.parametrize("bad", [0, -1, float("nan"), float("inf"), "8 KiB"])
    def test_nonsense_is_refused(self, fitted: Calibration, bad: Any) -> None:
        with pytest.raises(InputError, match="above 0"):
            fitted.effective_rate(bad, MIB)
        with pytest.raises(InputError, match="above 0"):
            fitted.effective_rate(1e6, bad)
        with pytest.raises(InputError, match="above 0"):
            fitted.small_write_factor(bad)
        with pytest.raises(InputError, match="above 0"):
            fitted.extent_cost(bad)
        if bad != 0 and not isinstance(bad, str):
            with pytest.raises(InputError, match="at least 0"):
                fitted.effective_rate(1e6, MIB, request_latency=bad)


def calibration_of() -> Calibration:
    """One with plain numbers, for properties."""
    text = to_toml(calibration())
    return Calibration.parse(tomllib.loads(text), "")


class TestFile:
    def test_what_is_written_is_read_again(self, fitted: Calibration, tmp_path: Path) -> None:
        path = tmp_path / "c.toml"
        path.write_text(to_toml(fitted), encoding="utf-8")
        assert Calibration.load(path) == fitted
        assert "extent" in fitted._repr_html_()
        assert fitted.to_dict()["extent"]["value"] == fitted.extent_bytes_equivalent

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda t: t.pop("equivalent"), "equivalent is missing"),
            (lambda t: t["equivalent"].pop("extent"), "equivalent.extent is missing"),
            (lambda t: t["equivalent"].update(extents={}), "equivalent.extents"),
            (lambda t: t["equivalent"].update(extent=3), "equivalent.extent must be a table"),
            (lambda t: t["equivalent"]["extent"].update(value=-1), "equivalent.extent.value: -1"),
            (lambda t: t["equivalent"]["extent"].update(value="much"), "'much' is not a number"),
            (lambda t: t["equivalent"]["extent"].update(low=float("nan")), "extent.low: nan"),
            (lambda t: t["equivalent"]["extent"].update(high=1), "equivalent.extent.value"),
            (lambda t: t["equivalent"]["extent"].update(high=1e300), "extent.high"),
            (lambda t: t["fits"].pop("send"), "fits.send is missing"),
            (lambda t: t["fits"].update(restore={}), "fits.restore"),
            (lambda t: t["fits"]["send"].update(costs=[]), "fits.send.costs"),
            (lambda t: t["fits"]["send"].update(costs=[3]), r"fits.send.costs\[0\]"),
            (lambda t: t["fits"]["send"]["costs"][1].update(unit="h"), r"costs\[1\].unit: 'h'"),
            (lambda t: t["fits"]["send"]["costs"][1].update(low=9), r"fits.send.costs\[1\].value"),
            (lambda t: t["fits"]["send"].update(cells=0), "fits.send.cells"),
            (lambda t: t["made"].update(cores="two"), "made.cores: 'two'"),
            (lambda t: t.pop("made"), "made is missing"),
        ],
    )  # fmt: skip
    def test_a_bad_one_names_the_field(self, fitted: Calibration, change: Any, said: str) -> None:
        table = tomllib.loads(to_toml(fitted))
        change(table)
        with pytest.raises(InputError, match=said):
            Calibration.parse(table, "")

    def test_what_is_no_file_of_this_kind(self, tmp_path: Path) -> None:
        with pytest.raises(NotFoundError):
            Calibration.load(tmp_path / "none.toml")
        (tmp_path / "bad.toml").write_text("extent = [", encoding="utf-8")
        with pytest.raises(InputError, match="cannot read"):
            Calibration.load(tmp_path / "bad.toml")

    def test_an_unknown_term_is_named(self, fitted: Calibration) -> None:
        with pytest.raises(InputError, match="no term 'tape'"):
            fitted.fit("send").cost("tape")
        with pytest.raises(InputError, match="no fit 'tape'"):
            fitted.fit("tape")


class TestMeasure:
    def test_a_small_plan_is_measured_and_counts_what_was_done(self, tmp_path: Path) -> None:
        machines = (Machine("one", 1, 4 * MIB, 3 * MIB), Machine("two", 2, 2 * MIB, MIB))
        cells = tuple(
            Churn(kind, machine, detector, spread, written, write, run)
            for detector in ("checksum", "tracking")
            for kind, machine, spread, written, write, run in (
                ("extent", "one", "strewn", 64 * KIB, 512, 512),
                ("extent", "one", "strewn", 64 * KIB, 8 * KIB, 8 * KIB),
                ("write", "one", "strewn", 64 * KIB, 512, 16 * KIB),
                ("write", "one", "contiguous", 256 * KIB, 4 * KIB, 256 * KIB),
                ("write", "one", "holed", 16 * KIB, 512, 512),
                ("disk", "one", "clustered", 128 * KIB, 4 * KIB, 4 * KIB),
                ("disks", "two", "strewn", 128 * KIB, 16 * KIB, 16 * KIB),
            )
        )
        found = measure(Plan(machines, cells, rounds=1), seed=5, scratch=tmp_path)
        assert not list(tmp_path.iterdir())
        first = found.filter(kind="first")
        assert first["sent_bytes"].to_list() == [3 * MIB, 2 * MIB]
        done = found.filter(pl.col("kind") != "first")
        assert len(done) == len(cells)
        assert sorted(done["turn"].to_list()) == list(range(len(cells)))
        runs = pl.when(pl.col("spread") == "holed").then(1).otherwise(pl.col("runs"))
        assert (done["extents"] == done.select(runs.alias("runs"))["runs"]).all()
        whole = pl.max_horizontal("write_size", pl.lit(GRAIN))
        padded = done.select(
            pl.when(pl.col("run_bytes") < GRAIN).then(pl.col("runs") * whole)
            .otherwise(pl.col("written_bytes")).alias("sent")
        )  # fmt: skip
        assert (done["sent_bytes"] == padded["sent"]).all()
        assert (done["new_bytes"] == done["sent_bytes"]).all()  # no content was there before
        checksum, tracking = (done.filter(detector=name) for name in ("checksum", "tracking"))
        assert (checksum["scanned_bytes"] == checksum["data_bytes"]).all()
        assert (tracking["scanned_bytes"] >= tracking["reported_bytes"]).all()
        assert (done.select(pl.col("^.*_seconds$")).to_numpy() > 0).all()
        assert len(cells_of(found)) == len(cells) - 2
        again = measure(Plan(machines, cells, rounds=1), seed=5)
        assert found["others"].is_between(0, 1).all()
        noisy = ("seconds", "stored_bytes", "others")
        counts = [c for c in found.columns if not c.endswith(noisy)]
        assert found.select(counts).equals(again.select(counts))

    def test_tracked_extents_are_runs_of_the_blocks_written(self) -> None:
        starts = np.array([0, 4096, 70_000, 300_000], np.int64)
        expected = {b for s in starts.tolist() for b in range(s // 65536, (s + 4095) // 65536 + 1)}
        runs = sum(b - 1 not in expected for b in expected)
        assert tracked_extents(starts, 4096, MIB) == runs == 2

    @pytest.mark.parametrize(
        ("make", "said"),
        [
            (lambda: Machine("m", 0, MIB, MIB), "is none"),
            (lambda: Machine("m", 1, MIB, 2 * MIB), "is none"),
            (lambda: Machine("m", 1, MIB, 1000), "is none"),
            (lambda: cell(spread="round"), "'round'"),
            (lambda: cell(detector="full"), "'full'"),
            (lambda: cell(written=1000), "whole number"),
            (lambda: cell(write_size=0), "whole number"),
            (lambda: cell(written=1 << 40, write_size=512, run=512), "the most is"),
            (lambda: Plan((), (cell(),)), "no machine 'm'"),
            (lambda: Plan((Machine("m", 1, MIB, MIB),), ()), "nothing to measure"),
            (lambda: Plan((Machine("m", 1, MIB, MIB),), (cell(),), 0), "nothing to measure"),
            (lambda: Plan((Machine("m", 1, MIB, 64 * KIB),), (cell(),)), "do not fit"),
            (lambda: Plan((Machine("m", 3, MIB, MIB),), (cell(),)), "do not fit"),
        ],
    )
    def test_bad_plans_are_refused(self, make: Any, said: str) -> None:
        with pytest.raises(InputError, match=said):
            make()

    def test_the_plan_asks_every_question_of_both_detectors(self) -> None:
        kinds = {(c.kind, c.detector) for c in PLAN.cells}
        assert kinds == set(
            itertools.product(("extent", "write", "disk", "disks"), ("checksum", "tracking"))
        )
        assert {512, 4 * KIB, 8 * KIB, MIB} <= {c.write_size for c in PLAN.cells}
        # The machines of several disks hold the same data, so that only their number differs.
        alike = [m for m in PLAN.machines if m.name.endswith(("-disk", "-disks"))]
        assert len({m.disks * m.data for m in alike}) == 1
        assert sorted(m.disks for m in alike) == [1, 2, 4]


def cell(**changes: Any) -> Churn:
    """A plain one, but for the changes."""
    plain = {"kind": "extent", "machine": "m", "detector": "tracking", "spread": "strewn",
             "written": 256 * KIB, "write_size": 4 * KIB, "run": 4 * KIB}  # fmt: skip
    return Churn(**{**plain, **changes})


class TestValidation:
    def test_the_documented_points(self, fitted: Calibration) -> None:
        found = {row["point"]: row for row in validate(fitted).iter_rows(named=True)}
        hours = {name: row["modelled_seconds"] / 3600 for name, row in found.items()}
        assert hours["first backup of 1 TB"] == pytest.approx(13.9, abs=0.05)
        assert hours["first backup of 1023 GB"] == pytest.approx(14.2, abs=0.05)
        assert hours["first backup of 4 TB"] == pytest.approx(55.6, abs=0.05)
        assert hours["reading 1 TB to find changes"] == pytest.approx(3.5, abs=0.05)
        assert hours["restore of 2 TB from the vault"] == pytest.approx(18.5, abs=0.05)
        gap = found["a backup of 2332 MB"]
        assert gap["verdict"] == "gap"
        assert gap["gap_seconds"] / 60 == pytest.approx(18.4, abs=0.1)
        conflict = found["reading 1 TB to find changes, at a blob's target"]
        assert conflict["verdict"] == "gap"

    def test_200_gb_take_8_hours_where_it_says_so(self, fitted: Calibration) -> None:
        found = validate(fitted).filter(pl.col("mean_extent").is_in(EXTENTS),
                                        pl.col("relation") == "at least")  # fmt: skip
        assert found["mean_extent"].to_list() == list(EXTENTS)
        assert found["modelled_seconds"].is_sorted(descending=True)
        assert (found["low_seconds"] <= found["modelled_seconds"]).all()
        assert (found["high_seconds"] >= found["modelled_seconds"]).all()
        limit = threshold_extent(fitted, THRESHOLD_BYTES, THRESHOLD_SECONDS, 8e7)
        alone = found["mean_extent"] <= limit
        assert ((found["verdict"] == "as documented") == alone).all()
        waits = found["explanation"].str.contains("wait in the queue")
        assert waits.to_list() == (~alone).to_list()
        assert THRESHOLD_BYTES / fitted.effective_rate(8e7, limit) == pytest.approx(28800)

    def test_what_was_solved_for_is_no_agreement(self, fitted: Calibration) -> None:
        (row,) = validate(fitted).filter(verdict="solved for").to_dicts()
        assert row["modelled_seconds"] == pytest.approx(row["documented_seconds"])
        assert row["mean_extent"] not in EXTENTS

    def test_rates_are_those_of_the_profile(self) -> None:
        rates = Rates()
        assert (rates.initial, rates.incremental, rates.blob) == (
            20 * 10**6,
            80 * 10**6,
            60 * 10**6,
        )
        assert (rates.vault_restore, rates.queue_wait) == (30 * 10**6, 8 * 3600)

    def test_the_round_trip_that_would_explain_it(self, fitted: Calibration) -> None:
        trip = implied_latency(fitted, THRESHOLD_BYTES, THRESHOLD_SECONDS, 8e7, MIB)
        rate = fitted.effective_rate(8e7, MIB, request_latency=trip)
        assert THRESHOLD_BYTES / rate == pytest.approx(THRESHOLD_SECONDS)
        assert implied_latency(fitted, THRESHOLD_BYTES, THRESHOLD_SECONDS, 8e7, 512) == 0
        slow = validate(fitted, Rates(request_latency=trip))
        at = slow.filter(pl.col("mean_extent") == MIB)["modelled_seconds"][0]
        assert at == pytest.approx(THRESHOLD_SECONDS)

    def test_more_disks_at_equal_churn_are_faster(self, fitted: Calibration) -> None:
        found = validate(fitted).filter(relation="order")
        assert [name[:3] for name in found["point"]] == ["VM2", "VM3", "VM1"]
        assert found["modelled_seconds"].is_sorted()
        assert found["modelled_seconds"].n_unique() == 3
        assert (found["verdict"] == "as documented").all()

    def test_nonsense_is_refused(self, fitted: Calibration) -> None:
        with pytest.raises(InputError, match="rate of 0"):
            Rates(initial=0)
        with pytest.raises(InputError, match="negative"):
            Rates(request_latency=-1)
        with pytest.raises(InputError, match="take longer"):
            threshold_extent(fitted, 1e12, 3600, 8e7)


class TestCharts:
    def test_each_draws(self, fitted: Calibration) -> None:
        assert any("GB of changes" in t for t in texts(charts.to_svg(
            time_by_extent(synthetic(), fitted))))  # fmt: skip
        drawn = texts(charts.to_svg(service_throughput(fitted)))
        assert any("640 Mbps" in t for t in drawn)
        assert any("6.9 MB/s" in t for t in drawn)
        drawn = texts(charts.to_svg(documented_times(validate(fitted))))
        assert "first backup of 1 TB" in drawn

    def test_what_cannot_be_drawn_is_refused(self, fitted: Calibration) -> None:
        with pytest.raises(InputError, match="lack"):
            time_by_extent(pl.DataFrame({"a": [1]}), fitted)
        with pytest.raises(InputError, match="nothing to draw"):
            time_by_extent(synthetic().clear(), fitted)
        with pytest.raises(InputError, match="lack"):
            documented_times(synthetic())
        with pytest.raises(InputError, match="nothing to draw"):
            documented_times(validate(fitted).clear())


@pytest.fixture(scope="module")
def table() -> pl.DataFrame:
    return pl.read_parquet(NOTEBOOKS / SHIPPED)


class TestShipped:
    """The table and the fit that come with vmbk."""

    def test_the_fit_is_of_the_table(self, table: pl.DataFrame) -> None:
        shipped, again = Calibration.load(), fit_calibration(table)
        assert shipped.made == again.made
        assert shipped.made.table == digest(table)
        for one, other in zip(shipped.fits, again.fits, strict=True):
            assert (one.name, one.cells) == (other.name, other.cells)
            assert one.residual == pytest.approx(other.residual, rel=0.01)
            for mine, theirs in zip(one.costs, other.costs, strict=True):
                assert dataclasses.astuple(mine.estimate) == pytest.approx(
                    dataclasses.astuple(theirs.estimate), rel=0.01, abs=1e-15
                )
        for key in ("extent", "tracked_extent", "padding", "scanned"):
            assert dataclasses.astuple(getattr(shipped, key)) == pytest.approx(
                dataclasses.astuple(getattr(again, key)), rel=0.01, abs=1e-9
            )

    def test_the_command_writes_it_again(self, tmp_path: Path) -> None:
        path = tmp_path / "c.toml"
        assert main(["--fit-only", "-o", str(NOTEBOOKS), "--toml", str(path)]) == 0
        assert (
            path.read_text("utf-8").splitlines()[:3]
            == (CALIBRATION.read_text("utf-8").splitlines()[:3])
        )
        assert Calibration.load(path).made == Calibration.load().made

    def test_the_command_says_what_is_missing(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / SHIPPED).write_bytes(b"PAR1, or not")
        cases = (
            (["--fit-only", "-o", str(tmp_path / "none")], "there is no folder"),
            (["--fit-only", "-o", str(tmp_path)], "cannot read the measurements"),
            (["--scratch", str(tmp_path / "none"), "-o", str(tmp_path)], "there is no folder"),
        )
        for words, said in cases:
            with pytest.raises(SystemExit):
                main([*words, "--toml", str(tmp_path / "c.toml")])
            assert said in capsys.readouterr().err
        assert not (tmp_path / "c.toml").exists()

    def test_it_is_of_the_plan_and_every_backup_is_what_was_written(
        self, table: pl.DataFrame
    ) -> None:
        done = table.filter(pl.col("kind") != "first")
        rounds = done["round"].n_unique()
        assert len(done) == rounds * len(PLAN.cells)
        assert (done["sent_bytes"] >= done["written_bytes"]).all()
        alone = done.filter(pl.col("spread") != "holed")
        assert (alone["extents"] == alone["runs"]).all()

    def test_an_extent_costs_time_beyond_doubt(self) -> None:
        found = Calibration.load()
        assert found.extent.low > 0
        assert found.tracked_extent.low > 0
        assert found.scanned.high < 1  # a byte that is only read costs less than one that is sent
        assert found.fit("send").residual < 0.3

    def test_the_fit_meets_the_cells(self, table: pl.DataFrame) -> None:
        found, cells = Calibration.load(), cells_of(table)
        ratio = predicted(found.fit("send"), cells) / cells["transfer_seconds"].to_numpy()
        assert 0.8 < np.median(ratio) < 1.25

    def test_vmbk_itself_was_measured_on_one_two_and_four_disks(self, table: pl.DataFrame) -> None:
        found = measured_spread(table)
        assert found["disks"].unique().sort().to_list() == [1, 2, 4]
        assert (found["seconds"] > 0).all()
