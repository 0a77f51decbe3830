"""Answers that were cut within their headers."""

from __future__ import annotations

import pytest
import urllib3

from pipeline.common.answers import refuse_cut_answers
from tests.answering import answering

HEAD = b"HTTP/1.1 200 OK\r\nserver: s\r\nContent-Length: 12\r\ncontent-type: text/plain\r\n\r\n"
BODY = b"twelve bytes"


def test_no_answer_that_is_cut_anywhere_counts_as_one() -> None:
    refuse_cut_answers()
    whole = HEAD + BODY
    cuts = [whole[:end] for end in range(len(whole))]
    with answering(*cuts, whole) as url, urllib3.PoolManager(retries=False) as pool:
        for _ in cuts:
            with pytest.raises(urllib3.exceptions.HTTPError):
                pool.request("GET", url)
        assert pool.request("GET", url).data == BODY


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.0 200 OK\n\nto the end of the connection",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\nto the end of the connection",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
        b"1c\r\nto the end of the connection\r\n0\r\n\r\n",
    ],
)
def test_other_answers_are_read_as_before(answer: bytes) -> None:
    refuse_cut_answers()
    with answering(answer) as url, urllib3.PoolManager(retries=False) as pool:
        assert pool.request("GET", url).data == b"to the end of the connection"


def test_an_answer_without_a_body_is_one() -> None:
    refuse_cut_answers()
    with (
        answering(b"HTTP/1.1 204 No Content\r\n\r\n") as url,
        urllib3.PoolManager(retries=False) as pool,
    ):
        assert pool.request("GET", url).status == 204
