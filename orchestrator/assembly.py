"""The only room that knows every concrete class: settings in; a running api, worker, or both, out.

Builds what the ports name, starts it, ends it in the opposite order. Decides nothing else. What only one kind of
process needs is imported where it is built: a worker is up in half the time without the web framework.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import secrets
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import uvloop

from orchestrator import backup, leftovers, logs
from orchestrator.archive import Archive, HistoryArchive
from orchestrator.archives.histories import ArchivedHistories
from orchestrator.archives.place import archive_at
from orchestrator.catalogue import load_catalogue
from orchestrator.clock import Clock, SystemClock
from orchestrator.engine.parts import Parts, WorkerSettings
from orchestrator.engine.worker import Worker
from orchestrator.errors import BadInput, CarrelError
from orchestrator.gateway.egress import EgressProxies
from orchestrator.gateway.token import KEY_FILE, load_secret
from orchestrator.gateway.unix import UnixGateways
from orchestrator.gateways import Gateways
from orchestrator.image_context import image_context
from orchestrator.model_settings import load_allowed, load_models
from orchestrator.models import ModelPolicy
from orchestrator.reaches.local import LocalReach
from orchestrator.sandbox import SandboxDriver
from orchestrator.scripted_provider import with_scripted_model
from orchestrator.settings import Settings
from orchestrator.stores.embedded import EmbeddedServer
from orchestrator.stores.redis import (
    Keys,
    RedisCalls,
    RedisDump,
    RedisExecutions,
    RedisHistory,
    RedisIntents,
    RedisLoad,
    RedisSnapshots,
    RedisStreams,
    Server,
    prepare,
)
from orchestrator.stores.redis.tokens import RedisTokens
from orchestrator.workspace import SnapshotStore
from orchestrator.workspaces.blobs import DirectoryBlobs
from orchestrator.workspaces.rooms import DiskRooms
from orchestrator.workspaces.shelf import DirectoryShelf

if TYPE_CHECKING:
    from fastapi import FastAPI

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Installed:
    """Every port of one installation on this host, connected."""

    settings: Settings
    executions: RedisExecutions
    history: RedisHistory
    calls: RedisCalls
    intents: RedisIntents
    snapshots: RedisSnapshots
    driver: SandboxDriver
    workspaces: SnapshotStore
    blobs: DirectoryBlobs
    shelf: DirectoryShelf
    reach: LocalReach
    tokens: RedisTokens
    streams: RedisStreams
    dump: RedisDump
    load: RedisLoad
    rooms: DiskRooms
    clock: Clock
    archive: Archive | None
    histories: HistoryArchive | None


@asynccontextmanager
async def installed(settings: Settings, *, to_restore: bool = False) -> AsyncIterator[Installed]:
    """The ports, on the store the settings name or on one of our own. Raises BadInput for a store that cannot be used
    (a half restored one only `to_restore`), StoreUnavailable."""
    async with AsyncExitStack() as ending:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        url = settings.redis_url or await _embedded(settings, ending)
        server = Server(url)
        ending.push_async_callback(server.aclose)
        keys = Keys(settings.installation)
        await prepare(server, keys, to_restore=to_restore)
        archive = archive_of(settings)
        histories = ArchivedHistories(archive) if archive is not None else None
        history = RedisHistory(server, keys, archive=histories)
        ending.push_async_callback(history.aclose)
        streams = RedisStreams(server, keys)
        ending.push_async_callback(streams.aclose)
        chosen = leftovers.chosen(settings)
        workspaces = await asyncio.to_thread(chosen.open)
        logger.info("workspaces", extra={"store": chosen.kind, "why": chosen.why, "root": str(chosen.root)})
        driver = _driver(settings, chosen.slots, ending)
        yield Installed(
            settings=settings,
            executions=RedisExecutions(server, keys),
            history=history,
            calls=RedisCalls(server, keys),
            intents=RedisIntents(server, keys),
            snapshots=RedisSnapshots(server, keys),
            driver=driver,
            workspaces=workspaces,
            blobs=DirectoryBlobs(settings.data_dir / "blobs"),
            shelf=DirectoryShelf(
                settings.data_dir / "shelf",
                execution_limit_bytes=settings.artifacts_limit_bytes,
                limit_bytes=settings.shelf_limit_bytes,
                low=settings.data_low,
            ),
            reach=LocalReach(driver, workspaces, settings.host_name),
            tokens=RedisTokens(server, keys),
            streams=streams,
            dump=RedisDump(server, keys),
            load=RedisLoad(server, keys),
            rooms=DiskRooms(workspaces, leftovers.folders(settings), settings.marks),
            clock=SystemClock(),
            archive=archive,
            histories=histories,
        )


def archive_of(settings: Settings) -> Archive | None:
    """Nothing is asked of it yet."""
    if not settings.archive_url:
        return None
    return archive_at(settings.archive_url, settings.installation, endpoint=settings.archive_endpoint)


def worker_of(parts: Installed, gateways: Gateways | None = None) -> Worker:
    """A worker on these ports, with a name of its own. Without `gateways` its sandboxes have no way out."""
    settings = parts.settings
    return Worker(
        Parts(
            executions=parts.executions,
            history=parts.history,
            driver=parts.driver,
            workspaces=parts.workspaces,
            snapshots=parts.snapshots,
            intents=parts.intents,
            blobs=parts.blobs,
            shelf=parts.shelf,
            clock=parts.clock,
            gateways=gateways,
            rooms=parts.rooms,
            archive=parts.archive,
            histories=parts.histories,
            settings=WorkerSettings(
                worker=f"{settings.host_name}-{os.getpid()}-{secrets.token_hex(3)}",
                host=settings.host_name,
                image=settings.image,
                runtime=settings.runtime,
                concurrency=settings.concurrency,
                lease_s=settings.lease_s,
                claim_interval_s=settings.claim_interval_s,
                sweep_interval_s=settings.sweep_interval_s,
                orphan_grace_s=settings.orphan_grace_s,
                host_lost_after_s=settings.host_lost_after_s,
                drain_grace_s=settings.drain_grace_s,
                retention_s=settings.retention_s,
                workspace_retention_s=settings.workspace_retention_s,
                spool_limit_bytes=settings.spool_limit_bytes,
                history_archive_after_s=settings.history_archive_after_s,
            ),
        )
    )


@contextlib.contextmanager
def models_of(settings: Settings) -> Iterator[ModelPolicy]:
    """The model providers a worker has, with the scripted one where that is set, which is served until the end. Raises
    BadInput."""
    policy = load_models(settings).policy
    if settings.scripted_model:
        with with_scripted_model(policy, settings.scripted_model) as scripted:
            yield scripted
    else:
        yield policy


def gateways_of(parts: Installed, policy: ModelPolicy) -> UnixGateways:
    """The ways out of this host's sandboxes, to be entered. Raises BadInput for a secret that cannot be used."""
    settings = parts.settings
    try:
        secret = load_secret(settings.data_dir)
    except (OSError, ValueError) as wrong:
        raise BadInput(
            f"{settings.data_dir / KEY_FILE}: {wrong}",
            field="data_dir",
            limit="a key of ours, readable by the user that runs carrel",
            remedy="give it back to that user; or remove it: what runs then loses its way out",
        ) from None
    egresses = EgressProxies(settings.egress_private_allow)
    return UnixGateways(policy, parts.calls, parts.intents, parts.clock, secret, egresses=egresses)


