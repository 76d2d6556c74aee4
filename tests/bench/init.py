"""What init costs, in the real image and without the rest of Carrel: start, memory, a command, output."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import docker
from docker.models.containers import Container

from tests.bench.figures import Figure, Samples
from tests.bench.site import Site
from tests.sandbox_init.boxes import Box, children, make_slot, remove_slot, start

IMAGE = Path(__file__).parents[2] / "sandbox-image"
OUTPUT_BYTES = 256 << 20
# Written by the shell that init then replaces: when a Python that does nothing began, when it had ended, and so the
# moment of init's own exec.
PYTHON = "/usr/bin/python3 -I -S -B"
STAMP = "date +%s%N >> /run/carrel/spool/stamps"
CPU = "read cpu rest < /proc/1/schedstat; echo $cpu > /run/carrel/spool/cpu"
ENTRY = f"{STAMP}; {PYTHON} -c pass; {CPU}; {STAMP}; exec {PYTHON} /usr/lib/carrel/sandbox_init/__main__.py"


class Start(NamedTuple):
    """init from exec to its listening socket, by the clock and by the processor; a Python that does nothing."""

    wall_ms: float
    cpu_ms: float
    python_ms: float


@contextmanager
def container(engine: docker.DockerClient, image: str) -> Iterator[tuple[Box, Container, Start]]:
    """A box, its container, and how it started."""
    slot = make_slot()
    made = None
    try:
        with socket.socket(socket.AF_UNIX) as ready:
            ready.bind(str(slot / "ctl" / "ready.sock"))
            ready.listen(1)
            ready.settimeout(60)
            made = engine.containers.create(
                image,
                entrypoint=["sh", "-c", ENTRY],
                labels={"carrel.test": "init"},
                network_disabled=True,
                read_only=True,
                cap_drop=["ALL"],
                cap_add=["SETUID", "SETGID", "KILL", "SETPCAP"],
                security_opt=["no-new-privileges", "seccomp=" + (IMAGE / "seccomp.json").read_text()],
                tmpfs={"/tmp": "mode=1777", "/run": "mode=755"},
                log_config=docker.types.LogConfig(type="none"),
                volumes={
                    str(slot / "ctl"): {"bind": "/run/carrel/ctl", "mode": "rw"},
                    str(slot / "spool"): {"bind": "/run/carrel/spool", "mode": "rw"},
                    str(slot / "vol"): {"bind": "/slot/vol", "mode": "rw"},
                },
            )
            made.start()
            accepted, _ = ready.accept()
            listening_ns = time.time_ns()
            made.reload()
            box = Box(slot, int(made.attrs["State"]["Pid"]))
            cpu_ns = int(Path(f"/proc/{box.init_pid}/schedstat").read_text().split()[0])
            accepted.close()
        first_ns, began_ns = map(int, (slot / "spool" / "stamps").read_text().split())
        cpu_ns -= int((slot / "spool" / "cpu").read_text())
        yield box, made, Start((listening_ns - began_ns) / 1e6, cpu_ns / 1e6, (began_ns - first_ns) / 1e6)
    finally:
        if made:
            made.remove(force=True)
        remove_slot(slot)


def rss_anon_kb(pid: int) -> float:
    return float(Path(f"/proc/{pid}/status").read_text().split("RssAnon:")[1].split()[0])


def timed_ms(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1000


def one_box(engine: docker.DockerClient, image: str, into: dict[str, list[float]]) -> None:
    """All figures of one fresh box."""
    with (
        container(engine, image) as (box, running, began),
        box.owner(after=0) as owner,
        box.viewer() as viewer,
    ):
        into["start"].append(began.wall_ms)
        into["start_cpu"].append(began.cpu_ms)
        into["python"].append(began.python_ms)
        into["init_kb"].append(rss_anon_kb(box.init_pid))
        into["spawner_kb"].append(rss_anon_kb(children(box.init_pid)[0]))
        into["exec"] += [timed_ms(lambda: viewer.exec("true", cwd="/")) for _ in range(20)]
        into["docker_exec"].append(timed_ms(lambda: running.exec_run("true")))
        began_s = time.perf_counter()
        start(owner, f"head -c {OUTPUT_BYTES} /dev/zero", output="bytes", spool_limit_bytes=2 * OUTPUT_BYTES)
        owner.until_verb("exit")
        into["output"].append(OUTPUT_BYTES / 1e6 / (time.perf_counter() - began_s))


async def init(site: Site, boxes: int = 8) -> list[Figure]:
    """From exec to the listening socket; memory; a command beside the harness; output to a client in Python."""
    got: dict[str, list[float]] = {}
    for name in ("start", "start_cpu", "python", "init_kb", "spawner_kb", "exec", "docker_exec", "output"):
        got[name] = []
    for _ in range(boxes):
        await asyncio.to_thread(one_box, site.engine, site.image, got)
    samples = {name: tuple(values) for name, values in got.items()}
    return [
        Figure(
            "init_start",
            Samples(samples["start"]),
            Samples(samples["python"]),
            "python -c pass",
            "≤ 25 ms exec to socket",
        ),
        Figure("init_start_cpu", Samples(samples["start_cpu"]), note="what a busy machine cannot blur"),
        Figure("init_memory", Samples(samples["init_kb"], "kB RssAnon"), reach="≤ 4096"),
        Figure("spawner_memory", Samples(samples["spawner_kb"], "kB RssAnon")),
        Figure("init_exec", Samples(samples["exec"]), Samples(samples["docker_exec"]), "docker exec"),
        Figure("init_output", Samples(samples["output"], "MB/s", more=True)),
    ]
