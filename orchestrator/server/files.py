"""A workspace's files over HTTP, looked at: list, stat, read, search, whole folders. Knows no
directory."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Final

from fastapi import APIRouter, Query, Request, Response

from orchestrator.errors import BadInput, NotFound
from orchestrator.server import file_answers
from orchestrator.server.differing import differences
from orchestrator.server.file_answers import (
    json_of,
    path_of,
    place_of,
    place_shown,
    query_path,
    seen_files,
    wanted_archive,
)
from orchestrator.server.file_watching import watching
from orchestrator.server.parts import Reader, ThePart
from orchestrator.wire.files import DifferenceAnswer, DifferencePage, FileEntry, FilePage
from orchestrator.workspace import ArchiveFormat, Files, FileStat

router = APIRouter(prefix="/v1/executions/{id}", tags=["files"])

_MOST_LISTED: Final = 10_000

Glob = Annotated[
    str, Query(max_length=1024, description="only paths that fit: * ? [a-z] within a name, ** over folders")
]
Limit = Annotated[int, Query(ge=1, le=_MOST_LISTED)]
Snap = Annotated[str, Query(max_length=128, description="as this snapshot has it (id, prefix or name)")]
After = Annotated[str, Query(max_length=8192, description="`next` of the page before")]


@router.get("/files/{path:anypath}", response_model=FilePage | FileEntry, summary="Read or list")
async def read(
    id: str,
    path: str,
    request: Request,
    parts: ThePart,
    caller: Reader,
    stat: Annotated[bool, Query(description="one entry, also of a folder")] = False,
    recursive: Annotated[bool, Query(description="with all below")] = False,
    glob: Glob = "",
    limit: Limit = 1000,
    after: After = "",
    archive: Annotated[ArchiveFormat | None, Query(description="a folder as one archive")] = None,
    watch: Annotated[bool, Query(description="changes below a folder, as server-sent events")] = False,
    snapshot: Snap = "",
) -> Response:
    """A file: its bytes (Range, ETag). A folder: a page of its entries, links listed and not followed; `glob`: of those
    anywhere below it that fit; `archive` (or `Accept` with its type): all of it, streamed. `stat`: one entry. `watch`:
    what changes from now on. Paths are relative to /workspace; percent-encoding is decoded once."""
    execution = await parts.find(id, caller)
    name = path_of(request, "files")
    if watch:
        if snapshot not in ("", file_answers.NOW):
            raise BadInput("a snapshot does not change", field="snapshot", limit="now", remedy="watch without it")
        files = await parts.reach.files(execution)
        return await watching(parts, execution, files, name, parts.permit(caller))
    files = await seen_files(parts, execution, caller, snapshot)
    found = await parts.in_thread(files.stat, name)
    if stat:
        return json_of(FileEntry.of(found), etag=found.etag)
    if found.kind != "directory" and archive is None and not glob:
        # A link, too, to a folder or a file: what it leads to is seen when it is opened.
        return await file_answers.content(parts, files, name, request)
    if format := wanted_archive(archive, request.headers.get("accept", "")):
        return await file_answers.archive(parts, files, name, format)
    if glob:
        pattern = query_path(request, "glob")
        return json_of(await parts.in_thread(_find, files, name, pattern, place_of(after), limit))
    return json_of(await parts.in_thread(_list, files, name, recursive, place_of(after), limit))


@router.get("/files", include_in_schema=False)
async def root(
    id: str,
    request: Request,
    parts: ThePart,
    caller: Reader,
    stat: Annotated[bool, Query()] = False,
    recursive: Annotated[bool, Query()] = False,
    glob: Glob = "",
    limit: Limit = 1000,
    after: After = "",
    archive: Annotated[ArchiveFormat | None, Query()] = None,
    watch: Annotated[bool, Query()] = False,
    snapshot: Snap = "",
) -> Response:
    """/workspace itself, for those who leave the slash out."""
    return await read(id, "", request, parts, caller, stat, recursive, glob, limit, after, archive, watch, snapshot)


@router.head("/files/{path:anypath}", include_in_schema=False)
async def head(id: str, path: str, request: Request, parts: ThePart, caller: Reader, snapshot: Snap = "") -> Response:
    """What GET would say of a file, without its bytes."""
    files = await seen_files(parts, await parts.find(id, caller), caller, snapshot)
    return await file_answers.content(parts, files, path_of(request, "files"), request)


@router.get("/search", response_model=FilePage, summary="Search by name")
async def search(
    id: str,
    request: Request,
    parts: ThePart,
    caller: Reader,
    name: Annotated[str, Query(max_length=1024, description="a part of the name, or a glob of it")] = "",
    path: Annotated[str, Query(max_length=16384, description="below this folder only")] = "",
    limit: Limit = 1000,
    after: After = "",
    snapshot: Snap = "",
) -> Response:
    """Entries anywhere below the folder whose own name has this in it, or fits it where it holds `*`, `?` or `[`.
    A page may be short, or empty, and still have a `next`: so far was looked."""
    files = await seen_files(parts, await parts.find(id, caller), caller, snapshot)
    name, path = query_path(request, "name"), query_path(request, "path")  # byte for byte
    wanted = name if any(char in name for char in "*?[") else f"*{name}*"
    if not name or "/" in wanted:
        raise BadInput("this is no name", field="name", limit="one name, no slash", remedy="list with ?glob=")
    return json_of(await parts.in_thread(_find, files, path, f"**/{wanted}", place_of(after), limit))


@router.get("/diff", response_model=DifferencePage, summary="What differs")
async def diff(
    id: str,
    request: Request,
    parts: ThePart,
    caller: Reader,
    from_: Annotated[str, Query(alias="from", max_length=128, description="a snapshot, or now")] = "",
    to: Annotated[str, Query(max_length=128, description="a snapshot, or now")] = file_answers.NOW,
    path: Annotated[str, Query(max_length=16384, description="below this folder only")] = "",
    patch: Annotated[bool, Query(description="with unified diffs of texts up to 256 KiB")] = False,
    limit: Limit = 1000,
    after: After = "",
) -> Response:
    """What was added, removed and changed between two snapshots, or one and now; in byte order of the paths. Without
    `from`: since its newest snapshot. A page may be short, or empty, and still have a `next`."""
    execution = await parts.find(id, caller)
    if not from_:
        newest = await parts.snapshots.list(tenant=execution.spec.tenant, execution_id=execution.id, limit=1)
        if not newest.snapshots:
            raise NotFound("it has no snapshot to compare with", kind="snapshot", id="")
        from_ = newest.snapshots[0].id
    before = await seen_files(parts, execution, caller, from_)
    now = await seen_files(parts, execution, caller, to)
    path = query_path(request, "path")
    compare = partial(differences, before, now, path, start=place_of(after), limit=limit, patch=patch)
    found, next_ = await parts.in_thread(compare)
    changes = [DifferenceAnswer.of(one.change, one.before, one.after, one.patch) for one in found]
    answer = {"from": from_, "to": to, "changes": changes, "next": place_shown(next_)}
    return json_of(DifferencePage.model_validate(answer))


def _list(files: Files, name: str, recursive: bool, after: str, limit: int) -> FilePage:
    found: list[FileStat] = list(files.list(name, recursive=recursive, after=after, limit=limit + 1))
    next_ = place_shown(found[limit - 1].path) if len(found) > limit else ""
    return FilePage(entries=[FileEntry.of(stat) for stat in found[:limit]], next=next_)


def _find(files: Files, name: str, pattern: str, after: str, limit: int) -> FilePage:
    page = files.find(name, pattern, after=after, limit=limit)
    return FilePage(entries=[FileEntry.of(stat) for stat in page.entries], next=place_shown(page.next))
