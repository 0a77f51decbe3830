"""Keeps libtiff from writing to standard error: Pillow reports what is wrong with a picture."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Iterator
from pathlib import Path

import PIL

# Where wheels of Pillow have the libraries that they bring along, and the names of a system's.
BUNDLED = ("pillow.libs/libtiff*.so*", "Pillow.libs/libtiff*.so*", "PIL/.dylibs/libtiff*.dylib")
SYSTEM = ("libtiff.so.6", "libtiff.so.5")
HANDLERS = ("TIFFSetErrorHandler", "TIFFSetWarningHandler")
# Only what is loaded already can be what Pillow uses.
MODE = getattr(os, "RTLD_NOLOAD", 0) | getattr(os, "RTLD_NOW", 0)


@functools.cache
def quiet_libtiff() -> None:
    """Turn off what libtiff writes by itself in this process, if Pillow's library is found.

    It writes a line for each tag that it does not know, whether Pillow raises an error or not.
    """
    for place in _libraries():
        try:
            library = ctypes.CDLL(place, MODE)
            for name in HANDLERS:
                handler = getattr(library, name)
                handler.argtypes, handler.restype = [ctypes.c_void_p], ctypes.c_void_p
                handler(None)
        except (OSError, AttributeError):
            continue


def _libraries() -> Iterator[str]:
    """Yield the libraries that Pillow may have loaded."""
    packages = Path(PIL.__file__).parents[1]
    for pattern in BUNDLED:
        yield from map(str, packages.glob(pattern))
    yield from SYSTEM
