"""The port of sandboxes: start, watch and end a sealed box. Everything rich goes over the byte stream to its init.

Knows nothing of executions: a sandbox has its own id, and the record says whose it is. No port number, address or label
leaves a driver. Status is three-valued: *unknown* (the engine does not answer) never deletes, ends or restarts
anything.
"""

from __future__ import annotations

from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from orchestrator.execution import Resources


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """What to make. `slot` is the host directory of workspace.Slot (ctl/, spool/, vol/), made before."""

    image: str
    resources: Resources
    slot: Path
    runtime: str = ""  # the engine's default


@dataclass(frozen=True, slots=True)
class Running:
    """It runs. `paused`: by the engine or by a frozen `work` cgroup. `deaf`: by the engine, init too, so nobody answers
    before `unpause`. `oom_kills`: processes of `work` killed for
    memory so far."""

    started_at: datetime | None = None
    paused: bool = False
    deaf: bool = False
    oom_kills: int = 0


@dataclass(frozen=True, slots=True)
class Created:
    """The box is there and never ran: whoever made it did not come to start it. `ensure` does."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The box is there, init is not. Whether the harness ended properly is said by the spool, not by this."""

    exit_code: int
    oom: bool = False
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Absent:
    """A positive "no such sandbox"."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """The engine did not say. Change nothing."""

    error: str


Status = Running | Created | Ended | Absent | Unknown


class Fit(StrEnum):
    APPLIED = "applied"
    DEFERRED = "deferred"
    INFEASIBLE = "infeasible"


@dataclass(frozen=True, slots=True)
class Resized:
    """The answer to a resize: what happened, and what the cgroup says now (None = could not be read)."""

    fit: Fit
    measured: Resources | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What this driver can do on this host."""

    live_resize: bool
    pause: bool
    work_cgroup: bool  # init's children can be frozen, bounded and counted apart from init
    runtimes: tuple[str, ...] = ()
    cpus: float = 0.0
    memory_bytes: int = 0
    notes: tuple[str, ...] = field(default_factory=tuple)


@dataclass(frozen=True, slots=True)
class Found:
    """A sandbox that exists under our installation's label."""

    sandbox_id: str
    created_at: datetime
    running: bool


@dataclass(frozen=True, slots=True)
class Usage:
    """What it uses now, of `work` where there is one. CPU since start."""

    cpu_s: float
    memory_bytes: int
    pids: int


@dataclass(slots=True)
class Duplex:
    """A byte stream to init, both ways, with half-close (`writer.write_eof()`)."""

    reader: StreamReader
    writer: StreamWriter

    async def close(self) -> None:
        """Close both directions. Idempotent; a connection the other side broke is closed too."""
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except OSError:
            return


class SandboxDriver(Protocol):
    """All verbs take the sandbox's id and are idempotent. EngineUnavailable = the engine did not answer: state
    unknown."""

    async def capabilities(self) -> Capabilities:
        """What can be done here. Raises EngineUnavailable."""

    async def ensure(self, spec: SandboxSpec, sandbox_id: str) -> None:
        """It exists and init listens: returns when `connect` will work. There with the same spec → nothing to do,
        whatever became of an earlier call's reply; what `resize` may change is not compared. At most
        `start_concurrency` at once; the others wait their turn.

        Raises SandboxConflict (other spec), ImageMissing, Infeasible, EngineUnavailable, DiskFull; CarrelError for a
        start that failed otherwise, with the engine's words. After a raise nothing of this sandbox is left running,
        except where the engine did not answer."""

    async def observe(self, sandbox_id: str) -> Status:
        """Its state, never raising: errors are Unknown."""

    async def list(self) -> Sequence[Found]:
        """Everything under our installation's label, of any age. Raises EngineUnavailable."""

    def watch(self) -> AsyncIterator[str]:
        """Ids of sandboxes something happened to. Hints only: may drop or repeat; observe. Ends when the engine goes
        away."""

    async def connect(self, sandbox_id: str) -> Duplex:
        """A new byte stream to init; many at once. Raises LinkLost when nobody listens."""

    async def enclose(self, sandbox_id: str, spawner_pid: int) -> bool:
        """Move init's spawner (its pid as init sees it) into the sandbox's `work` cgroup, bounded below the
        container's own limits, made if missing. False where this host has no such cgroup (not root): then pause and
        kill fall back."""

    async def resize(self, sandbox_id: str, resources: Resources) -> Resized:
        """Other CPU, memory or pids limits for a running one, read back from its cgroup."""

    async def pause(self, sandbox_id: str) -> None:
        """Freeze everything but init (all of it where there is no `work`). Returns when nothing runs any more."""

    async def unpause(self, sandbox_id: str) -> None:
        """The opposite."""

    async def usage(self, sandbox_id: str) -> Usage | None:
        """None when it does not run."""

    async def remove(self, sandbox_id: str) -> None:
        """Kill it, thaw `work`, remove it and its cgroups. Gone when this returns; absent already is fine.
        Raises EngineUnavailable."""
