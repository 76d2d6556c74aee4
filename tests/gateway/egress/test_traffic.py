"""What passes, and how: plain HTTP and tunnels through the real proxy, in a network of the test's own."""

from __future__ import annotations

import json
import socket
import ssl
from typing import Any

import pytest

from orchestrator.gateway.egress_flow import Traffic
from tests.gateway.egress import hellos
from tests.gateway.egress.conftest import Opened, Proxy, everything, parse
from tests.internet import Internet
from tests.place import until

pytestmark = [pytest.mark.root]
MIB = 1024 * 1024

# ---- plain HTTP ------------------------------------------------------------------------------------------------------


def test_a_request_is_passed_on_without_what_is_the_proxys(proxy: Proxy) -> None:
    answer = proxy.get(
        "http://ok.test:8080/path?a=b",
        "Connection: keep-alive, X-Private",
        "X-Private: 1",
        "X-Kept: 2",
        "Proxy-Authorization: Basic c2VjcmV0",
        "Proxy-Connection: keep-alive",
        "TE: trailers",
        "Upgrade: h2c",
        "Accept: */*",
    )
    seen = answer.json()
    assert answer.status == 200 and (seen["method"], seen["target"]) == ("GET", "/path?a=b")
    assert seen["headers"] == [["host", "ok.test:8080"], ["x-kept", "2"], ["accept", "*/*"], ["connection", "close"]]
    head = answer.head.lower()
    assert "\r\nx-kept: yes" in head and "x-hop" not in head and "keep-alive" not in head
    assert "\r\nconnection: close" in head


