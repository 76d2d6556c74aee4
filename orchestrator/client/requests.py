"""The calls of the HTTP API as Requests: method, path, body, and how the answer is read; those of files are in
`file_requests`, those of snapshots and forks in `snapshot_requests`. Knows no network and no retries.

What changes something carries an id or a key, made here when the caller gives none, so that the same Request may be
sent again after a lost answer. `exec` has no such key (a command is not repeatable) and says so.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal
from urllib.parse import quote

from orchestrator.client import answers
from orchestrator.client.answers import HistoryPage
from orchestrator.client.exchange import Request
from orchestrator.client.spelling import HOLD_S, V1, new_id, spelled
from orchestrator.client.spelling import at as _at
from orchestrator.client.spelling import body_of as _json
from orchestrator.client.spelling import only as _only
from orchestrator.client.spelling import prefer as _prefer
from orchestrator.wire.command import ExecResult
from orchestrator.wire.operate import HarnessList, Health, Readiness, Stats
from orchestrator.wire.prune import PruneAnswer
from orchestrator.wire.record import Record, RecordPage
from orchestrator.wire.steering import Receipt
from orchestrator.wire.way_out import IntentAnswer, IntentPage

# -- executions ------------------------------------------------------------------------------------------------------


def submit(body: Mapping[str, Any], *, key: str = "") -> Request[Record]:
    """`body` as POST /executions takes it, or as `spelled` does. `key`: the idempotency key; one is made when empty."""
    headers, data = _json(spelled(body))
    return Request(
        "POST",
        f"{V1}/executions",
        answers.record,
        headers={**headers, "idempotency-key": key or new_id()},
        body=data,
    )


def get(execution: str, *, disk: bool = False) -> Request[Record]:
    """The record, now; with `disk` what its workspace takes, too. `execution`: an id, a unique prefix of one, or a
    name; so everywhere below."""
    return Request("GET", _at(execution), answers.record, query={"disk": "true"} if disk else {})


def hold(execution: str, *, hold_s: float, until_ended: bool = True, after: int | None = None) -> Request[Record]:
    """The record, once it has ended (or has moved past event `after`), or after `hold_s` (at most HOLD_S)."""
    held_s = max(0.0, min(hold_s, HOLD_S))
    query = _only(after=None if after is None else str(after), until="ended" if until_ended else None)
    return Request(
        "GET", _at(execution), answers.record, query=query, headers={"prefer": f"wait={held_s:g}"}, hold_s=held_s
    )


def find(
    *,
    states: Iterable[str] = (),
    outcomes: Iterable[str] = (),
    labels: Mapping[str, str] | None = None,
    name: str = "",
    harness: str = "",
    limit: int = 50,
    cursor: str = "",
) -> Request[RecordPage]:
    """A page of records, newest first."""
    query: dict[str, Any] = {"limit": str(limit)}
    query["state"] = list(states)
    query["outcome"] = list(outcomes)
    query["label"] = [f"{key}={value}" for key, value in (labels or {}).items()]
    query |= {"name": name, "harness": harness, "cursor": cursor}
    return Request(
        "GET", f"{V1}/executions", answers.record_page, query={key: value for key, value in query.items() if value}
    )


def delete(execution: str, *, force: bool = False) -> Request[None]:
    """Remove record, history and files. A repeat that finds nothing is the first one's success."""
    query = {"force": "true"} if force else {}
    return Request("DELETE", _at(execution), answers.nothing, query=query, hold_s=HOLD_S if force else 0.0)


# -- steering --------------------------------------------------------------------------------------------------------


def message(execution: str, content: str | bytes, *, id: str = "", mode: str | None = None) -> Request[Receipt]:
    """`str`: one line (or user_message) for the harness; `bytes`: exactly these bytes."""
    body = _only(id=id or new_id(), mode=mode)
    if isinstance(content, str):
        body["text"] = content
    else:
        body["data_b64"] = base64.b64encode(content).decode()
    headers, data = _json(body)
    return Request("POST", _at(execution, "/messages"), answers.receipt, headers=headers, body=data)


Verb = Literal["interrupt", "cancel", "pause", "resume", "hibernate"]


def wish(execution: str, verb: Verb, *, id: str = "", hold_s: float = 0.0, **fields: Any) -> Request[Record]:
    """One of the verbs without an answer of their own: durable once this returns, done when its event is there. With
    `hold_s` the answer of a hibernate waits for its sleep."""
    headers, data = _json(_only(id=id or new_id(), **fields))
    return Request(
        "POST",
        _at(execution, f"/{verb}"),
        answers.record,
        headers={**headers, **_prefer(hold_s)},
        body=data,
        hold_s=hold_s,
    )


def resources(
    execution: str,
    *,
    cpus: float | None = None,
    memory_bytes: int | None = None,
    pids: int | None = None,
    id: str = "",
    hold_s: float = 0.0,
) -> Request[Record]:
    """More or less for the running sandbox. With `hold_s` the answer waits for the receipt (event sandbox.resized)."""
    headers, data = _json(_only(id=id or new_id(), cpus=cpus, memory_bytes=memory_bytes, pids=pids))
    headers = {**headers, **_prefer(hold_s)}
    return Request("PATCH", _at(execution, "/resources"), answers.record, headers=headers, body=data, hold_s=hold_s)


