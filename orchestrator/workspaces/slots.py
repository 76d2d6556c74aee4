"""The life of slots: `slots/<sandbox>/{ctl,spool,vol}`, whatever kind of folder a `vol` is.

A `vol` is whole from the moment it has its name: it is built beside it and renamed. When it moves on to the next
sandbox of its execution, the old slot first says where to, so that whoever crashed in between, or asks by the old
name, finds it. All of it blocks. Knows nothing of containers or executions.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from orchestrator.durable import disk_errors, sync_filesystem, sync_folder
from orchestrator.errors import BadInput, Conflict, NotFound
from orchestrator.workspace import Seed, Slot
from orchestrator.workspaces import paths
from orchestrator.workspaces.removal import remove_tree
from orchestrator.workspaces.volumes import Volumes

MAX_SEEDS: Final = 10_000
COPY_BYTES: Final = 1024 * 1024
MAX_MOVES: Final = 1000  # sandboxes of one execution, followed from the oldest
_NEW: Final = ".new-vol-"
_MOVED: Final = "moved-to"
_GONE: Final = ".gone-"
_SLOT: Final = "sbx_"  # every slot of a sandbox begins so


class Slots:
    """Below the folder `root`, which several processes may share."""

    def __init__(self, root: Path, volumes: Volumes) -> None:
        self._root = root
        self._volumes = volumes

    def slot(self, sandbox_id: str) -> Slot:
        """Where it is (or would be). Raises NotFound for what is no id."""
        if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_-]{0,63}", sandbox_id):
            raise NotFound(f"{sandbox_id!r} is no sandbox's id", kind="sandbox", id=sandbox_id)
        return Slot(sandbox_id, self._root / sandbox_id)

    def strip(self, sandbox_id: str) -> None:
        path = self.slot(sandbox_id).path
        for name in ("ctl", "spool"):
            remove_tree(path / name)

    # -- making -------------------------------------------------------------------------------------------------------

    def prepare(self, slot: Slot, inherit: str | None, seeds: Sequence[Seed], disk_bytes: int) -> None:
        check(seeds)
        with disk_errors("workspace"):
            self._open(slot)
            if whole(slot.path / "vol"):
                return
            earlier = self.volume(inherit) if inherit else None
            if earlier == slot.path / "vol":
                return  # moved here since we looked
            if earlier is not None:
                self._volumes.limit(earlier, disk_bytes)
                self._move(earlier, slot)
            else:
                self._build(slot, lambda new: self._furnish(new, seeds, disk_bytes))
            self._on_disk(slot)

    def begin(self, slot: Slot, kept: Path, disk_bytes: int) -> None:
        """As `prepare`, with `vol` a copy of the volume `kept`."""
        with disk_errors("workspace"):
            self._open(slot)
            if whole(slot.path / "vol"):
                return
            self._build(slot, lambda new: self._volumes.begin(kept, new, disk_bytes))
            self._on_disk(slot)

    def _open(self, slot: Slot) -> None:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (slot.path, slot.path / "ctl", slot.path / "spool"):
            folder.mkdir(mode=0o700, exist_ok=True)
        if os.geteuid() != 0:
            # init is root without the right to pass over permissions, and these are not root's. `root` is ours and
            # 0700, and init shuts the way to them inside, so nobody else comes as far as these modes.
            for folder in (slot.path / "ctl", slot.path / "spool"):
                folder.chmod(0o777)

    def _on_disk(self, slot: Slot) -> None:
        sync_folder(slot.path)
        sync_folder(self._root)

    def _move(self, earlier: Path, slot: Slot) -> None:
        # The sign comes first: from here on the old name leads to the new slot, where `vol` is until it is not here.
        sign = earlier.parent / f".{_MOVED}-{secrets.token_hex(4)}"
        sign.write_text(slot.sandbox_id)
        sign.rename(earlier.parent / _MOVED)
        sync_folder(earlier.parent)
        if os.geteuid() != 0:
            earlier.chmod(0o755)  # the harness had our uid and may have taken our rights on it away
        try:
            earlier.rename(slot.path / "vol")
        except OSError:
            if not whole(slot.path / "vol"):  # else a zombie of this execution's was faster
                raise
        sync_folder(earlier.parent)

    def _build(self, slot: Slot, build: Callable[[Path], None]) -> None:
        new = slot.path / f"{_NEW}{secrets.token_hex(4)}"  # two owners of one epoch apart may be here at once
        try:
            build(new)
            try:
                new.rename(slot.path / "vol")
            except OSError:
                if not whole(slot.path / "vol"):
                    raise
                self._volumes.remove(new)
        except BaseException:
            self._volumes.remove(new)
            raise

    def _furnish(self, new: Path, seeds: Sequence[Seed], disk_bytes: int) -> None:
        self._volumes.make(new, disk_bytes)
        new.chmod(0o755)  # whatever the umask: the harness, and init, must come through
        for name in ("workspace", "workspace/artifacts", "state", "state/home"):  # ARTIFACTS_DIR and HOME: they exist
            (new / name).mkdir(mode=0o755)
            _give(new / name)
        files = paths.VolumeFiles(new)
        for seed in seeds:
            try:
                files.write(seed.path, _chunks(seed.source), mode=seed.mode, durable=False)
            except (Conflict, BadInput) as error:
                raise BadInput(
                    f"file {seed.path!r}: {error.message}", field="files", limit="", remedy="name each path once"
                ) from error
        if seeds:
            sync_filesystem(new)

    # -- finding ------------------------------------------------------------------------------------------------------

    def volume(self, sandbox_id: str | None) -> Path | None:
        """The `vol` this sandbox's files are in: its own, or where it was moved to."""
        for _ in range(MAX_MOVES):
            if sandbox_id is None:
                return None
            path = self.slot(sandbox_id).path
            if whole(path / "vol"):
                return path / "vol"
            sandbox_id = _moved_to(path)
        return None

    def list(self) -> Sequence[tuple[str, datetime]]:
        found: list[tuple[str, datetime]] = []
        if not self._root.is_dir():
            return found
        for path in self._root.iterdir():
            if path.name.startswith(_GONE):
                self._volumes.remove(path)  # what a crash left of a removal
            elif path.name.startswith(_SLOT):  # not lost+found, nor what a person put here: listed is swept
                with contextlib.suppress(FileNotFoundError):
                    found.append((path.name, datetime.fromtimestamp(path.stat().st_mtime, tz=UTC)))
        return sorted(found)

    def remove(self, sandbox_id: str) -> None:
        path = self.slot(sandbox_id).path
        gone = self._root / f"{_GONE}{path.name}-{secrets.token_hex(4)}"
        try:
            path.rename(gone)  # at once gone for everybody, whatever it takes to remove
        except FileNotFoundError:
            return
        self._volumes.remove(gone)


