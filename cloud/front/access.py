"""Who may talk to the service: TLS with certificates that reload, client certificates, bearer tokens, loopback."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import ssl
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import grpc

from cloud.errors import BadConfiguration, Unauthenticated
from cloud.front.handlers import with_behaviour
from cloud.front.replies import abort
from thinwire.contract import is_loopback
from thinwire.files import read_file

log = logging.getLogger(__name__)

SEARCH = "/thinwire.v1.SearchService/"
OPEN_SERVICES = ("/grpc.health.v1.Health/",)  # probes carry no tokens, and health tells nothing else
MIN_TOKEN_CHARS = 16
MAX_FILE_BYTES = 1 << 20
CHECK_EVERY_S = 1.0


@dataclass(frozen=True)
class Security:
    """Who may call, and how much.

    certificate, key: PEM files of this server; both, or none for no TLS.
    client_ca: PEM file of the authorities whose client certificates are accepted (mTLS).
    token_file: one token a line; a call must carry one of them.
    operator_token_file: tokens that the SearchService requires.
    rate_per_s, burst: most images that one client may send, on average and at once.
    allow_plaintext: listen beyond loopback without TLS.
    """

    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    token_file: Path | None = None
    operator_token_file: Path | None = None
    rate_per_s: float | None = None
    burst: int | None = None
    allow_plaintext: bool = False

    @property
    def tls(self) -> bool:
        return self.certificate is not None

    def check(self, host: str) -> None:
        """Raises `BadConfiguration` for settings that contradict each other, unusable files, and open doors."""
        if (self.certificate is None) != (self.key is None):
            raise BadConfiguration("--tls-cert and --tls-key go together: give both, or none")
        if self.client_ca and not self.tls:
            raise BadConfiguration("--tls-client-ca asks clients for certificates: it needs --tls-cert and --tls-key")
        if not self.tls and not is_loopback(host) and not self.allow_plaintext:
            raise BadConfiguration(
                f"--host {host} without TLS would let anyone on the network read images and tokens: give --tls-cert "
                "and --tls-key, or --allow-plaintext where a proxy in front terminates TLS"
            )
        if self.tls:
            Certificates(self).read()
        for path in (self.token_file, self.operator_token_file):
            if path:
                Tokens(path)

    def operators_may_search(self, host: str) -> bool:
        """Whether the SearchService answers: to operators' tokens, and without any only where no other machine
        gets in and no tokens tell cameras from operators."""
        return self.operator_token_file is not None or (self.token_file is None and is_loopback(host))

    def credentials(self) -> grpc.ServerCredentials | None:
        """None without TLS. Certificates are read again when their files have changed. Raises `BadConfiguration`."""
        if not self.tls:
            return None
        files = Certificates(self)
        return grpc.dynamic_ssl_server_credentials(files.read(), files.changed, self.client_ca is not None)


class Certificates:
    """The server's certificate files. A new pair that does not fit, or cannot be read, leaves the old one in use."""

    def __init__(self, security: Security) -> None:
        self._security = security
        self._seen: tuple | None = None

    def read(self) -> grpc.ServerCertificateConfiguration:
        """The files as they are now. Raises `BadConfiguration`, which names the file and holds nothing of the key."""
        own = self._security
        self._seen = self._state()
        certificate, key = _read(own.certificate), _read(own.key)
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(own.certificate, own.key, password=_no_password)
        except (ssl.SSLError, ValueError, OSError) as error:
            cause = getattr(error, "reason", None) or error
            raise BadConfiguration(
                f"{own.certificate} and {own.key} are not a certificate and its key: {cause}"
            ) from None
        authorities = _read(own.client_ca) if own.client_ca else None
        if authorities is not None and b"-----BEGIN CERTIFICATE-----" not in authorities:
            raise BadConfiguration(f"{own.client_ca}: contains no PEM certificate")
        return grpc.ssl_server_certificate_configuration([(key, certificate)], root_certificates=authorities)

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """None where nothing changed; gRPC asks at every new connection."""
        try:
            if self._state() == self._seen:
                return None
            fresh = self.read()
        except BadConfiguration as error:
            log.error("the TLS files changed but cannot be used; the old ones stay in use: %s", error)
            return None
        log.warning("the TLS files changed: new connections get the new certificate")
        return fresh

    def _state(self) -> tuple:
        own = self._security
        return tuple(_state(path) for path in (own.certificate, own.key, own.client_ca) if path)


