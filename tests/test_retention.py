"""What may go by policy, and what never does."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.execution import Execution, SnapshotPolicy, Spec
from orchestrator.lifecycle import ExecutionState
from orchestrator.retention import all_snapshots_over, executions_over, snapshots_over, wished
from orchestrator.snapshots import Cut, KeepPolicy, Snapshot, Why

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


def taken(n: int, at_h: float = 0.0, *, why: Why = Why.PERIODIC, name: str = "", of: str = "exe_a") -> Snapshot:
    at = EPOCH + timedelta(hours=at_h)
    return Snapshot(f"snp_{n:04}", of, "default", why, Cut(1, n, 0, 0, 0), "sbx", "h", "directory", at, name=name)


def execution(
    execution_id: str = "exe_a",
    state: ExecutionState = ExecutionState.RUNNING,
    *,
    newest: str | None = None,
    finished_h: float | None = None,
    keep: KeepPolicy | None = None,
) -> Execution:
    return Execution(
        id=execution_id,
        spec=Spec(snapshots=SnapshotPolicy(keep=keep or KeepPolicy())),
        state=state,
        created_at=EPOCH,
        snapshot_id=newest,
        finished_at=None if finished_h is None else EPOCH + timedelta(hours=finished_h),
    )


hours = st.floats(0, 24 * 20)
some = st.lists(st.tuples(hours, st.sampled_from(Why), st.sampled_from(["", "", "n"])), max_size=40).map(
    lambda rows: [taken(n, at_h, why=why, name=name) for n, (at_h, why, name) in enumerate(rows)]
)
policies = st.builds(KeepPolicy, last=st.integers(0, 10), days=st.integers(0, 10))


def newest_first(snapshots: Sequence[Snapshot]) -> list[Snapshot]:
    subject = [s for s in snapshots if not wished(s) and s.why is not Why.END]
    return sorted(subject, key=lambda s: (s.created_at, s.id), reverse=True)


class TestSnapshots:
    @given(some, policies)
    def test_what_stays(self, snapshots: list[Snapshot], policy: KeepPolicy) -> None:
        needed = {s.id for s in snapshots[:1]}
        over = set(snapshots_over(snapshots, policy, needed=needed))
        assert over <= {s.id for s in snapshots} - needed
        for snapshot in snapshots:
            if wished(snapshot) or snapshot.why is Why.END:
                assert snapshot.id not in over
        ordered = newest_first(snapshots)
        assert not over & {s.id for s in ordered[: policy.last]}
        days = sorted({s.created_at.date() for s in ordered}, reverse=True)[: policy.days]
        for day in days:
            assert next(s.id for s in ordered if s.created_at.date() == day) not in over
        # and nothing stays without a reason
        assert len(ordered) - len(over) <= policy.last + len(days) + len(needed)

    @given(some, policies)
    def test_order_means_nothing_and_twice_removes_no_more(self, snapshots: list[Snapshot], policy: KeepPolicy) -> None:
        over = snapshots_over(snapshots, policy, needed=())
        assert over == snapshots_over(snapshots[::-1], policy, needed=())
        left = [s for s in snapshots if s.id not in over]
        assert snapshots_over(left, policy, needed=()) == ()

    def test_oldest_first(self) -> None:
        snapshots = [taken(n, at_h=n) for n in range(5)]
        assert snapshots_over(snapshots, KeepPolicy(last=2, days=0), needed=()) == ("snp_0000", "snp_0001", "snp_0002")

    def test_one_a_day(self) -> None:
        snapshots = [taken(n, at_h=8 * n) for n in range(9)]  # three a day, three days
        over = snapshots_over(snapshots, KeepPolicy(last=0, days=2), needed=())
        assert {s.id for s in snapshots} - set(over) == {"snp_0005", "snp_0008"}

    def test_days_without_any_do_not_count(self) -> None:
        snapshots = [taken(1, 0), taken(2, 24 * 9), taken(3, 24 * 18)]
        assert snapshots_over(snapshots, KeepPolicy(last=0, days=2), needed=()) == ("snp_0001",)


class TestAll:
    def test_each_by_its_own_policy_and_none_that_is_needed(self) -> None:
        none = KeepPolicy(0, 0)
        records = [
            execution("exe_a", newest="snp_0002", keep=none),
            execution("exe_b", ExecutionState.FINISHED, newest="snp_0004", keep=none),
            execution("exe_c", newest="snp_0003", keep=none),  # forked from b's
            execution("exe_d"),
        ]
        snapshots = [
            taken(1),
            taken(2),
            taken(3, of="exe_b"),
            taken(4, of="exe_b"),
            taken(5, of="exe_d"),
        ]
        assert all_snapshots_over(records, snapshots) == ("snp_0001", "snp_0004")

    def test_those_of_a_removed_one_go_when_nobody_begins_from_them(self) -> None:
        snapshots = [taken(1, why=Why.ASKED, of="exe_gone"), taken(2, of="exe_gone", name="n")]
        assert all_snapshots_over([execution(newest="snp_0001")], snapshots) == ("snp_0002",)


class TestExecutions:
    def test_those_that_ended_long_ago(self) -> None:
        records = [
            execution("exe_old", ExecutionState.FINISHED, finished_h=1),
            execution("exe_older", ExecutionState.FINISHED, finished_h=0),
            execution("exe_new", ExecutionState.FINISHED, finished_h=9),
            execution("exe_kept", ExecutionState.FINISHED, finished_h=0),
            execution("exe_runs"),
        ]
        snapshots = [taken(1, of="exe_kept", name="n"), taken(2, of="exe_old")]
        now = EPOCH + timedelta(hours=10)
        assert executions_over(records, snapshots, now=now, retention_s=3600 * 5) == ("exe_older", "exe_old")
        assert executions_over(records, snapshots, now=now, retention_s=0) == ()
