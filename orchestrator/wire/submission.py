"""The body of a submit, and the Spec it stands for. Knows no store: what the files hold is looked up by the caller."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, model_validator

from orchestrator import execution, snapshots
from orchestrator.wire import bounds
from orchestrator.wire.shape import RequestModel, Text
from orchestrator.wire.way_out import EgressBody, OnBudget, Usd, micros_of, tokens_field, usd_field, usd_of

Name = Annotated[Text, AfterValidator(bounds.check_name)]
Mode = Annotated[Text, AfterValidator(bounds.check_mode)]
Sha256 = Annotated[Text, AfterValidator(bounds.check_sha256)]
Base64 = Annotated[Text, AfterValidator(bounds.check_base64)]
Command = Annotated[list[Text], AfterValidator(bounds.check_command)]
Model = Annotated[Text, AfterValidator(bounds.check_model)]
Env = Annotated[dict[Text, Text], AfterValidator(bounds.check_env)]

DEFAULT_RESOURCES: Final = execution.Resources()
DEFAULT_LIMITS: Final = execution.Limits()
DEFAULT_RETRY: Final = execution.RetryPolicy()
DEFAULT_SNAPSHOTS: Final = execution.SnapshotPolicy()
#: Less than this, and a harness cannot even keep its own state.
DISK_LEAST_BYTES: Final = 1 * bounds.MIB


def check_disk(disk_bytes: int) -> int:
    """Where the store cannot bound a workspace, its worker measures it and ends what goes beyond."""
    if disk_bytes and disk_bytes < DISK_LEAST_BYTES:
        bounds.refuse(
            f"{disk_bytes} bytes are too few for a workspace",
            limit=f"0 (not limited), or at least {DISK_LEAST_BYTES}",
            remedy="ask for more",
        )
    return disk_bytes


class ResourcesBody(RequestModel):
    """What one sandbox may use. `cpus` in cores."""

    cpus: float = Field(default=DEFAULT_RESOURCES.cpus, ge=0.01, le=1024)
    memory_bytes: int = Field(default=DEFAULT_RESOURCES.memory_bytes, ge=32 * bounds.MIB, le=64 * 1024 * bounds.GIB)
    pids: int = Field(default=DEFAULT_RESOURCES.pids, ge=16, le=4_194_304)
    nofile: int = Field(default=DEFAULT_RESOURCES.nofile, ge=64, le=1_048_576)
    tmp_bytes: int = Field(default=DEFAULT_RESOURCES.tmp_bytes, ge=1 * bounds.MIB, le=1024 * bounds.GIB)
    disk_bytes: Annotated[int, AfterValidator(check_disk)] = Field(default=0, ge=0, le=64 * 1024 * bounds.GIB)

    def noun(self, defaults: execution.Resources = DEFAULT_RESOURCES) -> execution.Resources:
        """What was not said comes from the installation's `defaults`."""
        return replace(defaults, **self.model_dump(exclude_unset=True))

    @classmethod
    def of(cls, resources: execution.Resources) -> ResourcesBody:
        """Unchecked: what a record holds was checked at submit, or was measured."""
        return cls.model_construct(
            cpus=resources.cpus,
            memory_bytes=resources.memory_bytes,
            pids=resources.pids,
            nofile=resources.nofile,
            tmp_bytes=resources.tmp_bytes,
            disk_bytes=resources.disk_bytes,
        )


