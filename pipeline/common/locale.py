"""UTF-8 in every locale: names of files and words on a command line mean the same everywhere."""

from __future__ import annotations

import os
import sys


def insist_on_utf8() -> None:
    """Start this program again in Python's UTF-8 mode, unless text is UTF-8 already.

    In a locale such as C, with `PYTHONUTF8=0`, or ISO-8859-1, Python can't open a file whose name
    has other letters. Bytes that are no UTF-8 stay what they are. Programs that this one starts are
    in UTF-8 mode as well. Call it before anything else is done: nothing of this process remains.
    """
    if sys.getfilesystemencoding().lower() == "utf-8" or "utf8" in sys._xoptions:
        return
    os.environ["PYTHONUTF8"] = "1"
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
