"""Answers over HTTP that are whole: one that was cut within its headers is no answer.

`http.client` takes the end of a connection for the end of the headers. What remains is an answer
with status 200, without its length and without a body: an empty file, an empty list, a run without
an id. urllib3 (and so requests, MLflow and minio) reads its answers by `http.client`.
"""

from __future__ import annotations

from http.client import HTTPResponse, IncompleteRead
from typing import Any


class WholeResponse(HTTPResponse):
    """A response that raises `IncompleteRead` if the connection ends within its headers."""

    def begin(self) -> None:
        """Read the status and the headers."""
        if getattr(self, "headers", None) is not None:  # they were read before
            return
        lines = _Lines(self.fp)
        self.fp = lines  # type: ignore[assignment]  # lines are all that is read here
        try:
            super().begin()
        finally:
            if self.fp is not None:
                self.fp = lines.file
        if lines.last not in (b"\r\n", b"\n"):
            raise IncompleteRead(lines.last)


class _Lines:
    """Reads lines of a file, and remembers the last one."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.last = b""

    def readline(self, limit: int = -1) -> bytes:
        """Return the next line of at most `limit` bytes."""
        self.last = self.file.readline(limit)
        return self.last

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def refuse_cut_answers() -> None:
    """Let urllib3 take no answer in this process that was cut within its headers."""
    from urllib3.connection import HTTPConnection

    HTTPConnection.response_class = WholeResponse
