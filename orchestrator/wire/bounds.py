"""How much of everything a request may carry, and the checks that say so. Knows no noun of ours and no HTTP.

Every refusal is a `PydanticCustomError` whose context holds `limit` (what is allowed) and `remedy` (what to do);
`invalid.py` turns it into the BadInput that names the field.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Final, NoReturn

from pydantic_core import PydanticCustomError

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

TASK_BYTES: Final = 1 * MIB
#: One JSON body. A task of 1 MiB may need six times that in \u escapes.
BODY_BYTES: Final = 8 * MIB
#: One frame to init holds no more (PROTOCOL.md), and a message is one frame; the rest is for its JSON envelope.
MESSAGE_BYTES: Final = 512 * KIB
ID_CHARS: Final = 128
IDEMPOTENCY_KEY_CHARS: Final = 255
REASON_CHARS: Final = 1024

COMMAND_ARGUMENTS: Final = 4096
#: The kernel's MAX_ARG_STRLEN: one argument or one NAME=value string, its NUL included.
ARGUMENT_BYTES: Final = 128 * KIB - 1
COMMAND_BYTES: Final = 1 * MIB

ENV_COUNT: Final = 512
ENV_NAME_CHARS: Final = 256
ENV_VALUE_BYTES: Final = 64 * KIB
ENV_BYTES: Final = 256 * KIB
#: Set by the platform (the execution contract); a submitter's value would be overwritten, so it is refused.
ENV_RESERVED: Final = frozenset(
    {
        "GATEWAY_INTERFACE",
        "EXECUTION_ID",
        "EXECUTION_NAME",
        "EXECUTION_ATTEMPT",
        "EXECUTION_RESUMED",
        "EXECUTION_STARTED_AT",
        "TASK",
        "TASK_FILE",
        "WORKSPACE",
        "STATE_DIR",
        "ARTIFACTS_DIR",
        "CARREL_GATEWAY",
        "CARREL_GATEWAY_TOKEN",
        "LIMIT_STEPS",
        "LIMIT_TOKENS",
        "LIMIT_MICROS",
    }
)

LABEL_COUNT: Final = 64
LABEL_VALUE_CHARS: Final = 256
LABEL_RESERVED_PREFIX: Final = "carrel."

FILE_COUNT: Final = 10_000
FILE_PATH_BYTES: Final = 1024
FILE_NAME_BYTES: Final = 255
FILES_BYTES: Final = 16 * GIB
BLOB_BYTES: Final = 4 * GIB

DAY_S: Final = 86_400
DEADLINE_S: Final = 366 * DAY_S

#: An id, a prefix of one, or a name. Anything else cannot exist and is not looked for.
REFERENCE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
ENV_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
LABEL_KEY: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?")
SHA256: Final = re.compile(r"[0-9a-f]{64}")
OCTAL_MODE: Final = re.compile(r"0?[0-7]{3}")
#: host[:port]/path[:tag][@digest] of the container registries' reference grammar; never begins with a dash.
IMAGE: Final = re.compile(
    r"[a-zA-Z0-9][a-zA-Z0-9.-]*(:[0-9]{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*"
    r"(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[0-9a-f]{64})?"
)
MODEL_CHARS: Final = 256
#: As providers write them: `claude-sonnet-4-5`, `meta-llama/Llama-3.1-8B`, `qwen3:8b`, `gpt-5@2025-08`.
MODEL: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9._:/@+-]*)?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def refuse(message: str, *, limit: str, remedy: str) -> NoReturn:
    """Refuse the field being validated."""
    raise PydanticCustomError("carrel", "{message}", {"message": message, "limit": limit, "remedy": remedy})


def size_of(text: str) -> int:
    """UTF-8 bytes."""
    return len(text.encode())


def check_text(text: str) -> str:
    """Text that has bytes: JSON's escapes can spell lone surrogates, which no UTF-8 does."""
    if not _encodable(text):
        refuse(
            "the text holds a lone surrogate", limit="Unicode text", remedy="escape characters above U+FFFF in pairs"
        )
    return text


def check_task(task: str) -> str:
    if size_of(task) > TASK_BYTES:
        refuse(
            f"the task has {size_of(task)} bytes",
            limit=f"{TASK_BYTES} bytes of UTF-8",
            remedy="send the text as a file and name it in the task",
        )
    if "\0" in task:
        refuse("the task holds a NUL byte", limit="text without NUL", remedy="send binary content as a file")
    return task


def check_command(command: Sequence[str]) -> Sequence[str]:
    if len(command) > COMMAND_ARGUMENTS:
        refuse(
            f"the command has {len(command)} arguments",
            limit=f"{COMMAND_ARGUMENTS} arguments",
            remedy="put them into a file",
        )
    if command and not command[0]:
        refuse("the program's name is empty", limit="a name or path", remedy="make the first element the program")
    for at, argument in enumerate(command):
        if "\0" in argument:
            refuse(f"argument {at} holds a NUL byte", limit="text without NUL", remedy="send binary content as a file")
        if size_of(argument) > ARGUMENT_BYTES:
            refuse(
                f"argument {at} has {size_of(argument)} bytes",
                limit=f"{ARGUMENT_BYTES} bytes each",
                remedy="put it into a file",
            )
    if sum(size_of(argument) + 1 for argument in command) > COMMAND_BYTES:
        refuse("the command is too long", limit=f"{COMMAND_BYTES} bytes in all", remedy="put arguments into a file")
    return command


