"""pi: `pi --mode rpc`, commands and events as JSON lines.

`steer` joins the turn under way, `follow_up` comes after it, `abort` stops it. Its session lies in STATE_DIR and is
continued. It speaks all three of the providers' formats; which one is MODEL_API's to say.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from adapters.conductor import TurnEnd
from adapters.notes import Message
from adapters.program import Program
from adapters.stage import Stage
from adapters.voice import bounded

PROVIDER = "carrel"
LOOK_S = 0.05
APIS = {"anthropic-messages": "anthropic-messages", "openai-responses": "openai-responses"}
CHUNKS = {"text_delta": "agent_message_chunk", "thinking_delta": "agent_thought_chunk"}
KINDS = {"bash": "execute", "read": "read", "edit": "edit", "write": "edit", "grep": "search", "find": "search"}


class Pi:
    """See `conductor.Agent`."""

    def __init__(self, stage: Stage, program: Program) -> None:
        self._stage = stage
        self._program = program
        self._waiting: list[Message] = []  # said, and not seen in the conversation yet
        self._last: dict[str, Any] = {}  # its last answer
        self._retrying = False
        self._running = False
        self._interrupting = False
        self.steps = 0

    async def start(self) -> bool:
        environment = self._stage.environment
        folder = Path(environment.get("STATE_DIR", "/state")) / "pi"
        sessions = folder / "sessions"
        sessions.mkdir(parents=True, exist_ok=True)
        model = environment["MODEL"]
        api = APIS.get(environment.get("MODEL_API", ""), "openai-completions")
        anthropic = api == "anthropic-messages"
        provider = {
            "baseUrl": environment["ANTHROPIC_BASE_URL" if anthropic else "OPENAI_BASE_URL"],
            "api": api,
            "apiKey": "ANTHROPIC_API_KEY" if anthropic else "OPENAI_API_KEY",  # the variable's name
            "models": [{"id": model}],
        }
        _write(folder / "models.json", json.dumps({"providers": {PROVIDER: provider}}))
        remembers = bool(self._stage.notes.session) and any(sessions.rglob("*.jsonl"))
        argv = ["pi", "--mode", "rpc", "--provider", PROVIDER, "--model", model, "--session-dir", str(sessions)]
        if remembers:
            argv.append("--continue")
        else:
            self._stage.notes.began("pi")
        await self._program.start(argv, {"PI_CODING_AGENT_DIR": str(folder), "PI_OFFLINE": "1"})
        return remembers

    async def prompt(self, text: str, message: Message | None) -> None:
        self._interrupting = False
        if message is not None:
            self._waiting.append(message)
        await self._program.tell({"id": "prompt", "type": "prompt", "message": text})

    async def steer(self, message: Message) -> bool:
        self._waiting.append(message)
        # As a prompt: where the turn ended meanwhile it begins another, and is not refused.
        said = {"type": "prompt", "message": message.text, "streamingBehavior": "steer"}
        await self._program.tell({"id": "steer", **said})
        return True

    async def interrupt(self) -> None:
        self._interrupting = True
        await self._program.tell({"type": "abort"})

    async def hear(self, line: bytes) -> TurnEnd | None:
        try:
            said = json.loads(line)
        except ValueError:
            return None
        stage = self._stage
        match said.get("type"):
            case "message_update":
                delta = said.get("assistantMessageEvent") or {}
                if delta.get("type") in CHUNKS:
                    stage.voice.chunk(CHUNKS[delta["type"]], delta.get("delta", ""))
            case "message_start" if said["message"].get("role") == "user":
                self._taken(_text(said["message"]))
            case "message_end" if said["message"].get("role") == "assistant":
                self._answer(said["message"])
            case "tool_execution_start":
                name, given = said["toolName"], said.get("args") or {}
                fields = {"name": name, "kind": KINDS.get(name, "other"), "input": given}
                title = str(given.get("command") or f"{name} {given.get('path', '')}".strip())
                stage.call(said["toolCallId"], title, **fields)
            case "tool_execution_end":
                status = "completed"
                if said.get("isError"):
                    status = "cancelled" if self._interrupting else "failed"
                stage.called(said["toolCallId"], status, text=bounded(_text(said.get("result") or {})))
            case "auto_retry_start" | "compaction_start":
                self._retrying = True
            case "auto_retry_end":
                self._retrying = False
                await self._look()
            case "compaction_end":
                self._retrying = bool(said.get("willRetry"))
                stage.voice.say("compaction", trigger=said.get("reason"))
                await self._look()
            case "agent_start":
                self._running = True
            case "agent_end":
                self._running = False
                await self._look()
            case "extension_ui_request" if said.get("method") in ("select", "confirm", "input", "editor"):
                await self._program.tell({"type": "extension_ui_response", "id": said["id"], "cancelled": True})
            case "response":
                return await self._answered(said)
        return None

    async def _look(self) -> None:
        """Is it really over? After an agent_end there may be a retry, a compaction, or a message that came late."""
        await self._program.tell({"id": "look", "type": "get_state"})

    async def _answered(self, said: dict[str, Any]) -> TurnEnd | None:
        if not said.get("success"):
            return TurnEnd(failed=str(said.get("error"))) if said.get("id") == "prompt" else None
        state = said.get("data") or {}
        if said.get("id") != "look" or self._retrying or self._running:
            return None
        if state.get("isStreaming"):  # on its way out, or into another turn, which it will say
            await asyncio.sleep(LOOK_S)
            await self._look()
            return None
        if state.get("pendingMessageCount"):  # they came between its last look and its end: any prompt takes them along
            await self._program.tell({"id": "prompt", "type": "prompt", "message": "Go on."})
            return None
        text, reason = _text(self._last), self._last.get("stopReason")
        if reason == "aborted":
            return TurnEnd(text, interrupted=True)
        if reason == "error":
            return TurnEnd(text, failed=str(self._last.get("errorMessage")))
        return TurnEnd(text, stop_reason="max_tokens" if reason == "length" else "end_turn")

    def _answer(self, message: dict[str, Any]) -> None:
        self._last = message
        usage = message.get("usage") or {}
        if usage.get("totalTokens"):
            self.steps += 1
            names = {"input": "input_tokens", "output": "output_tokens"}
            names |= {"cacheRead": "cache_read_tokens", "cacheWrite": "cache_write_tokens"}
            self._stage.voice.say("usage_update", **{ours: usage[its] for its, ours in names.items() if its in usage})

    def _taken(self, text: str) -> None:
        """It names no ids: the first that was said in these words."""
        for message in self._waiting:
            if message.text == text:
                self._waiting.remove(message)
                self._stage.taken(message.id)
                return


def _text(said: dict[str, Any]) -> str:
    content = said.get("content")
    if isinstance(content, str):
        return content
    return "\n".join(str(block["text"]) for block in content or () if block.get("type") == "text")


def _write(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)
