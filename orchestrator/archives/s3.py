"""An archive in a bucket of anything that speaks S3, by obstore (the Rust crate object_store).

Large objects go up in parts, so many in memory at a time; an object is to be seen when its last part is. Parts of an
upload that was killed stay until the bucket's own lifecycle rule removes them. Knows not what is in an object.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator, Iterable, Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from orchestrator.archive import Stored
from orchestrator.errors import ArchiveUnavailable, CarrelError, DiskFull, NotFound

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

_PART_BYTES: Final = 16 << 20  # S3 takes 10,000 parts: objects of up to 160 GB
_PARTS: Final = 2
_PIECE_BYTES: Final = 1 << 20
_FULL: Final = ("QuotaExceeded", "InsufficientCapacity", "XMinioStorageFull", "507 Insufficient", "no space left")


class S3Archive:
    """The port Archive below `prefix` of `bucket`. `endpoint`: "" = AWS. Keys, region and the rest come from AWS_* of
    the environment, or from the machine's role. Nothing is asked of it before it is used."""

    def __init__(self, bucket: str, prefix: str, *, endpoint: str = "") -> None:
        self._where = f"s3://{bucket}/{prefix}" + (f" at {endpoint}" if endpoint else "")
        # A large body takes its time; one that stands still does not.
        client: ClientConfig = {
            "timeout": timedelta(days=1),
            "connect_timeout": timedelta(seconds=5),
            "read_timeout": timedelta(seconds=60),
            "allow_http": endpoint.startswith("http://"),
        }
        retry: RetryConfig = {"max_retries": 3, "retry_timeout": timedelta(seconds=30)}
        if endpoint:
            self._store = S3Store(bucket, prefix=prefix, client_options=client, retry_config=retry, endpoint=endpoint)
        else:
            self._store = S3Store(bucket, prefix=prefix, client_options=client, retry_config=retry)

    def where(self) -> str:
        return self._where

    def put(self, name: str, chunks: Iterable[bytes]) -> None:
        # One part's worth first: what fits into it goes up in one request.
        source = _Source(chunks)
        begin = bytearray()
        for chunk in source:
            begin += chunk
            if len(begin) >= _PART_BYTES:
                break
        with self._errors(name, source):
            if len(begin) < _PART_BYTES:
                obstore.put(self._store, name, bytes(begin), use_multipart=False)
            else:
                rest = itertools.chain((bytes(begin),), source)
                del begin
                obstore.put(self._store, name, rest, chunk_size=_PART_BYTES, max_concurrency=_PARTS)

    def get(self, name: str) -> Generator[bytes, None, None]:
        with self._errors(name):
            found = obstore.get(self._store, name)
        return self._read(found, name)

    def _read(self, found: obstore.GetResult, name: str) -> Generator[bytes, None, None]:
        pieces = iter(found.stream(min_chunk_size=_PIECE_BYTES))
        while True:
            with self._errors(name):
                piece = next(pieces, None)
            if piece is None:
                return
            yield bytes(piece)

    def list(self, prefix: str) -> Iterator[Stored]:
        folder = prefix.rpartition("/")[0]
        with self._errors(prefix):
            for page in obstore.list(self._store, prefix=folder or None):
                for found in page:
                    if found["path"].startswith(prefix):
                        yield Stored(found["path"], found["size"], found["last_modified"])

    def remove(self, name: str) -> None:
        with contextlib.suppress(NotFound), self._errors(name):
            obstore.delete(self._store, name)

    def tidy(self, now: datetime) -> None:
        """Nothing: half an upload is not to be seen from here."""

    @contextlib.contextmanager
    def _errors(self, name: str, source: _Source | None = None) -> Iterator[None]:
        try:
            yield
        except (BaseError, OSError, CarrelError) as error:
            if source is not None and source.failure is not None:
                raise source.failure from None
            raise self._said(error, name) from error

    def _said(self, error: Exception, name: str) -> CarrelError:
        """The error of this library as one of ours. The first lines are for people; what follows is its own state."""
        if isinstance(error, CarrelError):
            return error
        text = " ".join(str(error).split("Debug source:")[0].split())[:500]
        if isinstance(error, FileNotFoundError) and "NoSuchBucket" not in text:
            return NotFound(f"{name} is not in the archive", kind="archive", id=name)
        if any(sign in text for sign in _FULL):
            return DiskFull(f"no space left for the archive in {self._where}: {text}", where="archive")
        return ArchiveUnavailable(f"the archive in {self._where}: {text}", retry_after_s=30)


class _Source(Iterator[bytes]):
    """What is sent, and what it failed with: not the archive's fault."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self.failure: Exception | None = None

    def __next__(self) -> bytes:
        try:
            return next(self._chunks)
        except StopIteration:
            raise
        except Exception as failure:
            self.failure = failure
            raise
