"""What programs in a sandbox pay for a workspace on the btrfs pool, beside the same on plain directories: files written
in one go, at random with fsync, many small ones; a source tree unpacked, committed and compiled.

FULL=1: larger. Needs root.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict

from tests.bench.figures import Figure, Samples
from tests.bench.site import Site, site

ROUNDS = 5

#: argv: MiB in one go, fsyncs, small files. Prints one JSON object.
PROGRAM = """
import ctypes, glob, json, os, random, shutil, subprocess, sys, time
libc = ctypes.CDLL(None)
megabytes, syncs, files = map(int, sys.argv[1:])
result = {}
def synced():
    folder = os.open("/workspace", os.O_RDONLY)
    libc.syncfs(folder)
    os.close(folder)
def timed(work):
    synced()
    begin = time.monotonic()
    work()
    return time.monotonic() - begin
def sequential():
    block = os.urandom(1 << 20)
    with open("large", "wb", buffering=0) as file:
        for _ in range(megabytes):
            file.write(block)
        os.fsync(file.fileno())
def at_random():
    block = os.urandom(4096)
    file = os.open("large", os.O_RDWR)
    pages = os.fstat(file).st_size // 4096
    for _ in range(syncs):
        os.pwrite(file, block, random.randrange(pages) * 4096)
        os.fsync(file)
    os.close(file)
def small():
    block = os.urandom(4096)
    for number in range(files):
        os.makedirs(f"small/{number % 20}", exist_ok=True)
        with open(f"small/{number % 20}/{number}", "wb") as file:
            file.write(block)
    synced()
def build():
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    os.mkdir("build")
    subprocess.run(["tar", "-C", "build", "-xf", "source.tar"], check=True)
    git = ["git", "-C", "build", "-c", "user.name=b", "-c", "user.email=b@b"]
    subprocess.run([*git, "init", "-q"], check=True, **quiet)
    subprocess.run([*git, "add", "-A"], check=True, **quiet)
    subprocess.run([*git, "commit", "-qm", "all"], check=True, **quiet)
    subprocess.run([sys.executable, "-m", "compileall", "-q", "-f", "build"], **quiet)
    synced()
def remove():
    shutil.rmtree("small")
    synced()
source = os.path.dirname(os.__file__)
subprocess.run(["tar", "-C", source, "--exclude=__pycache__", "-cf", "source.tar", "."], check=True)
result["sequential"] = megabytes / timed(sequential)
result["random"] = syncs / timed(at_random)
result["small"] = files / timed(small)
result["remove"] = files / timed(remove)
result["build"] = timed(build)
print(json.dumps(result), flush=True)
"""
WORDS = {
    "sequential": ("written in one go, fsync", "MB/s", True),
    "random": ("4 KiB at random, fsync each", "writes/s", True),
    "small": ("many 4 KiB files", "files/s", True),
    "remove": ("and removed", "files/s", True),
    "build": ("untar, git commit, compile", "s", False),
}


async def pool_io(here: Site) -> list[Figure]:
    """A pool in a sparse file and one allocated at once, beside directories on the filesystem below both; in turn."""
    sizes = ("1024", "1000", "10000") if os.environ.get("FULL") else ("128", "200", "2000")
    measured: dict[tuple[str, str], list[float]] = defaultdict(list)
    async with (
        site(here.image, workspace_store="btrfs", pool_size_bytes="8g") as sparse,
        site(here.image, workspace_store="btrfs", pool_size_bytes="8g", pool_allocate="true") as allocated,
        site(here.image, workspace_store="directory") as plain,
    ):
        for _ in range(ROUNDS):
            for kind, own in (("pool", sparse), ("pool, allocated", allocated), ("directory", plain)):
                for part, value in (await _run(own, sizes)).items():
                    measured[kind, part].append(value)
    return [
        Figure(
            f"{words} ({kind})",
            Samples(tuple(measured[kind, part]), unit, more),
            Samples(tuple(measured["directory", part]), unit, more),
            "directory",
        )
        for part, (words, unit, more) in WORDS.items()
        for kind in ("pool", "pool, allocated")
    ]


async def _run(own: Site, sizes: tuple[str, ...]) -> dict[str, float]:
    execution = await own.client.submit(command=["python3", "-c", PROGRAM, *sizes])
    record = await execution.wait()
    said = b"".join([event.body or b"" async for event in execution.events()])
    await execution.delete()
    if record.outcome is None or record.outcome.kind != "SUCCEEDED":
        raise RuntimeError(f"the program in the sandbox: {record.outcome} {said[-2000:]!r}")
    return dict(json.loads(said))
