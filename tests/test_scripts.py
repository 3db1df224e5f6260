"""Pre- and post-scripts: real ones, with real timeouts and signals, and what becomes of the job."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmbk.consistency import scripts as module
from vmbk.consistency.script_codes import (
    CODES,
    DOCUMENTED,
    EXTENSION,
    Behaviour,
    behaviour_of,
    differences,
)
from vmbk.consistency.script_config import ScriptConfig, ScriptConfigError, check_scripts
from vmbk.consistency.script_result import LABELS, STATES, Attempt, SnapshotRun
from vmbk.consistency.script_run import ScriptResult
from vmbk.consistency.scripts import take_snapshot
from vmbk.errors import InputError

ME = os.geteuid()

TEMPLATE = {
    "pluginName": "ScriptRunner",
    "preScriptLocation": "",
    "postScriptLocation": "",
    "preScriptParams": ["", ""],
    "postScriptParams": ["", ""],
    "preScriptNoOfRetries": 0,
    "postScriptNoOfRetries": 0,
    "timeoutInSeconds": 30,
    "continueBackupOnFailure": True,
    "fsFreezeEnabled": True,
}


@dataclass
class FakeFreezer:
    """Freezes nothing and says what it was told to say."""

    code: int = 0
    thaw_code: int = 0
    frozen: bool = False
    calls: int = 0
    detail: str = ""

    def freeze(self) -> int:
        self.frozen = not self.code
        self.calls += 1
        return self.code

    def thaw(self) -> int:
        if not self.frozen:
            return 0
        self.frozen = False
        return self.thaw_code


class World:
    """A folder with a configuration and two scripts, of which each run is noted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "VMSnapshotScriptPluginConfig.json"
        self.script("pre", "exit 0")
        self.script("post", "exit 0")
        self.configure()

    def script(self, name: str, body: str, mode: int = 0o700) -> None:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\necho {name} >> {self.folder}/log\n{body}\n")
        path.chmod(mode)

    def configure(self, **values: Any) -> None:
        self.write(json.dumps(
            {
                "preScriptLocation": str(self.folder / "pre"),
                "postScriptLocation": str(self.folder / "post"),
                "ScriptsExecutionPollTimeSeconds": 1,
                "timeoutInSeconds": 1800,  # 36 s here: the machine may be busy
                **values,
            }
        ))  # fmt: skip

    def write(self, text: str | bytes) -> None:
        self.config.write_bytes(text.encode() if isinstance(text, str) else text)
        self.config.chmod(0o600)

    @property
    def log(self) -> list[str]:
        path = self.folder / "log"
        return path.read_text().split() if path.exists() else []

    def run(self, snapshot: Any = None, **settings: Any) -> SnapshotRun[Any]:
        """A run in which a second of the configuration takes 20 ms."""
        (self.folder / "log").unlink(missing_ok=True)

        def take() -> str:
            with (self.folder / "log").open("a") as log:
                log.write("snapshot\n")
            return "taken"

        settings = {"freezer": FakeFreezer(), "owner": ME, "second": 0.02} | settings
        return take_snapshot(self.config, snapshot or take, **settings)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Checked afterwards to have left no process behind."""
    yield World(tmp_path)
    until = time.monotonic() + 10
    while (left := running(tmp_path)) and time.monotonic() < until:
        time.sleep(0.02)
    assert left == []


def running(folder: Path) -> list[str]:
    """Processes that name a folder in their command line or run in a script of it."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes()
        except OSError:
            continue
        if str(folder).encode() in words and int(file.parent.name) != os.getpid():
            found.append(words.decode("utf-8", "replace"))
    return found


# The configuration


def parse(text: str | bytes, behaviour: str | Behaviour = "documented") -> ScriptConfig:
    data = text.encode() if isinstance(text, str) else text
    return ScriptConfig.parse(data, behaviour=behaviour)


def test_the_template_and_the_defaults() -> None:
    config = parse(json.dumps(TEMPLATE))
    assert (config.pre_location, config.pre_params, config.notes) == ("", ("", ""), ())
    assert config == replace(
        parse('{"preScriptLocation": "", "postScriptLocation": ""}'),
        pre_params=("", ""),
        post_params=("", ""),
    )
    assert config.plugin_name == "ScriptRunner"
    assert (config.pre_retries, config.post_retries) == (0, 0)
    assert (config.timeout_s, config.poll_s, config.app_name) == (30, 3, "")
    assert config.continue_on_failure
    assert config.freeze_enabled


