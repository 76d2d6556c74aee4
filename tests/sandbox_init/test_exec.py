"""Commands beside the harness: streams, codes, pace, end; and the gate every process passes."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from sandbox_init.frames import MAX_HEADER_BYTES, Frame
from tests.sandbox_init.boxes import Box, joined, start, wait_for

pytestmark = pytest.mark.root


def test_exec_keeps_streams_apart_and_tells_the_code(box: Box) -> None:
    box.owner().close()
    with box.viewer() as viewer:
        assert viewer.exec("sh", "-c", "printf out; printf err >&2; exit 7")[:2] == (b"out", b"err")
        stdout, stderr, last = viewer.exec("sh", "-c", "echo $0 $A; kill -TERM $$", env={"A": "b"})
        assert (stdout, stderr, last.fields["signal"]) == (b"sh b\n", b"", 15)
        last = viewer.exec("nosuchprogram")[2]
        assert (last.fields["code"], last.fields["error"]) == (127, "No such file or directory")
        last = viewer.exec("true", cwd="/no/such/place")[2]
        assert last.fields["code"] == 127
        assert viewer.exec("id", "-u")[0] == b"1000\n"
    assert list(box.spool.frames()) == []


def test_exec_sees_what_the_harness_sees_and_where_it_was_told_to_be(box: Box) -> None:
    with box.owner(after=0) as owner, box.viewer() as viewer:
        assert b"A=" not in viewer.exec("env")[0]
        start(owner, "sleep 600", env={"A": "1", "B": "2"})
        owner.until_verb("started")
        lines = viewer.exec("env", env={"B": "3"}, cwd="/run/")[0].splitlines()
    assert {b"A=1", b"B=3", b"PWD=/run", b"HOME=/state/home"} <= set(lines)


def test_a_shell_names_a_linked_directory_as_it_was_named(box: Box, slot: Path) -> None:
    box.owner().close()
    link = slot / "vol" / "state" / "link"
    link.symlink_to("/usr/bin")
    with box.viewer() as viewer:
        assert viewer.exec("bash", "-c", "pwd", cwd=str(link))[0] == f"{link}\n".encode()


def test_exec_carries_megabytes_both_ways(box: Box) -> None:
    box.owner().close()
    data = os.urandom(3_000_000)
    received: list[Frame] = []
    with box.viewer() as viewer:

        def listen() -> None:
            received.extend(viewer.until_verb("exec_exit"))

        viewer.send("exec", id="e", argv=["cat"], cwd="/tmp", stdin=True)
        thread = threading.Thread(target=listen)
        thread.start()
        for at in range(0, len(data), 100_000):
            viewer.send("exec_stdin", data[at : at + 100_000])
        viewer.send("exec_eof")
        thread.join()
    assert joined(received, "stdout") == data and received[-1].fields["code"] == 0


def test_exec_without_a_reader_is_held_not_buffered(box: Box) -> None:
    box.owner().close()
    with box.viewer() as deaf, box.viewer() as other:
        deaf.send("exec", id="e", argv=["sh", "-c", "head -c 50000000 /dev/zero; echo end >&2"], cwd="/tmp")
        deaf.answer("exec_started")

        def stat() -> dict[str, Any]:
            other.send("stat")
            return other.answer("stat").fields

        assert stat()["init_rss_anon_kb"] < 12_000
        frames = deaf.until_verb("exec_exit")
        assert len(joined(frames, "stdout")) == 50_000_000 and joined(frames, "stderr") == b"end\n"


def test_exec_is_killed_with_its_connection_unless_detached(box: Box, slot: Path) -> None:
    box.owner().close()
    state = slot / "vol" / "state"
    script = "echo $$ > {0}.pid; trap '' TERM HUP; sleep 600 & wait"
    with box.viewer() as other:
        for name, detach in (("tied", False), ("free", True)):
            with box.viewer() as viewer:
                argv = ["sh", "-c", script.format(state / name)]
                viewer.send("exec", id="e", argv=argv, cwd="/tmp", detach=detach)
                viewer.answer("exec_started")
                wait_for(lambda name=name: (state / f"{name}.pid").exists(), "it runs")  # type: ignore[misc]

        def processes() -> int:
            other.send("stat")
            return int(other.answer("stat").fields["processes"])

        wait_for(lambda: processes() == 2, "the tied one and its child are gone, the free ones live")


def test_exec_obeys_its_timeout_and_signals(box: Box) -> None:
    box.owner().close()
    with box.viewer() as viewer:
        last = viewer.exec("sh", "-c", "trap '' TERM; while :; do sleep 1; done", timeout_s=1)[2]
        assert (last.fields["signal"], last.fields["timed_out"]) == (9, True)
        viewer.send(
            "exec", id="s", argv=["sh", "-c", "trap 'exit 3' INT; echo r; while :; do sleep 0.01; done"], cwd="/"
        )
        viewer.until(lambda f: f.payload == b"r\n")
        viewer.send("exec", id="t", argv=["true"])
        assert viewer.answer("refused").fields["code"] == "exec_busy"
        viewer.send("exec_signal", signum=2)
        assert viewer.answer("exec_exit").fields["code"] == 3


def test_a_stop_to_all_leaves_the_spawner_at_work(box: Box) -> None:
    with box.run("echo ready; while :; do sleep 0.01; done") as owner:
        owner.until(lambda f: f.payload == b"ready\n")
        owner.send("signal", id="s", signum=19, to="all")
        owner.until_verb("signalled")
        assert owner.exec("echo", "still")[0] == b"still\n"
        owner.send("kill")
        owner.until_verb("exit")


def test_what_cannot_be_recorded_is_refused_not_fatal(box: Box) -> None:
    with box.owner(after=0) as owner:
        start(owner, "", argv=["x" * (MAX_HEADER_BYTES - 80)])  # with what init adds it is no frame any more
        assert owner.answer("refused").fields["code"] == "start_failed"
        start(owner, "", argv=["echo", "x" * 200_000])  # past the kernel's 128 KiB for one string
        frames = owner.until_verb("exit")
        assert frames[-1].fields["code"] == 126
        assert [f.fields["why"] for f in frames if f.verb == "note"] == ["Argument list too long"]


def test_the_gate_lets_nothing_pass_until_it_is_opened(box: Box) -> None:
    with box.viewer() as viewer, box.owner(gate=False, after=0) as owner:
        viewer.send("exec", id="e", argv=["echo", "x"], cwd="/tmp")
        start(owner, "echo y")
        viewer.send("stat")
        assert viewer.next().verb == "stat"
        assert owner.hello.fields["gate"] == "closed"
        owner.send("gate_open", cgroup=True)
        gate = owner.answer("gate")
        assert gate.fields == {"open": True, "cgroup": True}
        assert viewer.answer("exec_exit").fields["code"] == 0
        assert joined(owner.until_verb("exit"), "stdout") == b"y\n"
        owner.send("gate_open", cgroup=False)
        assert owner.answer("gate").fields == {"open": True, "cgroup": True}


def test_twenty_execs_at_once(box: Box) -> None:
    box.owner().close()
    clients = [box.viewer() for _ in range(20)]
    for number, client in enumerate(clients):
        client.send(
            "exec", id=str(number), argv=["sh", "-c", f"echo {number}; echo e{number} >&2; exit {number}"], cwd="/"
        )
    for number, client in enumerate(clients):
        frames = client.until_verb("exec_exit")
        assert joined(frames, "stdout") == b"%d\n" % number and joined(frames, "stderr") == b"e%d\n" % number
        assert frames[-1].fields["code"] == number
        client.close()
