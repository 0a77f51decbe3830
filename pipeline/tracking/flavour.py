"""The MLflow model that a registered version is: weights, code, signature, requirements.

artifacts/model.safetensors   the codec, without what only training needs
served.py                     bytes in, bytes out (`served`); no pickle anywhere
code/pipeline/                this package's codec, so that serving needs no installation of it
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.codec import Model, save_model

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.models import ModelSignature

# What `served` and the codec import, held to the versions that registered the model.
REQUIREMENTS = ("mlflow", "torch", "numpy", "constriction", "safetensors", "pillow", "pandas")


@contextmanager
def written(model: Model, logged: LoggedModel) -> Iterator[Path]:
    """Yield a folder with the MLflow model of `model`; it is gone afterwards."""
    import mlflow
    from mlflow.models import Model

    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
        # The signature is stated, not guessed from an example.
        warnings.filterwarnings("ignore", message=".*input example was not provided")
        folder = Path(temporary)
        weights = save_model(model, folder / "model.safetensors")
        mlflow.pyfunc.save_model(
            folder / "flavour",
            mlflow_model=Model(
                artifact_path=logged.artifact_location,
                run_id=logged.source_run_id,
                model_uuid=logged.model_id,
                model_id=logged.model_id,
                metadata={"fingerprint": model.fingerprint},
            ),
            python_model=str(Path(__file__).with_name("served.py")),
            artifacts={"model": str(weights)},
            code_paths=[str(_code(folder))],
            signature=signature(),
            pip_requirements=[f"{name}=={_release(name)}" for name in REQUIREMENTS],
        )
        yield folder / "flavour"


def signature() -> ModelSignature:
    """Return what goes in and comes out: a column `data` of bytes, the operation, the rate."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    data = Schema([ColSpec(DataType.binary, "data")])
    operation = ParamSpec("operation", DataType.string, default="compress")
    rate = ParamSpec("rate", DataType.double, default=None)
    return ModelSignature(inputs=data, outputs=data, params=ParamSchema([operation, rate]))


def _code(folder: Path) -> Path:
    """Copy the part of this package that decodes; return the copy."""
    package = Path(__file__).parents[1]
    copy = folder / "pipeline"
    leave = shutil.ignore_patterns("__pycache__")
    shutil.copytree(package / "codec", copy / "codec", ignore=leave)
    shutil.copy(package / "__init__.py", copy)
    return copy


def _release(name: str) -> str:
    """Return the installed version as an index knows it: without the build (`+cpu`)."""
    return version(name).split("+")[0]
