"""The scripted model asked by the providers' own client libraries (build/sdks), streamed and whole. Prints what came,
as JSON: {"api streamed|whole": {thought, text, calls, stop, usage, id}}, and what they made of errors."""

from __future__ import annotations

import json
import sys
from typing import Any

import anthropic
import openai

PARAMETERS = {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]}
TASK = [{"role": "user", "content": "a task"}]


def of_messages(client: anthropic.Anthropic, streamed: bool) -> dict[str, Any]:
    asked: dict[str, Any] = {
        "model": "m",
        "max_tokens": 4096,
        "messages": TASK,
        "tools": [{"name": "bash", "input_schema": PARAMETERS}],
        "thinking": {"type": "enabled", "budget_tokens": 1024},
    }
    if streamed:
        with client.messages.stream(**asked) as stream:
            message = stream.get_final_message()
    else:
        message = client.messages.create(**asked)
    blocks = message.content
    return {
        "thought": "".join(block.thinking for block in blocks if block.type == "thinking"),
        "text": "".join(block.text for block in blocks if block.type == "text"),
        "calls": [[block.id, block.name, block.input] for block in blocks if block.type == "tool_use"],
        "stop": message.stop_reason,
        "usage": [message.usage.input_tokens, message.usage.output_tokens],
        "id": message.id,
    }


def of_chat(client: openai.OpenAI, streamed: bool) -> dict[str, Any]:
    asked: dict[str, Any] = {
        "model": "m",
        "messages": TASK,
        "tools": [{"type": "function", "function": {"name": "bash", "parameters": PARAMETERS}}],
    }
    if streamed:
        with client.chat.completions.stream(**asked, stream_options={"include_usage": True}) as stream:
            completion = stream.get_final_completion()
    else:
        completion = client.chat.completions.create(**asked)
    (choice,) = completion.choices
    calls = choice.message.tool_calls or []
    return {
        "thought": choice.message.reasoning_content,
        "text": choice.message.content,
        "calls": [[call.id, call.function.name, json.loads(call.function.arguments)] for call in calls],
        "stop": choice.finish_reason,
        "usage": [completion.usage.prompt_tokens, completion.usage.completion_tokens],
        "id": completion.id,
    }


def of_responses(client: openai.OpenAI, streamed: bool) -> dict[str, Any]:
    asked: dict[str, Any] = {
        "model": "m",
        "input": "a task",
        "tools": [{"type": "function", "name": "bash", "parameters": PARAMETERS}],
        "reasoning": {"effort": "low", "summary": "auto"},
    }
    if streamed:
        with client.responses.stream(**asked) as stream:
            response = stream.get_final_response()
    else:
        response = client.responses.create(**asked)
    items = response.output
    return {
        "thought": "".join(part.text for item in items if item.type == "reasoning" for part in item.summary),
        "text": response.output_text,
        "calls": [[i.call_id, i.name, json.loads(i.arguments)] for i in items if i.type == "function_call"],
        "stop": response.status,
        "usage": [response.usage.input_tokens, response.usage.output_tokens],
        "id": response.id,
    }


def main(url: str, key: str) -> dict[str, Any]:
    theirs = anthropic.Anthropic(base_url=url, api_key=key, max_retries=0)
    ours = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
    found: dict[str, Any] = {}
    for how, streamed in (("whole", False), ("streamed", True)):
        found[f"messages {how}"] = of_messages(theirs, streamed)
        found[f"chat {how}"] = of_chat(ours, streamed)
        found[f"responses {how}"] = of_responses(ours, streamed)
    found["counted"] = theirs.messages.count_tokens(model="m", messages=TASK).input_tokens
    found["models"] = [[one.id for one in client.models.list()] for client in (theirs, ours)]
    try:
        anthropic.Anthropic(base_url=url, api_key="wrong", max_retries=0).models.list()
    except anthropic.AuthenticationError as refused:
        found["anthropic refused"] = refused.body["error"]["type"]
    try:
        openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0).models.list()
    except openai.AuthenticationError as refused:
        found["openai refused"] = refused.code
    try:
        theirs.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": "[[script:limited]]"}])
    except anthropic.RateLimitError as refused:
        found["anthropic limited"] = refused.response.headers["retry-after"]
    try:
        ours.responses.create(model="m", input="[[script:limited]]")
    except openai.RateLimitError as refused:
        found["openai limited"] = refused.response.headers["retry-after"]
    return found


if __name__ == "__main__":
    json.dump(main(*sys.argv[1:]), sys.stdout)
