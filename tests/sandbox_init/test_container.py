"""init in a real container of the real image, run as PROTOCOL.md and the README say: what only the kernel can tell."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.models.containers import Container

from tests.sandbox_init.boxes import Box, Closed, children, joined, make_slot, remove_slot, start, wait_for

pytestmark = [pytest.mark.root, pytest.mark.docker]

SANDBOX_IMAGE = Path(__file__).parents[2] / "sandbox-image"
LABEL = "carrel.test"
RSS_ANON_LIMIT_KB = 4096  # issue and design: memory is not a timing, so it may be asserted
MEMORY_BYTES = 128 << 20


class ContainerBox(Box):
    def __init__(self, slot: Path, container: Container) -> None:
        self.container = container
        container.reload()
        super().__init__(slot, int(container.attrs["State"]["Pid"]))

    @property
    def state(self) -> dict[str, Any]:
        self.container.reload()
        return dict(self.container.attrs["State"])

    @property
    def spawner_pid(self) -> int:
        """As the host sees it; found as PROTOCOL.md says."""
        with self.viewer() as viewer:
            inside = str(viewer.hello.fields["spawner_pid"])
        for pid in children(self.init_pid):
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("NSpid:") and line.split()[-1] == inside:
                    return pid
        raise AssertionError("no spawner among init's children")


@pytest.fixture(scope="module")
def engine() -> Iterator[docker.DockerClient]:
    client = docker.from_env()
    yield client
    client.close()


Make = Callable[..., ContainerBox]


@pytest.fixture
def make_box(engine: docker.DockerClient, image: str) -> Iterator[Make]:
    """Containers with their slots; all gone afterwards."""
    made: list[ContainerBox] = []

    def make(**more: Any) -> ContainerBox:
        slot = make_slot()
        mounts = {
            str(slot / "ctl"): {"bind": "/run/carrel/ctl", "mode": "rw"},
            str(slot / "spool"): {"bind": "/run/carrel/spool", "mode": "rw"},
            str(slot / "vol"): {"bind": "/slot/vol", "mode": "rw"},
        }
        container = engine.containers.run(
            image,
            **{
                "detach": True,
                "labels": {LABEL: "init"},
                "environment": {"CARREL_SANDBOX_ID": "sbx_test"},
                "network_disabled": True,
                "read_only": True,
                "cap_drop": ["ALL"],
                "cap_add": ["SETUID", "SETGID", "KILL", "SETPCAP"],
                "security_opt": [
                    "no-new-privileges",
                    "seccomp=" + (SANDBOX_IMAGE / "seccomp.json").read_text(),
                ],
                "tmpfs": {"/tmp": "mode=1777,size=256m,exec,nosuid,nodev", "/run": "mode=755,size=16m,noexec"},
                "pids_limit": 128,
                "mem_limit": MEMORY_BYTES,
                "memswap_limit": MEMORY_BYTES,
                "log_config": docker.types.LogConfig(type="none"),
                "volumes": mounts,
                **more,
            },
        )
        one = ContainerBox(slot, container)
        made.append(one)
        wait_for((slot / "ctl" / "init.sock").exists, "init listens")
        return one

    yield make
    for one in made:
        one.container.remove(force=True)
        remove_slot(one.slot)


def agent(box: Box, *argv: str, **fields: Any) -> tuple[int, str]:
    """Exit code and all output of a command in the box."""
    with box.viewer() as viewer:
        viewer.send("gate_open", cgroup=False)
        stdout, stderr, last = viewer.exec(*argv, **{"cwd": "/workspace", **fields})
    return int(last.fields.get("code", -int(last.fields.get("signal", 0)))), (stdout + stderr).decode()


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
    with box.owner(after=0) as owner:
        start(owner, "read x; echo got $x", cwd="/workspace")
        owner.until_verb("started")
        spawner = str(owner.hello.fields["spawner_pid"])
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
    from sandbox_init.frames import Frame, encode

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
        wait_for((box.slot / "vol" / "state" / "ran").exists, "it runs")
        os.kill(box.init_pid, signal.SIGKILL)
        with pytest.raises(Closed):
            owner.until_verb("exit")
    wait_for(lambda: not box.state["Running"], "the container has ended")
    assert box.state["ExitCode"] == 137
    box.container.start()
    wait_for(lambda: _state(box) == "lost", "the second init knows")
    assert (box.slot / "vol" / "state" / "ran").read_text() == "x\n"


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


# -- the image and its system calls ------------------------------------------------------------------------------------


def test_the_image_has_what_its_table_says(make_box: Make, engine: docker.DockerClient, image: str) -> None:
    box = make_box()
    tools = "git curl python3 pip gcc g++ make jq rg less vi ps unzip zstd ssh sqlite3 bash"
    missing = agent(box, "sh", "-c", f"for t in {tools}; do command -v $t >/dev/null || echo $t; done")
    assert missing == (0, "")
    attributes = engine.images.get(image).attrs["Config"]
    assert attributes["Labels"]["carrel.image"] == "1" and attributes["Labels"]["carrel.protocol"] == "1"
    assert attributes["Entrypoint"][0] == "/usr/bin/python3"
    assert agent(box, "getent", "passwd", "agent")[1].strip() == "agent:x:1000:1000::/state/home:/bin/bash"
    assert agent(box, "sh", "-c", "echo x > /etc/x")[0] != 0


def test_building_again_builds_nothing(image: str) -> None:
    again = subprocess.run(
        [sys.executable, str(SANDBOX_IMAGE / "build")], capture_output=True, text=True, check=True, timeout=110
    )
    assert again.stdout.strip() == image and "there already" in again.stderr


def test_seccomp_json_is_what_its_description_says() -> None:
    described = subprocess.run(
        [sys.executable, str(SANDBOX_IMAGE / "seccomp_profile.py")], capture_output=True, text=True, check=True
    ).stdout
    assert (SANDBOX_IMAGE / "seccomp.json").read_text() == described


PROBE = r"""
import ctypes, errno, fcntl, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def name(number): return errno.errorcode.get(number, number)
def sock(*args):
    try: socket.socket(*args).close()
    except OSError as problem: return name(problem.errno)
    return "ok"
