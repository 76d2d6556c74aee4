"""What a test run leaves behind when it is interrupted: found by a mark in its environment, and ended.

xdist gives its workers ten seconds when somebody ends a run, and none when the run is killed by what limits its time;
the servers of their fixtures would serve on. Knows no fixture. What is not marked by this very run is not touched.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
import uuid
from pathlib import Path
from typing import Final

MARK: Final = "TESTS_OF_RUN"
_BY_THEMSELVES_S: Final = 3.0
_PATIENCE_S: Final = 20.0
_SANDBOXES: Final = "label=carrel.sandbox"


def mark() -> str:
    """From now on everything that this process starts, and what that starts, can be found again."""
    return os.environ.setdefault(MARK, uuid.uuid4().hex)


def marked(run: str) -> dict[int, str]:
    """Command lines by pid, of all that was started since, but for this process and those above it."""
    wanted, found = f"{MARK}={run}".encode(), {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in (os.getpid(), os.getppid()):
            continue
        try:
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has ended, or is ending
            continue
    return found


def end(run: str) -> list[str]:
    """End them: SIGTERM, then SIGKILL; then the sandboxes of their installations. The command lines of those found,
    but for those that end by themselves once their parent has (multiprocessing's)."""
    until = time.monotonic() + _BY_THEMSELVES_S
    while marked(run) and time.monotonic() < until:
        time.sleep(0.05)
    first = marked(run)
    installations = set(re.findall(r"installation=(t[0-9a-f]{10})\b", "\n".join(first.values())))
    for number, until_s in ((signal.SIGTERM, _PATIENCE_S), (signal.SIGKILL, _PATIENCE_S)):
        for pid in marked(run):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        until = time.monotonic() + until_s
        while marked(run) and time.monotonic() < until:
            time.sleep(0.05)
    for name in installations:
        asked = ["docker", "ps", "-aq", "--filter", _SANDBOXES, "--filter", f"label=carrel.installation={name}"]
        boxes = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split()
        if boxes:
            subprocess.run(["docker", "rm", "-f", *boxes], capture_output=True, check=False)
    return sorted(first.values())
