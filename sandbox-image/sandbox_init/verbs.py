"""The desk: what each verb of the protocol needs, and what it sets going. PROTOCOL.md as code.

Checks roles, epochs and fields; everything it does is one call into another room. Knows nothing of sockets' bytes, of
pipes or of files.
"""

from __future__ import annotations

import os

from sandbox_init.exec import STDIN_BYTES, Exec
from sandbox_init.frames import OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION, Frame, ProtocolError
from sandbox_init.harness import INBOX_BYTES
from sandbox_init.refusal import Refusal
from sandbox_init.spool import read_epoch, write_epoch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox_init.connections import Connection, Hall
    from sandbox_init.frames import Value
    from sandbox_init.gate import Gate
    from sandbox_init.harness import Harness
    from sandbox_init.loop import Loop
    from sandbox_init.spool import Spool

MIN_SPOOL_LIMIT_BYTES = 256 << 10
SPOOL_LIMIT_BYTES = 64 << 20
MAX_ID_CHARACTERS = 160  # a client's 128 and the owner's own prefix
_MAX = (1 << 62) - 1
_SIGKILL = 9
DEFAULT_ENV = {
    b"PATH": b"/state/home/.local/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    b"HOME": b"/state/home",
    b"LANG": b"C.UTF-8",
}


