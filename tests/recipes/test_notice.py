"""The message when a run ends or fails: what is posted where, and what never is."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from pipeline.common.retries import Retries
from recipes.config.settings import RecipeError
from recipes.launching import notice
from recipes.train import main


class Receiver(HTTPServer):
    """Keeps what is posted; answers with `code`."""

    code = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.posted: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook/s3cret-part"


class Answer(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        self.server.posted.append(json.loads(self.rfile.read(length)))
        self.send_response(self.server.code)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    server = Receiver()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv(notice.WEBHOOK, server.url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(notice, "TRIES", Retries(attempts=2, pause=0.0))
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_a_run_that_ends_and_one_that_fails_are_told(write_recipe, receiver: Receiver) -> None:
    path = str(write_recipe())
    assert main([path, "stages.0.steps=2"]) == 0
    (told,) = receiver.posted
    assert told["status"] == "finished"
    assert told["text"].startswith("trial: base is trained, 2 steps")
    assert main([path, "data.train=nowhere"]) == 2
    assert receiver.posted[1]["status"] == "failed"
    assert "data.train: nowhere" in receiver.posted[1]["text"]
    # Somebody looks on.
    assert main([path, "data.train=nowhere", "--dry-run"]) == 2
    assert len(receiver.posted) == 2


def test_what_is_not_taken_is_tried_again_and_never_fails(receiver, caplog) -> None:
    receiver.code = 503
    assert not notice.send("over", status="failed")
    assert len(receiver.posted) == 2
    assert "no message could be sent to 127.0.0.1 (HTTPError)" in caplog.text
    assert "s3cret-part" not in caplog.text


def test_a_message_covers_secrets_and_fits(receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdef")
    assert notice.send(f"failed with hf_abcdef at {receiver.url} " + "x" * 5000, status="failed")
    text = receiver.posted[0]["text"]
    assert "hf_abcdef" not in text
    assert "s3cret-part" not in text
    assert len(text) <= 1900


def test_discord_gets_its_own_form(monkeypatch: pytest.MonkeyPatch) -> None:
    posted: list[bytes] = []
    monkeypatch.setenv(notice.WEBHOOK, "https://discord.com/api/webhooks/1/x")
    monkeypatch.setattr(notice, "_post", lambda url, data: posted.append(data))
    assert notice.send("over", status="finished")
    assert json.loads(posted[0]) == {"content": "over"}


@pytest.mark.parametrize(
    "address",
    [
        "file:///etc/s3cret-part",
        "https://",
        "https://[::1/s3cret-part",
        "https://host:s3cret-part/x",
        "https://host/s3cret-part\n",
        "https://host/s3cret part",
        "https://host/\u00fc-s3cret-part",
    ],
)
def test_an_address_that_is_none_fails_no_run_and_is_not_shown(
    address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(notice.WEBHOOK, address)
    with pytest.raises(RecipeError, match="PIPELINE_WEBHOOK_URL is no address") as refused:
        notice.check()
    assert not notice.send("over", status="finished")
    assert "s3cret" not in str(refused.value) + caplog.text


def test_an_address_that_is_none_is_found_before_work(write_recipe, monkeypatch, caplog) -> None:
    monkeypatch.setenv(notice.WEBHOOK, "file:///etc/s3cret-part")
    monkeypatch.setattr(notice, "send", lambda *_, **__: False)
    assert main([str(write_recipe())]) == 2
    assert "PIPELINE_WEBHOOK_URL is no address" in caplog.text
    assert "s3cret-part" not in caplog.text
