"""One declaration: a TOML file's text → Harness, every field checked. Reads no file and starts nothing."""

from __future__ import annotations

import difflib
import re
import signal
import tomllib
from pathlib import Path, PurePosixPath
from typing import Any, Final, NoReturn, cast

from orchestrator.errors import BadInput
from orchestrator.harnesses import BUILT_IN, PLACEHOLDERS, Harness, HarnessFile, OutputMode, StdinMode, named
from orchestrator.models import ModelApi

FIELDS: Final = (
    *("name", "about", "image", "argv", "resume_argv", "env", "files"),
    *("stdin", "output", "interrupt", "resumes", "reads_task", "api"),
)
ARGUMENTS: Final = 256
TEXT_BYTES: Final = 64 * 1024  # of one argument, one variable; and of all files together
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def parse(path: Path, text: str) -> Harness:
    """The harness a file declares; its name is the file's. `path` is for the words of an error. Raises BadInput."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as failure:
        _refuse(path, "the file", f"it is not TOML: {failure}", "TOML", "correct it there")
    for name in table:
        if name not in FIELDS:
            close = difflib.get_close_matches(name, FIELDS, 1)
            words = f"there is no such field{f'; did you mean {close[0]}?' if close else ''}"
            _refuse(path, name, words, " | ".join(FIELDS), "rename or remove it")
    reading = _Reading(path, table)
    stem = path.stem
    name = reading.text("name", stem)
    if name != stem or not _NAME.fullmatch(stem):
        limit = "the file's own name: 1 to 64 of a-z, 0-9 and -"
        _refuse(path, "name", f"{name!r} in a file called {path.name}", limit, "rename the file, or leave name out")
    if name in BUILT_IN:
        _refuse(path, "name", f"{name!r} is built in", f"not {' or '.join(BUILT_IN)}", "choose another name")
    harness = Harness(
        name=name,
        argv=reading.argv("argv"),
        resume_argv=reading.argv("resume_argv") if "resume_argv" in table else None,
        stdin=cast(StdinMode, reading.choice("stdin", "text", ("none", "text", "jsonl"))),
        output=cast(OutputMode, reading.choice("output", "auto", ("auto", "bytes", "jsonl"))),
        env=reading.env(),
        resumes=reading.flag("resumes", "resume_argv" in table),
        interrupt=reading.signal(),
        reads_task=reading.flag("reads_task", True),
        image=reading.text("image", ""),
        files=reading.files(),
        api=reading.choice("api", "", ("", *ModelApi)),
        about=reading.text("about", ""),
    )
    if not re.fullmatch(r"[^\s]{0,255}", harness.image):
        _refuse(path, "image", f"{harness.image!r} is no image's name", "no spaces, up to 255 characters", "correct it")
    for where, words in harness.texts():
        for unknown in sorted(named(words) - set(PLACEHOLDERS)):
            limit = " | ".join(f"{{{known}}}" for known in PLACEHOLDERS)
            remedy = f"use one of these, or write {{{{{unknown}}}}} for the text itself"
            _refuse(path, where, f"{{{unknown}}} is no placeholder", limit, remedy)
    return harness


class _Reading:
    """The fields of one table, each by its kind."""

    def __init__(self, path: Path, table: dict[str, Any]) -> None:
        self._path = path
        self._table = table

    def text(self, name: str, default: str) -> str:
        value = self._table.get(name, default)
        if not _is_text(value):
            _refuse(self._path, name, f"{value!r:.80} is no text", f"text up to {TEXT_BYTES} bytes", "write a string")
        return str(value)

    def choice(self, name: str, default: str, allowed: tuple[str, ...]) -> str:
        value = self._table.get(name, default)
        if value not in allowed:
            limit = " | ".join(one for one in allowed if one)
            _refuse(self._path, name, f"{value!r:.80}", limit, "write one of these, or leave it out")
        return str(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self._table.get(name, default)
        if not isinstance(value, bool):
            _refuse(self._path, name, f"{value!r:.80}", "true | false", "write it without quotes")
        return value

    def signal(self) -> int:
        value = self._table.get("interrupt", "SIGINT")
        if isinstance(value, str) and value in signal.Signals.__members__:
            return signal.Signals[value]
        if not isinstance(value, int) or isinstance(value, bool) or value not in list(signal.Signals):
            limit = "SIGINT, SIGTERM, SIGUSR1, …"
            _refuse(self._path, "interrupt", f"{value!r:.80} is no signal", limit, "name a signal")
        return value

    def argv(self, name: str) -> tuple[str, ...]:
        value = self._table.get(name)
        if (
            not isinstance(value, list)
            or not all(map(_is_text, value))
            or not 0 < len(value) <= ARGUMENTS
            or not value[0]
        ):
            words = "it is missing" if value is None else f"{value!r:.80}"
            limit = f"a list of 1 to {ARGUMENTS} texts, each up to {TEXT_BYTES} bytes; the first names the program"
            _refuse(self._path, name, words, limit, f'write {name} = ["/usr/bin/program", "argument"]')
        return tuple(value)

    def env(self) -> dict[str, str]:
        value = self._table.get("env", {})
        if not isinstance(value, dict):
            _refuse(self._path, "env", f"{value!r:.80}", "a table of texts", 'write [env] and NAME = "value" below it')
        for name, text in value.items():
            if not _VARIABLE.fullmatch(name) or not _is_text(text):
                limit = f"a name of letters, digits and _, a text up to {TEXT_BYTES} bytes"
                _refuse(self._path, f"env.{name}", f"{text!r:.80}", limit, "correct it")
        return dict(value)

    def files(self) -> tuple[HarnessFile, ...]:
        value = self._table.get("files", [])
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            remedy = "write [[files]] and below it path and text"
            _refuse(self._path, "files", f"{value!r:.80}", "a list of tables {path, text, mode}", remedy)
        found = tuple(self._file(at, one) for at, one in enumerate(value))
        if sum(len(file.text.encode()) for file in found) > TEXT_BYTES:
            limit = f"{TEXT_BYTES} bytes in all files together"
            _refuse(self._path, "files", "they are too long", limit, "put what is larger into the image")
        return found

    def _file(self, at: int, value: dict[str, Any]) -> HarnessFile:
        where = f"files[{at}]"
        path, text, mode = value.get("path"), value.get("text"), value.get("mode", 0o644)
        if set(value) - {"path", "text", "mode"} or not _is_text(text):
            _refuse(self._path, where, f"{value!r:.80}", "path, text, mode, text up to 64 KiB", "correct it")
        if isinstance(path, str) and path.startswith("~/"):
            path = f"/state/home/{path[2:]}"
        parts = PurePosixPath(path).parts if isinstance(path, str) and _is_text(path) else ()
        if parts[:2] != ("/", "state") or len(parts) < 3 or ".." in parts:
            limit = "an absolute path below /state, or ~/… for /state/home"
            _refuse(self._path, f"{where}.path", f"{path!r:.80}", limit, "put it there")
        if not isinstance(mode, int) or isinstance(mode, bool) or not 0 <= mode <= 0o777:
            _refuse(self._path, f"{where}.mode", f"{mode!r:.80}", "0o000 to 0o777", "write it as 0o644")
        return HarnessFile(str(PurePosixPath(*parts)), str(text), mode)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and "\0" not in value and len(value.encode()) <= TEXT_BYTES


def _refuse(path: Path, field: str, words: str, limit: str, remedy: str) -> NoReturn:
    raise BadInput(
        f"{path}: {field}: {words}; it must be: {limit}; {remedy}",
        field=f"{path.name}: {field}",
        limit=limit,
        remedy=f"{remedy} in {path}",
    )
