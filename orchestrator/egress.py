"""What may stand in an allowlist of egress, and what is a host name. Knows no address, no resolver and no connection.

An entry is `name` or `*.name` (every name below it, at any depth, not itself), each with `:port` or without (80 and
443). Names are compared in one canonical form, in which no spelling of an address can be written: what is not a name
by `host_name` is refused before anybody resolves it.
"""

from __future__ import annotations

import re
import stringprep
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from orchestrator.errors import BadInput

DEFAULT_PORTS: Final = (80, 443)
ENTRIES: Final = 256  # in one allowlist
HOST_CHARS: Final = 253  # RFC 1035's 255 bytes on the wire, written with dots
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
# The URL standard's "ends in a number": inet_aton and its kin take 1 to 4 parts, the last always a number.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
# Where IDNA 2003 (the standard library's) and IDNA 2008 disagree: two registries could own the "same" name.
_DEVIATIONS = frozenset("\u00df\u03c2\u1e9e\u200c\u200d")


@dataclass(frozen=True, slots=True)
class Allowed:
    """One entry. `name` is canonical; `below`: the names below it and not itself; `ports`: where to."""

    name: str
    below: bool = False
    ports: tuple[int, ...] = DEFAULT_PORTS

    def covers(self, host: str, port: int) -> bool:
        """True if it allows a connection to `host`, which is canonical, at `port`."""
        return port in self.ports and (host.endswith("." + self.name) if self.below else host == self.name)

    def __str__(self) -> str:
        """The entry as it is written, in canonical form."""
        port = "" if self.ports == DEFAULT_PORTS else f":{self.ports[0]}"
        return f"{'*.' if self.below else ''}{self.name}{port}"


def host_name(text: str, *, field: str = "host") -> str:
    """The canonical form of a host's name: lower case, without its last dot, international labels as `xn--`. Raises
    BadInput for anything else, every way to write an address included: decimal, octal, hex, short, IPv6, bracketed."""
    host = text if text.isascii() else _from_unicode(text, field)
    host = host.lower().removesuffix(".")
    if not 0 < len(host) <= HOST_CHARS:
        raise _not_a_name(f"it has {len(host)} characters", text, field)
    labels = host.split(".")
    for label in labels:
        if not _LABEL.fullmatch(label):
            raise _not_a_name(f"{label[:70]!r} is not a part of a name", text, field)
    if _NUMBER.fullmatch(labels[-1]):
        raise BadInput(
            f"{field}: {_shown(text)} is an address, or ends as one does",
            field=field,
            limit="a host's name; addresses are never allowed",
            remedy="give the server's name; an operator opens internal ranges with the setting egress_private_allow",
        )
    return host


def entry(text: str, *, field: str = "egress.allow") -> Allowed:
    """One entry of an allowlist. Raises BadInput with what is wrong and what to write."""
    if "://" in text or "/" in text:
        raise _not_an_entry(text, field, "leave out the scheme and the path: `example.org`, not a URL")
    name, colon, port = text.partition(":")
    if colon and (not _PORT.fullmatch(port) or int(port) > 65535):
        raise _not_an_entry(text, field, "after the name one port from 1 to 65535, or none for 80 and 443")
    below = name.startswith("*.")
    if "*" in name.removeprefix("*."):
        raise _not_an_entry(text, field, "a star stands only before the first dot: `*.example.org`")
    host = host_name(name.removeprefix("*."), field=field)
    if below and "." not in host:
        raise _not_an_entry(text, field, "a whole top-level domain cannot be opened: name a domain, `*.example.org`")
    return Allowed(host, below, (int(port),) if colon else DEFAULT_PORTS)


def allowlist(texts: Iterable[str], *, field: str = "egress.allow") -> tuple[Allowed, ...]:
    """All entries, in order, each once. Raises BadInput for the first that is wrong, or when there are too many."""
    found = tuple(dict.fromkeys(entry(text, field=f"{field}.{n}") for n, text in enumerate(texts)))
    if len(found) > ENTRIES:
        raise BadInput(
            f"{field}: {len(found)} entries",
            field=field,
            limit=f"at most {ENTRIES} entries",
            remedy="join names of one domain as `*.example.org`",
        )
    return found


def _from_unicode(text: str, field: str) -> str:
    if len(text) > HOST_CHARS or any(c in _DEVIATIONS or stringprep.in_table_a1(c) for c in text):
        raise _not_a_name("its international form is not the same everywhere", text, field, "write its `xn--` form")
    try:
        return text.encode("idna").decode("ascii")
    except UnicodeError as wrong:
        raise _not_a_name("it has no international form", text, field, "write its `xn--` form") from wrong


def _not_a_name(why: str, text: str, field: str, remedy: str = "write it as in `example.org`") -> BadInput:
    return BadInput(
        f"{field}: {_shown(text)} is not a host's name: {why}",
        field=field,
        limit=f"parts of 1 to 63 of a-z, 0-9, - and _ joined by dots, {HOST_CHARS} characters in all",
        remedy=remedy,
    )


def _not_an_entry(text: str, field: str, remedy: str) -> BadInput:
    return BadInput(
        f"{field}: {_shown(text)} cannot be allowed; {remedy}",
        field=field,
        limit="`name` or `*.name`, with `:port` or without",
        remedy=remedy,
    )


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:80] + "…")
