"""The served codec: MLflow runs this file, a copy of which travels with every registered version.

Bytes in, bytes out. `operation` says which way: "compress" takes an encoded picture (PNG, JPEG,
...) and gives a `.cca` stream, "decompress" takes such a stream and gives a PNG. `rate`, of a codec
with several, is the one to compress at (default: the middle).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext


class ServedCodec(PythonModel):
    """One codec, loaded once, for any number of pictures."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the version's own `model.safetensors`, strictly."""
        from pipeline.codec import load_model

        self.codec = load_model(context.artifacts["model"])

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Return a row for each row: column `data`, bytes, compressed or decompressed.

        Raises MlflowException, which the server answers with 400, for what is no picture, no
        stream, no operation, or no rate of the codec.
        """
        given = params or {}
        operation = given.get("operation", "compress")
        work: dict[str, Callable[[bytes], bytes]] = {
            "compress": lambda data: self._compress(data, given.get("rate")),
            "decompress": self._decompress,
        }
        if operation not in work:
            raise _bad(f"operation is compress or decompress, not {operation}")
        try:
            return pd.DataFrame({"data": [work[operation](bytes(d)) for d in model_input["data"]]})
        except ValueError as error:  # a CodecError: one sentence on what is wrong with the bytes
            raise _bad(str(error)) from error

    def _compress(self, data: bytes, rate: float | None) -> bytes:
        from pipeline.codec.files import compress_file
        from pipeline.codec.picture import read_picture

        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder, "picture.cca")
            compress_file(self.codec, read_picture(data), target, rate=rate)
            return target.read_bytes()

    def _decompress(self, data: bytes) -> bytes:
        from pipeline.codec.files import decompress_file

        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder, "picture.png")
            decompress_file(self.codec, data, target)
            return target.read_bytes()


def _bad(sentence: str) -> MlflowException:
    bad: MlflowException = MlflowException.invalid_parameter_value(sentence)
    return bad


set_model(ServedCodec())
