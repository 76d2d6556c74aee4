"""A tar somebody sends as members: files, folders and links. Sparse files, devices, unknown kinds: refused by name.
Knows no folder."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import Final

from orchestrator.workspace import ArchiveFormat
from orchestrator.workspaces.incoming import Incoming, Member, bad_archive
from orchestrator.workspaces.tar_stream import FILES, Head, decompressed, heads

_HEADER_BYTES: Final = 1 << 20  # a path has 4,096
_DEVICES: Final = (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)


def tar_members(incoming: Incoming, format: ArchiveFormat) -> Iterator[Member]:
    """All members. Raises BadInput(field="archive")."""
    with decompressed(incoming, format) as source:
        for head in heads(source, format, header_bytes=_HEADER_BYTES):
            yield _member(head)


def _member(head: Head) -> Member:
    info, name = head.info, head.path
    if info.type == tarfile.GNUTYPE_SPARSE or any(key.startswith(b"GNU.sparse") for key in head.said):
        raise bad_archive(name, "is a sparse file")
    if info.type in _DEVICES:
        raise bad_archive(name, "is a device or FIFO")
    mtime_s = _number(head.said.get(b"mtime"), float(info.mtime))
    if info.type in FILES:
        return Member(name, "file", info.mode, mtime_s, content=head.content)
    if info.type == tarfile.DIRTYPE:
        return Member(name, "directory", info.mode, mtime_s)
    if info.type == tarfile.SYMTYPE:
        return Member(name, "symlink", target=head.target)
    if info.type == tarfile.LNKTYPE:
        return Member(name, "hardlink", target=head.target)
    raise bad_archive(name, f"is of the unknown kind {info.type!r}")


def _number(said: bytes | None, otherwise: float) -> float:
    try:
        return float(said) if said else otherwise
    except ValueError:
        return otherwise
