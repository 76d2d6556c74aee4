"""A full disk under the embedded store: it ends rather than acknowledge, and is back by itself once there is room."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from orchestrator.stores.embedded import EmbeddedServer, shutdown

pytestmark = pytest.mark.root


@pytest.fixture
def small_disk(short_dir: Path) -> Iterator[Path]:
    """24 MiB of which 16 are taken by `filler`."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m,mode=700", "carrel-test", short_dir], check=True)
    try:
        (short_dir / "filler").write_bytes(bytes(16 << 20))
        yield short_dir
    finally:
        shutdown(short_dir)
        subprocess.run(["umount", "--lazy", short_dir], check=True)


async def test_what_was_acknowledged_before_the_disk_was_full_is_there_after(small_disk: Path) -> None:
    server = EmbeddedServer(small_disk)
    await server.start()
    first = server.pid
    watching = asyncio.create_task(server.watch())
    body = b"x" * 60_000
    acknowledged = 0
    try:
        with redis.Redis.from_url(server.url) as client, pytest.raises(redis.RedisError):
            for number in range(1000):
                client.set(f"k{number}", body)
                acknowledged = number + 1
        assert 0 < acknowledged < 1000
        async with asyncio.timeout(30):
            while Path(f"/proc/{first}/exe").exists():
                await asyncio.sleep(0.01)
        (small_disk / "filler").unlink()
        async with asyncio.timeout(60):
            while True:
                try:
                    with redis.Redis.from_url(server.url) as client:
                        client.set("again", "yes")
                        kept = [client.get(f"k{number}") == body for number in range(acknowledged)]
                        break
                except (redis.RedisError, OSError):
                    await asyncio.sleep(0.05)
        assert all(kept)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await server.stop()
