"""Whether a path fits a glob: `*` `?` `[abc]` `[!a-z]` within a name, `**` over any number of folders. Knows no files.

Not `re`, not `fnmatch`: both patterns and names come from strangers, and a pattern such as `*a*a*a*a` makes their
backtracking take minutes. Here the time is bounded by pattern × name, whatever they are. Bytes throughout: names need
not be UTF-8, so `?` is one byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from orchestrator.errors import BadInput

MAX_BYTES: Final = 1024
MAX_NAMES: Final = 64

_ANY: Final = b"**"


class Glob:
    """One pattern, for many paths."""

    def __init__(self, pattern: bytes) -> None:
        names = [name for name in pattern.split(b"/") if name not in (b"", b".")]
        if not names or len(pattern) > MAX_BYTES or len(names) > MAX_NAMES or b"\0" in pattern or b".." in names:
            raise BadInput(
                "this is no glob",
                field="glob",
                limit=f"1 to {MAX_BYTES} bytes, <= {MAX_NAMES} names, no '..'",
                remedy="for example **/*.py",
            )
        self._names: list[bytes | list[_Token]] = [_ANY if name == _ANY else _parsed(name) for name in names]

    def fits(self, path: bytes) -> bool:
        """Of a relative path, "/"-separated."""
        names = path.split(b"/")
        # Name by name; reached[k] = the first k patterns fit the names so far.
        reached = [True] + [False] * len(self._names)
        _over_any(self._names, reached)
        for name in names:
            after = [False] * (len(self._names) + 1)
            for at, pattern in enumerate(self._names):
                if pattern is _ANY:
                    after[at + 1] = reached[at] or reached[at + 1]
                elif reached[at]:
                    after[at + 1] = after[at + 1] or _fits(pattern, name)
            _over_any(self._names, after)
            reached = after
            if not any(reached):
                return False
        return reached[-1]


_Set = tuple[bool, frozenset[int]]  # (negated, bytes)
_Token = int | _Set | None  # a byte; a set; None = any run of bytes
_ONE: Final[_Set] = (True, frozenset())


def _over_any(names: Sequence[object], reached: list[bool]) -> None:
    """`**` may stand for no folder at all."""
    for at, pattern in enumerate(names):
        if pattern is _ANY and reached[at]:
            reached[at + 1] = True


def _parsed(name: bytes) -> list[_Token]:
    tokens: list[_Token] = []
    at = 0
    while at < len(name):
        byte = name[at]
        at += 1
        if byte == ord("*"):
            if not tokens or tokens[-1] is not None:
                tokens.append(None)
        elif byte == ord("?"):
            tokens.append(_ONE)
        elif byte == ord("[") and (end := name.find(b"]", at + 1 + (name[at : at + 1] in (b"!", b"^")))) > 0:
            tokens.append(_set(name[at:end]))
            at = end + 1
        else:
            tokens.append(byte)
    return tokens


def _set(said: bytes) -> _Set:
    negated = said[:1] in (b"!", b"^")
    said = said[negated:]
    found: set[int] = set()
    at = 0
    while at < len(said):
        if at + 2 < len(said) and said[at + 1] == ord("-"):
            found.update(range(said[at], said[at + 2] + 1))
            at += 3
        else:
            found.add(said[at])
            at += 1
    return negated, frozenset(found)


def _fits(tokens: Sequence[_Token] | bytes, name: bytes) -> bool:
    """Backtracks to the last star only: what fitted before it may stay, for a star takes any run."""
    at = place = 0
    star, resume = -1, 0
    while place < len(name):
        if at < len(tokens) and (token := tokens[at]) is not None and _one(token, name[place]):
            at += 1
            place += 1
        elif at < len(tokens) and tokens[at] is None:
            star, resume = at, place
            at += 1
        elif star >= 0:
            resume += 1
            at, place = star + 1, resume
        else:
            return False
    return all(token is None for token in tokens[at:])


def _one(token: int | _Set, byte: int) -> bool:
    if isinstance(token, int):
        return token == byte
    negated, found = token
    return (byte in found) != negated
