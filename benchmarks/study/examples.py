"""The strip of photographs: original, every rate of every family, and peers within the same bytes, with their labels.

The photographs come from the scikit-image wheel and may be redistributed: the pictures lie in the results themselves.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from benchmarks.codecs import peers as codecs
from benchmarks.codecs.grid import FAMILY, PEER, REFERENCE, codec_names, family_points, peer_points
from benchmarks.codecs.peers import PEERS
from benchmarks.data.photos import LABELS, Photo, wheel_photos
from benchmarks.judges.judge import Judge, Synthesis
from benchmarks.judges.metrics import psnr_db
from cloud.errors import ClipMismatch
from cloud.networks.runtime import check_clip
from edge.encoder import Encoder
from thinwire.imaging import canonical_view, open_image
from thinwire.labels import resolve_templates

if TYPE_CHECKING:
    from benchmarks.study.study import Study
    from thinwire.bundle import Bundle

NAME = "examples"
PHOTOS = 12
RIVALS = ("av1",)
PROMPT_SET = "7"


def run_examples(study: Study) -> tuple[int, int]:
    """One point a photograph, with the answers of every CLIP of the study. Returns (points, measured)."""
    store = study.store(NAME)
    photos = wheel_photos()[:PHOTOS]
    judges = {clip: study.judge(clip) for clip in study.clips}
    servable = {clip: study.families_of(clip) for clip in judges}
    families = [bundle for bundle in study.families if any(bundle in served for served in servable.values())]
    names = codec_names(families)
    grid = [point.parameters for bundle, name in zip(families, names) for point in family_points(bundle, name)]
    coders: list[_Coder] | None = None
    measured = 0
    for photo in photos:
        key = {
            "photo": photo.name,
            "photo_sha256": hashlib.sha256(photo.data).hexdigest(),
            "clips": [judge.clip.id for judge in judges.values()],
            "families": grid,
            "peers": [PEERS[name].version() for name in RIVALS],
            "labels": list(LABELS),
            "testbed": study.context["testbed"],
        }
        if store.load(key) is None:
            coders = coders or [_Coder.of(name, bundle, judges) for name, bundle in zip(names, families)]
            started = time.monotonic()
            shown = list(_Strip(photo, judges).shown(coders))
            content = {"photo": photo.name, "label": photo.label, "shown": shown, "labels": list(LABELS)}
            store.save(key, content, time.monotonic() - started)
            measured += 1
    return len(photos), measured


@dataclass(frozen=True)
class _Coder:
    """A family's encoder, and its decoder before each CLIP that can serve it (some decode into one CLIP's vectors)."""

    name: str
    encoder: Encoder
    decoders: Mapping[str, Synthesis]

    @classmethod
    def of(cls, name: str, bundle: Bundle, judges: Mapping[str, Judge]) -> _Coder:
        decoders = {}
        for clip, judge in judges.items():
            with contextlib.suppress(ClipMismatch):
                check_clip(bundle, judge.clip)
                decoders[clip] = Synthesis(bundle, judge)
        return cls(name, Encoder(bundle), decoders)


class _Strip:
    """One photograph, each way in which it can be sent, and what each CLIP says of what arrives."""

    def __init__(self, photo: Photo, judges: Mapping[str, Judge]) -> None:
        self._photo, self._judges = photo, judges
        self._heads = {name: judge.head(LABELS, resolve_templates(PROMPT_SET)) for name, judge in judges.items()}
        self._image = open_image(photo.data, photo.name)

    def shown(self, coders: Sequence[_Coder]) -> Iterator[dict[str, object]]:
        """The original; each family's rates; each rival's best picture within the bytes of each middle rate."""
        first = next(iter(self._judges.values()))
        view = canonical_view(self._image, *first.view_size)
        yield self._entry(REFERENCE, "original", None, len(self._photo.data), picture=view)
        budgets = []
        for coder in coders:
            bundle = coder.encoder.bundle
            for place, rate in enumerate(bundle.rates):
                packet = coder.encoder.encode(bundle.view(self._image), rate).packet.to_bytes()
                seen = {clip: decoder.embed_packets([packet]) for clip, decoder in coder.decoders.items()}
                vectors = {clip: features.embeddings for clip, (features, _) in seen.items()}
                pictures = next(iter(seen.values()))[1]
                picture = None if pictures is None else pictures[0]
                yield self._entry(FAMILY, coder.name, rate, len(packet), vectors, picture)
                if picture is not None and place == (len(bundle.rates) - 1) // 2:
                    budgets.append((coder.name, len(packet)))
        for rival in RIVALS:
            tried = _tried(rival, view)
            for name, budget in budgets or [("", 500)]:
                rate, size, picture = _within(rival, view, tried, budget)
                yield {**self._entry(PEER, rival, rate, size, picture=picture), "beside": name}

    def _entry(
        self,
        kind: str,
        codec: str,
        rate: str | None,
        size: int,
        vectors: Mapping[str, np.ndarray] | None = None,
        picture: np.ndarray | None = None,
    ) -> dict[str, object]:
        """vectors: of each CLIP, (1, D); None: each is shown the picture."""
        if vectors is None:
            vectors = {clip: judge.embed([_sized(picture, judge)]).embeddings for clip, judge in self._judges.items()}
        answers = [self._answer(clip, vector) for clip, vector in vectors.items()]
        uri = None if picture is None else _data_uri(picture)
        return {"kind": kind, "codec": codec, "rate": rate, "bytes": size, "answers": answers, "picture": uri}

    def _answer(self, clip: str, vector: np.ndarray) -> dict[str, object]:
        head = self._heads[clip]
        similarities = head.similarities(vector)
        best = int(similarities.argmax())
        return {
            "clip": self._judges[clip].clip.id,
            "label": LABELS[best],
            "probability": round(float(head.probabilities(similarities)[0, best]), 4),
            "right": LABELS[best] == self._photo.label,
        }


def _sized(picture: np.ndarray, judge: Judge) -> np.ndarray:
    """As the service enlarges a decoded picture for a CLIP that wants more pixels."""
    if picture.shape[:2] == tuple(judge.view_size):
        return picture
    return canonical_view(np.ascontiguousarray(picture), *judge.view_size)


def _tried(name: str, view: np.ndarray) -> list[tuple[str, bytes]]:
    """A peer's data at all sizes and settings."""
    tried = []
    for point in peer_points(PEERS[name], *view.shape[:2]):
        settings = point.parameters
        data = codecs.encode(point.peer, view, settings["height"], settings["width"], settings[point.peer.dial])
        tried.append((point.rate, data))
    return tried


def _within(name: str, view: np.ndarray, tried: list[tuple[str, bytes]], budget: int) -> tuple[str, int, np.ndarray]:
    """The picture of a peer with the highest PSNR among those within a budget; else its smallest."""
    within = [each for each in tried if len(each[1]) <= budget] or [min(tried, key=lambda each: len(each[1]))]
    pictures = [(rate, len(data), codecs.restore(PEERS[name], data, *view.shape[:2])) for rate, data in within]
    return max(pictures, key=lambda each: psnr_db(view, each[2]))


def _data_uri(picture: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "WEBP", quality=88, method=6)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
