"""`bash` and `job`: what a command may do, and what the loop makes of it. Each with the real program."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from agent_harness.calls import SHORTENED_BYTES, trim
from tests.agent_harness.desk import PROGRAM, Desk, bash, eventually, use

Build = Callable[..., Desk]


def test_the_directory_is_carried_and_nothing_else(desk: Build) -> None:
    at = desk(
        bash("mkdir -p deep/er && cd deep/er && export X=1 && alias ll=ls"),
        bash('pwd; echo "[$X]"; cd ..; exit 3'),
        bash("pwd"),
        bash("cd /nowhere"),
        bash("pwd"),
        {"text": "Done."},
    )
    assert at.run() == 0
    deep = at.workspace / "deep"
    assert at.text("1.0") == f"[exit code 0, no output]\n[now in {deep}/er]"
    assert at.text("2.0") == f"{deep}/er\n[]\n[exit code 3]\n[now in {deep}]"
    assert at.text("3.0") == at.text("5.0") == str(deep)
    assert "[exit code 1]" in at.text("4.0")


def test_a_directory_that_has_gone_is_not_the_end(desk: Build) -> None:
    at = desk(bash("mkdir d && cd d && rm -rf ../d"), bash("pwd"), {"text": "Done."})
    assert at.run() == 0
    assert at.text("2.0") == str(at.workspace)


@pytest.mark.parametrize(
    "command",
    [
        'read -p "Continue? " answer; echo "got [$answer] $?"',
        "cat; echo got $?",
        "python3 -c 'input()' 2>&1 | tail -1; echo got",
        "(read x < /dev/tty) 2>&1; echo got",
        "git log 2>&1 | head -1; echo got",
    ],
)
def test_a_prompt_gets_no_answer_instead_of_an_eternity(desk: Build, command: str) -> None:
    at = desk(bash(command), {"text": "Done."})
    assert at.run() == 0
    assert "got" in at.text("1.0") and "still running" not in at.text("1.0")


def test_pagers_and_progress_are_off(desk: Build) -> None:
    at = desk(bash('echo "$PAGER $GIT_PAGER $TERM $GIT_TERMINAL_PROMPT $PIP_PROGRESS_BAR"'), {"text": "Done."})
    assert at.run() == 0
    assert at.text("1.0") == "cat cat dumb 0 off"


def test_the_time_limit_ends_all_of_it_and_keeps_what_it_printed(desk: Build) -> None:
    at = desk(bash("echo before; sleep 1000 & sleep 1001; echo after", timeout_s=0.5), {"text": "Done."})
    assert at.run() == 0
    assert at.text("1.0") == "before\n[ended at its limit of 0.5 s; this is what it had printed]"
    eventually(lambda: not at.wrappers())


def test_a_background_job_does_not_hold_the_call_and_lives_on(desk: Build) -> None:
    at = desk(
        bash("(while [ ! -e go ]; do sleep 0.02; done; echo late > late; echo on the pipe) & echo started"),
        bash("touch go; while [ ! -e late ]; do sleep 0.02; done; cat late"),
        {"text": "Done."},
    )
    assert at.run() == 0
    assert at.text("1.0") == "started"
    assert at.text("2.0") == "late"
    eventually(lambda: "on the pipe" in (at.state / "calls/1.0/out").read_text())


def test_a_long_command_yields_an_id_and_can_be_polled(desk: Build) -> None:
    at = desk(
        bash("echo one; while [ ! -e go ]; do sleep 0.02; done; echo two; exit 7", wait_s=0.2),
        bash("touch go"),
        use("job", id="1.0", action="poll", wait_s=60),
        {"text": "Done."},
    )
    assert at.run() == 0
    assert at.text("1.0").startswith("one\n[still running as job 1.0")
    assert at.text("3.0") == "one\ntwo\n[exit code 7]"


def test_the_model_is_told_of_a_job_that_ends_while_it_does_other_things(desk: Build) -> None:
    at = desk(
        bash("while [ ! -e go ]; do sleep 0.02; done; echo the end", wait_s=0),
        bash("touch go; while [ ! -e ../state/calls/1.0/rc ]; do sleep 0.02; done"),
        {"text": "Done.", "expect": r"\[job 1.0 is over\]\nthe end"},
    )
    assert at.run() == 0
    assert at.result()["text"] == "Done."


def test_a_job_with_a_terminal_can_be_typed_into(desk: Build) -> None:
    at = desk(
        bash('read -p "Name? " name; echo "Hello $name"; read -sp "Word? " w; echo; echo "$w"', tty=True, wait_s=0.3),
        use("job", id="1.0", action="type", text="Ada\n", wait_s=0.5),
        use("job", id="1.0", action="type", text="secret\n", wait_s=60),
        {"text": "Done."},
    )
    assert at.run() == 0
    assert at.text("1.0").startswith("Name?") and "still running" in at.text("1.0")
    assert "Hello Ada" in at.text("2.0")
    assert at.text("3.0").endswith("secret")


def test_typing_without_a_terminal_and_an_unknown_job_are_said(desk: Build) -> None:
    at = desk(
        bash("sleep 1000", wait_s=0),
        use("job", id="1.0", action="type", text="x"),
        use("job", id="9.9", action="poll"),
        use("job", id="1.0", action="kill"),
        {"text": "Done."},
    )
    assert at.run() == 0
    assert "no tty" in at.text("2.0") and "no job '9.9'. Running: 1.0" in at.text("3.0")
    assert at.text("4.0") == "[it was killed; this is what it had printed]"
    eventually(lambda: not at.wrappers())


def test_a_kill_reaches_what_hides_in_a_session_of_its_own(desk: Build) -> None:
    at = desk(
        bash(
            "setsid sh -c 'trap \"\" TERM INT HUP; echo $$ > pid; while :; do sleep 0.1; done' & sleep 1000", wait_s=0
        ),
        bash("while [ ! -s pid ]; do sleep 0.02; done; cat pid"),
        use("job", id="1.0", action="kill", wait_s=30),
        {"text": "Done."},
    )
    assert at.run() == 0
    hidden = int(at.text("2.0"))
    eventually(lambda: not Path(f"/proc/{hidden}").exists())


def test_what_is_no_text_and_what_draws_becomes_text(desk: Build) -> None:
    at = desk(
        bash(r"printf 'ok \xff\xfe \x1b[31mred\x1b[0m \0nul\a\n10%%\r50%%\r100%%\n\xc3'"),
        {"text": "Done."},
    )
    assert at.run() == 0
    assert at.text("1.0") == "ok �� red nul\n100%\n�"
    assert at.odd_lines == []


def test_long_output_is_head_and_tail_and_the_whole_in_a_file(desk: Build) -> None:
    at = desk(bash("seq 1 100000"), {"text": "Done."})
    assert at.run() == 0
    text = at.text("1.0")
    assert len(text) < 20_000 and text.startswith("1\n2\n") and text.endswith("\n100000")
    found = re.search(r"the whole is in (\S+) \.\.\.", text)
    assert found is not None
    assert Path(found[1]).read_text() == "".join(f"{i}\n" for i in range(1, 100001))


def test_a_gigabyte_costs_neither_memory_nor_disk(desk: Build) -> None:
    at = desk(
        bash("echo first; head -c 1000000000 /dev/zero | tr '\\0' x; echo; echo last", wait_s=300),
        bash("while [ ! -e measured ]; do sleep 0.05; done", wait_s=300),  # one that has ended has no peak any more
        {"text": "Done."},
    )
    at.start()
    assert at.process is not None
    done = at.wait_for("tool_call_update", lambda event: event["status"] == "completed")
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{at.process.pid}/status").read_text())
    assert peak is not None and int(peak[1]) < 120_000
    (at.workspace / "measured").touch()
    assert at.end() == 0
    assert done["text"].startswith("first\nxxx") and "x\nlast\n[of 1000000012 bytes " in done["text"]
    kept = (at.state / "calls/1.0/out").stat().st_size
    assert (64 << 20) <= kept < (65 << 20)
    assert not (at.state / "calls/1.0/tail").exists()


def test_yes_is_ended_and_the_loop_goes_on(desk: Build) -> None:
    at = desk(bash("yes", timeout_s=1), bash("echo still here"), {"text": "Done."})
    assert at.run() == 0
    assert at.text("1.0").startswith("y\ny\n") and "[ended at its limit of 1 s" in at.text("1.0")
    assert at.text("2.0") == "still here"
    assert sum(f.stat().st_size for f in (at.state / "calls/1.0").iterdir()) < (65 << 20)


def test_yes_seen_while_it_runs_shows_its_end(desk: Build) -> None:
    at = desk(bash("seq 1 20000000", wait_s=300), bash("seq 1 20000000; sleep 1000", wait_s=300, timeout_s=20),
              {"text": "Done."})  # fmt: skip
    at.start()
    at.wait_for("tool_call", lambda event: event["id"] == "2.0")
    eventually(lambda: (at.state / "calls/2.0/tail").exists())
    assert at.text("1.0").rstrip().rpartition("\n")[0].endswith("\n20000000")
    at.signal(signal.SIGINT)
    at.wait_for("tool_call_update", lambda event: event["status"] == "cancelled")
    assert "bytes left out" in at.text("2.0")


@pytest.mark.root
def test_a_fork_bomb_is_ended_and_the_loop_goes_on(short_dir: Path) -> None:
    bomb = "bomb() { bomb | bomb & }; bomb"
    turns = (
        bash(f"{bomb}; sleep 1000", timeout_s=3, wait_s=60),
        bash("echo still here"),
        bash(bomb, wait_s=5),  # left behind by a command that is over
        bash("echo and here"),
        bash("echo at last"),
        {"text": "Done."},
    )
    with Desk(short_dir, turns) as at:
        # As a user of its own, whose processes are counted: nobody else of the machine is to notice.
        uid = 60_000 + os.getpid() % 5_000
        program = shutil.copytree(PROGRAM.parent, short_dir / "agent_harness") / PROGRAM.name
        for path in (short_dir, at.workspace):
            os.chown(path, uid, uid)
        as_user = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--"]
        at.program = ["prlimit", "--nproc=80", *as_user, "/usr/bin/python3", "-I", str(program)]
        assert at.run() == 0
        assert at.text("2.0") == "still here"
        # The second bomb lives on beside them, and has all the processes this user may have: each is answered, be it
        # with a fork that was refused.
        for call, said in (("4.0", "and here"), ("5.0", "at last")):
            assert said in at.text(call) or "Resource temporarily unavailable" in at.text(call), at.text(call)
        at.end_commands()
        for entry in Path("/proc").iterdir():  # what is left of the second
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and entry.stat().st_uid == uid:
                    os.kill(int(entry.name), signal.SIGKILL)


def test_a_terminal_nobody_reads_does_not_deafen_the_wrapper(desk: Build) -> None:
    at = desk(
        bash("stty raw; sleep 1000", tty=True, wait_s=0.3, timeout_s=2000),
        use("job", id="1.0", action="type", text="x" * 60_000, wait_s=0),
        use("job", id="1.0", action="kill"),
        {"text": "Done."},
    )
    assert at.run() == 0
    assert "it was killed" in at.text("3.0")
    eventually(lambda: not at.wrappers())


def test_old_outputs_are_shortened_before_they_fill_the_disk(tmp_path: Path) -> None:
    for number in range(5):
        folder = tmp_path / f"{number}.0"
        folder.mkdir()
        (folder / "out").write_bytes(b"x" * 1_000_000)
        os.utime(folder / "out", (number, number))
        if number != 1:  # one still runs
            (folder / "rc").touch()
    trim(tmp_path, 3_500_000)
    sizes = [(tmp_path / f"{number}.0" / "out").stat().st_size for number in range(5)]
    assert sizes == [SHORTENED_BYTES, 1_000_000, SHORTENED_BYTES, 1_000_000, 1_000_000]
