"""What the port `orchestrator.streams.Streams` promises, on every implementation: here, Redis on a real server.

The protocol's own rules, as HTTP sees them, are judged by its public suite (tests/conformance); here is what that
cannot see: concurrent writers, repeated calls, lost lines, killed servers, what is left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orchestrator.clock import to_ms
from orchestrator.errors import (
    BadInput,
    CarrelError,
    Closed,
    Conflict,
    Fenced,
    Gone,
    NotFound,
    Resend,
    StoreUnavailable,
    TooMany,
)
from orchestrator.events import Cursor
from orchestrator.stores import embedded
from orchestrator.stores.redis import Keys, RedisStreams, Server
from orchestrator.streams import (
    APPEND_BYTES,
    FORK_DEPTH,
    START,
    Chunk,
    Fork,
    NewStream,
    Producer,
    StreamName,
    Streams,
    Written,
)

TEXT = NewStream("text/plain")


def named(path: str, tenant: str = "default") -> StreamName:
    return StreamName(tenant, path)


@pytest.fixture
async def server(redis_url: str) -> AsyncIterator[Server]:
    made = Server(redis_url)
    yield made
    await made.aclose()


@pytest.fixture
async def streams(server: Server, installation: str) -> AsyncIterator[RedisStreams]:
    made = RedisStreams(server, Keys(installation))
    yield made
    await made.aclose()


async def content(streams: Streams, name: StreamName, at: Cursor | None = START, *, max_bytes: int = 1 << 20) -> bytes:
    """Everything from `at` to the tail, chunk by chunk."""
    got = b""
    while True:
        chunk = await streams.read(name, at, max_bytes=max_bytes)
        got += b"".join(chunk.bodies)
        if chunk.up_to_date:
            return got
        assert chunk.bodies
        at = chunk.next


async def keys_of(server: Server, installation: str) -> set[str]:
    """The streams' keys that stand for a stream, without the counters."""
    prefix = Keys(installation).prefix + "stream:"
    found, cursor = set(), b"0"
    while True:
        cursor, names = await server.ask("SCAN", cursor, "MATCH", prefix + "*", "COUNT", 1000)
        found |= {name.decode().removeprefix(prefix) for name in names}
        if cursor == b"0":
            return found - {"bytes", "generations"}


async def refused(kind: type[CarrelError], call: Awaitable[object]) -> CarrelError:
    with pytest.raises(kind) as refusal:
        await call
    assert type(refusal.value) is kind
    assert kind is not Gone or refusal.value.data["remedy"]
    return refusal.value


async def test_what_is_appended_is_read_from_any_offset_it_ever_gave(streams: Streams) -> None:
    name = named("a/b c/ü")
    made, new = await streams.create(name, replace(TEXT, body=b"one "))
    assert new and made.content_type == "text/plain" and not made.closed
    offsets = [made.tail]
    for word in (b"two ", b"three ", bytes(range(256))):
        offsets.append((await streams.append(name, word, content_type="TEXT/PLAIN; charset=utf-8")).offset)
    assert sorted({str(offset) for offset in offsets}) == [str(offset) for offset in offsets]
    whole = b"one two three " + bytes(range(256))
    assert await content(streams, name) == whole
    assert [await content(streams, name, at) for at in offsets] == [
        b"two three " + bytes(range(256)),
        b"three " + bytes(range(256)),
        bytes(range(256)),
        b"",
    ]
    assert await content(streams, name, None) == b""
    assert await content(streams, name, max_bytes=1) == whole
    assert (await streams.look(name)).tail == offsets[-1]


async def test_a_chunk_is_bounded_whatever_the_appends_are_like(streams: Streams) -> None:
    name = named("s")
    await streams.create(name, NewStream())
    sizes = [1] * 300 + [70_000] * 5 + [200_000] + [1] * 50
    for size in sizes:
        await streams.append(name, b"x" * size, content_type="application/octet-stream")
    at, got = START, []
    while True:
        chunk = await streams.read(name, at, max_bytes=100_000)
        assert sum(len(body) for body in chunk.bodies[:-1]) < 100_000
        got += [len(body) for body in chunk.bodies]
        at = chunk.next
        if chunk.up_to_date:
            break
    assert got == sizes