class Desk:
    """One for all connections."""

    def __init__(
        self,
        loop: Loop,
        hall: Hall,
        gate: Gate,
        spool: Spool,
        harness: Harness,
        reap: Callable[[int, Callable[[int], None]], None],
        shutdown: Callable[[int], None],
        open_outlet: Callable[[int], None],
        measure: Callable[[], dict[str, Value]],
        sandbox_id: str,
    ) -> None:
        self._loop = loop
        self._hall = hall
        self._gate = gate
        self._spool = spool
        self._harness = harness
        self._reap = reap
        self._shutdown = shutdown
        self._open_outlet = open_outlet
        self._measure = measure
        self._sandbox_id = sandbox_id
        self._booted_ms = int(os.stat("/proc/self").st_ctime * 1000)
        self._epoch = read_epoch(spool.directory)
        self._owner: Connection | None = None
        self._parts: list[bytes] = []  # of message _parts_n, whose rest follows
        self._parts_n = 0
        self._cgroup = False
        self._execs: list[Exec] = []
        self._harness_env: dict[bytes, bytes] = {}  # only here: it may hold secrets
        harness.on_held = self._held_changed
        harness.on_refused = self._start_failed
        self._verbs: dict[str, Callable[[Connection, Frame], None]] = {
            "gate_open": self._gate_open,
            "stat": self._stat,
            "exec": self._exec,
            "exec_stdin": self._exec_stdin,
            "exec_eof": self._exec_eof,
            "exec_signal": self._exec_signal,
        }
        self._owner_verbs: dict[str, Callable[[Connection, Frame], None]] = {
            "start": self._start,
            "message": self._message,
            "eof": lambda _connection, _frame: harness.no_more_messages(),
            "signal": self._signal,
            "ack": self._ack,
            "kill": lambda _connection, _frame: kill_all(),
            "quiesce": self._quiesce,
            "shutdown": lambda _connection, frame: shutdown(_number(frame, "grace_s", 0, 86_400, 10)),
        }

    def receive(self, connection: Connection, frame: Frame) -> None:
        """Raises Refusal."""
        if not connection.role:
            self._hello(connection, frame)
        elif frame.verb in self._verbs:
            self._verbs[frame.verb](connection, frame)
        elif frame.verb not in self._owner_verbs:
            raise Refusal("unknown_verb", f"protocol {PROTOCOL_VERSION} has no verb {frame.verb}")
        elif connection.role != "owner":
            raise Refusal("not_owner", f"{frame.verb} is for the owner; this connection is a viewer's")
        else:
            self._owner_verbs[frame.verb](connection, frame)

    def left(self, connection: Connection) -> None:
        if self._owner is connection:
            self._owner = None
        if connection.exec:
            connection.exec.abandon()
            connection.exec = None

    # -- coming in -------------------------------------------------------------------------------------------------

    def _hello(self, connection: Connection, frame: Frame) -> None:
        if frame.verb != "hello":
            raise Refusal("hello_first", "the first frame must be hello", closing=True)
        try:
            protocol = _number(frame, "protocol", 0, _MAX)
            role = _choice(frame, "role", ("owner", "viewer"))
            epoch = _number(frame, "epoch", 1, _MAX) if role == "owner" else 0
            after = _number(frame, "after", 0, _MAX) if frame.fields.get("after") is not None else -1
        except Refusal as refusal:
            raise Refusal("bad_hello", refusal.why, closing=True, **refusal.data) from None
        if not OLDEST_PROTOCOL_VERSION <= protocol <= PROTOCOL_VERSION:
            raise Refusal(
                "protocol",
                f"init speaks {OLDEST_PROTOCOL_VERSION} to {PROTOCOL_VERSION}, not {protocol}",
                closing=True,
                oldest=OLDEST_PROTOCOL_VERSION,
                newest=PROTOCOL_VERSION,
            )
        if role == "owner":
            self._take_over(connection, epoch)
        connection.role = role
        connection.answer(self.hello())
        if after >= 0:
            connection.stream(after)

    def _take_over(self, connection: Connection, epoch: int) -> None:
        if epoch < self._epoch:
            raise Refusal("stale_epoch", f"an owner of epoch {self._epoch} was here", closing=True, epoch=self._epoch)
        if epoch > self._epoch:
            try:
                write_epoch(self._spool.directory, epoch)
            except OSError as problem:
                raise Refusal("disk", f"the epoch could not be written: {problem}", closing=True) from None
            self._epoch = epoch
        self._parts_n = 0  # it will send the whole message again
        before, self._owner = self._owner, connection
        connection.epoch = epoch
        if before:
            before.refuse(Refusal("superseded", f"an owner of epoch {epoch} came", closing=True, epoch=epoch))

    def hello(self) -> Frame:
        harness, spool = self._harness, self._spool
        return Frame(
            "hello",
            {
                "protocol": PROTOCOL_VERSION,
                "sandbox_id": self._sandbox_id,
                "epoch": self._epoch,
                "state": harness.state,
                "started": harness.started,
                "ended": harness.state == "ended",
                "last_src": spool.last_src,
                "oldest_src": spool.oldest_src,
                "acked_src": spool.acked_src,
                "accepted_n": harness.accepted_n,
                "delivered_n": harness.delivered_n,
                "held": bool(harness.held_why),
                "gate": "open" if self._gate.open else "closed",
                "spawner_pid": self._gate.spawner_pid,
                "harness_pid": harness.pid,
                "assignment": harness.assignment,
                "booted_ms": self._booted_ms,
            },
        )

    # -- for anyone ------------------------------------------------------------------------------------------------

    def _gate_open(self, connection: Connection, frame: Frame) -> None:
        if not self._gate.open:
            self._cgroup = _flag(frame, "cgroup")
            self._gate.unlock()
        connection.answer(Frame("gate", {"open": True, "cgroup": self._cgroup}))

    def _stat(self, connection: Connection, _: Frame) -> None:
        fields: dict[str, Value] = {
            "spool_bytes": self._spool.size_bytes,
            "unacked_bytes": self._spool.unacked_bytes,
            "unread_stdin_bytes": self._harness.unread_stdin_bytes,
            "queued_stdin_bytes": self._harness.queued_bytes,
            "connections": len(self._hall.connections),
            "execs": sum(not one.exec.done for one in self._hall.connections if one.exec),
        }
        connection.answer(Frame("stat", {**fields, **self._measure()}))

    def _exec(self, connection: Connection, frame: Frame) -> None:
        if connection.exec and not connection.exec.done:
            raise Refusal("exec_busy", "this connection's exec has not ended")
        if not self._gate.spawner_pid:
            raise Refusal("no_spawner", self._gate.problem)

        def answer(reply: Frame) -> None:
            connection.answer(reply)
            if connection.backlog:
                command.process.hold()  # until the client has read

        command = Exec(
            self._loop,
            self._gate,
            self._reap,
            answer,
            _text(frame, "id"),
            _number(frame, "timeout_s", 0, 7 * 86_400, 0),
            _flag(frame, "detach", False),
        )
        argv, env, cwd = _program(frame, self._harness_env or DEFAULT_ENV)
        connection.exec = command
        try:
            command.start(argv, env, cwd, _flag(frame, "stdin", False))
        except (OSError, ProtocolError) as problem:
            connection.exec = None
            raise Refusal("exec_failed", str(problem)) from None

    def _exec_stdin(self, connection: Connection, frame: Frame) -> None:
        if not connection.exec:
            return
        process = connection.exec.process

        def pace() -> None:
            connection.pause_reading(process.queued_bytes > STDIN_BYTES)

        process.write(frame.payload, pace)
        pace()

    def _exec_eof(self, connection: Connection, _: Frame) -> None:
        if connection.exec:
            connection.exec.process.close_stdin()

    def _exec_signal(self, connection: Connection, frame: Frame) -> None:
        if connection.exec:
            connection.exec.signal(_signum(frame))

    # -- for the owner ---------------------------------------------------------------------------------------------

    def _start(self, _: Connection, frame: Frame) -> None:
        if self._harness.state == "lost":
            raise Refusal("lost", "a harness was started here by an init that is gone")
        if not self._gate.spawner_pid:
            raise Refusal("no_spawner", self._gate.problem)
        argv, env, cwd = _program(frame, DEFAULT_ENV)
        assignment = frame.fields.get("assignment") or {}
        if not isinstance(assignment, dict):
            raise Refusal("bad_field", "assignment must be a mapping", field="assignment")
        fields: dict[str, Value] = {
            "stdin": _choice(frame, "stdin", ("none", "text", "jsonl")),
            "output": _choice(frame, "output", ("auto", "bytes", "jsonl"), "auto"),
            "spool_limit_bytes": _number(frame, "spool_limit_bytes", MIN_SPOOL_LIMIT_BYTES, _MAX, SPOOL_LIMIT_BYTES),
            "inbox_base": _number(frame, "inbox_base", 0, _MAX, 0),
            "assignment": assignment,
        }
        stdin_first = _bytes_or_none(frame, "stdin_first")
        outlet_port = _number(frame, "outlet_port", 0, 65_535, 0)
        self._harness_env = self._harness_env or env  # a repeated start changes nothing
        if outlet_port and not self._harness.started:
            try:
                self._open_outlet(outlet_port)
            except OSError as problem:
                raise Refusal("start_failed", f"cannot listen on 127.0.0.1:{outlet_port}: {problem}") from None
        try:
            self._harness.start(argv, env, cwd, fields, (_task_file(frame), frame.payload), stdin_first)
        except (OSError, ProtocolError) as problem:
            raise Refusal("start_failed", str(problem)) from None

    def _start_failed(self, refusal: Refusal) -> None:
        if self._owner:
            self._owner.refuse(refusal, "start")

    def _message(self, _: Connection, frame: Frame) -> None:
        n, message_id, more = _number(frame, "n", 1, _MAX), _text(frame, "id"), _flag(frame, "more", False)
        if n != self._parts_n:
            self._parts_n, self._parts = n, []
        self._parts.append(frame.payload)
        if sum(len(part) for part in self._parts) > INBOX_BYTES:
            self._parts_n = 0
            raise Refusal("inbox_full", f"a message may have {INBOX_BYTES} bytes", n=n)
        if not more:
            whole, self._parts_n, self._parts = b"".join(self._parts), 0, []
            self._harness.message(n, message_id, whole)

    def _signal(self, _: Connection, frame: Frame) -> None:
        self._harness.signal(_text(frame, "id"), _signum(frame), _choice(frame, "to", ("group", "all"), "group"))

    def _ack(self, _: Connection, frame: Frame) -> None:
        self._spool.ack(_number(frame, "src", 0, _MAX))
        self._harness.consider_holding()

    def _quiesce(self, connection: Connection, frame: Frame) -> None:
        quiesce_id = _text(frame, "id") if frame.fields.get("id") is not None else ""

        def quiesced() -> None:
            answer: dict[str, Value] = {
                "id": quiesce_id,
                "src": self._spool.last_src,
                "inbox": self._harness.read_n(),
                "unread_stdin_bytes": self._harness.unread_stdin_bytes,
            }
            connection.answer(Frame("quiesced", answer), after_stream=True)

        self._harness.drain()
        self._spool.sync(quiesced)

    def _held_changed(self) -> None:
        why = self._harness.held_why
        fields: dict[str, Value] = {"spool_bytes": self._spool.size_bytes, "why": why}
        for connection in self._hall.streams():
            connection.answer(Frame("held" if why else "released", fields))