# -- what may leave it -----------------------------------------------------------------------------------------------


def egress(execution: str, allow: Sequence[str], *, id: str = "") -> Request[Record]:
    """Another allowlist, whole."""
    headers, data = _json({"id": id or new_id(), "allow": list(allow)})
    return Request("PUT", _at(execution, "/egress"), answers.record, headers=headers, body=data)


def budget(execution: str, budget: Mapping[str, Any], *, id: str = "") -> Request[Record]:
    """Another budget; what is absent stays, None takes a limit away."""
    headers, data = _json({**budget, "id": id or new_id()})
    return Request("PATCH", _at(execution, "/budget"), answers.record, headers=headers, body=data)


def intents(execution: str, *, states: Iterable[str] = (), after: int = 0, limit: int = 1000) -> Request[IntentPage]:
    """A page of the journal, in its order, those with n > `after`."""
    query: dict[str, Any] = {"limit": str(limit)}
    if after:
        query["after"] = str(after)
    if states := list(states):
        query["state"] = states
    return Request("GET", _at(execution, "/intents"), answers.intent_page, query=query)


Decision = Literal["retry", "done", "fail"]


def settle(execution: str, key: str, decision: Decision, *, result: str = "") -> Request[IntentAnswer]:
    """A decision on an intent in doubt. The same again changes nothing, so it may be repeated."""
    headers, data = _json({"key": key, "decision": decision, "result": result})
    return Request("POST", _at(execution, "/intents/settle"), answers.intent, headers=headers, body=data)


# -- history ---------------------------------------------------------------------------------------------------------


def page(
    execution: str, *, after: str = "", tail: int | None = None, limit: int = 1000, hold_s: float = 0.0
) -> Request[HistoryPage]:
    """Events after a cursor or seq ("" = from the start), or the last `tail`; waits up to `hold_s` for a first one."""
    query = {"after": after} if after else {}
    if tail is not None:
        query = {"tail": str(tail)}
    query["limit"] = str(limit)
    if hold_s:
        query["wait_s"] = f"{hold_s:g}"
    return Request("GET", _at(execution, "/events"), answers.history_page, query=query, hold_s=hold_s)


def stream(execution: str, *, after: str = "", tail: int | None = None) -> Request[None]:
    """The same as a stream of server-sent events; its body is read by following.py."""
    query = {"tail": str(tail)} if tail is not None else {"after": after or "0"}
    return Request(
        "GET", _at(execution, "/events"), answers.nothing, query=query, headers={"accept": "text/event-stream"}
    )


def channel_path(execution: str, *, after: str) -> str:
    """Path and query of the WebSocket."""
    return _at(execution, f"/channel?after={quote(after or '0', safe='')}")


# -- exec ------------------------------------------------------------------------------------------------------------


def exec_body(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    stdin: bytes | None = None,
    timeout_s: int | None = None,
    detach: bool = False,
    max_output_bytes: int | None = None,
) -> dict[str, Any]:
    """The body of POST …/exec."""
    return _only(
        command=list(command),
        env=dict(env) if env else None,
        cwd=cwd,
        stdin_b64=None if stdin is None else base64.b64encode(stdin).decode(),
        timeout_s=timeout_s,
        detach=detach or None,
        max_output_bytes=max_output_bytes,
    )


def exec_result(execution: str, body: Mapping[str, Any]) -> Request[ExecResult]:
    """Run one command beside the harness, wait, and have its bounded output. Not repeatable."""
    headers, data = _json(body)
    hold_s = float(body.get("timeout_s") or 24 * 3600)
    return Request(
        "POST",
        _at(execution, "/exec"),
        answers.exec_result,
        headers=headers,
        body=data,
        repeatable=False,
        hold_s=hold_s,
    )


def exec_stream(execution: str, body: Mapping[str, Any]) -> Request[None]:
    """The same, streamed; its body is read by executing.py."""
    headers, data = _json(body)
    return Request(
        "POST",
        _at(execution, "/exec"),
        answers.nothing,
        headers={**headers, "accept": "text/event-stream"},
        body=data,
        repeatable=False,
    )


# -- the installation ------------------------------------------------------------------------------------------------


def prune(body: Mapping[str, Any]) -> Request[PruneAnswer]:
    """`body` as POST /prune takes it: one request's worth; `next` goes into `after`. A repeat removes what is left."""
    headers, data = _json(_only(**body))
    return Request("POST", f"{V1}/prune", answers.pruned, headers=headers, body=data)


def stats(*, since: datetime | None = None, by: str = "", disk: bool = False) -> Request[Stats]:
    """Outcomes since a moment, grouped; with `disk` what each tenant's workspaces and snapshots take."""
    query = {"by": by} if by else {}
    if disk:
        query["disk"] = "true"
    if since is not None:
        query["since"] = since.isoformat()
    return Request("GET", f"{V1}/stats", answers.stats, query=query)


def harnesses() -> Request[HarnessList]:
    """The catalogue."""
    return Request("GET", f"{V1}/harnesses", answers.harness_list)


def health() -> Request[Health]:
    """Whether a server answers, and its version. Needs no token."""
    return Request("GET", "/healthz", answers.health)


def ready() -> Request[Readiness]:
    """Whether it can do its work; also read when it says no (503)."""
    return Request("GET", "/readyz", answers.readiness, also=frozenset({503}))
