"""What a script says: turns, faults, rules; read from JSON and checked. Knows no provider's format and no HTTP.

The format is in README.md beside this file. Whatever is wrong is said with its place: `scripts.demo.turns[2].run`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn

PIECE_CHARS: Final = 24  # of text in one chunk of a stream


class BadScript(ValueError):
    """The script file cannot be used; the message names the place, what is there, what it must be."""


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call by name. `arguments`: an object, or a text for a tool that takes free text."""

    name: str
    arguments: Mapping[str, Any] | str


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with a turn, for the first `times` askings of one same request.

    `status`: this instead of an answer, `retry_after_s` in its header. `hang`: no byte of an answer, until the client
    goes. `…_after_chunks`: so many chunks of the stream, then the connection is closed in the middle (cut), nothing
    more comes (hang), or the provider's own error event ends it (error). Without streaming there is one chunk, half of
    the body.
    """

    status: int | None = None
    retry_after_s: float | None = None
    hang: bool = False
    cut_after_chunks: int | None = None
    hang_after_chunks: int | None = None
    error_after_chunks: int | None = None
    times: int = 1


@dataclass(frozen=True, slots=True)
class Turn:
    """One answer: a thought, a text, tool calls, shell commands to run with whatever tool the request offers.

    With `match`, `user`, `system` or `model` it is a rule: given whenever those are found in what came since the last
    answer, in what a user said since then (after the task), the system prompt, the model's name; a rule does not count
    as a turn. `expect`: must be found in the last
    message, or the request is refused. `chunk_s`: the wait before each chunk of a stream, `first_s`: before the first.
    """

    text: str = ""
    thought: str = ""
    calls: tuple[Call, ...] = ()
    run: tuple[str, ...] = ()
    match: re.Pattern[str] | None = None
    user: re.Pattern[str] | None = None
    system: re.Pattern[str] | None = None
    model: re.Pattern[str] | None = None
    expect: re.Pattern[str] | None = None
    first_s: float = 0.0
    chunk_s: float = 0.0
    piece_chars: int = PIECE_CHARS
    usage: Mapping[str, int] = field(default_factory=dict)
    fault: Fault | None = None

    @property
    def is_rule(self) -> bool:
        return bool(self.match or self.user or self.system or self.model)


@dataclass(frozen=True, slots=True)
class Script:
    """`turns` in order, `rules` beside them; `end` is given after the last turn, again and again. `task`: found in what
    the conversation begins with, it chooses this script."""

    name: str
    turns: tuple[Turn, ...]
    rules: tuple[Turn, ...]
    end: Turn
    task: re.Pattern[str] | None


@dataclass(frozen=True, slots=True)
class Scripts:
    """What a server follows: by name; `default` for a conversation that names none."""

    by_name: Mapping[str, Script]
    default: str


def load(*files: Path) -> Scripts:
    """The scripts of these files; the first file's first one is the default unless a file says `default`. Raises
    BadScript."""
    found: dict[str, Script] = {}
    default = ""
    for path in files:
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError) as wrong:
            raise BadScript(f"{path}: not a readable JSON file: {wrong}") from None
        scripts = read(content, path.stem, str(path))
        for name in scripts.by_name:
            if name in found:
                raise BadScript(f"{path}: there is another script {name!r}; rename one")
        found.update(scripts.by_name)
        said_so = isinstance(content, dict) and "default" in content
        default = scripts.default if said_so or not default else default
    if not found:
        raise BadScript("no script file is given; name one with --script FILE")
    return Scripts(found, default)


def read(content: object, name: str = "script", where: str = "script") -> Scripts:
    """The scripts of one parsed JSON value: `{"turns": […]}`, a bare list of turns, or `{"scripts": {NAME: …}}`."""
    if isinstance(content, dict) and "scripts" in content:
        _only(content, {"scripts", "default"}, where)
        table = content["scripts"]
        if not isinstance(table, dict) or not table:
            _wrong(f"{where}: scripts", table, "an object of name: script, with one at least")
        by_name = {str(each): _script(one, str(each), f"{where}: scripts.{each}") for each, one in table.items()}
        default = content.get("default", next(iter(by_name)))
        if default not in by_name:
            _wrong(f"{where}: default", default, "one of " + ", ".join(by_name))
        return Scripts(by_name, str(default))
    if isinstance(content, dict) and isinstance(content.get("name"), str):
        name = content["name"]
    return Scripts({name: _script(content, name, where)}, name)


def _script(content: object, name: str, where: str) -> Script:
    if isinstance(content, list):
        content = {"turns": content}
    if not isinstance(content, dict):
        _wrong(where, content, "an object with `turns`, or a list of turns")
    _only(content, {"name", "about", "task", "turns", "end"}, where)
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name):
        _wrong(where, name, "a name of 1 to 64 letters, digits, . _ and -")
    turns = content.get("turns")
    if not isinstance(turns, list):
        _wrong(f"{where}: turns", turns, "a list of turns")
    read_turns = [_turn(one, f"{where}: turns[{number}]") for number, one in enumerate(turns)]
    end = _turn(content.get("end", {"text": f"The script {name} is at its end."}), f"{where}: end")
    return Script(
        name,
        tuple(turn for turn in read_turns if not turn.is_rule),
        tuple(turn for turn in read_turns if turn.is_rule),
        end,
        _pattern(content, "task", where),
    )


_TURN = {"user", "about", "text", "thought", "calls", "run", "match", "system", "model", "expect", "first_s", "chunk_s"}
_FAULT = {"status", "retry_after_s", "hang", "cut_after_chunks", "hang_after_chunks", "error_after_chunks", "times"}
USAGE: Final = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")


def _turn(content: object, where: str) -> Turn:
    if not isinstance(content, dict):
        _wrong(where, content, "an object")
    _only(content, _TURN | {"piece_chars", "usage", "fault"}, where)
    run = content.get("run", [])
    run = [run] if isinstance(run, str) else run
    if not isinstance(run, list) or not all(isinstance(one, str) for one in run):
        _wrong(f"{where}.run", run, "a shell command, or a list of them")
    calls = content.get("calls", [])
    if not isinstance(calls, list):
        _wrong(f"{where}.calls", calls, "a list of {name, arguments}")
    usage = content.get("usage", {})
    if not isinstance(usage, dict):
        _wrong(f"{where}.usage", usage, "an object of " + ", ".join(USAGE))
    _only(usage, set(USAGE), f"{where}.usage")
    return Turn(
        text=_text(content, "text", where),
        thought=_text(content, "thought", where),
        calls=tuple(_call(one, f"{where}.calls[{number}]") for number, one in enumerate(calls)),
        run=tuple(run),
        match=_pattern(content, "match", where),
        user=_pattern(content, "user", where),
        system=_pattern(content, "system", where),
        model=_pattern(content, "model", where),
        expect=_pattern(content, "expect", where),
        first_s=_number(content, "first_s", where) or 0.0,
        chunk_s=_number(content, "chunk_s", where) or 0.0,
        piece_chars=_whole(content, "piece_chars", where, least=1) or PIECE_CHARS,
        usage={name: _whole(usage, name, f"{where}.usage") or 0 for name in usage},
        fault=_fault(content["fault"], f"{where}.fault") if "fault" in content else None,
    )


def _call(content: object, where: str) -> Call:
    if not isinstance(content, dict) or not isinstance(content.get("name"), str):
        _wrong(where, content, "an object with a name, and arguments")
    _only(content, {"name", "arguments"}, where)
    arguments = content.get("arguments", {})
    if not isinstance(arguments, dict | str):
        _wrong(f"{where}.arguments", arguments, "an object, or a text for a tool that takes free text")
    return Call(content["name"], arguments)


def _fault(content: object, where: str) -> Fault:
    if not isinstance(content, dict):
        _wrong(where, content, "an object of " + ", ".join(sorted(_FAULT)))
    _only(content, _FAULT, where)
    status = _whole(content, "status", where, least=400)
    if status is not None and status > 599:
        _wrong(f"{where}.status", status, "a status from 400 to 599")
    if not isinstance(content.get("hang", False), bool):
        _wrong(f"{where}.hang", content["hang"], "true or false")
    times = _whole(content, "times", where, least=1)
    return Fault(
        status=status,
        retry_after_s=_number(content, "retry_after_s", where),
        hang=content.get("hang", False),
        cut_after_chunks=_whole(content, "cut_after_chunks", where),
        hang_after_chunks=_whole(content, "hang_after_chunks", where),
        error_after_chunks=_whole(content, "error_after_chunks", where),
        times=1 if times is None else times,
    )


def _text(content: Mapping[str, Any], name: str, where: str) -> str:
    value = content.get(name, "")
    if not isinstance(value, str):
        _wrong(f"{where}.{name}", value, "a text")
    return value


def _pattern(content: Mapping[str, Any], name: str, where: str) -> re.Pattern[str] | None:
    if name not in content:
        return None
    try:
        return re.compile(_text(content, name, where), re.DOTALL)
    except re.error as wrong:
        raise BadScript(f"{where}.{name}: not a regular expression: {wrong}") from None


def _number(content: Mapping[str, Any], name: str, where: str) -> float | None:
    value = content.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 3600:
        _wrong(f"{where}.{name}", value, "seconds, from 0 to 3600")
    return float(value)


def _whole(content: Mapping[str, Any], name: str, where: str, least: int = 0) -> int | None:
    value = content.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        _wrong(f"{where}.{name}", value, f"a whole number from {least}")
    return value


def _only(content: Mapping[str, Any], known: set[str], where: str) -> None:
    if strange := sorted(set(content) - known):
        raise BadScript(f"{where}: {strange[0]!r} means nothing here; known are {', '.join(sorted(known))}")


def _wrong(where: str, value: object, must_be: str) -> NoReturn:
    raise BadScript(f"{where}: {json.dumps(value)[:80]} is not {must_be}")
