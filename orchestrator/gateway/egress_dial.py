"""From a host's name to a connection to an address that was checked. Knows no allowlist and no HTTP.

A name is resolved once, outside the sandbox; every address it has must be permitted, and the connection goes to one
of those very addresses: a name that resolves differently a moment later (rebinding) changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv6Address, ip_address
from typing import Final

from orchestrator.gateway.egress_policy import Address, Network, Refused, embedded, forbidden

log = logging.getLogger(__name__)

RESOLVE_LIMIT_S: Final = 10.0
CONNECT_LIMIT_S: Final = 10.0  # for one address
ADDRESSES_TRIED: Final = 4
LOOKUPS_AT_ONCE: Final = 4  # of one execution
BUFFER_BYTES: Final = 64 * 1024

Resolve = Callable[[str], Awaitable[Sequence[Address]]]
"""All addresses of a canonical host name, in the order in which to try them. Raises Unreachable."""


class Unreachable(Exception):
    """It may be connected to, and cannot be: no such name, nobody answers. Says why; nothing to do with policy."""


class SystemResolver:
    """The machine's own resolver (files, DNS, whatever nsswitch says). One for each execution.

    A lookup is a thread of its own, not the loop's executor: uvloop has four threads for all of a worker, and a
    sandbox that asks for names nobody answers would hold them. A lookup that takes too long is given up, but counts
    until it is really over.
    """

    def __init__(self, *, limit_s: float = RESOLVE_LIMIT_S, at_once: int = LOOKUPS_AT_ONCE) -> None:
        self._limit_s = limit_s
        self._free = asyncio.Semaphore(at_once)

    async def __call__(self, host: str) -> Sequence[Address]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Sequence[Address]] = loop.create_future()

        def settle(found: Sequence[Address] | Unreachable) -> None:
            self._free.release()
            if not answer.done():
                if isinstance(found, Unreachable):
                    answer.set_exception(found)
                else:
                    answer.set_result(found)

        def look_up() -> None:
            found: Sequence[Address] | Unreachable
            try:
                found = addresses(host)
            except (OSError, UnicodeError) as failure:
                found = Unreachable(f"its name cannot be resolved ({failure})")
            with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody asks any more
                loop.call_soon_threadsafe(settle, found)

        try:
            async with asyncio.timeout(self._limit_s):
                await self._free.acquire()
                try:
                    threading.Thread(target=look_up, name="egress-resolve", daemon=True).start()
                except RuntimeError as none_left:  # the machine gives no more threads
                    self._free.release()
                    raise Unreachable(f"its name cannot be resolved ({none_left})") from None
                return await answer
        except TimeoutError:
            raise Unreachable(f"its name was not resolved within {self._limit_s:g} s") from None


def addresses(host: str) -> Sequence[Address]:
    """getaddrinfo's answer, each address once. Blocks. Raises OSError."""
    found = socket.getaddrinfo(host.encode("ascii"), None, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return tuple(dict.fromkeys(ip_address(str(sockaddr[0])) for *_, sockaddr in found))


async def dial(
    host: str, port: int, *, resolve: Resolve, opened: Sequence[Network]
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A TCP connection to `host`, which is canonical and allowed. Raises Refused if any address of it is not
    permitted, before anything is connected; Unreachable."""
    found = await resolve(host)
    if not found:
        raise Unreachable("its name has no address")
    for address in found:
        kind = forbidden(address, opened) or _own(address, port, opened)
        if kind:
            # The address itself stays out of answer and history: names inside an operator's network are his.
            log.info("egress refused: %s resolves to %s (%s)", host, address, kind)
            remedy = "" if kind == "metadata" else "an operator opens internal ranges: egress_private_allow"
            raise Refused(host, port, f"it resolves to an address that is not public ({kind})", remedy)
    failure = Unreachable("nobody answers")
    for address in found[:ADDRESSES_TRIED]:
        try:
            return await _connect(embedded_for_socket(address), port)
        except TimeoutError:
            failure = Unreachable(f"no answer within {CONNECT_LIMIT_S:g} s")
        except OSError as no:
            # By its number: the loop's own words hold the address.
            failure = Unreachable(os.strerror(no.errno) if no.errno else "no connection")
    raise failure


def embedded_for_socket(address: Address) -> Address:
    """An IPv6-mapped address is connected to as the IPv4 address it was judged as."""
    return embedded(address) if isinstance(address, IPv6Address) and address.ipv4_mapped else address


async def _connect(address: Address, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    line = socket.socket(_family(address), socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        async with asyncio.timeout(CONNECT_LIMIT_S):
            await asyncio.get_running_loop().sock_connect(line, (str(address), port))
            return await asyncio.open_connection(sock=line, limit=BUFFER_BYTES)
    except BaseException:
        line.close()
        raise


def _own(address: Address, port: int, opened: Sequence[Network]) -> str:
    """A public address of this very host: from here it leads past the firewall to what listens on all addresses. The
    kernel picks the same address as source exactly then; a datagram socket asks it without sending anything."""
    address = embedded_for_socket(address)
    if any(embedded(address) in network for network in opened):
        return ""
    with socket.socket(_family(address), socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.connect((str(address), port))
            return "this host's own" if ip_address(probe.getsockname()[0]) == address else ""
        except OSError:
            return ""  # no route: connecting will say so


def _family(address: Address) -> socket.AddressFamily:
    return socket.AF_INET6 if isinstance(address, IPv6Address) else socket.AF_INET
