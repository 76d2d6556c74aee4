"""Addresses and tricks, each with the answer it must get, through the real proxy in a network of the test's own. The
numbers are the attacks of the design's security page.

Every address nobody may get to exists there and has a listener: "no connection" is what the listener saw.
"""

from __future__ import annotations

import pytest

from tests.gateway.egress.conftest import Opened, Proxy, everything, parse
from tests.internet import Internet
from tests.place import until

pytestmark = [pytest.mark.root]


def trapped(internet: Internet) -> list[object]:
    return list(internet.trap.having("connection"))


# host, the kind that is named: 30 and 36, and what else a name may stand for.
FORBIDDEN = [
    ("loop.test", "loopback"),
    ("loop6.test", "loopback"),
    ("mapped.test", "loopback"),
    ("mappedmeta.test", "metadata"),
    ("nat64.test", "loopback"),
    ("sixtofour.test", "6to4"),
    ("teredo.test", "Teredo"),
    ("compat.test", "reserved"),
    ("zero.test", "unspecified"),
    ("meta.test", "metadata"),
    ("meta6.test", "metadata"),
    ("alibaba.test", "metadata"),
    ("ten.test", "private"),
    ("oneseventwo.test", "private"),
    ("home.test", "private"),
    ("cgnat.test", "carrier-grade NAT"),
    ("bench.test", "benchmarking"),
    ("ula.test", "private"),
    ("multicast.test", "multicast"),
    ("broadcast.test", "reserved"),
    ("mixed.test", "loopback"),  # one of two is enough
    ("split.test", "loopback"),
    ("own.test", "this host's own"),
    ("localhost", "loopback"),  # from /etc/hosts
]


def test_30_36_names_that_stand_for_forbidden_addresses(opened: Opened, internet: Internet) -> None:
    proxy = opened(*(host for host, _ in FORBIDDEN))
    before = trapped(internet)
    for host, kind in FORBIDDEN:
        for answer in (proxy.refused(f"{host}:443"), proxy.get(f"http://{host}/")):
            assert answer.status == 403, (host, answer)
            error = answer.json()["error"]
            assert error["host"] == host and f"not public ({kind})" in error["why"], (host, error)
    assert [event["host"] for event in proxy.events()] == [host for host, _ in FORBIDDEN for _ in range(2)]
    assert trapped(internet) == before


# What is asked for, the status, what the body says.
TRICKS = [
    ("nowhere.test:443", 403, "not on this execution's allowlist"),  # 32
    ("ok.test:444", 403, "port 444 of it is not allowed, only 80, 443"),  # 37
    ("wild.test:443", 403, "not on this execution's allowlist"),  # below it only
    ("evil-ok.test:443", 403, "allowlist"),  # 35, and on
    ("evilok.test:443", 403, "allowlist"),
    ("ok.test.evil.test:443", 403, "allowlist"),
    ("xa.wild.test.evil.test:443", 403, "allowlist"),
    ("127.0.0.1:443", 403, "a host's name; addresses are never allowed"),
    ("127.1:443", 403, "addresses are never allowed"),
    ("2130706433:443", 403, "addresses are never allowed"),
    ("017700000001:443", 403, "addresses are never allowed"),
    ("0177.0.0.1:443", 403, "addresses are never allowed"),
    ("0x7f000001:443", 403, "addresses are never allowed"),
    ("0x7f.0.0.1:443", 403, "addresses are never allowed"),
    ("127.0.0.1.:443", 403, "addresses are never allowed"),
    ("169.254.169.254:80", 403, "addresses are never allowed"),
    ("203.0.113.10:443", 403, "addresses are never allowed"),  # not even one that would be allowed by name
    ("[::1]:443", 403, "parts of 1 to 63"),
    ("[::ffff:127.0.0.1]:443", 403, "parts of 1 to 63"),
    ("[fe80::1%25lo]:443", 403, "parts of 1 to 63"),
    ("::1:443", 403, "parts of 1 to 63"),
    ("ok.test%00.evil.test:443", 400, "parts of 1 to 63"),
    ("%6fk.test:443", 400, "parts of 1 to 63"),
    ("ok.test@127.0.0.1:443", 400, "not host:port"),
    ("127.0.0.1#ok.test:443", 400, "parts of 1 to 63"),
    ("ok.test..:443", 400, "parts of 1 to 63"),
    ("-ok.test:443", 400, "parts of 1 to 63"),
    ("ok.test:443:80", 400, "parts of 1 to 63"),
    ("ok.test", 400, "not host:port"),
    ("ok.test:", 400, "not host:port"),
    ("ok.test:0", 400, "not host:port"),
    ("ok.test:65979", 400, "not host:port"),  # 65979 & 0xffff = 443
    ("ok.test:-443", 400, "not host:port"),
    ("http://ok.test:443", 400, "parts of 1 to 63"),
    ("a" * 254 + ":443", 400, "253 characters"),
]


