"""What every adapter stands on: the voice, the notes, the environment; and a tool call's life in both. Knows no
program."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.notes import Notes
from adapters.voice import Voice

IN_DOUBT = "it may have run wholly, partly or not at all; it was not run again"
NO_MODEL = "MODEL is not set: name a model at the submit, or set the installation's default model"


@dataclass
class Stage:
    """Of one attempt."""

    voice: Voice
    notes: Notes
    environment: Mapping[str, str]

    @property
    def resumed(self) -> bool:
        """There was an attempt before."""
        return self.environment.get("EXECUTION_RESUMED") == "1"

    @property
    def state(self) -> Path:
        """STATE_DIR."""
        return Path(self.environment.get("STATE_DIR", "/state"))

    def task(self) -> str:
        """However long it is."""
        with contextlib.suppress(KeyError, OSError):
            return Path(self.environment["TASK_FILE"]).read_text(errors="replace")
        return self.environment.get("TASK", "")

    def doubt(self) -> dict[str, str]:
        """The calls of an earlier attempt that have no end, id → title; each is told, and is over with that."""
        doubted = dict(self.notes.calls)
        for id in doubted:
            self.called(id, "in_doubt", text=IN_DOUBT)
        return doubted

    def call(self, id: str, title: str, **fields: Any) -> None:
        """A tool call has begun."""
        self.notes.call(id, title)
        self.voice.say("tool_call", id=id, title=title, status="in_progress", **fields)

    def called(self, id: str, status: str, **fields: Any) -> None:
        """It has ended: completed, failed, cancelled, in_doubt."""
        if id in self.notes.calls:
            # Said first: a crash between the two says it again as in doubt, and does not lose it.
            self.voice.say("tool_call_update", id=id, status=status, **fields)
            self.notes.called(id)

    def taken(self, id: str) -> None:
        """A person's message is in the program's conversation."""
        if (message := self.notes.untaken.get(id)) is not None:
            self.voice.say("user_message", id=id, text=message.text, mode=message.mode)
            self.notes.taken(id)


def stage_of(name: str) -> Stage:
    """Of this process, for the adapter of that name."""
    environment = dict(os.environ)
    state = Path(environment.get("STATE_DIR", "/state"))
    return Stage(Voice(), Notes(state / "adapter" / f"{name}.jsonl"), environment)
