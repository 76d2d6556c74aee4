"""What goes in and how fast it may come out: messages and their receipts; held back by the limit or the disk."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
from pathlib import Path

import pytest

from tests.sandbox_init.boxes import Box, children, in_namespace, joined, numbers, start, wait_for

pytestmark = pytest.mark.root


def test_messages_arrive_once_in_order_with_receipts(box: Box) -> None:
    with box.owner() as early:
        early.send("message", b"one\n", n=1, id="m1")
        early.send("stat")
        early.answer("stat")
    with box.owner(epoch=2, after=0) as owner:
        assert owner.hello.fields["accepted_n"] == 1 and owner.hello.fields["delivered_n"] == 0
        start(owner, "cat; echo end", stdin_first=b"zero\n")
        for n in (1, 1, 2, 2, 3, 1, 3):
            owner.send("message", {1: b"one\n", 2: b"two\xff\n", 3: b""}[n], n=n, id=f"m{n}")
        owner.send("eof")
        frames = owner.until_verb("exit")
    assert joined(frames, "stdout") == b"zero\none\ntwo\xff\nend\n"
    assert [(f.fields["n"], f.fields["id"]) for f in frames if f.verb == "delivered"] == [
        (1, "m1"),
        (2, "m2"),
        (3, "m3"),
    ]
    assert frames[-1].fields["inbox"] == 3


def test_a_gap_between_messages_is_refused_by_name(box: Box) -> None:
    with box.run("cat") as owner:
        owner.send("message", b"x", n=3, id="m3")
        refused = owner.answer("refused")
    assert (refused.fields["code"], refused.fields["expected"]) == ("out_of_order", 1)


def test_another_attempts_messages_are_not_repeated(box: Box) -> None:
    with box.run("read x; echo $x", inbox_base=7) as owner:
        owner.send("message", b"old\n", n=7, id="m7")
        owner.send("message", b"new\n", n=8, id="m8")
        frames = owner.until_verb("exit")
    assert joined(frames, "stdout") == b"new\n"
    assert [f.fields["n"] for f in frames if f.verb == "delivered"] == [8]


def test_what_the_harness_did_not_read_is_known(box: Box, slot: Path) -> None:
    """It takes one byte more than message 1, then waits: 2 is delivered, not read."""
    ready = slot / "vol" / "state" / "ready"
    with box.run(f"head -c 5 >/dev/null; touch {ready}; while [ -e {ready} ]; do sleep 0.01; done") as owner:
        owner.send("message", b"1234", n=1, id="m1")
        owner.send("message", b"567", n=2, id="m2")
        wait_for(ready.exists, "the harness has read")
        owner.send("quiesce", id="q")
        quiesced = owner.answer("quiesced").fields
        assert (quiesced["inbox"], quiesced["unread_stdin_bytes"]) == (1, 2)
        owner.send("eof")
        owner.send("quiesce", id="q2")
        assert owner.answer("quiesced").fields["inbox"] == 1
        ready.unlink()
        assert owner.answer("exit").fields["inbox"] == 1


def test_a_full_inbox_is_refused_and_accepted_later(box: Box, slot: Path) -> None:
    gate = slot / "vol" / "state" / "gate"
    with box.run(f"until [ -e {gate} ]; do sleep 0.01; done; sha256sum") as owner:
        block = bytes(range(256)) * 4000
        n = 0
        while True:
            owner.send("message", block, n=n + 1, id=f"m{n + 1}")
            owner.send("stat")
            reply = owner.until(lambda f: f.verb in ("stat", "refused"))[-1]
            if reply.verb == "refused":
                assert reply.fields["code"] == "inbox_full" and reply.fields["n"] == n + 1
                break
            n += 1
        assert n == 8
        gate.touch()
        owner.until(lambda f: f.verb == "delivered" and f.fields["n"] == n)
        owner.send("message", block, n=n + 1, id="last")
        owner.send("eof")
        frames = owner.until_verb("exit")
    digest = hashlib.sha256(block * (n + 1)).hexdigest().encode()
    assert joined(frames, "stdout").startswith(digest)


@pytest.mark.parametrize(("stdin", "code"), [("none", "stdin_none"), ("text", "stdin_closed")])
def test_a_message_nobody_can_read_is_refused(box: Box, stdin: str, code: str) -> None:
    with box.run("exec <&-; sleep 60", stdin=stdin) as owner:
        owner.until_verb("started")
        if stdin == "text":
            owner.send("eof")
        owner.send("message", b"x", n=1, id="m")
        assert owner.answer("refused").fields["code"] == code


def test_messages_to_a_closed_stdin_are_reported_undelivered(box: Box) -> None:
    with box.run("exec <&-; echo closed; sleep 60") as owner:
        owner.until(lambda f: f.payload == b"closed\n")
        owner.send("message", b"x", n=1, id="m")
        note = owner.answer("note")
    assert note.fields == {"what": "stdin_closed", "undelivered_from": 1}


def test_stdin_none_is_dev_null(box: Box) -> None:
    with box.run("read x; exit $(($? + 40))", stdin="none") as owner:
        assert owner.answer("exit").fields["code"] == 41


# -- held back -------------------------------------------------------------------------------------------------------


def test_it_is_held_back_at_the_limit_and_loses_nothing(box: Box, slot: Path) -> None:
    alive = slot / "vol" / "state" / "alive"
    block = "head -c 100000 /dev/zero | tr '\\0' $((i % 10))"
    script = f"for i in $(seq 1 40); do {block}; echo $i > {alive}.new; mv {alive}.new {alive}; done; exit 3"
    with box.run(script, spool_limit_bytes=1 << 20, output="bytes") as owner:
        frames = owner.until_verb("held")
        assert frames[-1].fields["why"] == "limit"
        owner.send("stat")
        rest = owner.until_verb("stat")
        stat = rest[-1].fields
        frames += [frame for frame in rest if frame.src]
        assert 1 << 20 < stat["unacked_bytes"] < (1 << 20) + 500_000
        at = int(alive.read_text())
        assert at < 20
        with box.viewer() as viewer:  # held: nothing moves, everything answers
            assert viewer.hello.fields["held"] is True
            assert viewer.exec("echo", "alive")[0] == b"alive\n"
        assert int(alive.read_text()) <= at + 3  # 256 KiB of pipe, then it blocks
        owner.send("ack", src=max(frame.src for frame in frames))
        while frames[-1].verb != "exit":
            frames.append(owner.next())
            if frames[-1].src % 7 == 0 and frames[-1].src:
                owner.send("ack", src=frames[-1].src)
            elif frames[-1].verb == "held":
                owner.send("ack", src=max(frame.src for frame in frames))
    data = joined(frames, "stdout")
    assert data == b"".join(b"%d" % (i % 10) * 100_000 for i in range(1, 41))
    assert numbers(frames) == list(range(1, len(numbers(frames)) + 1))
    assert "released" in {frame.verb for frame in frames} and frames[-1].fields["code"] == 3


def test_its_end_waits_until_it_may_be_drained(box: Box) -> None:
    with box.run("head -c 400000 /dev/zero; exit 6", spool_limit_bytes=1 << 18, output="bytes") as owner:
        frames = owner.until_verb("held")
        owner.send("ack", src=frames[-1].src or max(f.src for f in frames))
        while frames[-1].verb != "exit":
            frames.append(owner.next())
            if frames[-1].src:
                owner.send("ack", src=frames[-1].src)
    assert len(joined(frames, "stdout")) == 400_000 and frames[-1].fields["code"] == 6


def test_old_frames_are_trimmed_and_the_gap_is_told(box: Box) -> None:
    with box.run("head -c 20000000 /dev/zero", output="bytes") as owner:
        frames = owner.until_verb("exit")
        last = frames[-1].src
        owner.send("ack", src=last)
        owner.send("stat")
        owner.answer("stat")
        with box.viewer(after=0) as viewer:
            oldest = viewer.hello.fields["oldest_src"]
            assert oldest > 1
            gap = viewer.next()
            assert (gap.verb, gap.fields["oldest_src"]) == ("gap", oldest)
            assert numbers(viewer.until_verb("exit")) == list(range(oldest, last + 1))
        with box.viewer(after=oldest - 1) as viewer:
            assert viewer.next().src == oldest
        kept = sum(path.stat().st_size for path in (box.slot / "spool").glob("*.frames"))
        assert 8 << 20 <= kept < 13 << 20


def test_nothing_runs_before_started_is_on_disk(slot: Path) -> None:
    """A spool that cannot be written: the start waits. Room again: it starts, once, and no frame is missing."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "carrel-test", str(slot / "spool")], check=True)
    try:
        with in_namespace(slot) as box, box.owner(after=0) as owner:
            ballast = slot / "spool" / "ballast"
            with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
            marker = slot / "vol" / "state" / "ran"
            start(owner, f"echo x >> {marker}; head -c 3000 /dev/zero; exit 2")
            wait_for(lambda: len(children(box.init_pid)) == 2, "the harness exists")
            owner.send("stat")
            assert owner.answer("stat").fields["spool_bytes"] == 0
            with box.viewer() as viewer:
                assert viewer.hello.fields["held"] is False and viewer.hello.fields["last_src"] == 0
                assert viewer.exec("true")[2].fields["code"] == 0
            assert not marker.exists()
            ballast.unlink()
            frames = owner.until_verb("exit")
            assert next(f.verb for f in frames if f.src) == "started" and frames[-1].fields["code"] == 2
            assert marker.read_text() == "x\n"
    finally:
        subprocess.run(["umount", "-l", str(slot / "spool")], check=True)


def test_a_full_disk_holds_the_harness_back_and_loses_nothing(slot: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "carrel-test", str(slot / "spool")], check=True)
    try:
        with in_namespace(slot) as box, box.run("seq 1 600000; exit 2", output="bytes") as owner:
            frames = owner.until_verb("held")
            assert frames[-1].fields["why"] == "disk"
            subprocess.run(["mount", "-o", "remount,size=64m", str(slot / "spool")], check=True)
            frames += owner.until_verb("exit")
    finally:
        subprocess.run(["umount", "-l", str(slot / "spool")], check=True)
    assert joined(frames, "stdout") == b"".join(b"%d\n" % i for i in range(1, 600001))
    assert numbers(frames) == list(range(1, len(numbers(frames)) + 1))
    assert "released" in {frame.verb for frame in frames}