def test_every_field_is_read() -> None:
    config = parse(json.dumps({
        "pluginName": "Other", "preScriptLocation": "/a", "postScriptLocation": "/b",
        "preScriptParams": ["x", "ü y"], "postScriptParams": ["z"], "preScriptNoOfRetries": 2,
        "postScriptNoOfRetries": 3, "timeoutInSeconds": 1801, "continueBackupOnFailure": False,
        "fsFreezeEnabled": False, "ScriptsExecutionPollTimeSeconds": 6, "appName": "db",
        "ScriptsExpectedPermissions": "700", "fsFreezeenabled": 1,
    }))  # fmt: skip
    assert config == ScriptConfig(
        "/a", "/b", "Other", ("x", "ü y"), ("z",), 2, 3, 1800, False, False, 3, "db"
    )
    assert config.notes == (
        "timeoutInSeconds is 1801: it is cut to 1800",
        "ScriptsExecutionPollTimeSeconds is 6, not 1 to 5: it is 3",
        "the field 'ScriptsExpectedPermissions' is not known and ignored",
        "the field 'fsFreezeenabled' is not known and ignored: is fsFreezeEnabled meant?",
        "pluginName is 'Other', not 'ScriptRunner'",
    )


BOTH = '"preScriptLocation": "/a", "postScriptLocation": "/b"'


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("", "is no JSON"),
        ("{", "is no JSON"),
        (b"\xff{}", "is no JSON"),
        ("\ufeff{" + BOTH + "}", "is no JSON"),
        ("[" * 60_000, "is no JSON"),
        ('{"timeoutInSeconds": ' + "9" * 5000 + "}", "is no JSON"),
        (b" " * (64 << 10) + b"{}", "over 65536 B"),
        ("[]", r"is \[\], no object"),
        ("null", "is None, no object"),
        ("{}", "has no preScriptLocation"),
        ('{"preScriptLocation": "/a"}', "has no postScriptLocation"),
        ('{"preScriptLocation": null, "postScriptLocation": "/b"}', "is None, no text"),
        ('{"preScriptLocation": "/a\\u0000", "postScriptLocation": "/b"}', "no text"),
        ('{"preScriptLocation": "/\\ud800", "postScriptLocation": "/b"}', "no text"),
        ("{" + BOTH + ', "preScriptParams": "x"}', "is 'x', no list of texts"),
        ("{" + BOTH + ', "preScriptParams": [1]}', "is 1, no text"),
        ("{" + BOTH + ', "preScriptNoOfRetries": -1}', "is -1, no number of retries"),
        ("{" + BOTH + ', "postScriptNoOfRetries": true}', "is True, no number of retries"),
        ("{" + BOTH + ', "timeoutInSeconds": "30"}', "is '30', no number of seconds"),
        ("{" + BOTH + ', "timeoutInSeconds": 0}', "is 0, less than a second"),
        ("{" + BOTH + ', "timeoutInSeconds": NaN}', "NaN is no JSON"),
        ("{" + BOTH + ', "timeoutInSeconds": 1e999}', "is inf, no number of seconds"),
        ("{" + BOTH + ', "continueBackupOnFailure": "false"}', "neither true nor false"),
        ("{" + BOTH + ', "ScriptsExecutionPollTimeSeconds": 2.5}', "is 2.5, no whole number"),
        ("{" + BOTH + ', "appName": 3}', "is 3, no text"),
        ("{" + BOTH + ', "appName": "a", "appName": "b"}', "gives 'appName' twice"),
    ],
)
def test_a_configuration_that_is_wrong(text: str | bytes, quoted: str) -> None:
    with pytest.raises(ScriptConfigError, match=quoted) as caught:
        parse(text)
    assert caught.value.code == 305
    assert len(caught.value.message) < 400


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=3,
)


@given(st.dictionaries(st.sampled_from([*TEMPLATE, "appName", "other"]), JSON), st.booleans())
def test_any_object_is_read_or_refused(value: dict[str, Any], documented: bool) -> None:
    try:
        config = parse(json.dumps(value), DOCUMENTED if documented else EXTENSION)
    except ScriptConfigError as error:
        assert error.code in (304, 305)  # noqa: PT017
        assert not (documented and error.code == 304)  # noqa: PT017
    else:
        assert 0 <= config.timeout_s <= 1800
        assert 1 <= config.poll_s <= 5


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ScriptConfigError):
        parse(data)


def test_who_may_write_the_configuration(world: World) -> None:
    def code(path: Path = world.config, owner: int = ME, behaviour: str = "documented") -> int:
        with pytest.raises(ScriptConfigError) as caught:
            ScriptConfig.read(path, owner=owner, behaviour=behaviour)
        return caught.value.code

    assert ScriptConfig.read(world.config, owner=ME).poll_s == 1
    assert code(world.folder / "none") == 316
    assert code(world.config / "none") == 316
    assert code(world.folder) == 316
    assert code(Path("a\0b")) == 316
    os.mkfifo(world.folder / "fifo", 0o600)
    assert code(world.folder / "fifo") == 316
    assert code(world.folder / ("x" * 300)) == 305
    for mode in (0o700, 0o640, 0o604, 0o620, 0o610):
        world.config.chmod(mode)
        assert code() == 317, oct(mode)
    world.config.chmod(0o400)
    assert code(owner=ME + 1) == 318
    assert ScriptConfig.read(world.config, owner=ME).poll_s == 1


