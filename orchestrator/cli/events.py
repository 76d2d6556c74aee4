"""`carrel events`: the history itself, numbered, for people or as JSON lines."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from orchestrator.cli import console, reaching
from orchestrator.cli.usage import UsageError
from orchestrator.events import Event

SHOWN_CHARS = 160


def events(
    ctx: typer.Context,
    execution: Annotated[str, reaching.Ref],
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on, live, until its end.")] = False,
    after: Annotated[str, typer.Option("--after", metavar="SEQ", help="Only after this number or cursor.")] = "",
    tail: Annotated[
        int | None, typer.Option("-n", "--tail", min=0, metavar="N", help="Only the last N events.")
    ] = None,
    types: Annotated[
        list[str] | None, typer.Option("--type", metavar="TYPE", help="Only of this type; `message.` = all of them.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, as the API sends them.")] = False,
) -> None:
    """Print its history: every event has a number, none is missing."""
    if after and tail is not None:
        raise UsageError("--after and -n say two different places")
    wanted = tuple(types or ())
    outage = reaching.Outage()
    with reaching.client(ctx, on_retry=outage.retry) as client:
        found = reaching.execution(client, execution)
        if follow:
            for batch in found.batches(after=after, tail=tail):
                outage.over()
                _print(batch.events, wanted, as_json)
            return
        while True:
            page = found.history(after=after, tail=tail)
            _print(page.events, wanted, as_json)
            if page.closed or page.up_to_date or not page.events:
                return
            after, tail = page.next, None


def _print(events: tuple[Event, ...], wanted: tuple[str, ...], as_json: bool) -> None:
    from orchestrator.client.nouns import event_as_json

    for event in events:
        if wanted and not any(
            event.type == one or (one.endswith(".") and event.type.startswith(one)) for one in wanted
        ):
            continue
        if as_json:
            console.json_line(event_as_json(event).decode())
        else:
            console.line(shown(event))
    sys.stdout.flush()


def shown(event: Event) -> str:
    """One line for a person; nothing in it steers a terminal."""
    local = event.time.astimezone()
    head = f"{event.seq:>6} {local:%H:%M:%S}.{local.microsecond // 1000:03d} {event.attempt} {event.type:<22}"
    if event.body is not None:
        text = f"{event.data.get('stream', '')}: {event.body.decode('utf-8', 'replace')}"
    else:
        text = " ".join(
            f"{key}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
            for key, value in event.data.items()
        )
    return f"{head} {console.printable(text, most=SHOWN_CHARS)}".rstrip()


def register(app: typer.Typer) -> None:
    app.command("events")(events)
