"""What all routes of files share: the path in the URL, whose files, and how content is handed out (ranges, ETags).

Content goes out as an attachment that nobody may sniff: it was written by the sandbox, and is opened by people. Knows
no directory: which path leads where is decided behind the port, each time it is opened.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import AsyncIterator
from typing import Final
from urllib.parse import quote_from_bytes, unquote_to_bytes

from fastapi import Request, Response
from starlette.convertors import Convertor, register_url_convertor

from orchestrator.errors import BadInput, Conflict, NotFound, Unavailable
from orchestrator.execution import Execution
from orchestrator.server.parts import Parts
from orchestrator.server.problems import Unsatisfiable
from orchestrator.server.sse import Streamed
from orchestrator.tokens import Token
from orchestrator.wire.shape import AnswerModel
from orchestrator.workspace import ArchiveFormat, Files, OpenFile, Pieces

_READ_BYTES: Final = 256 << 10
_RANGE: Final = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_TYPE: Final = "application/octet-stream"
NOW: Final = "now"
ARCHIVES: Final[dict[ArchiveFormat, str]] = {
    "tar": "application/x-tar",
    "tar.zst": "application/zstd",
    "zip": "application/zip",
}
_HANDED_OUT: Final = {"X-Content-Type-Options": "nosniff", "Cache-Control": "private, no-cache"}


class _AnyPath(Convertor[str]):
    """A path of any characters: the framework's own `path` stops at a line end, which a file's name may hold."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("anypath", _AnyPath())


async def files_of(parts: Parts, id: str, caller: Token, request: Request) -> Files:
    """Those of the execution a path names, to change. Raises Conflict where a snapshot's were meant."""
    if query_path(request, "snapshot") not in ("", NOW):
        raise Conflict("a snapshot cannot be changed", state="read_only", remedy="fork it, and write there")
    return await parts.reach.files(await parts.find(id, caller))


async def seen_files(parts: Parts, execution: Execution, caller: Token, snapshot: str = "") -> Files:
    """To look at: those of a snapshot of the caller's, where one is named; else as they are now; and where the
    workspace is gone, as the newest snapshot has them; of a fork that has not begun, as what it begins from."""
    if snapshot and snapshot != NOW:
        return await parts.reach.snapshot_files(await parts.find_snapshot(snapshot, caller))
    try:
        return await parts.reach.files(execution)
    except (Conflict, Unavailable):
        if snapshot == NOW:
            raise
        newest = await parts.snapshots.list(tenant=execution.spec.tenant, execution_id=execution.id, limit=1)
        if newest.snapshots:
            return await parts.reach.snapshot_files(newest.snapshots[0])
        if execution.snapshot_id is None:
            raise
        return await parts.reach.snapshot_files(
            await parts.snapshots.get(execution.snapshot_id, tenant=execution.spec.tenant)
        )


def path_of(request: Request, after: str) -> str:
    """What follows `/v1/executions/{id}/<after>/`, decoded once, byte for byte (names need not be UTF-8)."""
    raw: bytes = request.scope["raw_path"]
    segments = raw.split(b"/", 5)
    if len(segments) == 5 and segments[4] == after.encode():
        return ""  # /workspace itself
    if len(segments) != 6 or segments[4] != after.encode():
        raise NotFound("there is no such page", kind="page", id=request.url.path[:200])
    return os.fsdecode(unquote_to_bytes(segments[5]))


def place_of(after: str) -> str:
    """Where a listing goes on. Raises BadInput."""
    if not after:
        return ""
    try:
        return os.fsdecode(base64.b64decode(after.encode("ascii"), altchars=b"-_", validate=True))
    except (binascii.Error, UnicodeEncodeError):
        raise BadInput(
            "this is not a place in a listing", field="after", limit="`next` of the page before", remedy="leave it out"
        ) from None


def query_path(request: Request, name: str) -> str:
    """A path in the query, decoded once, byte for byte; the last one counts. "" = not given."""
    for pair in reversed(request.scope["query_string"].split(b"&")):
        key, _, value = pair.partition(b"=")
        if key == name.encode():
            return os.fsdecode(unquote_to_bytes(value.replace(b"+", b" ")))
    return ""


def place_shown(path: str) -> str:
    """`next` of a listing up to this path."""
    return base64.urlsafe_b64encode(os.fsencode(path)).decode() if path else ""


def json_of(answer: AnswerModel, *, status_code: int = 200, etag: str = "") -> Response:
    """A noun of the wire, with the ETag of the file it is about."""
    headers = {"ETag": f'"{etag}"'} if etag else None
    return Response(answer.model_dump_json(), status_code, headers=headers, media_type="application/json")


def wanted_archive(said: ArchiveFormat | None, accept: str) -> ArchiveFormat | None:
    """By the query, or by the type a caller accepts."""
    if said is not None:
        return said
    accepted = {part.split(";")[0].strip().lower() for part in accept.split(",")}
    return next((format for format, media_type in ARCHIVES.items() if media_type in accepted), None)


async def archive(parts: Parts, files: Files, name: str, format: ArchiveFormat) -> Response:
    """A folder as one archive, streamed."""
    pieces = await parts.in_thread(files.archive, name, format)
    return packed(parts, pieces, (name.rstrip("/").rpartition("/")[2] or "workspace") + "." + format, format)


def packed(parts: Parts, pieces: Pieces, shown: str, format: ArchiveFormat) -> Response:
    """An archive on its way, under the name `shown`."""
    headers = {"Content-Disposition": _attachment(shown), **_HANDED_OUT}
    return Streamed(_packed(parts, pieces), parts=parts, kind="file", media_type=ARCHIVES[format], headers=headers)


async def _packed(parts: Parts, pieces: Pieces) -> AsyncIterator[bytes]:
    try:
        while piece := await parts.in_thread(next, pieces, b""):
            yield piece
    finally:
        parts.later(pieces.close)  # a thread may be in it


async def content(parts: Parts, files: Files, name: str, request: Request) -> Response:
    """A file's bytes, or the part of them that was asked for."""
    return await content_of(parts, await parts.in_thread(files.open, name), name, request)


async def content_of(parts: Parts, file: OpenFile, name: str, request: Request) -> Response:
    """The same of an open one, which is closed when it was sent."""
    try:
        size = file.stat.size_bytes
        etag = f'"{file.etag}"'
        headers = {
            "ETag": etag,
            "Accept-Ranges": "bytes",
            "Content-Disposition": _attachment(name),
            **_HANDED_OUT,
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