def test_who_may_write_the_scripts(world: World) -> None:
    config = ScriptConfig.read(world.config, owner=ME)
    assert check_scripts(config, owner=ME) == (0, "")
    assert check_scripts(config, owner=ME + 1)[0] == 306
    for offset, name in enumerate(("pre", "post")):
        path = world.folder / name
        for mode in (0o755, 0o710, 0o701, 0o600):
            path.chmod(mode)
            code, why = check_scripts(config, owner=ME)
            assert (code, f"permission {mode:o}" in why) == (306 + offset, True)
        path.chmod(0o700)
        gone = replace(config, **{f"{name}_location": str(world.folder)})
        assert check_scripts(gone, owner=ME)[0] == 302 + offset
        for location in ("", "relative", f"{world.folder}/none", "/" + "x" * 300, "/a\0"):
            gone = replace(config, **{f"{name}_location": location})
            code, why = check_scripts(gone, owner=ME)
            assert (code, f"{name}-script" in why) == (302 + offset, True)


# Real scripts


def test_a_whole_run(world: World) -> None:
    world.configure(preScriptParams=["a b", "$HOME;", ""], postScriptParams=["*"])
    said = "env | sort | tail -3 | tr '\\n' ' '; pwd; ls -l /proc/self/fd/0; echo \"$# $1|$2|$3|\""
    world.script("pre", said)
    world.script("post", 'echo "to standard error: $1" >&2')
    run = world.run()
    assert world.log == ["pre", "snapshot", "post"]
    assert (run.label, run.state, run.code, run.codes) == ("application", "completed", 0, ())
    assert (run.snapshot, run.taken) == ("taken", True)
    names = [event.name for event in run.events]
    assert names == [
        "configuration", "checks", "pre-script", "freeze", "snapshot", "thaw", "post-script",
    ]  # fmt: skip
    assert [event.code for event in run.events] == [0] * 7
    pre, post = run.event("pre-script"), run.event("post-script")
    assert pre is not None
    assert post is not None
    assert pre.detail == "exit code 0: 3 a b|$HOME;||"
    assert post.detail == "exit code 0: to standard error: *"
    assert run.frame()["name"].to_list() == names
    assert "application-consistent, completed, 0 success_appconsistent" in run._repr_html_()
    starts = [event.start_s for event in run.events]
    assert starts == sorted(starts)
    assert 0 < run.frozen_s < post.start_s


def test_what_a_script_says_is_escaped_and_bounded(world: World) -> None:
    world.script("pre", "yes '<script>' | head -c 2999997; echo; exit 4")
    run = world.run(second=0.2)
    assert run.code == 300
    assert "&lt;script&gt;" in run._repr_html_()
    assert len(run.events[2].detail) < 300


def test_the_poll_decides_when_an_end_is_noticed(world: World) -> None:
    world.configure(ScriptsExecutionPollTimeSeconds=2)
    world.script("pre", "sleep 0.2")
    event = world.run(second=0.2).event("pre-script")
    assert event is not None
    assert event.seconds >= 2 * 0.2


ENDS = {"ok": "exit 0", "fails": "exit 3", "killed": "kill -9 $$", "hangs": "sleep 600"}
CODE_OF = {"ok": 0, "fails": 300, "killed": 300, "hangs": 308}


@pytest.mark.parametrize(
    ("pre", "post"),
    [
        ("ok", "ok"), ("ok", "fails"), ("fails", "ok"), ("fails", "fails"), ("killed", "killed"),
        ("hangs", "ok"), ("ok", "hangs"), ("hangs", "hangs"),
    ],
)  # fmt: skip
def test_each_way_to_end(world: World, pre: str, post: str) -> None:
    if "hangs" in (pre, post):
        world.configure(timeoutInSeconds=10 if pre == post else 30)
    world.script("pre", ENDS[pre])
    world.script("post", ENDS[post])
    run = world.run()
    expected = [CODE_OF[pre], CODE_OF[post] + (1 if CODE_OF[post] else 0)]
    assert [event.code for event in run.events if event.name.endswith("-script")] == expected
    assert world.log == ["pre", "snapshot", "post"]
    assert run.codes == tuple(code for code in expected if code)
    assert run.label == ("filesystem" if run.codes else "application")
    assert run.state == ("completed with warnings" if run.codes else "completed")


def test_a_timeout_ends_the_whole_group(world: World) -> None:
    world.configure(timeoutInSeconds=10)
    world.script("pre", f"trap '' TERM INT HUP; (sleep 600; echo {world.folder}) & sleep 600")
    run = world.run(lambda: running(world.folder))
    assert (run.code, run.snapshot) == (308, [])


def test_what_a_script_leaves_running_ends_with_the_run(world: World) -> None:
    # As a database's session in backup mode, which the post-script ends.
    script = f"(trap '' HUP; while :; do echo open; sleep 0.01; : {world.folder}; done) &"
    world.script("pre", script)
    world.configure(preScriptParams=[])
    run = world.run(lambda: bool(running(world.folder)))
    assert (run.label, run.snapshot) == ("application", True)
    # The fixture sees that it has gone.


