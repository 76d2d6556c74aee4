"""Snapshots into the archive and back: the layer first, then the manifest that names it, then the record.

Whatever is killed in between is done again by the next sweep of a worker that has the files; what lies there without
a record goes (`archive_sweep`). A snapshot whose parent is there, too, is a layer on it. Decides not what is sent.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
from collections.abc import Iterator
from typing import Final

from orchestrator.archive import MOST_LAYERS, SNAPSHOTS, Archive, Manifest, base_of, manifest_of
from orchestrator.engine.crash_point import crash_point
from orchestrator.engine.parts import Parts
from orchestrator.errors import Damaged, NotFound
from orchestrator.snapshots import Snapshot
from orchestrator.workspace import Layer, Pieces

logger = logging.getLogger(__name__)

_MANIFEST_BYTES: Final = 1 << 20


async def send(parts: Parts, archive: Archive, snapshot: Snapshot) -> None:
    """One whose files are here and whose digest is known. Raises DiskFull, ArchiveUnavailable, NotFound (removed
    meanwhile)."""
    below = await _below(parts, archive, snapshot)
    layer = parts.workspaces.pack(snapshot.id, below=below.snapshot_id if below else "")
    name = f"{SNAPSHOTS}{snapshot.id}/{secrets.token_hex(8)}.tar.zst"
    try:
        stored_bytes, sha256 = await asyncio.to_thread(_put, archive, name, layer)
    finally:
        await asyncio.to_thread(layer.close)
    crash_point("after_archive_layer")
    manifest = Manifest(
        snapshot_id=snapshot.id,
        execution_id=snapshot.execution_id,
        tenant=snapshot.tenant,
        seq=snapshot.cut.seq,
        layer=name,
        stored_bytes=stored_bytes,
        sha256=sha256,
        base=below.snapshot_id if below else "",
        layers=below.layers + 1 if below else 1,
        digest=snapshot.digest,
        size_bytes=snapshot.size_bytes,
        files=snapshot.files,
        store=snapshot.store,
        created_at=snapshot.created_at.isoformat(),
        left_out=layer.left_out,
    )
    await asyncio.to_thread(archive.put, manifest.name, [manifest.encode()])
    crash_point("after_archive_manifest")
    await parts.snapshots.archived(snapshot.id)
    crash_point("after_archived")
    told = {"snapshot": snapshot.id, "stored_bytes": stored_bytes, "layers": manifest.layers, "base": manifest.base}
    logger.info("archived", extra=told)


async def fetch(parts: Parts, archive: Archive, snapshot: Snapshot) -> None:
    """Its files, to where they are looked for on this host. Raises NotFound, Damaged, ArchiveUnavailable, DiskFull."""
    manifests = [await asyncio.to_thread(_manifest, archive, snapshot.id)]
    while manifests[-1].base:
        if len(manifests) > MOST_LAYERS:
            raise Damaged(f"{snapshot.id} has more layers than {MOST_LAYERS}", what=manifests[0].name)
        manifests.append(await asyncio.to_thread(_manifest, archive, manifests[-1].base))
    logger.info("fetching from the archive", extra={"snapshot": snapshot.id, "layers": len(manifests)})
    await parts.workspaces.load(snapshot.id, (_verified(archive, one) for one in reversed(manifests)))


async def _below(parts: Parts, archive: Archive, snapshot: Snapshot) -> Manifest | None:
    """What it can be a layer on: its parent, where both the archive and this host have that."""
    if not snapshot.parent or snapshot.parent not in {there for there, _ in await parts.workspaces.snapshots()}:
        return None
    try:
        found = await asyncio.to_thread(_manifest, archive, snapshot.parent)
    except (NotFound, Damaged):
        return None
    return found if found.layers < MOST_LAYERS else None


def _put(archive: Archive, name: str, layer: Layer) -> tuple[int, str]:
    """(bytes, sha256 hex) of what was stored."""
    whole, size_bytes = hashlib.sha256(), 0

    def counted() -> Iterator[bytes]:
        nonlocal size_bytes
        for piece in layer:
            whole.update(piece)
            size_bytes += len(piece)
            yield piece

    archive.put(name, counted())
    return size_bytes, whole.hexdigest()


def _manifest(archive: Archive, snapshot_id: str) -> Manifest:
    """The one that is whole; two workers may each have written one. Raises NotFound, Damaged."""
    damaged: Damaged | None = None
    names = [found.name for found in archive.list(f"{SNAPSHOTS}{snapshot_id}/") if base_of(found.name) is not None]
    for name in sorted(names, reverse=True):
        try:
            return manifest_of(name, _small(archive.get(name)))
        except Damaged as failure:
            damaged = failure
    raise damaged or NotFound(f"{snapshot_id} is not in the archive", kind="archive", id=snapshot_id)


def _small(pieces: Pieces) -> bytes:
    data = bytearray()
    for piece in pieces:
        data += piece
        if len(data) > _MANIFEST_BYTES:
            break
    pieces.close()
    return bytes(data)


def _verified(archive: Archive, manifest: Manifest) -> Iterator[bytes]:
    """Its layer. Raises Damaged at the latest at the end, so that nothing of it is kept."""
    whole, size_bytes = hashlib.sha256(), 0
    try:
        pieces = archive.get(manifest.layer)
    except NotFound as gone:
        raise Damaged(f"{manifest.layer}, which its manifest names, is not there", what=manifest.layer) from gone
    try:
        for piece in pieces:
            whole.update(piece)
            size_bytes += len(piece)
            yield piece
    finally:
        pieces.close()
    if (size_bytes, whole.hexdigest()) != (manifest.stored_bytes, manifest.sha256):
        raise Damaged(
            f"{manifest.layer} has {size_bytes} bytes of the digest {whole.hexdigest()}, and had"
            f" {manifest.stored_bytes} of {manifest.sha256}",
            what=manifest.layer,
        )
