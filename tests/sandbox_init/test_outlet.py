"""The way out: what goes to the gateway arrives once and whole, whichever gateway that is by then; and back."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox_init.outlet import PASSAGES
from tests.sandbox_init.boxes import PATIENCE_S, Box, Client, in_namespace, joined, start, wait_for
from tests.sandbox_init.gateways import Gateway, exactly, sent_by_thread, to_end

pytestmark = pytest.mark.root

PORT = 7411
BODY = os.urandom(1 << 20) * 24  # more than any buffer on the way


@pytest.fixture
def owner(box: Box) -> Iterator[Client]:
    with box.owner(after=0) as one:
        start(one, "exec sleep 1000", outlet_port=PORT)
        one.until_verb("started")
        yield one


@pytest.fixture
def gateway(slot: Path) -> Iterator[Gateway]:
    with Gateway(slot) as one:
        yield one


def passages(owner: Client) -> int:
    owner.send("stat")
    return int(owner.answer("stat").fields["outlet_connections"])


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_bytes_pass_both_ways_and_so_does_each_end(box: Box, owner: Client, gateway: Gateway, host: str) -> None:
    with box.dial(PORT, host) as client:
        client.sendall(b"question")
        with gateway.accept() as worker:
            assert exactly(worker, 8) == b"question"
            worker.sendall(b"first")
            assert exactly(client, 5) == b"first"
            client.sendall(b", more")
            client.shutdown(socket.SHUT_WR)
            assert to_end(worker) == b", more"
            worker.sendall(b" and the rest")
        assert to_end(client) == b" and the rest"
    wait_for(lambda: passages(owner) == 0, "the passage is over")


def test_the_gateway_may_end_its_side_first(box: Box, owner: Client, gateway: Gateway) -> None:
    with box.dial(PORT) as client:
        client.sendall(b"connect")
        with gateway.accept() as worker:
            exactly(worker, 7)
            worker.sendall(b"yes")
            worker.shutdown(socket.SHUT_WR)
            assert to_end(client) == b"yes"
            sender = sent_by_thread(client, BODY)
            assert exactly(worker, len(BODY)) == BODY
            sender.join()
            client.shutdown(socket.SHUT_WR)
            assert to_end(worker) == b""
    wait_for(lambda: passages(owner) == 0, "the passage is over")


def test_it_is_there_before_the_first_instruction(box: Box, gateway: Gateway) -> None:
    script = f"exec 3<>/dev/tcp/127.0.0.1/{PORT} && echo -n hi >&3 && read -r answer <&3 && echo $answer"
    with box.run(script, outlet_port=PORT) as owner:
        with gateway.accept() as worker:
            assert exactly(worker, 2) == b"hi"
            worker.sendall(b"there\n")
        assert joined(owner.until_verb("exit"), "stdout") == b"there\n"


def test_without_a_port_nobody_listens(box: Box) -> None:
    with box.run(f"exec 3<>/dev/tcp/127.0.0.1/{PORT}") as owner:
        assert owner.until_verb("exit")[-1].fields["code"] != 0


def test_a_request_waits_for_a_gateway(box: Box, owner: Client, slot: Path) -> None:
    with box.dial(PORT) as client, box.dial(PORT) as other:
        client.sendall(b"one")
        other.sendall(b"two")
        wait_for(lambda: passages(owner) == 2, "both are waiting")
        (slot / "ctl" / "gateway.sock").write_bytes(b"")  # nothing that could be dialled
        with Gateway(slot) as gateway:
            heard = set()
            for _ in range(2):
                with gateway.accept() as worker:
                    heard.add(exactly(worker, 3))
                    worker.sendall(b"at last")
            assert heard == {b"one", b"two"}
        assert to_end(client) == to_end(other) == b"at last"


@pytest.mark.parametrize("read_bytes", [0, 1, 100_000, 10 << 20, len(BODY)])
def test_a_gateway_that_dies_before_its_answer_costs_nothing(
    box: Box, owner: Client, slot: Path, read_bytes: int
) -> None:
    """Three workers die over one request, the last one after it had read it all; the fourth hears it from the start."""
    with box.dial(PORT) as client:
        sender = sent_by_thread(client, BODY)
        for size in (0, read_bytes, len(BODY)):
            with Gateway(slot) as gateway, gateway.accept() as worker:
                assert exactly(worker, size) == BODY[:size]
        sender.join()
        client.shutdown(socket.SHUT_WR)
        with Gateway(slot) as gateway, gateway.accept() as worker:
            assert to_end(worker) == BODY
            worker.sendall(b"ok")
        assert to_end(client) == b"ok"
    wait_for(lambda: passages(owner) == 0, "the passage is over")
    assert not list((slot / "spool").glob("outlet*"))


def test_after_the_first_byte_nothing_is_sent_again(box: Box, owner: Client, gateway: Gateway) -> None:
    with box.dial(PORT) as client:
        client.sendall(b"question")
        with gateway.accept() as worker:
            exactly(worker, 8)
            worker.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            assert exactly(client, 25).startswith(b"HTTP/1.1 100")
        # A killed worker's socket closes as an orderly one does: what the gateway says has a length, or is chunked.
        assert to_end(client) == b""
    with box.dial(PORT) as client:
        client.sendall(b"another")
        with gateway.accept() as worker:  # and not the first one once more
            assert exactly(worker, 7) == b"another"


def test_an_answer_that_breaks_off_is_a_reset(box: Box, owner: Client, gateway: Gateway) -> None:
    with box.dial(PORT) as client:
        client.sendall(b"question")
        with gateway.accept() as worker:
            exactly(worker, 1)  # what it leaves unread makes its end a reset
            worker.sendall(b"begun")
            assert exactly(client, 5) == b"begun"
        with pytest.raises(ConnectionResetError):
            to_end(client)
    wait_for(lambda: passages(owner) == 0, "the passage is over")


def test_an_answer_before_the_end_of_the_question_arrives(box: Box, owner: Client, gateway: Gateway) -> None:
    """A body that is refused unread: the refusal comes through, the rest of the body goes nowhere."""
    with box.dial(PORT) as client:
        sender = sent_by_thread(client, BODY)
        with gateway.accept() as worker:
            exactly(worker, 10)
            worker.sendall(b"too large")
            assert exactly(client, 9) == b"too large"
        sender.join()
    wait_for(lambda: passages(owner) == 0, "the passage is over")


def test_what_a_client_says_after_its_answer_goes_nowhere_and_breaks_nothing(
    box: Box, owner: Client, gateway: Gateway
) -> None:
    with box.dial(PORT) as client:
        client.sendall(b"question")
        with gateway.accept() as worker:
            exactly(worker, 8)
            worker.sendall(b"answer")
        assert to_end(client) == b"answer"
        client.sendall(BODY)
        client.shutdown(socket.SHUT_WR)
        wait_for(lambda: passages(owner) == 0, "the passage is over")


def test_the_end_of_an_answer_waits_for_its_reader(box: Box, owner: Client, gateway: Gateway) -> None:
    """The gateway has gone long before the client reads."""
    with box.dial(PORT) as client:
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        with gateway.accept() as worker:
            assert to_end(worker) == b"question"
            worker.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
            worker.setblocking(False)
            sent = 0
            while sent < 4 << 20:
                try:
                    sent += worker.send(BODY[sent : sent + (1 << 16)])
                except BlockingIOError:
                    break
        assert passages(owner) == 1
        assert to_end(client) == BODY[:sent]
    wait_for(lambda: passages(owner) == 0, "the passage is over")


def test_a_body_longer_than_is_kept_passes_and_has_no_second_time(box: Box, owner: Client, slot: Path) -> None:
    blocks, block = 70, os.urandom(1 << 20)
    digest = hashlib.sha256(block * blocks).digest()
    for dies in (False, True):
        with Gateway(slot) as gateway, box.dial(PORT) as client:
            sender = sent_by_thread(client, block * blocks)
            with gateway.accept() as worker:
                got = hashlib.sha256()
                for _ in range(blocks):
                    got.update(exactly(worker, len(block)))
                sender.join()
                assert got.digest() == digest
                if not dies:
                    worker.sendall(b"whole")
            if dies:
                with pytest.raises(ConnectionResetError):
                    to_end(client)
            else:
                assert to_end(client) == b"whole"


def test_a_full_disk_costs_the_second_time_only(slot: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "carrel-test", str(slot / "spool")], check=True)
    try:
        with in_namespace(slot) as box, box.run("exec sleep 1000", outlet_port=PORT) as owner:
            owner.until_verb("started")
            for dies in (False, True):
                with Gateway(slot) as gateway, box.dial(PORT) as client:
                    sender = sent_by_thread(client, BODY)
                    with gateway.accept() as worker:
                        assert exactly(worker, len(BODY)) == BODY
                        sender.join()
                        if not dies:
                            worker.sendall(b"whole")
                    if dies:
                        with pytest.raises(ConnectionResetError):
                            to_end(client)
                    else:
                        assert to_end(client) == b"whole"
    finally:
        subprocess.run(["umount", "-l", str(slot / "spool")], check=True)


def test_a_slow_reader_holds_the_gateway_back_and_not_init(box: Box, owner: Client, gateway: Gateway) -> None:
    """Of an answer of 72 MB init holds next to nothing, whoever reads slowly; another client does not wait for it."""
    owner.send("stat")
    before_kb = owner.answer("stat").fields["init_rss_anon_kb"]
    with box.dial(PORT) as slow:
        slow.sendall(b"much")
        with gateway.accept() as worker:
            exactly(worker, 4)
            worker.setblocking(False)
            taken = 0
            stuck = 0
            while stuck < 3:  # until nobody takes any more of it, asked through init itself
                try:
                    taken += worker.send(bytes(1 << 16))
                    stuck = 0
                except BlockingIOError:
                    stuck += 1
                    passages(owner)
            assert taken < 8 << 20
            with box.dial(PORT) as other:
                other.sendall(b"little")
                with gateway.accept() as second:
                    exactly(second, 6)
                    second.sendall(b"here")
                assert to_end(other) == b"here"
            owner.send("stat")
            assert owner.answer("stat").fields["init_rss_anon_kb"] < before_kb + 1024
            worker.settimeout(PATIENCE_S)
            sender = sent_by_thread(worker, BODY)
            assert exactly(slow, taken + len(BODY)) == bytes(taken) + BODY
            sender.join()


def test_a_client_that_goes_is_waited_for_no_longer(box: Box, owner: Client, slot: Path) -> None:
    with box.dial(PORT) as client:
        client.sendall(b"never mind")
        wait_for(lambda: passages(owner) == 1, "it waits")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    wait_for(lambda: passages(owner) == 0, "it was let go")
    with box.dial(PORT):
        wait_for(lambda: passages(owner) == 1, "one that says nothing")
    wait_for(lambda: passages(owner) == 0, "it costs nothing")
    assert not (slot / "ctl" / "gateway.sock").exists()


def test_many_at_once_and_more_than_there_is_room_for(box: Box, owner: Client, gateway: Gateway) -> None:
    """All are answered; never are more than PASSAGES let in."""
    clients = [box.dial(PORT) for _ in range(PASSAGES + 40)]
    try:
        for number, client in enumerate(clients):
            client.sendall(b"%08d" % number)
        wait_for(lambda: passages(owner) == PASSAGES, "the house is full")
        for _ in clients:
            with gateway.accept() as worker:
                worker.sendall(exactly(worker, 8) * 1000)
            assert passages(owner) <= PASSAGES
        for number, client in enumerate(clients):
            assert to_end(client) == b"%08d" % number * 1000
    finally:
        for client in clients:
            client.close()
    wait_for(lambda: passages(owner) == 0, "all are gone")


def test_another_owner_disturbs_nothing(box: Box, owner: Client, gateway: Gateway) -> None:
    with box.dial(PORT) as client:
        client.sendall(b"question")
        with gateway.accept() as worker:
            exactly(worker, 8)
            with box.owner(epoch=2) as adopter:
                start(adopter, "exit 9", outlet_port=PORT + 1)  # there is one already: ignored
                assert passages(adopter) == 1
            worker.sendall(b"answer")
        assert to_end(client) == b"answer"


def test_a_client_that_is_stopped_meanwhile_misses_nothing(box: Box, slot: Path) -> None:
    """Stopped before its answer; two workers die over it; it goes on and reads all."""
    script = f"exec 3<>/dev/tcp/127.0.0.1/{PORT}; echo -n question >&3; head -c {len(BODY)} <&3 | sha256sum"
    with box.run(script, outlet_port=PORT) as owner:
        with Gateway(slot) as gateway, gateway.accept() as worker:
            exactly(worker, 8)
            owner.send("signal", id="stop", signum=int(signal.SIGSTOP), to="group")
            owner.answer("signalled")
        with Gateway(slot) as gateway, gateway.accept() as worker:
            assert exactly(worker, 8) == b"question"
            sender = sent_by_thread(worker, BODY)
            owner.send("signal", id="cont", signum=int(signal.SIGCONT), to="group")
            frames = owner.until_verb("exit")
            sender.join()
    assert joined(frames, "stdout").decode().split()[0] == hashlib.sha256(BODY).hexdigest()


def test_a_port_somebody_has_is_said_and_may_be_asked_for_again(box: Box) -> None:
    """A command run before the harness sits on it."""
    squat = f"import socket; s = socket.create_server(('127.0.0.1', {PORT})); print('there', flush=True); s.accept()"
    with box.owner(after=0) as owner, box.viewer() as viewer:
        viewer.send("exec", id="e", argv=["python3", "-c", squat], cwd="/tmp")
        viewer.answer("exec_output")
        start(owner, "exit 5", outlet_port=PORT)
        refused = owner.answer("refused").fields
        assert refused["code"] == "start_failed" and f"127.0.0.1:{PORT}" in refused["why"]
        viewer.send("exec_signal", signum=int(signal.SIGKILL))
        viewer.answer("exec_exit")
        start(owner, "exit 5", outlet_port=PORT)
        assert owner.until_verb("exit")[-1].fields["code"] == 5


@pytest.mark.parametrize("port", [-1, 65_536, "7411", True])
def test_a_port_that_is_none_is_refused(box: Box, port: object) -> None:
    with box.owner() as owner:
        start(owner, "exit 5", outlet_port=port)
        refused = owner.answer("refused").fields
    assert (refused["code"], refused["field"]) == ("bad_field", "outlet_port")