def test_a_script_may_close_its_output_or_have_no_first_line(world: World) -> None:
    world.script("pre", "exec >&- 2>&-; sleep 0.03; exit 7")
    post = world.folder / "post"
    post.write_text(f"echo post >> {world.folder}/log\nexit 0\n")
    run = world.run()
    assert [event.code for event in run.events[2::4]] == [300, 0]
    assert run.events[2].detail == "exit code 7"
    assert world.log == ["pre", "snapshot", "post"]


def test_a_script_that_cannot_be_executed(world: World) -> None:
    (world.folder / "pre").write_text("#!/nonesuch/interpreter\n")
    run = world.run()
    assert run.code == 300
    assert run.events[2].detail.startswith("exit code 126: cannot be executed: [Errno 2]")


def test_a_great_many_tries_hold_nothing(world: World) -> None:
    world.configure(preScriptNoOfRetries=60, postScriptNoOfRetries=1_000_000)
    (world.folder / "pre").write_text("#!/usr/bin/env false\n")
    (world.folder / "post").write_text("#!/nonesuch/interpreter\n")
    files = len(list(Path("/proc/self/fd").iterdir()))
    held: list[int] = []
    run = world.run(
        lambda: held.append(len(list(Path("/proc/self/fd").iterdir())) - files),
        host_timeout_s=80, second=0.005,
    )  # fmt: skip
    assert run.codes[0] in (300, 310)
    assert run.codes[1] == 311
    assert held[0] <= 4


def test_a_program_that_reaps_all_children(world: World) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        run = world.run()
    finally:
        signal.signal(signal.SIGCHLD, before)
    # Whether they ended well nobody knows.
    assert (run.label, run.codes) == ("filesystem", (300, 301))


def test_all_tries_together_have_the_time_of_the_host(world: World) -> None:
    world.configure(timeoutInSeconds=10, preScriptNoOfRetries=50)
    world.script("pre", "sleep 600")
    run = world.run(host_timeout_s=25)
    assert run.code == 310
    assert 2 <= world.log.count("pre") <= 3
    world.script("pre", "exit 0")
    world.script("post", "exit 1")
    world.configure(postScriptNoOfRetries=1_000_000)
    assert world.run(host_timeout_s=10).codes[-1] == 311


def test_without_a_configuration(world: World) -> None:
    world.config.unlink()
    freezer = FakeFreezer()
    run = world.run(freezer=freezer)
    assert (run.label, run.state, run.code) == ("filesystem", "completed", 1)
    assert (world.log, freezer.calls, run.config) == (["snapshot"], 1, None)
    assert [event.code for event in run.events] == [316, 0, 0, 0]


def test_no_file_system_to_freeze(world: World) -> None:
    run = world.run(freezer=None, mounts=())
    assert (run.label, run.code) == ("application", 0)
    freeze = run.event("freeze")
    assert freeze is not None
    assert freeze.detail == "no file system to freeze"


def test_arguments_are_refused_before_a_script_runs(world: World) -> None:
    with pytest.raises(InputError, match="'odd' is no behaviour"):
        world.run(behaviour="odd")
    with pytest.raises(InputError, match="is no mount point"):
        world.run(freezer=None, mounts=[world.folder])
    for name in ("second", "host_timeout_s", "freeze_timeout_s"):
        for value in (0.0, -1.0, float("nan"), float("inf")):
            with pytest.raises(InputError, match="is no time in seconds"):
                world.run(**{name: value})
    assert world.log == []


# What ends a run early


def test_a_snapshot_that_raises_is_put_right_first(world: World) -> None:
    freezer = FakeFreezer()

    def broken() -> None:
        assert freezer.frozen
        raise RuntimeError("no space")

    with pytest.raises(RuntimeError, match="no space") as caught:
        world.run(broken, freezer=freezer)
    assert not freezer.frozen
    assert world.log == ["pre", "post"]
    assert caught.value.__notes__ == ["the post-script was run: exit code 0"]


# Presses Ctrl-C for the process that has started the script.
PRESS = "kill -INT $PPID"


def test_ctrl_c_in_the_pre_script(world: World) -> None:
    world.script("pre", f"{PRESS}; sleep 600")
    freezer = FakeFreezer()
    with pytest.raises(KeyboardInterrupt):
        world.run(freezer=freezer, second=0.2)
    assert (freezer.calls, world.log) == (0, ["pre", "post"])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_in_the_post_script(world: World) -> None:
    # The first one waits for it, a second one does not.
    freezer = FakeFreezer()
    world.script("post", f"{PRESS}; sleep 0.1; echo whole >> {world.folder}/log")
    with pytest.raises(KeyboardInterrupt):
        world.run(freezer=freezer, second=0.2)
    assert world.log == ["pre", "snapshot", "post", "whole"]
    world.script("post", f"{PRESS}; sleep 0.3; {PRESS}; sleep 600")
    with pytest.raises(KeyboardInterrupt):
        world.run(freezer=freezer, second=0.2)
    assert world.log == ["pre", "snapshot", "post"]
    assert not freezer.frozen


