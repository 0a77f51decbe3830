"""Finds the model that made a stream, by the fingerprint in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.codec import box
from pipeline.codec.bitstream import read_header
from pipeline.codec.errors import CodecError
from pipeline.codec.light import LightModel, model_for
from pipeline.codec.stored import stored_fingerprint

if TYPE_CHECKING:
    from pipeline.codec.backends import AnyModel
    from pipeline.codec.model import Model


def find_model(data: bytes, folders: Iterable[Path]) -> Path:
    """Return the model file that made the stream `data`, by its fingerprint.

    The model comes with the package, or lies in one of `folders`. The beginning of a stream is
    enough as `data`. Raises `CodecError` when no such model is there.
    """
    wanted, folders = read_header(data).fingerprint, list(folders)
    for file in _claiming(wanted, folders):
        return file
    raise _unknown(wanted, folders, [])


class Models:
    """Loads the models that streams name, each once; a `given` model is used for all streams.

    A file that only claims to be the model (it is damaged or was changed) hides no other file.
    """

    def __init__(
        self,
        folders: Iterable[Path] = (),
        device: str = "cpu",
        given: AnyModel | None = None,
        quick: bool = False,
    ) -> None:
        """With `quick`, models may be without torch, which load faster for a single picture."""
        self.folders = list(dict.fromkeys(folders))
        self.device = device
        self.given, self.quick = given, quick
        self._loaded: dict[str, AnyModel | CodecError] = {}

    def look_in(self, folder: Path) -> None:
        """Search one more folder for models, unless it is among the folders already."""
        if folder not in self.folders:
            self.folders.append(folder)
            self._loaded = {k: m for k, m in self._loaded.items() if not isinstance(m, CodecError)}

    def of(self, data: bytes) -> AnyModel:
        """Return the model for the stream that begins with `data`.

        Raises `CodecError` when `data` is not a stream, or its model is not found.
        """
        if self.given is not None:
            return self.given
        wanted = read_header(data).fingerprint
        if wanted not in self._loaded:
            self._loaded[wanted] = self._find(wanted)
        model = self._loaded[wanted]
        if isinstance(model, CodecError):
            raise model
        return model

    def loaded(self) -> list[Model]:
        """Return the models with torch that are in memory."""
        models = self._loaded.values() if self.given is None else [self.given]
        return [model for model in models if not isinstance(model, CodecError | LightModel)]

    def _find(self, wanted: str) -> AnyModel | CodecError:
        unusable: list[str] = []
        for file in _claiming(wanted, self.folders):
            try:
                model = load_any(file, self.device, self.quick)
            except CodecError as error:
                unusable.append(str(error))
                continue
            if model.fingerprint.startswith(wanted):
                return model
            unusable.append(f"{file} claims to have it, but its weights are others")
        return _unknown(wanted, self.folders, unusable)


def load_any(file: Path, device: str = "cpu", quick: bool = False) -> AnyModel:
    """Load the model in `file`; with `quick`, without torch if the model has such a form.

    Raises as `pipeline.codec.load_model` does.
    """
    light = model_for(file, device) if quick else None
    if light is not None:
        return light
    from pipeline.codec.storage import load_model

    return load_model(file, device=device)


def _claiming(wanted: str, folders: Iterable[Path]) -> Iterator[Path]:
    """Yield the model files whose metadata state the fingerprint `wanted`."""
    for folder in (box.FOLDER, *folders):
        for file in sorted(folder.glob("*.safetensors")):
            if file.is_file() and stored_fingerprint(file).startswith(wanted):
                yield file


def _unknown(wanted: str, folders: Iterable[Path], unusable: list[str]) -> CodecError:
    places = ", ".join(str(folder) for folder in folders)
    looked = f" or lies in {places}" if places else ""
    why = f" ({'; '.join(unusable)})" if unusable else ""
    return CodecError(
        f"no model with the fingerprint {wanted} comes with this version{looked}{why}: ask who "
        "made the file for its model, or look among yours (pipeline models), and name it with "
        "--model"
    )