def whole(volume: Path) -> bool:
    """Not through a link: nobody but root writes a slot, but nobody should have to know that."""
    return all(part.is_dir() and not part.is_symlink() for part in (volume, volume / "workspace", volume / "state"))


def _moved_to(path: Path) -> str | None:
    try:
        return (path / _MOVED).read_text()
    except FileNotFoundError:
        return None


def _give(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        paths.give_to_harness(descriptor)
    finally:
        os.close(descriptor)


def _chunks(source: Path) -> Iterator[bytes]:
    with source.open("rb") as file:
        while chunk := file.read(COPY_BYTES):
            yield chunk


def check(seeds: Sequence[Seed]) -> None:
    """Raise BadInput(field="files") for a seed that cannot be laid in."""
    if len(seeds) > MAX_SEEDS:
        raise BadInput(
            f"{len(seeds)} files",
            field="files",
            limit=f"<= {MAX_SEEDS} files",
            remedy="send an archive and unpack it inside",
        )
    seen: set[bytes] = set()
    for seed in seeds:
        name = paths.inside(seed.path, field="files")
        if name in seen or name in (b"workspace", b"state"):
            raise BadInput(
                f"file {seed.path!r} is there twice, or names a folder",
                field="files",
                limit="one file per path",
                remedy="name each path once",
            )
        seen.add(name)
