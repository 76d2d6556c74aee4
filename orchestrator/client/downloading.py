"""A file's bytes, continued at the byte where a connection broke. Knows no network.

The ETag of the first answer is sent with every continuation (If-Range): a file that changed in between is an error,
never a mixture of two.
"""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.client import answers, calls
from orchestrator.client.exchange import Emit, Failure, Open, Read, Request, Response, Sleep, Stream
from orchestrator.client.patience import Patience
from orchestrator.errors import CarrelError, Conflict


def download(
    request: Callable[[int, str], Request[None]],
    *,
    patience: Patience,
    clock: Callable[[], float],
    url: str,
) -> Stream[bytes]:
    """Pieces in order. `request(offset, etag)` makes the request for what is left. Raises NotFound, Conflict (it
    changed while it was read; or it is a directory), Unavailable."""
    offset, etag, total = 0, "", -1
    since_s, tries = clock(), 0
    while True:
        asked_s = 0.0
        error: CarrelError
        head: Response | Failure = yield Open(request(offset, etag))
        if isinstance(head, Failure):
            error, why = calls.no_answer(head.why, url), head.why
        elif head.status in calls.UNAVAILABLE:
            error, asked_s = answers.unavailable(head), calls.retry_after_s(head)
            why = str(error)
        elif head.status == 416 and offset:
            raise _changed()
        elif head.status not in (200, 206):
            raise answers.problem(head)
        else:
            if offset and head.status == 200:
                raise _changed()
            if not offset:
                if head.headers.get("content-type", "").startswith("application/json") and "etag" not in head.headers:
                    raise Conflict("this is a directory", remedy="list it, or name a file in it")
                etag = head.headers.get("etag", "")
                length = head.headers.get("content-length", "")
                total = int(length) if length.isdigit() else -1
            why = "the connection ended early"
            while True:
                piece: bytes | Failure = yield Read()
                if isinstance(piece, Failure):
                    why = piece.why
                    break
                if not piece:
                    if total < 0 or offset == total:
                        return
                    break
                offset += len(piece)
                since_s, tries = clock(), 0
                yield Emit(piece)
                if offset == total:
                    return
            error = calls.no_answer(why, url)
            if offset and not etag:
                raise error  # nothing says whether the rest would belong to what we have
        tries += 1
        delay_s = patience.delay_s(tries, asked_s=asked_s)
        if patience.over(since_s, clock() + delay_s):
            raise error
        yield Sleep(delay_s, why)


def _changed() -> Conflict:
    return Conflict("the file changed while it was being read", remedy="read it again from the start")
