"""Other names for what is in a workspace, and their end. No link is followed but on the way to a folder, which stays
inside as every look-up does. Knows names below `vol`, already checked.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from typing import Final

from orchestrator.durable import disk_errors
from orchestrator.errors import BadInput, Conflict
from orchestrator.workspaces.lookup import looked_up, open_changeable, open_folder
from orchestrator.workspaces.removal import remove_below
from orchestrator.workspaces.renaming import rename_new

_GONE: Final = ".carrel-gone-"
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK


def move(root: int, old: bytes, new: bytes, path: str, to: str, *, overwrite: bool) -> None:
    """The port's `move`; `path` and `to` as people said them."""
    old_last = _last(old, path, "path")
    new_last = _last(new, to, "to")
    if new == old or new.startswith(old + b"/"):
        raise BadInput(
            "a folder cannot be moved into itself",
            field="to",
            limit="a place outside of it",
            remedy="name another place",
        )
    with contextlib.ExitStack() as held:
        with looked_up(path):
            old_folder = held.enter_context(_open(open_changeable(root, old.rpartition(b"/")[0], _FOLDER)))
            os.stat(old_last, dir_fd=old_folder, follow_symlinks=False)  # before a folder is made for it
        with looked_up(to, "to"), disk_errors("workspace"):
            new_folder = held.enter_context(_open(open_folder(root, new.rpartition(b"/")[0])))
            try:
                if overwrite:
                    os.rename(old_last, new_last, src_dir_fd=old_folder, dst_dir_fd=new_folder)
                else:
                    rename_new(old_last, new_last, old_folder=old_folder, new_folder=new_folder)
            except OSError as error:
                raise _refused(error, to, overwrite) from error
            os.fsync(new_folder)
            os.fsync(old_folder)


def remove(root: int, name: bytes, path: str, *, recursive: bool) -> None:
    """The port's `remove`."""
    last = _last(name, path, "path")
    with looked_up(path), _open(open_changeable(root, name.rpartition(b"/")[0], _FOLDER)) as folder:
        found = os.stat(last, dir_fd=folder, follow_symlinks=False)
        if not stat.S_ISDIR(found.st_mode):
            os.unlink(last, dir_fd=folder)
        elif recursive:
            gone = os.fsencode(_GONE + secrets.token_hex(8))
            os.rename(last, gone, src_dir_fd=folder, dst_dir_fd=folder)
            if not remove_below(folder, gone):
                raise Conflict(
                    f"not all of {path} could be removed; what is left is {os.fsdecode(gone)}",
                    state="directory",
                    remedy="remove that when no program writes there",
                )
        else:
            try:
                os.rmdir(last, dir_fd=folder)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    raise Conflict(
                        f"{path} is not empty", state="directory", remedy="say recursive, to remove all in it"
                    ) from error
                raise
        os.fsync(folder)


def _last(name: bytes, path: str, field: str) -> bytes:
    above, _, last = name.rpartition(b"/")
    if not above:
        raise BadInput(
            f"{path or '/workspace'} itself stays where it is",
            field=field,
            limit="something in it",
            remedy="name what is in it",
        )
    return last


def _refused(error: OSError, to: str, overwrite: bool) -> Exception:
    if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
        remedy = "remove it first" if overwrite else "say overwrite, or name another place"
        return Conflict(f"{to} is there already", state="there", remedy=remedy)
    if error.errno in (errno.EISDIR, errno.ENOTDIR):
        return Conflict(f"{to} is of another kind", state="there", remedy="remove it first")
    if error.errno == errno.EINVAL:  # by way of a link, into itself
        return BadInput(
            "a folder cannot be moved into itself", field="to", limit="a place outside of it", remedy="name another"
        )
    return error


@contextlib.contextmanager
def _open(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)
