"""Why a picture is refused."""

from __future__ import annotations

import re
from enum import StrEnum

from pipeline.common.errors import UsageError

# The stream object that decoders name in their messages, which tells users nothing.
OBJECT = re.compile(r"<[^>]* object at 0x[0-9a-f]+>")


class Refusal(StrEnum):
    """The kinds of refusal."""

    NOT_A_PICTURE = "not a picture"
    UNSUPPORTED = "unsupported"
    TOO_LARGE = "too large"
    DAMAGED = "damaged"


class PictureError(UsageError):
    """A file that no pixels are read from: `refusal` is the kind, `detail` says more."""

    def __init__(self, refusal: Refusal, detail: str) -> None:
        super().__init__(f"{refusal}: {detail}" if detail else str(refusal))
        self.refusal = refusal
        self.detail = detail

    def __reduce__(self) -> tuple[type[PictureError], tuple[Refusal, str]]:
        return type(self), (self.refusal, self.detail)


def first_line(error: BaseException) -> str:
    """Return the first line of the message of `error`, without addresses of objects."""
    words = str(error).partition("\n")[0]
    return OBJECT.sub("the data", words) or type(error).__name__
