"""A history as it reads on a terminal: a program's output byte for byte; of a harness that speaks in events what it
says, does and is told. Knows no server.

The model's words go to stdout, as a program's answer would; its thoughts, its commands, their output and what the
platform refused go to stderr. Only of harnesses that speak so is anything of the platform shown: a plain program's
streams hold its own bytes and nothing else.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from orchestrator.cli import console, output
from orchestrator.events import (
    BUDGET_EXCEEDED,
    EGRESS_REFUSED,
    FINISHED,
    HARNESS_TYPES,
    INTENT_IN_DOUBT,
    MESSAGE_ACCEPTED,
    MODEL_CUT,
    MODEL_REFUSED,
    OUTPUT,
    SANDBOX_LOST,
    USAGE,
    Event,
)

OUTPUT_LINES: Final = 20  # of one call; the rest is in the history
COMMAND_LINES: Final = 12
MARKS: Final = {"completed": "✓", "failed": "✗", "cancelled": "✗", "in_doubt": "?"}
STEPS: Final = {"completed": "✓", "in_progress": "▸"}


class Transcript:
    """Reads events in order; one for each run through a history."""

    def __init__(self, streams: frozenset[str], *, colour: bool = False, name: str = "@last") -> None:
        """`streams`: which of stdout and stderr are wanted. `colour`: thoughts are dim, commands bold. `name`: what the
        commands that are suggested call it."""
        self._name = name
        self._wanted = {output.DESCRIPTORS[stream] for stream in streams}
        self._colour = colour
        self._open: tuple[str, str] | None = None  # (kind, message) of the words whose line has no end yet
        self._held: list[str] = []  # what people said in the middle of such a line
        self._told: dict[str, tuple[str, str, str]] = {}  # kind → message, its text as it is now, as it was shown
        self._lines: dict[str, int] = {}  # lines of output shown, by call
        self._last_words = ""  # since the last call
        self._speaks = False
        self._calls = self._replays = self._tokens = self._micros = 0
        self._out: list[tuple[int, bytes]] = []

    def pieces(self, events: Iterable[Event]) -> Iterator[tuple[int, bytes]]:
        """(descriptor, bytes), in order; neighbours of one stream joined."""
        for event in events:
            self._read(event)
        out, self._out = self._out, []
        descriptor, joined = 0, bytearray()
        for to, data in out:
            if to not in self._wanted:
                continue
            if to != descriptor and joined:
                yield descriptor, bytes(joined)
                joined.clear()
            descriptor = to
            joined += data
        if joined:
            yield descriptor, bytes(joined)

    def _read(self, event: Event) -> None:
        if event.type == OUTPUT:
            if event.body is not None and event.data.get("stream") in output.DESCRIPTORS:
                self._end_line()
                self._out.append((output.DESCRIPTORS[event.data["stream"]], event.body))
        elif event.source == "harness" and event.type in HARNESS_TYPES:
            self._speaks = True
            hear = _HARNESS.get(event.type)
            if hear is not None:
                hear(self, event.data)
        elif event.type == USAGE:
            self._count(event.data)
        elif self._speaks:
            hear = _PLATFORM.get(event.type)
            if hear is not None:
                hear(self, event.data)

    # ---- what it says

    def _message(self, data: Mapping[str, Any]) -> None:
        self._words("message", data)

    def _thought(self, data: Mapping[str, Any]) -> None:
        self._words("thought", data)

    def _words(self, kind: str, data: Mapping[str, Any]) -> None:
        """A piece of a message, on from `at` where it says so. What another attempt tells again is shown once; an
        answer that was asked for again and is another one begins again."""
        text, this = _text(data), (kind, str(data.get("message", "")))
        at = data.get("at")
        if isinstance(at, int):
            message, now, shown = self._told.get(kind, ("", "", ""))
            now, shown = (now[: max(at, 0)] + text, shown) if message == this[1] else (text, "")
            if shown.startswith(now):
                text = ""
            elif now.startswith(shown):
                text, shown = now[len(shown) :], now
            else:
                self._end_line()
                text = shown = now
            self._told[kind] = (this[1], now, shown)
        if not text:
            return
        if kind == "message":
            self._last_words = (self._last_words if self._open == this else "") + text
        if self._open != this:
            self._end_line()
        if self._open is None and kind == "thought":
            self._put(2, "· ", "2")
        self._open = this
        self._put(1 if kind == "message" else 2, _readable(text), "2" if kind == "thought" else "")
        if text.endswith("\n"):
            self._open = None
            self._hear_held()

    def _end_line(self) -> None:
        if self._open is not None:
            self._put(1 if self._open[0] == "message" else 2, "\n")
            self._open = None
            self._hear_held()

    def _hear_held(self) -> None:
        held, self._held = self._held, []
        for line in held:
            self._line(line, "1")

    def _result(self, data: Mapping[str, Any]) -> None:
        self._end_line()
        text, reason = _text(data), str(data.get("stop_reason", ""))
        if text.strip() and text.strip() != self._last_words.strip():
            self._put(1, _readable(text).rstrip("\n") + "\n")
        if reason not in ("", "end_turn"):
            self._line(f"ended: {reason}", "1")

    def _ask(self, data: Mapping[str, Any]) -> None:
        self._end_line()
        options = data.get("options")
        choices = f" ({' | '.join(map(str, options))})" if isinstance(options, list) and options else ""
        self._put(1, f"{_readable(_text(data)).rstrip()}{console.printable(choices)}\n")
        self._line(f"  → carrel send {self._name} '…'", "2")

    def _said(self, data: Mapping[str, Any]) -> None:
        self._held.append(f"> {console.printable(_text(data), most=400)}")
        if self._open is None:  # a word of the model's is not cut in two by what somebody else says
            self._hear_held()

    def _plan(self, data: Mapping[str, Any]) -> None:
        entries = data.get("entries")
        for entry in entries if isinstance(entries, list) else []:
            if isinstance(entry, dict):
                mark = STEPS.get(str(entry.get("status")), "·")
                step = entry.get("content") or entry.get("text") or entry.get("step") or ""
                self._line(f"  {mark} {console.printable(str(step), most=200)}")

    def _note(self, data: Mapping[str, Any]) -> None:
        self._line(f"· {console.printable(_text(data), most=400)}", "2")

    def _error(self, data: Mapping[str, Any]) -> None:
        self._line(f"! {console.printable(_text(data), most=1000)}", "1")

    def _compaction(self, data: Mapping[str, Any]) -> None:
        self._line("· the conversation was summed up: it was too long for the model", "2")

    # ---- what it does

    def _call(self, data: Mapping[str, Any]) -> None:
        self._end_line()
        self._last_words = ""
        arguments = data.get("arguments")
        command = arguments.get("command") if isinstance(arguments, dict) else None
        if isinstance(command, str):
            first, *more = command.splitlines() or [""]
            self._line(f"$ {console.printable(first)}", "1")
            for one in more[: COMMAND_LINES - 1]:
                self._line(f"  {_readable(one)}")
            if len(more) >= COMMAND_LINES:
                self._line(f"  … {len(more) - COMMAND_LINES + 1} more lines")
            return
        name, title = str(data.get("name") or ""), str(data.get("title") or "")
        if not title and isinstance(arguments, dict):
            title = json.dumps(arguments, ensure_ascii=False)
        words = " ".join(dict.fromkeys(filter(None, (name, title)))) or "a call"
        self._line(f"$ {console.printable(words, most=200)}", "1")

    def _update(self, data: Mapping[str, Any]) -> None:
        id, status = str(data.get("id", "")), str(data.get("status", ""))
        printed = data.get("output")
        if isinstance(printed, str):
            self._printed(id, printed)
            return
        text = _text(data)
        if status in ("", "pending", "in_progress"):
            if text:
                self._line(f"  · {console.printable(text, most=200)}", "2")
            return
        ending = text.strip().rpartition("\n")[2]
        if status == "completed":
            if id not in self._lines and text:
                self._printed(id, text)
        elif status in MARKS:
            if id not in self._lines and "\n" in text.strip():
                self._printed(id, text.strip().rpartition("\n")[0])
            self._line(f"  {MARKS[status]} {status.replace('_', ' ')}: {console.printable(ending, most=400)}", "1")
        left = self._lines.pop(id, 0) - OUTPUT_LINES
        if left > 0:
            self._line(f"  … {left} more lines", "2")

    def _printed(self, id: str, text: str) -> None:
        for one in text.splitlines():
            self._lines[id] = self._lines.get(id, 0) + 1
            if self._lines[id] <= OUTPUT_LINES:
                self._line(f"  {_readable(one)[:400]}")

    # ---- what the platform has to say of it

    def _count(self, data: Mapping[str, Any]) -> None:
        self._calls += 1
        self._replays += data.get("replayed") is True
        self._tokens += sum(
            _whole(data, f"{kind}_tokens") for kind in ("input", "output", "cache_read", "cache_write")
        ) * (data.get("replayed") is not True)
        self._micros += _whole(data, "cost_micros")

    def _refused(self, data: Mapping[str, Any]) -> None:
        where = f"{data.get('host')}:{data.get('port')}" if "host" in data else str(data.get("model", ""))
        self._line("! " + console.printable(f"{where} refused: {data.get('why', '')}", most=400), "1")

    def _cut(self, data: Mapping[str, Any]) -> None:
        self._line(f"! a model's answer broke off: {console.printable(str(data.get('why', '')), most=200)}", "1")

    def _over(self, data: Mapping[str, Any]) -> None:
        spent, limit = _whole(data, "spent_micros"), data.get("limit_micros")
        if limit is not None:
            self._line(f"! over budget: ${spent / 1e6:.4f} spent of ${_whole(data, 'limit_micros') / 1e6:.4f}", "1")
        if data.get("limit_tokens") is not None:
            said = f"{_whole(data, 'spent_tokens'):,} tokens spent of {_whole(data, 'limit_tokens'):,}"
            self._line(f"! over budget: {said}", "1")
        held = "the call is held" if data.get("on_exceeded") == "wait" else "it is to end"
        self._line(f"  {held} → carrel update {self._name} --budget-usd … --budget-tokens …", "2")

    def _doubt(self, data: Mapping[str, Any]) -> None:
        said = console.printable(str(data.get("summary", "")), most=200)
        key = console.printable(shlex.quote(str(data.get("key", ""))))
        self._line(f"? in doubt, was it done? {said}", "1")
        self._line(f"  → carrel settle {self._name} {key} retry|done|fail", "2")

    def _lost(self, data: Mapping[str, Any]) -> None:
        why = console.printable(f"{data.get('reason', '')}: {data.get('detail', '')}", most=200)
        self._line(f"! this attempt is over ({why})", "1")

    def _finished(self, data: Mapping[str, Any]) -> None:
        self._end_line()
        if self._calls:
            replays = f", {self._replays} of them replayed" if self._replays else ""
            money = f", ${self._micros / 1e6:.4f}" if self._micros else ""  # none: the model has no price
            self._line(f"· {self._calls} model calls{replays}, {self._tokens:,} tokens{money}", "2")

    # ---- writing

    def _line(self, text: str, style: str = "") -> None:
        self._end_line()
        self._put(2, text, style)
        self._put(2, "\n")

    def _put(self, descriptor: int, text: str, style: str = "") -> None:
        if style and self._colour and descriptor == 2:
            text = f"\x1b[{style}m{text}\x1b[0m"
        self._out.append((descriptor, text.encode("utf-8", "replace")))


_HARNESS: Final[Mapping[str, Callable[[Transcript, Mapping[str, Any]], None]]] = {
    "agent_message_chunk": Transcript._message,
    "agent_thought_chunk": Transcript._thought,
    "tool_call": Transcript._call,
    "tool_call_update": Transcript._update,
    "plan": Transcript._plan,
    "progress": Transcript._note,
    "error": Transcript._error,
    "compaction": Transcript._compaction,
    "ask": Transcript._ask,
    "result": Transcript._result,
}
_PLATFORM: Final[Mapping[str, Callable[[Transcript, Mapping[str, Any]], None]]] = {
    EGRESS_REFUSED: Transcript._refused,
    MODEL_REFUSED: Transcript._refused,
    MODEL_CUT: Transcript._cut,
    BUDGET_EXCEEDED: Transcript._over,
    SANDBOX_LOST: Transcript._lost,
    INTENT_IN_DOUBT: Transcript._doubt,
    MESSAGE_ACCEPTED: Transcript._said,
    FINISHED: Transcript._finished,
}


def _text(data: Mapping[str, Any]) -> str:
    value = data.get("text")
    return value if isinstance(value, str) else ""


def _whole(data: Mapping[str, Any], name: str) -> int:
    value = data.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _readable(text: str) -> str:
    """Lines as they are; nothing in them steers a terminal."""
    return "\n".join(console.printable(one) for one in text.replace("\t", "    ").split("\n"))