@pytest.mark.parametrize(
    ("framing", "body"),
    [("Content-Length: 5", b"hello"), ("Transfer-Encoding: chunked", b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n")],
)
def test_a_body_is_passed_on_in_either_framing(proxy: Proxy, framing: str, body: bytes) -> None:
    head = f"POST http://ok.test/ HTTP/1.1\r\nHost: ok.test\r\n{framing}\r\nExpect: 100-continue\r\n\r\n"
    answer = proxy.ask(head.encode() + body)
    assert answer.json()["body"] == "hello"
    assert [framing.lower().split(": ")] == [h for h in answer.json()["headers"] if h[0] in framing.lower()]


def test_a_body_that_breaks_off_is_not_passed_on_as_whole(proxy: Proxy) -> None:
    with proxy.dial() as line:
        line.sendall(b"POST http://ok.test/ HTTP/1.1\r\nHost: ok.test\r\nContent-Length: 5\r\n\r\nhel")
        line.shutdown(socket.SHUT_WR)
        assert parse(everything(line)).status == 400


def test_head_has_no_body_and_its_length(proxy: Proxy) -> None:
    answer = proxy.ask("HEAD http://ok.test/ HTTP/1.1\r\nHost: ok.test\r\n\r\n")
    assert answer.status == 200 and answer.body == b"" and "content-length: " in answer.head.lower()


def test_an_old_clients_answer_ends_with_its_connection(proxy: Proxy) -> None:
    answer = proxy.ask("GET http://ok.test/until-close HTTP/1.0\r\n\r\n")
    assert answer.status == 200 and answer.body == b"old but whole" and "chunked" not in answer.head.lower()


def test_an_answer_streams(proxy: Proxy) -> None:
    with proxy.dial() as line:
        line.sendall(f"GET http://ok.test/drip?{proxy.loop} HTTP/1.1\r\nHost: ok.test\r\n\r\n".encode())
        got = b""
        while b"first" not in got:  # the server has not written more, and will not before /go
            got += line.recv(65536)
        assert b"last" not in got
        assert proxy.get(f"http://ok.test/go?{proxy.loop}").status == 204
        assert (got + everything(line)).endswith(b"4\r\nlast\r\n0\r\n\r\n")


def test_an_answer_that_breaks_off_is_not_ended_cleanly(proxy: Proxy) -> None:
    answer = proxy.get("http://ok.test/broken")
    assert answer.status == 200 and answer.body.endswith(b"5\r\nhello\r\n")


@pytest.mark.parametrize(("path", "why"), [("nonsense", "not HTTP"), ("hang-up", "without an answer")])
def test_what_is_no_http_is_a_bad_gateway(proxy: Proxy, path: str, why: str) -> None:
    answer = proxy.get(f"http://ok.test/{path}")
    assert answer.status == 502 and why in answer.json()["error"]["why"]


def test_plain_http_in_a_tunnel_meets_the_rules_of_plain_http(proxy: Proxy, internet: Internet) -> None:
    line = proxy.tunnel("ok.test:80", b"GET /a HTTP/1.1\r\nHost: ok.test\r\n\r\n")  # without waiting for the answer
    assert parse(everything(line)).json()["target"] == "/a"
    served = len(internet.servers.having("request"))
    for request, status, why in (
        (b"GET /b HTTP/1.1\r\nHost: other.test\r\n\r\n", 403, "its Host header says other.test"),
        (b"GET http://other.test/ HTTP/1.1\r\nHost: ok.test\r\n\r\n", 400, "its request is for http://other.test/"),
        (b"CONNECT other.test:443 HTTP/1.1\r\nHost: ok.test\r\n\r\n", 400, "its request is for other.test:443"),
        (b"EHLO there\r\n\r\n", 400, "not HTTP"),
    ):
        line = proxy.tunnel("ok.test:80")
        line.sendall(request)
        answer = parse(everything(line))
        assert (answer.status, why in answer.json()["error"]["why"]) == (status, True), (request, answer)
    assert len(internet.servers.having("request")) == served and len(proxy.events()) == 4


# ---- tunnels ---------------------------------------------------------------------------------------------------------


def trusting(internet: Internet) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(internet.certificate))


@pytest.mark.parametrize("port", [443, 8443, 9443])
def test_tls_passes_to_the_host_that_was_asked_for(proxy: Proxy, internet: Internet, port: int) -> None:
    """9443 answers every first hello with a HelloRetryRequest."""
    line = proxy.tunnel(f"OK.test.:{port}")
    with trusting(internet).wrap_socket(line, server_hostname="ok.test") as tls:
        tls.sendall(b"over tls")
        assert tls.recv(100) == b"over tls"
    assert not proxy.events()


def closed_unseen(proxy: Proxy, internet: Internet, line: socket.socket, why: str) -> None:
    """The tunnel ended, the history says why, and no server read a hello."""
    named = len(internet.servers.having("sni"))
    assert everything(line) == b""
    assert why in proxy.running.wait(event="egress.refused")["why"]
    assert len(internet.servers.having("sni")) == named


@pytest.mark.parametrize("port", [443, 8443])
@pytest.mark.parametrize(
    ("flight", "why"),
    [
        (hellos.Spoken("other.test").out(), "asks for another server: other.test"),
        (hellos.Spoken("sub.ok.test").out(), "asks for another server: sub.ok.test"),
        (hellos.Spoken(None).out(), "names no server"),
        (hellos.reframed(hellos.Spoken("other.test").out(), 9), "asks for another server"),
        (hellos.records(hellos.client_hello("ok.test", extra=((hellos.ECH, bytes(8)),))), "hides a server name"),
        (hellos.records(hellos.client_hello("ok.test.")), "asks for another server"),
        (hellos.records(hellos.client_hello("ok.test", "other.test")), "not exactly one server name"),
        (
            hellos.records(hellos.client_hello("ok.test") + hellos.client_hello("other.test")),
            "more than a ClientHello",
        ),
    ],
)
def test_34_another_name_in_tls_closes_the_tunnel(
    proxy: Proxy, internet: Internet, port: int, flight: bytes, why: str
) -> None:
    line = proxy.tunnel(f"ok.test:{port}")
    for at in range(0, len(flight), 50):
        try:
            line.sendall(flight[at : at + 50])
        except BrokenPipeError:
            break  # closed already
    closed_unseen(proxy, internet, line, why)


@pytest.mark.parametrize(
    "first", [b"GET / HTTP/1.1\r\nHost: other.test\r\n\r\n", b"SSH-2.0-x\r\n", b"\x80\x2e\x01\x03\x01"]
)
def test_34_on_port_443_nothing_but_tls(proxy: Proxy, internet: Internet, first: bytes) -> None:
    line = proxy.tunnel("ok.test:443")
    line.sendall(first)
    closed_unseen(proxy, internet, line, "is not TLS that can be checked")


def test_34_a_second_hello_with_another_name_closes_the_tunnel(proxy: Proxy, internet: Internet) -> None:
    spoken = hellos.Spoken("ok.test")
    line = proxy.tunnel("ok.test:9443", spoken.out())
    heard = line.recv(65536)
    assert heard[5] == 2  # the HelloRetryRequest
    second = spoken.out(heard)
    assert b"ok.test" in second
    line.sendall(second.replace(b"ok.test", b"no.test"))
    assert b"\x17\x03\x03" not in everything(line), "the server went on with it"
    assert "asks for another server: no.test" in proxy.running.wait(event="egress.refused")["why"]


def test_34_a_second_hello_sent_before_it_is_asked_for_is_seen(proxy: Proxy) -> None:
    """Behind early data, which a server that asks again skips."""
    early = hellos.records(b"early", kind=23)
    second = hellos.records(hellos.client_hello("no.test"))
    line = proxy.tunnel("ok.test:9443", hellos.Spoken("ok.test").out() + early + second)
    everything(line)
    assert "asks for another server: no.test" in proxy.running.wait(event="egress.refused")["why"]


def test_a_server_may_speak_first_and_either_side_may_end_first(proxy: Proxy) -> None:
    line = proxy.tunnel("ok.test:22")
    assert line.recv(100) == b"220 speak\n"
    line.sendall(b"to the end")
    line.shutdown(socket.SHUT_WR)
    assert everything(line) == b"to the end<eof>"


def test_bytes_pass_exactly_and_are_counted(proxy: Proxy) -> None:
    sent = bytes(range(256)) * 4096
    line = proxy.tunnel("ok.test:9000", sent[:100])
    line.settimeout(60)
    got, at = bytearray(), 100
    while at < len(sent):
        line.sendall(sent[at : at + 65536])
        at = min(at + 65536, len(sent))
        while len(got) < at:
            got += line.recv(65536)
    assert bytes(got) == sent
    traffic = proxy.count()
    assert traffic["out_bytes"] == traffic["in_bytes"] == len(sent)


def test_a_reader_that_stops_stops_the_server(proxy: Proxy) -> None:
    line = proxy.tunnel("ok.test:9001", b"x")  # a server that never stops
    assert line.recv(1)
    counts = [proxy.count()]

    def still() -> bool:
        counts.append(proxy.count())
        return bool(counts[-1]["in_bytes"] == counts[-2]["in_bytes"])

    until(still, "nothing moves any more")
    assert counts[-1]["in_bytes"] < 8 * MIB
    got = 0
    while got < 64 * MIB:
        got += len(line.recv(MIB))
    assert proxy.count()["rss_kib"] - counts[0]["rss_kib"] < 32 * 1024


def test_a_large_answer_needs_no_memory(proxy: Proxy) -> None:
    before = proxy.count()["rss_kib"]
    with proxy.dial() as line:
        line.sendall(f"GET http://ok.test/bytes?{64 * MIB} HTTP/1.1\r\nHost: ok.test\r\n\r\n".encode())
        got = 0
        while data := line.recv(MIB):
            got += len(data)
    assert 64 * MIB < got < 64 * MIB + 1000
    assert proxy.count()["rss_kib"] - before < 32 * 1024


def test_a_client_that_leaves_leaves_nothing_open(proxy: Proxy, internet: Internet) -> None:
    closed = len([line for line in internet.servers.having("closed") if line["port"] == 9001])
    line = proxy.tunnel("ok.test:9001", b"x")
    assert line.recv(1)
    line.close()
    until(lambda: len([x for x in internet.servers.having("closed") if x["port"] == 9001]) > closed, "it is closed")


def test_a_tunnel_nothing_passes_through_is_closed(opened: Opened) -> None:
    proxy = opened("ok.test:9000", idle_s=0.3)
    line = proxy.tunnel("ok.test:9000", b"x")
    assert everything(line) == b"x"
    assert not proxy.events()


def test_64_connections_and_no_more(proxy: Proxy) -> None:
    lines = [proxy.tunnel("ok.test:9000") for _ in range(64)]
    answer = proxy.refused("ok.test:9000")
    assert answer.status == 429 and "64 connections are open already" in answer.json()["error"]["why"]
    assert proxy.get("http://ok.test/").status == 429
    lines.pop().close()

    def again() -> Any:
        line, answer = proxy.connect("ok.test:9000")
        line.close()
        return answer.status == 200

    until(again, "there is room again")


def test_an_allowlist_changes_while_it_runs(proxy: Proxy) -> None:
    taken, kept = proxy.tunnel("ok.test:9000", b"a"), proxy.tunnel("other.test:9000", b"b")
    assert (taken.recv(1), kept.recv(1)) == (b"a", b"b")
    proxy.running.tell(allow=["other.test:9000", "*.wild.test"])
    assert everything(taken) == b""
    event = proxy.running.wait(event="egress.refused")
    assert (event["host"], event["port"], event["why"]) == ("ok.test", 9000, "it was taken off the allowlist")
    kept.sendall(b"still")
    assert kept.recv(10) == b"still"
    assert proxy.refused("ok.test:9000").status == 403
    assert proxy.get("http://a.wild.test/").status == 200
    proxy.running.tell(allow=["ok.test:9000"])
    proxy.count()
    assert proxy.tunnel("ok.test:9000", b"c").recv(1) == b"c"


def test_closing_ends_what_is_open_and_takes_nothing_new(proxy: Proxy) -> None:
    lines = [proxy.tunnel("ok.test:9000"), proxy.tunnel("ok.test:443"), proxy.tunnel("ok.test:80")]
    for _ in range(2):
        proxy.running.tell(close=True)
        proxy.running.wait(closed=True)
    assert [everything(line) for line in lines] == [b""] * 3
    assert proxy.refused("ok.test:9000").status == 503
    assert json.loads(proxy.get("http://ok.test/").body)["error"]["code"] == "egress_unreachable"
    assert not proxy.events()


def test_each_sandbox_counts_for_all_of_them() -> None:
    whole = Traffic()
    one, other = Traffic(whole=whole), Traffic(whole=whole)
    one.sent(3)
    one.received(5)
    other.sent(4)
    assert (one.out_bytes, one.in_bytes, other.out_bytes) == (3, 5, 4)
    assert (whole.out_bytes, whole.in_bytes) == (7, 5)
