"""Two texts as a unified diff, in bounded time: Myers' algorithm (An O(ND) Difference Algorithm, 1986) up to a number
of differences, beyond which the middle is replaced as a whole. difflib takes minutes for some texts of a few hundred
KiB, and the texts are a stranger's. Knows no file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

MOST_BYTES: Final = 256 << 10
_DIFFERENCES: Final = 400
_CONTEXT: Final = 3

#: (kind, old begin, old end, new begin, new end)
_Step = tuple[str, int, int, int, int]


def is_text(content: bytes) -> bool:
    """UTF-8 without NUL, and not too much of it."""
    if len(content) > MOST_BYTES or b"\0" in content:
        return False
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def unified(old: bytes, new: bytes) -> str:
    """The hunks, without the two lines that name files; "" for equal texts."""
    before, after = _lines(old), _lines(new)
    out: list[str] = []
    for hunk in _hunks(_steps(before, after)):
        first, last = hunk[0], hunk[-1]
        out.append(f"@@ -{_span(first[1], last[2])} +{_span(first[3], last[4])} @@\n")
        for kind, i, j, k, m in hunk:
            if kind == "=":
                out += (_line(" ", text) for text in before[i:j])
            else:
                out += (_line("-", text) for text in before[i:j])
                out += (_line("+", text) for text in after[k:m])
    return "".join(out)


def _lines(text: bytes) -> list[str]:
    """Line feeds end lines, and nothing else does."""
    *whole, rest = text.decode().split("\n")
    return [line + "\n" for line in whole] + ([rest] if rest else [])


def _line(mark: str, text: str) -> str:
    return mark + text if text.endswith("\n") else f"{mark}{text}\n\\ No newline at end of file\n"


def _span(begin: int, end: int) -> str:
    count = end - begin
    return f"{begin + (count > 0)},{count}"


def _steps(before: Sequence[str], after: Sequence[str]) -> list[_Step]:
    """Equal and replaced runs, by turns, covering both."""
    head = 0
    while head < min(len(before), len(after)) and before[head] == after[head]:
        head += 1
    tail = 0
    while tail < min(len(before), len(after)) - head and before[-1 - tail] == after[-1 - tail]:
        tail += 1
    pairs = _common(before[head : len(before) - tail], after[head : len(after) - tail])
    matches = [(at, at) for at in range(head)]
    matches += [(head + i, head + k) for i, k in pairs]
    matches += [(len(before) - at, len(after) - at) for at in range(tail, 0, -1)]
    steps: list[_Step] = []
    i = k = 0
    for x, y in [*matches, (len(before), len(after))]:
        if (x, y) != (i, k):
            steps.append(("!", i, x, k, y))
        if x < len(before) and y < len(after):
            if steps and steps[-1][0] == "=":
                steps[-1] = ("=", steps[-1][1], x + 1, steps[-1][3], y + 1)
            else:
                steps.append(("=", x, x + 1, y, y + 1))
        i, k = x + 1, y + 1
    return steps


def _common(before: Sequence[str], after: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of equal lines, in order; none where there are too many differences to look for them."""
    reached = {1: 0}
    trail: list[dict[int, int]] = []
    for distance in range(min(_DIFFERENCES, len(before) + len(after)) + 1):
        trail.append(dict(reached))
        for diagonal in range(-distance, distance + 1, 2):
            down = diagonal == -distance or (diagonal != distance and reached[diagonal - 1] < reached[diagonal + 1])
            x = reached[diagonal + 1] if down else reached[diagonal - 1] + 1
            y = x - diagonal
            while x < len(before) and y < len(after) and before[x] == after[y]:
                x, y = x + 1, y + 1
            reached[diagonal] = x
            if x >= len(before) and y >= len(after):
                return _walked_back(trail, len(before), len(after))
    return []


def _walked_back(trail: Sequence[dict[int, int]], x: int, y: int) -> list[tuple[int, int]]:
    pairs: list[tuple[int, int]] = []
    for distance in range(len(trail) - 1, -1, -1):
        reached, diagonal = trail[distance], x - y
        down = diagonal == -distance or (diagonal != distance and reached[diagonal - 1] < reached[diagonal + 1])
        above = diagonal + 1 if down else diagonal - 1
        from_x = reached[above] if distance else 0
        from_y = from_x - above if distance else 0
        while x > from_x and y > from_y and x and y:
            x, y = x - 1, y - 1
            pairs.append((x, y))
        x, y = from_x, from_y
    return pairs[::-1]


def _hunks(steps: Sequence[_Step]) -> Iterator[list[_Step]]:
    hunk: list[_Step] = []
    for at, (kind, i, j, k, m) in enumerate(steps):
        if kind != "=":
            hunk.append((kind, i, j, k, m))
            continue
        last = at == len(steps) - 1
        if hunk and (last or j - i > 2 * _CONTEXT):
            keep = min(_CONTEXT, j - i)
            yield [*hunk, ("=", i, i + keep, k, k + keep)]
            hunk = []
        elif hunk:
            hunk.append((kind, i, j, k, m))
            continue
        if not last:
            keep = min(_CONTEXT, j - i)
            hunk = [("=", j - keep, j, m - keep, m)]
    if hunk and any(step[0] != "=" for step in hunk):
        yield hunk