def test_32_35_37_odd_targets_of_connect(opened: Opened, internet: Internet) -> None:
    proxy = opened("ok.test", "*.wild.test")
    before, asked = trapped(internet), len(internet.servers.having("dns"))
    for target, status, why in TRICKS:
        answer = proxy.refused(target)
        assert (answer.status, why in answer.json()["error"]["why"]) == (status, True), (target, answer)
    assert len(proxy.events()) == len(TRICKS)
    assert {event["event"] for event in proxy.events()} == {"egress.refused"}
    assert trapped(internet) == before
    assert len(internet.servers.having("dns")) == asked, "a name that is not allowed was resolved (31)"


PLAIN = [
    ("GET http://nowhere.test/ HTTP/1.1\r\nHost: nowhere.test", 403, "allowlist"),
    ("GET http://ok.test:81/ HTTP/1.1\r\nHost: ok.test:81", 403, "port 81 of it"),
    ("GET http://ok.test/ HTTP/1.1\r\nHost: other.test", 403, "its Host header says other.test"),  # 33
    ("GET http://ok.test/ HTTP/1.1\r\nHost: ok.test:8080", 403, "its Host header says"),
    ("GET http://ok.test/ HTTP/1.1\r\nHost: ", 403, "its Host header says"),
    ("GET http://2130706433/ HTTP/1.1\r\nHost: 2130706433", 403, "addresses are never allowed"),
    ("GET http://169.254.169.254/latest/meta-data/ HTTP/1.1\r\nHost: 169.254.169.254", 403, "never allowed"),  # 30
    ("GET http://[::ffff:7f00:1]/ HTTP/1.1\r\nHost: ok.test", 403, "parts of 1 to 63"),
    ("GET http://ok.test@127.0.0.1/ HTTP/1.1\r\nHost: ok.test", 400, "not host:port"),
    ("GET http://127.0.0.1#@ok.test/ HTTP/1.1\r\nHost: ok.test", 400, "not an absolute"),
    ("GET http://127.0.0.1\\@ok.test/ HTTP/1.1\r\nHost: ok.test", 400, "not host:port"),
    ("GET https://ok.test/ HTTP/1.1\r\nHost: ok.test", 400, "not an absolute"),
    ("GET ftp://ok.test/ HTTP/1.1\r\nHost: ok.test", 400, "not an absolute"),
    ("GET http:ok.test/ HTTP/1.1\r\nHost: ok.test", 400, "not an absolute"),
    (
        "POST http://ok.test/ HTTP/1.1\r\nHost: ok.test\r\nContent-Length: 3\r\nTransfer-Encoding: chunked",
        400,
        "framed",
    ),
]


def test_33_35_odd_requests_in_plain_http(opened: Opened, internet: Internet) -> None:
    proxy = opened("ok.test", "other.test")
    before, served = trapped(internet), len(internet.servers.having("request"))
    for request, status, why in PLAIN:
        answer = proxy.ask(request + "\r\n\r\n")
        assert (answer.status, why in answer.json()["error"]["why"]) == (status, True), (request, answer)
    assert len(proxy.events()) == len(PLAIN)
    assert trapped(internet) == before and len(internet.servers.having("request")) == served


@pytest.mark.parametrize(
    "head",
    [
        b"CONNECT ok.test:443\r\nX: HTTP/1.1\r\n\r\n",
        b"CONNECT ok.test:443 HTTP/1.1\r\nHost: ok.test\x00\r\n\r\n",
        b"GET http://ok.test/\rX HTTP/1.1\r\nHost: ok.test\r\n\r\n",
        b"GET http://ok.test/ HTTP/1.1\r\nHost : other.test\r\nHost: ok.test\r\n\r\n",
        b"GET http://ok.test/ HTTP/1.1\r\nHost: ok.test\r\nHost: other.test\r\n\r\n",
        b"GET http://ok.test/ HTTP/1.1\r\n\r\n",
    ],
)
def test_35_heads_that_are_no_http_are_not_passed_on(proxy: Proxy, internet: Internet, head: bytes) -> None:
    served = len(internet.servers.having("request"))
    assert proxy.ask(head).status == 400
    assert len(internet.servers.having("request")) == served


