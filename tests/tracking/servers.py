"""Real MLflow servers on loopback, in process groups of their own."""

from __future__ import annotations

import datetime
import ipaddress
import os
import signal
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.patience import patience


class Server:
    """A command that answers on a port; killed with all its workers."""

    def __init__(
        self, words: Sequence[str], folder: Path, health: str, env: Mapping[str, str] | None = None
    ) -> None:
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._words = [sys.executable, "-m", "mlflow", *words, "--port", str(self.port)]
        self._folder = folder
        self._health = health
        # Its job runners are for other work, and slow to start.
        without = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self._env = {**os.environ, **without, **(env or {})}
        self.log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.launch()
        end = time.monotonic() + patience(300)
        while not self.answers():
            if not self.runs or time.monotonic() > end:
                self.kill()
                raise AssertionError(self.log.read_text()[-2000:])
            time.sleep(0.5)

    def launch(self) -> int:
        """Start the command; return its process's id. It answers some seconds later."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._words,
                cwd=self._folder,
                env=self._env,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self._process.pid

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self, sign: int = signal.SIGKILL) -> None:
        """Kill the server and its workers, which are in its process group."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, sign)
            self._process.wait(patience(60))

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}{self._health}", timeout=5) as answer:
                return int(answer.status) == 200
        except (urllib.error.URLError, OSError):
            return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def with_tls(server: Server, folder: Path) -> Iterator[tuple[str, Path]]:
    """Stand before `server` with TLS, as a proxy does; yields the address and its certificate."""
    certificate = _certificate(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, folder / "key.pem")

    class Passing(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with (
                context.wrap_socket(self.request, server_side=True) as outside,
                socket.create_connection(("127.0.0.1", server.port)) as inside,
            ):
                back = threading.Thread(target=_pass_on, args=(inside, outside), daemon=True)
                back.start()
                _pass_on(outside, inside)
                back.join()

    class Front(socketserver.ThreadingTCPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """Say nothing of a client that does not trust the certificate."""

    with Front(("127.0.0.1", 0), Passing) as front:
        threading.Thread(target=front.serve_forever, daemon=True).start()
        yield f"https://127.0.0.1:{front.server_address[1]}", certificate
        front.shutdown()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return


def _certificate(folder: Path) -> Path:
    """Write a key and a certificate of its own for 127.0.0.1; return the certificate."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tracking.test")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (folder / "key.pem").write_bytes(private)
    path = folder / "certificate.pem"
    path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    return path
