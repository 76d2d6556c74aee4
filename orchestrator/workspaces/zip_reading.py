"""A zip as members. Its directory is at its end, so it is received first, into a file without a name on the workspace's
own disk, under the workspace's own limit. Stored and deflated content; nothing encrypted. Knows no folder to unpack to.

Neither the directory nor the declared sizes are believed: the directory is read record by record, content is unpacked
in pieces and counted, and entries that overlap pay for every time they come out.
"""

from __future__ import annotations

import os
import stat
import struct
import tempfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Final

from orchestrator.workspaces.incoming import PIECE_BYTES, Incoming, Member, bad_archive, exactly, no_archive

_END, _END64, _AT64, _RECORD, _LOCAL = b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\1\2", b"PK\3\4"
_TAIL_BYTES: Final = 22 + 0xFFFF
_ENCRYPTED: Final = 0x41
_STORED, _DEFLATED = 0, 8
_MOST: Final = 0xFFFFFFFF
_LINK_BYTES: Final = 4096


def zip_members(incoming: Incoming, folder: int) -> Iterator[Member]:
    """All members; received through a nameless file in the open `folder`. Raises BadInput(field="archive")."""
    with _nameless(folder) as file:
        while piece := incoming.read(PIECE_BYTES):
            file.write(piece)
        size = file.tell()
        count, begin = _directory(file, size)
        for _ in range(count):
            begin, member = _member(file, begin)
            yield member


def _nameless(folder: int) -> BinaryIO:
    try:
        descriptor = os.open(f"/proc/self/fd/{folder}", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:  # a filesystem that cannot
        return tempfile.TemporaryFile()
    return os.fdopen(descriptor, "w+b")


def _directory(file: BinaryIO, size: int) -> tuple[int, int]:
    """(how many records, where they begin)."""
    file.seek(max(0, size - _TAIL_BYTES))
    tail = file.read(_TAIL_BYTES)
    at = tail.rfind(_END)
    if at < 0 or len(tail) - at < 22:
        raise no_archive("zip", "it has no directory")
    count, _, begin = struct.unpack("<HLL", tail[at + 10 : at + 20])
    if count == 0xFFFF or begin == _MOST:
        locator = tail[at - 20 : at] if at >= 20 else b""
        if locator[:4] == _AT64:
            file.seek(min(struct.unpack("<Q", locator[8:16])[0], size))
            wide = exactly(file, 56, "zip")
            if wide[:4] != _END64:
                raise no_archive("zip", "its directory is not where it says")
            count, begin = struct.unpack("<Q", wide[32:40])[0], struct.unpack("<Q", wide[48:56])[0]
    if begin > size or count > size // 46:
        raise no_archive("zip", "its directory is not where it says")
    return count, begin


def _member(file: BinaryIO, begin: int) -> tuple[int, Member]:
    """(where the next record begins, the member of this one)."""
    file.seek(begin)
    head = exactly(file, 46, "zip")
    if head[:4] != _RECORD:
        raise no_archive("zip", "its directory is damaged")
    made_by, _, flags, method, _, _, crc, packed, size, name_bytes, extra_bytes, comment_bytes = struct.unpack(
        "<HHHHHHLLLHHH", head[4:34]
    )
    attributes, at = struct.unpack("<LL", head[38:46])
    name = exactly(file, name_bytes, "zip")
    size, packed, at = _wide(exactly(file, extra_bytes, "zip"), size, packed, at)
    after = begin + 46 + name_bytes + extra_bytes + comment_bytes
    if flags & _ENCRYPTED:
        raise bad_archive(name, "is encrypted")
    if method not in (_STORED, _DEFLATED):
        raise bad_archive(name, f"is packed by method {method}; stored and deflated are known")
    mode = attributes >> 16 if made_by >> 8 in (3, 19) else 0  # Unix, macOS
    kind = stat.S_IFMT(mode)
    if name.endswith(b"/") or kind == stat.S_IFDIR:
        return after, Member(name, "directory", mode or 0o755)
    content = _content(file, name, at, method, packed, size, crc)
    if kind == stat.S_IFLNK:
        target = b""
        for piece in content:
            target += piece
            if len(target) > _LINK_BYTES:
                raise bad_archive(name, "is a link that is too long")
        return after, Member(name, "symlink", target=target)
    if kind not in (0, stat.S_IFREG):
        raise bad_archive(name, "is a device, socket or FIFO")
    return after, Member(name, "file", mode or 0o644, content=content)


def _wide(extra: bytes, size: int, packed: int, at: int) -> tuple[int, int, int]:
    """The zip64 field, where a number did not fit."""
    while len(extra) >= 4:
        tag, length = struct.unpack("<HH", extra[:4])
        field, extra = extra[4 : 4 + length], extra[4 + length :]
        if tag != 1:
            continue
        numbers = [struct.unpack("<Q", field[begin : begin + 8])[0] for begin in range(0, len(field) - 7, 8)]
        wide = iter(numbers)
        if size == _MOST:
            size = next(wide, size)
        if packed == _MOST:
            packed = next(wide, packed)
        if at == _MOST:
            at = next(wide, at)
    return size, packed, at


def _content(file: BinaryIO, name: bytes, at: int, method: int, packed: int, size: int, crc: int) -> Iterator[bytes]:
    file.seek(min(at, 1 << 62))
    local = exactly(file, 30, "zip")
    if local[:4] != _LOCAL:
        raise bad_archive(name, "is not where the directory says")
    at += 30 + sum(struct.unpack("<HH", local[26:30]))
    seen = found = 0
    for piece in _unpacked(file, at, packed, method, name):
        seen += len(piece)
        found = zlib.crc32(piece, found)
        yield piece
    if seen != size or found != crc:
        raise bad_archive(name, "is damaged: its size or checksum differs")


def _unpacked(file: BinaryIO, at: int, packed: int, method: int, name: bytes) -> Iterator[bytes]:
    plain = zlib.decompressobj(-zlib.MAX_WBITS) if method == _DEFLATED else None
    left = packed
    while left:
        file.seek(at)
        data = file.read(min(PIECE_BYTES, left))
        if not data:
            raise no_archive("zip", "it ends early")
        at += len(data)
        left -= len(data)
        if plain is None:
            yield data
            continue
        try:
            while data:
                if piece := plain.decompress(data, PIECE_BYTES):
                    yield piece
                data = plain.unconsumed_tail
        except zlib.error as error:
            raise bad_archive(name, "is damaged") from error
        if plain.eof:
            return
