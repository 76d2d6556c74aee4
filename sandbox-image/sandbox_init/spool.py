"""The spool: every frame of one attempt in append-only segment files that outlive init and the container.

Here: the writer (in init, one) and the reader (any process that may enter the directory, now or after init's death).
Neither knows what a verb means, except that the writer is told which frames must be on disk before it goes on.

A segment is named by its first `src`. A frame is written by one `writev`; the page cache survives the death of every
process, so only `sync` is needed for what must survive the machine. A frame that a crash or a full disk tore is cut:
by the writer when it opens the directory, by the reader when it meets it.
"""

from __future__ import annotations

import os
from time import time

from sandbox_init.frames import MAX_HEADER_BYTES, MAX_PAYLOAD_BYTES, PREFIX, Decoder, Frame, ProtocolError, encode_head

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sandbox_init.frames import Value

SUFFIX = ".frames"
SEGMENT_BYTES = 4 << 20
KEEP_BYTES = 8 << 20
MARK_EVERY_BYTES = 256 << 10
_READ_BUFFER_BYTES = 256 << 10


def _file_mode(directory: str) -> int:
    """Root's alone; where the directory is another's, a worker that is not root must read what root wrote. The wall
    is then the folder around it, on either side."""
    return 0o644 if os.stat(directory).st_uid else 0o600


class SpoolDamaged(Exception):
    """A frame in the middle is missing or cannot be read; `after_src` is the last good one before it."""

    def __init__(self, after_src: int, detail: str) -> None:
        super().__init__(f"spool is damaged after frame {after_src}: {detail}")
        self.after_src = after_src


class Segment:
    """One file. `base` is the position of its first byte; positions count from the first byte found when opened."""

    __slots__ = ("base", "first_src", "path", "size")

    def __init__(self, path: str, first_src: int, base: int) -> None:
        self.path = path
        self.first_src = first_src
        self.base = base
        self.size = 0


def _segments(directory: str) -> list[tuple[int, str]]:
    """(first src, path) of the segments there are, oldest first."""
    found = []
    for name in os.listdir(directory):
        if name.endswith(SUFFIX) and name[: -len(SUFFIX)].isdigit():
            found.append((int(name[: -len(SUFFIX)]), directory + "/" + name))
    found.sort()
    return found


def _frames_of(path: str) -> Iterator[tuple[int, Frame]]:
    """(offset after it, frame) for each whole frame; stops before the first that is torn or not a frame."""
    offset = 0
    with open(path, "rb", buffering=_READ_BUFFER_BYTES) as file:
        while True:
            prefix = file.read(PREFIX.size)
            if len(prefix) < PREFIX.size:
                return
            size, header_size, _, _ = PREFIX.unpack(prefix)
            if not header_size <= size <= MAX_HEADER_BYTES + MAX_PAYLOAD_BYTES:
                return
            body = file.read(size)
            if len(body) < size:
                return
            try:
                frames = Decoder().feed(prefix + body)
            except ProtocolError:
                return
            offset += PREFIX.size + size
            yield offset, frames[0]


