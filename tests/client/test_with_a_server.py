"""Both skins against a real server, real init and real programs: what peer.py's script cannot say."""

from __future__ import annotations

import asyncio
import os
import random
from contextlib import aclosing
from pathlib import Path

import pytest

from orchestrator.client import AsyncClient, Client
from orchestrator.client.executing import Exited, Output, Started
from orchestrator.client.nouns import Batch, Receipt
from orchestrator.errors import BadInput, Conflict, Gone, KeyReused, NotFound, Unauthorized
from tests.place import Place

pytestmark = pytest.mark.root

LINES = "for i in $(seq 1 300); do echo line $i; done"


def test_the_first_lines_of_the_readme_of_the_client(place: Place) -> None:
    with Client(place.url, place.token) as client:
        execution = client.submit(task="echo hello; read name; echo hello $name")
        execution.send("Ada")
        seen = list(execution.events())
        assert [event.seq for event in seen] == list(range(1, len(seen) + 1))
        assert b"".join(event.body for event in seen if event.body) == b"hello\nhello Ada\n"
        record = execution.wait()
        assert record.outcome is not None and record.outcome.exit_code == 0
        assert client.get(record.id[:20]).id == record.id
        assert client.run("exit 3").outcome.exit_code == 3  # type: ignore[union-attr]


async def test_the_same_with_a_loop(place: Place) -> None:
    async with AsyncClient(place.url, place.token) as client:
        execution = await client.submit(task="echo hello; read name; echo hello $name")
        await execution.send("Ada")
        seen = [event async for event in execution.events()]
        assert b"".join(event.body for event in seen if event.body) == b"hello\nhello Ada\n"
        async with aclosing(client.list(limit=1)) as newest:
            assert (await anext(newest)).id.startswith("exe_")
        assert (await execution.wait()).ended


async def test_reconnecting_after_every_few_events(place: Place) -> None:
    async with AsyncClient(place.url, place.token) as client:
        execution = await client.submit(command=["bash", "-c", LINES.replace("done", "sleep 0.002; done")])
        rng = random.Random(5)
        seen: list[int] = []
        bodies = b""
        ended = False
        while not ended:
            stay = rng.randint(1, 6)
            async with aclosing(execution.batches(after=str(seen[-1]) if seen else "")) as batches:
                async for batch in batches:
                    for event in batch.events:
                        seen.append(event.seq)
                        bodies += event.body or b""
                    ended = batch.closed
                    stay -= 1
                    if not stay:
                        break
        assert seen == list(range(1, len(seen) + 1))
        assert bodies == b"".join(b"line %d\n" % number for number in range(1, 301))


async def test_a_channel_says_and_hears(place: Place) -> None:
    async with AsyncClient(place.url, place.token) as client:
        execution = await client.submit(
            command=["bash", "-c", "while read -r x; do echo got $x; [ $x = end ] && exit; done"]
        )
        seqs: list[int] = []
        receipts: dict[str, Receipt] = {}
        async with execution.channel() as channel:
            await channel.send("one", id="a")
            await channel.send("one", id="a")
            await channel.send(b"end\n", id="b")
            async for item in channel:
                if isinstance(item, Batch):
                    seqs += [event.seq for event in item.events]
                elif isinstance(item, Receipt):
                    receipts[item.id] = item
        record = await execution.wait()
        assert seqs == list(range(1, record.tail + 1))
        assert {id: receipt.n for id, receipt in receipts.items()} == {"a": 1, "b": 2}
        page = await execution.history()
        assert b"".join(event.body for event in page.events if event.body) == b"got one\ngot end\n"


def test_a_blocking_channel(place: Place) -> None:
    with Client(place.url, place.token) as client:
        execution = client.submit(command=["bash", "-c", "read -r x; echo got $x"])
        with execution.channel() as channel:
            channel.send("this")
            items = list(channel)
        bodies = [event.body for item in items if isinstance(item, Batch) for event in item.events if event.body]
        assert b"".join(bodies) == b"got this\n"
        assert isinstance(items[-1], Batch) and items[-1].closed


async def test_exec_and_files(place: Place, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    async with AsyncClient(place.url, place.token) as client:
        execution = await client.submit(command=["sleep", "600"])
        while (await execution.refresh()).state != "RUNNING":
            await asyncio.sleep(0.02)
        written = await execution.files.write("deep/er/blob", content, mode=0o600)
        assert (written.size_bytes, written.mode) == (len(content), "0600")
        assert await execution.files.read("deep/er/blob") == content
        got = await execution.files.download("deep/er/blob", tmp_path / "blob")
        assert got.read_bytes() == content
        assert [entry.path async for entry in execution.files.list("deep", recursive=True)] == [
            "deep/er",
            "deep/er/blob",
        ]
        result = await execution.exec(["sha256sum", "deep/er/blob"], timeout_s=30)
        assert result.exit_code == 0 and result.stdout
        events = [one async for one in execution.exec_stream(["bash", "-c", "echo o; echo e >&2; kill -9 $$"])]
        assert isinstance(events[0], Started) and events[-1] == Exited(None, 9)
        assert {one.stream: one.data for one in events if isinstance(one, Output)} == {
            "stdout": b"o\n",
            "stderr": b"e\n",
        }
        with pytest.raises(NotFound):
            await execution.files.read("nothing")
        with pytest.raises(Conflict):
            await execution.files.read("deep")
        with pytest.raises(Conflict):
            await execution.delete()
        await execution.delete(force=True)
        with pytest.raises(NotFound):
            await execution.refresh()


async def test_errors_are_the_servers_own(place: Place) -> None:
    async with AsyncClient(place.url, place.token) as client:
        with pytest.raises(BadInput) as bad:
            await client.submit(task="x", labels={"carrel.x": "1"})
        assert bad.value.field == "labels" and bad.value.data["remedy"]
        done = await client.submit(task="true", key="a-key-of-test-errors")
        again = await client.submit(task="true", key="a-key-of-test-errors")
        assert again.id == done.id
        with pytest.raises(KeyReused):
            await client.submit(task="false", key="a-key-of-test-errors")
        await done.wait()
        with pytest.raises(Conflict):
            await done.send("too late")
        with pytest.raises(Gone):
            async for _ in done.events(after="9999"):
                pass
    async with AsyncClient(place.url, "not-a-token") as client:
        with pytest.raises(Unauthorized):
            await client.get("x")
        assert (await client.health()).status == "ok"


async def test_wait_with_a_limit_answers_as_it_is(place: Place) -> None:
    async with AsyncClient(place.url, place.token) as client:
        execution = await client.submit(command=["sleep", "600"])
        assert not (await execution.wait(timeout_s=0.2)).ended
        await execution.cancel(grace_s=0)
        ended = await execution.wait()
        assert ended.outcome is not None and ended.outcome.kind == "CANCELLED"


def test_page_after_page(place: Place) -> None:
    with Client(place.url, place.token) as client:
        made = [client.submit(task="true", labels={"page": "yes"}).id for _ in range(5)]
        assert [record.id for record in client.list(labels={"page": "yes"}, limit=2)] == made[::-1]
