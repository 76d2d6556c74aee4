"""Commands that outlive the harness: started under a detached wrapper, found again by their folder. Knows no model, no
journal and no tool.

`calls/<key>/`: see wrapper.py. What can be said of a call, from its folder alone:
    no `pid`       it has not run; taking `pid` ourselves makes sure that it never will
    `rc`           it is over, and this is how
    `pid`, alive   it runs
    `pid`, dead    it was cut off: it may have run wholly, partly or not at all
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agent_harness import wrapper

_STARTED: list[subprocess.Popen[bytes]] = []  # by this life, to be reaped when they end
WRAPPER = Path(wrapper.__file__)
SHORTENED_BYTES = 64 * 1024  # of an old output, its beginning
BEGIN_S = 10.0  # at most, for a wrapper to begin: 30 ms where nothing is wrong
#: So that nothing waits for a key to be pressed, and no output is a drawing.
QUIET = {
    "PAGER": "cat",
    "GIT_PAGER": "cat",
    "MANPAGER": "cat",
    "SYSTEMD_PAGER": "cat",
    "LESS": "-FRX",
    "TERM": "dumb",
    "NO_COLOR": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_EDITOR": "false",
    "DEBIAN_FRONTEND": "noninteractive",
    "PIP_PROGRESS_BAR": "off",
    "PIP_NO_INPUT": "1",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "TQDM_DISABLE": "1",
    "npm_config_progress": "false",
    "npm_config_yes": "true",
    "PYTHONUNBUFFERED": "1",
    "HISTFILE": "/dev/null",
}


@dataclass(frozen=True)
class Ending:
    """`code` < 0 = the signal that ended it. `why`: "", timed_out, killed, not_started."""

    code: int
    why: str
    size_bytes: int
    dropped_bytes: int


class Call:
    """One, by its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None  # where this life started it

    def start(self, command: str, *, cwd: Path, timeout_s: float, tty: bool, environ: Mapping[str, str]) -> None:
        """Returns once it has begun, or could not. Raises OSError: no process is to be had, or no disk."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "command").write_bytes(command.encode(errors="surrogatepass"))
        ask = {"cwd": str(cwd), "timeout_s": timeout_s, "tty": tty, "shell": "bash"}
        (self.folder / "ask.json").write_text(json.dumps(ask))
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", str(WRAPPER), str(self.folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={**environ, **QUIET, **({"TERM": "xterm"} if tty else {})},
            start_new_session=True,
        )
        _STARTED[:] = [process for process in (*_STARTED, self._process) if process.poll() is None]
        until = time.monotonic() + BEGIN_S
        while not (self.folder / "pid").exists() and self._process.poll() is None and time.monotonic() < until:
            time.sleep(0.002)

    def never_ran(self) -> bool:
        """True: it has not run and will not, in this folder."""
        try:
            if not self.folder.is_dir() or wrapper.claim(str(self.folder), to_run=False):
                return True
            return bool(json.loads((self.folder / "pid").read_bytes())["pid"] == 0)  # an earlier life saw to it
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def ending(self) -> Ending | None:
        """None: it is not over, or was cut off."""
        try:
            said = json.loads((self.folder / "rc").read_bytes())
        except (OSError, ValueError):
            return None
        return Ending(said["code"], said["why"], said["bytes"], said["dropped"])

    def alive(self) -> bool:
        """True while its wrapper is, which is longer than the command where that left something in the background."""
        return self._wrapper() != 0

    def wait(self, timeout_s: float) -> Ending | None:
        """Until it is over, at most so long; None also when it was cut off, or never came to run."""
        until = time.monotonic() + timeout_s
        look_at = time.monotonic() + 0.5
        pause_s = 0.002
        while (ending := self.ending()) is None:
            now = time.monotonic()
            if now >= until:
                return None
            if now >= look_at:
                look_at = now + 0.5
                if self.gone():
                    return self.ending()  # it may have written it since
            time.sleep(min(pause_s, until - now))
            pause_s = min(pause_s * 1.5, 0.05)
        return ending

    def gone(self) -> bool:
        """True: nobody will ever write how it ended."""
        if not (self.folder / "pid").exists():
            return self._process is not None and self._process.poll() is not None
        return not self.alive()

    def kill(self) -> None:
        """End it and all that came of it; `wait` then says when. One that has not begun never will."""
        if not self.never_ran() and (pid := self._wrapper()):
            with contextlib.suppress(OSError):  # it has ended since
                os.kill(pid, signal.SIGTERM)

    def type(self, text: str) -> None:
        """Raises OSError: it has no terminal, or does not read."""
        fd = os.open(self.folder / "in", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode(errors="replace"))
        finally:
            os.close(fd)

    def cwd(self) -> Path | None:
        """Where the command was when it ended, if it said so and that is still there."""
        try:
            where = Path((self.folder / "cwd").read_bytes().decode(errors="surrogateescape").removesuffix("\n"))
        except OSError:
            return None
        return where if where.is_absolute() and where.is_dir() else None

    def _wrapper(self) -> int:
        try:
            said = json.loads((self.folder / "pid").read_bytes())
            pid = int(said["pid"])
            return pid if said["started"] and wrapper.started(pid) == said["started"] else 0
        except (OSError, ValueError, KeyError, TypeError):
            return 0


def trim(calls: Path, limit_bytes: int) -> None:
    """Shorten the oldest outputs of commands that are over until all together take no more."""
    found = []
    for folder in calls.iterdir():
        with contextlib.suppress(OSError):
            at = (folder / "out").stat()
            found.append((at.st_mtime, at.st_size, folder))
    total = sum(size for _, size, _ in found)
    for _, size, folder in sorted(found):
        if total <= limit_bytes:
            return
        if size > SHORTENED_BYTES and (folder / "rc").exists():
            with contextlib.suppress(OSError):
                os.truncate(folder / "out", SHORTENED_BYTES)
                total -= size - SHORTENED_BYTES
