"""A backup of an installation that works on, restored into an empty one: files and all."""

from __future__ import annotations

import asyncio
import io
import shutil
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.backup import Restored, Sources, Taken, restore, take
from orchestrator.clock import SystemClock
from orchestrator.drivers.scripted import ScriptedDriver
from orchestrator.errors import BadInput, Conflict, DiskFull, NotFound
from orchestrator.execution import FileRef, Resources
from orchestrator.history import Lease
from orchestrator.intents import Effect
from orchestrator.lifecycle import ExecutionState
from orchestrator.sandbox import SandboxSpec
from orchestrator.stores.redis import Keys, RedisDump, RedisExecutions, RedisHistory, RedisLoad, Server
from orchestrator.workspace import Seed
from orchestrator.workspaces.blobs import DirectoryBlobs
from orchestrator.workspaces.directory import DirectoryStore
from orchestrator.workspaces.shelf import DirectoryShelf
from tests.contracts.redis_store import Store, lines
from tests.contracts.test_dump import RESUMES, seen
from tests.inputs import how_many
from tests.small_disks import MIB, small_disk

INIT = Path(__file__).parents[2] / "sandbox-image" / "sandbox_init"
T = "default"


@dataclass
class Ground:
    """One installation on host h1: a store, and a folder."""

    store: Store
    folder: Path

    def __post_init__(self) -> None:
        self.files = DirectoryStore(self.folder / "slots")
        self.blobs = DirectoryBlobs(self.folder / "blobs")
        self.shelf = DirectoryShelf(self.folder / "shelf")
        self.driver = ScriptedDriver(self.folder / "boxes", self.folder / "slots", INIT)

    @property
    def sources(self) -> Sources:
        dump = RedisDump(self.store.server, self.store.keys)
        return Sources(dump, self.files, self.blobs, self.shelf, SystemClock(), self.store.keys.installation, "h1")

    async def backed_up(self) -> tuple[Taken, io.BytesIO]:
        out = io.BytesIO()
        taken = await take(self.sources, out)
        out.seek(0)
        return taken, out

    async def restored(self, file: io.BytesIO) -> Restored:
        load = RedisLoad(self.store.server, self.store.keys)
        file.seek(0)
        parts = (self.files, self.blobs, self.shelf, self.driver)
        return await restore(file, load, *parts, host="h1", quiet_s=0.1)

    async def working(self, id: str = "exe_a", text: bytes = b"content", **spec: object) -> Lease:
        """One that runs, with a file."""
        lease = await self.store.running(id, **{"harness": "h", "declared": RESUMES} | spec)
        await self.fill(id, text)
        return lease

    async def fill(self, id: str, text: bytes) -> None:
        source = self.folder / "seed"
        source.write_bytes(text)
        await self.files.prepare(f"sbx_{id}_1", inherit=None, seeds=[Seed("a/file", source, 0o640)], disk_bytes=0)

    async def cut(self, lease: Lease, snapshot_id: str, *, own: int) -> None:
        await self.files.snapshot(f"sbx_{lease.execution_id}_1", snapshot_id)
        digest, size_bytes, files = await self.files.digest(snapshot_id)
        await self.store.cut(lease, snapshot_id, own=own, digest=digest, size_bytes=size_bytes, files=files)

    async def holds(self) -> list[str]:
        return [id for id, _ in await self.files.snapshots()]


@asynccontextmanager
async def ground(redis_url: str, installation: str, folder: Path) -> AsyncIterator[Ground]:
    server, keys = Server(redis_url), Keys(installation)
    history = RedisHistory(server, keys)
    folder.mkdir(exist_ok=True)
    try:
        yield Ground(Store(server, keys, RedisExecutions(server, keys), history), folder)
    finally:
        await history.aclose()
        await server.aclose()


@pytest.fixture
async def here(redis_url: str, installation: str, short_dir: Path) -> AsyncIterator[Ground]:
    async with ground(redis_url, installation, short_dir / "one") as made:
        yield made


