"""The Lua programs, put together from their files. Knows nothing of what they do.

A file's first line names the pieces it needs (`-- needs: clock record`); the pieces come before it, in the order of
PIECES. The table of transitions is written out from `lifecycle.TRANSITIONS`, so that there is one truth.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from importlib import resources

from orchestrator.lifecycle import TRANSITIONS

PIECES = ("clock", "transitions", "record", "queue", "calls", "intents", "snapshots", "life", "stream")
_FOLDER = resources.files(__package__).joinpath("lua")


@dataclass(frozen=True, slots=True)
class Script:
    """One program: its text, and the name EVALSHA knows it by."""

    name: str
    text: str
    sha: str


def _file(name: str) -> str:
    return _FOLDER.joinpath(f"{name}.lua").read_text("utf-8")


def _piece(name: str) -> str:
    if name == "transitions":
        rows = ", ".join(f"['{state} {trigger}'] = '{to}'" for (state, trigger), to in TRANSITIONS.items())
        return f"local TRANSITIONS = {{{rows}}}\n"
    return _file(f"piece_{name}")


@functools.cache
def load(name: str) -> Script:
    """The program of lua/<name>.lua with its pieces."""
    own = _file(name)
    first = own.partition("\n")[0]
    needs = first.removeprefix("-- needs:").split() if first.startswith("-- needs:") else []
    unknown = set(needs) - set(PIECES)
    if unknown:
        raise ValueError(f"lua/{name}.lua needs {sorted(unknown)}, which is not one of {PIECES}")
    text = "".join([_file("piece_base"), *(_piece(piece) for piece in PIECES if piece in needs), own])
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())
