"""Changes below a directory of a workspace, as they happen, through broken connections. Knows no network.

Nothing is numbered, so nothing can be caught up on: every connection begins with `ready`, and whoever keeps a picture
of the directory lists it then.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

from orchestrator.client import answers, calls, sse
from orchestrator.client.exchange import Emit, Failure, Open, Read, Request, Response, Sleep, Stream
from orchestrator.client.patience import Patience
from orchestrator.errors import CarrelError

Kind = Literal["ready", "created", "modified", "removed", "overflow", "ended"]
_SILENT = frozenset({"ready", "overflow", "ended"})


@dataclass(frozen=True, slots=True)
class Change:
    """`ready`: what happens from here on is told, list now; also after a connection broke. `overflow`: more happened
    than could be told, list again. `ended`: nothing follows; watch anew. `path` of the rest: relative to /workspace,
    bytes that are not UTF-8 as surrogateescape."""

    change: Kind
    path: str = ""


def watch(request: Request[None], *, patience: Patience, clock: Callable[[], float], url: str) -> Stream[Change]:
    """Until `ended`. Raises NotFound, Conflict (it is no directory), TooMany; Unavailable when nothing came for longer
    than `patience` allows. A directory in which nothing happens is no failure: it is waited on for ever."""
    since_s, tries = clock(), 0
    while True:
        asked_s = 0.0
        error: CarrelError
        head: Response | Failure = yield Open(request)
        if isinstance(head, Failure):
            error, why = calls.no_answer(head.why, url), head.why
        elif head.status in calls.UNAVAILABLE:
            error, asked_s = answers.unavailable(head), calls.retry_after_s(head)
            why = str(error)
        elif head.status != 200:
            raise answers.problem(head)
        else:
            decoder = sse.Decoder()
            why = "the connection ended"
            while True:
                piece: bytes | Failure = yield Read()
                if isinstance(piece, Failure):
                    why = piece.why
                    break
                if not piece:
                    break
                since_s, tries = clock(), 0
                try:
                    messages = list(decoder.feed(piece))
                except sse.TooLong as long:
                    raise answers.not_ours(str(long)) from None
                for message in messages:
                    if (change := _change(message)) is not None:
                        yield Emit(change)
                        if change.change == "ended":
                            return
            error = calls.no_answer(why, url)
        tries += 1
        delay_s = patience.delay_s(tries, asked_s=asked_s)
        if patience.over(since_s, clock() + delay_s):
            raise error
        yield Sleep(delay_s, why)


def _change(message: sse.ServerSent) -> Change | None:
    """None for what a later version may say."""
    if message.event in _SILENT:
        return Change(cast(Kind, message.event))
    if message.event != "change":
        return None
    try:
        data: dict[str, Any] = json.loads(message.data)
        exact = data.get("path_b64")
        path = os.fsdecode(base64.b64decode(exact)) if exact else str(data["path"])
        return Change(cast(Kind, data["change"]), path)
    except (ValueError, KeyError, TypeError):
        raise answers.not_ours(message.data) from None
