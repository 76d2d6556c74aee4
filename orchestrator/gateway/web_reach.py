"""What in a model request would make the provider itself reach into the web: a way out of the sandbox past the egress
allowlist. Pure.

By a list of what is known not to: a tool of the provider's own that is not in it counts as reaching. So does a picture
or document by URL, which the provider would fetch from wherever it says, and a remote MCP server.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any, Final

from orchestrator.models import ModelApi

#: Tools the client runs itself, or the provider in a place of its own without a network.
_HOMELY: Final = {
    ModelApi.MESSAGES: (
        "custom",
        "bash_*",
        "text_editor_*",
        "computer_2*",
        "memory_*",
        "tool_search_tool_*",
        "code_execution_*",
    ),
    ModelApi.CHAT: ("function", "custom"),
    ModelApi.RESPONSES: (
        "function",
        "custom",
        "namespace",
        "local_shell",
        "apply_patch",
        "tool_search",
        "file_search",
        "image_generation",
    ),
}
_FAR: Final = ("http:", "https:", "//")
#: Parts of a message whose source may be an address.
_FETCHED: Final = (
    "image",
    "document",
    "image_url",
    "input_image",
    "input_file",
    "file",
    "video_url",
    "computer_screenshot",
)
_SEARCHING: Final = ("*-search-preview*", "*-search-api*", "*:online")
_DEEP: Final = 8  # a tool's result within a message's content: three levels


def reaching(api: ModelApi, model: str, body: dict[str, Any]) -> str:
    """The first thing that would, named for a person; "" = nothing."""
    return next(_reaching(api, model, body), "")


def _reaching(api: ModelApi, model: str, body: dict[str, Any]) -> Iterator[str]:
    for tool in _tools(body):
        kind = tool.get("type", "custom" if api is ModelApi.MESSAGES else "function")
        if not isinstance(kind, str) or not any(fnmatchcase(kind, known) for known in _HOMELY[api]):
            yield f"tool {str(kind)[:64]!r}"
    for name in ("mcp_servers", "web_search_options", "plugins", "prompt"):
        if body.get(name):
            yield name
    if any(fnmatchcase(model, pattern) for pattern in _SEARCHING):
        yield f"model {model!r}, which searches by itself"
    for part in _parts(body.get("messages") or body.get("input"), _DEEP):
        if any(address.lower().lstrip().startswith(_FAR) for address in _addresses(part)):
            yield f"{part.get('type')} by URL"


def _tools(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    tools = body.get("tools")
    for tool in tools if isinstance(tools, list) else ():
        if isinstance(tool, dict):
            yield tool
            yield from _tools({"tools": tool.get("tools")} if tool.get("type") == "namespace" else {})


def _parts(content: Any, deep: int) -> Iterator[dict[str, Any]]:
    """Every part of every message, also those within tools' results. Not what a tool was called with: that is the
    model's own text."""
    for part in content if isinstance(content, list) else [content]:
        if deep and isinstance(part, dict):
            yield part
            for inner in ("content", "output"):
                yield from _parts(part.get(inner), deep - 1)


def _addresses(part: dict[str, Any]) -> Iterator[str]:
    if part.get("type") in _FETCHED:
        for name in (*_FETCHED, "source", "url", "file_url"):
            value = part.get(name)
            inner = (
                [value.get("url"), value.get("file_url"), value.get("file_data")]
                if isinstance(value, dict)
                else [value]
            )
            yield from (one for one in inner if isinstance(one, str))