class LimitsBody(RequestModel):
    """How long and how much; null = no limit. `grace_s`: between SIGTERM and SIGKILL, and between the call that went
    over the budget and SIGTERM. `idle_timeout_s`: after so long without anything happening in it a harness that resumes
    is put to sleep. `steps` is the harness's to keep (LIMIT_STEPS). `on_budget`: `fail` = the execution
    ends, `wait` = the call is held until the budget is raised."""

    deadline_s: float | None = Field(default=None, gt=0, le=bounds.DEADLINE_S)
    idle_timeout_s: float | None = Field(default=None, ge=1, le=bounds.DEADLINE_S)
    grace_s: float = Field(default=DEFAULT_LIMITS.grace_s, ge=0, le=3600)
    steps: int | None = Field(default=None, ge=1, le=1_000_000)
    budget_usd: Usd = usd_field()
    budget_tokens: int | None = tokens_field()
    on_budget: OnBudget = DEFAULT_LIMITS.budget.on_exceeded

    def noun(self, defaults: execution.Limits = DEFAULT_LIMITS) -> execution.Limits:
        """What was not said comes from the installation's `defaults`; a null that was said means no limit."""
        said = self.model_dump(exclude_unset=True)
        budget: dict[str, Any] = {}
        if "budget_usd" in said:
            budget["micros"] = micros_of(said.pop("budget_usd"))
        if "budget_tokens" in said:
            budget["tokens"] = said.pop("budget_tokens")
        if "on_budget" in said:
            budget["on_exceeded"] = said.pop("on_budget")
        return replace(defaults, **said, budget=replace(defaults.budget, **budget))

    @classmethod
    def of(cls, limit: execution.Limits) -> LimitsBody:
        return cls.model_construct(
            deadline_s=limit.deadline_s,
            idle_timeout_s=limit.idle_timeout_s,
            grace_s=limit.grace_s,
            steps=limit.steps,
            budget_usd=usd_of(limit.budget.micros),
            budget_tokens=limit.budget.tokens,
            on_budget=limit.budget.on_exceeded,
        )


class RetryBody(RequestModel):
    """What to do when the platform (never the harness) failed, `on_killed`: when a signal nobody sent through Carrel
    ended the harness. See RetryPolicy."""

    max_failures: int = Field(default=DEFAULT_RETRY.max_failures, ge=0, le=100)
    on_lost: Literal["auto", "retry", "end"] = DEFAULT_RETRY.on_lost
    on_killed: Literal["auto", "retry", "end"] = DEFAULT_RETRY.on_killed
    backoff_s: float = Field(default=DEFAULT_RETRY.backoff_s, ge=0, le=3600)
    backoff_max_s: float = Field(default=DEFAULT_RETRY.backoff_max_s, ge=0, le=bounds.DAY_S)

    def noun(self) -> execution.RetryPolicy:
        return execution.RetryPolicy(**self.model_dump())

    @classmethod
    def of(cls, policy: execution.RetryPolicy) -> RetryBody:
        return cls.model_construct(
            max_failures=policy.max_failures,
            on_lost=policy.on_lost,
            on_killed=policy.on_killed,
            backoff_s=policy.backoff_s,
            backoff_max_s=policy.backoff_max_s,
        )


class KeepBody(RequestModel):
    """Which of the snapshots nobody asked for stay: the newest `last`, and of each of the newest `days` days its last.
    Those asked for, or named, stay anyway."""

    last: int = Field(default=DEFAULT_SNAPSHOTS.keep.last, ge=1, le=1000)
    days: int = Field(default=DEFAULT_SNAPSHOTS.keep.days, ge=0, le=3660)


class SnapshotsBody(RequestModel):
    """When snapshots are taken by themselves, besides before every sleep. `every_s` null = never while it runs;
    `at_end`: when the harness has ended; null = where that costs nothing to speak of."""

    every_s: float | None = Field(default=DEFAULT_SNAPSHOTS.every_s, ge=1, le=bounds.DEADLINE_S)
    at_end: bool | None = DEFAULT_SNAPSHOTS.at_end
    keep: KeepBody = Field(default_factory=KeepBody)

    def noun(self) -> execution.SnapshotPolicy:
        return execution.SnapshotPolicy(self.every_s, self.at_end, snapshots.KeepPolicy(self.keep.last, self.keep.days))

    @classmethod
    def of(cls, policy: execution.SnapshotPolicy) -> SnapshotsBody:
        keep = KeepBody.model_construct(last=policy.keep.last, days=policy.keep.days)
        return cls.model_construct(every_s=policy.every_s, at_end=policy.at_end, keep=keep)


class FileBody(RequestModel):
    """A file to lay into the workspace: content by digest of an uploaded blob, or inline as `text` or `data_b64`.
    `mode` is octal text."""

    path: Annotated[Text, AfterValidator(bounds.check_upload_path)]
    sha256: Sha256 | None = None
    text: Text | None = None
    data_b64: Base64 | None = None
    mode: Mode = "0644"

    @model_validator(mode="after")
    def _one_content(self) -> FileBody:
        if sum(content is not None for content in (self.sha256, self.text, self.data_b64)) != 1:
            bounds.refuse(
                "a file needs exactly one content",
                limit="one of sha256, text, data_b64",
                remedy="keep one of them and take out the others",
            )
        return self

    def inline(self) -> bytes | None:
        """The content where it came with the request, else None."""
        if self.text is not None:
            return self.text.encode()
        return bounds.decoded(self.data_b64) if self.data_b64 is not None else None


