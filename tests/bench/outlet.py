"""What the way out of a sandbox costs: one hop through init, there and back; a long answer; memory while many wait."""

from __future__ import annotations

import asyncio
import socket
import threading
import time

import docker

from sandbox_init.outlet import PASSAGES
from tests.bench.figures import Figure, Samples
from tests.bench.init import container, rss_anon_kb
from tests.bench.site import Site
from tests.sandbox_init.boxes import Box, start, wait_for
from tests.sandbox_init.gateways import Gateway

PORT = 7411
ROUNDS = 2000
QUESTION = bytes(200)
ANSWER_BYTES = 500 << 20
STREAM = b"much"


def one_box(engine: docker.DockerClient, image: str, into: dict[str, list[float]]) -> None:
    """All figures of one fresh box."""
    with container(engine, image) as (box, _, _began), box.owner(after=0) as owner:
        start(owner, "exec sleep 1000", outlet_port=PORT)
        owner.until_verb("started")
        into["idle_kb"].append(rss_anon_kb(box.init_pid))
        with Gateway(box.slot) as gateway:
            threading.Thread(target=_serve, args=(gateway,), daemon=True).start()
            for name in ("hop", "stream"):
                with box.dial(PORT) as through, socket.socket(socket.AF_UNIX) as direct:
                    through.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    direct.connect(str(box.slot / "ctl" / "gateway.sock"))
                    for sock, of in ((through, name), (direct, f"{name}_direct")):
                        into[of] += _rounds_ms(sock) if name == "hop" else [_stream_mb_per_s(sock)]
        into["busy_kb"].append(_while_all_wait(box))


def _serve(gateway: Gateway) -> None:
    """Echoes; to STREAM, once, the long answer."""
    while True:
        try:
            worker = gateway.accept()
        except OSError:
            return
        threading.Thread(target=_answer, args=(worker,), daemon=True).start()


def _answer(worker: socket.socket) -> None:
    piece = bytes(1 << 18)
    with worker:
        while said := worker.recv(1 << 16):
            if said == STREAM:
                for _ in range(ANSWER_BYTES // len(piece)):
                    worker.sendall(piece)
                return
            worker.sendall(said)


def _rounds_ms(sock: socket.socket) -> list[float]:
    taken = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        sock.sendall(QUESTION)
        sock.recv(1 << 16)
        taken.append((time.perf_counter() - began) * 1000)
    return taken


def _stream_mb_per_s(sock: socket.socket) -> float:
    room = bytearray(1 << 18)
    began, got = time.perf_counter(), 0
    sock.sendall(STREAM)
    while size := sock.recv_into(room):
        got += size
    assert got == ANSWER_BYTES
    return got / 1e6 / (time.perf_counter() - began)


def _while_all_wait(box: Box) -> float:
    """As many as are let in, each with a request of 64 KiB, and no gateway."""
    clients = [box.dial(PORT) for _ in range(PASSAGES)]
    try:
        for client in clients:
            client.sendall(bytes(1 << 16))
        with box.viewer() as viewer:

            def connections() -> int:
                viewer.send("stat")
                return int(viewer.answer("stat").fields["outlet_connections"])

            wait_for(lambda: connections() == PASSAGES, "all are let in")
        return rss_anon_kb(box.init_pid)
    finally:
        for client in clients:
            client.close()


async def outlet(site: Site, boxes: int = 3) -> list[Figure]:
    """Yardstick: the same programs, connected to the gateway's socket themselves."""
    got: dict[str, list[float]] = {}
    for name in ("idle_kb", "busy_kb", "hop", "hop_direct", "stream", "stream_direct"):
        got[name] = []
    for _ in range(boxes):
        await asyncio.to_thread(one_box, site.engine, site.image, got)
    samples = {name: tuple(values) for name, values in got.items()}
    return [
        Figure("outlet_round", Samples(samples["hop"]), Samples(samples["hop_direct"]), "unix socket"),
        Figure(
            "outlet_stream",
            Samples(samples["stream"], "MB/s", more=True),
            Samples(samples["stream_direct"], "MB/s", more=True),
            "unix socket",
        ),
        Figure("outlet_memory", Samples(samples["idle_kb"], "kB RssAnon"), reach="≤ 4096"),
        Figure("outlet_memory_busy", Samples(samples["busy_kb"], "kB RssAnon"), note=f"{PASSAGES} requests wait"),
    ]
