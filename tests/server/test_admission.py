"""No room: submit, fork and snapshot are 507 with Retry-After and a remedy; what is there is served; then all is well
again without anybody's doing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from orchestrator.errors import DiskFull
from orchestrator.room import Mark, Place
from orchestrator.server.admission import Admission
from orchestrator.workspaces.rooms import DiskRooms
from tests.server.conftest import HOST, Api
from tests.small_disks import MIB, SmallDisk, small_disk

WHY = "workspaces: 3 MiB free of 64 MiB, new work needs 16 MiB (workspaces_low)"


@pytest.fixture
async def short(api: Api) -> AsyncIterator[Api]:
    """Its only host says that it is short of room."""
    await api.store.executions.heartbeat(HOST, "w1", {"short": WHY})
    yield api


def refused(answer: httpx.Response) -> None:
    assert answer.status_code == 507, answer.text
    told = answer.json()
    assert answer.headers["Retry-After"] == "10"
    assert told["code"] == "disk_full"
    assert (told["field"], told["limit"], told["where"]) == ("disk", "workspaces_low", "workspaces")
    assert WHY in told["detail"] and "make room" in told["remedy"]


async def test_submit_is_refused(short: Api) -> None:
    refused(await short.http.post("/v1/executions", json={"command": ["true"]}))
    with pytest.raises(DiskFull):
        await short.client.submit(command=["true"])
    await short.store.executions.heartbeat(HOST, "w1", {})
    short.parts.admission = Admission(short.store.executions, short.parts.clock, None)  # its look is a second old
    assert await short.submit()


async def test_snapshot_and_fork_are_refused_and_the_rest_is_served(api: Api) -> None:
    lease = await api.running()
    snapshot = await api.cut(lease, own=3)
    await api.store.executions.heartbeat(HOST, "w1", {"short": WHY})
    api.parts.admission = Admission(api.store.executions, api.parts.clock, None)
    id = lease.execution_id
    refused(await api.http.post(f"/v1/executions/{id}/snapshots", json={}))
    refused(await api.http.post(f"/v1/executions/{id}/fork", json={"snapshot": snapshot.id}))
    refused(await api.http.post(f"/v1/executions/{id}/fork", json={}))
    refused(await api.http.post(f"/v1/executions/{id}/rewind", json={"snapshot": snapshot.id}))
    assert (await api.http.post(f"/v1/executions/{id}/messages", json={"text": "on"})).is_success
    assert (await api.record(id)).state == "RUNNING"  # a rewind that cannot be ends nothing
    assert (await api.http.put(f"/v1/executions/{id}/files/a", content=b"x")).is_success


async def test_what_waits_says_why(api: Api) -> None:
    id = await api.submit()
    await api.store.executions.heartbeat(HOST, "w1", {"short": WHY})
    api.parts.admission = Admission(api.store.executions, api.parts.clock, None)
    assert (await api.http.get(f"/v1/executions/{id}")).json()["waits_for"] == f"host {HOST} has no room: {WHY}"
    assert f"disk: host {HOST}: {WHY}" in (await api.http.get("/readyz")).json()["reasons"]
    (host,) = (await api.http.get("/v1/stats")).json()["hosts"]
    assert host["facts"]["short"] == WHY


async def test_another_host_with_room_takes_it(short: Api) -> None:
    await short.store.executions.heartbeat("h2", "w2", {})
    assert (await short.http.post("/v1/executions", json={"command": ["true"]})).status_code == 201


@pytest.mark.root
async def test_its_own_disk(api: Api, short_dir: Path) -> None:
    """Uploaded files, and the embedded store's."""

    def rooms(disk: SmallDisk) -> DiskRooms:
        return DiskRooms(None, {Place.STORE: disk.point / "redis"}, {Place.STORE: Mark(16 * MIB)})

    (short_dir / "own").mkdir()
    with small_disk(short_dir / "own") as disk:
        api.parts.admission = Admission(api.store.executions, api.parts.clock, rooms(disk))
        assert await api.submit()
        disk.fill(leave_bytes=8 * MIB)
        api.parts.admission = Admission(api.store.executions, api.parts.clock, rooms(disk))
        answer = await api.http.post("/v1/executions", json={"command": ["true"]})
        assert (answer.status_code, answer.json()["where"]) == (507, "store")
        disk.empty()
        api.parts.admission = Admission(api.store.executions, api.parts.clock, rooms(disk))
        assert await api.submit()
