"""One call, tried until it is answered or patience is over. Knows no network: it yields steps (exchange.py).

A request is sent again only when that cannot do more than sending it once: it is repeatable, or no byte of it left.
An answer "unavailable" (502, 503, 504) is treated as a lost one, and its Retry-After is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from orchestrator.client import answers
from orchestrator.client.exchange import Call, Exchange, Failure, Request, Response, Sleep
from orchestrator.client.patience import Patience
from orchestrator.errors import Unavailable

T = TypeVar("T")

UNAVAILABLE = frozenset({502, 503, 504})


def retry_after_s(response: Response) -> float:
    """The seconds of a Retry-After header; 0 when there is none, or a date (our server sends seconds)."""
    text = response.headers.get("retry-after", "")
    return float(text) if text.isdigit() and len(text) < 6 else 0.0


def no_answer(why: str, url: str) -> Unavailable:
    """The error of a server that did not answer in time."""
    return Unavailable(
        f"no answer from {url}: {why}",
        remedy="start a server with `carrel serve`, or name another with --url or CARREL_URL",
    )


def call(request: Request[T], patience: Patience, clock: Callable[[], float], url: str) -> Call[T]:
    """Steps of one call. Returns what `request.read` makes of the answer. Raises errors of orchestrator.errors:
    Unavailable when patience is over (or the request must not be repeated), else what the server's problem says."""
    since_s = clock()
    tries = 0
    again = False
    while True:
        got: Response | Failure = yield Exchange(request)
        if isinstance(got, Response):
            response = replace(got, again=again)
            if response.status not in UNAVAILABLE or response.status in request.also or not request.repeatable:
                return answers.value(request, response)
            error: Unavailable = answers.unavailable(response)
            asked_s, why = retry_after_s(response), str(error)
        else:
            error = no_answer(got.why, url)
            asked_s, why = 0.0, got.why
            if got.sent and not request.repeatable:
                raise Unavailable(
                    f"the connection to {url} broke before the answer: whether it was done is not known",
                    remedy="look before you repeat it: this request has no key that would make repeating safe",
                )
            again = again or got.sent
        tries += 1
        delay_s = patience.delay_s(tries, asked_s=asked_s)
        if patience.over(since_s, clock() + delay_s):
            raise error
        yield Sleep(delay_s, why)
