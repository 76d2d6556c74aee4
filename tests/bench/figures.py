"""One measured figure: percentiles of samples, its yardstick from the same run, their ratio; as a table and as JSON.

Knows nothing of what is measured. A figure never passes or fails: the machine is noisy, so read the ratios.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Samples:
    """What was measured, in `unit`. `more` = larger is better (a rate)."""

    values: tuple[float, ...]
    unit: str = "ms"
    more: bool = False

    def at(self, quantile: float) -> float:
        """Nearest rank, 0 < quantile <= 1."""
        ordered = sorted(self.values, reverse=self.more)
        return ordered[min(len(ordered) - 1, max(0, -(-int(quantile * 1000) * len(ordered) // 1000) - 1))]


@dataclass(frozen=True, slots=True)
class Figure:
    """`name` as in the design's table; `yardstick` what a bare part did in the same run; `reach` the target in
    words."""

    name: str
    ours: Samples
    yardstick: Samples | None = None
    against: str = ""
    reach: str = ""
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Ours over the yardstick, at the median."""
        if self.yardstick is None:
            return None
        return self.ours.at(0.5) / self.yardstick.at(0.5)

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "unit": self.ours.unit,
            "p50": self.ours.at(0.5),
            "p95": self.ours.at(0.95),
            "p99": self.ours.at(0.99),
            "n": len(self.ours.values),
            "yardstick": None
            if self.yardstick is None
            else {"what": self.against, "p50": self.yardstick.at(0.5), "n": len(self.yardstick.values)},
            "ratio": self.ratio,
            "reach": self.reach,
            "note": self.note,
            "machine": machine(),
        }


def machine() -> str:
    """What ran it, in a few words."""
    return (
        f"{platform.machine()} {os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}"
    )


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def table(figures: Sequence[Figure]) -> str:
    """Lines for a terminal, a figure a line."""
    head = ("figure", "unit", "p50", "p95", "p99", "n", "yardstick", "its p50", "ratio", "to reach")
    rows = [head]
    for f in figures:
        rows.append(
            (
                f.name,
                f.ours.unit,
                number(f.ours.at(0.5)),
                number(f.ours.at(0.95)),
                number(f.ours.at(0.99)),
                str(len(f.ours.values)),
                f.against or "-",
                number(f.yardstick.at(0.5)) if f.yardstick else "-",
                f"{f.ratio:.2f}" if f.ratio is not None else "-",
                f.reach or "-",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], f"({machine()})"])


def write_json(figures: Sequence[Figure], path: Path) -> None:
    """The raw figures, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps([f.as_json() for f in figures], indent=1) + "\n")
    part.replace(path)
