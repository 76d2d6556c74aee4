"""A backup on its way out: pieces into a tar under zstd, the manifest last. Memory is one piece. Blocking."""

from __future__ import annotations

import hashlib
import tarfile
from dataclasses import replace
from typing import BinaryIO, Final

import zstandard

from orchestrator.backup.format import HEAD, MANIFEST, SHA256, Chain, Contents, Head, dumps

_LEVEL: Final = 1
_BLOCK: Final = 512


class Writer:
    """Into `out`, which it neither closes nor syncs. Without `close` there is no manifest, and no backup."""

    def __init__(self, out: BinaryIO, head: Head) -> None:
        self._packed = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).stream_writer(out, closefd=False)
        self._chain = Chain()
        self._mtime = int(head.moment.timestamp())
        self.bytes = 0
        self.add(HEAD, dumps(head))

    def add(self, name: str, data: bytes) -> None:
        """One piece. Raises OSError."""
        digest = hashlib.sha256(data).hexdigest()
        self._put(name, data, digest)
        self._chain.add(name, digest)
        self.bytes += len(data)

    def close(self, contents: Contents) -> Contents:
        """The manifest, and the end. What was written, with its chain."""
        done = replace(contents, bytes=self.bytes, chain=self._chain.hexdigest())
        data = dumps(done)
        self._put(MANIFEST, data, hashlib.sha256(data).hexdigest())
        self._packed.write(bytes(2 * _BLOCK))
        self._packed.close()  # type: ignore[no-untyped-call]
        return done

    def _put(self, name: str, data: bytes, digest: str) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = len(data), 0o600, self._mtime
        info.pax_headers = {SHA256: digest}
        self._packed.write(info.tobuf(tarfile.PAX_FORMAT))
        self._packed.write(data)
        self._packed.write(bytes(-len(data) % _BLOCK))
