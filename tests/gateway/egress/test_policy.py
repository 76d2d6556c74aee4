"""What an allowlist may hold, what it allows, which addresses nobody gets to: tables, and properties of the rules."""

from __future__ import annotations

import ipaddress
import socket
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.egress import ENTRIES, allowlist, entry, host_name
from orchestrator.errors import BadInput
from orchestrator.execution import Egress
from orchestrator.gateway.egress_policy import METADATA, Policy, Refused, forbidden, networks, shown
from orchestrator.gateway.egress_port import Head
from orchestrator.gateway.egress_target import check_host, plain_target, tunnel_target

# ---- entries ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("packages.example", "packages.example"),
        ("Packages.Example.", "packages.example"),
        ("*.PythonHosted.org", "*.pythonhosted.org"),
        ("git.example.org:22", "git.example.org:22"),
        ("*.example.org:8443", "*.example.org:8443"),
        ("registry", "registry"),
        ("_dmarc.a_b.example", "_dmarc.a_b.example"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER。example", "xn--bcher-kva.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
    ],
)
def test_an_entry_has_one_canonical_form(written: str, canonical: str) -> None:
    assert str(entry(written)) == canonical
    assert entry(canonical) == entry(written)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("", "not a host's name"),
        ("*", "a star stands only before"),
        ("*.", "not a host's name"),
        ("*.org", "a whole top-level domain"),
        ("a*.example.org", "a star stands only before"),
        ("*.*.example.org", "a star stands only before"),
        ("https://packages.example", "leave out the scheme"),
        ("packages.example/simple", "leave out the scheme"),
        ("packages.example:", "one port from 1 to 65535"),
        ("packages.example:0", "one port from 1 to 65535"),
        ("packages.example:65536", "one port from 1 to 65535"),
        ("packages.example:443,80", "one port from 1 to 65535"),
        ("packages.example:https", "one port from 1 to 65535"),
        ("packages.example:٤٤٣", "one port from 1 to 65535"),
        ("10.0.0.1", "is an address"),
        ("10.0.0.0/8", "leave out the scheme"),
        ("0x7f.1", "is an address"),
        ("example.1", "ends as one does"),
        ("127.0.0.1", "is an address"),
        ("[::1]", "one port from 1 to 65535"),
        ("-a.example", "not a part of a name"),
        ("a-.example", "not a part of a name"),
        ("a..example", "not a part of a name"),
        (".example.org", "not a part of a name"),
        ("a b.example", "not a part of a name"),
        ("user@example.org", "not a part of a name"),
        ("a" * 64 + ".example", "not a part of a name"),
        ("straße.example", "not the same everywhere"),
        ("a\u200db.example", "not the same everywhere"),
        ("a\n.example", "not a part of a name"),
        (".".join(["a" * 60] * 5), "characters"),
    ],
)
def test_what_is_no_entry_is_named_with_limit_and_remedy(written: str, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        allowlist(["ok.example", written])
    assert said in caught.value.message and caught.value.field == "egress.allow.1"
    assert caught.value.data["limit"] and caught.value.data["remedy"]


def test_a_list_is_bounded_and_holds_each_entry_once() -> None:
    assert [str(each) for each in allowlist(["b.example", "a.example", "B.example."])] == ["b.example", "a.example"]
    with pytest.raises(BadInput, match="257 entries"):
        allowlist([f"h{n}.example" for n in range(ENTRIES + 1)])


# ---- names -----------------------------------------------------------------------------------------------------------

POLICY = Policy.of(Egress(("example.org", "*.sub.example.org", "git.example.org:22", "*.sub.example.org:9000")))


@pytest.mark.parametrize(
    ("host", "port", "allowed"),
    [
        ("example.org", 443, True),
        ("example.org", 80, True),
        ("EXAMPLE.org.", 443, True),
        ("a.sub.example.org", 443, True),
        ("a.b.sub.example.org", 80, True),
        ("a.sub.example.org", 9000, True),
        ("git.example.org", 22, True),
        ("git.example.org", 443, False),
        ("example.org", 8443, False),
        ("sub.example.org", 443, False),  # a star is not the name itself
        ("www.example.org", 443, False),
        ("evil-example.org", 443, False),
        ("evilexample.org", 443, False),
        ("example.org.evil.com", 443, False),
        ("xsub.example.org", 443, False),
        ("a.sub.example.org.evil.com", 443, False),
        ("example.org..", 443, False),
        ("example", 443, False),
        ("org", 443, False),
    ],
)
def test_names_match_whole_and_by_port(host: str, port: int, allowed: bool) -> None:
    try:
        POLICY.admit(host, port)
    except Refused as refused:
        assert not allowed and refused.status in (400, 403) and refused.why
    else:
        assert allowed


def test_a_refusal_says_what_would_help() -> None:
    with pytest.raises(Refused) as caught:
        POLICY.admit("www.example.org", 8080)
    assert (
        "not on this execution's allowlist" in caught.value.why
        and "--allow www.example.org:8080" in caught.value.remedy
    )
    with pytest.raises(Refused, match="port 8443 of it is not allowed, only 80, 443"):
        POLICY.admit("example.org", 8443)
    with pytest.raises(Refused, match="no egress at all"):
        Policy().admit("example.org", 443)


def test_an_entry_that_cannot_be_read_opens_nothing() -> None:
    assert not Policy.of(Egress(("*", "127.0.0.1", "10.0.0.0/8"))).allow


ODD_ADDRESSES = [
    "127.0.0.1", "127.1", "127.0.1", "2130706433", "017700000001", "0x7f000001", "0x7F.0.0.1", "0177.0.0.1",
    "0x7f.1", "127.0.0.1.", "1.1.1.1", "[::1]", "::1", "[::ffff:127.0.0.1]", "[fe80::1%eth0]", "[fe80::1%25eth0]",
    "[::ffff:7f00:1]", "[0:0:0:0:0:ffff:127.0.0.1]", "0", "0x0", "00000000000000000000000000000000000000177.1",
    "127.0.0.1%00.example.org", "%31%32%37.0.0.1", "127。0。0。1", "１２７.０.０.１", "①②⑦.0.0.1", "0x7f.0.0.0x1",
    "169.254.169.254", "2852039166", "[fd00:ec2::254]", "256.256.256.256", "1.2.3.4.5", "4294967296", "08.1.1.1",
]  # fmt: skip


@pytest.mark.parametrize("host", ODD_ADDRESSES)
def test_no_spelling_of_an_address_is_a_name(host: str) -> None:
    with pytest.raises(BadInput):
        host_name(host)
    with pytest.raises(Refused):
        Policy.of(Egress(("*.example.org", "example.org"))).admit(host, 443)


HOSTILE = st.text("0123456789abcdefxXLlo.:[]%-_eE+ \t\r\n\0/@#?*ß。１", max_size=24) | st.text(max_size=24)
NUMBERS = st.integers(0, 2**33)
PART = st.one_of(NUMBERS.map(str), NUMBERS.map(hex), NUMBERS.map(oct), NUMBERS.map(lambda n: f"0{n:o}"), st.just("a"))
SPELLINGS = st.lists(PART, min_size=1, max_size=5).map(".".join)


@given(HOSTILE | SPELLINGS | st.ip_addresses().map(str) | SPELLINGS.map(lambda text: text + "."))
def test_nothing_that_any_reader_takes_for_an_address_passes_as_a_name(text: str) -> None:
    try:
        name = host_name(text)
    except BadInput:
        return
    for written in {text, name, name + ".", name.upper()}:
        with pytest.raises(ValueError):
            ipaddress.ip_address(written)
        with pytest.raises((OSError, UnicodeError, ValueError)):
            socket.inet_aton(written)
        with pytest.raises((OSError, UnicodeError, ValueError)):
            socket.getaddrinfo(written, 80, flags=socket.AI_NUMERICHOST)


@given(HOSTILE)
def test_a_canonical_name_is_its_own_canonical_form_and_plain(text: str) -> None:
    try:
        name = host_name(text)
    except BadInput:
        return
    assert host_name(name) == host_name(name.upper() + ".") == name
    assert name.isascii() and name == name.lower() and not set(name) & set(" \t\r\n\0/@#?*:%[]\\\"'<>")


@given(st.text(max_size=300))
def test_what_is_shown_of_a_stranger_is_harmless(text: str) -> None:
    assert all("!" <= c <= "~" for c in shown(text)) and 0 < len(shown(text)) <= 253


# ---- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("1.1.1.1", ""),
        ("93.184.215.14", ""),
        ("2606:4700:4700::1111", ""),
        ("2a00:1450:4001:830::200e", ""),
        ("0.0.0.0", "unspecified"),
        ("0.1.2.3", "unspecified"),
        ("10.255.255.255", "private"),
        ("11.0.0.0", ""),
        ("100.64.0.1", "carrier-grade NAT"),
        ("100.128.0.0", ""),
        ("100.100.100.200", "metadata"),
        ("127.0.0.1", "loopback"),
        ("127.255.255.254", "loopback"),
        ("169.254.0.1", "link-local"),
        ("169.254.169.254", "metadata"),
        ("169.254.170.2", "metadata"),
        ("168.63.129.16", "metadata"),
        ("172.15.255.255", ""),
        ("172.16.0.1", "private"),
        ("172.31.255.255", "private"),
        ("172.32.0.0", ""),
        ("192.0.0.192", "metadata"),
        ("192.0.0.8", "protocol assignment"),
        ("192.0.2.1", "documentation"),
        ("192.88.99.1", "6to4 relay"),
        ("192.168.1.1", "private"),
        ("198.18.0.1", "benchmarking"),
        ("198.51.100.7", "documentation"),
        ("203.0.113.7", "documentation"),
        ("224.0.0.1", "multicast"),
        ("239.255.255.250", "multicast"),
        ("240.0.0.1", "reserved"),
        ("255.255.255.255", "reserved"),
        ("::", "unspecified"),
        ("::1", "loopback"),
        ("::127.0.0.1", "reserved"),  # IPv4-compatible
        ("::ffff:127.0.0.1", "loopback"),
        ("::ffff:169.254.169.254", "metadata"),
        ("::ffff:1.1.1.1", ""),
        ("::ffff:0:127.0.0.1", "reserved"),  # IPv4-translated
        ("64:ff9b::7f00:1", "loopback"),
        ("64:ff9b::a9fe:a9fe", "metadata"),
        ("64:ff9b::101:101", ""),
        ("64:ff9b:1::7f00:1", "local NAT64"),
        ("100::1", "discard"),
        ("2001::1", "Teredo"),
        ("2001:0:4136:e378:8000:63bf:80ff:fffe", "Teredo"),
        ("2001:2::1", "protocol assignment"),
        ("2001:20::1", "protocol assignment"),
        ("2001:200::1", ""),
        ("2001:db8::1", "documentation"),
        ("2002:7f00:1::", "6to4"),
        ("2002:0101:0101::1", "6to4"),
        ("3fff::1", "documentation"),
        ("4000::1", "reserved"),
        ("5f00::1", "reserved"),
        ("fc00::1", "private"),
        ("fd00:ec2::254", "metadata"),
        ("fd20:ce::254", "metadata"),
        ("fe80::1", "link-local"),
        ("fe80::1%eth0", "link-local"),
        ("fe80::a9fe:a9fe%2", "metadata"),
        ("fec0::1", "private"),
        ("ff02::1", "multicast"),
    ],
)
def test_only_public_addresses_are_connected_to(address: str, kind: str) -> None:
    assert forbidden(ip_address(address)) == kind


