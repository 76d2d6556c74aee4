"""The journal of intents as a sandbox asks for it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from orchestrator.intents import Decision
from tests.gateway.rig import Reached, Rig, until

NOWHERE = "http://127.0.0.1:9"


def intent(key: str = "k1", **more: Any) -> dict[str, Any]:
    return {
        "key": key,
        "run": "r1",
        "kind": "bash",
        "effect": "once",
        "summary": "pay",
        "digest": "d1",
    } | more


async def begin(reached: Reached, **more: Any) -> dict[str, Any]:
    answer = await reached.client.post("/carrel/v1/intents", json=intent(**more))
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


async def test_an_intent_is_begun_finished_and_remembered(rig: Rig) -> None:
    reached = await rig.gateway(NOWHERE)
    told = await begin(reached)
    assert told["go"] is True
    assert told["intent"].items() >= {"key": "k1", "state": "open", "attempt": 1, "n": 1, "effect": "once"}.items()
    done = await reached.client.post(
        "/carrel/v1/intents/finish", json={"key": "k1", "run": "r1", "ok": True, "result": "paid"}
    )
    assert done.json()["intent"]["state"] == "done"
    again = await begin(reached, run="r2")
    assert (again["go"], again["intent"]["result"]) == (False, "paid")
    read = await reached.client.get("/carrel/v1/intents", params={"key": "k1"})
    assert read.json()["intent"] == again["intent"]


async def test_one_in_doubt_waits_for_a_person_without_asking_again(rig: Rig) -> None:
    reached = await rig.gateway(NOWHERE)
    await begin(reached)
    assert (await begin(reached, run="r2"))["intent"]["state"] == "in_doubt"
    at_once = await reached.client.get("/carrel/v1/intents", params={"key": "k1"})
    assert at_once.json()["intent"]["state"] == "in_doubt"
    briefly = await reached.client.get("/carrel/v1/intents", params={"key": "k1", "wait_s": "0.05"})
    assert briefly.json()["intent"]["state"] == "in_doubt"
    waiting = asyncio.create_task(reached.client.get("/carrel/v1/intents", params={"key": "k1", "wait_s": "60"}))
    reached.gateway.update(await rig.execution())  # about something else
    await rig.store.intents.settle(rig.execution_id, "k1", Decision.DONE, result="it was", by="ada")
    assert not waiting.done()
    reached.gateway.update(await rig.execution())
    settled = (await waiting).json()["intent"]
    assert (settled["state"], settled["result"], settled["settled_by"]) == ("done", "it was", "ada")


async def test_who_waits_and_leaves_is_let_go(rig: Rig) -> None:
    reached = await rig.gateway(NOWHERE)
    await begin(reached)
    await begin(reached, run="r2")
    _, writer = await reached.dial()
    token = reached.client.headers["authorization"]
    writer.write(
        f"GET /carrel/v1/intents?key=k1&wait_s=600 HTTP/1.1\r\nhost: x\r\nauthorization: {token}\r\n\r\n".encode()
    )
    await until(lambda: any(task.get_name() == "gateway-client" for task in asyncio.all_tasks()))
    writer.close()
    await until(lambda: not any(task.get_name() == "gateway-exchange" for task in asyncio.all_tasks()))


@pytest.mark.parametrize(
    ("body", "status", "code", "field"),
    [
        ({"key": ""}, 422, "invalid", "key"),
        ({"key": "k" * 300}, 422, "invalid", "key"),
        ({"key": 5}, 422, "invalid", "key"),
        ({"effect": "sometimes"}, 422, "invalid", "effect"),
        ({"summary": "s" * 5000}, 422, "invalid", "summary"),
        ({"digest": "d2", "run": "r2"}, 409, "key_reused", None),
    ],
)
async def test_a_bad_intent_is_named(rig: Rig, body: dict[str, Any], status: int, code: str, field: str | None) -> None:
    reached = await rig.gateway(NOWHERE)
    await begin(reached)
    answer = await reached.client.post("/carrel/v1/intents", json=intent() | body)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code
    assert answer.json()["error"].get("field") == field


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"key": "other", "run": "r1", "ok": True}, 404),
        ({"key": "k1", "run": "r1", "ok": "yes"}, 422),
        ({"key": "k1", "run": "r1", "ok": True, "result": "x" * 70_000}, 422),
        ({"key": "k1", "run": "r1"}, 422),
    ],
)
async def test_a_bad_end_is_named(rig: Rig, body: dict[str, Any], status: int) -> None:
    reached = await rig.gateway(NOWHERE)
    await begin(reached)
    answer = await reached.client.post("/carrel/v1/intents/finish", json=body)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("query", "status"),
    [("key=other", 404), ("key=k&wait_s=x", 422), ("key=k&wait_s=1e9", 422), ("key=k&wait_s=nan", 422)],
)
async def test_a_bad_question_is_named(rig: Rig, query: str, status: int) -> None:
    reached = await rig.gateway(NOWHERE)
    assert (await reached.client.get(f"/carrel/v1/intents?{query}")).status_code == status


async def test_under_another_workers_claim_nothing_is_begun(rig: Rig) -> None:
    reached = await rig.gateway(NOWHERE)
    await rig.store.adopted()
    answer = await reached.client.post("/carrel/v1/intents", json=intent())
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "fenced")
    assert answer.headers["retry-after"] == "1"


async def test_a_body_that_is_too_large_is_not_read(rig: Rig) -> None:
    reached = await rig.gateway(NOWHERE)
    answer = await reached.client.post("/carrel/v1/intents", json=intent(summary="x" * 300_000))
    assert answer.status_code == 413
    assert answer.json()["error"]["field"] == "body"
