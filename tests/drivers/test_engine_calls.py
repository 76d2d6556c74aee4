"""The engine's answers, sorted: only its own 404 is absence, only its own 4xx a refusal."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
import requests
from docker import errors as docker_errors

from orchestrator.drivers.engine_calls import EngineCalls, NoSuch, Refused, sorted_errors
from orchestrator.errors import CarrelError, DiskFull, EngineUnavailable, Infeasible


def answered(status: int, text: str) -> docker_errors.APIError:
    response = requests.Response()
    response.status_code = status
    return docker_errors.APIError(f"{status}", response=response, explanation=text)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (answered(404, "No such container: x"), NoSuch),
        (answered(409, "Conflict. The name is already in use"), Refused),
        (answered(400, "bad parameter"), Refused),
        (answered(500, "OCI runtime create failed: exec: no such file"), Refused),
        (answered(500, "failed to create task for container"), Refused),
        (answered(500, "something broke"), EngineUnavailable),
        (answered(503, "starting"), EngineUnavailable),
        (answered(500, "mkdir /x: no space left on device"), DiskFull),
        (answered(400, "unknown or invalid runtime name: x"), Infeasible),
        (answered(400, "Unknown runtime specified x"), Infeasible),
        (requests.exceptions.ConnectionError("refused"), EngineUnavailable),
        (requests.exceptions.ReadTimeout("slow"), EngineUnavailable),
        (ValueError("half an answer"), EngineUnavailable),
        (KeyError("message"), EngineUnavailable),
        (FileNotFoundError("no socket"), EngineUnavailable),
    ],
)
def test_sorted(error: Exception, kind: type[CarrelError]) -> None:
    with pytest.raises(CarrelError) as caught, sorted_errors():
        raise error
    assert type(caught.value) is kind


@pytest.fixture
def silent(short_dir: Path) -> Iterator[str]:
    """An engine that takes connections and says nothing."""
    path = short_dir / "sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(64)
        yield f"unix://{path}"


async def test_a_hung_engine_gives_its_threads_back(silent: str) -> None:
    calls = EngineCalls(silent, threads=2, quick_s=0.2)
    try:
        answers = await asyncio.gather(*(calls.quick(docker.APIClient.info) for _ in range(6)), return_exceptions=True)
        assert [type(answer) for answer in answers] == [EngineUnavailable] * 6
    finally:
        calls.close()


async def test_no_engine_at_all(short_dir: Path) -> None:
    calls = EngineCalls(f"unix://{short_dir}/none")
    try:
        with pytest.raises(EngineUnavailable):
            await calls.quick(docker.APIClient.info)
    finally:
        calls.close()


class OtherEngine:
    """An engine that begins at API version `oldest`: answers /version and /info, refuses older requests as dockerd
    does."""

    def __init__(self, path: Path, oldest: str) -> None:
        self.path = path
        self.oldest = oldest
        self.asked: list[str] = []

    async def __aenter__(self) -> OtherEngine:
        self._server = await asyncio.start_unix_server(self._serve, str(self.path))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
        self.asked.append(path)
        status, said = "200 OK", {"ApiVersion": "1.52", "MinAPIVersion": self.oldest, "NCPU": 3}
        if path.startswith("/v") and path != "/version" and path.split("/")[1] < f"v{self.oldest}":
            status, said = "400 Bad Request", {"message": f"client version is too old, minimum is {self.oldest}"}
        body = json.dumps(said).encode()
        head = (
            f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close"
        )
        writer.write(head.encode() + b"\r\n\r\n" + body)
        await writer.drain()
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(("oldest", "spoken"), [("1.12", "1.41"), ("1.41", "1.41"), ("1.44", "1.44")])
async def test_an_engine_is_spoken_to_in_a_version_it_knows(short_dir: Path, oldest: str, spoken: str) -> None:
    async with OtherEngine(short_dir / "sock", oldest) as engine:
        calls = EngineCalls(f"unix://{engine.path}")
        try:
            assert (await calls.quick(docker.APIClient.info))["NCPU"] == 3
            assert engine.asked == ["/version", f"/v{spoken}/info"]
        finally:
            calls.close()


async def test_an_engine_replaced_by_a_newer_one_is_asked_anew(short_dir: Path) -> None:
    async with OtherEngine(short_dir / "sock", "1.24") as engine:
        calls = EngineCalls(f"unix://{engine.path}")
        try:
            await calls.quick(docker.APIClient.info)
            engine.oldest = "1.44"
            with pytest.raises(EngineUnavailable):
                await calls.quick(docker.APIClient.info)
            assert (await calls.quick(docker.APIClient.info))["NCPU"] == 3
        finally:
            calls.close()
