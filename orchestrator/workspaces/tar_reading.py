"""A tar stream as members, forward only, in bounded memory: ustar, pax and GNU's long names, plain or under zstd.

Sparse files are refused by name. Only single headers are parsed by tarfile; it never sees the stream, whose declared
sizes it would believe. Knows no folder.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from typing import Any, Final

import zstandard

from orchestrator.workspace import ArchiveFormat
from orchestrator.workspaces.incoming import PIECE_BYTES, Incoming, Member, Reading, bad_archive, exactly, no_archive

_BLOCK: Final = 512
_HEADER_BYTES: Final = 1 << 20  # of a long name or of pax records; a path has 4,096
WINDOW_BYTES: Final = 32 << 20  # zstd -19 has 8 MiB; what asks for more asks for our memory
_FILES: Final = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_DEVICES: Final = (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)


def tar_members(incoming: Incoming, format: ArchiveFormat) -> Iterator[Member]:
    """All members. Raises BadInput(field="archive")."""
    if format == "tar":
        yield from _members(incoming, format)
        return
    unpacking = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES)
    try:
        # Reads at most what is asked for, so a bomb goes off one piece at a time, and is counted.
        coming: Any = incoming  # it asks for `read` only
        with unpacking.stream_reader(coming, read_size=1 << 16, read_across_frames=True, closefd=False) as plain:
            yield from _members(plain, format)
    except zstandard.ZstdError as error:
        raise no_archive(format, str(error)) from error


def _members(source: Reading, format: str) -> Iterator[Member]:
    said: dict[bytes, bytes] = {}
    while True:
        block = exactly(source, _BLOCK, format)
        if not any(block):
            skip_rest(source)
            return
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.TarError, ValueError) as error:
            raise no_archive(format, str(error)) from error
        if info.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            said |= pax_records(info, _header_text(source, info, format), format)
            continue
        size = int(said[b"size"]) if said.get(b"size", b"").isdigit() else info.size
        name = said.get(b"path", os.fsencode(info.name))
        target = said.get(b"linkpath", os.fsencode(info.linkname))
        if info.type == tarfile.GNUTYPE_SPARSE or any(key.startswith(b"GNU.sparse") for key in said):
            raise bad_archive(name, "is a sparse file")
        if info.type in _DEVICES:
            raise bad_archive(name, "is a device or FIFO")
        if size < 0:
            raise no_archive(format, "a size is negative")
        mtime_s = _number(said.get(b"mtime"), float(info.mtime))
        said = {}
        if info.type in _FILES:
            content = _content(source, size, format)
            yield Member(name, "file", info.mode, mtime_s, content=content)
            for _ in content:
                pass  # what was not wanted of it
        elif info.type == tarfile.DIRTYPE:
            _skip(source, size, format)
            yield Member(name, "directory", info.mode, mtime_s)
        elif info.type == tarfile.SYMTYPE:
            yield Member(name, "symlink", target=target)
        elif info.type == tarfile.LNKTYPE:
            yield Member(name, "hardlink", target=target)
        else:
            raise bad_archive(name, f"is of the unknown kind {info.type!r}")


def _header_text(source: Reading, info: tarfile.TarInfo, format: str) -> bytes:
    if not 0 <= info.size <= _HEADER_BYTES:
        raise no_archive(format, f"a header of {info.size} bytes")
    text = exactly(source, info.size, format)
    exactly(source, -info.size % _BLOCK, format)
    return text


def pax_records(info: tarfile.TarInfo, text: bytes, format: str) -> dict[bytes, bytes]:
    """What the header `info`, whose text this is, says about the next member. Raises BadInput."""
    if info.type == tarfile.GNUTYPE_LONGNAME:
        return {b"path": text.rstrip(b"\0")}
    if info.type == tarfile.GNUTYPE_LONGLINK:
        return {b"linkpath": text.rstrip(b"\0")}
    if info.type == tarfile.XGLTYPE:
        return {}  # of all that follow: comments of git's, nothing that names a file
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(text):
        length, space, _ = text[at : at + 20].partition(b" ")
        end = at + int(length) if space and length.isdigit() else 0
        key, equals, value = text[at + len(length) + 1 : max(end, 1) - 1].partition(b"=")
        if not equals or end > len(text) or text[end - 1 : end] != b"\n":
            raise no_archive(format, "its pax records are no records")
        found[key] = value
        at = end
    return found


def _content(source: Reading, size: int, format: str) -> Iterator[bytes]:
    left = size
    while left:
        piece = source.read(min(PIECE_BYTES, left))
        if not piece:
            raise no_archive(format, "it ends early")
        left -= len(piece)
        yield piece
    exactly(source, -size % _BLOCK, format)


def _skip(source: Reading, size: int, format: str) -> None:
    for _ in _content(source, size, format):
        pass


def skip_rest(source: Reading) -> None:
    """To the end of the stream, bounded by what may be sent: a compressed tail is not unpacked for long."""
    left = 64 * PIECE_BYTES
    while left > 0 and (piece := source.read(PIECE_BYTES)):
        left -= len(piece)


def _number(said: bytes | None, otherwise: float) -> float:
    try:
        return float(said) if said else otherwise
    except ValueError:
        return otherwise
