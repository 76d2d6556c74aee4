"""A client of the scripted model by plain HTTP, and requests of each provider's format."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

MESSAGES, CHAT, RESPONSES = "/v1/messages", "/v1/chat/completions", "/v1/responses"
APIS = (MESSAGES, CHAT, RESPONSES)
PARAMETERS = {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]}


@dataclass(frozen=True)
class Got:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The data of each server-sent event; "[DONE]" as it is."""
        found = [line.removeprefix("data: ") for line in self.body.decode().splitlines() if line.startswith("data: ")]
        return [one if one == "[DONE]" else json.loads(one) for one in found]


def ask(url: str, method: str, path: str, body: object = None, **headers: str) -> Got:
    """Raises http.client.IncompleteRead where the answer is cut."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    try:
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection.request(method, path, content, {name.replace("_", "-"): value for name, value in headers.items()})
        with connection.getresponse() as answer:
            return Got(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def request(
    api: str, *turns: str, stream: bool = False, tools: tuple[str, ...] = ("bash",), system: str = ""
) -> dict[str, Any]:
    """A conversation of user, assistant, user, …, in the api's format; these function tools offered."""
    said = [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(turns)]
    body: dict[str, Any] = {"model": "m-1", "stream": stream}
    if api == MESSAGES:
        offered: list[dict[str, Any]] = [{"name": name, "input_schema": PARAMETERS} for name in tools]
        body |= {"max_tokens": 4096, "messages": said, "system": system, "thinking": {"type": "adaptive"}}
    elif api == CHAT:
        offered = [{"type": "function", "function": {"name": name, "parameters": PARAMETERS}} for name in tools]
        body |= {"messages": [{"role": "system", "content": system}, *said]}
    else:
        offered = [{"type": "function", "name": name, "parameters": PARAMETERS} for name in tools]
        body |= {"input": said, "instructions": system, "reasoning": {"summary": "auto"}}
    return body | ({"tools": offered} if offered else {})


def said(api: str, got: Got) -> tuple[str, str, list[tuple[str, Any]]]:
    """(thought, text, calls) of a whole answer."""
    body = got.json
    if api == MESSAGES:
        blocks = body["content"]
        return (
            "".join(b["thinking"] for b in blocks if b["type"] == "thinking"),
            "".join(b["text"] for b in blocks if b["type"] == "text"),
            [(b["name"], b["input"]) for b in blocks if b["type"] == "tool_use"],
        )
    if api == CHAT:
        message = body["choices"][0]["message"]
        calls = [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in message.get("tool_calls", [])]
        return message.get("reasoning_content", ""), message["content"] or "", calls
    items = body["output"]
    return (
        "".join(part["text"] for i in items if i["type"] == "reasoning" for part in i["summary"]),
        "".join(part["text"] for i in items if i["type"] == "message" for part in i["content"]),
        [(i["name"], json.loads(i["arguments"])) for i in items if i["type"] == "function_call"],
    )
