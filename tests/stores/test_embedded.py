"""The embedded server: one per data directory, however asked for; what it acknowledged outlives its death."""

from __future__ import annotations

import asyncio
import os
import select
import shutil
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis

from orchestrator.stores import embedded
from orchestrator.stores.embedded import EmbeddedServer, EmbeddedServerFailed


@pytest.fixture
def data_dir(short_dir: Path) -> Iterator[Path]:
    yield short_dir
    embedded.shutdown(short_dir)


def stat(pid: int) -> tuple[str, int]:
    """State letter and process group, from /proc (a bare Debian has no pgrep); ("Z", 0) for none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return "Z", 0
    return fields[0], int(fields[2])


def alive(pid: int) -> bool:
    return stat(pid)[0] != "Z"


def group(pgid: int) -> list[int]:
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if stat(pid)[1] == pgid and alive(pid)]


def kill_and_wait(pid: int) -> None:
    handle = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        assert select.select([handle], [], [], 10)[0]
    finally:
        os.close(handle)


def test_promises_that_the_store_makes_are_configured(data_dir: Path) -> None:
    with redis.Redis.from_url(embedded.ensure(data_dir).url, decode_responses=True) as client:
        config = client.config_get()
    wanted = {
        "appendonly": "yes",
        "appendfsync": "always",
        "save": "",
        "maxmemory-policy": "noeviction",
        "port": "0",
        "dir": str(data_dir / "redis"),
    }
    assert {name: config[name] for name in wanted} == wanted


def test_asking_twice_is_one_server(data_dir: Path) -> None:
    assert embedded.ensure(data_dir) == embedded.ensure(data_dir)


def test_many_askers_at_once_are_one_server(data_dir: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(embedded.ensure, [data_dir] * 8))
    assert len(set(answers)) == 1


def test_it_runs_in_a_session_of_its_own(data_dir: Path) -> None:
    running = embedded.ensure(data_dir)
    assert os.getsid(running.pid) == running.pid


def test_only_the_owner_may_enter(data_dir: Path) -> None:
    embedded.ensure(data_dir)
    assert (data_dir / "redis").stat().st_mode & 0o077 == 0
    assert (data_dir / "redis" / "redis.sock").stat().st_mode & 0o077 == 0


def test_what_was_acknowledged_outlives_kill_9(data_dir: Path) -> None:
    running = embedded.ensure(data_dir)
    with redis.Redis.from_url(running.url) as client:
        for number in range(200):
            client.xadd("history", {"n": number})
    kill_and_wait(running.pid)  # straight after the last acknowledgement
    again = embedded.ensure(data_dir)
    assert again.pid != running.pid
    with redis.Redis.from_url(again.url) as client:
        assert [int(fields[b"n"]) for _, fields in client.xrange("history")] == list(range(200))


def test_a_stale_pid_file_and_socket_are_cleaned(data_dir: Path) -> None:
    kill_and_wait(embedded.ensure(data_dir).pid)
    folder = data_dir / "redis"
    assert (folder / "redis.sock").exists()
    (folder / "redis.pid").write_text(f"{os.getpid()}\n")  # the number now belongs to somebody else
    assert alive(embedded.ensure(data_dir).pid)


def test_a_fork_left_by_a_dead_server_does_not_block_the_next(data_dir: Path) -> None:
    running = embedded.ensure(data_dir)
    with redis.Redis.from_url(running.url) as client:
        client.config_set("rdb-key-save-delay", 10_000_000)  # a rewrite of two keys now takes 20 s
        client.mset({"a": 1, "b": 2})
        client.bgrewriteaof()
    kill_and_wait(running.pid)
    assert len(group(running.pid)) == 1
    again = embedded.ensure(data_dir)
    assert group(running.pid) == []
    with redis.Redis.from_url(again.url) as client:
        assert client.mget("a", "b") == [b"1", b"2"]


def test_shutdown_closes_the_file_and_may_be_repeated(data_dir: Path) -> None:
    running = embedded.ensure(data_dir)
    embedded.shutdown(data_dir)
    assert not alive(running.pid)
    assert "bye bye" in (data_dir / "redis" / "redis.log").read_text()
    embedded.shutdown(data_dir)


def test_a_stopped_server_is_still_ended(data_dir: Path) -> None:
    running = embedded.ensure(data_dir)
    os.kill(running.pid, signal.SIGSTOP)
    embedded.shutdown(data_dir, limit_s=0.1)
    assert not alive(running.pid)


def test_a_path_too_long_for_a_socket_says_so(short_dir: Path) -> None:
    with pytest.raises(EmbeddedServerFailed, match="choose a shorter data directory"):
        embedded.ensure(short_dir / ("x" * 100))


def test_a_server_that_cannot_start_shows_its_own_words(data_dir: Path) -> None:
    folder = data_dir / "redis"
    (folder / "appendonlydir").mkdir(parents=True)
    (folder / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")
    with pytest.raises(EmbeddedServerFailed, match=r"(?s)ended at its start.*AOF"):
        embedded.ensure(data_dir)


def test_the_program_that_wrote_the_file_is_kept(data_dir: Path) -> None:
    embedded.ensure(data_dir)
    embedded.shutdown(data_dir)
    program = Path((data_dir / "redis" / "program").read_text().strip())
    own = data_dir / "redis-server-of-before"
    shutil.copy(program, own)
    (data_dir / "redis" / "program").write_text(f"{own}\n")
    running = embedded.ensure(data_dir)
    assert Path(f"/proc/{running.pid}/exe").readlink() == own


async def test_a_watched_server_comes_back_with_its_data(data_dir: Path) -> None:
    server = EmbeddedServer(data_dir)
    await server.start()
    first = server.pid
    watching = asyncio.create_task(server.watch())
    try:
        with redis.Redis.from_url(server.url) as client:
            client.set("kept", "yes")
        os.kill(first, signal.SIGKILL)
        async with asyncio.timeout(20):
            while server.pid == first:
                await asyncio.sleep(0.005)
        with redis.Redis.from_url(server.url) as client:
            assert client.get("kept") == b"yes"
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await server.stop()
    assert not alive(server.pid)


async def test_the_last_user_ends_it(data_dir: Path) -> None:
    one, two = EmbeddedServer(data_dir), EmbeddedServer(data_dir)
    await one.start()
    await two.start()
    assert one.pid == two.pid
    await one.stop()
    assert alive(two.pid)
    await two.stop()
    assert not alive(two.pid)
    await two.stop()


async def test_a_killed_user_leaves_it_up_and_the_next_takes_it_over(data_dir: Path) -> None:
    script = (
        "import asyncio, sys, os, signal; from pathlib import Path\n"
        "from orchestrator.stores.embedded import EmbeddedServer\n"
        "async def main():\n"
        "    server = EmbeddedServer(Path(sys.argv[1])); await server.start()\n"
        "    print(server.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    user = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(data_dir), stdout=asyncio.subprocess.PIPE
    )
    told, _ = await user.communicate()
    assert user.returncode == -signal.SIGKILL
    server = EmbeddedServer(data_dir)
    await server.start()
    assert server.pid == int(told)
    await server.stop()
    assert not alive(int(told))


def test_a_server_killed_a_moment_ago_is_replaced(data_dir: Path) -> None:
    """Between kill -9 and the kernel's end of it the dying one still holds its lock: that must not be waited out."""
    for _ in range(20):
        pid = embedded.ensure(data_dir).pid
        os.kill(pid, signal.SIGKILL)
        assert embedded.ensure(data_dir, limit_s=10).pid != pid
