"""Server-sent events, from pieces of bytes to the JSON in them. Pure.

Source: html.spec.whatwg.org, "Server-sent events"; of its fields only `data` counts here: every provider names the
event inside its JSON as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

LINE_BYTES = 64 << 20


class Events:
    """Fed with bytes as they come."""

    def __init__(self) -> None:
        self.done = False  # `[DONE]` was there
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """The events that are whole now. Raises ValueError for what is no JSON object."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LINE_BYTES:
            raise ValueError(f"an event of more than {LINE_BYTES} bytes")
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                whole = b"\n".join(self._data)
                self._data.clear()
                if whole.strip() == b"[DONE]":
                    self.done = True
                    continue
                event = json.loads(whole)
                if not isinstance(event, dict):
                    raise ValueError("an event that is no JSON object")
                yield event
