"""What is said to a harness while it works: in order, once, with receipts; asleep, awake, and at its end."""

from __future__ import annotations

import hashlib

import pytest

from orchestrator import events
from orchestrator.execution import InterruptWant, OutcomeKind
from orchestrator.lifecycle import ExecutionState
from tests.engine.stage import Stage, kinds, printed, stdout

pytestmark = pytest.mark.root
S = ExecutionState


async def test_a_question_half_way(here: Stage) -> None:
    here.work()
    asked = await here.submit('echo "your name?"; read name; echo "hello $name"')
    await here.saw(asked, printed("name?"))
    sent = await here.send(asked, "m1", "Ada")
    again = await here.send(asked, "m1", "Ada")
    assert (sent.n, sent.repeated, again.n, again.repeated) == (1, False, 1, True)
    record = await here.ended(asked)
    told = await here.history(asked)
    assert stdout(told) == b"your name?\nhello Ada\n"
    receipts = [(e.type, e.data["n"], e.data["id"]) for e in told if e.type.startswith("message.")]
    assert receipts == [(events.MESSAGE_ACCEPTED, 1, "m1"), (events.MESSAGE_DELIVERED, 1, "m1")]
    assert (record.inbox_tail, record.delivered) == (1, 1)


async def test_many_messages_in_order_under_deaths(here: Stage) -> None:
    asked = await here.bash("for i in $(seq 500); do read line; echo $line; done")
    worker = here.work(lease_s=1.0)
    for n in range(500):
        await here.send(asked, f"m{n}", f"line {n}")
        if n in (100, 250, 400):
            await here.saw(asked, printed(f"line {n // 2}\n"))
            await here.stop(worker)
            worker = here.work(lease_s=1.0)
    await here.ended(asked)
    told = await here.history(asked)
    assert stdout(told).decode().splitlines() == [f"line {n}" for n in range(500)]
    delivered = [e.data["n"] for e in told if e.type == events.MESSAGE_DELIVERED]
    assert delivered == list(range(1, 501))


async def test_jsonl_with_receipts_of_use(here: Stage) -> None:
    here.work()
    script = (
        "import sys, json\n"
        "print(json.dumps({'type': 'progress', 'text': 'up'}), flush=True)\n"
        "for line in sys.stdin:\n"
        "    said = json.loads(line)\n"
        "    print(json.dumps({'type': 'agent_message_chunk', 'said': said}), flush=True)\n"
        "    if said['type'] == 'user_message':\n"
        "        print(json.dumps({'type': 'ack', 'id': said['id']}), flush=True)\n"
        "        if said['text'] == 'stop': break\n"
    )
    asked = await here.submit("the task", harness="command", command=("python3", "-c", script), stdin="jsonl")
    await here.send(asked, "a", "one")
    await here.send(asked, "b", "stop")
    record = await here.ended(asked)
    told = await here.history(asked)
    said = [e.data["said"] for e in told if e.type == "agent_message_chunk"]
    assert said == [
        {"type": "task", "id": "task", "text": "the task"},
        {"type": "user_message", "id": "a", "text": "one", "mode": "steer"},
        {"type": "user_message", "id": "b", "text": "stop", "mode": "steer"},
    ]
    consumed = [(e.data["n"], e.data["id"], e.source) for e in told if e.type == events.MESSAGE_CONSUMED]
    assert consumed == [(1, "a", "platform"), (2, "b", "platform")]
    assert (record.delivered, record.consumed, record.output_mode) == (2, 2, "jsonl")


async def test_an_adopted_harness_acknowledges_what_it_was_sent_before(here: Stage) -> None:
    first = here.work(lease_s=1.0)
    script = (
        'echo "{\\"type\\":\\"progress\\"}"; read a; read b; echo "{\\"type\\":\\"ack\\",\\"id\\":\\"a\\"}"; read c'
    )
    asked = await here.bash(script)
    await here.send(asked, "a", "one")
    await here.saw(asked, lambda event: event.type == events.MESSAGE_DELIVERED)
    await here.stop(first)
    here.work()
    await here.send(asked, "b", "two")
    event = await here.saw(asked, lambda event: event.type == events.MESSAGE_CONSUMED)
    assert event.data == {"n": 1, "id": "a"}
    await here.cancel(asked, 0)
    await here.ended(asked)


async def test_a_harness_without_stdin(here: Stage) -> None:
    here.work()
    asked = await here.bash("cat; echo up; sleep 1000", stdin="none")
    await here.saw(asked, printed("up"))
    await here.send(asked, "m", "hello?")
    event = await here.saw(asked, lambda event: event.type == events.MESSAGE_EXPIRED)
    assert (event.data["n"], event.data["id"]) == (1, "m")
    await here.cancel(asked, 0)
    await here.ended(asked)
    assert kinds(await here.history(asked)).count(events.MESSAGE_EXPIRED) == 1


