"""Items as a zip, written forward only: sizes follow each content (data descriptors), the directory comes last and
waits on disk meanwhile, not in memory. Source: PKWARE's APPNOTE 6.3. Knows no folder.

zipfile could write to a stream as well, but keeps an object per entry until the end.
"""

from __future__ import annotations

import stat
import struct
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from orchestrator.workspaces.archiving import Item, Note

_VERSION: Final = 45  # zip64
_UNIX: Final = 3 << 8
_DESCRIPTOR, _UTF8 = 0x08, 0x800
_STORED, _DEFLATED = 0, 8
_MOST: Final = 0xFFFFFFFF
_LARGE: Final = 0xF0000000  # from here on sizes take 8 bytes: deflate may add a little
_DIRECTORY_BYTES: Final = 1 << 20  # of the directory in memory
_PERMISSIONS: Final = 0o777
_LEVEL: Final = 1


def pieces(items: Iterator[Item], note: Note, read: Callable[[Item, Note], Iterator[bytes]]) -> Iterator[bytes]:
    """The zip. `read` gives an item's content."""
    with tempfile.SpooledTemporaryFile(max_size=_DIRECTORY_BYTES) as directory:
        out = _Out(directory)
        for item in items:
            if stat.S_ISREG(item.mode):
                yield from out.file(item, read(item, note))
            else:
                yield from out.text(item, item.target)
        if text := note.text():
            yield from out.text(_note(item_text=text), text)
        yield from out.end()


def _note(item_text: bytes) -> Item:
    from orchestrator.workspaces.archiving import LEFT_OUT, Item

    return Item(LEFT_OUT.encode(), stat.S_IFREG | 0o644, 0.0, len(item_text))


class _Out:
    def __init__(self, directory: Any) -> None:
        self._directory = directory
        self._offset = 0
        self._entries = 0

    def file(self, item: Item, content: Iterator[bytes]) -> Iterator[bytes]:
        large = item.size_bytes >= _LARGE
        flags = _DESCRIPTOR | _utf8(item.name)
        begin = self._offset
        yield self._told(_local(item, flags, _DEFLATED, large, 0, 0, 0))
        packing = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
        crc = size = packed = 0
        for piece in content:
            crc = zlib.crc32(piece, crc)
            size += len(piece)
            data = packing.compress(piece)
            packed += len(data)
            yield self._told(data)
        data = packing.flush()
        packed += len(data)
        yield self._told(data + struct.pack("<4sLQQ" if large else "<4sLLL", b"PK\7\10", crc, packed, size))
        self._list(item, flags, _DEFLATED, crc, packed, size, begin)

    def text(self, item: Item, content: bytes) -> Iterator[bytes]:
        """A folder, a link, or what is small."""
        crc, flags, begin = zlib.crc32(content), _utf8(item.name), self._offset
        yield self._told(_local(item, flags, _STORED, False, crc, len(content), len(content)) + content)
        self._list(item, flags, _STORED, crc, len(content), len(content), begin)

    def end(self) -> Iterator[bytes]:
        begin, size = self._offset, self._directory.tell()
        self._directory.seek(0)
        while piece := self._directory.read(1 << 16):
            yield self._told(piece)
        if self._entries >= 0xFFFF or begin >= _MOST or size >= _MOST:
            at = self._offset
            counts = (self._entries, self._entries, size, begin)
            yield struct.pack("<4sQHHLLQQQQ", b"PK\6\6", 44, _UNIX | _VERSION, _VERSION, 0, 0, *counts)
            yield struct.pack("<4sLQL", b"PK\6\7", 0, at, 1)
        count = min(self._entries, 0xFFFF)
        yield struct.pack("<4sHHHHLLH", b"PK\5\6", 0, 0, count, count, min(size, _MOST), min(begin, _MOST), 0)

    def _told(self, data: bytes) -> bytes:
        self._offset += len(data)
        return data

    def _list(self, item: Item, flags: int, method: int, crc: int, packed: int, size: int, begin: int) -> None:
        wide = [number for number in (size, packed, begin) if number >= _MOST]
        extra = struct.pack(f"<HH{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
        name = _name(item)
        mode = stat.S_IFMT(item.mode) | (item.mode & _PERMISSIONS)
        self._entries += 1
        self._directory.write(
            struct.pack(
                "<4sHHHHHHLLLHHHHHLL",
                b"PK\1\2",
                _UNIX | _VERSION,
                _VERSION,
                flags,
                method,
                *_dos_time(item.mtime_s),
                crc,
                min(packed, _MOST),
                min(size, _MOST),
                len(name),
                len(extra),
                0,
                0,
                0,
                mode << 16 | (0x10 if stat.S_ISDIR(item.mode) else 0),
                min(begin, _MOST),
            )
            + name
            + extra
        )


def _local(item: Item, flags: int, method: int, large: bool, crc: int, packed: int, size: int) -> bytes:
    name = _name(item)
    extra = struct.pack("<HHQQ", 1, 16, 0, 0) if large else b""
    if large:
        packed = size = _MOST
    head = struct.pack(
        "<4sHHHHHLLLHH",
        b"PK\3\4",
        _VERSION,
        flags,
        method,
        *_dos_time(item.mtime_s),
        crc,
        packed,
        size,
        len(name),
        len(extra),
    )
    return head + name + extra


def _name(item: Item) -> bytes:
    return item.name + b"/" if stat.S_ISDIR(item.mode) else item.name


def _utf8(name: bytes) -> int:
    try:
        name.decode()
    except UnicodeDecodeError:
        return 0
    return _UTF8


def _dos_time(mtime_s: float) -> tuple[int, int]:
    """(time, date), UTC, from 1980 to 2107, in steps of two seconds."""
    at = time.gmtime(min(max(mtime_s, 315_532_800), 4_354_819_199))
    return at.tm_hour << 11 | at.tm_min << 5 | at.tm_sec // 2, (at.tm_year - 1980) << 9 | at.tm_mon << 5 | at.tm_mday
