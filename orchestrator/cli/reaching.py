"""From the command line's words to a client and an execution's handle: what every verb begins with. Imports the client
when it is first needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer

from orchestrator import profile
from orchestrator.cli import console
from orchestrator.errors import CarrelError

if TYPE_CHECKING:
    from orchestrator.client import AsyncClient, Client, Execution

#: How long one call goes on while no server answers: over a quick restart, not over a coffee.
CALL_PATIENCE_S = 3.0
#: How long what follows a long run (its downloads) does.
AFTERWARDS_PATIENCE_S = 60.0
#: A follower says that it is trying again after this long in vain, not at every blink.
SAID_AFTER_S = 1.0

#: How many executions completion offers, and how long a shell may wait for them.
COMPLETED, COMPLETION_S = 50, 1.0


def complete(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names and ids that begin so, newest first; nothing when the server does not answer at once."""
    from orchestrator.client import Client, Patience

    try:
        who = target(ctx)
        with Client(who.url, who.token, patience=Patience(limit_s=0.0), silence_s=COMPLETION_S) as client:
            found = client.page(limit=COMPLETED).executions
    except CarrelError:
        return []
    words = ["@last", *(record.name for record in found if record.name), *(record.id for record in found)]
    return [word for word in dict.fromkeys(words) if word.startswith(incomplete)]


def complete_snapshot(ctx: typer.Context, incomplete: str) -> list[str]:
    """The same of snapshots."""
    from orchestrator.client import Client, Patience
    from orchestrator.client.snapshot_requests import snapshots

    try:
        who = target(ctx)
        with Client(who.url, who.token, patience=Patience(limit_s=0.0), silence_s=COMPLETION_S) as client:
            found = client.call(snapshots(limit=COMPLETED)).snapshots
    except CarrelError:
        return []
    words = [*(one.name for one in found if one.name), *(one.id for one in found)]
    return [word for word in dict.fromkeys(words) if word.startswith(incomplete)]


Ref = typer.Argument(
    metavar="EXECUTION",
    help="An id, a unique prefix of one, a name, or @last.",
    show_default=False,
    autocompletion=complete,
)
OptionalRef = typer.Argument(
    metavar="[EXECUTION]",
    help="An id, a unique prefix of one, a name, or @last; none = all.",
    show_default=False,
    autocompletion=complete,
)
Refs = typer.Argument(
    metavar="EXECUTION…",
    help="Ids, unique prefixes, names or @last.",
    show_default=False,
    autocompletion=complete,
)
Json = typer.Option("--json", help="Print JSON.")


class Outage:
    """Says once per outage that the server is away; `over` when it is back."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._waited_s = 0.0
        self._said = False

    def retry(self, why: str, delay_s: float) -> None:
        self._waited_s += delay_s
        if self._waited_s >= SAID_AFTER_S and not self._said and not self._quiet:
            self._said = True
            console.note(f"the server does not answer ({console.printable(why)}); trying again until it does")

    def over(self) -> None:
        if self._said:
            console.note("the server is back")
        self._waited_s, self._said = 0.0, False


def target(ctx: typer.Context) -> profile.Target:
    """Whom this command line talks to."""
    shared: Any = ctx.find_root().obj  # None while a shell completes: nothing was carried out yet
    return profile.target(shared and shared.url, shared and shared.profile)


def client(
    ctx: typer.Context, *, on_retry: Callable[[str, float], None] | None = None, patience_s: float = CALL_PATIENCE_S
) -> Client:
    """A blocking client."""
    from orchestrator.client import Client, Patience

    who = target(ctx)
    return Client(who.url, who.token, patience=Patience(limit_s=patience_s), on_retry=on_retry)


def watcher(ctx: typer.Context, *, on_retry: Callable[[str, float], None]) -> AsyncClient:
    """One for an event loop, for somebody who stays: it never gives up by itself."""
    from orchestrator.client import FOR_EVER, AsyncClient

    who = target(ctx)
    return AsyncClient(who.url, who.token, patience=FOR_EVER, on_retry=on_retry)


def execution(client: Client, ref: str) -> Execution:
    """The handle of what a person named; read once, so that a wrong name is said at once."""
    return client.get(name_of(client.address.url, ref))


def name_of(url: str, ref: str) -> str:
    """`@last` as the id it stands for; anything else as it is."""
    return profile.last(url) if ref == "@last" else ref
