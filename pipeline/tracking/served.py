"""The served codec: MLflow runs this file, a copy of which is part of every registered version.

It turns pictures into streams, or streams into pictures. `operation` tells which: "compress" takes
an encoded picture (PNG, JPEG, ...) and returns a `.cca` stream, "decompress" takes such a stream
and returns a PNG. `rate` is the one to compress at, for a codec with several (default: the middle).

In the process of MLflow's scoring server it also checks requests before MLflow does, because MLflow
drops keys that it does not know and repeats requests in its errors; and it stops work on requests
that have timed out.
"""

from __future__ import annotations

import base64
import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.environment_variables import MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos import databricks_pb2
from mlflow.pyfunc import scoring_server
from mlflow.pyfunc.model import PythonModel, PythonModelContext

OPERATIONS = ("compress", "decompress")
PARAMETERS = ("operation", "rate")
COLUMN = "data"
_BAD = databricks_pb2.INVALID_PARAMETER_VALUE
_FAILED = databricks_pb2.INTERNAL_ERROR

_logger = logging.getLogger("mlflow.cca")
_work = threading.local()


class Refused(MlflowException):
    """An error that keeps its message: MLflow's server would put the whole request before it."""

    def __setattr__(self, name: str, value: object) -> None:
        if name != "message" or "message" not in self.__dict__:
            super().__setattr__(name, value)


class _Late(BaseException):
    """The request has timed out; a BaseException, so that no `except Exception` catches it."""


class ServedCodec(PythonModel):
    """One codec, loaded once, for any number of pictures."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the version's own `model.safetensors`, strictly, and make its entropy coder."""
        from pipeline.codec import load_model

        self.codec = load_model(context.artifacts["model"])
        self.codec.coder()
        if scoring_server._SERVER_MODEL_PATH in os.environ:
            guard_server()

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Return a row for each picture: column `data`, bytes, compressed or decompressed.

        `model_input` has the pictures or streams in its column `data`, as bytes or as text in
        base64. Raises MlflowException (invalid value, which the server answers with 400) for an
        invalid picture, stream, operation or rate.
        """
        given = check_parameters(params or {})
        coded = self._compress if given["operation"] == "compress" else self._decompress
        return pd.DataFrame({COLUMN: [self._row(coded, d, given) for d in _rows(model_input)]})

    def _row(
        self, coded: Callable[[bytes, float | None], bytes], data: bytes, given: Mapping[str, Any]
    ) -> bytes:
        from pipeline.codec.errors import MismatchError

        try:
            return coded(data, given["rate"])
        except (ValueError, MismatchError) as error:  # its message is about the bytes
            raise Refused(str(error), _BAD) from error

    def _compress(self, data: bytes, rate: float | None) -> bytes:
        from pipeline.codec.backends import compress
        from pipeline.codec.picture import read_picture

        picture = read_picture(data)
        return compress(
            self.codec, picture, picture.header(), picture.side(), rate=rate, progress=_still_wanted
        )

    def _decompress(self, data: bytes, rate: float | None) -> bytes:
        from pipeline.codec.files import decoded
        from pipeline.codec.picture import encoded

        image, _ = decoded(self.codec, data, progress=_still_wanted)
        return encoded(image, "PNG", Path("the picture"))


def check_parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return `operation` and `rate`. Raises MlflowException for unknown or invalid parameters."""
    unknown = [name for name in given if name not in PARAMETERS]
    if unknown:
        raise Refused(
            f"unknown parameter {unknown[0]!s:.40}: there are {_listed(PARAMETERS)}", _BAD
        )
    operation, rate = given.get("operation") or "compress", given.get("rate")
    if operation not in OPERATIONS:
        raise Refused(f"operation is {' or '.join(OPERATIONS)}, not {operation!s:.40}", _BAD)
    if isinstance(rate, bool) or not isinstance(rate, int | float | np.number | None):
        raise Refused(f"rate is a number, not {rate!r:.40}", _BAD)
    return {"operation": operation, "rate": None if rate is None else float(rate)}