async def test_what_never_arrived_expires_at_the_end(here: Stage) -> None:
    asked = await here.bash("exec <&-; sleep 0.2")
    for n in range(1500):
        await here.send(asked, f"m{n}", "x")
    here.work()
    await here.ended(asked)
    told = await here.history(asked)
    settled = [e.data["n"] for e in told if e.type in (events.MESSAGE_DELIVERED, events.MESSAGE_EXPIRED)]
    assert settled == list(range(1, 1501))
    assert kinds(told)[-1] == events.FINISHED


async def test_sleep_and_wake(here: Stage) -> None:
    """Exit 75: the container goes, the files stay, a message brings it back where it was."""
    worker = here.work()
    script = (
        "n=$(cat n 2>/dev/null || echo 0); echo $((n+1)) > n; echo $EXECUTION_ATTEMPT $EXECUTION_RESUMED $n; "
        "read line || exit 1; echo $line; [ $n = 2 ] || exit 75"
    )
    asked = await here.bash(script)
    await here.send(asked, "a", "one")
    record = await here.until(asked, lambda record: record.state is S.HIBERNATED)
    assert record.owner is None
    await here.idle(worker)
    assert await here.parts.driver.list() == []
    await here.send(asked, "b", "two")
    await here.saw(asked, printed("two"))
    await here.until(asked, lambda record: record.state is S.HIBERNATED)
    await here.send(asked, "c", "three")
    record = await here.ended(asked)
    told = await here.history(asked)
    assert stdout(told) == b"1 0 0\none\n2 1 1\ntwo\n3 1 2\nthree\n"
    assert record.outcome is not None and record.outcome.kind is OutcomeKind.SUCCEEDED
    delivered = [(e.data["n"], e.data.get("redelivered", False)) for e in told if e.type == events.MESSAGE_DELIVERED]
    assert delivered == [(1, False), (2, False), (3, False)]


async def test_a_message_it_never_read_wakes_it_again(here: Stage) -> None:
    """Written into its pipe, not read before it went to sleep: delivered again to the next attempt, and marked."""
    here.work()
    asked = await here.bash(
        "echo up $EXECUTION_ATTEMPT; [ $EXECUTION_ATTEMPT = 2 ] || { sleep 0.5; exit 75; }; read a; echo $a"
    )
    await here.saw(asked, printed("up 1"))
    await here.send(asked, "a", "one")
    await here.ended(asked)
    told = await here.history(asked)
    assert stdout(told) == b"up 1\nup 2\none\n"
    delivered = [(e.data["n"], e.data.get("redelivered", False)) for e in told if e.type == events.MESSAGE_DELIVERED]
    assert delivered == [(1, False), (1, True)]


async def test_cancel_ends_one_that_sleeps(here: Stage) -> None:
    here.work()
    asked = await here.bash("exit 75")
    await here.until(asked, lambda record: record.state is S.HIBERNATED)
    await here.cancel(asked)
    record = await here.ended(asked)
    assert record.outcome is not None and record.outcome.kind is OutcomeKind.CANCELLED


async def test_a_large_message_arrives_whole(here: Stage) -> None:
    """Larger than a frame once it is JSON: it goes in parts."""
    here.work()
    read = "json.loads(sys.stdin.readline())['text'].encode()"
    script = f"import sys, json, hashlib\nprint(hashlib.sha256({read}).hexdigest())"
    asked = await here.submit(harness="command", command=("python3", "-c", script), stdin="jsonl")
    text = "\x01é\n" * (512 * 1024 // 4)
    await here.send(asked, "m", text)
    await here.ended(asked)
    assert stdout(await here.history(asked)).decode().strip() == hashlib.sha256(text.encode()).hexdigest()


async def test_ids_as_long_as_they_may_be(here: Stage) -> None:
    here.work()
    asked = await here.bash("trap 'echo int; exit 0' INT; echo up; read line; echo $line; while :; do sleep 0.05; done")
    await here.saw(asked, printed("up"))
    await here.send(asked, "m" * 128, "heard")
    await here.saw(asked, printed("heard"))
    await here.parts.executions.want(asked.id, InterruptWant("i" * 128, 1))
    record = await here.ended(asked)
    told = await here.history(asked)
    assert [e.data["id"] for e in told if e.type == events.INTERRUPTED] == ["i" * 128]
    assert record.outcome is not None and record.outcome.kind is OutcomeKind.SUCCEEDED
