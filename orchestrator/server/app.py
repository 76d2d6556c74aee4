"""The HTTP application: ports in, ASGI app out. Knows no concrete store, driver or engine, and reads no setting."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi

from orchestrator import __version__
from orchestrator.clock import Clock, SystemClock
from orchestrator.executions import Executions
from orchestrator.history import History
from orchestrator.intents import Intents
from orchestrator.reach import Reach
from orchestrator.room import Rooms
from orchestrator.server import (
    artifacts,
    channel,
    commands,
    events,
    file_writing,
    files,
    forks,
    harnesses,
    health,
    journal,
    problems,
    prune,
    stats,
    steering,
    tree,
    way_out,
)
from orchestrator.server.auth import Authenticator
from orchestrator.server.blobs import router as blobs_router
from orchestrator.server.door import OPEN_PATHS, Door
from orchestrator.server.executions import router as executions_router
from orchestrator.server.metrics import Timing
from orchestrator.server.parts import Parts, ServerSettings
from orchestrator.server.snapshots import of_executions as snapshots_of_router
from orchestrator.server.snapshots import router as snapshots_router
from orchestrator.server.streams import router as streams_router
from orchestrator.shelf import Shelf
from orchestrator.snapshots import Snapshots
from orchestrator.streams import Streams
from orchestrator.tokens import Tokens
from orchestrator.wire.problem import Problem
from orchestrator.workspace import Blobs, SnapshotStore

ROUTERS: Final[tuple[APIRouter, ...]] = (
    health.router,
    executions_router,
    steering.router,
    snapshots_router,
    snapshots_of_router,
    forks.router,
    tree.router,
    way_out.router,
    journal.router,
    events.router,
    channel.router,
    commands.router,
    files.router,
    artifacts.router,
    file_writing.router,
    blobs_router,
    stats.router,
    prune.router,
    harnesses.router,
    streams_router,
)
_TITLE: Final = "Carrel"
_ABOUT: Final = "Every agent execution gets its own computer: durable, steerable, attachable by name."


def create_app(
    *,
    executions: Executions,
    history: History,
    reach: Reach,
    blobs: Blobs,
    tokens: Tokens,
    intents: Intents,
    snapshots: Snapshots,
    store: SnapshotStore | None = None,
    shelf: Shelf | None = None,
    settings: ServerSettings | None = None,
    clock: Clock | None = None,
    streams: Streams | None = None,
    rooms: Rooms | None = None,
) -> FastAPI:
    """The app over these ports; `store` and `shelf` are those of this host, where it has them. It starts and closes
    none of them: whoever made them does. Must be made where its event loop runs. Without `streams`, /v1/stream answers
    404.

    `app.state.parts.stopping` is to be set when the process begins to end (serve.py does): streams let go."""
    settings = settings or ServerSettings()
    clock = clock or SystemClock()
    parts = Parts(
        executions=executions,
        history=history,
        reach=reach,
        blobs=blobs,
        tokens=tokens,
        settings=settings,
        clock=clock,
        intents=intents,
        snapshots=snapshots,
        store=store,
        shelf=shelf,
        streams=streams,
        rooms=rooms,
    )

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        parts.stopping.set()
        parts.close()

    app = bare_app(lifespan=lifespan)
    app.state.parts = parts
    problems.install(app)
    # The last one added is the outermost.
    app.add_middleware(
        Door,
        authenticator=Authenticator(tokens, clock),
        allowed_hosts=settings.allowed_hosts,
        allowed_origins=settings.allowed_origins,
        stall_limit_s=settings.stall_limit_s,
    )
    app.add_middleware(Timing, metrics=parts.metrics)
    return app


def bare_app(**options: Any) -> FastAPI:
    """The routes and their description, without anything behind them: what openapi.json is made from."""
    app = FastAPI(
        title=_TITLE,
        version=__version__,
        docs_url=None,  # its page loads scripts from a public network
        redoc_url=None,
        redirect_slashes=False,
        **options,
    )
    for router in ROUTERS:
        app.include_router(router)
    app.openapi = lambda: document(app)  # type: ignore[method-assign]
    return app


def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document: FastAPI's own, with our problems in place of its errors and the token."""
    if app.openapi_schema is None:
        made = get_openapi(title=_TITLE, version=__version__, description=_ABOUT, routes=app.routes)
        schemas = made["components"]["schemas"]
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(problem.pop("$defs", {}))
        schemas["Problem"] = problem
        made["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        said = {"content": {problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}}
        for path, verbs in made["paths"].items():
            for operation in verbs.values():
                operation["responses"].pop("422", None)
                operation["responses"]["default"] = {"description": "Refused, or failed: RFC 9457", **said}
                if path not in OPEN_PATHS:
                    operation["security"] = [{"token": []}]
        app.openapi_schema = made
    return app.openapi_schema
