"""A line for looking, and for commands beside the harness. Knows no epoch and moves no state."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

from orchestrator.errors import Conflict
from orchestrator.link.line import Hello, Line
from orchestrator.sandbox import Duplex


@dataclass(frozen=True, slots=True)
class ExecStarted:
    """The command runs; `pid` as the sandbox sees it."""

    pid: int


@dataclass(frozen=True, slots=True)
class ExecOutput:
    """Bytes it printed, as read."""

    stream: Literal["stdout", "stderr"]
    data: bytes


@dataclass(frozen=True, slots=True)
class ExecExit:
    """It ended: by `exit_code` or by `signal`. `error`: why it could not be started (code 126 or 127, as a shell
    has it)."""

    exit_code: int | None
    signal: int | None
    timed_out: bool = False
    error: str = ""


class ViewerLink:
    """A line for looking and for commands beside the harness; needs no epoch, moves no state. As a context manager it
    closes itself."""

    def __init__(self, line: Line, hello: Hello) -> None:
        self.hello = hello
        self._line = line

    @classmethod
    async def open(cls, duplex: Duplex) -> ViewerLink:
        """Greet as a viewer. Raises LinkLost, LinkRefused."""
        line = Line(duplex)
        try:
            return cls(line, await line.greet({"role": "viewer"}))
        except BaseException:
            await line.close()
            raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def exec(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "/workspace",
        stdin: bool = False,
        timeout_s: int | None = None,
        detach: bool = False,
    ) -> AsyncGenerator[ExecStarted | ExecOutput | ExecExit, None]:
        """One command as the harness's user: its pid, its output as it comes, its end (`detach`: only the pid). Closing
        the line ends a command that was not detached. One at a time per line.

        Raises Conflict where init refuses it (no sandbox to run it in any more), LinkLost, LinkRefused."""
        fields: dict[str, Any] = {"id": "exec", "argv": list(argv), "cwd": cwd, "stdin": stdin, "detach": detach}
        if env:
            fields["env"] = dict(env)
        if timeout_s is not None:
            fields["timeout_s"] = timeout_s
        await self._line.send("exec", fields)
        while True:
            for frame in await self._line.receive():
                said = frame.fields
                if frame.verb == "exec_started":
                    yield ExecStarted(int(said["pid"]))
                    if detach:
                        return
                elif frame.verb == "exec_output":
                    yield ExecOutput("stderr" if said.get("stream") == "stderr" else "stdout", frame.payload)
                elif frame.verb == "exec_exit":
                    yield ExecExit(
                        said.get("code"), said.get("signal"), bool(said.get("timed_out")), str(said.get("error") or "")
                    )
                    return
                elif frame.verb == "refused":
                    raise Conflict(
                        f"the command was refused: {said.get('why') or said.get('code')}", why=said.get("code")
                    )

    async def exec_stdin(self, data: bytes) -> None:
        """Bytes for the running command, at most 1 MiB a call."""
        await self._line.send("exec_stdin", payload=data)

    async def exec_eof(self) -> None:
        """No more input for it."""
        await self._line.send("exec_eof")

    async def exec_signal(self, signum: int) -> None:
        """To its process group."""
        await self._line.send("exec_signal", {"signum": signum})

    async def stat(self) -> Mapping[str, Any]:
        """What init counts. Not while a command runs on this line."""
        await self._line.send("stat")
        while True:
            for frame in await self._line.receive():
                if frame.verb == "stat":
                    return frame.fields

    async def close(self) -> None:
        """Idempotent."""
        await self._line.close()
