"""What an answer means: wire nouns from a 2xx, an error of orchestrator.errors from anything else. Knows no network.

What does not look like our server (a proxy's page, a cut body) is an error that says so, never a traceback.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, TypeVar

from orchestrator.client.exchange import Request, Response
from orchestrator.errors import CarrelError, Unavailable
from orchestrator.events import Event
from orchestrator.wire import event as wire_event
from orchestrator.wire.command import ExecResult
from orchestrator.wire.files import Artifact, Artifacts, Blob, DifferencePage, FileEntry, FilePage, UnpackedAnswer
from orchestrator.wire.operate import HarnessList, Health, Readiness, Stats
from orchestrator.wire.problem import error_of
from orchestrator.wire.prune import PruneAnswer
from orchestrator.wire.record import Record, RecordPage
from orchestrator.wire.shape import AnswerModel
from orchestrator.wire.snapshot import ForkAnswer, SnapshotAnswer, SnapshotListing, SnapshotReceipt, TreeAnswer
from orchestrator.wire.steering import Receipt
from orchestrator.wire.way_out import IntentAnswer, IntentPage

T = TypeVar("T")
M = TypeVar("M", bound=AnswerModel)

SHOWN_CHARS = 200


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """Events in order. `next`: the cursor after them. `closed`: the last event is the end, for ever."""

    events: tuple[Event, ...]
    next: str
    tail: int
    closed: bool
    up_to_date: bool


def value(request: Request[T], response: Response) -> T:
    """What `request.read` makes of it. Raises the error it stands for."""
    if not 200 <= response.status < 300 and response.status not in request.also:
        if request.method == "DELETE" and response.status == 404 and response.again:
            return request.read(Response(204))  # the first one did it, and its answer was lost
        raise problem(response)
    return request.read(response)


def problem(response: Response) -> CarrelError:
    """The error an answer stands for; `data["status"]` has its HTTP status where it is no problem of ours."""
    if "json" in response.headers.get("content-type", ""):
        try:
            shape = json.loads(response.body)
        except ValueError:
            shape = None
        if isinstance(shape, dict) and "code" in shape:
            return error_of(shape)
    if response.status in (502, 503, 504):
        return unavailable(response)
    shown = response.body[:SHOWN_CHARS].decode("utf-8", "replace").strip()
    return CarrelError(f"status {response.status}: {shown or 'no text'}", status=response.status)


def error(shape: Any) -> CarrelError:
    """The error of a problem that came inside a stream."""
    return error_of(shape) if isinstance(shape, dict) else CarrelError(str(shape)[:SHOWN_CHARS])


def unavailable(response: Response) -> Unavailable:
    """The error of a 502, 503 or 504."""
    if "json" in response.headers.get("content-type", ""):
        try:
            found = error_of(json.loads(response.body))
        except (ValueError, AttributeError):
            pass
        else:
            if isinstance(found, Unavailable):
                return found
    return Unavailable(f"the server is not available (status {response.status})", status=response.status)


def not_ours(why: str) -> CarrelError:
    """The error of an answer that is not in our shapes."""
    return CarrelError(
        f"the answer is not one of a Carrel server: {why[:SHOWN_CHARS]}",
        remedy="check the address: is something else listening there?",
    )


def _model(kind: type[M], response: Response) -> M:
    try:
        return kind.model_validate_json(response.body)
    except ValueError as invalid:
        raise not_ours(str(invalid)) from None


# -- one reader per shape --------------------------------------------------------------------------------------------


def record(response: Response) -> Record:
    return _model(Record, response)


def record_page(response: Response) -> RecordPage:
    return _model(RecordPage, response)


def receipt(response: Response) -> Receipt:
    return _model(Receipt, response)


def exec_result(response: Response) -> ExecResult:
    return _model(ExecResult, response)


def entry(response: Response) -> FileEntry:
    return _model(FileEntry, response)


def file_page(response: Response) -> FilePage:
    return _model(FilePage, response)


def unpacked(response: Response) -> UnpackedAnswer:
    return _model(UnpackedAnswer, response)


def difference_page(response: Response) -> DifferencePage:
    return _model(DifferencePage, response)


def artifacts(response: Response) -> list[Artifact]:
    return _model(Artifacts, response).artifacts


def blob(response: Response) -> Blob:
    return _model(Blob, response)


def pruned(response: Response) -> PruneAnswer:
    return _model(PruneAnswer, response)


def stats(response: Response) -> Stats:
    return _model(Stats, response)


def harness_list(response: Response) -> HarnessList:
    return _model(HarnessList, response)


def intent(response: Response) -> IntentAnswer:
    return _model(IntentAnswer, response)


def intent_page(response: Response) -> IntentPage:
    return _model(IntentPage, response)


def snapshot(response: Response) -> SnapshotAnswer:
    return _model(SnapshotAnswer, response)


def snapshot_receipt(response: Response) -> SnapshotReceipt:
    return _model(SnapshotReceipt, response)


def snapshot_listing(response: Response) -> SnapshotListing:
    return _model(SnapshotListing, response)


def forks(response: Response) -> ForkAnswer:
    return _model(ForkAnswer, response)


def tree(response: Response) -> TreeAnswer:
    return _model(TreeAnswer, response)


def health(response: Response) -> Health:
    return _model(Health, response)


def readiness(response: Response) -> Readiness:
    return _model(Readiness, response)


def known(response: Response) -> bool:
    """Of a HEAD: 404 says no."""
    return response.status != 404


def nothing(response: Response) -> None:
    """There is nothing to read."""


def history_page(response: Response) -> HistoryPage:
    try:
        shape = json.loads(response.body)
        return HistoryPage(
            tuple(wire_event.decode(one) for one in shape["events"]),
            str(shape["next"]),
            int(shape["tail"]),
            bool(shape["closed"]),
            bool(shape.get("up_to_date", False)),
        )
    except (ValueError, KeyError, TypeError) as invalid:
        raise not_ours(f"{type(invalid).__name__}: {invalid}") from None


def event(text: str) -> Event:
    """One event of a stream. Raises CarrelError for what is none."""
    try:
        return event_of(json.loads(text))
    except ValueError as invalid:
        raise not_ours(str(invalid)) from None


def event_of(shape: Any) -> Event:
    """The same, parsed."""
    try:
        return wire_event.decode(shape)
    except (ValueError, KeyError, TypeError) as invalid:
        raise not_ours(f"{type(invalid).__name__}: {invalid}") from None


def receipt_of(shape: Any) -> Receipt:
    """A receipt that came over a channel. Raises CarrelError for what is none."""
    try:
        return Receipt.model_validate(shape)
    except ValueError as invalid:
        raise not_ours(str(invalid)) from None
