"""What the client hands out, in one place, for programs that use it (the command line is one). Nothing of its own."""

from orchestrator.client.answers import HistoryPage
from orchestrator.client.changes import Change
from orchestrator.client.executing import ExecEvent, Exited, Output, Started
from orchestrator.client.following import Batch
from orchestrator.events import Cursor, Event
from orchestrator.wire.bounds import FILE_COUNT, FILES_BYTES
from orchestrator.wire.command import ExecResult
from orchestrator.wire.event import encode as event_as_json
from orchestrator.wire.files import Artifact, DifferenceAnswer, FileEntry, FilePage
from orchestrator.wire.operate import HarnessAnswer, Health, Readiness, Stats
from orchestrator.wire.prune import PruneAnswer
from orchestrator.wire.record import OutcomeAnswer, Record, RecordPage
from orchestrator.wire.snapshot import ExecutionNode, SnapshotAnswer, TreeAnswer
from orchestrator.wire.steering import Receipt
from orchestrator.wire.way_out import IntentAnswer, SpendAnswer

__all__ = [
    "FILES_BYTES",
    "FILE_COUNT",
    "Artifact",
    "Batch",
    "Change",
    "Cursor",
    "DifferenceAnswer",
    "Event",
    "ExecEvent",
    "ExecResult",
    "ExecutionNode",
    "Exited",
    "FileEntry",
    "FilePage",
    "HarnessAnswer",
    "Health",
    "HistoryPage",
    "IntentAnswer",
    "OutcomeAnswer",
    "Output",
    "PruneAnswer",
    "Readiness",
    "Receipt",
    "Record",
    "RecordPage",
    "SnapshotAnswer",
    "SpendAnswer",
    "Started",
    "Stats",
    "TreeAnswer",
    "event_as_json",
]
