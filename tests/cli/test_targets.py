"""No command harms a file: every kind of target, for every command that writes one."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.cli.main import main
from pipeline.codec import save_model
from pipeline.codec.architectures.cca.published import published_names
from tests.codec.conftest import SMALL, make_model

# What is read, and the line that reads it; {} is the target.
LINES = {
    "compress": ("in.png", ".cca", "compress in.png {} --model model.safetensors"),
    "decompress": ("in.cca", ".png", "decompress in.cca {} --model model.safetensors"),
    "import": ("in.tar", ".safetensors", "import in.tar --out {}"),
    "inspect": ("shards", ".html", "inspect shards --html {}"),
}
# What may lie at the target, and whether it may be replaced: always, with --force, never.
KINDS = {
    "nothing": "always",
    "empty": "always",
    "own": "always",
    "own, changed": "force",
    "words": "force",
    "picture": "force",
    "link to words": "force",
    "link to nothing": "always",
    "link to no folder": "never",
    "loop": "never",
    "folder": "never",
    "link to a folder": "never",
    "the source": "never",
    "link to the source": "never",
    "hard link to the source": "never",
    "no folder above": "never",
    "a file above": "never",
    "too long": "never",
    "pipe": "through",
    "null": "through",
}
MAKES_FOLDERS = {"import", "inspect"}
NAMES = st.sampled_from(["out", "a b", "ö" * 100, "x" * 240, "-n", ".out", "out.tar", "日本" * 30])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the commands read, and what each writes from it, in `own`."""
    folder = tmp_path_factory.mktemp("world")
    model = make_model(SMALL)
    save_model(model, folder / "model.safetensors")
    Image.effect_noise((40, 30), 60).convert("RGB").save(folder / "in.png")
    Image.effect_noise((40, 30), 60).save(folder / "other.png")
    state = {published_names(model)[name]: p.detach() for name, p in model.named_parameters()}
    torch.save({"state_dict": state}, folder / "in.tar")
    (folder / "corpus").mkdir()
    shutil.copy(folder / "in.png", folder / "corpus")
    (folder / "own").mkdir()
    with contextlib.chdir(folder):
        assert _typed("shard corpus --out shards --min-side 8 --workers 1") == 0
        assert _typed("compress in.png in.cca --model model.safetensors") == 0
        for command, (_, ending, line) in LINES.items():
            assert _typed(line.format(f"own/{command}{ending}")) == 0
    return folder


def _typed(line: str, target: str = "") -> int:
    words = [target if word == "{}" else word for word in line.split()]
    with pytest.raises(SystemExit) as leaving:
        main(words)
    return int(leaving.value.code or 0)


def _seen(folder: Path) -> dict[Path, object]:
    """Return all that is in `folder`: kinds, contents, where links lead."""
    found: dict[Path, object] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[path] = ("link", path.readlink())
        elif path.is_file():
            found[path] = ("file", path.read_bytes())
        else:
            found[path] = ("other", stat.S_IFMT(path.stat().st_mode))
    return found


def _put(kind: str, target: Path, source: Path, own: Path) -> Path:
    """Make what is to lie at `target`; return the path to type."""
    if kind == "empty":
        target.touch()
    elif kind == "own":
        shutil.copy(own, target)
    elif kind == "own, changed":
        data = own.read_bytes()
        # In the middle of a PNG; at the start of what is known by its first bytes alone.
        at = {".png": len(data) // 2, ".html": data.find(b"generator")}.get(own.suffix, 0)
        target.write_bytes(data[:at] + b"?" + data[at + 1 :])
    elif kind == "words":
        target.write_text("precious")
    elif kind == "picture":
        Image.new("RGB", (30, 40), "red").save(target, "PNG")
    elif kind.startswith("link to "):
        leads = {
            "words": target.parent / "words",
            "nothing": target.parent / "nothing",
            "no folder": target.parent / "none" / "x",
            "a folder": target.parent / "inside",
            "the source": source,
        }[kind.removeprefix("link to ")]
        (target.parent / "words").write_text("precious")
        (target.parent / "inside").mkdir()
        target.symlink_to(leads)
    elif kind == "loop":
        target.symlink_to(target)
    elif kind == "folder":
        target.mkdir()
    elif kind == "the source":
        return source
    elif kind == "hard link to the source":
        os.link(source, target)
    elif kind == "no folder above":
        return target.parent / "none" / target.name
    elif kind == "a file above":
        (target.parent / "file").touch()
        return target.parent / "file" / target.name
    elif kind == "too long":
        return target.with_name("y" * 260 + target.suffix)
    elif kind == "pipe":
        os.mkfifo(target)
    elif kind == "null":
        target.symlink_to(os.devnull)
    return target


@contextlib.contextmanager
def _reader(target: Path, heard: list[bytes]) -> Iterator[None]:
    """Read what goes into a pipe while the block runs."""

    def listen() -> None:
        with target.open("rb") as pipe:
            heard.append(pipe.read())

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    yield
    if not heard:  # nobody wrote: end the wait
        with contextlib.suppress(OSError):
            os.close(os.open(target, os.O_WRONLY | os.O_NONBLOCK))
    thread.join()


def _fits(command: str, kind: str, name: str) -> bool:
    if command == "inspect" and "the source" in kind:
        return False  # a folder
    if command == "import" and kind == "folder":
        return False  # its model.safetensors is written into a folder
    return not (name.startswith("-") and kind == "the source")


@settings(max_examples=24, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
@example(command="compress", kind="the source", name="out", force=True)
@example(command="compress", kind="picture", name="out", force=False)
@example(command="decompress", kind="picture", name="out", force=False)
@example(command="decompress", kind="own, changed", name="out", force=False)
@given(
    command=st.sampled_from(sorted(LINES)),
    kind=st.sampled_from(sorted(KINDS)),
    name=NAMES,
    force=st.booleans(),
)
def test_no_command_harms_a_file(
    world: Path,
    tmp_path_factory: pytest.TempPathFactory,
    command: str,
    kind: str,
    name: str,
    force: bool,
) -> None:
    if not _fits(command, kind, name):
        return
    read, ending, line = LINES[command]
    place = tmp_path_factory.mktemp("place")
    (place / "there").mkdir()
    for one in (read, "model.safetensors", "other.png"):
        copy = shutil.copytree if (world / one).is_dir() else shutil.copy
        copy(world / one, place / one)
    own = world / "own" / f"{command}{ending}"
    target = _put(kind, place / "there" / f"{name}{ending}", place / read, own)
    before, heard = _seen(place), list[bytes]()
    with contextlib.chdir(place):
        listening = _reader(target, heard) if kind == "pipe" else contextlib.nullcontext()
        with listening:
            code = _typed(line + (" --force" if force else ""), str(target))
    after = _seen(place)
    rule = KINDS[kind]
    if kind == "no folder above" and command in MAKES_FOLDERS:
        rule = "always"
    if kind == "link to no folder" and command in MAKES_FOLDERS:
        rule = "always"
    if rule == "through":
        assert (code, after) == (0, before)
        assert kind == "null" or heard[0].startswith(own.read_bytes()[:3])
    elif rule == "always" or (rule == "force" and force):
        written = Path(os.path.realpath(target))
        assert code == 0
        assert written.read_bytes()[:3] == own.read_bytes()[:3]
        assert target.is_symlink() == kind.startswith("link")
        new = {written, *(folder for folder in written.parents if folder not in before)}
        assert {p: c for p, c in after.items() if p not in new} == {
            p: c for p, c in before.items() if p not in new
        }
    else:
        assert (code, after) == (2, before)
