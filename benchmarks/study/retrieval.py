"""Retrieval with captions: text→image, image→text, image→image, text→text, originals against decoded images.

As in Karpathy and Fei-Fei 2015: every image has several captions, image→text counts the best of an image's own,
text→image asks with each caption for its image among all. Decoded images stand in the gallery (text→image) and as the
query (image→text, image→image, where the gallery holds originals and the answer is the image's own original). text→text
asks with a caption for another of the same image; no image is in it, so only the uncompressed point has it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.data.sets import Captions, DataError, load_captions
from benchmarks.results.progress import progress_bar
from benchmarks.study.coders import coder_key, measured_or_found, study_coders
from benchmarks.study.linear_probe import PEER_POINTS
from thinwire.errors import ThinwireError
from thinwire.imaging import canonical_view, open_image

if TYPE_CHECKING:
    from benchmarks.study.study import Study

NAME = "retrieval"
SET = "eval-flickr8k.tar"
LIMITS = {"quick": 150, "full": None}
RANKS = ("text_to_image", "image_to_text", "image_to_image", "text_to_text")


def run_retrieval(study: Study) -> tuple[int, int]:
    """Experiment `retrieval`: (points there are, points measured). Nothing where no caption set is given or found."""
    source = study.captions or study.data_dir / SET
    if not source.exists():
        if study.captions:
            raise DataError(f"{source}: no such caption set")
        return 0, 0
    data = load_captions(source, study.limit or LIMITS.get(study.preset.name), study.seed)
    points = measured = 0
    for clip in study.clips:
        told = _run_clip(study, data, clip)
        points, measured = points + told[0], measured + told[1]
    return points, measured


def _run_clip(study: Study, data: Captions, clip: str) -> tuple[int, int]:
    judge = study.judge(clip)
    coders = study_coders(study, clip, PEER_POINTS)
    keys = [
        {
            "data": data.name,
            "data_sha256": data.sha256,
            "n": len(data.items),
            "seed": study.seed,
            "clip": judge.clip.id,
            "device": judge.clip.device,
            "testbed": study.context["testbed"],
            **coder_key(coder.point),
        }
        for coder in coders
    ]
    images, kept, failures = [], [], []
    for item in data.items:
        try:
            images.append(open_image(data.read(item), item.name))
            kept.append(item)
        except ThinwireError as error:
            failures.append(str(error))
    texts = [caption for item in kept for caption in item.captions]
    owner = np.array([place for place, item in enumerate(kept) for _ in item.captions])
    made: dict[str, np.ndarray] = {}

    def view(place: int):
        return lambda size: canonical_view(images[place], *size)

    def vectors_of(coder) -> tuple[np.ndarray, list[int]]:
        vectors, sizes = [], []
        for start in range(0, len(kept), judge.batch):
            part = range(start, min(start + judge.batch, len(kept)))
            sent, seen, _ = coder.through([view(place) for place in part])
            vectors.append(seen)
            sizes += sent
            progress.images(len(part))
        return np.concatenate(vectors), sizes

    def measure(place: int) -> dict[str, Any]:
        if not made:
            made["texts"], made["images"] = judge.clip.encode_texts(texts), vectors_of(coders[0])[0]
        vectors, sizes = (made["images"], []) if place == 0 else vectors_of(coders[place])
        ranks = {
            "text_to_image": gallery_ranks(made["texts"] @ vectors.T, owner),
            "image_to_text": best_ranks(vectors @ made["texts"].T, owner),
            "image_to_image": None if place == 0 else gallery_ranks(vectors @ made["images"].T, np.arange(len(kept))),
            "text_to_text": text_ranks(made["texts"], owner) if place == 0 else None,
        }
        return {
            "data": {"name": data.name, "sha256": data.sha256},
            "clip": judge.clip.id,
            "n": len(kept),
            "captions": len(texts),
            "owner": owner.tolist(),
            "bytes": sizes,
            "ranks": {name: None if values is None else values.tolist() for name, values in ranks.items()},
            "failed": len(failures),
        }

    if not kept:
        raise DataError(f"{data.name}: none of its images can be read: {failures[0]}")
    with progress_bar(f"retrieval, {data.name}, {clip}") as progress:
        return measured_or_found(study.store(NAME), keys, len(kept), measure, progress)


def gallery_ranks(similarities: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """(Q, G) similarities, the right entry of each query (Q,) → its rank (Q,), 1 for the best; ties count against it.

    >>> gallery_ranks(np.array([[0.1, 0.9, 0.5], [0.7, 0.2, 0.7]]), np.array([2, 0])).tolist()
    [2, 2]
    """
    own = similarities[np.arange(len(similarities)), answers]
    return (similarities >= own[:, None]).sum(1)


def best_ranks(similarities: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """(I, T) similarities of images to texts, the image of each text (T,) → rank of each image's best own text (I,).

    Its other own texts do not stand in its way.

    >>> best_ranks(np.array([[0.9, 0.8, 0.1], [0.5, 0.6, 0.4]]), np.array([0, 0, 1])).tolist()
    [1, 3]
    """
    mine = owner == np.arange(len(similarities))[:, None]  # (I, T)
    best = np.where(mine, similarities, -np.inf).max(1, keepdims=True)
    return (~mine & (similarities >= best)).sum(1) + 1


def text_ranks(texts: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Unit vectors (T, D) → rank of the best other text of the same image (T,), the query itself left out.

    Texts alone of their image have no answer and are left out of the result.
    """
    similarities = texts @ texts.T
    np.fill_diagonal(similarities, -np.inf)
    mine = owner[:, None] == owner
    np.fill_diagonal(mine, False)
    asked = mine.any(1)
    best = np.where(mine, similarities, -np.inf).max(1, keepdims=True)
    return ((~mine & (similarities >= best)).sum(1) + 1)[asked]
