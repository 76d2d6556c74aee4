"""An archive's address as the archive: `file:///…` or `s3://bucket/prefix`. Opens nothing."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from orchestrator.archive import Archive
from orchestrator.archives.disk import DiskArchive


def archive_at(url: str, installation: str, *, endpoint: str = "") -> Archive:
    """In a part of its own for this installation: several may share a folder or bucket."""
    split = urlsplit(url)
    if split.scheme == "file":
        base = Path(unquote(split.path))
        return DiskArchive(base, base / installation)
    from orchestrator.archives.s3 import S3Archive  # 12 MB of library, for who has a bucket

    prefix = unquote(split.path).strip("/")
    return S3Archive(split.netloc, f"{prefix}/{installation}" if prefix else installation, endpoint=endpoint)
