"""How a process says what it does: one line per event, JSON or key=value, with the execution it is about.

Whatever a value holds (a harness's output, a header), it cannot end the line or steer a terminal: control characters
are escaped (attack 61 of the design's list). Knows nothing of settings; `configure` is called once, by whoever starts
the process.
"""

from __future__ import annotations

import contextlib
import contextvars
import json
import logging
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final, TextIO

_bound: contextvars.ContextVar[dict[str, object]] = contextvars.ContextVar("carrel_log_fields", default={})  # noqa: B039 (never changed in place)
# What every LogRecord has; the rest was given as `extra`.
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_BARE: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.:/@+,%")


@contextlib.contextmanager
def bound(**fields: object) -> Iterator[None]:
    """Every line logged inside, by this task and by those it starts, carries these fields (execution=…)."""
    token = _bound.set({**_bound.get(), **fields})
    try:
        yield
    finally:
        _bound.reset(token)


def bind(**fields: object) -> None:
    """As `bound`, for the rest of this task: for a task that is about one execution all its life."""
    _bound.set({**_bound.get(), **fields})


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """The bound fields and the record's own `extra`; the latter win."""
    own = {name: value for name, value in vars(record).items() if name not in _STANDARD}
    return {**_bound.get(), **own}


class JsonLines(logging.Formatter):
    """One JSON object a line, ASCII: time, level, logger, event, then the fields; `error` holds a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _rfc3339(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **{
                f"{name}_" if name in {"time", "level", "logger", "event"} else name: v
                for name, v in fields_of(record).items()
            },
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        # ASCII only: also U+2028, U+0085 and C1 controls, which some readers take for line ends, are \u escapes.
        return json.dumps(line, ensure_ascii=True, default=str)


class KeyValue(logging.Formatter):
    """`12:03:04.567 info  event key=value …`; a traceback is a last field, on the same line."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
        fields = fields_of(record)
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        told = "".join(f" {shown(name)}={shown(value)}" for name, value in fields.items())
        return f"{stamp} {record.levelname.lower():7} {escaped(record.getMessage())}{told}"


def shown(value: object) -> str:
    """A value as a word, or quoted with its control characters escaped."""
    written = str(value)
    if written and set(written) <= _BARE:
        return written
    return '"' + escaped(written.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def escaped(written: str) -> str:
    """The text with all that is not printable (CR, LF, ESC, C1, bidi controls, lone surrogates) as escapes."""
    if written.isprintable():
        return written
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in written)


def configure(form: str = "auto", level: str = "info", stream: TextIO | None = None) -> None:
    """Send all logging of this process to `stream` (stderr). `form`: json, text, or auto (text on a terminal)."""
    stream = stream or sys.stderr
    as_text = form == "text" or (form == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(KeyValue() if as_text else JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    # uvicorn brings handlers of its own; its access log is our metrics' and middleware's matter.
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        other = logging.getLogger(name)
        other.handlers.clear()
        other.propagate = True
    logging.getLogger("uvicorn.access").setLevel(logging.WARNING)
    # Loggers of libraries that say at `info` what we say ourselves.
    for name in ("httpx", "httpcore", "urllib3", "docker", "asyncio"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
