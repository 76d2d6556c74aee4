"""Workspaces as plain directories: `slots/<sandbox>/{ctl,spool,vol}`, on any filesystem. Nothing bounds their size.

A `vol` is whole from the moment it has its name: it is built beside it and renamed. When it moves on to the next
sandbox of its execution, the old slot first says where to, so that whoever crashed in between, or asks by the old
name, finds it. Knows nothing of containers or executions.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from orchestrator.errors import BadInput, Conflict, Infeasible, NotFound
from orchestrator.workspace import Files, Seed, Slot
from orchestrator.workspaces import paths
from orchestrator.workspaces.durable import disk_errors, sync_folder
from orchestrator.workspaces.removal import remove_tree

MAX_SEEDS: Final = 10_000
COPY_BYTES: Final = 1024 * 1024
MAX_MOVES: Final = 1000  # sandboxes of one execution, followed from the oldest
_NEW: Final = ".new-vol-"
_MOVED: Final = "moved-to"
_GONE: Final = ".gone-"
_SLOT: Final = "sbx_"  # every slot of a sandbox begins so

_libc = ctypes.CDLL(None, use_errno=True)


class DirectoryStore:
    """The port `WorkspaceStore` on the folder `root`, which several processes may share. Its path must keep
    `slot/ctl/init.sock` readable for people only: sockets are named by descriptor."""

    def __init__(self, root: Path) -> None:
        self._root = root

    async def prepare(self, sandbox_id: str, *, inherit: str | None, seeds: Sequence[Seed], disk_bytes: int) -> Slot:
        """As the port says. Raises Infeasible(field="disk_bytes") too: this store cannot bound a workspace's size."""
        if disk_bytes:
            raise Infeasible(
                "workspaces of this installation are plain directories: their size cannot be limited",
                field="disk_bytes",
                limit="0",
            )
        _check(seeds)
        slot = self.slot(sandbox_id)
        await asyncio.to_thread(self._prepare, slot, inherit, seeds)
        return slot

    def slot(self, sandbox_id: str) -> Slot:
        if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_-]{0,63}", sandbox_id):
            raise NotFound(f"{sandbox_id!r} is no sandbox's id", kind="sandbox", id=sandbox_id)
        return Slot(sandbox_id, self._root / sandbox_id)

    async def holds(self, sandbox_id: str) -> bool:
        """True too where a later sandbox of the execution has it: it was moved on, not lost."""
        return self._volume(sandbox_id) is not None

    async def strip(self, sandbox_id: str) -> None:
        path = self.slot(sandbox_id).path
        for name in ("ctl", "spool"):
            await asyncio.to_thread(remove_tree, path / name)

    async def remove(self, sandbox_id: str) -> None:
        await asyncio.to_thread(self._remove, self.slot(sandbox_id).path)

    async def list(self) -> Sequence[tuple[str, datetime]]:
        return await asyncio.to_thread(self._list)

    def files(self, sandbox_id: str) -> Files:
        volume = self._volume(sandbox_id)
        if volume is None:
            raise NotFound("the workspace is not here", kind="workspace", id=sandbox_id)
        return paths.VolumeFiles(volume)

    # -- making -------------------------------------------------------------------------------------------------------

    def _prepare(self, slot: Slot, inherit: str | None, seeds: Sequence[Seed]) -> None:
        with disk_errors("workspace"):
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in (slot.path, slot.path / "ctl", slot.path / "spool"):
                folder.mkdir(mode=0o700, exist_ok=True)
            if os.geteuid() != 0:
                # init is root without the right to pass over permissions, and these are not root's. `root` is ours and
                # 0700, and init shuts the way to them inside, so nobody else comes as far as these modes.
                for folder in (slot.path / "ctl", slot.path / "spool"):
                    folder.chmod(0o777)
            if _whole(slot.path / "vol"):
                return
            earlier = self._volume(inherit) if inherit else None
            if earlier == slot.path / "vol":
                return  # moved here since we looked
            if earlier is not None:
                self._move(earlier, slot)
            else:
                self._lay_out(slot.path, seeds)
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
            if not _whole(slot.path / "vol"):  # else a zombie of this execution's was faster
                raise
        sync_folder(earlier.parent)

    def _lay_out(self, path: Path, seeds: Sequence[Seed]) -> None:
        new = path / f"{_NEW}{secrets.token_hex(4)}"  # two owners of one epoch apart may be here at once
        try:
            self._furnish(new, seeds)
            try:
                new.rename(path / "vol")
            except OSError:
                if not _whole(path / "vol"):
                    raise
                remove_tree(new)
        except BaseException:
            remove_tree(new)
            raise

    @staticmethod
    def _furnish(new: Path, seeds: Sequence[Seed]) -> None:
        new.mkdir()
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
            _sync_filesystem(new)

    # -- finding ------------------------------------------------------------------------------------------------------

    def _volume(self, sandbox_id: str | None) -> Path | None:
        """The `vol` this sandbox's files are in: its own, or where it was moved to."""
        for _ in range(MAX_MOVES):
            if sandbox_id is None:
                return None
            path = self.slot(sandbox_id).path
            if _whole(path / "vol"):
                return path / "vol"
            sandbox_id = _moved_to(path)
        return None

    def _list(self) -> Sequence[tuple[str, datetime]]:
        found: list[tuple[str, datetime]] = []
        if not self._root.is_dir():
            return found
        for path in self._root.iterdir():
            if path.name.startswith(_GONE):
                remove_tree(path)  # what a crash left of a removal
            elif path.name.startswith(_SLOT):  # not lost+found, nor what a person put here: listed is swept
                with contextlib.suppress(FileNotFoundError):
                    found.append((path.name, datetime.fromtimestamp(path.stat().st_mtime, tz=UTC)))
        return sorted(found)

    def _remove(self, path: Path) -> None:
        gone = self._root / f"{_GONE}{path.name}-{secrets.token_hex(4)}"
        try:
            path.rename(gone)  # at once gone for everybody, whatever it takes to remove
        except FileNotFoundError:
            return
        remove_tree(gone)


def _whole(volume: Path) -> bool:
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


def _sync_filesystem(folder: Path) -> None:
    """syncfs(2): one wait for all files just laid in, instead of one each."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(descriptor)


def _check(seeds: Sequence[Seed]) -> None:
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
