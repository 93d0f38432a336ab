"""Which codecs take part: families and peers as a command line names them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from thinwire.errors import MissingFile

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.peers import Peer
    from thinwire.bundle import Bundle


def parse_families(text: str, clip: str = "clip-lite") -> list[Bundle]:
    """Shipped bundles by name, folders, `all` that are shipped, `embedding`; comma-separated → bundles, once each.

    `embedding` is the image tower of `clip` itself, too large to ship: it is made on first use (about a minute; needs
    photos-train) and kept in the cache. Raises `BundleError`.
    """
    from thinwire.bundle import load_bundle, resolve_bundle, shipped_bundles

    paths: list[Path] = []
    for name in _names(text):
        if name == "all":
            paths += shipped_bundles().values()
        elif name == "embedding" and name not in shipped_bundles():
            paths.append(_made_embedding(clip))
        else:
            paths.append(resolve_bundle(name))
    return [load_bundle(path) for path in dict.fromkeys(path.resolve() for path in paths)]


def default_families(clips: Sequence[str]) -> list[Bundle]:
    """All shipped bundles, and family embedding of each CLIP. One that cannot be made here is left out, and named."""
    found = parse_families("all")
    for clip in clips:
        try:
            found += parse_families("embedding", clip)
        except MissingFile as error:
            print(f"left out: {error}", file=sys.stderr)
    return found


def _made_embedding(clip: str) -> Path:
    from export.bundles import cached_embedding_bundle

    try:
        return cached_embedding_bundle(clip)
    except (ValueError, RuntimeError, OSError) as error:  # what open_clip raises for absent models and weights
        raise MissingFile(f"family embedding of {clip}: {error}") from error


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