def app_of(parts: Installed) -> FastAPI:
    """The HTTP application on these ports."""
    from orchestrator.server.app import create_app
    from orchestrator.server.parts import ServerSettings

    settings = parts.settings
    return create_app(
        executions=parts.executions,
        history=parts.history,
        reach=parts.reach,
        blobs=parts.blobs,
        tokens=parts.tokens,
        intents=parts.intents,
        snapshots=parts.snapshots,
        store=parts.workspaces,
        shelf=parts.shelf,
        rooms=parts.rooms,
        streams=parts.streams,
        clock=parts.clock,
        settings=ServerSettings(
            allowed_hosts=(*settings.allowed_hosts, settings.bind_host),
            allowed_origins=settings.allowed_origins,
            message_limit_bytes=settings.message_limit_bytes,
            upload_limit_bytes=settings.upload_limit_bytes,
            default_resources=settings.default_resources,
            default_limits=settings.default_limits,
            host=settings.host_name,
            catalogue=load_catalogue(Path(settings.harness_dir).expanduser() if settings.harness_dir else None),
            allowed_models=load_allowed(settings),
        ),
    )


def run_worker(settings: Settings) -> int:
    """`carrel worker`: until SIGTERM or SIGINT, then drained. The exit code."""
    return _main(settings, _run(settings, api=False, worker=True))


def run_api(settings: Settings) -> int:
    """`carrel api`: until SIGTERM or SIGINT. The exit code."""
    return _main(settings, _run(settings, api=True, worker=False))


def run_serve(settings: Settings) -> int:
    """`carrel serve`: both in one process, until SIGTERM or SIGINT. The exit code."""
    return _main(settings, _run(settings, api=True, worker=True))


