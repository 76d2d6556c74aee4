"""Whether a sandbox may connect somewhere: the host's name against the allowlist, then each address it has. Pure.

Knows no socket and resolves nothing. Two gates, both must say yes: `Policy.admit` before the name is resolved,
`forbidden` for every address it resolved to. The table of addresses is IANA's special-purpose registries for IPv4 and
IPv6, read strictly (what is not plainly unicast and global is refused), not `ipaddress.is_global`, whose answers
differ between the versions of Python we run on.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from orchestrator.egress import DEFAULT_PORTS, Allowed, entry, host_name
from orchestrator.errors import BadInput
from orchestrator.execution import Egress

log = logging.getLogger(__name__)

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

#: Where clouds tell a machine its credentials. A wider range that is opened does not open these: only they themselves.
METADATA: Final = frozenset(
    ip_address(text)
    for text in (
        "169.254.169.254",  # AWS, Azure, Google, DigitalOcean, OpenStack, Oracle …
        "169.254.170.2",  # AWS ECS task credentials
        "169.254.170.23",  # AWS EKS pod identity
        "100.100.100.200",  # Alibaba
        "192.0.0.192",  # Oracle, classic
        "168.63.129.16",  # Azure's wire server: a global address that is none
        "fd00:ec2::254",  # AWS
        "fd00:ec2::23",  # AWS EKS pod identity
        "fd20:ce::254",  # Google
        "fe80::a9fe:a9fe",  # OpenStack
    )
)

_FORBIDDEN: Final = tuple(
    (ip_network(network), kind)
    for network, kind in (
        ("0.0.0.0/8", "unspecified"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "carrier-grade NAT"),
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link-local"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "protocol assignment"),
        ("192.0.2.0/24", "documentation"),
        ("192.88.99.0/24", "6to4 relay"),
        ("192.168.0.0/16", "private"),
        ("198.18.0.0/15", "benchmarking"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),  # 255.255.255.255 as well
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        ("64:ff9b:1::/48", "local NAT64"),
        ("100::/64", "discard"),
        ("2001::/32", "Teredo"),
        ("2001::/23", "protocol assignment"),
        ("2001:db8::/32", "documentation"),
        ("2002::/16", "6to4"),
        ("3fff::/20", "documentation"),
        ("fc00::/7", "private"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "private"),
        ("ff00::/8", "multicast"),
    )
)
_GLOBAL_6: Final = IPv6Network("2000::/3")  # all that IANA has given out as global unicast
_ADDRESS_6: Final = re.compile(r"[0-9a-f.]*:[0-9a-f:.]*")
_NAT64: Final = IPv6Network("64:ff9b::/96")


class Refused(Exception):
    """A connection that is not made. `host` is fit to be shown, `why` is for people, `remedy` what to do about it.
    `status`: 400 = no such target can be meant, 403 = not allowed."""

    def __init__(self, host: str, port: int, why: str, remedy: str = "", *, status: int = 403) -> None:
        super().__init__(f"{host}:{port}: {why}")
        self.host, self.port, self.why, self.remedy, self.status = host, port, why, remedy, status


@dataclass(frozen=True, slots=True)
class Policy:
    """An allowlist in force."""

    allow: tuple[Allowed, ...] = ()

    @classmethod
    def of(cls, egress: Egress) -> Policy:
        """What the record says. An entry that cannot be read opens nothing."""
        allow = []
        for text in egress.allow:
            try:
                allow.append(entry(text))
            except BadInput as wrong:
                log.warning("egress entry left out: %s", wrong)
        return cls(tuple(allow))

    def allows(self, host: str, port: int) -> bool:
        """`host` is canonical."""
        return any(allowed.covers(host, port) for allowed in self.allow)

    def admit(self, host: str, port: int) -> str:
        """The canonical name of a host that may be resolved. Raises Refused."""
        try:
            name = host_name(host)
        except BadInput as wrong:
            status = 403 if is_address(host) else 400
            raise Refused(shown(host), port, wrong.data["limit"], wrong.data["remedy"], status=status) from None
        if self.allows(name, port):
            return name
        ports = sorted({p for allowed in self.allow for p in range_of(allowed, name)})
        if ports:
            why = f"port {port} of it is not allowed, only {', '.join(map(str, ports))}"
        else:
            why = "it is not on this execution's allowlist" if self.allow else "this execution has no egress at all"
        raise Refused(name, port, why, allowing(name, port))


def allowing(host: str, port: int) -> str:
    """How whoever owns the execution lets it there."""
    entry_text = host if port in DEFAULT_PORTS else f"{host}:{port}"
    return f"its owner can allow it with --allow {entry_text} (carrel run; carrel update, beside what is allowed)"


def range_of(allowed: Allowed, host: str) -> tuple[int, ...]:
    """The ports at which `allowed` opens `host`; none if it is about other names."""
    return tuple(port for port in allowed.ports if allowed.covers(host, port))


def networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """The setting egress_private_allow. Raises ValueError."""
    return tuple(ip_network(text) for text in texts)


def forbidden(address: Address, opened: Iterable[Network] = ()) -> str:
    """Why `address` may not be connected to: its kind; "" if it may. `opened`: ranges the operator opened."""
    address = embedded(address)
    opened = tuple(opened)
    if address in METADATA:
        alone = any(network.num_addresses == 1 and address in network for network in opened)
        return "" if alone else "metadata"
    if any(address in network for network in opened):
        return ""
    for network, kind in _FORBIDDEN:
        if address in network:
            return kind
    return "reserved" if isinstance(address, IPv6Address) and address not in _GLOBAL_6 else ""


def embedded(address: Address) -> Address:
    """The IPv4 address an IPv6-mapped or NAT64 address stands for: it is judged as that. 6to4 and Teredo stand for
    one as well, but are refused whole: nobody serves there."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped:
            return address.ipv4_mapped
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF)
        return IPv6Address(int(address))  # without its zone: a zone makes equal addresses differ
    return address


def is_address(host: str) -> bool:
    """True if it looks like an attempt at an address, for the status only: 403 and not 400."""
    bare = host.strip("[]").partition("%")[0].removesuffix(".").lower()
    last = bare.rpartition(".")[2]
    return bool(_ADDRESS_6.fullmatch(bare)) or last.isdigit() or (last.startswith("0x") and last.isalnum())


def shown(text: str) -> str:
    """What a stranger wrote, fit for a header, an event and a terminal."""
    kept = "".join(c if "!" <= c <= "~" else "?" for c in text[:253])
    return kept or "?"
