"""The store is lost, its host is not: what ran goes on from its last snapshot, and never beside its old self."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from orchestrator.backup import Restored, Sources, restore, take
from orchestrator.engine.parts import Parts
from orchestrator.errors import Conflict
from orchestrator.intents import Effect, IntentState
from orchestrator.sandbox import Absent, Running
from orchestrator.stores.redis import (
    Keys,
    RedisCalls,
    RedisDump,
    RedisExecutions,
    RedisHistory,
    RedisIntents,
    RedisLoad,
    RedisSnapshots,
    Server,
)
from tests.engine.stage import Stage, printed
from tests.engine.test_hibernate import begin, ledger
from tests.engine.test_snapshots import cut

pytestmark = pytest.mark.root


@pytest.fixture
async def lost(here: Stage, redis_url: str, installation: str) -> AsyncIterator[Stage]:
    """The same host, with a store that knows nothing."""
    server, keys = Server(redis_url), Keys(f"{installation}-new")
    history = RedisHistory(server, keys)
    parts: Parts = replace(
        here.parts,
        executions=RedisExecutions(server, keys),
        history=history,
        snapshots=RedisSnapshots(server, keys),
        intents=RedisIntents(server, keys),
        settings=replace(here.parts.settings, orphan_grace_s=0.0),
    )
    made = Stage(parts, here.script, here.gateways, RedisCalls(server, keys))
    try:
        yield made
    finally:
        for worker, _ in made.workers:
            await made.stop(worker)
        await history.aclose()
        await server.aclose()


async def backed_up(here: Stage, redis_url: str, installation: str) -> io.BytesIO:
    server, out, parts = Server(redis_url), io.BytesIO(), here.parts
    try:
        dump = RedisDump(server, Keys(installation))
        await take(Sources(dump, parts.workspaces, parts.blobs, parts.shelf, parts.clock, installation, "here"), out)
    finally:
        await server.aclose()
    return out


async def restored(lost: Stage, file: io.BytesIO, redis_url: str, installation: str, *, end: bool) -> Restored:
    server, parts = Server(redis_url), lost.parts
    file.seek(0)
    try:
        return await restore(
            file,
            RedisLoad(server, Keys(f"{installation}-new")),
            parts.workspaces,
            parts.blobs,
            parts.shelf,
            parts.driver,
            host="here",
            end_sandboxes=end,
            quiet_s=0.1,
        )
    finally:
        await server.aclose()


async def test_it_goes_on_from_its_snapshot_and_not_beside_itself(
    here: Stage, lost: Stage, redis_url: str, installation: str
) -> None:
    worker = here.work()
    asked = await begin(here, declared=ledger(), stdin="text")
    await here.send(asked, "m1", "one")
    await here.saw(asked, printed("got one as 1"))
    await cut(here, asked)
    await here.send(asked, "m2", "two")
    await here.saw(asked, printed("got two as 2"))
    file = await backed_up(here, redis_url, installation)
    await here.send(asked, "m3", "three")  # what comes now is lost with the store
    await here.saw(asked, printed("got three as 3"))
    old = (await here.parts.executions.get(asked.id)).sandbox_id or ""
    await here.stop(worker)
    assert isinstance(await here.parts.driver.observe(old), Running)

    with pytest.raises(Conflict, match=old):
        await restored(lost, file, redis_url, installation, end=False)
    done = await restored(lost, file, redis_url, installation, end=True)
    assert done.loaded.resumes == (asked.id,)
    assert isinstance(await here.parts.driver.observe(old), Absent)

    lost.work()
    again = await lost.saw_record(asked, printed("up 2"))
    assert (again.attempt, again.generation) == (2, 2)
    # From the snapshot, not from what survived of its workspace: there it had three lines. The second message is in the
    # history, and is said again.
    await lost.saw(asked, printed("got two as 2"))
    await lost.send(asked, "m3", "three")
    await lost.saw(asked, printed("got three as 3"))
    await lost.send(asked, "m4", "end")
    ended = await lost.ended(asked)
    assert ended.outcome is not None and ended.outcome.exit_code == 0
    assert [box.sandbox_id for box in await here.parts.driver.list() if box.sandbox_id == old] == []


async def test_what_it_had_done_is_not_done_again(here: Stage, lost: Stage, redis_url: str, installation: str) -> None:
    worker = here.work()
    asked = await begin(here, declared=ledger(), stdin="text")
    await cut(here, asked)
    lease = here.gateways.opened[-1].lease
    for key in ("done", "open"):
        await here.parts.intents.begin(
            lease, attempt=1, key=key, run="r", kind="bash", effect=Effect.ONCE, summary="s", digest=key
        )
    await here.parts.intents.finish(lease, key="done", run="r", ok=True, result="paid")
    file = await backed_up(here, redis_url, installation)
    await here.stop(worker)
    await restored(lost, file, redis_url, installation, end=True)
    states = {intent.key: intent.state for intent in await lost.parts.intents.list(asked.id)}
    assert states == {"done": IntentState.DONE, "open": IntentState.IN_DOUBT}