def test_a_range_the_operator_opened_is_open_and_nothing_beside_it() -> None:
    opened = networks(["203.0.113.0/24", "10.1.0.0/16", "fd12:3456::/32"])
    for address in ("203.0.113.0", "203.0.113.255", "10.1.2.3", "fd12:3456::1", "::ffff:10.1.2.3", "64:ff9b::a01:203"):
        assert forbidden(ip_address(address), opened) == ""
    for address in ("203.0.112.255", "203.0.114.0", "10.0.255.255", "10.2.0.0", "fd12:3457::1", "127.0.0.1", "::1"):
        assert forbidden(ip_address(address), opened) == forbidden(ip_address(address)) != "" or address in (
            "203.0.112.255",
            "203.0.114.0",
        )


def test_metadata_stays_shut_in_any_range_but_its_own() -> None:
    everything = networks(["0.0.0.0/0", "::/0", "169.254.0.0/16", "169.254.169.254/31", "fd00::/8"])
    for address in METADATA:
        assert forbidden(address, everything) == "metadata"
    assert forbidden(ip_address("127.0.0.1"), everything) == ""
    assert forbidden(ip_address("169.254.169.254"), networks(["169.254.169.254/32"])) == ""
    assert forbidden(ip_address("169.254.170.2"), networks(["169.254.169.254/32"])) == "metadata"


