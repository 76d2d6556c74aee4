"""What lies outside the sandboxes, in a network namespace of the test's own: a sink on a documentation address, a model
that follows a script. Nothing in it can reach another network, and nothing outside can reach it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from tests.place import ROOT

ADDRESS: Final = "203.0.113.7"
NAME: Final = "sink.example"
KEY: Final = "sk-canary-7f3a9c1e5b"
_ENTER: Final = 'mount --bind "$0" /etc/hosts && exec "$@"'
_ASK: Final = "import sys, urllib.request; sys.stdout.buffer.write(urllib.request.urlopen(sys.argv[1]).read())"


class Outside:
    """`folder`: short, for its files. `name`: of the namespace."""

    def __init__(self, folder: Path, name: str, script: dict[str, Any]) -> None:
        self._folder = folder
        self._name = name
        self._script = script
        self._running: list[subprocess.Popen[str]] = []
        self.model = ""

    def __enter__(self) -> Outside:
        subprocess.run(["ip", "netns", "add", self._name], check=True)
        try:
            (self._folder / "hosts").write_text(f"127.0.0.1 localhost\n{ADDRESS} {NAME}\n")
            (self._folder / "script.json").write_text(json.dumps(self._script))
            self._do("ip", "link", "set", "lo", "up")
            self._do("ip", "addr", "add", f"{ADDRESS}/32", "dev", "lo")
            self._start("-m", "tests.faults.sink", ADDRESS, "80", str(self._folder / "sink"))
            self.model = self._start(
                "-m", "scripted_model", "--script", str(self._folder / "script.json"), "--key", KEY
            )
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._running:
            process.kill()
            process.communicate()  # closes our end of its pipe
        subprocess.run(["ip", "netns", "delete", self._name], check=True)

    def within(self, *argv: str) -> tuple[str, ...]:
        """The command line that runs `argv` in there, as one process, knowing the sink by its name."""
        enter = ("nsenter", f"--net=/run/netns/{self._name}", "unshare", "--mount")
        return (*enter, "sh", "-c", _ENTER, str(self._folder / "hosts"), *argv)

    def stats(self) -> dict[str, Any]:
        """What the model counted."""
        asked = self._do(sys.executable, "-c", _ASK, f"{self.model}/_stats")
        found: dict[str, Any] = json.loads(asked)
        return found

    def happened(self) -> Counter[str]:
        """How often each path reached the sink."""
        file = self._folder / "sink"
        return Counter(file.read_text().split()) if file.exists() else Counter()

    def _do(self, *argv: str) -> str:
        return subprocess.run(self.within(*argv), check=True, stdout=subprocess.PIPE, text=True).stdout

    def _start(self, *arguments: str) -> str:
        """Its first line."""
        path = f"{ROOT}:{ROOT / 'agent-harness'}"
        process = subprocess.Popen(
            self.within("env", f"PYTHONPATH={path}", sys.executable, *arguments), stdout=subprocess.PIPE, text=True
        )
        self._running.append(process)
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        assert line, "it ended before it listened"
        return line
