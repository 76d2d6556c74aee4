"""Health, readiness, metrics, stats; and where and how the server listens and ends."""

from __future__ import annotations

import asyncio
import re
import socket
import stat
from pathlib import Path

import pytest

import orchestrator
from orchestrator import errors
from orchestrator.client import AsyncClient
from orchestrator.errors import BadInput
from orchestrator.execution import OutcomeKind
from orchestrator.executions import EGRESS_SENT
from orchestrator.lifecycle import ExecutionState
from orchestrator.server.app import create_app
from orchestrator.server.serve import listen, serving
from orchestrator.tokens import Scope
from tests.server.conftest import Api


async def test_health_needs_nothing(api: Api) -> None:
    async with api.caller(None) as http:
        assert (await http.get("/healthz")).json() == {"status": "ok", "version": orchestrator.__version__}


async def test_readiness_says_what_is_missing(api: Api) -> None:
    answer = await api.http.get("/readyz")
    reasons = answer.json()["reasons"]
    assert answer.status_code == 503  # nobody has prepared this store: it has no schema number
    assert any(reason.startswith("schema: ") for reason in reasons)
    await api.store.server.ask("HSET", api.store.keys.meta, "schema", 1)
    ready = await api.client.ready()
    assert ready.ready and ready.promises.durability
    assert [reason.partition(":")[0] for reason in ready.reasons] == ["workers"]
    await api.store.executions.heartbeat("h1", "w1", {})
    assert (await api.client.ready()).reasons == []
    api.parts.stopping.set()
    assert (await api.http.get("/readyz")).json()["reasons"] == ["this process is stopping"]
    api.parts.stopping.clear()


async def test_metrics_name_routes_and_never_paths(api: Api) -> None:
    id = await api.submit(name="one")
    await api.client.get(id)
    for odd in ("/evil-1", "/v1/executions/evil-2", "/v1/executions/evil-3/events"):
        await api.http.get(odd)
    await api.http.request("OPTIONS", "/healthz")
    text = (await api.http.get("/metrics")).text
    assert "evil" not in text.lower() and id not in text
    assert 'carrel_executions{state="QUEUED"} 1.0' in text
    assert f'carrel_executions{{state="{ExecutionState.FINISHED}"}} 0.0' in text
    routes = set(re.findall(r'carrel_http_seconds_count\{method="(\w+)",route="([^"]*)",status="(\dxx)"\}', text))
    assert {
        ("POST", "/v1/executions", "2xx"),
        ("GET", "/v1/executions/{id}", "2xx"),
        ("GET", "/v1/executions/{id}", "4xx"),
        ("GET", "/v1/executions/{id}/events", "4xx"),
        ("GET", "other", "4xx"),
        ("other", "/healthz", "4xx"),
    } <= routes


async def test_outcomes_are_counted_by_reason_and_group(api: Api) -> None:
    for team, cancelled in (("a", False), ("a", True), ("b", True)):
        if cancelled:
            id = await api.submit(labels={"team": team})
            await api.client.execution(id).cancel()
        else:
            await api.store.finish(await api.running(labels={"team": team}), own=3)
    (everything,) = (await api.client.stats()).groups
    assert (everything.completed, everything.by_outcome) == (3, {"SUCCEEDED": 1, "CANCELLED": 2})
    assert everything.by_reason == {"exit_code": 1, "cancelled": 2}
    by_team = {group.group: group.completed for group in (await api.client.stats(by="label:team")).groups}
    assert by_team == {"a": 2, "b": 1}
    assert (await api.http.get("/v1/stats", params={"since": "2999-01-01T00:00:00Z"})).json()["groups"] in (
        [],
        [{"group": "", "completed": 0, "by_outcome": {}, "by_reason": {}, "resumed": 0, "wall_s": 0.0}],
    )
    text = (await api.http.get("/metrics")).text
    assert 'carrel_reasons_1h{reason="cancelled"} 2.0' in text
    assert f'carrel_outcomes_1h{{outcome="{OutcomeKind.LOST}"}} 0.0' in text


