"""When the conversation is too long for its model, and what is sent to have it summed up. Pure; a compaction is a
record of the journal, the transcript stays whole in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from agent_harness.output import shorten
from agent_harness.prompt import SUMMARY
from agent_harness.providers.shape import Item

CHARS_PER_TOKEN = 3  # on the safe side: 4 for English, 3 for code
DEFAULT_WINDOW = 128_000
RESERVE = 0.2  # of the window, for the next answer and for what an estimate misses
KEEP = 0.15  # of the window: so much of the end stays word by word
_RESULT_CHARS = 2_000  # of a tool's result, in what is summed up
#: Context windows in tokens, first match. CONTEXT_TOKENS overrides.
WINDOWS: tuple[tuple[str, int], ...] = (
    (r"claude", 200_000),
    (r"gpt-4\.1", 1_000_000),
    (r"gpt-5|codex", 272_000),
    (r"gpt-4o|gpt-4-turbo", 128_000),
    (r"^o\d", 200_000),
    (r"gemini", 1_000_000),
    (r"llama-?3|qwen|mistral|deepseek|glm|kimi", 128_000),
)


def window(model: str, override: int | None) -> int:
    """In tokens."""
    if override:
        return override
    return next((size for pattern, size in WINDOWS if re.search(pattern, model, re.IGNORECASE)), DEFAULT_WINDOW)


def tokens_of(items: Sequence[Item]) -> int:
    """Estimated."""
    return sum(len(json.dumps(item)) for item in items) // CHARS_PER_TOKEN


def size(items: Sequence[Item], context: Mapping[str, int], measured: int, fixed_chars: int) -> int:
    """Tokens of the next request: what the provider counted for the last one, and an estimate of what came since."""
    if context and 0 < measured <= len(items):
        return sum(context.values()) + tokens_of(items[measured:])
    return tokens_of(items) + fixed_chars // CHARS_PER_TOKEN


def due(tokens: int, window_tokens: int) -> bool:
    """True: sum up before the next request."""
    return tokens > window_tokens * (1 - RESERVE)


def keep_from(items: Sequence[Item], window_tokens: int) -> int:
    """The turn from which on the conversation stays as it is: what fits a part of the window, in whole turns."""
    room = int(window_tokens * KEEP)
    keep = next((item["n"] + 1 for item in reversed(items) if item["role"] == "assistant"), 0)
    for at in range(len(items) - 1, -1, -1):
        room -= tokens_of(items[at : at + 1])
        if room < 0:
            break
        if items[at]["role"] == "assistant":
            keep = int(items[at]["n"])
    return keep


def request(items: Sequence[Item], window_tokens: int) -> list[Item]:
    """The conversation to be summed up, as one message: results shortened, and its middle left out where even that is
    too much for the window."""
    parts = []
    for item in items:
        if item["role"] == "assistant":
            for block in item["blocks"]:
                if block["kind"] == "text":
                    parts.append(f"YOU: {block['text']}")
                elif block["kind"] == "call":
                    parts.append(f"YOU CALLED {block['name']}: {shorten(block['arguments'], _RESULT_CHARS)}")
        else:
            who = "RESULT" if item["role"] == "tool" else "MESSAGE"
            parts.append(f"{who}: {shorten(item['text'], _RESULT_CHARS if who == 'RESULT' else 20_000)}")
    whole = shorten("\n\n".join(parts), int(window_tokens * 0.6) * CHARS_PER_TOKEN)
    return [{"role": "user", "text": f"<conversation>\n{whole}\n</conversation>\n\n{SUMMARY}"}]
