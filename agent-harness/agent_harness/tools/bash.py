"""`bash` and `job`: what the model is told of them, and how the end of a command reads. The running is calls.py's."""

from __future__ import annotations

import signal

from agent_harness.calls import Call, Ending
from agent_harness.output import view
from agent_harness.providers.shape import Tool
from agent_harness.tools.shape import EFFECT

TIMEOUT_S = 120
WAIT_S = 10

BASH = Tool(
    "bash",
    "Run a command in bash. Each call is a new shell, which begins in the directory the last one ended in; "
    "nothing else is carried over. There is no input unless `tty` is set. You get what it printed, head and "
    "tail if it is long; the whole is in a file that is named. A command that still runs after `wait_s` goes "
    "on, and you get an id for `job`. `cmd &` with its output redirected goes on after the call.",
    {
        "type": "object",
        "properties": {
            "command": {"type": "string", "description": "The command, or a script of many lines."},
            "timeout_s": {
                "type": "number",
                "minimum": 0.1,
                "maximum": 86400,
                "description": f"It is ended after so many seconds. Default {TIMEOUT_S}.",
            },
            "wait_s": {
                "type": "number",
                "minimum": 0,
                "maximum": 3600,
                "description": f"How long this call waits for its end. Default {WAIT_S}; 0: it goes on beside you.",
            },
            "tty": {"type": "boolean", "description": "Give it a terminal, to type into with `job`."},
            "effect": EFFECT,
        },
        "required": ["command"],
    },
)

JOB = Tool(
    "job",
    "A command that `bash` left running: poll it (wait for more of it, at most `wait_s`), type into it (where it has a "
    "tty), or kill it.",
    {
        "type": "object",
        "properties": {
            "id": {"type": "string", "description": "As `bash` gave it."},
            "action": {"type": "string", "enum": ["poll", "type", "kill"]},
            "text": {"type": "string", "description": "To type; end a line with \\n. \\u0003 is Ctrl-C."},
            "wait_s": {"type": "number", "minimum": 0, "maximum": 3600, "description": f"Default {WAIT_S}."},
        },
        "required": ["id", "action"],
    },
)


def ended_text(call: Call, ending: Ending, timeout_s: float) -> str:
    """What came of it. Holds nothing that would differ if it ran again the same: such text is sent to a model."""
    printed = view(call.folder).rstrip("\n")
    parts = [printed] if printed else []
    if ending.why == "timed_out":
        parts.append(f"[ended at its limit of {timeout_s:g} s; this is what it had printed]")
    elif ending.why == "killed":
        parts.append("[it was killed; this is what it had printed]")
    elif ending.code < 0:
        parts.append(f"[ended by {_name(-ending.code)}]")
    elif ending.code:
        parts.append(f"[exit code {ending.code}]")
    elif not parts:
        parts.append("[exit code 0, no output]")
    if ending.dropped_bytes:
        parts.append(f"[of {ending.size_bytes} bytes {ending.dropped_bytes} from the middle were not kept in the file]")
    return "\n".join(parts)


def running_text(call: Call, key: str) -> str:
    """What it printed so far, and how to go on."""
    printed = view(call.folder).rstrip("\n")
    how = f"[still running as job {key}: poll it, type into it if it has a tty, kill it, or go on with other things]"
    return f"{printed}\n{how}" if printed else how


def doubt_text(what: str, printed: str) -> str:
    """What is said of a call nobody knows the end of."""
    so_far = f"Its output so far:\n{printed}\n" if printed.strip() else "It left no output.\n"
    return (
        f"IN DOUBT: the machine failed while {what} ran. It may have run wholly, partly or not at all; it was not run "
        f"again. {so_far}Check first what is there before you repeat any of it."
    )


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
