"""Linear probes: a logistic regression on CLIP's vectors, trained on originals or on what a codec leaves of them.

The probe of Radford et al. 2021 (section 3.2) in small: half of the images of each class train, the other half tests;
scikit-learn's LogisticRegression on unit vectors, C chosen among `STRENGTHS` by 3-fold cross-validation on originals.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.data.sets import Dataset, find_datasets, load_dataset
from benchmarks.data.views import Views
from benchmarks.results.progress import progress_bar
from benchmarks.results.store import data_key
from benchmarks.study.coders import coder_key, measured_or_found, study_coders
from thinwire.errors import ThinwireError

if TYPE_CHECKING:
    from benchmarks.study.coders import Coder
    from benchmarks.study.study import Study

NAME = "linear-probe"
SETS = ("eval-imagenette", "eval-scenes")
"""Few classes of many images each: half of 100 images in 100 classes would train nothing."""

LIMITS = {"quick": 200, "full": None}
PEER_POINTS = (("jpeg", 224, 20), ("jpeg", 112, 20), ("jpeg", 56, 20), ("av1", 112, 35))
STRENGTHS = (1.0, 10.0, 100.0, 1000.0)


def run_linear_probe(study: Study) -> tuple[int, int]:
    """Experiment `linear-probe`: (points there are, points measured)."""
    points = measured = 0
    for data in probe_sets(study):
        for clip in study.clips:
            told = _run_set(study, data, clip)
            points, measured = points + told[0], measured + told[1]
    return points, measured


def probe_sets(study: Study) -> list[Dataset]:
    """Those of `SETS` that are there; of another folder every set with at least four images a class."""
    found = find_datasets(study.data_dir)
    limit = study.limit or LIMITS.get(study.preset.name)
    names = [name for name in SETS if name in found] if not study.packs else list(study.packs)
    if not names:
        names = list(found)
    sets = [load_dataset(found[name], limit, study.seed) for name in names]
    kept = [data for data in sets if len(data.items) >= 4 * len({item.target for item in data.items})]
    if not kept:
        print("linear-probe: left out, no set has four images a class; raise --limit", file=sys.stderr)
    return kept


def _run_set(study: Study, data: Dataset, clip: str) -> tuple[int, int]:
    judge = study.judge(clip)
    coders = study_coders(study, clip, PEER_POINTS)
    store = study.store(NAME)
    keys = [
        {
            **data_key(data),
            "seed": study.seed,
            "clip": judge.clip.id,
            "device": judge.clip.device,
            "probe": {"strengths": list(STRENGTHS), "sklearn": _version()},
            "testbed": study.context["testbed"],
            **coder_key(coder.point),
        }
        for coder in coders
    ]
    sizes: dict[tuple[int, int], Views] = {}

    def view(index: int):
        def of(size: tuple[int, int]) -> np.ndarray:
            return sizes.setdefault(size, Views(data, *size))[index]

        return of

    readable = _readable(data, judge.view_size, sizes)
    train, test = split([data.items[index].target for index in readable], study.seed)
    train, test = [readable[place] for place in train], [readable[place] for place in test]
    originals: dict[str, tuple[np.ndarray, float]] = {}

    def measure(place: int) -> dict[str, Any]:
        if not originals:
            vectors, _ = vectors_of(coders[0], [*train, *test], view, progress)
            originals["all"] = vectors, choose_strength(vectors[: len(train)], _targets(data, train), study.seed)
        plain, strength = originals["all"]
        if place == 0:
            vectors, sizes_sent = plain, []
        else:
            vectors, sizes_sent = vectors_of(coders[place], [*train, *test], view, progress)
        told = {}
        for name, trained_on in (("originals", plain), ("decoded", vectors)):
            told[name] = probe(trained_on[: len(train)], _targets(data, train), vectors[len(train) :], strength)
        return {
            "data": {"name": data.name, "sha256": data.sha256, "labels": list(data.labels)},
            "clip": judge.clip.id,
            "n": len(test),
            "n_train": len(train),
            "strength": strength,
            "targets": _targets(data, test),
            "predictions": told,
            "bytes": sizes_sent,
            "failed": len(data.items) - len(readable),
        }

    with progress_bar(f"linear-probe, {data.name}, {clip}") as progress:
        return measured_or_found(store, keys, len(readable), measure, progress)


def split(targets: Sequence[int], seed: int) -> tuple[list[int], list[int]]:
    """Places of the training and of the test images: half of each class, the odd one tests."""
    rng = np.random.default_rng(seed)
    train: list[int] = []
    for target in sorted(set(targets)):
        own = [place for place, each in enumerate(targets) if each == target]
        train += sorted(int(place) for place in rng.permutation(own)[: len(own) // 2])
    return train, [place for place in range(len(targets)) if place not in set(train)]


def choose_strength(vectors: np.ndarray, targets: Sequence[int], seed: int) -> float:
    """The C of `STRENGTHS` with the best 3-fold cross-validated accuracy; the smallest where a class is too small."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    if min(np.bincount(targets)[np.unique(targets)]) < 3:
        return STRENGTHS[0]
    folds = StratifiedKFold(3, shuffle=True, random_state=seed)
    scores = [
        cross_val_score(LogisticRegression(C=each, max_iter=1000), vectors, targets, cv=folds).mean()
        for each in STRENGTHS
    ]
    return STRENGTHS[int(np.argmax(scores))]


def probe(vectors: np.ndarray, targets: Sequence[int], tested: np.ndarray, strength: float) -> list[int]:
    """Trains on unit vectors (N, D) and returns the labels given to `tested` (M, D)."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, max_iter=1000).fit(vectors, targets)
    return [int(label) for label in model.predict(tested)]


def vectors_of(coder: Coder, indices: Sequence[int], view, progress) -> tuple[np.ndarray, list[int]]:
    """(vectors (N, D), bytes of each) of many images."""
    vectors, sizes = [], []
    for start in range(0, len(indices), coder.judge.batch):
        part = indices[start : start + coder.judge.batch]
        sent, seen, _ = coder.through([view(index) for index in part])
        vectors.append(seen)
        sizes += sent
        progress.images(len(part))
    return np.concatenate(vectors), sizes


def _readable(data: Dataset, size: tuple[int, int], sizes: dict[tuple[int, int], Views]) -> list[int]:
    views = sizes.setdefault(size, Views(data, *size))
    kept = []
    for index in range(len(data.items)):
        try:
            views[index]
            kept.append(index)
        except ThinwireError:
            continue
    return kept


def _targets(data: Dataset, indices: Sequence[int]) -> list[int]:
    return [data.items[index].target for index in indices]


def _version() -> str:
    import sklearn

    return sklearn.__version__
