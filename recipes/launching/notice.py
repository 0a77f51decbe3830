"""A message when a run ends or training fails: posted to the webhook that the environment names.

`PIPELINE_WEBHOOK_URL` is read from the environment because it is a secret: whoever knows it can
post. Chat services take the message as it is; other receivers get its parts as well. A message
that can't be delivered never fails a training.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from pipeline.common.retries import Retries
from pipeline.common.secrets import redacted
from recipes.config.settings import RecipeError

WEBHOOK = "PIPELINE_WEBHOOK_URL"
SECONDS = 10.0
TRIES = Retries(attempts=3)
# Discord has another key for the text, and takes 2,000 characters.
_DISCORD, _LONGEST = ("discord.com", "discordapp.com"), 1900
# Errors that another try does not help; their messages may hold the address.
_FINAL = (ValueError, HTTPException)
log = logging.getLogger(__name__)


def check(environment: Mapping[str, str] = os.environ) -> None:
    """Raise `RecipeError` when the variable is set and names no web address; never show it."""
    url = environment.get(WEBHOOK, "")
    if url and not _is_address(url):
        raise RecipeError(f"{WEBHOOK} is no address that begins with https:// or http://")


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port  # ValueError: it is no number
    except ValueError:
        return False
    # urlsplit takes what urllib refuses only when it posts.
    printable = url.isascii() and url.isprintable() and " " not in url
    return printable and parts.scheme in ("http", "https") and bool(parts.hostname)


def send(text: str, **about: Any) -> bool:
    """Post `text`, with what it is `about`, if a webhook is set; return whether it was taken."""
    url = os.environ.get(WEBHOOK)
    if not url or not _is_address(url):
        return False  # `check` has said so, before any work
    said = redacted(text)[:_LONGEST]
    host = urlsplit(url).hostname or ""
    content = {"text": said, "host": socket.gethostname(), **about}
    if host in _DISCORD or host.endswith(tuple(f".{name}" for name in _DISCORD)):
        content = {"content": said}
    try:
        TRIES.call(lambda: _post(url, json.dumps(content).encode()), "the message", _FINAL)
    except (OSError, *_FINAL) as error:
        # Messages of urllib may hold the address, which is a secret.
        log.warning("train: no message could be sent to %s (%s)", host, type(error).__name__)
        return False
    return True


def _post(url: str, data: bytes) -> None:
    request = urllib.request.Request(
        url, data, {"Content-Type": "application/json", "User-Agent": "cca-pipeline"}
    )
    with urllib.request.urlopen(request, timeout=SECONDS):
        return
