"""Artifacts over HTTP: from the workspace while it works, from the shelf once it has ended. Knows no directory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from fastapi import APIRouter, Request, Response

from orchestrator.errors import BadInput, CarrelError, Conflict, NotFound
from orchestrator.execution import Execution
from orchestrator.server import file_answers
from orchestrator.server.file_answers import json_of, path_of, seen_files
from orchestrator.server.parts import Parts, Reader, ThePart
from orchestrator.shelf import ARTIFACTS, Kept, places
from orchestrator.wire.files import Artifact, Artifacts
from orchestrator.workspace import Files, FileStat

router = APIRouter(prefix="/v1/executions/{id}/artifacts", tags=["files"])

_READ_BYTES: Final = 256 << 10
_MOST: Final = 10_000
#: Artifacts are hashed for the list while it stays cheap: one file, and all of a request together, up to so much.
_HASHED_FILE_BYTES: Final = 64 << 20
_HASHED_BYTES: Final = 256 << 20


@router.get("", response_model=Artifacts, summary="Artifacts")
async def artifacts(id: str, parts: ThePart, caller: Reader) -> Response:
    """What it left in /workspace/artifacts or named by an `artifact` event. While it works: what is there now. Once it
    has ended: what was kept, whether its workspace is still there or not; `refused` says why one was not."""
    execution = await parts.find(id, caller)
    kept = await _kept(parts, execution)
    if kept is not None:
        return json_of(Artifacts(artifacts=[Artifact.kept(one) for one in kept]))
    try:
        files = await seen_files(parts, execution, caller)
    except Conflict:
        if execution.ended:  # nothing was kept, and it went: there was nothing
            return json_of(Artifacts(artifacts=[]))
        raise
    named = await parts.shelf.named(execution.id) if parts.shelf else ()
    return json_of(await parts.in_thread(_listed, files, named))


@router.get("/{path:anypath}", response_class=Response, summary="Download")
async def artifact(id: str, path: str, request: Request, parts: ThePart, caller: Reader) -> Response:
    """An artifact's bytes (Range, ETag), by its path in the list. Of what has ended the ETag is the sha256."""
    execution = await parts.find(id, caller)
    name = path_of(request, "artifacts")
    if not name:
        raise NotFound("no such artifact", kind="file", id="")
    one = next((one for one in await _kept(parts, execution) or () if one.path == name), None)
    if one is not None and one.sha256 and parts.shelf is not None:
        file = await parts.shelf.open(execution.id, one)
        return await file_answers.content_of(parts, file, name, request)
    try:
        files = await seen_files(parts, execution, caller)
        return await _from_workspace(parts, execution, files, name, request)
    except (Conflict, NotFound, BadInput):
        if one is None:
            raise
        raise Conflict(f"{name} was not kept: {one.refused}", state="refused", remedy="its workspace is gone") from None


@router.head("/{path:anypath}", include_in_schema=False)
async def head(id: str, path: str, request: Request, parts: ThePart, caller: Reader) -> Response:
    """What GET would say, without the bytes."""
    return await artifact(id, path, request, parts, caller)


async def _kept(parts: Parts, execution: Execution) -> Sequence[Kept] | None:
    """Of what has ended; None where nothing was kept of it, or not here."""
    if parts.shelf is None or not execution.ended:
        return None
    try:
        return await parts.shelf.kept(execution.id)
    except NotFound:
        return None


async def _from_workspace(parts: Parts, execution: Execution, files: Files, name: str, request: Request) -> Response:
    try:
        return await file_answers.content(parts, files, f"{ARTIFACTS}/{name}", request)
    except NotFound:
        named = await parts.shelf.named(execution.id) if parts.shelf else ()
        path = next((path for place, path in map(places, named) if place == name), None)
        if path is None:
            raise
        return await file_answers.content(parts, files, path, request)


def _listed(files: Files, named: Sequence[str]) -> Artifacts:
    found: dict[str, FileStat] = {}
    for said in named:
        place, path = places(said)
        try:
            found.setdefault(place, files.stat(path))
        except CarrelError:
            continue  # not there yet, or no more; or no place in the workspace
    try:
        below = list(files.list(ARTIFACTS, recursive=True, limit=_MOST + 1))
    except NotFound:
        below = []
    for stat in below[:_MOST]:
        found.setdefault(stat.path.removeprefix(f"{ARTIFACTS}/"), stat)
    left_bytes = _HASHED_BYTES
    listed: list[Artifact] = []
    for place, stat in found.items():
        if stat.kind != "file":
            continue
        sha256 = None
        if stat.size_bytes <= min(_HASHED_FILE_BYTES, left_bytes):
            left_bytes -= stat.size_bytes
            sha256 = _sha256(files, stat.path)
        listed.append(Artifact.of(place, stat, sha256))
    return Artifacts(artifacts=listed, truncated=len(below) > _MOST)


def _sha256(files: Files, path: str) -> str | None:
    try:
        file = files.open(path)
    except (NotFound, BadInput, Conflict):
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
