"""What may leave a sandbox, as JSON: the allowlist, the budget and what was spent of it, the journal of intents.

Money is a number of dollars with at most six decimals where people write it, and whole millionths (`micros`) beside it
where they read it. Knows no gateway.
"""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, model_validator

from orchestrator import egress as allowing
from orchestrator import execution
from orchestrator.errors import BadInput
from orchestrator.intents import KEY_BYTES, RESULT_BYTES, Decision, Effect, Intent, IntentState
from orchestrator.wire import bounds
from orchestrator.wire.shape import AnswerModel, Moment, RequestModel, Text

MICROS: Final = 1_000_000
USD: Final = 1_000_000_000  # the largest budget: as a float it still has its six decimals
TOKENS: Final = 10**15


def check_entry(text: str) -> str:
    """One entry of an allowlist, in canonical form."""
    try:
        return str(allowing.entry(text))
    except BadInput as wrong:
        message = wrong.message.removeprefix("egress.allow: ")
        bounds.refuse(message, limit=wrong.data["limit"], remedy=wrong.data["remedy"])


def check_usd(usd: float | None) -> float | None:
    if usd is not None and Decimal(repr(usd)).normalize().as_tuple().exponent < -6:  # type: ignore[operator]  # finite
        bounds.refuse(
            f"{usd!r} dollars has more than six decimals",
            limit="millionths of a dollar",
            remedy="round it: 0.000001 is the least",
        )
    return usd


def check_key(key: str) -> str:
    if not key or bounds.size_of(key) > KEY_BYTES:
        refused = "the key is empty" if not key else f"the key has {bounds.size_of(key)} bytes"
        bounds.refuse(refused, limit=f"1 to {KEY_BYTES} bytes of UTF-8", remedy="send it as `carrel intents` shows it")
    return bounds.check_printable(key)


def check_result(text: str) -> str:
    if bounds.size_of(text) > RESULT_BYTES:
        bounds.refuse(
            f"the result has {bounds.size_of(text)} bytes",
            limit=f"{RESULT_BYTES} bytes of UTF-8",
            remedy="upload it as a file and name that",
        )
    return text


def micros_of(usd: float | None) -> int | None:
    """Exact: `usd` has at most six decimals."""
    return None if usd is None else int(Decimal(repr(usd)) * MICROS)


def usd_of(micros: int | None) -> float | None:
    return None if micros is None else micros / MICROS


Entry = Annotated[Text, AfterValidator(check_entry)]
Usd = Annotated[float | None, AfterValidator(check_usd)]
Key = Annotated[Text, AfterValidator(check_key)]
Result = Annotated[Text, AfterValidator(check_result)]
OnBudget = Literal["fail", "wait"]


def usd_field() -> Any:
    return Field(default=None, ge=0, le=USD, description="dollars, at most six decimals; null = no limit")


def tokens_field() -> Any:
    return Field(default=None, ge=0, le=TOKENS, description="input and output together; null = no limit")


class EgressBody(RequestModel):
    """Where the sandbox may connect to: `name` or `*.name`, with `:port` or without (80 and 443). Empty = nowhere.
    Model providers are reached through the gateway and need no entry."""

    allow: list[Entry] = Field(default_factory=list, max_length=allowing.ENTRIES)

    def noun(self) -> execution.Egress:
        return execution.Egress(tuple(dict.fromkeys(self.allow)))


class EgressWishBody(EgressBody):
    """Another allowlist, in place of the one before. The same `id` again changes nothing."""

    id: Annotated[Text, AfterValidator(bounds.check_id)] | None = None
    allow: list[Entry] = Field(max_length=allowing.ENTRIES)


class BudgetBody(RequestModel):
    """Another budget; what is absent stays as it is, null takes a limit away. The same `id` again changes nothing."""

    id: Annotated[Text, AfterValidator(bounds.check_id)] | None = None
    budget_usd: Usd = usd_field()
    budget_tokens: int | None = tokens_field()
    on_budget: OnBudget | None = None

    @model_validator(mode="after")
    def _something(self) -> BudgetBody:
        if not self.model_fields_set & {"budget_usd", "budget_tokens", "on_budget"}:
            bounds.refuse(
                "nothing to change", limit="at least one of budget_usd, budget_tokens, on_budget", remedy="send one"
            )
        return self

    def noun(self, now: execution.Budget) -> execution.Budget:
        """`now`: as it is."""
        said = self.model_fields_set
        if "budget_usd" in said:
            now = replace(now, micros=micros_of(self.budget_usd))
        if "budget_tokens" in said:
            now = replace(now, tokens=self.budget_tokens)
        return replace(now, on_exceeded=self.on_budget or now.on_exceeded)


class EgressAnswer(AnswerModel):
    """The allowlist as it is now."""

    allow: list[str] = Field(default_factory=list)


class BudgetAnswer(AnswerModel):
    """The budget as it is now; null = no limit."""

    usd: float | None = None
    micros: int | None = None
    tokens: int | None = None
    on_budget: OnBudget = "fail"

    @classmethod
    def of(cls, budget: execution.Budget) -> BudgetAnswer:
        return cls(usd=usd_of(budget.micros), micros=budget.micros, tokens=budget.tokens, on_budget=budget.on_exceeded)


class SpendAnswer(AnswerModel):
    """What model calls have cost so far, as the gateway counted. `reserved_*`: held for calls under way. `replays`
    were answered from the record and cost nothing."""

    usd: float = 0.0
    micros: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    reserved_micros: int = 0
    reserved_tokens: int = 0
    calls: int = 0
    replays: int = 0

    @classmethod
    def of(cls, spend: execution.Spend) -> SpendAnswer:
        return cls(
            usd=spend.micros / MICROS,
            micros=spend.micros,
            input_tokens=spend.input_tokens,
            output_tokens=spend.output_tokens,
            reserved_micros=spend.reserved_micros,
            reserved_tokens=spend.reserved_tokens,
            calls=spend.calls,
            replays=spend.replays,
        )


class IntentAnswer(AnswerModel):
    """One entry of the journal: what a harness told before it did it. `n`: its place, from 1. `state` in_doubt: it may
    have been done wholly, partly or not at all; a person settles it. `settled_by`: who did, "" = nobody had to."""

    key: str
    n: int
    kind: str
    effect: Effect
    state: IntentState
    summary: str = ""
    digest: str = ""
    attempt: int = 0
    run: str = ""
    begun_at: Moment
    ended_at: Moment | None = None
    result: str = ""
    settled_by: str = ""

    @classmethod
    def of(cls, intent: Intent) -> IntentAnswer:
        return cls(
            key=intent.key,
            n=intent.n,
            kind=intent.kind,
            effect=intent.effect,
            state=intent.state,
            summary=intent.summary,
            digest=intent.digest,
            attempt=intent.attempt,
            run=intent.run,
            begun_at=intent.begun_at,
            ended_at=intent.ended_at,
            result=intent.result,
            settled_by=intent.settled_by,
        )


class IntentPage(AnswerModel):
    """In the order of `n`. `next`: what to send as `after` for the next page, null at the end."""

    intents: list[IntentAnswer]
    next: int | None = None


class SettleBody(RequestModel):
    """A person's decision on an intent in doubt: `retry` = run it again, `done` = it was done, with this result,
    `fail` = count it as failed. The key is here and not in the path: it may hold any printable character."""

    key: Key
    decision: Decision = Field(strict=False)
    result: Result = ""
