"""Mounting, and what is mounted where, in this process's namespace. Needs root. Knows no workspace."""

from __future__ import annotations

import ctypes
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

NOSUID: Final = 2
NODEV: Final = 4
NOATIME: Final = 1024

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Mount:
    """`read_only`: the filesystem itself, which the kernel does to one that it cannot write any more."""

    kind: str
    source: str
    read_only: bool


def mounted(point: Path) -> Mount | None:
    """What is mounted there, on top."""
    wanted = os.fsencode(point.resolve())
    found: Mount | None = None
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        here, _, about = line.partition(b" - ")
        if _plain(here.split(b" ")[4]) == wanted:
            kind, source, options = about.split(b" ")[:3]
            found = Mount(os.fsdecode(kind), os.fsdecode(_plain(source)), b"ro" in options.split(b","))
    return found


def mount(source: Path, point: Path, kind: str, *, flags: int, options: str) -> None:
    """Raises OSError."""
    _check(_libc.mount(os.fsencode(source), os.fsencode(point), kind.encode(), flags, options.encode()), point)


def unmount(point: Path) -> None:
    """Raises OSError: EBUSY while anything in it is open."""
    _check(_libc.umount2(os.fsencode(point), 0), point)


def engine_sees_ours() -> bool:
    """Whether the container engine sees what is mounted here: dockerd, or where none runs, process 1."""
    ours = _namespace("self")
    engines = [entry.parent.name for entry in Path("/proc").glob("[0-9]*/comm") if _program(entry) == "dockerd"]
    return ours is not None and any(_namespace(one) == ours for one in engines or ["1"])


def _namespace(process: str) -> int | None:
    try:
        return Path("/proc", process, "ns", "mnt").stat().st_ino
    except OSError:
        return None


def _program(comm: Path) -> str:
    try:
        return comm.read_text().strip()
    except OSError:  # ended meanwhile
        return ""


def _check(answer: int, point: Path) -> None:
    if answer != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(point))


def _plain(escaped: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), escaped)
