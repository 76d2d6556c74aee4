"""`carrel run` behaves like a local command: streams, exit codes, signals, files. Real server, real init, real bash."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.place import LIMIT_S, Place, until

pytestmark = pytest.mark.root


def test_streams_apart_byte_for_byte_and_its_exit_code(place: Place) -> None:
    script = r"printf 'a\xff\x00b\n\xc3'; printf 'err\xfe' >&2; exit 3"
    done = place.carrel("run", "--", "bash", "-c", script)
    assert (done.stdout, done.stderr, done.returncode) == (b"a\xff\x00b\n\xc3", b"err\xfe", 3)


def test_much_output_arrives_whole(place: Place) -> None:
    done = place.carrel("run", "--", "bash", "-c", "seq 1 200000; seq 1 1000 >&2")
    assert done.returncode == 0
    assert done.stdout == b"".join(b"%d\n" % number for number in range(1, 200_001))
    assert done.stderr == b"".join(b"%d\n" % number for number in range(1, 1001))


@pytest.mark.parametrize(("command", "code"), [("kill -9 $$", 137), ("kill -TERM $$", 143), ("exit 255", 255)])
def test_signals_as_shells_have_them(place: Place, command: str, code: int) -> None:
    assert place.carrel("run", "--", "bash", "-c", command).returncode == code


def test_a_command_that_is_not_there(place: Place) -> None:
    done = place.carrel("run", "--", "no-such-program")
    assert done.returncode == 127
    assert b"check the command's name" in done.stderr


def test_a_deadline_is_124_and_says_what_to_do(place: Place) -> None:
    done = place.carrel("run", "--timeout", "1s", "--stop-timeout", "1s", "--", "sleep", "600")
    assert done.returncode == 124
    assert b"--timeout" in done.stderr


def test_a_task_is_a_script_from_the_line_stdin_or_a_file(place: Place, tmp_path: Path) -> None:
    assert place.ok("run", "echo one; echo $((1+1))") == "one\n2\n"
    assert place.ok("run", "-", stdin=b"echo from stdin") == "from stdin\n"
    (tmp_path / "task").write_text("echo from a file")
    assert place.ok("run", "-f", str(tmp_path / "task")) == "from a file\n"


def test_variables_name_and_labels(place: Place, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("A=file\nB=file\n")
    out = place.ok(
        "run", "-e", "A=flag", "--env-file", str(tmp_path / "env"), "--name", "named-run", "-l", "team=blue",
        "--", "bash", "-c", 'echo "$A $B $EXECUTION_NAME"',
    )  # fmt: skip
    assert out == "flag file named-run\n"
    record = place.record("named-run")
    assert record["labels"] == {"team": "blue"}
    assert place.ok("ps", "-aq", "-l", "team=blue").split() == [record["id"]]


def test_lines_of_stdin_become_messages(place: Place) -> None:
    script = 'while read -r line; do echo "got $line"; [ "$line" = end ] && exit 0; done'
    out = place.ok("run", "-i", "--", "bash", "-c", script, stdin="one\ntwo ü\nend\n".encode())
    assert out == "got one\ngot two ü\ngot end\n"


def test_without_i_stdin_is_left_alone(place: Place) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{{ {sys.executable} -m orchestrator run -- echo hi; cat; }}"],
        env=place.env, input=b"rest", capture_output=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == b"hi\nrest"


# -- signals ---------------------------------------------------------------------------------------------------------


def test_ctrl_c_interrupts(place: Place) -> None:
    script = "trap 'echo caught; exit 7' INT; echo ready; while :; do sleep 0.05; done"
    run = place.start("run", "--", "bash", "-c", script)
    run.saw(b"ready")
    run.press()
    assert run.code() == 7
    assert run.out == b"ready\ncaught\n"
    assert run.err == b""  # not a terminal: nothing but the program's own bytes


def test_ctrl_c_on_a_program_that_does_not_care_ends_it_as_locally(place: Place) -> None:
    run = place.start("run", "--", "bash", "-c", "echo ready; exec sleep 600")
    run.saw(b"ready")
    run.press()
    assert run.code() == 130


def test_a_second_ctrl_c_cancels(place: Place) -> None:
    script = "trap 'echo no' INT; trap 'echo ended; exit 9' TERM; echo ready; while :; do sleep 0.05; done"
    run = place.start("run", "--name", "twice", "--", "bash", "-c", script)
    run.saw(b"ready")
    run.press()
    run.saw(b"no")
    run.press()
    assert run.code() == 9
    assert place.record("twice")["outcome"]["kind"] == "CANCELLED"


def _on_a_terminal(place: Place, *arguments: str, until_seen: bytes, then: bytes) -> tuple[bytes, int]:
    """Run it on a terminal of its own; type `then` once `until_seen` is there. (What was shown, exit code)."""
    terminal, slave = pty.openpty()
    run = subprocess.Popen(
        ["setsid", "--ctty", "--wait", sys.executable, "-m", "orchestrator", *arguments],
        env=place.env, stdin=slave, stdout=slave, stderr=slave,
    )  # fmt: skip
    place.started.append(run)
    os.close(slave)
    shown = b""
    try:
        while piece := os.read(terminal, 65536):
            shown += piece
            if then and until_seen in shown:
                os.write(terminal, then)
                then = b""
    except OSError:  # EIO: the other side has closed it
        pass
    finally:
        os.close(terminal)
    return shown, run.wait(LIMIT_S)


def test_typed_on_a_terminal(place: Place) -> None:
    """Ctrl-C as the terminal makes it; and what is said there and nowhere else."""
    script = "trap 'echo caught; exit 7' INT; echo ready; while :; do sleep 0.05; done"
    shown, code = _on_a_terminal(place, "run", "--", "bash", "-c", script, until_seen=b"ready", then=b"\x03")
    assert code == 7
    assert b"carrel: exe_" in shown and b"caught" in shown and b"Ctrl-C again cancels" in shown
    shown, code = _on_a_terminal(
        place, "run", "--name", "typed", "--", "bash", "-c", "echo ready; sleep 600", until_seen=b"ready", then=b"\x1c"
    )
    assert code == 131 and b"it goes on" in shown
    assert place.record("typed")["state"] == "RUNNING"
    place.ok("kill", "typed")


def test_a_third_ctrl_c_leaves(place: Place) -> None:
    script = "trap 'echo no' INT; trap 'echo never' TERM; echo ready; while :; do sleep 0.05; done"
    run = place.start("run", "--name", "thrice", "--stop-timeout", "10m", "--", "bash", "-c", script)
    run.saw(b"ready")
    run.press()
    run.saw(b"no")
    run.press()
    run.saw(b"never")
    run.press()
    assert run.code() == 130
    assert place.record("thrice")["state"] == "STOPPING"
    place.ok("kill", "thrice")
    assert place.record("thrice")["state"] == "FINISHED"


@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGHUP])
def test_leaving_stops_nothing(place: Place, number: signal.Signals) -> None:
    run = place.start("run", "--name", f"left-{number}", "--", "bash", "-c", "echo ready; exec sleep 600")
    run.saw(b"ready")
    run.press(number)
    assert run.code() == 128 + number
    assert place.record(f"left-{number}")["state"] == "RUNNING"
    place.ok("kill", f"left-{number}")


def test_sigterm_cancels_as_a_local_command_would_end(place: Place) -> None:
    run = place.start("run", "--", "bash", "-c", "echo ready; exec sleep 600")
    run.saw(b"ready")
    run.press(signal.SIGTERM)
    assert run.code() == 143


def test_kill_9_of_the_watcher_stops_nothing_and_logs_go_on(place: Place) -> None:
    run = place.start("run", "--name", "watched", "--", "bash", "-c", "echo ready; read x; echo over")
    run.saw(b"ready")
    run.press(signal.SIGKILL)
    assert run.code() == -9
    place.ok("send", "watched", "go")
    assert place.ok("logs", "-f", "watched") == "ready\nover\n"


def test_a_reader_that_goes_stops_nothing(place: Place) -> None:
    command = f"{sys.executable} -m orchestrator run --name piped -- bash -c 'while sleep 0.01; do echo y; done'"
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -1; echo ${{PIPESTATUS[0]}}"], env=place.env, capture_output=True, timeout=60
    )
    assert done.stdout == b"y\n141\n", done.stderr
    assert place.record("piped")["state"] == "RUNNING"
    place.ok("kill", "piped")


# -- detached, files, json -------------------------------------------------------------------------------------------


def test_detached_then_last(place: Place) -> None:
    id = place.ok("run", "-d", "--", "bash", "-c", "read x; echo $x; exit 4").strip()
    assert id.startswith("exe_")
    place.ok("send", "@last", "hello")
    done = place.carrel("wait", "@last")
    assert (done.returncode, done.stdout) == (4, b"FAILED exit 4\n")
    assert place.ok("logs", id[:20]) == "hello\n"


def test_files_up_and_down_and_away(place: Place, tmp_path: Path) -> None:
    tree = tmp_path / "proj"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "a.txt").write_bytes(b"a\xff")
    (tree / ".hidden").write_text("h")
    (tree / "go.sh").write_text("#!/bin/bash\ncat proj/sub/a.txt proj/.hidden > out.bin; mkdir d; echo x > d/x\n")
    (tree / "go.sh").chmod(0o755)
    place.ok(
        "run", "--upload", str(tree), "--download", f"out.bin:{tmp_path}/got", "--download", f"d:{tmp_path}/dir",
        "--rm", "--name", "files", "--", "proj/go.sh",
    )  # fmt: skip
    assert (tmp_path / "got").read_bytes() == b"a\xffh"
    assert (tmp_path / "dir" / "x").read_text() == "x\n"
    gone = place.carrel("inspect", "files")
    assert gone.returncode == 125


def test_json_is_its_events_the_last_with_the_outcome(place: Place) -> None:
    done = place.carrel("run", "--json", "--", "bash", "-c", "echo hi; exit 2")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 2
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert events[-1]["type"] == "execution.finished"
    assert events[-1]["data"]["outcome"]["exit_code"] == 2


def test_the_same_key_is_the_same_execution(place: Place) -> None:
    run = ("run", "-d", "--idempotency-key", "once-only", "--", "true")
    assert place.ok(*run) == place.ok(*run)
    other = place.carrel("run", "-d", "--idempotency-key", "once-only", "--", "false")
    assert other.returncode == 125 and b"key" in other.stderr


def test_what_the_server_refuses_is_one_line_with_a_remedy(place: Place) -> None:
    done = place.carrel("run", "-e", "EXECUTION_ID=x", "--", "true")
    assert done.returncode == 125
    assert b"EXECUTION_ID" in done.stderr and "→".encode() in done.stderr and done.stdout == b""


def test_no_server(place: Place) -> None:
    done = place.carrel("ps", env={"CARREL_URL": "http://127.0.0.1:9"})
    assert done.returncode == 125
    assert b"carrel serve" in done.stderr and done.stdout == b""


def test_a_server_killed_under_a_run_costs_no_byte(own_place: Place) -> None:
    script = "for i in $(seq 1 400); do echo line $i; sleep 0.01; done"
    run = own_place.start("run", "--name", "on", "--", "bash", "-c", script)
    for stop in (b"line 50\n", b"line 200\n"):
        run.saw(stop)
        assert own_place.server is not None
        own_place.server.kill()
        own_place.server.wait()
        own_place.serve()
    assert run.code() == 0
    assert run.out == b"".join(b"line %d\n" % number for number in range(1, 401))
    assert own_place.record("on")["attempt"] == 1


def test_lines_of_stdin_arrive_once_and_in_order_while_the_server_is_killed(own_place: Place) -> None:
    script = 'while read -r line; do echo "got $line"; [ "$line" = end ] && exit 0; done'
    run = own_place.start("run", "-i", "--", "bash", "-c", script, stdin=subprocess.PIPE)
    assert run.process.stdin is not None and own_place.server is not None
    for number in range(1, 201):
        run.process.stdin.write(b"%d\n" % number)
        run.process.stdin.flush()
        if number in (60, 140):
            run.saw(b"got 20\n" if number == 60 else b"got 100\n")
            own_place.server.kill()
            own_place.server.wait()
            own_place.serve()
    run.process.stdin.write(b"end\n")
    run.process.stdin.close()
    assert run.code() == 0
    assert run.out == b"".join(b"got %d\n" % number for number in range(1, 201)) + b"got end\n"


def test_ctrl_c_before_it_begins_cancels(own_place: Place) -> None:
    """Nothing runs here that could be interrupted: the only place is taken."""
    assert own_place.server is not None
    own_place.server.terminate()
    own_place.server.wait()
    own_place.settings = ("driver=scripted", "lease_s=2", "concurrency=1")
    own_place.serve()
    own_place.ok("run", "-d", "--name", "first", "--", "sleep", "600")
    until(lambda: own_place.record("first")["state"] == "RUNNING", "the first runs")
    run = own_place.start("run", "--name", "second", "--", "true")
    until(lambda: "second" in own_place.ok("ps"), "the second is queued")
    run.press()
    assert run.code() == 130
    assert own_place.record("second")["outcome"]["kind"] == "CANCELLED"


def test_a_program_that_reads_to_the_end_can_be_given_no_stdin(place: Place) -> None:
    assert place.ok("run", "--stdin", "none", "--", "sh", "-c", "cat; echo over") == "over\n"
    assert place.carrel("run", "-i", "--stdin", "none", "--", "cat").returncode == 2
