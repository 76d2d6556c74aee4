"""The files of a folder as a Catalogue: shipped declarations, then a person's own over them. Knows no declaration's
form."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

from orchestrator.catalogue.declaration import parse
from orchestrator.errors import BadInput
from orchestrator.harnesses import BUILT_IN, Catalogue, Harness

FILE_BYTES: Final = 256 * 1024


@cache
def shipped() -> Catalogue:
    """What every installation has."""
    return Catalogue({**BUILT_IN, **_read(Path(__file__).parent)})


def load_catalogue(own: Path | None) -> Catalogue:
    """The shipped ones, and over them the `*.toml` of the folder `own` (None: there is none). One of the same name
    replaces a shipped one. Raises BadInput naming file, field, limit and remedy."""
    if own is None:
        return shipped()
    if not own.is_dir():
        raise BadInput(
            f"harness_dir: {own} is no directory",
            field="harness_dir",
            limit="a readable directory of *.toml files",
            remedy="create it, or unset harness_dir",
        )
    return Catalogue({**shipped().harnesses, **_read(own)})


def _read(folder: Path) -> dict[str, Harness]:
    found = {}
    for path in sorted(folder.glob("*.toml")):
        try:
            if path.stat().st_size > FILE_BYTES:
                raise ValueError(f"it has more than {FILE_BYTES} bytes")
            text = path.read_text()
        except (OSError, ValueError) as failure:
            raise BadInput(
                f"{path} cannot be read: {failure}",
                field=str(path),
                limit=f"a readable TOML file in UTF-8, up to {FILE_BYTES} bytes",
                remedy="correct it, or take it out of the folder",
            ) from failure
        harness = parse(path, text)
        found[harness.name] = harness
    return found
