"""Which turn answers a request: decided from the request alone, so that a retry or a restarted server says the same.

The number of the turn is the number of answers in the conversation that were turns. An answer was a rule's when what
came before it matches that rule. `[[turn:N]]` in a message says that the next answer is turn N: a summary that takes
the place of a compacted conversation carries it. Knows no format.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from scripted_model.asked import Asked, BadRequest
from scripted_model.script import Script, Scripts, Turn

SCRIPT_MARK: Final = re.compile(r"\[\[script:([A-Za-z0-9._-]{1,64})\]\]")
TURN_MARK: Final = re.compile(r"\[\[turn:(\d{1,6})\]\]")
SHOWN_CHARS: Final = 300


@dataclass(frozen=True, slots=True)
class Chosen:
    """`number`: the turn's, or None for a rule and the end. `answers`: how many this conversation has had; with the
    script's name it makes the ids."""

    script: Script
    turn: Turn
    number: int | None
    answers: int


@dataclass(frozen=True, slots=True)
class _Exchange:
    before: str  # what was said since the answer before
    answer: str


def choose(scripts: Scripts, asked: Asked) -> Chosen:
    """Raises BadRequest for a script nobody wrote, and where a turn's `expect` is not found."""
    script = _script(scripts, asked)
    exchanges = list(_exchanges(asked))
    number = 0
    for one in exchanges:
        marked = TURN_MARK.findall(one.before)
        if marked:
            number = int(marked[-1])
        if _rule(script, asked, one.before) is None:
            number += 1
        marked = TURN_MARK.findall(one.answer)
        if marked:
            number = int(marked[-1])
    marked = TURN_MARK.findall(asked.last)
    if marked:
        number = int(marked[-1])
    turn = _rule(script, asked, asked.last)
    if turn is not None:
        chosen = Chosen(script, turn, None, len(exchanges))
    elif number < len(script.turns):
        chosen = Chosen(script, script.turns[number], number, len(exchanges))
    else:
        chosen = Chosen(script, script.end, None, len(exchanges))
    wanted = chosen.turn.expect
    if wanted is not None and not wanted.search(asked.last):
        where = f"turn {chosen.number}" if chosen.number is not None else "a rule"
        raise BadRequest(
            f"script {script.name}, {where}: the last message must match {wanted.pattern!r}; "
            f"it is {asked.last[-SHOWN_CHARS:]!r}"
        )
    return chosen


def _script(scripts: Scripts, asked: Asked) -> Script:
    # What tools printed comes last: it is whatever is in the files.
    for role in ("user", "assistant", "tool"):
        for one in asked.said:
            if one.role == role and (found := SCRIPT_MARK.search(one.text)):
                if found[1] not in scripts.by_name:
                    raise BadRequest(f"there is no script {found[1]!r}; there are {', '.join(sorted(scripts.by_name))}")
                return scripts.by_name[found[1]]
    task = _task(asked)
    for script in scripts.by_name.values():
        if script.task is not None and script.task.search(task):
            return script
    return scripts.by_name[scripts.default]


def _task(asked: Asked) -> str:
    """What was said before the first answer."""
    texts = itertools.takewhile(lambda one: one.role != "assistant", asked.said)
    return "\n".join(one.text for one in texts)


def _exchanges(asked: Asked) -> Iterator[_Exchange]:
    """Answers of several messages or items in a row are one."""
    before: list[str] = []
    answer: list[str] | None = None
    for one in asked.said:
        if one.role == "assistant":
            answer = [*(answer or []), one.text]
        else:
            if answer is not None:
                yield _Exchange("\n".join(before), "\n".join(answer))
                before, answer = [], None
            before.append(one.text)
    if answer is not None:
        yield _Exchange("\n".join(before), "\n".join(answer))


def _rule(script: Script, asked: Asked, before: str) -> Turn | None:
    for rule in script.rules:
        if (
            (rule.match is None or rule.match.search(before))
            and (rule.system is None or rule.system.search(asked.system))
            and (rule.model is None or rule.model.search(asked.model))
        ):
            return rule
    return None
