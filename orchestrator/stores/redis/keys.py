"""The names of all keys of one installation, as the design's channel page lists them. Knows nothing of what is in them.

The braces are Redis's hash tag: everything of one execution shares it. Cluster is refused all the same (`schema`).
One name goes beyond the table: `bell:host:<h>` wakes an idle worker of that host, because a token in the shared bell
may be eaten by a worker of another host that cannot do the work.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.errors import BadInput


@dataclass(frozen=True, slots=True)
class Keys:
    """`carrel:<installation>:…`. Raises BadInput for an installation's name with other characters than a-z 0-9 - _ ."""

    installation: str

    def __post_init__(self) -> None:
        name = self.installation
        if not (0 < len(name) <= 64 and name.isascii() and name.replace("-", "").replace("_", "").isalnum()):
            raise BadInput(
                f"installation {name!r} cannot be part of a key",
                field="installation",
                limit="1 to 64 of a-z A-Z 0-9 - _",
                remedy="choose another CARREL_INSTALLATION",
            )

    @property
    def prefix(self) -> str:
        return f"carrel:{self.installation}:"

    def record(self, execution_id: str) -> str:
        return f"{self.prefix}{{{execution_id}}}:record"

    def history(self, execution_id: str) -> str:
        return f"{self.prefix}{{{execution_id}}}:history"

    def inbox(self, execution_id: str) -> str:
        return f"{self.prefix}{{{execution_id}}}:inbox"

    def inbox_ids(self, execution_id: str) -> str:
        """Message id → its number, its event's seq and its digest, for as long as the execution lives."""
        return f"{self.prefix}{{{execution_id}}}:inbox:ids"

    def calls(self, execution_id: str) -> str:
        """Model calls by name, how each stands, recorded answers (lua/piece_calls.lua); gone with its end."""
        return f"{self.prefix}{{{execution_id}}}:calls"

    def intents(self, execution_id: str) -> str:
        """The journal of intents, by key (lua/piece_intents.lua)."""
        return f"{self.prefix}{{{execution_id}}}:intents"

    def intents_order(self, execution_id: str) -> str:
        """The journal's keys, in the order they came: the n-th is the intent with that n."""
        return f"{self.prefix}{{{execution_id}}}:intents:order"

    def snapshot(self, snapshot_id: str) -> str:
        """One snapshot's record (lua/piece_snapshots.lua)."""
        return f"{self.prefix}snapshot:{snapshot_id}"

    def snapshots_of(self, execution_id: str) -> str:
        """Its snapshots, scored by their number."""
        return self.index("snapshots", "of", execution_id)

    def forks(self, execution_id: str) -> str:
        """Executions begun from its snapshots, or from those of one removed between."""
        return self.index("forks", execution_id)

    @property
    def records(self) -> str:
        """The pattern of all records, for SCAN."""
        return f"{self.prefix}{{*}}:record"

    def due(self, host: str = "") -> str:
        return f"{self.prefix}due:host:{host}" if host else f"{self.prefix}due:any"

    def bell(self, owner: str = "") -> str:
        return f"{self.prefix}bell:{owner}" if owner else f"{self.prefix}bell"

    def host_bell(self, host: str) -> str:
        return f"{self.prefix}bell:host:{host}"

    def parked(self, tenant: str) -> str:
        return f"{self.prefix}parked:{tenant}"

    @property
    def names(self) -> str:
        return f"{self.prefix}names"

    def index(self, *parts: str) -> str:
        return f"{self.prefix}index:{':'.join(parts)}"

    @property
    def hosts(self) -> str:
        return f"{self.prefix}hosts"

    @property
    def workers(self) -> str:
        return f"{self.prefix}workers"

    @property
    def tokens(self) -> str:
        return f"{self.prefix}tokens"

    @property
    def streams(self) -> str:
        """What all keys of the generic streams begin with (lua/piece_stream.lua)."""
        return f"{self.prefix}stream:"

    def restored(self, execution_id: str) -> str:
        """A record on its way out of a backup: nobody sees it before all of it is there."""
        return f"{self.prefix}{{{execution_id}}}:restored"

    @property
    def counters(self) -> str:
        """What workers count, added up: a hash."""
        return f"{self.prefix}counters"

    @property
    def meta(self) -> str:
        return f"{self.prefix}meta"
