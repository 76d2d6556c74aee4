"""From a name's addresses to a connection, with the resolver's answer given: every order of good and bad, and what is
tried when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from ipaddress import ip_address

import pytest

from orchestrator.gateway.egress_dial import Resolve, SystemResolver, Unreachable, dial
from orchestrator.gateway.egress_policy import Address, Refused, networks

LOOPBACK = networks(["127.0.0.0/8"])


def answering(*texts: str) -> Resolve:
    async def resolve(_host: str) -> Sequence[Address]:
        return [ip_address(text) for text in texts]

    return resolve


@pytest.fixture
async def server() -> AsyncIterator[tuple[int, list[str]]]:
    """Listens on 127.0.0.2 alone: its port, and who was let in by which address."""
    reached: list[str] = []

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.append(writer.get_extra_info("sockname")[0])
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.2", 0)
    async with listening:
        yield listening.sockets[0].getsockname()[1], reached


@pytest.mark.parametrize(
    "addresses",
    [
        ("127.0.0.2", "10.0.0.1"),
        ("10.0.0.1", "127.0.0.2"),
        ("127.0.0.2", "127.0.0.2", "::1"),
        ("::ffff:127.0.0.2", "169.254.169.254"),
        ("127.0.0.2", "fe80::1%1"),
    ],
)
async def test_one_address_that_is_not_permitted_refuses_the_name(
    server: tuple[int, list[str]], addresses: tuple[str, ...]
) -> None:
    port, reached = server
    with pytest.raises(Refused, match="not public"):
        await dial("x.test", port, resolve=answering(*addresses), opened=LOOPBACK)
    assert not reached


@pytest.mark.parametrize("addresses", [("127.0.0.2",), ("127.0.0.3", "127.0.0.2"), ("::ffff:127.0.0.2",)])
async def test_permitted_addresses_are_tried_in_turn(server: tuple[int, list[str]], addresses: tuple[str, ...]) -> None:
    port, reached = server
    reader, writer = await dial("x.test", port, resolve=answering(*addresses), opened=LOOPBACK)
    assert await reader.read() == b"" and reached == ["127.0.0.2"]
    writer.close()


async def test_nobody_there_is_said_so(server: tuple[int, list[str]]) -> None:
    port, reached = server
    with pytest.raises(Unreachable, match="refused"):
        await dial("x.test", port, resolve=answering("127.0.0.3"), opened=LOOPBACK)
    with pytest.raises(Unreachable, match="refused"):  # the fifth is not tried
        four = [f"127.0.0.{n}" for n in range(3, 7)]
        await dial("x.test", port, resolve=answering(*four, "127.0.0.2"), opened=LOOPBACK)
    with pytest.raises(Unreachable, match="no address"):
        await dial("x.test", port, resolve=answering(), opened=LOOPBACK)
    assert not reached


async def test_the_machines_resolver_gives_each_address_once() -> None:
    found = await SystemResolver()("localhost")
    assert set(found) <= {ip_address("127.0.0.1"), ip_address("::1")} and len(set(found)) == len(found) > 0
    with pytest.raises(Unreachable, match="cannot be resolved"):
        await SystemResolver()("nosuchname.invalid")


async def test_a_lookup_that_takes_too_long_is_given_up() -> None:
    with pytest.raises(Unreachable, match="within 0 s"):
        await SystemResolver(limit_s=0)("localhost")


async def test_getaddrinfo_never_sees_what_is_no_ascii() -> None:
    with pytest.raises(Unreachable, match="cannot be resolved"):
        await SystemResolver()("bücher.test")
