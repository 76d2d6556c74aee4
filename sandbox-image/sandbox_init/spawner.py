"""The spawner: the one process init forks, and the parent of everything else in the sandbox.

Init may not fork once the sandbox runs (its children would be born outside the `work` cgroup), so it forks this
process before anything else; the host moves it into `work`, and all it starts is born there. Each request is one
process: forked twice, so that PID 1 becomes its parent and sees how it ends, then stripped of every privilege.

Knows nothing of harnesses, spools or connections. Runs as root because it must become the harness's uid again and
again; it reads nothing but its socket to init, which nobody else can reach.

Which uid the harness has is said by the files it is given: the owner of the workspace. That is 1000 where a root worker
handed them over; a worker that is not root cannot, so there it is the worker's own.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # no stub; `signal` itself needs enum
import _socket
import errno
import os

from sandbox_init.frames import Decoder, Frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

WORKSPACE = "/slot/vol/workspace"
AGENT_UID = 1000  # where there is no workspace yet
AGENT_GID = 1000
OOM_SCORE_ADJ = b"500"  # the kernel takes the harness, not init or the spawner; uid 1000 may lower it to 0, not below
DEFAULT_PATH = b"/usr/local/bin:/usr/bin:/bin"
SIGNALS = [n for n in range(1, 65) if n not in (_signal.SIGKILL, _signal.SIGSTOP, 32, 33)]  # 32, 33 are glibc's own
_CLOSE_UP_TO = 1024
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_CDECL, _USE_ERRNO = 1, 8  # flags of a ctypes function


class SealFailed(Exception):
    """A privilege could not be given up for ever, so nothing may be started."""


def seal() -> None:
    """Take from this process, and so from all it will start, what none may have: the capability bounding set, new
    privileges by setuid files, core dumps. Raises SealFailed; it believes /proc, not the calls' answers."""
    # The C half of ctypes: 0.1 MB, for the life of every sandbox, where ctypes itself takes 0.6.
    import resource
    from _ctypes import CFuncPtr, _SimpleCData, dlopen, dlsym, get_errno

    class Int(_SimpleCData):  # type: ignore[type-arg]  # not subscriptable when it runs
        _type_ = "i"

    class Function(CFuncPtr):
        _flags_ = _CDECL | _USE_ERRNO
        _restype_ = Int

    prctl = Function(dlsym(dlopen(None, os.RTLD_NOW), "prctl"))  # type: ignore[arg-type]  # None: this process itself
    for capability in range(64):
        if prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            if get_errno() == errno.EINVAL:
                break  # past the last one this kernel has
            raise SealFailed(f"capability {capability} stays in the bounding set: the sandbox needs SETPCAP")
    prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open("/proc/self/status", "rb") as file:
        status = file.read()
    for line in (b"\nCapBnd:\t0000000000000000\n", b"\nNoNewPrivs:\t1\n"):
        if line not in status:
            raise SealFailed(f"/proc/self/status does not say {line.decode().strip()!r}")


def agent() -> tuple[int, int]:
    """The harness's uid and gid. Raises SealFailed: it would be root; OSError: the workspace is out of init's reach."""
    try:
        found = os.stat(WORKSPACE)
    except FileNotFoundError:
        return AGENT_UID, AGENT_GID
    if found.st_uid == 0:
        raise SealFailed("the workspace belongs to root, and so would the harness")
    return found.st_uid, found.st_gid or found.st_uid  # never root's group


def run(control: _socket.socket) -> NoReturn:
    """The life of the spawner. `control` is blocking; when init is gone the kernel ends this process too."""
    for number in SIGNALS:
        if number != _signal.SIGCHLD:
            _signal.signal(number, _signal.SIG_IGN)  # `kill(-1, n)` of init reaches this process as well
    if control.recv(1) != b"s":  # init has its socket: until then the processor is its own
        os._exit(0)
    try:
        who = agent()
        seal()
    except (SealFailed, OSError, ImportError) as problem:
        control.sendall(str(problem).encode()[:500])
        os._exit(1)
    control.sendall(b"\0")
    while True:
        request, fds = _receive(control)
        control.sendall(_fork_twice(request, fds, who).to_bytes(4, "big"))
        for fd in fds:
            os.close(fd)


def _receive(control: _socket.socket) -> tuple[Frame, list[int]]:
    decoder = Decoder()
    fds: list[int] = []
    while True:
        data, ancillary, _, _ = control.recvmsg(65536, _socket.CMSG_SPACE(16), _socket.MSG_CMSG_CLOEXEC)
        if not data:
            os._exit(0)
        for _, _, packed in ancillary:
            fds += [int.from_bytes(packed[at : at + 4], "little") for at in range(0, len(packed), 4)]
        for frame in decoder.feed(data):
            return frame, fds


def _fork_twice(request: Frame, fds: list[int], who: tuple[int, int]) -> int:
    """0, or the errno of the fork that failed."""
    try:
        child = os.fork()
    except OSError as problem:
        return problem.errno or errno.EAGAIN
    if child == 0:
        try:
            grandchild = os.fork()
        except OSError as problem:
            os._exit((problem.errno or errno.EAGAIN) & 0xFF)
        if grandchild == 0:
            _become(request, fds, who)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    return os.waitstatus_to_exitcode(status) & 0xFF


def _become(request: Frame, fds: list[int], who: tuple[int, int]) -> NoReturn:
    """Say who we are, wait for leave, give up root, become the program. `fds`: stdin, stdout, stderr, link to init.
    `who`: uid, gid."""
    link = _socket.socket(fileno=fds[3])
    try:
        os.setsid()
        with open("/proc/self/oom_score_adj", "wb", buffering=0) as file:
            file.write(OOM_SCORE_ADJ)
        link.sendall(os.getpid().to_bytes(4, "big"))
        if link.recv(1) != b"g":
            os._exit(125)
        for fd in range(3):
            os.dup2(fds[fd], fd)
        os.closerange(3, fds[3])
        os.closerange(fds[3] + 1, _CLOSE_UP_TO)
        os.umask(0o022)
        os.setgroups([])
        uid, gid = who
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        fields = request.fields
        os.chdir(fields["cwd"])
        for number in SIGNALS:
            _signal.signal(number, _signal.SIG_DFL)
        _signal.pthread_sigmask(_signal.SIG_SETMASK, [])
        environment = {pair[0]: pair[1] for pair in fields["env"]}
        _execute(fields["argv"], environment)
    except OSError as problem:
        number = problem.errno or errno.EIO
        try:
            link.sendall(number.to_bytes(4, "big"))
        finally:
            os._exit(127 if number == errno.ENOENT else 126)
    except BaseException:
        os._exit(126)


def _execute(argv: list[bytes], environment: dict[bytes, bytes]) -> NoReturn:
    """As execvpe of libc, the shell for a script without `#!` included. Raises the most telling OSError."""
    name = argv[0]
    if b"/" in name:
        candidates = [name]
    else:
        path = environment.get(b"PATH", DEFAULT_PATH)
        candidates = [(folder or b".") + b"/" + name for folder in path.split(b":")]
    telling: OSError | None = None
    for candidate in candidates:
        try:
            os.execve(candidate, argv, environment)
        except OSError as problem:
            if problem.errno == errno.ENOEXEC:
                os.execve(b"/bin/sh", [b"/bin/sh", candidate, *argv[1:]], environment)
            if problem.errno not in (errno.ENOENT, errno.ENOTDIR) or b"/" in name:
                telling = telling or problem
    raise telling or OSError(errno.ENOENT, "no such program")
