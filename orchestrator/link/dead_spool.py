"""What a dead init left on disk, as frames. Knows the files of a spool; opens no connection."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sandbox_init.frames import MAX_FRAME_BYTES, PREFIX, Decoder, Frame, ProtocolError


class DeadSpool:
    """The frames an init left on disk, read after its death. Blocking: read it in a thread.

    Reading it while init lives is harmless but may miss the newest: a frame that is not whole yet is taken for torn.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def frames(self, after: int) -> Iterator[Frame]:
        """Frames with src > `after` that are whole, in order. Where the oldest kept is beyond after+1, a `gap` frame
        with `oldest_src` comes first, as init itself would say it. A torn end is cut silently: its bytes were never
        acknowledged to anybody. Raises OSError as reading does (a missing folder is an empty spool)."""
        expected = after + 1
        segments = self._segments()
        for at, (_first, path) in enumerate(segments):
            if at + 1 < len(segments) and segments[at + 1][0] <= expected:
                continue  # all of it was asked not to be told
            for frame in self._whole(path):
                if frame.src < expected:
                    continue
                if frame.src > expected:
                    yield Frame("gap", {"oldest_src": frame.src})
                yield frame
                expected = frame.src + 1

    def started(self) -> bool:
        """True when the harness was started under this spool, as far as can be told: trimmed frames began with it."""
        segments = self._segments()
        if not segments:
            return False
        if segments[0][0] > 1:
            return True
        return any(frame.verb == "started" for frame in self._whole(segments[0][1]))

    def _segments(self) -> list[tuple[int, Path]]:
        try:
            names = [path for path in self.folder.iterdir() if path.suffix == ".frames" and path.stem.isdigit()]
        except FileNotFoundError:
            return []
        return sorted((int(path.stem), path) for path in names)

    @staticmethod
    def _whole(path: Path) -> Iterator[Frame]:
        decoder = Decoder()
        try:
            with path.open("rb") as file:
                while len(head := file.read(PREFIX.size)) == PREFIX.size:
                    size = min(PREFIX.unpack(head)[0], MAX_FRAME_BYTES)
                    # One frame at a time: at bytes that are none, all frames before them are still told.
                    yield from decoder.feed(head + file.read(size))
        except (ProtocolError, FileNotFoundError):  # a page the host never wrote; a segment trimmed meanwhile
            return