def _rows(model_input: pd.DataFrame) -> Iterator[bytes]:
    """Yield the bytes of each picture or stream, from any format of requests."""
    if COLUMN not in model_input:
        raise Refused(f"there is no column {COLUMN}, which holds pictures or streams", _BAD)
    for value in model_input[COLUMN]:
        # The values of `instances` may each be a list of one.
        for item in value if isinstance(value, list | np.ndarray) else [value]:
            yield _bytes(item)


def _bytes(item: object) -> bytes:
    if isinstance(item, bytes | bytearray | memoryview):
        return bytes(item)
    try:
        assert isinstance(item, str)
        return base64.b64decode("".join(item.split()), validate=True)
    except (AssertionError, ValueError) as error:
        raise Refused(f"{COLUMN} is not text in base64", _BAD) from error


def guard_server() -> None:
    """Make this process's scoring server give clear errors, and stop work that has timed out."""
    from torch.nn.modules.module import register_module_forward_pre_hook

    if not hasattr(scoring_server.invocations, "__wrapped__"):
        scoring_server.invocations = guarded(scoring_server.invocations)
        # Before each layer, so that work stops within one.
        register_module_forward_pre_hook(lambda module, inputs: _still_wanted())


def guarded(invocations: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap MLflow's function that answers a request: body, content type, model, input schema."""

    @functools.wraps(invocations)
    def answer(data: bytes, content_type: str | None, *others: Any) -> Any:
        timeout: Any = MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT
        seconds = float(timeout.get())
        content_type = content_type or scoring_server.CONTENT_TYPE_JSON
        try:
            if content_type.startswith(scoring_server.CONTENT_TYPE_JSON):
                check_body(data)
            with _within(seconds):
                return invocations(data, content_type, *others)
        except _Late:
            _logger.warning("ended a request after %g s (--timeout): nobody waits for it", seconds)
            raise Refused(f"it took longer than {seconds:g} s (--timeout)", _FAILED) from None
        except Refused:
            raise
        except MlflowException as error:
            raise _retold(error) from None

    return answer


def check_body(data: bytes) -> None:
    """Raise MlflowException unless `data` is a JSON object of known keys and parameters."""
    from pipeline.common.documents import DocumentError, parse

    try:
        body = parse(data)
    except DocumentError as error:
        raise Refused(f"the body is not JSON: {error}", _BAD) from error
    forms = sorted(scoring_server.SUPPORTED_FORMATS)
    if not isinstance(body, dict) or len(set(body) & set(forms)) != 1:
        raise Refused(f"the body is a JSON object with one of {_listed(forms)}", _BAD)
    key = scoring_server.SERVING_PARAMS_KEY
    unknown = [name for name in body if name not in (*forms, key)]
    if unknown:
        raise Refused(f"unknown key {unknown[0]:.40}: there are {_listed([*forms, key])}", _BAD)
    given = body.get(key) or {}
    if not isinstance(given, dict):
        raise Refused(f"{key} is an object of {_listed(PARAMETERS)}", _BAD)
    check_parameters(given)


def _retold(error: MlflowException) -> Refused:
    """Return MLflow's error without the request that it repeats, and without a traceback."""
    last = str(error.message).rpartition("Error: ")[2]
    if error.json_kwargs.get("stack_trace"):
        _logger.error("%s", error.json_kwargs["stack_trace"])
        return Refused("the codec failed at this request; the server's log says why", _FAILED)
    return Refused(last.strip(), getattr(databricks_pb2, error.error_code, _BAD))


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Let this thread's work in the block run for `seconds`."""
    _work.end = time.monotonic() + seconds
    try:
        yield
    finally:
        _work.end = None


def _still_wanted(done: int = 0, of: int = 0) -> None:
    """Raise `_Late` once this thread's work has timed out."""
    end = getattr(_work, "end", None)
    if end is not None and time.monotonic() > end:
        raise _Late


def _listed(names: Any) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}"


set_model(ServedCodec())