class Spool:
    """The writer. `append` never fails: while the disk is full, frames wait in memory and `full` is true, so the caller
    must stop producing output; `retry` is to be called now and then."""

    def __init__(self, directory: str, on_frame: Callable[[Frame], None] | None = None) -> None:
        """Open or make it. Each frame already there is shown to `on_frame`, oldest first; a torn tail is cut.

        Raises SpoolDamaged, OSError."""
        self.directory = directory
        self.segments: list[Segment] = []
        self.marks: list[tuple[int, int]] = []  # (src, position where it begins), every 256 KiB
        self.end = 0  # position after the last written frame
        self.last_src = 0  # the last written
        self.acked_src = 0
        self.full = False
        self._acked_end = 0
        self._numbered = 0  # the last given out; larger than last_src only while full
        self._waiting: list[tuple[bytes, bytes]] = []
        self._synced: list[Callable[[], None]] = []
        self._fd = -1
        self._names_changed = True
        self._unsynced_paths: list[str] = []  # finished segments the disk may not have yet
        self._recover(on_frame)

    def _recover(self, on_frame: Callable[[Frame], None] | None) -> None:
        found = _segments(self.directory)
        if found:
            self.last_src = found[0][0] - 1
        for index, (first_src, path) in enumerate(found):
            segment = Segment(path, first_src, self.end)
            for offset, frame in _frames_of(path):
                if frame.src != self.last_src + 1:
                    raise SpoolDamaged(self.last_src, f"next is {frame.src}")
                self._mark(frame.src, segment.base + segment.size)
                self.last_src = frame.src
                segment.size = offset
                if on_frame:
                    on_frame(frame)
            if index + 1 < len(found) and found[index + 1][0] != self.last_src + 1:
                raise SpoolDamaged(self.last_src, f"the next segment begins at {found[index + 1][0]}")
            self.segments.append(segment)
            self.end = segment.base + segment.size
        self._numbered = self.last_src
        if self.segments:
            self._fd = os.open(self.segments[-1].path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            os.ftruncate(self._fd, self.segments[-1].size)

    def _mark(self, src: int, position: int) -> None:
        if not self.marks or position - self.marks[-1][1] >= MARK_EVERY_BYTES:
            self.marks.append((src, position))

    @property
    def oldest_src(self) -> int:
        """The oldest frame still there; last_src + 1 when there is none."""
        return self.segments[0].first_src if self.segments else self.last_src + 1

    @property
    def size_bytes(self) -> int:
        return self.end - self.segments[0].base if self.segments else 0

    @property
    def unacked_bytes(self) -> int:
        """Bytes of frames not acknowledged yet; too high by at most 256 KiB and a frame, exact when all are."""
        return self.end - self._acked_end

    def append(self, verb: str, fields: dict[str, Value], payload: bytes = b"") -> int:
        """Number the frame and write it. Returns its `src`. Raises ProtocolError if it cannot be a frame."""
        head = encode_head(verb, fields, len(payload), self._numbered + 1, int(time() * 1000))
        self._numbered += 1
        if self._waiting or not self._write(head, payload):
            self._waiting.append((head, payload))
            self.full = True
        return self._numbered

    def _write(self, head: bytes, payload: bytes) -> bool:
        size = len(head) + len(payload)
        try:
            if self._fd < 0 or self.segments[-1].size >= SEGMENT_BYTES:
                self._next_segment()
            segment = self.segments[-1]
            written = os.writev(self._fd, [head, payload]) if payload else os.write(self._fd, head)
            if written < size:
                os.ftruncate(self._fd, segment.size)
                return False
        except OSError:  # no space, quota, I/O error: the frame waits, nothing after it overtakes
            return False
        self.last_src += 1
        self._mark(self.last_src, self.end)
        segment.size += size
        self.end += size
        return True

    def _next_segment(self) -> None:
        path = f"{self.directory}/{self.last_src + 1:020d}{SUFFIX}"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, _file_mode(self.directory))
        if self._fd >= 0:
            os.close(self._fd)
            self._unsynced_paths.append(self.segments[-1].path)
        self._fd = fd
        self._names_changed = True
        self.segments.append(Segment(path, self.last_src + 1, self.end))

    def sync(self, then: Callable[[], None]) -> None:
        """Call `then` once everything appended so far is on disk: at once where the disk lets us, else from `retry`."""
        self._synced.append(then)
        self.retry()

    def retry(self) -> None:
        """Write what waits, then sync if someone asked. Quiet when the disk is still full."""
        done = 0
        for head, payload in self._waiting:
            if not self._write(head, payload):
                break
            done += 1
        del self._waiting[:done]
        self.full = bool(self._waiting)
        if self.full or not self._synced:
            return
        try:
            while self._unsynced_paths:
                _sync_path(self._unsynced_paths[-1])
                self._unsynced_paths.pop()
            if self._fd >= 0:
                os.fsync(self._fd)
            if self._names_changed:
                _sync_path(self.directory)
                self._names_changed = False
        except OSError:
            return
        ready, self._synced = self._synced, []
        for then in ready:
            then()

    @property
    def unsynced(self) -> bool:
        """Somebody still waits for the disk: call `retry` again soon."""
        return bool(self._waiting or self._synced)

    def ack(self, src: int) -> None:
        """Frames up to `src` are safe elsewhere. Whole segments of such are removed while the newest 8 MiB stay."""
        src = min(src, self.last_src)
        if src <= self.acked_src:
            return
        self.acked_src = src
        if src == self.last_src:
            self._acked_end = self.end
        else:
            for marked, position in self.marks:
                if marked > src + 1:
                    break
                self._acked_end = max(self._acked_end, position)
        while (
            len(self.segments) > 1
            and self.segments[1].first_src <= src + 1
            and self.end - self.segments[1].base >= KEEP_BYTES
        ):
            try:
                os.unlink(self.segments[0].path)
            except OSError:
                break  # tried again at the next ack
            del self.segments[0]
        oldest = self.oldest_src
        if self.marks and self.marks[0][0] < oldest:
            self.marks = [mark for mark in self.marks if mark[0] >= oldest]

    def position_of(self, src: int) -> int:
        """Where frame `src` begins; `end` for last_src + 1. `src` must be there."""
        if src > self.last_src:
            return self.end
        known_src, position = self.segments[0].first_src, self.segments[0].base
        for marked, at in self.marks:
            if marked > src:
                break
            known_src, position = marked, at
        segment = self.segment_at(position)
        fd = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while known_src < src and position < segment.base + segment.size:
                size = PREFIX.unpack(os.pread(fd, PREFIX.size, position - segment.base))[0]
                position += PREFIX.size + size
                known_src += 1
        finally:
            os.close(fd)
        return position

    def segment_at(self, position: int) -> Segment:
        """The segment that holds the byte at `position`, or the last one when that is the end."""
        for segment in self.segments:
            if position < segment.base + segment.size:
                return segment
        return self.segments[-1]


