"""init in a real container, run as PROTOCOL.md and the README say: what only the kernel can tell."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from pathlib import Path

import docker
import pytest

from sandbox_init.frames import Frame, encode
from tests.sandbox_init.boxes import Box, Client, Closed, joined, make_slot, remove_slot, start, wait_for
from tests.sandbox_init.containers import LABEL, ContainerBox, Make, agent, create
from tests.sandbox_init.gateways import Gateway, exactly, sent_by_thread

pytestmark = [pytest.mark.root, pytest.mark.docker]

RSS_ANON_LIMIT_KB = 4096  # issue and design: memory is not a timing, so it may be asserted


def test_memory_of_init_is_within_its_limit_after_work(make_box: Make) -> None:
    box = make_box()
    with box.run("seq 1 200000; head -c 30000000 /dev/zero", cwd="/workspace") as owner, box.viewer(after=0) as viewer:
        owner.until_verb("exit")
        viewer.until_verb("exit")
        for _ in range(20):
            viewer.exec("true", cwd="/")
        viewer.send("stat")
        stat = viewer.answer("stat").fields
    figures = {}
    for name, pid in (("init", box.init_pid), ("spawner", box.spawner_pid)):
        status = Path(f"/proc/{pid}/status").read_text()
        figures[name] = int(status.split("RssAnon:")[1].split()[0])
    print(figures, stat["init_rss_anon_kb"])
    assert figures["init"] <= RSS_ANON_LIMIT_KB
    assert figures["spawner"] <= RSS_ANON_LIMIT_KB


def test_memory_of_init_is_within_its_limit_with_an_outlet_too(make_box: Make) -> None:
    """After requests of 1 MiB and their answers of 8, and while 32 others wait for a gateway."""
    box = make_box()
    body, answer = bytes(1 << 20), bytes(8 << 20)
    with box.run("exec sleep 1000", cwd="/workspace", outlet_port=7411) as owner:
        owner.until_verb("started")
        with Gateway(box.slot) as gateway:
            for _ in range(10):
                with box.dial(7411) as client:
                    asking = sent_by_thread(client, body)
                    with gateway.accept() as worker:
                        assert exactly(worker, len(body)) == body
                        answering = sent_by_thread(worker, answer)
                        assert exactly(client, len(answer)) == answer
                        asking.join()
                        answering.join()
        waiting = [box.dial(7411) for _ in range(32)]
        for client in waiting:
            client.sendall(bytes(2000))
        wait_for(lambda: _outlet_connections(owner) == len(waiting), "they wait")
        owner.send("stat")
        stat = owner.answer("stat").fields
        for client in waiting:
            client.close()
    print(stat)
    assert stat["init_rss_anon_kb"] <= RSS_ANON_LIMIT_KB


def _outlet_connections(owner: Client) -> int:
    owner.send("stat")
    return int(owner.answer("stat").fields["outlet_connections"])


def test_the_harness_has_the_contract_s_place(make_box: Make) -> None:
    box = make_box()
    script = "pwd -P; echo $HOME $LANG; id -u; id -G; touch /workspace/a /state/b; ls -d /workspace /state; umask"
    with box.run(script, cwd="/workspace") as owner:
        lines = joined(owner.until_verb("exit"), "stdout").decode().split("\n")
    assert lines[:4] == ["/slot/vol/workspace", "/state/home C.UTF-8", "1000", "1000"]
    assert (box.slot / "vol" / "workspace" / "a").stat().st_uid == 1000
    assert (box.slot / "vol" / "state" / "b").exists()
    with box.viewer() as viewer:
        assert viewer.hello.fields["sandbox_id"] == "sbx_test"


def test_children_of_init_have_no_privilege_left(make_box: Make) -> None:
    box = make_box()
    code, status = agent(box, "cat", "/proc/self/status")
    lines = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert code == 0
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert lines[name] == "0" * 16, name
    assert lines["NoNewPrivs"] == "1" and lines["Seccomp"] == "2"
    assert lines["Uid"].split() == ["1000"] * 4 and lines["Gid"].split() == ["1000"] * 4
    assert lines["Groups"].strip() == ""
    assert agent(box, "sh", "-c", "ulimit -c; ls /proc/self/fd | tr '\\n' ' '")[1].split() == ["0", "0", "1", "2", "3"]
    assert agent(box, "cat", "/proc/self/oom_score_adj")[1] == "500\n"
    assert agent(box, "sh", "-c", "find / -xdev -perm /6000 -type f 2>/dev/null")[1] == ""


ATTACKS = {
    "15 kill -9 -1": ["sh", "-c", "kill -9 -1"],
    "15 kill init": ["sh", "-c", "kill -9 1"],
    "16 memory of init": ["sh", "-c", "cat /proc/1/mem"],
    "16 environment of init": ["cat", "/proc/1/environ"],
    "16 descriptors of init": ["ls", "/proc/1/fd"],
    "16 maps of init": ["cat", "/proc/1/maps"],
    "16 ptrace": ["python3", "-c", "import ctypes, sys; sys.exit(ctypes.CDLL(None).ptrace(16, 1, 0, 0) == -1)"],
    "16 spool": ["ls", "/run/carrel/spool"],
    "16 spool file": ["sh", "-c", "cat /run/carrel/spool/*.frames /run/carrel/spool/epoch"],
    "17 list the control directory": ["ls", "/run/carrel/ctl"],
    "17 connect": [
        "python3",
        "-c",
        "import socket; socket.socket(socket.AF_UNIX).connect('/run/carrel/ctl/init.sock')",
    ],
    "17 connect to the gateway": [
        "python3",
        "-c",
        "import socket; socket.socket(socket.AF_UNIX).connect('/run/carrel/ctl/gateway.sock')",
    ],
    "17 delete": ["rm", "/run/carrel/ctl/init.sock"],
    "17 rename": ["mv", "/run/carrel/ctl", "/run/carrel/x"],
    "17 link to it": ["sh", "-c", "ln -s /run/carrel/ctl/init.sock /tmp/s && cat < /tmp/s"],
    "17 through init's root": ["ls", "/proc/1/root/run/carrel/ctl"],
    "17 through init's cwd": ["ls", "/proc/1/cwd/"],
    "init's code": ["sh", "-c", "echo x >> /usr/lib/carrel/sandbox_init/pid1.py"],
    "oom score below 0": ["sh", "-c", "echo -1 > /proc/self/oom_score_adj"],
}


def test_uid_1000_gets_nowhere_near_init(make_box: Make) -> None:
    box = make_box()
    with ExitStack() as gateway, box.owner(after=0) as owner:
        start(owner, "read x; echo got $x", cwd="/workspace")
        owner.until_verb("started")
        spawner = str(owner.hello.fields["spawner_pid"])
        gateway.enter_context(Gateway(box.slot))  # there to be connected to
        for name, argv in ATTACKS.items():
            if name == "15 kill -9 -1":
                continue
            code, output = agent(box, *argv)
            assert code != 0, (name, output)
        for what in ("mem", "fd", "environ", "maps"):
            assert agent(box, "sh", "-c", f"cat /proc/{spawner}/{what} /proc/{spawner}/{what}/*")[0] != 0
        assert agent(box, "sh", "-c", f"kill -9 {spawner}")[0] != 0
        owner.send("message", b"on\n", n=1, id="m")
        assert joined(owner.until_verb("exit"), "stdout") == b"got on\n"
        # 15: the harness's neighbours may be killed by it, init and the spawner may not.
        agent(box, *ATTACKS["15 kill -9 -1"])
        assert agent(box, "echo", "alive")[1] == "alive\n"
    assert box.state["Running"]


def test_forged_frames_are_plain_output(make_box: Make) -> None:
    """18: bytes that look like an exit frame, printed by the harness."""
    box = make_box()
    forged = encode(Frame("exit", {"code": 0}, src=99, time_ms=1))
    (box.slot / "vol" / "workspace" / "forged").write_bytes(forged)
    with box.run("cat forged; exit 7", cwd="/workspace") as owner:
        frames = owner.until_verb("exit")
    assert joined(frames, "stdout") == forged and frames[-1].fields["code"] == 7


def test_a_container_without_setpcap_starts_nothing(make_box: Make) -> None:
    box = make_box(cap_add=["SETUID", "SETGID", "KILL"])
    with box.owner(after=0) as owner:
        wait_for(lambda: _no_spawner(box), "it gave up")
        start(owner, "echo never", cwd="/workspace")
        refused = owner.answer("refused")
    assert refused.fields["code"] == "no_spawner" and "SETPCAP" in refused.fields["why"]


def test_a_workspace_of_root_s_starts_nothing(engine: docker.DockerClient, image: str) -> None:
    """The harness is whoever owns it: root would be root."""
    slot = make_slot()
    os.chown(slot / "vol" / "workspace", 0, 0)
    box = ContainerBox(slot, create(engine, image, slot))
    try:
        wait_for((slot / "ctl" / "init.sock").exists, "init listens")
        with box.owner(after=0) as owner:
            wait_for(lambda: _no_spawner(box), "it gave up")
            start(owner, "echo never", cwd="/workspace")
            refused = owner.answer("refused")
        assert refused.fields["code"] == "no_spawner" and "root" in refused.fields["why"]
    finally:
        box.container.remove(force=True)
        remove_slot(slot)


def test_the_way_to_ctl_and_spool_is_shut_whatever_their_own_modes(make_box: Make) -> None:
    box = make_box()
    for name in ("ctl", "spool"):
        (box.slot / name).chmod(0o777)
    (box.slot / "ctl" / "init.sock").chmod(0o777)
    for name, argv in ATTACKS.items():
        if name.startswith("17") or "spool" in name:
            code, output = agent(box, *argv)
            assert code != 0, (name, output)


def _no_spawner(box: Box) -> bool:
    with box.viewer() as viewer:
        return bool(viewer.hello.fields["spawner_pid"] == 0)


def test_a_read_only_ctl_mount_is_no_layout(engine: docker.DockerClient, image: str) -> None:
    """Why the slot's ctl is mounted rw: bind(2) refuses a read-only mount. (Connecting through one works.)"""
    slot = make_slot()
    container = engine.containers.run(
        image,
        detach=True,
        labels={LABEL: "init"},
        cap_drop=["ALL"],
        cap_add=["SETUID", "SETGID", "KILL", "SETPCAP"],
        volumes={
            str(slot / "ctl"): {"bind": "/run/carrel/ctl", "mode": "ro"},
            str(slot / "spool"): {"bind": "/run/carrel/spool", "mode": "rw"},
        },
    )
    try:
        assert container.wait(timeout=60)["StatusCode"] == 1
        assert b"Read-only file system" in container.logs()
    finally:
        container.remove(force=True)
        remove_slot(slot)


