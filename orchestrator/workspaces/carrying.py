"""What is on the shelf of one execution, out of its folder and into another: pieces of files, each under the file's
name. Memory is one piece. Knows neither the shelf nor where it is carried."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Final

PIECE_BYTES: Final = 1 << 20


def hold(place: Path, new: Path) -> bool:
    """Give all that is in `place` another name in `new`, so that it stays whatever becomes of the place. False: it was
    replaced or removed meanwhile; nothing there at all is whole. Raises OSError."""
    try:
        here = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # its number is nobody else's meanwhile
    except FileNotFoundError:
        return True
    try:
        for path in Path(f"/proc/self/fd/{here}").iterdir():
            name = path.name
            try:
                os.link(name, new / name, src_dir_fd=here)
            except OSError as error:
                if error.errno != errno.EMLINK:
                    raise
                shutil.copyfile(path, new / name)
        return place.stat().st_ino == os.fstat(here).st_ino
    except FileNotFoundError:
        return False
    finally:
        os.close(here)


def pieces(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every file in it, in the order of their names; an empty one is one empty piece."""
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            data = file.read(PIECE_BYTES)
            yield path.name, data
            while data := file.read(PIECE_BYTES):
                yield path.name, data


def put(given: Iterable[tuple[str, bytes]], folder: Path) -> Iterator[tuple[str, Path, str]]:
    """Write each file beside its name, durably: (its name, where it is, its sha256). Raises OSError."""
    for number, (name, group) in enumerate(groupby(given, key=lambda piece: piece[0])):
        digest = hashlib.sha256()
        copy = folder / f".copy-{number}"
        with copy.open("xb") as file:
            for _, data in group:
                digest.update(data)
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield name, copy, digest.hexdigest()
