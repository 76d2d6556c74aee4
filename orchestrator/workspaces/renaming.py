"""renameat2(2): one name for another in one step, and only where nothing has that name. Knows nothing of workspaces."""

from __future__ import annotations

import ctypes
import os
from typing import Final

_NOREPLACE: Final = 1

_libc = ctypes.CDLL(None, use_errno=True)


def rename_new(old: bytes, new: bytes, *, old_folder: int, new_folder: int) -> None:
    """Raises FileExistsError where `new` is there, whatever it is; OSError as rename(2) does."""
    if _libc.renameat2(old_folder, old, new_folder, new, _NOREPLACE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
