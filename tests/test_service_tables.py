"""`vmbk service capacity` and `restore`: the same numbers as the functions, told in tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vmbk.cli.program import Answer, run
from vmbk.service.capacity import capacity

TEN = """
name = "ten"
profile = "{era}"
days = 3
[[accounts]]
name = "a"
guest_egress = "100MB/s"
[[vms]]
count = {count}
name = "vm-{{n}}"
disks = [{{ name = "d", size = "1TiB", used = "900GB", churn = "20GB", account = "a" }},
         {{ name = "e", size = "1TiB", used = "900GB", churn = "20GB", account = "a" }}]
"""


def fleet(folder: Path, count: int = 10, era: str = "instant") -> str:
    """A scenario of equal machines on one account."""
    path = folder / "ten.toml"
    path.write_text(TEN.format(count=count, era=era))
    return str(path)


def told(*words: object) -> dict[str, Any]:
    answer = run(["service", *map(str, words), "--json"])
    assert answer.code == 0, answer
    reply: dict[str, Any] = json.loads(answer.out)
    return reply


def text(*words: object) -> str:
    answer = run(["service", *map(str, words)])
    assert answer.code == 0, answer
    return answer.out


def refused(*words: object) -> Answer:
    answer = run(["service", *map(str, words)])
    assert answer.code == 2, answer
    return answer


class TestCapacity:
    def test_it_is_the_function(self, tmp_path: Path) -> None:
        path = fleet(tmp_path)
        for backup in ("incremental", "initial", "checksum"):
            reply = told("capacity", path, "--slot", "30m", "--backup", backup)
            found = capacity(path, slot="30m", backup=backup)
            assert reply == json.loads(json.dumps(found.to_dict()))
        assert len(reply["slots"]) == 48

    def test_what_people_see(self, tmp_path: Path) -> None:
        path = fleet(tmp_path, 12)
        shown = text("capacity", path, "--backup", "checksum")
        found = capacity(path, backup="checksum")
        assert f"{found.slots['share_egress'].max():.0%}" in shown
        assert f"{found.slots['share_requests'].max():.0%}" in shown
        rows = [line for line in shown.splitlines() if line.startswith("vm-")]
        assert len(rows) == 10
        assert "… and 2 more" in shown
        assert found.findings
        assert all(each.message in shown for each in found.findings[:12])

    def test_managed_disks_have_no_account(self, tmp_path: Path) -> None:
        path = tmp_path / "one.toml"
        path.write_text('days = 2\n[[vms]]\nname = "vm"\n'
                        'disks = [{ name = "d", size = "64GiB", used = "9GB" }]\n')  # fmt: skip
        shown = text("capacity", path)
        assert "no account" in shown
        assert "no findings" in shown

    @pytest.mark.parametrize("slot", ["7m", "2h", "soon"])
    def test_bad_slots(self, slot: str, tmp_path: Path) -> None:
        assert slot in refused("capacity", fleet(tmp_path), "--slot", slot).err


class TestRestore:
    def test_ten_machines_into_ten_accounts_are_not_slower_than_into_one(
        self, tmp_path: Path
    ) -> None:
        path, busy = fleet(tmp_path), ("--guest-writes", "2.9GB/s")
        one, ten = (told("restore", path, "--accounts", n, *busy) for n in (1, 10))
        assert one["jobs"] == ten["jobs"] == 10
        assert ten["makespan_s"] < one["makespan_s"]  # ingress is short in one
        assert {row["account"] for row in ten["restores"]} == {f"target-{i}" for i in range(1, 11)}
        calm = [told("restore", path, "--accounts", n)["makespan_s"] for n in (1, 10)]
        assert calm[1] <= calm[0]
        managed = told("restore", path)
        assert all(row["account"] is None and row["slowed"] == 0 for row in managed["restores"])

    def test_what_people_see(self, tmp_path: Path) -> None:
        shown = text("restore", fleet(tmp_path), "--accounts", 1)
        assert "10 machines of 16.4 TiB from the vault" in shown
        assert "into 1 storage account\n" in shown
        assert "takes several machines; use one for each" in shown
        assert "10 Completed" in shown
        for line in ("wait in the queue", "copy", "making the machine", "all are back after"):
            assert line in shown
        one = text("restore", fleet(tmp_path), "--vm", "vm-3")
        assert "1 machine of" in one
        assert "managed disks" in one

    def test_some_of_them_from_snapshots(self, tmp_path: Path) -> None:
        reply = told("restore", fleet(tmp_path), "--vm", "vm-2", "--vm", "vm-1", "--vm", "vm-2",
                     "--tier", "snapshot")  # fmt: skip
        assert sorted(row["vm"] for row in reply["restores"]) == ["vm-1", "vm-2"]
        assert all(row["copy"] == 0 for row in reply["restores"])
        assert 20 * 60 <= reply["makespan_s"] <= 30 * 60

    def test_an_era_without_snapshots_refuses_them(self, tmp_path: Path) -> None:
        shown = text("restore", fleet(tmp_path, era="2017"), "--tier", "snapshot")
        assert "10 Refused" in shown
        assert "no points in tier snapshot" in shown
        assert "all are back" not in shown

    def test_the_scenario_says_how_restores_go(self, tmp_path: Path) -> None:
        path = Path(fleet(tmp_path))
        usual = told("restore", path)["makespan_s"]
        path.write_text(path.read_text() + '[restores]\nsegment_rate = "seen"\n')
        assert told("restore", path)["makespan_s"] < usual

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--vm", "nobody"], "no VM 'nobody'"),
            (["--accounts", "-1"], "'-1'"),
            (["--accounts", "1", "--guest-writes", "much"], "'much' is not a rate"),
            (["--guest-writes", "1MB/s"], "managed disks share no account"),
            (["--tier", "archive"], "archive"),
        ],
    )
    def test_bad_words(self, words: list[str], message: str, tmp_path: Path) -> None:
        assert message in refused("restore", fleet(tmp_path), *words).err
