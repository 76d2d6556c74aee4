"""Attacks 39 to 42 and 51 of the design's security page, on a real server with real containers: the provider's key is
nowhere a sandbox, a viewer or a disk could give it away, nor in what goes on to another execution; a gateway serves its
own execution, the provider's API, and nothing that the provider sends it to.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest

from scripted_model import ScriptedModel, read
from tests.place import Place, until

pytestmark = [pytest.mark.docker, pytest.mark.root, pytest.mark.timeout(300), pytest.mark.xdist_group("credentials")]

#: Made here, so that nothing else on this machine can hold it.
CANARY: Final = f"sk-canary-{uuid.uuid4().hex}"
SCRIPT: Final = {
    "turns": [
        {"text": "I look for keys.", "run": "env; tr '\\0' '\\n' < /proc/self/environ; cat /proc/[0-9]*/cmdline"},
        {"run": "touch searching; sleep 1000"},
    ]
}
ASK: Final = """
import json, os, sys, urllib.error, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
def ask(path, token=None, header="authorization", body=None, method=None):
    head = {"content-type": "application/json", "anthropic-version": "2023-06-01"}
    if token:
        head[header] = token if header == "x-api-key" else "Bearer " + token
    data = None if body is None else json.dumps(body).encode()
    try:
        request = urllib.request.Request("http://127.0.0.1:7411" + path, data=data, headers=head, method=method)
        with opener.open(request, timeout=60) as answer:
            return answer.status, answer.read().decode("utf-8", "replace")
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read().decode("utf-8", "replace")
MINE = os.environ["CARREL_GATEWAY_TOKEN"]
def hello(model):
    return {"model": model, "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
"""


class Elsewhere(BaseHTTPRequestHandler):
    """A provider that sends whoever asks it to another address of its own, and says what came there."""

    heads: Final[list[str]] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.heads.append(f"{self.path}\n{self.headers}")
        self.send_response(307)
        self.send_header("location", f"http://127.0.0.1:{self.server.server_port}/taken")  # type: ignore[attr-defined]
        self.send_header("content-length", "0")
        self.end_headers()

    do_GET = do_POST

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@dataclass
class Site:
    place: Place
    model: ScriptedModel

    def inside(self, ref: str, script: str) -> Any:
        """What Python finds out in the sandbox, as the agent."""
        return json.loads(self.place.ok("exec", ref, "--", "/usr/bin/python3", "-c", f"{ASK}\n{script}"))

    def sleeper(self) -> str:
        """One that waits; its name."""
        name = f"sleeper-{uuid.uuid4().hex[:6]}"
        self.place.ok("run", "-d", "--name", name, "--", "sleep", "1000")
        until(lambda: self.place.record(name)["state"] == "RUNNING", "it runs")
        return name


@pytest.fixture(scope="module")
def site(sandbox_image: str) -> Iterator[Site]:
    folder = Path(tempfile.mkdtemp(prefix="crl-", dir="/tmp"))
    away = ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    threading.Thread(target=away.serve_forever, daemon=True).start()
    models = folder / "models.toml"
    with ScriptedModel(read(SCRIPT), key=CANARY) as model:
        models.write_text(
            f"""
            [providers.script]
            base_url = "{model.url}"
            apis = ["anthropic-messages", "openai-chat", "openai-responses"]
            key_env = "SCRIPT_KEY"
            models = ["scripted"]

            [providers.elsewhere]
            base_url = "http://127.0.0.1:{away.server_port}"
            apis = ["anthropic-messages"]
            key_env = "SCRIPT_KEY"
            models = ["elsewhere"]
            """
        )
        place = Place(
            folder,
            settings=(f"image={sandbox_image}", f"models_file={models}", "default_model=scripted", "log_level=debug"),
            environment={"SCRIPT_KEY": CANARY},
        )
        try:
            place.serve()
            yield Site(place, model)
        finally:
            place.close()
            away.shutdown()
            away.server_close()


def in_memory(pid: int) -> bool:
    """Whether the canary is in any page of this process that can be read."""
    with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in maps:
            found = re.match(r"([0-9a-f]+)-([0-9a-f]+) r", line)
            if found is None or "[v" in line:
                continue
            start, end = int(found[1], 16), int(found[2], 16)
            tail = b""
            while start < end:
                try:
                    memory.seek(start)
                    piece = memory.read(min(end - start, 1 << 20))
                except (OSError, ValueError, OverflowError):
                    break
                if not piece:
                    break
                if CANARY.encode() in tail + piece:
                    return True
                tail, start = piece[-len(CANARY) :], start + len(piece)
    return False


def in_files(root: Path) -> list[str]:
    """Files below that hold it. Devices and what never ends are not opened."""
    found = []
    for folder, _, files in os.walk(root):
        for name in files:
            path = Path(folder) / name
            if path.is_symlink() or not path.is_file():
                continue
            with path.open("rb") as file:
                tail = b""
                while piece := file.read(1 << 20):
                    if CANARY.encode() in tail + piece:
                        found.append(str(path))
                        break
                    tail = piece[-len(CANARY) :]
    return found


def sandboxed(sandbox_id: str) -> list[int]:
    """The host's numbers of every process of this sandbox, init's included."""
    pids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (
                    sandbox_id in (entry / "mountinfo").read_text()
                    and (entry / "ns/pid").readlink() != Path("/proc/self/ns/pid").readlink()
                ):
                    pids.append(int(entry.name))
            except OSError:
                continue  # it has ended
    return pids


def test_39_the_providers_key_is_nowhere_a_sandbox_a_viewer_or_a_disk_could_give_it_away(site: Site) -> None:
    place, name = site.place, f"canary-{uuid.uuid4().hex[:6]}"
    place.ok("run", "-d", "--harness", "agent", "--name", name, "find the key")
    until(lambda: place.carrel("exec", name, "--", "test", "-e", "/workspace/searching").returncode == 0, "it searches")
    assert site.model.counts.stats()["whole"] >= 2, "calls were made, with the key"
    site.inside(name, "print(json.dumps(ask('/v1/messages', MINE, body=hello('no-such-model'))))")
    site.inside(name, "print(json.dumps(ask('/v1/messages', MINE, body=hello('elsewhere'))))")

    record = place.record(name)
    pids = sandboxed(record["sandbox_id"])
    assert len(pids) >= 4, "init, its spawner, the agent, its command"
    for pid in pids:
        for what in ("environ", "cmdline"):
            assert CANARY.encode() not in Path(f"/proc/{pid}/{what}").read_bytes(), (pid, what)
        assert not in_memory(pid), Path(f"/proc/{pid}/cmdline").read_bytes()
    # What is not the image's own, which was made before there was a key.
    for folder in ("workspace", "state", "tmp", "run", "dev/shm", "etc", "home", "root", "var"):
        assert in_files(Path(f"/proc/{pids[0]}/root/{folder}")) == []

    assert place.server is not None
    assert in_memory(place.server.pid), "the gateway's own process has it: what searches can find"
    told = place.ok("events", "--json", name) + json.dumps(record) + place.ok("intents", "--json", name)
    told += place.ok("stats", "--json") + place.ok("harnesses", "--json") + place.ok("config")
    assert CANARY not in told
    place.ok("kill", name)
    place.carrel("wait", name)
    # Store, spools, slots, logs: everything an installation leaves on its disk.
    assert in_files(place.folder) == []


def test_40_a_gateway_serves_its_own_execution_only(site: Site) -> None:
    mine, other = site.sleeper(), site.sleeper()
    foreign = site.inside(other, "print(json.dumps(MINE))")
    asked = site.model.counts.stats()["begun"]
    answers = site.inside(
        mine,
        f"""
answers = {{}}
tokens = {{"foreign": {foreign!r}, "none": None, "provider's": {CANARY!r}, "half": MINE[:-1], "empty": " "}}
for name, token in tokens.items():
    for header in ("authorization", "x-api-key"):
        for path in ("/v1/messages", "/v1/chat/completions", "/carrel/v1/spend"):
            body = None if path.endswith("spend") else hello("scripted")
            answers[f"{{name}} {{header}} {{path}}"] = ask(path, token, header, body)[0]
import glob
answers["sockets"] = glob.glob("/run/carrel/**/*", recursive=True)
print(json.dumps(answers))
""",
    )
    assert answers.pop("sockets") == [], "no socket of any gateway can be reached past the outlet"
    assert set(answers.values()) == {401}, answers
    assert site.model.counts.stats()["begun"] == asked
    assert site.inside(mine, "print(json.dumps(ask('/carrel/v1/spend', MINE)))")[0] == 200
    site.place.ok("rm", "-f", mine, other)


PATHS = (
    *("/v1/files", "/v1/organizations/usage", "/v1/messages/batches", "/v1/fine_tuning/jobs", "/v1/assistants"),
    *("/v1/messages/../files", "/v1//messages", "/v1/messages%2f..%2ffiles", "/openai/v1/files", "/anthropic/v1/files"),
    *("/admin", "/", "/v1", "/v1/responses/resp_1/cancel", "/v1/messages;x", "/carrel/v1/other", "/metrics"),
)


def test_41_what_is_not_the_providers_api_goes_nowhere(site: Site) -> None:
    mine = site.sleeper()
    asked = len(site.model.counts.requests()), site.model.counts.stats()["unread"]
    script = f"print(json.dumps([[p, ask(p, MINE, body=hello('scripted'))[0]] for p in {PATHS!r}]))"
    for path, status in site.inside(mine, script):
        assert status in (403, 404, 405), (path, status)
    script = (
        "verbs = ('PUT', 'DELETE', 'PATCH', 'TRACE')\n"
        "print(json.dumps([ask('/v1/messages', MINE, body=hello('scripted'), method=verb)[0] for verb in verbs]))"
    )
    assert all(status in (403, 404, 405) for status in site.inside(mine, script))
    assert (len(site.model.counts.requests()), site.model.counts.stats()["unread"]) == asked
    site.place.ok("rm", "-f", mine)


def test_42_a_redirect_is_not_followed_and_gets_no_key(site: Site) -> None:
    mine = site.sleeper()
    Elsewhere.heads.clear()
    status, said = site.inside(mine, "print(json.dumps(ask('/v1/messages', MINE, body=hello('elsewhere'))))")
    assert status >= 300 and CANARY not in said and "/taken" not in said, (status, said)
    assert Elsewhere.heads and all(head.startswith("/v1/messages\n") for head in Elsewhere.heads)
    assert CANARY in Elsewhere.heads[0], "the provider itself is shown it"
    site.place.ok("rm", "-f", mine)


HOARD: Final = (
    "mkdir keep; env > keep/env; env > $STATE_DIR/env; cp -r $HOME keep/home; cp /proc/self/environ keep/self"
)


def test_51_what_is_carried_to_another_execution_holds_no_secret(site: Site) -> None:
    """A fork begins with another's record and files. All that was in reach is put into them; the key is not there, and
    the token that is opens nothing from elsewhere, whether its own execution lives or has ended."""
    place, name = site.place, f"origin-{uuid.uuid4().hex[:6]}"
    place.ok(
        "run", "-d", "--name", name, "--", "bash", "-c", f"[ -e ready ] || {{ {HOARD}; touch ready; }}; sleep 1000"
    )
    until(lambda: place.carrel("exec", name, "--", "test", "-e", "ready").returncode == 0, "it has hoarded")
    (fork,) = place.ok("fork", name).split()
    until(lambda: place.record(fork)["state"] == "RUNNING", "the fork runs")
    assert place.record(fork)["forked_from"]["execution_id"] == place.record(name)["id"]

    tokens = []
    for one in (name, fork):
        record = place.record(one)
        vol = place.folder / "d" / "slots" / record["sandbox_id"] / "vol"
        assert (vol / "state" / "env").read_text() and in_files(vol) == []
        tokens += re.findall(r"^CARREL_GATEWAY_TOKEN=(.+)$", (vol / "workspace/keep/env").read_text(), re.M)
        told = json.dumps(record) + place.ok("events", "--json", one)
        assert CANARY not in told and tokens[0] not in told, "nor is it in what others may read"
    assert len(tokens) == 2 and tokens[0] == tokens[1], "the fork holds what its origin hoarded"
    assert in_files(place.folder / "d") == [], "nor do the snapshot between them, the store and the logs"

    script = """
kept = dict(line.split("=", 1) for line in open("/workspace/keep/env").read().splitlines() if "=" in line)
theirs = kept["CARREL_GATEWAY_TOKEN"]
assert theirs != MINE
answers = [ask("/v1/messages", theirs, body=hello("scripted"))[0], ask("/carrel/v1/spend", theirs)[0]]
print(json.dumps([*answers, ask("/carrel/v1/spend", MINE)[0]]))
"""
    assert site.inside(fork, script) == [401, 401, 200]
    place.ok("kill", name)
    place.carrel("wait", name)
    assert site.inside(fork, script) == [401, 401, 200]
    place.ok("rm", "-f", name, fork)
