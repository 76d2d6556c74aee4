"""A small internet of a test's own: two network namespaces joined by one cable, real servers in the one, whoever is
under test in the other. No packet leaves; nothing of it is left behind.

`outside` has the documentation addresses 203.0.113.x (and one that is public in name, OUTSIDE_PUBLIC) with every
server of `internet_servers.py`. `inside` has as its own all the addresses nobody may get to: a trap listens on them,
so that "no connection was made" is seen, not supposed. Its resolver is the DNS server outside, by real resolv.conf.
"""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.place import until

SERVERS = Path(__file__).parent / "internet_servers.py"
OUTSIDE = ("203.0.113.53", "203.0.113.10", "203.0.113.11")
OUTSIDE_PUBLIC = "93.184.215.14"  # in this namespace only
GATEWAY = "203.0.113.1"  # the inside's end of the cable
#: The inside's own: reaching any of them would be an escape.
TRAPPED = (
    "127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "100.100.100.200", "169.254.169.254",
    "198.18.0.1", "8.8.4.4", "::1", "fd00:ec2::254", "fd12::1",
)  # fmt: skip

#: What the DNS server outside says. The n-th question gets the n-th answer, the last one stays.
NAMES: dict[str, Any] = {
    "ok.test": {"A": [["203.0.113.10"]]},
    "other.test": {"A": [["203.0.113.11"]]},
    "a.wild.test": {"A": [["203.0.113.10"]]},
    "public.test": {"A": [["93.184.215.14"]]},
    "rebind-asyncio.test": {"A": [["203.0.113.10"], ["127.0.0.1"]]},
    "rebind-uvloop.test": {"A": [["203.0.113.10"], ["127.0.0.1"]]},
    "mixed.test": {"A": [["203.0.113.10", "127.0.0.1"]]},
    "split.test": {"A": [["203.0.113.10"]], "AAAA": [["::1"]]},
    "loop.test": {"A": [["127.0.0.1"]]},
    "loop6.test": {"AAAA": [["::1"]]},
    "mapped.test": {"AAAA": [["::ffff:127.0.0.1"]]},
    "mappedmeta.test": {"AAAA": [["::ffff:169.254.169.254"]]},
    "nat64.test": {"AAAA": [["64:ff9b::7f00:1"]]},
    "sixtofour.test": {"AAAA": [["2002:7f00:1::1"]]},
    "teredo.test": {"AAAA": [["2001:0:4136:e378:8000:63bf:80ff:fffe"]]},
    "compat.test": {"AAAA": [["::7f00:1"]]},
    "zero.test": {"A": [["0.0.0.0"]]},
    "meta.test": {"A": [["169.254.169.254"]]},
    "meta6.test": {"AAAA": [["fd00:ec2::254"]]},
    "alibaba.test": {"A": [["100.100.100.200"]]},
    "ten.test": {"A": [["10.0.0.1"]]},
    "oneseventwo.test": {"A": [["172.16.0.1"]]},
    "home.test": {"A": [["192.168.1.1"]]},
    "cgnat.test": {"A": [["100.64.0.1"]]},
    "bench.test": {"A": [["198.18.0.1"]]},
    "ula.test": {"AAAA": [["fd12::1"]]},
    "multicast.test": {"A": [["224.0.0.1"]]},
    "broadcast.test": {"A": [["255.255.255.255"]]},
    "own.test": {"A": [["8.8.4.4"]]},  # public, and this host's own
    "empty.test": {},
    "silent.test": {"silent": True},
    **{f"n{n}.silent.test": {"silent": True} for n in range(12)},
}
_ASKED = itertools.count()


class Running:
    """A process in a namespace that prints JSON lines; `said` has them all so far."""

    def __init__(self, namespace: str, command: Sequence[str], *, cwd: Path | None = None) -> None:
        self.said: list[dict[str, Any]] = []
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", namespace, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=cwd,
        )
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()
        self.wait(ready=True)

    def tell(self, **what: Any) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()

    def wait(self, **what: Any) -> dict[str, Any]:
        """The first line that has all of `what`."""

        def found() -> dict[str, Any] | None:
            return next((line for line in list(self.said) if what.items() <= line.items()), None)

        def either() -> dict[str, Any] | None:
            assert found() or self.process.poll() is None, f"it ended with {self.process.returncode}"
            return found()

        got: dict[str, Any] = until(either, f"a line with {what}")
        return got

    def settled(self) -> list[dict[str, Any]]:
        """All it said of what happened until now."""
        number = next(_ASKED)
        self.tell(ask=number)
        self.wait(asked=number)
        return list(self.said)

    def having(self, key: str) -> list[dict[str, Any]]:
        """Those lines of `settled` that have it."""
        return [line for line in self.settled() if key in line]

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reading.join()
        self.process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.said.append(json.loads(line))


