"""The Jobs API of a Ray cluster, over HTTP: nothing of Ray is needed where plans are scheduled.

https://docs.ray.io/en/latest/cluster/running-applications/job-submission/rest.html
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from orchestration.engines.commands import quoted
from orchestration.errors import EngineError, UnansweredError
from pipeline.common.documents import parse

SECONDS = 60
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
# A job in these states may still do something; the others are STOPPED, SUCCEEDED and FAILED.
ACTIVE = ("PENDING", "RUNNING")
# Status codes of a busy head node, where asking again helps.
PASSING = (429, 502, 503, 504)
BUSY = "try again later"
BUSY_PAUSES = (1.0, 3.0, 10.0, 20.0, 30.0, None)


class JobsApi:
    """Submits, lists and stops the jobs of the cluster whose dashboard is at `address`."""

    def __init__(self, address: str | None) -> None:
        self.address = (address or _usual_address()).rstrip("/")

    def version(self) -> str:
        """Return the version of Ray that the cluster runs."""
        return str(self._ask("GET", "/api/version")["ray_version"])

    def nodes(self) -> list[dict[str, float]]:
        """Return the resources of each node that is alive: CPU, GPU, memory in bytes, others."""
        try:
            found = self._ask("GET", "/api/v0/nodes?detail=1")["data"]["result"]["result"]
            alive = [node for node in found if node.get("state") == "ALIVE"]
            return [dict(node.get("resources_total") or {}) for node in alive]
        except (KeyError, TypeError, AttributeError) as error:
            raise EngineError(f"Ray at {self.address} does not say what nodes it has") from error

    def jobs(self) -> list[dict[str, Any]]:
        """Return all jobs that the cluster remembers and that were submitted, oldest first."""
        found = [job for job in self._ask("GET", "/api/jobs/") if job.get("submission_id")]
        return sorted(found, key=lambda job: job.get("start_time") or 0)

    def submit(
        self, name: str, entrypoint: str, metadata: Mapping[str, str], variables: Mapping[str, str]
    ) -> None:
        """Submit the shell line `entrypoint`, with the environment `variables`, as job `name`."""
        body = {
            "submission_id": name,
            "entrypoint": entrypoint,
            "metadata": dict(metadata),
            "runtime_env": {"env_vars": dict(variables)},
        }
        for pause in BUSY_PAUSES:
            try:
                self._ask("POST", "/api/jobs/", body)
                return
            except UnansweredError as error:
                # The head refuses before it does anything; other failures may come after it took
                # the job.
                if BUSY not in str(error) or pause is None:
                    raise
                time.sleep(pause)

    def stop(self, name: str) -> None:
        """Ask the job to end (SIGTERM); returns at once."""
        self._ask("POST", f"/api/jobs/{quote(name, safe='')}/stop")

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        import requests

        try:
            answer = requests.request(
                method, self.address + path, json=body, headers=_headers(), timeout=SECONDS
            )
        except (requests.RequestException, ValueError) as error:
            raise UnansweredError(
                f"no Ray cluster answers at {self.address}: is the address of its dashboard right"
                f" (`address` of the profile), and can this machine reach it? ({_cause(error)})"
            ) from error
        if not answer.ok:
            # A traceback of the server ends with the sentence that matters.
            said = quoted(answer.text.strip().rpartition("\n")[2]) or answer.reason
            passing = answer.status_code in PASSING or BUSY in said
            kind = UnansweredError if passing else EngineError
            raise kind(f"Ray at {self.address} answers {answer.status_code}: {said}")
        try:
            return answer.json()
        except ValueError as error:
            raise EngineError(
                f"what answers at {self.address} is no Ray dashboard: {quoted(answer.text[:200])}"
            ) from error


def _usual_address() -> str:
    """Return the address that Ray's own command would take."""
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        if os.environ.get(name, "").startswith(("http://", "https://")):
            return os.environ[name]
    return DEFAULT_ADDRESS


def _headers() -> dict[str, str]:
    """Return the headers that Ray's own command would send: a token, and what a proxy wants."""
    headers = {}
    token = os.environ.get("RAY_AUTH_TOKEN") or _token_file()
    if token:
        headers["Authorization"] = f"Bearer {token}"
    try:
        more = parse(os.environ.get("RAY_JOB_HEADERS") or "{}")
        return headers | {str(name): str(value) for name, value in more.items()}
    except (ValueError, AttributeError) as error:
        raise EngineError("RAY_JOB_HEADERS is no JSON object of headers") from error


def _token_file() -> str:
    try:
        path = os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
        return Path(path).read_text().strip()
    except (OSError, RuntimeError):
        return ""


def _cause(error: BaseException) -> str:
    """Return the innermost reason of an error of requests, which wraps it several times."""
    text = str(error)
    return quoted(text.rpartition(": ")[2].strip("()'\" ") or type(error).__name__)
