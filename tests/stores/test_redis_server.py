"""What server the store accepts, what it says of one that refuses, and its schema number."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.errors import BadInput, StoreUnavailable
from orchestrator.stores import embedded
from orchestrator.stores.redis import Keys, RedisExecutions, Server, prepare, schema, scripts


@contextmanager
def private_server(folder: Path, *options: str) -> Iterator[str]:
    """A server of this test's own, to be misconfigured; its URL once it answers."""
    program = embedded.find_program()
    assert program is not None
    path = folder / "s.sock"
    arguments = ["--port", "0", "--unixsocket", str(path), "--dir", str(folder), "--save", "", *options]
    process = subprocess.Popen([program, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if "eady to accept connections" in line:
                break
        yield f"unix://{path}"
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


@pytest.fixture
async def server(redis_url: str) -> AsyncIterator[Server]:
    made = Server(redis_url)
    yield made
    await made.aclose()


class TestPrepare:
    async def test_the_schema_is_written_once(self, server: Server, installation: str) -> None:
        keys = Keys(installation)
        executions = RedisExecutions(server, keys)
        assert (await executions.ready())["schema"] != ""
        await asyncio.gather(*(prepare(server, keys) for _ in range(5)))
        assert int(await server.ask("HGET", keys.meta, "schema")) == schema.SCHEMA
        assert await executions.ready() == {"store": "", "durability": "", "schema": ""}

    async def test_a_newer_one_is_refused(self, server: Server, installation: str) -> None:
        keys = Keys(installation)
        await server.ask("HSET", keys.meta, "schema", schema.SCHEMA + 1)
        with pytest.raises(BadInput) as refused:
            await prepare(server, keys)
        assert refused.value.data["remedy"]
        assert (await RedisExecutions(server, keys).ready())["schema"] != ""

    async def test_an_older_one_is_migrated(self, server: Server, installation: str) -> None:
        keys = Keys(installation)
        steps = []

        async def step(server: Server, keys: Keys) -> None:
            steps.append(await server.ask("HGET", keys.meta, "schema"))

        await server.ask("HSET", keys.meta, "schema", schema.SCHEMA - 1)
        await prepare(server, keys, {schema.SCHEMA - 1: step})
        assert steps == [str(schema.SCHEMA - 1).encode()]
        assert int(await server.ask("HGET", keys.meta, "schema")) == schema.SCHEMA

    async def test_cluster_is_refused(self, short_dir: Path) -> None:
        with private_server(short_dir, "--cluster-enabled", "yes") as url:
            server = Server(url)
            with pytest.raises(BadInput, match="Cluster") as refused:
                await prepare(server, Keys("t"))
            assert refused.value.field == "redis_url"
            assert "Cluster" in (await RedisExecutions(server, Keys("t")).ready())["store"]
            await server.aclose()

    async def test_a_replica_is_refused(self, short_dir: Path) -> None:
        with private_server(short_dir, "--replicaof", "127.0.0.1", "1") as url:
            server = Server(url)
            with pytest.raises(BadInput, match="replica"):
                await prepare(server, Keys("t"))
            with pytest.raises(StoreUnavailable):
                await server.run("hosts", "carrel:t:")
            await server.aclose()


class TestDurability:
    async def test_what_can_lose_is_named(self, short_dir: Path) -> None:
        with private_server(short_dir, "--appendonly", "yes", "--appendfsync", "everysec") as url:
            server = Server(url)
            executions = RedisExecutions(server, Keys("t"))
            assert "appendfsync is everysec" in (await executions.ready())["durability"]
            await server.ask("CONFIG", "SET", "appendfsync", "always")
            assert (await executions.ready())["durability"] == ""
            await server.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
            assert "maxmemory-policy" in (await executions.ready())["durability"]
            await server.ask("CONFIG", "SET", "appendonly", "no")
            assert "appendonly is off" in (await executions.ready())["durability"]
            await server.aclose()


class TestRefusals:
    async def test_out_of_memory(self, short_dir: Path) -> None:
        with private_server(short_dir) as url:
            server = Server(url, patience_s=30)
            await server.ask("CONFIG", "SET", "maxmemory", "1")
            with pytest.raises(StoreUnavailable, match="maxmemory") as refused:
                await server.run("hosts", "carrel:t:")
            assert refused.value.data["reason"] == "OOM"
            await server.aclose()

    async def test_a_long_script_is_waited_for(self, short_dir: Path) -> None:
        with private_server(short_dir) as url:
            server = Server(url, patience_s=30)
            await server.ask("CONFIG", "SET", "lua-time-limit", "10")
            held = asyncio.create_task(
                server.ask("EVAL", "local n = redis.call('TIME')[1] while redis.call('TIME')[1] - n < 2 do end", 0)
            )
            while not held.done():
                try:
                    await asyncio.wait_for(server._once([("PING",)]), 1)
                except Exception as failure:
                    assert "BUSY" in str(failure)
                    break
            assert (await server.run("hosts", "carrel:t:"))[0] == "ok"
            await held
            await server.aclose()

    async def test_a_wrong_password(self, short_dir: Path) -> None:
        with private_server(short_dir, "--requirepass", "secret") as url:
            for wrong in (url, url.replace("unix://", "unix://:guess@")):
                server = Server(wrong, patience_s=30)
                with pytest.raises(StoreUnavailable, match="password"):
                    await server.ask("PING")
                await server.aclose()
            server = Server(url.replace("unix://", "unix://:secret@"))
            assert await server.ask("PING") == b"PONG"
            await server.aclose()

    async def test_an_installation_that_cannot_be_a_key(self) -> None:
        for name in ("", "a:b", "a b", "x" * 65, "a*"):
            with pytest.raises(BadInput):
                Keys(name)


class TestScripts:
    def test_each_loads_and_says_what_it_needs(self) -> None:
        folder = Path(scripts.__file__).parent / "lua"
        names = [path.stem for path in folder.glob("*.lua") if not path.stem.startswith("piece_")]
        assert len(names) > 10
        for name in names:
            script = scripts.load(name)
            assert len(script.sha) == 40
            assert script.text.startswith("-- What every script begins with")

    async def test_none_uses_what_6_2_does_not_have(self) -> None:
        folder = Path(scripts.__file__).parent / "lua"
        newer = ("redis.REDIS_VERSION", "ZMPOP", "LMPOP", "EXPIRETIME", "server.call", "SINTERCARD", "HEXPIRE")
        for path in folder.glob("*.lua"):
            assert not [word for word in newer if word in path.read_text()]
