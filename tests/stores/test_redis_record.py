"""The record's codec: what is written comes back, and what another release wrote can be read."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.clock import from_ms
from orchestrator.execution import (
    Budget,
    Egress,
    FileRef,
    Limits,
    Outcome,
    OutcomeKind,
    Reason,
    Resources,
    RetryPolicy,
    SnapshotPolicy,
    SnapshotWant,
    Spec,
    Spend,
)
from orchestrator.harnesses import Harness, HarnessFile
from orchestrator.lifecycle import ExecutionState
from orchestrator.snapshots import Cut, KeepPolicy, Origin, Snapshot, Why
from orchestrator.stores.redis.record import of_outcome, of_spec, to_execution, to_outcome, to_spec
from orchestrator.stores.redis.scripts import load
from orchestrator.stores.redis.snapshot_record import of_snapshot, to_snapshot

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
arguments = st.lists(text, max_size=3).map(tuple)
harnesses = st.builds(
    Harness,
    name=text,
    argv=st.none() | arguments,
    resume_argv=st.none() | arguments,
    env=st.dictionaries(text, text, max_size=2),
    files=st.lists(st.builds(HarnessFile, path=text, text=text), max_size=2).map(tuple),
    interrupt=st.integers(1, 64),
    resumes=st.booleans(),
    image=text,
    api=text,
)
specs = st.builds(
    Spec,
    harness=text,
    declared=st.none() | harnesses,
    task=text,
    command=st.lists(text, max_size=3).map(tuple),
    env=st.dictionaries(text, text, max_size=3),
    files=st.lists(
        st.builds(FileRef, path=text, sha256=text, size_bytes=st.integers(0), mode=st.integers(0, 0o777)), max_size=2
    ).map(tuple),
    name=text,
    labels=st.dictionaries(text, text, max_size=3),
    resources=st.builds(Resources, cpus=st.floats(0.01, 64), memory_bytes=st.integers(1, 1 << 50)),
    limits=st.builds(
        Limits,
        deadline_s=st.none() | st.floats(0.1, 1e6),
        grace_s=st.floats(0, 100),
        budget=st.builds(
            Budget,
            micros=st.none() | st.integers(0, 1 << 53),
            tokens=st.none() | st.integers(0, 1 << 53),
            on_exceeded=st.sampled_from(["fail", "wait"]),
        ),
    ),
    egress=st.builds(Egress, st.lists(text, max_size=3).map(tuple)),
    retry=st.builds(RetryPolicy, max_failures=st.integers(0, 9), on_lost=st.sampled_from(["auto", "retry", "end"])),
    stdin=st.sampled_from([None, "none", "text", "jsonl"]),
    snapshots=st.builds(
        SnapshotPolicy,
        every_s=st.none() | st.floats(1, 1e6),
        at_end=st.booleans(),
        keep=st.builds(KeepPolicy, last=st.integers(0, 99), days=st.integers(0, 99)),
    ),
    origin=st.none() | st.builds(Origin, execution_id=text, snapshot_id=text, seq=st.integers(0), rewind=st.booleans()),
)


@given(specs)
def test_a_spec_comes_back(spec: Spec) -> None:
    fields = of_spec(spec)
    assert to_spec(fields["spec"].encode()) == spec
    record = {name: value.encode() for name, value in fields.items()}
    execution = to_execution("exe_a", {**record, "state": b"QUEUED", "created": b"1"}, 0)
    assert (execution.egress, execution.budget, execution.resources) == (
        spec.egress,
        spec.limits.budget,
        spec.resources,
    )


@given(
    st.builds(
        Outcome,
        st.sampled_from(OutcomeKind),
        st.sampled_from(Reason),
        text,
        st.none() | st.integers(0, 255),
        st.none() | st.integers(1, 64),
    )
)
def test_an_outcome_comes_back(outcome: Outcome) -> None:
    assert to_outcome(of_outcome(outcome)) == outcome


@given(
    st.builds(
        Snapshot,
        id=st.from_regex(r"snp_[a-z0-9]{1,20}", fullmatch=True),
        execution_id=text,
        tenant=text,
        why=st.sampled_from(Why),
        cut=st.builds(Cut, *(st.integers(0, 1 << 62) for _ in range(5))),
        sandbox_id=text,
        host=text,
        store=text,
        created_at=st.integers(0, 1 << 41).map(from_ms),
        name=text.filter(lambda name: name.isprintable() and not name.startswith("snp_")),
        labels=st.dictionaries(text, text, max_size=3),
        parent=text,
        size_bytes=st.integers(0, 1 << 63),
        files=st.integers(0, 1 << 40),
        digest=text,
        archived=st.booleans(),
    )
)
def test_a_snapshot_comes_back(snapshot: Snapshot) -> None:
    flat = of_snapshot(snapshot)["fields"]
    fields = {flat[i]: flat[i + 1].encode() for i in range(0, len(flat), 2)}
    whose = {"execution": snapshot.execution_id.encode(), "tenant": snapshot.tenant.encode()}
    assert to_snapshot(snapshot.id, {**fields, **whose}) == snapshot


def test_wishes_as_the_scripts_write_them_are_read() -> None:
    record = {"spec": b"{}", "state": b"RUNNING", "created": b"1", "want_hibernate": b'{"id":"h1"}'}
    wish = b'[{"id":"snp_1","why":"fork","name":"n","labels":[]},{"id":"snp_2","why":"asked","labels":{"k":"v"}}]'
    wants = to_execution("exe_a", {**record, "want_snapshots": wish, "snapshot_id": b"snp_0"}, 0).wants
    assert wants.hibernate == "h1"
    assert wants.snapshots == (SnapshotWant("snp_1", Why.FORK, "n"), SnapshotWant("snp_2", labels={"k": "v"}))


def test_a_default_spec_takes_no_room() -> None:
    fields = of_spec(Spec())
    assert fields["spec"] == "{}"
    assert not {"egress", "budget"} & set(fields)


def test_a_record_of_before_has_no_budget_and_no_way_out() -> None:
    execution = to_execution("exe_a", {"spec": b"{}", "state": b"RUNNING", "created": b"1"}, 0)
    assert (execution.egress, execution.budget) == (Egress(), Budget())
    assert (execution.spend, execution.over_budget) == (Spend(), "")
    assert (execution.snapshot_id, execution.wants.snapshots, execution.wants.hibernate) == (None, (), None)
    assert (execution.spec.origin, execution.spec.snapshots) == (None, SnapshotPolicy())


def test_what_was_spent_is_read_in_the_order_the_scripts_write() -> None:
    listed = load("call_end").text.partition("local SPEND = {")[2].partition("}")[0]
    names = [name.strip(" '\n") for name in listed.split(",") if name.strip()]
    record = {name: str(n).encode() for n, name in enumerate(names, 1)}
    execution = to_execution("exe_a", {"spec": b"{}", "state": b"RUNNING", "created": b"1", **record}, 0)
    assert execution.spend == Spend(1, 2, 3, 4, 5, 6, 7)


def test_what_a_newer_release_added_is_passed_over() -> None:
    spec = {"task": "x", "colour": "red", "limits": {"deadline_s": 5, "moons": 2}, "resources": {"cpus": 2, "gpu": 1}}
    record = {
        "spec": json.dumps(spec).encode(),
        "state": b"RUNNING",
        "created": b"1763725000000",
        "want_cancel": b'{"id":"c","grace_s":1,"reason":"","why":"new"}',
        "planet": b"mars",
    }
    execution = to_execution("exe_a", record, 0)
    assert (execution.state, execution.spec.task) == (ExecutionState.RUNNING, "x")
    assert (execution.spec.limits.deadline_s, execution.spec.resources.cpus) == (5, 2)
    assert execution.wants.cancel is not None
    assert execution.generation == 1


def test_moments_of_the_logical_clock_are_turned_into_wall_time() -> None:
    record = {"spec": b"{}", "state": b"QUEUED", "created": b"5000", "deadline": b"9000"}
    execution = to_execution("exe_a", record, 1000)
    assert execution.deadline_at is not None
    assert execution.deadline_at.timestamp() == 10
    assert execution.created_at.timestamp() == 5
