"""Reads ranges of S3 objects by a plain client, where the environment alone names the store.

`s3fs` knows every way to be let in. It costs each process 0.5 s of a processor before its first
byte, and each request three times what a plain one costs: so much that a batch of pictures, or a
fast network, waits for the processor. So requests go through MinIO's client where it is installed
and two keys and a region or an endpoint are in the environment, with nothing beside them that might
say more: a profile, a file of settings, a proxy, settings of fsspec's. Where the store refuses it,
`s3fs` is asked from then on.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit
from urllib.request import getproxies

from pipeline.common.pictures.errors import first_line

KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")
# Other variables and files that may say how a store is reached.
ELSEWHERE = (
    "AWS_CONFIG_FILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
    "AWS_PROFILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_USE_DUALSTACK_ENDPOINT",
    "AWS_USE_FIPS_ENDPOINT",
)

# Codes of refusals: wrong keys, another region, a kind of request that the store does not know.
REFUSED = (
    "AccessDenied",
    "AuthorizationHeaderMalformed",
    "InvalidAccessKeyId",
    "InvalidRequest",
    "MethodNotAllowed",
    "NoSuchBucket",
    "NotImplemented",
    "PermanentRedirect",
    "Redirect",
    "SignatureDoesNotMatch",
    "TemporaryRedirect",
)

SECONDS_TO_CONNECT = 10.0


class NotLetInError(OSError):
    """The store refuses this client."""


class _NothingThereError(OSError):
    """The object has no bytes where some were asked for."""


class PlainS3:
    """Reads objects under one URL of S3. Of one process; its threads may share it."""

    def __init__(self, url: str, stall: float, connections: int) -> None:
        """Take an s3:// URL, and the seconds after which a silent connection is given up."""
        import urllib3
        from minio import Minio

        self.bucket, _, self.prefix = url.split("://", 1)[1].partition("/")
        endpoint = urlsplit(_said(ENDPOINTS) or "https://s3.amazonaws.com")
        http = urllib3.PoolManager(
            maxsize=connections,
            retries=False,
            timeout=urllib3.Timeout(connect=SECONDS_TO_CONNECT, read=stall),
            ca_certs=os.environ.get("AWS_CA_BUNDLE"),
        )
        self._client = Minio(
            endpoint.netloc,
            access_key=os.environ[KEYS[0]],
            secret_key=os.environ[KEYS[1]],
            session_token=os.environ.get("AWS_SESSION_TOKEN"),
            secure=endpoint.scheme == "https",
            region=_said(REGIONS) or "us-east-1",
            http_client=http,
        )

    def size(self, name: str) -> int:
        """Return an object's size in bytes.

        Raises:
            FileNotFoundError: there is no such object.
            NotLetInError: the store refuses this client, or sends it elsewhere.
            OSError: it does not answer, or not now.
        """
        # An answer that is cut within its headers looks whole, with a wrong size or none. One that
        # has a byte of the object behind its headers has all of them.
        try:
            answer = self._asked(self._client.get_object, name, offset=0, length=1)
        except _NothingThereError:
            return 0
        try:
            if len(answer.read(1)) != 1:
                raise OSError("the answer was cut")
            said = answer.headers.get("content-range") or answer.headers["content-length"]
            return int(said.rpartition("/")[2])
        finally:
            answer.close()
            answer.release_conn()

    def part(self, name: str, start: int, end: int) -> bytes:
        """Return the bytes `start` to `end` of an object, or fewer. Raises as `size`."""
        answer = self._asked(
            self._client.get_object, name, offset=start, length=max(end - start, 1)
        )
        try:
            return cast(bytes, answer.read())[: end - start]
        finally:
            answer.close()
            answer.release_conn()

    def _asked(self, call: Any, name: str, **options: int) -> Any:
        from minio.error import MinioException, S3Error

        path = f"{self.prefix}/{name}" if self.prefix else name
        try:
            return call(self.bucket, path, **options)
        except S3Error as error:
            if error.code in ("NoSuchKey", "NoSuchObject"):
                raise FileNotFoundError(name) from error
            if error.code == "InvalidRange":
                raise _NothingThereError(f"{error.code}: {error.message}") from error
            if error.code in REFUSED:
                raise NotLetInError(f"{error.code}: {error.message}") from error
            raise OSError(f"{error.code}: {error.message}") from error
        except MinioException as error:
            raise OSError(first_line(error)) from error


def serves(url: str) -> bool:
    """Whether this client may read what is under `url`."""
    if not url.startswith(("s3://", "s3a://")) or not all(map(os.environ.get, KEYS)):
        return False
    endpoint = urlsplit(_said(ENDPOINTS))
    if endpoint.path.strip("/") or not (endpoint.netloc or _said(REGIONS)):
        return False
    if _said(ELSEWHERE) or getproxies() or any(map(Path.is_file, _settings())):
        return False
    try:
        import minio  # noqa: F401 - whether it is there
        from fsspec.config import conf
    except ImportError:
        return False
    return not {"s3", "s3a"} & set(conf)


def _settings() -> list[Path]:
    try:
        folder = Path.home() / ".aws"
    except RuntimeError:  # nobody's home
        return []
    return [folder / "config", folder / "credentials"]


def _said(names: tuple[str, ...]) -> str:
    """Return the value of the first of these variables that has one."""
    return next((value for value in map(os.environ.get, names) if value), "")
