"""What an operator may set: names, rules, defaults and words of all settings.

Knows neither where values come from (`configuration`) nor what they are for: `assembly` hands them on as plain
arguments. The table in docs/operate/settings.md is printed by
`python -m orchestrator.settings` and compared by a test.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from orchestrator.execution import GIB, KIB, MIB, Limits, Resources
from orchestrator.models import ModelApi
from orchestrator.room import Mark, Place
from orchestrator.rules import (
    Rule,
    choice,
    directory,
    file_or_none,
    listing,
    mark,
    number,
    ranges,
    seconds,
    size,
    switch,
    text,
    whole,
)

PREFIX: Final = "CARREL_"


def setting(rule: Rule, default: Any, about: str, *, shown: str = "", also: str = "") -> Any:
    """A field of Settings: `default` a value or a function that finds it, `shown` = how the table prints that,
    `also` = a second environment variable that is taken when ours is not set."""
    metadata = {"rule": rule, "about": about, "shown": shown, "also": also}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def _data_dir() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/carrel")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "carrel"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The effective settings. `origin` says for each name where its value came from: `default`, `carrel.toml`'s path,
    the variable, or `flag`."""

    # ---- the installation
    installation: str = setting(
        text("1 to 32 of a-z, 0-9 and -", "[a-z0-9][a-z0-9-]{0,31}"),
        "default",
        "Name of this installation: prefix of all its keys, label of all its containers. Two of them share a Redis or "
        "an engine without touching each other's.",
    )
    data_dir: Path = setting(
        directory(),
        _data_dir,
        "Workspaces, spools, the embedded store and the admin token. Must be on a local disk; kept short, since unix "
        "sockets live in it (107 bytes in all).",
        shown="/var/lib/carrel as root, else ~/.local/share/carrel",
    )
    host_name: str = setting(
        text("1 to 64 of letters, digits, . _ and -", "[A-Za-z0-9][A-Za-z0-9._-]{0,63}"),
        socket.gethostname,
        "Name of this host in records: a sandbox is looked for only on the host that made it. Must not change while "
        "executions have sandboxes here.",
        shown="the machine's host name",
    )
    redis_url: str = setting(
        text("empty, or redis://, rediss:// or unix://", r"|(redis|rediss|unix)://.+"),
        "",
        "The store. It must run with AOF `always` and `noeviction`, or acknowledged work can be lost. Empty: an "
        "embedded server in the data directory.",
        shown="empty: embedded",
    )

    # ---- the api
    bind_host: str = setting(
        text("an address", r"[^\s]+"),
        "127.0.0.1",
        "Address the api listens on. Anything but a loopback address belongs behind TLS.",
    )
    port: int = setting(whole(0, 65535), 8374, "Port the api listens on; 0 takes a free one and prints it.")
    allowed_hosts: tuple[str, ...] = setting(
        listing("host names"),
        (),
        "Values of the Host header that are served besides localhost, 127.0.0.1, [::1] and `bind_host`.",
        shown="none",
    )
    allowed_origins: tuple[str, ...] = setting(
        listing("origins (https://name)"), (), "Browser origins that may call the api besides its own.", shown="none"
    )
    message_limit_bytes: int = setting(
        size(1, 512 * KIB), 512 * KIB, "Largest steering message: with its JSON around it, it is one frame to init."
    )
    harness_dir: str = setting(
        text("empty, or a directory: /…, ~/…", r"|[/~].*"),
        "",
        "A person's own harness declarations: a folder of *.toml files (docs/operate/harnesses.md). One with the name "
        "of a shipped declaration replaces it. Read when the api starts.",
        shown="empty: only the shipped ones",
    )
    upload_limit_bytes: int = setting(size(1, 1024 * GIB), 1 * GIB, "Largest uploaded file.")

    # ---- workspaces
    workspace_store: str = setting(
        choice("auto", "btrfs", "directory"),
        "auto",
        "Where workspaces lie. `btrfs`: snapshots and forks in milliseconds, the kernel keeps disk limits; needs root. "
        "`directory`: plain directories, anywhere. `auto`: btrfs as root where there is mkfs.btrfs, unless there are "
        "workspaces as plain directories already; `carrel doctor` says which and why.",
    )
    btrfs_path: Path | None = setting(
        file_or_none(),
        None,
        "A folder on a btrfs of yours, for workspaces and snapshots. The first disk limit switches its quotas on.",
        shown="empty: a pool of our own, a file in the data directory",
    )
    pool_size_bytes: int = setting(
        size(0, 1024 * 1024 * GIB),
        0,
        "Size of our own btrfs pool (at least 256m). The file is sparse: it takes what is in it. A larger number makes "
        "it grow at the next start; it never shrinks.",
        shown="0: half of what is free when it is made",
    )
    pool_allocate: bool = setting(
        switch(),
        False,
        "Take all of the pool's size from the disk at once, so that nothing else can fill the disk below it.",
    )

    # ---- disks that fill
    workspaces_low: Mark = setting(
        mark(),
        Mark(256 * MIB, 5.0),
        "Room for workspaces below which a host begins nothing new (docs/operate/disks.md): submits, forks and "
        "snapshots are refused (507), what is queued waits. What runs goes on.",
    )
    data_low: Mark = setting(
        mark(), Mark(256 * MIB, 5.0), "The same for the data directory: uploaded files, spools, logs."
    )
    store_low: Mark = setting(
        mark(),
        Mark(128 * MIB, 5.0),
        "The same for the embedded store's directory. When that disk is full the store ends rather than acknowledge.",
    )

    archive_low: Mark = setting(
        mark(),
        Mark(),
        "The same for the archive, where it is a folder. Of a bucket nobody knows.",
        shown="0: a full archive stops nothing, snapshots stay on their host until it has room",
    )

    # ---- the archive
    archive_url: str = setting(
        text("empty, file:///… or s3://bucket/prefix", r"|file:///.+|s3://[a-z0-9][a-z0-9.-]{1,62}(/.*)?"),
        "",
        "Where snapshots, and histories of what has ended, are kept for all hosts: a folder that all of them mount, or "
        "a bucket, whose keys and region come from `AWS_*` (docs/operate/archive.md). The same on every api and worker "
        "of an installation.",
        shown="empty: none",
    )
    archive_endpoint: str = setting(
        text("empty, or http(s)://", r"|https?://[^\s]+"),
        "",
        "The server of `s3://`, where it is not AWS.",
        shown="empty: AWS",
        also="AWS_ENDPOINT_URL_S3",
    )
    history_archive_after_s: float = setting(
        seconds(0, 10 * 365 * 86_400),
        86_400.0,
        "How long after its end a history goes from the store into the archive, where it is read as before; 0: never. "
        "Without `archive_url` it stays.",
    )

    # ---- the worker
    driver: str = setting(
        choice("docker", "scripted"), "docker", "What makes sandboxes. `scripted` plays a script: tests and demos."
    )
    docker_host: str = setting(
        text("empty, or unix:// or tcp://", r"|(unix|tcp)://.+"),
        "",
        "The container engine. It must be on this machine: workspaces and sockets are bind mounts.",
        shown="empty: unix:///var/run/docker.sock",
        also="DOCKER_HOST",
    )
    image: str = setting(text("an image", r"[^\s]+"), "carrel/sandbox:latest", "Image of sandboxes that name none.")
    runtime: str = setting(
        text("a runtime's name", r"[A-Za-z0-9._-]*"),
        "",
        "OCI runtime, such as runsc or kata.",
        shown="empty: the engine's default",
    )
    concurrency: int = setting(whole(1, 100_000), 64, "Executions one worker owns at a time.")
    start_concurrency: int = setting(
        whole(1, 64), 3, "Sandboxes started at the same time; more only makes each slower (Docker 20.10: 2 to 4)."
    )
    lease_s: float = setting(
        seconds(1, 3600), 15.0, "How long a claim holds without renewal (renewed at a quarter): how late a crash shows."
    )
    claim_interval_s: float = setting(
        seconds(0.05, 5), 5.0, "Longest time between two claims of an idle worker; the bell makes it sooner."
    )
    sweep_interval_s: float = setting(
        seconds(1, 3600), 15.0, "How often a worker compares what exists with what should."
    )
    orphan_grace_s: float = setting(
        seconds(0, 86_400), 60.0, "Age from which a sandbox or slot of ours that no record names is removed."
    )
    host_lost_after_s: float = setting(
        seconds(5, 86_400), 60.0, "Silence after which a host counts as lost and its executions are taken from it."
    )
    drain_grace_s: float = setting(
        seconds(0, 3600), 10.0, "After SIGTERM: how long handing over may take before the process goes anyway."
    )
    retention_s: float = setting(
        seconds(0, 10 * 365 * 86_400),
        7 * 86_400.0,
        "How long a finished execution, its history and files are kept, unless somebody asked for one of its snapshots "
        "or named it; 0 keeps them for ever.",
    )
    workspace_retention_s: float = setting(
        seconds(0, 10 * 365 * 86_400),
        7 * 86_400.0,
        "How long the workspace of a finished execution is kept; its artifacts and snapshots stay as long as its "
        "record. 0: as long as that.",
    )
    artifacts_limit_bytes: int = setting(
        size(0, 1024 * GIB),
        4 * GIB,
        "Artifacts kept of one execution, in all; what is beyond is told and stays in the workspace only.",
    )
    shelf_limit_bytes: int = setting(
        size(0, 1024 * 1024 * GIB),
        64 * GIB,
        "Artifacts kept of all executions together, on this host. 0: as much as the disk has, but for a twentieth of "
        "it (at most 1g).",
    )

    # ---- the way out of a sandbox
    egress_private_allow: tuple[str, ...] = setting(
        ranges(),
        (),
        "Ranges of addresses that are not public and may yet be reached through the egress proxy, by names that an "
        "execution allows: an internal package registry, say. Cloud metadata stays shut in any range; only its own "
        "address (169.254.169.254/32) opens it.",
        shown="none",
    )
    models_file: Path | None = setting(
        file_or_none(),
        None,
        "Model providers, prices, and which tenant may use what: a TOML file (docs/operate/models.md). Empty: "
        "ANTHROPIC_API_KEY, OPENAI_API_KEY and their …_BASE_URL say which providers there are.",
        shown="empty: from the environment",
    )
    default_model: str = setting(
        text("empty, or a model's name", r"\S{0,200}"),
        "",
        "Model of an execution that names none.",
        shown="empty: the first that the models file names; without one the provider's own middle model",
    )
    default_model_api: str = setting(
        text("empty, or one of " + ", ".join(ModelApi), "|".join(["", *ModelApi])),
        "",
        "How an execution speaks to its model when it does not say, where the model's provider has that.",
        shown="empty: as each provider likes best",
    )
    model_request_limit_bytes: int = setting(size(1 * KIB, 1 * GIB), 32 * MIB, "Largest request to a model.")
    model_concurrency: int = setting(whole(1, 1000), 8, "Model calls one execution has under way at a time.")
    model_web_tools: bool = setting(
        switch(), False, "Let providers' own tools reach the web (web search, fetch): that is a way out of the sandbox."
    )
    scripted_model: str = setting(
        text("empty, `demo`, or a script's file: /…, ~/…", r"|demo|[/~].*"),
        "",
        "Serve a model that follows a script, of the name `scripted`, and of every name where there is no provider: "
        "for demonstrations and tests. `demo` is a script of our own.",
        shown="empty: none",
    )

    # ---- what an execution gets when it asks for nothing
    default_cpus: float = setting(number(0.01, 1024, "cores"), 1.0, "CPU of a sandbox.")
    default_memory_bytes: int = setting(size(32 * MIB, 1024 * GIB), 1 * GIB, "Memory of a sandbox; no swap.")
    default_pids: int = setting(whole(16, 1_000_000), 512, "Processes and threads in a sandbox.")
    default_nofile: int = setting(whole(64, 1_048_576), 4096, "Open files per process in a sandbox.")
    default_tmp_bytes: int = setting(size(1 * MIB, 64 * GIB), 256 * MIB, "Size of a sandbox's /tmp (it is memory).")
    default_disk_bytes: int = setting(
        size(0, 64 * 1024 * GIB),
        0,
        "Limit of a workspace; 0 sets none. `btrfs` keeps it; with `directory` it is measured, who is over it stopped.",
    )
    default_grace_s: float = setting(seconds(0, 3600), 10.0, "Between SIGTERM and SIGKILL, at cancel and deadline.")
    default_deadline_s: float = setting(
        seconds(0, 365 * 86_400), 0.0, "Deadline of an execution that sets none; 0 is no deadline."
    )
    spool_limit_bytes: int = setting(
        size(1 * MIB, 64 * GIB),
        64 * MIB,
        "Output init keeps that no worker has taken yet; from there on the harness is held back, nothing is lost.",
    )

    # ---- logs
    log_format: str = setting(
        choice("auto", "json", "text"), "auto", "`json`: one object a line; `text`: key=value. `auto`: text on a tty."
    )
    log_level: str = setting(choice("debug", "info", "warning", "error"), "info", "Least level that is written.")

    origin: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), compare=False, repr=False)

    @property
    def marks(self) -> Mapping[Place, Mark]:
        return {
            Place.WORKSPACES: self.workspaces_low,
            Place.DATA: self.data_low,
            Place.STORE: self.store_low,
            Place.ARCHIVE: self.archive_low,
        }

    @property
    def default_resources(self) -> Resources:
        return Resources(
            cpus=self.default_cpus,
            memory_bytes=self.default_memory_bytes,
            pids=self.default_pids,
            nofile=self.default_nofile,
            tmp_bytes=self.default_tmp_bytes,
            disk_bytes=self.default_disk_bytes,
        )

    @property
    def default_limits(self) -> Limits:
        return Limits(deadline_s=self.default_deadline_s or None, grace_s=self.default_grace_s)


