"""A registered codec behind MLflow's own scoring server: bytes in, bytes out, over HTTP."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.codec import CCAModel
from pipeline.tracking import register_model
from tests.patience import patience
from tests.tracking.servers import Server

pytestmark = pytest.mark.slow


def ask(server: Server, data: bytes, operation: str) -> tuple[int, bytes]:
    """Post one picture or stream; return the status and the bytes (or what the server says)."""
    text = base64.b64encode(data).decode()
    body = {
        "dataframe_split": {"columns": ["data"], "data": [[text]]},
        "params": {"operation": operation},
    }
    request = urllib.request.Request(
        f"{server.uri}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=patience(300)) as answer:
            rows = json.load(answer)["predictions"]
            return answer.status, base64.b64decode(rows[0]["data"])
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_compress_and_decompress_over_http(
    workdir: Path, checkpoint: Callable[..., Path], codec: CCAModel, tmp_path: Path
) -> None:
    folder = checkpoint()
    register_model(str(folder), "served", "champion")
    shutil.rmtree(folder)
    words = ["models", "serve", "--model-uri", "models:/served@champion", "--host", "127.0.0.1"]
    words += ["--env-manager", "local", "--workers", "1"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    uri = f"sqlite:///{workdir}/mlflow.db"
    server = Server(words, tmp_path, "/ping", {"PATH": path, "MLFLOW_TRACKING_URI": uri})
    server.start()
    try:
        pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)
        png = io.BytesIO()
        Image.fromarray(pixels).save(png, "PNG")
        status, stream = ask(server, png.getvalue(), "compress")
        assert status == 200
        status, picture = ask(server, stream, "decompress")
        assert status == 200
        x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
        expected = codec.decompress(codec.compress(x))
        served = np.asarray(Image.open(io.BytesIO(picture)))
        assert np.array_equal(served, (expected[0] * 255).round().byte().permute(1, 2, 0).numpy())

        for data, operation in ((b"no picture", "compress"), (b"no stream", "decompress")):
            status, said = ask(server, data, operation)
            assert status == 400, said
        assert ask(server, stream, "shrink")[0] == 400
    finally:
        server.kill()


ALONE = """
import sys
import mlflow
# As where this project is not installed.
sys.modules["pipeline"] = None
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/alone/1").unwrap_python_model()
kind = type(model.codec)
print(sys.modules[kind.__module__].__file__)
"""


def test_serving_needs_no_installation_of_this_project(
    workdir: Path, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    register_model(str(checkpoint()), "alone")
    uri = f"sqlite:///{workdir}/mlflow.db"
    done = subprocess.run(
        [sys.executable, "-c", ALONE, uri],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=patience(300),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "/mlartifacts/" in done.stdout  # the version's own copy


BESIDE = """
import sys
import io
import mlflow
import numpy as np
import pandas as pd
from PIL import Image
mlflow.set_tracking_uri(sys.argv[1])
served = mlflow.pyfunc.load_model("models:/beside/1")
png = io.BytesIO()
Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(png, "PNG")
rows = pd.DataFrame({"data": [png.getvalue()]})
stream = served.predict(rows, params={"operation": "compress"})["data"][0]
import pipeline.cli.main
from pipeline import load_model
codec = load_model("models:/beside/1")
from pipeline.codec.files import decompress_file
decompress_file(codec, stream, __import__("pathlib").Path("out.png"))
print(Image.open("out.png").size, pipeline.__file__)
"""


def test_a_served_version_hides_nothing_of_the_installed_project(
    workdir: Path, checkpoint: Callable[..., Path], tmp_path: Path, root: Path
) -> None:
    register_model(str(checkpoint()), "beside")
    words = [sys.executable, "-c", BESIDE, f"sqlite:///{workdir}/mlflow.db"]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": words[-1]}
    done = subprocess.run(
        words,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=patience(300),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[-2] == f"(30, 20) {root / 'pipeline' / '__init__.py'}"
