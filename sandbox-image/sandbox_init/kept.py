"""What one client has sent towards the gateway: all of it, so that it can be sent again, or only what is not sent yet.

Little of it lies in memory, more in a file without a name; both are bounded. Where a bound or the disk says no, what
was sent already is forgotten: then there is no second time for this one. Knows nothing of sockets.
"""

from __future__ import annotations

import os
from errno import EISDIR, ENOENT, ENOSPC, EOPNOTSUPP

MEMORY_BYTES = 8 << 10  # of one; a prompt is larger, the question "is this done already?" is not
FILE_BYTES = 64 << 20  # of one
FILES_BYTES = 256 << 20  # of all of a sandbox: the disk is the host's


class Allowance:
    """How much of the disk all clients of a sandbox may still take."""

    __slots__ = ("left_bytes",)

    def __init__(self) -> None:
        self.left_bytes = FILES_BYTES


class Kept:
    """Bytes numbered from 0, in the order they came. `sent`, where asked for, is how many have been sent by now."""

    __slots__ = ("_allowance", "_base", "_directory", "_fd", "_memory", "size", "whole")

    def __init__(self, directory: str, allowance: Allowance) -> None:
        self.size = 0  # of all that came
        self.whole = True  # from the first byte on
        self._memory = bytearray()  # those from _base on, unless there is a file
        self._base = 0
        self._fd = -1
        self._directory = directory
        self._allowance = allowance

    def add(self, data: memoryview, sent: int) -> None:
        """What cannot be kept is forgotten as far as it was sent. Raises OSError as `forget`."""
        if self.whole and self.size + len(data) > MEMORY_BYTES:
            self._to_file(data, sent)
        if self._fd < 0:
            self._memory += data
        self.size += len(data)

    def at(self, offset: int, limit: int) -> bytes | bytearray:
        """At most `limit` bytes from there on. Raises OSError."""
        if self._fd >= 0:
            return os.pread(self._fd, limit, offset)
        return self._memory[offset - self._base : offset - self._base + limit]

    def forget(self, sent: int) -> None:
        """They are not needed again. Raises OSError when the rest cannot be read."""
        if self._fd >= 0:
            self._memory = bytearray(os.pread(self._fd, self.size - sent, sent))
            self._close_file()
        else:
            del self._memory[: sent - self._base]
        self._base = sent
        self.whole = False

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            self._close_file()
        self._memory = bytearray()

    def _to_file(self, data: memoryview, sent: int) -> None:
        more = len(data) if self._fd >= 0 else self.size + len(data)
        if self.size + len(data) > FILE_BYTES or more > self._allowance.left_bytes:
            self.forget(sent)
            return
        try:
            if self._fd < 0:
                fd = _nameless(self._directory)
                try:
                    _write(fd, memoryview(self._memory), 0)
                    _write(fd, data, self.size)
                except OSError:
                    os.close(fd)
                    raise
                self._fd = fd
                self._memory = bytearray()
            else:
                _write(self._fd, data, self.size)
            self._allowance.left_bytes -= more
        except OSError:
            self.forget(sent)

    def _close_file(self) -> None:
        os.close(self._fd)
        self._fd = -1
        self._allowance.left_bytes += self.size


def _nameless(directory: str) -> int:
    """A file that is gone when it is closed, or when init is killed. Raises OSError."""
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as problem:
        if problem.errno not in (EOPNOTSUPP, EISDIR, ENOENT):  # as open(2) says it of file systems that cannot
            raise
    path = directory + "/outlet"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.unlink(path)
    return fd


def _write(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        if not written:
            raise OSError(ENOSPC, os.strerror(ENOSPC))
        data, offset = data[written:], offset + written
