"""A file as a block device: attached, found again, grown (linux/loop.h). It goes by itself with its last user.

Needs root. Raises OSError. Knows no filesystem.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
from pathlib import Path
from typing import Final

_GET_FREE: Final = 0x4C82  # of /dev/loop-control
_SET_CAPACITY: Final = 0x4C07
_GET_STATUS64: Final = 0x4C05
_CONFIGURE: Final = 0x4C0A
_AUTOCLEAR: Final = 4
_DIRECT_IO: Final = 16
_CONFIG_BYTES: Final = 304
_STATUS_BYTES: Final = 232
_LOOP_MAJOR: Final = 7
_TRIES: Final = 64  # somebody else may take the free one first


def attach(file: Path) -> tuple[int, Path]:
    """(an open descriptor, the device). Until it is mounted the descriptor holds it; it is gone with its last user. The
    one that has this file already is taken: two on one file would spoil it."""
    for _ in range(_TRIES):
        device = attached(file)
        if device is not None:
            descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
            if _backs(descriptor, file.stat()):
                return descriptor, device
            os.close(descriptor)
        else:
            found = _attach_free(file)
            if found is not None:
                return found
    raise OSError(errno.EBUSY, "every free loop device was taken by somebody else")


def attached(file: Path) -> Path | None:
    """The device that has this file."""
    wanted = file.stat()
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        device = Path("/dev") / backing.parent.parent.name
        with contextlib.suppress(OSError):
            descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if _backs(descriptor, wanted):
                    return device
            finally:
                os.close(descriptor)
    return None


def fit(device: Path) -> None:
    """To its file's size, which has changed."""
    descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _SET_CAPACITY)
    finally:
        os.close(descriptor)


def _attach_free(file: Path) -> tuple[int, Path] | None:
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        number = fcntl.ioctl(control, _GET_FREE)
    finally:
        os.close(control)
    device = Path(f"/dev/loop{number}")
    if not device.exists():  # a container's /dev does not follow the kernel
        with contextlib.suppress(FileExistsError):
            os.mknod(device, stat.S_IFBLK | 0o660, os.makedev(_LOOP_MAJOR, number))
    backing = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    try:
        descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        try:
            # Direct: else every page would be cached twice. Where the file's filesystem has none, without.
            for flags in (_AUTOCLEAR | _DIRECT_IO, _AUTOCLEAR):
                try:
                    fcntl.ioctl(descriptor, _CONFIGURE, _configuration(backing, file, flags))
                    return descriptor, device
                except OSError as error:
                    if error.errno == errno.EBUSY:
                        break
                    if error.errno != errno.EINVAL or flags == _AUTOCLEAR:
                        raise
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None
    finally:
        os.close(backing)


def _configuration(backing: int, file: Path, flags: int) -> bytes:
    name = os.fsencode(file)[:63]  # shown by losetup; what counts is the descriptor
    status = struct.pack("=5Q4I64s", 0, 0, 0, 0, 0, 0, 0, 0, flags, name).ljust(_STATUS_BYTES, b"\0")
    return (struct.pack("=II", backing, 4096) + status).ljust(_CONFIG_BYTES, b"\0")


def _backs(device: int, file: os.stat_result) -> bool:
    status = bytearray(_STATUS_BYTES)
    try:
        fcntl.ioctl(device, _GET_STATUS64, status)
    except OSError:
        return False
    device_number, inode = struct.unpack_from("=QQ", status)
    return (int(device_number), int(inode)) == (file.st_dev, file.st_ino)
