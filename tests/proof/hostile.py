"""Files from outside, mutated: one clear error each, or none; never a traceback or a way out.

The long form: `python -m tests.proof.hostile --inputs 100000`. Each input is a valid file of one
format with a few mutations, drawn from the seed and the input's number, so that any one can be
looked at again: `python -m tests.proof.hostile --format manifest --only 4711`.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import shutil
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.common.errors import LONGEST, explained

# A file outside of every format's folder: whoever opens it has followed a name out of there.
CANARY = "canary-outside"


@dataclass(frozen=True)
class Format:
    """A kind of file: how a valid one is made, and what reads it.

    `make` fills an empty folder and returns the file that is mutated; `use` reads it as the
    project does. `kind` says how it can be mutated: json, lines (of JSON), yaml, text or bytes.
    """

    name: str
    kind: str
    make: Callable[[Path], Path]
    use: Callable[[Path], object]


def mutated(data: bytes, kind: str, draw: random.Random) -> bytes:
    """Return `data` with one to three mutations."""
    for _ in range(draw.randint(1, 3)):
        known = kind in ("json", "yaml", "lines")
        change = _structure if known and draw.random() < 0.7 else _bytes
        data = change(data, kind, draw)
    return data


def _bytes(data: bytes, kind: str, draw: random.Random) -> bytes:
    """Flip, cut, double or insert bytes."""
    if not data:
        return bytes(draw.randrange(256) for _ in range(draw.randint(0, 20)))
    at, end = sorted(draw.randrange(len(data) + 1) for _ in range(2))
    what = draw.choice(["flip", "cut", "remove", "double", "insert", "zero"])
    if what == "flip":
        place = draw.randrange(len(data))
        return data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :]
    if what == "cut":
        return data[:at]
    if what == "remove":
        return data[:at] + data[end:]
    if what == "double":
        return data[:end] + data[at:end][:4096] + data[end:]
    if what == "zero":
        end = min(end, at + 64)
        return data[:at] + bytes(end - at) + data[end:]
    noise = [b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"[" * 3000, b"9" * 400, b'"', b"\n", b"{}"]
    return data[:at] + draw.choice(noise) + data[at:]


def _structure(data: bytes, kind: str, draw: random.Random) -> bytes:
    """Change one value or key of a document, or of one line of it."""
    if kind == "lines":
        lines = data.split(b"\n")
        at = draw.randrange(len(lines))
        lines[at] = _structure(lines[at], "json", draw)
        return b"\n".join(lines)
    try:
        text = data.decode()
        content = yaml.safe_load(text) if kind == "yaml" else json.loads(text)
    except (ValueError, yaml.YAMLError, RecursionError):
        return _bytes(data, kind, draw)
    content = _changed(content, draw)
    if kind == "yaml":
        return yaml.safe_dump(content, allow_unicode=True).encode(errors="surrogatepass")
    return json.dumps(content).encode()  # as JSON of other programs: with NaN, in ASCII


def _changed(content: Any, draw: random.Random) -> Any:
    places = list(_places(content))
    if not places:
        return _value(content, draw)
    holder, key = draw.choice(places)
    what = draw.random()
    if what < 0.15:
        del holder[key]
    elif what < 0.25 and isinstance(holder, dict):
        holder[draw.choice(["unknown", "", "__class__", "format", "../x"])] = holder.pop(key)
    elif what < 0.35 and isinstance(holder, list):
        holder.extend(copy.deepcopy(holder[:50]))
    else:
        holder[key] = _value(holder[key], draw)
    return content


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    if not isinstance(content, dict | list):
        return
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in list(items):
        yield content, key
        yield from _places(value)


def _value(before: Any, draw: random.Random) -> Any:
    numbers = [0, -1, 1, 7, 2**31, 2**53 + 1, 2**63, 2**70, -(2**63), 1e308, 0.5, float("nan")]
    texts = ["", "x", "a" * 300, f"../{CANARY}", f"../../{CANARY}", "\x1b[31m", "a\nb", "é\x00"]
    texts += ["<script>alert(1)</script>", "\ud800", "1e999", "../" * 20 + "etc", "."]
    others: list[Any] = [None, True, [], {}, [[]], {"a": {"b": [None]}}, [before, before]]
    kinds = {int: numbers, float: numbers, str: texts}
    usual: Any = kinds.get(type(before), others)
    return draw.choice(usual if draw.random() < 0.6 else [*numbers, *texts, *others])


@contextmanager
def watched() -> Iterator[list[str]]:
    """Yield a list of the paths that are opened, or removed, outside of where they may be."""
    _install()
    _outside.clear()
    yield _outside


_outside: list[str] = []
_installed: list[bool] = []


def _install() -> None:
    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.remove", "os.rename", "shutil.rmtree", "os.mkdir"):
            path = str(arguments[0])
            if CANARY in path:
                _outside.append(f"{event} {path}")

    if not _installed:
        sys.addaudithook(hook)
        _installed.append(True)


def judged(use: Callable[[Path], object], path: Path) -> str | None:
    """Read the file at `path`; return what was wrong with that, None if nothing was."""
    with watched() as outside, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            use(path)
        except Exception as error:
            told = explained(error)
            if told is None or isinstance(error, MemoryError):
                return "".join(traceback.format_exception(error)[-6:])
            sentence = told[1]
            if not sentence.strip() or len(sentence) > LONGEST or "\x1b" in sentence:
                return f"no sentence: {sentence[:LONGEST]!r}"
        return f"left its folder: {outside[0]}" if outside else None


def tried(one: Format, place: Path, numbers: Iterator[int], seed: int) -> Iterator[tuple[int, str]]:
    """Yield (number, what is wrong) of the inputs of a format that are not taken as they must."""
    template = place / "template"
    template.mkdir(parents=True)
    file = one.make(template)
    (place / CANARY).write_bytes(b"not yours")
    data, folder = file.read_bytes(), place / "inside" / "folder"
    (place / "inside").mkdir()
    (place / "inside" / CANARY).write_bytes(b"not yours")
    for number in numbers:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(template, folder)
        target = folder / file.relative_to(template)
        target.write_bytes(mutated(data, one.kind, random.Random(f"{seed} {one.name} {number}")))
        wrong = judged(one.use, target)
        if wrong is not None:
            yield number, wrong


def main() -> int:
    """Try inputs of all formats; return how many were not taken as they must be."""
    from tests.proof.formats import FORMATS

    parser = argparse.ArgumentParser("tests.proof.hostile", description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=2000, help="over all formats")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--format", choices=[one.name for one in FORMATS])
    parser.add_argument("--only", type=int, help="this input alone")
    given = parser.parse_args()
    chosen = [one for one in FORMATS if given.format in (None, one.name)]
    each = -(-given.inputs // len(chosen))
    failures = 0
    for one in chosen:
        numbers = iter([given.only] if given.only is not None else range(each))
        with tempfile.TemporaryDirectory() as place:
            wrong = list(tried(one, Path(place), numbers, given.seed))
        failures += len(wrong)
        sys.stdout.write(f"{one.name:12} {each} inputs, {len(wrong)} wrong\n")
        for number, what in wrong[:3]:
            sys.stdout.write(f"  {number}: {what}\n")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
