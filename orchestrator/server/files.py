"""A workspace's files over HTTP: list, stat, read with ranges, write; and what was left as artifacts. Knows no
directory: which path leads where is decided behind the port, each time it is opened.

Content goes out as an attachment that nobody may sniff: it was written by the sandbox, and is opened by people.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import os
import re
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Final
from urllib.parse import quote_from_bytes, unquote_to_bytes

from fastapi import APIRouter, Query, Request, Response
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import ClientDisconnect

from orchestrator.errors import BadInput, NotFound, TooLarge
from orchestrator.server.parts import Attacher, Parts, Reader, ThePart
from orchestrator.server.problems import Unsatisfiable
from orchestrator.server.sse import Streamed
from orchestrator.wire.bounds import OCTAL_MODE
from orchestrator.wire.files import Artifact, Artifacts, FileEntry, FilePage
from orchestrator.workspace import Files, FileStat, OpenFile

router = APIRouter(prefix="/v1/executions/{id}", tags=["files"])

ARTIFACTS: Final = "artifacts"
_READ_BYTES: Final = 256 << 10
_MOST_LISTED: Final = 10_000
_MOST_ARTIFACTS: Final = 10_000
#: Artifacts are hashed for the list while it stays cheap: one file, and all of a request together, up to so much.
_HASHED_FILE_BYTES: Final = 64 << 20
_HASHED_BYTES: Final = 256 << 20
_RANGE: Final = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_TYPE: Final = "application/octet-stream"


class _AnyPath(Convertor[str]):
    """A path of any characters: the framework's own `path` stops at a line end, which a file's name may hold."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("anypath", _AnyPath())


@router.get("/files/{path:anypath}", response_model=FilePage | FileEntry, summary="Read or list")
async def read(
    id: str,
    path: str,
    request: Request,
    parts: ThePart,
    caller: Reader,
    stat: Annotated[bool, Query()] = False,
    recursive: Annotated[bool, Query()] = False,
    limit: Annotated[int, Query(ge=1, le=_MOST_LISTED)] = 1000,
    after: Annotated[str, Query(max_length=8192)] = "",
) -> Response:
    """A file: its bytes (Range, ETag). A directory: a page of its entries, links listed and not followed. `stat=true`:
    one entry. Paths are relative to /workspace; percent-encoding is decoded once."""
    files = await parts.reach.files(await parts.find(id, caller))
    name = _path(request, "files")
    found = await parts.in_thread(files.stat, name)
    if stat:
        return _json(FileEntry.of(found))
    if found.kind == "directory":
        return await _list(parts, files, name, recursive=recursive, after=_place(after), limit=limit)
    return await _content(parts, files, name, request)


@router.get("/files", include_in_schema=False)
async def root(
    id: str,
    request: Request,
    parts: ThePart,
    caller: Reader,
    recursive: Annotated[bool, Query()] = False,
    limit: Annotated[int, Query(ge=1, le=_MOST_LISTED)] = 1000,
    after: Annotated[str, Query(max_length=8192)] = "",
) -> Response:
    """/workspace itself, for those who leave the slash out."""
    return await read(id, "", request, parts, caller, False, recursive, limit, after)


@router.head("/files/{path:anypath}", include_in_schema=False)
async def head(id: str, path: str, request: Request, parts: ThePart, caller: Reader) -> Response:
    """What GET would say of a file, without its bytes."""
    files = await parts.reach.files(await parts.find(id, caller))
    return await _content(parts, files, _path(request, "files"), request)


@router.put("/files/{path:anypath}", status_code=201, response_model=FileEntry, summary="Write")
async def write(
    id: str,
    path: str,
    request: Request,
    parts: ThePart,
    caller: Attacher,
    mode: Annotated[str, Query(max_length=8, description="octal text")] = "0644",
) -> Response:
    """The body becomes the file, whole or not at all; missing folders are made."""
    if not OCTAL_MODE.fullmatch(mode):
        raise BadInput("this is not a file mode", field="mode", limit='octal text, "0000" to "0777"', remedy="0644")
    files = await parts.reach.files(await parts.find(id, caller))
    name = _path(request, "files")
    request.scope["carrel.held"] = True  # as slow as its sender
    coming = _Upload(request, parts)
    entry = await parts.in_thread(_write, files, name, coming, int(mode, 8))
    return _json(FileEntry.of(entry), status_code=201)


