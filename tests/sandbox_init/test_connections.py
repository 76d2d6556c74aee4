"""Who may speak to init, in which order, and what one client's fate does to the others."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from sandbox_init.frames import PREFIX, Frame, encode
from tests.sandbox_init.boxes import Box, Client, Closed, children, in_namespace, joined, numbers, start, wait_for

pytestmark = pytest.mark.root


# -- hello -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"role": "owner"}, "bad_hello"),
        ({"role": "owner", "epoch": 0}, "bad_hello"),
        ({"role": "owner", "epoch": True}, "bad_hello"),
        ({"role": "root"}, "bad_hello"),
        ({"role": "viewer", "after": -1}, "bad_hello"),
        ({"role": "viewer", "after": "x"}, "bad_hello"),
        ({"role": "viewer", "protocol": 2}, "protocol"),
        ({"role": "viewer", "protocol": 0}, "protocol"),
    ],
)
def test_a_wrong_hello_is_refused_by_name_and_closed(box: Box, fields: dict[str, Any], code: str) -> None:
    with box.connect() as client:
        client.send("hello", **{"protocol": 1, **fields})
        refused = client.next()
        assert (refused.verb, refused.fields["code"]) == ("refused", code)
        with pytest.raises(Closed):
            client.next()


def test_hello_comes_first(box: Box) -> None:
    with box.connect() as client:
        client.send("stat")
        assert client.next().fields["code"] == "hello_first"


@pytest.mark.parametrize("raw", [bytes(64), b"GET / HTTP/1.1\r\n\r\n" * 4, PREFIX.pack(2**31, 2**31, 0, 0)])
def test_bytes_that_are_no_frames_cost_that_connection_only(box: Box, raw: bytes) -> None:
    with box.viewer() as bystander, box.connect() as client:
        client.send_raw(raw)
        assert client.next().fields["code"] == "not_a_frame"
        bystander.send("stat")
        assert bystander.answer("stat").fields["connections"] >= 1


def test_verbs_need_their_role_and_fields(box: Box) -> None:
    with box.viewer() as viewer:
        for verb in ("start", "message", "eof", "signal", "ack", "kill", "quiesce", "shutdown"):
            viewer.send(verb)
            assert viewer.next().fields["code"] == "not_owner"
        viewer.send("dance")
        refused = viewer.next()
        assert (refused.fields["code"], refused.fields["verb"]) == ("unknown_verb", "dance")
    with box.owner(gate=False) as owner:
        wrong: list[tuple[str, dict[str, Any], str]] = [
            ("gate_open", {}, "cgroup"),
            ("start", {}, "argv"),
            ("start", {"argv": []}, "argv"),
            ("start", {"argv": [""]}, "argv"),
            ("start", {"argv": ["a\0b"]}, "argv"),
            ("start", {"argv": ["a", 1]}, "argv"),
            ("start", {"argv": ["a"], "env": {"A=B": "c"}}, "env"),
            ("start", {"argv": ["a"], "env": {"": "c"}}, "env"),
            ("start", {"argv": ["a"], "env": {"A": 1}}, "env"),
            ("start", {"argv": ["a"], "env": ["A=1"]}, "env"),
            ("start", {"argv": ["a"], "cwd": "relative"}, "cwd"),
            ("start", {"argv": ["a"], "cwd": "/proc/self/fd/7"}, "cwd"),
            ("start", {"argv": ["a"], "cwd": "//proc/1/cwd"}, "cwd"),
            ("start", {"argv": ["a"], "cwd": "/tmp/../proc/self/fd/7"}, "cwd"),
            ("start", {"argv": ["a"], "stdin": "tty"}, "stdin"),
            ("start", {"argv": ["a"], "stdin": "text", "spool_limit_bytes": 5}, "spool_limit_bytes"),
            ("start", {"argv": ["a"], "stdin": "text", "assignment": [1]}, "assignment"),
            ("message", {"n": 0, "id": "x"}, "n"),
            ("message", {"n": 1, "id": ""}, "id"),
            ("message", {"n": 1, "id": "x" * 161}, "id"),
            ("signal", {"id": "x", "signum": 65}, "signum"),
            ("signal", {"id": "x", "signum": 32}, "signum"),
            ("signal", {"id": "x", "signum": 2, "to": "init"}, "to"),
            ("ack", {"src": -1}, "src"),
            ("shutdown", {"grace_s": -1}, "grace_s"),
            ("exec", {"id": "x", "argv": "ls"}, "argv"),
        ]
        for verb, fields, field in wrong:
            owner.send(verb, **fields)
            refused = owner.next()
            assert (refused.verb, refused.fields.get("field")) == ("refused", field), (verb, fields, refused)
        owner.send("stat")
        assert owner.next().verb == "stat"


# -- owners ------------------------------------------------------------------------------------------------------------


def test_an_older_epoch_is_refused_and_a_newer_one_takes_over(box: Box) -> None:
    with box.owner(epoch=5) as five:
        with pytest.raises(Closed) as refused:
            box.owner(epoch=4)
        assert refused.value.code == "stale_epoch" and refused.value.refused
        assert refused.value.refused.fields["epoch"] == 5
        with box.owner(epoch=5) as again, pytest.raises(Closed) as superseded:
            assert again.hello.fields["epoch"] == 5
            five.until(lambda f: False)
        assert superseded.value.code == "superseded"
    with box.owner(epoch=6) as six, pytest.raises(Closed):
        box.owner(epoch=5)
    six.close()
    assert box.spool.epoch == 6


def test_the_epoch_survives_the_death_of_init(slot: Path) -> None:
    with in_namespace(slot) as box:
        box.owner(epoch=9).close()
    with in_namespace(slot) as box:
        with pytest.raises(Closed) as refused:
            box.owner(epoch=8)
        assert refused.value.code == "stale_epoch"
        box.owner(epoch=9).close()


def test_a_stopped_owner_that_comes_back_can_do_nothing(box: Box) -> None:
    """What a zombie had typed before init read it, and what it types later, is dropped."""
    with box.run("read x; echo got $x", epoch=1) as zombie:
        zombie.until_verb("started")
        with box.owner(epoch=2, after=0) as owner:
            with pytest.raises(Closed):
                while True:
                    zombie.send("message", b"zombie\n", n=1, id="z")
                    zombie.send("kill")
            owner.send("message", b"owner\n", n=1, id="o")
            assert joined(owner.until_verb("exit"), "stdout") == b"got owner\n"


def test_viewers_need_no_epoch_and_outlive_owners(box: Box) -> None:
    with box.owner(epoch=1) as one, box.viewer(after=0) as viewer:
        start(one, "read x; echo $x")
        viewer.until_verb("started")
        with box.owner(epoch=2) as two:
            two.send("message", b"hi\n", n=1, id="m")
            assert joined(viewer.until_verb("exit"), "stdout") == b"hi\n"


# -- many --------------------------------------------------------------------------------------------------------------


def test_twenty_at_once_each_from_its_own_place(box: Box) -> None:
    failures: list[BaseException] = []
    results: dict[int, list[int]] = {}

    def follow(number: int) -> None:
        try:
            with box.viewer(after=number) as viewer:
                frames = viewer.until_verb("exit")
                results[number] = numbers(frames)
                assert len(joined(frames, "stdout")) > 0
        except BaseException as problem:
            failures.append(problem)

    with box.owner(after=0) as owner:
        threads = [threading.Thread(target=follow, args=(number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        start(owner, "for i in $(seq 1 400); do echo $i; head -c 5000 /dev/zero; done")
        total = numbers(owner.until_verb("exit"))[-1]
        for thread in threads:
            thread.join()
    assert failures == []
    assert results == {number: list(range(number + 1, total + 1)) for number in range(20)}


def test_a_stalled_viewer_slows_nobody(box: Box) -> None:
    with box.viewer(after=0) as stalled, box.run("head -c 30000000 /dev/zero", output="bytes") as owner:
        frames = owner.until_verb("exit")
        assert len(joined(frames, "stdout")) == 30_000_000
        owner.send("stat")
        assert owner.answer("stat").fields["init_rss_anon_kb"] < 8000
        assert numbers(stalled.until_verb("exit")) == numbers(frames)


def test_answers_nobody_reads_end_that_connection(box: Box) -> None:
    with box.viewer() as deaf, box.viewer() as other:
        nonsense = encode(Frame("x" * 32)) * 500
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            while True:
                deaf.send_raw(nonsense)
        other.send("stat")
        assert other.answer("stat").fields["connections"] == 1


def test_the_129th_connection_is_refused_and_the_others_live(box: Box) -> None:
    clients = [box.viewer() for _ in range(128)]
    try:
        with pytest.raises(Closed) as refused:
            box.viewer()
        assert refused.value.code == "too_many_connections"
        clients.pop().close()
        clients[0].send("stat")
        assert clients[0].answer("stat").verb == "stat"
        wait_for(lambda: _comes_in(box), "a place is free again")
    finally:
        for client in clients:
            client.close()


def _comes_in(box: Box) -> bool:
    try:
        box.viewer().close()
    except Closed:
        return False
    return True


def test_another_uid_is_not_allowed_even_through_an_open_door(box: Box) -> None:
    for path in (box.slot / "ctl", box.slot / "ctl" / "init.sock"):
        path.chmod(0o777)
    script = (
        "import os, socket, sys\nos.setuid(1000)\ns = socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\n"
        "sys.stdout.buffer.write(s.recv(4096))\n"
    )
    answer = subprocess.run([sys.executable, "-c", script, box.socket_path], capture_output=True, check=True).stdout
    assert b"not_allowed" in answer


# -- quiesce -----------------------------------------------------------------------------------------------------------


def test_quiesce_answers_after_every_frame_it_counts(box: Box) -> None:
    with box.run("i=0; while :; do i=$((i+1)); echo line $i; done", output="bytes") as owner:
        seen = numbers(owner.until_verb("output"))
        for number in range(5):
            owner.send("quiesce", id=f"q{number}")
            frames = owner.until_verb("quiesced")
            assert frames[-1].fields["id"] == f"q{number}"
            seen += numbers(frames)
            assert seen[-1] >= frames[-1].fields["src"]  # it runs on: later frames may come first
            assert len(list(box.spool.frames())) >= frames[-1].fields["src"]
            owner.send("ack", src=frames[-1].fields["src"])
        owner.send("kill")
        owner.until_verb("exit")


def test_quiesce_drains_a_held_pipe(box: Box) -> None:
    """A stopped harness: what lies in its pipe is frames when `quiesced` says so, though it is held back."""
    with box.run("yes", spool_limit_bytes=1 << 18, output="bytes") as owner:
        owner.until_verb("held")
        owner.send("signal", id="stop", signum=19, to="group")
        owner.until_verb("signalled")
        harness = max(children(box.init_pid))
        wait_for(lambda: "State:\tT" in Path(f"/proc/{harness}/status").read_text(), "it has stopped")
        owner.send("quiesce")
        src = owner.until_verb("quiesced")[-1].fields["src"]
        owner.send("quiesce")
        again = owner.answer("quiesced").fields["src"]
        assert again == src
        owner.send("kill")


# -- the end of init ---------------------------------------------------------------------------------------------------


def test_sigkill_of_init_leaves_a_readable_spool_without_an_end(box: Box) -> None:
    with box.run("i=0; while :; do i=$((i+1)); echo line $i; done", output="bytes") as owner:
        seen = owner.until(lambda f: f.src > 30)
        box.kill_init()
        with pytest.raises(Closed):
            while True:
                seen.append(owner.next())
    frames = list(box.spool.frames())
    received = [f for f in seen if f.src]
    assert frames[: len(received)] == received
    assert "exit" not in {f.verb for f in frames}
    lines = joined(frames, "stdout").split(b"\n")
    assert lines[:-1] == [b"line %d" % i for i in range(1, len(lines))]


def test_a_second_init_over_a_used_spool_never_starts_again(slot: Path) -> None:
    with in_namespace(slot) as box, box.run("echo once; read x", assignment={"execution": "exe_1"}) as owner:
        owner.send("message", b"", n=1, id="m1")
        owner.until_verb("delivered")
        owner.until(lambda f: f.payload == b"once\n") if joined(list(box.spool.frames()), "stdout") == b"" else None
        box.kill_init()
    with in_namespace(slot) as box, box.owner(epoch=2, after=0) as owner:
        hello = owner.hello.fields
        assert (hello["state"], hello["started"], hello["ended"]) == ("lost", True, False)
        assert hello["assignment"] == {"execution": "exe_1"} and hello["delivered_n"] == 1
        assert hello["last_src"] == box.spool.last_src
        start(owner, "echo twice")
        assert owner.answer("refused").fields["code"] == "lost"
        assert owner.exec("true")[2].fields["code"] == 0
    assert [f.verb for f in box.spool.frames()].count("started") == 1


def test_a_second_init_over_an_ended_spool_says_ended(slot: Path) -> None:
    with in_namespace(slot) as box, box.run("exit 3") as owner:
        owner.until_verb("exit")
    with in_namespace(slot) as box, box.owner(epoch=2, after=0) as owner:
        assert owner.hello.fields["state"] == "ended" and owner.hello.fields["ended"] is True
        assert owner.until_verb("exit")[-1].fields["code"] == 3


def test_init_refuses_to_be_anything_but_pid_1(slot: Path) -> None:
    main = Path(__file__).parents[2] / "sandbox-image" / "sandbox_init" / "__main__.py"
    tried = subprocess.run([sys.executable, "-I", "-S", "-B", str(main)], capture_output=True, text=True, check=False)
    assert tried.returncode == 1 and "PID 1" in tried.stderr


def test_readiness_is_one_connection(slot: Path) -> None:
    """in_namespace waits for it; here its socket is looked at: nothing is written, and init closes with us."""
    with in_namespace(slot) as box:
        assert (slot / "ctl" / "init.sock").stat().st_mode & 0o777 == 0o600
        client = Client(box.socket_path)
        client.close()
        with socket.socket(socket.AF_UNIX) as plain:
            plain.connect(box.socket_path)
            plain.shutdown(socket.SHUT_WR)
            assert plain.recv(10) == b""
