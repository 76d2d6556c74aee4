"""The harness's one life, written down: what it prints, what it is told, how it ends, as frames of the spool.

Here is decided when the harness is held back, how its output is cut into frames, and which message is written when.
Knows nothing of connections or epochs: whoever calls has been let in already.
"""

from __future__ import annotations

import os
from time import monotonic

from sandbox_init.frames import MAX_PAYLOAD_BYTES, Frame, encode_head
from sandbox_init.process import READ_BYTES, Process
from sandbox_init.refusal import Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox_init.frames import Value
    from sandbox_init.gate import Gate
    from sandbox_init.loop import Loop
    from sandbox_init.spool import Spool

LINE_BYTES = MAX_PAYLOAD_BYTES - READ_BYTES  # a longer line is cut: what is held plus one read must fit a frame
INBOX_BYTES = 8 << 20
_BLANK = b" \t\r\n"
_SIGKILL = 9
_SIGSTOP = 19
_SIGCONT = 18
_LARGEST_PID = 1 << 22


class Harness:
    """States: idle → running → ended; lost when the spool holds a start that this init did not make."""

    def __init__(
        self,
        loop: Loop,
        gate: Gate,
        spool: Spool,
        reap: Callable[[int, Callable[[int], None]], None],
        oom_kills: Callable[[], int],
    ) -> None:
        self.state = "idle"
        self.assignment: dict[str, Value] = {}
        self.accepted_n = 0
        self.delivered_n = 0
        self.limit_bytes = 64 << 20
        self.held_why = ""
        self.on_held: Callable[[], None] = lambda: None  # held_why has changed
        self.on_refused: Callable[[Refusal], None] = lambda _: None  # the start did not work; it may be tried again
        self.on_ended: Callable[[], None] = lambda: None  # the exit frame is on disk
        self._loop = loop
        self._gate = gate
        self._spool = spool
        self._reap = reap
        self._oom_kills = oom_kills
        self._process: Process | None = None
        self._pending: dict[str, Value] = {}  # the start that has been accepted and not recorded yet
        self._stdin_wanted = True
        self._stdin_first = b""
        self._waiting: list[tuple[int, str, bytes]] = []  # messages before the process is there
        self._waiting_bytes = 0
        self._no_more_messages = False
        self._undelivered_noted = False
        self._inbox_ends: list[tuple[int, int]] = []  # (n, offset in stdin after it), for what was read
        self._read_n = 0
        self._signalled: set[str] = set()
        self._jsonl: bool | None = None
        self._line = bytearray()
        self._began = 0.0
        self._oom_kills_before = 0

    def recover(self, frame: Frame) -> None:
        """A frame found in the spool at init's start: somebody has lived here before."""
        if frame.verb == "started":
            self.state = "lost"
            self.assignment = frame.fields.get("assignment") or {}
            self.accepted_n = self.delivered_n = int(frame.fields["inbox_base"])
        elif frame.verb == "exit":
            self.state = "ended"
        elif frame.verb == "delivered":
            self.accepted_n = self.delivered_n = int(frame.fields["n"])

    @property
    def pid(self) -> int:
        return self._process.pid if self._process and self._process.alive else 0

    @property
    def started(self) -> bool:
        return self.state != "idle"

    @property
    def queued_bytes(self) -> int:
        """Accepted, not in its stdin yet."""
        return self._waiting_bytes + (self._process.queued_bytes if self._process else 0)

    @property
    def unread_stdin_bytes(self) -> int:
        return self._process.unread_stdin_bytes() if self._process else 0

    # -- its start -------------------------------------------------------------------------------------------------

    def start(
        self,
        argv: list[bytes],
        env: dict[bytes, bytes],
        cwd: bytes,
        fields: dict[str, Value],
        task: tuple[str, bytes],
        stdin_first: bytes,
    ) -> None:
        """`fields`: stdin, output, spool_limit_bytes, inbox_base and assignment, validated. `task`: a file and what to
        write to it. Once; then ignored silently.

        Raises OSError, ProtocolError: as Process.start."""
        if self.started or self._process:
            return
        self._pending = {"argv": argv, "cwd": cwd, **fields}
        encode_head("started", {"pid": _LARGEST_PID, **self._pending}, 0)  # what cannot be recorded is not started
        _write_task(*task)
        self._stdin_first = stdin_first
        if self.accepted_n == 0:
            self.accepted_n = self.delivered_n = self._read_n = fields["inbox_base"]
        self._stdin_wanted = fields["stdin"] != "none"
        self.limit_bytes = fields["spool_limit_bytes"]
        self.assignment = fields["assignment"]
        self._jsonl = {"auto": None, "bytes": False, "jsonl": True}[fields["output"]]
        process = Process(self._loop, self._gate, self._reap)
        process.start(self, argv, env, cwd, stdin=self._stdin_wanted)
        self._process = process

    def spawned(self, pid: int) -> None:
        """It exists and waits. From the moment this frame is written nobody will ever start another."""
        self.state = "running"
        self._oom_kills_before = self._oom_kills()
        self._spool.append("started", {"pid": pid, **self._pending})
        self._spool.sync(self._go)

    def _go(self) -> None:
        if not self._process or self.state != "running":
            return  # killed while the disk was waited for
        self._began = monotonic()
        self._process.go()
        if not self._stdin_wanted:
            self._waiting.clear()
            self._waiting_bytes = 0
        if self._stdin_first:
            self._process.write(self._stdin_first)
            self._stdin_first = b""
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        for n, message_id, data in waiting:
            self._write(n, message_id, data)
        if self._no_more_messages:
            self._process.close_stdin()

    def not_spawned(self, why: str) -> None:
        self._process = None
        self.on_refused(Refusal("start_failed", f"the harness could not be started: {why}"))

    def not_executed(self, error: int) -> None:
        self._spool.append("note", {"what": "exec_failed", "errno": error, "why": os.strerror(error)})

    # -- what it prints --------------------------------------------------------------------------------------------

    def output(self, stream: str, data: bytes) -> None:
        if stream == "stderr":
            self._spool.append("output", {"stream": stream}, data)
        elif self._jsonl is False:
            self._spool.append("output", {"stream": "stdout"}, data)
        else:
            self._line += data
            if self._jsonl is None:
                self._choose_mode()
            self._cut_lines(len(data))
        self.consider_holding()

    def _choose_mode(self) -> None:
        """`{` as the first byte that is not blank means JSON lines."""
        text = self._line.lstrip(_BLANK)
        if text or len(self._line) >= READ_BYTES:
            self._decide(text.startswith(b"{"))

    def _decide(self, jsonl: bool) -> None:
        self._jsonl = jsonl
        self._spool.append("mode", {"output": "jsonl" if jsonl else "bytes"})

    def _cut_lines(self, fresh_bytes: int) -> None:
        if self._jsonl is None:
            return
        if not self._jsonl:
            self._flush_line()
            return
        end = self._line.rfind(b"\n", max(0, len(self._line) - fresh_bytes)) + 1
        if end:
            self._spool.append("output", {"stream": "stdout"}, bytes(memoryview(self._line)[:end]))
            del self._line[:end]
        elif len(self._line) >= LINE_BYTES:
            self._flush_line(partial=True)

    def _flush_line(self, partial: bool = False) -> None:
        """What is held of stdout, as it is. `partial`: the rest of its line follows in the next stdout frame."""
        if self._line:
            self._spool.append(
                "output", {"stream": "stdout", "partial": True} if partial else {"stream": "stdout"}, bytes(self._line)
            )
            self._line.clear()

    def drain(self) -> None:
        """Everything it has printed until now becomes frames, a half line included."""
        if self._process:
            self._process.drain()
        self._flush_line(partial=bool(self._jsonl))

    def consider_holding(self) -> None:
        """Hold it back, or let it go on, as the spool stands now."""
        if self._spool.full:
            why = "disk"
        elif self._spool.unacked_bytes > (self.limit_bytes * 3 // 4 if self.held_why else self.limit_bytes):
            why = "limit"
        else:
            why = ""
        if why == self.held_why:
            return
        self.held_why = why
        self.on_held()
        if self._process:
            if why:
                self._process.hold()
            else:
                self._process.release()

    # -- what it is told -------------------------------------------------------------------------------------------

    def message(self, n: int, message_id: str, data: bytes) -> None:
        """Written to its stdin once, in order. Raises Refusal; an n already accepted is ignored."""
        if n <= self.accepted_n:
            return
        if n != self.accepted_n + 1:
            raise Refusal("out_of_order", "messages come without gaps", n=n, expected=self.accepted_n + 1)
        if self.state in ("ended", "lost"):
            raise Refusal(self.state, "the harness takes no more messages", n=n)
        if (self._process or self.started) and not self._stdin_wanted:
            raise Refusal("stdin_none", "this harness was started with stdin: none", n=n)
        if self._no_more_messages or (self.state == "running" and self._process and not self._process.stdin_open):
            raise Refusal("stdin_closed", "the harness's stdin is closed", n=n)
        if self.queued_bytes + len(data) > INBOX_BYTES:
            raise Refusal("inbox_full", f"{INBOX_BYTES} bytes wait to be read; send again after `delivered`", n=n)
        self.accepted_n = n
        if self._began:
            self._write(n, message_id, data)
        else:
            self._waiting.append((n, message_id, data))
            self._waiting_bytes += len(data)

    def _write(self, n: int, message_id: str, data: bytes) -> None:
        assert self._process
        self._process.write(data, lambda: self._delivered(n, message_id))

    def _delivered(self, n: int, message_id: str) -> None:
        assert self._process
        self.delivered_n = n
        self._inbox_ends.append((n, self._process.written_bytes))
        self._spool.append("delivered", {"n": n, "id": message_id})
        if len(self._inbox_ends) >= 64:
            self.read_n()

    def read_n(self) -> int:
        """The highest n whose bytes the harness has taken out of the pipe."""
        if self._process and self._inbox_ends:
            read = self._process.written_bytes - self._process.unread_stdin_bytes()
            done = 0
            while done < len(self._inbox_ends) and self._inbox_ends[done][1] <= read:
                self._read_n = self._inbox_ends[done][0]
                done += 1
            del self._inbox_ends[:done]
        return self._read_n

    def no_more_messages(self) -> None:
        self._no_more_messages = True
        if self._began and self._process:
            self._process.close_stdin()

    def stdin_closed(self) -> None:
        self._note_undelivered()

    def _note_undelivered(self) -> None:
        if self.accepted_n > self.delivered_n and not self._undelivered_noted:
            self._undelivered_noted = True
            self._spool.append("note", {"what": "stdin_closed", "undelivered_from": self.delivered_n + 1})

    # -- signals and the end ---------------------------------------------------------------------------------------

    def signal(self, signal_id: str, signum: int, to: str) -> None:
        """Once per id, recorded. Raises Refusal when the harness does not run: then the id may be used again."""
        if signal_id in self._signalled:
            return
        if self.state != "running":
            raise Refusal("not_running", f"the harness is {self.state}", id=signal_id)
        self._signalled.add(signal_id)
        sent = True
        try:
            if to == "all":
                os.kill(-1, signum)
                if signum == _SIGSTOP and self._gate.spawner_pid:
                    os.kill(self._gate.spawner_pid, _SIGCONT)  # it ignores all others
            elif self.pid and self._began:
                os.killpg(self.pid, signum)
            else:
                sent = False  # its group's number may belong to somebody else by now
        except ProcessLookupError:
            sent = False
        self._spool.append("signalled", {"id": signal_id, "signum": signum, "to": to, "sent": sent})

    def ended(self, code: int, orphans_cut: bool) -> None:
        self._flush_line()
        self._note_undelivered()
        oom_kills = self._oom_kills() - self._oom_kills_before
        if oom_kills > 0:
            self._spool.append("note", {"what": "oom", "oom_kills": oom_kills})
        if orphans_cut:
            self._spool.append("note", {"what": "orphans_cut"})
        how: dict[str, Value] = {"code": code} if code >= 0 else {"signal": -code}
        how["oom_hint"] = oom_kills > 0 and code == -_SIGKILL
        how["duration_ms"] = int((monotonic() - self._began) * 1000) if self._began else 0
        how["inbox"] = self.read_n()
        self._spool.append("exit", how)
        self.state = "ended"
        self._spool.sync(lambda: self.on_ended())


def _write_task(path: str, task: bytes) -> None:
    """Anew, for anyone to read. The verb's desk has seen to it that uid 1000 cannot have put anything in its place."""
    if os.path.lexists(path):
        os.unlink(path)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
    try:
        view = memoryview(task)
        while view:
            view = view[os.write(fd, view) :]
        os.fchmod(fd, 0o444)
    finally:
        os.close(fd)
