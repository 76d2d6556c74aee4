"""`carrel-intent` as a process, against the real journal: a command runs once, whatever dies around it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import Process
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_harness.carrel_intent import EXIT_IN_DOUBT, EXIT_REFUSED, EXIT_UNAVAILABLE, EXIT_USAGE
from agent_harness.intents import RESULT_BYTES
from agent_harness.recorded_run import TAIL_BYTES, Recorded
from orchestrator.intents import Decision, Intent, IntentState
from tests.agent_harness.journal_front import Front

MAIN = "import sys; from agent_harness.carrel_intent import main; sys.exit(main(sys.argv[1:]))"
HARNESS = Path(__file__).parents[2] / "agent-harness"


@dataclass
class Said:
    code: int
    out: bytes
    err: str


async def begun(front: Front, *words: str, cwd: Path) -> Process:
    """Our own group, as a harness's command has it."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", MAIN, *words),
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(HARNESS), **front.environment},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        process_group=0,
    )


async def ended(process: Process, stdin: bytes = b"") -> Said:
    out, err = await process.communicate(stdin)
    assert process.returncode is not None
    return Said(process.returncode, out or b"", err.decode())


async def once(front: Front, cwd: Path, *command: str, options: tuple[str, ...] = (), stdin: bytes = b"") -> Said:
    return await ended(await begun(front, "once", "--key", "k", *options, "--", *command, cwd=cwd), stdin)


async def intent(front: Front) -> Intent:
    return await front.store.intents.get(front.lease.execution_id, "k")


@pytest.mark.parametrize("code", [0, 3])
async def test_it_runs_once_and_says_the_same_again(front: Front, tmp_path: Path, code: int) -> None:
    command = ("sh", "-c", f"cat; echo err >&2; echo x >> ran; printf 'a\\377b'; exit {code}")
    first = await once(front, tmp_path, *command, stdin=b"in\n")
    assert (first.code, first.out, first.err) == (code, b"in\na\xffb", "err\n")
    again = await once(front, tmp_path, *command)
    assert (again.code, again.out) == (code, first.out)
    assert again.err.startswith("err\n") and "not run again" in again.err
    assert (tmp_path / "ran").read_text() == "x\n"
    entry = await intent(front)
    assert (entry.state, entry.effect, entry.kind) == (
        IntentState.FAILED if code else IntentState.DONE,
        "once",
        "command",
    )


async def killed_at_work(front: Front, cwd: Path, *options: str) -> None:
    """The first one is killed while its command runs, which does not outlive it."""
    script = "echo x >> ran; echo $$ > pid; mv pid there; exec sleep 1000"
    process = await begun(front, "once", "--key", "k", *options, "--", "sh", "-c", script, cwd=cwd)
    while not (cwd / "there").exists():
        await asyncio.sleep(0.01)
    process.kill()
    await process.wait()
    pid = int((cwd / "there").read_text())
    while Path(f"/proc/{pid}").exists() and "State:\tZ" not in Path(f"/proc/{pid}/status").read_text():
        await asyncio.sleep(0.01)


SAME = ("sh", "-c", "echo x >> ran; echo $$ > pid; mv pid there; exec sleep 1000")


async def test_where_nobody_knows_it_is_in_doubt(front: Front, tmp_path: Path) -> None:
    await killed_at_work(front, tmp_path)
    said = await once(front, tmp_path, *SAME)
    assert (said.code, said.out) == (EXIT_IN_DOUBT, b"")
    assert "carrel settle exe_a k retry|done|fail" in said.err
    assert (tmp_path / "ran").read_text() == "x\n"
    await front.settle(Decision.DONE, "the mail is in the outbox")
    said = await once(front, tmp_path, *SAME)
    assert (said.code, said.out) == (0, b"the mail is in the outbox\n") and "settled as done by ada" in said.err
    assert (tmp_path / "ran").read_text() == "x\n"


async def test_settled_as_failed_it_fails(front: Front, tmp_path: Path) -> None:
    await killed_at_work(front, tmp_path)
    await once(front, tmp_path, *SAME)
    await front.settle(Decision.FAIL, "no")
    assert (await once(front, tmp_path, *SAME)).code == 1


