"""A layer of a snapshot as tar: headers with everything a file is besides its content, written and read.

pax (POSIX.1-2001), as any tar reads it: names as bytes (`hdrcharset=BINARY`), times to the nanosecond, `user.`
attributes (`SCHILY.xattr.`), holes (`GNU.sparse` 1.0). Of our own is one record, `CARREL.removed`: the entry that the
layer below has is not there any more. Knows no folder.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from orchestrator.workspace import HARNESS_UID
from orchestrator.workspaces.incoming import Incoming, bad_archive
from orchestrator.workspaces.tar_stream import BLOCK, FILES, Head, decompressed, heads, whole_number

FORMAT: Final = "tar.zst"
END: Final = bytes(2 * BLOCK)
_HEADER_BYTES: Final = 8 << 20  # a path in a tree of 10,000 levels, attributes, a map of holes beside it
_PLAIN_BYTES: Final = 8**11  # more does not fit into a header: its size is a record
_SPARSE: Final = b"GNU.sparse."
_XATTR: Final = b"SCHILY.xattr."
_REMOVED: Final = b"CARREL.removed"
_KINDS: Final = {"file": b"0", "link": b"1", "symlink": b"2", "directory": b"5"}

Kind = Literal["file", "link", "symlink", "directory", "removed"]
Extent = tuple[int, int]  # where data begins, how much it is


@dataclass(frozen=True, slots=True)
class Entry:
    """One of a layer. `target`: of a symlink, or the path of the file that a (hard) link is another name of.
    `extents`: where a file has data, when it has holes, too. `content`, of what was read, must be used up before the
    next entry is taken."""

    path: bytes
    kind: Kind
    mode: int = 0
    mtime_ns: int = 0
    size_bytes: int = 0
    target: bytes = b""
    extents: Sequence[Extent] | None = None
    attributes: Mapping[bytes, bytes] = field(default_factory=dict)
    content: Iterator[bytes] = field(default_factory=lambda: iter(()))


def header(entry: Entry) -> bytes:
    """What stands before its content; for a file with holes, the map of them is part of it."""
    if entry.kind == "removed":
        return _header(b"0", entry.path, {_REMOVED: b"1"}, 0, 0)
    records = {_XATTR + name: value for name, value in entry.attributes.items()}
    records[b"mtime"] = _seconds(entry.mtime_ns)
    if entry.target:
        records[b"linkpath"] = entry.target
    if entry.extents is None:
        return _header(_KINDS[entry.kind], entry.path, records, entry.mode, entry.size_bytes)
    text = b"%d\n" % len(entry.extents) + b"".join(b"%d\n%d\n" % extent for extent in entry.extents)
    text += bytes(-len(text) % BLOCK)
    records[_SPARSE + b"major"], records[_SPARSE + b"minor"] = b"1", b"0"
    records[_SPARSE + b"name"], records[_SPARSE + b"realsize"] = entry.path, b"%d" % entry.size_bytes
    stored_bytes = len(text) + sum(size for _, size in entry.extents)
    return _header(b"0", b"GNUSparseFile.0/sparse", records, entry.mode, stored_bytes) + text


def padding(entry: Entry) -> bytes:
    """What stands behind its content."""
    extents = entry.extents
    return bytes(-(entry.size_bytes if extents is None else sum(size for _, size in extents)) % BLOCK)


def _header(kind: bytes, path: bytes, records: Mapping[bytes, bytes], mode: int, size_bytes: int) -> bytes:
    said = {b"path": path, **records}
    if size_bytes >= _PLAIN_BYTES:
        said[b"size"] = b"%d" % size_bytes
    try:
        for name, value in said.items():
            if not name.startswith(_XATTR):
                value.decode()
        text = b""
    except UnicodeDecodeError:
        text = _record(b"hdrcharset", b"BINARY")
    text += b"".join(_record(name, value) for name, value in said.items())
    more = _block(b"x", 0o644, len(text)) + text + bytes(-len(text) % BLOCK)
    return more + _block(kind, mode, 0 if b"size" in said else size_bytes)


def _record(name: bytes, value: bytes) -> bytes:
    rest = len(name) + len(value) + 3
    length = rest + len(str(rest))
    if len(str(length)) > len(str(rest)):
        length += 1
    return b"%d %s=%s\n" % (length, name, value)


def _block(kind: bytes, mode: int, size_bytes: int) -> bytes:
    info = tarfile.TarInfo("entry")  # the records have its name
    info.type, info.mode, info.size = kind, mode, size_bytes
    info.uid = info.gid = HARNESS_UID
    return info.tobuf(tarfile.USTAR_FORMAT)


def _seconds(ns: int) -> bytes:
    whole, rest = divmod(abs(ns), 10**9)
    return b"%s%d.%09d" % (b"-" if ns < 0 else b"", whole, rest)


# -- reading -----------------------------------------------------------------------------------------------------------


def entries(incoming: Incoming) -> Iterator[Entry]:
    """All of a layer under zstd, and what other programs pack. Raises BadInput(field="archive")."""
    with decompressed(incoming, FORMAT) as source:
        for head in heads(source, FORMAT, header_bytes=_HEADER_BYTES):
            yield _entry(head)


def _entry(head: Head) -> Entry:
    info, said, content = head.info, head.said, head.content
    path = said.get(_SPARSE + b"name") or head.path
    attributes = {name[len(_XATTR) :]: value for name, value in said.items() if name.startswith(_XATTR)}
    mtime_ns = _nanoseconds(said.get(b"mtime", b""), int(info.mtime) * 10**9)
    plain: dict[str, Any] = {"mode": info.mode & 0o7777, "mtime_ns": mtime_ns, "attributes": attributes}
    if _REMOVED in said:
        return Entry(path, "removed")
    if info.type == tarfile.GNUTYPE_SPARSE or (
        any(name.startswith(_SPARSE) for name in said) and said.get(_SPARSE + b"major") != b"1"
    ):
        raise bad_archive(path, "is a sparse file of an older kind")
    if info.type in FILES:
        if _SPARSE + b"major" not in said:
            return Entry(path, "file", size_bytes=head.stored_bytes, content=content, **plain)
        holes = _Holes(content)
        size_bytes = whole_number(said.get(_SPARSE + b"realsize", b""), -1, FORMAT)
        return Entry(path, "file", size_bytes=size_bytes, extents=holes.map(path, size_bytes), content=holes, **plain)
    if info.type == tarfile.DIRTYPE:
        return Entry(path, "directory", **plain)
    if info.type == tarfile.SYMTYPE:
        return Entry(path, "symlink", target=head.target, **plain)
    if info.type == tarfile.LNKTYPE:
        return Entry(path, "link", target=head.target, **plain)
    raise bad_archive(path, "is neither file, folder nor link")


class _Holes(Iterator[bytes]):
    """The content of a file with holes: the map, then the data."""

    def __init__(self, content: Iterator[bytes]) -> None:
        self._content = content
        self._rest = b""

    def __next__(self) -> bytes:
        if self._rest:
            piece, self._rest = self._rest, b""
            return piece
        return next(self._content)

    def map(self, path: bytes, size_bytes: int) -> Sequence[Extent]:
        """Extents in order, none beyond the end. Raises BadInput."""
        taken = 0
        numbers: list[int] = []
        while not numbers or len(numbers) <= 2 * numbers[0]:
            line, newline, rest = self._rest.partition(b"\n")
            if not newline:
                piece = next(self._content, b"")
                if not piece or len(self._rest) > BLOCK:
                    raise bad_archive(path, "has a map of holes that is none")
                self._rest += piece
                continue
            numbers.append(whole_number(line, -1, FORMAT))
            taken += len(line) + 1
            if taken > _HEADER_BYTES:
                raise bad_archive(path, "has too many holes")
            self._rest = rest
        padded = -taken % BLOCK
        while len(self._rest) < padded and (piece := next(self._content, b"")):
            self._rest += piece
        self._rest = self._rest[padded:]
        extents = list(zip(numbers[1::2], numbers[2::2], strict=True))
        end = 0
        for at, length in extents:
            if at < end or length < 0 or at + length > size_bytes:
                raise bad_archive(path, "has a map of holes that is none")
            end = at + length
        return extents


def _nanoseconds(said: bytes, otherwise: int) -> int:
    sign = -1 if said.startswith(b"-") else 1
    whole, _, rest = said.lstrip(b"-").partition(b".")
    if not whole.isdigit() or len(whole) > 10 or (rest and not rest.isdigit()):
        return otherwise
    return sign * (int(whole) * 10**9 + int(rest[:9].ljust(9, b"0")))
