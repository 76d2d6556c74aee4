"""kill -9 at random moments: the task is finished all the same, nothing is done twice, no answer that was written down
is asked for again. SEED repeats a run."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.agent_harness.desk import Desk, Turn, bash, use

STEPS = 12
KILLS = 6  # of each run
SEED = int(os.environ.get("SEED", "1"))
FAST = [pytest.param(SEED + n) for n in range(2)]
FULL = [pytest.param(SEED + n, marks=pytest.mark.full) for n in range(2, 40)]


def task() -> list[Turn]:
    """Each step leaves a mark where a second one would show."""
    turns: list[Turn] = []
    for step in range(STEPS):
        mark = f"echo {step} >> ../marks"
        if step % 4 == 1:
            turns.append({"text": "Slowly now.", "piece_chars": 2, "chunk_s": 0.02, **bash(mark)})
        elif step % 4 == 2:
            turns.append(bash(f"sleep 0.15; {mark}; sleep 0.15"))
        elif step % 4 == 3:
            part = [{"name": "write", "arguments": {"path": f"{step}.txt", "content": "before"}}]
            part += [{"name": "edit", "arguments": {"path": f"{step}.txt", "old": "before", "new": "after"}}]
            turns.append({"calls": [*bash(mark)["calls"], *part]})
        else:
            turns.append(bash(mark))
    return [*turns, use("read", path="3.txt"), {"text": "Done."}]


class Watch:
    """What must be true whenever it was killed."""

    def __init__(self, at: Desk) -> None:
        self._at = at
        self._answered: set[str] = set()
        self._asked = 0

    def check(self) -> None:
        """After each life."""
        keys = [key for key, _ in self._requests()]
        again = [key for key in keys[self._asked :] if key in self._answered]
        assert not again, "asked again for an answer that was written down"
        self._asked = len(keys)
        for record in self._at.journal() if (self._at.state / "journal.jsonl").exists() else ():
            if record["type"] == "model" and record["state"] == "answered":
                self._answered.add(f"m{record['n']}")

    def bodies(self) -> None:
        """A request that was asked again was the same one, to the byte."""
        by_key: dict[str, set[str]] = {}
        for key, body in self._requests():
            by_key.setdefault(key, set()).add(body)
        assert {key: len(bodies) for key, bodies in by_key.items()} == dict.fromkeys(by_key, 1)

    def _requests(self) -> list[tuple[str, str]]:
        """Key and body of each; a gateway keeps the keys to itself."""
        found = []
        for request in self._at.requests():
            headers = {name.lower(): value for name, value in request["headers"].items()}
            if "idempotency-key" in headers:
                found.append((headers["idempotency-key"], json.dumps(request["body"])))
        return found


def lives(at: Desk, dice: random.Random, watch: Watch, *, everything: bool) -> int:
    """Killed KILLS times, then left to finish; how often it was really running when it was killed."""
    killed = 0
    for _ in range(KILLS):
        at.start(EXECUTION_RESUMED="1")
        assert at.process is not None
        try:
            at.process.wait(dice.uniform(0.02, 0.7))
        except subprocess.TimeoutExpired:
            killed += 1
        at.kill()
        if everything:
            at.end_commands()
        watch.check()
    assert at.run(EXECUTION_RESUMED="1", MESSAGE_WAIT_S="0") == 0
    watch.check()
    watch.bodies()
    return killed


@pytest.mark.parametrize("seed", FAST + FULL)
def test_the_harness_killed_does_nothing_twice_and_finishes(tmp_path: Path, seed: int) -> None:
    with Desk(tmp_path, task()) as at:
        watch = Watch(at)
        lives(at, random.Random(seed), watch, everything=False)
        assert (tmp_path / "marks").read_text().split() == [str(step) for step in range(STEPS)]
        for step in range(3, STEPS, 4):
            assert (at.workspace / f"{step}.txt").read_text() == "after"
        ids = [record["id"] for record in at.journal() if record["type"] == "tool_result" and record["state"] != "late"]
        assert len(ids) == len(set(ids)) and not any(r["status"] == "in_doubt" for r in at.results().values())
        assert at.result()["text"] == "Done."


@pytest.mark.parametrize("seed", FAST + FULL)
def test_all_of_the_sandbox_killed_leaves_doubt_and_never_a_second_time(tmp_path: Path, seed: int) -> None:
    with Desk(tmp_path, task()) as at:
        watch = Watch(at)
        lives(at, random.Random(1000 + seed), watch, everything=True)
        marks = Counter((tmp_path / "marks").read_text().split())
        assert not [step for step, times in marks.items() if times > 1]
        doubted = {r["id"] for r in at.journal() if r["type"] == "tool_result" and r["status"] == "in_doubt"}
        for step in range(STEPS):
            assert marks[str(step)] == 1 or f"{step + 1}.0" in doubted, f"step {step} was lost and nobody said so"
        told = {event["id"] for event in at.of("tool_call_update") if event["status"] == "in_doubt"}
        assert doubted <= told
        assert at.result()["text"] == "Done."
