"""The store is killed the moment it has acknowledged: everything acknowledged is there."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from orchestrator.client import AsyncClient
from orchestrator.errors import CarrelError
from tests.faults.ground import ground

pytestmark = [pytest.mark.root, pytest.mark.timeout(120), pytest.mark.xdist_group("faults")]

ACKNOWLEDGED = 200


async def test_what_was_acknowledged_survives_kill_9_of_the_store() -> None:
    async with ground() as here:
        await here.api()
        async with AsyncClient(here.url, await here.token()) as client:
            target = await client.submit(command=["true"])  # nobody works: it stays queued and takes messages
            submitted: list[str] = []
            sent: list[str] = []
            enough = asyncio.Event()

            async def submits(who: int) -> None:
                for n in range(1000):
                    try:
                        made = await client.submit(command=["true"], name=f"w{who}-{n}", key=f"k{who}-{n}")
                    except CarrelError:
                        return
                    if enough.is_set():
                        return
                    submitted.append(made.id)
                    count()

            async def sends(who: int) -> None:
                for n in range(1000):
                    message_id = f"m{who}-{n}"
                    try:
                        await target.send(f"text {message_id}", id=message_id)
                    except CarrelError:
                        return
                    if enough.is_set():
                        return
                    sent.append(message_id)
                    count()

            def count() -> None:
                if len(submitted) + len(sent) >= ACKNOWLEDGED:
                    os.kill(here.embedded.pid, signal.SIGKILL)
                    enough.set()

            async with asyncio.TaskGroup() as group:
                for who in range(5):
                    group.create_task(submits(who))
                    group.create_task(sends(who))
            assert len(submitted) + len(sent) == ACKNOWLEDGED
            assert submitted and sent

            there = {record.id async for record in here.executions.everything()}
            assert set(submitted) <= there
            inbox = [m for after in range(0, 2000, 100) for m in await here.history.inbox(target.id, after, limit=100)]
            assert set(sent) <= {message.id for message in inbox}
            assert [message.n for message in inbox] == list(range(1, len(inbox) + 1))
            # and what was asked again with its key, because its answer was cut, is there once
            names = [record.spec.name async for record in here.executions.everything() if record.spec.name]
            assert len(names) == len(set(names))
