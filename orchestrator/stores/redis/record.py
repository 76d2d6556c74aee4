"""A record as Redis keeps it, to and from the nouns. Knows no command and no script.

Absent fields mean their default, unknown ones are passed over: a worker of the previous release reads what this one
wrote. Moments that decide what is due are logical (lua/piece_clock.lua); `skew_ms` makes them wall time for people.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from datetime import datetime
from typing import Any, Final

from orchestrator.clock import from_ms
from orchestrator.execution import (
    Budget,
    CancelWant,
    Egress,
    Execution,
    FileRef,
    InterruptWant,
    Limits,
    Outcome,
    OutcomeKind,
    PauseWant,
    Reason,
    Resources,
    ResourcesWant,
    RetryPolicy,
    Spec,
    Wants,
)
from orchestrator.lifecycle import ExecutionState

# Built once: json.dumps with options makes an encoder for each call, a tenth of what an event costs.
_encoder: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def dumps(value: Any) -> str:
    """Compact JSON; text stays text."""
    return _encoder.encode(value)


def pairs(flat: Sequence[bytes]) -> dict[str, bytes]:
    """HGETALL's answer as a dict."""
    return {flat[i].decode(): flat[i + 1] for i in range(0, len(flat), 2)}


def skew_of(clock: Sequence[bytes | None]) -> int:
    """Wall less logical, in ms, of `HMGET meta last now`."""
    last, now = clock
    return int(last or 0) - int(now or 0)


def of_spec(spec: Spec) -> dict[str, str]:
    """The fields a new record gets from its spec."""
    return {
        "spec": dumps(_sparse(spec)),
        "harness": spec.harness,
        "labels": dumps(dict(spec.labels)) if spec.labels else "",
        "resources": dumps(asdict(spec.resources)),
    }


def of_outcome(outcome: Outcome) -> str:
    """JSON, as it stands in the record and in `execution.finished`: no nulls."""
    return dumps({name: value for name, value in asdict(outcome).items() if value is not None})


def to_outcome(text: bytes | str) -> Outcome:
    got = json.loads(text)
    return Outcome(
        OutcomeKind(got["kind"]), Reason(got["reason"]), got.get("message", ""), got.get("exit_code"), got.get("signal")
    )


def to_spec(text: bytes) -> Spec:
    got = json.loads(text)
    return Spec(
        **_known(Spec, got, "command", "files", "resources", "limits", "retry", "egress"),
        command=tuple(got.get("command", ())),
        files=tuple(FileRef(**_known(FileRef, item)) for item in got.get("files", ())),
        resources=Resources(**_known(Resources, got.get("resources", {}))),
        limits=_to_limits(got.get("limits", {})),
        retry=RetryPolicy(**_known(RetryPolicy, got.get("retry", {}))),
        egress=Egress(tuple(got.get("egress", {}).get("allow", ()))),
    )


def _to_limits(got: Mapping[str, Any]) -> Limits:
    return Limits(**_known(Limits, got, "budget"), budget=Budget(**_known(Budget, got.get("budget", {}))))


def to_execution(execution_id: str, got: Mapping[str, bytes], skew_ms: int) -> Execution:
    """The noun. `got` holds at least spec and state."""

    def number(name: str) -> int:
        return int(got.get(name) or 0)

    def text(name: str) -> str:
        return got.get(name, b"").decode()

    def moment(name: str, skew: int = 0) -> datetime | None:
        return from_ms(number(name) + skew) if number(name) else None

    spec = to_spec(got["spec"])
    state = ExecutionState(text("state"))
    resources = got.get("resources")
    return Execution(
        id=execution_id,
        spec=spec,
        state=state,
        created_at=from_ms(number("created")),
        outcome=to_outcome(got["outcome"]) if got.get("outcome") else None,
        attempt=number("attempt"),
        epoch=number("epoch"),
        owner=text("owner") or None,
        sandbox_id=text("sandbox_id") or None,
        host=text("host") or None,
        failures=number("failures"),
        tail=number("tail"),
        src=number("src"),
        own=number("own"),
        generation=number("generation") or 1,
        inbox_tail=number("inbox_tail"),
        delivered=number("delivered"),
        consumed=number("consumed"),
        wants=_to_wants(got),
        resources=Resources(**_known(Resources, json.loads(resources))) if resources else spec.resources,
        output_mode=text("output_mode") or "auto",  # type: ignore[arg-type]  # written from the same Literal
        started_at=moment("started"),
        finished_at=moment("finished"),
        deadline_at=moment("deadline", skew_ms),
        not_before_at=moment("not_before", skew_ms),
    )


def _to_wants(got: Mapping[str, bytes]) -> Wants:
    cancel, pause, hibernate, resources, interrupts = (
        json.loads(got[name]) if got.get(name) else None
        for name in ("want_cancel", "want_pause", "want_hibernate", "want_resources", "want_interrupts")
    )
    return Wants(
        cancel=CancelWant(**_known(CancelWant, cancel)) if cancel else None,
        pause=PauseWant(**_known(PauseWant, pause)) if pause else None,
        hibernate=hibernate["id"] if hibernate else None,
        resources=ResourcesWant(**_known(ResourcesWant, resources)) if resources else None,
        interrupts=tuple(InterruptWant(**_known(InterruptWant, item)) for item in interrupts or ()),
    )


def _known(noun: type, got: Mapping[str, Any], *but: str) -> dict[str, Any]:
    return {f.name: got[f.name] for f in fields(noun) if f.name in got and f.name not in but}


def _sparse(spec: Spec) -> dict[str, Any]:
    """Only what differs from the default: a record of a sleeping execution should stay small."""
    bare = asdict(Spec())
    return {name: value for name, value in asdict(spec).items() if value != bare[name]}
