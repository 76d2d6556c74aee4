"""The workspaces that are measured: laid by a program, here or in a sandbox, and a hundredth of them changed.

The content is text that compresses to half, different in each file. Knows no store.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MIB: Final = 1024 * 1024

PROGRAM: Final = """
import os, sys
def text(size):
    return os.urandom(-(-size // 2)).hex().encode()[:size]
def lay(folder, files, size):
    for number in range(files):
        at = os.path.join(folder, f"d{number % 100}")
        os.makedirs(at, exist_ok=True)
        with open(os.path.join(at, f"f{number}"), "wb") as file:
            for begin in range(0, size, 1 << 20):
                file.write(text(min(1 << 20, size - begin)))
def change(folder, files, size):
    whole = files >= 100
    for number in range(0, files, 100 if whole else 1):
        with open(os.path.join(folder, f"d{number % 100}", f"f{number}"), "r+b") as file:
            share = size if whole else size // 100
            file.seek(int.from_bytes(os.urandom(4), "big") % (size - share + 1))
            for begin in range(0, share, 1 << 20):
                file.write(text(min(1 << 20, share - begin)))
{"lay": lay, "change": change}[sys.argv[1]](sys.argv[2], *map(int, sys.argv[3:]))
"""


@dataclass(frozen=True, slots=True)
class Tree:
    """`words`: what a figure calls it. `size_bytes`: of each file. `rounds`: how often each thing is measured."""

    words: str
    files: int
    size_bytes: int
    rounds: int = 3

    def lay(self, folder: Path) -> None:
        """New, and on disk."""
        subprocess.run(self.argv("lay", str(folder)), check=True)
        os.sync()

    def change(self, folder: Path) -> None:
        """One file in a hundred anew, or of few files a hundredth of each; not on disk yet, as a program leaves it."""
        subprocess.run(self.argv("change", str(folder)), check=True)

    def argv(self, verb: str, folder: str) -> list[str]:
        """The same in a sandbox. `verb`: lay or change."""
        return ["python3", "-c", PROGRAM, verb, folder, str(self.files), str(self.size_bytes)]


SMALL: Final = Tree("1,000 files, 11 MB", 1000, 11_000, rounds=5)
LARGE: Final = (Tree("20,000 files, 300 MB", 20_000, 15_000), Tree("3 × 500 MB", 3, 500_000_000))


def trees() -> tuple[Tree, ...]:
    """FULL=1: all three."""
    return (SMALL, *LARGE) if os.environ.get("FULL") else (SMALL,)
