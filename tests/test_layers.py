"""Who may import whom: the paragraph of that name in the design, as one table, held against every file.

Read from the source (ast), so an import inside a function or under TYPE_CHECKING counts as well.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = {
    "orchestrator": ROOT / "orchestrator",
    "sandbox_init": ROOT / "sandbox-image" / "sandbox_init",
    "agent_harness": ROOT / "agent-harness" / "agent_harness",
    "adapters": ROOT / "agent-harness" / "adapters",
    "scripted_model": ROOT / "agent-harness" / "scripted_model",
}
TOP_LEVEL = {"pyproject.toml", "README.md", "Makefile", "orchestrator", "sandbox-image", "agent-harness", "tests"}
GENERATED = {"build", "dist", "__pycache__"}


@dataclass(frozen=True)
class Room:
    """The modules below any of `of`; what they may import besides themselves and the standard library."""

    of: tuple[str, ...]
    rooms: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()


# The most specific room a module is in counts. "nouns" is every module directly in orchestrator/ that has no row.
ROOMS = {
    "nouns": Room(("orchestrator",)),
    "link": Room(("orchestrator.link",), ("nouns", "frames")),
    "settings": Room(
        ("orchestrator.settings", "orchestrator.configuration", "orchestrator.model_settings"), ("nouns",)
    ),
    "scripted_provider": Room(("orchestrator.scripted_provider",), ("nouns", "scripted_model")),
    "diagnosis": Room(
        ("orchestrator.diagnosis", "orchestrator.model_diagnosis", "orchestrator.archive_diagnosis"),
        ("nouns", "settings", "stores", "leftovers", "archives"),
        ("docker",),
    ),
    # As assembly, it knows concrete classes; but it only looks.
    "leftovers": Room(
        ("orchestrator.leftovers",), ("nouns", "settings", "stores", "drivers", "workspaces", "engine"), ()
    ),
    "assembly": Room(
        ("orchestrator.assembly",),
        (
            "nouns",
            "link",
            "settings",
            "leftovers",
            "scripted_provider",
            "catalogue",
            "engine",
            "drivers",
            "reaches",
            "stores",
            "wire",
            "workspaces",
            "archives",
            "gateway",
            "server",
            "backup",
        ),
        ("docker", "redis", "uvicorn", "uvloop", "fastapi"),
    ),
    "catalogue": Room(("orchestrator.catalogue",), ("nouns",)),
    "engine": Room(("orchestrator.engine",), ("nouns", "link"), ("ulid",)),
    "drivers": Room(("orchestrator.drivers",), ("nouns",), ("docker", "requests", "urllib3")),
    "reaches": Room(("orchestrator.reaches",), ("nouns",)),
    "stores": Room(("orchestrator.stores",), ("nouns", "wire"), ("redis",)),
    "backup": Room(("orchestrator.backup",), ("nouns",), ("zstandard",)),
    "wire": Room(("orchestrator.wire",), ("nouns",), ("pydantic", "pydantic_core")),
    "workspaces": Room(("orchestrator.workspaces",), ("nouns",), ("zstandard",)),
    "archives": Room(("orchestrator.archives",), ("nouns",), ("obstore", "zstandard")),
    "gateway": Room(("orchestrator.gateway",), ("nouns",), ("httpx", "h11")),
    "server": Room(
        # link: exec speaks to init as a viewer (channel.md, "Live bytes"). pydantic stays in wire.
        ("orchestrator.server",),
        ("nouns", "link", "wire"),
        ("fastapi", "starlette", "uvicorn", "prometheus_client", "ulid"),
    ),
    # The local server's address and data directory are settings; nothing else of the server's is known to its clients.
    "profile": Room(("orchestrator.profile",), ("nouns", "settings")),
    "client": Room(("orchestrator.client",), ("nouns", "profile", "wire"), ("websockets", "httpx")),
    "python -m": Room(("orchestrator.__main__",), ("cli",)),
    "cli": Room(("orchestrator.cli",), ("nouns", "client", "profile", "settings"), ("typer", "click", "rich")),
    # These start the parts themselves, or look at them.
    "cli that serves": Room(
        (
            "orchestrator.cli.serve",
            "orchestrator.cli.api",
            "orchestrator.cli.worker",
            "orchestrator.cli.doctor",
            "orchestrator.cli.backup",
            "orchestrator.cli.restore",
        ),
        ("nouns", "client", "profile", "settings", "cli", "assembly", "diagnosis", "backup"),
        ("typer", "click", "rich"),
    ),
    "frames": Room(("sandbox_init.frames",), ("sandbox_init",)),
    "sandbox_init": Room(("sandbox_init",), ("frames",)),
    "agent_harness": Room(("agent_harness",)),
    "adapters": Room(("adapters",)),
    "which adapter": Room(("adapters.__main__",), ("adapters", "adapters of mini")),
    # Loaded by mini-swe-agent, in its own interpreter.
    "adapters of mini": Room(("adapters.mini", "adapters.mini_class"), ("adapters",), ("minisweagent", "litellm")),
    "scripted_model": Room(("scripted_model",)),
}

NAMELESS = {"utils", "util", "helpers", "helper", "managers", "manager", "common", "misc", "base"}


def modules() -> Iterator[tuple[str, Path]]:
    for package, folder in SOURCES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join((package, *(parts[:-1] if parts[-1] == "__init__" else parts))), path


MODULES = dict(modules())
PACKAGES = {module for module, path in MODULES.items() if path.name == "__init__.py"} - set(SOURCES)


def within(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(prefix + ".")


def room_of(module: str) -> str:
    found = [(len(prefix), name) for name, room in ROOMS.items() for prefix in room.of if within(module, prefix)]
    name = max(found)[1] if found else ""
    # A package of orchestrator that has no row must get one, rather than pass as a noun.
    return "" if name == "nouns" and (module.count(".") > 1 or module in PACKAGES) else name


def imports(module: str, path: Path) -> Iterator[tuple[int, str]]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base]).rstrip(".")
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield node.lineno, full if full in MODULES else base


def objections(module: str, path: Path) -> Iterator[str]:
    room = room_of(module)
    if not room:
        yield f"{path}: {module} is in no room of the table"
        return
    for line, imported in imports(module, path):
        top = imported.partition(".")[0]
        if top in SOURCES:
            other = room_of(imported)
            if other != room and other not in ROOMS[room].rooms:
                yield f"{path}:{line}: {room} may not import {imported} ({other})"
        elif top not in sys.stdlib_module_names and top not in ROOMS[room].libraries:
            yield f"{path}:{line}: {room} may not use the library {top}"


@pytest.mark.parametrize("package", sorted(SOURCES))
def test_every_import_is_in_the_table(package: str) -> None:
    found = [said for module, path in MODULES.items() if within(module, package) for said in objections(module, path)]
    assert not found, "\n".join(found)


def test_the_table_can_say_no(tmp_path: Path) -> None:
    intruder = tmp_path / "intruder.py"
    intruder.write_text(
        "import asyncio\nfrom orchestrator.execution import Execution\nfrom ..errors import Fenced\n"
        "def f():\n    import redis\n    from orchestrator.settings import load\n    from ..stores import embedded\n"
    )
    found = list(objections("orchestrator.engine.intruder", intruder))
    assert [said.rpartition("engine may not ")[2] for said in found] == [
        "use the library redis",
        "import orchestrator.settings (settings)",
        "import orchestrator.stores.embedded (stores)",
    ]
    assert list(objections("orchestrator.newcomer.file", intruder))


def test_the_table_names_only_rooms_that_are_in_it() -> None:
    assert {name for room in ROOMS.values() for name in room.rooms} <= set(ROOMS)


def test_only_settings_reads_the_environment() -> None:
    found = []
    for module, path in MODULES.items():
        if within(module, "orchestrator") and module not in ENVIRONMENT_READERS:
            for node in ast.walk(ast.parse(path.read_text())):
                named = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
                if named in {"environ", "environb", "getenv"}:
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}")  # type: ignore[attr-defined]
    assert not found, f"only settings read the environment: {found}"


# The command line is a client: where the server is, and the token, are its own to know. Where to crash is tests' own.
ENVIRONMENT_READERS = {
    "orchestrator.settings",
    "orchestrator.configuration",
    "orchestrator.model_settings",  # the names everybody gives their keys
    "orchestrator.profile",
    "orchestrator.engine.crash_point",
}


def test_every_room_says_what_happens_in_it() -> None:
    silent = []
    for path in MODULES.values():
        tree = ast.parse(path.read_text())
        if tree.body and ast.get_docstring(tree) is None:
            silent.append(str(path.relative_to(ROOT)))
    assert not silent, f"no module docstring: {silent}"


def test_no_room_is_nameless() -> None:
    assert not [str(path) for path in MODULES.values() if path.stem in NAMELESS or path.parent.name in NAMELESS]


def test_top_level_holds_only_what_the_design_names() -> None:
    there = {entry.name for entry in ROOT.iterdir() if not entry.name.startswith(".")}
    assert there - GENERATED - {name for name in there if name.endswith(".egg-info")} <= TOP_LEVEL