def test_ctrl_c_again_and_again(world: World) -> None:
    class Pressed(FakeFreezer):
        def freeze(self) -> int:
            os.kill(os.getpid(), signal.SIGINT)
            return super().freeze()

        def thaw(self) -> int:
            os.kill(os.getpid(), signal.SIGINT)
            return super().thaw()

    freezer = Pressed()
    with pytest.raises(KeyboardInterrupt):
        world.run(freezer=freezer)
    # It came through before the snapshot, and what is put right is not disturbed.
    assert (freezer.frozen, world.log) == (False, ["pre", "post"])
    world.script("pre", f"{PRESS}; sleep 600")
    world.script("post", f"{PRESS}; sleep 600")
    with pytest.raises(KeyboardInterrupt):
        world.run(second=0.2)
    assert world.log == ["pre", "post"]


def test_a_thread_may_take_a_snapshot(world: World) -> None:
    found: list[SnapshotRun[Any]] = []
    thread = threading.Thread(target=lambda: found.append(world.run()))
    thread.start()
    thread.join()
    assert found[0].label == "application"


def test_a_run_that_is_told_to_end(world: World) -> None:
    # The default of SIGTERM cleans nothing up; Ctrl-C, as here from outside, does.
    world.script("pre", "sleep 600")
    code = f"""
from vmbk.consistency.scripts import take_snapshot
take_snapshot({str(world.config)!r}, lambda: 0, mounts=(), owner={ME})
"""
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 20
    while world.log != ["pre"] and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in said
    assert world.log == ["pre", "post"]


# Documents and source: each difference by itself


def only(name: str) -> Behaviour:
    """The documents, but for one difference."""
    return replace(DOCUMENTED, **{name: False})


def test_the_presets() -> None:
    names = [each.name for each in differences()]
    assert names == [f.name for f in fields(Behaviour)]
    assert all(getattr(DOCUMENTED, name) for name in names)
    assert not any(getattr(EXTENSION, name) for name in names)
    assert behaviour_of("extension") is EXTENSION
    assert behaviour_of(EXTENSION) is EXTENSION
    texts = [text for each in differences() for text in (each.documented, each.extension)]
    assert all(texts)
    assert len(set(texts)) == len(texts)
    # A difference that is nowhere tested is a claim.
    for name in names:
        assert f"test_{name}" in globals(), name


def test_retries_relaunch(world: World) -> None:
    world.configure(preScriptNoOfRetries=3)
    world.script("pre", f"test $(grep -c pre {world.folder}/log) -ge 3")
    run = world.run()
    assert (run.label, world.log) == ("application", ["pre"] * 3 + ["snapshot", "post"])
    assert run.events[2].detail == "exit code 0, 3 tries"
    for behaviour in (only("retries_relaunch"), EXTENSION):
        run = world.run(behaviour=behaviour)
        assert (run.code, world.log) == (300, ["pre", "snapshot", "post"])
    # None left
    world.script("pre", "exit 1")
    assert (world.run().code, world.log) == (300, ["pre"] * 4 + ["snapshot", "post"])
    # A try that ran out of time is tried again as well.
    world.configure(preScriptNoOfRetries=1, timeoutInSeconds=10)
    world.script("pre", "sleep 600")
    assert (world.run().code, world.log) == (308, ["pre"] * 2 + ["snapshot", "post"])


def test_retries_reset_clock(world: World) -> None:
    world.configure(preScriptNoOfRetries=2, timeoutInSeconds=40)
    world.script("pre", "sleep 0.35; exit 1")  # of 0.8 s
    assert (world.run().code, world.log.count("pre")) == (300, 3)
    run = world.run(behaviour=only("retries_reset_clock"))
    assert (run.code, world.log.count("pre") <= 3) == (308, True)


def test_timeout_is_30() -> None:
    text = "{" + BOTH + "}"
    assert parse(text).timeout_s == 30
    assert parse(text, only("timeout_is_30")).timeout_s == 10
    assert parse(text, EXTENSION).timeout_s == 10
    text = "{" + BOTH + ', "timeoutInSeconds": 20}'
    assert parse(text, EXTENSION).timeout_s == 20


def test_timeout_is_exact(world: World) -> None:
    # 1 s is rounded up to a poll of 5 s.
    world.configure(timeoutInSeconds=1, ScriptsExecutionPollTimeSeconds=5)
    world.script("pre", "sleep 600")

    def polls(behaviour: Behaviour) -> float:
        run = world.run(second=0.1, behaviour=behaviour)
        event = run.event("pre-script")
        assert event is not None
        assert event.code == 308
        return event.seconds / (5 * 0.1)

    assert any(polls(DOCUMENTED) < 1 for _ in range(3))  # unless the machine stood still
    assert polls(only("timeout_is_exact")) >= 1
    assert polls(EXTENSION) >= 1


def test_timeout_kills(world: World) -> None:
    world.configure(timeoutInSeconds=10)
    world.script("pre", f"sleep 600 & echo {world.folder}; wait")
    assert world.run(lambda: bool(running(world.folder))).snapshot is False
    for behaviour in (only("timeout_kills"), EXTENSION):
        run = world.run(lambda: bool(running(world.folder)), behaviour=behaviour)
        assert (run.code, run.snapshot) == (308, True)


