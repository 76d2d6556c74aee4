"""What a request is for, by its method and target alone. Pure.

A table of exact paths: nothing is decoded, joined or resolved, so what is not in it, however it is written, goes
nowhere. What stands behind a `?` goes no further than here either, but for the one flag a provider's own client sends.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final
from urllib.parse import parse_qsl

from orchestrator.gateway.refusals import Refused, Tongue
from orchestrator.gateways import OUTLET_PORT
from orchestrator.models import ModelApi


class Kind(Enum):
    MODEL = auto()  # a call that is recorded and paid
    COUNT = auto()  # tokens counted, free
    MODELS = auto()  # which there are
    ALIVE = auto()
    INTENTS = auto()
    INTENTS_FINISH = auto()
    SPEND = auto()
    TUNNEL = auto()  # CONNECT
    FORWARD = auto()  # absolute form


@dataclass(frozen=True, slots=True)
class Route:
    """`path`: the provider's own. `query`: as parsed. `rest`: what a path ends with, where its kind has one."""

    kind: Kind
    tongue: Tongue
    path: str = ""
    api: ModelApi | None = None
    query: tuple[tuple[str, str], ...] = ()
    rest: str = ""

    def asked(self, name: str) -> str:
        """A value of the query, "" = none."""
        return next((value for known, value in self.query if known == name), "")


_MESSAGES: Final = (Kind.MODEL, Tongue.ANTHROPIC, ModelApi.MESSAGES)
#: (method, path below the prefixes): what it is.
_TABLE: Final[dict[tuple[str, str], tuple[Kind, Tongue, ModelApi | None]]] = {
    ("POST", "/v1/messages"): _MESSAGES,
    ("POST", "/v1/messages/count_tokens"): (Kind.COUNT, Tongue.ANTHROPIC, ModelApi.MESSAGES),
    ("POST", "/v1/chat/completions"): (Kind.MODEL, Tongue.OPENAI, ModelApi.CHAT),
    ("POST", "/v1/responses"): (Kind.MODEL, Tongue.OPENAI, ModelApi.RESPONSES),
    ("GET", "/v1/models"): (Kind.MODELS, Tongue.OPENAI, None),
    ("HEAD", "/"): (Kind.ALIVE, Tongue.ANTHROPIC, None),
    ("POST", "/carrel/v1/intents"): (Kind.INTENTS, Tongue.CARREL, None),
    ("GET", "/carrel/v1/intents"): (Kind.INTENTS, Tongue.CARREL, None),
    ("POST", "/carrel/v1/intents/finish"): (Kind.INTENTS_FINISH, Tongue.CARREL, None),
    ("GET", "/carrel/v1/spend"): (Kind.SPEND, Tongue.CARREL, None),
}
_ONE_MODEL: Final = "/v1/models/"
_PREFIXES: Final = ("/anthropic", "/openai")
#: Programs that send even this through the proxy: it is us all the same.
_OURSELVES: Final = tuple(f"http://{host}:{OUTLET_PORT}" for host in ("127.0.0.1", "localhost"))


def tongue_of(target: str, *, anthropic_version: str) -> Tongue:
    """In whose shape to refuse what this asks for, whatever becomes of it."""
    path = _local(target).partition("?")[0]
    if path.startswith("/carrel/"):
        return Tongue.CARREL
    if path.startswith(("/v1/messages", "/anthropic")) or anthropic_version:
        return Tongue.ANTHROPIC
    return Tongue.OPENAI


def route(method: str, target: str, *, anthropic_version: str = "") -> Route:
    """`anthropic_version`: that header; it tells which shape of the one path both providers have is meant.

    Raises Refused: 403 (nothing there), 405 (not by this method)."""
    if method == "CONNECT":
        return Route(Kind.TUNNEL, Tongue.CARREL)
    target = _local(target)
    if not target.startswith("/"):
        return Route(Kind.FORWARD, Tongue.CARREL)
    path, _, query = target.partition("?")
    for prefix in _PREFIXES:
        if path.startswith(prefix + "/"):
            path = path[len(prefix) :]
            break
    rest = path[len(_ONE_MODEL) :] if path.startswith(_ONE_MODEL) else ""
    known = _ONE_MODEL[:-1] if rest else path
    found = _TABLE.get((method, known))
    if found is None:
        if methods := [m for m, p in _TABLE if p == known]:
            raise Refused(405, "method_not_allowed", f"{known} takes {' or '.join(methods)}, not {method}", told=True)
        raise Refused(
            403,
            "path_not_allowed",
            "this path is not one the gateway carries; it carries " + ", ".join(dict.fromkeys(p for _, p in _TABLE)),
            told=True,
        )
    kind, tongue, api = found
    if kind is Kind.MODELS and anthropic_version:
        tongue = Tongue.ANTHROPIC
    return Route(kind, tongue, known, api, tuple(parse_qsl(query, keep_blank_values=True, max_num_fields=None)), rest)


def _local(target: str) -> str:
    for ourselves in _OURSELVES:
        if target.lower().startswith(ourselves + "/"):
            return target[len(ourselves) :]
    return target