def check_env(env: Mapping[str, str]) -> Mapping[str, str]:
    if len(env) > ENV_COUNT:
        refuse(f"{len(env)} variables", limit=f"{ENV_COUNT} variables", remedy="put them into a file and source it")
    total = 0
    for name, value in env.items():
        shown = name[:60]
        if not ENV_NAME.fullmatch(name) or len(name) > ENV_NAME_CHARS:
            refuse(
                f"{shown!r} cannot name an environment variable",
                limit=f"{ENV_NAME.pattern}, at most {ENV_NAME_CHARS} characters",
                remedy="rename it",
            )
        if name in ENV_RESERVED:
            refuse(
                f"{shown!r} is set by the platform",
                limit="names the execution contract leaves free",
                remedy="rename it",
            )
        if "\0" in value:
            refuse(f"the value of {shown!r} holds a NUL byte", limit="text without NUL", remedy="encode it")
        if size_of(value) > ENV_VALUE_BYTES:
            refuse(
                f"the value of {shown!r} has {size_of(value)} bytes",
                limit=f"{ENV_VALUE_BYTES} bytes each",
                remedy="send it as a file",
            )
        total += len(name) + size_of(value) + 2
    if total > ENV_BYTES:
        refuse(f"the environment has {total} bytes", limit=f"{ENV_BYTES} bytes in all", remedy="send a file")
    return env


def check_labels(labels: Mapping[str, str]) -> Mapping[str, str]:
    if len(labels) > LABEL_COUNT:
        refuse(f"{len(labels)} labels", limit=f"{LABEL_COUNT} labels", remedy="send fewer")
    for key, value in labels.items():
        shown = key[:60]
        if key.lower().startswith(LABEL_RESERVED_PREFIX):
            refuse(
                f"label {shown!r}: {LABEL_RESERVED_PREFIX}* is reserved for the platform",
                limit=f"any prefix but {LABEL_RESERVED_PREFIX}",
                remedy="choose another prefix",
            )
        if not LABEL_KEY.fullmatch(key):
            refuse(f"{shown!r} cannot be a label's key", limit=LABEL_KEY.pattern, remedy="rename it")
        if len(value) > LABEL_VALUE_CHARS or _CONTROL.search(value):
            refuse(
                f"the value of label {shown!r} is too long or holds control characters",
                limit=f"{LABEL_VALUE_CHARS} printable characters",
                remedy="shorten it, or send it as a file",
            )
    return labels


def check_name(name: str) -> str:
    if name and (not NAME.fullmatch(name) or name.startswith("exe_")):
        refuse(
            f"{name[:80]!r} cannot be a name",
            limit=f"{NAME.pattern}, not beginning with exe_",
            remedy="use letters, digits, dots, dashes and underscores",
        )
    return name


def check_snapshot_name(name: str) -> str:
    if name and (not NAME.fullmatch(name) or name.startswith("snp_")):
        refuse(
            f"{name[:80]!r} cannot be a snapshot's name",
            limit=f"{NAME.pattern}, not beginning with snp_",
            remedy="use letters, digits, dots, dashes and underscores",
        )
    return name


def check_reference(text: str) -> str:
    if text and not REFERENCE.fullmatch(text):
        refuse(f"{text[:80]!r} cannot be an id or a name", limit=REFERENCE.pattern, remedy="give its id")
    return text


def check_image(image: str) -> str:
    if image and (len(image) > 512 or not IMAGE.fullmatch(image)):
        refuse(
            f"{image[:80]!r} is not an image reference",
            limit="[host[:port]/]name[:tag][@sha256:…], at most 512 characters",
            remedy="name an image built FROM ours, or leave it out",
        )
    return image


def check_model(model: str) -> str:
    if len(model) > MODEL_CHARS or not MODEL.fullmatch(model):
        refuse(
            f"{model[:80]!r} cannot name a model",
            limit=f"{MODEL.pattern}, at most {MODEL_CHARS} characters",
            remedy="name one as its provider does, or leave it out",
        )
    return model


def check_sha256(digest: str) -> str:
    if not SHA256.fullmatch(digest):
        refuse(f"{digest[:80]!r} is not a digest", limit="64 lower-case hex digits", remedy="send the sha256 of it")
    return digest


def check_mode(mode: str) -> str:
    if not OCTAL_MODE.fullmatch(mode):
        refuse(f"{mode[:20]!r} is not a file mode", limit='octal text, "0000" to "0777"', remedy='for example "0644"')
    return mode


def check_id(text: str) -> str:
    if not text or len(text) > ID_CHARS or _CONTROL.search(text):
        refuse("this cannot be an id", limit=f"1 to {ID_CHARS} printable characters", remedy="use a UUID")
    return text


def check_printable(text: str) -> str:
    if _CONTROL.search(text):
        refuse("it holds control characters", limit="printable text", remedy="take them out")
    return text


def check_base64(text: str) -> str:
    decoded(text)
    return text


def decoded(text: str) -> bytes:
    """The bytes of standard base64 (RFC 4648, padded). Refuses anything else."""
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        refuse("this is not base64", limit="RFC 4648, standard alphabet, padded", remedy="encode the bytes again")


def check_upload_path(path: str) -> str:
    """A file's place relative to /workspace: plain names only. What it may reach is decided again when it is opened."""
    remedy = "use plain names separated by single slashes, relative to /workspace"
    if not path or size_of(path) > FILE_PATH_BYTES:
        refuse("the path is empty or too long", limit=f"1 to {FILE_PATH_BYTES} bytes", remedy=remedy)
    if "\0" in path or path.startswith("/"):
        refuse(f"the path {path[:80]!r} is absolute or holds NUL", limit="a relative path", remedy=remedy)
    for name in path.split("/"):
        if name in {"", ".", ".."} or size_of(name) > FILE_NAME_BYTES:
            refuse(
                f"{path[:80]!r} has a part that is empty, `.`, `..` or too long",
                limit=f"names of 1 to {FILE_NAME_BYTES} bytes",
                remedy=remedy,
            )
    return path


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