def test_output_is_read(world: World) -> None:
    world.script("pre", "head -c 80000 /dev/zero; echo end")
    assert world.run().label == "application"
    world.configure(timeoutInSeconds=10)
    for behaviour in (only("output_is_read"), EXTENSION):
        assert world.run(behaviour=behaviour).codes[:1] == (308,)
    world.configure()
    world.script("pre", "head -c 40000 /dev/zero; head -c 40000 /dev/zero >&2")
    assert world.run(behaviour=EXTENSION).label == "application"  # 64 KiB each


def test_script_is_executed(world: World) -> None:
    path = world.folder / "pre"
    path.write_text(f"#!/usr/bin/env false\necho pre >> {world.folder}/log\n")
    assert world.run().code == 300
    for behaviour in (only("script_is_executed"), EXTENSION):
        assert world.run(behaviour=behaviour).label == "application"
        assert world.log == ["pre", "snapshot", "post"]
    path.chmod(0o600)
    assert world.run().code == 306
    assert world.run(behaviour=EXTENSION).label == "application"


def test_repeated_fields_refused() -> None:
    text = "{" + BOTH + ', "timeoutInSeconds": 20, "timeoutInSeconds": 25}'
    with pytest.raises(ScriptConfigError, match="twice"):
        parse(text)
    for behaviour in (only("repeated_fields_refused"), EXTENSION):
        config = parse(text, behaviour)
        assert config.timeout_s == 25
        assert config.notes == ("'timeoutInSeconds' is given twice: the last one counts",)


def test_flags_are_booleans(world: World) -> None:
    world.configure(continueBackupOnFailure="false")
    world.script("pre", "exit 1")
    run = world.run()
    assert (run.code, run.config, world.log) == (305, None, ["snapshot"])
    for behaviour in (only("flags_are_booleans"), EXTENSION):
        run = world.run(behaviour=behaviour)
        assert (run.label, run.code) == ("filesystem", 300)  # "false" is true
        text = "{" + BOTH + ', "fsFreezeEnabled": 0}'
        assert not parse(text, behaviour).freeze_enabled


def test_wrong_timeout_is_305() -> None:
    for text in ("[]", "{" + BOTH + ', "timeoutInSeconds": "30"}'):
        for behaviour, code in (
            (DOCUMENTED, 305), (only("wrong_timeout_is_305"), 304), (EXTENSION, 304),
        ):  # fmt: skip
            with pytest.raises(ScriptConfigError) as caught:
                parse(text, behaviour)
            assert caught.value.code == code
    with pytest.raises(ScriptConfigError) as caught:
        parse("{", EXTENSION)
    assert caught.value.code == 305
    assert parse("{" + BOTH + ', "timeoutInSeconds": 2.5}', EXTENSION).timeout_s == 2.5


def test_owner_has_a_code(world: World) -> None:
    assert world.run(owner=ME + 1).code == 318
    for behaviour in (only("owner_has_a_code"), EXTENSION):
        assert world.run(owner=ME + 1, behaviour=behaviour).code == 317
    assert world.log == ["snapshot"]


def test_config_errors_are_told(world: World) -> None:
    world.write("{")
    run = world.run()
    assert (run.label, run.state, run.code) == ("filesystem", "completed with warnings", 305)
    for behaviour in (only("config_errors_are_told"), EXTENSION):
        run = world.run(behaviour=behaviour)
        assert (run.label, run.state, run.code) == ("filesystem", "completed", 1)
        assert run.events[0].code == 305  # but it happened
    world.config.chmod(0o644)
    assert world.run(behaviour=EXTENSION).code == 317  # this one is told


def test_failed_script_without_freeze_continues(world: World) -> None:
    world.configure(fsFreezeEnabled=False)
    for name, log in (("pre", ["pre", "post"]), ("post", ["pre", "snapshot", "post"])):
        world.script("pre", "exit 0")
        world.script(name, "exit 1")
        run = world.run()
        assert (run.label, run.state) == ("crash", "completed with warnings")
        for behaviour in (only("failed_script_without_freeze_continues"), EXTENSION):
            run = world.run(behaviour=behaviour)
            assert (run.label, run.state) == (None, "failed")
            assert world.log == log


def test_unfrozen_is_crash(world: World) -> None:
    world.configure(fsFreezeEnabled=False)
    (world.folder / "pre").chmod(0o755)
    freezer = FakeFreezer()
    run = world.run(freezer=freezer)
    assert (run.label, run.code) == ("crash", 306)
    for behaviour in (only("unfrozen_is_crash"), EXTENSION):
        run = world.run(freezer=freezer, behaviour=behaviour)
        assert (run.label, run.code) == ("filesystem", 306)
    assert (freezer.calls, world.log) == (0, ["snapshot"])


