#!/usr/bin/env python3
"""A harness in Python, standard library only: works in steps, speaks JSON lines, takes messages while it works, and
goes on where it was after a restart (its state lies in STATE_DIR).

    carrel run --upload agent-harness/examples/steered.py -- python3 steered.py
    carrel send @last 'faster'
"""

import contextlib
import json
import os
import queue
import sys
import threading
from pathlib import Path

STATE = Path(os.environ.get("STATE_DIR", ".")) / "done.json"
STEPS = int(os.environ.get("STEPS", "10"))
STEP_S = float(os.environ.get("STEP_S", "1"))


def say(type: str, **fields: object) -> None:
    """One typed event."""
    print(json.dumps({"type": type, **fields}), flush=True)


def main() -> None:
    """Steps 1 to STEPS, each of STEP_S seconds or until somebody says something."""
    inbox: queue.Queue[str] = queue.Queue()
    # Read while working: a message that waits for the end steers nothing.
    threading.Thread(target=lambda: [inbox.put(line.rstrip("\n")) for line in sys.stdin], daemon=True).start()
    done = json.loads(STATE.read_text()) if STATE.exists() else 0
    say("progress", text=f"starting after step {done}", attempt=os.environ.get("EXECUTION_ATTEMPT"))
    for step in range(done + 1, STEPS + 1):
        say("tool_call", id=str(step), title=f"step {step} of {STEPS}")
        with contextlib.suppress(queue.Empty):
            say("agent_message_chunk", text=f"you said: {inbox.get(timeout=STEP_S)}")
        part = STATE.with_suffix(".part")
        part.write_text(json.dumps(step))
        part.replace(STATE)  # whole or not at all: a crash here costs one step, never the state
        say("tool_call_update", id=str(step), status="completed")
    (Path(os.environ.get("ARTIFACTS_DIR", ".")) / "steps.txt").write_text(f"{STEPS}\n")
    say("result", stop_reason="end_turn", text=f"{STEPS} steps done")


if __name__ == "__main__":
    main()