async def test_it_waits_for_a_decision_and_runs_again_if_told_to(front: Front, tmp_path: Path) -> None:
    await killed_at_work(front, tmp_path)
    waiting = await begun(front, "once", "--key", "k", "--wait", "--", *SAME, cwd=tmp_path)
    assert waiting.stderr
    assert b"in doubt" in await waiting.stderr.readline()
    await front.settle(Decision.RETRY)
    while (tmp_path / "ran").read_text() != "x\nx\n":
        await asyncio.sleep(0.01)
    waiting.send_signal(signal.SIGTERM)
    assert (await ended(waiting)).code == 128 + signal.SIGTERM
    assert (await intent(front)).state is IntentState.FAILED


async def test_what_may_run_twice_does(front: Front, tmp_path: Path) -> None:
    await killed_at_work(front, tmp_path, "--effect", "idempotent")
    (tmp_path / "there").unlink()
    process = await begun(front, "once", "--key", "k", "--effect", "idempotent", "--", *SAME, cwd=tmp_path)
    while not (tmp_path / "there").exists():
        await asyncio.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert (await ended(process)).code == 128 + signal.SIGINT
    assert (tmp_path / "ran").read_text() == "x\nx\n"


async def test_a_key_means_one_thing(front: Front, tmp_path: Path) -> None:
    """The same words elsewhere are another thing, too."""
    assert (await once(front, tmp_path, "true")).code == 0
    (tmp_path / "sub").mkdir()
    for place, command in ((tmp_path, "false"), (tmp_path / "sub", "true")):
        said = await once(front, place, command)
        assert said.code == EXIT_REFUSED and "carrel-intent: " in said.err


@pytest.mark.parametrize("to_group", [False, True])
async def test_a_signal_reaches_the_command_once(front: Front, tmp_path: Path, to_group: bool) -> None:
    script = (
        "import signal, sys; print('up', flush=True)\n"
        "print(sorted(int(signal.sigwait({2, 10, 15})) for _ in range(3)), signal.sigpending(), flush=True)\n"
    )
    block = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, {2, 10, 15})\n"
    process = await begun(front, "once", "--key", "k", "--", sys.executable, "-c", block + script, cwd=tmp_path)
    assert process.stdout and await process.stdout.readline() == b"up\n"
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
        if to_group:
            os.killpg(process.pid, number)
        else:
            os.kill(process.pid, number)
    said = await ended(process)
    assert (said.code, said.out) == (0, b"[2, 10, 15] set()\n")


async def test_the_store_may_be_away_meanwhile(front: Front, tmp_path: Path) -> None:
    front.faults += [503, "hang up", "half", "", 503, "half"]
    assert (await once(front, tmp_path, "sh", "-c", "echo x >> ran")).code == 0
    assert (tmp_path / "ran").read_text() == "x\n" and (await intent(front)).state is IntentState.DONE


async def test_a_result_nobody_takes_is_said_and_left_in_doubt(front: Front, tmp_path: Path) -> None:
    front.faults += ["", 409]
    said = await once(front, tmp_path, "sh", "-c", "echo x >> ran; exit 4")
    assert said.code == 4 and "could not be recorded" in said.err
    assert (await once(front, tmp_path, "sh", "-c", "echo x >> ran; exit 4")).code == EXIT_IN_DOUBT
    assert (tmp_path / "ran").read_text() == "x\n"


async def test_without_a_gateway_nothing_runs(front: Front, tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", MAIN, "once", "--key", "k", "--", "touch", "ran"),
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(HARNESS)},
        stdin=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said = await ended(process)
    assert said.code == EXIT_UNAVAILABLE and "CARREL_GATEWAY" in said.err and not (tmp_path / "ran").exists()


