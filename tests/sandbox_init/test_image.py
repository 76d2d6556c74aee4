"""The image and its system calls: what is in, what its user may not do, and that ordinary work still can."""

from __future__ import annotations

import subprocess
import sys

import docker
import pytest

from tests.sandbox_init.containers import SANDBOX_IMAGE, Make, agent

pytestmark = [pytest.mark.root, pytest.mark.docker]


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


def test_the_agent_and_carrel_intent_are_there_for_anyone_to_run(make_box: Make) -> None:
    """By the system's Python, out of reach of the one who runs them, of his environment and of what he may install."""
    box = make_box()
    code, usage = agent(box, "carrel-intent", "--help")
    assert code == 0 and "exit codes:" in usage
    code, said = agent(box, "carrel-intent", "once", "--key", "k", "--", "touch", "ran")
    assert code == 69 and "CARREL_GATEWAY is not set" in said
    assert agent(box, "test", "-x", "/usr/local/bin/carrel-agent")[0] == 0
    assert agent(box, "sh", "-c", "find /usr/lib/carrel /usr/local/bin -writable ! -type l")[1] == ""
    misled = {"PYTHONPATH": "/tmp/mine", "PYTHONSTARTUP": "/tmp/mine/x.py", "PYTHONHOME": "/tmp"}
    plant = "mkdir -p /tmp/mine/agent_harness && echo 1/0 | tee /tmp/mine/agent_harness/__init__.py /tmp/mine/json.py"
    code, said = agent(box, "sh", "-c", f"{plant} >/dev/null; cd /tmp/mine; carrel-intent --help", env=misled)
    assert (code, said) == (0, usage)


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
