"""Snapshots over HTTP: asked for once per key, waited for by their receipt, listed, named, removed."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator import errors
from orchestrator.lifecycle import Trigger
from orchestrator.server.parts import ServerSettings
from orchestrator.tokens import Scope
from tests.contracts.redis_store import SUCCEEDED
from tests.server.conftest import Api, until, with_settings


@pytest.fixture
def settings() -> ServerSettings:
    return with_settings(wake_wait_s=0.5, cut_wait_s=20.0)


async def test_one_of_a_running_execution(api: Api) -> None:
    lease = await api.running()
    execution = api.client.execution(lease.execution_id)
    async with api.cutting(lease, own=3):
        taken = await execution.snapshot(name="before", labels={"k": "v"})
    assert (taken.name, taken.labels, taken.why, taken.cut.attempt) == ("before", {"k": "v"}, "asked", 1)
    record = await execution.refresh()
    assert record.snapshot_id == taken.id and not record.wants.snapshots
    assert [one.id async for one in execution.snapshots()] == [taken.id]
    assert (await api.client.snapshot("before")).id == (await api.client.snapshot(taken.id[:20])).id == taken.id


async def test_without_waiting_it_is_a_wish(api: Api) -> None:
    lease = await api.running()
    asked = await api.http.post(f"/v1/executions/{lease.execution_id}/snapshots", headers={"idempotency-key": "k"})
    assert asked.status_code == 202 and asked.json()["snapshot"] is None
    again = await api.http.post(f"/v1/executions/{lease.execution_id}/snapshots", headers={"idempotency-key": "k"})
    other = await api.http.post(f"/v1/executions/{lease.execution_id}/snapshots")
    assert again.json()["id"] == asked.json()["id"] != other.json()["id"]
    wanted = (await api.client.execution(lease.execution_id).refresh()).wants.snapshots
    assert [want.id for want in wanted] == [asked.json()["id"], other.json()["id"]]
    async with api.cutting(lease, own=3):
        headers = {"idempotency-key": "k", "prefer": "wait=20"}
        done = await api.http.post(f"/v1/executions/{lease.execution_id}/snapshots", headers=headers)
    assert done.status_code == 201 and done.json()["snapshot"]["id"] == done.json()["id"] == asked.json()["id"]


async def test_a_wait_in_vain_is_accepted_and_says_so(api: Api) -> None:
    lease = await api.running()
    answer = await api.http.post(f"/v1/executions/{lease.execution_id}/snapshots", headers={"prefer": "wait=0.05"})
    assert answer.status_code == 202 and answer.json()["snapshot"] is None
    with pytest.raises(errors.Unavailable, match="is not there after"):
        await api.client.execution(lease.execution_id).snapshot(timeout_s=0.1)


async def test_one_that_fails_says_why(api: Api) -> None:
    lease = await api.running()
    async with api.cutting(lease, own=3, fails="no space left"):
        with pytest.raises(errors.Conflict, match="no space left"):
            await api.client.execution(lease.execution_id).snapshot()
    assert (await api.client.execution(lease.execution_id).refresh()).state == "RUNNING"


async def test_it_ends_before_its_snapshot(api: Api) -> None:
    lease = await api.running()
    asking = asyncio.create_task(api.client.execution(lease.execution_id).snapshot())
    await until(lambda: api.parts.holding > 0)
    await api.store.finish(lease, own=3)
    with pytest.raises(errors.Conflict, match="has ended"):
        await asking


async def test_of_what_has_ended_the_newest_is_answered(api: Api) -> None:
    lease = await api.running()
    older = await api.cut(lease, own=3)
    newest = await api.cut(lease, own=4)
    await api.store.finish(lease, own=5)
    execution = api.client.execution(lease.execution_id)
    assert (await execution.snapshot()).id == newest.id
    assert (await execution.snapshot(name="kept", labels={"a": "b"})).name == "kept"
    assert (await execution.snapshot(name="kept")).labels == {"a": "b"}
    with pytest.raises(errors.Conflict, match="has the name 'kept'"):
        await execution.snapshot(name="other")
    assert [one.id async for one in execution.snapshots()] == [newest.id, older.id]


async def test_where_there_is_none_to_be_had(api: Api) -> None:
    queued = api.client.execution(await api.submit())
    with pytest.raises(errors.Conflict):
        await queued.snapshot()
    await queued.cancel()
    with pytest.raises(errors.Conflict, match="has no snapshot"):
        await queued.snapshot()


@pytest.mark.parametrize(
    ("method", "path", "body", "field"),
    [
        ("POST", "/v1/executions/{id}/snapshots", {"name": "a b"}, "name"),
        ("POST", "/v1/executions/{id}/snapshots", {"name": "snp_1"}, "name"),
        ("POST", "/v1/executions/{id}/snapshots", {"labels": {"carrel.x": "y"}}, "labels"),
        ("POST", "/v1/executions/{id}/snapshots", {"when": "now"}, "when"),
        ("PATCH", "/v1/snapshots/{sid}", {}, "body"),
        ("POST", "/v1/executions/{id}/fork", {"count": 0}, "count"),
        ("POST", "/v1/executions/{id}/fork", {"count": 101}, "count"),
        ("POST", "/v1/executions/{id}/fork", {"snapshot": "../x"}, "snapshot"),
        ("POST", "/v1/executions/{id}/fork", {"count": 100, "name": "n" * 61}, "body"),
        ("POST", "/v1/executions/{id}/fork", {"resources": {"disk_bytes": 1}}, "resources.disk_bytes"),
        ("POST", "/v1/executions/{id}/fork", {"limits": {"grace_s": -1}}, "limits.grace_s"),
        ("POST", "/v1/executions/{id}/fork", {"command": ["x"]}, "command"),
        ("POST", "/v1/executions/{id}/rewind", {}, "snapshot"),
        ("POST", "/v1/executions/{id}/rewind", {"snapshot": ""}, "body"),
    ],
)
async def test_bad_input_names_its_field(api: Api, method: str, path: str, body: object, field: str) -> None:
    lease = await api.running()
    snapshot = await api.cut(lease, own=3)
    path = path.replace("{id}", lease.execution_id).replace("{sid}", snapshot.id)
    answer = await api.http.request(method, path, json=body)
    problem = answer.json()
    assert (answer.status_code, problem["field"]) == (422, field), problem
    assert problem["limit"] and problem["remedy"]


async def test_words_and_removal(api: Api) -> None:
    lease = await api.running()
    first, second = await api.cut(lease, own=3), await api.cut(lease, own=4, name="taken")
    with pytest.raises(errors.NameTaken):
        await api.client.label_snapshot(first.id, name="taken")
    named = await api.client.label_snapshot(first.id, name="first", labels={"x": "y"})
    assert (named.name, named.labels) == ("first", {"x": "y"})
    assert (await api.client.label_snapshot("first", name="")).labels == {"x": "y"}
    with pytest.raises(errors.NotFound):
        await api.client.snapshot("first")
    with pytest.raises(errors.Conflict, match="would go on from"):
        await api.client.delete_snapshot(second.id)
    await api.client.delete_snapshot(first.id)
    with pytest.raises(errors.NotFound):
        await api.client.snapshot(first.id)
    # Its files go with it, not only when the sweeper comes.
    assert [id for id, _ in await api.workspaces.snapshots()] == [second.id]


async def test_pages_newest_first(api: Api) -> None:
    lease = await api.running()
    taken = [(await api.cut(lease, own=own)).id for own in range(3, 8)]
    await api.running()
    first = (await api.http.get("/v1/snapshots", params={"limit": 3})).json()
    rest = (await api.http.get("/v1/snapshots", params={"limit": 3, "cursor": first["next"]})).json()
    assert rest["next"] == ""
    assert {one["id"] for one in first["snapshots"] + rest["snapshots"]} == set(taken)
    of_one = (await api.http.get(f"/v1/executions/{lease.execution_id}/snapshots")).json()
    assert [one["id"] for one in of_one["snapshots"]] == taken[::-1]
    assert (await api.http.get("/v1/snapshots", params={"cursor": "nonsense"})).status_code == 422


async def test_hibernate_is_only_for_what_goes_on_with_earlier_work(api: Api) -> None:
    lease = await api.running()
    with pytest.raises(errors.Conflict, match="begins anew") as refused:
        await api.client.execution(lease.execution_id).hibernate()
    assert "pause" in refused.value.data["remedy"]
    await api.store.finish(lease, own=3)
    with pytest.raises(errors.Conflict):
        await api.client.execution(lease.execution_id).hibernate()


async def test_an_exec_wakes_what_sleeps_and_says_when_it_does_not_come(api: Api) -> None:
    lease = await api.running()
    await api.store.move(lease, Trigger.HIBERNATE, own=3)
    await api.store.move(lease, Trigger.CUT, own=4, seen=0, unowned=True)
    execution = api.client.execution(lease.execution_id)
    assert (await execution.refresh()).state == "HIBERNATED"
    with pytest.raises(errors.Unavailable, match="does not run") as late:
        await execution.exec(["true"])
    assert late.value.data["remedy"]
    assert (await execution.refresh()).state == "QUEUED"  # woken: there is just nobody to run it
    ending = asyncio.create_task(execution.exec(["true"]))
    await until(lambda: api.parts.holding > 0)
    await execution.cancel()
    with pytest.raises((errors.Conflict, errors.Unavailable)):
        await ending


async def test_the_workspace_is_measured_where_it_is_asked_for(api: Api) -> None:
    lease = await api.running()
    execution = api.client.execution(lease.execution_id)
    await execution.files.write("a", b"x" * 100_000)
    assert (await execution.refresh()).disk is None
    disk = (await execution.refresh(disk=True)).disk
    assert disk is not None and disk.used_bytes >= 100_000 and disk.limit_bytes == 0
    await api.store.finish(lease, own=3, outcome=SUCCEEDED)


async def test_stats_of_the_disk_are_a_tenant_s_own(api: Api) -> None:
    lease = await api.running()
    await api.client.execution(lease.execution_id).files.write("a", b"x" * 100_000)
    await api.cut(lease, own=3, size_bytes=123)
    assert (await api.client.stats()).disk == []
    stats = await api.client.stats(disk=True)
    assert stats.store is not None and (stats.store.kind, stats.store.limits_disk) == ("directory", False)
    (own,) = stats.disk
    assert (own.tenant, own.workspaces, own.snapshots, own.snapshot_bytes) == ("default", 1, 1, 123)
    assert own.used_bytes >= 100_000
    async with api.caller(await api.token_for(Scope.READ, tenant="other")) as http:
        answer = (await http.get("/v1/stats", params={"disk": "true"})).json()
    assert answer["disk"] == [] and answer["store"] is None


async def test_the_policy_is_in_the_record(api: Api) -> None:
    id = await api.submit(snapshots={"every_s": 60, "at_end": False, "keep": {"last": 3, "days": 1}})
    policy = (await api.record(id)).spec.snapshots
    assert (policy.every_s, policy.at_end, policy.keep.last, policy.keep.days) == (60, False, 3, 1)
    shown = (await api.client.execution(id).refresh()).snapshots
    assert shown is not None and (shown.every_s, shown.keep.last) == (60, 3)
    with pytest.raises(errors.BadInput) as wrong:
        await api.submit(snapshots={"every_s": 0.5})
    assert wrong.value.field == "snapshots.every_s"