# -- how it ends -------------------------------------------------------------------------------------------------------


def test_docker_stop_is_no_end_of_the_harness(make_box: Make) -> None:
    box = make_box()
    with box.run("trap '' TERM; setsid sh -c 'while :; do sleep 1; done' & while :; do sleep 1; done") as owner:
        owner.until_verb("started")
        box.container.stop(timeout=60)
        with pytest.raises(Closed):
            owner.until_verb("exit")
    state = box.state
    assert (state["Running"], state["ExitCode"]) == (False, 143)
    assert [f.verb for f in box.spool.frames()].count("exit") == 0


def test_sigkill_of_init_and_a_restart_of_the_container_is_lost_not_run_again(make_box: Make) -> None:
    box = make_box()
    with box.run("echo x >> /state/ran; read x", cwd="/workspace") as owner:
        owner.until_verb("started")
        ran = box.slot / "vol" / "state" / "ran"
        wait_for(lambda: ran.exists() and ran.read_text() == "x\n", "it runs")
        os.kill(box.init_pid, signal.SIGKILL)
        with pytest.raises(Closed):
            owner.until_verb("exit")
    wait_for(lambda: not box.state["Running"], "the container has ended")
    assert box.state["ExitCode"] == 137
    box.container.start()
    wait_for(lambda: _state(box) == "lost", "the second init knows")
    assert ran.read_text() == "x\n"


