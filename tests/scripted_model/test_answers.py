"""What the scripted model answers: the same turn in every format, whole and streamed, decided by the request alone."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from scripted_model import ScriptedModel, read
from tests.scripted_model.peer import APIS, CHAT, MESSAGES, RESPONSES, ask, request, said

TURNS: list[dict[str, Any]] = [
    {"thought": "Where am I? Let me see first.", "text": "I look around, thoroughly: ü €.", "run": "ls -la"},
    {"calls": [{"name": "edit", "arguments": {"path": "a.py", "old": "1", "new": "2"}}], "run": ["true", "false"]},
    {"text": "All is done."},
]
RULE = {"match": "STOP", "text": "I stop."}


@pytest.mark.parametrize("api", APIS)
def test_a_conversation_goes_through_its_turns_and_ends(api: str) -> None:
    with ScriptedModel(read({"turns": TURNS})) as model:
        first = said(api, ask(model.url, "POST", api, request(api, "fix it")))
        second = said(api, ask(model.url, "POST", api, request(api, "fix it", "x", "y")))
        third = said(api, ask(model.url, "POST", api, request(api, "fix it", "x", "y", "x", "y")))
        beyond = said(api, ask(model.url, "POST", api, request(api, *"abcdefg")))
    assert first == (TURNS[0]["thought"], TURNS[0]["text"], [("bash", {"command": "ls -la"})])
    commands = [("bash", {"command": "true"}), ("bash", {"command": "false"})]
    assert second == ("", "", [("edit", TURNS[1]["calls"][0]["arguments"]), *commands])
    assert third == ("", "All is done.", [])
    assert beyond == ("", "The script script is at its end.", [])


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("stream", [False, True])
def test_a_restarted_server_gives_a_retry_the_same_bytes(api: str, stream: bool) -> None:
    answers = []
    for _ in range(2):
        with ScriptedModel(read({"turns": TURNS})) as model:
            answers += [ask(model.url, "POST", api, request(api, "a", "b", "c", stream=stream)).body for _ in range(2)]
    assert len(set(answers)) == 1


def test_messages_stream_as_anthropic_does() -> None:
    with ScriptedModel(read({"turns": TURNS})) as model:
        got = ask(model.url, "POST", MESSAGES, request(MESSAGES, "a", stream=True))
        whole = ask(model.url, "POST", MESSAGES, request(MESSAGES, "a")).json
    events = got.events
    assert got.headers["content-type"].startswith("text/event-stream")
    assert re.findall(r"^event: (.*)$", got.body.decode(), re.M) == [event["type"] for event in events]
    kinds = [event["type"] for event in events if event["type"] not in ("content_block_delta", "ping")]
    block = ["content_block_start", "content_block_stop"]
    assert kinds == ["message_start", *block * 3, "message_delta", "message_stop"]
    assert [e["index"] for e in events if e["type"] == "content_block_start"] == [0, 1, 2]
    began = events[0]["message"]
    assert (began["id"], began["content"], began["usage"]["input_tokens"]) == (
        whole["id"],
        [],
        whole["usage"]["input_tokens"],
    )
    assert events[-2]["delta"]["stop_reason"] == whole["stop_reason"] == "tool_use"
    assert events[-2]["usage"]["output_tokens"] == whole["usage"]["output_tokens"]
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(d.get("thinking", "") for d in deltas) == whole["content"][0]["thinking"]
    assert "".join(d.get("text", "") for d in deltas) == whole["content"][1]["text"]
    assert json.loads("".join(d.get("partial_json", "") for d in deltas)) == whole["content"][2]["input"]


@pytest.mark.parametrize("usage", [False, True])
def test_chat_streams_as_openai_does(usage: bool) -> None:
    body = request(CHAT, "a", stream=True) | {"stream_options": {"include_usage": usage}}
    with ScriptedModel(read({"turns": TURNS})) as model:
        events = ask(model.url, "POST", CHAT, body).events
        whole = ask(model.url, "POST", CHAT, request(CHAT, "a")).json
    assert events.pop() == "[DONE]"
    assert {event["id"] for event in events} == {whole["id"]}
    if usage:
        last = events.pop()
        assert (last["choices"], last["usage"]) == ([], whole["usage"])
        assert all(event["usage"] is None for event in events)
    else:
        assert not any("usage" in event for event in events)
    deltas = [event["choices"][0]["delta"] for event in events]
    message = whole["choices"][0]["message"]
    assert deltas[0]["role"] == "assistant" and deltas[-1] == {}
    assert [e["choices"][0]["finish_reason"] for e in events if e["choices"][0]["finish_reason"]] == ["tool_calls"]
    assert "".join(d.get("content") or "" for d in deltas) == message["content"]
    parts = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert (parts[0]["id"], parts[0]["function"]["name"]) == (message["tool_calls"][0]["id"], "bash")
    assert "".join(p["function"]["arguments"] for p in parts) == message["tool_calls"][0]["function"]["arguments"]


def test_responses_stream_as_openai_does() -> None:
    with ScriptedModel(read({"turns": TURNS})) as model:
        got = ask(model.url, "POST", RESPONSES, request(RESPONSES, "a", stream=True))
        whole = ask(model.url, "POST", RESPONSES, request(RESPONSES, "a")).json
    events = got.events
    assert re.findall(r"^event: (.*)$", got.body.decode(), re.M) == [event["type"] for event in events]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1]["type"] == "response.completed" and events[-1]["response"] == whole
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == whole["output"]
    assert [item["type"] for item in done] == ["reasoning", "message", "function_call"]
    text = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    assert text == TURNS[0]["text"]
    arguments = "".join(e["delta"] for e in events if e["type"] == "response.function_call_arguments.delta")
    assert arguments == done[2]["arguments"]


@pytest.mark.parametrize("api", APIS)
def test_a_rule_is_given_when_it_matches_and_is_not_counted(api: str) -> None:
    with ScriptedModel(read({"turns": [*TURNS, RULE]})) as model:
        stopped = said(api, ask(model.url, "POST", api, request(api, "a", "b", "now STOP please")))
        onward = said(api, ask(model.url, "POST", api, request(api, "a", "b", "now STOP please", "I stop.", "go on")))
    assert stopped[1] == "I stop."
    assert [name for name, _ in onward[2]] == ["edit", "bash", "bash"]  # turn 1, though two answers came before


@pytest.mark.parametrize("api", APIS)
def test_a_rule_for_what_a_user_says_on_the_way_does_not_hear_the_task(api: str) -> None:
    rule = {"user": ".", "text": "You said: {{said}}"}
    with ScriptedModel(read({"turns": [*TURNS, rule]})) as model:
        task = said(api, ask(model.url, "POST", api, request(api, "task")))
        heard = said(api, ask(model.url, "POST", api, request(api, "task", "x", "by the way")))
        later = said(api, ask(model.url, "POST", api, request(api, "task", "x", "by the way", "y", "and")))
    assert task[1] == TURNS[0]["text"]
    assert heard[1] == "You said: by the way"
    assert later[1] == "You said: and"


@pytest.mark.parametrize("api", APIS)
def test_a_marker_in_a_summary_says_where_it_goes_on(api: str) -> None:
    with ScriptedModel(read({"turns": TURNS})) as model:
        at_once = said(api, ask(model.url, "POST", api, request(api, "Summary: … [[turn:2]]")))
        later = said(api, ask(model.url, "POST", api, request(api, "Summary: [[turn:1]]", "x", "y")))
    assert at_once[1] == later[1] == "All is done."


@pytest.mark.parametrize("api", APIS)
def test_scripts_are_chosen_by_a_marker_wherever_it_stands(api: str) -> None:
    scripts = {"scripts": {"one": [{"text": "from one"}], "two": [{"text": "from two"}, {"text": "two again"}]}}
    with ScriptedModel(read(scripts)) as model:
        assert said(api, ask(model.url, "POST", api, request(api, "hello")))[1] == "from one"
        assert said(api, ask(model.url, "POST", api, request(api, "do [[script:two]] it")))[1] == "from two"
        assert said(api, ask(model.url, "POST", api, request(api, "a", "b", "[[script:two]]")))[1] == "two again"
        strange = ask(model.url, "POST", api, request(api, "[[script:three]]"))
    assert strange.status == 400 and "there are one, two" in strange.json["error"]["message"]


@pytest.mark.parametrize("api", APIS)
def test_scripts_are_chosen_by_the_task(api: str) -> None:
    scripts = {
        "scripts": {"one": [{"text": "1"}], "two": {"task": "(?i)mend", "turns": [{"text": "2"}, {"text": "3"}]}}
    }
    with ScriptedModel(read(scripts)) as model:
        assert said(api, ask(model.url, "POST", api, request(api, "Mend it")))[1] == "2"
        assert said(api, ask(model.url, "POST", api, request(api, "Mend it", "2", "and?")))[1] == "3"
        assert said(api, ask(model.url, "POST", api, request(api, "hello", "1", "mend it")))[1] != "2"


@pytest.mark.parametrize("api", APIS)
def test_expect_refuses_what_it_does_not_find(api: str) -> None:
    with ScriptedModel(read([{"text": "ok", "expect": r"exit code \d"}])) as model:
        assert ask(model.url, "POST", api, request(api, "exit code 1")).status == 200
        refused = ask(model.url, "POST", api, request(api, "no such thing"))
    assert refused.status == 400 and "no such thing" in refused.json["error"]["message"]


@pytest.mark.parametrize("api", APIS)
def test_the_requests_own_limit_of_output_ends_the_answer(api: str) -> None:
    field = {MESSAGES: "max_tokens", CHAT: "max_completion_tokens", RESPONSES: "max_output_tokens"}[api]
    with ScriptedModel(read([{"text": "x" * 400, "run": "ls"}])) as model:
        got = ask(model.url, "POST", api, request(api, "a") | {field: 10})
        events = ask(model.url, "POST", api, request(api, "a", stream=True) | {field: 10}).events
    _, text, calls = said(api, got)
    assert (text, calls) == ("x" * 40, [])
    ending = {
        MESSAGES: lambda: (got.json["stop_reason"], events[-2]["delta"]["stop_reason"]),
        CHAT: lambda: (got.json["choices"][0]["finish_reason"], events[-2]["choices"][0]["finish_reason"]),
        RESPONSES: lambda: (got.json["incomplete_details"]["reason"], events[-1]["type"]),
    }[api]()
    assert (
        ending
        == {
            MESSAGES: ("max_tokens", "max_tokens"),
            CHAT: ("length", "length"),
            RESPONSES: ("max_output_tokens", "response.incomplete"),
        }[api]
    )


def test_the_last_words_can_be_said_back_and_tokens_told() -> None:
    turn: dict[str, Any] = {
        "text": "You said: {{said}}",
        "usage": {"input_tokens": 7, "cache_read_tokens": 100, "output_tokens": 3},
    }
    turn["usage"] |= {"cache_write_tokens": 20}
    with ScriptedModel(read([turn])) as model:
        got = ask(model.url, "POST", MESSAGES, request(MESSAGES, "hello\n  there")).json
        chat = ask(model.url, "POST", CHAT, request(CHAT, "hello")).json["usage"]
        counted = ask(model.url, "POST", "/v1/messages/count_tokens", request(MESSAGES, "x" * 400)).json
    assert got["content"][-1]["text"] == "You said: hello there"
    assert (got["usage"]["input_tokens"], got["usage"]["cache_read_input_tokens"]) == (7, 100)
    assert got["usage"]["cache_creation_input_tokens"] == chat["prompt_tokens_details"]["cache_write_tokens"] == 20
    assert (chat["prompt_tokens"], chat["completion_tokens"]) == (127, 3)
    assert 100 < counted["input_tokens"] < 200
