"""Files that change: written, unpacked, made, moved, removed. Knows no directory.

A body is read piece by piece by the thread that writes it; what it may hold is bounded here, what may come out of an
archive behind the port.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Request, Response
from starlette.requests import ClientDisconnect

from orchestrator.errors import BadInput, TooLarge
from orchestrator.server.file_answers import files_of, json_of, path_of, query_path
from orchestrator.server.parts import Attacher, Parts, ThePart
from orchestrator.wire.bounds import OCTAL_MODE
from orchestrator.wire.files import FileEntry, UnpackedAnswer
from orchestrator.workspace import ArchiveFormat, UnpackLimits

router = APIRouter(prefix="/v1/executions/{id}", tags=["files"])


@router.put(
    "/files/{path:anypath}", status_code=201, response_model=FileEntry | UnpackedAnswer, summary="Write or unpack"
)
async def write(
    id: str,
    path: str,
    request: Request,
    parts: ThePart,
    caller: Attacher,
    mode: Annotated[str, Query(max_length=8, description="octal text")] = "0644",
    unpack: Annotated[ArchiveFormat | None, Query(description="the body is such an archive, the path a folder")] = None,
    if_match: Annotated[str, Header(max_length=256)] = "",
    if_none_match: Annotated[str, Header(max_length=256)] = "",
) -> Response:
    """The body becomes the file, whole or not at all; missing folders are made. `If-Match: "<etag>"` (or `*`): only
    over that content; `If-None-Match: *`: only where nothing is; else 412, with the etag there is.

    `unpack`: the body's entries come into the folder; all of it is received and checked before any of it shows."""
    if not OCTAL_MODE.fullmatch(mode):
        raise BadInput("this is not a file mode", field="mode", limit='octal text, "0000" to "0777"', remedy="0644")
    name = path_of(request, "files")
    match, absent = _condition(if_match, if_none_match)
    files = await files_of(parts, id, caller, request)
    request.scope["carrel.held"] = True  # as slow as its sender
    if unpack is not None:
        if match is not None or absent:
            raise BadInput(
                "a folder has no ETag", field="If-Match", limit="with a file only", remedy="leave the condition out"
            )
        limit = parts.settings.unpack_limit_bytes
        coming = _Upload(request, parts, limit)
        done = await parts.in_upload(partial(files.unpack, name, coming, unpack, UnpackLimits(limit)))
        return json_of(UnpackedAnswer.of(done), status_code=201)
    coming = _Upload(request, parts, parts.settings.upload_limit_bytes)
    entry = await parts.in_upload(
        partial(files.write, name, coming, mode=int(mode, 8), if_match=match, if_absent=absent)
    )
    return json_of(FileEntry.of(entry), status_code=201, etag=entry.etag)


@router.post("/files/{path:anypath}", response_model=FileEntry, summary="Make a folder, move")
async def change(
    id: str,
    path: str,
    request: Request,
    parts: ThePart,
    caller: Attacher,
    op: Annotated[Literal["mkdir", "move"] | None, Query(description="what to do")] = None,
    to: Annotated[str, Query(max_length=16384, description="move: the new path, percent-encoded")] = "",
    overwrite: Annotated[bool, Query(description="move: replace a file, or an empty folder")] = False,
) -> Response:
    """`mkdir`: a folder, with those above it; one that is there already is fine. `move`: another name within the
    workspace, in one step, over nothing unless asked."""
    name = path_of(request, "files")
    files = await files_of(parts, id, caller, request)
    if op == "mkdir":
        return json_of(FileEntry.of(await parts.in_thread(files.mkdir, name)), status_code=201)
    if op is None:
        raise BadInput("what is to be done?", field="op", limit="mkdir or move", remedy="?op=mkdir")
    if not to:
        raise BadInput("a move needs its new path", field="to", limit="a path of the workspace", remedy="?op=move&to=…")
    moved = await parts.in_thread(partial(files.move, name, query_path(request, "to"), overwrite=overwrite))
    return json_of(FileEntry.of(moved), etag=moved.etag)


@router.delete("/files/{path:anypath}", status_code=204, response_class=Response, summary="Remove")
async def remove(
    id: str,
    path: str,
    request: Request,
    parts: ThePart,
    caller: Attacher,
    recursive: Annotated[bool, Query(description="a folder and all in it")] = False,
) -> Response:
    """A file, a link (not what it leads to), an empty folder; or with all in it."""
    files = await files_of(parts, id, caller, request)
    await parts.in_thread(partial(files.remove, path_of(request, "files"), recursive=recursive))
    return Response(status_code=204)


def _condition(if_match: str, if_none_match: str) -> tuple[str | None, bool]:
    """(the etag it must have, or None; must it be absent). Raises BadInput for what we do not answer."""
    if if_none_match not in ("", "*"):
        raise BadInput(
            "only a file that is not there can be asked for",
            field="If-None-Match",
            limit="*",
            remedy="If-Match names the content to replace",
        )
    match = if_match.strip()
    if match and match != "*" and not (match.startswith('"') and match.endswith('"') and match.count('"') == 2):
        raise BadInput("this is not one ETag", field="If-Match", limit='* or "<etag>"', remedy="send the file's ETag")
    return match.strip('"') or None, if_none_match == "*"


class _Upload:
    """A request's body, read piece by piece from the thread that writes it: never more than one piece in memory."""

    def __init__(self, request: Request, parts: Parts, limit_bytes: int) -> None:
        self._pieces = bounded(request, parts, field="body", limit_bytes=limit_bytes)
        self._loop = asyncio.get_running_loop()

    def __iter__(self) -> Iterator[bytes]:
        while piece := asyncio.run_coroutine_threadsafe(self._next(), self._loop).result():
            yield piece

    async def _next(self) -> bytes:
        return await anext(self._pieces, b"")


async def bounded(request: Request, parts: Parts, *, field: str, limit_bytes: int) -> AsyncIterator[bytes]:
    """The body's pieces. Raises TooLarge beyond the limit, BadInput where the sender stalls or left."""
    limit = limit_bytes
    said = request.headers.get("content-length", "")
    got = int(said) if said.isdigit() else 0
    if got > limit:
        raise _too_large(field, limit)
    got = 0
    stream = request.stream()  # ends with an empty piece
    while True:
        try:
            async with asyncio.timeout(parts.settings.stall_limit_s):
                piece = await anext(stream, b"")
        except (TimeoutError, ClientDisconnect):
            raise BadInput(
                "the body ended early", field=field, limit="all of it, without long pauses", remedy="send it again"
            ) from None
        if not piece:
            return
        got += len(piece)
        if got > limit:
            raise _too_large(field, limit)
        parts.metrics.uploaded_bytes.inc(len(piece))
        yield piece


def _too_large(field: str, limit: int) -> TooLarge:
    return TooLarge(
        "the upload is too large", field=field, limit=f"{limit} bytes", remedy="send it in parts, or raise the limit"
    )