async def test_creating_twice_is_creating_once(streams: Streams) -> None:
    name = named("s")
    wanted = NewStream("text/plain; charset=utf-8", ttl_s=3600, body=b"first")
    made, new = await streams.create(name, wanted)
    again, repeated = await streams.create(name, replace(wanted, content_type="Text/Plain"))
    assert (new, repeated) == (True, False) and again.tail == made.tail
    assert await content(streams, name) == b"first"
    for other in (
        replace(wanted, content_type="text/html"),
        replace(wanted, ttl_s=3601),
        replace(wanted, ttl_s=None),
        replace(wanted, closed=True),
        NewStream(),
    ):
        await refused(Conflict, streams.create(name, other))
    assert (await streams.look(name)).ttl_s == 3600


async def test_tenants_do_not_see_each_other(streams: Streams) -> None:
    await streams.create(named("s", "a"), replace(TEXT, body=b"secret"))
    await streams.create(named("b:s", "a"), replace(TEXT, body=b"secret"))
    await refused(NotFound, streams.look(named("s", "b")))
    await refused(NotFound, streams.look(named("s", "a:b")))
    await refused(NotFound, streams.create(named("mine", "b"), NewStream(fork=Fork(named("s", "b")))))
    _, new = await streams.create(named("s", "b"), TEXT)
    assert new


@pytest.mark.parametrize("path", ["", "x" * 513, "ü" * 257, "a\nb", "a\x00", "a\x7f", "\ud800"])
def test_a_name_that_cannot_be_one(path: str) -> None:
    with pytest.raises(BadInput):
        named(path)


async def test_concurrent_writers_lose_and_double_nothing(streams: Streams, server: Server, installation: str) -> None:
    name = named("s")
    await streams.create(name, TEXT)
    second = RedisStreams(server, Keys(installation))  # as another process would

    async def write(through: Streams, writer: int) -> None:
        for n in range(40):
            await through.append(name, f"{writer}:{n}\n".encode(), content_type="text/plain")

    await asyncio.gather(*(write(through, i) for i, through in enumerate([streams, second] * 4)))
    lines = (await content(streams, name)).decode().splitlines()
    assert len(lines) == 320
    for writer in range(8):
        assert [line for line in lines if line.startswith(f"{writer}:")] == [f"{writer}:{n}" for n in range(40)]


async def test_stream_seq_lets_each_value_through_once_and_only_upwards(streams: Streams) -> None:
    name = named("s")
    await streams.create(name, TEXT)

    async def write(value: str) -> str | None:
        try:
            await streams.append(name, f"{value}\n".encode(), content_type="text/plain", stream_seq=value)
        except Conflict:
            return None
        return value

    values = [f"{n:03}" for n in range(60)]
    told = await asyncio.gather(*(write(value) for value in values * 3))
    accepted = [value for value in told if value is not None]
    written = (await content(streams, name)).decode().split()
    assert written == sorted(set(accepted)) and len(accepted) == len(written) and written[-1] == "059"


@pytest.mark.parametrize(
    ("before", "after", "accepted"),
    [("2", "10", False), ("09", "10", True), ("a", "B", False), ("a", "a", False), ("a", "aa", True), ("Z", "é", True)],
)
async def test_stream_seq_goes_by_bytes_not_by_a_locale(
    streams: Streams, before: str, after: str, accepted: bool
) -> None:
    name = named("s")
    await streams.create(name, TEXT)
    await streams.append(name, b"x", content_type="text/plain", stream_seq=before)
    second = streams.append(name, b"y", content_type="text/plain", stream_seq=after)
    if accepted:
        await second
    else:
        await refused(Conflict, second)
    assert await content(streams, name) == (b"xy" if accepted else b"x")


