"""Chooses the variables that jobs need from the shell that submits them, and sets secrets apart."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pipeline.common.secrets import has_password, is_secret_name

# Variables for messages, tracking, shards and downloads, and for TLS and proxies.
NEEDED = re.compile(
    r"PIPELINE_WEBHOOK_URL|MLFLOW_\w+|AWS_\w+|GOOGLE_APPLICATION_CREDENTIALS"
    r"|AZURE_STORAGE_\w+|HF_\w+|XDG_CACHE_HOME"
    r"|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|SSL_CERT_FILE|SSL_CERT_DIR|(https?|ftp|all|no)_proxy",
    re.IGNORECASE,
)
# Names of keys that the words for secrets do not cover, as in AZURE_STORAGE_CONNECTION_STRING.
KEYS = re.compile(r"_KEY(_|$)|CONNECTION_STRING|_SAS(_|$)", re.IGNORECASE)
# A file's name, whatever it sounds like.
FILES = {"GOOGLE_APPLICATION_CREDENTIALS", "AWS_SHARED_CREDENTIALS_FILE"}


def by_name(environment: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return the variables that jobs need of `environment`, and the names of the secret ones."""
    plain: dict[str, str] = {}
    secret: list[str] = []
    for name in sorted(environment):
        if not NEEDED.fullmatch(name):
            continue
        value = environment[name]
        hidden = (is_secret_name(name) or KEYS.search(name)) and name not in FILES
        if hidden or has_password(value):
            secret.append(name)
        else:
            plain[name] = value
    return plain, secret