async def test_bytes_through_the_egress_proxies_are_a_counter(api: Api) -> None:
    for sent in (0, 5, 7):
        await api.store.executions.heartbeat("h1", "w1", {}, counted={EGRESS_SENT: sent})
        text = (await api.http.get("/metrics")).text
    assert 'carrel_egress_bytes_total{direction="sent"} 12.0' in text
    assert 'carrel_egress_bytes_total{direction="received"} 0.0' in text


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"since": "yesterday"}, "since"),
        ({"since": "99999999999d"}, "since"),
        ({"by": "user"}, "by"),
        ({"by": "label:"}, "by"),
    ],
)
async def test_a_wrong_question_is_named(api: Api, query: dict[str, str], field: str) -> None:
    answer = await api.http.get("/v1/stats", params=query)
    assert (answer.status_code, answer.json()["field"]) == (422, field)


async def test_stats_of_a_tenant_are_its_own(api: Api) -> None:
    await api.store.finish(await api.running(), own=3)
    async with api.caller(await api.token_for(Scope.READ, tenant="other")) as http:
        stats = (await http.get("/v1/stats")).json()
    assert sum(group["completed"] for group in stats["groups"]) == 0
    assert stats["hosts"] == [] and stats["states"] == {}


async def test_it_listens_on_a_port_as_well(api: Api) -> None:
    at = listen(host="127.0.0.1", port=0)
    app = create_app(
        executions=api.store.executions,
        history=api.store.history,
        reach=api.parts.reach,
        blobs=api.parts.blobs,
        tokens=api.tokens,
        intents=api.parts.intents,
        snapshots=api.store.snapshots,
    )
    async with serving(app, at=at) as listening:
        assert listening.url == f"http://127.0.0.1:{listening.port}" and listening.port > 0
        async with AsyncClient(listening.url, api.token) as client:
            assert (await client.health()).status == "ok"
        with pytest.raises(BadInput) as caught:
            listen(host="127.0.0.1", port=listening.port)
        assert caught.value.field == "port"


async def test_a_socket_is_for_its_owner_and_a_live_one_is_not_taken(api: Api) -> None:
    assert stat.S_IMODE(api.socket.stat().st_mode) == 0o600
    with pytest.raises(BadInput):
        listen(path=api.socket)
    assert (await api.client.health()).status == "ok"


async def test_a_stale_socket_is_replaced_and_another_file_is_not(short_dir: Path) -> None:
    listen(path=short_dir / "s").close()
    listen(path=short_dir / "s").close()
    (short_dir / "f").write_text("precious")
    with pytest.raises(BadInput):
        listen(path=short_dir / "f")
    assert (short_dir / "f").read_text() == "precious"


async def test_the_end_waits_for_a_request_under_way_but_not_for_an_idle_connection(api: Api) -> None:
    at = listen(host="127.0.0.1", port=0)
    app = create_app(
        executions=api.store.executions,
        history=api.store.history,
        reach=api.parts.reach,
        blobs=api.parts.blobs,
        tokens=api.tokens,
        intents=api.parts.intents,
        snapshots=api.store.snapshots,
    )
    id = await api.submit()
    with socket.socket() as idle:
        async with serving(app, at=at, grace_s=30) as listening:
            idle.connect(("127.0.0.1", listening.port))
            async with AsyncClient(listening.url, api.token) as client:
                held = asyncio.create_task(client.execution(id).history(after="now", hold_s=60))
                while not app.state.parts.holding:
                    await asyncio.sleep(0.005)
            held.cancel()
            await asyncio.gather(held, return_exceptions=True)


async def test_held_requests_are_answered_when_the_process_stops(api: Api) -> None:
    id = await api.submit()
    held = asyncio.create_task(api.http.get(f"/v1/executions/{id}", headers={"prefer": "wait=60"}))
    while not api.parts.holding:
        await asyncio.sleep(0.005)
    api.parts.stopping.set()
    assert (await held).json()["state"] == "QUEUED"
    api.parts.stopping.clear()
    with pytest.raises(errors.NotFound):
        await api.client.get("nope")