async def test_a_producers_repeats_count_once_also_when_they_race(streams: Streams) -> None:
    name = named("s")
    await streams.create(name, TEXT)

    def append(seq: int) -> Awaitable[Written]:
        return streams.append(name, b"%d " % seq, content_type="text/plain", producer=Producer("p", 0, seq))

    for seq in range(20):
        told = await asyncio.gather(*(append(seq) for _ in range(5)))
        assert sorted(written.repeated for written in told) == [False] + [True] * 4
        assert {written.producer_seq for written in told} == {seq}
    late = await streams.append(name, b"?", content_type="text/plain", producer=Producer("p", 0, 3))
    assert late.repeated and late.producer_seq == 19
    assert await content(streams, name) == b"".join(b"%d " % seq for seq in range(20))


async def test_a_producers_gap_and_epochs(streams: Streams) -> None:
    name = named("s")
    await streams.create(name, TEXT)

    def append(epoch: int, seq: int, who: str = "p") -> Awaitable[Written]:
        return streams.append(
            name, f"{who}{epoch}.{seq} ".encode(), content_type="text/plain", producer=Producer(who, epoch, seq)
        )

    gap = await refused(Resend, append(0, 1))
    assert gap.data["src"] == 0
    await append(3, 0)
    gap = await refused(Resend, append(3, 2))
    assert gap.data["src"] == 1
    stale = await refused(Fenced, append(2, 0))
    assert stale.data["epoch"] == 3
    await refused(BadInput, append(4, 1))
    await append(0, 0, "q")
    await append(2**53 - 1, 0)
    stale = await refused(Fenced, append(3, 1))
    assert stale.data["epoch"] == 2**53 - 1
    assert await content(streams, name) == b"p3.0 q0.0 p9007199254740991.0 "


async def test_the_end_is_for_ever_and_told_once_the_tail_is_reached(streams: Streams) -> None:
    name = named("s")
    await streams.create(name, replace(TEXT, body=b"a" * 10))
    await streams.append(name, b"b" * 10, content_type="text/plain")
    ended = await streams.append(name, b"end", content_type="text/plain", close=True, producer=Producer("p", 0, 0))
    assert ended.closed
    first = await streams.read(name, START, max_bytes=5)
    assert not first.closed and not first.up_to_date and first.stream.closed
    last = await streams.read(name, ended.offset)
    assert last.closed and last.bodies == () and last.next == ended.offset
    assert (await streams.append(name, b"", close=True)).closed
    repeat = await streams.append(name, b"other", content_type="text/plain", close=True, producer=Producer("p", 0, 0))
    assert repeat.repeated and repeat.closed
    for call in (
        streams.append(name, b"x", content_type="text/plain"),
        streams.append(name, b"x", content_type="image/png", close=True),
        streams.append(name, b"", close=True, producer=Producer("p", 0, 1)),
    ):
        refusal = await refused(Closed, call)
        assert refusal.data["tail"] == str(ended.offset)
    assert await content(streams, name) == b"a" * 10 + b"b" * 10 + b"end"


async def follow_all(streams: Streams, name: StreamName, at: Cursor | None = START) -> list[Chunk]:
    async with aclosing(streams.follow(name, at)) as chunks:  # type: ignore[type-var]
        return [chunk async for chunk in chunks]


