"""Who gets in: tokens, scopes, tenants, Host, Origin; on every route and on the socket. Numbers are of the design's
list of attacks."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute, APIWebSocketRoute
from websockets.asyncio.client import unix_connect
from websockets.exceptions import InvalidStatus

from orchestrator import errors
from orchestrator.events import Cursor
from orchestrator.server.admin_token import ensure_admin_token
from orchestrator.server.app import ROUTERS
from orchestrator.server.door import OPEN_PATHS
from orchestrator.server.parts import ServerSettings
from orchestrator.stores.redis import Keys, RedisTokens, Server
from orchestrator.tokens import Scope, digest_of
from tests.server.conftest import Api, with_settings

CHANNEL = "/v1/executions/{id}/channel"


def operations() -> Iterator[tuple[str, str]]:
    for router in ROUTERS:
        for route in router.routes:
            if isinstance(route, APIRoute):
                yield from ((method, route.path) for method in sorted(route.methods or ()))


OPERATIONS = sorted(set(operations()))


def filled(path: str, id: str) -> str:
    return (
        path.replace("{id}", id)
        .replace("{sid}", "snp_0001")
        .replace("{path:anypath}", "x")
        .replace("{sha256}", "0" * 64)
    )


@pytest.fixture
def settings() -> ServerSettings:
    return with_settings(allowed_hosts=("carrel.example",), allowed_origins=("https://ui.example",))


async def handshake(api: Api, path: str, **headers: str) -> int:
    """The status a WebSocket handshake gets; 101 where it is accepted."""
    try:
        async with unix_connect(str(api.socket), f"ws://localhost{path}", additional_headers=headers):
            return 101
    except InvalidStatus as refused:
        assert refused.response.headers["content-type"] == "application/problem+json"
        return refused.response.status_code


@pytest.mark.parametrize("token", [None, "crl_" + "x" * 43, "x" * 600, "ü"])
async def test_52_without_a_token_of_ours_nothing_answers(api: Api, token: str | None) -> None:
    id = await api.submit()
    async with api.caller(None) as http:
        given = {} if token is None else {b"authorization": f"Bearer {token}".encode()}
        for method, path in OPERATIONS:
            answer = await http.request(method, filled(path, id), headers=given)
            if path in OPEN_PATHS:
                assert answer.status_code == 200
                continue
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, 'Bearer realm="carrel"'), path
        for path in ("/nope", "/v1/stream/x", "/openapi.json"):
            assert (await http.get(path, headers=given)).status_code == 401
    given_text = {} if token is None or not token.isascii() else {"authorization": f"Bearer {token}"}
    assert await handshake(api, filled(CHANNEL, id), **given_text) == 401


@pytest.mark.parametrize("header", ["Basic Zm9vOmJhcg==", "Bearer", "token", "Bearer x y"])
async def test_52_other_schemes_are_refused(api: Api, header: str) -> None:
    async with api.caller(None) as http:
        assert (await http.get("/v1/executions", headers={"authorization": header})).status_code == 401
        two = [("authorization", f"Bearer {api.token}"), ("authorization", f"Bearer {api.token}")]
        assert (await http.get("/v1/executions", headers=two)).status_code == 401


async def test_53_another_tenant_s_execution_does_not_exist(api: Api) -> None:
    lease = await api.running(name="mine")
    id = lease.execution_id
    secret = await api.token_for(Scope.READ, Scope.WRITE, Scope.ATTACH, tenant="other")
    bodies: dict[str, Any] = {
        "/v1/executions/{id}/messages": {"text": "x"},
        "/v1/executions/{id}/exec": {"command": ["true"]},
        "/v1/executions/{id}/resources": {"cpus": 1},
        "/v1/executions/{id}/egress": {"allow": []},
        "/v1/executions/{id}/budget": {"budget_usd": 1},
        "/v1/executions/{id}/intents/settle": {"key": "k", "decision": "retry"},
        "/v1/executions/{id}/rewind": {"snapshot": "snp_1"},
        "/v1/snapshots/{sid}": {"name": "theirs"},
    }
    snapshot = (await api.cut(lease, own=3, name="cut")).id
    async with api.caller(secret) as http:
        for method in ("GET", "PATCH", "DELETE"):
            for ref in (snapshot, snapshot[:12], "cut"):
                answer = await http.request(method, f"/v1/snapshots/{ref}", json=bodies["/v1/snapshots/{sid}"])
                assert answer.status_code == 404, (method, ref, answer.text)
        assert (await http.get("/v1/snapshots")).json()["snapshots"] == []
        for method, path in OPERATIONS:
            if "{id}" in path:
                for ref in (id, id[:20], "mine"):
                    answer = await http.request(method, filled(path, ref), json=bodies.get(path))
                    assert answer.status_code == 404, (method, path, answer.text)
        assert (await http.get("/v1/executions")).json()["executions"] == []
        own = (await http.post("/v1/executions", json={"command": ["true"]})).json()["id"]
        for verb in ("fork", "rewind"):
            answer = await http.post(f"/v1/executions/{own}/{verb}", json={"snapshot": snapshot})
            assert answer.status_code == 404, answer.text
    assert await handshake(api, filled(CHANNEL, id), authorization=f"Bearer {secret}") == 404


async def test_every_route_names_its_scope(api: Api) -> None:
    """A token with no scope at all gets 403 everywhere: a route that forgot to ask would answer something else."""
    id = await api.submit()
    secret = await api.token_for()
    async with api.caller(secret) as http:
        for method, path in OPERATIONS:
            if path not in OPEN_PATHS:
                answer = await http.request(method, filled(path, id), json={"text": "x", "command": ["x"], "cpus": 1})
                # A body is looked at together with the scope; where it does not fit the route, that is said first.
                assert answer.status_code in ({403} if method in {"GET", "HEAD", "DELETE"} else {403, 422}), path
    assert await handshake(api, filled(CHANNEL, id), authorization=f"Bearer {secret}") == 403
    scopes = {
        dependency.call.scope  # type: ignore[union-attr]
        for router in ROUTERS
        for route in router.routes
        if isinstance(route, APIRoute | APIWebSocketRoute) and route.path not in OPEN_PATHS
        for dependency in route.dependant.dependencies
        if hasattr(dependency.call, "scope")
    }
    assert scopes == set(Scope)
    for router in ROUTERS:
        for route in router.routes:
            if isinstance(route, APIRoute | APIWebSocketRoute) and route.path not in OPEN_PATHS:
                asked = [one for one in route.dependant.dependencies if hasattr(one.call, "scope")]
                assert len(asked) == 1, route.path


@pytest.mark.parametrize(
    ("scope", "method", "path", "body", "status"),
    [
        (Scope.READ, "GET", "/v1/executions", None, 200),
        (Scope.READ, "POST", "/v1/executions", {"command": ["x"]}, 403),
        (Scope.READ, "POST", "/v1/executions/{id}/cancel", {}, 403),
        (Scope.READ, "DELETE", "/v1/executions/{id}", None, 403),
        (Scope.READ, "POST", "/v1/executions/{id}/exec", {"command": ["x"]}, 403),
        (Scope.READ, "PUT", "/v1/executions/{id}/files/x", {}, 403),
        (Scope.READ, "GET", "/metrics", None, 403),
        (Scope.WRITE, "POST", "/v1/executions", {"command": ["x"]}, 201),
        (Scope.WRITE, "GET", "/v1/executions", None, 403),
        (Scope.WRITE, "POST", "/v1/executions/{id}/exec", {"command": ["x"]}, 403),
        (Scope.ATTACH, "POST", "/v1/executions/{id}/cancel", {}, 403),
        (Scope.ADMIN, "GET", "/metrics", None, 200),
        (Scope.ADMIN, "POST", "/v1/executions/{id}/cancel", {}, 202),
    ],
)
async def test_a_scope_allows_what_it_says(
    api: Api, scope: Scope, method: str, path: str, body: object, status: int
) -> None:
    id = await api.submit()
    async with api.caller(await api.token_for(scope)) as http:
        answer = await http.request(method, filled(path, id), json=body)
    assert answer.status_code == status, answer.text


@pytest.mark.parametrize("name", ["token", "access_token", "Token", "api_key"])
async def test_56_a_token_in_the_query_is_refused_even_a_right_one(api: Api, name: str) -> None:
    answer = await api.http.get("/v1/executions", params={name: api.token})
    assert answer.status_code == 401 and "Authorization" in answer.json()["remedy"]
    assert api.token not in answer.text
    id = await api.submit()
    path = f"{filled(CHANNEL, id)}?{name}={api.token}"
    assert await handshake(api, path, authorization=f"Bearer {api.token}") == 401


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8374", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:80", 200),
        ("carrel.example", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example:8374", 421),
        ("localhost@evil.example", 421),
        ("", 421),
        ("::1", 200),
    ],
)
async def test_59_a_rebound_name_is_misdirected(api: Api, host: str, status: int) -> None:
    assert (await api.http.get("/v1/executions", headers={"host": host})).status_code == status
    assert (await api.http.get("/healthz", headers={"host": host})).status_code == status
    if status == 421:
        answer = await api.http.get("/v1/executions", headers={"host": host})
        assert answer.json()["code"] == "misdirected"


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (None, True),
        ("http://localhost", True),
        ("https://localhost", True),
        ("https://ui.example", True),
        ("https://ui.example.evil.example", False),
        ("http://ui.example", False),
        ("https://ui.example:444", False),
        ("http://localhost:1", False),
        ("http://evil.example", False),
        ("null", False),
        ("", False),
        ("file://", False),
        ("http://[", False),
    ],
)
async def test_54_55_foreign_pages_may_not_call(api: Api, origin: str | None, allowed: bool) -> None:
    id = await api.submit()
    given = {} if origin is None else {"origin": origin}
    assert (await api.http.get("/v1/executions", headers=given)).status_code == (200 if allowed else 403)
    cancelled = await api.http.post(f"/v1/executions/{id}/cancel", headers={**given, "content-type": "text/plain"})
    assert cancelled.status_code == (202 if allowed else 403)
    status = await handshake(api, filled(CHANNEL, id), authorization=f"Bearer {api.token}", **given)
    assert status == (101 if allowed else 403)


async def test_answers_carry_what_a_browser_needs_to_know(api: Api) -> None:
    for path in ("/healthz", "/v1/executions", "/nope"):
        headers = (await api.http.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "private, no-store"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "server" not in headers


async def test_a_revoked_token_is_forgotten(api: Api) -> None:
    secret = await api.token_for(Scope.READ)
    token = await api.tokens.find(digest_of(secret))
    assert token is not None
    assert await api.tokens.revoke(token.id)
    assert not await api.tokens.revoke(token.id)
    async with api.caller(secret) as http:
        assert (await http.get("/v1/executions")).status_code == 401
    assert [kept.id for kept in await api.tokens.list()] == ["tok_admin"]


async def test_the_client_raises_the_server_s_errors(api: Api) -> None:
    with pytest.raises(errors.NotFound):
        await api.client.get("nope")
    with pytest.raises(errors.BadInput) as caught:
        await api.client.submit(command=["x"], nope=1)
    assert caught.value.field == "nope"


class TestAdminToken:
    async def test_is_made_once_by_whoever_is_first(self, redis_url: str, installation: str, tmp_path: Path) -> None:
        server = Server(redis_url)
        tokens = RedisTokens(server, Keys(installation))
        try:
            paths = await asyncio.gather(*[ensure_admin_token(tmp_path, tokens) for _ in range(8)])
            assert len(set(paths)) == 1
            secret = paths[0].read_text().strip()
            found = await tokens.find(digest_of(secret))
            assert found is not None and found.scopes == frozenset(Scope)
            assert len(await tokens.list()) == 1
            assert [path.name for path in tmp_path.iterdir()] == ["admin-token"]
        finally:
            await server.aclose()

    async def test_is_readable_by_its_owner_alone(self, redis_url: str, installation: str, tmp_path: Path) -> None:
        server = Server(redis_url)
        tokens = RedisTokens(server, Keys(installation))
        before = os.umask(0)
        try:
            path = await ensure_admin_token(tmp_path / "data", tokens)
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            path.chmod(0o644)
            await ensure_admin_token(tmp_path / "data", tokens)
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        finally:
            os.umask(before)
            await server.aclose()

    @pytest.mark.parametrize("content", ["", "crl_short", "\x00" * 47])
    async def test_a_file_that_holds_something_else_is_said(
        self, redis_url: str, installation: str, tmp_path: Path, content: str
    ) -> None:
        server = Server(redis_url)
        (tmp_path / "admin-token").write_text(content)
        try:
            with pytest.raises(errors.BadInput) as caught:
                await ensure_admin_token(tmp_path, RedisTokens(server, Keys(installation)))
            assert caught.value.field == "data_dir"
        finally:
            await server.aclose()


async def test_a_cursor_is_what_a_record_says(api: Api) -> None:
    id = await api.submit()
    record = (await api.client.get(id)).record
    assert record is not None and Cursor.parse(record.cursor) == Cursor(1, 1)
