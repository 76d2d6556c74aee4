"""Commands that take another command after `--`: what stands before it is ours, what follows is theirs, unread."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand

_KEY = "carrel.after_dashes"


class Splitting(TyperCommand):
    """Cuts the arguments at the first `--`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--" in args:
            at = args.index("--")
            ctx.meta[_KEY] = tuple(args[at + 1 :])
            args = args[:at]
        return super().parse_args(ctx, args)


def after_dashes(ctx: typer.Context) -> tuple[str, ...] | None:
    """What stood after `--`; None when there was none."""
    found: tuple[str, ...] | None = ctx.meta.get(_KEY)
    return found
