"""A program of its own: `python3 -I -S -B scripted_box.py <plan as JSON>` makes one box of the scripted driver.

The box is a real one, as far as root can make it in 30 ms without an image: init is PID 1 of its own pid, mount, ipc,
uts and network namespaces (the last holds a loopback, as a container's does), on the host's own /usr, read-only. No
capability dropped, no limit: it is for trusting tests and demos, not for agents.

Two processes stay: a keeper, which notes how the box ended, and init. This one returns when both run. Knows nothing of
frames; imports nothing but the standard library, since it does not run inside our package.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import Any, NoReturn

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWPID = 0x20000, 0x4000000, 0x8000000, 0x20000000
CLONE_NEWNET = 0x40000000
SIOCSIFFLAGS, IFF_UP, IFF_RUNNING = 0x8914, 0x1, 0x40
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = (
    1,
    2,
    4,
    8,
    32,
    4096,
    16384,
    1 << 18,
)
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: Path, kind: str = "", flags: int = 0, options: str = "") -> None:
    check(
        libc.mount(source.encode(), str(target).encode(), kind.encode(), flags, options.encode() or None),
        f"mount {target}",
    )


def bind(source: Path, target: Path, *, writable: bool = False) -> None:
    mount(str(source), target, flags=MS_BIND | MS_REC)
    if not writable:
        mount("", target, flags=MS_BIND | MS_REMOUNT | MS_RDONLY)


def furnish(root: Path, plan: dict[str, Any]) -> None:
    """The box's own tree at `root`, from the host's programs and the slot."""
    mount("none", Path("/"), flags=MS_REC | MS_PRIVATE)
    mount("box", root, "tmpfs", MS_NODEV, "mode=755,size=64m")
    for name in ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "etc", "opt"):
        host = Path("/", name)
        if host.is_symlink():
            (root / name).symlink_to(host.readlink())
        elif host.is_dir():
            (root / name).mkdir()
            bind(host, root / name)
    for name in ("proc", "dev", "tmp", "run", "slot", "carrel"):
        (root / name).mkdir()
    prefix = Path(plan["prefix"])
    if not prefix.is_relative_to("/usr"):
        (root / prefix.relative_to("/")).mkdir(parents=True)
        bind(prefix, root / prefix.relative_to("/"))
    mount("proc", root / "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    for name in DEVICES:
        (root / "dev" / name).touch()
        mount(f"/dev/{name}", root / "dev" / name, flags=MS_BIND)
    (root / "dev" / "pts").mkdir()
    mount("devpts", root / "dev" / "pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620")
    (root / "dev" / "ptmx").symlink_to("pts/ptmx")
    (root / "dev" / "fd").symlink_to("/proc/self/fd")
    (root / "tmp").chmod(0o1777)
    slot = Path(plan["slot"])
    for source, target in (
        (slot / "ctl", "run/carrel/ctl"),
        (slot / "spool", "run/carrel/spool"),
        (slot / "vol", "slot/vol"),
    ):
        (root / target).mkdir(parents=True)
        bind(source, root / target, writable=True)
    (root / "workspace").symlink_to("/slot/vol/workspace")
    (root / "state").symlink_to("/slot/vol/state")
    (root / "carrel" / "sandbox_init").mkdir()
    bind(Path(plan["init"]), root / "carrel" / "sandbox_init")


def become_init(plan: dict[str, Any], said: int) -> NoReturn:
    """PID 1 of the new namespaces."""
    try:
        root = Path(plan["box"]) / "root"
        root.mkdir(exist_ok=True)
        furnish(root, plan)
        os.chroot(root)
        os.chdir("/")
        os.umask(0o022)
        environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
        environment["CARREL_SANDBOX_ID"] = plan["sandbox_id"]
        python = plan["python"]
        os.execve(python, [python, "-I", "-S", "-B", "/carrel/sandbox_init/__main__.py"], environment)
    except BaseException as error:
        os.write(said, f"{type(error).__name__}: {error}".encode()[:2000])
        os._exit(1)


def keep(plan: dict[str, Any], said: int) -> NoReturn:
    """Start init, note its pid and start time, wait for its end, note that."""
    box = Path(plan["box"])
    os.close(plan["lock"])  # the other process holds it until the box is made
    os.setsid()
    quiet = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # whoever made us reads our stderr to its end
        os.dup2(quiet, descriptor)
    try:
        check(libc.unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET), "unshare")
        raise_loopback()
        pid = os.fork()
    except OSError as error:
        os.write(said, str(error).encode())
        os._exit(1)
    if pid == 0:
        become_init(plan, said)
    write(box / "pid", f"{pid} {start_time(pid)}")
    os.close(said)
    code = wait(pid, plan["run_for_s"], plan["exit_code"])
    write(box / "exit", str(code))
    os._exit(0)


def raise_loopback() -> None:
    """A new network namespace has one, down; init's outlet listens on it."""
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP | IFF_RUNNING))


def wait(pid: int, run_for_s: float | None, exit_code: int) -> int:
    """init's exit code, as a shell says it; or `exit_code` when the script ended it."""
    if run_for_s is not None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM, signal.SIGCHLD})
        signal.setitimer(signal.ITIMER_REAL, run_for_s)
        while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if signal.sigwait({signal.SIGALRM, signal.SIGCHLD}) == signal.SIGALRM:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return exit_code
    ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return 128 - ended if ended < 0 else ended


def start_time(pid: int) -> str:
    """Field 22 of /proc/PID/stat: with it a pid names one process for ever."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def write(file: Path, text: str) -> None:
    new = file.with_name(f".{file.name}")
    try:
        new.write_text(text)
        new.rename(file)
    except FileNotFoundError:
        return  # the box was removed meanwhile


def main() -> None:
    plan = json.loads(sys.argv[1])
    hear, say = os.pipe()
    if os.fork() == 0:
        os.close(hear)
        keep(plan, say)
    os.close(say)
    with os.fdopen(hear, "rb") as told:  # both ends of `say` close when init has become init, or failed
        problem = told.read().decode(errors="replace")
    if problem:
        sys.exit(problem)


if __name__ == "__main__":
    main()