async def test_followers_see_everything_once_in_order_to_the_end(streams: RedisStreams) -> None:
    name = named("s")
    await streams.create(name, replace(TEXT, body=b"0 "))
    followers = [asyncio.ensure_future(follow_all(streams, name)) for _ in range(20)]
    for n in range(1, 200):
        await streams.append(name, b"%d " % n, content_type="text/plain", close=n == 199)
    expected = b"".join(b"%d " % n for n in range(200))
    for chunks in await asyncio.gather(*followers):
        assert b"".join(itertools.chain.from_iterable(chunk.bodies for chunk in chunks)) == expected
        assert [chunk.closed for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
        assert all(a.next == b.start for a, b in itertools.pairwise(chunks))
    assert streams.readers == 0


async def test_one_reader_however_many_follow(streams: RedisStreams) -> None:
    name = named("s")
    await streams.create(name, TEXT)
    follows = [streams.follow(name, None) for _ in range(50)]
    assert all(chunk.up_to_date for chunk in [await anext(chunks) for chunks in follows])
    waiting = [asyncio.ensure_future(anext(chunks)) for chunks in follows]
    await until(lambda: streams.readers == 1)
    await streams.append(name, b"x", content_type="text/plain")
    assert [chunk.bodies for chunk in await asyncio.gather(*waiting)] == [(b"x",)] * 50
    for chunks in follows:
        await chunks.aclose()  # type: ignore[attr-defined]
    assert streams.readers == 0


async def test_a_slow_follower_gets_what_the_ring_no_longer_holds(streams: RedisStreams) -> None:
    name = named("s")
    await streams.create(name, NewStream())
    slow, quick = streams.follow(name, START), streams.follow(name, START)
    await anext(slow)
    await anext(quick)
    ahead = asyncio.ensure_future(anext(quick))
    for n in range(8):
        await streams.append(name, bytes([n]) * 400_000, content_type="application/octet-stream", close=n == 7)
    await ahead
    got = b""
    async for chunk in slow:
        got += b"".join(chunk.bodies)
    assert got == b"".join(bytes([n]) * 400_000 for n in range(8))
    await quick.aclose()  # type: ignore[attr-defined]


async def test_removing_a_stream_ends_its_followers_and_leaves_nothing(
    streams: RedisStreams, server: Server, installation: str
) -> None:
    name = named("s")
    other = RedisStreams(server, Keys(installation))  # as another process would
    made, _ = await streams.create(name, replace(TEXT, body=b"old"))
    await streams.append(name, b"x", content_type="text/plain", producer=Producer("p", 0, 0))
    await streams.append(name, b"x", content_type="text/plain")
    following = asyncio.ensure_future(follow_all(streams, name))
    await until(lambda: streams.readers == 1)
    await other.delete(name)
    await refused(NotFound, following)
    for call in (streams.look(name), streams.read(name, START), streams.append(name, b"x"), streams.delete(name)):
        await refused(NotFound, call)
    # The entries' key holds only the marker that wakes readers, and goes by itself.
    left = await keys_of(server, installation)
    assert left <= {f"{made.tail.generation}:entries"}
    again, new = await streams.create(name, replace(TEXT, body=b"new"))
    assert new and await content(streams, name) == b"new"
    await refused(Gone, streams.read(name, made.tail))
    assert str(again.tail) > str(made.tail)


async def test_a_name_gets_no_offset_of_another_stream(streams: Streams) -> None:
    await streams.create(named("a"), replace(TEXT, body=b"aaa"))
    made, _ = await streams.create(named("b"), replace(TEXT, body=b"bbb"))
    await refused(Gone, streams.read(named("a"), made.tail))
    await refused(BadInput, streams.read(named("b"), Cursor(made.tail.generation, 2)))


async def test_a_fork_shares_the_past_and_not_the_future(streams: RedisStreams) -> None:
    source, fork = named("source"), named("fork")
    made, _ = await streams.create(source, replace(TEXT, body=b"A"))
    tail = (await streams.append(source, b"B", content_type="text/plain", close=True)).offset
    forked, new = await streams.create(fork, NewStream(fork=Fork(source), body=b""))
    assert new and not forked.closed and forked.content_type == "text/plain" and forked.tail == tail
    early, _ = await streams.create(named("early"), NewStream(fork=Fork(source, made.tail), body=b"c"))
    nothing, _ = await streams.create(named("nothing"), NewStream(fork=Fork(source, START)))
    own = await streams.append(fork, b"C", content_type="text/plain")
    assert str(own.offset) > str(tail)
    deep, _ = await streams.create(named("deep"), NewStream(fork=Fork(fork, made.tail), body=b"d"))
    assert await content(streams, fork, max_bytes=1) == b"ABC"
    assert await content(streams, fork, made.tail) == b"BC"
    assert await content(streams, fork, tail) == b"C"
    assert await content(streams, named("early")) == b"Ac"
    assert await content(streams, named("nothing")) == b""
    assert await content(streams, named("deep")) == b"Ad"
    assert await content(streams, source) == b"AB"
    assert early.tail.generation != nothing.tail.generation != deep.tail.generation
    await refused(BadInput, streams.read(named("early"), tail))
    _, again = await streams.create(fork, NewStream(fork=Fork(source)))
    assert not again


async def test_followers_of_a_fork_get_its_past_then_its_own(streams: Streams) -> None:
    source, fork = named("source"), named("fork")
    await streams.create(source, replace(TEXT, body=b"A"))
    await streams.create(fork, NewStream(fork=Fork(source)))
    following = asyncio.ensure_future(follow_all(streams, fork))
    await streams.append(source, b"not mine", content_type="text/plain")
    await streams.append(fork, b"B", content_type="text/plain")
    await streams.append(fork, b"C", content_type="text/plain", close=True)
    chunks = await following
    assert b"".join(itertools.chain.from_iterable(chunk.bodies for chunk in chunks)) == b"ABC"


@pytest.mark.parametrize(
    ("content_type", "body", "sub_offset", "taken"),
    [("text/plain", b"hello", 3, b"hel"), ("application/json", b'{"a":[1,2]},3,"x,y"', 2, b'{"a":[1,2]},3')],
)
async def test_a_fork_may_begin_inside_an_append(
    streams: Streams, content_type: str, body: bytes, sub_offset: int, taken: bytes
) -> None:
    source = named("source")
    made, _ = await streams.create(source, NewStream(content_type, body=b"0"))
    await streams.append(source, body, content_type=content_type)
    fork = Fork(source, made.tail, sub_offset)
    await streams.create(named("fork"), NewStream(fork=fork, body=b"9"))
    chunk = await streams.read(named("fork"), START)
    assert chunk.bodies == (b"0", taken, b"9")
    _, again = await streams.create(named("fork"), NewStream(fork=fork))
    assert not again
    await refused(Conflict, streams.create(named("fork"), NewStream(fork=replace(fork, sub_offset=1))))
    for wrong in (replace(fork, sub_offset=99), Fork(source, None, 1), Fork(source, Cursor(made.tail.generation, 9))):
        await refused(BadInput, streams.create(named("other"), NewStream(fork=wrong)))


async def test_a_removed_source_lives_as_long_as_a_fork_needs_it(
    streams: Streams, server: Server, installation: str
) -> None:
    a, b, c = named("a"), named("b"), named("c")
    await streams.create(a, replace(TEXT, body=b"A"))
    await streams.create(b, NewStream(fork=Fork(a), body=b"B"))
    await streams.create(c, NewStream(fork=Fork(b), body=b"C"))
    await streams.delete(a)
    await streams.delete(b)
    assert await content(streams, c) == b"ABC"
    for gone in (a, b):
        for call in (streams.look(gone), streams.read(gone, START), streams.append(gone, b"x"), streams.delete(gone)):
            await refused(Gone, call)
        await refused(Conflict, streams.create(gone, TEXT))
        await refused(Conflict, streams.create(named("d"), NewStream(fork=Fork(gone))))
    _, made_again = await streams.create(c, NewStream(fork=Fork(b), body=b"ignored"))
    assert not made_again
    await streams.delete(c)
    for name in (a, b, c):
        await refused(NotFound, streams.look(name))
    left = await keys_of(server, installation)
    assert all(key.endswith(":entries") for key in left)
    assert await server.ask("GET", Keys(installation).prefix + "stream:bytes") == b"0"


async def test_a_refused_fork_holds_nothing(streams: Streams) -> None:
    source = named("source")
    await streams.create(source, replace(TEXT, body=b"A"))
    await refused(Conflict, streams.create(named("f"), NewStream("image/png", fork=Fork(source))))
    await refused(BadInput, streams.create(named("f"), NewStream(fork=Fork(source, Cursor(7, 99)))))
    await streams.delete(source)
    await refused(NotFound, streams.look(source))


async def test_forks_of_forks_have_a_bound(streams: Streams) -> None:
    await streams.create(named("0"), replace(TEXT, body=b"x"))
    for depth in range(FORK_DEPTH):
        await streams.create(named(str(depth + 1)), NewStream(fork=Fork(named(str(depth))), body=b"x"))
    too_deep = NewStream(fork=Fork(named(str(FORK_DEPTH))))
    full = await refused(TooMany, streams.create(named("more"), too_deep))
    assert full.data["limit"] == FORK_DEPTH
    assert await content(streams, named(str(FORK_DEPTH)), max_bytes=1) == b"x" * (FORK_DEPTH + 1)


async def test_a_ttl_counts_from_the_last_read_or_write_and_an_expiry_does_not(
    streams: RedisStreams, server: Server, installation: str
) -> None:
    sliding, fixed = named("sliding"), named("fixed")
    at = datetime.now(UTC) + timedelta(hours=1)
    await streams.create(sliding, NewStream("text/plain", ttl_s=60))
    await streams.create(fixed, NewStream("text/plain", expires_at=at))
    assert (await streams.look(fixed)).expires_at == at.replace(microsecond=round(at.microsecond, -3) % 1_000_000)

    async def due(name: StreamName) -> int:
        moment = (await streams.look(name)).expires_at
        assert moment is not None
        return to_ms(moment)

    async def sooner(name: StreamName) -> int:
        """As if half a minute had passed."""
        prefix = Keys(installation).prefix + "stream:"
        generation = (await streams.look(name)).tail.generation
        moment = await due(name) - 30_000
        await server.ask("HSET", f"{prefix}{generation}", "expires", moment)
        await server.ask("ZADD", f"{prefix}expiry", moment, generation)
        return moment

    for use in (
        lambda name: streams.read(name, None),
        lambda name: streams.append(name, b"x", content_type="text/plain"),
        lambda name: streams.append(name, b"", close=True),
    ):
        for name, slides in ((sliding, True), (fixed, False)):
            before = await sooner(name)
            assert await due(name) == before  # looking is not reading
            await use(name)
            assert (await due(name) > before) is slides


async def test_what_has_expired_is_gone_and_swept_when_others_come(
    streams: RedisStreams, server: Server, installation: str
) -> None:
    long_ago = datetime.now(UTC) - timedelta(seconds=1)
    soon = datetime.now(UTC) + timedelta(seconds=1)
    name = named("s")
    await streams.create(name, NewStream("text/plain", expires_at=soon, body=b"old"))
    following = asyncio.ensure_future(follow_all(streams, name, None))
    await refused(NotFound, following)
    _, new = await streams.create(name, replace(TEXT, body=b"new"))
    assert new and await content(streams, name) == b"new"
    for n in range(20):
        await streams.create(named(f"dead {n}"), NewStream(expires_at=long_ago, body=b"x"))
    for n in range(3):
        await streams.create(named(f"more {n}"), TEXT)
    left = {key for key in await keys_of(server, installation) if not key.endswith(":entries")}
    assert not {key for key in left if "dead" in key}
    # An expired source is kept for its fork, out of reach.
    soon = datetime.now(UTC) + timedelta(seconds=1)
    await streams.create(named("source"), NewStream("text/plain", expires_at=soon, body=b"A"))
    await streams.create(named("fork"), NewStream(ttl_s=3600, fork=Fork(named("source"))))
    # Its waiting reader finds out: removed, but needed by the fork.
    with pytest.raises((NotFound, Gone)):
        await follow_all(streams, named("source"), None)
    await refused(Gone, streams.look(named("source")))
    assert await content(streams, named("fork")) == b"A"


async def test_bounds_are_said(server: Server, installation: str) -> None:
    streams = RedisStreams(server, Keys(installation), total_bytes=1000)
    name = named("s")
    await streams.create(name, NewStream(body=b"x" * 600))
    full = await refused(TooMany, streams.append(name, b"x" * 500, content_type="application/octet-stream"))
    assert full.data["limit"] == 1000
    await refused(TooMany, streams.create(named("t"), NewStream(body=b"x" * 500)))
    await streams.append(name, b"x" * 400, content_type="application/octet-stream")
    await streams.delete(name)
    await streams.create(named("t"), NewStream(body=b"x" * 1000))
    await refused(BadInput, streams.append(named("t"), b"x" * (APPEND_BYTES + 1)))
    await refused(BadInput, streams.append(named("t"), b""))


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.01)


