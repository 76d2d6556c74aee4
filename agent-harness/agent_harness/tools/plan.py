"""`plan`: what the model means to do, for the people who watch and for itself after a compaction."""

from __future__ import annotations

from typing import Any

from agent_harness.providers.shape import Tool
from agent_harness.tools.shape import Done, ToolError

STATUSES = ("pending", "in_progress", "completed")
STEPS = 50

PLAN = Tool(
    "plan",
    "Say what you mean to do, in a few steps, and again whenever one is done. Worth it for work of many steps only.",
    {
        "type": "object",
        "properties": {
            "steps": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {
                        "step": {"type": "string"},
                        "status": {"type": "string", "enum": list(STATUSES)},
                    },
                    "required": ["step", "status"],
                },
            }
        },
        "required": ["steps"],
    },
)


def plan(steps: list[Any]) -> Done:
    """Raises ToolError."""
    if len(steps) > STEPS:
        raise ToolError(f"A plan has at most {STEPS} steps.")
    read: list[dict[str, str]] = []
    for step in steps:
        if not isinstance(step, dict) or not isinstance(step.get("step"), str) or step.get("status") not in STATUSES:
            raise ToolError(f"Each of `steps` is an object with `step` and `status`, one of {', '.join(STATUSES)}.")
        read.append({"step": step["step"], "status": step["status"]})
    return Done("Noted.", plan=read)