async def back_up(settings: Settings, out: BinaryIO, *, files: bool, progress: Callable[[str], None]) -> backup.Taken:
    """`carrel backup`: beside whatever runs. Raises as `backup.take`."""
    async with installed(settings) as parts:
        sources = backup.Sources(
            dump=parts.dump,
            store=parts.workspaces,
            blobs=parts.blobs,
            shelf=parts.shelf,
            clock=parts.clock,
            installation=settings.installation,
            host=settings.host_name,
        )
        return await backup.take(sources, out, files=files, progress=progress)


async def restore(
    settings: Settings, file: BinaryIO, *, end_sandboxes: bool, progress: Callable[[str], None]
) -> backup.Restored:
    """`carrel restore`: alone. Raises as `backup.restore`."""
    async with installed(settings, to_restore=True) as parts:
        return await backup.restore(
            file,
            parts.load,
            parts.workspaces,
            parts.blobs,
            parts.shelf,
            parts.driver,
            host=settings.host_name,
            end_sandboxes=end_sandboxes,
            progress=progress,
        )


async def _run(settings: Settings, *, api: bool, worker: bool) -> None:
    stop = _stop_signal()
    async with installed(settings) as parts:
        try:
            async with asyncio.TaskGroup() as running:
                if api:
                    running.create_task(_serve(parts, stop), name="api")
                if worker:
                    running.create_task(_work(parts, stop), name="worker")
        except* CarrelError as failures:
            raise failures.exceptions[0] from None


async def _serve(parts: Installed, stop: asyncio.Event) -> None:
    from orchestrator.server.admin_token import ensure_admin_token
    from orchestrator.server.serve import listen, serve

    settings = parts.settings
    await ensure_admin_token(settings.data_dir, parts.tokens, clock=parts.clock)
    await serve(app_of(parts), at=listen(host=settings.bind_host, port=settings.port), stop=stop)


async def _work(parts: Installed, stop: asyncio.Event) -> None:
    with models_of(parts.settings) as policy:
        names = ", ".join(provider.name for provider in policy.providers)
        if names:
            logger.info("model providers", extra={"providers": names, "default_model": policy.default_model})
        else:
            logger.warning("no model provider: agents have no model to ask", extra={"see": "docs/operate/models.md"})
        async with gateways_of(parts, policy) as gateways:
            await _run_worker(worker_of(parts, gateways), stop)


async def _run_worker(worker: Worker, stop: asyncio.Event) -> None:
    running = asyncio.create_task(worker.run(), name="worker")
    stopping = asyncio.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait([running, stopping], return_when=asyncio.FIRST_COMPLETED)
        worker.drain()
        await running
    finally:
        for task in (running, stopping):
            task.cancel()
        await asyncio.gather(running, stopping, return_exceptions=True)


def _main(settings: Settings, program: Coroutine[Any, Any, None]) -> int:
    logs.configure(settings.log_format, settings.log_level)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(program)
    except CarrelError as failure:
        logger.error(failure.message, extra={"code": failure.code, **failure.data})
        return 2 if isinstance(failure, BadInput) else 1
    return 0


def _stop_signal() -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT; the second ends the process at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def heard() -> None:
        if stop.is_set():
            os._exit(130)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, heard)
    return stop


async def _embedded(settings: Settings, ending: AsyncExitStack) -> str:
    server = EmbeddedServer(settings.data_dir)
    await server.start()
    ending.push_async_callback(server.stop)
    watching = asyncio.create_task(server.watch(), name="embedded-store")

    async def unwatch() -> None:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching

    ending.push_async_callback(unwatch)
    return server.url


def _driver(settings: Settings, slots: Path, ending: AsyncExitStack) -> SandboxDriver:
    if settings.driver == "scripted":
        from orchestrator.drivers.scripted import ScriptedDriver

        found = importlib.util.find_spec("sandbox_init")
        assert found is not None and found.submodule_search_locations is not None  # a package of this distribution
        return ScriptedDriver(settings.data_dir / "boxes", slots, Path(found.submodule_search_locations[0]))
    from orchestrator.drivers.docker import DockerDriver
    from orchestrator.drivers.docker_options import Installation
    from orchestrator.drivers.engine_calls import EngineCalls

    calls = EngineCalls(settings.docker_host)
    ending.callback(calls.close)
    return DockerDriver(
        Installation(settings.installation, seccomp=(image_context() / "seccomp.json").read_text()),
        slots,
        calls=calls,
        start_concurrency=settings.start_concurrency,
    )
