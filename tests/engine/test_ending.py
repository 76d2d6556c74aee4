"""How it ended, and what it left."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import pytest

from orchestrator.engine.ending import ARTIFACTS, artifacts, cancelled, exited, outcome_of, timed_out
from orchestrator.engine.reading import Exit
from orchestrator.execution import Outcome, OutcomeKind, Reason
from orchestrator.workspaces.directory import DirectoryStore

F = OutcomeKind.FAILED


@pytest.mark.parametrize(
    ("end", "kind", "reason"),
    [
        (Exit(exit_code=0), OutcomeKind.SUCCEEDED, Reason.EXIT_CODE),
        (Exit(exit_code=1), F, Reason.EXIT_CODE),
        (Exit(exit_code=78), F, Reason.BAD_CONFIGURATION),
        (Exit(exit_code=127), F, Reason.EXIT_CODE),
        (Exit(exit_code=127, unstarted="No such file"), F, Reason.COMMAND_NOT_FOUND),
        (Exit(signal=9), F, Reason.SIGNAL),
        (Exit(signal=9, oom=True), F, Reason.OOM),
    ],
)
def test_by_itself(end: Exit, kind: OutcomeKind, reason: Reason) -> None:
    outcome = exited(end)
    assert (outcome.kind, outcome.reason) == (kind, reason)
    assert (outcome.exit_code, outcome.signal) == (end.exit_code, end.signal)


@pytest.mark.parametrize("cause", [cancelled("enough"), timed_out(3.0)])
def test_the_first_cause_wins(cause: Outcome) -> None:
    for end in (None, Exit(exit_code=0), Exit(signal=9, oom=True)):
        outcome = outcome_of(cause, end)
        assert (outcome.kind, outcome.reason, outcome.message) == (cause.kind, cause.reason, cause.message)
        assert outcome.exit_code == (end.exit_code if end else None)


async def volume(folder: Path) -> tuple[DirectoryStore, Path]:
    store = DirectoryStore(folder / "slots")
    slot = await store.prepare("sbx_x", inherit=None, seeds=(), disk_bytes=0)
    return store, slot.path / "vol" / "workspace"


@pytest.mark.root
async def test_artifacts_are_regular_files_with_their_digest(short_dir: Path) -> None:
    store, workspace = await volume(short_dir)
    folder = workspace / "artifacts"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "a").write_bytes(b"alpha")
    (folder / "deep" / "er" / "b").write_bytes(b"")
    (folder / "link").symlink_to("/etc/passwd")
    os.mkfifo(folder / "pipe")
    (folder / os.fsdecode(b"\xff")).mkdir()
    listed = await asyncio.to_thread(artifacts, store.files("sbx_x"))
    assert [(e.data["path"], e.data["size_bytes"], e.data["sha256"]) for e in listed] == [
        ("a", 5, hashlib.sha256(b"alpha").hexdigest()),
        ("deep/er/b", 0, hashlib.sha256(b"").hexdigest()),
    ]
    assert {e.source for e in listed} == {"platform"}


@pytest.mark.root
async def test_so_many_and_no_more(short_dir: Path) -> None:
    store, workspace = await volume(short_dir)
    folder = workspace / "artifacts"
    folder.mkdir(exist_ok=True)
    for n in range(ARTIFACTS + 200):
        (folder / f"{n:05}").touch()
    listed = await asyncio.to_thread(artifacts, store.files("sbx_x"))
    assert [e.data["path"] for e in listed] == [f"{n:05}" for n in range(ARTIFACTS)]


@pytest.mark.root
async def test_a_file_in_the_folders_place(short_dir: Path) -> None:
    store, workspace = await volume(short_dir)
    if (workspace / "artifacts").is_dir():
        (workspace / "artifacts").rmdir()
    (workspace / "artifacts").symlink_to("/etc")
    assert await asyncio.to_thread(artifacts, store.files("sbx_x")) == []
