"""A thousand messages from ten clients, each sent twice under the same id, while workers die: each arrives once."""

from __future__ import annotations

import asyncio
import random

import pytest

from orchestrator import events
from orchestrator.client import AsyncClient
from tests.faults.campaign import all_ended
from tests.faults.ground import ground
from tests.faults.judge import told
from tests.faults.nemesis import Nemesis

pytestmark = [pytest.mark.root, pytest.mark.timeout(300), pytest.mark.xdist_group("faults")]

CLIENTS, EACH, KILLS = 10, 100, 15


async def test_a_thousand_messages_each_sent_twice() -> None:
    async with ground() as here:
        await here.api()
        for _ in range(2):
            await here.worker()
        token = await here.token()
        script = f'echo start >> starts; for i in $(seq {CLIENTS * EACH}); do read -r line; echo "$line"; done'
        async with AsyncClient(here.url, token) as client:
            target = await client.submit(command=["bash", "-c", script])
        execution = await here.executions.get(target.id)

        async def speak(who: int) -> None:
            dice = random.Random(who)
            async with AsyncClient(here.url, token) as mine:
                to = mine.execution(execution.id)
                for n in range(EACH):
                    for _ in range(2):
                        await to.send(f"client {who} says {n}", id=f"c{who}-{n}")
                    await asyncio.sleep(dice.uniform(0, 0.2))

        nemesis = Nemesis(here, seed=5, mischief={"kill_worker": 3, "stop_worker": 1, "cut_line": 3})
        async with asyncio.TaskGroup() as group:
            for who in range(CLIENTS):
                group.create_task(speak(who))
            group.create_task(nemesis.run(KILLS))
        await all_ended(here, [execution])

        history = await told(here, execution)
        printed = b"".join(e.body or b"" for e in history if e.type == events.OUTPUT).decode().splitlines()
        expected = {f"client {who} says {n}" for who in range(CLIENTS) for n in range(EACH)}
        assert len(printed) == len(expected), here.last_logs()
        assert set(printed) == expected
        for who in range(CLIENTS):  # each client's own order is kept
            own = [line for line in printed if line.startswith(f"client {who} ")]
            assert own == [f"client {who} says {n}" for n in range(EACH)]
        for kind in (events.MESSAGE_ACCEPTED, events.MESSAGE_DELIVERED):
            assert [e.data["n"] for e in history if e.type == kind] == list(range(1, CLIENTS * EACH + 1))
        record = await here.executions.get(execution.id)
        assert record.sandbox_id is not None and here.starts(record.sandbox_id) == 1
        assert record.attempt == 1
