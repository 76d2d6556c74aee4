"""Codex: `codex app-server`, JSON-RPC as JSON lines: threads, turns, items.

`codex exec` cannot be spoken to while it works; its app server can: `turn/steer` joins the turn under way,
`turn/interrupt` stops it, `thread/resume` goes on in an old one. It asks for no approval, being in a sandbox already.
"""

from __future__ import annotations

import json
import shlex
import time
from typing import Any

from adapters.conductor import TurnEnd
from adapters.notes import Message
from adapters.program import Program
from adapters.stage import Stage
from adapters.voice import bounded

PROVIDER = "carrel"
SLACK_S = 2.0
#: What would have the provider reach into the web for it, or itself reach places that no sandbox may.
QUIET = (
    'web_search="disabled"',
    "analytics.enabled=false",
    *(f"features.{name}=false" for name in ("plugins", "remote_plugin", "apps", "image_generation")),
)


class Codex:
    """See `conductor.Agent`."""

    def __init__(self, stage: Stage, program: Program) -> None:
        self._stage = stage
        self._program = program
        self._thread = ""
        self._turn = ""
        self._number = 0
        self._steering: dict[int, Message] = {}  # request → what it said
        self._missed: list[Message] = []  # said into a turn that had just ended
        self._streamed: set[str] = set()
        self._last = ""  # what it said last
        self._failure = ""
        self._end: TurnEnd | None = None  # of the last turn, until nothing is on its way any more
        self._interrupting = False
        self._begun: set[str] = set()
        self._running: dict[str, float] = {}  # commands the model waits for → seconds since boot when they were told
        self.steps = 0

    async def start(self) -> bool:
        environment = self._stage.environment
        base = environment["OPENAI_BASE_URL"]
        provider = f'{{name="{PROVIDER}",base_url="{base}",env_key="OPENAI_API_KEY",wire_api="responses"}}'
        settings = (f'model_provider="{PROVIDER}"', f"model_providers.{PROVIDER}={provider}", *QUIET)
        argv = ["codex", "app-server", *(part for setting in settings for part in ("-c", setting))]
        await self._program.start(argv, {})
        await self._answer_to("initialize", {"clientInfo": {"name": "carrel", "version": "1"}})
        await self._program.tell({"method": "initialized"})
        common = {
            "cwd": environment.get("WORKSPACE", "/workspace"),
            "model": environment["MODEL"],
            "approvalPolicy": "never",
            "sandbox": "danger-full-access",
        }
        if session := self._stage.notes.session:
            asked = {"threadId": session, "excludeTurns": True, **common}
            answer = await self._answer_to("thread/resume", asked)
            if "result" in answer:
                self._thread = session
                return True
        answer = await self._answer_to("thread/start", common)
        if "result" not in answer:
            raise RuntimeError(f"codex starts no thread: {answer.get('error')}")
        self._thread = answer["result"]["thread"]["id"]
        self._stage.notes.began(self._thread)
        return False

    async def prompt(self, text: str, message: Message | None) -> None:
        self._failure, self._end, self._interrupting = "", None, False
        said: dict[str, Any] = {"threadId": self._thread, "input": [{"type": "text", "text": text}]}
        if message is not None:
            said["clientUserMessageId"] = message.id
        await self._ask("turn/start", said)

    async def steer(self, message: Message) -> bool:
        if not self._turn:
            return False
        said = {"threadId": self._thread, "expectedTurnId": self._turn, "clientUserMessageId": message.id}
        number = await self._ask("turn/steer", {**said, "input": [{"type": "text", "text": message.text}]})
        self._steering[number] = message
        return True

    async def interrupt(self) -> None:
        self._interrupting = True
        if self._turn:  # else as soon as it has a name
            await self._ask("turn/interrupt", {"threadId": self._thread, "turnId": self._turn})

    async def hear(self, line: bytes) -> TurnEnd | None:
        try:
            said = json.loads(line)
        except ValueError:
            return None
        method, given = said.get("method"), said.get("params") or {}
        if method is None:
            return await self._answered(said)
        if "id" in said:  # a question of its own; with approvals off it has none that must be answered
            refused = {"code": -32601, "message": "nobody is here to answer"}
            await self._program.tell({"id": said["id"], "error": refused})
        elif given.get("threadId") in (None, self._thread):
            return await self._notified(method, given)
        return None

    async def _notified(self, method: str, given: dict[str, Any]) -> TurnEnd | None:
        voice = self._stage.voice
        match method:
            case "turn/started":
                await self._started(given["turn"]["id"])
            case "item/started":
                self._item(given["item"], done=False)
            case "item/completed":
                self._item(given["item"], done=True)
            case "item/agentMessage/delta":
                self._streamed.add(given.get("itemId", ""))
                voice.chunk("agent_message_chunk", given.get("delta", ""))
            case "item/reasoning/summaryTextDelta" | "item/reasoning/textDelta":
                self._streamed.add(given.get("itemId", ""))
                voice.chunk("agent_thought_chunk", given.get("delta", ""))
            case "turn/plan/updated":
                entries = [{"text": step["step"], "status": step["status"]} for step in given.get("plan") or ()]
                voice.say("plan", entries=entries)
            case "thread/compacted":
                voice.say("compaction")
            case "thread/tokenUsage/updated":
                self._usage((given.get("tokenUsage") or {}).get("last") or {})
            case "error" if not given.get("willRetry"):
                self._failure = str((given.get("error") or {}).get("message"))
            case "turn/completed":
                return await self._completed(given["turn"])
        return None

    def _item(self, item: dict[str, Any], *, done: bool) -> None:
        stage, id = self._stage, str(item.get("id"))
        match item.get("type"):
            case "userMessage" if not done and item.get("clientId"):
                stage.taken(item["clientId"])
            case "agentMessage" if done:
                self._last = item.get("text", "")
                if id not in self._streamed:
                    stage.voice.chunk("agent_message_chunk", self._last)
            case "reasoning" if done and id not in self._streamed:
                stage.voice.chunk("agent_thought_chunk", "\n".join(item.get("summary") or item.get("content") or ()))
            case "commandExecution":
                self._tool(id, done, item, "execute", _command(item), item.get("aggregatedOutput"))
            case "fileChange":
                paths = " ".join(str(change.get("path")) for change in item.get("changes") or ())
                self._tool(id, done, item, "edit", f"edit {paths}", None)
            case "mcpToolCall" | "dynamicToolCall":
                self._tool(id, done, item, "other", str(item.get("tool")), item.get("error"))
            case "webSearch":
                self._tool(id, done, item, "fetch", f"search {item.get('query')}", None)

    def _tool(self, id: str, done: bool, item: dict[str, Any], kind: str, title: str, output: Any) -> None:
        if id not in self._begun:  # an end that comes after its turn's is no beginning
            self._begun.add(id)
            self._stage.call(id, title, kind=kind, name=item["type"])
            self._running[id] = time.clock_gettime(time.CLOCK_BOOTTIME)
        if done:
            self._running.pop(id, None)
            status = "failed" if item.get("status") in ("failed", "declined") else "completed"
            text = bounded(output if isinstance(output, str) else json.dumps(output) if output else "")
            self._stage.called(id, status, text=text or None, exit_code=item.get("exitCode"))

    def _usage(self, last: dict[str, Any]) -> None:
        self.steps += 1
        if not self._interrupting:  # the model will be asked again: what still runs is in the background, as it wished
            self._running.clear()
        names = {"inputTokens": "input_tokens", "outputTokens": "output_tokens"}
        names |= {"cachedInputTokens": "cache_read_tokens", "cacheWriteInputTokens": "cache_write_tokens"}
        self._stage.voice.say("usage_update", **{ours: last[its] for its, ours in names.items() if its in last})

    async def _started(self, turn: str) -> None:
        if self._turn != turn:
            self._turn = turn
            if self._interrupting:
                await self.interrupt()

    async def _completed(self, turn: dict[str, Any]) -> TurnEnd | None:
        self._turn = ""
        status, error = turn.get("status"), turn.get("error") or {}
        if status == "interrupted":
            if self._running:  # it stops waiting for them, and leaves them running
                self._program.kill_children(min(self._running.values()) - SLACK_S)
            self._end = TurnEnd(self._last, interrupted=True)
        elif status == "completed":
            self._end = TurnEnd(self._last)
        else:
            self._end = TurnEnd(self._last, failed=str(error.get("message") or self._failure or status))
        return await self._over()

    async def _answered(self, said: dict[str, Any]) -> TurnEnd | None:
        message = self._steering.pop(said.get("id", -1), None)
        if message is not None:
            if "error" in said:
                self._missed.append(message)
            return await self._over()
        if "turn" in (said.get("result") or {}):
            await self._started(said["result"]["turn"]["id"])
        elif "error" in said and not self._turn and self._end is None:
            return TurnEnd(failed=str(said["error"].get("message")))  # a turn that did not begin
        return None

    async def _over(self) -> TurnEnd | None:
        """The turn's end, once every message said into it has its answer; one it came too late for begins another."""
        if self._end is None or self._steering:
            return None
        if self._missed:
            message = self._missed.pop(0)
            await self.prompt(message.text, message)
            return None
        return self._end

    async def _ask(self, method: str, given: dict[str, Any]) -> int:
        self._number += 1
        await self._program.tell({"id": self._number, "method": method, "params": given})
        return self._number

    async def _answer_to(self, method: str, given: dict[str, Any]) -> dict[str, Any]:
        """Before any turn: nothing that comes meanwhile is for a person."""
        number = await self._ask(method, given)
        while line := await self._program.line():
            said = json.loads(line)
            if said.get("id") == number and "method" not in said:
                return dict(said)
        raise RuntimeError(f"codex ended before it answered {method}")


def _command(item: dict[str, Any]) -> str:
    """As the model wrote it, without the shell that codex puts around it."""
    whole = str(item.get("command"))
    try:
        words = shlex.split(whole)
    except ValueError:
        return whole
    return words[2] if len(words) == 3 and words[1] in ("-c", "-lc") else whole
