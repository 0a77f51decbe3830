"""Progress where there is no terminal: a line now and then, and one at the end."""

from __future__ import annotations

import io

from pipeline.common.progress import progress


def test_the_end_is_said_once() -> None:
    stream = io.StringIO()
    with progress("Sharding", unit="images", stream=stream) as report:
        for done in (1, 2, 3, 3):
            report(done, 3, "1 MB/s")
    assert stream.getvalue() == "Sharding: 3 of 3 images, 1 MB/s\n"
