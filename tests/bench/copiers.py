"""What others use to keep a folder, beside us in the same run: `cp -a`, `tar | zstd -1`, restic; first, again, back.

Each ends when its bytes are on disk. Knows nothing of Carrel.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Final

COPIERS: Final = ("cp -a", "tar | zstd -1", "restic")


def run_ms(command: str, **env: str) -> float:
    """A shell's command."""
    began = time.monotonic()
    subprocess.run(["sh", "-ec", command], check=True, env={**os.environ, **env}, stdout=subprocess.DEVNULL)
    return (time.monotonic() - began) * 1000


class Copier:
    """One of them (`name`), which keeps `source` in a new folder `below`. `again` after `keep`: what it makes of little
    having changed; only restic makes anything of it."""

    def __init__(self, name: str, source: Path, below: Path) -> None:
        self._name = name
        self._source = source
        self._kept = below / "kept"
        self._back = below / "back"
        self._env = {
            "RESTIC_REPOSITORY": str(self._kept),
            "RESTIC_PASSWORD": "bench",
            "RESTIC_CACHE_DIR": str(below / "cache"),
        }
        below.mkdir()

    def keep_ms(self) -> float:
        """As the first time."""
        self.forget()
        if self._name == "restic":
            run_ms("restic -q init", **self._env)
        return self._keep()

    def again_ms(self) -> float:
        if self._name != "restic":
            self.forget()
        return self._keep()

    def back_ms(self) -> float:
        """What was kept, as a folder of its own."""
        shutil.rmtree(self._back, ignore_errors=True)
        command = {
            "cp -a": f"cp -a {self._kept} {self._back}",
            "tar | zstd -1": f"mkdir {self._back}; zstd -q -dc {self._kept} | tar -C {self._back} -x",
            "restic": f"restic -q restore latest --target {self._back}",
        }[self._name]
        taken = run_ms(f"{command}; sync -f {self._back}", **self._env)
        shutil.rmtree(self._back)
        return taken

    def _keep(self) -> float:
        command = {
            "cp -a": f"cp -a {self._source} {self._kept}; sync -f {self._kept}",
            "tar | zstd -1": f"tar -C {self._source} -c . | zstd -q -1 > {self._kept}; sync -f {self._kept}",
            "restic": f"cd {self._source}; restic -q backup .",  # syncs what it writes itself
        }[self._name]
        return run_ms(command, **self._env)

    def forget(self) -> None:
        """Nothing is kept."""
        if self._kept.is_dir():
            shutil.rmtree(self._kept)
        else:
            self._kept.unlink(missing_ok=True)
