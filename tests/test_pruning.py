"""What somebody wants gone, and what never goes, whatever they ask for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.execution import Execution, Outcome, OutcomeKind, Reason, SnapshotPolicy, Spec
from orchestrator.lifecycle import ExecutionState
from orchestrator.pruning import Going, Kind, Wish, prune_plan
from orchestrator.retention import wished
from orchestrator.snapshots import Cut, KeepPolicy, Snapshot, Why

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
NOW = EPOCH + timedelta(days=10)
ALL = frozenset(Kind)


def record(n: int, state: ExecutionState, day: int, newest: int | None, label: str) -> Execution:
    ended = state is ExecutionState.FINISHED
    return Execution(
        id=f"exe_{n}",
        spec=Spec(labels={"l": label}, snapshots=SnapshotPolicy(keep=KeepPolicy(1, 0))),
        state=state,
        created_at=EPOCH,
        sandbox_id=f"sbx_{n}",
        snapshot_id=None if newest is None else f"snp_{newest}",
        outcome=Outcome(OutcomeKind.SUCCEEDED, Reason.EXIT_CODE, "", 0) if ended else None,
        finished_at=EPOCH + timedelta(days=day) if ended else None,
    )


def taken(n: int, of: int, day: int, why: Why, name: str) -> Snapshot:
    at = EPOCH + timedelta(days=day)
    return Snapshot(f"snp_{n}", f"exe_{of}", "default", why, Cut(1, n, 0, 0, 0), "sbx", "h", "any", at, name=name)


few, days = st.integers(0, 5), st.integers(0, 9)
states = st.sampled_from(ExecutionState)
records = st.lists(st.tuples(states, days, st.none() | few, st.sampled_from("ab")), max_size=6).map(
    lambda rows: [record(n, *row) for n, row in enumerate(rows)]
)
snapshots = st.lists(st.tuples(few, days, st.sampled_from(Why), st.sampled_from(["", "", "n"])), max_size=8).map(
    lambda rows: [taken(n, *row) for n, row in enumerate(rows)]
)
wishes = st.builds(
    Wish,
    st.frozensets(st.sampled_from(Kind), min_size=1),
    st.none() | st.sampled_from([0.0, 86_400.0 * 3]),
    st.frozensets(states, max_size=2),
    st.frozensets(st.sampled_from(OutcomeKind), max_size=2),
    st.sampled_from([{}, {"l": "a"}, {"l": "a", "m": "x"}]),
)


@given(records, snapshots, wishes)
def test_what_never_goes(executions: list[Execution], kept: list[Snapshot], wish: Wish) -> None:
    plan = prune_plan(executions, kept, wish, now=NOW)
    assert [going.place for going in plan] == sorted({going.place for going in plan})
    needed = {one.snapshot_id for one in executions if not one.ended}
    there = {one.id for one in executions}
    for going in plan:
        assert going.kind in wish.kinds
        if going.stays:
            continue
        if going.snapshot is None:
            assert going.execution is not None and going.execution.ended and wish.fits(going.execution)
        else:
            assert going.snapshot.id not in needed
            if going.snapshot.execution_id in there or wish.older_than_s is not None:
                assert not wished(going.snapshot)
    whole = {going.id for going in plan if going.kind is Kind.EXECUTIONS and not going.stays}
    held = {one.execution_id for one in kept if wished(one)}
    assert not whole & held
    # What goes with its execution does not go twice.
    assert not [g for g in plan if g.snapshot and g.snapshot.execution_id in whole]
    assert not [g for g in plan if g.kind is Kind.WORKSPACES and g.id in whole]


def gone(plan: tuple[Going, ...]) -> list[tuple[str, str]]:
    return [(going.kind.value, going.id) for going in plan if not going.stays]


def test_by_age() -> None:
    ended = [record(n, ExecutionState.FINISHED, day, None, "a") for n, day in enumerate((1, 5, 9))]
    wish = Wish(frozenset({Kind.EXECUTIONS}), 86_400.0 * 5)
    assert gone(prune_plan(ended, [], wish, now=NOW)) == [("executions", "exe_0"), ("executions", "exe_1")]
    assert gone(prune_plan(ended, [], Wish(ALL, 1e15), now=NOW)) == []


def test_snapshots_by_policy_or_by_age() -> None:
    done = record(0, ExecutionState.FINISHED, 8, None, "a")
    kept = [taken(n, 0, n, why, "") for n, why in enumerate((Why.PERIODIC, Why.PERIODIC, Why.END, Why.ASKED))]
    only = frozenset({Kind.SNAPSHOTS})
    assert gone(prune_plan([done], kept, Wish(only), now=NOW)) == [("snapshots", "snp_0")]
    aged = prune_plan([done], kept, Wish(only, 86_400.0), now=NOW)
    assert gone(aged) == [("snapshots", "snp_0"), ("snapshots", "snp_1"), ("snapshots", "snp_2")]
