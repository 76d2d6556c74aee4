"""What the routes work with: the ports, the settings, who is calling. Knows no route and no concrete class.

`Parts` is made once per process by `create_app` and found again through the request; nothing here is global.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from fastapi import Depends
from starlette.requests import HTTPConnection

from orchestrator import __version__
from orchestrator.clock import Clock
from orchestrator.errors import Forbidden, NotFound, TooMany, Unauthorized
from orchestrator.execution import GIB, KIB, Execution, Limits, Resources
from orchestrator.executions import Executions
from orchestrator.harnesses import Catalogue
from orchestrator.history import History
from orchestrator.intents import Intents
from orchestrator.reach import Reach
from orchestrator.removing import Removing
from orchestrator.room import Rooms
from orchestrator.server.admission import Admission
from orchestrator.server.auth import Permit
from orchestrator.server.metrics import Metrics
from orchestrator.server.viewers import Encodings
from orchestrator.shelf import Shelf
from orchestrator.snapshots import Snapshot, Snapshots
from orchestrator.streams import Streams
from orchestrator.tokens import Scope, Token, Tokens
from orchestrator.wire.bounds import REFERENCE
from orchestrator.workspace import Blobs, SnapshotStore

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What an operator may set of the api. Durations in seconds, sizes in bytes.

    `allowed_hosts`: values of the Host header besides localhost, 127.0.0.1 and [::1] ("*" = any); `allowed_origins`:
    browser origins besides the server's own. A viewer that takes nothing for `stall_limit_s` is dropped; `recheck_s`:
    how often a stream that lives on asks whether its token still holds.
    `host`: this one, as records name it, "" = none of its workspaces are here. `wake_wait_s`: how long a request that
    needs a sleeping execution alive waits for it; `cut_wait_s`: how long a fork from now waits for its snapshot.
    `long_poll_s`: how long one of a generic stream is held (the protocol's public suite expects at most 20).
    """

    version: str = __version__
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    message_limit_bytes: int = 512 * KIB
    upload_limit_bytes: int = 1 * GIB
    unpack_limit_bytes: int = 16 * GIB
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
    host: str = ""
    wake_wait_s: float = 60.0
    cut_wait_s: float = 60.0
    upload_threads: int = 64


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
        snapshots: Snapshots,
        store: SnapshotStore | None = None,
        shelf: Shelf | None = None,
        streams: Streams | None = None,
        rooms: Rooms | None = None,
    ) -> None:
        self.executions = executions
        self.history = history
        self.reach = reach
        self.blobs = blobs
        self.tokens = tokens
        self.settings = settings
        self.clock = clock
        self.intents = intents
        self.snapshots = snapshots
        self.store = store
        self.shelf = shelf
        self.removing = Removing(executions, snapshots, store, shelf, host=settings.host)
        self.streams = streams
        self.admission = Admission(executions, clock, rooms)
        self.metrics = Metrics()
        self.encodings = Encodings()
        self.stopping = asyncio.Event()  # set when this process begins to end: streams say so and let go
        self.holding = 0  # requests that wait for something to happen
        self.viewers = 0
        self.alone = asyncio.Event()  # set while there is no viewer
        self.alone.set()
        # Of our own: a slow disk must not take the threads that name lookups and the embedded store need.
        self._uploads = 0
        self._upload_threads = ThreadPoolExecutor(settings.upload_threads, thread_name_prefix="uploads")
        self._file_threads = ThreadPoolExecutor(settings.file_threads, thread_name_prefix="files")

    async def in_thread(self, call: Callable[..., T], *args: Any) -> T:
        """Run a blocking call of the file ports."""
        return await asyncio.get_running_loop().run_in_executor(self._file_threads, call, *args)

    async def in_upload(self, call: Callable[[], T]) -> T:
        """The same for one that lasts as long as its sender likes: threads of their own, and no queue before them.
        Raises TooMany."""
        if self._uploads >= self.settings.upload_threads:
            raise TooMany(
                f"this process receives {self._uploads} uploads already",
                limit=f"{self.settings.upload_threads} at once",
                retry_after_s=5,
            )
        self._uploads += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._upload_threads, call)
        finally:
            self._uploads -= 1

    def later(self, call: Callable[[], None]) -> None:
        """A blocking call nobody waits for."""
        self._file_threads.submit(call)

    def close(self) -> None:
        self._upload_threads.shutdown(wait=False, cancel_futures=True)
        self._file_threads.shutdown(wait=False, cancel_futures=True)

    def permit(self, caller: Token) -> Permit:
        return Permit(self.tokens, caller, self.clock, every_s=self.settings.recheck_s)

    async def find(self, ref: str, caller: Token) -> Execution:
        """The execution a path names, of the caller's tenant: another tenant's does not exist for them. Raises
        NotFound; BadInput for a prefix that fits several."""
        if not REFERENCE.fullmatch(ref):
            raise NotFound("no such execution", kind="execution", id=ref[:64])
        return await self.executions.resolve(ref, tenant=caller.tenant)

    async def find_snapshot(self, ref: str, caller: Token) -> Snapshot:
        """The same for a snapshot."""
        if not REFERENCE.fullmatch(ref):
            raise NotFound("no such snapshot", kind="snapshot", id=ref[:64])
        return await self.snapshots.get(ref, tenant=caller.tenant)


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