def test_33_a_second_request_on_the_connection_is_not_answered(proxy: Proxy, internet: Internet) -> None:
    served = len(internet.servers.having("request"))
    one = "GET http://ok.test/one HTTP/1.1\r\nHost: ok.test\r\n\r\n"
    two = "GET http://other.test/two HTTP/1.1\r\nHost: other.test\r\n\r\n"
    answer = proxy.ask(one + two)
    assert answer.status == 200 and answer.json()["target"] == "/one"
    assert "\r\nconnection: close" in answer.head.lower()
    assert [line["target"] for line in internet.servers.having("request")[served:]] == ["/one"]


def test_36_a_name_that_changes_its_mind_is_resolved_once_a_connection(proxy: Proxy, internet: Internet) -> None:
    before, host = trapped(internet), f"rebind-{proxy.loop}.test"

    def questions() -> int:
        asked = internet.servers.having("dns")
        return len([each for each in asked if each["dns"] == host and each["type"] == "A"])

    line = proxy.tunnel(f"{host}:80")
    assert questions() == 1
    line.sendall(f"GET /rebound HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert b'"target": "/rebound"' in everything(line) and questions() == 1
    answer = proxy.refused(f"{host}:80")  # from here on it is 127.0.0.1
    assert answer.status == 403 and "(loopback)" in answer.json()["error"]["why"] and questions() == 2
    assert trapped(internet) == before


def test_a_redirect_meets_the_same_rules(proxy: Proxy, internet: Internet) -> None:
    before = trapped(internet)
    answer = proxy.get("http://ok.test/redirect?http://169.254.169.254/latest/")
    assert answer.status == 302 and "http://169.254.169.254/latest/" in answer.head
    assert proxy.get("http://169.254.169.254/latest/").status == 403
    assert trapped(internet) == before


def test_a_public_name_needs_no_range(opened: Opened) -> None:
    proxy = opened("public.test", "ok.test", private_allow=())
    assert proxy.get("http://public.test/x").json()["headers"][0] == ["host", "public.test"]
    assert "(documentation)" in proxy.get("http://ok.test/").json()["error"]["why"]


def test_what_does_not_resolve_or_answer_is_no_refusal(opened: Opened) -> None:
    proxy = opened("nosuch.test", "empty.test", "silent.test", "ok.test:81")
    for target in ("nosuch.test:443", "empty.test:443", "silent.test:443", "ok.test:81"):
        answer = proxy.refused(target)
        assert answer.status == 502 and answer.json()["error"]["code"] == "egress_unreachable", answer
    assert not proxy.events()


def test_names_nobody_answers_for_hold_few_threads(proxy: Proxy, internet: Internet) -> None:
    lines = []
    for n in range(12):
        lines.append(proxy.dial())
        lines[-1].sendall(f"CONNECT n{n}.silent.test:443 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    until(lambda: proxy.count()["lookups"] == 4, "four are asked for")
    answers = [parse(everything(line)) for line in lines]
    assert {answer.status for answer in answers} == {502}
    assert max(line["lookups"] for line in proxy.running.having("lookups")) == 4


def test_a_refusal_names_the_remedy_where_clients_show_it(proxy: Proxy) -> None:
    answer = proxy.refused("packages.example:8443")
    assert "403 Forbidden: packages.example:8443 refused by Carrel" in answer.head.splitlines()[0]
    assert "--allow packages.example:8443" in answer.head.splitlines()[0]
    error = answer.json()["error"]
    assert (
        error["code"] == "egress_refused"
        and error["port"] == 8443
        and "--allow packages.example:8443" in error["remedy"]
    )
    assert proxy.running.wait(event="egress.refused") == {
        "event": "egress.refused",
        "host": "packages.example",
        "port": 8443,
        "why": error["why"],
    }
    head = proxy.ask("HEAD http://packages.example/ HTTP/1.1\r\nHost: packages.example\r\n\r\n")
    assert head.status == 403 and head.body == b""


def test_an_empty_allowlist_refuses_everything(opened: Opened) -> None:
    assert "no egress at all" in opened().refused("ok.test:443").json()["error"]["why"]


def test_a_flood_of_refusals_does_not_fill_the_history(opened: Opened) -> None:
    proxy = opened("ok.test")
    for n in range(1010):
        proxy.refused(f"n{n}.test:443")
    assert proxy.count()["refused"] == 1010
    events = proxy.events()
    assert len(events) == 1000 and [event for event in events if "note" in event] == [events[-1]]
    assert "counted, not written" in events[-1]["note"]


def test_38_without_the_lease_nothing_passes(proxy: Proxy) -> None:
    open_one = proxy.tunnel("ok.test:9000", b"a")
    assert open_one.recv(1) == b"a"
    proxy.running.tell(held=False)
    proxy.count()
    assert proxy.refused("ok.test:9000").status == 503
    assert proxy.get("http://ok.test/").status == 503
    open_one.sendall(b"b")
    assert open_one.recv(1) == b""
    open_one.close()
