"""Submit, list, record, removal, over HTTP."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator import errors
from orchestrator.events import Entry
from orchestrator.execution import MIB, Limits, Outcome, OutcomeKind, Reason, Resources
from orchestrator.lifecycle import Trigger
from orchestrator.server.parts import ServerSettings
from orchestrator.tokens import Scope
from orchestrator.wire.record import Record
from tests.contracts.redis_store import lines
from tests.server.conftest import Api, running_api, with_settings

CANCELLED = Outcome(OutcomeKind.CANCELLED, Reason.CANCELLED)


@pytest.fixture
def settings() -> ServerSettings:
    return with_settings(
        default_resources=Resources(pids=77),
        default_limits=Limits(deadline_s=99.0),
        allowed_models={"students": ("small-*", "tiny")},
    )


async def test_submit_answers_with_the_record(api: Api) -> None:
    answer = await api.http.post(
        "/v1/executions",
        json={"command": ["echo", "hi"], "name": "greeting", "labels": {"team": "core"}, "resources": {"cpus": 2}},
    )
    record = answer.json()
    assert answer.status_code == 201, record
    assert answer.headers["location"] == f"/v1/executions/{record['id']}"
    assert record["state"] == "QUEUED" and record["harness"] == "command" and record["tail"] == 1
    assert record["resources"]["cpus"] == 2 and record["resources"]["pids"] == 77  # the installation's own default
    assert record["limits"]["deadline_s"] == 99.0
    for ref in (record["id"], record["id"][:12], "greeting"):
        assert (await api.client.get(ref)).id == record["id"]


async def test_a_key_submits_once(api: Api) -> None:
    body, key = {"command": ["true"]}, {"idempotency-key": "k1"}
    first, again = [await api.http.post("/v1/executions", json=body, headers=key) for _ in range(2)]
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"]
    other = await api.http.post("/v1/executions", json={"command": ["false"]}, headers=key)
    assert (other.status_code, other.json()["code"]) == (409, "key_reused")
    assert len((await api.client.page()).executions) == 1


async def test_a_model_that_the_tenant_may_not_use_is_refused_at_once(api: Api) -> None:
    """Not by the gateway, when the sandbox is there and the harness asks it."""
    token = await api.token_for(Scope.READ, Scope.WRITE, tenant="students")
    async with api.caller(token) as http:
        refused = await http.post("/v1/executions", json={"command": ["true"], "model": "large"})
        problem = refused.json()
        assert (refused.status_code, problem["code"], problem["field"]) == (403, "forbidden", "model")
        assert problem["limit"] == "small-* | tiny"
        assert "[tenants.students]" in problem["remedy"]
        for fine in ("small-1", "tiny", ""):
            assert (await http.post("/v1/executions", json={"command": ["true"], "model": fine})).status_code == 201
        assert len((await http.get("/v1/executions")).json()["executions"]) == 3, "what was refused left nothing"
    await api.submit(model="large")  # a tenant that is not listed may use all


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"command": ["x"], "privileged": True}, "privileged"),
        ({"command": ["x"], "labels": {"carrel.sandbox": "x"}}, "labels"),
        ({"command": ["x"], "resources": {"disk_bytes": 1}}, "resources.disk_bytes"),
        ({"command": ["x"], "limits": {"idle_timeout_s": 0}}, "limits.idle_timeout_s"),
        ({"task": "x", "harness": "nope"}, "harness"),
        ({"task": "x" * (MIB + 1)}, "task"),
        ({"command": ["x"], "files": [{"path": "a", "sha256": "0" * 64}]}, "files[0].sha256"),
        ([], "body"),
        ("x", "body"),
    ],
)
async def test_what_is_wrong_is_named_with_limit_and_remedy(api: Api, body: Any, field: str) -> None:
    answer = await api.http.post("/v1/executions", json=body)
    problem = answer.json()
    assert (answer.status_code, problem["field"]) == (422, field), problem
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["limit"] and problem["remedy"] and problem["code"] == "invalid"


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b'{"a":1e999}', b"[" * 100_000, b"9" * 5000])
async def test_what_is_not_json_is_refused(api: Api, body: bytes) -> None:
    answer = await api.http.post("/v1/executions", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")


async def test_a_large_body_is_refused_whether_announced_or_not(api: Api) -> None:
    async def endless() -> Any:
        for _ in range(64):
            yield b" " * MIB

    announced = await api.http.post("/v1/executions", content=b" " * (9 * MIB))
    chunked = await api.http.post("/v1/executions", content=endless(), headers={"content-type": "application/json"})
    for answer in (announced, chunked):
        assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (413, "too_large", "body")


async def test_a_body_that_does_not_come_is_not_waited_for(redis_url: str, installation: str, short_dir: Path) -> None:
    async with running_api(redis_url, installation, short_dir, with_settings(stall_limit_s=0.2)) as api:
        reader, writer = await asyncio.open_unix_connection(str(api.socket))
        writer.write(
            f"POST /v1/executions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {api.token}\r\n"
            "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{".encode()
        )
        assert b" 408 " in await reader.readline()
        writer.close()


async def test_what_changes_something_is_logged_on_one_line(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="orchestrator.server")
    id = await api.submit()
    await api.http.post(f"/v1/executions/{id}/cancel?x=secret", json={})
    await api.http.get(f"/v1/executions/{id}")
    await api.http.delete("/v1/executions/evil%0d%0a%1b[2J")
    lines_ = [vars(record) for record in caplog.records if record.getMessage() == "request"]
    assert [(line["method"], line["status"], line["token"]) for line in lines_] == [
        ("POST", 201, "tok_admin"),
        ("POST", 202, "tok_admin"),
        ("DELETE", 404, "tok_admin"),
    ]
    assert lines_[1]["execution"] == id and lines_[1]["path"] == f"/v1/executions/{id}/cancel"
    assert lines_[2]["path"] == "/v1/executions/evil%0d%0a%1b[2J"


async def test_files_are_kept_by_content(api: Api) -> None:
    blob = (await api.http.post("/v1/blobs", content=b"wheel" * 1000)).json()
    id = await api.submit(
        files=[
            {"path": "a/run.sh", "text": "echo", "mode": "0755"},
            {"path": "b", "data_b64": "AAE="},
            {"path": "c", "sha256": blob["sha256"]},
        ]
    )
    record = (await api.client.get(id)).record
    assert record is not None
    assert [(file.path, file.size_bytes, file.mode) for file in record.files] == [
        ("a/run.sh", 4, "0755"),
        ("b", 2, "0644"),
        ("c", 5000, "0644"),
    ]
    for file in record.files:
        assert await api.parts.blobs.has(file.sha256) == file.size_bytes


async def test_a_list_is_filtered_and_paged(api: Api) -> None:
    ids = [await api.submit(name=f"n{at}", labels={"team": "ab"[at % 2]}) for at in range(5)]
    assert [record.id async for record in api.client.list(limit=2)] == ids[::-1]
    assert [record.id async for record in api.client.list(labels={"team": "b"})] == [ids[3], ids[1]]
    assert [record.id async for record in api.client.list(name="n4")] == [ids[4]]
    assert [record.id async for record in api.client.list(states=["RUNNING"])] == []
    for query in ("state=NOPE", "label=x", "limit=0", "limit=501", "cursor=%21%21", "outcome=1"):
        answer = await api.http.get(f"/v1/executions?{query}")
        assert (answer.status_code, answer.json()["field"].partition("[")[0]) == (422, query.partition("=")[0]), (
            answer.text
        )


@pytest.mark.parametrize("ref", ["nope", "exe_zzzz", "..", "%00", "a%2Fb", "exe_%F0%9F%92%A9", "x" * 500, "%FF"])
async def test_odd_ids_are_not_found(api: Api, ref: str) -> None:
    for path in ("", "/events", "/artifacts", "/files/x"):
        answer = await api.http.get(f"/v1/executions/{ref}{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), answer.text


async def test_an_ambiguous_prefix_says_so(api: Api) -> None:
    ids = [await api.submit() for _ in range(2)]
    shared = next(ids[0][:at] for at in range(len(ids[0]), 0, -1) if ids[0][:at] == ids[1][:at])
    answer = await api.http.get(f"/v1/executions/{shared}")
    assert (answer.status_code, answer.json()["field"]) == (422, "id"), answer.text


async def test_a_held_record_answers_at_the_change(api: Api) -> None:
    lease = await api.running()
    path = f"/v1/executions/{lease.execution_id}"
    tail = (await api.record(lease.execution_id)).tail
    held = asyncio.create_task(api.http.get(path, params={"after": tail}, headers={"prefer": "wait=60"}))
    ended = asyncio.create_task(api.http.get(path, params={"until": "ended"}, headers={"prefer": "wait=60"}))
    await asyncio.sleep(0.05)
    assert not held.done() and not ended.done()
    await api.store.history.append(lease, attempt=1, own=3, entries=[Entry("x")])
    assert (await held).json()["tail"] == tail + 1
    assert not ended.done()
    await api.store.finish(lease, own=4)
    assert (await ended).json()["outcome"]["kind"] == "SUCCEEDED"
    # What has happened already is not waited for.
    assert (await api.http.get(path, params={"after": tail}, headers={"prefer": "wait=60"})).status_code == 200


async def test_a_held_record_answers_when_the_time_is_over(api: Api) -> None:
    id = await api.submit()
    answer = await api.http.get(f"/v1/executions/{id}", headers={"prefer": "respond-async, wait=0.1"})
    assert answer.json()["state"] == "QUEUED"


async def test_waiting_through_the_client(api: Api) -> None:
    lease = await api.running()
    waiting = asyncio.create_task(api.client.execution(lease.execution_id).wait())
    await api.store.history.append(lease, attempt=1, spooled=lines(1, 500))
    await api.store.finish(lease, own=3)
    record: Record = await waiting
    assert record.ended and record.tail > 500


async def test_only_what_has_ended_is_removed(api: Api) -> None:
    lease = await api.running()
    slot = api.workspaces.slot(f"sbx_{lease.execution_id}_1").path
    execution = api.client.execution(lease.execution_id)
    with pytest.raises(errors.Conflict):
        await execution.delete()
    await api.store.finish(lease, own=3)
    assert slot.exists()
    await execution.delete()
    with pytest.raises(errors.NotFound):
        await execution.refresh()
    assert not slot.exists()


async def test_force_ends_it_first(api: Api) -> None:
    queued = await api.submit()
    await api.client.execution(queued).delete(force=True)
    lease = await api.running()
    removing = asyncio.create_task(api.client.execution(lease.execution_id).delete(force=True))
    while (want := (await api.record(lease.execution_id)).wants.cancel) is None:
        await asyncio.sleep(0.005)
    assert want.grace_s == 0
    await api.store.move(lease, Trigger.CANCEL, own=3)
    await api.store.move(lease, Trigger.STOPPED, own=4, outcome=CANCELLED)
    await removing
    assert (await api.client.page()).executions == []


async def test_no_page_is_a_problem_too(api: Api) -> None:
    for method, path, status in (("GET", "/nope", 404), ("PUT", "/v1/executions", 405), ("GET", "/v1/", 404)):
        answer = await api.http.request(method, path)
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
        assert json.loads(answer.text)["status"] == status
