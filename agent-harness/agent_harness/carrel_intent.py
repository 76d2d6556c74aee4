"""`carrel-intent`: run a command once, whatever is restarted around it. For any harness, in any language.

    carrel-intent once --key mail-the-report -- ./send.sh report.pdf

Before the command the platform's journal of intents is told; after it, its exit code and the end of its output. Asked
again, in this attempt or a later one, the command is not run: what was recorded is printed, and its exit code is ours.
Where nobody knows whether it ran (begun, and no result), a person decides.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from agent_harness import recorded_run
from agent_harness.intents import EFFECTS, KEY_BYTES, Begun, GatewayAway, Intent, IntentError, Journal
from agent_harness.recorded_run import Recorded

EXIT_USAGE = 2
EXIT_REFUSED = 65  # the journal says no: the key is another command's, …
EXIT_UNAVAILABLE = 69  # the journal did not answer; nothing was run
EXIT_IN_DOUBT = 79  # not 75: that would mean "wake me when a message comes"

_EXITS = f"""\
exit codes: the command's own (128 + n when signal n ended it), recorded or of now;
  {EXIT_IN_DOUBT} in doubt: it may have run wholly, partly or not at all, and was not run again;
  {EXIT_UNAVAILABLE} the journal of intents did not answer: nothing was run; {EXIT_REFUSED} it refused;
  {EXIT_USAGE} usage.
"""


def main(argv: Sequence[str]) -> int:
    options, command = _split(argv)
    asked = _parser().parse_args(options)
    try:
        if asked.verb == "show":
            intent = _journal().get(_key(asked.key))
            print(json.dumps(asdict(intent), indent=2, ensure_ascii=False))
            return 0
        if not command:
            _usage("name the command after --: carrel-intent once --key K -- CMD…")
        return _once(asked, command)
    except GatewayAway as away:
        _say(str(away))
        return EXIT_UNAVAILABLE
    except IntentError as refused:
        _say(str(refused))
        return EXIT_REFUSED


def _once(asked: argparse.Namespace, command: list[str]) -> int:
    key = _key(asked.key)
    if shutil.which(command[0]) is None:  # before anything is written: it can be corrected and asked again
        _say(f"{command[0]}: no such program, or not executable; nothing was recorded")
        return 127
    journal = _journal()
    while True:
        begun = _begin(journal, key, asked, command)
        if begun.go:
            return _run(journal, key, command)
        if begun.intent.state != "in_doubt":
            return _replay(begun.intent)
        _say(_doubt(begun.intent))
        if not asked.wait:
            return EXIT_IN_DOUBT
        journal.decision(key)


def _begin(journal: Journal, key: str, asked: argparse.Namespace, command: list[str]) -> Begun:
    told = b"\0".join([*(os.fsencode(word) for word in command), os.fsencode(Path.cwd())])
    return journal.begin(
        key,
        kind="command",
        effect=asked.effect,
        summary=asked.summary or " ".join(command),
        digest=hashlib.sha256(told).hexdigest(),
    )


def _run(journal: Journal, key: str, command: list[str]) -> int:
    recorded = recorded_run.run(command)
    try:
        journal.finish(key, ok=recorded.exit_code == 0, result=recorded.text())
    except IntentError as problem:
        # It ran; to say anything else than how it ended would have its caller run it again. Asked again it is in doubt.
        _say(f"{key}: it ran and its result could not be recorded: {problem}")
    return recorded.exit_code


def _replay(intent: Intent) -> int:
    recorded = Recorded.read(intent.result)
    if recorded is None:  # a person's words, not a command's
        print(intent.result)
        recorded = Recorded(exit_code=0 if intent.state == "done" else 1)
    for stream, data in ((sys.stdout, recorded.stdout), (sys.stderr, recorded.stderr)):
        stream.flush()
        stream.buffer.write(data)
        stream.flush()
    if recorded.cut_bytes:
        _say(f"the first {recorded.cut_bytes} bytes of its output were not kept")
    how = f"settled as {intent.state} by {intent.settled_by}" if intent.settled_by else f"recorded as {intent.state}"
    _say(f"{intent.key}: {how} (attempt {intent.attempt}, {intent.ended_at or intent.begun_at}); not run again")
    return recorded.exit_code


def _doubt(intent: Intent) -> str:
    execution = os.environ.get("EXECUTION_ID", "EXECUTION")
    return (
        f"{intent.key}: in doubt: begun at {intent.begun_at} in attempt {intent.attempt}, and no result is recorded. "
        "It may have run wholly, partly or not at all; not run again. Look, then say: "
        f"carrel settle {execution} {intent.key} retry|done|fail"
    )


def _journal() -> Journal:
    try:
        journal = Journal.from_environment()
    except ValueError as problem:
        raise IntentError(str(problem)) from None
    if journal is None:
        raise GatewayAway("there is no gateway: CARREL_GATEWAY is not set", remedy="run this inside a Carrel sandbox")
    return journal


# -- the command line --------------------------------------------------------------------------------------------------


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Options; and the command, which is what follows the first --."""
    words = list(argv)
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="carrel-intent",
        description=(__doc__ or "").split("\n\n", 1)[1],
        epilog=_EXITS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="once | show")
    once = verbs.add_parser("once", help="run a command unless its result is recorded", allow_abbrev=False)
    once.usage = "carrel-intent once --key K [--effect E] [--summary TEXT] [--wait] -- CMD…"
    once.add_argument("--key", required=True, help="what this is, the same in every attempt")
    once.add_argument(
        "--effect",
        choices=EFFECTS,
        default="once",
        help="what running it twice would do (once): none and idempotent are run again where it is not known",
    )
    once.add_argument("--summary", default="", help="what people are shown (the command)")
    once.add_argument("--wait", action="store_true", help="in doubt: wait until somebody has decided")
    show = verbs.add_parser("show", help="print what is recorded, as JSON", allow_abbrev=False)
    show.add_argument("key", metavar="KEY")
    return parser


def _key(key: str) -> str:
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        _usage("--key must be UTF-8")
    if not 1 <= size <= KEY_BYTES or not key.isprintable():
        _usage(f"--key must be printable text of 1 to {KEY_BYTES} bytes")
    return key


def _usage(what: str) -> NoReturn:
    _say(what)
    sys.exit(EXIT_USAGE)


def _say(what: str) -> None:
    print(f"carrel-intent: {what}", file=sys.stderr, flush=True)
