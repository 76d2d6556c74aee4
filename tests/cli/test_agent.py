"""The bundled agent and the way out of a sandbox, from the command line: real server, gateway, init and agent, and a
model that follows a script."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.place import ROOT, Place

pytestmark = pytest.mark.root

# A box sees none of our files: the agent is uploaded, and its declaration says where it lies.
DECLARED = """
about = "the bundled agent, from the checkout"
argv = ["/usr/bin/python3", "-m", "agent_harness"]
stdin = "jsonl"
output = "jsonl"
resumes = true
env = { PYTHONPATH = "/workspace/lib" }
"""
AGENT = ("--harness", "agent", "--upload", f"{ROOT / 'agent-harness' / 'agent_harness'}:lib/agent_harness")
ASK = """
import json, os, sys, urllib.request as u
opener = u.build_opener(u.ProxyHandler({}))
def ask(path, body=None):
    head = {"content-type": "application/json", "authorization": "Bearer " + os.environ["CARREL_GATEWAY_TOKEN"]}
    data = None if body is None else json.dumps(body).encode()
    with opener.open(u.Request(os.environ["CARREL_GATEWAY"] + path, data=data, headers=head)) as answer:
        return json.loads(answer.read())
def begin(run):
    return ask("/carrel/v1/intents", {"key": "pay/1", "run": run, "kind": "command", "effect": "once",
                                      "summary": "pay the bill", "digest": "d"})
"""


@pytest.fixture(scope="module")
def agents() -> Iterator[Place]:
    assert os.geteuid() == 0, "boxes are namespaces: these tests need root"
    folder = Path(tempfile.mkdtemp(prefix="crl-", dir="/tmp"))
    (folder / "harnesses").mkdir()
    (folder / "harnesses" / "agent.toml").write_text(DECLARED)
    made = Place(folder)
    made.settings = ("driver=scripted", "scripted_model=demo", f"harness_dir={folder}/harnesses")
    try:
        made.serve()
        yield made
    finally:
        made.close()


def test_an_agent_s_work_reads_as_a_transcript(agents: Place) -> None:
    done = agents.carrel("run", *AGENT, "--name", "poet", "--max-steps", "9", "write a poem")
    assert done.returncode == 0
    out, err = done.stdout.decode(), done.stderr.decode().splitlines()
    assert "“write a poem”" in out and '"type"' not in out
    assert any(line.startswith("$ ") for line in err) and "  Left by the scripted model." in err
    assert agents.ok("logs", "poet") == out
    told = agents.ok("events", "--json", "--type", "tool_call", "poet").splitlines()
    assert len(told) == sum(line.startswith("$ ") for line in err)

    record = agents.record("poet")
    assert (record["spend"]["calls"], record["spend"]["replays"]) == (3, 0)
    assert record["limits"]["steps"] == 9 and record["spend"]["output_tokens"] > 0
    assert "SPENT" in agents.ok("ps", "-a", "--name", "poet") and " tok" in agents.ok("ps", "-a", "--name", "poet")
    journal = [json.loads(line) for line in agents.ok("intents", "--json", "poet").splitlines()]
    assert [(one["n"], one["kind"], one["state"]) for one in journal] == [(1, "bash", "done"), (2, "bash", "done")]


def test_beyond_its_budget_it_ends_and_says_what_to_do(agents: Place) -> None:
    done = agents.carrel("run", *AGENT, "--name", "poor", "--budget-tokens", "10", "write a poem")
    assert done.returncode != 0
    assert b"FAILED (budget)" in done.stderr and b"--budget-tokens" in done.stderr
    assert b"ended: budget" in done.stderr and b"carrel update @last --budget-usd" in done.stderr
    record = agents.record("poor")
    assert record["outcome"]["reason"] == "budget" and "the limit is 10" in record["over_budget"]
    assert record["spend"]["calls"] == 0


def test_a_call_that_is_held_goes_on_when_the_budget_is_raised(agents: Place) -> None:
    run = agents.start(
        "run", *AGENT, "--name", "patient", "--budget-tokens", "10", "--on-budget", "wait", "write a poem"
    )
    exceeded = agents.start("events", "-f", "--type", "budget.exceeded", "patient")
    while b"budget.exceeded" not in exceeded.out:
        if exceeded.process.poll() is not None:  # it was not there yet
            exceeded = agents.start("events", "-f", "--type", "budget.exceeded", "patient")
    shown = agents.ok("update", "patient", "--budget-tokens", "1_000_000")
    assert shown.startswith("budget 1M tok, then wait · spent ")
    assert run.code() == 0
    assert agents.record("patient")["over_budget"] == ""


def test_what_is_in_doubt_waits_for_a_person(agents: Place) -> None:
    script = ASK + (
        "assert begin('r1')['go']\n"
        "doubt = begin('r2')\n"
        "print(doubt['go'], doubt['intent']['state'], flush=True)\n"
        "print(ask('/carrel/v1/intents?key=pay%2F1&wait_s=60')['intent']['result'])\n"
    )
    run = agents.start("run", "--name", "doubtful", "--", "python3", "-c", script)
    run.saw(b"False in_doubt\n")
    listed = agents.carrel("intents", "--in-doubt", "doubtful")
    assert b"pay the bill" in listed.stdout and b"carrel settle doubtful pay/1" in listed.stderr
    assert agents.ok("settle", "doubtful", "pay/1", "done", "--result", "it was paid") == "pay/1: done\n"
    assert agents.ok("settle", "doubtful", "pay/1", "done", "--result", "it was paid") == "pay/1: done\n"
    assert run.code() == 0 and run.out.endswith(b"it was paid\n")
    refused = agents.carrel("settle", "doubtful", "pay/1", "retry")
    assert refused.returncode == 125 and b"only what is in doubt" in refused.stderr
    assert agents.carrel("settle", "doubtful", "pay/1", "retry", "--result", "x").returncode == 2


def test_the_allowlist_is_changed_while_it_runs(agents: Place) -> None:
    run = agents.start("run", "--name", "walled", "--allow", "A.example", "--", "bash", "-c", "echo up; sleep 1000")
    run.saw(b"up")
    assert agents.record("walled")["egress"] == {"allow": ["a.example"]}
    assert agents.ok("update", "walled", "--allow", "*.b.example:8443") == "egress *.b.example:8443\n"
    assert agents.ok("update", "walled", "--allow-nothing") == "egress none\n"
    wrong = agents.carrel("update", "walled", "--allow", "10.0.0.1")
    assert wrong.returncode == 125 and b"is an address" in wrong.stderr
    assert agents.carrel("update", "walled").returncode == 2
    agents.ok("kill", "walled")


def test_which_programs_there_are(agents: Place) -> None:
    rows = {line.split()[0]: line for line in agents.ok("harnesses").splitlines()}
    assert "yes" in rows["agent"] and "bash" in rows
    assert agents.carrel("run", "--harness", "no-such", "x").returncode == 125


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--budget-usd", "0.12345678"), b"six decimals"),
        (("--budget-usd", "lots"), b"for example 2.50"),
        (("--model", "a b"), b"cannot name a model"),
        (("--max-steps", "0"), b"limits.steps"),
        (("--allow", "https://a.example"), b"scheme"),
    ],
)
def test_what_is_wrong_is_named(agents: Place, options: tuple[str, ...], said: bytes) -> None:
    done = agents.carrel("run", *options, "--", "true")
    assert done.returncode in (2, 125) and said in done.stderr, done.stderr