def _sync_path(path: str) -> None:
    """fsync a directory or a file; one that was trimmed away needs none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class SpoolReader:
    """Reads a spool from outside: while init writes it, or when init is dead. Holds nothing open between calls."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = os.fspath(directory)

    @property
    def oldest_src(self) -> int:
        """The oldest frame still there; 1 when the spool is empty or not there."""
        try:
            found = _segments(self.directory)
        except FileNotFoundError:
            return 1
        return found[0][0] if found else 1

    @property
    def last_src(self) -> int:
        """The newest whole frame; 0 when there is none. Reads the newest segment through."""
        try:
            found = _segments(self.directory)
        except FileNotFoundError:
            return 0
        for _, path in reversed(found):
            last = 0
            for _, frame in _frames_of(path):
                last = frame.src
            if last:
                return last
            # Made just before the crash, nothing whole in it yet: the segment before it has the last one.
        return 0

    @property
    def epoch(self) -> int:
        """The highest owner's epoch init was greeted with; 0 when none."""
        return read_epoch(self.directory)

    def frames(self, after: int = 0) -> Iterator[Frame]:
        """Frames with src > `after`, in order, up to the last whole one. Begins at `oldest_src` when `after` lies
        before it: compare the first frame's src with after + 1 to see a gap. A missing directory is an empty spool.

        Raises SpoolDamaged where a frame in the middle is missing."""
        try:
            found = _segments(self.directory)
        except FileNotFoundError:
            return
        last = 0
        for index, (first_src, path) in enumerate(found):
            if index + 1 < len(found) and found[index + 1][0] <= after + 1:
                continue
            if last and first_src != last + 1:
                raise SpoolDamaged(last, f"the next segment begins at {first_src}")
            last = first_src - 1
            try:
                for _, frame in _frames_of(path):
                    if frame.src != last + 1:
                        raise SpoolDamaged(last, f"next is {frame.src}")
                    last = frame.src
                    if frame.src > after:
                        yield frame
            except FileNotFoundError:
                last = 0  # trimmed while we looked: it was acknowledged, and the next segment begins where it may


def read_epoch(directory: str) -> int:
    """The epoch kept beside the segments; 0 when none was ever written."""
    try:
        with open(directory + "/epoch", "rb") as file:
            text = file.read(20).strip()
    except FileNotFoundError:
        return 0
    return int(text) if text.isdigit() else 0


def write_epoch(directory: str, epoch: int) -> None:
    """On disk when it returns; a crash leaves the old one or the new one, never half. Raises OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    fd = os.open(directory + "/epoch.new", flags, _file_mode(directory))
    try:
        os.write(fd, b"%d\n" % epoch)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(directory + "/epoch.new", directory + "/epoch")
    _sync_path(directory)
