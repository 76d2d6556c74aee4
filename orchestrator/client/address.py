"""Where a server is: `http://`, `https://` or `http+unix://` with the socket's path. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote, unquote, urlsplit

from orchestrator.errors import BadInput


@dataclass(frozen=True, slots=True)
class Address:
    """`base`: what paths are appended to; `socket`: the unix socket under it, or None; `url`: as a person wrote it."""

    url: str
    base: str
    socket: str | None

    @property
    def is_tls(self) -> bool:
        """Whether certificates matter; without, the 15 ms of reading the machine's authorities are saved."""
        return self.base.startswith("https:")

    @property
    def websocket(self) -> str:
        """The base of WebSocket addresses."""
        return "ws" + self.base.removeprefix("http")


def parse(url: str) -> Address:
    """`http+unix:///run/carrel.sock` and `http+unix://%2Frun%2Fcarrel.sock` both name a socket. Raises
    BadInput(field="url")."""
    text = url.strip().rstrip("/")
    parts = urlsplit(text)
    if parts.scheme == "http+unix":
        path = unquote(parts.netloc) + parts.path
        if not path.startswith("/"):
            raise _bad(url)
        return Address(text, "http://localhost", path)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise _bad(url)
    try:
        parts.port  # noqa: B018  # it is parsed, and refused, when it is asked for
    except ValueError:
        raise _bad(url) from None
    if parts.username is not None or parts.password is not None:
        raise BadInput(
            "the address holds a user or a password",
            field="url",
            limit="scheme, host, port and path",
            remedy="give the token separately: --token, CARREL_TOKEN or `carrel login`",
        )
    return Address(text, text, None)


def unix(path: str) -> str:
    """The URL of a server on this unix socket."""
    return "http+unix://" + quote(path)


def _bad(url: str) -> BadInput:
    return BadInput(
        f"not the address of a server: {url!r}",
        field="url",
        limit="http://HOST[:PORT] | https://HOST[:PORT] | http+unix:///PATH",
        remedy="for example http://127.0.0.1:8374",
    )
