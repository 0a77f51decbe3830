"""`pipeline shard`, `verify` and `inspect` as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.cli.main import main
from tests.shards.making import corpus

SMALL = ["--shard-size", "60KB", "--min-side", "32", "--workers", "1"]


def run(*words: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    code = ended.value.code
    return code if isinstance(code, int) else 0


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return corpus(tmp_path / "corpus", count=20)


def test_shard_verify_inspect(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dest = tmp_path / "dest"
    assert run("shard", source, "--out", dest, *SMALL, "--json") == 0
    (summary,) = json.loads(capsys.readouterr().out)
    assert (summary["listed"], summary["samples"], summary["complete"]) == (20, 20, True)
    assert run("shard", source, "--out", dest, *SMALL) == 0
    assert "nothing left to do; 20 pictures listed = 20 written" in capsys.readouterr().out
    assert run("verify", dest, "--workers", "1") == 0
    assert "20 samples: all is well" in capsys.readouterr().out
    assert run("inspect", dest, "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["formats"] == {"jpeg": 20}
    assert run("inspect", dest) == 0
    assert "20 listed = 20 written + 0 rejected" in capsys.readouterr().out
    (dest / "train-000000.tar").unlink()
    assert run("verify", dest, "--workers", "1", "--json") == 1
    assert json.loads(capsys.readouterr().out)["problems"][0]["file"] == "train-000000.tar"


def test_inspect_says_where_rejects_are_named(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / "words.jpg").write_text("no picture")
    assert run("shard", source, "--out", tmp_path / "dest", *SMALL) == 0
    assert run("inspect", tmp_path / "dest") == 0
    told = capsys.readouterr().out
    assert "20 written + 1 rejected" in told
    assert "in train.rejects.parquet" in told


def test_parts_and_finish(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dest = tmp_path / "dest"
    assert run("shard", source, "--out", dest, *SMALL, "--part", "0/2") == 0
    assert "left to other parts" in capsys.readouterr().out
    assert run("shard", "--finish", "--out", dest) == 2
    assert "are missing" in capsys.readouterr().err
    assert run("shard", source, "--out", dest, *SMALL, "--part", "1/2") == 0
    (dest / "train.json").unlink()
    assert run("shard", "--finish", "--out", dest) == 0
    assert (dest / "train.json").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--shard-size", "many"], "size 'many' is not understood"),
        (["--part", "3/3"], "part '3/3' is not understood"),
        (["--split", "train=0.5,val=0.2"], "add up to 0.7, not 1"),
        (["--split", "../up"], "is not understood"),
        (["--check", "some"], "give one of full, header, none"),
        (["--min-side", "-1"], "--min-side must not be negative"),
        (["--max-area", "999999999999"], "--max-area must be at most"),
        (["--finish"], "--finish takes no source"),
    ],
)
def test_bad_usage_gets_one_sentence(
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    sentence: str,
) -> None:
    assert run("shard", source, "--out", tmp_path / "dest", *words) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not (tmp_path / "dest").exists()


def test_a_dry_run_tells_the_plan(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("shard", source, "--out", tmp_path / "dest", *SMALL, "--dry-run") == 0
    assert "20 pictures would make" in capsys.readouterr().out
    page = tmp_path / "sheet.html"
    more = ("--augment", "shards/augment/lic.yaml", "--device", "cpu", "--html", page)
    assert run("shard", source, "--out", tmp_path / "dest", *SMALL, "--dry-run", *more) == 0
    assert f"before and after augmentation: {page}\n" in capsys.readouterr().out
    assert page.stat().st_size > 1000
    assert not (tmp_path / "dest").exists()


def test_inspect_says_what_nodes_of_a_stream_will_need(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dest = tmp_path / "dest"
    assert run("shard", source, "--out", dest, *SMALL) == 0
    capsys.readouterr()
    words = ("inspect", dest, "--stream", "--nodes", "4", "--samples-per-second", "100")
    assert run(*words) == 0
    told = capsys.readouterr().out
    assert told.startswith("train on 4 nodes (")
    assert "each node fetches up to" in told
    assert "100 samples/s over all nodes need" in told
    assert run(*words, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["nodes"], facts["rate"]) == (4, 100)
    assert 0 < facts["bandwidth"] <= 100 * 60_000
    assert facts["kept"] <= facts["once"] == facts["fetched"]
    assert run("inspect", dest, "--stream", "--nodes", "0") == 2
    assert run("inspect", dest, "--stream", "--split", "absent") == 2
    assert "absent" in capsys.readouterr().err