def _write(files: Files, name: str, coming: _Upload, mode: int) -> FileStat:
    return files.write(name, coming, mode=mode)


class _Upload:
    """A request's body, read piece by piece from the thread that writes it: never more than one piece in memory."""

    def __init__(self, request: Request, parts: Parts) -> None:
        self._pieces = bounded(request, parts, field="body")
        self._loop = asyncio.get_running_loop()

    def __iter__(self) -> Iterator[bytes]:
        while piece := asyncio.run_coroutine_threadsafe(self._next(), self._loop).result():
            yield piece

    async def _next(self) -> bytes:
        return await anext(self._pieces, b"")


async def bounded(request: Request, parts: Parts, *, field: str) -> AsyncIterator[bytes]:
    """The body's pieces. Raises TooLarge beyond the installation's limit, BadInput where the sender stalls or left."""
    limit = parts.settings.upload_limit_bytes
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


@router.get("/artifacts", response_model=Artifacts, summary="Artifacts")
async def artifacts(id: str, parts: ThePart, caller: Reader) -> Response:
    """The files in /workspace/artifacts, also while it runs."""
    files = await parts.reach.files(await parts.find(id, caller))
    return _json(await parts.in_thread(_artifacts, files))


@router.get("/artifacts/{path:anypath}", response_class=Response, summary="Download")
async def artifact(id: str, path: str, request: Request, parts: ThePart, caller: Reader) -> Response:
    """An artifact's bytes (Range, ETag); the path is relative to /workspace/artifacts."""
    files = await parts.reach.files(await parts.find(id, caller))
    name = _path(request, "artifacts")
    if not name:
        raise NotFound("no such artifact", kind="file", id="")
    return await _content(parts, files, f"{ARTIFACTS}/{name}", request)


def _path(request: Request, after: str) -> str:
    """What follows `/v1/executions/{id}/<after>/`, decoded once, byte for byte (names need not be UTF-8)."""
    raw: bytes = request.scope["raw_path"]
    segments = raw.split(b"/", 5)
    if len(segments) == 5 and segments[4] == after.encode():
        return ""  # /workspace itself
    if len(segments) != 6 or segments[4] != after.encode():
        raise NotFound("there is no such page", kind="page", id=request.url.path[:200])
    return os.fsdecode(unquote_to_bytes(segments[5]))


def _place(after: str) -> str:
    if not after:
        return ""
    try:
        return os.fsdecode(base64.b64decode(after.encode("ascii"), altchars=b"-_", validate=True))
    except (binascii.Error, UnicodeEncodeError):
        raise BadInput(
            "this is not a place in a listing", field="after", limit="`next` of the page before", remedy="leave it out"
        ) from None


async def _list(parts: Parts, files: Files, name: str, *, recursive: bool, after: str, limit: int) -> Response:
    found = await parts.in_thread(_entries, files, name, recursive, after, limit + 1)
    more = len(found) > limit
    next_ = base64.urlsafe_b64encode(os.fsencode(found[limit - 1].path)).decode() if more else ""
    return _json(FilePage(entries=[FileEntry.of(stat) for stat in found[:limit]], next=next_))


def _entries(files: Files, name: str, recursive: bool, after: str, limit: int) -> list[FileStat]:
    return list(files.list(name, recursive=recursive, after=after, limit=limit))


def _json(answer: FilePage | FileEntry | Artifacts, *, status_code: int = 200) -> Response:
    return Response(answer.model_dump_json(), status_code, media_type="application/json")


