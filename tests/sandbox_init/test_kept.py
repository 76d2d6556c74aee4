"""What is kept of a request: whatever the bounds and the disk say, the bytes not sent yet are all there, in order."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_init import kept
from sandbox_init.kept import Allowance, Kept


def bytes_from(one: Kept, offset: int) -> bytes:
    found = b""
    while piece := one.at(offset + len(found), 5000):
        found += piece
    return found


@given(st.lists(st.tuples(st.integers(1, 40_000), st.integers(0, 60_000)), max_size=12), st.integers(0, 200_000))
def test_what_is_not_sent_is_there_and_until_forgotten_all_of_it(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int]], left_bytes: int
) -> None:
    allowance = Allowance()
    allowance.left_bytes = left_bytes
    one = Kept(str(tmp_path_factory.getbasetemp()), allowance)
    truth, sent = b"", 0
    for size, taken in steps:
        data = os.urandom(size)
        one.add(memoryview(data), sent)
        truth += data
        assert one.size == len(truth)
        sent = min(sent + taken, len(truth))
        if not one.whole:
            one.forget(sent)
        assert bytes_from(one, sent) == truth[sent:]
        if one.whole:
            assert bytes_from(one, 0) == truth
    assert one.whole or len(truth) > min(left_bytes, kept.MEMORY_BYTES)
    one.close()
    assert allowance.left_bytes == left_bytes


def test_nothing_of_it_has_a_name(tmp_path: Path) -> None:
    one = Kept(str(tmp_path), Allowance())
    one.add(memoryview(bytes(1 << 20)), 0)
    assert one.whole and list(tmp_path.iterdir()) == []
    one.close()


def test_a_folder_that_is_not_there_costs_the_second_time_only(tmp_path: Path) -> None:
    one = Kept(str(tmp_path / "none"), Allowance())
    one.add(memoryview(b"a" * 5000), 0)
    one.add(memoryview(b"b" * 5000), 2000)
    assert not one.whole and bytes_from(one, 2000) == b"a" * 3000 + b"b" * 5000


def test_one_that_is_longer_than_a_file_may_be_is_forgotten(tmp_path: Path) -> None:
    allowance = Allowance()
    one = Kept(str(tmp_path), allowance)
    piece = memoryview(bytes(8 << 20))
    states = []
    for _ in range(kept.FILE_BYTES // len(piece)):
        one.add(piece, one.size)
    states.append((one.whole, kept.FILES_BYTES - allowance.left_bytes))
    one.add(memoryview(b"end"), one.size - 3)
    states.append((one.whole, kept.FILES_BYTES - allowance.left_bytes))
    assert states == [(True, kept.FILE_BYTES), (False, 0)]
    assert bytes_from(one, one.size - 6) == b"\0\0\0end"
