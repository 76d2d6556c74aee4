"""`read`, `write` and `edit`: files by path. Knows nothing of when a call is made, or made again.

A write is prepared first, with the digests of before and after, and then applied by rename: at any moment the file is
one or the other, so whoever comes after a crash can tell which.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from agent_harness.output import readable
from agent_harness.providers.shape import Tool
from agent_harness.tools.shape import EFFECT, ToolError

LINES = 2_000
LINE_CHARS = 2_000
READ_BYTES = 48_000
FILE_BYTES = 64 << 20
ABSENT = "absent"

_PATH = {"type": "string", "description": "Absolute, or relative to the current directory of bash."}

READ = Tool(
    "read",
    f"Read a text file, with line numbers; at most {LINES} lines at once. Of a directory: its entries.",
    {
        "type": "object",
        "properties": {
            "path": _PATH,
            "offset": {"type": "integer", "minimum": 1, "maximum": 10**9, "description": "The first line. Default 1."},
            "limit": {"type": "integer", "minimum": 1, "maximum": LINES, "description": f"Lines. Default {LINES}."},
        },
        "required": ["path"],
    },
)
WRITE = Tool(
    "write",
    "Write a whole file; folders above it are made, what was in it is gone. To change a part of a file use edit.",
    {
        "type": "object",
        "properties": {"path": _PATH, "content": {"type": "string"}, "effect": EFFECT},
        "required": ["path", "content"],
    },
)
EDIT = Tool(
    "edit",
    "Replace a text in a file. `old` must be in it exactly once, to the letter, white space included; take as many "
    "lines around it as that needs.",
    {
        "type": "object",
        "properties": {
            "path": _PATH,
            "old": {"type": "string", "description": "Without the line numbers that `read` shows."},
            "new": {"type": "string"},
            "effect": EFFECT,
        },
        "required": ["path", "old", "new"],
    },
)


@dataclass(frozen=True)
class Change:
    """A write that is prepared: sha256 before (ABSENT: no file) and after."""

    path: Path
    content: bytes
    before: str
    after: str
    said: str  # when it is done

    def now(self) -> str:
        """The digest of what is there now."""
        return digest_of(self.path)

    def apply(self) -> None:
        """Whole or not at all. Raises ToolError."""
        # One name for every try: what a crash left is taken away by the next.
        part = self.path.parent / f".{self.path.name[:200]}.part"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            try:
                with open(fd, "wb") as file:
                    file.write(self.content)
                    if self.before != ABSENT:
                        os.fchmod(file.fileno(), stat.S_IMODE(self.path.stat().st_mode))
                    file.flush()
                    os.fsync(file.fileno())
                part.replace(self.path)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
        except OSError as problem:
            raise ToolError(f"{self.path}: {problem.strerror}. Nothing was written.") from None


def prepare_write(path: Path, content: str) -> Change:
    """Raises ToolError."""
    path = _resolved(path)
    data = content.encode(errors="replace")
    before = digest_of(path)
    lines = content.count("\n") + (not content.endswith("\n") and content != "")
    verb = "Wrote" if before == ABSENT else "Replaced"
    return Change(path, data, before, _sha256(data), f"{verb} {path}: {lines} lines.")


def prepare_edit(path: Path, old: str, new: str) -> Change:
    """Raises ToolError: not there, not text, not exactly once."""
    path = _resolved(path)
    data = _bytes_of(path)
    wanted, by = old.encode(errors="replace"), new.encode(errors="replace")
    if not wanted:
        raise ToolError("`old` is empty. To make a file use write.")
    if b"\r\n" in data and b"\r" not in wanted:  # a model never sees the \r
        wanted, by = wanted.replace(b"\n", b"\r\n"), by.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    if wanted == by:
        raise ToolError("`old` and `new` are the same. Nothing was changed.")
    found = _places(data, wanted)
    if not found:
        raise ToolError(f"`old` is not in {path}, to the letter. Nothing was changed. Read that part of it again.")
    if len(found) > 1:
        lines = ", ".join(str(data.count(b"\n", 0, at) + 1) for at in found[:10])
        raise ToolError(
            f"`old` is in {path} more than once, at lines {lines}. Nothing was changed. Take more of the lines around "
            "the one you mean."
        )
    content = data[: found[0]] + by + data[found[0] + len(wanted) :]
    line = data.count(b"\n", 0, found[0]) + 1
    return Change(path, content, _sha256(data), _sha256(content), f"Edited {path} at line {line}.")


def read(path: Path, offset: int, limit: int) -> str:
    """Numbered lines, or what is in a directory. Raises ToolError."""
    if path.is_dir():
        entries = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in path.iterdir())
        more = [f"[... {len(entries) - LINES} more]"] if len(entries) > LINES else []
        return "\n".join([*entries[:LINES], *more]) or "(an empty directory)"
    data = _bytes_of(path)
    if b"\0" in data[:8192]:
        raise ToolError(f"{path} is no text ({len(data)} bytes). Look at it with bash, as with `xxd | head`.")
    if not data:
        return "(an empty file)"
    lines = data.decode(errors="replace").splitlines()
    shown: list[str] = []
    room = READ_BYTES
    for number in range(offset, min(offset + limit, len(lines) + 1)):
        line = lines[number - 1]
        line = (
            line if len(line) <= LINE_CHARS else f"{line[:LINE_CHARS]} [... {len(line) - LINE_CHARS} more characters]"
        )
        room -= len(line) + 8
        if room < 0:
            break
        shown.append(f"{number:6}\t{readable(line.encode())}")
    if not shown:
        raise ToolError(f"{path} has {len(lines)} lines.")
    end = offset + len(shown) - 1
    more_lines = [f"[{len(lines) - end} more lines; go on with offset {end + 1}]"] if end < len(lines) else []
    return "\n".join(shown + more_lines)


def digest_of(path: Path) -> str:
    """sha256 of a file's content, or ABSENT. Raises ToolError for what is no file or too big."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return ABSENT
    except OSError as problem:
        raise ToolError(f"{path}: {problem.strerror}.") from None
    return _sha256(_bytes_of(path))


def _bytes_of(path: Path) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO would have us wait for ever
        with open(fd, "rb") as file:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise ToolError(f"{path} is no file.")
            if found.st_size > FILE_BYTES:
                raise ToolError(f"{path} has {found.st_size} bytes, the limit is {FILE_BYTES}. Use bash.")
            return file.read(FILE_BYTES + 1)
    except OSError as problem:
        raise ToolError(f"{path}: {problem.strerror}.") from None


def _resolved(path: Path) -> Path:
    """Where a link leads: it stays a link. Raises ToolError."""
    try:
        return path.resolve()
    except (OSError, RuntimeError) as problem:
        raise ToolError(f"{path}: {problem}.") from None


def _places(data: bytes, wanted: bytes) -> list[int]:
    found = []
    at = data.find(wanted)
    while at >= 0:
        found.append(at)
        at = data.find(wanted, at + 1)
    return found


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
