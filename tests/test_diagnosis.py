"""The checks of `carrel doctor`: each can say ok and can say no, and every no comes with a remedy."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from orchestrator import diagnosis
from orchestrator.checks import Check, Verdict
from orchestrator.configuration import load
from orchestrator.execution import Spec
from orchestrator.executions import Claim
from orchestrator.history import Change
from orchestrator.lifecycle import Trigger
from orchestrator.settings import Settings
from orchestrator.stores import embedded
from orchestrator.stores.redis import Keys, RedisExecutions, RedisHistory, Server

OK, WARN, MISSING = Verdict.OK, Verdict.WARN, Verdict.MISSING
INFO = {
    "ServerVersion": "20.10.24+dfsg1",
    "Driver": "overlay2",
    "NCPU": 2,
    "MemTotal": 1 << 30,
    "SecurityOptions": ["name=seccomp,profile=default"],
    "LiveRestoreEnabled": True,
}


def settings(data_dir: Path, **changed: object) -> Settings:
    return load({"data_dir": str(data_dir), **changed}, environment={"CARREL_CONFIG": "/dev/null"})


def verdicts(checks: list[Check]) -> dict[str, Verdict]:
    for check in checks:
        assert check.seen
        assert bool(check.remedy) == (check.verdict is not OK), check
    return {check.name: check.verdict for check in checks}


@pytest.fixture
def own_store(short_dir: Path) -> Iterator[redis.Redis]:
    """A server of this test's own, free to be configured badly."""
    with redis.Redis.from_url(embedded.ensure(short_dir).url) as client:
        yield client
    embedded.shutdown(short_dir)


@pytest.mark.parametrize(
    ("change", "name", "verdict"),
    [
        ({}, "engine", OK),
        ({}, "seccomp", OK),
        ({}, "live-restore", OK),
        ({"ServerVersion": "19.03.1"}, "engine", WARN),
        ({"SecurityOptions": []}, "seccomp", WARN),
        ({"SecurityOptions": None}, "seccomp", WARN),
        ({"LiveRestoreEnabled": False}, "live-restore", WARN),
        ({"SecurityOptions": ["name=seccomp", "name=userns"]}, "userns", MISSING),
        ({"SecurityOptions": ["name=seccomp", "name=rootless"]}, "userns", MISSING),
    ],
)
def test_engine_facts(change: dict[str, object], name: str, verdict: Verdict) -> None:
    assert verdicts(list(diagnosis.engine_facts({**INFO, **change})))[name] is verdict


def test_rights() -> None:
    found = [diagnosis.privileges(root, cgroup) for root, cgroup in ((True, "/c"), (True, ""), (False, ""))]
    assert [check.verdict for check in found] == [OK, WARN, WARN]


def test_no_engine(short_dir: Path) -> None:
    found = list(diagnosis.engine(settings(short_dir, docker_host=f"unix://{short_dir}/none.sock")))
    assert verdicts(found) == {"engine": MISSING}


@pytest.mark.docker
def test_the_engine_here_and_an_image_it_lacks(short_dir: Path) -> None:
    found = verdicts(list(diagnosis.engine(settings(short_dir, image="carrel-no-such-image:never"))))
    assert found["engine"] is OK
    assert found["image"] is MISSING


def test_data_directory(short_dir: Path) -> None:
    short_dir.chmod(0o700)
    assert verdicts(list(diagnosis.data_directory(settings(short_dir)))) == {"data": OK}
    assert verdicts(list(diagnosis.data_directory(settings(short_dir / "not" / "yet")))) == {"data": OK}
    assert verdicts(list(diagnosis.data_directory(settings(short_dir / ("x" * 60))))) == {"data": MISSING}
    short_dir.chmod(0o777)
    assert verdicts(list(diagnosis.data_directory(settings(short_dir)))) == {"data": WARN}


def test_store_embedded_down_and_up(short_dir: Path) -> None:
    assert verdicts(list(diagnosis.store(settings(short_dir)))) == {"store": OK}
    embedded.ensure(short_dir)
    try:
        found = verdicts(list(diagnosis.store(settings(short_dir))))
        del found["orphans"]  # depends on the engine; see below
        assert found == {"store": OK, "durability": OK, "schema": WARN, "clock": OK}  # never prepared
    finally:
        embedded.shutdown(short_dir)


async def submitted(url: str, installation: str) -> str:
    """The sandbox a new execution's record names."""
    server = Server(url)
    store = RedisExecutions(server, Keys(installation))
    history = RedisHistory(server, Keys(installation))
    try:
        made = await store.submit(Spec(harness="bash", task="true"), execution_id="exe_1")
        claim = await store.claim("w", "h", lease_s=60)
        assert isinstance(claim, Claim)
        change = Change(
            trigger=Trigger.CLAIMED, expects=made.execution.state, sandbox_id="sbx_named", host="h", attempt=1
        )
        await history.append(claim.lease, attempt=0, change=change, own=1)
    finally:
        await history.aclose()
        await server.aclose()
    return "sbx_named"


def test_orphans_are_listed_and_left_alone(redis_url: str, installation: str, short_dir: Path) -> None:
    here = settings(short_dir, installation=installation, driver="scripted")
    assert diagnosis.orphans(here, redis_url).verdict is OK
    assert not (short_dir / "slots").exists()
    orphan = short_dir / "slots" / "sbx_orphan"
    orphan.mkdir(parents=True)
    assert "knows no execution" in diagnosis.orphans(here, redis_url).seen
    named = short_dir / "slots" / asyncio.run(submitted(redis_url, installation))
    named.mkdir()
    found = diagnosis.orphans(here, redis_url)
    assert found.verdict is WARN
    assert "sbx_orphan" in found.seen
    assert "sbx_named" not in found.seen
    assert orphan.exists()


