"""The served codec: MLflow runs this file, a copy of which travels with every registered version.

Bytes in, bytes out. `operation` says which way: "compress" takes an encoded picture (PNG, JPEG,
...) and gives a `.cca` stream, "decompress" takes such a stream and gives a PNG.
"""

from __future__ import annotations

import io
from typing import Any

import pandas as pd  # type: ignore[import-untyped]
import torch
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from PIL import Image


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
        """Return a row for each row: column `data`, bytes, compressed or decompressed."""
        operation = (params or {}).get("operation", "compress")
        work = {"compress": self._compress, "decompress": self._decompress}
        if operation not in work:
            raise ValueError(f"operation is compress or decompress, not {operation}")
        return pd.DataFrame({"data": [work[operation](bytes(d)) for d in model_input["data"]]})

    def _compress(self, data: bytes) -> bytes:
        with Image.open(io.BytesIO(data)) as picture:
            rgb = picture.convert("RGB")
        pixels = torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8)
        x = pixels.view(1, rgb.height, rgb.width, 3).permute(0, 3, 1, 2).float() / 255
        return bytes(self.codec.compress(x))

    def _decompress(self, data: bytes) -> bytes:
        x_hat = self.codec.decompress(data)[0]
        pixels = (x_hat * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
        stream = io.BytesIO()
        Image.fromarray(pixels.numpy()).save(stream, "PNG")
        return stream.getvalue()


set_model(ServedCodec())