def kill_all() -> None:
    """SIGKILL to everything but PID 1. One call is enough: a fork under way when it comes fails or dies with it."""
    try:
        os.kill(-1, _SIGKILL)
    except ProcessLookupError:
        return


# -- fields ----------------------------------------------------------------------------------------------------------


def _bad(field: str, what: str) -> Refusal:
    return Refusal("bad_field", f"{field} {what}", field=field)


def _number(frame: Frame, field: str, low: int, high: int, default: int | None = None) -> int:
    value = frame.fields.get(field, default)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise _bad(field, f"must be an integer from {low} to {high}")
    return value


def _flag(frame: Frame, field: str, default: bool | None = None) -> bool:
    value = frame.fields.get(field, default)
    if not isinstance(value, bool):
        raise _bad(field, "must be true or false")
    return value


def _text(frame: Frame, field: str) -> str:
    value = frame.fields.get(field)
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_ID_CHARACTERS:
        raise _bad(field, f"must be text of 1 to {MAX_ID_CHARACTERS} characters")
    return value


def _choice(frame: Frame, field: str, choices: tuple[str, ...], default: str | None = None) -> str:
    value = frame.fields.get(field, default)
    if value not in choices:
        raise _bad(field, "must be one of " + ", ".join(choices))
    return str(value)


