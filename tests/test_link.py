"""The lines to init: what is greeted, what is refused, how the stream and the answers stay apart, and a dead spool."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator.errors import LinkLost, LinkRefused
from orchestrator.link import DeadSpool, ExecExit, ExecOutput, ExecStarted, OwnerLink, ViewerLink
from orchestrator.sandbox import Duplex
from sandbox_init.frames import Decoder, Frame, encode


class Peer:
    """The other end of a real socket, speaking frames by hand."""

    def __init__(self, duplex: Duplex) -> None:
        self.duplex = duplex
        self.decoder = Decoder()
        self.heard: list[Frame] = []

    async def hear(self) -> Frame:
        while not self.heard:
            data = await self.duplex.reader.read(65536)
            assert data, "the link closed the line"
            self.heard.extend(self.decoder.feed(data))
        return self.heard.pop(0)

    def say(self, *frames: Frame) -> None:
        self.duplex.writer.write(b"".join(encode(frame) for frame in frames))


@pytest.fixture
async def ends() -> AsyncIterator[tuple[Duplex, Peer]]:
    ours, theirs = socket.socketpair()
    near = Duplex(*await asyncio.open_unix_connection(sock=ours))
    far = Duplex(*await asyncio.open_unix_connection(sock=theirs))
    yield near, Peer(far)
    await near.close()
    await far.close()


HELLO = Frame("hello", {"protocol": 1, "sandbox_id": "sbx_x", "state": "idle", "last_src": 2, "accepted_n": 4})


async def greeted(near: Duplex, peer: Peer, after: int = 0) -> tuple[OwnerLink, asyncio.Event]:
    changed = asyncio.Event()
    opening = asyncio.create_task(OwnerLink.open(near, epoch=7, after=after, changed=changed))
    hello = await peer.hear()
    assert hello.fields == {"protocol": 1, "role": "owner", "epoch": 7, "after": after}
    peer.say(HELLO)
    return await opening, changed


async def until(changed: asyncio.Event, link: OwnerLink, frames: int) -> list[Frame]:
    taken: list[Frame] = []
    while len(taken) < frames:
        await changed.wait()
        changed.clear()
        taken += link.take(max_frames=100, max_bytes=1 << 30)
    return taken


async def test_owner_greets_and_takes_the_stream_in_order(ends: tuple[Duplex, Peer]) -> None:
    near, peer = ends
    link, changed = await greeted(near, peer)
    assert link.hello.accepted_n == 4
    spooled = [Frame("output", {"stream": "stdout"}, b"%d" % n, src=n, time_ms=n) for n in range(1, 6)]
    peer.say(Frame("gap", {"oldest_src": 1}), *spooled)
    taken = await until(changed, link, 6)
    assert taken[0].verb == "gap"
    assert taken[1:] == spooled
    await link.close()


async def test_take_keeps_to_its_bounds(ends: tuple[Duplex, Peer]) -> None:
    near, peer = ends
    link, changed = await greeted(near, peer)
    peer.say(*[Frame("output", {"stream": "stdout"}, b"x" * 100, src=n) for n in range(1, 11)])
    got: list[int] = []
    while len(got) < 10:
        part = link.take(max_frames=4, max_bytes=250)
        assert len(part) <= 2
        got += [frame.src for frame in part]
        if not part:
            await changed.wait()
            changed.clear()
    assert got == list(range(1, 11))
    await link.close()


async def test_an_answer_is_heard_behind_a_stream_nobody_takes(ends: tuple[Duplex, Peer]) -> None:
    near, peer = ends
    link, _ = await greeted(near, peer)
    asking = asyncio.create_task(link.quiesce())
    assert (await peer.hear()).verb == "quiesce"
    for n in range(1, 13):  # 12 MiB: more than the link lets in when nobody asks
        peer.say(Frame("output", {"stream": "stdout"}, b"x" * (1 << 20), src=n))
    peer.say(Frame("quiesced", {"src": 12, "inbox": 0}))
    assert (await asking).fields["src"] == 12
    assert len(link.take(max_frames=100, max_bytes=1 << 30)) == 12
    await link.close()


async def test_refusals_that_close_and_refusals_that_do_not(ends: tuple[Duplex, Peer]) -> None:
    near, peer = ends
    link, changed = await greeted(near, peer)
    peer.say(Frame("refused", {"code": "out_of_order", "expected": 5, "why": "5 comes first"}))
    while not link.refusals:
        await changed.wait()
        changed.clear()
    assert link.refusals[0].fields["expected"] == 5
    peer.say(Frame("refused", {"code": "superseded", "epoch": 8}))
    with pytest.raises(LinkRefused) as refused:
        await link.quiesce()
    assert refused.value.data["why"] == "superseded"
    assert link.lost is refused.value
    await link.close()


async def test_a_broken_line_fails_whoever_waits_for_an_answer(ends: tuple[Duplex, Peer]) -> None:
    near, peer = ends
    link, _ = await greeted(near, peer)
    asking = asyncio.create_task(link.stat())
    assert (await peer.hear()).verb == "stat"
    await peer.duplex.close()
    with pytest.raises(LinkLost):
        await asking
    with pytest.raises(LinkLost):
        await link.stat()
    await link.close()


async def test_a_stale_epoch_is_refused_at_the_greeting(ends: tuple[Duplex, Peer]) -> None:
    near, peer = ends
    opening = asyncio.create_task(OwnerLink.open(near, epoch=7, after=0, changed=asyncio.Event()))
    await peer.hear()
    peer.say(Frame("refused", {"code": "stale_epoch", "epoch": 9}))
    with pytest.raises(LinkRefused) as refused:
        await opening
    assert refused.value.data["why"] == "stale_epoch"


async def test_a_viewer_runs_one_command(ends: tuple[Duplex, Peer]) -> None:
    near, peer = ends
    opening = asyncio.create_task(ViewerLink.open(near))
    assert (await peer.hear()).fields["role"] == "viewer"
    peer.say(HELLO)
    async with await opening as link:
        running = link.exec(["id"], env={"A": "b"}, timeout_s=3)
        first = asyncio.ensure_future(anext(running))
        asked = await peer.hear()
        assert asked.fields["argv"] == ["id"] and asked.fields["timeout_s"] == 3
        peer.say(
            Frame("exec_started", {"id": "exec", "pid": 9}),
            Frame("exec_output", {"id": "exec", "stream": "stderr"}, b"\xff"),
            Frame("exec_exit", {"id": "exec", "code": 3}),
        )
        assert await first == ExecStarted(9)
        assert [event async for event in running] == [ExecOutput("stderr", b"\xff"), ExecExit(3, None)]


def write(folder: Path, *frames: Frame, tail: bytes = b"") -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{frames[0].src:020d}.frames").write_bytes(b"".join(encode(frame) for frame in frames) + tail)


def out(src: int) -> Frame:
    return Frame("output", {"stream": "stdout"}, b"line %d\n" % src, src=src, time_ms=src)


@pytest.mark.parametrize("tail", [b"", encode(out(5))[:-3], b"\0" * 4096])
def test_a_dead_spool_tells_what_is_whole(tmp_path: Path, tail: bytes) -> None:
    write(tmp_path / "spool", Frame("started", {"pid": 3}, src=1), out(2))
    write(tmp_path / "spool", out(3), out(4), tail=tail)
    spool = DeadSpool(tmp_path / "spool")
    assert [frame.src for frame in spool.frames(0)] == [1, 2, 3, 4]
    assert [frame.src for frame in spool.frames(2)] == [3, 4]
    assert list(spool.frames(4)) == []
    assert spool.started()


def test_a_dead_spool_says_what_is_missing(tmp_path: Path) -> None:
    write(tmp_path / "spool", out(30), out(31))
    spool = DeadSpool(tmp_path / "spool")
    frames = list(spool.frames(7))
    assert frames[0] == Frame("gap", {"oldest_src": 30})
    assert [frame.src for frame in frames[1:]] == [30, 31]
    assert spool.started()


def test_no_spool_is_an_empty_one(tmp_path: Path) -> None:
    spool = DeadSpool(tmp_path / "nothing")
    assert list(spool.frames(0)) == []
    assert not spool.started()
