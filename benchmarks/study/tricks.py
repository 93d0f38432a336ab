"""What a cloud could do to a decoded picture before CLIP sees it: JPEG once more, a blur, another kernel to enlarge.

Every trick is tried on the same decoded pictures, so each ablation is paired image by image. Whether the decoder was
tuned on CLIP's cosine or not is an ablation of two bundles that share encoder and tables (one model id) and differ in
decoder.safetensors: give both to --families; the report finds such pairs among the rate-accuracy points.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageFilter

from benchmarks.codecs import peers as codecs
from benchmarks.data.sets import Dataset
from benchmarks.data.views import Views
from benchmarks.judges.metrics import pooled_cosine, zero_shot
from benchmarks.results.progress import progress_bar
from benchmarks.results.store import data_key, numbers
from benchmarks.study.coders import Coder, coder_key, measured_or_found, study_coders
from thinwire.errors import ThinwireError

if TYPE_CHECKING:
    from benchmarks.study.study import Study

NAME = "tricks"
PLAIN = "none"
PEER_POINTS = (("jpeg", 112, 20), ("jpeg", 56, 20), ("av1", 112, 35), ("av1", 56, 35))
IMAGES = {"quick": 60, "full": 500}
PROMPT_SET = "7"


def _rejpeg(quality: int) -> Callable[[np.ndarray], np.ndarray]:
    def again(picture: np.ndarray) -> np.ndarray:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=quality, subsampling="4:2:0")
        return np.asarray(Image.open(file).convert("RGB"))

    return again


def _blur(radius: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda picture: np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(radius)))


PICTURE_TRICKS = {
    "JPEG 90": _rejpeg(90),
    "JPEG 60": _rejpeg(60),
    "JPEG 30": _rejpeg(30),
    "blur 0.7 px": _blur(0.7),
}
"""Of every decoded picture, uint8 (H, W, 3) → the same."""

KERNELS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}
"""Instead of the server's bicubic, where a file is smaller than CLIP's view."""


def run_tricks(study: Study) -> tuple[int, int]:
    """Experiment `tricks`: (points there are, points measured). One point a codec setting, with all its tricks."""
    points = measured = 0
    limit = study.limit or IMAGES.get(study.preset.name)
    for data in study.datasets(limit):
        for clip in study.clips:
            told = _run_set(study, data, clip)
            points, measured = points + told[0], measured + told[1]
    return points, measured


def _run_set(study: Study, data: Dataset, clip: str) -> tuple[int, int]:
    judge = study.judge(clip)
    coders = [coder for coder in study_coders(study, clip, PEER_POINTS) if coder.gives_pixels]
    prompts = study.prompts(data)[PROMPT_SET]
    keys = [
        {
            **data_key(data),
            "seed": study.seed,
            "clip": judge.clip.id,
            "device": judge.clip.device,
            "tricks": [PLAIN, *PICTURE_TRICKS, *_kernels(coder)],
            "testbed": study.context["testbed"],
            **coder_key(coder.point),
        }
        for coder in coders
    ]
    sizes: dict[tuple[int, int], Views] = {}

    def measure(place: int) -> dict[str, Any]:
        return {
            "data": {"name": data.name, "sha256": data.sha256, "labels": list(data.labels)},
            "clip": judge.clip.id,
            "n": len(data.items),
            "targets": [item.target for item in data.items],
            **_measure(coders[place], data, sizes, judge.head(data.labels, prompts), progress.images),
        }

    with progress_bar(f"tricks, {data.name}, {clip}") as progress:
        return measured_or_found(study.store(NAME), keys, len(data.items), measure, progress)


def _measure(coder: Coder, data: Dataset, sizes: dict, head, tick: Callable[[int], object]) -> dict[str, Any]:
    judge = coder.judge
    views = sizes.setdefault(judge.view_size, Views(data, *judge.view_size))
    tricks = [PLAIN, *PICTURE_TRICKS, *_kernels(coder)]
    answers: dict[str, list[int | None]] = {trick: [None] * len(data.items) for trick in tricks}
    cosines: dict[str, list[float | None]] = {trick: [None] * len(data.items) for trick in tricks}
    sent: list[int | None] = [None] * len(data.items)
    failures = 0

    def view(index: int):
        return lambda size: sizes.setdefault(size, Views(data, *size))[index]

    for start in range(0, len(data.items), judge.batch):
        indices = []
        for index in range(start, min(start + judge.batch, len(data.items))):
            try:
                views[index]
                indices.append(index)
            except ThinwireError:
                failures += 1
        if indices:
            original = judge.embed([views[index] for index in indices]).embeddings
            bytes_sent, embeddings, pictures = coder.through([view(index) for index in indices])
            for index, size in zip(indices, bytes_sent):
                sent[index] = size
            seen = {PLAIN: embeddings}
            for trick, apply in PICTURE_TRICKS.items():
                seen[trick] = judge.embed([apply(picture) for picture in pictures]).embeddings
            for trick, kernel in _kernels(coder).items():
                seen[trick] = judge.embed([_enlarged(coder, views[index], kernel) for index in indices]).embeddings
            targets = [data.items[index].target for index in indices]
            for trick, vectors in seen.items():
                for index, answer, cosine in zip(
                    indices, zero_shot(head, vectors, targets), pooled_cosine(vectors, original)
                ):
                    answers[trick][index], cosines[trick][index] = answer.top[0], float(cosine)
        tick(min(judge.batch, len(data.items) - start))
    return {
        "bytes": sent,
        "answers": answers,
        "pooled_cosine": {trick: numbers(values, 6) for trick, values in cosines.items()},
        "failed": failures,
    }


def _kernels(coder: Coder) -> dict[str, Image.Resampling]:
    """Only a file that is smaller than the view is enlarged at all."""
    settings = coder.point.parameters
    size = (settings.get("height"), settings.get("width"))
    return KERNELS if coder.point.peer is not None and size != coder.judge.view_size else {}


def _enlarged(coder: Coder, view: np.ndarray, kernel: Image.Resampling) -> np.ndarray:
    peer, settings = coder.point.peer, coder.point.parameters
    data = codecs.encode(peer, view, settings["height"], settings["width"], settings[peer.dial])
    small = Image.fromarray(np.ascontiguousarray(codecs.decode(peer, data, *view.shape[:2])))
    return np.asarray(small.resize((view.shape[1], view.shape[0]), kernel))
