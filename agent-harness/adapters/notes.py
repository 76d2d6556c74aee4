"""What an adapter must know after a restart: its program's session, calls that have no end, messages not taken in yet.

A file of JSON lines in STATE_DIR, each on disk before the next thing is done; what it holds is a fold of them. A torn
last line was never said. The program's own session file says what it remembers; this says what we promised.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Message:
    """From a person, or the task. `mode`: `steer` joins the work under way, `follow_up` comes after it."""

    id: str
    text: str
    mode: str = "steer"


class Notes:
    """`session`: what the program is to be resumed with, "" = it never began. `calls`: begun and without an end, id →
    title. `untaken`: messages the program has not taken in, in order. `asked`: the last attempt ended waiting."""

    def __init__(self, path: Path) -> None:
        self.session = ""
        self.calls: dict[str, str] = {}
        self.untaken: dict[str, Message] = {}
        self.asked = False
        self._known: set[str] = set()
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = 0
        with contextlib.suppress(FileNotFoundError):
            data = path.read_bytes()
            whole = data.rfind(b"\n") + 1
            for line in data[:whole].splitlines():
                self._fold(json.loads(line))
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        os.ftruncate(self._fd, whole)
        os.lseek(self._fd, whole, os.SEEK_SET)

    def began(self, session: str) -> None:
        self._append(session=session)

    def call(self, id: str, title: str) -> None:
        self._append(call=id, title=title[:2000])

    def called(self, id: str) -> None:
        self._append(called=id)

    def heard(self, message: Message) -> bool:
        """False when it was heard before: the platform delivers again what it does not know to be safe."""
        if message.id in self._known:
            return False
        self._append(message=message.id, text=message.text, mode=message.mode)
        return True

    def taken(self, id: str) -> None:
        self._append(taken=id)

    def asks(self, asked: bool) -> None:
        if asked != self.asked:
            self._append(asked=asked)

    def _append(self, **note: Any) -> None:
        os.write(self._fd, json.dumps(note).encode() + b"\n")
        os.fsync(self._fd)
        self._fold(note)

    def _fold(self, note: dict[str, Any]) -> None:
        if "session" in note:
            self.session = note["session"]
        elif "call" in note:
            self.calls[note["call"]] = note["title"]
        elif "called" in note:
            self.calls.pop(note["called"], None)
        elif "message" in note:
            self._known.add(note["message"])
            self.untaken[note["message"]] = Message(note["message"], note["text"], note["mode"])
        elif "taken" in note:
            self.untaken.pop(note["taken"], None)
        elif "asked" in note:
            self.asked = note["asked"]
