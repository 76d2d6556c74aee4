"""Calls that change something: bash, write, edit. An intent before, a result after, and what an earlier life left
begun is taken up by the rules of replay.py. Knows no model.

Order, for each: intent into our journal → intent into the platform's → the deed → the result into the platform's → (the
loop) the result into ours. A crash between any two is met by the next life asking again, with the run that is in our
journal: the same run may always go on, another one only where that does no harm.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from agent_harness import replay
from agent_harness.calls import Call, Ending, trim
from agent_harness.conversation import Call as Asked
from agent_harness.conversation import Conversation
from agent_harness.intents import Begun, IntentError
from agent_harness.journal import Journal, Record
from agent_harness.ledger import Ledger, digest_of_call, new_run
from agent_harness.output import readable, since, view
from agent_harness.replay import HARMLESS, Rule
from agent_harness.signals import Interrupted, Signals
from agent_harness.speak import Voice
from agent_harness.tools import bash, files
from agent_harness.tools.shape import Done, ToolError

KILL_S = 0.8  # how long the end of a killed command is waited for
KEPT_BYTES = 1 << 30  # of all outputs together; the oldest are shortened
WATCH_S = 1.0  # how often people see what a command printed
WATCHED_BYTES = 64 * 1024  # of one command; the rest is in its file


class Deeds:
    """Of one life of the harness."""

    def __init__(
        self, state: Path, workspace: Path, journal: Journal, conversation: Conversation, ledger: Ledger,
        voice: Voice, signals: Signals,
    ) -> None:  # fmt: skip
        self._calls = state / "calls"
        self._workspace = workspace
        self._journal = journal
        self._conversation = conversation
        self._ledger = ledger
        self._voice = voice
        self._signals = signals

    def cwd(self) -> Path:
        """Where the next command runs."""
        known = Path(self._conversation.cwd) if self._conversation.cwd else self._workspace
        return known if known.is_dir() else self._workspace

    def folder(self, key: str) -> Call:
        """Of the newest doing of a call."""
        intent = self._conversation.intents.get(key)
        return Call(self._calls / (intent["folder"] if intent else key))

    # -- commands ---------------------------------------------------------------------------------------------------

    def bash(self, asked: Asked, arguments: dict[str, Any]) -> Done:
        """Raises Interrupted when a person stopped it: its result is then in `interrupted`, Cancelled, ToolError."""
        key = asked.key
        intent = self._conversation.intents.get(key)
        call = self.folder(key)
        rule = replay.of_command(intent, call)
        wait_s = float(arguments.get("wait_s", bash.WAIT_S))
        if rule is Rule.RUN:
            run = intent["run"] if intent else new_run()
            return self._run(asked, arguments, run, wait_s)
        assert intent is not None
        if rule is Rule.DOUBT:
            return self._again_or_doubt(asked, arguments, intent, call, wait_s)
        if rule is Rule.REATTACH:
            self._voice.say("tool_call_update", id=key, status="in_progress", text="it still runs: re-attached")
        return self._await(asked.key, intent, call, wait_s)

    def _run(self, asked: Asked, arguments: dict[str, Any], run: str, wait_s: float) -> Done:
        key, command = asked.key, str(arguments["command"])
        times = sum(1 for folder in self._calls.glob(f"{key}*") if folder.name.partition("~")[0] == key)
        name = f"{key}~{times + 1}" if times else key
        timeout_s = float(arguments.get("timeout_s", bash.TIMEOUT_S))
        cwd = self.cwd()
        intent = self._intend(asked, arguments, run, folder=name, timeout_s=timeout_s, cwd=str(cwd))
        begun = self._begin(intent, command)
        if not begun.go:
            return self._as_recorded(begun)
        call = Call(self._calls / name)
        tty = bool(arguments.get("tty", False))
        try:
            call.start(command, cwd=cwd, timeout_s=timeout_s, tty=tty, environ=os.environ)
        except OSError as problem:
            freed = self.end_leftovers()
            try:
                if not freed:
                    raise problem
                call.start(command, cwd=cwd, timeout_s=timeout_s, tty=tty, environ=os.environ)
            except OSError:
                text = f"It could not be started: {problem.strerror}. Nothing was run."
                return self._ended(key, intent, Done(text, ok=False))
        return self._await(key, intent, call, wait_s)

    def _await(self, key: str, intent: Record, call: Call, wait_s: float) -> Done:
        """Its end, or that it goes on."""
        ending = self._watch(key, call, wait_s)
        if ending is None and call.gone():
            if call.never_ran():
                if not self.end_leftovers():
                    text = "It could not be started: no process was to be had. Nothing was run."
                    return self._ended(key, intent, Done(text, ok=False))
                text = "It could not be started: leftovers of earlier commands held every process. They were ended."
                return self._ended(key, intent, Done(text, ok=False))
            text = bash.doubt_text("this command", view(call.folder))
            return Done(text, ok=False, status="in_doubt")  # its wrapper was killed beside it
        if ending is None:
            return Done(bash.running_text(call, key), state="running", status="in_progress")
        return self._ended(key, intent, self._done(call, ending, intent))

    def _watch(self, key: str, call: Call, wait_s: float) -> Ending | None:
        """Wait, and let people see what it prints."""
        until = time.monotonic() + wait_s
        shown = 0
        while True:
            left_s = until - time.monotonic()
            with self._signals.stoppable():
                ending = call.wait(max(0.0, min(WATCH_S, left_s)))
            if shown < WATCHED_BYTES:
                data, shown = since(call.folder, shown, 16 * 1024)
                if data:
                    self._voice.say("tool_call_update", id=key, status="in_progress", output=readable(data))
            if ending is not None or left_s <= 0 or call.gone():
                return ending or call.ending()

    def _done(self, call: Call, ending: Ending, intent: Record) -> Done:
        text = bash.ended_text(call, ending, intent["timeout_s"])
        trim(self._calls, KEPT_BYTES)
        now = call.cwd()
        if now is None or str(now) == intent["cwd"]:
            return Done(text, ok=ending.code == 0)
        return Done(f"{text}\n[now in {now}]", ok=ending.code == 0, cwd=str(now))

    def interrupted(self, key: str) -> Done:
        """A person stopped what ran: it is ended, and its result says so."""
        intent = self._conversation.intents.get(key)
        if intent is None or intent["name"] != "bash":
            return Done("Not done: a person interrupted you.", ok=False, status="cancelled")
        call = self.folder(key)
        call.kill()
        call.wait(KILL_S)
        printed = view(call.folder).rstrip("\n")
        text = (f"{printed}\n" if printed else "") + "[a person interrupted it; it was ended]"
        done = Done(text, ok=False, status="cancelled")
        self._ledger_soon(key, intent, done)
        return done

    # -- jobs: commands that went on -----------------------------------------------------------------------------------

    def job(self, key: str, action: str, text: str, wait_s: float) -> Done:
        """Raises ToolError, Interrupted."""
        conversation = self._conversation
        intent = conversation.intents.get(key)
        if intent is None or intent["name"] != "bash":
            running = ", ".join(conversation.running) or "none"
            raise ToolError(f"There is no job {key!r}. Running: {running}.")
        call = self.folder(key)
        if action == "type" and call.ending() is None:
            try:
                call.type(text)
            except OSError:
                raise ToolError(f"Job {key} has no tty to type into. Start it with `tty`.") from None
        if action == "kill":
            call.kill()
            wait_s = max(wait_s, KILL_S)
        try:
            ending = self._watch(key, call, wait_s)
        except Interrupted:  # what is waited for is what a person means
            self._signals.interrupted = False
            call.kill()
            self._job_over(key, intent, call, call.wait(KILL_S))
            raise
        if ending is None and call.alive():
            return Done(bash.running_text(call, key))
        done = self._job_over(key, intent, call, ending)
        return Done(done.text, ok=done.ok)

    def _job_over(self, key: str, intent: Record, call: Call, ending: Ending | None) -> Done:
        done = self._job_end(key, intent, call, ending)
        if key in self._conversation.running:
            self._journal.append("tool_result", id=key, **{**done.fields(), "state": "late"})
            self._voice.say("tool_call_update", id=key, status=done.fields()["status"])
        return done

    def look_after_jobs(self) -> None:
        """Those that have ended since: told to the model, once."""
        for key in list(self._conversation.running):
            intent, call = self._conversation.intents[key], self.folder(key)
            ending = call.ending()
            if ending is None and call.alive():
                continue
            done = self._job_end(key, intent, call, call.ending())
            note = f"[job {key} is over]\n{done.text}"
            self._journal.append("tool_result", id=key, **{**done.fields(), "state": "late", "note": note})
            self._voice.say("tool_call_update", id=key, status=done.fields()["status"], text=done.text)

    def _job_end(self, key: str, intent: Record, call: Call, ending: Ending | None) -> Done:
        if ending is not None:
            text = bash.ended_text(call, ending, intent["timeout_s"])
            return self._ended(key, intent, Done(text, ok=ending.code == 0))
        done = Done(bash.doubt_text(f"job {key}", view(call.folder)), ok=False, status="in_doubt")
        return self._doubted({**intent, "run": new_run()}, done)

    def _doubted(self, intent: Record, done: Done) -> Done:
        """The platform is to know that nobody has it any more."""
        if self._begin(intent, "").go:  # its effect does no harm, and it is not wanted again
            self._ledger_soon(intent["id"], intent, done)
        return done

    def end_leftovers(self) -> bool:
        """Background processes of commands that are over. False: there were none."""
        found = False
        for folder in self._calls.iterdir() if self._calls.is_dir() else ():
            call = Call(folder)
            if call.ending() is not None and call.alive():
                call.kill()
                found = True
                until = time.monotonic() + KILL_S
                while call.alive() and time.monotonic() < until:
                    time.sleep(0.01)
        return found

    def end_all(self) -> None:
        """Everything that runs: the harness is told to end."""
        for folder in self._calls.iterdir() if self._calls.is_dir() else ():
            Call(folder).kill()

    # -- files --------------------------------------------------------------------------------------------------------

    def change(self, asked: Asked, arguments: dict[str, Any]) -> Done:
        """A write or an edit. Raises ToolError."""
        intent = self._conversation.intents.get(asked.key)
        rule = replay.of_change(intent)
        if intent is not None and rule is Rule.RECOVER:
            return self._ended(asked.key, intent, Done(intent["said"]))
        if intent is not None and rule is Rule.DOUBT:
            text = (
                f"IN DOUBT: the machine failed while {intent['path']} was written, and it holds neither what was "
                "before nor what was to be after. Nothing was written again. Read it first."
            )
            return self._doubted({**intent, "run": new_run()}, Done(text, ok=False, status="in_doubt"))
        path = self.cwd() / arguments["path"]
        if asked.name == "write":
            change = files.prepare_write(path, arguments["content"])
        else:
            change = files.prepare_edit(path, arguments["old"], arguments["new"])
        run = intent["run"] if intent else new_run()
        intent = self._intend(
            asked, arguments, run, path=str(change.path), before=change.before, after=change.after, said=change.said
        )
        begun = self._begin(intent, str(change.path))
        if not begun.go:
            return self._as_recorded(begun)
        try:
            change.apply()
        except ToolError as problem:
            return self._ended(asked.key, intent, Done(str(problem), ok=False))
        return self._ended(asked.key, intent, Done(change.said))

    # -- intents ------------------------------------------------------------------------------------------------------

    def settled(self) -> None:
        """Calls in doubt on which a person has decided since: told to the model."""
        if not self._ledger.there:
            return
        for key, result in list(self._conversation.doubts.items()):
            intent = self._conversation.intents.get(key)
            known = self._ledger.get(intent["key"]) if intent else None
            if (
                intent is None
                or known is None
                or not known.settled_by
                or known.state not in ("done", "failed", "retry")
            ):
                continue
            if known.state == "retry":
                note = (
                    f"[a person settled call {key}, which was in doubt: it may be run again, if that is still wanted]"
                )
            else:
                note = f"[a person settled call {key}, which was in doubt: it counts as {known.state}]\n{known.result}"
            fields = {**result, "state": "late", "status": "completed" if known.state == "done" else "failed"}
            fields.pop("type")
            self._journal.append("tool_result", **{**fields, "ok": known.state == "done", "note": note.rstrip()})
            self._voice.say("tool_call_update", id=key, status=fields["status"], text=note)

    def _intend(self, asked: Asked, arguments: dict[str, Any], run: str, **more: Any) -> Record:
        effect = arguments.get("effect", "unknown")
        if asked.name != "bash" and "effect" not in arguments:
            effect = "idempotent"  # the digests of before and after say how far it came
        digest = digest_of_call(asked.name, arguments)
        return self._journal.append(
            "tool_intent", id=asked.key, key=asked.key, name=asked.name, effect=effect, run=run, digest=digest, **more
        )

    def _begin(self, intent: Record, summary: str) -> Begun:
        """Under another key where this one means another call already: after a restore from an older cut the model
        may have gone another way. Raises ToolError when the platform does not answer: then nothing is done."""
        key = intent["key"]
        try:
            try:
                begun = self._ask(intent, key, summary)
            except IntentError as problem:
                if problem.code not in ("key_reused", "conflict"):
                    raise
                key = f"{intent['id']}-{intent['digest'][:8]}"
                begun = self._ask(intent, key, summary)
        except IntentError as problem:
            self._signals.check()
            raise ToolError(f"Nothing was done: it could not be written down first ({problem}).") from None
        if key != intent["key"]:
            fields = {name: value for name, value in intent.items() if name != "type"}
            self._journal.append("tool_intent", **{**fields, "key": key})
        return begun

    def _ask(self, intent: Record, key: str, summary: str) -> Begun:
        with self._signals.stoppable():
            return self._ledger.begin(key, intent["run"], intent["name"], intent["effect"], summary, intent["digest"])

    def _ended(self, key: str, intent: Record, done: Done) -> Done:
        self._ledger_soon(key, self._conversation.intents.get(key, intent), done)
        return done

    def _ledger_soon(self, key: str, intent: Record, done: Done) -> None:
        try:
            self._ledger.finish(intent["key"], intent["run"], ok=done.ok, result=done.text)
        except IntentError as problem:
            self._voice.say("error", text=f"the end of call {key} could not be told to the platform: {problem}")

    def _as_recorded(self, begun: Begun) -> Done:
        """The platform says no: it was done before this /state remembers, or nobody knows."""
        known = begun.intent
        if known.state in ("done", "failed"):
            self._voice.say("progress", text=f"call {known.key} was done before; its result is taken from the record")
            return Done(known.result, ok=known.state == "done")
        text = bash.doubt_text("this", "")
        return Done(text, ok=False, status="in_doubt")

    def _again_or_doubt(
        self, asked: Asked, arguments: dict[str, Any], intent: Record, call: Call, wait_s: float
    ) -> Done:
        """Rule 4. A new run asks: the platform leaves it in doubt, says what it knows, or that it does no harm."""
        run = new_run()
        if self._ledger.there:
            begun = self._begin({**intent, "run": run}, str(arguments["command"]))
            if begun.go:
                return self._run(asked, arguments, run, wait_s)
            if begun.intent.state in ("done", "failed"):
                return self._as_recorded(begun)
        elif intent["effect"] in HARMLESS:
            return self._run(asked, arguments, run, wait_s)
        return Done(bash.doubt_text("this command", view(call.folder)), ok=False, status="in_doubt")
