"""`carrel logs`: what it wrote, on the streams it wrote to, from the start, the last lines or now."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from orchestrator.cli import output, reaching, units
from orchestrator.cli.usage import UsageError
from orchestrator.events import OUTPUT, Event

if TYPE_CHECKING:
    from orchestrator.client import Execution

#: Events asked for at first when the last N lines are wanted; more, while those hold too few.
FIRST_EVENTS = 256
BOTH = frozenset({"stdout", "stderr"})


def logs(
    ctx: typer.Context,
    execution: Annotated[str, reaching.Ref],
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on, live, until its end.")] = False,
    lines: Annotated[
        int | None, typer.Option("-n", "--tail", min=0, metavar="N", help="Only the last N lines, then live with -f.")
    ] = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="Only after: 10m (ago) or 2025-01-31T08:15:00Z.")
    ] = None,
    stream: Annotated[
        Literal["stdout", "stderr"] | None, typer.Option("--stream", help="Only this one of stdout and stderr.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Each piece as an event, one JSON object a line.")] = False,
) -> None:
    """Print what it wrote, byte for byte: its stdout on stdout, its stderr on stderr."""
    if as_json and lines is not None:
        raise UsageError("-n counts lines, --json prints events: `carrel events --type output -n N --json`")
    start = units.moment(since) if since else None
    show = _as_json if as_json else _as_it_was
    streams = frozenset({stream}) if stream else BOTH
    outage = reaching.Outage()
    with reaching.client(ctx, on_retry=outage.retry) as client:
        found = reaching.execution(client, execution)
        after = ""
        if lines is not None:
            last, after, ended = _last(found, lines, streams, start)
            for descriptor, data in last:
                output.write_all(descriptor, data)
            if ended or not follow:
                return
        elif not follow:
            _print_what_is_there(found, streams, start, show)
            return
        for batch in found.batches(after=after):
            outage.over()
            show(_since(batch.events, start), streams)


def _as_it_was(events: Iterable[Event], streams: frozenset[str]) -> None:
    for descriptor, data in output.pieces(events, streams):
        output.write_all(descriptor, data)


def _as_json(events: Iterable[Event], streams: frozenset[str]) -> None:
    from orchestrator.client.nouns import event_as_json

    for event in events:
        if event.type == OUTPUT and event.data.get("stream") in streams:
            output.write_all(1, event_as_json(event) + b"\n")


def _since(events: Iterable[Event], start: datetime | None) -> Iterable[Event]:
    return events if start is None else (event for event in events if event.time >= start)


def _print_what_is_there(
    found: Execution,
    streams: frozenset[str],
    start: datetime | None,
    show: Callable[[Iterable[Event], frozenset[str]], None],
) -> None:
    after = ""
    while True:
        page = found.history(after=after)
        show(_since(page.events, start), streams)
        if page.closed or page.up_to_date or not page.events:
            return
        after = page.next


def _last(
    found: Execution, lines: int, streams: frozenset[str], start: datetime | None
) -> tuple[list[tuple[int, bytes]], str, bool]:
    """(the last lines, where to go on, whether it has ended)."""
    wanted = FIRST_EVENTS
    while True:
        page = found.history(tail=wanted)
        events, cursor, closed = list(page.events), page.next, page.closed
        while not (closed or page.up_to_date) and page.events:  # a page is bounded; what is asked for may not be
            page = found.history(after=cursor)
            events += page.events
            cursor, closed = page.next, page.closed
        chosen = [
            (output.DESCRIPTORS[event.data["stream"]], event.body)
            for event in _since(events, start)
            if event.type == OUTPUT and event.body is not None and event.data.get("stream") in streams
        ]
        whole = not events or events[0].seq == 1
        if whole or sum(body.count(b"\n") for _, body in chosen) > lines:
            return last_lines(chosen, lines), cursor, closed
        wanted *= 4


def last_lines(pieces: list[tuple[int, bytes]], lines: int) -> list[tuple[int, bytes]]:
    """The end of what was printed, from the start of the last `lines` lines on; one without a newline counts too."""
    if not lines:
        return []
    left = lines
    kept: list[tuple[int, bytes]] = []
    at_end = True
    for descriptor, body in reversed(pieces):
        end = len(body)
        if at_end and body:
            at_end = False
            end -= body.endswith(b"\n")  # the newline that ends the last line begins none
        while (at := body.rfind(b"\n", 0, end)) >= 0:
            left -= 1
            if not left:
                kept.append((descriptor, body[at + 1 :]))
                return [piece for piece in reversed(kept) if piece[1]]
            end = at
        kept.append((descriptor, body))
    return [piece for piece in reversed(kept) if piece[1]]


def register(app: typer.Typer) -> None:
    app.command("logs")(logs)
