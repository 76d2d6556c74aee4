"""What a written value must be: in words for a person, and as the function that makes it. Knows no setting's name."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import cast

from orchestrator.execution import GIB, MIB
from orchestrator.room import Mark


@dataclass(frozen=True)
class Rule:
    """What a value must be, in words, and the function that makes it (ValueError when it is not)."""

    words: str
    parse: Callable[[object], object]


def text(words: str = "text", pattern: str = r"(?s).*") -> Rule:
    def parse(value: object) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise ValueError
        return value

    return Rule(words, parse)


def choice(*allowed: str) -> Rule:
    return text("one of " + ", ".join(allowed), "|".join(map(re.escape, allowed)))


def whole(least: int, most: int) -> Rule:
    def parse(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError
        number = int(value)
        if not least <= number <= most:
            raise ValueError
        return number

    return Rule(f"a whole number from {least} to {most}", parse)


def number(least: float, most: float, unit: str) -> Rule:
    def parse(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        amount = float(value)
        if not least <= amount <= most:
            raise ValueError
        return amount

    return Rule(f"{unit}, from {least:g} to {most:g}", parse)


def seconds(least: float, most: float) -> Rule:
    return number(least, most, "seconds")


def size(least: int, most: int) -> Rule:
    units = {"": 1, "k": 1024, "m": MIB, "g": GIB, "t": 1024 * GIB}

    def parse(value: object) -> int:
        match = re.fullmatch(r"(\d+)\s*([kmgt]?)i?b?", str(value).strip().lower())
        if isinstance(value, bool) or not match:
            raise ValueError
        amount = int(match[1]) * units[match[2]]
        if not least <= amount <= most:
            raise ValueError
        return amount

    return Rule(f"bytes (512m, 2g), from {least} to {most}", parse)


def mark() -> Rule:
    """A Mark of room: bytes, a part of the whole, or both (the smaller counts); 0 = none."""

    def parse(value: object) -> Mark:
        if isinstance(value, Mark):
            return value
        amounts = str(value).split(",")
        if isinstance(value, bool) or len(amounts) > 2:
            raise ValueError
        parts = [amount.strip() for amount in amounts]
        percents = [float(part.removesuffix("%")) for part in parts if part.endswith("%")]
        sizes = [cast(int, size(0, 1024 * 1024 * GIB).parse(part)) for part in parts if not part.endswith("%")]
        if len(percents) > 1 or len(sizes) > 1 or not all(0 <= percent <= 90 for percent in percents):
            raise ValueError
        return Mark(*(sizes or [0]), *(percents or [0.0]))

    return Rule("bytes (256m), a part of the disk up to 90%, or both (256m,5%: the smaller counts); 0 is none", parse)


def listing(words: str) -> Rule:
    def parse(value: object) -> tuple[str, ...]:
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise ValueError
        return tuple(item.strip() for item in items if item.strip())

    return Rule(f"{words}, comma-separated", parse)


def ranges() -> Rule:
    def parse(value: object) -> tuple[str, ...]:
        return tuple(str(ip_network(text)) for text in cast(tuple[str, ...], listing("").parse(value)))

    return Rule("address ranges (10.1.0.0/16, fd12::/64), comma-separated", parse)


def directory() -> Rule:
    def parse(value: object) -> Path:
        if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
            raise ValueError
        try:
            return Path(value).expanduser().absolute()
        except RuntimeError as no_such_home:  # "~nobody"
            raise ValueError from no_such_home

    return Rule("a directory", parse)


def file_or_none() -> Rule:
    def parse(value: object) -> Path | None:
        return cast(Path, directory().parse(value)) if value != "" else None

    return Rule("empty, or a file", parse)


def switch() -> Rule:
    words = {"true": True, "on": True, "yes": True, "1": True, "false": False, "off": False, "no": False, "0": False}

    def parse(value: object) -> bool:
        found = value if isinstance(value, bool) else words.get(value.lower()) if isinstance(value, str) else None
        if found is None:
            raise ValueError
        return found

    return Rule("true or false", parse)
