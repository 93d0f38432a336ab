"""Which codecs take part: families and peers as a command line names them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.peers import Peer
    from thinwire.bundle import Bundle


def parse_families(text: str) -> list[Bundle]:
    """Names of shipped bundles, bundle folders or `all`, comma-separated → bundles, each once. Raises `BundleError`."""
    from thinwire.bundle import load_bundle, resolve_bundle, shipped_bundles

    paths = [
        path
        for name in _names(text)
        for path in (shipped_bundles().values() if name == "all" else [resolve_bundle(name)])
    ]
    return [load_bundle(path) for path in dict.fromkeys(path.resolve() for path in paths)]


def parse_peers(text: str) -> list[Peer]:
    """Names of peers or `all`, comma-separated. Raises `UnknownPeer`."""
    from benchmarks.peers import PEERS, UnknownPeer

    names = [each for name in _names(text.lower()) for each in (PEERS if name == "all" else [name])]
    for name in names:
        if name not in PEERS:
            raise UnknownPeer(f"--peers: {name!r} is unknown: use any of {', '.join(PEERS)}")
    return [PEERS[name] for name in dict.fromkeys(names)]


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