@pytest.fixture
async def there(redis_url: str, installation: str, short_dir: Path) -> AsyncIterator[Ground]:
    async with ground(redis_url, f"{installation}-b", short_dir / "two") as made:
        yield made


async def test_records_and_files_are_the_same(here: Ground, there: Ground) -> None:
    lease = await here.working(text=b"\x00\xff" * 700_000)
    await here.cut(lease, "snp_1", own=3)
    await here.store.finish(lease, own=4)
    taken, file = await here.backed_up()
    assert (taken.contents.executions, taken.contents.snapshots, taken.contents.snapshot_files) == (1, 1, 1)
    done = await there.restored(file)
    assert (done.loaded.finished, done.corrupt, done.contents) == (1, (), taken.contents)
    assert await seen(there.store) == await seen(here.store)
    assert await there.files.digest("snp_1") == await here.files.digest("snp_1")


async def test_what_it_is_to_begin_with_is_in_it(here: Ground, there: Ground) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"a seed" * 300_000

    digest, size_bytes = await here.blobs.put(chunks(), limit_bytes=1 << 30)
    await here.store.submitted(files=(FileRef("x", digest, size_bytes),))
    await there.restored((await here.backed_up())[1])
    assert there.blobs.path(digest).read_bytes() == b"a seed" * 300_000
    assert (await there.store.state("exe_a")) is ExecutionState.QUEUED


@pytest.mark.root
async def test_artifacts_are_in_it(here: Ground, there: Ground) -> None:
    """Of what has a record: names of what works, what was kept of what ended."""
    await here.store.finish(await here.working(), own=3)
    await here.working("exe_b")
    left = here.folder / "slots" / "sbx_exe_a_1" / "vol" / "workspace" / "artifacts"
    for name, data in (("large", bytes(range(256)) * 12_000), ("again", b"same"), ("once", b"same"), ("empty", b"")):
        (left / name).write_bytes(data)
    (left / "away").symlink_to("/etc/hosts")
    for id in ("exe_a", "exe_unknown"):
        kept = await here.shelf.keep(id, here.files.files("sbx_exe_a_1"))
    await here.shelf.name("exe_b", ["a/file", "caf\udce9\n"])
    taken, file = await here.backed_up()
    assert taken.contents.artifacts == 2
    await there.restored(file)
    assert [id for id, _ in await there.shelf.list()] == ["exe_a", "exe_b"]
    assert await there.shelf.kept("exe_a") == kept and len(kept) == 5
    assert list(await there.shelf.named("exe_b")) == ["a/file", "caf\udce9\n"]
    for one in kept:
        if not one.refused:
            assert (await there.shelf.open("exe_a", one)).read(0, 1 << 30) == (left / one.path).read_bytes()


async def test_under_a_busy_writer_each_is_as_it_stood_at_one_moment(here: Ground, there: Ground) -> None:
    leases = [await here.working(f"exe_{n}") for n in range(4)]
    stop = asyncio.Event()

    async def write(lease: Lease) -> None:
        n, own = 0, 3
        while not stop.is_set():
            n += 1
            await here.store.history.append(lease, attempt=1, spooled=lines(10 * n - 9, 10 * n))
            await here.store.history.send(lease.execution_id, f"m{n}", b"%d" % n)
            await here.store.intents.begin(
                lease, attempt=1, key=f"k{n}", run="r", kind="b", effect=Effect.ONCE, summary="s", digest="d"
            )
            await here.store.intents.finish(lease, key=f"k{n}", run="r", ok=True, result=f"{n}")
            if n % 3 == 0:
                await here.cut(lease, f"snp_{lease.execution_id[4:]}x{n}", own=own)
                own += 1

    writers = [asyncio.create_task(write(lease)) for lease in leases]
    files = []
    try:
        for _ in range(3):
            files.append((await here.backed_up())[1])
    finally:
        stop.set()
        await asyncio.gather(*writers)
    done = await there.restored(files[-1])
    assert sorted((*done.loaded.resumes, *done.loaded.lost)) == [lease.execution_id for lease in leases]
    for lease in leases:
        id = lease.execution_id
        told = await there.store.told("output", "message.accepted", "intent.done", "snapshot.created", execution_id=id)
        frames = [event.body for event in told if event.type == "output"]
        assert frames == [b"line %d\n" % src for src in range(1, len(frames) + 1)]
        inbox = await there.store.history.inbox(id, 0, limit=100_000)
        assert [message.n for message in inbox] == [e.data["n"] for e in told if e.type == "message.accepted"]
        ended = [intent.key for intent in await there.store.intents.list(id, limit=100_000) if intent.result]
        assert ended == [event.data["key"] for event in told if event.type == "intent.done"]
        cut = {event.data["id"] for event in told if event.type == "snapshot.created"}
        page = await there.store.snapshots.list(tenant=T, execution_id=id, limit=1000)
        assert {snapshot.id for snapshot in page.snapshots} == cut
        for snapshot in page.snapshots:
            assert (await there.files.digest(snapshot.id))[0] == snapshot.digest


