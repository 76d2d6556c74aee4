"""A reader's place in the spool of the living init: what to send next, straight from the segment's file.

Nothing is buffered per reader and nothing is copied into init: `sendfile` moves page cache to the socket, so a reader
that is slow, far behind or stuck costs one open file. Knows nothing of what a connection is beyond its descriptor.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandbox_init.spool import Segment, Spool

_SEND_BYTES = 1 << 20


class Tail:
    """Sends frames after some `src`, then whatever is appended. Other frames may be put between only `at_boundary`."""

    def __init__(self, spool: Spool, after: int) -> None:
        """`after` beyond the last frame: frames up to it are not sent when they come."""
        self.spool = spool
        self.gap_from = spool.oldest_src if after + 1 < spool.oldest_src else 0
        self.position = spool.position_of(max(after + 1, spool.oldest_src))
        self._skip_to = after + 1 if after > spool.last_src else 0
        self._segment: Segment | None = None
        self._fd = -1
        self._range_end = self.position

    @property
    def at_boundary(self) -> bool:
        """No frame has been sent in part."""
        return self.position >= self._range_end

    @property
    def behind(self) -> bool:
        """There is something to send."""
        if self._skip_to:
            if self._skip_to > self.spool.last_src:
                return False
            self.position = self._range_end = self.spool.position_of(self._skip_to)
            self._skip_to = 0
        return self.position < self.spool.end

    def send(self, to_fd: int) -> None:
        """Send some of what is there. After it `gap_from`, if not 0, is the `src` where the stream goes on after frames
        that were trimmed away. Raises OSError of the receiver (EAGAIN among them)."""
        if self.at_boundary and not self._aim():
            return
        assert self._segment
        offset = self.position - self._segment.base
        self.position += os.sendfile(to_fd, self._fd, offset, min(self._range_end - self.position, _SEND_BYTES))

    def _aim(self) -> bool:
        """Choose the next range: up to what is whole now in one segment. False if a gap must be told first."""
        segment = self._segment
        if segment is None or self.position >= segment.base + segment.size:
            segment = self.spool.segment_at(self.position)
            if segment.base > self.position:
                self.position = self._range_end = segment.base
                self.gap_from = segment.first_src
                return False
            self.close()
            self._fd = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
            self._segment = segment
        self._range_end = segment.base + segment.size
        return True

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1
        self._segment = None
