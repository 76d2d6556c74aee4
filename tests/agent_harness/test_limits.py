"""Where it stops, and that it says why; odd turns of a model; providers that fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.agent_harness.desk import APIS, Desk, bash, use

Build = Callable[..., Desk]


def test_steps(desk: Build) -> None:
    at = desk(*[bash(f"echo {i}") for i in range(10)], {"text": "Done."})
    assert at.run(LIMIT_STEPS="3") == 3
    assert at.result()["stop_reason"] == "max_steps" and "3 of 3 steps" in at.result()["text"]
    assert len(at.requests()) == 3 and len(at.results()) == 3
    assert at.run(LIMIT_STEPS="20", EXECUTION_RESUMED="1") == 0  # raised
    assert len(at.requests()) == 11


def test_tokens(desk: Build) -> None:
    at = desk({**bash("echo 1"), "usage": {"input_tokens": 900, "output_tokens": 200}}, {"text": "Done."})
    assert at.run(LIMIT_TOKENS="1000") == 3
    assert at.result()["stop_reason"] == "max_tokens" and "1100 of 1000" in at.result()["text"]


@pytest.mark.parametrize("environ", [{"DEADLINE": "2026-02-01T00:00:00Z"}, {"LIMIT_SECONDS": "1"}])
def test_time(desk: Build, environ: dict[str, str]) -> None:
    at = desk({"text": "Done."})
    assert at.run(**environ, EXECUTION_STARTED_AT="2026-01-01T00:00:00Z") == 3
    assert at.result()["stop_reason"] == "deadline" and at.requests() == []


@pytest.mark.parametrize("api", APIS)
def test_a_budget_that_is_used_up_is_said_with_its_figures(desk: Build, api: str) -> None:
    at = desk({"text": "x", "fault": {"status": 402, "times": 9}}, api=api)
    assert at.run() == 3
    assert at.result()["stop_reason"] == "budget" and len(at.requests()) == 1


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize(
    "fault",
    [
        {"status": 529, "times": 2},
        {"status": 429, "retry_after_s": 0},
        {"status": 500},
        {"cut_after_chunks": 3},
        {"error_after_chunks": 3},
    ],
)
def test_a_provider_that_fails_for_a_moment_is_asked_again_with_the_same_key(
    desk: Build, api: str, fault: dict[str, Any]
) -> None:
    text = "All is well that ends well, as somebody said."
    at = desk({"text": text, "piece_chars": 5, "fault": fault}, api=api)
    assert at.run() == 0
    requests = at.requests()
    assert len(requests) == 1 + fault.get("times", 1)
    assert {
        request["headers"].get("idempotency-key") or request["headers"]["Idempotency-Key"] for request in requests
    } == {"m1"}
    assert all(request["body"] == requests[0]["body"] for request in requests)
    told = ""
    for chunk in at.of("agent_message_chunk"):
        assert chunk["at"] == len(told)  # nothing is told twice
        told += chunk["text"]
    assert told == at.result()["text"] == text


def test_a_provider_that_is_away_for_too_long_is_an_error(desk: Build) -> None:
    at = desk({"text": "x", "fault": {"status": 503, "times": 1000}})
    assert at.run(MODEL_RETRY_S="1") == 1
    assert at.result()["stop_reason"] == "error" and "503" in at.of("error")[0]["text"]
    at.model.counts.reset()
    assert at.run(MODEL_RETRY_S="0.1", ANTHROPIC_BASE_URL="http://127.0.0.1:9") == 1


def test_a_key_that_is_refused_is_bad_configuration(desk: Build) -> None:
    at = desk({"text": "x"})
    at.model.key = "the right one"
    assert at.run() == 78
    assert "401" in at.of("error")[0]["text"]


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize(
    ("call", "told"),
    [
        ({"name": "fly", "arguments": {}}, "no tool 'fly'. There are: bash"),
        ({"name": "bash", "arguments": {}}, "bash needs 'command'"),
        ({"name": "bash", "arguments": {"command": 7}}, "must be of type string"),
        ({"name": "bash", "arguments": {"command": "ls", "speed": 1}}, "takes no 'speed'"),
        ({"name": "bash", "arguments": {"command": "ls", "effect": "good"}}, "one of none, idempotent"),
        ({"name": "bash", "arguments": {"command": "ls", "timeout_s": -1}}, "from 0.1 to 86400"),
        ({"name": "read", "arguments": {"path": "a\0b"}}, "null"),
        ({"name": "read", "arguments": {"path": "none"}}, "No such file"),
        ({"name": "search", "arguments": {"pattern": "("}}, "("),
        ({"name": "plan", "arguments": {"steps": ["x"]}}, "status"),
    ],
)
def test_an_odd_call_gets_an_answer_the_model_can_act_on(
    desk: Build, api: str, call: dict[str, Any], told: str
) -> None:
    at = desk({"calls": [call]}, {"text": "I see."}, api=api)
    assert at.run() == 0
    assert told in at.text("1.0") and at.results()["1.0"]["ok"] is False


@pytest.mark.parametrize("api", ["openai-chat", "openai-responses"])
@pytest.mark.parametrize("arguments", ['{"command": "ls', "[]", "ls -l"])
def test_arguments_that_are_no_json_object(desk: Build, api: str, arguments: str) -> None:
    at = desk({"calls": [{"name": "bash", "arguments": arguments}]}, {"text": "I see."}, api=api)
    assert at.run() == 0
    assert "Nothing was done" in at.text("1.0")


@pytest.mark.parametrize("api", APIS)
def test_an_empty_answer_is_asked_about_and_not_for_ever(desk: Build, api: str) -> None:
    at = desk({"text": ""}, {"text": " \n"}, {"text": "There.", "expect": "neither a call nor an answer"}, api=api)
    assert at.run() == 0
    assert at.result()["text"] == "There."


def test_nothing_but_empty_answers_is_an_end(desk: Build) -> None:
    at = desk(*[{"text": ""}] * 20)
    assert at.run() == 1
    assert at.result()["stop_reason"] == "stuck" and len(at.requests()) == 4


@pytest.mark.parametrize("api", APIS)
def test_an_answer_cut_off_at_the_limit_of_output_goes_on(desk: Build, api: str) -> None:
    at = desk({"text": "word " * 200}, {"text": "The rest.", "expect": "cut off at the limit"}, api=api)
    assert at.run(MAX_OUTPUT_TOKENS="50") == 0
    assert at.result()["text"] == "The rest."


def test_the_same_call_three_times_is_remarked_on_and_six_times_the_end(desk: Build) -> None:
    at = desk(*[bash("echo same")] * 20)
    assert at.run() == 1
    assert at.result()["stop_reason"] == "stuck" and len(at.requests()) == 6
    assert "same result" not in at.said_to_model(2) and "3 times in a row" in at.said_to_model(3)


def test_a_plan_is_told_and_kept(desk: Build) -> None:
    steps = [{"step": "Look", "status": "completed"}, {"step": "Act", "status": "in_progress"}]
    at = desk(use("plan", steps=steps), {"text": "Done."})
    assert at.run() == 0
    assert at.of("plan")[0]["entries"] == steps
