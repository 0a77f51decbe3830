"""A registered codec behind MLflow's own scoring server: bytes in, bytes out, over HTTP."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server
from PIL import Image
from torch.nn.modules import module

from pipeline.codec import CCAModel, save_model
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


def shell(page: Path, port: int) -> list[str]:
    """Return the shell blocks of a page, with its server's port replaced."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    return [block.replace(":5001/", f":{port}/") for block in blocks]


def test_a_server_answers_the_page_s_requests(
    workdir: Path, checkpoint: Callable[..., Path], codec: CCAModel, tmp_path: Path, root: Path
) -> None:
    folder = checkpoint()
    register_model(str(folder), "served", "champion")
    shutil.rmtree(folder)
    words = ["models", "serve", "--model-uri", "models:/served@champion", "--host", "127.0.0.1"]
    words += ["--env-manager", "local", "--workers", "1"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    uri = f"sqlite:///{workdir}/mlflow.db"
    server = Server(words, tmp_path, "/health", {"PATH": path, "MLFLOW_TRACKING_URI": uri})
    server.start()
    try:
        pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)
        Image.fromarray(pixels).save(workdir / "photo.png")
        for block in shell(root / "docs" / "serving.md", server.port):
            run = ["bash", "-euo", "pipefail", "-c", block]
            subprocess.run(run, check=True, timeout=patience(300))
        assert (workdir / "photo.cca").read_bytes() == codec.compress(of_pixels(pixels))
        expected = codec.decompress((workdir / "photo.cca").read_bytes())
        served = np.asarray(Image.open(workdir / "back.png"))
        assert np.array_equal(served, (expected[0] * 255).round().byte().permute(1, 2, 0).numpy())

        status, said = ask(server, b"no picture", "compress")
        assert status == 400
        assert json.loads(said)["message"] == (
            "what was given is not a picture that can be read: its contents are of no known "
            "picture format, or damaged at their start"
        )
        assert ask(server, (workdir / "photo.png").read_bytes(), "shrink")[0] == 400
    finally:
        server.kill()


def of_pixels(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


class Guarded:
    """A registered codec as the scoring server's process has it, without the server."""

    def __init__(self, version: str) -> None:
        self.model = mlflow.pyfunc.load_model(version)
        self.codec = self.model.unwrap_python_model().codec
        image, file = Image.new("RGB", (20, 30), "red"), io.BytesIO()
        image.save(file, "PNG")
        self.picture = base64.b64encode(file.getvalue()).decode()

    def ask(self, body: Any, kind: str | None = "application/json") -> tuple[int, Any]:
        """Return the status, and the predictions or the error's sentence."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        schema = self.model.metadata.get_input_schema()
        try:
            answer = scoring_server.invocations(data, kind, self.model, schema)
        except MlflowException as error:
            said = json.loads(error.serialize_as_json())
            assert "stack_trace" not in said
            return error.get_http_status_code(), said["message"]
        return answer.status, json.loads(answer.response)["predictions"]


@pytest.fixture(scope="module")
def guarded(
    empty_store: Path, codec: CCAModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    shutil.copy(empty_store, folder / "mlflow.db")
    save_model(codec, folder / "run" / "model.safetensors")
    hooks = set(module._global_forward_pre_hooks)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
            patch.delenv(name, raising=False)
        patch.setenv(scoring_server._SERVER_MODEL_PATH, "of the server")
        patch.setattr(scoring_server, "invocations", scoring_server.invocations)
        register_model("run", "guarded")
        yield Guarded("models:/guarded/1")
    for key in set(module._global_forward_pre_hooks) - hooks:
        del module._global_forward_pre_hooks[key]


def test_all_documented_bodies_give_the_same_and_no_error_repeats_the_request(
    guarded: Guarded,
) -> None:
    one = guarded.picture
    rows = [
        {"inputs": [one, one]},
        {"inputs": {"data": [one, one]}},
        {"inputs": [{"data": one}, {"data": one}]},
        {"instances": [one, one]},
        {"instances": [[one], [one]]},
        {"instances": [{"data": one}, {"data": one}]},
        {"dataframe_split": {"columns": ["data"], "data": [[one], [one]]}},
        {"dataframe_records": [{"data": one}, {"data": one}]},
    ]
    answers = [guarded.ask(body) for body in rows]
    assert all(answer == answers[0] for answer in answers)
    status, predictions = answers[0]
    assert status == 200
    assert len(predictions) == 2
    stream = base64.b64decode(predictions[0]["data"])
    assert guarded.codec.decompress(stream).shape == (1, 3, 30, 20)

    wrong: list[tuple[Any, str]] = [
        ({"inputs": [one], "params": {"operashun": "compress"}}, "operashun"),
        ({"inputs": [one], "params": {"operation": one}}, "operation"),
        ({"inputs": [one], "params": {"rate": "high"}}, "rate"),
        ({"inputs": [one], "params": {"rate": 1}}, "rate"),
        ({"inputs": [one], "params": [one]}, "params"),
        ({"inputs": [one], "parms": {}}, "parms"),
        ({"inputs": [one], "params": {"operation": "decompress"}}, "signature"),
        ({"inputs": [one[:-7]]}, "base64"),
        ({"inputs": ["\u00e9"]}, "base64"),
        ({"inputs": [""]}, "empty"),
        ({"inputs": [one[:80]]}, "picture"),
        ({"inputs": [one], "instances": [one]}, "one of"),
        ({"instances": [{"picture": one}]}, "column data"),
        ({"dataframe_split": {"columns": ["dat"], "data": [[one]]}}, "column data"),
        ({"dataframe_split": {"columns": ["data"], "data": [[3]]}}, "base64"),
        ({"dataframe_split": [one]}, "split"),
        ([one], "object"),
        (b"{nope", "JSON"),
        (b"\xff" + one.encode(), "JSON"),
    ]
    for body, word in wrong:
        status, said = guarded.ask(body)
        assert status == 400, said
        assert word in said
        assert one[:60] not in said
        assert "tmp" not in said
        assert "\n" not in said


def test_work_that_nobody_waits_for_ends_within_a_layer(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", "100")
    layers, slow, now = 0, 0, time.monotonic

    def count(*_: Any) -> None:
        nonlocal layers
        layers += 1

    hooks = [part.register_forward_hook(count) for part in guarded.codec.modules()]
    assert guarded.ask({"inputs": [guarded.picture]})[0] == 200
    everything, layers, slow = layers, 0, 3
    # The time is up when the third layer ends.
    monkeypatch.setattr(time, "monotonic", lambda: now() + (1000 if layers >= slow else 0))
    status, said = guarded.ask({"inputs": [guarded.picture]})
    assert (status, said) == (500, "it took longer than 100 s (--timeout)")
    assert layers == slow < everything
    # What another request asks for is not affected, nor is what runs outside of requests.
    layers, slow = 0, everything + 1
    assert guarded.ask({"inputs": [guarded.picture]})[0] == 200
    for hook in hooks:
        hook.remove()


def test_a_fault_of_the_codec_is_told_in_the_log_alone(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("of /tmp/somewhere")

    monkeypatch.setattr(type(guarded.codec), "analyse", broken)
    status, said = guarded.ask({"inputs": [guarded.picture]})
    assert (status, said) == (500, "the codec failed at this request; the server's log says why")


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
