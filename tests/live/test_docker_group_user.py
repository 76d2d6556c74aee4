"""A worker that is not root but may use the engine: the same product, nothing of the system touched.

Each runs for two users: uid 1000, which most people's own machines have and the image's agent too (at full size only),
and another. Neither needs to exist: a process is given the uid and the group of the engine's socket.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from orchestrator.client import Client, Execution
from orchestrator.errors import Conflict
from tests.place import ROOT, Place, until

# One group: a server per user, not per user and test process.
pytestmark = [pytest.mark.docker, pytest.mark.root, pytest.mark.xdist_group("docker-group-user")]

_SOCKET = Path((os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock").removeprefix("unix://"))
# The checkout and the interpreter, which may be in root's home, where this user can read them: bound there, in a mount
# namespace of its own.
_BECOME = """
mount --bind "$1" "$2/code" && mount --bind "$3" "$2/env" && mount --bind "$4" "$2/python" &&
cd "$2" && export LD_LIBRARY_PATH="$2/python/lib" &&
exec setpriv --reuid "$6" --regid "$6" --groups "$7" -- "$2/python/$5" -m orchestrator "${@:8}"
"""
_NEAR_INIT = """
import errno, glob, json, os, socket, sys
answers = {}
def attempt(name, function):
    try:
        function()
        answers[name] = "ok"
    except OSError as error:
        answers[name] = errno.errorcode[error.errno]
def connect(path):
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(20)
        s.connect(path)
        answer = s.recv(4096)
        if not answer or b"not_allowed" in answer:
            raise OSError(errno.EACCES, "")
points = [line.split()[4] for line in open("/proc/self/mountinfo") if "/run/carrel" in line]
assert len(points) == 2, points
pids = [pid for pid in os.listdir("/proc") if pid.isdigit()] + ["self", "thread-self"]
roots = [""] + [f"/proc/{pid}/{way}" for pid in pids for way in ("root", "cwd")] + glob.glob("/proc/*/fd/*")
for root in roots:
    for point in ("/run/carrel", *points):
        attempt(f"list {root}{point}", lambda: os.listdir(root + point))
        attempt(f"enter {root}{point}", lambda: os.chdir(root + point))
        attempt(f"chmod {root}{point}", lambda: os.chmod(root + point, 0o777))
        attempt(f"make {root}{point}/x", lambda: os.mkdir(root + point + "/x"))
        attempt(f"rename {root}{point}", lambda: os.rename(root + point, "/workspace/x"))
    for name in ("ctl/init.sock", "ctl/ready.sock", "spool/epoch", "spool/00000000000000000001.frames"):
        path = f"{root}/run/carrel/{name}"
        attempt(f"read {path}", lambda: open(path).read())
        attempt(f"delete {path}", lambda: os.unlink(path))
        attempt(f"link {path}", lambda: os.link(path, "/workspace/linked"))
        attempt(f"connect {path}", lambda: connect(path))
for pid in ("1", sys.argv[1]):
    for name in ("mem", "environ", "maps", "exe"):
        attempt(f"{pid}/{name}", lambda: os.close(os.open(f"/proc/{pid}/{name}", os.O_RDONLY)))
    attempt(f"{pid}/fd", lambda: os.listdir(f"/proc/{pid}/fd"))
    attempt(f"kill {pid}", lambda: os.kill(int(pid), 9))
