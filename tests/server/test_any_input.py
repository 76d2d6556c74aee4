"""Whatever is sent, to whichever route: an answer below 500, refusals as problems, and a server that goes on.

Operations and their parameters come from the OpenAPI document, so a new route is tried without anybody thinking of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from orchestrator.execution import CancelWant
from orchestrator.server.openapi import text
from orchestrator.stores.redis import prepare
from tests.inputs import how_many
from tests.server.conftest import Api

DOCUMENT = json.loads(text())
OPERATIONS = [
    (method.upper(), path, operation)
    for path, verbs in DOCUMENT["paths"].items()
    for method, operation in verbs.items()
    if not path.startswith("/v1/stream")  # its own suite, by its protocol's authors
]

texts = st.one_of(
    st.sampled_from(["", "0", "-1", "1e999", "nan", "true", "null", "a=b", "\x00", "é", "..", "\ud800", "x" * 5000]),
    st.text(max_size=12),
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
HEADERS = ("prefer", "range", "if-range", "if-none-match", "last-event-id", "idempotency-key", "accept", "content-type")
# Held requests are tried elsewhere; here nothing may wait for long.
WAITS = st.sampled_from(["", "x", "-1", "0.01", "1e9", "nan"])


def field_names(schema: Mapping[str, Any]) -> list[str]:
    reference = schema.get("$ref", "").rpartition("/")[2]
    return sorted(DOCUMENT["components"]["schemas"].get(reference, schema).get("properties", {}))


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, str, dict[str, Any], dict[str, str], bytes]:
    method, path, operation = draw(st.sampled_from(OPERATIONS))
    query: dict[str, Any] = {}
    for parameter in operation.get("parameters", ()):
        name = parameter["name"]
        if parameter["in"] == "query" and draw(st.booleans()):
            query[name] = draw(WAITS if name == "wait_s" else texts)
        if parameter["in"] == "path" and name != "id":
            path = path.replace(
                "{" + name + "}", quote(draw(texts).encode("utf-8", "replace"), safe=draw(st.sampled_from(["", "/"])))
            )
    if draw(st.booleans()):
        query[draw(texts.filter(lambda name: "token" not in name.lower()))] = draw(texts)
    headers = {
        name: draw(WAITS.map(lambda wait: f"wait={wait}") if name == "prefer" else texts)
        for name in draw(st.sets(st.sampled_from(HEADERS), max_size=3))
    }
    # Latin-1 without line ends is what a header can hold at all.
    headers = {
        name: "".join(char for char in value if 32 < ord(char) < 127 or ord(char) > 160).strip()[:2000]
        for name, value in headers.items()
    }
    content = operation.get("requestBody", {}).get("content", {})
    body = draw(st.binary(max_size=40))
    if content:
        names = field_names(content.get("application/json", {}).get("schema", {}))
        shape = draw(values | st.dictionaries(st.sampled_from(names) if names else texts, values, max_size=4))
        if draw(st.integers(0, 9)):
            body = json.dumps(shape).encode()
            headers["content-type"] = "application/json"
    return (
        method,
        path,
        query,
        {name: value.encode("latin-1", "replace").decode("latin-1") for name, value in headers.items()},
        body,
    )


@settings(
    max_examples=how_many(400),
    deadline=None,
    # One api for all examples is what is wanted here: what one leaves behind, the next one meets.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
@given(data=st.data())
async def test_no_input_breaks_the_server(api: Api, data: st.DataObject) -> None:
    await prepare(api.store.server, api.store.keys)  # or it is not ready, which is a 503
    done = await ended(api)
    method, path, query, headers, body = data.draw(requests())
    if "{id}" in path:
        id = data.draw(st.sampled_from(["queued", "ended", "any"]))
        if id == "queued" or (id == "ended" and method == "DELETE"):
            path = path.replace("{id}", await api.submit())
        elif id == "ended":
            path = path.replace("{id}", done)
        else:
            path = path.replace("{id}", quote(data.draw(texts).encode("utf-8", "replace"), safe=""))
    request = api.http.build_request(
        method,
        path,
        params=_encodable(query),
        headers=[(name.encode(), value.encode("latin-1")) for name, value in headers.items()],
        content=body,
    )
    answer = await api.http.send(request, stream=True)
    try:
        assert answer.status_code < 500, await answer.aread()
        if answer.status_code >= 400 and method != "HEAD":
            problem = json.loads(await answer.aread())
            assert answer.headers["content-type"] == "application/problem+json"
            assert problem["status"] == answer.status_code and problem["code"] and problem["detail"]
    finally:
        await answer.aclose()


async def ended(api: Api) -> str:
    """The same one every time, with a file in its workspace; another where a request to prune took it."""
    found = await api.client.page(states=["FINISHED"], name="ended")
    if found.executions:
        return found.executions[0].id
    async for waits in api.store.executions.everything():  # else one of them would be the next to run
        if not waits.ended:
            await api.store.executions.want(waits.id, CancelWant("away", 0.0))
    lease = await api.running(name="ended")
    await api.client.execution(lease.execution_id).files.write("f", b"content")
    await api.store.finish(lease, own=3)
    return lease.execution_id


def _encodable(query: Mapping[str, str]) -> dict[str, str]:
    return {
        name.encode("utf-8", "replace").decode(): value.encode("utf-8", "replace").decode()
        for name, value in query.items()
    }
