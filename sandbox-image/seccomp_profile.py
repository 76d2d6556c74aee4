"""The system calls a sandbox may make, by purpose, and why the missing ones are missing. Prints seccomp.json.

    python3 sandbox-image/seccomp_profile.py > sandbox-image/seccomp.json

The starting point is what Docker's default profile allows a container with our four capabilities (SETUID, SETGID,
KILL, SETPCAP), so rules that depend on capabilities are settled here once, and calls that exist only in 32-bit worlds
are gone with those worlds. Narrower than the default in:

- **architectures**: no 32-bit or x32 variant. With one, `int 0x80` would go round every rule on arguments.
- **socket**: unix, IPv4, IPv6, and netlink's route family, which language runtimes ask for interfaces. No AF_VSOCK (the
  hypervisor), AF_ALG, AF_PACKET, other netlink. `socketcall` is a 32-bit call and gone.
- **io_uring**: ENOSYS. It does file and network I/O that no other rule here sees.
- **ioctl**: every request but those of type 0x94, btrfs: uid 1000 could make subvolumes and leave its quota.
- **memfd_secret, fanotify, userfaultfd, keyctl, bpf, perf, mounts, namespaces, handles**: nothing an agent needs.

An ERRNO rule beside an unconditional allow of the same call is ignored by libseccomp, so a call with a condition is
named in no plain group: `_check` refuses such a description.
"""

from __future__ import annotations

import json
import sys
from typing import Any

PLAIN = {
    "files": """
        access chdir chmod chown close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64
        fallocate fchdir fchmod fchmodat fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fremovexattr
        fsetxattr fstat fstatfs fsync ftruncate futimesat getcwd getdents getdents64 getxattr inotify_add_watch
        inotify_init inotify_init1 inotify_rm_watch lchown lgetxattr link linkat listxattr llistxattr lremovexattr lseek
        lsetxattr lstat mkdir mkdirat mknod mknodat name_to_handle_at newfstatat open openat openat2 pread64 preadv
        preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv removexattr rename renameat renameat2
        rmdir sendfile setxattr splice stat statfs statx symlink symlinkat sync sync_file_range syncfs tee truncate
        umask unlink unlinkat utime utimensat utimes vmsplice write writev
    """,
    "waiting": """
        epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 pause poll ppoll
        pselect6 select signalfd signalfd4 io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit
    """,
    "memory": """
        brk madvise membarrier memfd_create mincore mlock mlock2 mlockall mmap mprotect mremap msync munlock munlockall
        munmap pkey_alloc pkey_free pkey_mprotect process_mrelease remap_file_pages
    """,
    "processes": """
        capget capset execve execveat exit exit_group fork getegid geteuid getgid getgroups getpgid getpgrp getpid
        getppid getpriority getresgid getresuid getrlimit getrusage getsid gettid getuid ioprio_get ioprio_set kill
        pidfd_open pidfd_send_signal pipe pipe2 prctl prlimit64 ptrace process_vm_readv process_vm_writev
        rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
        rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam
        sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam sched_setscheduler
        sched_yield setfsgid setfsuid setgid setgroups setpgid setpriority setregid setresgid setresuid setreuid
        setrlimit setsid setuid sigaltstack tgkill times tkill vfork wait4 waitid
    """,
    "threads": """
        arch_prctl futex futex_waitv get_robust_list get_thread_area getcpu restart_syscall rseq set_robust_list
        set_thread_area set_tid_address modify_ldt
    """,
    "time": """
        adjtimex alarm clock_adjtime clock_getres clock_gettime clock_nanosleep getitimer gettimeofday nanosleep
        setitimer time timer_create timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create
        timerfd_gettime timerfd_settime
    """,
    "sockets": """
        accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg recvmsg sendmmsg sendmsg
        sendto setsockopt shutdown
    """,
    "System V and POSIX queues": """
        mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink msgctl msgget msgrcv msgsnd semctl semget
        semop semtimedop shmat shmctl shmdt shmget
    """,
    "self-confinement": "landlock_add_rule landlock_create_ruleset landlock_restrict_self seccomp",
    "the machine": "getrandom sysinfo uname",
    "64-bit ARM only": "sync_file_range2",
}

AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, NETLINK_ROUTE = 1, 2, 10, 16, 0
NEW_NAMESPACES = 0x7E020000  # the CLONE_NEW… bits of clone's flags
BTRFS_IOCTL_TYPE = 0x94
PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)  # Linux, Linux32, UNAME26, both, "which is it"
ENOSYS = 38  # callers fall back as on an old kernel; EPERM makes some give up


def _allow(names: list[str], *args: dict[str, Any]) -> dict[str, Any]:
    return {"names": names, "action": "SCMP_ACT_ALLOW", "args": list(args)}


def _equals(index: int, value: int) -> dict[str, Any]:
    return {"index": index, "value": value, "op": "SCMP_CMP_EQ"}


def _masked(index: int, mask: int, value: int) -> dict[str, Any]:
    return {"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}


def profile() -> dict[str, Any]:
    """The profile in Docker's JSON."""
    rules = [_allow(sorted(names.split())) for names in PLAIN.values()]
    rules += [_allow(["socket"], _equals(0, family)) for family in (AF_UNIX, AF_INET, AF_INET6)]
    rules.append(_allow(["socket"], _equals(0, AF_NETLINK), _equals(2, NETLINK_ROUTE)))
    rules.append(_allow(["socketpair"], _equals(0, AF_UNIX)))
    rules.append(_allow(["clone"], _masked(0, NEW_NAMESPACES, 0)))
    rules += [_allow(["personality"], _equals(0, value)) for value in PERSONALITIES]
    # A request passes when any one bit of its type differs from btrfs's.
    for bit in range(8, 16):
        differing = ~(BTRFS_IOCTL_TYPE << 8) & (1 << bit)
        rules.append(_allow(["ioctl"], _masked(1, 1 << bit, differing)))
    refused = ["clone3", "io_uring_enter", "io_uring_register", "io_uring_setup"]  # clone3's flags cannot be seen here
    rules.append({"names": refused, "action": "SCMP_ACT_ERRNO", "args": [], "errnoRet": ENOSYS})
    _check(rules)
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "archMap": [
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": []},
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": []},
        ],
        "syscalls": rules,
    }


def _check(rules: list[dict[str, Any]]) -> None:
    plain: set[str] = set()
    for rule in rules:
        if not rule["args"]:
            twice = plain.intersection(rule["names"])
            assert not twice, f"named in two groups: {twice}"
            plain.update(rule["names"])
    for rule in rules:
        assert not rule["args"] or not plain.intersection(rule["names"]), (
            f"{rule['names']} is allowed without condition too"
        )


if __name__ == "__main__":
    json.dump(profile(), sys.stdout, indent=1)
    sys.stdout.write("\n")