def _signum(frame: Frame) -> int:
    signum = _number(frame, "signum", 1, 64)
    if signum in (32, 33):
        raise _bad("signum", "32 and 33 are the C library's own")
    return signum


def _bytes(value: Value, field: str) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    if not isinstance(data, bytes) or b"\0" in data:
        raise _bad(field, "must hold text or bytes without NUL")
    return data


def _bytes_or_none(frame: Frame, field: str) -> bytes:
    value = frame.fields.get(field)
    if value is not None and not isinstance(value, bytes):
        raise _bad(field, "must be bytes")
    return value or b""


def _task_file(frame: Frame) -> str:
    """Directly in /run, where only root writes: elsewhere uid 1000 could leave a link for root to follow."""
    path = frame.fields.get("task_file") or "/run/task"
    name = path[5:] if isinstance(path, str) and path.startswith("/run/") else ""
    if not name or "/" in name or "\0" in name or name in (".", "..", "carrel"):
        raise _bad("task_file", "must be /run/<name>")
    return str(path)


def _program(frame: Frame, base: dict[bytes, bytes]) -> tuple[list[bytes], dict[bytes, bytes], bytes]:
    """argv, environment over `base`, working directory."""
    argv = frame.fields.get("argv")
    if not isinstance(argv, list) or not argv:
        raise _bad("argv", "must be a list with at least the program")
    given = frame.fields.get("env") or {}
    if not isinstance(given, dict):
        raise _bad("env", "must be a mapping")
    env = dict(base)
    env.pop(b"PWD", None)
    for name, value in given.items():
        key = _bytes(name, "env")
        if not key or b"=" in key:
            raise _bad("env", "has a name that is empty or holds =")
        env[key] = _bytes(value, "env")
    cwd = _bytes(frame.fields.get("cwd") or "/workspace", "cwd")
    # /proc/self/fd/N as a working directory was a way out of containers (CVE-2024-21626); nobody needs one there.
    folder = cwd + b"/"
    if not cwd.startswith(b"/") or folder.replace(b"//", b"/").startswith(b"/proc/") or b"/../" in folder:
        raise _bad("cwd", "must be an absolute path without .., outside /proc")
    # The way that was named, not /slot/vol/… where its links lead: shells believe PWD where it is the same directory.
    env.setdefault(b"PWD", cwd.rstrip(b"/") or b"/")
    program = [_bytes(item, "argv") for item in argv]
    if not program[0]:
        raise _bad("argv", "names no program")
    return program, env, cwd
