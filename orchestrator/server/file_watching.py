"""What changes in a workspace, as server-sent events: `ready`, then `change` {path, change}, `overflow` (list again),
`ended`. Nothing is numbered and nothing can be caught up on: who connects again lists again. Knows no inotify.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import AsyncIterator
from typing import Any, Final

from fastapi import Response

from orchestrator.errors import CarrelError
from orchestrator.execution import Execution
from orchestrator.server.auth import Permit
from orchestrator.server.parts import Parts
from orchestrator.server.sse import Streamed, written
from orchestrator.server.viewers import check_room, counted
from orchestrator.workspace import FileChange, Files, Watch

#: Between two reads of what happened: a build touches one file a hundred times, and a person needs it once.
_GATHERED_S: Final = 0.05


async def watching(parts: Parts, execution: Execution, files: Files, name: str, permit: Permit) -> Response:
    """The stream. What is wrong with the folder is raised here, before it begins."""
    check_room(parts)
    watch = await parts.in_thread(files.watch, name)
    return Streamed(_changes(parts, execution, watch, permit), parts=parts, kind="sse")


async def _changes(parts: Parts, execution: Execution, watch: Watch, permit: Permit) -> AsyncIterator[bytes]:
    try:
        with counted(parts, "sse"):
            yield written("ready", b"{}")
            while not parts.stopping.is_set():
                if not await _readable(watch.fileno(), parts.stopping, parts.settings.heartbeat_s):
                    if not await permit.holds():
                        return
                    if not await _same(parts, execution):
                        yield _told(FileChange("ended"))
                        return
                    yield b":\n\n"
                changes = await parts.in_thread(watch.read)
                if changes:
                    yield b"".join(map(_told, changes))
                if changes and changes[-1].change == "ended":
                    return
                await asyncio.sleep(_GATHERED_S)
    finally:
        parts.later(watch.close)


async def _readable(descriptor: int, stopping: asyncio.Event, beat_s: float) -> bool:
    """False when there was nothing for `beat_s`, or this process stops."""
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()

    def seen() -> None:
        if not readable.done():
            readable.set_result(None)

    loop.add_reader(descriptor, seen)
    stop = asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait((readable, stop), timeout=beat_s, return_when=asyncio.FIRST_COMPLETED)
        return readable.done()
    finally:
        loop.remove_reader(descriptor)
        stop.cancel()


async def _same(parts: Parts, execution: Execution) -> bool:
    """Whether its files are still where they were: an attempt later they may be another folder."""
    try:
        return (await parts.executions.get(execution.id)).sandbox_id == execution.sandbox_id
    except CarrelError:
        return False


def _told(change: FileChange) -> bytes:
    if change.change in ("overflow", "ended"):
        return written(change.change, b"{}")
    raw = os.fsencode(change.path)
    data: dict[str, Any] = {"path": raw.decode(errors="replace"), "change": change.change}
    if change.path.encode(errors="replace") != raw:
        data["path_b64"] = base64.b64encode(raw).decode()
    return written("change", json.dumps(data).encode())
