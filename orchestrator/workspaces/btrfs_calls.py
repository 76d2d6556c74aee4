"""What btrfs offers beyond files, as the kernel takes it: subvolumes, snapshots, quota groups, size (linux/btrfs.h).

Every name given is one component below an open folder of ours. All of it needs root. Raises OSError as the kernel says
it. Knows nothing of workspaces.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

MAGIC: Final = 0x9123683E  # statfs(2)'s f_type
SUBVOLUME_INODE: Final = 256  # of the top of every subvolume, and of no other folder

_ARGUMENTS_BYTES: Final = 4096
_NAME_BYTES: Final = 4039
_READ_ONLY: Final = 1 << 1
_BY_ID: Final = 1 << 4
_ROOT_TREE: Final = 1
_ROOT_REF: Final = 156
_MAX_RFER: Final = 1 << 0
_QUOTA_ENABLE: Final = 1


def _code(direction: int, number: int, size_bytes: int) -> int:
    return direction << 30 | size_bytes << 16 | 0x94 << 8 | number


_RESIZE: Final = _code(1, 3, 4096)
_SYNC: Final = _code(0, 8, 0)
_TREE_SEARCH: Final = _code(3, 17, 4096)
_INO_LOOKUP: Final = _code(3, 18, 4096)
_SNAP_CREATE_V2: Final = _code(1, 23, 4096)
_SUBVOL_CREATE_V2: Final = _code(1, 24, 4096)
_SUBVOL_SETFLAGS: Final = _code(1, 26, 8)
_FS_INFO: Final = _code(2, 31, 1024)
_QUOTA_CTL: Final = _code(3, 40, 16)
_QGROUP_CREATE: Final = _code(1, 42, 16)
_QGROUP_LIMIT: Final = _code(2, 43, 48)
_QUOTA_RESCAN: Final = _code(1, 44, 64)
_QUOTA_RESCAN_WAIT: Final = _code(0, 46, 0)
_SNAP_DESTROY_V2: Final = _code(1, 63, 4096)


def is_subvolume(path: Path) -> bool:
    """Of a folder that is known to lie on btrfs."""
    try:
        return path.lstat().st_ino == SUBVOLUME_INODE
    except FileNotFoundError:
        return False


def create_subvolume(folder: int, name: str) -> None:
    fcntl.ioctl(folder, _SUBVOL_CREATE_V2, _arguments(name=name))


def snapshot(volume: int, folder: int, name: str, *, read_only: bool) -> None:
    """Returns when it is on disk. What was written to `volume` before is in it."""
    fcntl.ioctl(folder, _SNAP_CREATE_V2, _arguments(fd=volume, flags=_READ_ONLY if read_only else 0, name=name))


def set_read_only(volume: int, read_only: bool) -> None:
    fcntl.ioctl(volume, _SUBVOL_SETFLAGS, struct.pack("=Q", _READ_ONLY if read_only else 0))


def destroy(folder: int, name: str) -> None:
    """At once gone; its space comes back by and by. ENOTEMPTY: it has subvolumes in it."""
    fcntl.ioctl(folder, _SNAP_DESTROY_V2, _arguments(name=name))


def destroy_by_id(anywhere: int, subvolume: int) -> None:
    packed = struct.pack("=qQQ32sQ", 0, 0, _BY_ID, b"", subvolume)
    fcntl.ioctl(anywhere, _SNAP_DESTROY_V2, bytearray(packed.ljust(_ARGUMENTS_BYTES, b"\0")))


def subvolume_id(descriptor: int) -> int:
    """Of the subvolume in which the open file or folder lies."""
    answer = bytearray(struct.pack("=QQ", 0, SUBVOLUME_INODE).ljust(_ARGUMENTS_BYTES, b"\0"))
    fcntl.ioctl(descriptor, _INO_LOOKUP, answer)
    return int(struct.unpack_from("=Q", answer)[0])


def children(anywhere: int, subvolume: int) -> Iterator[int]:
    """Ids of the subvolumes that lie directly in this one."""
    above = 0
    while True:
        key = struct.pack(
            "=7Q4I4Q",
            *(_ROOT_TREE, subvolume, subvolume, above, 2**64 - 1, 0, 2**64 - 1),
            *(_ROOT_REF, _ROOT_REF, 64, 0),
            *(0, 0, 0, 0),
        )
        answer = bytearray(key.ljust(_ARGUMENTS_BYTES, b"\0"))
        fcntl.ioctl(anywhere, _TREE_SEARCH, answer)
        found = struct.unpack_from("=I", answer, 64)[0]
        at = 104
        for _ in range(found):
            _, _, child, kind, length = struct.unpack_from("=3Q2I", answer, at)
            at += 32 + length
            above = child + 1
            if kind == _ROOT_REF:
                yield child
        if not found:
            return


def sync(descriptor: int) -> None:
    fcntl.ioctl(descriptor, _SYNC)


def filesystem_uuid(descriptor: int) -> str:
    answer = bytearray(1024)
    fcntl.ioctl(descriptor, _FS_INFO, answer)
    raw = answer[16:32].hex()
    return f"{raw[:8]}-{raw[8:12]}-{raw[12:16]}-{raw[16:20]}-{raw[20:]}"


def grow(descriptor: int) -> None:
    """To all of its device."""
    fcntl.ioctl(descriptor, _RESIZE, bytearray(struct.pack("=q", 0) + b"max".ljust(_ARGUMENTS_BYTES - 8, b"\0")))


# -- quota groups: one for each subvolume, with its id -----------------------------------------------------------------


def enable_quota(descriptor: int) -> None:
    """On already is fine. Returns when what is there was counted."""
    fcntl.ioctl(descriptor, _QUOTA_CTL, struct.pack("=QQ", _QUOTA_ENABLE, 0))
    wait_for_count(descriptor)


def count_again(descriptor: int) -> None:
    """Returns when it was done."""
    try:
        fcntl.ioctl(descriptor, _QUOTA_RESCAN, bytes(64))
    except OSError as error:
        if error.errno != errno.EINPROGRESS:
            raise
    wait_for_count(descriptor)


def wait_for_count(descriptor: int) -> None:
    fcntl.ioctl(descriptor, _QUOTA_RESCAN_WAIT)


def limit(descriptor: int, subvolume: int, size_bytes: int) -> None:
    """Of all that the subvolume refers to, whoever shares it; 0 = none."""
    # None is said by -1 under the flag: without the flag the old one would stay.
    most = size_bytes or 2**64 - 1
    fcntl.ioctl(descriptor, _QGROUP_LIMIT, struct.pack("=6Q", subvolume, _MAX_RFER, most, 0, 0, 0))


def forget_group(descriptor: int, subvolume: int) -> None:
    """EBUSY: the subvolume is there yet, or its space has not come back."""
    fcntl.ioctl(descriptor, _QGROUP_CREATE, struct.pack("=QQ", 0, subvolume))


def groups(uuid: str) -> Path:
    """Where the kernel (5.9 or newer) shows the groups' figures as they are now, `0_<id>` each."""
    return Path("/sys/fs/btrfs") / uuid / "qgroups"


def _arguments(*, name: str, fd: int = 0, flags: int = 0) -> bytearray:
    """A bytearray: Python takes no more than 1,024 bytes that are immutable."""
    raw = os.fsencode(name)
    if not raw or len(raw) > _NAME_BYTES or b"/" in raw or b"\0" in raw:
        raise ValueError(f"no name of one folder: {name!r}")
    return bytearray((struct.pack("=qQQ32s", fd, 0, flags, b"") + raw).ljust(_ARGUMENTS_BYTES, b"\0"))
