"""What `carrel doctor` says of the archive: one object is written, read and removed. Knows no other part."""

from __future__ import annotations

import secrets

from orchestrator.archive import Archive
from orchestrator.archives.place import archive_at
from orchestrator.checks import Check, Verdict
from orchestrator.errors import CarrelError
from orchestrator.settings import Settings


def archive(settings: Settings) -> Check:
    """Whether what sleeps here could wake on another host."""
    if not settings.archive_url:
        return Check("archive", Verdict.OK, "none: snapshots and histories are on this host and in the store only")
    try:
        there = archive_at(settings.archive_url, settings.installation, endpoint=settings.archive_endpoint)
        _try(there)
    except (CarrelError, ValueError) as failure:
        remedy = "archive_url, the AWS_* of this environment, the bucket's rights: docs/operate/archive.md"
        return Check("archive", Verdict.MISSING, str(failure), remedy)
    return Check("archive", Verdict.OK, f"{there.where()}: written, read and removed")


def _try(there: Archive) -> None:
    name, said = f"doctor/{secrets.token_hex(8)}", secrets.token_bytes(32)
    there.put(name, [said])
    came = b"".join(there.get(name))
    there.remove(name)
    if came != said:
        raise CarrelError(f"{there.where()}: what was read is not what was written")
