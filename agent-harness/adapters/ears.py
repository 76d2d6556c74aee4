"""Our side, hearing: a line of stdin as a message. Knows nothing of what is done with it."""

from __future__ import annotations

import json
import secrets

from adapters.notes import Message

TASK = "task"  # the id the platform gives the task, which is known from TASK_FILE as well


def message_of(line: bytes) -> Message | None:
    """None for what is no message to the agent (blank, receipts, the task said again). A line that is not JSON is a
    message."""
    text = line.decode(errors="replace").strip("\r\n")
    if not text.strip():
        return None
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict) or not isinstance(said.get("type"), str):
        return Message(f"line-{secrets.token_hex(8)}", text)
    if said["type"] != "user_message" or not isinstance(said.get("text"), str):
        return None
    mode = "follow_up" if said.get("mode") == "follow_up" else "steer"
    return Message(str(said.get("id") or f"line-{secrets.token_hex(8)}"), said["text"], mode)