@pytest.mark.parametrize(
    ("setting", "value"), [("appendfsync", "everysec"), ("appendonly", "no"), ("maxmemory-policy", "allkeys-lru")]
)
def test_a_store_that_may_lose_is_said_with_the_command(
    own_store: redis.Redis, short_dir: Path, setting: str, value: str
) -> None:
    own_store.config_set(setting, value)
    found = list(diagnosis.store(settings(short_dir, redis_url=embedded.redis_url(short_dir))))
    assert verdicts(found)["durability"] is WARN
    remedy = next(check.remedy for check in found if check.name == "durability")
    for command in remedy.split("; "):
        verb, *words = command.removeprefix("CONFIG ").split()
        if verb == "SET":  # REWRITE needs a configuration file, which this server has not
            own_store.config_set(*words)
    assert verdicts(list(diagnosis.store(settings(short_dir))))["durability"] is OK
    # A server that writes its first file does not end on SIGTERM until that is done.
    deadline = time.monotonic() + 30
    while own_store.info()["aof_rewrite_scheduled"] or own_store.info()["aof_rewrite_in_progress"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_store_that_hides_its_configuration(own_store: redis.Redis, short_dir: Path) -> None:
    own_store.acl_setuser("default", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-config"])
    assert verdicts(list(diagnosis.store(settings(short_dir))))["durability"] is WARN


def test_a_store_that_wants_a_password_does_not_show_ours(own_store: redis.Redis, short_dir: Path) -> None:
    own_store.config_set("requirepass", "right")
    path = short_dir / "redis" / "redis.sock"
    found = list(diagnosis.store(settings(short_dir, redis_url=f"unix://:wrong-one@{path}")))
    assert verdicts(found) == {"store": MISSING}
    assert "wrong-one" not in found[0].seen


def test_no_store_there(short_dir: Path) -> None:
    found = diagnosis.store(settings(short_dir, redis_url=f"unix://{short_dir}/none.sock"))
    assert verdicts(list(found)) == {"store": MISSING}


def test_another_living_host_is_said_and_a_silent_one_is_not() -> None:
    assert list(diagnosis.hosts("vm", {})) == list(diagnosis.hosts("vm", {"vm": 5})) == []
    assert list(diagnosis.hosts("vm", {"vm": 100_000, "old": 1})) == []
    found = list(diagnosis.hosts("vm", {"vm": 100_000, "hosta": 99_000}))
    assert verdicts(found) == {"hosts": WARN} and "hosta" in found[0].seen


def test_a_heartbeat_in_the_store_is_found(own_store: redis.Redis, short_dir: Path) -> None:
    async def beat() -> None:
        server = Server(embedded.redis_url(short_dir))
        try:
            await RedisExecutions(server, Keys(settings(short_dir).installation)).heartbeat("elsewhere", "w", {})
        finally:
            await server.aclose()

    asyncio.run(beat())
    found = [check for check in diagnosis.store(settings(short_dir)) if check.name == "hosts"]
    assert verdicts(found) == {"hosts": WARN} and "elsewhere" in found[0].seen


def test_clock() -> None:
    assert diagnosis.clock(1000.5, 1001.0).verdict is OK
    assert diagnosis.clock(1000.0, 4600.0).verdict is WARN


def test_port(short_dir: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        taken_port = taken.getsockname()[1]
        assert diagnosis.port(settings(short_dir, port=taken_port)).verdict is MISSING
    assert diagnosis.port(settings(short_dir, port=taken_port)).verdict is OK
    assert diagnosis.port(settings(short_dir, bind_host="192.0.2.1")).verdict is MISSING


def doctor(data_dir: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestrator.cli.doctor", *arguments],
        env={**os.environ, "CARREL_CONFIG": "/dev/null", "CARREL_DATA_DIR": str(data_dir), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_command_in_json_and_its_exit_code(short_dir: Path) -> None:
    short_dir.chmod(0o700)
    well = doctor(short_dir, "--json", CARREL_DRIVER="scripted", CARREL_PORT="0")
    assert well.returncode == 0, well.stdout + well.stderr
    found = json.loads(well.stdout)
    assert found["ok"] is True
    assert {"name", "verdict", "seen", "remedy"} == set(found["checks"][0])
    ill = doctor(short_dir, "--json", CARREL_DRIVER="scripted", CARREL_REDIS_URL=f"unix://{short_dir}/none.sock")
    assert ill.returncode == 1
    assert json.loads(ill.stdout)["ok"] is False


def test_the_command_says_bad_settings_instead_of_failing(short_dir: Path) -> None:
    told = doctor(short_dir, CARREL_PORT="http")
    assert told.returncode == 1
    assert "$CARREL_PORT" in told.stdout
    assert told.stderr == ""


def test_a_misspelt_variable_is_shown(short_dir: Path) -> None:
    told = doctor(short_dir, CARREL_PROT="1", CARREL_DRIVER="scripted")
    assert "CARREL_PROT" in told.stdout


def test_it_starts_and_changes_nothing(short_dir: Path) -> None:
    before = time.time()
    doctor(short_dir, CARREL_DRIVER="scripted")
    assert list(short_dir.iterdir()) == []
    assert short_dir.stat().st_mtime <= before


def test_ranges_opened_to_sandboxes_are_shown_and_none_is_silent(tmp_path: Path) -> None:
    assert list(diagnosis.inner_ranges(settings(tmp_path).egress_private_allow)) == []
    opened = settings(tmp_path, egress_private_allow="10.1.0.0/16, fd12::/64").egress_private_allow
    (check,) = diagnosis.inner_ranges(opened)
    assert check.verdict is WARN and "10.1.0.0/16, fd12::/64" in check.seen and check.remedy
