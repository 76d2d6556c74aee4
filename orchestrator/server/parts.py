"""What the routes work with: the ports, the settings, who is calling. Knows no route and no concrete class.

`Parts` is made once per process by `create_app` and found again through the request; nothing here is global.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, TypeVar

from fastapi import Depends
from starlette.requests import HTTPConnection

from orchestrator import __version__
from orchestrator.clock import Clock
from orchestrator.errors import Forbidden, NotFound, Unauthorized
from orchestrator.execution import GIB, KIB, Execution, Limits, Resources
from orchestrator.executions import Executions
from orchestrator.harnesses import Catalogue
from orchestrator.history import History
from orchestrator.intents import Intents
from orchestrator.reach import Reach
from orchestrator.server.auth import Permit
from orchestrator.server.metrics import Metrics
from orchestrator.server.viewers import Encodings
from orchestrator.streams import Streams
from orchestrator.tokens import Scope, Token, Tokens
from orchestrator.workspace import Blobs

T = TypeVar("T")

#: An id, a prefix of one, or a name. Anything else cannot exist and is not looked for.
_REFERENCE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What an operator may set of the api. Durations in seconds, sizes in bytes.

    `allowed_hosts`: values of the Host header besides localhost, 127.0.0.1 and [::1] ("*" = any); `allowed_origins`:
    browser origins besides the server's own. A viewer that takes nothing for `stall_limit_s` is dropped; `recheck_s`:
    how often a stream that lives on asks whether its token still holds.
    `long_poll_s`: how long one of a generic stream is held (the protocol's public suite expects at most 20).
    """

    version: str = __version__
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    message_limit_bytes: int = 512 * KIB
    upload_limit_bytes: int = 1 * GIB
    default_resources: Resources = field(default_factory=Resources)
    default_limits: Limits = field(default_factory=Limits)
    catalogue: Catalogue = field(default_factory=Catalogue)
    allowed_models: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # as ModelPolicy.allowed
    heartbeat_s: float = 15.0
    long_poll_s: float = 15.0
    stall_limit_s: float = 20.0
    recheck_s: float = 30.0
    viewer_limit: int = 4096
    file_threads: int = 16


class Parts:
    """The ports an api process was given, and what lives as long as the process."""

    def __init__(
        self,
        *,
        executions: Executions,
        history: History,
        reach: Reach,
        blobs: Blobs,
        tokens: Tokens,
        settings: ServerSettings,
        clock: Clock,
        intents: Intents,
        streams: Streams | None = None,
    ) -> None:
        self.executions = executions
        self.history = history
        self.reach = reach
        self.blobs = blobs
        self.tokens = tokens
        self.settings = settings
        self.clock = clock
        self.intents = intents
        self.streams = streams
        self.metrics = Metrics()
        self.encodings = Encodings()
        self.stopping = asyncio.Event()  # set when this process begins to end: streams say so and let go
        self.holding = 0  # requests that wait for something to happen
        self.viewers = 0
        self.alone = asyncio.Event()  # set while there is no viewer
        self.alone.set()
        # Of our own: a slow disk must not take the threads that name lookups and the embedded store need.
        self._file_threads = ThreadPoolExecutor(settings.file_threads, thread_name_prefix="files")

    async def in_thread(self, call: Callable[..., T], *args: Any) -> T:
        """Run a blocking call of the file ports."""
        return await asyncio.get_running_loop().run_in_executor(self._file_threads, call, *args)

    def close(self) -> None:
        self._file_threads.shutdown(wait=False, cancel_futures=True)

    def permit(self, caller: Token) -> Permit:
        return Permit(self.tokens, caller, self.clock, every_s=self.settings.recheck_s)

    async def find(self, ref: str, caller: Token) -> Execution:
        """The execution a path names, of the caller's tenant: another tenant's does not exist for them. Raises
        NotFound; BadInput for a prefix that fits several."""
        if not _REFERENCE.fullmatch(ref):
            raise NotFound("no such execution", kind="execution", id=ref[:64])
        return await self.executions.resolve(ref, tenant=caller.tenant)


def _parts(connection: HTTPConnection) -> Parts:
    parts: Parts = connection.app.state.parts
    return parts


def _may(scope: Scope) -> Callable[[HTTPConnection], Token]:
    def caller(connection: HTTPConnection) -> Token:
        token: Token | None = connection.scope.get("carrel.token")
        if token is None:  # the door lets nobody through without; this is the second lock
            raise Unauthorized("a token is needed")
        if not token.allows(scope):
            raise Forbidden(
                f"this token does not allow `{scope}`",
                scope=scope.value,
                remedy=f"use a token with the scope `{scope}`",
            )
        return token

    caller.scope = scope  # type: ignore[attr-defined]  # read by the test that every route names one
    return caller


ThePart = Annotated[Parts, Depends(_parts)]
Reader = Annotated[Token, Depends(_may(Scope.READ))]
Writer = Annotated[Token, Depends(_may(Scope.WRITE))]
Attacher = Annotated[Token, Depends(_may(Scope.ATTACH))]
Admin = Annotated[Token, Depends(_may(Scope.ADMIN))]
