"""How many inputs a property is tried with: `make fuzz INPUTS=` says, else the test does. Knows no property."""

from __future__ import annotations

import os


def how_many(usual: int) -> int:
    """INPUTS of the environment, or `usual`."""
    return int(os.environ.get("INPUTS") or usual)
