"""The errors of Carrel, one tree, with stable codes and the data that belongs to them. Knows no HTTP and no exit code.

CarrelError
 ├─ BadInput            invalid            a field is wrong: names it, its limit and the remedy
 │   └─ TooLarge        too_large          it is bigger than its bound; the rest was not read
 ├─ NotFound            not_found          no such execution, file, message, stream…
 ├─ Conflict            conflict           the thing is not in a state that allows this
 │   ├─ NameTaken       name_taken         another living execution has this name
 │   ├─ Changed         changed            it is not (any more) what the condition names
 │   ├─ KeyReused       key_reused         an idempotency key came back with another body
 │   └─ SandboxConflict sandbox_conflict   this sandbox id exists with another spec
 ├─ TooMany             too_many           a quota or a bound is reached
 ├─ Gone                gone               the history before this point is not there any more
 ├─ Unauthorized        unauthorized       no token, or not one of ours
 ├─ Forbidden           forbidden          a token, but not for this; or a foreign Origin
 ├─ Fenced              fenced             this epoch no longer owns the execution
 ├─ Closed              closed             the history has ended, nothing can be appended
 ├─ Resend              resend             the history lacks frames before the ones offered
 ├─ Unavailable         unavailable        a part does not answer; nothing is known to be wrong
 │   ├─ StoreUnavailable   store_unavailable
 │   ├─ EngineUnavailable  engine_unavailable   the container engine; what it runs is *unknown*
 │   └─ ArchiveUnavailable archive_unavailable  where snapshots and histories are kept for all hosts
 ├─ ImageMissing        image_missing      the image is neither here nor to be had
 ├─ Infeasible          infeasible         the resources asked for cannot be given
 ├─ DiskFull            disk_full          no space left, where the data says
 ├─ Damaged             damaged            what was kept is not what it was
 └─ LinkError           link               the byte stream to init
     ├─ LinkLost        link_lost          it broke; open it again
     └─ LinkRefused     link_refused       init refused: an older epoch, another protocol
"""

from __future__ import annotations

from typing import Any, ClassVar


class CarrelError(Exception):
    """Something Carrel says no to. `message` is for people, `code` is stable, `data` is what a program needs."""

    code: ClassVar[str] = "error"

    def __init__(self, message: str, /, **data: Any) -> None:
        super().__init__(message)
        self.message = message
        self.data: dict[str, Any] = data


class BadInput(CarrelError):
    """A field of what was sent is wrong. `data`: field, limit (what is allowed), remedy (what to do)."""

    code = "invalid"

    def __init__(self, message: str, /, *, field: str, limit: str = "", remedy: str = "", **data: Any) -> None:
        super().__init__(message, field=field, limit=limit, remedy=remedy, **data)
        self.field = field


class TooLarge(BadInput):
    """What was sent is bigger than its bound; the rest of it was not read. `data` as BadInput's."""

    code = "too_large"


class NotFound(CarrelError):
    """There is no such thing, or it is another tenant's. `data`: kind, id."""

    code = "not_found"


class Conflict(CarrelError):
    """It is not in a state that allows this. `data`: state, remedy."""

    code = "conflict"


class NameTaken(Conflict):
    """Another execution that has not been removed has this name. `data`: name, id."""

    code = "name_taken"


class Changed(Conflict):
    """What the condition of a write names is not so, or not any more. `data`: etag (the one it has now, "" = none)."""

    code = "changed"


class KeyReused(Conflict):
    """The idempotency key was used before, with another body. `data`: key, id."""

    code = "key_reused"


class SandboxConflict(Conflict):
    """A sandbox with this id exists and was made from another spec. `data`: sandbox_id."""

    code = "sandbox_conflict"


class TooMany(CarrelError):
    """A bound is reached. `data`: limit, retry_after_s."""

    code = "too_many"


class Gone(CarrelError):
    """What the cursor points to is not there any more. `data`: earliest (seq), or moved_to (id); remedy."""

    code = "gone"


class Unauthorized(CarrelError):
    """No token, or one we do not know."""

    code = "unauthorized"


class Forbidden(CarrelError):
    """Known, but not allowed: the token's scope, or the Origin."""

    code = "forbidden"


class Fenced(CarrelError):
    """Another claim owns this execution now: stop all work for it at once. `data`: epoch (the current one)."""

    code = "fenced"


class Closed(CarrelError):
    """The history has its end marker. `data`: tail."""

    code = "closed"


class Resend(CarrelError):
    """The history lacks frames before those offered. `data`: src (send again from this one on)."""

    code = "resend"

    def __init__(self, message: str, /, *, src: int) -> None:
        super().__init__(message, src=src)
        self.src = src


class Unavailable(CarrelError):
    """A part does not answer. Nothing was decided. `data`: retry_after_s."""

    code = "unavailable"


class StoreUnavailable(Unavailable):
    """The Redis/Valkey server does not answer, or refuses writes."""

    code = "store_unavailable"


class EngineUnavailable(Unavailable):
    """The container engine does not answer: the state of what it runs is unknown, not lost."""

    code = "engine_unavailable"


class ArchiveUnavailable(Unavailable):
    """The archive does not answer, or lets nobody in: what is in it is unknown, not lost."""

    code = "archive_unavailable"


class ImageMissing(CarrelError):
    """The image is not on this host and cannot be had. `data`: image."""

    code = "image_missing"


class Infeasible(CarrelError):
    """These resources cannot be given. `data`: field, limit."""

    code = "infeasible"


class DiskFull(CarrelError):
    """No space left. `data`: where."""

    code = "disk_full"


class Damaged(CarrelError):
    """What was kept is not what it was. `data`: what."""

    code = "damaged"


class LinkError(CarrelError):
    """The byte stream between a worker or an api and one sandbox's init."""

    code = "link"


class LinkLost(LinkError):
    """The stream broke. Nothing is known of what init did with the last frames: open it again and ask."""

    code = "link_lost"


class LinkRefused(LinkError):
    """init does not want us: our epoch is older than its highest, or we speak no common protocol. `data`: why."""

    code = "link_refused"