async def _content(parts: Parts, files: Files, name: str, request: Request) -> Response:
    file = await parts.in_thread(files.open, name)
    try:
        size = file.stat.size_bytes
        etag = f'"{file.etag}"'
        headers = {
            "ETag": etag,
            "Accept-Ranges": "bytes",
            "Content-Disposition": _attachment(name),
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "private, no-cache",
        }
        if _matches(request.headers.get("if-none-match", ""), etag):
            return _closing(parts, file, Response(status_code=304, headers=headers))
        start, end, status = 0, size, 200
        wanted = request.headers.get("range", "")
        if wanted and request.headers.get("if-range", etag) == etag and (found := _range(wanted, size)):
            start, end = found
            status = 206
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        headers["Content-Length"] = str(end - start)
        if request.method == "HEAD":
            return _closing(parts, file, Response(status_code=status, headers=headers, media_type=_TYPE))
    except BaseException:
        await parts.in_thread(file.close)
        raise
    answer = Streamed(_read(parts, file, start, end), parts=parts, kind="file", media_type=_TYPE, headers=headers)
    answer.status_code = status
    return answer


def _closing(parts: Parts, file: OpenFile, response: Response) -> Response:
    file.close()  # a descriptor of ours: closing it waits for nothing
    return response


async def _read(parts: Parts, file: OpenFile, start: int, end: int) -> AsyncIterator[bytes]:
    """Exactly the bytes announced; a file that shrank meanwhile breaks the answer off rather than padding it."""
    try:
        at = start
        while at < end:
            piece = await parts.in_thread(file.read, at, min(_READ_BYTES, end - at))
            if not piece:
                return  # the server closes the connection: fewer bytes came than were announced
            at += len(piece)
            yield piece
    finally:
        file.close()


def _range(said: str, size: int) -> tuple[int, int] | None:
    """[start, end) of a single range; None for what we answer whole (several ranges, other units). Raises
    Unsatisfiable."""
    found = _RANGE.fullmatch(said.strip())
    if found is None or found[1] == found[2] == "":
        return None
    if found[1] == "":
        start, end = max(0, size - int(found[2])), size
    else:
        start = int(found[1])
        end = min(size, int(found[2]) + 1) if found[2] else size
        if found[2] and int(found[2]) < start:
            return None
    if start >= size or start >= end:
        raise Unsatisfiable(
            f"the file has {size} bytes",
            field="Range",
            limit=f"0 to {size - 1}",
            remedy="ask from the start",
            size=size,
        )
    return start, end


def _matches(said: str, etag: str) -> bool:
    tags = [tag.strip().removeprefix("W/") for tag in said.split(",")]
    return bool(said) and ("*" in tags or etag in tags)


def _attachment(path: str) -> str:
    """Nothing a name holds may end the header or open a page: RFC 6266, the encoded form only."""
    raw = os.fsencode(path.rstrip("/").rpartition("/")[2])
    return f"attachment; filename*=UTF-8''{quote_from_bytes(raw, safe='') or 'file'}"


def _artifacts(files: Files) -> Artifacts:
    try:
        found = list(files.list(ARTIFACTS, recursive=True, limit=_MOST_ARTIFACTS + 1))
    except NotFound:
        return Artifacts(artifacts=[])
    budget = _HASHED_BYTES
    listed: list[Artifact] = []
    for stat in found[:_MOST_ARTIFACTS]:
        if stat.kind != "file":
            continue
        sha256 = None
        if stat.size_bytes <= min(_HASHED_FILE_BYTES, budget):
            budget -= stat.size_bytes
            sha256 = _sha256(files, stat.path)
        listed.append(Artifact.of(stat.path.removeprefix(f"{ARTIFACTS}/"), stat, sha256))
    return Artifacts(artifacts=listed, truncated=len(found) > _MOST_ARTIFACTS)


def _sha256(files: Files, path: str) -> str | None:
    try:
        file = files.open(path)
    except (NotFound, BadInput):
        return None  # removed or exchanged while we looked
    try:
        hashed = hashlib.sha256()
        at = 0
        while at < file.stat.size_bytes and (piece := file.read(at, _READ_BYTES)):
            hashed.update(piece)
            at += len(piece)
        return hashed.hexdigest()
    finally:
        file.close()
