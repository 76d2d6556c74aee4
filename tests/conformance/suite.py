"""Runs the public conformance suite of Durable Streams against a real `carrel api`: its own process, its own store.

`python -m tests.conformance.suite` prints `N passed, M failed` as its last line and fails unless every default test
passed; `test_durable_streams.py` is the same under pytest. Node is build/node's (`make node`) or the PATH's, at least
20. What npm installs lies in build/conformance and is kept until the lock changes: the second run needs no network.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parents[1]
BUILD: Final = ROOT / "build" / "conformance"
FILES: Final = ("package.json", "package-lock.json", "vitest.config.mjs", "conformance.test.mjs")
#: What the pinned suite has without its optional parts.
DEFAULT_TESTS: Final = 332
#: The only part that is optional: webhooks to subscribers, which this server does not offer.
OPTIONAL: Final = "Reserved subscription APIs"
OLDEST_NODE: Final = 20
_START_LIMIT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Result:
    """What the suite found. `failures`: names and messages; `skipped`: tests that did not run, of other parts than
    OPTIONAL."""

    passed: int
    failures: Sequence[str]
    skipped: Sequence[str]

    @property
    def ok(self) -> bool:
        return self.passed == DEFAULT_TESTS and not self.failures and not self.skipped

    def __str__(self) -> str:
        return f"{self.passed} passed, {len(self.failures)} failed"


@dataclass(frozen=True, slots=True)
class Serving:
    """A running api: where it listens, its admin token, its process."""

    url: str
    token: str
    process: asyncio.subprocess.Process


def node_folder() -> Path:
    """Where node and npm are. Raises RuntimeError with what to do."""
    for folder in (ROOT / "build" / "node" / "bin", *(Path(part) for part in os.get_exec_path())):
        if (folder / "node").is_file() and (folder / "npm").is_file():
            told = subprocess.run([folder / "node", "--version"], capture_output=True, text=True, check=True).stdout
            if int(told.removeprefix("v").partition(".")[0]) >= OLDEST_NODE:
                return folder
    raise RuntimeError(f"the conformance suite needs Node {OLDEST_NODE} or newer with npm: run `make node`")


def install(node: Path) -> None:
    """build/conformance as the lock says; nothing is fetched when it is that already. Safe to call at once by many."""
    BUILD.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(b"".join((HERE / name).read_bytes() for name in FILES[:2])).hexdigest()
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name in FILES:
            shutil.copyfile(HERE / name, BUILD / name)
        stamp = BUILD / "installed"
        if stamp.exists() and stamp.read_text() == digest:
            return
        stamp.unlink(missing_ok=True)
        # Nobody's scripts run. Not `npm ci`: it refuses a lock that lacks optional packages of other platforms, and not
        # every registry has all of those. `install` takes what is locked as it is locked, by its integrity, too.
        command = [str(node / "npm"), "install", "--ignore-scripts", "--no-save", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=BUILD, env=_environment(node), capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"npm install failed in {BUILD}:\n{done.stderr[-4000:]}")
        stamp.write_text(digest)


@asynccontextmanager
async def server(folder: Path) -> AsyncIterator[Serving]:
    """`carrel api` on a free port with an embedded store of its own in `folder`. It is asked to end, and must; or it
    was killed inside."""
    command = [
        *(sys.executable, "-m", "orchestrator", "api", "--data-dir", str(folder), "--port", "0"),
        *("--host", "127.0.0.1", "--redis-url", ""),
        # The suite asks once as a page of this origin would; no engine is needed to keep streams.
        *("--set", "allowed_origins=https://example.com", "--set", "driver=scripted"),
        *("--set", "workspace_store=directory"),
        *("--set", "installation=conformance", "--set", "log_format=json"),
    ]
    paths = [str(ROOT / part) for part in (".", "sandbox-image", "agent-harness")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CARREL_")}
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, env=environment, stderr=asyncio.subprocess.PIPE, limit=1 << 20
    )
    assert process.stderr is not None
    said: list[str] = []
    try:
        async with asyncio.timeout(_START_LIMIT_S):
            url = ""
            while not url:
                line = (await process.stderr.readline()).decode()
                if not line:
                    raise RuntimeError(f"carrel api ended at its start:\n{''.join(said)}")
                said.append(line)
                url = _url_in(line)
        draining = asyncio.ensure_future(_drain(process.stderr, said))
        yield Serving(url, (folder / "admin-token").read_text().strip(), process)
        if process.returncode is not None:
            return
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(_START_LIMIT_S):
            await process.wait()
        await draining
        if process.returncode:
            raise RuntimeError(f"carrel api ended with {process.returncode}:\n{''.join(said[-50:])}")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def run(*only: str) -> Result:
    """Install, serve, judge. `only`: vitest arguments, such as `-t "SSE Mode"`."""
    node = node_folder()
    await asyncio.to_thread(install, node)
    with tempfile.TemporaryDirectory(prefix="crl-", dir="/tmp") as name:
        async with server(Path(name)) as api:
            report = Path(name) / "report.json"
            process = await asyncio.create_subprocess_exec(
                *(node / "node", BUILD / "node_modules" / "vitest" / "vitest.mjs", "run"),
                *("--reporter=json", f"--outputFile={report}", *only),
                cwd=BUILD,
                env={**_environment(node), "CONFORMANCE_URL": api.url, "CONFORMANCE_TOKEN": api.token},
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,  # it forks: its workers would go on for ever without it
            )
            try:
                _, errors = await process.communicate()
            finally:
                if process.returncode is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    await process.wait()
            if not report.exists():
                raise RuntimeError(f"vitest wrote no report:\n{errors.decode()[-4000:]}")
            return _read(json.loads(report.read_text()))


def _read(report: dict[str, Any]) -> Result:
    tests = [test for file in report["testResults"] for test in file["assertionResults"]]
    failures = [f"{t['fullName']}: {' '.join(t['failureMessages'])[:600]}" for t in tests if t["status"] == "failed"]
    # A file that could not even be collected has no tests to fail.
    failures += [
        f"{f['name']}: {f['message'][:600]}"
        for f in report["testResults"]
        if f["status"] == "failed" and not f["assertionResults"]
    ]
    passed = sum(t["status"] == "passed" for t in tests)
    skipped = [
        t["fullName"] for t in tests if t["status"] not in {"passed", "failed"} and OPTIONAL not in t["fullName"]
    ]
    return Result(passed, failures, skipped)


def _url_in(line: str) -> str:
    try:
        found = json.loads(line)
    except ValueError:
        return ""
    return str(found.get("url", ""))


async def _drain(lines: asyncio.StreamReader, said: list[str]) -> None:
    async for line in lines:
        said.append(line.decode())
        del said[:-200]


def _environment(node: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CARREL_", "VITEST"))}
    return {**kept, "PATH": f"{node}{os.pathsep}{os.environ.get('PATH', '')}", "CI": "1", "NO_COLOR": "1"}


def main() -> int:
    result = asyncio.run(run(*sys.argv[1:]))
    for failure in result.failures:
        print(f"FAILED {failure}")
    if sys.argv[1:]:  # a part was asked for: the rest is skipped
        print(result)
        return 1 if result.failures else 0
    for name in result.skipped:
        print(f"SKIPPED {name}")
    print(result)
    return 0 if result.ok else 1


if __name__ == "__main__":
    sys.exit(main())
