"""One command beside the harness, streamed. Knows no network.

Unlike a history this cannot be picked up again: when the connection breaks, what became of the command is not known,
and that is what the error says.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.client import answers, calls, requests, sse
from orchestrator.client.exchange import Emit, Failure, Open, Read, Response, Stream
from orchestrator.errors import Unavailable


@dataclass(frozen=True, slots=True)
class Started:
    """It runs, under this pid inside the sandbox."""

    pid: int


@dataclass(frozen=True, slots=True)
class Output:
    """Bytes exactly as the command wrote them."""

    stream: Literal["stdout", "stderr"]
    data: bytes


@dataclass(frozen=True, slots=True)
class Exited:
    """The last one. Exactly one of `exit_code` and `signal` is set."""

    exit_code: int | None
    signal: int | None
    timed_out: bool = False
    error: str = ""  # why it could not be started


ExecEvent = Started | Output | Exited


def execute(execution: str, body: Mapping[str, Any], *, url: str) -> Stream[ExecEvent]:
    """Events of one command, `Exited` last. Raises what the server's problem says; Unavailable when the connection
    broke before the end."""
    head: Response | Failure = yield Open(requests.exec_stream(execution, body))
    if isinstance(head, Failure):
        if not head.sent:
            raise calls.no_answer(head.why, url)
        raise _unknown(head.why)
    if head.status != 200:
        raise answers.problem(head)
    decoder = sse.Decoder()
    while True:
        piece: bytes | Failure = yield Read()
        if isinstance(piece, Failure) or not piece:
            raise _unknown(piece.why if isinstance(piece, Failure) else "the answer ended early")
        for message in decoder.feed(piece):
            data = json.loads(message.data)
            match message.event:
                case "started":
                    yield Emit(Started(int(data.get("pid", 0))))
                case "output":
                    raw = base64.b64decode(data["data_b64"]) if "data_b64" in data else data["data"].encode()
                    yield Emit(Output(data["stream"], raw))
                case "exit":
                    timed_out, error = bool(data.get("timed_out")), str(data.get("error") or "")
                    yield Emit(Exited(data.get("exit_code"), data.get("signal"), timed_out, error))
                    return
                case "error":
                    raise answers.error(data)
                case _:
                    pass  # of a later version


def _unknown(why: str) -> Unavailable:
    return Unavailable(
        f"the connection broke while the command ran ({why}): how it ended is not known",
        remedy="look at its effects before running it again, or run it with detach",
    )
