"""Logs: one line per event whatever it holds, and the execution's id on every line about it."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import logs

HOSTILE = 'a\r\nlevel=critical event="forged"\x1b]52;c;AAAA\x07\x1b[2J\u2028\x85\u202e\ud800'
LINE_ENDS = re.compile("[\r\n\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029]")


@pytest.fixture
def log_into() -> Iterator[Callable[[str], io.StringIO]]:
    """Logging sent to a string, the process's own put back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def start(form: str) -> io.StringIO:
        stream = io.StringIO()
        logs.configure(form, "info", stream)
        return stream

    yield start
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def test_json_lines_carry_event_fields_and_execution(log_into: Callable[[str], io.StringIO]) -> None:
    out = log_into("json")
    with logs.bound(execution="exe_1"):
        logging.getLogger("a.b").info("claimed %s", "it", extra={"epoch": 3, "level": "mine"})
    logging.getLogger("a.b").warning("later")
    first, second = map(json.loads, out.getvalue().splitlines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("time"))
    assert first == {
        "level": "info", "logger": "a.b", "event": "claimed it", "execution": "exe_1", "epoch": 3, "level_": "mine",
    }  # fmt: skip
    assert "execution" not in second


def test_text_is_key_value(log_into: Callable[[str], io.StringIO]) -> None:
    out = log_into("text")
    logging.getLogger("x").info("adopted", extra={"execution": "exe_1", "why": 'lease "ran" out', "none": ""})
    assert out.getvalue().split(" ", 1)[1] == 'info    adopted execution=exe_1 why="lease \\"ran\\" out" none=""\n'


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_hostile_value_stays_in_its_line(log_into: Callable[[str], io.StringIO], form: str) -> None:
    out = log_into(form)
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logging.getLogger("x").exception(HOSTILE, extra={"value": HOSTILE, HOSTILE: 1})
    line = out.getvalue()
    assert line.endswith("\n")
    assert not LINE_ENDS.search(line[:-1])
    assert line[:-1].isprintable()


@given(st.text(), st.text())
def test_any_text_is_one_printable_line(event: str, value: str) -> None:
    record = logging.LogRecord("n", logging.INFO, "p", 1, event, None, None)
    record.value = value
    for form in (logs.KeyValue(), logs.JsonLines()):
        assert form.format(record).isprintable()


async def test_tasks_carry_their_own_execution(log_into: Callable[[str], io.StringIO]) -> None:
    out = log_into("json")

    async def work(execution: str) -> None:
        logs.bind(execution=execution)
        await asyncio.sleep(0)
        logging.getLogger("x").info("worked")

    async with asyncio.TaskGroup() as group:
        for n in range(3):
            group.create_task(work(f"exe_{n}"))
    logging.getLogger("x").info("outside")
    told = [json.loads(line).get("execution") for line in out.getvalue().splitlines()]
    assert told == ["exe_0", "exe_1", "exe_2", None]
