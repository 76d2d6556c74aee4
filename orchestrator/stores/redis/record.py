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
    SnapshotPolicy,
    SnapshotWant,
    Spec,
    Spend,
    Wants,
)
from orchestrator.harnesses import Harness, HarnessFile
from orchestrator.lifecycle import ExecutionState
from orchestrator.snapshots import KeepPolicy, Origin, Why

# Built once: json.dumps with options makes an encoder for each call, a tenth of what an event costs.
_encoder: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


#: The fields of a Spend, in its order; lua/piece_calls.lua has the same list.
SPEND: Final = (
    "spent_micros",
    "tokens_in",
    "tokens_out",
    "reserved_micros",
    "reserved_tokens",
    "calls",
    "replays",
)


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
    """The fields a new record gets from its spec. Those that may change later and are the default now are left out."""
    fields = {
        "spec": dumps(_sparse(spec)),
        "harness": spec.harness,
        "labels": dumps(dict(spec.labels)) if spec.labels else "",
        "resources": dumps(asdict(spec.resources)),
    }
    if spec.egress != Egress():
        fields["egress"] = of_egress(spec.egress)
    if spec.limits.budget != Budget():
        fields["budget"] = of_budget(spec.limits.budget)
    return fields


def of_egress(egress: Egress, **more: str) -> str:
    """JSON, as it stands in the record and, with the wish's id, in `egress.changed`."""
    return dumps({**more, "allow": list(egress.allow)})


def of_budget(budget: Budget, **more: str) -> str:
    """JSON, as it stands in the record (the scripts of model calls read it there) and, with the wish's id, in
    `budget.changed`: no nulls."""
    return dumps({**more, **{name: value for name, value in asdict(budget).items() if value is not None}})


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
        **_known(
            Spec, got, "declared", "command", "files", "resources", "limits", "retry", "egress", "snapshots", "origin"
        ),
        declared=_to_harness(got["declared"]) if got.get("declared") else None,
        command=tuple(got.get("command", ())),
        files=tuple(FileRef(**_known(FileRef, item)) for item in got.get("files", ())),
        resources=Resources(**_known(Resources, got.get("resources", {}))),
        limits=_to_limits(got.get("limits", {})),
        retry=RetryPolicy(**_known(RetryPolicy, got.get("retry", {}))),
        egress=_to_egress(got.get("egress", {})),
        snapshots=_to_policy(got.get("snapshots", {})),
        origin=Origin(**_known(Origin, got["origin"])) if got.get("origin") else None,
    )


def _to_policy(got: Mapping[str, Any]) -> SnapshotPolicy:
    return SnapshotPolicy(
        **_known(SnapshotPolicy, got, "keep"), keep=KeepPolicy(**_known(KeepPolicy, got.get("keep", {})))
    )


def _to_egress(got: Mapping[str, Any]) -> Egress:
    return Egress(tuple(got.get("allow", ())))


def _to_harness(got: Mapping[str, Any]) -> Harness:
    argv, resume_argv = got.get("argv"), got.get("resume_argv")
    return Harness(
        **_known(Harness, got, "argv", "resume_argv", "files"),
        argv=None if argv is None else tuple(argv),
        resume_argv=None if resume_argv is None else tuple(resume_argv),
        files=tuple(HarnessFile(**_known(HarnessFile, item)) for item in got.get("files", ())),
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
    resources, egress, budget = (got.get(name) for name in ("resources", "egress", "budget"))
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
        snapshot_id=text("snapshot_id") or None,
        frozen=bool(number("frozen")),
        history_archived=text("history_archived") == "1",
        egress=_to_egress(json.loads(egress)) if egress else spec.egress,
        budget=Budget(**_known(Budget, json.loads(budget))) if budget else spec.limits.budget,
        spend=Spend(*(number(name) for name in SPEND)),
        over_budget=text("over_budget"),
        started_at=moment("started"),
        finished_at=moment("finished"),
        deadline_at=moment("deadline", skew_ms),
        not_before_at=moment("not_before", skew_ms),
    )


def _to_wants(got: Mapping[str, bytes]) -> Wants:
    cancel, pause, hibernate, resources, interrupts, snapshots = (
        json.loads(got[f"want_{name}"]) if got.get(f"want_{name}") else None
        for name in ("cancel", "pause", "hibernate", "resources", "interrupts", "snapshots")
    )
    return Wants(
        cancel=CancelWant(**_known(CancelWant, cancel)) if cancel else None,
        pause=PauseWant(**_known(PauseWant, pause)) if pause else None,
        hibernate=hibernate["id"] if hibernate else None,
        resources=ResourcesWant(**_known(ResourcesWant, resources)) if resources else None,
        interrupts=tuple(InterruptWant(**_known(InterruptWant, item)) for item in interrupts or ()),
        snapshots=tuple(_to_snapshot_want(item) for item in snapshots or ()),
    )


def _to_snapshot_want(got: Mapping[str, Any]) -> SnapshotWant:
    # cjson cannot tell an empty object from an empty list
    return SnapshotWant(got["id"], why=Why(got["why"]), name=got.get("name", ""), labels=dict(got.get("labels") or {}))


def _known(noun: type, got: Mapping[str, Any], *but: str) -> dict[str, Any]:
    return {f.name: got[f.name] for f in fields(noun) if f.name in got and f.name not in but}


def _sparse(spec: Spec) -> dict[str, Any]:
    """Only what differs from the default: a record of a sleeping execution should stay small."""
    bare = asdict(Spec())
    return {name: value for name, value in asdict(spec).items() if value != bare[name]}
