"""POST /v1/prune: what may go, whose, in what order; what runs is never touched."""

from __future__ import annotations

from typing import Any

from orchestrator.events import Cursor
from orchestrator.history import Lease
from orchestrator.snapshots import Why
from orchestrator.tokens import Scope
from tests.server.conftest import Api
from tests.server.test_artifacts import ended


async def over(api: Api, **spec: Any) -> Lease:
    """One that has ended, with a file, an artifact and two snapshots taken by themselves."""
    lease = await api.running(**spec)
    files = api.workspaces.files(f"sbx_{lease.execution_id}_1")
    files.write("file", [b"f" * 100_000])
    files.write("artifacts/a", [b"left"])
    for own in (3, 4):
        await api.cut(lease, own=own, why=Why.PERIODIC)
    await ended(api, lease, own=5)
    return lease


async def prune(api: Api, **wish: Any) -> dict[str, Any]:
    answer = await api.http.post("/v1/prune", json=wish)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def ids(answer: dict[str, Any]) -> list[tuple[str, str]]:
    return [(item["kind"], item["id"]) for item in answer["pruned"]]


async def slots(api: Api) -> set[str]:
    return {slot for slot, _ in await api.workspaces.list()}


async def test_ended_ones_go_what_runs_stays(api: Api) -> None:
    done = await over(api)
    runs = await api.running()
    before = await slots(api)
    would = await prune(api, dry_run=True)
    assert ids(would) == [("executions", done.execution_id)] and would["freed_bytes"] > 300_000
    assert await slots(api) == before
    went = await prune(api)
    assert ids(went) == ids(would) and went["freed_bytes"] > 300_000 and went["next"] == ""
    assert await slots(api) == {f"sbx_{runs.execution_id}_1"}
    assert await api.workspaces.snapshots() == [] and await api.parts.shelf.list() == []  # type: ignore[union-attr]
    assert ids(await prune(api)) == []  # once
    assert [one.id async for one in api.client.list()] == [runs.execution_id]


async def test_only_workspaces_and_the_artifacts_stay(api: Api) -> None:
    done = await over(api)
    id = done.execution_id
    await api.parts.shelf.remove(id)  # type: ignore[union-attr]  # as of one that ended without a worker
    went = await prune(api, what=["workspaces"])
    assert ids(went) == [("workspaces", id)] and went["freed_bytes"] > 100_000
    assert await slots(api) == set()
    assert await api.client.execution(id).artifacts.read("a") == b"left"
    assert await api.client.execution(id).files.read("file") == b"f" * 100_000  # as its newest snapshot has it
    assert ids(await prune(api, what=["workspaces"])) == []


async def test_snapshots_by_age_but_not_those_somebody_wants(api: Api) -> None:
    lease = await api.running()
    id = lease.execution_id
    asked = await api.cut(lease, own=3, why=Why.ASKED)
    named = await api.cut(lease, own=4, why=Why.PERIODIC, name="mine")
    old = await api.cut(lease, own=5, why=Why.PERIODIC)
    newest = await api.cut(lease, own=6, why=Why.PERIODIC)
    assert ids(await prune(api, what=["snapshots"])) == []  # the policy keeps them
    assert ids(await prune(api, what=["snapshots"], older_than_s=3600)) == []
    went = await prune(api, what=["snapshots"], older_than_s=0)
    assert ids(went) == [("snapshots", old.id)]  # it would go on from the newest
    left = {one for one, _ in await api.workspaces.snapshots()}
    assert left == {asked.id, named.id, newest.id}
    page = await api.store.history.read(id, Cursor())
    assert [e.data for e in page.events if e.type == "snapshot.removed"] == [{"id": old.id, "name": "", "why": "prune"}]


async def test_one_with_a_snapshot_somebody_asked_for_stays_by_name(api: Api) -> None:
    lease = await api.running()
    asked = await api.cut(lease, own=3, why=Why.ASKED)
    await ended(api, lease, own=4)
    answer = await prune(api)
    assert answer["pruned"] == [] and [one["id"] for one in answer["kept"]] == [lease.execution_id]
    assert asked.id in answer["kept"][0]["why"]


async def test_by_label_state_outcome_and_age(api: Api) -> None:
    a, b = await over(api, labels={"team": "a"}), await over(api, labels={"team": "b"})
    for nothing in (
        {"labels": {"team": "c"}},
        {"states": ["RUNNING"]},
        {"outcomes": ["FAILED"]},
        {"older_than_s": 3600},
        {"labels": {"team": "a", "more": "x"}},
    ):
        assert ids(await prune(api, **nothing)) == []
    wanted = {"labels": {"team": "b"}, "states": ["FINISHED"], "outcomes": ["SUCCEEDED"]}
    assert ids(await prune(api, **wanted)) == [("executions", b.execution_id)]
    assert ids(await prune(api, what=["executions", "workspaces", "snapshots"])) == [("executions", a.execution_id)]


async def test_part_by_part(api: Api) -> None:
    done = [(await over(api)).execution_id for _ in range(3)]
    first = await prune(api, limit=2, dry_run=True)
    assert [id for _, id in ids(first)] == done[:2] and first["next"]
    went = [item.id async for part in api.client.prune(limit=2) for item in part.pruned]
    assert went == done


async def test_a_tenant_prunes_its_own_an_admin_all(api: Api) -> None:
    mine = await over(api)
    others = await api.token_for(Scope.READ, Scope.WRITE, tenant="other")
    async with api.caller(others) as http:
        assert (await http.post("/v1/prune", json={})).json()["pruned"] == []
        assert (await http.post("/v1/prune", json={"all_tenants": True})).status_code == 403
    async with api.caller(await api.token_for(Scope.READ)) as http:
        assert (await http.post("/v1/prune", json={})).status_code == 403
    async with api.caller(await api.token_for(Scope.ADMIN, Scope.WRITE, tenant="operators")) as http:
        answer = (await http.post("/v1/prune", json={"all_tenants": True})).json()
    assert ids(answer) == [("executions", mine.execution_id)] and answer["pruned"][0]["tenant"] == "default"


async def test_what_is_asked_wrongly_is_said(api: Api) -> None:
    wishes: tuple[dict[str, Any], ...] = (
        {"what": []},
        {"what": ["all"]},
        {"older_than_s": -1},
        {"states": ["DONE"]},
        {"limit": 0},
        {"x": 1},
    )
    for wrong in wishes:
        answer = await api.http.post("/v1/prune", json=wrong)
        assert answer.status_code == 422, wrong
