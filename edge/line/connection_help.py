"""Why a connection failed, from gRPC's words: the one place that knows them, and the fix for each."""

from __future__ import annotations

import os
import re
from importlib.resources import files

from thinwire.text import shown_address

START = "start one with `thinwire-cloud serve`, or name another with --server HOST:PORT"

# First match wins. {who}: the address. Texts are those of gRPC 1.80 to 1.82; what none matches gets the last line.
_ENCRYPTED = (
    ("expired|not yet valid", "renew the server's certificate, or set this device's clock (`date` tells it)"),
    (
        "not in peer certificate|hostname verification|host ?name mismatch",
        "the server's certificate is of another name: write the name that it was made for in --server, or make one for "
        "{who}",
    ),
    (
        "WRONG_VERSION_NUMBER|HTTP_REQUEST",
        "no TLS is spoken there: leave out --tls, --tls-ca and --tls-cert, or start the server with --tls-cert",
    ),
    (
        "CERTIFICATE_REQUIRED|BAD_CERTIFICATE|CERTIFICATE_UNKNOWN|UNKNOWN_CA|HANDSHAKE_FAILURE",
        "the server wants a client certificate of its authority: give one with --tls-cert and --tls-key",
    ),
    (
        "CERTIFICATE_VERIFY_FAILED|self.signed|unable to get (?:local )?issuer",
        "give the authority that signed the server's certificate with --tls-ca (without it the authorities that gRPC "
        "ships are trusted, not this machine's)",
    ),
    (
        "Socket closed|Connection reset|handshake|SSL|TLS",
        "the server ended the handshake: check that both ends use TLS, and that it accepts this client's certificate",
    ),
)
_ANYWAY = (
    ("Connection refused", START),
    (
        "Expected SETTINGS frame|http1|parsing HTTP/2|HTTP proxy",
        "something else listens there, not a thinwire server: check the port in --server",
    ),
    ("resolv|lookup|Name or service|DNS", "the name is not known here: check --server and this machine's DNS"),
    (
        "No route|unreachable|Network is",
        "there is no way to that network: check the link, the address and the firewalls",
    ),
    (
        "Socket closed|Connection reset|Broken pipe|EOF|GOAWAY|Endpoint",
        "what listens there ends the connection: where it is a server with TLS, give --tls or --tls-ca; else check the "
        "port in --server",
    ),
    ("timed? ?out|Timeout|FD Shutdown", "check the address and the firewalls on the way"),
)


def connection_fix(details: str, who: str, encrypted: bool, proxy: str | None = None) -> str:
    """What to do about a connection that failed with gRPC's `details`. proxy: what the connection goes through."""
    if proxy is not None and re.search(
        "refused|HTTP proxy|lookup|resolv|Name or service|407|Proxy", details, re.IGNORECASE
    ):
        return (
            f"the connection goes through the proxy {shown_address(proxy)} of grpc_proxy, https_proxy or http_proxy, "
            f"which does not take it: set no_proxy={who.rpartition(':')[0]} to go there directly"
        )
    for pattern, fix in (*(_ENCRYPTED if encrypted else ()), *_ANYWAY):
        if re.search(pattern, details, re.IGNORECASE):
            return fix.format(who=who)
    return "check the address, the link and the server, or name another with --server HOST:PORT"


def trusted_authorities() -> str:
    """The PEM text of the authorities that gRPC trusts where no file is named: those it ships, or its variable's."""
    path = os.environ.get("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH")
    if path:
        with open(path, encoding="utf-8") as file:
            return file.read()
    return files("grpc").joinpath("_cython/_credentials/roots.pem").read_text(encoding="utf-8")
