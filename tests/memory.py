"""What a process of ours takes of memory while something is done. Knows nothing of what is done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def growing_less(pid: int, most_bytes: int) -> Iterator[None]:
    """The process's resident memory is at no moment meanwhile this much above what it was: the kernel's own high-water
    mark, which misses no peak as samples would."""
    about = Path(f"/proc/{pid}")
    (about / "clear_refs").write_text("5")  # the mark begins anew
    before = _kib(about, "VmRSS")
    yield
    grown = (_kib(about, "VmHWM") - before) * 1024
    print(f"memory of {pid} grew by {grown >> 20} MiB from {before >> 10}")
    assert grown < most_bytes


def _kib(about: Path, name: str) -> int:
    (line,) = [one for one in (about / "status").read_text().splitlines() if one.startswith(name + ":")]
    return int(line.split()[1])
