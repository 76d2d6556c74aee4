"""Over HTTP: what may leave a sandbox, the budget and its spend, the journal of intents, the catalogue."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.calls import Asked, ModelUsage, Reserved
from orchestrator.history import Lease
from orchestrator.intents import Effect
from orchestrator.stores.redis import RedisCalls
from orchestrator.tokens import Scope
from tests.server.conftest import Api


async def test_submitted_and_changed_while_it_runs(api: Api) -> None:
    lease = await api.running(
        model="m1", egress={"allow": ["A.example"]}, limits={"budget_usd": 0.5, "steps": 3, "on_budget": "wait"}
    )
    path = f"/v1/executions/{lease.execution_id}"
    record = (await api.http.get(path)).json()
    assert (record["model"], record["egress"]["allow"], record["limits"]["steps"]) == ("m1", ["a.example"], 3)
    assert record["budget"] == {"usd": 0.5, "micros": 500_000, "tokens": None, "on_budget": "wait"}
    assert record["spend"]["calls"] == 0 and record["over_budget"] == ""

    for _ in range(2):
        answer = await api.http.put(f"{path}/egress", json={"id": "e1", "allow": ["*.b.example:8443"]})
        assert (answer.status_code, answer.json()["egress"]["allow"]) == (200, ["*.b.example:8443"])
    answer = await api.http.patch(f"{path}/budget", json={"budget_tokens": 9})
    assert answer.json()["budget"] == {"usd": 0.5, "micros": 500_000, "tokens": 9, "on_budget": "wait"}
    answer = await api.http.patch(f"{path}/budget", json={"budget_usd": None, "on_budget": "fail"})
    assert answer.json()["budget"] == {"usd": None, "micros": None, "tokens": 9, "on_budget": "fail"}
    assert answer.json()["limits"]["budget_usd"] == 0.5, "as submitted"
    told = (await api.http.get(f"{path}/events")).json()["events"]
    assert [event["type"] for event in told].count("egress.changed") == 1

    await api.store.finish(lease, own=3)
    for method, name, body in (("PUT", "egress", {"allow": []}), ("PATCH", "budget", {"budget_usd": 1})):
        refused = await api.http.request(method, f"{path}/{name}", json=body)
        assert (refused.status_code, refused.json()["state"]) == (409, "FINISHED")
        assert refused.json()["remedy"]


@pytest.mark.parametrize(
    ("method", "name", "body", "field"),
    [
        ("PUT", "egress", {"allow": ["169.254.169.254"]}, "allow[0]"),
        ("PUT", "egress", {}, "allow"),
        ("PATCH", "budget", {}, "body"),
        ("PATCH", "budget", {"budget_usd": 0.1234567}, "budget_usd"),
        ("POST", "intents/settle", {"key": "k"}, "decision"),
    ],
)
async def test_what_is_wrong_is_named(api: Api, method: str, name: str, body: dict[str, Any], field: str) -> None:
    id = await api.submit()
    answer = await api.http.request(method, f"/v1/executions/{id}/{name}", json=body)
    assert (answer.status_code, answer.json()["field"]) == (422, field), answer.text
    assert answer.json()["limit"] and answer.json()["remedy"]


async def test_spend_is_in_the_record_the_statistics_and_the_metrics(api: Api) -> None:
    lease = await api.running()
    calls = RedisCalls(api.store.server, api.store.keys)
    most = ModelUsage(cost_micros=900, input_tokens=5, output_tokens=10)
    reserved = await calls.begin(lease, 1, Asked("d", "", reserve=most, if_cut=most))
    assert isinstance(reserved, Reserved)
    spent = (await api.http.get(f"/v1/executions/{lease.execution_id}")).json()["spend"]
    assert (spent["micros"], spent["reserved_micros"], spent["reserved_tokens"]) == (0, 900, 15)
    await calls.finish(lease, reserved.call, None, ModelUsage(input_tokens=5, output_tokens=7, cost_micros=321), {})
    spent = (await api.http.get(f"/v1/executions/{lease.execution_id}")).json()["spend"]
    assert (spent["usd"], spent["micros"], spent["reserved_micros"]) == (0.000321, 321, 0)
    assert (spent["input_tokens"], spent["output_tokens"], spent["calls"]) == (5, 7, 1)
    await api.store.finish(lease, own=3)
    [group] = (await api.http.get("/v1/stats")).json()["groups"]
    assert (group["spend"]["micros"], group["spend"]["calls"]) == (321, 1)
    metrics = (await api.http.get("/metrics")).text
    assert "carrel_model_micros_1h 321.0" in metrics and "carrel_model_calls_1h 1.0" in metrics
    assert 'carrel_model_tokens_1h{kind="output"} 7.0' in metrics


async def told(api: Api, lease: Lease, key: str, *, run: str = "r1", effect: Effect = Effect.ONCE) -> bool:
    begun = await api.parts.intents.begin(
        lease, attempt=1, key=key, run=run, kind="bash", effect=effect, summary=f"do {key}", digest="d"
    )
    return begun.go


ODD = "call/7?x=%2F#é ü"


async def test_the_journal_and_a_person_s_decision(api: Api) -> None:
    lease = await api.running()
    path = f"/v1/executions/{lease.execution_id}/intents"
    for key in ("a", ODD, "c"):
        assert await told(api, lease, key)
    await api.parts.intents.finish(lease, key="a", run="r1", ok=True, result="fine")
    assert not await told(api, lease, ODD, run="r2")
    page = (await api.http.get(path, params={"limit": 2})).json()
    assert [(one["key"], one["n"], one["state"], one["effect"]) for one in page["intents"]] == [
        ("a", 1, "done", "once"),
        (ODD, 2, "in_doubt", "once"),
    ]
    assert page["intents"][0]["result"] == "fine" and page["next"] == 2
    rest = (await api.http.get(path, params={"after": page["next"], "limit": 2})).json()
    assert [one["key"] for one in rest["intents"]] == ["c"] and rest["next"] is None
    doubtful = (await api.http.get(path, params={"state": ["in_doubt", "retry"]})).json()["intents"]
    assert [one["key"] for one in doubtful] == [ODD]

    for _ in range(2):
        settled = await api.http.post(f"{path}/settle", json={"key": ODD, "decision": "done", "result": "seen"})
        assert settled.status_code == 200, settled.text
        assert (settled.json()["state"], settled.json()["result"]) == ("done", "seen")
        assert settled.json()["settled_by"]
    conflict = await api.http.post(f"{path}/settle", json={"key": "a", "decision": "retry"})
    assert (conflict.status_code, conflict.json()["state"]) == (409, "done")
    missing = await api.http.post(f"{path}/settle", json={"key": "nowhere", "decision": "retry"})
    assert (missing.status_code, missing.json()["kind"]) == (404, "intent")


async def test_settling_needs_more_than_reading(api: Api) -> None:
    lease = await api.running()
    async with api.caller(await api.token_for(Scope.READ)) as http:
        path = f"/v1/executions/{lease.execution_id}/intents"
        assert (await http.get(path)).json() == {"intents": [], "next": None}
        refused = await http.post(f"{path}/settle", json={"key": "k", "decision": "retry"})
        assert refused.status_code == 403


async def test_the_catalogue(api: Api) -> None:
    found = {one["name"]: one for one in (await api.http.get("/v1/harnesses")).json()["harnesses"]}
    assert {"bash", "command"} <= found.keys()
    assert found["bash"]["command"] == ["/bin/bash", "/run/task"] and found["command"]["command"] == []
    assert found["bash"]["about"] and found["bash"]["resumes"] is False
