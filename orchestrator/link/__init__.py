"""Frames to one init: the owner's line, a viewer's line, and what a dead init left on disk.

Speaks the protocol of `sandbox-image/PROTOCOL.md` over any Duplex. Knows who may say what and which answer belongs to
which question; does not know what an execution is, where the bytes travel, or what becomes of a frame.
"""

from orchestrator.link.dead_spool import DeadSpool
from orchestrator.link.line import Hello, Refusal, another_owns
from orchestrator.link.owner import OwnerLink
from orchestrator.link.viewer import ExecExit, ExecOutput, ExecStarted, ViewerLink
from sandbox_init.frames import Frame

__all__ = [
    "DeadSpool",
    "ExecExit",
    "ExecOutput",
    "ExecStarted",
    "Frame",
    "Hello",
    "OwnerLink",
    "Refusal",
    "ViewerLink",
    "another_owns",
]
