"""exec over HTTP, in a real sandbox (the real init; needs root for its namespaces)."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest

from orchestrator import errors
from orchestrator.client.executing import Exited, Output, Started
from tests.server.conftest import Api

pytestmark = pytest.mark.root


@pytest.fixture
async def id(api: Api) -> AsyncIterator[str]:
    async with api.boxed() as made:
        yield made


async def test_a_result_has_both_streams_and_the_code(api: Api, id: str) -> None:
    result = await api.client.execution(id).exec(["sh", "-c", "echo out; echo err >&2; cat; exit 3"], stdin=b"in\n")
    assert (result.stdout, result.stderr, result.exit_code, result.signal) == ("out\nin\n", "err\n", 3, None)
    assert not (result.stdout_truncated or result.stderr_truncated or result.timed_out)


async def test_it_runs_where_and_with_what_it_is_told(api: Api, id: str) -> None:
    result = await api.client.execution(id).exec(["sh", "-c", "pwd; echo $A"], cwd="/tmp", env={"A": "b c"})
    assert result.stdout == "/tmp\nb c\n"


async def test_output_is_bounded_and_says_so(api: Api, id: str) -> None:
    command = ["sh", "-c", "head -c 100000 /dev/zero | tr '\\0' x; printf '\\377' >&2"]
    result = await api.client.execution(id).exec(command, max_output_bytes=1000)
    assert (result.stdout, result.stdout_truncated) == ("x" * 1000, True)
    assert (result.stderr, result.stderr_b64, result.stderr_truncated) == (None, "/w==", False)


async def test_what_runs_too_long_is_ended(api: Api, id: str) -> None:
    result = await api.client.execution(id).exec(["sleep", "1000"], timeout_s=1)
    assert result.timed_out and result.signal == 9


async def test_what_cannot_be_started_says_why(api: Api, id: str) -> None:
    result = await api.client.execution(id).exec(["/no/such/program"])
    assert result.exit_code == 127 and result.error


async def test_it_streams(api: Api, id: str) -> None:
    happenings = [
        one async for one in api.client.execution(id).exec_stream(["sh", "-c", "echo a; printf '\\377'; exit 7"])
    ]
    assert isinstance(happenings[0], Started) and happenings[0].pid > 0
    assert b"".join(one.data for one in happenings if isinstance(one, Output)) == b"a\n\xff"
    assert happenings[-1] == Exited(7, None)


async def test_leaving_ends_the_command_but_not_a_detached_one(api: Api, id: str) -> None:
    execution = api.client.execution(id)

    async def alive(pid: int) -> bool:
        return (await execution.exec(["test", "-d", f"/proc/{pid}"])).exit_code == 0

    stream = execution.exec_stream(["sleep", "1000"])
    started = await anext(stream)
    assert isinstance(started, Started) and await alive(started.pid)
    await stream.aclose()
    while await alive(started.pid):
        await asyncio.sleep(0.01)
    detached = await execution.exec(["sleep", "1000"], detach=True)
    assert detached.pid is not None and detached.exit_code is None
    assert await alive(detached.pid)
    asked = asyncio.create_task(
        api.http.post(
            f"/v1/executions/{id}/exec", json={"command": ["sh", "-c", "echo $$ > /workspace/pid; sleep 1000"]}
        )
    )
    while not (pid := (await execution.exec(["cat", "/workspace/pid"])).stdout):
        await asyncio.sleep(0.01)
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    while await alive(int(pid)):
        await asyncio.sleep(0.01)


async def test_many_at_once(api: Api, id: str) -> None:
    results = await asyncio.gather(*[api.client.execution(id).exec(["echo", str(at)]) for at in range(20)])
    assert [result.stdout for result in results] == [f"{at}\n" for at in range(20)]


async def test_a_large_input_and_output_pass(api: Api, id: str) -> None:
    data = os.urandom(3 << 20)
    result = await api.client.execution(id).exec(["sha256sum"], stdin=data)
    assert result.stdout == hashlib.sha256(data).hexdigest() + "  -\n"
    happenings = [one async for one in api.client.execution(id).exec_stream(["cat"], stdin=data)]
    assert b"".join(one.data for one in happenings if isinstance(one, Output)) == data


async def test_without_a_sandbox_it_is_a_conflict(api: Api) -> None:
    queued = await api.submit()
    with pytest.raises(errors.Conflict) as caught:
        await api.client.execution(queued).exec(["true"])
    assert caught.value.data["state"] == "QUEUED"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "command"),
        ({"command": []}, "command"),
        ({"command": ["x"], "cwd": "/proc/self/fd/3"}, "cwd"),
        ({"command": ["x"], "timeout_s": 0}, "timeout_s"),
        ({"command": ["x"], "privileged": True}, "privileged"),
        ({"command": ["x"], "user": "root"}, "user"),
        ({"command": ["x"], "stdin": "a", "stdin_b64": "YQ=="}, "body"),
    ],
)
async def test_a_wrong_command_is_named(api: Api, body: dict[str, Any], field: str) -> None:
    queued = await api.submit()
    answer = await api.http.post(f"/v1/executions/{queued}/exec", json=body)
    assert (answer.status_code, answer.json()["field"]) == (422, field), answer.text
