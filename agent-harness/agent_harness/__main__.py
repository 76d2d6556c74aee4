"""`carrel-agent`: the parts put together, and the exit code. See README.md for what happens.

Run as a module or by path (`python3 -I …/agent_harness/__main__.py`): its own folder is then not on the path.
"""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from agent_harness import config
from agent_harness.conversation import Conversation
from agent_harness.deeds import Deeds
from agent_harness.ears import Ears
from agent_harness.journal import Journal
from agent_harness.ledger import Ledger
from agent_harness.loop import CONFIGURATION, Loop
from agent_harness.model import Model
from agent_harness.signals import Cancelled, Signals
from agent_harness.speak import Voice
from agent_harness.toolbox import Toolbox

CANCELLED = 143  # 128 + SIGTERM


def main() -> int:
    """Raises OSError: no disk, nobody listening."""
    voice, signals = Voice(), Signals()
    signals.install()
    try:
        settings = config.read(os.environ)
        ledger = Ledger(os.environ, signals)
        conversation = Conversation()
        settings.state.mkdir(parents=True, exist_ok=True)
        alone = _alone(settings)
        journal = Journal(settings.state / "journal.jsonl", conversation.apply)
    except (config.BadConfiguration, ValueError) as problem:
        voice.say("error", text=str(problem))
        voice.say("result", stop_reason="configuration", text=str(problem))
        return CONFIGURATION
    tasks = [message for message in conversation.messages.values() if message["source"] == "task"]
    if settings.task and not any(message["text"] == settings.task for message in tasks):
        # A fork has the messages of the execution it came from, and a task of its own.
        journal.append("user_message", id=f"task-{settings.execution}", text=settings.task, source="task", mode="steer")
    deeds = Deeds(settings.state, settings.workspace, journal, conversation, ledger, voice, signals)
    model = Model(settings, voice, signals)
    ears = Ears(journal, conversation, voice, cancel=signals.cancel)
    toolbox = Toolbox(deeds, signals)
    loop = Loop(settings, os.environ, journal, conversation, model, toolbox, deeds, ears, voice, signals)
    ears.open()
    try:
        return loop.run()
    except Cancelled:
        deeds.end_all()
        voice.say("result", stop_reason="cancelled", text="Cancelled.")
        return CANCELLED
    finally:
        os.close(alone)


def _alone(settings: config.Config) -> int:
    """Two loops on one journal would each undo the other's order."""
    fd = os.open(settings.state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise config.BadConfiguration(
            f"{settings.state} is another running harness's: give this one its own STATE_DIR"
        ) from None
    return fd


if __name__ == "__main__":
    # The ears may be in the middle of a read: no waiting for them, what counts is on disk.
    code = main()
    sys.stdout.flush()
    os._exit(code)
