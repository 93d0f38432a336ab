"""The strip of photographs: original, every rate of every family, and peers within the same bytes, with their labels.

The photographs come from the scikit-image wheel and may be redistributed: the pictures lie in the results themselves.
"""

from __future__ import annotations

import base64
import hashlib
import io
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from benchmarks.codecs import peers as codecs
from benchmarks.codecs.grid import FAMILY, PEER, REFERENCE, codec_names, family_points, peer_points
from benchmarks.codecs.peers import PEERS
from benchmarks.data.photos import LABELS, Photo, wheel_photos
from benchmarks.judges.judge import Judge, Synthesis
from benchmarks.judges.metrics import psnr_db
from edge.encoder import Encoder
from thinwire.imaging import canonical_view, open_image
from thinwire.labels import resolve_templates

if TYPE_CHECKING:
    from benchmarks.study.study import Study

NAME = "examples"
PHOTOS = ("astronaut.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
RIVALS = ("av1", "jxl", "jpeg")
PROMPT_SET = "7"


def run_examples(study: Study) -> tuple[int, int]:
    """One point a photograph and CLIP. Returns (points, measured)."""
    store = study.store(NAME)
    points = measured = 0
    photos = [photo for photo in wheel_photos() if photo.name in PHOTOS]
    for clip in study.clips:
        judge, families = study.judge(clip), study.families_of(clip)
        grid = [
            point.parameters for b, name in zip(families, codec_names(families)) for point in family_points(b, name)
        ]
        coders = None
        for photo in photos:
            key = {
                "photo": photo.name,
                "photo_sha256": hashlib.sha256(photo.data).hexdigest(),
                "clip": judge.clip.id,
                "families": grid,
                "peers": [PEERS[name].version() for name in RIVALS],
                "labels": list(LABELS),
                "testbed": study.context["testbed"],
            }
            points += 1
            if store.load(key) is None:
                coders = coders or [(Encoder(bundle), Synthesis(bundle, judge)) for bundle in families]
                started = time.monotonic()
                shown = list(_shown(photo, judge, coders, codec_names(families)))
                content = {"photo": photo.name, "label": photo.label, "clip": judge.clip.id, "shown": shown}
                store.save(key, {**content, "labels": list(LABELS)}, time.monotonic() - started)
                measured += 1
    return points, measured


def _shown(
    photo: Photo, judge: Judge, coders: list[tuple[Encoder, Synthesis]], names: list[str]
) -> Iterator[dict[str, object]]:
    """The original, what each rate makes of it, and each rival's best picture within the first family's middle rate."""
    head = judge.head(LABELS, resolve_templates(PROMPT_SET))
    image = open_image(photo.data, photo.name)
    view = canonical_view(image, *judge.view_size)

    def entry(kind: str, codec: str, rate: str | None, size: int, embedding: np.ndarray, picture: np.ndarray | None):
        similarities = head.similarities(embedding)
        best = int(similarities.argmax())
        probability = float(head.probabilities(similarities)[0, best])
        picture_uri = None if picture is None else _data_uri(picture)
        answer = {"label": LABELS[best], "probability": round(probability, 4), "right": LABELS[best] == photo.label}
        return {"kind": kind, "codec": codec, "rate": rate, "bytes": size, **answer, "picture": picture_uri}

    yield entry(REFERENCE, "original", None, len(photo.data), judge.embed([view]).embeddings, view)
    budget = 0
    for (encoder, decoder), name in zip(coders, names):
        for place, rate in enumerate(encoder.bundle.rates):
            packet = encoder.encode(encoder.bundle.view(image), rate).packet.to_bytes()
            seen, pictures = decoder.embed_packets([packet])
            if decoder.gives_pixels and place == (len(encoder.bundle.rates) - 1) // 2:
                budget = budget or len(packet)
            picture = None if pictures is None else pictures[0]
            yield entry(FAMILY, name, rate, len(packet), seen.embeddings, picture)
    for name in RIVALS:
        rate, size, picture = _within(name, view, budget or 500)
        yield entry(PEER, name, rate, size, judge.embed([picture]).embeddings, picture)


def _within(name: str, view: np.ndarray, budget: int) -> tuple[str, int, np.ndarray]:
    """The picture of a peer with the highest PSNR among all sizes and settings within a budget; else its smallest."""
    tried = []
    for point in peer_points(PEERS[name], *view.shape[:2]):
        settings = point.parameters
        data = codecs.encode(point.peer, view, settings["height"], settings["width"], settings[point.peer.dial])
        tried.append((point.rate, len(data), data))
    within = [each for each in tried if each[1] <= budget] or [min(tried, key=lambda each: each[1])]
    pictures = [(rate, size, codecs.restore(PEERS[name], data, *view.shape[:2])) for rate, size, data in within]
    return max(pictures, key=lambda each: psnr_db(view, each[2]))


def _data_uri(picture: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "WEBP", quality=88, method=6)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