def test_single_disk_falls_back(world: World) -> None:
    world.configure(continueBackupOnFailure=False)
    world.script("pre", "exit 1")
    run = world.run()
    assert (run.label, run.state, run.code) == (None, "failed", 300)
    assert (world.log, run.taken, run.snapshot) == (["pre", "post"], False, None)
    assert "no recovery point, failed" in run._repr_html_()
    run = world.run(attempt=Attempt(disks=1))
    assert (run.label, run.state, run.code) == ("crash", "completed with warnings", 300)
    assert run.event("freeze") is None  # a crash-consistent snapshot asks for none
    for behaviour in (only("single_disk_falls_back"), EXTENSION):
        run = world.run(attempt=Attempt(disks=1, retry=3), behaviour=behaviour)
        assert run.state == "failed"
    # A freeze that fails
    world.script("pre", "exit 0")
    for behaviour, retry, label in (
        (DOCUMENTED, 0, "crash"), (EXTENSION, 0, None), (EXTENSION, 1, "crash"),
    ):  # fmt: skip
        attempt = Attempt(disks=1, retry=retry)
        run = world.run(freezer=FakeFreezer(121), attempt=attempt, behaviour=behaviour)
        assert (run.label, run.code) == (label, 121)
    for attempt in (
        Attempt(retry=1), Attempt(1, 1, managed=False), Attempt(1, 1, crash_allowed=False),
    ):  # fmt: skip
        assert not attempt.falls_back(EXTENSION)


def test_late_thaw_is_122(world: World) -> None:
    freezer = FakeFreezer(thaw_code=122)
    run = world.run(freezer=freezer)
    assert (run.label, run.state, run.code) == (None, "failed", 122)
    assert (run.taken, run.snapshot) == (True, "taken")  # the caller's to remove
    for behaviour in (only("late_thaw_is_122"), EXTENSION):
        run = world.run(freezer=freezer, behaviour=behaviour)
        assert (run.label, run.state, run.code) == (None, "failed", 2)
    attempt = Attempt(disks=1, retry=1)
    run = world.run(freezer=freezer, behaviour=EXTENSION, attempt=attempt)
    assert (run.label, run.state, run.code) == ("crash", "completed", 1)


# The decision, against tables written from the documents and from the source's flow

ANY = "*"
WARN, FAIL, DONE = "completed with warnings", "failed", "completed"

# (configuration, pre, post, continue, fsfreeze, freeze, thaw, crash allowed): label, state, taken.
# The first row that fits counts. Configuration: none, broken (cannot be used), unfit (may not be
# run), good. Scripts and freezes: ok or bad.
DOCUMENTED_TABLE = [
    # Scripts that were asked for and failed, with continueBackupOnFailure false: the backup fails,
    # but for the machine with a single disk, which gets a crash-consistent point.
    (("unfit", ANY, ANY, False, ANY, ANY, ANY, False), (None, FAIL, False)),
    (("unfit", ANY, ANY, False, ANY, ANY, ANY, True), ("crash", WARN, True)),
    (("good", "bad", ANY, False, ANY, ANY, ANY, False), (None, FAIL, False)),
    (("good", "bad", ANY, False, ANY, ANY, ANY, True), ("crash", WARN, True)),
    # A freeze that fails costs the backup, and again the single disk falls back.
    ((ANY, ANY, ANY, ANY, True, "bad", ANY, False), (None, FAIL, False)),
    ((ANY, ANY, ANY, ANY, True, "bad", ANY, True), ("crash", WARN, True)),
    ((ANY, ANY, ANY, ANY, True, "ok", "bad", False), (None, FAIL, True)),
    ((ANY, ANY, ANY, ANY, True, "ok", "bad", True), ("crash", WARN, True)),
    (("good", "ok", "bad", False, ANY, ANY, ANY, False), (None, FAIL, True)),
    (("good", "ok", "bad", False, ANY, ANY, ANY, True), ("crash", WARN, True)),
    # No scripts: file-system consistent, the default of Linux.
    (("none", ANY, ANY, ANY, ANY, ANY, ANY, ANY), ("filesystem", DONE, True)),
    (("broken", ANY, ANY, ANY, ANY, ANY, ANY, ANY), ("filesystem", WARN, True)),
    # Both scripts ended well.
    (("good", "ok", "ok", ANY, ANY, ANY, ANY, ANY), ("application", DONE, True)),
    # One did not: file-system consistent if it was frozen, else crash-consistent.
    ((ANY, ANY, ANY, ANY, True, ANY, ANY, ANY), ("filesystem", WARN, True)),
    ((ANY, ANY, ANY, ANY, False, ANY, ANY, ANY), ("crash", WARN, True)),
]
EXTENSION_TABLE = [
    # The precheck, and then the pre-script, set whether there is a backup at all.
    (("unfit", ANY, ANY, False, ANY, ANY, ANY, ANY), (None, FAIL, False)),
    (("good", "bad", ANY, False, ANY, ANY, ANY, ANY), (None, FAIL, False)),
    (("good", "bad", ANY, ANY, False, ANY, ANY, ANY), (None, FAIL, False)),
    # The freeze; where a crash-consistent one is allowed the snapshot is taken all the same.
    ((ANY, ANY, ANY, ANY, True, "bad", ANY, False), (None, FAIL, False)),
    ((ANY, ANY, ANY, ANY, True, "ok", "bad", False), (None, FAIL, True)),
    # The post-script can still turn success into failure.
    (("good", ANY, "bad", False, ANY, ANY, ANY, ANY), (None, FAIL, True)),
    (("good", ANY, "bad", ANY, False, ANY, ANY, ANY), (None, FAIL, True)),
    # What is reported as a crash-consistent success keeps that label, whatever the scripts did.
    ((ANY, ANY, ANY, ANY, True, "bad", ANY, True), ("crash", WARN, True)),
    (("good", "bad", ANY, ANY, True, "ok", "bad", True), ("crash", WARN, True)),
    (("good", ANY, "bad", ANY, True, "ok", "bad", True), ("crash", WARN, True)),
    (("unfit", ANY, ANY, ANY, True, "ok", "bad", True), ("crash", WARN, True)),
    ((ANY, ANY, ANY, ANY, True, "ok", "bad", True), ("crash", DONE, True)),
    (("good", "ok", "ok", ANY, ANY, ANY, ANY, ANY), ("application", DONE, True)),
    # Everything else is success, file-system consistent; some failures are told, some are not.
    (("none", ANY, ANY, ANY, ANY, ANY, ANY, ANY), ("filesystem", DONE, True)),
    (("broken", ANY, ANY, ANY, ANY, ANY, ANY, ANY), ("filesystem", DONE, True)),
    ((ANY, ANY, ANY, ANY, ANY, ANY, ANY, ANY), ("filesystem", WARN, True)),
]

