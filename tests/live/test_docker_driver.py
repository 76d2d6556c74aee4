"""What only Docker has: its limits read back from the kernel, its ways to fail, and an engine that does not answer."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import sys
import tarfile
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import docker
import pytest

from orchestrator.drivers import work_cgroup
from orchestrator.drivers.work_cgroup import RESERVED_MEMORY_BYTES, RESERVED_PIDS
from orchestrator.errors import CarrelError, EngineUnavailable, Infeasible, SandboxConflict
from orchestrator.execution import MIB
from orchestrator.sandbox import Absent, Created, Fit, Running, Unknown
from tests.live.engine_proxy import EngineProxy
from tests.sandboxes import ROOT, SMALL, TEST_LABELS, DockerBench, until

pytestmark = [pytest.mark.docker, pytest.mark.root]


@pytest.fixture
async def bench(short_dir: Path, sandbox_image: str, installation: str) -> AsyncIterator[DockerBench]:
    made = DockerBench(short_dir, sandbox_image, installation)
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture
def engine() -> Iterator[docker.APIClient]:
    client = docker.APIClient(version="1.41", timeout=60)
    yield client
    client.close()


@pytest.fixture
async def proxy(short_dir: Path) -> AsyncIterator[EngineProxy]:
    async with EngineProxy(short_dir) as made:
        yield made


@pytest.fixture
async def proxied(
    proxy: EngineProxy, short_dir: Path, sandbox_image: str, installation: str
) -> AsyncIterator[DockerBench]:
    made = DockerBench(short_dir, sandbox_image, installation, base_url=proxy.url)
    try:
        yield made
    finally:
        proxy.mute = proxy.broken = False
        await made.close()


def cgroup_files(bench: DockerBench, sandbox_id: str) -> dict[str, str]:
    """Limits of the container and of its `work`, as the kernel has them (v1)."""
    container = bench.trace(sandbox_id)
    mounts = work_cgroup.hierarchies()
    found = {}
    for controller, name in (
        ("memory", "memory.limit_in_bytes"),
        ("pids", "pids.max"),
        ("cpu", "cpu.cfs_quota_us"),
        ("cpu", "cpu.cfs_period_us"),
    ):
        folder = mounts.v1[controller] / "docker" / container
        found[name] = (folder / name).read_text().strip()
        if (folder / "work" / name).exists():
            found[f"work/{name}"] = (folder / "work" / name).read_text().strip()
    return found


# -- made by one, started by another ----------------------------------------------------------------------------------


async def test_created_and_never_started_is_no_end(bench: DockerBench, engine: docker.APIClient) -> None:
    """A worker was killed between the engine's two calls."""
    sandbox_id, spec = await bench.slot()
    await bench.driver.ensure(spec, sandbox_id)
    name, seen = f"carrel-{sandbox_id}", bench.inspect(sandbox_id)
    engine.remove_container(name, force=True)
    request = {**seen["Config"], "HostConfig": seen["HostConfig"]}
    engine.create_container_from_config(request, name)  # type: ignore[no-untyped-call]
    assert await bench.driver.observe(sandbox_id) == Created()
    await bench.driver.ensure(spec, sandbox_id)
    async with bench.owner(sandbox_id) as owner:
        assert owner.hello.state == "idle"


# -- limits -----------------------------------------------------------------------------------------------------------


