"""Which codecs take part: families and peers as a command line names them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from thinwire.errors import BundleError, MissingFile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.codecs.peers import Peer
    from thinwire.bundle import Bundle

PEERS_HELP = (
    "av1, webp, jpeg, jxl: bare forms, all of them by default; avif, webp-file, jpeg-file, jxl-file, jpeg2000: "
    'whole files; "" for none'
)
FAMILIES_HELP = "shipped bundles, bundle folders, embedding, or all: shipped, runs/*/bundle, embedding"


def parse_families(text: str, clip: str = "clip-lite") -> list[Bundle]:
    """Shipped bundles by name, folders, `all`, `embedding`; comma-separated → bundles, once each.

    `all`: every shipped bundle, every one that `thinwire-export train` left in runs/, and `embedding`. What `all` lacks
    (families without a bundle, bundles bound to another CLIP) is named on stderr with the command that makes it.
    `embedding` is the image tower of `clip` itself, too large to ship: it is made on first use (about a minute; needs
    photos-train) and kept in the cache. Raises `BundleError`.
    """
    from thinwire.bundle import load_bundle, resolve_bundle, shipped_bundles

    paths: list[Path] = []
    for name in _names(text):
        if name == "all":
            paths += _every_bundle(clip)
        elif name == "embedding" and name not in shipped_bundles():
            paths.append(_made_embedding(clip))
        else:
            paths.append(resolve_bundle(name))
    return [load_bundle(path) for path in dict.fromkeys(path.resolve() for path in paths)]


def default_families(clips: Sequence[str]) -> list[Bundle]:
    """Every bundle that works with one of the CLIPs, each once."""
    found = {bundle.path: bundle for clip in clips for bundle in parse_families("all", clip)}
    return list(found.values())


RUNS = Path("runs")
"""Where `thinwire-export train FAMILY` writes unless told otherwise: RUN/bundle of each."""


def local_bundles(runs: Path = RUNS) -> list[Path]:
    """The folders of bundles that were trained here, sorted."""
    return sorted(card.parent for card in runs.glob("*/bundle/card.json"))


def _every_bundle(clip: str) -> list[Path]:
    from thinwire.bundle import load_bundle, shipped_bundles

    paths, lacking = [], {}
    for path in [*shipped_bundles().values(), *local_bundles()]:
        bundle = load_bundle(path)
        bound = (bundle.card.cloud["clip"] or "").partition("#")[0]
        if bound and bound != Path(clip).name:
            lacking[bundle.name] = f"{path} works with {bound} only: --clip {bound}"
        else:
            paths.append(path)
    present = {load_bundle(path).card.wire["family"] for path in paths}
    if "embedding" not in present:
        try:
            paths.append(_made_embedding(clip))
        except BundleError as error:
            lacking["embedding"] = str(error)
    for family in sorted(_trainable() - present - set(lacking)):
        lacking[family] = f"has no bundle: `thinwire-export train {family} --preset cpu --minutes 10` makes one"
    for name, reason in lacking.items():
        print(f"all bundles, without {name}: {reason}", file=sys.stderr)
    return paths


def _trainable() -> set[str]:
    """Names of the families that `thinwire-export train` knows; none where the extra `export` is not installed."""
    try:
        from export.families import FAMILIES
    except ModuleNotFoundError:
        return set()
    return set(FAMILIES)


def _made_embedding(clip: str) -> Path:
    made = f"`thinwire-export embedding --clip {clip} --images SOURCE --out runs/embedding/bundle` makes one"
    try:
        from export.embedding_bundle import cached_embedding_bundle
        from export.photographs.errors import PhotographsError
        from export.photos import default_source
    except ModuleNotFoundError as error:
        raise MissingFile(f"family embedding of {clip}: {error}: `pip install 'thinwire[export]'`") from error
    try:
        return cached_embedding_bundle(clip)
    except PhotographsError as error:  # its own text names options of commands that train
        raise MissingFile(
            f"family embedding of {clip} is made from photographs, and no {default_source()} is here: {made}"
        ) from error
    except (ValueError, RuntimeError, OSError, ModuleNotFoundError) as error:  # of open_clip too: absent models
        raise MissingFile(f"family embedding of {clip}: {error}: {made}") from error


def parse_peers(text: str) -> list[Peer]:
    """Names of peers, comma-separated, or `all`: the bare forms. Raises `UnknownPeer`."""
    from benchmarks.codecs.peers import BARE, PEERS, UnknownPeer

    names = [each for name in _names(text.lower()) for each in (BARE if name == "all" else [name])]
    for name in names:
        if name not in PEERS:
            raise UnknownPeer(f"--peers: {name!r} is unknown: use any of {', '.join(PEERS)}")
    return [PEERS[name] for name in dict.fromkeys(names)]


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
