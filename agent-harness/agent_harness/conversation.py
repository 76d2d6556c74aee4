"""The conversation as a fold of the journal: what was said, what was asked, what is open. Pure; the same records give
the same state, in this process or the next.

Records, by `type`:
    user_message  id, text, source (task | person | harness), mode (steer | follow_up)
    model         n, state: asked (takes: ids of the messages in it, purpose: turn | compaction, tight?)
                  | answered (blocks, stop, usage) | cut (blocks, why): a person stopped it, these are what had come
    tool_intent   id, name, arguments, effect, run, …: written before it is done; again when it is done again
    tool_result   id, ok, text, status, takes?, cwd?, plan?; state: ended | running (a job goes on) | late (more is
                  known of a call that has its result: note?, what the model is told of it)
    compaction    n, summary, keep: the assistant's turns from this n on stay as they are
    result        stop_reason, text

A message is in the conversation from the moment a request takes it, whenever it came: so the bytes of a request that
was asked before a crash are the same after it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from agent_harness.journal import Record
from agent_harness.providers.shape import Item

QUOTED_CHARS = 2_000  # of one message of a person, after a compaction
INTERRUPTED = "[A person interrupted you here.]"


@dataclass
class Call:
    """One tool call of the last answer. `key`: `<n>.<i>`, the same in every attempt. `id`: the model's own."""

    key: str
    id: str
    name: str
    arguments: str


@dataclass
class Conversation:
    """All that is known. Only `apply` changes it."""

    items: list[Item] = field(default_factory=list)
    messages: dict[str, Record] = field(default_factory=dict)
    waiting: list[str] = field(default_factory=list)  # ids of messages no request has taken
    n: int = 0  # of the last request
    asked: Record | None = None  # it has no answer yet
    answer: Record | None = None  # the last one, until the next request
    calls: list[Call] = field(default_factory=list)  # of the last answer, those without a result
    intents: dict[str, Record] = field(default_factory=dict)  # the newest of each call
    results: dict[str, Record] = field(default_factory=dict)
    running: dict[str, Record] = field(default_factory=dict)  # results of jobs that go on
    doubts: dict[str, Record] = field(default_factory=dict)  # results in doubt that nobody has settled
    cwd: str = ""  # of the next command; "" = the workspace
    last: tuple[str, str, str] = ("", "", "")  # name, arguments and result of the last call
    streak: int = 0  # how many times in a row it was that
    odd: int = 0  # answers in a row that came to nothing
    plan: list[dict[str, str]] = field(default_factory=list)
    result: Record | None = None  # the loop had come to an end; nothing was asked since
    steps: int = 0
    tokens: int = 0
    context: dict[str, int] = field(default_factory=dict)  # usage of the last turn
    measured: int = 0  # how many items the last turn's usage speaks of
    arrived: threading.Condition = field(default_factory=threading.Condition)

    def apply(self, record: Record) -> None:
        """The next record. One of an unknown type changes nothing: a newer harness may have written it."""
        with self.arrived:
            handler = getattr(self, "_" + str(record["type"]), None)
            if handler is not None:
                handler(record)
            self.arrived.notify_all()

    def next_mail(self, *, follow_ups: bool) -> list[str]:
        """Ids a request would take now: what steers, and what was to follow once the work is done."""
        with self.arrived:
            return [id for id in self.waiting if follow_ups or self.messages[id].get("mode", "steer") != "follow_up"]

    # -- one method a record ----------------------------------------------------------------------------------------

    def _user_message(self, record: Record) -> None:
        if record["id"] not in self.messages:
            self.messages[record["id"]] = record
            self.waiting.append(record["id"])

    def _model(self, record: Record) -> None:
        if record["state"] == "asked":
            self.n = record["n"]
            self.asked, self.answer, self.result = record, None, None
            for id in record["takes"]:
                self.items.append({"role": "user", "text": self.messages[id]["text"]})
            self._take(record["takes"])
            return
        purpose = self.asked["purpose"] if self.asked else "turn"
        self.asked = None
        usage = record.get("usage") or {}
        self.tokens += sum(usage.values())
        if purpose == "compaction":
            return
        self.steps += 1
        self.answer = record
        if record["state"] == "cut":
            kept = [block for block in record["blocks"] if block["kind"] == "text" and block["text"].strip()]
            if kept:
                self.items.append({"role": "assistant", "n": record["n"], "blocks": kept})
            self.items.append({"role": "user", "text": INTERRUPTED})
            return
        self.items.append({"role": "assistant", "n": record["n"], "blocks": record["blocks"]})
        self.context, self.measured = usage, len(self.items)
        calls = [block for block in record["blocks"] if block["kind"] == "call"]
        self.odd = 0 if calls else self.odd + 1
        self.calls = [
            Call(f"{record['n']}.{i}", block["id"], block["name"], block["arguments"]) for i, block in enumerate(calls)
        ]

    def _tool_intent(self, record: Record) -> None:
        self.intents[record["id"]] = record

    def _tool_result(self, record: Record) -> None:
        key, state = record["id"], record.get("state", "ended")
        self.results[key] = record
        self._take(record.get("takes", ()))
        self.plan = record.get("plan", self.plan)
        self.cwd = record.get("cwd", self.cwd)
        for held, holds in ((self.running, state == "running"), (self.doubts, record["status"] == "in_doubt")):
            if holds:
                held[key] = record
            else:
                held.pop(key, None)
        if state == "late":
            if note := record.get("note"):
                times = sum(id.startswith(f"late-{key}-") for id in self.messages)
                self._user_message({"id": f"late-{key}-{times}", "text": note, "source": "harness"})
            return
        call = next((call for call in self.calls if call.key == key), None)
        if call is not None:
            self.calls.remove(call)
            self.items.append({"role": "tool", "id": call.id, "text": record["text"], "ok": record["ok"]})
            this = (call.name, call.arguments, record["text"])
            self.streak = self.streak + 1 if this == self.last else 1
            self.last = this

    def _compaction(self, record: Record) -> None:
        self.asked = None
        keep: int = record["keep"]
        tail = next(
            (i for i, item in enumerate(self.items) if item["role"] == "assistant" and item["n"] >= keep),
            len(self.items),
        )
        self.items = [{"role": "user", "text": self._opening(record["summary"])}, *self.items[tail:]]
        self.context, self.measured = {}, 0

    def _result(self, record: Record) -> None:
        self.result = record

    # -- parts --------------------------------------------------------------------------------------------------------

    def _take(self, ids: Any) -> None:
        taken = set(ids)
        self.waiting = [id for id in self.waiting if id not in taken]

    def _opening(self, summary: str) -> str:
        """What a conversation begins with after its first part was summed up: people's words stay people's."""
        taken = [m for id, m in self.messages.items() if id not in self.waiting]
        tasks = [m["text"] for m in taken if m["source"] == "task"]
        others = [m["text"][:QUOTED_CHARS] for m in taken if m["source"] == "person"]
        parts = ["\n\n".join(tasks)]
        if others:
            parts.append("Messages that came while you worked, oldest first:\n" + "\n".join(f"- {m}" for m in others))
        parts.append("The conversation so far was summed up to make room. Your own summary of it:\n" + summary)
        return "\n\n".join(part for part in parts if part)