def _state(box: Box) -> str:
    try:
        with box.viewer() as viewer:
            return str(viewer.hello.fields["state"])
    except OSError:
        return ""


def test_out_of_memory_is_told(make_box: Make) -> None:
    box = make_box()
    script = "python3 -c 'x = bytearray(400 << 20)'; echo shell survived $?; exec python3 -c 'x = bytearray(400 << 20)'"
    with box.run(script, cwd="/workspace") as owner:
        frames = owner.until_verb("exit")
    assert joined(frames, "stdout") == b"shell survived 137\n"
    assert frames[-1].fields["signal"] == 9 and frames[-1].fields["oom_hint"] is True
    assert next(f.fields["oom_kills"] for f in frames if f.verb == "note") >= 2
    assert agent(box, "echo", "init lives")[1] == "init lives\n"


def test_a_fork_bomb_dies_with_kill(make_box: Make) -> None:
    box = make_box()
    with box.run("bomb() { bomb & bomb & wait; }; bomb", stdin="none", cwd="/workspace") as owner:
        wait_for(lambda: _processes(box) > 100, "the bomb has gone off")
        with box.viewer() as viewer:  # no room to fork is an answer, not a wait
            last = viewer.exec("true", cwd="/")[2].fields
            assert last["code"] == 0 or (last["code"] == 126 and "fork" in last["error"]), last
        owner.send("kill")
        assert owner.answer("exit").fields["signal"] == 9
    wait_for(lambda: _processes(box) == 0, "all are gone")


