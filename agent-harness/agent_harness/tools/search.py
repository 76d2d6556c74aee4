"""`search`: lines that match, or files by name; with ripgrep where it is there, else by ourselves. Changes nothing."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

from agent_harness.output import readable, shorten
from agent_harness.providers.shape import Tool
from agent_harness.tools.shape import ToolError

LIMIT_S = 30.0
MATCHES = 200
LINE_CHARS = 300
TEXT_CHARS = 20_000
_FILE_BYTES = 2 << 20  # without ripgrep: bigger ones are left out
_LEFT_OUT = {".git", "node_modules", "__pycache__", ".venv", ".hg", ".svn"}

SEARCH = Tool(
    "search",
    f"Find lines that match a regular expression, as path:line:text, at most {MATCHES}; what .gitignore names is left "
    "out. With `glob` only in files of such names; without `pattern`, those files themselves.",
    {
        "type": "object",
        "properties": {
            "pattern": {"type": "string"},
            "path": {"type": "string", "description": "A directory or file. Default: the current directory."},
            "glob": {"type": "string", "description": "For example *.py"},
        },
    },
)


def search(pattern: str, path: Path, glob: str) -> str:
    """Raises ToolError: nothing to look for, no such place, no regular expression."""
    if not pattern and not glob:
        raise ToolError("search needs `pattern` or `glob`.")
    if not path.exists():
        raise ToolError(f"{path}: there is no such file or directory.")
    found = _ripgrep(pattern, path, glob) if shutil.which("rg") else None
    if found is None:
        found = _by_hand(pattern, path, glob)
    lines = found[:MATCHES]
    if not lines:
        return "(no match)"
    if len(found) > MATCHES:
        lines.append(f"[more than {MATCHES}: narrow it down]")
    return shorten("\n".join(lines), TEXT_CHARS)


def _ripgrep(pattern: str, path: Path, glob: str) -> list[str] | None:
    """None: it could not be started."""
    command = ["rg", "--no-config", "--color=never", "--sort=path"]
    if glob:
        command += ["--glob", glob]
    if pattern:
        command += ["--no-heading", "--with-filename", "--line-number", "--max-columns", str(LINE_CHARS)]
        command += ["--max-columns-preview", "--max-count", str(MATCHES + 1), "--regexp", pattern, "--", str(path)]
    else:
        command += ["--files", "--", str(path)]
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
    except OSError:
        return None
    assert process.stdout is not None and process.stderr is not None
    lines: list[str] = []
    until = time.monotonic() + LIMIT_S
    try:
        for line in process.stdout:
            lines.append(readable(line.rstrip(b"\n"))[: LINE_CHARS + 200])
            if len(lines) > MATCHES or time.monotonic() > until:
                return lines
        why = process.stderr.read(2000).decode(errors="replace")
    finally:
        process.kill()
        process.stdout.close()
        process.stderr.close()
        code = process.wait()
    if code == 2 and not lines:
        raise ToolError(f"search failed: {why.strip()}")
    return lines


def _by_hand(pattern: str, path: Path, glob: str) -> list[str]:
    try:
        wanted = re.compile(pattern)
    except re.error as problem:
        raise ToolError(f"{pattern!r} is no regular expression: {problem}.") from None
    found: list[str] = []
    until = time.monotonic() + LIMIT_S
    for file in _files(path):
        if glob and not (fnmatch.fnmatch(file.name, glob) or fnmatch.fnmatch(str(file), glob)):
            continue
        if not pattern:
            found.append(str(file))
        else:
            found += _matches(wanted, file)
        if len(found) > MATCHES or time.monotonic() > until:
            break
    return found


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = []
    for folder, names, files in os.walk(path):
        names[:] = sorted(name for name in names if name not in _LEFT_OUT)
        found += [Path(folder) / name for name in sorted(files)]
    return found


def _matches(wanted: re.Pattern[str], file: Path) -> list[str]:
    try:
        if not file.is_file() or file.stat().st_size > _FILE_BYTES:
            return []
        data = file.read_bytes()
    except OSError:
        return []
    if b"\0" in data[:8192]:
        return []
    lines = data.decode(errors="replace").splitlines()
    return [
        f"{file}:{number}:{line[:LINE_CHARS]}" for number, line in enumerate(lines, 1) if wanted.search(line[:100_000])
    ]
