"""One HTTP exchange as data: what to send, how to read the answer, whether it may be sent again. Knows no network.

The core of the client is generators that yield *steps* (below) and are resumed with what came of them; `Client` and
`AsyncClient` only carry the steps out. So every decision about retries, cursors and errors is made once, here and in
the files beside this one, and can be tested without a socket.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")

#: Bytes in memory; a file that can be read again for a retry; or a stream that can be read once.
Body = bytes | Path | Iterable[bytes]


@dataclass(frozen=True, slots=True)
class Response:
    """An answer, whole. Header names are lower case. `again` = this request had been sent before and its
    answer lost."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    again: bool = False


@dataclass(frozen=True, slots=True)
class Request(Generic[T]):
    """What to send. `path` starts with "/" and is percent-encoded already.

    `read` turns a 2xx (or 3xx) answer into a value; other answers become errors before it is asked. `repeatable` = to
    send it twice does what sending it once does: only such a request is ever sent again. `hold_s` = how long the
    server may stay silent, on top of the transport's own limit (a held request).
    """

    method: str
    path: str
    read: Callable[[Response], T]
    query: Mapping[str, str | list[str]] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Body = b""
    also: frozenset[int] = frozenset()  # statuses that `read` understands besides 2xx
    repeatable: bool = True
    hold_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Failure:
    """No answer, or half of one. `sent` False = not a byte of the request left: sending it again is always safe."""

    why: str
    sent: bool = True


# -- steps: what the core asks of its skin ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Exchange:
    """Send the request, read the whole answer. Resumed with a Response or a Failure."""

    request: Request[Any]


@dataclass(frozen=True, slots=True)
class Open:
    """Send the request, read the head of the answer; one already open is closed first. Resumed with a Response
    (with its whole body when its status is not 200 or 206) or a Failure."""

    request: Request[Any]


@dataclass(frozen=True, slots=True)
class Read:
    """The next bytes of the opened answer. Resumed with bytes (b"" = it ended as it should) or a Failure."""


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait `delay_s`, because of `why`. Resumed with None."""

    delay_s: float
    why: str


@dataclass(frozen=True, slots=True)
class Emit(Generic[T]):
    """Hand `item` to whoever asked. Resumed with None once they want more."""

    item: T


Step = Exchange | Open | Read | Sleep
#: A question with one answer: yields steps, is resumed with what came of them, returns a T.
Call = Generator[Step, Any, T]
#: A question with many answers: also yields Emit[T].
Stream = Generator[Step | Emit[T], Any, None]
