"""Names from outside come out harmless: on the terminal, in pages, pictures and tables, in logs."""

from __future__ import annotations

import io
import logging
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.common.errors import UsageError, explained
from pipeline.common.printable import LAYOUT, PrintableFormatter, cell, printable
from pipeline.common.progress import progress
from shards import stream
from tests.shards.made import numbered, write_split
from tests.shards.making import SMALL, corpus, make
from tests.typed import typed

HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"'><b>x",
    "</script><script>alert(1)</script>",
    "$\\frac{x$",
    "$x$",
    "_hidden",
    "=HYPERLINK(1)",
    "+1",
    "-1+cmd",
    "@sum",
    "a\nb",
    "a\r\nb,c",
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "\x9b2J",
    "\u202egpj.exe",
    "[/]",
    "[red]x",
    "{x}%s%(y)d",
    "\udc80",
    "\x00",
    "a" * 300,
)
NAMES = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=40))


def obeyed(text: str, keep: str = "") -> list[str]:
    """The characters that a terminal would obey."""
    return [
        c for c in text if (ord(c) < 32 or 127 <= ord(c) < 160 or c in "\u202e") and c not in keep
    ]


class Tags(HTMLParser):
    """Notes the elements of a page, with their attributes' names."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: set[tuple[str, ...]] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.add((tag, *sorted(name for name, _ in attributes)))


@given(st.text() | NAMES)
def test_nothing_of_a_printable_text_is_obeyed(text: str) -> None:
    shown = printable(text)
    assert not obeyed(shown)
    shown.encode()
    assert printable(shown) == shown
    assert not obeyed(printable(text, LAYOUT), LAYOUT)
    assert not cell(text).startswith(("=", "+", "-", "@"))


@given(st.text(st.characters(categories=["L", "N", "P", "S", "M", "Zs"])))
def test_a_name_in_any_language_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


@given(NAMES)
def test_errors_progress_and_logs_show_names_harmlessly(name: str) -> None:
    told = explained(UsageError(f"{name} is no picture"))
    assert told is not None
    shown = io.StringIO()
    with progress(name, "files", shown) as report:
        report(1, 1, name)
    record = logging.LogRecord("x", logging.WARNING, "", 0, "skipped %s", (name,), None)
    for text in (told[1], shown.getvalue(), PrintableFormatter("%(message)s").format(record)):
        assert not obeyed(text, LAYOUT)
    assert shown.getvalue().count("\n") == 1


def test_commands_show_keys_of_foreign_shards_harmlessly(tmp_path: Path) -> None:
    shards, page = tmp_path / "shards", tmp_path / "page.html"
    keys = [name for name in HOSTILE if "\udc80" not in name]
    make(corpus(tmp_path / "source", len(keys), 1), shards, replace(SMALL, shard_size=10**6))
    sidecar = shards / "train-000000.parquet"
    rows = pq.read_table(sidecar)
    place, field = rows.schema.get_field_index("key"), rows.schema.field("key")
    pq.write_table(rows.set_column(place, field, pa.array(keys, field.type)), sidecar)
    told = [typed("verify", shards), typed("inspect", shards), typed("compress", shards / keys[0])]
    for done in told:
        assert not obeyed(done.stdout + done.stderr, LAYOUT), done
    assert typed("inspect", shards, "--html", page).returncode == 0
    assert not any(
        name.startswith("on") for _, *names in Tags(page.read_text()).found for name in names
    )
    (tmp_path / "\x1b[31mred.png").write_bytes(b"no picture")
    done = typed("compress", tmp_path / "\x1b[31mred.png")
    assert done.returncode == 2
    assert "\\x1b[31mred.png" in done.stderr


def test_broken_samples_are_named_harmlessly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    samples = numbered(4, 24, 24)
    write_split(tmp_path, [4], [("\x1b[2Jbad", b"no picture"), *samples[1:]])
    list(stream(tmp_path, batch_size=2, crop=8))
    assert "\\x1b[2Jbad" in caplog.text
    assert not obeyed(caplog.text, LAYOUT)


def test_a_bar_takes_any_title(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = Terminal()
    monkeypatch.setattr("sys.stderr", shown)
    for name in HOSTILE:
        with progress(name, "files", shown) as report:
            report(1, 2, name)
    assert "\x1b]0;" not in shown.getvalue()
    assert "\u202e" not in shown.getvalue()


def test_a_picture_of_any_name_is_shown(tmp_path: Path) -> None:
    for number, name in enumerate(("<b>x", "$x$", "\x1b[31mred", "a\nb")):
        Image.new("RGB", (300, 300), (number, 0, 0)).save(tmp_path / f"{name}.png")
    done = typed("shard", tmp_path, "--out", tmp_path / "out", "--workers", "1", "--dry-run")
    assert done.returncode == 0, done
    assert not obeyed(done.stdout + done.stderr, LAYOUT)
