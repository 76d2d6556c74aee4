"""One harness at its desk: the real program as a process of its own, before the real scripted model server, in a
directory of its own. It can be spoken to, listened to, signalled, killed and started again."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agent_harness.wrapper import descendants
from scripted_model import ScriptedModel
from scripted_model.script import read

PROGRAM = Path(__file__).parents[2] / "agent-harness" / "agent_harness" / "__main__.py"
PATIENCE_S = 60.0
APIS = ("anthropic-messages", "openai-chat", "openai-responses")

Turn = Mapping[str, Any]
Event = dict[str, Any]


def bash(command: str, **more: Any) -> Turn:
    """A turn that runs one command."""
    return {"calls": [{"name": "bash", "arguments": {"command": command, **more}}]}


def use(name: str, **arguments: Any) -> Turn:
    """A turn that uses one tool."""
    return {"calls": [{"name": name, "arguments": arguments}]}


class Desk:
    """`with Desk(folder, turns) as desk:`; everything it started is gone afterwards."""

    def __init__(self, folder: Path, turns: Sequence[Turn], *, api: str = APIS[0], task: str = "Do it.") -> None:
        self.folder = folder
        self.workspace = folder / "workspace"
        self.state = folder / "state"
        self.workspace.mkdir()
        self.api = api
        self.model = ScriptedModel(read({"turns": list(turns)}))
        self.environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "MODEL": "scripted",
            "MODEL_API": api,
            "ANTHROPIC_BASE_URL": self.model.url,
            "OPENAI_BASE_URL": f"{self.model.url}/v1",
            "ANTHROPIC_API_KEY": "none",
            "STATE_DIR": str(self.state),
            "WORKSPACE": str(self.workspace),
            "EXECUTION_ID": "exe_test",
            "EXECUTION_STARTED_AT": "2026-01-31T12:00:00Z",
            "TASK": task,
            "MESSAGE_WAIT_S": str(PATIENCE_S),
        }
        self.events: list[Event] = []
        self.odd_lines: list[bytes] = []
        self.program = [sys.executable, "-I", str(PROGRAM)]
        self.process: subprocess.Popen[bytes] | None = None
        self._heard = threading.Condition()
        self._readers: list[threading.Thread] = []

    def __enter__(self) -> Desk:
        self.model.start()
        return self

    def __exit__(self, *gone: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()
        self.end_commands()
        for reader in self._readers:
            reader.join(PATIENCE_S)
        self.model.close()

    # -- its life -----------------------------------------------------------------------------------------------------

    def start(self, **environ: str) -> Desk:
        """Once more, in the same state."""
        self.process = subprocess.Popen(
            self.program,
            env={**self.environ, **environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.workspace,
            start_new_session=True,
        )
        for target in (self._read_events, self._read_errors):
            reader = threading.Thread(target=target, args=(self.process,), daemon=True)
            reader.start()
            self._readers.append(reader)
        return self

    def say(self, text: str, **more: str) -> None:
        """A message to its stdin."""
        self.write(json.dumps({"type": "user_message", "text": text, **more}).encode() + b"\n")

    def write(self, data: bytes) -> None:
        assert self.process is not None and self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def no_more(self) -> None:
        """The end of its stdin."""
        assert self.process is not None and self.process.stdin is not None
        self.process.stdin.close()

    def signal(self, number: int) -> None:
        """To its process group, as init does."""
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """SIGKILL to the harness alone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(PATIENCE_S)
        self._hang_up()

    def end(self) -> int:
        """Its exit code, once it is there."""
        assert self.process is not None
        code = self.process.wait(PATIENCE_S)
        self._hang_up()
        for reader in self._readers:
            reader.join(PATIENCE_S)
        return code

    def _hang_up(self) -> None:
        assert self.process is not None and self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def run(self, **environ: str) -> int:
        """Start, and to the end."""
        self.start(**environ)
        return self.end()

    def end_commands(self) -> None:
        """Every wrapper that is left, with all below it, at one moment: as a container does that is destroyed. A
        wrapper that outlived its command for an instant would write down how it ended."""
        for pid in self.wrappers():
            _send(pid, signal.SIGSTOP)
            below: list[int] = []
            while new := [number for number in descendants(pid) if number not in below]:
                for number in new:
                    _send(number, signal.SIGSTOP)
                below += new
            for number in (pid, *below):
                _send(number, signal.SIGKILL)

    def wrappers(self) -> list[int]:
        """Pids of the wrappers of this desk's commands."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    line = (entry / "cmdline").read_bytes()
                except OSError:
                    continue
                if f"{self.state}/calls/".encode() in line and b"wrapper.py" in line:
                    found.append(int(entry.name))
        return found

    # -- what is seen --------------------------------------------------------------------------------------------------

    def wait_for(self, kind: str, where: Callable[[Event], bool] = lambda event: True, times: int = 1) -> Event:
        """The n-th such event, once it is there."""

        def found() -> list[Event]:
            return [event for event in self.events if event["type"] == kind and where(event)]

        with self._heard:
            assert self._heard.wait_for(lambda: len(found()) >= times, PATIENCE_S), (kind, self.events[-5:])
            return found()[times - 1]

    def of(self, kind: str) -> list[Event]:
        return [event for event in self.events if event["type"] == kind]

    def result(self) -> Event:
        """The last result told."""
        return self.of("result")[-1]

    def journal(self) -> list[dict[str, Any]]:
        """The whole lines of it."""
        data = (self.state / "journal.jsonl").read_bytes()
        return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]

    def results(self) -> dict[str, dict[str, Any]]:
        """The first result of each call."""
        found: dict[str, dict[str, Any]] = {}
        for record in self.journal():
            if record["type"] == "tool_result" and record["state"] != "late":
                found.setdefault(record["id"], record)
        return found

    def text(self, key: str) -> str:
        """What the model was told of a call."""
        return str(self.results()[key]["text"])

    def requests(self) -> list[Any]:
        """Model requests, in order, as the server has them."""
        return [request for request in self.model.counts.requests() if "number" in request]

    def said_to_model(self, at: int = -1) -> str:
        """A request's body, as text."""
        return json.dumps(self.requests()[at]["body"], ensure_ascii=False)

    def _read_events(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                try:
                    event = json.loads(line)
                    event["type"]
                except (ValueError, KeyError, TypeError):
                    self.odd_lines.append(line)
                    continue
                with self._heard:
                    self.events.append({**event, "heard_at": time.monotonic()})
                    self._heard.notify_all()

    def _read_errors(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr is not None
        with process.stderr:
            for line in process.stderr:
                self.odd_lines.append(line)


def eventually(true: Callable[[], bool]) -> None:
    """Returns once it is."""
    until = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