async def test_a_lost_answer_doubles_nothing(server: Server, streams: Streams, redis_url: str) -> None:
    """Lines are cut while appends are under way: the call is sent again, and the script knows it."""
    name = named("s")
    await streams.create(name, TEXT)
    stop = asyncio.Event()

    async def cut() -> None:
        knife = Server(redis_url)
        while not stop.is_set():
            with contextlib.suppress(StoreUnavailable):
                await knife.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await asyncio.sleep(0.002)
        await knife.aclose()

    cutting = asyncio.ensure_future(cut())
    try:
        for n in range(300):
            await streams.append(name, b"%d " % n, content_type="text/plain")
    finally:
        stop.set()
        await cutting
    assert await content(streams, name) == b"".join(b"%d " % n for n in range(300))


@dataclass
class Counting:
    """Appends 0, 1, 2… one after another; `next` is the first that is not acknowledged yet."""

    streams: Streams
    name: StreamName
    next: int = 0

    async def go_on(self) -> None:
        while True:
            await self.streams.append(self.name, b"%d " % self.next, content_type="text/plain")
            self.next += 1


async def test_acknowledged_appends_survive_kill_9_of_the_store(short_dir: Path, installation: str) -> None:
    """The store is killed in the middle of writing and started again, five times: what was acknowledged is there, once,
    in order, and a follower that stayed saw the same."""
    store = embedded.EmbeddedServer(short_dir)
    await store.start()
    watching = asyncio.ensure_future(store.watch())
    server = Server(store.url, patience_s=30)
    streams = RedisStreams(server, Keys(installation))
    name = named("s")
    counting = Counting(streams, name)
    try:
        await streams.create(name, TEXT)
        following = asyncio.ensure_future(follow_all(streams, name))
        writing = asyncio.ensure_future(counting.go_on())
        for _ in range(5):
            await reached(counting, counting.next + 50)
            await killed_and_back(store)
        await reached(counting, counting.next + 50)
        writing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await writing
        await streams.append(name, b"", close=True)
        whole = await content(streams, name)
        numbers = [int(word) for word in whole.split()]
        # The last append was given up while it was under way: it may or may not have arrived.
        assert numbers in (list(range(counting.next)), list(range(counting.next + 1)))
        seen = b"".join(itertools.chain.from_iterable(chunk.bodies for chunk in await following))
        assert seen == whole
    finally:
        await streams.aclose()
        await server.aclose()
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await store.stop()


async def killed_and_back(store: embedded.EmbeddedServer) -> None:
    killed = store.pid
    os.kill(killed, signal.SIGKILL)
    await until(lambda: store.pid != killed)


async def reached(counting: Counting, count: int) -> None:
    await until(lambda: counting.next >= count)
