"""`ask`: a question to a person. The waiting, and the sleep until the answer comes, are the loop's."""

from __future__ import annotations

from agent_harness.providers.shape import Tool

ASK = Tool(
    "ask",
    "Ask the person a question and wait for the answer, perhaps for days. Only for what you cannot find out and should "
    "not decide yourself.",
    {
        "type": "object",
        "properties": {
            "question": {"type": "string"},
            "options": {"type": "array", "items": {"type": "string"}, "description": "Answers to choose from, if any."},
        },
        "required": ["question"],
    },
)