class Tokens:
    """The tokens of a file, one a line ('#' begins a comment). Only hashes stay in memory; the file is checked once a
    second, and a change that cannot be used leaves the old tokens valid. Thread-safe."""

    def __init__(self, path: Path) -> None:
        """Raises `BadConfiguration`, which never holds a token."""
        self._path = path
        self._lock = threading.Lock()
        self._seen, self._checked = _state(path), time.monotonic()
        self._hashes = self._read()

    def accepts(self, token: str) -> bool:
        self._read_if_changed()
        digest = hashlib.sha256(token.encode()).digest()
        # Every one is compared, in constant time: how long a refusal takes tells nothing.
        return sum(hmac.compare_digest(digest, known) for known in self._hashes) > 0

    def _read_if_changed(self) -> None:
        with self._lock:
            if time.monotonic() - self._checked < CHECK_EVERY_S:
                return
            self._checked = time.monotonic()
            try:
                state = _state(self._path)
                if state != self._seen:
                    self._seen = state
                    self._hashes = self._read()
                    log.warning("the token file changed: %d tokens are valid", len(self._hashes))
            except BadConfiguration as error:
                log.error("the token file changed and cannot be used, the old tokens stay valid: %s", error)

    def _read(self) -> list[bytes]:
        hashes = []
        lines = _read(self._path).decode("utf-8-sig", "replace").splitlines()
        for number, line in enumerate(lines, 1):
            token = line.partition("#")[0].strip()
            if not token:
                continue
            if len(token) < MIN_TOKEN_CHARS or not re.fullmatch(r"[\x21-\x7e]+", token):
                raise BadConfiguration(
                    f"{self._path}, line {number}: a token is {MIN_TOKEN_CHARS} or more printable ASCII characters "
                    "without spaces; make one with `openssl rand -hex 32`"
                )
            hashes.append(hashlib.sha256(token.encode()).digest())
        if not hashes:
            raise BadConfiguration(
                f"{self._path}: contains no tokens, so every call would be refused: write one a line"
            )
        return hashes


class BearerAuth(grpc.aio.ServerInterceptor):
    """Accepts calls whose `authorization: Bearer TOKEN` is known; health checks need none.

    tokens: for all calls; None accepts all.
    operators: for calls of the SearchService instead of `tokens`; None: `tokens` apply to them too.
    """

    def __init__(self, tokens: Tokens | None, operators: Tokens | None = None) -> None:
        self._tokens, self._operators = tokens, operators

    async def intercept_service(self, continuation, details: grpc.HandlerCallDetails):
        handler = await continuation(details)
        if handler is None or details.method.startswith(OPEN_SERVICES) or self._knows(details):
            return handler

        async def refuse(request, context: grpc.aio.ServicerContext) -> None:
            await abort(context, Unauthenticated("no valid token: send `authorization: Bearer TOKEN` with every call"))

        return with_behaviour(handler, lambda _: refuse)

    def _knows(self, details: grpc.HandlerCallDetails) -> bool:
        tokens = self._tokens
        if self._operators is not None and details.method.startswith(SEARCH):
            tokens = self._operators
        if tokens is None:
            return True
        for key, value in details.invocation_metadata or ():
            if key == "authorization":
                scheme, _, token = value.partition(" ")
                return scheme.lower() == "bearer" and tokens.accepts(token.strip())
        return False


def _read(path: Path) -> bytes:
    try:
        return read_file(path, MAX_FILE_BYTES)
    except OSError as error:
        raise BadConfiguration(f"{path}: cannot be read ({error.strerror or error})") from None


def _state(path: Path) -> tuple[int, int, int]:
    try:
        state = path.stat()
    except OSError as error:
        raise BadConfiguration(f"{path}: cannot be read ({error.strerror or error})") from None
    return state.st_mtime_ns, state.st_size, state.st_ino


def _no_password() -> str:
    raise ValueError("the key is encrypted: a server cannot ask for its password; decrypt it")
