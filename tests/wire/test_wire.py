"""Nouns as JSON and back: what is refused and how it is named, what comes back exactly."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator import errors
from orchestrator.events import Event
from orchestrator.execution import Budget, Egress, Execution, Limits, Outcome, OutcomeKind, Reason, Spec, Spend
from orchestrator.lifecycle import ExecutionState
from orchestrator.wire import bounds
from orchestrator.wire import event as event_wire
from orchestrator.wire.channel import client_frames
from orchestrator.wire.command import ExecBody
from orchestrator.wire.invalid import bad_input
from orchestrator.wire.problem import error_of, problem_of
from orchestrator.wire.record import Record
from orchestrator.wire.shape import rfc3339
from orchestrator.wire.steering import MessageBody, ResizeBody
from orchestrator.wire.submission import SubmitBody
from orchestrator.wire.way_out import BudgetBody, EgressWishBody, SettleBody, usd_of

NOW = datetime(2025, 1, 31, 8, 15, 0, 123000, UTC)


def refusal(shape: Callable[[Any], Any], body: object) -> errors.BadInput:
    """The BadInput this body gets; the test fails when it gets none."""
    with pytest.raises(ValidationError) as caught:
        shape(body)
    return bad_input(caught.value.errors())


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({"task": "x" * (bounds.TASK_BYTES + 1)}, "task", "1048577 bytes"),
        ({"task": "ä" * (bounds.TASK_BYTES // 2 + 1)}, "task", "1048578 bytes"),
        ({"task": "a\0b"}, "task", "NUL"),
        ({"task": "\ud800"}, "task", "surrogate"),
        ({"task": "x", "env": {"A": "\ud800"}}, "env.A", "surrogate"),
        ({"task": "x", "labels": {"\ud800": "x"}}, "labels.\ufffd\ufffd\ufffd", "surrogate"),
        ({"command": ["x", "\ud800"]}, "command[1]", "surrogate"),
        ({"task": 5}, "task", "string"),
        ({"task": "x", "privileged": True}, "privileged", "Extra"),
        ({"task": "x", "binds": ["/:/host"]}, "binds", "Extra"),
        ({"task": "x", "secrets": {}}, "secrets", "not in this version"),
        ({"task": "x", "model": "a b"}, "model", "cannot name a model"),
        ({"task": "x", "model": "m" * 257}, "model", "cannot name a model"),
        ({"task": "x", "egress": []}, "egress", "EgressBody"),
        ({"task": "x", "egress": {"deny": []}}, "egress.deny", "Extra"),
        ({"task": "x", "egress": {"allow": ["https://a.example"]}}, "egress.allow[0]", "scheme"),
        ({"task": "x", "egress": {"allow": ["a.example", "10.0.0.1"]}}, "egress.allow[1]", "address"),
        ({"task": "x", "egress": {"allow": ["*.com"]}}, "egress.allow[0]", "top-level"),
        ({"task": "x", "egress": {"allow": ["a.example:0"]}}, "egress.allow[0]", "port"),
        ({"task": "x", "egress": {"allow": ["a.example"] * 257}}, "egress.allow", "257"),
        ({"task": "x", "limits": {"budget_usd": 0.0000001}}, "limits.budget_usd", "six decimals"),
        ({"task": "x", "limits": {"budget_usd": 1.2345678}}, "limits.budget_usd", "six decimals"),
        ({"task": "x", "limits": {"budget_usd": -1}}, "limits.budget_usd", "greater than or equal to 0"),
        ({"task": "x", "limits": {"budget_usd": 1e10}}, "limits.budget_usd", "less than or equal"),
        ({"task": "x", "limits": {"budget_usd": float("inf")}}, "limits.budget_usd", "finite"),
        ({"task": "x", "limits": {"budget_usd": "5"}}, "limits.budget_usd", "number"),
        ({"task": "x", "limits": {"budget_tokens": 1.5}}, "limits.budget_tokens", "integer"),
        ({"task": "x", "limits": {"steps": 0}}, "limits.steps", "greater than or equal to 1"),
        ({"task": "x", "limits": {"on_budget": "ask"}}, "limits.on_budget", "fail"),
        ({"task": "x", "retry": {"on_killed": "maybe"}}, "retry.on_killed", "auto"),
        ({"task": "x", "env": {"CARREL_GATEWAY_TOKEN": "x"}}, "env", "set by the platform"),
        ({"task": "x", "env": {"1A": "x"}}, "env", "'1A'"),
        ({"task": "x", "env": {"EXECUTION_ID": "x"}}, "env", "set by the platform"),
        ({"task": "x", "env": {"A": "\0"}}, "env", "NUL"),
        ({"task": "x", "env": {"A": "x" * (bounds.ENV_VALUE_BYTES + 1)}}, "env", "65537 bytes"),
        ({"task": "x", "env": {f"A{i}": "x" * 60_000 for i in range(5)}}, "env", "300020 bytes"),
        ({"task": "x", "env": {f"A{i}": "" for i in range(bounds.ENV_COUNT + 1)}}, "env", "513 variables"),
        ({"task": "x", "labels": {"carrel.sandbox": "x"}}, "labels", "reserved"),
        ({"task": "x", "labels": {"Carrel.Sandbox": "x"}}, "labels", "reserved"),
        ({"task": "x", "labels": {"a b": "x"}}, "labels", "key"),
        ({"task": "x", "labels": {"a": "\x1b[2J"}}, "labels", "control"),
        ({"task": "x", "labels": {f"a{i}": "" for i in range(65)}}, "labels", "65 labels"),
        ({"task": "x", "name": "exe_abc"}, "name", "cannot be a name"),
        ({"task": "x", "name": "-x"}, "name", "cannot be a name"),
        ({"task": "x", "name": "x\n"}, "name", "cannot be a name"),
        ({"task": "x", "image": "--privileged"}, "image", "not an image reference"),
        ({"task": "x", "image": "a b"}, "image", "not an image reference"),
        ({"task": "x", "resources": {"cpus": 0}}, "resources.cpus", "0.01"),
        ({"task": "x", "resources": {"cpus": "2"}}, "resources.cpus", "number"),
        ({"task": "x", "resources": {"pids": True}}, "resources.pids", "integer"),
        ({"task": "x", "resources": {"disk_bytes": 1}}, "resources.disk_bytes", "too few"),
        ({"task": "x", "limits": {"deadline_s": 0}}, "limits.deadline_s", "greater than 0"),
        ({"task": "x", "limits": {"deadline_s": 1e12}}, "limits.deadline_s", "less than or equal"),
        ({"task": "x", "limits": {"deadline_s": float("nan")}}, "limits.deadline_s", "finite"),
        ({"task": "x", "retry": {"on_lost": "maybe"}}, "retry.on_lost", "auto"),
        ({"task": "x", "files": [{"path": "../x", "text": ""}]}, "files[0].path", ".."),
        ({"task": "x", "files": [{"path": "/x", "text": ""}]}, "files[0].path", "absolute"),
        ({"task": "x", "files": [{"path": "a//b", "text": ""}]}, "files[0].path", "empty"),
        ({"task": "x", "files": [{"path": "x"}]}, "files[0]", "exactly one"),
        ({"task": "x", "files": [{"path": "x", "data_b64": "%"}]}, "files[0].data_b64", "base64"),
        ({"task": "x", "files": [{"path": "x", "sha256": "AB"}]}, "files[0].sha256", "digest"),
        ({"task": "x", "files": [{"path": "x", "text": "", "mode": "4755"}]}, "files[0].mode", "mode"),
        ({"task": "x", "files": [{"path": "x", "text": ""}] * 2}, "body", "twice"),
        ({"task": "x", "files": [{"path": "x", "text": ""}, {"path": "x/y/z", "text": ""}]}, "body", "folder"),
        ({"command": ["a", "\0"]}, "command", "NUL"),
        ({"command": ["a", "x" * (bounds.ARGUMENT_BYTES + 1)]}, "command", "131072 bytes"),
        ({"command": ["a", *["x" * 100_000] * 11]}, "command", "too long"),
        ({"command": [""]}, "command", "empty"),
        ({"command": ["a"], "harness": "bash"}, "body", "own command line"),
        ({"harness": "command"}, "body", "missing"),
        ({}, "body", "nothing to do"),
    ],
)
def test_a_wrong_submit_names_its_field(body: dict[str, Any], field: str, words: str) -> None:
    error = refusal(SubmitBody.model_validate, body)
    assert (error.field, words in error.message) == (field, True), error.message
    assert error.data["limit"], error.data
    assert error.data["remedy"], error.data


@pytest.mark.parametrize(
    ("body", "limit"),
    [
        ([], "a JSON object"),
        ({"task": "x", "env": 1}, "a JSON object"),
        ({"task": "x", "limits": {"deadline_s": "soon"}}, "a number"),
        ({"task": "x", "resources": {"pids": "few"}}, "a whole number"),
        ({"task": 1}, "text"),
    ],
)
def test_the_limit_of_a_wrong_kind_is_said_in_words(body: Any, limit: str) -> None:
    assert refusal(SubmitBody.model_validate, body).data["limit"] == limit


def test_several_wrong_fields_are_all_named() -> None:
    error = refusal(SubmitBody.model_validate, {"task": 1, "name": "-", "env": []})
    assert [one["field"] for one in error.data["errors"]] == ["task", "env", "name"]


def test_command_alone_means_the_harness_command() -> None:
    spec = SubmitBody.model_validate({"command": ["true"]}).spec(tenant="t", files=())
    assert (spec.harness, spec.command, spec.tenant) == ("command", ("true",), "t")
    assert SubmitBody.model_validate({"task": "echo"}).spec(tenant="t", files=()).harness == "bash"


def test_what_is_not_said_is_the_noun_s_own_default() -> None:
    assert SubmitBody.model_validate({"task": "x"}).spec(tenant="default", files=()) == Spec(task="x")


def test_the_way_out_as_asked_for() -> None:
    spec = SubmitBody.model_validate(
        {
            "task": "x",
            "model": "meta-llama/Llama-3.1-8B",
            "egress": {"allow": ["A.Example.", "*.b.example:8443", "a.example"]},
            "limits": {"steps": 30, "budget_usd": 0.1, "budget_tokens": 0, "on_budget": "wait"},
            "retry": {"on_killed": "end"},
        }
    ).spec(tenant="t", files=())
    assert spec.model == "meta-llama/Llama-3.1-8B"
    assert spec.egress.allow == ("a.example", "*.b.example:8443")
    assert (spec.limits.steps, spec.limits.budget) == (30, Budget(100_000, 0, "wait"))
    assert spec.retry.on_killed == "end"


def test_an_installation_s_own_budget_stands_where_nothing_was_said() -> None:
    ours = Limits(deadline_s=9, budget=Budget(micros=5, tokens=7, on_exceeded="wait"))
    said = SubmitBody.model_validate({"task": "x", "limits": {"budget_usd": None, "grace_s": 1}})
    limits = said.spec(tenant="t", files=(), limits=ours).limits
    assert limits == Limits(deadline_s=9, grace_s=1, budget=Budget(None, 7, "wait"))


@given(st.integers(0, 10**15))
def test_money_comes_back_to_the_millionth(micros: int) -> None:
    usd = json.loads(json.dumps(usd_of(micros)))
    assert SubmitBody.model_validate({"task": "x", "limits": {"budget_usd": usd}}).limits.noun().budget.micros == micros


def test_a_budget_changes_where_it_is_said() -> None:
    now = Budget(micros=5, tokens=7, on_exceeded="wait")
    assert BudgetBody.model_validate({"budget_usd": None}).noun(now) == Budget(None, 7, "wait")
    assert BudgetBody.model_validate({"budget_tokens": 9, "on_budget": "fail"}).noun(now) == Budget(5, 9, "fail")


@pytest.mark.parametrize(
    ("shape", "body", "field"),
    [
        (BudgetBody.model_validate, {}, "body"),
        (BudgetBody.model_validate, {"id": "x"}, "body"),
        (BudgetBody.model_validate, {"budget_usd": 0.00000001}, "budget_usd"),
        (EgressWishBody.model_validate, {}, "allow"),
        (EgressWishBody.model_validate, {"allow": ["::1"]}, "allow[0]"),
        (SettleBody.model_validate, {"key": "", "decision": "retry"}, "key"),
        (SettleBody.model_validate, {"key": "a\n", "decision": "retry"}, "key"),
        (SettleBody.model_validate, {"key": "é" * 129, "decision": "retry"}, "key"),
        (SettleBody.model_validate, {"key": "k", "decision": "maybe"}, "decision"),
        (SettleBody.model_validate, {"key": "k", "decision": "done", "result": "x" * 65_537}, "result"),
        (MessageBody.model_validate, {}, "body"),
        (MessageBody.model_validate, {"text": "a", "data_b64": ""}, "body"),
        (MessageBody.model_validate, {"text": "a" * (bounds.MESSAGE_BYTES + 1)}, "body"),
        (MessageBody.model_validate, {"text": "a", "id": "x\n"}, "id"),
        (MessageBody.model_validate, {"text": "a", "id": "x" * 129}, "id"),
        (MessageBody.model_validate, {"text": "\ud800"}, "text"),
        (ExecBody.model_validate, {"command": ["x"], "cwd": "/./proc/self"}, "cwd"),
        (ResizeBody.model_validate, {}, "body"),
        (ExecBody.model_validate, {"command": []}, "command"),
        (ExecBody.model_validate, {"command": ["x"], "cwd": "/proc/self/fd/7"}, "cwd"),
        (ExecBody.model_validate, {"command": ["x"], "cwd": "//proc/self/fd/7"}, "cwd"),
        (ExecBody.model_validate, {"command": ["x"], "cwd": "workspace"}, "cwd"),
        (ExecBody.model_validate, {"command": ["x"], "cwd": "/workspace/../proc"}, "cwd"),
        (client_frames.validate_python, {"type": "shout"}, "body"),
        (client_frames.validate_python, {"type": "message"}, "message"),
        (client_frames.validate_python, [], "body"),
    ],
)
def test_wrong_bodies_are_named(shape: Callable[[Any], Any], body: object, field: str) -> None:
    assert refusal(shape, body).field == field


def event(**changes: Any) -> Event:
    return Event(
        **{
            "seq": 7,
            "type": "output",
            "time": NOW,
            "attempt": 1,
            "source": "harness",
            "data": {},
            "body": None,
            **changes,
        }
    )


@given(body=st.binary(max_size=300), stream=st.sampled_from(["stdout", "stderr"]))
def test_output_comes_back_byte_for_byte(body: bytes, stream: str) -> None:
    one = event(data={"stream": stream}, body=body)
    assert event_wire.decode(json.loads(event_wire.encode(one))) == one


@given(
    data=st.dictionaries(
        st.text(max_size=5),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
            max_leaves=8,
        ),
        max_size=4,
    ),
    kind=st.text(max_size=12),
)
def test_any_event_is_one_line_of_json(data: dict[str, Any], kind: str) -> None:
    kind = "x" + kind
    line = event_wire.encode(event(type=kind, data=data))
    assert b"\n" not in line and b"\r" not in line
    assert event_wire.decode(json.loads(line)) == event(type=kind, data=data)


@pytest.mark.parametrize("data", [{"x": float("nan")}, {"x": "\ud800"}, {"\udfff": [float("inf")]}])
def test_what_json_cannot_carry_still_makes_a_valid_page(data: dict[str, Any]) -> None:
    def no(constant: str) -> None:
        raise AssertionError(constant)

    shape = json.loads(event_wire.encode(event(type="plan", data=data)).decode(), parse_constant=no)
    assert shape["seq"] == 7


def test_an_endlessly_nested_line_still_makes_a_valid_page() -> None:
    data: dict[str, Any] = {}
    for _ in range(100_000):
        data = {"x": data}
    try:
        assert json.loads(event_wire.encode(event(type="plan", data=data)))["seq"] == 7
    finally:
        while data:  # taken apart by hand: its own destructor would nest as deep
            data = data.pop("x")


def test_the_described_shape_is_the_encoded_one() -> None:
    one = event(data={"stream": "stdout"}, body=b"hi\n")
    described = event_wire.EventAnswer.model_validate_json(event_wire.encode(one))
    assert json.loads(described.model_dump_json()) == json.loads(event_wire.encode(one))


def test_moments_are_milliseconds_and_z() -> None:
    assert rfc3339(NOW) == "2025-01-31T08:15:00.123Z"
    assert rfc3339(NOW.replace(microsecond=0)) == "2025-01-31T08:15:00.000Z"


def test_a_record_says_everything_and_comes_back() -> None:
    spec = SubmitBody.model_validate(
        {"task": "x", "name": "n", "env": {"A": "b"}, "labels": {"k": "v"}, "limits": {"deadline_s": 5}}
    ).spec(tenant="t", files=())
    found = Execution(
        id="exe_1",
        spec=spec,
        state=ExecutionState.FINISHED,
        created_at=NOW,
        outcome=Outcome(OutcomeKind.FAILED, Reason.EXIT_CODE, "exit 3", 3),
        egress=Egress(("a.example",)),
        budget=Budget(micros=2_500_000),
        spend=Spend(micros=1_250_000, input_tokens=3, calls=1),
        over_budget="figures",
        frozen=True,
        tail=9,
    )
    answer = json.loads(Record.of(found).model_dump_json())
    assert answer["cursor"] == "0000000000000001_0000000000000009"
    assert answer["created_at"] == "2025-01-31T08:15:00.123Z"
    assert answer["outcome"] == {
        "kind": "FAILED",
        "reason": "exit_code",
        "message": "exit 3",
        "exit_code": 3,
        "signal": None,
    }
    assert answer["budget"] == {"usd": 2.5, "micros": 2_500_000, "tokens": None, "on_budget": "fail"}
    assert (answer["spend"]["usd"], answer["spend"]["calls"], answer["over_budget"]) == (1.25, 1, "figures")
    assert answer["egress"] == {"allow": ["a.example"]}
    assert answer["frozen"] is True
    again = Record.model_validate_json(json.dumps({**answer, "of_a_newer_server": 1}))
    assert again == Record.of(found)
    assert again.outcome and again.outcome.noun() == found.outcome


def every_error() -> list[errors.CarrelError]:
    made: list[errors.CarrelError] = []
    todo: list[type[errors.CarrelError]] = [errors.CarrelError]
    while todo:
        kind = todo.pop()
        todo += [child for child in kind.__subclasses__() if child.__module__ == errors.__name__]
        match kind:
            case errors.BadInput | errors.TooLarge:
                made.append(kind("no", field="f", limit="1", remedy="less"))
            case errors.Resend:
                made.append(errors.Resend("no", src=4))
            case _:
                made.append(kind("no", earliest=3, retry_after_s=1))
    return made


@pytest.mark.parametrize("error", every_error(), ids=lambda error: error.code)
def test_an_error_survives_the_way_through_a_problem(error: errors.CarrelError) -> None:
    again = error_of(json.loads(json.dumps(problem_of(error, status=400, title="No"))))
    assert (type(again), again.message, again.data) == (type(error), error.message, error.data)


def test_an_unknown_code_is_still_an_error_of_ours() -> None:
    again = error_of({"code": "from_the_future", "detail": "no", "status": 499, "retry-after": 1})
    assert (type(again), again.message, again.data) == (errors.CarrelError, "no", {})
