"""Answers turned from streams into JSON and back, three protocols: nothing a client could miss is lost on the way."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.calls import ModelUsage
from orchestrator.gateway.format_port import Seen, load
from orchestrator.gateway.formats import FORMATS
from orchestrator.gateway.sse import Splitter, TooLong, joined, parse, split
from orchestrator.models import ModelApi
from tests.gateway.rig import ALL, KEY, PATHS, asked, script

M, C, R = ModelApi.MESSAGES, ModelApi.CHAT, ModelApi.RESPONSES

MESSAGE: dict[str, Any] = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [
        {"type": "thinking", "thinking": "Let me see.", "signature": "c2ln"},
        {"type": "redacted_thinking", "data": "cmVk"},
        {"type": "text", "text": "Ünï \U0001f600", "citations": [{"type": "char_location", "cited_text": "x"}]},
        {"type": "tool_use", "id": "toolu_1", "name": "bash", "input": {"command": "ls", "n": [1, {"a": None}]}},
        {"type": "tool_use", "id": "toolu_2", "name": "none", "input": {}},
        {"type": "server_tool_use", "id": "srv_1", "name": "web_search", "input": {"query": "q"}},
        {"type": "web_search_tool_result", "tool_use_id": "srv_1", "content": [{"type": "web_search_result"}]},
    ],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": {
        "input_tokens": 5,
        "output_tokens": 7,
        "cache_read_input_tokens": 11,
        "cache_creation_input_tokens": 13,
    },
}
COMPLETION: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "system_fingerprint": "fp",
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "Ünï \U0001f600",
                "reasoning_content": "Let me see.",
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "bash", "arguments": '{"command":"ls"}'}},
                    {"id": "c2", "type": "function", "function": {"name": "none", "arguments": "{}"}},
                ],
            },
            "logprobs": {"content": [{"token": "x", "logprob": -0.1}]},
            "finish_reason": "tool_calls",
        },
        {"index": 1, "message": {"role": "assistant", "content": None, "refusal": "No."}, "finish_reason": "stop"},
    ],
    "usage": {
        "prompt_tokens": 20,
        "completion_tokens": 7,
        "total_tokens": 27,
        "prompt_tokens_details": {"cached_tokens": 11, "cache_write_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 3},
    },
}
RESPONSE: dict[str, Any] = {
    "id": "resp_1",
    "object": "response",
    "status": "completed",
    "model": "m",
    "output": [
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [{"type": "summary_text", "text": "Let me see."}],
            "content": [{"type": "reasoning_text", "text": "Really."}],
            "encrypted_content": "ZW5j",
        },
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [
                {"type": "output_text", "text": "Ünï \U0001f600", "annotations": [{"type": "file_citation"}]},
                {"type": "refusal", "refusal": "No."},
            ],
        },
        {
            "type": "function_call",
            "id": "fc_1",
            "call_id": "c1",
            "name": "bash",
            "arguments": '{"command":"ls"}',
            "status": "completed",
        },
        {
            "type": "custom_tool_call",
            "id": "ct_1",
            "call_id": "c2",
            "name": "patch",
            "input": "*** x",
            "status": "completed",
        },
    ],
    "usage": {
        "input_tokens": 20,
        "output_tokens": 7,
        "input_tokens_details": {"cached_tokens": 11, "cache_write_tokens": 4},
        "output_tokens_details": {"reasoning_tokens": 3},
    },
}
RICH = {M: MESSAGE, C: COMPLETION, R: RESPONSE}
USAGE = {
    M: ModelUsage(5, 7, cache_read_tokens=11, cache_write_tokens=13),
    C: ModelUsage(5, 7, cache_read_tokens=11, cache_write_tokens=4),
    R: ModelUsage(5, 7, cache_read_tokens=11, cache_write_tokens=4),
}


def sorted_away(api: ModelApi, answer: dict[str, Any]) -> dict[str, Any]:
    """Without what JSON and a stream say differently by nature."""
    if api is C:
        return {**answer, "choices": [_full(c) | {"message": _full(c["message"])} for c in answer["choices"]]}
    return answer


def _full(value: dict[str, Any]) -> dict[str, Any]:
    return {name: one for name, one in value.items() if one not in (None, [])}


@pytest.mark.parametrize("api", ALL)
def test_a_rich_answer_survives_the_way_there_and_back(api: ModelApi) -> None:
    form = FORMATS[api]
    stream = split(b"".join(form.streamed(RICH[api])))
    assert sorted_away(api, form.assembled(stream)) == sorted_away(api, RICH[api])
    reading = form.reading()
    seen = [reading.see(event) for event in stream]
    assert seen.index(Seen.LAST) == len(seen) - 1
    assert reading.usage == form.usage(RICH[api]) == USAGE[api]
    assert not reading.failed
    assert form.is_answer(RICH[api])


def test_what_a_stream_of_responses_says_on_the_way_is_what_its_end_says() -> None:
    texts: dict[str, str] = {}
    for number, event in enumerate(split(b"".join(FORMATS[R].streamed(RESPONSE)))):
        told = load(event.data)
        assert told["sequence_number"] == number
        assert told["type"] == event.name
        if event.name.endswith(".delta"):
            texts[event.name] = texts.get(event.name, "") + told["delta"]
    assert texts == {
        "response.reasoning_summary_text.delta": "Let me see.",
        "response.reasoning_text.delta": "Really.",
        "response.output_text.delta": "Ünï \U0001f600",
        "response.refusal.delta": "No.",
        "response.function_call_arguments.delta": '{"command":"ls"}',
        "response.custom_tool_call_input.delta": "*** x",
    }


def test_a_response_whose_last_event_leaves_its_output_out_has_it_from_before() -> None:
    stream = split(b"".join(FORMATS[R].streamed(RESPONSE)))
    bare = parse(b"data: " + json.dumps({"type": "response.completed", "response": RESPONSE | {"output": []}}).encode())
    assert FORMATS[R].assembled([*stream[:-1], bare]) == RESPONSE


def test_an_incomplete_response_ends_as_one() -> None:
    cut = RESPONSE | {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    stream = split(b"".join(FORMATS[R].streamed(cut)))
    assert stream[-1].name == "response.incomplete"
    assert FORMATS[R].reading().see(stream[-1]) is Seen.LAST
    assert FORMATS[R].assembled(stream) == cut


def test_arguments_that_come_in_pieces_are_one_object_again() -> None:
    def named(**told: Any) -> bytes:
        return f"event: {told['type']}\ndata: {json.dumps(told)}\n\n".encode()

    block = {"type": "tool_use", "id": "t", "name": "bash", "input": {}}
    stream = named(type="message_start", message=MESSAGE | {"content": []})
    stream += named(type="content_block_start", index=0, content_block=block)
    for piece in ("", '{"comm', 'and": "l', 's"}'):
        stream += named(type="content_block_delta", index=0, delta={"type": "input_json_delta", "partial_json": piece})
    stream += b": a comment\n\n" + named(type="ping") + named(type="content_block_stop", index=0)
    stream += named(type="message_delta", delta={"stop_reason": "tool_use"}, usage={"output_tokens": 9})
    assembled = FORMATS[M].assembled(split(stream + named(type="message_stop")))
    assert assembled["content"] == [block | {"input": {"command": "ls"}}]
    assert assembled["usage"]["output_tokens"] == 9
    assert assembled["usage"]["input_tokens"] == 5


@pytest.mark.parametrize("api", ALL)
async def test_the_scripted_providers_own_two_ways_are_one_to_us(api: ModelApi) -> None:
    with script({"thought": "Hm.", "text": "Hello there, how are you?", "run": "ls"}) as model:
        headers = {"x-api-key": KEY, "authorization": f"Bearer {KEY}"}
        tools: list[dict[str, Any]] = {
            M: [{"name": "bash", "input_schema": {"type": "object", "properties": {"command": {"type": "string"}}}}],
            C: [{"type": "function", "function": {"name": "bash", "parameters": {"properties": {"command": {}}}}}],
            R: [{"type": "function", "name": "bash", "parameters": {"properties": {"command": {}}}}],
        }[api]
        body = asked(api, tools=tools)
        async with httpx.AsyncClient(base_url=model.url, headers=headers) as client:
            answer = (await client.post(PATHS[api], json=body)).json()
            options = {"stream_options": {"include_usage": True}} if api is C else {}
            stream = split((await client.post(PATHS[api], json=body | {"stream": True} | options)).content)
    assert sorted_away(api, FORMATS[api].assembled(stream)) == sorted_away(api, answer)


@pytest.mark.parametrize("api", ALL)
def test_what_is_no_answer_cannot_be_turned(api: ModelApi) -> None:
    for body in ({}, {"error": {"message": "x"}}, {"type": "error"}, {"content": "x", "choices": 1, "output": {}}):
        assert not FORMATS[api].is_answer(body)
        with pytest.raises(ValueError, match="not a"):
            FORMATS[api].streamed(body)
    with pytest.raises(ValueError, match="a stream of"):
        FORMATS[api].assembled([])


FIELDS = [
    *("message", "content", "content_block", "delta", "index", "usage", "choices", "tool_calls", "function"),
    *("text", "partial_json", "response", "output", "item", "output_index", "summary", "logprobs", "citations"),
]
TYPES = [
    *("message_start", "content_block_start", "content_block_delta", "message_delta", "message_stop"),
    *("response.output_item.done", "response.completed", "text_delta", "input_json_delta", "error"),
]
JSON = st.recursive(
    st.none() | st.integers(-1, 2) | st.sampled_from(["", "x", "text", "response.completed"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(st.tuples(st.sampled_from(TYPES), st.dictionaries(st.sampled_from(FIELDS), JSON)), max_size=6))
def test_no_stream_makes_the_reader_fail(said: list[tuple[str, dict[str, Any]]]) -> None:
    events = [parse(b"data: " + json.dumps(fields | {"type": kind}).encode() + b"\n\n") for kind, fields in said]
    for form in FORMATS.values():
        reading = form.reading()
        for event in events:
            reading.see(event)
        with contextlib.suppress(ValueError):
            answer = form.assembled(events)
            form.usage(answer)
            if form.is_answer(answer):
                form.streamed(answer)


@given(st.lists(st.binary(max_size=20).filter(lambda b: not set(b) & {10, 13})), st.data())
def test_however_a_stream_is_cut_its_events_are_the_same(lines: list[bytes], data: st.DataObject) -> None:
    end = data.draw(st.sampled_from([b"\n", b"\r\n"]))
    body = b"".join(b"data: " + line + end * 2 for line in lines) + b"data: half"
    splitter = Splitter(1 << 20)
    events = []
    rest = body
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        events += splitter.feed(rest[:size])
        rest = rest[size:]
    assert [event.data for event in events] == lines
    assert joined(events) + splitter.rest == body


def test_an_event_without_end_is_bounded() -> None:
    splitter = Splitter(100)
    splitter.feed(b"data: " + b"x" * 90)
    with pytest.raises(TooLong):
        splitter.feed(b"x" * 10)
