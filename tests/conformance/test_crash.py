"""kill -9 of the api in the middle of appends: what was acknowledged is there once, what was not is safe to repeat."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx

from tests.conformance import suite


async def test_acknowledged_appends_survive_kill_9_of_the_api(short_dir: Path) -> None:
    sent = 0
    while sent < 180:
        async with suite.server(short_dir) as api, _client(api) as http:
            made = await http.put("/v1/stream/s", headers={"content-type": "text/plain"})
            assert made.status_code == (200 if sent else 201)
            killer = asyncio.ensure_future(_kill_after(api, http, sent + 60))
            try:
                while True:
                    # What the last life was not told of is simply sent again: the store knows the number.
                    producer = {"producer-id": "p", "producer-epoch": "0", "producer-seq": str(sent)}
                    answer = await http.post(
                        "/v1/stream/s", content=b"%d " % sent, headers={"content-type": "text/plain", **producer}
                    )
                    assert answer.status_code in {200, 204}
                    sent += 1
            except httpx.HTTPError:
                pass
            await killer
    async with suite.server(short_dir) as api, _client(api) as http:
        got = (await http.get("/v1/stream/s")).text.split()
        assert got in ([str(n) for n in range(sent)], [str(n) for n in range(sent + 1)])


async def _kill_after(api: suite.Serving, http: httpx.AsyncClient, count: int) -> None:
    """SIGKILL as soon as so many have been appended, whatever is under way."""
    while len((await http.get("/v1/stream/s")).text.split()) < count:
        await asyncio.sleep(0.01)
    api.process.kill()
    await api.process.wait()


def _client(api: suite.Serving) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=api.url, headers={"authorization": f"Bearer {api.token}"}, timeout=30)
