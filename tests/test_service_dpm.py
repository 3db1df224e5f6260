"""A backup server on real images: two tiers, what each holds, and which one a restore takes."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.guest_files import fsck_is_clean
from tests.tools import require_tool
from vmbk import RawDisk, Vault, dataset_path, read_trace, replay
from vmbk.errors import InputError, IntegrityError, NotFoundError
from vmbk.service import dpm
from vmbk.service.dpm import BackupServer
from vmbk.service.dpm_groups import Member, ProtectionGroup, ServerRules, Tier, server_rules
from vmbk.service.plan import DAY as DAY_NS

HOUR_NS = DAY_NS // 24
KIB, MIB = 1 << 10, 1 << 20
SIZE = 3 * MIB + 512


def noise(length: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, length, np.uint8).tobytes()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    with RawDisk.create(tmp_path / "c.raw", SIZE) as disk:
        disk.write(200 * KIB, noise(MIB))
    return tmp_path / "c.raw"


@pytest.fixture
def server(tmp_path: Path):
    with (
        Vault.create(tmp_path / "local", tmp_path / "k1", durability="none") as local,
        Vault.create(tmp_path / "online", tmp_path / "k2", durability="none") as online,
    ):
        yield BackupServer(tmp_path / "server", local, online)


def group(*members: Member, disk_days: int = 5, online_days: int = 30) -> ProtectionGroup:
    return ProtectionGroup(
        "office",
        members,
        Tier(6 * HOUR_NS, 0, disk_days),
        Tier(DAY_NS, 22 * HOUR_NS, online_days),
    )


def change(path: Path, seed: int) -> bytes:
    with RawDisk(path, mode="rw") as disk:
        disk.write(int(np.random.default_rng(seed).integers(0, SIZE - 9000)), noise(9000, seed))
        disk.zero(64 * KIB * (seed % 40), 5000)
    return path.read_bytes()


# Two tiers


def test_an_ext4_machine_on_two_tiers(tmp_path, server):
    mke2fs = require_tool("mke2fs", "e2fsprogs")
    debugfs = require_tool("debugfs", "e2fsprogs")
    root, image = tmp_path / "root", tmp_path / "c.raw"
    root.mkdir()
    (root / "kept.bin").write_bytes(noise(200_000))
    subprocess.run([str(mke2fs), "-q", "-t", "ext4", "-d", str(root), str(image), "8M"], check=True)
    server.protect(group(Member("files", (f"c={image}",))))
    states = {}

    def work(at: int) -> None:
        new = tmp_path / f"{at}.bin"
        new.write_bytes(noise(20_000, at % 1000))
        order = f"write {new} {at}.bin"
        subprocess.run(
            [str(debugfs), "-w", "-R", order, str(image)], check=True, capture_output=True
        )
        states[at] = image.read_bytes()

    run = server.run(2 * DAY_NS, work)
    assert [p.tier for p in run.points] == (["disk"] * 4 + ["online"]) * 2
    for point in run.points:
        done = server.restore("files", tmp_path / "out", now=point.at_ns, tier=point.tier)
        assert done.point == point
        assert done.disks[0].path.read_bytes() == states[point.content_ns]
        assert fsck_is_clean(done.disks[0].path)
        assert (server.folder / "replicas" / "files" / "c.raw").exists()
    # The online tier copies the disk tier's last point, four hours old, and not the machine.
    assert [p.at_ns - p.content_ns for p in run.points if p.tier == "online"] == [4 * HOUR_NS] * 2
    assert run.worst_loss("disk") == 6 * HOUR_NS
    assert run.worst_loss("online") == DAY_NS + 4 * HOUR_NS
    first, second = (p for p in run.points if p.tier == "online")
    assert 0 < second.sent_bytes < first.sent_bytes // 2
    assert second.changed_bytes < sum(p.changed_bytes for p in run.points[5:9])
    assert server.local.check(read_data=True).ok
    assert server.online.check(read_data=True).ok


def test_a_captured_workload_and_the_bytes_of_each_tier(tmp_path, server):
    trace = read_trace(dataset_path("ext4-log"))
    path = tmp_path / "d.raw"
    with RawDisk.create(path, 67108864):
        pass
    done = [0]

    def work(_: int) -> None:
        with RawDisk(path, mode="rw") as disk:
            stop = min(done[0] + len(trace) // 9, len(trace))
            replay(trace, disk, start=done[0], stop=stop)
            done[0] = stop

    server.protect(group(Member("logs", (str(path),))))
    run = server.run(2 * DAY_NS, work)
    frame = run.frame()
    assert frame.height == len(run.points) == 10
    assert run.total("disk", "sent_bytes") >= run.total("online", "sent_bytes") > 0
    assert frame["sent_bytes"].sum() == sum(run.total(t, "sent_bytes") for t in dpm.TIERS)
    assert "worst loss" in run._repr_html_()
    json.dumps(run.to_dict())
    out = server.restore("logs", tmp_path / "out", now=2 * DAY_NS, tier="online")
    last = server.restore("logs", tmp_path / "out2", now=2 * DAY_NS)
    assert (out.point.tier, last.point.tier) == ("online", "disk")
    if out.point.content_ns == last.point.content_ns:
        assert out.disks[0].digest == last.disks[0].digest
    qemu = require_tool("qemu-img", "qemu-utils")
    copy = server.folder / "replicas" / "logs" / "d.raw"
    command = [str(qemu), "compare", "-f", "raw", "-F", "raw", str(copy), str(last.disks[0].path)]
    assert subprocess.run(command, capture_output=True).returncode == 0


def test_restores_take_the_nearest_tier_that_holds_the_point(tmp_path, server, image):
    server.protect(group(Member("m", (str(image),)), disk_days=2, online_days=9))
    states = {}
    for day in range(4):
        states[day] = change(image, day)
        server.back_up_to_disk("m", day * DAY_NS)
        server.back_up_online("m", day * DAY_NS + HOUR_NS)
    now = 3 * DAY_NS + 2 * HOUR_NS

    def restored(day: int, **words):
        done = server.restore("m", tmp_path / "out", now=now, wanted=day * DAY_NS + 9, **words)
        assert done.disks[0].path.read_bytes() == states[day]
        assert done.lost_ns == 9
        return done.point.tier

    assert [restored(day) for day in range(4)] == ["online", "online", "disk", "disk"]
    assert restored(3, tier="online") == "online"
    with pytest.raises(NotFoundError, match="no point of 'm' holds"):
        restored(1, tier="disk")
    held = [(p.tier, p.content_ns // DAY_NS) for p in server.points("m", now)]
    assert held == [("online", 0), ("online", 1), ("disk", 2), ("online", 2), ("disk", 3),
                    ("online", 3)]  # fmt: skip
    # The newest is kept, however old it is.
    late = [(p.tier, p.content_ns // DAY_NS) for p in server.points("m", 99 * DAY_NS)]
    assert late == [("disk", 3), ("online", 3)]
    with pytest.raises(NotFoundError, match="ask for a later time"):
        server.restore("m", tmp_path / "out", now=0, wanted=-1)


@pytest.mark.parametrize("damage", ["packs", "points", "everything"])
def test_when_the_servers_storage_is_lost_the_online_tier_restores(tmp_path, server, image, damage):
    server.protect(group(Member("m", (str(image),))))
    then = change(image, 1)
    server.back_up_to_disk("m", 0)
    server.back_up_online("m", HOUR_NS)
    change(image, 2)
    server.back_up_to_disk("m", 2 * HOUR_NS)
    root = server.local.path
    shutil.rmtree(root if damage == "everything" else root / damage)
    done = server.restore("m", tmp_path / "out", now=3 * HOUR_NS)
    assert done.point.tier == "online"
    assert done.disks[0].path.read_bytes() == then
    assert done.lost_ns == 3 * HOUR_NS
    assert len(done.passed_over) == 2
    assert all(why.startswith("disk point of") for why in done.passed_over)
    assert done.to_dict()["passed_over"] == list(done.passed_over)
    assert "from the tier online: 3 h 0 min lost" in done._repr_html_()
    assert "<td>2</td><td>1</td>" in server._repr_html_()
    shutil.rmtree(server.online.path / "packs")
    with pytest.raises(NotFoundError, match="holds what it was"):
        server.restore("m", tmp_path / "out", now=3 * HOUR_NS)


def test_all_disks_of_a_bare_metal_member(tmp_path, server, image):
    other = tmp_path / "d.raw"
    shutil.copyfile(image, other)
    server.protect(group(Member("m", (str(image), str(other)), protects="bare_metal")))
    states = change(image, 1), change(other, 2)
    server.back_up_to_disk("m", 0)
    server.back_up_online("m", 0)
    for tier in dpm.TIERS:
        done = server.restore("m", tmp_path / tier, now=1, tier=tier)
        assert tuple(d.path.read_bytes() for d in done.disks) == states
    with pytest.raises(InputError, match="all disks or none"):
        server.restore("m", tmp_path / "out", now=1, disks=["c"])
    server2 = BackupServer(server.folder, server.local, server.online)
    server2.protect(group(Member("m", (str(image), str(other)))))
    done = server2.restore("m", tmp_path / "some", now=1, disks=["d"])
    assert [d.path.read_bytes() for d in done.disks] == [states[1]]
    with pytest.raises(InputError, match="no such disks"):
        server2.restore("m", tmp_path / "some", now=1, disks=["x"])


# Rules


def test_servers_and_machines_are_at_the_same_place(tmp_path, server):
    words = (tmp_path / "s", server.local, server.online)
    with pytest.raises(InputError, match=r"on-premises and cannot protect 'vm', which is in Azure"):
        server.protect(group(Member("vm", ("x",), place="azure")))
    in_azure = BackupServer(*words, place="azure")
    in_azure.protect(group(Member("vm", ("x",), place="azure")))
    with pytest.raises(InputError, match=r"in Azure and cannot protect 'm', which is on-premises"):
        in_azure.protect(group(Member("m", ("x",))))
    with pytest.raises(InputError, match="a dpm server cannot protect Azure VMs"):
        BackupServer(*words, kind="dpm", place="azure")
    BackupServer(*words, kind="dpm")
    for wrong in ({"kind": "veeam"}, {"place": "moon"}, {"name": "../x"}):
        with pytest.raises(InputError, match=next(iter(wrong.values())).replace(".", r"\.")):
            BackupServer(*words, **wrong)
    server.protect(group(Member("m", ("x",))))
    with pytest.raises(InputError, match="in a protection group already"):
        server.protect(group(Member("m", ("x",))))
    with pytest.raises(InputError, match="too long a name"):
        server.protect(group(Member("m" * 60, ("x",))))


def test_labels(server, image):
    """An application is asked only where it is protected as one, and may not answer."""
    members = [Member(p, (str(image),), protects=p) for p in server_rules().protects]
    server.protect(group(*members))
    found = {}
    for name in server_rules().protects:
        found[name] = server.back_up_to_disk(name, 0).consistency
        assert server.back_up_to_disk(name, 1, writers_ok=False).consistency == "filesystem"
    assert {n for n, label in found.items() if label == "application"} == {"application", "sql"}
    assert set(found.values()) == {"application", "filesystem"}
    server.back_up_to_disk("sql", 2)
    online = server.back_up_online("sql", 3)
    assert online.consistency == "application"  # what the disk point is
    point = server.online.point(online.points[0][1])
    assert point.consistency == "filesystem"  # what the MARS agent can promise


def test_sql_is_not_incremental_on_the_servers_disks(server, image):
    server.protect(group(Member("db", (str(image),), protects="sql"), Member("m", (f"d={image}",))))
    for at in (0, 1):
        change(image, at)
        whole, part = (server.back_up_to_disk(n, at) for n in ("db", "m"))
        online = [server.back_up_online(n, at) for n in ("db", "m")]
        assert whole.changed_bytes == SIZE
        assert (part.changed_bytes == SIZE) == (at == 0)
        assert online[0].changed_bytes == online[1].changed_bytes
    assert online[0].changed_bytes < 30_000


def test_what_cannot_be_asked_of_a_server(server, image):
    server.protect(group(Member("m", (str(image),))))
    for call in (server.back_up_to_disk, server.back_up_online):
        with pytest.raises(InputError, match="no group protects 'x'"):
            call("x", 0)
        with pytest.raises(InputError, match="is no time"):
            call("m", -1)
    with pytest.raises(InputError, match="no copy of 'm' yet"):
        server.back_up_online("m", 0)
    server.back_up_to_disk("m", 5)
    with pytest.raises(InputError, match="before the last disk point, at 5"):
        server.back_up_to_disk("m", 4)
    for hour in range(3):
        server.back_up_online("m", hour)
    with pytest.raises(InputError, match="3 a day at most"):
        server.back_up_online("m", 9)
    with pytest.raises(InputError, match="'tape' is no tier"):
        server.points("m", 0, "tape")


# Failures


def fail(*_, **__):
    raise OSError("injected")


@pytest.mark.parametrize(
    ("name", "after"),
    [("backup", 0), ("backup", 1), ("copy_extents", 0), ("copy_extents", 1), ("save_file", 0),
     ("save_file", 1), ("remove_files", 1)],
)  # fmt: skip
def test_both_tiers_are_right_after_a_failure(tmp_path, server, image, monkeypatch, name, after):
    server.protect(group(Member("m", (str(image),))))
    states = {0: change(image, 1)}
    server.back_up_to_disk("m", 0)
    step = getattr(dpm, name)

    def failing(*args, **kwargs):
        if after:
            step(*args, **kwargs)
        fail()

    change(image, 2)
    with monkeypatch.context() as patch:
        patch.setattr(dpm, name, failing)
        with pytest.raises(OSError, match="injected"):
            server.back_up_to_disk("m", 1)
    # Online goes on with the last point that the server knows of.
    assert server.back_up_online("m", 2).content_ns == 0
    states[3] = change(image, 3)
    server.back_up_to_disk("m", 3)
    server.back_up_online("m", 4)
    for point in server.points("m", 9):
        done = server.restore(
            "m", tmp_path / "out", now=9, wanted=point.content_ns, tier=point.tier
        )
        assert done.disks[0].path.read_bytes() == states[point.content_ns]
    assert len(server.points("m", 9)) == 4
    assert (server.folder / "replicas" / "m" / "c.raw").read_bytes() == states[3]


def test_the_ledger_outlives_the_server(tmp_path, server, image):
    server.protect(group(Member("m", (str(image),))))
    server.back_up_to_disk("m", 0)
    server.back_up_online("m", 1)
    again = BackupServer(server.folder, server.local, server.online)
    again.protect(group(Member("m", (str(image),))))
    assert again.points("m", 1) == server.points("m", 1)
    good = json.loads((server.folder / "ledger.json").read_text())
    for wrong in (
        "{", "{}", "[1]", json.dumps([{**good[0], "at_ns": "1"}]),
        json.dumps([{**good[0], "points": [["c"]]}]), json.dumps([{**good[0], "tier": "tape"}]),
        json.dumps([{"member": "m"}]), "[" * 5000,
    ):  # fmt: skip
        (server.folder / "ledger.json").write_text(wrong)
        with pytest.raises(IntegrityError, match=r"ledger .* is damaged"):
            BackupServer(server.folder, server.local, server.online)


@settings(max_examples=8)
@given(
    st.lists(
        st.tuples(st.integers(0, SIZE - 1), st.integers(1, 90_000), st.sampled_from(dpm.TIERS)),
        min_size=1,
        max_size=6,
    )
)
def test_every_point_of_both_tiers_restores(tmp_path_factory, steps):
    tmp_path = tmp_path_factory.mktemp("dpm")
    image = tmp_path / "c.raw"
    with RawDisk.create(image, SIZE):
        pass
    with (
        Vault.create(tmp_path / "l", tmp_path / "k1", durability="none") as local,
        Vault.create(tmp_path / "o", tmp_path / "k2", durability="none") as online,
    ):
        server = BackupServer(tmp_path / "server", local, online)
        server.protect(group(Member("m", (str(image),)), disk_days=90, online_days=90))
        states = {0: image.read_bytes()}
        made = [server.back_up_to_disk("m", 0)]
        for day, (offset, length, tier) in enumerate(steps, start=1):
            with RawDisk(image, mode="rw") as disk:
                disk.write(offset, noise(min(length, SIZE - offset), day))
            states[day * DAY_NS] = image.read_bytes()
            back_up = server.back_up_to_disk if tier == "disk" else server.back_up_online
            made.append(back_up("m", day * DAY_NS))
        for point in made:
            done = server.restore("m", tmp_path / "out", now=point.at_ns, tier=point.tier)
            assert done.point == point
            assert done.disks[0].path.read_bytes() == states[point.content_ns]
    shutil.rmtree(tmp_path)


# Declarations


DECLARED = {
    "name": "office",
    "disk": {"every": "6h", "days": 5},
    "online": {"every": "24h", "start": "22:00", "days": 30},
    "members": [{"name": "m", "disks": ["c=c.raw"]}],
}


def test_a_declared_group():
    found = ProtectionGroup.parse(DECLARED, "group")
    assert found == group(Member("m", ("c=c.raw",)))
    assert found.online.slots(3 * DAY_NS).tolist() == [(22 + 24 * d) * HOUR_NS for d in range(3)]
    assert found.disk.slots(0).tolist() == []


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"disk": {"every": "6h", "days": 0}}, "group.disk.days"),
        ({"disk": {"every": "-6h", "days": 1}}, "group.disk.every"),
        ({"online": {"every": "6h", "days": 1}}, "group.online.every asks for more than 3"),
        ({"members": []}, "group.members is empty"),
        ({"members": [{"name": "../m", "disks": ["c"]}]}, r"group.members\[0\].name"),
        ({"members": [{"name": "m", "disks": []}]}, "names no disk"),
        ({"members": 2 * DECLARED["members"]}, "two are named 'm'"),
        ({"members": [{"name": "m", "disks": ["c"], "place": "moon"}]}, r"members\[0\].place"),
        ({"members": [{"name": "m", "disks": ["c"], "protects": "sql", "os": "linux"}]}, "VSS"),
        ({"extra": 1}, "group.extra: there is no such field"),
    ],
)
def test_a_wrong_group_names_its_field(wrong, match):
    with pytest.raises(InputError, match=match):
        ProtectionGroup.parse({**DECLARED, **wrong}, "group")


def test_rules_of_servers_are_read_strictly():
    rules = server_rules()
    assert rules.places == ("on-premises", "azure")
    table = {k: {"value": list(v), "source": "s"} for k, v in vars(rules).items()}
    assert ServerRules.parse(table, "server") == rules
    with pytest.raises(InputError, match=r"server\.aware is missing"):
        ServerRules.parse({k: v for k, v in table.items() if k != "aware"}, "server")
    with pytest.raises(InputError, match=r"server\.places\.source is missing"):
        ServerRules.parse({**table, "places": {"value": []}}, "server")
