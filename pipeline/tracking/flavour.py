"""Writes a registered version as an MLflow model: weights, code, signature, requirements.

artifacts/model.safetensors   the codec, without what only training needs
served.py                     bytes in, bytes out (`served`); no pickle anywhere
code/cca_codec_DIGEST/        the codec's own code, so that serving needs no installation of it,
                              and the code of an architecture from another package
"""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.codec import Model as Codec
from pipeline.codec import architectures, save_model
from pipeline.common.atomic import write_text
from pipeline.common.digests import json_sha256
from pipeline.tracking.errors import TrackingError

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.models import ModelSignature

# The packages that a served codec imports, and how modules import from them.
ROOMS = ("codec", "common")
IMPORT = re.compile(r"\b((?:from|import)\s+)pipeline(?=[.\s])")
DIGITS = 12
# The packages that `served` and the codec import, pinned to the versions at registration.
REQUIREMENTS = ("mlflow", "torch", "numpy", "constriction", "safetensors", "pillow", "pandas")


@contextmanager
def written(model: Codec, logged: LoggedModel) -> Iterator[Path]:
    """Yield a folder with the MLflow model of `model`, which is deleted afterwards."""
    import mlflow
    from mlflow.models import Model

    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
        # The signature is stated, not guessed from an example.
        warnings.filterwarnings("ignore", message=".*input example was not provided")
        folder = Path(temporary)
        weights = save_model(model, folder / "model.safetensors")
        code, served = _code(folder, model.config.architecture)
        mlflow.pyfunc.save_model(
            folder / "flavour",
            mlflow_model=Model(
                artifact_path=logged.artifact_location,
                run_id=logged.source_run_id,
                model_uuid=logged.model_id,
                model_id=logged.model_id,
                metadata={"fingerprint": model.fingerprint},
            ),
            python_model=str(served),
            artifacts={"model": str(weights)},
            code_paths=[str(code)],
            signature=signature(),
            pip_requirements=[f"{name}=={_release(name)}" for name in REQUIREMENTS],
        )
        yield folder / "flavour"


def signature() -> ModelSignature:
    """Return the signature: a column `data` in and out, and the parameters operation and rate.

    Bytes go in as text in base64, because MLflow decodes columns of bytes only in some formats of
    requests. `served` checks that the column is there, with a clearer message than MLflow's.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    text = Schema([ColSpec(DataType.string, "data", required=False)])
    data = Schema([ColSpec(DataType.binary, "data")])
    operation = ParamSpec("operation", DataType.string, default="compress")
    rate = ParamSpec("rate", DataType.double, default=None)
    return ModelSignature(inputs=text, outputs=data, params=ParamSchema([operation, rate]))


def check_servable(architecture: str) -> None:
    """Raise `TrackingError` unless registered versions can contain this architecture's code."""
    if not architectures.is_built_in(architecture) and not architectures.entry_point(architecture):
        raise TrackingError(
            f"the architecture {architecture} is known to this program alone, so a registered "
            f"version could not be opened: install it with an entry point of the group "
            f"{architectures.ENTRY_POINTS} (docs/architecture.md)"
        )


def _code(folder: Path, architecture: str) -> tuple[Path, Path]:
    """Write the code that a version needs below `folder`; return its package and `served.py`.

    MLflow puts both before everything else that a process can import. So the package has a name of
    its own, which holds a digest of its content: it hides neither an installed `pipeline` nor the
    code of another version.
    """
    package = Path(__file__).parents[1]
    sources = {
        path.relative_to(package).as_posix(): path.read_text(encoding="utf-8")
        for room in ROOMS
        for path in sorted((package / room).rglob("*.py"))
    }
    if not architectures.is_built_in(architecture):
        sources |= _installed(architecture)
    name = f"cca_codec_{json_sha256(sources)[:DIGITS]}"
    sources["__init__.py"] = '"""The codec of a registered version."""\n'
    for path, text in sources.items():
        write_text(folder / name / path, IMPORT.sub(rf"\g<1>{name}", text))
    served = Path(__file__).with_name("served.py").read_text(encoding="utf-8")
    write_text(folder / "served.py", IMPORT.sub(rf"\g<1>{name}", served))
    return folder / name, folder / "served.py"


def _installed(architecture: str) -> dict[str, str]:
    """Return the code of an installed architecture by path, placed like one of the codec's own."""
    check_servable(architecture)
    entry = architectures.entry_point(architecture)
    assert entry is not None
    package = entry.module.partition(".")[0]
    file = import_module(package).__file__
    assert file is not None
    root, place = Path(file), f"codec/architectures/{architectures.folder_name(architecture)}"
    module = f"pipeline.{place.replace('/', '.')}"
    own = re.compile(rf"(?m)^(\s*from\s+){re.escape(package)}(?=[.\s])")
    files = root.parent.rglob("*.py") if root.name == "__init__.py" else [root]
    above = root.parent.parent if root.name == "__init__.py" else root.parent
    sources = {
        f"{place}/{path.relative_to(above).as_posix()}": own.sub(
            rf"\g<1>{module}.{package}", path.read_text(encoding="utf-8")
        )
        for path in sorted(files)
    }
    offered = f"from {module}.{entry.module} import {entry.attr} as ARCHITECTURE\n"
    return {**sources, f"{place}/__init__.py": f'"""{architecture}."""\n\n{offered}'}


def _release(name: str) -> str:
    """Return the installed version as a package index has it: without the build (`+cpu`)."""
    return version(name).split("+")[0]