async def test_a_snapshot_that_goes_meanwhile_is_named(here: Ground, there: Ground) -> None:
    lease = await here.working()
    await here.cut(lease, "snp_1", own=3)
    await here.cut(lease, "snp_2", own=4)

    def goes(name: str) -> None:
        if name.startswith("records/"):
            shutil.rmtree(here.folder / "snapshots" / "snp_1")

    file = io.BytesIO()
    taken = await take(here.sources, file, progress=goes)
    assert (taken.contents.gone, taken.contents.snapshot_files) == (("snp_1",), 1)
    done = await there.restored(file)
    assert done.loaded.resumes == ("exe_a",)
    assert await there.holds() == ["snp_2"]
    with pytest.raises(NotFound):
        await there.store.snapshots.get("snp_1", tenant=T)


async def test_files_elsewhere_are_named(here: Ground, there: Ground) -> None:
    lease = await here.working()
    await here.store.cut(lease, "snp_1", own=3, host="h9")
    await here.store.cut(lease, "snp_2", own=4, host="h9", archived=True)
    taken, file = await here.backed_up()
    assert (taken.contents.elsewhere, taken.contents.elsewhere_count) == (("snp_1",), 1)
    await there.restored(file)
    assert (await there.store.snapshots.get("snp_1", tenant=T)).host == "h9"


async def test_one_that_was_corrupt_already_is_said(here: Ground, there: Ground) -> None:
    lease = await here.working()
    await here.cut(lease, "snp_1", own=3)
    (here.folder / "snapshots" / "snp_1" / "vol" / "workspace" / "a" / "file").write_bytes(b"flipped")
    done = await there.restored((await here.backed_up())[1])
    assert done.corrupt == ("snp_1",)


