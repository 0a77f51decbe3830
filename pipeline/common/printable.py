"""Text from outside, such as names of files, made harmless where people read it.

A name may hold what a terminal obeys: escape sequences, new lines that look like other messages,
marks that turn the direction of writing. On a terminal, in a log, and in a table each is shown as
Python writes it in a string, `\\x1b`, instead.
"""

from __future__ import annotations

import logging
import unicodedata
from typing import TextIO

# Controls, directions and other invisible marks, halves of characters, ends of lines.
_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# Within emoji and in the writing of several languages, and unable to hide anything.
_JOINERS = "\u200c\u200d"
LAYOUT = "\n\t"
# What makes a spreadsheet take a cell for a formula.
_FORMULA = ("=", "+", "-", "@")


def printable(text: str, keep: str = "") -> str:
    """Return `text` with invisible characters as escapes, except for those in `keep`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if _is_harmless(c) or c in keep else _written_out(c) for c in text)


def _is_harmless(character: str) -> bool:
    return character in _JOINERS or unicodedata.category(character) not in _UNSEEN


def _written_out(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def shown(value: object) -> object:
    """Return `value` for a page: text made `printable`, markup as it is."""
    return printable(value, LAYOUT) if type(value) is str else value


def cell(text: str) -> str:
    """Return `text` as the cell of a table that a spreadsheet may open: never a formula."""
    shown = printable(text)
    return f"'{shown}" if shown.startswith(_FORMULA) else shown


class PrintableFormatter(logging.Formatter):
    """Writes messages with nothing in them that a terminal obeys."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text."""
        return printable(super().format(record), LAYOUT)


def log_to(stream: TextIO) -> None:
    """Let messages from INFO up go to `stream`, unless logging is set up already."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(PrintableFormatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
