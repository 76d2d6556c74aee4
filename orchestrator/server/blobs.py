"""Uploads before a submit: content by digest. Knows no directory."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from orchestrator.errors import NotFound
from orchestrator.server.file_writing import bounded
from orchestrator.server.parts import Reader, ThePart, Writer
from orchestrator.wire.bounds import SHA256
from orchestrator.wire.files import Blob

router = APIRouter(prefix="/v1/blobs", tags=["files"])


@router.post("", status_code=201, response_model=Blob, summary="Upload")
async def put(request: Request, parts: ThePart, _caller: Writer) -> Blob:
    """The body, whatever its type, kept under its sha256; durable when answered. What no execution names expires."""
    request.scope["carrel.held"] = True  # as slow as its sender
    limit_bytes = parts.settings.upload_limit_bytes
    content = bounded(request, parts, field="content", limit_bytes=limit_bytes)
    sha256, size_bytes = await parts.blobs.put(content, limit_bytes=limit_bytes)
    return Blob(sha256=sha256, size_bytes=size_bytes)


@router.head("/{sha256}", response_class=Response, summary="Is it here?")
async def has(sha256: str, parts: ThePart, _caller: Reader) -> Response:
    """200 with `X-Size-Bytes` when this content is here, else 404."""
    size_bytes = await parts.blobs.has(sha256) if SHA256.fullmatch(sha256) else None
    if size_bytes is None:
        raise NotFound("no such content", kind="blob", id=sha256[:64])
    return Response(headers={"X-Size-Bytes": str(size_bytes)})
