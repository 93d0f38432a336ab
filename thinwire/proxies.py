"""Which proxy a connection goes through. One rule for every client: gRPC, webhooks, snapshots, downloads, streams.

The rule: this machine is never asked for through a proxy; then `no_proxy` decides (names with their sub-domains,
addresses, networks such as 10.0.0.0/8, `*`), then the variable of the protocol (`http_proxy`, `https_proxy`, for gRPC
also `grpc_proxy`), in small letters or capitals.
"""

from __future__ import annotations

import ipaddress
import urllib.parse
import urllib.request

GRPC_VARIABLES = ("grpc", "https", "http")  # in the order in which gRPC itself looks


def is_local(host: str) -> bool:
    """Whether a host is this machine: localhost and its sub-domains, 127.0.0.0/8, ::1, and addresses of "any".

    >>> is_local("localhost"), is_local("127.0.0.2"), is_local("[::1]"), is_local("10.0.0.1"), is_local("localhost.org")
    (True, True, True, False, False)
    """
    name = host.strip("[]").partition("%")[0].rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return any(each.is_loopback or each.is_unspecified for each in (address, mapped) if each is not None)


def proxy_for(scheme: str, host: str, port: int | None = None) -> str | None:
    """The proxy's address for a connection by `scheme` (http, https, grpc); None: go there directly."""
    if is_local(host) or _excepted(host, port):
        return None
    proxies = urllib.request.getproxies()
    names = GRPC_VARIABLES if scheme == "grpc" else (scheme,)
    return next((proxies[name] for name in names if proxies.get(name)), None)


def proxy_of(url: str) -> str | None:
    """As `proxy_for`, of an address."""
    parts = urllib.parse.urlsplit(url)
    return proxy_for(parts.scheme, parts.hostname or "", parts.port)


def _excepted(host: str, port: int | None) -> bool:
    name = host.strip("[]").rstrip(".").lower()
    proxies = urllib.request.getproxies_environment()
    for entry in proxies.get("no", "").lower().replace(",", " ").split():
        if entry == "*":
            return True
        wanted, _, wanted_port = entry.rpartition(":")
        if wanted and wanted_port.isdecimal() and ":" not in wanted.strip("[]"):
            if port is not None and int(wanted_port) != port:
                continue
            entry = wanted
        try:
            if ipaddress.ip_address(name) in ipaddress.ip_network(entry.strip("[]"), strict=False):
                return True
        except ValueError:  # a name, or a name against a network
            plain = entry.lstrip("*").lstrip(".")
            if plain and (name == plain or name.endswith(f".{plain}")):
                return True
    return False
