"""Which tools there are, and from a call's name and arguments to what came of it. Whatever the model sends, an answer
it can act on comes back, never an exception. Knows no model and writes no results.
"""

from __future__ import annotations

from typing import Any

from agent_harness.conversation import Call
from agent_harness.deeds import Deeds
from agent_harness.providers.shape import Tool
from agent_harness.signals import Signals
from agent_harness.tools.ask import ASK
from agent_harness.tools.bash import BASH, JOB, WAIT_S
from agent_harness.tools.files import EDIT, LINES, READ, WRITE, read
from agent_harness.tools.plan import PLAN, plan
from agent_harness.tools.search import SEARCH, search
from agent_harness.tools.shape import Done, ToolError, read_arguments

TOOLS: tuple[Tool, ...] = (BASH, JOB, READ, WRITE, EDIT, SEARCH, PLAN, ASK)
_BY_NAME = {tool.name: tool for tool in TOOLS}


class Toolbox:
    """Of one life of the harness."""

    def __init__(self, deeds: Deeds, signals: Signals) -> None:
        self._deeds = deeds
        self._signals = signals

    def arguments(self, call: Call, *, cut_short: bool) -> dict[str, Any]:
        """Read and checked. Raises ToolError."""
        tool = _BY_NAME.get(call.name)
        if tool is None:
            raise ToolError(f"There is no tool {call.name!r}. There are: {', '.join(_BY_NAME)}.")
        return read_arguments(tool, call.arguments, cut_short=cut_short)

    def use(self, call: Call, arguments: dict[str, Any]) -> Done:
        """All but `ask`, which is the loop's. Raises Interrupted, Cancelled."""
        try:
            if call.name == "bash":
                return self._deeds.bash(call, arguments)
            if call.name in ("write", "edit"):
                self._signals.check()
                return self._deeds.change(call, arguments)
            if call.name == "job":
                wait_s = float(arguments.get("wait_s", WAIT_S))
                return self._deeds.job(arguments["id"], arguments["action"], arguments.get("text", ""), wait_s)
            with self._signals.stoppable():
                return self._look(call.name, arguments)
        except ToolError as problem:
            return Done(str(problem), ok=False)

    def _look(self, name: str, arguments: dict[str, Any]) -> Done:
        """What changes nothing."""
        here = self._deeds.cwd()
        try:
            if name == "read":
                path, limit = here / arguments["path"], arguments.get("limit", LINES)
                return Done(read(path, arguments.get("offset", 1), limit))
            if name == "search":
                path = here / arguments.get("path", ".")
                return Done(search(arguments.get("pattern", ""), path, arguments.get("glob", "")))
            return plan(arguments["steps"])
        except OSError as problem:
            raise ToolError(f"{problem.filename or name}: {problem.strerror}.") from None
        except ValueError as problem:  # a NUL in a path
            raise ToolError(f"{name}: {problem}.") from None