SETTINGS: Final[Mapping[str, Field[Any]]] = MappingProxyType(
    {f.name: f for f in fields(Settings) if "rule" in f.metadata}
)


def default_shown(name: str) -> str:
    """The default as the page and a refusal say it."""
    declared = SETTINGS[name]
    if declared.metadata["shown"]:
        return str(declared.metadata["shown"])
    assert declared.default is not MISSING  # one that is found by a function says how it is shown
    value = declared.default
    if name.endswith("_bytes") and value:
        for unit, bytes_ in (("g", GIB), ("m", MIB)):
            if value % bytes_ == 0:
                return f"{value // bytes_}{unit}"
    return (
        f"{value:g}"
        if isinstance(value, float) and value < 1e6
        else f"{value:.0f}"
        if isinstance(value, float)
        else str(value)
    )


def table() -> str:
    """All settings as the page docs/operate/settings.md."""
    lines = [
        "# Settings",
        "",
        "Generated by `python -m orchestrator.settings`; do not edit. A setting's name is its key in `carrel.toml` "
        "(`$CARREL_CONFIG`,",
        "else `/etc/carrel/carrel.toml`, else `~/.config/carrel/carrel.toml`). The environment beats the file, a flag "
        "beats both;",
        "`carrel config` prints the effective values, each with its origin. `carrel doctor` shows misspelt variables.",
        "",
        "| setting | variable | default | must be | what it does |",
        "|---|---|---|---|---|",
    ]
    for name, declared in SETTINGS.items():
        rule: Rule = declared.metadata["rule"]
        variable = f"`{PREFIX}{name.upper()}`" + (
            f", `{declared.metadata['also']}`" if declared.metadata["also"] else ""
        )
        cells = (f"`{name}`", variable, default_shown(name), rule.words, declared.metadata["about"])
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