@given(st.ip_addresses())
def test_what_python_calls_not_global_is_never_open(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    if forbidden(address) == "" and getattr(address, "ipv4_mapped", None) is None:
        in_nat64 = address in ipaddress.ip_network("64:ff9b::/96")
        assert address.is_global or in_nat64
        assert not (address.is_private or address.is_loopback or address.is_multicast or address.is_link_local)


# ---- targets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("example.org:443", ("example.org", 443)),
        ("[::1]:443", ("[::1]", 443)),
        ("2130706433:80", ("2130706433", 80)),
        ("example.org", None),
        ("example.org:", None),
        ("example.org:0", None),
        ("example.org:65536", None),
        ("example.org:+443", None),
        ("example.org:443:443", ("example.org:443", 443)),  # and that is no name
        ("user@example.org:443", None),
        ("example.org:443@evil.com:443", None),
        ("example.org :443", None),
        ("http://example.org:443", ("http://example.org", 443)),  # and that is no name
        ("", None),
        (":443", ("", 443)),  # and that is no name
        ("exa\rmple.org:443", None),
        ("exämple.org:443", None),
    ],
)
def test_the_target_of_connect(target: str, found: tuple[str, int] | None) -> None:
    try:
        assert tunnel_target(Head("CONNECT", target, ())) == found
    except Refused as refused:
        assert found is None and refused.status == 400


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("http://example.org/a?b=c", ("example.org", 80, "/a?b=c")),
        ("HTTP://example.org", ("example.org", 80, "/")),
        ("http://example.org?x", ("example.org", 80, "/?x")),
        ("http://example.org:8080/", ("example.org", 8080, "/")),
        ("http://example.org/http://evil.com/", ("example.org", 80, "/http://evil.com/")),
        ("http://[::1]/", ("[::1]", 80, "/")),
        ("http://[::1]:81/", ("[::1]", 81, "/")),
        ("http://user:pw@example.org/", None),
        ("http://example.org@evil.com/", None),
        ("http://evil.com#@example.org/", None),
        ("http://example.org:/", None),
        ("http:///path", None),
        ("http:/example.org/", None),
        ("http:\\\\example.org/", None),
        ("https://example.org/", None),
        ("ftp://example.org/", None),
        ("http://example.org\t/", None),
        ("http://example.org/\r\nX: y", None),
    ],
)
def test_the_target_of_plain_http(target: str, found: tuple[str, int, str] | None) -> None:
    try:
        assert plain_target(Head("GET", target, ())) == found
    except Refused as refused:
        assert found is None and refused.status == 400


@pytest.mark.parametrize(
    ("hosts", "version", "status"),
    [
        (["example.org"], "1.1", 0),
        (["EXAMPLE.org.:80"], "1.1", 0),
        ([], "1.0", 0),
        (["evil.com"], "1.1", 403),
        (["example.org:81"], "1.1", 403),
        (["example.org@evil.com"], "1.1", 403),
        ([""], "1.1", 403),
        ([], "1.1", 400),
        (["example.org", "example.org"], "1.1", 400),
        (["evil.com"], "1.0", 403),
    ],
)
def test_host_must_be_the_target(hosts: list[str], version: str, status: int) -> None:
    head = Head("GET", "http://example.org/", tuple(("host", host) for host in hosts), version)
    try:
        check_host(head, "example.org", 80)
        assert status == 0
    except Refused as refused:
        assert refused.status == status