class Internet:
    """`names`: what the DNS server says, as in internet_servers.py. `folder`: for its certificate."""

    def __init__(self, folder: Path, names: dict[str, Any] = NAMES) -> None:
        own = uuid.uuid4().hex[:8]
        self.inside, self.outside = f"crl-{own}-in", f"crl-{own}-out"
        self.resolver = Path("/etc/netns") / self.inside
        self.certificate = folder / "certificate.pem"
        self._running: list[Running] = []
        try:
            self._cable(own)
            self._certify(names)
            self.resolver.mkdir(parents=True)
            (self.resolver / "resolv.conf").write_text(f"nameserver {OUTSIDE[0]}\noptions timeout:1 attempts:1\n")
            addresses = [*OUTSIDE, OUTSIDE_PUBLIC]
            self.servers = self.run(self.outside, addresses=addresses, names=names, certificate=str(self.certificate))
            self.trap = self.run(self.inside, addresses=[*TRAPPED, GATEWAY], names={})
        except BaseException:
            self.close()
            raise

    def run(self, namespace: str, **plan: Any) -> Running:
        return self.start(namespace, [sys.executable, str(SERVERS), json.dumps(plan)])

    def start(self, namespace: str, command: Sequence[str], *, cwd: Path | None = None) -> Running:
        """A process that ends with this internet at the latest."""
        running = Running(namespace, command, cwd=cwd)
        self._running.append(running)
        return running

    def entering(self) -> tuple[str, ...]:
        """Put before a command, it runs inside, with that resolver. `ip netns exec` would hide the cgroups."""
        bound = f"mount --bind {self.resolver}/resolv.conf /etc/resolv.conf"
        enter = ("nsenter", f"--net=/run/netns/{self.inside}", "unshare", "--mount")
        return (*enter, "sh", "-c", f'{bound} && exec "$@"', "sh")

    def close(self) -> None:
        for running in reversed(self._running):
            running.close()
        for namespace in (self.inside, self.outside):
            subprocess.run(["ip", "netns", "del", namespace], stderr=subprocess.DEVNULL, check=False)
        shutil.rmtree(self.resolver, ignore_errors=True)

    def _cable(self, own: str) -> None:
        for namespace in (self.inside, self.outside):
            _ip("netns", "add", namespace)
            _ip("-n", namespace, "link", "set", "lo", "up")
        ends = {self.inside: f"crl{own}i", self.outside: f"crl{own}o"}
        _ip("link", "add", ends[self.inside], "netns", self.inside, "type", "veth",
            "peer", "name", ends[self.outside], "netns", self.outside)  # fmt: skip
        for namespace, end in ends.items():
            _ip("-n", namespace, "link", "set", end, "up")
        _ip("-n", self.inside, "addr", "add", f"{GATEWAY}/24", "dev", ends[self.inside])
        for address in OUTSIDE:
            _ip("-n", self.outside, "addr", "add", f"{address}/24", "dev", ends[self.outside])
        _ip("-n", self.outside, "addr", "add", f"{OUTSIDE_PUBLIC}/32", "dev", "lo")
        _ip("-n", self.inside, "route", "add", f"{OUTSIDE_PUBLIC}/32", "via", OUTSIDE[1])
        for address in TRAPPED:
            if address not in ("127.0.0.1", "::1"):
                _ip("-n", self.inside, "addr", "add", address, "dev", "lo", *(("nodad",) if ":" in address else ()))

    def _certify(self, names: dict[str, Any]) -> None:
        made = subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-days", "2", "-subj", "/CN=carrel test", "-addext",
             "subjectAltName=" + ",".join(f"DNS:{name}" for name in names), "-keyout", "-", "-out", "-"],
            check=True, capture_output=True,
        )  # fmt: skip
        self.certificate.write_bytes(made.stdout)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
