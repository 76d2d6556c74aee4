"""mini-swe-agent's plain agent as a harness: tells its messages as events, hears others, survives a restart.

Loaded by that program, in its interpreter. The conversation is on disk after each message; messages of a person are
taken in before each question to the model; an interrupt ends the running command or question, and nothing is left
running.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from typing import Any, NoReturn

from minisweagent.agents.default import DefaultAgent
from minisweagent.exceptions import FormatError, InterruptAgentFlow, Submitted

from adapters.ears import message_of
from adapters.mini import NAME
from adapters.prompt import first_words
from adapters.stage import IN_DOUBT, Stage, stage_of
from adapters.voice import bounded

LEFT_TO_OTHERS = ("mode", "confirm_exit", "whitelist_actions")  # settings of the program's interactive agent


class Interrupted(KeyboardInterrupt):
    """A person's SIGINT. The program's own retries let a KeyboardInterrupt through, and only that."""


class Hearing:
    """Messages from stdin, taken when there are some: the program asks between two steps."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._rest = b""
        self._ended = False

    def listen(self, *, wait: bool) -> None:
        """Note what is there. `wait`: until there is a message, or no more will come."""
        while not self._ended:
            patience = None if wait and not self._stage.notes.untaken else 0
            if not select.select([0], [], [], patience)[0]:
                return
            data = os.read(0, 65536)
            self._ended = not data
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                message = message_of(line)
                if message is not None and self._stage.notes.heard(message):
                    self._stage.voice.say("ack", id=message.id)


