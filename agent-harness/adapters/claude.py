"""Claude Code: `claude -p` with JSON lines both ways (its SDK protocol).

Steering is a user line at any time; its `command_lifecycle` says when it was taken in. The interrupt is a control
request. The session's id is ours, so that it can be resumed however early it was killed.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapters.conductor import TurnEnd
from adapters.notes import Message
from adapters.program import Program
from adapters.stage import Stage
from adapters.voice import bounded

COMMAND = ("claude", "-p", "--input-format", "stream-json", "--output-format", "stream-json")
SWITCHES = ("--include-partial-messages", "--verbose", "--dangerously-skip-permissions")
KINDS = {
    **dict.fromkeys(("Bash", "BashOutput", "KillShell"), "execute"),
    **dict.fromkeys(("Edit", "Write", "NotebookEdit", "MultiEdit"), "edit"),
    **dict.fromkeys(("Read",), "read"),
    **dict.fromkeys(("Grep", "Glob"), "search"),
    **dict.fromkeys(("WebFetch", "WebSearch"), "fetch"),
}


class Claude:
    """See `conductor.Agent`."""

    def __init__(self, stage: Stage, program: Program) -> None:
        self._stage = stage
        self._program = program
        self._told: dict[str, str] = {}  # the uuid we gave a line → our message's id, until it is done with
        self._streamed: set[str] = set()  # messages whose text came in pieces
        self._asked: set[str] = set()  # messages of the model that were counted
        self._interrupting = False
        self.steps = 0

    async def start(self) -> bool:
        stage, environment = self._stage, self._stage.environment
        model = environment["MODEL"]
        session = stage.notes.session
        # It refuses to resume what it never wrote, and to begin what it did.
        remembers = bool(session) and _wrote(environment, session)
        if not remembers:
            session = str(uuid.uuid4())
            stage.notes.began(session)
        its = ("--resume", session) if remembers else ("--session-id", session)
        env = {
            "IS_SANDBOX": "1",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_AUTOUPDATER": "1",
            # Whatever size it thinks a side task needs: there is one model.
            **{f"ANTHROPIC_DEFAULT_{size}_MODEL": model for size in ("HAIKU", "SONNET", "OPUS")},
            "CLAUDE_CODE_SUBAGENT_MODEL": model,
        }
        await self._program.start((*COMMAND, *SWITCHES, "--model", model, *its), env)
        return remembers

    async def prompt(self, text: str, message: Message | None) -> None:
        line = str(uuid.uuid4())
        self._told[line] = message.id if message is not None else ""
        said = {"role": "user", "content": [{"type": "text", "text": text}]}
        await self._program.tell({"type": "user", "uuid": line, "message": said})

    async def steer(self, message: Message) -> bool:
        await self.prompt(message.text, message)
        return True

    async def interrupt(self) -> None:
        self._interrupting = True
        request = {"subtype": "interrupt"}
        await self._program.tell({"type": "control_request", "request_id": str(uuid.uuid4()), "request": request})

    async def hear(self, line: bytes) -> TurnEnd | None:
        try:
            said = json.loads(line)
        except ValueError:
            return None
        match said.get("type"):
            case "stream_event" if not said.get("parent_tool_use_id"):
                self._piece(said)
            case "assistant":
                self._answer(said)
            case "user":
                self._results(said)
            case "command_lifecycle":
                self._lifecycle(said)
            case "system" if said.get("subtype") == "compact_boundary":
                self._stage.voice.say("compaction", trigger=(said.get("compact_metadata") or {}).get("trigger"))
            case "result":
                return self._result(said)
        return None

    def _piece(self, said: dict[str, Any]) -> None:
        event = said.get("event") or {}
        if event.get("type") == "message_start":
            self._streamed.add(event["message"]["id"])
        elif event.get("type") == "content_block_delta":
            delta = event.get("delta") or {}
            self._stage.voice.chunk("agent_message_chunk", delta.get("text", ""))
            self._stage.voice.chunk("agent_thought_chunk", delta.get("thinking", ""))

    def _answer(self, said: dict[str, Any]) -> None:
        message, inside = said["message"], bool(said.get("parent_tool_use_id"))
        if message["id"] not in self._asked and not said.get("is_api_error_message"):
            self._asked.add(message["id"])
            self.steps += 1
        for block in message.get("content") or ():
            kind = block.get("type")
            if kind == "tool_use":
                name, given = block["name"], block.get("input") or {}
                fields = {"name": name, "kind": KINDS.get(name, "other"), "input": given}
                self._stage.call(block["id"], _title(name, given), **fields)
            elif message["id"] not in self._streamed and not inside:
                self._stage.voice.chunk("agent_message_chunk", block.get("text", ""))
                self._stage.voice.chunk("agent_thought_chunk", block.get("thinking", ""))

    def _results(self, said: dict[str, Any]) -> None:
        content = said["message"].get("content")
        for block in content if isinstance(content, list) else ():
            if block.get("type") == "tool_result":
                status = "completed"
                if block.get("is_error"):
                    status = "cancelled" if self._interrupting else "failed"
                self._stage.called(block["tool_use_id"], status, text=bounded(_text(block.get("content"))))

    def _lifecycle(self, said: dict[str, Any]) -> None:
        line, state = said.get("command_uuid", ""), said.get("state")
        if state == "started" and self._told.get(line):
            self._stage.taken(self._told[line])
        if state not in ("queued", "started"):  # completed, cancelled, discarded: the program is done with it
            self._told.pop(line, None)

    def _result(self, said: dict[str, Any]) -> TurnEnd | None:
        usage = said.get("usage") or {}
        names = {"input_tokens": "input_tokens", "output_tokens": "output_tokens"}
        names |= {"cache_read_input_tokens": "cache_read_tokens", "cache_creation_input_tokens": "cache_write_tokens"}
        counted = {ours: usage[its] for its, ours in names.items() if isinstance(usage.get(its), int)}
        self._stage.voice.say("usage_update", **counted)
        text = str(said.get("result") or "")
        if self._interrupting:
            self._interrupting = False
            # What was queued goes on as turns of its own; nothing of it is lost.
            return None if self._unread() else TurnEnd(text, interrupted=True)
        if said.get("is_error") or said.get("subtype") != "success":
            return TurnEnd(text, failed=text or "; ".join(said.get("errors") or ()) or str(said.get("subtype")))
        return None if self._unread() else TurnEnd(text)

    def _unread(self) -> bool:
        return any(message in self._stage.notes.untaken for message in self._told.values())


def _wrote(environment: Mapping[str, str], session: str) -> bool:
    home = Path(environment.get("CLAUDE_CONFIG_DIR") or Path(environment["HOME"]) / ".claude")
    return any(home.glob(f"projects/*/{session}.jsonl"))


def _title(name: str, given: dict[str, Any]) -> str:
    for key in ("command", "file_path", "pattern", "url", "query", "description", "prompt"):
        if isinstance(given.get(key), str):
            return str(given[key]) if name == "Bash" else f"{name} {given[key]}"
    return name


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(str(block.get("text", "")) for block in content if isinstance(block, dict))
    return str(content or "")
