"""The harness's life through init: exact bytes, modes, messages, signals, held back, and how it ended."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import pytest

from tests.sandbox_init.boxes import Box, Closed, children, joined, numbers, start, wait_for

pytestmark = pytest.mark.root


def ending(box: Box, script: str, **fields: Any) -> dict[str, Any]:
    with box.run(script, **fields) as owner:
        return owner.answer("exit").fields


def test_ten_megabytes_of_random_bytes_come_out_exactly(box: Box, slot: Path) -> None:
    data = random.Random(2).randbytes(10 << 20)
    source = slot / "vol" / "data"
    source.write_bytes(data)
    with box.run(f"cat {source}; printf err >&2", output="bytes") as owner:
        frames = owner.until_verb("exit")
    assert hashlib.sha256(joined(frames, "stdout")).digest() == hashlib.sha256(data).digest()
    assert joined(frames, "stderr") == b"err"
    assert numbers(frames) == list(range(1, len(numbers(frames)) + 1))
    assert all(1 <= len(frame.payload) <= 65536 for frame in frames if frame.verb == "output")
    assert list(box.spool.frames()) == [frame for frame in frames if frame.src]


def test_fifty_reconnects_from_anywhere_see_every_frame_once(box: Box) -> None:
    choose = random.Random(3)
    with box.owner() as owner:
        start(
            owner, "for i in $(seq 1 3000); do echo line $i; done; sleep 0.2; for i in $(seq 1 3000); do echo $i; done"
        )
        seen: list[Any] = []
        for _ in range(50):
            with box.viewer(after=len(seen)) as viewer:
                wanted = choose.randrange(1, 40)
                while wanted and not (seen and seen[-1].verb == "exit"):
                    seen.append(viewer.next())
                    wanted -= 1
        with box.viewer(after=len(seen)) as viewer:
            if seen[-1].verb != "exit":
                seen += viewer.until_verb("exit")
        total = [frame.src for frame in seen]
        assert total == list(range(1, len(total) + 1))
        for after in [choose.randrange(len(total)) for _ in range(20)]:
            with box.viewer(after=after) as viewer:
                assert viewer.until_verb("exit") == seen[after:]
    assert joined(seen, "stdout").count(b"\n") == 6000


@pytest.mark.parametrize(
    ("script", "how"),
    [
        ("exit 0", {"code": 0}),
        ("exit 75", {"code": 75}),
        ("exit 255", {"code": 255}),
        ("kill -9 $$", {"signal": 9}),
        ("kill -TERM $$", {"signal": 15}),
        ("kill -SEGV $$", {"signal": 11}),
    ],
)
def test_exit_codes_and_signals(box: Box, script: str, how: dict[str, int]) -> None:
    exit_fields = ending(box, script)
    assert {key: exit_fields[key] for key in ("code", "signal") if key in exit_fields} == how
    assert exit_fields["oom_hint"] is False and exit_fields["duration_ms"] >= 0


@pytest.mark.parametrize(("argv", "code"), [(["/no/such"], 127), (["nosuchprogram"], 127), (["/etc/passwd"], 126)])
def test_a_program_that_cannot_be_executed_ends_like_in_a_shell(box: Box, argv: list[str], code: int) -> None:
    with box.owner(after=0) as owner:
        start(owner, "", argv=argv)
        frames = owner.until_verb("exit")
    assert frames[-1].fields["code"] == code
    assert [f.fields["what"] for f in frames if f.verb == "note"] == ["exec_failed"]


def test_a_script_without_a_shebang_runs_in_the_shell(box: Box, slot: Path) -> None:
    script = slot / "vol" / "script"
    script.write_text("echo no shebang $1\n")
    script.chmod(0o755)
    with box.owner(after=0) as owner:
        start(owner, "", argv=[str(script), "arg"])
        assert joined(owner.until_verb("exit"), "stdout") == b"no shebang arg\n"


def test_start_twice_starts_once(box: Box, slot: Path) -> None:
    marker = slot / "vol" / "state" / "ran"
    script = f"echo x >> {marker}; read line; exit 4"
    with box.run(script) as owner:
        start(owner, script)
        start(owner, "exit 9")
        wait_for(marker.exists, "the harness ran")
        with box.owner(epoch=2, after=0) as second:
            assert second.hello.fields["started"] is True and second.hello.fields["state"] == "running"
            start(second, script)
            second.send("message", b"go\n", n=1, id="a")
            frames = second.until_verb("exit")
            start(second, script)
            second.send("stat")
            second.answer("stat")
            assert second.hello.fields["harness_pid"] > 1
    assert frames[-1].fields["code"] == 4
    assert marker.read_text() == "x\n"
    assert [f.verb for f in box.spool.frames()].count("started") == 1
    assert list(box.spool.frames())[-1].verb == "exit"


def test_environment_is_what_start_says_and_nothing_else(box: Box) -> None:
    with box.owner(after=0) as owner:
        start(owner, "", argv=["env"], env={"A": "1", "B": b"\xff", "LANG": "de_DE"})
        lines = joined(owner.until_verb("exit"), "stdout").splitlines()
    names = {line.split(b"=")[0] for line in lines}
    assert names == {b"A", b"B", b"LANG", b"PATH", b"HOME", b"PWD"}
    assert b"PWD=/tmp" in lines and b"B=\xff" in lines and b"LANG=de_DE" in lines and b"HOME=/state/home" in lines


def test_the_task_is_a_file_for_anyone_to_read_before_the_harness_runs(box: Box) -> None:
    with box.owner(after=0) as owner:
        owner.send(
            "start",
            b"do it\n\xff",
            argv=["bash", "-c", "cat /run/task; stat -c %a:%u /run/task"],
            env={},
            cwd="/tmp",
            stdin="none",
        )
        assert joined(owner.until_verb("exit"), "stdout") == b"do it\n\xff444:0\n"


@pytest.mark.parametrize("path", ["/workspace/x", "/run/carrel/x", "/run/../etc/x", "/run/", "task", "/run/carrel"])
def test_a_task_file_where_uid_1000_may_write_is_refused(box: Box, path: str) -> None:
    with box.owner(after=0) as owner:
        start(owner, "exit 0", task_file=path)
        assert owner.answer("refused").fields["field"] == "task_file"


# -- modes -----------------------------------------------------------------------------------------------------------


def test_json_lines_are_cut_at_newlines_only(box: Box) -> None:
    script = r"""printf ' \n {"a":1}\n{"b":'; sleep 0.2; printf '2}\n{"c":3}\n{"last":'"""
    with box.run(script, stdin="none") as owner:
        frames = owner.until_verb("exit")
    stdout = [frame.payload for frame in frames if frame.fields.get("stream") == "stdout"]
    assert b"".join(stdout) == b' \n {"a":1}\n{"b":2}\n{"c":3}\n{"last":'
    assert all(payload.endswith(b"\n") for payload in stdout[:-1]) and stdout[-1] == b'{"last":'
    assert [f.fields["output"] for f in frames if f.verb == "mode"] == ["jsonl"]


def test_what_does_not_begin_with_a_brace_is_bytes(box: Box) -> None:
    with box.run("printf 'x{'; sleep 0.2; printf '\\n{\"a\":1}\\n'") as owner:
        frames = owner.until_verb("exit")
    assert [f.fields["output"] for f in frames if f.verb == "mode"] == ["bytes"]
    assert next(f.payload for f in frames if f.verb == "output") == b"x{"


def test_a_line_of_three_megabytes_is_cut_and_marked(box: Box) -> None:
    script = "import sys; w = sys.stdout.write; w('{' + 'x' * 3_000_000 + chr(10)); w('{}' + chr(10))"
    with box.owner(after=0) as owner:
        start(owner, "", argv=["python3", "-c", script], output="jsonl")
        frames = [f for f in owner.until_verb("exit") if f.verb == "output"]
    assert b"".join(f.payload for f in frames) == b"{" + b"x" * 3_000_000 + b"\n{}\n"
    assert [f.fields.get("partial", False) for f in frames[:-1]].count(True) == 3
    assert not frames[-1].fields.get("partial")


# -- signals, and everything it leaves behind ------------------------------------------------------------------------


def test_a_signal_reaches_the_whole_group_once_per_id(box: Box) -> None:
    script = """
    trap 'echo got-int' INT; (trap 'echo child-int; exit' INT; echo child; while :; do sleep 0.01; done) &
    echo ready; while :; do sleep 0.01; done
    """
    with box.run(script) as owner:
        frames = owner.until(lambda f: b"child" in f.payload)
        if b"ready" not in joined(frames, "stdout"):
            frames += owner.until(lambda f: b"ready" in f.payload)
        for _ in range(3):
            owner.send("signal", id="i1", signum=2, to="group")
        frames = owner.until_verb("signalled")
        seen = joined(frames, "stdout")
        while not (b"got-int" in seen and b"child-int" in seen):
            frame = owner.next()
            frames.append(frame)
            seen = joined(frames, "stdout")
        owner.send("signal", id="k", signum=9, to="group")
        frames += owner.until_verb("exit")
    signalled = [(f.fields["id"], f.fields["sent"]) for f in frames if f.verb == "signalled"]
    assert signalled == [("i1", True), ("k", True)]
    assert joined(frames, "stdout").count(b"got-int") == 1
    assert frames[-1].fields["signal"] == 9


def test_an_interrupt_reaches_a_blocking_command(box: Box) -> None:
    with box.run("trap 'echo interrupted; exit 130' INT; sleep 600") as owner:
        owner.until_verb("started")
        wait_for(lambda: _comm(box) == {"bash", "sleep"}, "bash waits for sleep")
        owner.send("signal", id="i", signum=2, to="group")
        frames = owner.until_verb("exit")
    assert b"interrupted" in joined(frames, "stdout") and frames[-1].fields["code"] == 130


def _comm(box: Box) -> set[str]:
    """Names of what runs beside init and the spawner (who are called python3)."""
    own = children(box.init_pid)
    names = {Path(f"/proc/{pid}/comm").read_text().strip() for one in own for pid in [one, *children(one)]}
    return names - {"python3"}


def test_signals_without_a_running_harness_are_refused_and_the_id_stays_free(box: Box) -> None:
    with box.owner(after=0) as owner:
        owner.send("signal", id="s", signum=15)
        assert owner.answer("refused").fields["code"] == "not_running"
        start(owner, "trap 'exit 9' TERM; echo ready; while :; do sleep 0.01; done")
        owner.until(lambda f: b"ready" in f.payload)
        owner.send("signal", id="s", signum=15)
        assert owner.answer("exit").fields["code"] == 9


def test_kill_ends_everything_setsid_daemons_included(box: Box) -> None:
    script = """
    trap '' TERM INT HUP
    for i in $(seq 1 20); do setsid sh -c 'trap "" TERM INT HUP; while :; do sleep 1; done' >/dev/null 2>&1 & done
    echo ready; while :; do sleep 1; done
    """
    with box.run(script) as owner:
        owner.until(lambda f: b"ready" in f.payload)
        owner.send("stat")
        assert owner.answer("stat").fields["processes"] >= 21
        owner.send("kill")
        assert owner.answer("exit").fields["signal"] == 9
        with box.viewer() as viewer:

            def processes() -> int:
                viewer.send("stat")
                return int(viewer.answer("stat").fields["processes"])

            wait_for(lambda: processes() == 0, "all are gone")
            assert viewer.hello.fields["spawner_pid"] == 0
            viewer.send("exec", id="e", argv=["true"])
            assert viewer.answer("refused").fields["code"] == "no_spawner"


def test_a_background_child_that_holds_the_pipe_does_not_hold_the_end(box: Box) -> None:
    with box.run("sleep 600 & echo done; exit 5") as owner:
        frames = owner.until_verb("exit")
    assert frames[-1].fields["code"] == 5 and joined(frames, "stdout") == b"done\n"
    assert "orphans_cut" in [f.fields["what"] for f in frames if f.verb == "note"]


def test_a_late_writer_is_heard_while_it_keeps_writing(box: Box) -> None:
    with box.run("(for i in 1 2 3 4 5; do sleep 0.05; echo late $i; done) & exit 0") as owner:
        frames = owner.until_verb("exit")
    assert joined(frames, "stdout") == b"".join(b"late %d\n" % i for i in range(1, 6))
    assert frames[-1].verb == "exit" and not [f for f in frames if f.verb == "note"]


def test_zombies_are_reaped(box: Box) -> None:
    script = "for i in $(seq 1 50); do (setsid true &) ; done; sleep 0.1; echo ok; read x"
    with box.run(script) as owner, box.viewer() as viewer:
        owner.until(lambda f: b"ok" in f.payload)
        stdout, _, _ = viewer.exec("sh", "-c", "grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l")
        assert stdout == b"0\n"
        owner.send("kill")


def test_its_own_output_can_be_opened_again(box: Box) -> None:
    with box.run("echo a > /dev/stdout; echo b > /proc/self/fd/2; cat /dev/stdin") as owner:
        owner.send("message", b"c\n", n=1, id="m")
        owner.send("eof")
        frames = owner.until_verb("exit")
    assert (joined(frames, "stdout"), joined(frames, "stderr")) == (b"a\nc\n", b"b\n")


def test_shutdown_ends_harness_and_init_with_an_exit_frame(box: Box) -> None:
    with box.run("trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.01; done") as owner:
        owner.until(lambda f: b"ready" in f.payload)
        owner.send("shutdown", grace_s=30)
        with pytest.raises(Closed):
            owner.until(lambda f: False)
    frames = list(box.spool.frames())
    assert frames[-1].verb == "exit" and frames[-1].fields["code"] == 0
    assert b"bye" in joined(frames, "stdout")


def test_shutdown_kills_who_does_not_listen(box: Box) -> None:
    with box.run("trap '' TERM; echo ready; while :; do sleep 0.01; done") as owner:
        owner.until(lambda f: b"ready" in f.payload)
        owner.send("shutdown", grace_s=0)
        with pytest.raises(Closed):
            owner.until(lambda f: False)
    assert list(box.spool.frames())[-1].fields["signal"] == 9
