"""A tar stream, forward only and in bounded memory: what each header says, with what pax and GNU say beside it, and the
bytes that follow; plain or under zstd.

Only single headers are parsed by tarfile; it never sees the stream, whose declared sizes it would believe. Knows
neither what a member may be nor any folder. POSIX.1-2001 (pax), GNU tar's long names.
"""

from __future__ import annotations

import contextlib
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import zstandard

from orchestrator.workspaces.incoming import PIECE_BYTES, Incoming, Reading, exactly, no_archive

BLOCK: Final = 512
FILES: Final = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_WINDOW_BYTES: Final = 32 << 20  # zstd -19 has 8 MiB; what asks for more asks for our memory
_OF_THE_NEXT: Final = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_NO_CONTENT: Final = (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE)  # whatever size they say


@dataclass(frozen=True, slots=True)
class Head:
    """One member. `said`: of it by the headers before its own. `stored_bytes`: what follows it. `content` of it must be
    used up before the next one is taken."""

    info: tarfile.TarInfo
    said: Mapping[bytes, bytes]
    stored_bytes: int
    content: Iterator[bytes]

    @property
    def path(self) -> bytes:
        return self.said.get(b"path") or self.info.name.encode(errors="surrogateescape")

    @property
    def target(self) -> bytes:
        return self.said.get(b"linkpath") or self.info.linkname.encode(errors="surrogateescape")


@contextlib.contextmanager
def decompressed(incoming: Incoming, format: str) -> Iterator[Reading]:
    """What is under zstd where `format` is not plain `tar`. Reads at most what is asked for, so a bomb goes off one
    piece at a time, and is counted. Raises BadInput(field="archive")."""
    if format == "tar":
        yield incoming
        return
    unpacking = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES)
    try:
        coming: Any = incoming  # it asks for `read` only
        with unpacking.stream_reader(coming, read_size=1 << 16, read_across_frames=True, closefd=False) as plain:
            yield plain
    except zstandard.ZstdError as error:
        raise no_archive(format, str(error)) from error


def heads(source: Reading, format: str, *, header_bytes: int) -> Iterator[Head]:
    """All members. `header_bytes`: of a long name or of pax records. Raises BadInput(field="archive")."""
    said: dict[bytes, bytes] = {}
    while True:
        block = exactly(source, BLOCK, format)
        if not any(block):
            _skip_rest(source)
            return
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.TarError, ValueError) as error:
            raise no_archive(format, str(error)) from error
        if info.type in _OF_THE_NEXT:
            if not 0 <= info.size <= header_bytes:
                raise no_archive(format, f"a header of {info.size} bytes")
            text = exactly(source, info.size, format)
            exactly(source, -info.size % BLOCK, format)
            said |= _records(info, text, format)
            continue
        stored_bytes = whole_number(said.get(b"size", b""), info.size, format)
        if info.type in _NO_CONTENT:
            stored_bytes = 0
        content = _content(source, stored_bytes, format)
        yield Head(info, said, stored_bytes, content)
        for _ in content:
            pass  # what was not wanted of it
        said = {}


def whole_number(said: bytes, otherwise: int, format: str) -> int:
    """A size as pax says it, or `otherwise` where it says none. Raises BadInput(field="archive") for what is none, one
    below 0 or beyond all disks."""
    number = otherwise
    if said:
        number = int(said) if said.isdigit() and len(said) < 19 else -1
    if number < 0:
        raise no_archive(format, "a size is no size")
    return number


def _records(info: tarfile.TarInfo, text: bytes, format: str) -> dict[bytes, bytes]:
    """What the header `info`, whose text this is, says about the next member."""
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


def _content(source: Reading, size_bytes: int, format: str) -> Iterator[bytes]:
    left = size_bytes
    while left:
        piece = source.read(min(PIECE_BYTES, left))
        if not piece:
            raise no_archive(format, "it ends early")
        left -= len(piece)
        yield piece
    exactly(source, -size_bytes % BLOCK, format)


def _skip_rest(source: Reading) -> None:
    """To the end of the stream, bounded by what may be sent: a compressed tail is not unpacked for long."""
    left = 64 * PIECE_BYTES
    while left > 0 and (piece := source.read(PIECE_BYTES)):
        left -= len(piece)