class SubmitBody(RequestModel):
    """What a person asks for. `command` alone means the harness `command`; empty `image`, `model` = the
    installation's own."""

    task: Annotated[Text, AfterValidator(bounds.check_task)] = ""
    harness: Text = Field(default="", max_length=64)
    command: Command = Field(default_factory=list)
    image: Annotated[Text, AfterValidator(bounds.check_image)] = ""
    env: Env = Field(default_factory=dict)
    files: list[FileBody] = Field(default_factory=list, max_length=bounds.FILE_COUNT)
    name: Name = ""
    labels: Annotated[dict[Text, Text], AfterValidator(bounds.check_labels)] = Field(default_factory=dict)
    resources: ResourcesBody = Field(default_factory=lambda: ResourcesBody())
    limits: LimitsBody = Field(default_factory=lambda: LimitsBody())
    retry: RetryBody = Field(default_factory=lambda: RetryBody())
    stdin: Literal["none", "text", "jsonl"] | None = None
    output: Literal["auto", "bytes", "jsonl"] | None = None
    model: Model = ""
    egress: EgressBody = Field(default_factory=lambda: EgressBody())
    snapshots: SnapshotsBody = Field(default_factory=lambda: SnapshotsBody())
    archive: Sha256 | None = Field(
        default=None, description="digest of an uploaded tar.zst, as a snapshot's export gives it: what it begins with"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> SubmitBody:
        if self.archive and self.files:
            bounds.refuse(
                "files: it begins with what the archive holds",
                limit="absent, where there is `archive`",
                remedy="copy them in when it is there, or pack them into the archive",
            )
        seen: set[str] = set()
        for file in self.files:
            if file.path in seen:
                bounds.refuse(
                    f"files: {file.path[:80]!r} is there twice", limit="each path once", remedy="send it once"
                )
            seen.add(file.path)
        for path in seen:
            folder = path
            while "/" in folder:
                folder = folder.rpartition("/")[0]
                if folder in seen:
                    bounds.refuse(
                        f"files: {folder[:80]!r} is a file and, in {path[:80]!r}, a folder",
                        limit="a path is one or the other",
                        remedy="rename one of them",
                    )
        if self.harness not in {"", "command"} and self.command:
            bounds.refuse(
                f"command: the harness {self.harness!r} has its own command line",
                limit="absent, or harness `command`",
                remedy="take out `command` or `harness`",
            )
        if self.named_harness == "command" and not self.command:
            bounds.refuse("command: it is missing", limit="at least the program", remedy="send the command to run")
        if self.named_harness == "bash" and not self.task:
            bounds.refuse(
                "task: there is nothing to do",
                limit="a script",
                remedy="send `task` (a script) or `command` (any program)",
            )
        return self

    @property
    def named_harness(self) -> str:
        return self.harness or ("command" if self.command else "bash")

    def spec(
        self,
        *,
        tenant: str,
        files: tuple[execution.FileRef, ...],
        resources: execution.Resources = DEFAULT_RESOURCES,
        limits: execution.Limits = DEFAULT_LIMITS,
    ) -> execution.Spec:
        """The noun. `files`: this body's, with their contents looked up or stored; `resources`, `limits`: what the
        installation gives where nothing is asked for."""
        return execution.Spec(
            task=self.task,
            harness=self.named_harness,
            command=tuple(self.command),
            image=self.image,
            env=dict(self.env),
            files=files,
            name=self.name,
            labels=dict(self.labels),
            resources=self.resources.noun(resources),
            limits=self.limits.noun(limits),
            retry=self.retry.noun(),
            stdin=self.stdin,
            output=self.output,
            model=self.model,
            egress=self.egress.noun(),
            snapshots=self.snapshots.noun(),
            archive=self.archive or "",
            tenant=tenant,
        )