def call(number, *args):
    return "ok" if libc.syscall(number, *args) >= 0 else name(ctypes.get_errno())
def request(number):
    fd = os.open("/workspace/f", os.O_RDWR | os.O_CREAT)
    try: fcntl.ioctl(fd, number, bytes(512))
    except OSError as problem: return name(problem.errno)
    finally: os.close(fd)
    return "ok"
print({
    "unix": sock(1, 1), "inet": sock(2, 1), "inet6": sock(10, 2), "route": sock(16, 3, 0),
    "vsock": sock(40, 1), "alg": sock(38, 5), "packet": sock(17, 3), "netfilter": sock(16, 3, 12), "raw": sock(2, 3, 1),
    "tipc pair": call(53, 30, 1, 0, ctypes.byref((ctypes.c_int * 2)())),
    "io_uring": call(425, 8, 0), "clone3": call(435, 0, 0),
    "unshare": call(272, 0x10000000), "mount": call(165, 0, 0, 0, 0, 0), "setns": call(308, 0, 0),
    "clone newuser": call(56, 0x10000000, 0, 0, 0, 0), "bpf": call(321, 0, 0, 0), "keyctl": call(250, 0, 0),
    "perf": call(298, 0, 0, 0, 0, 0), "handle": call(304, 0, 0, 0), "userfaultfd": call(323, 0),
    "subvolume": request(0x5000940E), "snapshot": request(0x50009417), "clone range": request(0x40049409),
    "FIONREAD": request(0x541B),
})
"""


def test_system_calls_that_lead_out_are_refused(make_box: Make) -> None:
    code, output = agent(make_box(), "python3", "-c", PROBE)
    assert code == 0, output
    got: dict[str, str] = eval(output)  # printed by the probe above
    allowed = {"unix", "inet", "inet6", "route", "FIONREAD"}
    expected = {what: "ok" if what in allowed else "EPERM" for what in got}
    assert got == {**expected, "io_uring": "ENOSYS", "clone3": "ENOSYS"}


def test_32_bit_system_calls_do_not_go_round_the_filter(make_box: Make) -> None:
    """7: `int 0x80` and x32 numbers: killed or refused, never done."""
    source = r"""
    #include <stdio.h>
    #include <unistd.h>
    int main(int argc, char **argv) {
        long r = -1;
        if (argc > 1) r = syscall(0x40000000 + 39); /* x32 getpid */
        else __asm__ volatile("int $0x80" : "=a"(r) : "a"(20)); /* i386 getpid */
        printf("%ld\n", r);
        return r > 0 ? 0 : 9;
    }
    """
    box = make_box()
    (box.slot / "vol" / "workspace" / "a.c").write_text(source)
    assert agent(box, "sh", "-c", "gcc -o /tmp/a /workspace/a.c")[0] == 0
    for argv in (["/tmp/a"], ["/tmp/a", "x32"]):
        code, output = agent(box, *argv)
        assert code != 0, output


def test_ordinary_work_is_not_refused(make_box: Make) -> None:
    script = r"""set -e
    cd /workspace; git init -q g; cd g; git config user.email a@b; git config user.name a
    echo hello > f; git add f; git commit -qm one; git log --oneline | wc -l
    cp --reflink=auto f h; cmp f h
    python3 -c 'import asyncio, multiprocessing, sqlite3, ssl, subprocess
async def main(): print((await (await asyncio.create_subprocess_exec("echo", "hi", stdout=-1)).communicate())[0])
asyncio.run(main()); print(multiprocessing.Pool(2).map(abs, [-1]))'
    python3 -m venv v; v/bin/python -c 'print("venv")'
    echo 'int puts(const char *); int main() { puts("compiled"); return 0; }' > c.c; gcc c.c -o c; ./c
    printf '{"a":[1]}' | jq -c .a; echo needle | rg -c needle
    sqlite3 :memory: 'select 6*7'; printf x | zstd -q | zstd -dq
    """
    code, output = agent(make_box(), "bash", "-c", script)
    assert (code, output) == (0, "1\nb'hi\\n'\n[1]\nvenv\ncompiled\n[1]\n1\n42\nx")