class CarrelAgent(DefaultAgent):  # type: ignore[misc]  # the program is not installed where this is checked
    """See above."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **{name: value for name, value in named.items() if name not in LEFT_TO_OTHERS})
        self.stage = stage_of(NAME)
        self.hearing = Hearing(self.stage)
        self.path = self.stage.state / "mini" / "messages.json"

    def run(self, task: str = "", **_: Any) -> NoReturn:
        """Ends by SystemExit: 0 when the agent said that it is done, 75 when it was interrupted and nobody is there."""
        signal.signal(signal.SIGINT, _interrupted)
        doubted = self.stage.doubt()
        kept = self._kept() if self.stage.resumed else []
        words = first_words(task, resumed=self.stage.resumed, remembers=bool(kept), calls=doubted)
        self.extra_template_vars |= {"task": task if kept else words}
        if kept:
            self.messages = kept
            self.n_calls = sum(message.get("role") == "assistant" for message in kept)
            self._close_calls()
        if kept and self.stage.notes.asked:
            self._await_words()
        elif kept:
            self.add_messages(self.model.format_message(role="user", content=words))
        else:
            for role, template in (("system", self.config.system_template), ("user", self.config.instance_template)):
                self.add_messages(self.model.format_message(role=role, content=self._render_template(template)))
        while self.messages[-1].get("role") != "exit":
            try:
                self.step()
                self.n_consecutive_format_errors = 0
            except InterruptAgentFlow as flow:
                self._said_otherwise(flow)
            except Interrupted:
                self._come_to_rest()
        self._conclude(self.messages[-1].get("extra") or {})

    def query(self) -> Any:
        self.hearing.listen(wait=False)
        for message in list(self.stage.notes.untaken.values()):
            self.add_messages(self.model.format_message(role="user", content=message.text))
            self.stage.taken(message.id)
        return super().query()

    def execute_actions(self, message: dict[str, Any]) -> Any:
        outputs = []
        for number, action in enumerate(message.get("extra", {}).get("actions", [])):
            id = str(action.get("tool_call_id") or f"call-{len(self.messages)}-{number}")
            command = str(action.get("command"))
            self.stage.call(id, command, kind="execute", name="bash", input={"command": command})
            try:
                output = self._execute(command)
            except Interrupted:
                self.stage.called(id, "cancelled", text="interrupted")
                raise
            except Submitted:
                self.stage.called(id, "completed")
                raise
            status = "completed" if output["returncode"] == 0 else "failed"
            self.stage.called(id, status, text=bounded(output["output"]), exit_code=output["returncode"])
            outputs.append(output)
        return self.add_messages(*self.model.format_observation_messages(message, outputs, self.get_template_vars()))

    def add_messages(self, *messages: dict[str, Any]) -> Any:
        for message in messages:
            if message.get("role") == "assistant":
                self._tell(message)
        said = super().add_messages(*messages)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_suffix(".new")
        with open(new, "w") as file:
            json.dump(self.messages, file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.path)
        return said

    def _tell(self, message: dict[str, Any]) -> None:
        voice = self.stage.voice
        voice.chunk("agent_thought_chunk", _text(message.get("reasoning_content")))
        voice.chunk("agent_message_chunk", _text(message.get("content")))
        usage = (message.get("extra", {}).get("response") or {}).get("usage") or {}
        names = {"prompt_tokens": "input_tokens", "completion_tokens": "output_tokens"}
        voice.say("usage_update", **{ours: usage[its] for its, ours in names.items() if usage.get(its) is not None})

    def _execute(self, command: str) -> dict[str, Any]:
        """As its local environment does; but stdin is not shared, and an interrupt leaves nothing running."""
        timeout_s = float(self.env.config.timeout)
        process = subprocess.Popen(
            ["/bin/bash", "-c", command], env={**os.environ, **self.env.config.env}, cwd=self.env.config.cwd or None,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        output: dict[str, Any] = {"exception_info": ""}
        try:
            data, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            data, _ = process.communicate()
            output["exception_info"] = f"It was ended after {timeout_s:g} s."
        except Interrupted:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise
        output |= {"output": data.decode(errors="replace"), "returncode": process.returncode}
        self.env._check_finished(output)
        return output

    def _said_otherwise(self, flow: InterruptAgentFlow) -> None:
        """The end, a limit, or an answer without a call."""
        self.add_messages(*flow.messages)
        if isinstance(flow, FormatError):
            self.n_consecutive_format_errors += 1
            if 0 < self.config.max_consecutive_format_errors <= self.n_consecutive_format_errors:
                extra = {"exit_status": "RepeatedFormatError", "submission": ""}
                self.add_messages({"role": "exit", "content": "RepeatedFormatError", "extra": extra})

    def _come_to_rest(self) -> None:
        self._close_calls()
        self.stage.notes.asks(True)
        self.stage.voice.say("ask", text="Interrupted. What now?")
        self._await_words()

    def _await_words(self) -> None:
        self.hearing.listen(wait=True)
        if not self.stage.notes.untaken:
            raise SystemExit(75)
        self.stage.notes.asks(False)

    def _close_calls(self) -> None:
        """The commands of an answer that have no result get one that says so: the next question needs it."""
        last = self.messages[-1]
        if actions := last.get("extra", {}).get("actions"):
            outputs = [{"output": IN_DOUBT, "returncode": -1, "exception_info": ""} for _ in actions]
            self.add_messages(*self.model.format_observation_messages(last, outputs, self.get_template_vars()))

    def _conclude(self, extra: dict[str, Any]) -> NoReturn:
        status, text = str(extra.get("exit_status")), str(extra.get("submission") or "")
        if status == "Submitted":
            self.stage.voice.say("result", stop_reason="end_turn", text=text)
            raise SystemExit(0)
        self.stage.voice.say("error", text=f"mini-swe-agent ended with {status}")
        limited = status in ("LimitsExceeded", "TimeExceeded")
        self.stage.voice.say("result", stop_reason="max_steps" if limited else "error", text=text)
        raise SystemExit(1)

    def _kept(self) -> list[dict[str, Any]]:
        try:
            return list(json.loads(self.path.read_text()))
        except (OSError, ValueError):
            return []


def _interrupted(*_: Any) -> None:
    raise Interrupted


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(str(block.get("text", "")) for block in content if isinstance(block, dict))
    return str(content or "")
