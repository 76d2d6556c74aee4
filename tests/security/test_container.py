"""Attacks 1 to 19 of the design's security page: what a program in a sandbox may not do. Each runs as the agent would,
in a real container of the real image; each names its number.

Numbers 11 and 14 have a half that belongs to the API (422 for an odd cwd, what env may hold); here is the half that
must hold even if that were passed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import Conflict, NotFound
from orchestrator.link import ViewerLink
from orchestrator.sandbox import Running
from sandbox_init.frames import Frame, encode
from tests.sandboxes import DockerBench, until

pytestmark = [pytest.mark.docker, pytest.mark.root]

PRELUDE = """
import ctypes, errno, json, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
answers = {}
def call(name, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(*(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    answers[name] = "ok" if result >= 0 else errno.errorcode[ctypes.get_errno()]
def attempt(name, function):
    try:
        function()
        answers[name] = "ok"
    except OSError as error:
        answers[name] = errno.errorcode[error.errno]
"""


@pytest.fixture
async def bench(short_dir: Path, sandbox_image: str, installation: str) -> AsyncIterator[DockerBench]:
    made = DockerBench(short_dir, sandbox_image, installation)
    try:
        yield made
    finally:
        await made.close()


async def attack(bench: DockerBench, sandbox_id: str, script: str) -> dict[str, Any]:
    """Run Python inside as the agent; what it found out."""
    ran = await bench.run(sandbox_id, "/usr/bin/python3", "-c", f"{PRELUDE}\n{script}\nprint(json.dumps(answers))")
    assert ran.code == 0, ran
    found: dict[str, Any] = json.loads(ran.out)
    return found


async def test_01_no_capability_no_new_privileges_seccomp_on(bench: DockerBench) -> None:
    status = (await bench.sh(await bench.opened(), "cat /proc/self/status; id")).text
    for line in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb"):
        assert f"{line}:\t0000000000000000\n" in status
    assert "NoNewPrivs:\t1\n" in status
    assert "Seccomp:\t2\n" in status
    assert "uid=1000(agent) gid=1000(agent) groups=1000(agent)" in status


async def test_02_a_setuid_shell_stays_the_agent(bench: DockerBench) -> None:
    sandbox_id = await bench.opened()
    shell = bench.volume(sandbox_id) / "workspace" / "shell"
    shutil.copy("/bin/bash", shell)  # more than an agent could do: root's own
    shell.chmod(0o6755)
    assert (await bench.sh(sandbox_id, "./shell -p -c 'id -u; id -g'")).out == b"1000\n1000\n"


async def test_03_sockets_beyond_unix_and_ip_fail(bench: DockerBench) -> None:
    answers = await attack(
        bench,
        await bench.opened(),
        """
for name, family, kind, protocol in (
    ("vsock", 40, socket.SOCK_STREAM, 0), ("alg", 38, socket.SOCK_SEQPACKET, 0), ("packet", 17, socket.SOCK_RAW, 3),
    ("raw", socket.AF_INET, socket.SOCK_RAW, 1), ("raw6", socket.AF_INET6, socket.SOCK_RAW, 58),
    ("bluetooth", 31, socket.SOCK_RAW, 0), ("xdp", 44, socket.SOCK_RAW, 0), ("unix", 1, socket.SOCK_STREAM, 0),
):
    attempt(name, lambda: socket.socket(family, kind, protocol).close())
def new_link():
    with socket.socket(16, socket.SOCK_RAW, 0) as s:  # RTM_NEWLINK: an interface out of nothing
        s.send((32).to_bytes(4, "little") + (16).to_bytes(2, "little") + (0x605).to_bytes(2, "little") + bytes(24))
        kind = s.recv(4096)
        number = -int.from_bytes(kind[16:20], "little", signed=True)
        if number:
            raise OSError(number, "")
attempt("netlink", new_link)
""",
    )
    assert answers.pop("unix") == "ok"
    assert "ok" not in answers.values(), answers


async def test_04_io_uring_is_not_there(bench: DockerBench) -> None:
    answers = await attack(
        bench,
        await bench.opened(),
        'call("setup", 425, 8, 0); call("enter", 426, 0, 0, 0, 0); call("register", 427, 0, 0)',
    )
    assert set(answers.values()) <= {"ENOSYS", "EPERM"}, answers


async def test_05_no_namespace_no_mount(bench: DockerBench) -> None:
    answers = await attack(
        bench,
        await bench.opened(),
        """
for name, flag in (("user", 0x10000000), ("mount", 0x20000), ("net", 0x40000000), ("pid", 0x20000000)):
    call("unshare " + name, 272, flag)
own = os.open("/proc/self/ns/mnt", os.O_RDONLY)
call("setns", 308, own, 0)
call("mount", 165, b"none", b"/tmp", b"tmpfs", 0, 0)
call("umount", 166, b"/tmp", 2)
call("pivot_root", 155, b"/tmp", b"/tmp")
call("chroot", 161, b"/tmp")
call("clone3", 435, ctypes.create_string_buffer((0x10000000).to_bytes(8, "little") + bytes(80)), 88)
call("open_tree", 428, -100, b"/", 1)
call("fsopen", 430, b"tmpfs", 0)
""",
    )
    assert set(answers.values()) <= {"EPERM", "ENOSYS"}, answers


async def test_06_kernel_doors_are_shut(bench: DockerBench) -> None:
    answers = await attack(
        bench,
        await bench.opened(),
        """
answers_buffer = ctypes.create_string_buffer(16)
call("bpf", 321, 0, ctypes.create_string_buffer(128), 128)
call("keyctl", 250, 0, -3, 1)
call("add_key", 248, b"user", b"x", b"y", 1, -3)
call("perf_event_open", 298, ctypes.create_string_buffer(128), 0, -1, -1, 0)
call("open_by_handle_at", 304, -100, ctypes.create_string_buffer(64), 0)
call("kexec_load", 246, 0, 0, 0, 0)
call("init_module", 175, 0, 0, b"")
call("userfaultfd", 323, 0)
call("ptrace init", 101, 16, 1, 0, 0)
iovec = ctypes.create_string_buffer(b"".join(n.to_bytes(8, "little") for n in (ctypes.addressof(answers_buffer), 16)))
call("process_vm_readv init", 310, 1, iovec, 1, iovec, 1, 0)
call("quotactl", 179, 0, 0, 0, 0)
call("reboot", 169, 0, 0, 0, 0)
call("settimeofday", 164, ctypes.create_string_buffer(16), 0)
call("sethostname", 170, b"x", 1)
call("swapon", 167, b"/x", 0)
""",
    )
    refused = {"EPERM", "ENOSYS", "EACCES"}
    assert {name: answer for name, answer in answers.items() if answer not in refused} == {}


async def test_07_other_calling_conventions_are_refused(bench: DockerBench) -> None:
    sandbox_id = await bench.opened()
    source = r"""
#include <stdio.h>
#include <string.h>
int main(int argc, char **argv) {
    long result;
    if (!strcmp(argv[1], "i386")) { int r; __asm__ volatile("int $0x80" : "=a"(r) : "a"(20) : "memory"); result = r; }
    else { __asm__ volatile("syscall" : "=a"(result) : "a"(0x40000000L + 39) : "rcx", "r11", "memory"); }
    printf("%ld\n", result);
    return 0;
}
"""
    (bench.volume(sandbox_id) / "workspace" / "odd.c").write_text(source)
    made = await bench.sh(sandbox_id, "gcc -o /state/odd odd.c")
    assert made.code == 0, made
    for convention in ("i386", "x32"):
        ran = await bench.run(sandbox_id, "/state/odd", convention)
        assert ran.signal is not None or int(ran.out) < 0, f"{convention}: getpid() answered {ran}"


async def test_08_no_device_node(bench: DockerBench) -> None:
    answers = await attack(
        bench,
        await bench.opened(),
        """
for name, mode, number in (("block", 0o60666, os.makedev(254, 0)), ("memory", 0o20666, os.makedev(1, 1))):
    attempt(name, lambda: os.mknod("/workspace/" + name, mode, number))
""",
    )
    assert set(answers.values()) == {"EPERM"}


async def test_09_kernel_settings_cannot_be_written(bench: DockerBench) -> None:
    answers = await attack(
        bench,
        await bench.opened(),
        """
for path in ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/sys/kernel/modprobe",
             "/proc/sys/vm/panic_on_oom", "/sys/fs/cgroup/memory/release_agent", "/sys/fs/cgroup/memory/cgroup.procs",
             "/sys/fs/cgroup/memory/x", "/sys/fs/cgroup/pids/pids.max", "/sys/kernel/uevent_helper",
             "/etc/hosts", "/etc/resolv.conf", "/usr/bin/x"):
    attempt(path, lambda: os.close(os.open(path, os.O_WRONLY | os.O_CREAT)))
for path in ("/proc/kcore", "/proc/kallsyms-x", "/proc/keys", "/proc/timer_list", "/proc/kmsg",
             "/dev/mem", "/dev/kmsg", "/dev/vda"):
    def read():
        if os.read(os.open(path, os.O_RDONLY | os.O_NONBLOCK), 10):
            return
        raise OSError(errno.ENODATA, "")  # masked: empty
    attempt("read " + path, read)
""",
    )
    assert "ok" not in answers.values(), answers


async def test_10_nothing_of_the_host_is_mounted(bench: DockerBench) -> None:
    sandbox_id = await bench.opened()
    ran = await bench.sh(sandbox_id, "cat /proc/self/mountinfo; echo; find / -xdev -name 'docker*.sock' 2>/dev/null")
    mounts, _, sockets = ran.text.partition("\n\n")
    assert not sockets.strip()
    ours = {"/run/carrel/ctl", "/run/carrel/spool", "/slot/vol", "/etc/hosts", "/etc/resolv.conf", "/etc/hostname"}
    for line in mounts.splitlines():
        point, kind = line.split()[4], line.partition(" - ")[2].split()[0]
        if kind not in ("proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2", "overlay"):
            assert point in ours, line
    ran = await bench.sh(sandbox_id, "touch /x /usr/x /etc/x /root/x /run/x /opt/x /var/tmp/x 2>&1; ls /root")
    assert ran.text.count("Read-only file system") + ran.text.count("Permission denied") >= 7, ran


async def test_11_a_leaked_descriptor_as_folder_leads_nowhere(bench: DockerBench) -> None:
    """CVE-2024-21626 and its kind: a cwd of /proc/self/fd/N that is a folder of the host."""
    sandbox_id = await bench.opened()
    inside = (await bench.sh(sandbox_id, "ls -id / /workspace /usr; stat -c %d /")).text
    look = "ls -id / /workspace /usr; stat -c %d /; ls -a; cat ../../../../etc/hostname"
    for number in range(3, 24):
        for folder in (f"/proc/self/fd/{number}", f"/proc/self/fd/{number}/../../../.."):
            said: list[object] = []
            async with await ViewerLink.open(await bench.driver.connect(sandbox_id)) as viewer:
                with contextlib.suppress(Conflict):  # init says no to the name alone
                    said += [said async for said in viewer.exec(["/bin/sh", "-c", look], cwd=folder)]
            shown = b"".join(getattr(each, "data", b"") for each in said).decode()
            assert not shown or shown.startswith(inside), f"{folder}: {shown}"
            for secret in ("docker.sock", "init.sock", "frames", "dockerenv.host"):
                assert secret not in shown


async def test_12_a_program_that_is_proc_self_exe_harms_nobody(bench: DockerBench) -> None:
    """CVE-2019-5736: the runtime is made to execute itself and is overwritten through /proc/PID/exe."""
    sandbox_id = await bench.opened()
    runc = Path(shutil.which("runc") or "/usr/sbin/runc")
    before = hashlib.sha256(runc.read_bytes()).hexdigest()
    evil = bench.volume(sandbox_id) / "workspace" / "sh"
    evil.write_text("#!/proc/self/exe\n")
    evil.chmod(0o755)
    for _ in range(5):
        await bench.run(sandbox_id, "/workspace/sh", "-c", "true")
    answers = await attack(
        bench,
        sandbox_id,
        """
for pid in [p for p in os.listdir("/proc") if p.isdigit() and int(p) != os.getpid()]:
    attempt(pid, lambda: os.open(f"/proc/{pid}/exe", os.O_WRONLY))
""",
    )
    assert answers and "ok" not in answers.values(), answers
    assert hashlib.sha256(runc.read_bytes()).hexdigest() == before
    assert (await bench.run(sandbox_id, "/bin/echo", "alive")).out == b"alive\n"


async def test_13_what_is_bound_cannot_be_swapped_for_a_link(bench: DockerBench) -> None:
    sandbox_id = await bench.opened()
    answers = await attack(
        bench,
        sandbox_id,
        """
for path in ("/slot/vol/workspace", "/slot/vol/state", "/slot/vol", "/run/carrel/ctl", "/run/carrel", "/workspace",
             "/state"):
    attempt("rename " + path, lambda: os.rename(path, "/slot/vol/workspace/old"))
    attempt("unlink " + path, lambda: os.unlink(path))
attempt("symlink", lambda: os.symlink("/", "/slot/vol/third"))
""",
    )
    assert "ok" not in answers.values(), answers
    # And if a slot's `vol` were a link all the same (a host's administrator, say), nobody takes it for a workspace.
    slot = bench.store.slot("sbx_planted")
    slot.path.mkdir()
    (slot.path / "vol").symlink_to(bench.volume(sandbox_id))
    assert not await bench.store.holds("sbx_planted")
    with pytest.raises(NotFound):
        bench.store.files("sbx_planted")


async def test_14_the_loaders_variables_never_reach_init(bench: DockerBench) -> None:
    sandbox_id = await bench.opened()
    await bench.sh(sandbox_id, "echo 'touch /workspace/ran-by-$$' > /workspace/evil; chmod 755 /workspace/evil")
    env = {"LD_PRELOAD": "/workspace/evil.so", "BASH_ENV": "/workspace/evil", "PYTHONSTARTUP": "/workspace/evil"}
    await bench.run(sandbox_id, "/bin/true", env=env)
    host = Path("/proc", str(bench.init_pid(sandbox_id)))
    children = (host / "task" / host.name / "children").read_text().split()
    for process in (host, *(Path("/proc", child) for child in children)):
        environment = (process / "environ").read_bytes()
        for name in env:
            assert name.encode() not in environment
        assert b"evil" not in (process / "maps").read_bytes()
    assert b"LD_PRELOAD" not in (await bench.run(sandbox_id, "/usr/bin/env")).out


async def test_15_kill_everything_leaves_init(bench: DockerBench) -> None:
    sandbox_id = await bench.opened()
    pid = bench.init_pid(sandbox_id)
    await bench.sh(sandbox_id, "kill -9 -1; kill -9 1; kill -TERM 1; kill -9 2")
    assert isinstance(await bench.driver.observe(sandbox_id), Running) and bench.init_pid(sandbox_id) == pid
    assert (await bench.run(sandbox_id, "/bin/echo", "alive")).out == b"alive\n"


async def test_16_init_and_its_spool_cannot_be_read(bench: DockerBench) -> None:
    sandbox_id = await bench.opened()
    async with bench.owner(sandbox_id) as owner:
        spawner = owner.hello.spawner_pid
    answers = await attack(
        bench,
        sandbox_id,
        f"pids = (1, {spawner})"
        """
for pid in pids:
    for name in ("mem", "environ", "maps", "auxv", "exe", "root", "cwd"):
        attempt(f"{pid}/{name}", lambda: os.close(os.open(f"/proc/{pid}/{name}", os.O_RDONLY)))
    attempt(f"{pid}/fd", lambda: os.listdir(f"/proc/{pid}/fd"))
    attempt(f"{pid}/ns", lambda: os.readlink(f"/proc/{pid}/ns/mnt"))
for path in ("/run/carrel/spool", "/run/carrel/ctl"):
    attempt(path, lambda: os.listdir(path))
    attempt(path + " enter", lambda: os.chdir(path))
""",
    )
    assert set(answers.values()) <= {"EACCES", "EPERM"}, answers


async def test_17_the_control_socket_is_not_for_the_agent(bench: DockerBench) -> None:
    sandbox_id = await bench.opened()
    answers = await attack(
        bench,
        sandbox_id,
        """
for name in ("init.sock", "ready.sock"):
    attempt(name, lambda: socket.socket(socket.AF_UNIX).connect("/run/carrel/ctl/" + name))
""",
    )
    assert set(answers.values()) == {"EACCES"}, answers
    # Not even where the folder's wall is gone: init looks at who connects.
    link = bench.volume(sandbox_id) / "workspace" / "control.sock"
    link.hardlink_to(bench.store.slot(sandbox_id).socket)
    link.chmod(0o777)
    answers = await attack(
        bench,
        sandbox_id,
        """
def greet():
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(20)
        s.connect("/workspace/control.sock")
        answer = s.recv(4096)
        if not answer or b"not_allowed" in answer:
            raise OSError(errno.EACCES, "")
attempt("greet", greet)
""",
    )
    assert answers == {"greet": "EACCES"}


async def test_18_forged_frames_are_plain_output(bench: DockerBench) -> None:
    sandbox_id = await bench.opened()
    forged = encode(Frame("exit", {"code": 0}, src=1, time_ms=1)) + encode(
        Frame("delivered", {"n": 7, "id": "x"}, src=2)
    )
    (bench.volume(sandbox_id) / "workspace" / "forged").write_bytes(forged)
    async with bench.owner(sandbox_id) as owner:
        fields = {"argv": ["/bin/sh", "-c", "cat forged; cat forged >&2; exit 3"], "cwd": "/workspace", "env": {}}
        await owner.start({**fields, "stdin": "none", "output": "auto"}, b"")
        frames: list[Frame] = []
        async with asyncio.timeout(30):
            while not frames or frames[-1].verb != "exit":
                await owner._changed.wait()
                owner._changed.clear()
                frames += owner.take(max_frames=100, max_bytes=1 << 20)
    assert [frame.verb for frame in frames if frame.verb in ("exit", "delivered")] == ["exit"]
    assert frames[-1].fields["code"] == 3
    for stream in ("stdout", "stderr"):
        said = [frame.payload for frame in frames if frame.verb == "output" and frame.fields["stream"] == stream]
        assert b"".join(said) == forged


async def test_19_a_daemon_in_its_own_session_dies_at_stop(bench: DockerBench) -> None:
    sandbox_id = await bench.opened()
    script = (
        "setsid setsid bash -c 'trap \"\" TERM HUP INT; while :; do echo x >> /workspace/beat; done' >/dev/null 2>&1 &"
    )
    await bench.sh(sandbox_id, script)
    beat = bench.volume(sandbox_id) / "workspace" / "beat"

    async def beats() -> bool:
        before = beat.stat().st_size if beat.exists() else 0
        await asyncio.sleep(0.01)
        return beat.exists() and beat.stat().st_size > before

    async def still() -> bool:
        async with await ViewerLink.open(await bench.driver.connect(sandbox_id)) as viewer:
            return int((await viewer.stat())["processes"]) == 0

    await until(beats, "the daemon works")
    async with bench.owner(sandbox_id) as owner:
        await owner.kill()
        await until(still, "nobody is left")
    ended_at = beat.stat().st_size
    assert not await beats() and beat.stat().st_size == ended_at
    with pytest.raises(Conflict):
        await bench.run(sandbox_id, "/bin/true")