def _processes(box: Box) -> int:
    with box.viewer() as viewer:
        viewer.send("stat")
        return int(viewer.answer("stat").fields["processes"])


# -- work --------------------------------------------------------------------------------------------------------------


def _cgroup2_of(pid: int) -> Path:
    """The process's cgroup in the v2 hierarchy, pure or beside v1."""
    mount = next(line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if " cgroup2 " in line)
    path = next(line[3:] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if line.startswith("0::"))
    return Path(mount + path)


def test_all_but_init_live_in_work_and_freeze_there(make_box: Make) -> None:
    box = make_box()
    work = _cgroup2_of(box.init_pid) / "work"
    work.mkdir()
    try:
        (work / "cgroup.procs").write_text(str(box.spawner_pid))
        with box.owner(gate=False, after=0) as owner, box.viewer() as viewer:
            owner.send("gate_open", cgroup=True)
            start(owner, "setsid sh -c 'while :; do echo a; done' & while :; do echo b; done", output="bytes")
            frames = owner.until(lambda f: f.src > 20)
            inside = {int(pid) for pid in (work / "cgroup.procs").read_text().split()}
            assert {box.spawner_pid} < inside and box.init_pid not in inside and len(inside) >= 3
            (work / "cgroup.freeze").write_text("1")
            wait_for(lambda: "frozen 1" in (work / "cgroup.events").read_text(), "work is frozen")
            owner.send("quiesce", id="cut")
            frames += owner.until_verb("quiesced")
            cut = frames[-1].fields["src"]
            assert max(f.src for f in frames) == cut == box.spool.last_src
            viewer.send("exec", id="e", argv=["true"], cwd="/")  # waits for the thaw
            viewer.send("stat")
            assert viewer.next().verb == "stat"
            owner.send("quiesce", id="again")
            assert owner.answer("quiesced").fields["src"] == cut  # nothing escaped the freeze, nothing was left behind
            (work / "cgroup.freeze").write_text("0")
            owner.until(lambda f: f.src > cut)
            assert viewer.answer("exec_exit").fields["code"] == 0
            owner.send("kill")
            owner.until_verb("exit")
        wait_for(lambda: not (work / "cgroup.procs").read_text().split(), "work is empty")
    finally:
        (work / "cgroup.freeze").write_text("0")
        os.kill(box.init_pid, signal.SIGKILL)
        wait_for(lambda: not (work / "cgroup.procs").read_text().split(), "work is empty")
        work.rmdir()
