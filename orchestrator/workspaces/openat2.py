"""Opening a path below a directory without ever leaving it: openat2(2), or a stricter walk where a kernel lacks it.

The kernel resolves every component, links included, as if the directory were `/` (RESOLVE_IN_ROOT), and refuses the
links of /proc (RESOLVE_NO_MAGICLINKS): there is no moment between a check and its use. Knows nothing of workspaces.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from typing import Final

_SYS_OPENAT2: Final = 437  # the same on every architecture (it came after the numbers were unified)
_RESOLVE_NO_MAGICLINKS: Final = 0x02
_RESOLVE_NO_SYMLINKS: Final = 0x04
_RESOLVE_IN_ROOT: Final = 0x10
_RACES: Final = 128  # EAGAIN: something was renamed during the walk; the kernel asks to be asked again

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def _openat2(root: int, path: bytes, flags: int, resolve: int) -> int:
    how = _OpenHow(flags | os.O_CLOEXEC, 0, resolve)
    for _ in range(_RACES):
        descriptor = int(_libc.syscall(_SYS_OPENAT2, root, path, ctypes.byref(how), ctypes.sizeof(how)))
        if descriptor >= 0:
            return descriptor
        number = ctypes.get_errno()
        if number not in (errno.EAGAIN, errno.EINTR):
            raise OSError(number, os.strerror(number))
    raise OSError(errno.EAGAIN, "the path kept changing while it was looked up")


def _supported() -> bool:
    try:
        os.close(_openat2(os.open("/", os.O_PATH | os.O_CLOEXEC), b".", os.O_PATH, _RESOLVE_IN_ROOT))
    except OSError:
        return False
    return True


SUPPORTED: Final = _supported()


def open_inside(root: int, path: bytes, flags: int, *, links: bool = True) -> int:
    """A descriptor of `path` below the open directory `root`. `path` may be absolute: `/` is `root`.

    `links`: follow those that stay inside (all of them do: `..` and absolute targets end at `root`); without it any
    link on the way is ELOOP. O_NOFOLLOW in `flags` is about the last component. Raises OSError.
    """
    if not SUPPORTED:
        return walk_inside(root, path, flags)
    resolve = _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS | (0 if links else _RESOLVE_NO_SYMLINKS)
    return _openat2(root, path or b".", flags, resolve)


def walk_inside(root: int, path: bytes, flags: int) -> int:
    """The same, for kernels before 5.6: component by component, and no link is followed at all (ELOOP)."""
    names = [name for name in path.split(b"/") if name not in (b"", b".")]
    if b".." in names:
        raise OSError(errno.EXDEV, "leaves its root")
    with contextlib.ExitStack() as stack:
        here = root
        for name in names[:-1]:
            here = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            stack.callback(os.close, here)
        last = names[-1] if names else b"."
        descriptor = os.open(last, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
        wants_link = flags & os.O_PATH and flags & os.O_NOFOLLOW
        if flags & os.O_PATH and not wants_link and _is_link(descriptor):
            os.close(descriptor)
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        return descriptor


def _is_link(descriptor: int) -> bool:
    return (os.fstat(descriptor).st_mode & 0o170000) == 0o120000
