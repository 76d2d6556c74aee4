"""Stdin, heard while the loop works: every message is in the journal before its receipt is given. Knows nothing of
what becomes of it.

Lines are `{"type": "user_message" | "task" | "cancel", "id", "text", "mode"}`; a line that is no such object is a
message itself. The end of stdin is the end of messages, nothing else.

Whoever leaves must not have read what nobody will remember: reading and writing down are one step under a lock, and
`close` takes that lock for good.
"""

from __future__ import annotations

import json
import os
import select
import signal
import threading
from collections.abc import Callable

from agent_harness.conversation import Conversation
from agent_harness.journal import Journal
from agent_harness.speak import Voice

LINE_BYTES = 8 << 20


class Ears:
    """One thread, from `open` on."""

    def __init__(self, journal: Journal, conversation: Conversation, voice: Voice, cancel: Callable[[], None]) -> None:
        self.ended = False  # no more messages will come
        self._journal = journal
        self._conversation = conversation
        self._voice = voice
        self._cancel = cancel
        self._reading = threading.Lock()
        self._rest = b""
        self._nameless = 0

    def open(self) -> None:
        """Begin to listen."""
        # Every signal is the main thread's: one taken here would not wake it from a read.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            threading.Thread(target=self._listen, name="ears", daemon=True).start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def close(self) -> None:
        """Hear no more: what is not read yet stays in the pipe, for the next life."""
        self._reading.acquire()

    def reopen(self) -> None:
        """After a `close` that was too early."""
        self._reading.release()

    def _listen(self) -> None:
        poll = select.poll()
        poll.register(0, select.POLLIN | select.POLLHUP)
        while not self.ended:
            try:
                poll.poll()
                with self._reading:
                    if poll.poll(0):
                        self._read()
            except OSError:  # stdin was never open, or the journal's disk is full: the loop will meet that itself
                self._end()

    def _read(self) -> None:
        data = os.read(0, 65536)
        if not data:
            if self._rest:
                self._hear(self._rest)
            self._end()
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._hear(line)
        if len(self._rest) > LINE_BYTES:
            self._voice.say("error", text=f"a message of more than {LINE_BYTES} bytes was dropped")
            self._rest = b""

    def _end(self) -> None:
        with self._conversation.arrived:
            self.ended = True
            self._conversation.arrived.notify_all()

    def _hear(self, line: bytes) -> None:
        text = line.decode(errors="replace").strip("\r")
        if not text.strip():
            return
        try:
            said = json.loads(text)
        except (ValueError, RecursionError):
            said = None
        kind = said.get("type") if isinstance(said, dict) else None
        if kind == "ack":
            return
        if kind == "cancel":
            self._cancel()
            return
        if kind not in ("user_message", "task") or not isinstance(said.get("text"), str):
            said = {"text": text}
        self._nameless += 1
        id = str(said.get("id") or f"line-{os.getpid()}-{self._nameless}")
        mode = "follow_up" if said.get("mode") == "follow_up" else "steer"
        # A task on stdin is the one in TASK, said again; where there is none, it is the task.
        with self._conversation.arrived:
            known = id in self._conversation.messages
            has_task = any(message["source"] == "task" for message in self._conversation.messages.values())
        if not known and not (kind == "task" and has_task):
            source = "task" if kind == "task" else "person"
            self._journal.append("user_message", id=id, text=said["text"], source=source, mode=mode)
        if said.get("id"):
            self._voice.say("ack", id=id)
