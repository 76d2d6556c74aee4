"""Model calls through a gateway, three protocols: passed through with the key put on, recorded, answered again."""

from __future__ import annotations

import json

import httpx
import pytest

from orchestrator.models import ModelApi
from scripted_model import ScriptedModel
from tests.gateway.rig import ALL, KEY, PATHS, Rig, asked, said, script


def begun(model: ScriptedModel) -> int:
    return int(model.counts.stats()["begun"])


@pytest.mark.parametrize("api", ALL)
async def test_an_answer_is_passed_through_and_paid(rig: Rig, api: ModelApi) -> None:
    with script({"text": "Hello there.", "usage": {"input_tokens": 1000, "output_tokens": 50}}) as model:
        reached = await rig.gateway(model.url)
        answer = await reached.ask(api)
        assert answer.status_code == 200
        assert said(api, answer.json()) == "Hello there."
        [request] = model.counts.requests()
        assert KEY not in json.dumps(request["body"])
        spend = (await rig.execution()).spend
        assert (spend.micros, spend.input_tokens, spend.output_tokens, spend.calls) == (1100, 1000, 50, 1)
        [usage] = await rig.events("usage")
        assert {name: usage.data[name] for name in ("api", "provider", "model", "input_tokens", "cost_micros")} == {
            "api": str(api),
            "provider": "testing",
            "model": "cheap-1",
            "input_tokens": 1000,
            "cost_micros": 1100,
        }


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("api", ALL)
async def test_what_was_answered_is_answered_again_for_nothing(rig: Rig, api: ModelApi, stream: bool) -> None:
    with script({"thought": "Hm.", "text": "Hello there.", "run": "ls"}) as model:
        reached = await rig.gateway(model.url)
        first = await reached.ask(api, key="m1", stream=stream)
        again = await reached.ask(api, key="m1", stream=stream)
        assert first.status_code == again.status_code == 200
        assert again.content == first.content
        assert again.headers["x-carrel-replayed"] == "1"
        assert begun(model) == 1
        spend = (await rig.execution()).spend
        assert (spend.calls, spend.replays) == (1, 1)


@pytest.mark.parametrize("api", ALL)
async def test_a_stream_is_the_providers_own_bytes(rig: Rig, api: ModelApi) -> None:
    with script({"thought": "Hm.", "text": "Hello there, how are you today?", "run": "ls"}) as model:
        reached = await rig.gateway(model.url)
        direct_body = asked(api, stream=True)
        async with httpx.AsyncClient() as client:
            direct = await client.post(
                model.url + PATHS[api], json=direct_body, headers={"x-api-key": KEY, "authorization": f"Bearer {KEY}"}
            )
        through = await reached.ask(api, stream=True)
        assert through.content == direct.content
        assert through.headers["content-type"].startswith("text/event-stream")