async def test_limits_are_the_kernels_and_work_lies_below(bench: DockerBench) -> None:
    sandbox_id = await bench.opened()
    assert cgroup_files(bench, sandbox_id) == {
        "memory.limit_in_bytes": str(SMALL.memory_bytes),
        "work/memory.limit_in_bytes": str(SMALL.memory_bytes - RESERVED_MEMORY_BYTES),
        "pids.max": str(SMALL.pids),
        "work/pids.max": str(SMALL.pids - RESERVED_PIDS),
        "cpu.cfs_quota_us": "100000",
        "cpu.cfs_period_us": "100000",
    }
    said = (await bench.sh(sandbox_id, "ulimit -Hn; ulimit -Hc; df -k --output=size /tmp | tail -1; hostname")).text
    assert said.split() == ["256", "0", str(SMALL.tmp_bytes // 1024), f"sbx-{sandbox_id[-8:]}"]


async def test_loopback_and_names_are_there_without_a_network(bench: DockerBench) -> None:
    sandbox_id = await bench.opened()
    ran = await bench.sh(
        sandbox_id,
        "getent hosts localhost; cat /etc/resolv.conf; ls /sys/class/net; "
        'python3 -c \'import socket; s = socket.create_server(("127.0.0.1", 0)); '
        'socket.create_connection(s.getsockname()); print("up")\'',
    )
    assert "localhost" in ran.text and "nameserver" not in ran.text
    assert ran.text.split()[-2:] == ["lo", "up"], ran


async def test_resize_up_and_down_moves_both_bounds(bench: DockerBench) -> None:
    sandbox_id = await bench.opened()
    for memory_bytes, pids, cpus in ((256 * MIB, 100, 0.5), (96 * MIB, 40, 1.5)):
        wanted = replace(SMALL, memory_bytes=memory_bytes, pids=pids, cpus=cpus)
        resized = await bench.driver.resize(sandbox_id, wanted)
        assert (resized.fit, resized.measured) == (Fit.APPLIED, wanted), resized.detail
        files = cgroup_files(bench, sandbox_id)
        assert files["memory.limit_in_bytes"] == str(memory_bytes)
        assert files["work/memory.limit_in_bytes"] == str(memory_bytes - RESERVED_MEMORY_BYTES)
        assert files["work/pids.max"] == str(pids - RESERVED_PIDS)
        assert files["cpu.cfs_quota_us"] == str(int(cpus * 100_000))


async def test_resize_while_paused(bench: DockerBench) -> None:
    sandbox_id = await bench.opened()
    await bench.driver.pause(sandbox_id)
    assert (await bench.driver.resize(sandbox_id, replace(SMALL, memory_bytes=256 * MIB))).fit is Fit.APPLIED
    status = await bench.driver.observe(sandbox_id)
    assert isinstance(status, Running) and status.paused


@pytest.mark.parametrize("field", ["memory_bytes", "pids", "cpus", "memory_low"])
async def test_resize_that_does_not_fit_changes_nothing(bench: DockerBench, field: str) -> None:
    roomy = replace(SMALL, memory_bytes=256 * MIB, pids=100)
    sandbox_id = await bench.opened(roomy)
    await bench.spawn(
        sandbox_id,
        "/usr/bin/python3",
        "-c",
        "b = bytearray(150 << 20)\nopen('full', 'w')\nimport time; time.sleep(1e6)",
    )
    await bench.spawn(sandbox_id, "/bin/bash", "-c", "for i in $(seq 50); do sleep 1000 & done; wait")
    await until(lambda: _exists(bench.volume(sandbox_id) / "workspace" / "full"), "memory is in use")
    await until(lambda: _sleepers(bench, sandbox_id), "pids are in use")
    before = cgroup_files(bench, sandbox_id)
    wanted = {
        "memory_bytes": replace(roomy, memory_bytes=100 * MIB),
        "pids": replace(roomy, pids=30),
        "cpus": replace(roomy, cpus=4096),
        "memory_low": replace(roomy, memory_bytes=1 * MIB),
    }[field]
    resized = await bench.driver.resize(sandbox_id, wanted)
    assert resized.fit is Fit.INFEASIBLE and resized.detail
    assert cgroup_files(bench, sandbox_id) == before
    assert await _sleepers(bench, sandbox_id), "nothing was killed for it"


async def test_usage_is_of_work(bench: DockerBench) -> None:
    sandbox_id = await bench.opened()
    before = await bench.driver.usage(sandbox_id)
    await bench.spawn(
        sandbox_id, "/usr/bin/python3", "-c", "b = bytearray(60 << 20)\nopen('full', 'w')\nwhile True: pass"
    )
    await until(lambda: _exists(bench.volume(sandbox_id) / "workspace" / "full"), "memory is in use")
    after = await bench.driver.usage(sandbox_id)
    assert before is not None and after is not None
    assert after.memory_bytes > before.memory_bytes + 50 * MIB
    assert after.pids == before.pids + 1
    await until(lambda: _cpu_over(bench, sandbox_id, before.cpu_s + 0.05), "CPU is counted")


# -- out of memory ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "attack",
    [
        "python3 -c 'b = bytearray(1 << 30)'",
        "head -c 99m /dev/zero > /dev/shm/x; head -c 99m /dev/zero > /tmp/x; python3 -c 'b = bytearray(1 << 30)'",
        "for i in $(seq 40); do python3 -c 'b = bytearray(12 << 20); input()' < <(sleep 5) & done; wait",
    ],
    ids=["one", "tmpfs", "many"],
)
async def test_out_of_memory_takes_children_never_init(bench: DockerBench, attack: str) -> None:
    sandbox_id = await bench.opened()
    pid = bench.init_pid(sandbox_id)
    await bench.sh(sandbox_id, attack)
    status = await bench.driver.observe(sandbox_id)
    assert isinstance(status, Running) and status.oom_kills >= 1
    assert bench.init_pid(sandbox_id) == pid
    assert (await bench.run(sandbox_id, "/bin/echo", "alive")).out == b"alive\n"


# -- starts that fail -------------------------------------------------------------------------------------------------


@pytest.fixture
def odd_image(engine: docker.APIClient, sandbox_image: str) -> Iterator[str]:
    """Built from ours; a test fills it in."""
    tag = f"carrel-test:{uuid.uuid4().hex[:12]}"
    yield tag
    for image in engine.images(filters={"reference": f"{tag}*"}):
        engine.remove_image(image["Id"], force=True)


def commit(engine: docker.APIClient, base: str, tag: str, *changes: str, files: dict[str, bytes] | None = None) -> None:
    """An image of `base`, with these changes. A file without content is a link that leads nowhere."""
    made = engine.create_container(base, ["true"], labels=TEST_LABELS)["Id"]
    try:
        if files:
            packed = io.BytesIO()
            with tarfile.open(fileobj=packed, mode="w") as tar:
                for name, content in files.items():
                    entry = tarfile.TarInfo(name)
                    entry.size, entry.mode = len(content), 0o755
                    if not content:
                        entry.type, entry.linkname = tarfile.SYMTYPE, "/no/such/file"
                    tar.addfile(entry, io.BytesIO(content))
            engine.put_archive(made, "/", packed.getvalue())
        repository, _, label = tag.partition(":")
        engine.commit(made, repository, label, changes="\n".join(changes) or None)
    finally:
        engine.remove_container(made, force=True)


@pytest.mark.parametrize(
    ("python", "words"),
    [
        (b"#!/bin/bash\nexit 42\n", "exit code 42"),
        (b"", "/usr/bin/python3"),
        (b"\x7fELF not really", "exit code"),
    ],
)
async def test_a_start_that_fails_says_why_and_leaves_nothing(
    bench: DockerBench, engine: docker.APIClient, sandbox_image: str, odd_image: str, python: bytes, words: str
) -> None:
    commit(engine, sandbox_image, odd_image, files={"usr/bin/python3": python})
    sandbox_id, spec = await bench.slot()
    with pytest.raises(CarrelError) as caught:
        await bench.driver.ensure(replace(spec, image=odd_image), sandbox_id)
    assert words in caught.value.message
    assert not isinstance(caught.value, EngineUnavailable)
    assert await bench.driver.observe(sandbox_id) == Absent()


async def test_what_else_an_image_would_start_does_not_matter(
    bench: DockerBench, engine: docker.APIClient, sandbox_image: str, odd_image: str
) -> None:
    """Its author's ENTRYPOINT, CMD and USER are for `docker run`."""
    changes = ('ENTRYPOINT ["/bin/false"]', 'CMD ["now"]', "USER 1000", "WORKDIR /tmp")
    commit(engine, sandbox_image, odd_image, *changes)
    bench.image = odd_image
    sandbox_id = await bench.opened()
    assert (await bench.run(sandbox_id, "/bin/echo", "alive")).out == b"alive\n"
    await bench.driver.remove(sandbox_id)


async def test_an_image_that_is_not_built_from_ours_is_refused(
    bench: DockerBench, engine: docker.APIClient, odd_image: str
) -> None:
    repository, _, label = odd_image.partition(":")
    engine.import_image_from_data(_empty_tar(), repository=repository, tag=label)
    sandbox_id, spec = await bench.slot()
    with pytest.raises(Infeasible) as caught:
        await bench.driver.ensure(replace(spec, image=odd_image), sandbox_id)
    assert caught.value.data["field"] == "image" and "`FROM carrel/sandbox:latest`" in caught.value.message


async def test_an_unknown_runtime_is_named(bench: DockerBench) -> None:
    sandbox_id, spec = await bench.slot()
    with pytest.raises(Infeasible) as caught:
        await bench.driver.ensure(replace(spec, runtime="no-such-runtime"), sandbox_id)
    assert caught.value.data["field"] == "runtime"
    assert await bench.driver.observe(sandbox_id) == Absent()


# -- without `work` ---------------------------------------------------------------------------------------------------


async def test_what_was_not_enclosed_is_paused_by_the_engine(bench: DockerBench) -> None:
    sandbox_id = await bench.sandbox()
    for _ in range(2):
        await bench.driver.pause(sandbox_id)
    assert bench.inspect(sandbox_id)["State"]["Paused"]
    status = await bench.driver.observe(sandbox_id)
    assert isinstance(status, Running) and status.paused
    for _ in range(2):
        await bench.driver.unpause(sandbox_id)
    assert not bench.inspect(sandbox_id)["State"]["Paused"]
    await bench.driver.pause(sandbox_id)
    await bench.driver.remove(sandbox_id)
    assert await bench.driver.observe(sandbox_id) == Absent()


# -- whose is it ------------------------------------------------------------------------------------------------------


async def test_a_foreign_container_with_our_name_is_never_touched(
    bench: DockerBench, engine: docker.APIClient, sandbox_image: str
) -> None:
    sandbox_id, spec = await bench.slot()
    foreign = engine.create_container(sandbox_image, ["true"], name=f"carrel-{sandbox_id}", labels=TEST_LABELS)["Id"]
    try:
        with pytest.raises(SandboxConflict):
            await bench.driver.ensure(spec, sandbox_id)
        with pytest.raises(SandboxConflict):
            await bench.driver.remove(sandbox_id)
        assert isinstance(await bench.driver.observe(sandbox_id), Unknown)
        assert await bench.driver.list() == []
        assert engine.inspect_container(foreign)["State"]["Status"] == "created"
    finally:
        engine.remove_container(foreign, force=True)


async def test_a_foreign_container_that_wears_our_labels_is_not_ours(
    bench: DockerBench, engine: docker.APIClient, sandbox_image: str, installation: str
) -> None:
    """Attack 66: removal goes by name and labels together, and a name can only be had once."""
    labels = {**TEST_LABELS, "carrel.installation": installation, "carrel.sandbox": "sbx_mine"}
    foreign = engine.create_container(sandbox_image, ["true"], labels=labels)["Id"]
    try:
        assert await bench.driver.list() == []
        await bench.driver.remove("sbx_mine")
        assert engine.inspect_container(foreign)["State"]["Status"] == "created"
    finally:
        engine.remove_container(foreign, force=True)


async def test_two_installations_do_not_see_each_other(bench: DockerBench, short_dir: Path, sandbox_image: str) -> None:
    sandbox_id = await bench.sandbox()
    other = DockerBench(short_dir, sandbox_image, f"o{uuid.uuid4().hex[:8]}")
    try:
        assert await other.driver.list() == []
        assert isinstance(await other.driver.observe(sandbox_id), Unknown)
        with pytest.raises(SandboxConflict):
            await other.driver.remove(sandbox_id)
        assert isinstance(await bench.driver.observe(sandbox_id), Running)
    finally:
        await other.close()


# -- an engine that does not answer -----------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["mute", "broken", "gone"])
async def test_no_answer_is_unknown_never_absent(proxied: DockerBench, proxy: EngineProxy, fault: str) -> None:
    sandbox_id, spec = await proxied.slot()
    await proxied.driver.ensure(spec, sandbox_id)
    driver = proxied.again(quick_s=0.5, slow_s=0.5)
    if fault == "gone":
        proxy.socket.unlink()
    proxy.mute = fault == "mute"
    proxy.broken = fault == "broken"
    status = await driver.observe(sandbox_id)
    assert isinstance(status, Unknown) and status.error
    assert isinstance(await driver.observe("sbx_never"), Unknown)
    for asked in (driver.list(), driver.remove(sandbox_id), driver.ensure(spec, sandbox_id), driver.capabilities()):
        with pytest.raises(EngineUnavailable):
            await asked
    assert [hint async for hint in driver.watch()] == []
    proxied.base_url = ""
    direct = proxied.again()
    assert isinstance(await direct.observe(sandbox_id), Running)
    await direct.remove(sandbox_id)
    proxied.made.remove(sandbox_id)


@pytest.mark.parametrize("lost", [r"POST /containers/create", r"POST /containers/\w+/start"])
async def test_a_lost_reply_is_answered_by_asking_again(proxied: DockerBench, proxy: EngineProxy, lost: str) -> None:
    sandbox_id, spec = await proxied.slot()
    proxy.lose.append(lost)
    with pytest.raises(EngineUnavailable):
        await proxied.driver.ensure(spec, sandbox_id)
    await proxied.driver.ensure(spec, sandbox_id)
    assert [found.sandbox_id for found in await proxied.driver.list()] == [sandbox_id]
    async with proxied.owner(sandbox_id) as owner:
        assert owner.hello.state == "idle"
    assert proxy.seen["POST /containers/create"] == 1, "the second ensure found what the first had made"


MAKER = """
import asyncio, sys
from pathlib import Path
from tests.sandboxes import DockerBench
async def main(folder, image, installation, url, sandbox_id):
    bench = DockerBench(Path(folder), image, installation, base_url=url)
    _, spec = await bench.slot(sandbox_id)
    await bench.driver.ensure(spec, sandbox_id)
    await bench.open_gate(sandbox_id)
    await bench.driver.remove(sandbox_id)
asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_worker_killed_at_any_request_leaves_what_the_next_can_use_and_remove(
    proxied: DockerBench, proxy: EngineProxy, short_dir: Path
) -> None:
    kills = 0
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'sandbox-image'}"}
    for request in range(1, 40):
        sandbox_id, spec = await proxied.slot()
        proxy.seen.clear()
        arguments = [str(short_dir), proxied.image, proxied.installation.name, proxy.url, sandbox_id]
        worker = await asyncio.create_subprocess_exec(
            sys.executable, "-c", MAKER, *arguments, cwd=ROOT, env=environment
        )
        ended = asyncio.ensure_future(worker.wait())
        while not ended.done() and proxy.seen.total() < request:
            await asyncio.sleep(0.001)
        if not ended.done():
            worker.kill()
            kills += 1
        code = await ended
        assert code in (0, -signal.SIGKILL)
        if request % 2:
            await proxied.driver.ensure(spec, sandbox_id)
            await proxied.open_gate(sandbox_id)
            assert (await proxied.run(sandbox_id, "/bin/echo", "alive")).out == b"alive\n", request
        await proxied.driver.remove(sandbox_id)
        assert await proxied.driver.observe(sandbox_id) == Absent(), request
        if code == 0:
            break
    assert kills >= 6, "it was hardly killed at all"
    assert code == 0, "nor did one get to its end"


async def test_starts_are_bounded(proxied: DockerBench, proxy: EngineProxy) -> None:
    specs = [await proxied.slot() for _ in range(6)]
    await asyncio.gather(*(proxied.driver.ensure(spec, sandbox_id) for sandbox_id, spec in specs))
    assert proxy.seen["POST /containers/ID/start"] == 6
    assert 1 <= proxy.most["POST /containers/ID/start"] <= 3


# -- steps ------------------------------------------------------------------------------------------------------------


async def _exists(*files: Path) -> bool:
    return all(file.exists() for file in files)


async def _cpu_over(bench: DockerBench, sandbox_id: str, cpu_s: float) -> bool:
    usage = await bench.driver.usage(sandbox_id)
    return usage is not None and usage.cpu_s > cpu_s


async def _sleepers(bench: DockerBench, sandbox_id: str) -> bool:
    return (await bench.run(sandbox_id, "/usr/bin/pgrep", "-c", "sleep")).out == b"50\n"


def _empty_tar() -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w"):
        pass
    return packed.getvalue()
