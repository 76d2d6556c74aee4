"""Which turn answers a request: decided from the request alone, so that a retry or a restarted server says the same.

The number of the turn is the number of answers in the conversation that were turns. An answer was a rule's when what
came before it matches that rule. `[[turn:N]]` in a message says that the next answer is turn N: a summary that takes
the place of a compacted conversation carries it. Knows no format.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from scripted_model.asked import Asked, BadRequest, Said
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
class _Before:
    """What was said between two answers. `user`: by a user, the task not counted."""

    text: str
    user: str


def choose(scripts: Scripts, asked: Asked) -> Chosen:
    """Raises BadRequest for a script nobody wrote, and where a turn's `expect` is not found."""
    script = _script(scripts, asked)
    answers = number = 0
    for before, answer in _exchanges(asked):
        number = _marked(before.text, number)
        if _rule(script, asked, before) is None:
            number += 1
        number = _marked(answer, number)
        answers += 1
    last = _before(asked.last, first=not answers)
    number = _marked(last.text, number)
    turn = _rule(script, asked, last)
    if turn is not None:
        chosen = Chosen(script, turn, None, answers)
    elif number < len(script.turns):
        chosen = Chosen(script, script.turns[number], number, answers)
    else:
        chosen = Chosen(script, script.end, None, answers)
    wanted = chosen.turn.expect
    if wanted is not None and not wanted.search(last.text):
        where = f"turn {chosen.number}" if chosen.number is not None else "a rule"
        raise BadRequest(
            f"script {script.name}, {where}: the last message must match {wanted.pattern!r}; "
            f"it is {last.text[-SHOWN_CHARS:]!r}"
        )
    return chosen


def _marked(text: str, number: int) -> int:
    marks = TURN_MARK.findall(text)
    return int(marks[-1]) if marks else number


def _script(scripts: Scripts, asked: Asked) -> Script:
    # What tools printed comes last: it is whatever is in the files.
    for role in ("user", "assistant", "tool"):
        for one in asked.said:
            if one.role == role and (found := SCRIPT_MARK.search(one.text)):
                if found[1] not in scripts.by_name:
                    raise BadRequest(f"there is no script {found[1]!r}; there are {', '.join(sorted(scripts.by_name))}")
                return scripts.by_name[found[1]]
    task = "\n".join(one.text for one in itertools.takewhile(lambda one: one.role != "assistant", asked.said))
    for script in scripts.by_name.values():
        if script.task is not None and script.task.search(task):
            return script
    return scripts.by_name[scripts.default]


def _exchanges(asked: Asked) -> Iterator[tuple[_Before, str]]:
    """What was said, and the answer to it; answers of several messages or items in a row are one."""
    before: list[Said] = []
    answer: list[str] = []
    first = True
    for one in asked.said:
        if one.role == "assistant":
            answer.append(one.text)
            continue
        if answer:
            yield _before(before, first=first), "\n".join(answer)
            before, answer, first = [], [], False
        before.append(one)
    if answer:
        yield _before(before, first=first), "\n".join(answer)


def _before(said: Sequence[Said], *, first: bool) -> _Before:
    users = [] if first else [one.text for one in said if one.role == "user"]
    return _Before("\n".join(one.text for one in said), "\n".join(users))


def _rule(script: Script, asked: Asked, before: _Before) -> Turn | None:
    for rule in script.rules:
        if (
            (rule.match is None or rule.match.search(before.text))
            and (rule.user is None or rule.user.search(before.user))
            and (rule.system is None or rule.system.search(asked.system))
            and (rule.model is None or rule.model.search(asked.model))
        ):
            return rule
    return None
