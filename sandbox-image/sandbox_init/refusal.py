"""A refusal: why init will not do what a frame asked, in the words of the protocol. Knows nothing else."""

from __future__ import annotations

from sandbox_init.frames import Frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandbox_init.frames import Value


class Refusal(Exception):
    """Becomes the answer `refused{code, why, …}`. `closing`: the connection ends with it."""

    def __init__(self, code: str, why: str, closing: bool = False, **data: Value) -> None:
        super().__init__(why)
        self.code = code
        self.why = why
        self.closing = closing
        self.data = data

    def frame(self, verb: str = "") -> Frame:
        fields: dict[str, Value] = {"code": self.code, "why": self.why, **self.data}
        if verb:
            fields["verb"] = verb
        return Frame("refused", fields)