async def test_a_damaged_one_writes_nothing(here: Ground, there: Ground) -> None:
    lease = await here.working(text=bytes(range(256)) * 4096)
    await here.cut(lease, "snp_1", own=3)
    _, file = await here.backed_up()
    for broken in (file.getvalue()[:-20], file.getvalue()[: len(file.getvalue()) // 2]):
        with pytest.raises(BadInput, match="the backup is damaged"):
            await there.restored(io.BytesIO(broken))
    assert await there.store.server.ask("KEYS", f"{there.store.keys.prefix}*") == []
    assert await there.holds() == []


@pytest.mark.root
async def test_it_does_not_run_beside_what_still_runs(here: Ground, there: Ground) -> None:
    _, file = await here.backed_up()
    slot = await there.files.prepare("sbx_old", inherit=None, seeds=(), disk_bytes=0)
    await there.driver.ensure(SandboxSpec("any", Resources(), slot.path), "sbx_old")
    try:
        with pytest.raises(Conflict, match="1 sandboxes of this installation are on this host, sbx_old for one"):
            await there.restored(file)
        load = RedisLoad(there.store.server, there.store.keys)
        file.seek(0)
        parts = (there.files, there.blobs, there.shelf, there.driver)
        await restore(file, load, *parts, host="h1", end_sandboxes=True, quiet_s=0.1)
        assert await there.driver.list() == []
    finally:
        await there.driver.remove("sbx_old")


@pytest.mark.root
async def test_a_disk_that_is_too_small_and_then_is_not(
    here: Ground, redis_url: str, installation: str, short_dir: Path
) -> None:
    lease = await here.working(text=bytes(12 * MIB))
    await here.fill("exe_a", b"")
    (here.folder / "slots" / "sbx_exe_a_1" / "vol" / "workspace" / "noise").write_bytes(b"\x55\xaa" * (6 * MIB))
    await here.cut(lease, "snp_1", own=3)
    _, file = await here.backed_up()
    with small_disk(short_dir, size_bytes=48 * MIB) as disk:
        disk.fill(leave_bytes=6 * MIB)
        async with ground(redis_url, f"{installation}-c", disk.point / "two") as there:
            with pytest.raises(DiskFull):
                await there.restored(file)
            assert await there.holds() == []
            disk.empty()
            done = await there.restored(file)
            assert done.loaded.resumes == ("exe_a",)
            assert await there.holds() == ["snp_1"]


DEEDS = st.lists(
    st.one_of(
        st.tuples(st.just("lines"), st.integers(1, 40)),
        st.tuples(st.just("send"), st.binary(max_size=40)),
        st.tuples(st.just("intent"), st.text(st.characters(codec="utf-8", categories=("L", "N")), max_size=8)),
        st.tuples(st.just("cut"), st.binary(max_size=200)),
    ),
    max_size=8,
)


@given(st.lists(st.tuples(DEEDS, st.booleans(), st.text("ab-", min_size=0, max_size=3)), min_size=1, max_size=4))
@settings(max_examples=how_many(15), suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_random_executions_come_back(
    redis_url: str, tmp_path_factory: pytest.TempPathFactory, made: list[tuple[list[tuple[str, object]], bool, str]]
) -> None:
    async def run() -> None:
        folder = tmp_path_factory.mktemp("b")
        name = f"t{uuid.uuid4().hex[:10]}"
        async with ground(redis_url, name, folder / "1") as one, ground(redis_url, f"{name}-b", folder / "2") as two:
            for n, (deeds, ends, label) in enumerate(made):
                lease = await one.working(f"exe_{n}", labels={"l": label} if label else {})
                src, own = 0, 3
                for at, (deed, what) in enumerate(deeds):
                    if deed == "lines":
                        assert isinstance(what, int)
                        await one.store.history.append(lease, attempt=1, spooled=lines(src + 1, src + what))
                        src += what
                    elif deed == "send":
                        assert isinstance(what, bytes)
                        await one.store.history.send(lease.execution_id, f"m{at}", what)
                    elif deed == "intent":
                        assert isinstance(what, str)
                        await one.store.intents.begin(
                            lease,
                            attempt=1,
                            key=f"{at}{what}",
                            run="r",
                            kind="b",
                            effect=Effect.ONCE,
                            summary="",
                            digest="d",
                        )
                    else:
                        assert isinstance(what, bytes)
                        await one.fill(f"exe_{n}", what)
                        await one.cut(lease, f"snp_{n}x{at}", own=own)
                        own += 1
                if ends:
                    await one.store.finish(lease, own=own)
            before = await seen(one.store)
            alive = [f"exe_{n}" for n, (_, ends, _) in enumerate(made) if not ends]
            done = await two.restored((await one.backed_up())[1])
            assert sorted((*done.loaded.resumes, *done.loaded.lost)) == alive
            after = await seen(two.store)
            for id in before["records"]:
                assert after["records"][id] == before["records"][id]
                assert after["histories"][id] == before["histories"][id]
                assert after["intents"][id] == before["intents"][id]
                assert after["inboxes"][id] == before["inboxes"][id]
            assert after["snapshots"] == before["snapshots"]
            assert [each.what for each in await two.store.executions.repair()] == []
            for id in before["snapshots"]:
                assert await two.files.digest(id) == await one.files.digest(id)

    asyncio.run(run())
