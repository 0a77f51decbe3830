"""Many files at once: what is refused before any work, and what is said of those that fail."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pipeline.codec import CodecError
from pipeline.codec.jobs import Conversion, Kind, check_jobs, go_through


def _kind(fails: set[str]) -> Kind:
    """Return work that copies, and fails as a system does for sources of the names `fails`."""

    def work(job: Conversion) -> int:
        if job.source.name in fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(job.target))
        return job.target.write_bytes(job.source.read_bytes())

    return Kind("copy", lambda job: True, lambda job: False, work)


def _jobs(folder: Path, names: str) -> list[Conversion]:
    for name in names:
        (folder / name).write_text(name)
    return [Conversion(folder / name, folder / "out" / f"{name}.cca") for name in names]


def test_two_targets_that_links_lead_to_one_file_are_refused(tmp_path: Path) -> None:
    jobs = _jobs(tmp_path, "ab")
    (tmp_path / "out").mkdir()
    jobs[0].target.symlink_to("b.cca")
    with pytest.raises(CodecError, match="would both become"):
        check_jobs(jobs, _kind(set()))
    jobs[0].target.unlink()
    check_jobs(jobs, _kind(set()))


@pytest.mark.parametrize(("fails", "said"), [("a", "1 of 2 failed, the others are there: "),
                                             ("ab", "2 of 2 failed: ")])  # fmt: skip
def test_what_the_system_says_is_told_in_words(tmp_path: Path, fails: str, said: str) -> None:
    jobs = _jobs(tmp_path, "ab")
    with pytest.raises(OSError, match=said) as failed:
        go_through(jobs, _kind(set(fails)), lambda _: [])
    assert f"{tmp_path / 'a'}: {jobs[0].target}: Input/output error" in str(failed.value)
    assert "Errno" not in str(failed.value)
    assert not hasattr(failed.value, "__notes__")
    assert all(job.target.is_file() == (job.source.name not in fails) for job in jobs)


def test_every_failure_is_named(tmp_path: Path) -> None:
    jobs = _jobs(tmp_path, "abcdefgh")
    with pytest.raises(OSError, match=r"7 of 8 failed, .*; and 4 more:") as e:
        go_through(jobs, _kind(set("abcdefg")), lambda _: [])
    said = "\n".join([str(e.value), *e.value.__notes__])
    assert [said.count(f"{job.source}: ") for job in jobs] == [1] * 7 + [0]
