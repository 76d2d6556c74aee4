"""What a tool is, and its arguments held against what it takes. Knows no tool."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from agent_harness.providers.shape import Tool

EFFECT = {
    "type": "string",
    "enum": ["none", "idempotent", "once", "unknown"],
    "description": "What running it a second time would do, should the machine fail in the middle. none: it only "
    "looks. idempotent: the same again. once: harm, such as a payment, a message, a deployment. Default: unknown, "
    "treated as once, which is never repeated by itself.",
}


class ToolError(Exception):
    """It could not be done; the words are for the model."""


@dataclass(frozen=True)
class Done:
    """What came of a call. `status`: completed, failed, cancelled, in_doubt. `state` running: its command goes on.
    `cwd`, `plan`: as they are now, where the call could change them."""

    text: str
    ok: bool = True
    status: str = ""
    state: str = "ended"
    cwd: str | None = None
    plan: list[dict[str, str]] | None = None

    def fields(self) -> dict[str, Any]:
        """For the journal."""
        said: dict[str, Any] = {
            "ok": self.ok,
            "text": self.text,
            "status": self.status or ("completed" if self.ok else "failed"),
            "state": self.state,
        }
        if self.cwd is not None:
            said["cwd"] = self.cwd
        if self.plan is not None:
            said["plan"] = self.plan
        return said


_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


def read_arguments(tool: Tool, text: str, *, cut_short: bool) -> dict[str, Any]:
    """The arguments a model wrote. Raises ToolError in words it can act on. `cut_short`: its answer was."""
    try:
        given = json.loads(text) if text.strip() else {}
    except ValueError as problem:
        if cut_short:
            raise ToolError(
                "This call was cut off: your answer reached its limit of output. Nothing was done. Send less in one "
                "call, for example a long file in parts."
            ) from None
        raise ToolError(f"The arguments are no JSON ({problem}). Nothing was done. Send the call again.") from None
    if not isinstance(given, dict):
        raise ToolError("The arguments must be a JSON object. Nothing was done.")
    known: dict[str, Any] = dict(tool.parameters["properties"])
    for name in tool.parameters.get("required", ()):
        if given.get(name) is None:
            raise ToolError(f"{tool.name} needs {name!r}. Nothing was done. It takes: {', '.join(known)}.")
    for name in list(given):
        if name not in known:
            raise ToolError(f"{tool.name} takes no {name!r}. Nothing was done. It takes: {', '.join(known)}.")
        value, schema = given[name], known[name]
        if value is None:
            del given[name]
            continue
        wanted = schema["type"]
        if not isinstance(value, _TYPES[wanted]) or (isinstance(value, bool) and wanted != "boolean"):
            raise ToolError(f"{name!r} of {tool.name} must be of type {wanted}. Nothing was done.")
        if "enum" in schema and value not in schema["enum"]:
            raise ToolError(f"{name!r} must be one of {', '.join(schema['enum'])}. Nothing was done.")
        low, high = schema.get("minimum"), schema.get("maximum")
        if (low is not None and value < low) or (high is not None and value > high):
            raise ToolError(f"{name!r} must be from {low} to {high}. Nothing was done.")
    return given
