"""Artifacts after the end: from the shelf, with the bytes and digests they had, whatever became of the workspace."""

from __future__ import annotations

import hashlib
import os

from orchestrator.execution import Outcome, OutcomeKind, Reason
from orchestrator.history import Lease
from orchestrator.lifecycle import Trigger
from orchestrator.tokens import Scope
from tests.server.conftest import Api

BIG = os.urandom(700_000)


async def ended(api: Api, lease: Lease, *, own: int = 3) -> None:
    """As a worker ends it: onto the shelf, then the record."""
    await api.parts.shelf.keep(lease.execution_id, api.workspaces.files(f"sbx_{lease.execution_id}_1"))  # type: ignore[union-attr]
    await api.store.move(lease, Trigger.EXITED, own=own)
    outcome = Outcome(OutcomeKind.SUCCEEDED, Reason.EXIT_CODE, "", 0)
    await api.store.move(lease, Trigger.STOPPED, own=own + 1, outcome=outcome, unowned=True)


async def test_the_same_bytes_before_and_after_the_workspace_goes(api: Api) -> None:
    lease = await api.running()
    id, sandbox_id = lease.execution_id, f"sbx_{lease.execution_id}_1"
    files = api.workspaces.files(sandbox_id)
    files.write("artifacts/big", [BIG])
    files.write("out/named", [b"named"])
    (api.workspaces.slot(sandbox_id).path / "vol/workspace/artifacts/out").symlink_to("/etc/passwd")
    await api.parts.shelf.name(id, ["/workspace/out/named", "/workspace/missing"])  # type: ignore[union-attr]
    execution = api.client.execution(id)
    wanted = {"out/named": hashlib.sha256(b"named").hexdigest(), "big": hashlib.sha256(BIG).hexdigest()}
    assert {one.path: one.sha256 for one in await execution.artifacts.list()} == wanted
    assert await execution.artifacts.read("out/named") == b"named"
    await ended(api, lease)
    for gone in (False, True):
        if gone:
            await api.workspaces.remove(sandbox_id)
        listed = {one.path: one for one in await execution.artifacts.list()}
        assert {path: one.sha256 for path, one in listed.items() if not one.refused} == wanted
        assert {path for path, one in listed.items() if one.refused} == {"out", "missing"}
        assert await execution.artifacts.read("big") == BIG
        whole = await api.http.get(f"/v1/executions/{id}/artifacts/big")
        assert whole.headers["etag"] == f'"{wanted["big"]}"' and "attachment" in whole.headers["content-disposition"]
        part = await api.http.get(f"/v1/executions/{id}/artifacts/big", headers={"range": "bytes=699990-"})
        assert (part.status_code, part.content) == (206, BIG[699_990:])
        same = {"if-none-match": whole.headers["etag"]}
        assert (await api.http.get(f"/v1/executions/{id}/artifacts/big", headers=same)).status_code == 304
        head = await api.http.head(f"/v1/executions/{id}/artifacts/out/named")
        assert (head.status_code, head.headers["content-length"]) == (200, "5")
    refused = await api.http.get(f"/v1/executions/{id}/artifacts/out")
    assert refused.status_code == 409 and "leads nowhere" in refused.json()["detail"]
    assert (await api.http.get(f"/v1/executions/{id}/artifacts/never")).status_code in (404, 409)
    async with api.caller(await api.token_for(Scope.READ, tenant="other")) as other:
        assert (await other.get(f"/v1/executions/{id}/artifacts/big")).status_code == 404
    await execution.delete()
    assert await api.parts.shelf.list() == []  # type: ignore[union-attr]


async def test_of_one_that_left_nothing_nothing_is_listed(api: Api) -> None:
    lease = await api.running()
    await ended(api, lease)
    await api.workspaces.remove(f"sbx_{lease.execution_id}_1")
    assert await api.client.execution(lease.execution_id).artifacts.list() == []


async def test_damage_is_told_and_not_served(api: Api) -> None:
    lease = await api.running()
    id = lease.execution_id
    api.workspaces.files(f"sbx_{id}_1").write("artifacts/a", [b"alpha"])
    await ended(api, lease)
    (kept,) = (api.data_dir / "shelf" / "of" / id).glob(hashlib.sha256(b"alpha").hexdigest())
    kept.write_bytes(b"omega")
    answer = await api.http.get(f"/v1/executions/{id}/artifacts/a")
    assert answer.status_code == 409 and "not any more what it was" in answer.text
