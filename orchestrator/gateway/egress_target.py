"""Where a proxy request wants to go, read from its head. Pure; resolves nothing and allows nothing.

Our own reading, not urllib's, which repairs what it is given: here every byte must stand where the grammar has it
(RFC 9112, 3.2.2 and 3.2.3), so that nothing is a host for one reader and a user's name for the next.
"""

from __future__ import annotations

import re
from typing import Final

from orchestrator.egress import host_name
from orchestrator.errors import BadInput
from orchestrator.gateway.egress_policy import Refused, shown
from orchestrator.gateway.egress_port import Head

_PORT: Final = re.compile(r"[0-9]{1,5}")
_VISIBLE: Final = re.compile(r"[!-~]+")
_ABSOLUTE: Final = re.compile(r"http://(?P<authority>[^/?#]*)(?P<path>(/[^?#]*)?(\?[^#]*)?)", re.IGNORECASE)
HTTP_PORT: Final = 80


def tunnel_target(head: Head) -> tuple[str, int]:
    """Host, as written, and port of a CONNECT. Raises Refused."""
    return _authority(head.target, None)


def plain_target(head: Head) -> tuple[str, int, str]:
    """Host, as written, port, and the path for the origin server, of an absolute-form request. Raises Refused."""
    found = _ABSOLUTE.fullmatch(head.target) if _VISIBLE.fullmatch(head.target) else None
    if not found:
        remedy = "use CONNECT for https" if head.target.lower().startswith("https:") else "send http://host/path"
        raise Refused(shown(head.target), 0, "not an absolute http:// address", remedy, status=400)
    host, port = _authority(found["authority"], HTTP_PORT)
    path = found["path"]
    return host, port, path if path.startswith("/") else "/" + path


def check_host(head: Head, host: str, port: int) -> None:
    """The request's Host names `host` (canonical) and `port`, or it is refused: the origin server goes by it."""
    values = [value for name, value in head.headers if name == "host"]
    if not values and head.version == "1.0":
        return
    if len(values) != 1:
        raise Refused(host, port, f"{len(values)} Host headers", "send one", status=400)
    try:
        named, named_port = _authority(values[0], HTTP_PORT)
        same = (host_name(named), named_port) == (host, port)
    except (Refused, BadInput):
        same = False
    if not same:
        why = f"its Host header says {shown(values[0])}"
        raise Refused(host, port, why, "send the Host that the request is for")


def _authority(text: str, default_port: int | None) -> tuple[str, int]:
    if not _VISIBLE.fullmatch(text) or "@" in text:
        raise Refused(shown(text), 0, "not host:port", "leave out user names and odd characters", status=400)
    host, colon, port = text.rpartition(":")
    if not colon or (text.startswith("[") and text.endswith("]")):
        host, port = text, ""
    if not port and default_port is not None and not colon:
        return host, default_port
    if not port and default_port is not None and host == text:
        return host, default_port
    if not _PORT.fullmatch(port) or not 0 < int(port) < 65536:
        raise Refused(shown(text), 0, "not host:port", "write a port from 1 to 65535 after the host", status=400)
    return host, int(port)
