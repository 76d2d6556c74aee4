"""`carrel logs`: what it wrote, or said and did, from the start, the last lines or now."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from orchestrator.cli import console, output, reaching, units
from orchestrator.cli.transcript import Transcript
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
    """Print what it wrote, byte for byte: its stdout on stdout, its stderr on stderr. Of an agent: what it said on
    stdout, what it thought and did on stderr."""
    if as_json and lines is not None:
        raise UsageError("-n counts lines, --json prints events: `carrel events --type output -n N --json`")
    start = units.moment(since) if since else None
    streams = frozenset({stream}) if stream else BOTH
    fresh = partial(Transcript, streams, colour=console.colourful(), name=execution)
    reading = fresh()
    outage = reaching.Outage()
    with reaching.client(ctx, on_retry=outage.retry) as client:
        found = reaching.execution(client, execution)
        after = ""
        if lines is not None:
            last, reading, after, ended = _last(found, lines, fresh, start)
            for descriptor, data in last:
                output.write_all(descriptor, data)
            if ended or not follow:
                return
        show = partial(_as_json, streams) if as_json else partial(_as_it_was, reading)
        if lines is None and not follow:
            _print_what_is_there(found, start, show)
            return
        for batch in found.batches(after=after):
            outage.over()
            show(_since(batch.events, start))


def _as_it_was(reading: Transcript, events: Iterable[Event]) -> None:
    for descriptor, data in reading.pieces(events):
        output.write_all(descriptor, data)


def _as_json(streams: frozenset[str], events: Iterable[Event]) -> None:
    from orchestrator.client.nouns import event_as_json

    for event in events:
        # What is no output and is the harness's own came on its stdout.
        if event.source == "harness" and event.data.get("stream" if event.type == OUTPUT else "", "stdout") in streams:
            console.json_line(event_as_json(event).decode())
    sys.stdout.flush()


def _since(events: Iterable[Event], start: datetime | None) -> Iterable[Event]:
    return events if start is None else (event for event in events if event.time >= start)


def _print_what_is_there(found: Execution, start: datetime | None, show: Callable[[Iterable[Event]], None]) -> None:
    after = ""
    while True:
        page = found.history(after=after)
        show(_since(page.events, start))
        if page.closed or page.up_to_date or not page.events:
            return
        after = page.next


def _last(
    found: Execution, lines: int, fresh: Callable[[], Transcript], start: datetime | None
) -> tuple[list[tuple[int, bytes]], Transcript, str, bool]:
    """(the last lines, what has read them, where to go on, whether it has ended)."""
    wanted = FIRST_EVENTS
    while True:
        page = found.history(tail=wanted)
        events, cursor, closed = list(page.events), page.next, page.closed
        while not (closed or page.up_to_date) and page.events:  # a page is bounded; what is asked for may not be
            page = found.history(after=cursor)
            events += page.events
            cursor, closed = page.next, page.closed
        reading = fresh()
        chosen = list(reading.pieces(_since(events, start)))
        whole = not events or events[0].seq == 1
        if whole or sum(body.count(b"\n") for _, body in chosen) > lines:
            return last_lines(chosen, lines), reading, cursor, closed
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
