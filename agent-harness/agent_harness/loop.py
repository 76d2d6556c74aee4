"""The loop: ask the model, do what it calls for, until it has nothing more to call for. To be read in one sitting.

    while there is something to do:
        calls of the last answer that have no result   →  done one after the other, each result journaled
        a request without an answer                    →  asked (again: same bytes, same key, so it costs nothing)
        otherwise                                      →  limits; room; mail taken in; the next request journaled

Everything is decided from the conversation, which is a fold of the journal: so there is no difference between going on
and starting again, and a kill between any two lines is only a pause. What a signal breaks off is in the journal as what
it is. Knows no provider, no file and no command.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Final

from agent_harness import compaction, limits, prompt
from agent_harness.config import Config
from agent_harness.conversation import Call, Conversation
from agent_harness.deeds import Deeds
from agent_harness.ears import Ears
from agent_harness.journal import Journal
from agent_harness.model import BudgetExceeded, ContextOverflow, Cut, Misconfigured, Model, ModelError
from agent_harness.providers.shape import Asking
from agent_harness.signals import Interrupted, Signals
from agent_harness.speak import Voice
from agent_harness.toolbox import TOOLS, Toolbox
from agent_harness.tools.shape import Done, ToolError

DONE: Final = 0
FAILED: Final = 1
LIMIT: Final = 3
WAITING: Final = 75  # EX_TEMPFAIL: wake me when a message comes
CONFIGURATION: Final = 78  # EX_CONFIG
CODES: Final = {"end_turn": DONE, "max_steps": LIMIT, "max_tokens": LIMIT, "budget": LIMIT, "deadline": LIMIT}
STUCK_TOLD, STUCK_ENDED = 3, 6  # the same call with the same result, in a row
OVERFLOWS = 4  # summings-up in a row that are too long themselves, each half as long
ODD_ENDED = 4  # answers in a row with nothing in them


class Loop:
    """One life of it."""

    def __init__(
        self, config: Config, environ: Mapping[str, str], journal: Journal, conversation: Conversation, model: Model,
        toolbox: Toolbox, deeds: Deeds, ears: Ears, voice: Voice, signals: Signals,
    ) -> None:  # fmt: skip
        self._config = config
        self._environ = environ
        self._journal = journal
        self._talk = conversation
        self._model = model
        self._toolbox = toolbox
        self._deeds = deeds
        self._ears = ears
        self._voice = voice
        self._signals = signals
        self._window = compaction.window(config.model, config.context_tokens)
        self._system = prompt.system(config.workspace, config.state, config.artifacts, config.started_at)
        self._fixed_chars = len(self._system) + sum(len(str(asdict(tool))) for tool in TOOLS)

    def run(self) -> int:
        """To the exit code. Raises Cancelled."""
        over = self._as_it_was_left()
        while over is None:
            try:
                over = self._step()
            except Interrupted:
                over = self._interrupted()
        return over

    # -- one step -----------------------------------------------------------------------------------------------------

    def _step(self) -> int | None:
        """The next thing to do; an exit code when there is none."""
        talk = self._talk
        if talk.calls:
            return self._do(talk.calls[0])
        if talk.asked is None:
            self._deeds.look_after_jobs()
            self._deeds.settled()
            if talk.answer is not None and (over := self._judge()) is not None:
                return over
            if (stop := limits.reached(self._config, talk, self._environ)) is not None:
                return self._end(stop.stop_reason, stop.text)
            if not talk.items and not talk.next_mail(follow_ups=True):
                return self._wait_for_mail()
            self._next_request()
        return self._ask()

    def _next_request(self) -> None:
        talk = self._talk
        tokens = compaction.size(talk.items, talk.context, talk.measured, self._fixed_chars)
        purpose = "compaction" if len(talk.items) > 1 and compaction.due(tokens, self._window) else "turn"
        takes: list[str] = []
        if purpose == "turn":
            # What was to follow the work comes when there is no more of it: at its beginning, or after its last answer.
            takes = talk.next_mail(follow_ups=talk.answer is None or talk.answer.get("stop") != "calls")
        self._journal.append("model", state="asked", n=talk.n + 1, takes=takes, purpose=purpose)

    def _ask(self) -> int | None:
        """The request that is in the journal."""
        talk, config = self._talk, self._config
        assert talk.asked is not None
        n, summing_up = talk.n, talk.asked["purpose"] == "compaction"
        tight: int = talk.asked.get("tight", 0)  # how often the provider has said that it is still too long
        items = compaction.request(talk.items, self._window >> tight) if summing_up else talk.items
        asking = Asking(
            config.model,
            self._system,
            items,
            () if summing_up else TOOLS,
            config.output_tokens,
            None if summing_up else config.thinking_tokens,
        )
        try:
            answer = self._model.ask(n, asking, aloud=not summing_up)
        except Cut as cut:
            self._journal.append("model", state="cut", n=n, blocks=cut.answer.blocks, why="interrupted")
            raise Interrupted from None
        except BudgetExceeded as problem:
            return self._end("budget", f"Stopped: {problem}")
        except ContextOverflow as problem:
            if tight >= OVERFLOWS or len(talk.items) < 2:
                return self._failed(problem)
            self._journal.append("model", state="asked", n=n + 1, takes=[], purpose="compaction", tight=tight + 1)
            return None
        except ModelError as problem:
            return self._failed(problem)
        self._journal.append("model", state="answered", n=n, blocks=answer.blocks, stop=answer.stop, usage=answer.usage)
        self._voice.say("usage_update", message=f"m{n}", **answer.usage, total_tokens=talk.tokens)
        if summing_up:
            summary = answer.text().strip() or "(the summary was empty: look at the files to see where things stand)"
            keep = n if tight else compaction.keep_from(talk.items, self._window)
            self._journal.append("compaction", n=n, summary=summary, keep=keep)
            self._voice.say("compaction", message=f"m{n}", text=summary)
        return None

    def _judge(self) -> int | None:
        """What a whole answer without open calls means: on, a word to the model, or the end."""
        talk = self._talk
        assert talk.answer is not None
        n, stop = talk.n, talk.answer.get("stop", "")
        if talk.answer["state"] == "cut":
            return None if talk.next_mail(follow_ups=True) else self._interrupted()
        if any(block["kind"] == "call" for block in talk.answer["blocks"]):
            if talk.streak >= STUCK_ENDED:
                return self._end("stuck", f"Stopped: the same call gave the same result {talk.streak} times in a row.")
            if talk.streak >= STUCK_TOLD and talk.last[0] != "job":
                times = f"{talk.streak} times in a row"
                self._note(f"stuck-{n}", f"[The same call, the same result, {times}. Find out why; do something else.]")
            return None
        text = "".join(block["text"] for block in talk.answer["blocks"] if block["kind"] == "text").strip()
        if stop == "refusal":
            return self._end("refusal", text or "The model refused.")
        if stop == "end" and text:
            # Mail that came while it spoke is answered before the end.
            return None if talk.next_mail(follow_ups=True) else self._end("end_turn", text)
        if talk.odd >= ODD_ENDED:
            return self._end("stuck", f"Stopped: the model's last {talk.odd} answers came to nothing.")
        if stop == "length":
            self._note(f"odd-{n}", "[Your answer was cut off at the limit of output. Go on, in smaller parts.]")
        else:
            self._note(
                f"odd-{n}", "[There was neither a call nor an answer. Go on with the task, or say what came of it.]"
            )
        return None

    # -- calls --------------------------------------------------------------------------------------------------------

    def _do(self, call: Call) -> int | None:
        talk = self._talk
        cut_short = talk.answer is not None and talk.answer.get("stop") == "length"
        try:
            arguments = self._toolbox.arguments(call, cut_short=cut_short)
        except ToolError as problem:
            self._voice.say("tool_call", id=call.key, name=call.name, arguments=call.arguments)
            self._result(call, Done(str(problem), ok=False))
            return None
        title = str(arguments.get("command") or arguments.get("path") or arguments.get("pattern") or call.name)
        self._voice.say("tool_call", id=call.key, name=call.name, title=title[:200], arguments=arguments)
        if call.name == "ask":
            return self._ask_person(call, str(arguments["question"]), list(arguments.get("options", ())))
        try:
            done = self._toolbox.use(call, arguments)
        except Interrupted:
            self._signals.interrupted = False
            self._result(call, self._deeds.interrupted(call.key))
            raise
        self._result(call, done)
        if done.plan is not None:
            self._voice.say("plan", entries=done.plan)
        return None

    def _result(self, call: Call, done: Done) -> None:
        fields = done.fields()
        self._journal.append("tool_result", id=call.key, **fields)
        self._voice.say("tool_call_update", id=call.key, status=fields["status"], text=done.text)

    def _ask_person(self, call: Call, question: str, options: list[str]) -> int | None:
        """The answer is the next message; until it comes, sleep."""
        talk = self._talk
        if call.key not in talk.intents:
            self._journal.append("tool_intent", id=call.key, name="ask", effect="none")
            self._voice.say("ask", id=call.key, text=question, options=options)
        elif not talk.next_mail(follow_ups=True) and self._waited():
            self._voice.say("ask", id=call.key, text=question, options=options)
        mail = talk.next_mail(follow_ups=True)
        if not mail:
            return self._sleep()
        text = "\n".join(str(talk.messages[id]["text"]) for id in mail)
        self._journal.append("tool_result", id=call.key, takes=mail, **Done(text).fields())
        self._voice.say("tool_call_update", id=call.key, status="completed", text=text)
        return None

    # -- ends, and waiting --------------------------------------------------------------------------------------------

    def _as_it_was_left(self) -> int | None:
        """An earlier life had come to an end: it counts, unless there is something new."""
        result = self._talk.result
        if result is None or self._talk.next_mail(follow_ups=True):
            return None
        reason = str(result["stop_reason"])
        if reason == "interrupted":
            return self._interrupted()
        if CODES.get(reason) == LIMIT or reason == "error":
            return None  # limits may have been raised, the provider may be back
        if self._config.resumed and not self._waited():
            return None
        self._voice.say("result", stop_reason=reason, text=result["text"])
        return CODES.get(reason, FAILED)

    def _interrupted(self) -> int | None:
        """A person has the word. Calls that were not done say so; then the next message counts, now or in days."""
        self._signals.interrupted = False
        for call in list(self._talk.calls):
            self._result(call, Done("Not done: a person interrupted you.", ok=False, status="cancelled"))
        if self._talk.next_mail(follow_ups=False):
            return None
        if self._talk.result is None:
            self._journal.append("result", stop_reason="interrupted", text="Interrupted by a person.")
        self._voice.say("ask", id=f"interrupted-{self._talk.n}", text="Interrupted. What now?", reason="interrupted")
        return self._wait_for_mail()

    def _wait_for_mail(self) -> int | None:
        return self._sleep() if self._waited() else None

    def _waited(self) -> bool:
        """Until a message comes. True: none came in the time there is, or none can come."""
        talk = self._talk
        until = time.monotonic() + self._config.wait_s
        try:
            with self._signals.stoppable(), talk.arrived:
                while not talk.next_mail(follow_ups=True):
                    left_s = until - time.monotonic()
                    if left_s <= 0 or self._ears.ended:
                        return True
                    talk.arrived.wait(left_s)
        except Interrupted:
            self._signals.interrupted = False
            return not talk.next_mail(follow_ups=True)
        return False

    def _sleep(self) -> int | None:
        """To be woken by a message, unless one has come just now."""
        self._ears.close()
        if self._talk.next_mail(follow_ups=True):
            self._ears.reopen()
            return None
        return WAITING

    def _end(self, stop_reason: str, text: str) -> int | None:
        self._ears.close()
        if stop_reason == "end_turn" and self._talk.next_mail(follow_ups=True):
            self._ears.reopen()  # it came in the last moment
            return None
        self._journal.append("result", stop_reason=stop_reason, text=text)
        self._voice.say("result", stop_reason=stop_reason, text=text)
        return CODES.get(stop_reason, FAILED)

    def _failed(self, problem: ModelError) -> int | None:
        self._voice.say("error", text=str(problem))
        over = self._end("error", f"The model could not be asked: {problem}")
        return CONFIGURATION if isinstance(problem, Misconfigured) else over

    def _note(self, id: str, text: str) -> None:
        """The harness's own word to the model; once, whoever lives."""
        self._journal.append("user_message", id=id, text=text, source="harness", mode="steer")
