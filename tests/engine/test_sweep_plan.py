"""What a sweep removes: only what is old and named by nobody, and nothing on the word of an empty store."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.engine.sweep_plan import SweepPlan, sweep_plan
from orchestrator.execution import Execution, Spec
from orchestrator.lifecycle import WITH_SANDBOX, ExecutionState
from orchestrator.sandbox import Found

NOW = datetime(2026, 1, 1, tzinfo=UTC)
OLD, YOUNG = NOW - timedelta(hours=1), NOW - timedelta(seconds=5)


def record(sandbox_id: str | None, state: ExecutionState) -> Execution:
    return Execution(f"exe_{sandbox_id}", Spec(), state, OLD, sandbox_id=sandbox_id)


def plan(found: list[Found], slots: list[tuple[str, datetime]], records: list[Execution]) -> SweepPlan:
    return sweep_plan(found, slots, records, now=NOW, orphan_grace_s=60)


def test_orphans_and_only_they() -> None:
    records = [record("runs", ExecutionState.RUNNING), record("done", ExecutionState.FINISHED)]
    found = [Found(name, OLD, True) for name in ("runs", "done", "nobody")] + [Found("new", YOUNG, True)]
    slots = [(name, OLD) for name in ("runs", "done", "nobody")] + [("new", YOUNG)]
    made = plan(found, slots, records)
    assert made.sandboxes == ("done", "nobody")  # the first one's attempt is over: its files stay, its box does not
    assert made.slots == ("nobody",)
    assert made.stale == ("done",)


def test_files_of_one_that_sleeps_or_waits_are_its_own() -> None:
    records = [record("a", ExecutionState.HIBERNATED), record("b", ExecutionState.QUEUED)]
    made = plan([Found("a", OLD, False), Found("b", OLD, True)], [("a", OLD), ("b", OLD)], records)
    assert made.sandboxes == ("a", "b")
    assert made.slots == ()


def test_an_empty_store_condemns_nothing() -> None:
    made = plan([Found("x", OLD, True)], [("y", OLD)], [])
    assert made == SweepPlan(distrusted=True)
    assert plan([], [], []) == SweepPlan()


names = st.sampled_from(["s1", "s2", "s3", "s4"])
moments = st.sampled_from([OLD, YOUNG])


@given(
    st.lists(st.builds(Found, names, moments, st.booleans()), max_size=4),
    st.lists(st.tuples(names, moments), max_size=4),
    st.lists(st.builds(record, names, st.sampled_from(ExecutionState)), max_size=4),
)
def test_nothing_that_is_named_or_young_is_touched(
    found: list[Found], slots: list[tuple[str, datetime]], records: list[Execution]
) -> None:
    made = plan(found, slots, records)
    living = {r.sandbox_id for r in records if r.state in WITH_SANDBOX}
    assert not living & set(made.sandboxes)
    assert not {r.sandbox_id for r in records} & set(made.slots)
    assert set(made.sandboxes) <= {box.sandbox_id for box in found if box.created_at == OLD}
    assert set(made.slots) <= {slot for slot, made_at in slots if made_at == OLD}
