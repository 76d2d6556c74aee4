"""A backup on its way in: piece by piece, each compared with its digest, all with the chain. Memory is one piece.
Blocking. What is wrong is an error that names the piece."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

import zstandard

from orchestrator.backup.format import (
    HEAD,
    MANIFEST,
    MOST_BYTES,
    SHA256,
    SNAPSHOTS,
    Chain,
    Contents,
    Head,
    damaged,
    to_contents,
    to_head,
)

_READ_BYTES: Final = 1 << 20
_WINDOW_BYTES: Final = 128 << 20


@dataclass(frozen=True, slots=True)
class Piece:
    """`of`: the folder it is in and, of files, whose; `n` counts from 1 in each."""

    name: str
    data: bytes

    @property
    def of(self) -> tuple[str, str]:
        kind, _, rest = self.name.partition("/")
        return kind, rest.rpartition("/")[0]


@dataclass(frozen=True, slots=True)
class Verified:
    """What a whole backup says of itself. `files`: snapshots whose files are in it."""

    head: Head
    contents: Contents
    files: frozenset[str]


def verified(file: BinaryIO, *, progress: Callable[[int], None] = lambda done: None) -> Verified:
    """Read all of it and keep nothing. Raises BadInput(field="file"), OSError."""
    reader = Reader(file)
    files: set[str] = set()
    done = 0
    for piece in reader:
        kind, whose = piece.of
        if kind == SNAPSHOTS:
            files.add(whose)
        done += len(piece.data)
        progress(done)
    assert reader.head is not None and reader.contents is not None  # else it had raised
    return Verified(reader.head, reader.contents, frozenset(files.difference(reader.contents.gone)))


class Reader:
    """The pieces between head and manifest, in order; those two are here once they came by."""

    def __init__(self, file: BinaryIO) -> None:
        self.head: Head | None = None
        self.contents: Contents | None = None
        self._chain = Chain()
        self._pieces = self._read(file)

    def __iter__(self) -> Iterator[Piece]:
        return self._pieces

    def _read(self, file: BinaryIO) -> Iterator[Piece]:
        last = "its beginning"
        try:
            unpacking = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES)
            with unpacking.stream_reader(file, closefd=False) as plain:
                archive = tarfile.open(mode="r|", fileobj=plain, bufsize=_READ_BYTES)  # noqa: SIM115 (it is no file)
                while (info := archive.next()) is not None:
                    archive.members = []  # type: ignore[attr-defined]  # else it keeps every one
                    piece = self._piece(archive, info)
                    last = piece.name
                    if self.head is None:
                        if piece.name != HEAD:
                            raise damaged("it does not begin as a backup does", piece=piece.name)
                        self.head = to_head(piece.data)
                    elif piece.name == MANIFEST:
                        self._close(piece)
                        return
                    else:
                        yield piece
        except (tarfile.TarError, zstandard.ZstdError, EOFError) as wrong:
            raise damaged(f"after {last}: {wrong}") from None
        raise damaged(f"it ends after {last}, before its manifest: it was cut off, or is no backup")

    def _piece(self, archive: tarfile.TarFile, info: tarfile.TarInfo) -> Piece:
        told = info.pax_headers.get(SHA256, "")
        if not info.isreg() or not 0 <= info.size <= MOST_BYTES:
            raise damaged("it is no piece of a backup", piece=info.name)
        content = archive.extractfile(info)
        data = content.read() if content is not None else b""
        digest = hashlib.sha256(data).hexdigest()
        if digest != told or len(data) != info.size:
            raise damaged(f"its sha256 is {digest}, and was {told or 'not said'}", piece=info.name)
        if info.name != MANIFEST:
            self._chain.add(info.name, digest)
        return Piece(info.name, data)

    def _close(self, piece: Piece) -> None:
        contents = to_contents(piece.data)
        if contents.chain != self._chain.hexdigest():
            raise damaged("pieces are missing, doubled or not where they were", piece=MANIFEST)
        self.contents = contents
