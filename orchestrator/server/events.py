"""A history out: as a JSON page, a long poll, or a stream of server-sent events, by what the caller accepts. Knows no
store."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Query, Request, Response

from orchestrator.events import Cursor
from orchestrator.history import Page
from orchestrator.server.parts import Reader, ThePart
from orchestrator.server.places import MOST_TAIL, place
from orchestrator.server.sse import EventStream, accepts_sse
from orchestrator.server.waiting import MOST_WAIT_S, first_page
from orchestrator.wire.event import EventPage, encode

router = APIRouter(prefix="/v1/executions/{id}", tags=["events"])

_MOST_EVENTS: Final = 10_000

_STREAM_DOC: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "A page; or, with `Accept: text/event-stream`, the history from there on, live: "
        "`id` = cursor, `event` = event | up_to_date | gap | closed. A stream that ends without `closed` is to be "
        "opened again with its last id.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    },
    204: {"description": "As a stream: everything was seen and nothing will follow."},
}


@router.get("/events", response_model=EventPage, responses=_STREAM_DOC, summary="History")
async def events(
    id: str,
    request: Request,
    parts: ThePart,
    caller: Reader,
    after: Annotated[str | None, Query(max_length=64, description="a cursor, an event's number, or `now`")] = None,
    tail: Annotated[int | None, Query(ge=0, le=MOST_TAIL, description="begin with the last so many")] = None,
    limit: Annotated[int, Query(ge=1, le=_MOST_EVENTS)] = 1000,
    wait_s: Annotated[float, Query(ge=0, le=MOST_WAIT_S, description="hold the answer for a first event")] = 0.0,
    last_event_id: Annotated[str | None, Header(max_length=64)] = None,
) -> Response:
    """From the start, after a place, or the last K: no gap, no repeat. 410 says where it goes on when some is gone."""
    execution = await parts.find(id, caller)
    start = place(execution, after=after, tail=tail, last_event_id=last_event_id)
    if accepts_sse(request.headers.get("accept", "")):
        return await EventStream.begin(parts, execution.id, start, parts.permit(caller))
    page = await parts.history.read(execution.id, start, limit=limit)
    if wait_s and not page.events and not page.closed:
        request.scope["carrel.held"] = True
        came = await first_page(
            parts, execution.id, start, wait_s=wait_s, enough=lambda page: bool(page.events) or page.closed
        )
        page = _first(came, limit) if came else page
    return _answer(page, start)


def _first(page: Page, limit: int) -> Page:
    if len(page.events) <= limit:
        return page
    return Page(page.events[:limit], page.tail, False, page.generation)


def _answer(page: Page, start: Cursor) -> Response:
    seen = page.events[-1].seq if page.events else start.seq
    next_ = Cursor(page.generation, seen)
    up_to_date = seen >= page.tail
    rest = f'],"next":"{next_}","tail":{page.tail},"closed":{_bool(page.closed)},"up_to_date":{_bool(up_to_date)}}}'
    body = b'{"events":[' + b",".join([encode(event) for event in page.events]) + rest.encode()
    return Response(body, media_type="application/json")


def _bool(value: bool) -> str:
    return "true" if value else "false"
