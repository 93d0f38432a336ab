"""The operating points of a rate-accuracy run: every rate of a bundle, every size x quality of a peer."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import PIL

from benchmarks.codecs import peers as codecs
from benchmarks.codecs.peers import Peer
from synthesis.decoder_identity import grain_hash
from thinwire.bundle import Bundle

if TYPE_CHECKING:
    from synthesis.adapter import Adapter

REFERENCE, FAMILY, PEER = "reference", "family", "peer"
UNCOMPRESSED = "uncompressed"
TOP_K = 5
NAMES = {
    "av1": "bare AV1",
    "webp": "bare WebP",
    "jpeg": "bare JPEG",
    "jxl": "bare JPEG XL",
    "avif": "AVIF file",
    "webp-file": "WebP file",
    "jpeg-file": "JPEG file",
    "jxl-file": "JPEG XL file",
    "jpeg2000": "JPEG 2000",
}


@dataclass(frozen=True, eq=False)
class Point:
    """One way of sending. `parameters` say all that its bytes depend on; they are part of the stored point's key."""

    kind: str
    codec: str
    rate: str | None
    parameters: dict[str, object]
    peer: Peer | None = None
    bundle: Bundle | None = None
    adapter: Adapter | None = None  # in the server's image tower


@dataclass(frozen=True)
class PeerGrid:
    """How finely peers are searched. `sides`: of a view of 224 pixels; `every`: each n-th value of a dial's ladder, or
    each n-th rung.

    fixed: of bare peers and their whole files the rungs of `rungs.json` alone, which were chosen on training
    photographs: what is best on the very pictures that are judged flatters a peer.
    """

    sides: tuple[int, ...] = codecs.SIDES
    every: int = 1
    fixed: bool = False


FIXED_RUNGS = PeerGrid(fixed=True)
FULL_GRID = PeerGrid()
QUICK_GRID = PeerGrid(every=3, fixed=True)


@functools.cache
def fixed_rungs() -> dict[str, list[tuple[int, float]]]:
    """(side of a 224-pixel view, value of the dial) of each peer, as `scripts/choose_rungs.py` chose them."""
    document = json.loads(Path(__file__).with_name("rungs.json").read_text(encoding="utf-8"))
    found = {name: [(rung["side"], rung["value"]) for rung in each["rungs"]] for name, each in document.items()}
    return found | {codecs.WHOLE[name]: rungs for name, rungs in found.items()}


def reference_point(height: int, width: int) -> Point:
    """The uncompressed view as a raw PNG."""
    return Point(REFERENCE, UNCOMPRESSED, None, {"height": height, "width": width, "encoder": "PNG"})


def family_points(bundle: Bundle, codec: str, adapter: Adapter | None = None) -> list[Point]:
    """One point for each rate; with an adapter, for each that it is for."""
    own = bundle_parameters(bundle)
    return [
        Point(
            FAMILY,
            codec,
            rate,
            {
                "layers": layers,
                "output": bundle.card.cloud["output"],
                "view": list(bundle.input_size),
                **own,
                **({} if adapter is None else {"adapter": adapter.digest}),
            },
            bundle=bundle,
            adapter=adapter,
        )
        for rate, layers in bundle.rates.items()
        if adapter is None or layers in adapter.layers
    ]


def peer_points(peer: Peer, height: int, width: int, grid: PeerGrid = FULL_GRID) -> list[Point]:
    """Size x setting of a codec, for views of height x width."""
    settings = [(side, value) for side in grid.sides for value in peer.ladder[:: grid.every]]
    if grid.fixed:
        settings = fixed_rungs()[peer.name][:: grid.every] if peer.name in fixed_rungs() else settings
    points = []
    for side, value in settings:
        ((h, w),) = codecs.sides(height, width, (side,))
        rate = f"{w}x{h} {peer.dial} {value:g}" if h != w else f"{w}px {peer.dial} {value:g}"
        parameters = {"side": min(h, w), "height": h, "width": w, peer.dial: value, "encoder": peer.version()}
        points.append(Point(PEER, peer.name, rate, parameters, peer=peer))
    return points


def codec_names(bundles: Sequence[Bundle]) -> list[str]:
    """Names of bundles, told apart where two share one."""
    names = [bundle.name for bundle in bundles]
    return [
        name if names.count(name) == 1 else f"{name}@{bundle.path.resolve().parent.name}/{bundle.path.resolve().name}"
        for name, bundle in zip(names, bundles)
    ]


def bundle_parameters(bundle: Bundle) -> dict[str, Any]:
    """What a bundle's figures depend on. The model id leaves encoder and decoder weights out: their hashes are here."""
    sections = (bundle.card.edge, bundle.card.cloud)
    files = {file: entry["sha256"] for section in sections for file, entry in section["files"].items()}
    grain = grain_hash(bundle)
    return {
        "model_id": bundle.model_id.hex(),
        "encoder": bundle.encoder_path().name if bundle.has_encoder else f"Pillow {PIL.__version__}",
        "files": files,
        **({} if grain is None else {"synthesis": grain}),
    }


def codec_title(codec: str) -> str:
    """A codec as people write it; a version (codec@version) stays behind it.

    >>> codec_title("jxl@1a2b3c")
    'JPEG XL@1a2b3c'
    """
    name, at, version = codec.partition("@")
    return NAMES.get(name, name) + at + version
