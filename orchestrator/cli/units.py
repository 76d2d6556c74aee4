"""Durations, sizes, KEY=VALUE pairs and moments as people type them. Pure, but for --env-file.

What is not understood is a usage error that names the option, what is allowed and an example.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from orchestrator.cli.usage import UsageError

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhdw])")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def duration_s(text: str) -> float:
    """`90`, `90s`, `30m`, `1h30m`, `1.5h`, `2d` → seconds."""
    stripped = text.strip().lower()
    if re.fullmatch(r"\d+(\.\d+)?", stripped):
        return float(stripped)
    parts = _PART.findall(stripped)
    if not parts or "".join(number + unit for number, unit in parts) != stripped:
        raise UsageError(f"{text!r} is not a duration; for example 90s, 30m, 1h30m, 2d")
    return sum(float(number) * _UNITS_S[unit] for number, unit in parts)


def size_bytes(text: str) -> int:
    """`512m`, `2g`, `1.5GiB`, `1048576` → bytes; units are binary, as docker has them."""
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise UsageError(f"{text!r} is not a size; for example 512m, 2g, 1048576")
    return int(float(found[1]) * 1024 ** _POWER[found[2].lower()])


def moment(text: str) -> datetime:
    """`10m` (ago) or an RFC 3339 moment; without a zone it is local time."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        pass
    try:
        return datetime.now(UTC) - timedelta(seconds=duration_s(text))
    except UsageError:
        raise UsageError(f"{text!r} is no moment; for example 10m (ago) or 2025-01-31T08:15:00Z") from None


def pairs(items: Iterable[str], what: str) -> dict[str, str]:
    """`K=V` each; the last of a key wins."""
    found: dict[str, str] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not key or not equals:
            raise UsageError(f"{what} {item!r} is not KEY=VALUE")
        found[key] = value
    return found


def env_file(path: Path) -> dict[str, str]:
    """Lines `K=V` as docker reads them: `#` begins a comment line, values are taken as they are, without quotes or
    expansion."""
    found: dict[str, str] = {}
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as failed:
        raise UsageError(f"--env-file {path}: {failed}") from None
    for number, text in enumerate(lines, 1):
        if not text.strip() or text.lstrip().startswith("#"):
            continue
        key, equals, value = text.lstrip().partition("=")
        if not key.strip() or not equals:
            raise UsageError(f"{path}:{number}: {text[:60]!r} is not KEY=VALUE")
        found[key.strip()] = value
    return found
