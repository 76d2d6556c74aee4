"""One agent, and the person who gives it work and looks at what comes of it."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from scripted_model import ScriptedModel
from tests.place import Place


@dataclass
class Desk:
    """A server whose only provider is the script."""

    agent: str
    image: str
    place: Place
    model: ScriptedModel

    def submit(self, script: str, *flags: str) -> str:
        """An execution on the script of this name; its own name."""
        ref = f"{script}-{uuid.uuid4().hex[:6]}"
        given = ("--harness", self.agent, "--image", self.image, "--name", ref, *flags)
        self.place.ok("run", "-d", *given, f"[[script:{script}]] Do it.")
        return ref

    def told(self, ref: str, kind: str) -> list[dict[str, Any]]:
        """The data of all its events of that type."""
        return [event["data"] for event in self.place.events(ref) if event["type"] == kind]

    def said(self, ref: str) -> str:
        """All that it said to people."""
        return "".join(one["text"] for one in self.told(ref, "agent_message_chunk"))

    def finished(self, ref: str) -> str:
        """Its outcome once it has ended; the end of its history is in the error where that is no success."""
        done = self.place.carrel("wait", ref)
        assert done.returncode == 0, (done.stderr, self.place.events(ref)[-12:])
        return str(self.place.record(ref)["outcome"]["kind"])

    def asked(self, script: str) -> list[str]:
        """The bodies of the model's requests on a script, in order."""
        mark = f"[[script:{script}]]"
        return [str(one["body"]) for one in self.model.counts.requests() if mark in str(one["body"])]
