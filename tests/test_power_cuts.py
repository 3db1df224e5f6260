"""The study of power cuts and its charts: what is counted, and that what is shipped comes again."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from tests.test_charts import chart_rows, texts
from tests.tools import require_tool
from vmbk import charts
from vmbk.consistency import LADDER, rates
from vmbk.errors import InputError
from vmbk.study.power_cuts import PLAN, SHIPPED, SHIPPED_VAULT, VAULT_PLAN, Cuts, study_power_cuts

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
WORDS = ("clean", "replayed", "recovered", "lost", "corrupt", "damaged", "no-boot", "none")


def cuts() -> pl.DataFrame:
    """Outcomes of two models: 8 and 16 states, of which the second lost commits."""
    rows = [
        {
            "capture": "c", "model": model, "label": "crash", "freeze": "", "honest": honest,
            "outcome": WORDS[i % len(words)] if words else "clean", "requests_since_flush": i,
            "commits_acknowledged": 10 + i, "commits_lost": i if not honest else 0,
        }
        for model, honest, states, words in (
            ("flush", True, 8, WORDS[:3]), ("lying", False, 16, WORDS),
        )
        for i in range(states)
    ]  # fmt: skip
    return pl.DataFrame(rows)


@pytest.mark.parametrize("name", ["outcome_shares", "since_flush", "lost_commits"])
def test_every_chart_draws_and_has_a_title(name: str) -> None:
    svg = charts.to_svg(getattr(charts, name)(cuts()))
    said = texts(svg)
    assert any("crash states" in text or "commits" in text for text in said)


def test_shares_are_those_of_rates() -> None:
    chart = charts.outcome_shares(cuts(), "model")
    rows = chart_rows(chart)
    expected = rates(cuts(), ["model"])
    assert {(r["panel"].split()[0], r["outcome"]): r["states"] for r in rows} == {
        (m, o): n for m, o, n in expected.select("model", "outcome", "states").rows()
    }
    assert [r["outcome"] for r in rows if r["panel"].startswith("lying")] == [
        name for name in LADDER if name in WORDS[:-1]
    ]


def test_every_state_is_in_one_bar_of_those_since_the_flush() -> None:
    rows = chart_rows(charts.since_flush(cuts()))
    judged = cuts().filter(pl.col("outcome") != "none")
    assert sum(r["states"] for r in rows) == len(judged)
    late = [r for r in rows if r["since"] == "8–15" and "lying" in r["panel"]]
    assert sum(r["states"] for r in late) == len(
        judged.filter(pl.col("requests_since_flush").is_between(8, 15), ~pl.col("honest"))
    )
    assert sum(r["share"] for r in late) == pytest.approx(1)


def test_lost_commits_are_counted_in_classes() -> None:
    rows = {(r["model"], r["lost"]): r["states"] for r in chart_rows(charts.lost_commits(cuts()))}
    left_out = ["none", "corrupt", "damaged"]
    judged = cuts().filter(~pl.col("outcome").is_in(left_out))
    lying = judged.filter(model="lying")["commits_lost"].to_list()
    bounds = {
        "none": (0, 0),
        "1": (1, 1),
        "2 or 3": (2, 3),
        "4 to 9": (4, 9),
        "10 or more": (10, 99),
    }
    expected = {
        ("lying", name): n
        for name, (low, high) in bounds.items()
        if (n := sum(low <= lost <= high for lost in lying))
    }
    assert rows == expected | {("flush", "none"): len(judged.filter(model="flush"))}


@pytest.mark.parametrize("name", ["outcome_shares", "since_flush", "lost_commits"])
def test_what_cannot_be_drawn_is_refused(name: str) -> None:
    draw = getattr(charts, name)
    with pytest.raises(InputError, match="lack"):
        draw(pl.DataFrame({"label": ["crash"]}))
    with pytest.raises(InputError, match="nothing to draw"):
        draw(cuts().with_columns(outcome=pl.lit("none")))


def test_bad_plans_are_refused() -> None:
    with pytest.raises(InputError, match="share of 0"):
        study_power_cuts(share=0)
    with pytest.raises(InputError, match="nothing to cut"):
        study_power_cuts([])


def test_the_study_says_what_made_it() -> None:
    require_tool("e2fsck", package="e2fsprogs")
    require_tool("debugfs", package="e2fsprogs")
    plan = [Cuts("ext4-sqlite", "flush", 4), Cuts("ext4-sqlite", "lying", 6, honest=False)]
    found = study_power_cuts(plan, seed=3)
    assert found["model"].value_counts().sort("model")["count"].to_list()[0] == 4
    assert found.filter("honest")["outcome"].is_in(["clean", "replayed", "recovered"]).all()
    assert found["seed"].unique().to_list() == [3]
    assert found["version"].str.len_chars().min() > 0  # type: ignore[operator]
    assert found["digest"].n_unique() == len(found)  # states are made once
    again = study_power_cuts(plan, seed=3)
    left_out = ["seconds", "provenance", "commit"]
    assert found.drop(left_out).equals(again.drop(left_out))


class TestShipped:
    """The tables that come with vmbk."""

    @pytest.fixture
    def table(self) -> pl.DataFrame:
        return pl.read_parquet(NOTEBOOKS / SHIPPED)

    def test_it_is_of_the_plan(self, table: pl.DataFrame) -> None:
        planned = {(c.capture, c.model, c.honest) for c in PLAN}
        assert set(table.select("capture", "model", "honest").unique().rows()) == planned
        assert len(table) >= 5000
        assert table["capture"].n_unique() >= 6
        assert table["seed"].unique().to_list() == [0]
        assert not table["commit"].str.contains("dirty").any()

    def test_honest_disks_are_not_damaged_and_lose_nothing(self, table: pl.DataFrame) -> None:
        durable = table.filter("honest", "durable")
        whole = durable.filter(pl.col("model") != "torn")
        assert whole["filesystem"].is_in(["none", "clean", "replayed"]).all()
        assert not whole["boot"].is_in(["no-boot"]).any()
        assert not (durable["filesystem"] == "damaged").any()
        assert durable["commits_lost"].sum() == 0
        assert durable["database"].is_in(["none", "clean", "recovered"]).all()

    @pytest.mark.parametrize(
        ("capture", "model"),
        [("ext4-sqlite", "lying"), ("xfs-sqlite", "lying"), ("ext4-postgresql", "lying"),
         ("ext4-two-disks", "apart"), ("ext4-sqlite-off", "flush")],
    )  # fmt: skip
    def test_the_others_do(self, table: pl.DataFrame, capture: str, model: str) -> None:
        found = table.filter(capture=capture, model=model)
        assert (found["commits_lost"] > 0).sum() + (found["database"] == "corrupt").sum() > 0

    def test_the_vault_loses_no_acknowledged_point(self) -> None:
        table = pl.read_parquet(NOTEBOOKS / SHIPPED_VAULT)
        assert set(table["model"]) == {c.model for c in VAULT_PLAN}
        honest = table.filter("honest")
        assert honest["points_lost"].sum() == 0
        assert honest["vault"].is_in(["none", "opens"]).all()
        assert (table.filter(~pl.col("honest"))["points_lost"] > 0).any()