async def test_much_output_passes_whole_and_its_end_is_kept(front: Front, tmp_path: Path) -> None:
    command = ("sh", "-c", "seq 1 200000; head -c 60000 /dev/zero >&2")
    first = await once(front, tmp_path, *command)
    whole = b"".join(b"%d\n" % n for n in range(1, 200_001))
    assert first.out == whole and first.err == "\0" * 60_000
    entry = await intent(front)
    assert len(entry.result.encode()) <= RESULT_BYTES
    again = await once(front, tmp_path, *command)
    assert again.out and whole.endswith(again.out) and len(again.out) > 1000
    zeros, _, told = again.err.partition("carrel-intent: ")
    lost = len(whole) - len(again.out) + 60_000 - len(zeros)
    assert set(zeros) == {"\0"} and told.startswith(f"the first {lost} bytes")


async def test_what_it_leaves_running_holds_nothing_up(front: Front, tmp_path: Path) -> None:
    said = await once(front, tmp_path, "sh", "-c", "sleep 1000 & echo $! > pid; echo done")
    assert (said.code, said.out) == (0, b"done\n")
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


async def test_a_reader_that_leaves_does_not_end_it(front: Front, tmp_path: Path) -> None:
    process = await begun(
        front, "once", "--key", "k", "--", "sh", "-c", "read x; seq 1 99999; echo x >> ran", cwd=tmp_path
    )
    assert process.stdin and process.stdout
    process.stdout._transport.close()  # type: ignore[attr-defined]  # our end of its stdout
    process.stdin.write(b"go\n")
    assert await process.wait() == 0
    assert (tmp_path / "ran").exists() and '"exit": 0' in (await intent(front)).result


async def test_what_cannot_be_executed(front: Front, tmp_path: Path) -> None:
    said = await once(front, tmp_path, "no-such-program")
    assert said.code == 127 and "nothing was recorded" in said.err and front.asked == []
    (tmp_path / "odd").write_bytes(b"\x7fELF and no more")
    (tmp_path / "odd").chmod(0o755)
    said = await once(front, tmp_path, "./odd")
    assert said.code == 126 and (await intent(front)).state is IntentState.FAILED


async def test_what_is_recorded_can_be_seen(front: Front, tmp_path: Path) -> None:
    await once(front, tmp_path, "echo", "hi", options=("--summary", "greets"))
    said = await ended(await begun(front, "show", "k", cwd=tmp_path))
    assert said.code == 0 and b'"summary": "greets"' in said.out and b'"state": "done"' in said.out
    assert (await ended(await begun(front, "show", "other", cwd=tmp_path))).code == EXIT_REFUSED


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["twice"],
        ["once", "--", "true"],
        ["once", "--key", "k"],
        ["once", "--key", "k", "true"],
        ["once", "--key", "k", "--"],
        ["once", "--key", "", "--", "true"],
        ["once", "--key", "a\nb", "--", "true"],
        ["once", "--key", "x" * 257, "--", "true"],
        ["once", "--key", "\udcff", "--", "true"],
        ["once", "--key", "k", "--effect", "some", "--", "true"],
        ["show"],
    ],
)
async def test_wrong_usage_runs_nothing(front: Front, tmp_path: Path, words: list[str]) -> None:
    said = await ended(await begun(front, *words, cwd=tmp_path))
    assert said.code == EXIT_USAGE and said.err and front.asked == []


streams = st.one_of(st.binary(max_size=200), st.integers(0, 3 * TAIL_BYTES).map(lambda n: ("é\0x" * n)[:n].encode()))


@given(st.integers(0, 255), streams, streams)
def test_a_record_is_text_that_fits_and_reads_back(code: int, out: bytes, err: bytes) -> None:
    recorded = Recorded(code, out, err)
    text = recorded.text()
    assert len(text.encode()) <= RESULT_BYTES
    read = Recorded.read(text)
    assert read is not None and read.exit_code == code
    assert out.endswith(read.stdout) and err.endswith(read.stderr)
    assert read.cut_bytes == len(out) - len(read.stdout) + len(err) - len(read.stderr)
    assert read.cut_bytes == 0 or len(out) + len(err) > TAIL_BYTES // 8


@pytest.mark.parametrize("text", ["", "ok", "[]", "3", '{"a": 1}', '{"exit": "x"}', '{"exit": 1, "stdout_b64": 3}'])
def test_a_persons_words_are_not_a_record(text: str) -> None:
    assert Recorded.read(text) is None