attempt("a socket the worker left in our reach", lambda: connect("/workspace/control.sock"))
print(json.dumps(answers))
"""


class UserPlace(Place):
    """With a client of its own: its command line is a process of a second, twice in a mount namespace."""

    uid: int
    client: Client

    @property
    def env(self) -> dict[str, str]:
        usual = super().env
        packages = self.folder / "env" / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
        return {**usual, "PYTHONPATH": f"{usual['PYTHONPATH']}:{packages}"}

    def runs(self, script: str, **spec: Any) -> Execution:
        """A script that has begun."""
        made = self.client.submit(command=["bash", "-c", script], **spec)
        until(lambda: made.refresh().state == "RUNNING", "it runs")
        return made

    @property
    def slots(self) -> list[Path]:
        return list((self.folder / "d" / "slots").iterdir())

    def slot(self, execution: Execution) -> Path:
        return self.folder / "d" / "slots" / str(execution.refresh().sandbox_id)

    def containers(self) -> list[str]:
        client = docker.from_env()
        try:
            label = f"carrel.installation={(self.folder / 'name').read_text()}"
            # Not `containers.list`, which inspects each and trips over one that goes meanwhile.
            return [one["Names"][0].lstrip("/") for one in client.api.containers(all=True, filters={"label": label})]
        finally:
            client.close()


@pytest.fixture(scope="module", params=[pytest.param(1000, marks=pytest.mark.full), 4711])
def user(request: pytest.FixtureRequest, sandbox_image: str) -> Iterator[UserPlace]:
    uid: int = request.param
    folder = Path(tempfile.mkdtemp(prefix="crl-", dir="/tmp"))
    for name in ("code", "env", "python", "home"):
        (folder / name).mkdir()
    os.chown(folder / "home", uid, uid)
    os.chown(folder, uid, uid)
    program = Path(sys.executable).resolve().relative_to(Path(sys.base_prefix).resolve())
    where = [str(ROOT), str(folder), sys.prefix, sys.base_prefix, str(program)]
    enter = ["unshare", "-m", "bash", "-c", _BECOME, "bash", *where, str(uid)]
    made = UserPlace(
        folder,
        settings=(f"image={sandbox_image}", "lease_s=2", "sweep_interval_s=2", "orphan_grace_s=5"),
        program=(*enter, str(_SOCKET.stat().st_gid)),
        code=folder / "code",
    )
    made.uid = uid
    try:
        made.serve()
        with Client(made.url, made.token) as made.client:
            yield made
    finally:
        made.close()


def test_run_watch_steer_and_fetch(user: UserPlace, short_dir: Path) -> None:
    (short_dir / "in").write_text("from outside")
    os.chown(short_dir, user.uid, user.uid)
    script = (
        "id -u; id -un; [ -O /workspace ] && [ . -ef /workspace ] && cat in; echo; read line; echo got $line; "
        "mkdir -p $ARTIFACTS_DIR/deep; echo made > $ARTIFACTS_DIR/deep/out; exit 3"
    )
    upload = f"{short_dir / 'in'}:in"
    watching = user.start("run", "--name", "talk", "--upload", upload, "--", "bash", "-c", script)
    watching.saw(b"from outside\n")
    talk = user.client.get("talk")
    talk.send("hello\n")
    assert watching.code() == 3, watching.err
    assert watching.out.decode().splitlines() == [str(user.uid), "agent", "from outside", "got hello"]
    assert user.ok("artifacts", "get", "talk", "deep/out", "-o", "-") == "made\n"
    assert user.ok("cp", "talk:in", "-") == "from outside"
    assert (user.slot(talk) / "vol" / "workspace" / "artifacts" / "deep" / "out").stat().st_uid == user.uid
    until(lambda: not (user.slot(talk) / "spool").exists(), "what only a living one needs is removed")


def test_beside_it_files_limits_and_memory(user: UserPlace) -> None:
    beside = user.runs("umask 077; mkdir own; echo x > own/file; exec sleep 600")
    until(lambda: beside.exec(["cat", "own/file"]).stdout == "x\n", "it has written")
    assert beside.exec(["bash", "-c", "id -u; git init -q . && git status --short"]).stdout == f"{user.uid}\n?? own/\n"
    beside.files.write("own/put", b"from outside")
    assert beside.exec(["cat", "own/put"]).stdout == "from outside" and beside.files.read("own/file") == b"x\n"
    beside.resources(memory_bytes=300 << 20, hold_s=20)
    resized = [event.data for event in beside.history().events if event.type == "sandbox.resized"]
    assert resized[-1]["result"] == "applied" and resized[-1]["measured"]["memory_bytes"] == 300 << 20
    beside.cancel(grace_s=0)
    eats = user.client.submit(
        command=["python3", "-c", "x = b'a' * (300 << 20)"], resources={"memory_bytes": 64 << 20}
    ).wait()
    assert eats.outcome is not None and (eats.outcome.kind, eats.outcome.reason) == ("FAILED", "oom")


def test_paused_with_init_and_back(user: UserPlace) -> None:
    """Not only by the server that paused it: one that comes after it finds a sandbox nobody answers in."""
    ticking = user.runs("while :; do date +%s%N >> ticks; echo tick; sleep 0.02; done")
    until(lambda: (user.slot(ticking) / "vol" / "workspace" / "ticks").exists(), "it ticks")

    def paused() -> bytes:
        ticking.pause()
        until(lambda: ticking.refresh().state == "PAUSED", "it is paused")
        frozen = ticking.files.read("ticks")
        with pytest.raises(Conflict, match="paused"):
            ticking.exec(["true"])
        # All it had printed was told before init froze with it.
        printed = sum(event.type == "output" for event in ticking.history(tail=1000).events)
        assert ticking.files.read("ticks") == frozen and printed > 0
        return frozen

    def resumed(frozen: bytes) -> None:
        ticking.send("meanwhile\n")  # waits for it; nobody hangs
        ticking.resume()
        until(lambda: ticking.refresh().state == "RUNNING", "it is resumed")
        until(lambda: ticking.files.read("ticks") != frozen, "it ticks again")
        assert ticking.exec(["echo", "awake"]).stdout == "awake\n"

    resumed(paused())
    frozen = paused()
    assert user.server is not None
    user.server.kill()
    user.server.wait()
    user.serve()
    resumed(frozen)
    paused()
    ticking.cancel(grace_s=0)
    ended = ticking.wait()
    assert ended.outcome is not None and ended.outcome.kind == "CANCELLED" and ended.attempt == 1


def test_a_lost_sandbox_is_replaced_with_its_files(user: UserPlace) -> None:
    script = "echo life >> lives; chmod 0555 /workspace /slot/vol; exec sleep 600"
    again = user.runs(script, retry={"on_lost": "retry"})
    volume = user.slot(again) / "vol"
    until(lambda: volume.stat().st_mode & 0o777 == 0o555, "its folders are shut")
    first = again.refresh().sandbox_id
    subprocess.run(["docker", "kill", f"carrel-{first}"], check=True, stdout=subprocess.DEVNULL)
    until(lambda: again.refresh().attempt == 2 and again.refresh().state == "RUNNING", "it runs again")
    until(lambda: again.files.read("lives") == b"life\nlife\n", "with its files")
    assert again.refresh().sandbox_id != first
    again.cancel(grace_s=0)


def test_the_harness_gets_nowhere_near_init_though_it_has_the_workers_uid(user: UserPlace) -> None:
    near = user.runs("exec sleep 600")
    slot = user.slot(near)
    assert {(slot / name).stat().st_uid for name in ("ctl", "spool")} == {user.uid}
    # Worse than it is: the socket itself where the harness can reach it. init still sees who connects.
    (slot / "vol" / "workspace" / "control.sock").hardlink_to(slot / "ctl" / "init.sock")
    spawner = (near.exec(["cat", "/proc/1/task/1/children"]).stdout or "").split()[0]
    done = near.exec(["python3", "-c", _NEAR_INIT, spawner], max_output_bytes=1 << 20)
    assert done.exit_code == 0, done
    answers = json.loads(done.stdout or "")
    assert len(answers) > 100
    assert {name: answer for name, answer in answers.items() if answer == "ok"} == {}
    assert answers["a socket the worker left in our reach"] == "EACCES"
    assert answers["list /run/carrel/ctl"] == answers["delete /run/carrel/ctl/init.sock"] == "EACCES"
    assert (slot / "ctl" / "init.sock").exists() and (slot / "spool" / "epoch").exists()
    assert near.exec(["echo", "alive"]).stdout == "alive\n"
    near.cancel(grace_s=0)


def test_rm_leaves_nothing(user: UserPlace) -> None:
    """Not even of trees their owner may not write in, which root never notices."""
    trees = user.client.submit(
        command=[
            "bash",
            "-c",
            "mkdir -p a/b/c shut/in && touch a/b/c/f shut/in/f && chmod -R a-w a && chmod 0 shut/in shut",
        ]
    )
    assert trees.wait().outcome is not None
    kept = user.runs("exec sleep 600")  # the sweeper removes nothing while the store knows no execution at all
    user.ok("rm", "-f", *(ref for ref in user.ok("ps", "-aq").split() if ref != kept.id))
    until(lambda: user.containers() == [f"carrel-{kept.refresh().sandbox_id}"], "no other container is left")
    until(lambda: user.slots == [user.slot(kept)], "no other slot, the sweeper's among them: of an earlier attempt")
    user.ok("rm", "-f", kept.id)
    until(lambda: not user.slots and not user.containers(), "nothing is left")
    foreign = subprocess.run(["find", user.folder / "d", "!", "-uid", str(user.uid)], capture_output=True, check=False)
    assert not foreign.stdout


def test_doctor_lacks_nothing(user: UserPlace) -> None:
    image = next(one for one in user.settings if one.startswith("image=")).removeprefix("image=")
    done = user.carrel("doctor", "--json", env={"CARREL_IMAGE": image, "CARREL_PORT": str(user.port)})
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert done.returncode == 0, done.stdout
    assert checks["rights"]["verdict"] == "warn" and "not root" in checks["rights"]["seen"]
