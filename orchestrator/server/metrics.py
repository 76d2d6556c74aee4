"""What this api process counts, for Prometheus. Knows no store: figures of the installation are handed in at a scrape.

A registry of its own, so that two apps in one process (tests, `carrel serve`) do not share counters. Label values come
from fixed sets only: route templates, methods, status classes, states, outcomes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.execution import OutcomeKind, Reason
from orchestrator.executions import EGRESS_RECEIVED, EGRESS_SENT, Host, Tally
from orchestrator.lifecycle import ExecutionState

logger = logging.getLogger(__name__)

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_LATENCY_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})


class Metrics:
    """One process's counters."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.http_seconds = Histogram(
            "carrel_http_seconds",
            "Time to the first byte of the answer, by route template. Held requests (wait, long-poll) are not in it.",
            ("method", "route", "status"),
            buckets=_LATENCY_S,
            registry=registry,
        )
        self.viewers = Gauge("carrel_viewers", "Viewers of histories right now.", ("kind",), registry=registry)
        self.viewers_dropped = Counter(
            "carrel_viewers_dropped_total", "Viewers that took nothing for too long.", ("kind",), registry=registry
        )
        self.events_sent = Counter(
            "carrel_events_sent_total", "Events handed to viewers.", ("kind",), registry=registry
        )
        self.sent_bytes = Counter("carrel_sent_bytes_total", "Bytes of events sent.", ("kind",), registry=registry)
        self.encoded_events = Counter(
            "carrel_encoded_events_total", "Events turned into JSON (the others were shared).", registry=registry
        )
        self.execs = Counter("carrel_execs_total", "Commands run beside harnesses.", registry=registry)
        self.snapshots = Counter("carrel_snapshots_asked_total", "Snapshots asked for.", ("why",), registry=registry)
        self.forks = Counter("carrel_forks_total", "Executions forked or rewound.", registry=registry)
        self.wakes = Counter("carrel_wakes_total", "Sleeping executions woken by an exec.", registry=registry)
        self.uploaded_bytes = Counter("carrel_uploaded_bytes_total", "Bytes of uploads.", registry=registry)
        self.encoded_before = 0  # of what the counter above has been told
        self._egress_bytes = Counter(
            "carrel_egress_bytes",
            "Bytes through the egress proxies of all workers: sent by sandboxes, received by them.",
            ("direction",),
            registry=registry,
        )
        self._egress_before: dict[str, int] = {}
        self._states = Gauge("carrel_executions", "Executions by state.", ("state",), registry=registry)
        self._outcomes = Gauge(
            "carrel_outcomes_1h", "Executions that ended in the last hour, by outcome.", ("outcome",), registry=registry
        )
        self._reasons = Gauge("carrel_reasons_1h", "The same, by reason.", ("reason",), registry=registry)
        self._resumed = Gauge("carrel_resumed_1h", "The same: those that needed another attempt.", registry=registry)
        self._in_doubt = Gauge(
            "carrel_intents_in_doubt_1h", "The same: their intents in doubt that nobody settled.", registry=registry
        )
        self._wall_s = Gauge("carrel_wall_seconds_1h", "The same: their wall time in all.", registry=registry)
        self._calls = Gauge(
            "carrel_model_calls_1h", "The same: model calls that reached a provider.", registry=registry
        )
        self._replays = Gauge("carrel_model_replays_1h", "The same: answered from the record.", registry=registry)
        self._tokens = Gauge("carrel_model_tokens_1h", "The same: tokens of those calls.", ("kind",), registry=registry)
        self._micros = Gauge("carrel_model_micros_1h", "The same: millionths of a dollar.", registry=registry)
        self._hosts = Gauge("carrel_hosts", "Hosts whose last heartbeat is at most a minute old.", registry=registry)
        self._workers = Gauge("carrel_workers", "Workers on those hosts.", registry=registry)

    def scrape(
        self,
        counted: Mapping[ExecutionState, int],
        tallies: Sequence[Tally],
        hosts: Sequence[Host],
        counters: Mapping[str, int],
    ) -> bytes:
        """The text of /metrics. `tallies`: of the last hour, ungrouped; `counters`: since ever. No state, outcome or
        reason is left out."""
        for name, direction in ((EGRESS_SENT, "sent"), (EGRESS_RECEIVED, "received")):
            before = self._egress_before.get(name, 0)
            now = max(counters.get(name, 0), before)  # a store that does not answer takes nothing back
            self._egress_bytes.labels(direction).inc(now - before)
            self._egress_before[name] = now
        for state in ExecutionState:
            self._states.labels(state.value).set(counted.get(state, 0))
        for kind in OutcomeKind:
            self._outcomes.labels(kind.value).set(sum(tally.by_outcome.get(kind, 0) for tally in tallies))
        for reason in Reason:
            self._reasons.labels(reason.value).set(sum(tally.by_reason.get(reason, 0) for tally in tallies))
        self._resumed.set(sum(tally.resumed for tally in tallies))
        self._in_doubt.set(sum(tally.in_doubt for tally in tallies))
        self._wall_s.set(sum(tally.wall_s for tally in tallies))
        self._calls.set(sum(tally.spend.calls for tally in tallies))
        self._replays.set(sum(tally.spend.replays for tally in tallies))
        self._tokens.labels("input").set(sum(tally.spend.input_tokens for tally in tallies))
        self._tokens.labels("output").set(sum(tally.spend.output_tokens for tally in tallies))
        self._micros.set(sum(tally.spend.micros for tally in tallies))
        self._hosts.set(len(hosts))
        self._workers.set(sum(len(host.workers) for host in hosts))
        return generate_latest(self.registry)


def _log(scope: Scope, status: int, seconds: float) -> None:
    """What changes something is worth a line; what only looks is for debugging. The path as it was sent (escaped by
    its encoding), never the query, and the token by its name."""
    level = logging.DEBUG if scope["method"] in {"GET", "HEAD"} and status < 500 else logging.INFO
    if not logger.isEnabledFor(level):
        return
    token = scope.get("carrel.token")
    about = {
        "method": scope["method"],
        "path": scope["raw_path"].decode("ascii", "backslashreplace")[:300],
        "status": status,
        "ms": round(seconds * 1000, 1),
        "token": token.id if token else "",
    }
    if id := scope.get("path_params", {}).get("id"):
        about["execution"] = id
    logger.log(level, "request", extra=about)


class Timing:
    """ASGI middleware: how long until each answer began, counted and logged."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()

        async def timed(message: Message) -> None:
            if message["type"] == "http.response.start":
                _log(scope, message["status"], time.perf_counter() - began)
            if message["type"] == "http.response.start" and not scope.get("carrel.held"):
                # The template, never the path: an attacker's URLs must not become label values.
                route = getattr(scope.get("route"), "path", "") or "other"
                method = scope["method"] if scope["method"] in _METHODS else "other"
                self._metrics.http_seconds.labels(method, route, f"{message['status'] // 100}xx").observe(
                    time.perf_counter() - began
                )
            await send(message)

        await self._app(scope, receive, timed)