CONFIGS = {"none": 316, "broken": 305, "unfit": 306, "good": 0}


@settings(max_examples=250)
@given(
    st.sampled_from(sorted(CONFIGS)),
    st.sampled_from([0, 300, 308, 310]),
    st.sampled_from([0, 301, 309, 311]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0, 0, 121, 122, 123, 124]),
    st.sampled_from([0, 0, 121, 122]),
    st.integers(1, 2),
    st.integers(0, 1),
    st.booleans(),
)
def test_the_decision_is_that_of_the_tables(
    tmp_path_factory: pytest.TempPathFactory, config: str, pre: int, post: int, continues: bool,
    freezes: bool, freeze: int, thaw: int, disks: int, retry: int, documented: bool,
) -> None:  # fmt: skip
    world = decided(tmp_path_factory)
    world.configure(continueBackupOnFailure=continues, fsFreezeEnabled=freezes)
    (world.folder / "pre").chmod(0o755 if config == "unfit" else 0o700)
    if config == "none":
        world.config.unlink()
    if config == "broken":
        world.write("{")
    ran: list[str] = []

    class Runner:
        """Gives the codes that real scripts give in the tests above."""

        def __init__(self, *_: Any, **__: Any) -> None: ...

        def __enter__(self) -> Runner:
            return self

        def __exit__(self, *_: Any) -> None: ...

        def run(self, role: str) -> ScriptResult:
            ran.append(role)
            return ScriptResult(pre if role == "pre" else post, 1, 0, "")

    freezer = FakeFreezer(freeze, thaw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ScriptRunner", Runner)
        run = take_snapshot(
            world.config, lambda: ran.append("snapshot"), freezer=freezer, owner=ME,
            behaviour="documented" if documented else "extension",
            attempt=Attempt(disks, retry),
        )  # fmt: skip
    if config in ("none", "broken"):  # nothing in it is known
        continues = freezes = True
    allowed = disks == 1 and (documented or retry > 0)
    case = (
        config, "bad" if pre else "ok", "bad" if post else "ok", continues, freezes,
        "bad" if freeze else "ok", "bad" if thaw else "ok", allowed,
    )  # fmt: skip
    rows = DOCUMENTED_TABLE if documented else EXTENSION_TABLE
    label, state, taken = next(
        answer
        for row, answer in rows
        if all(want in (ANY, have) for want, have in zip(row, case, strict=True))
    )
    assert (run.label, run.state) == (label, state)
    assert run.taken == taken == ("snapshot" in ran)
    assert not freezer.frozen
    # The post-script runs whenever the pre-script did, and last.
    if config == "good":
        assert ran == ["pre", *(["snapshot"] if taken else []), "post"]
    else:
        assert [each for each in ran if each != "snapshot"] == []
    # The code says what the state does.
    assert run.code in CODES
    assert (run.code == 0) == (label == "application")
    assert (state == "completed") == (run.code in (0, 1))
    assert label in (*LABELS, None)
    assert state in STATES
    assert all(code > 1 for code in run.codes)


_DECIDED: list[World] = []


def decided(factory: pytest.TempPathFactory) -> World:
    """One folder for all examples."""
    if not _DECIDED:
        _DECIDED.append(World(factory.mktemp("decided")))
    return _DECIDED[0]


def test_the_codes() -> None:
    assert all(number == code.number for number, code in CODES.items())
    assert set(range(300, 319)) | set(range(121, 125)) <= set(CODES)
    assert {code.health for code in CODES.values()} == {"green", "yellow", "red"}
    assert CODES[308].title == "Pre-ScriptTimeout"
    assert len({code.name for code in CODES.values()}) == len(CODES)
