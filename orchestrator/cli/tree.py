"""`carrel tree`: where an execution began, and what came of that."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import console, reaching

if TYPE_CHECKING:
    from orchestrator.client.nouns import ExecutionNode, SnapshotAnswer, TreeAnswer


def tree(
    ctx: typer.Context,
    execution: Annotated[str, reaching.Ref],
    everything: Annotated[bool, typer.Option("-a", "--all", help="Snapshots nothing was begun from, too.")] = False,
    as_json: Annotated[bool, reaching.Json] = False,
) -> None:
    """Draw the whole tree it is in: executions, the snapshots of them, and what was forked there. `*` marks the one
    named."""
    with reaching.client(ctx) as client:
        found = reaching.execution(client, execution)
        drawn = found.tree()
    if as_json:
        console.document(drawn.model_dump(mode="json"))
        return
    for line in lines(drawn, found.id, everything=everything):
        console.line(console.printable(line))


def lines(drawn: TreeAnswer, here: str, *, everything: bool) -> Iterator[str]:
    """The drawing, a line each. A snapshot nothing was begun from is left out unless `everything`, or it has a name."""
    shown = {node.id: _of_execution(node, node.id == here) for node in drawn.executions}
    below: dict[str, list[str]] = defaultdict(list)
    parents = {edge.parent for edge in drawn.edges if edge.kind != "taken"}
    for one in drawn.snapshots:
        if everything or one.name or one.id in parents:
            shown[one.id] = _of_snapshot(one)
    kinds = {edge.child: edge.kind for edge in drawn.edges}
    for edge in drawn.edges:
        if edge.parent in shown and edge.child in shown:
            below[edge.parent].append(edge.child)
    roots = [id for id in shown if kinds.get(id) is None or all(id not in some for some in below.values())]
    for root in roots:
        yield from _branch(root, shown, below, first="", rest="")


def _branch(
    id: str, shown: Mapping[str, str], below: Mapping[str, Sequence[str]], *, first: str, rest: str
) -> Iterator[str]:
    pending = [(id, first, rest)]
    while pending:
        at, head, indent = pending.pop()
        yield head + shown[at]
        children = below.get(at, ())
        for number, child in reversed(list(enumerate(children))):
            last = number == len(children) - 1
            pending.append((child, indent + ("└─ " if last else "├─ "), indent + ("   " if last else "│  ")))


def _of_execution(node: ExecutionNode, here: bool) -> str:
    state = node.outcome or (str(node.state) if node.state else "removed")
    words = [node.id, node.name, state, console.age(node.created_at)]
    return ("* " if here else "") + "  ".join(word for word in words if word)


def _of_snapshot(one: SnapshotAnswer) -> str:
    words = [one.id, one.name, one.why, f"seq {one.cut.seq}", console.age(one.created_at)]
    return "  ".join(word for word in words if word)


def register(app: typer.Typer) -> None:
    app.command("tree")(tree)
