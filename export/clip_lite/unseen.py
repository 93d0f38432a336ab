"""How a tower answers what it was never trained on: held-out class names, their calibration, and its temperature."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch

from export.clip_lite.classes import Classes

BINS = 15
SET_SIZE = 20  # labels of a request, for which the temperature is fitted
SETS = 20  # random sets that each photograph is asked with
RESAMPLES = 2000


@dataclass(frozen=True)
class Unseen:
    """top1, top5: percent, mean over the names, with the 95 % interval of top1 over resampled names; ece: expected
    calibration error in percent, 15 bins; best_scale: the logit scale of the least cross-entropy."""

    names: int
    photographs: int
    top1: float
    top1_low: float
    top1_high: float
    top5: float
    ece: float
    best_scale: float
    ece_at_best: float

    def as_json(self) -> dict[str, float]:
        return {key: round(value, 1) for key, value in asdict(self).items()}


def hits_by_name(logits: torch.Tensor, truth: torch.Tensor, k: int = 1) -> dict[int, float]:
    """logits (B, K), truth (B,) a column → of each truth the share of photographs with it among the first k."""
    right = (logits.topk(min(k, logits.shape[1]), 1).indices == truth[:, None]).any(1).float()
    return {name: float(right[truth == name].mean()) for name in truth.unique().tolist()}


def interval(values: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap of the mean of `values` (N,)."""
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), (resamples, len(values)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def calibration_error(probability: torch.Tensor, truth: torch.Tensor, bins: int = BINS) -> float:
    """Expected calibration error, 0..1 (Guo et al. 2017, arXiv 1706.04599): |accuracy - confidence| over equal bins.

    probability (B, K) sums to 1; truth (B,) int.
    """
    confidence, answer = probability.max(1)
    right = (answer == truth).float()
    place = (confidence * bins).long().clamp(max=bins - 1)
    error = sum(
        abs(float((right[place == each] - confidence[place == each]).sum())) for each in place.unique().tolist()
    )
    return error / len(truth)


def best_scale(cosine: torch.Tensor, truth: torch.Tensor) -> float:
    """The logit scale in 2..100 with the least cross-entropy; cosine (B, K), truth (B,)."""
    scales = torch.logspace(np.log10(2.0), 2, 120)
    losses = torch.stack([torch.nn.functional.cross_entropy(scale * cosine, truth) for scale in scales])
    return float(scales[losses.argmin()])


def candidates(
    image: torch.Tensor, text: torch.Tensor, classes: Classes, of_image: torch.Tensor, names: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(cosines (B, K) of the photographs whose name is among `names` (K,), columns of their names (B,)).

    image (B, D), text (C, D), of_image (B,). What does not exclude the truth (`car` for a sedan) can be no answer.
    """
    column = torch.full((len(classes.names),), -1)
    column[names] = torch.arange(len(names))
    truth = column[of_image]
    cosine = image @ text[names].T
    related = classes.related[of_image][:, names]
    related[torch.arange(len(truth)), truth] = False
    return cosine.masked_fill(related, -1.0), truth


def small_sets(
    cosine: torch.Tensor, truth: torch.Tensor, size: int, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each photograph with `SETS` random sets of `size` labels, its own among them, in column 0."""
    generator = torch.Generator().manual_seed(seed)
    size = min(size, cosine.shape[1])
    rows = []
    for _ in range(SETS):
        key = torch.rand(cosine.shape, generator=generator)
        key[cosine <= -1.0] = 2.0  # related names
        key[torch.arange(len(truth)), truth] = -1.0
        rows.append(cosine.gather(1, key.topk(size, 1, largest=False).indices))
    out = torch.cat(rows)
    return out, torch.zeros(len(out), dtype=torch.int64)


def measure(cosine: torch.Tensor, truth: torch.Tensor, scale: float) -> Unseen:
    """top-1 and top-5 among all columns; calibration and temperature over sets of `SET_SIZE` labels."""
    first = np.array(list(hits_by_name(cosine, truth).values()))
    fifth = np.array(list(hits_by_name(cosine, truth, 5).values()))
    low, high = interval(first)
    few, own = small_sets(cosine, truth, SET_SIZE)
    best = best_scale(few, own)
    return Unseen(
        len(first),
        len(truth),
        100 * float(first.mean()),
        100 * low,
        100 * high,
        100 * float(fifth.mean()),
        100 * calibration_error((scale * few).softmax(1), own),
        best,
        100 * calibration_error((best * few).softmax(1), own),
    )


def questions(classes: Classes) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Photographs (B,) and names (K,) that they are asked with: held-out names among themselves and among all, and
    spare photographs of trained names. Empty where nothing is held out."""
    held, every = torch.nonzero(classes.held).flatten(), torch.arange(len(classes.names))
    of_held = (classes.of_image >= 0) & classes.held[classes.of_image.clamp_min(0)]
    unseen, spare = torch.nonzero(of_held).flatten(), torch.nonzero(classes.spare & ~of_held).flatten()
    asked = {"unseen": (unseen, held), "unseen among all": (unseen, every), "spare": (spare, every)}
    return {title: (which, names) for title, (which, names) in asked.items() if len(which) and len(names) > 1}


def report(image: torch.Tensor, text: torch.Tensor, classes: Classes, scale: float) -> dict[str, Unseen]:
    """Of each of `questions`. image (N, D): of all photographs; text (C, D): of all names."""
    found = {}
    for title, (which, names) in questions(classes).items():
        cosine, truth = candidates(image[which], text, classes, classes.of_image[which], names)
        found[title] = measure(cosine, truth, scale)
    return found


def gains(
    before: tuple[torch.Tensor, torch.Tensor], after: tuple[torch.Tensor, torch.Tensor], classes: Classes
) -> dict[str, tuple[float, float, float]]:
    """Points of top-1 that `after` has over `before` in each of `questions`: mean over names, 95 % interval.

    Both are the vectors of all photographs (N, D) and of all names (C, D).
    """
    found = {}
    for title, (which, names) in questions(classes).items():
        hits = []
        for image, text in (before, after):
            cosine, truth = candidates(image[which], text, classes, classes.of_image[which], names)
            by_name = hits_by_name(cosine, truth)
            hits.append(np.array([by_name[name] for name in sorted(by_name)]))
        gain = hits[1] - hits[0]
        found[title] = tuple(round(100 * value, 1) for value in (float(gain.mean()), *interval(gain)))
    return found


def retrieval(image: torch.Tensor, text: torch.Tensor, owner: torch.Tensor) -> dict[str, float]:
    """R@1 and R@10 in percent, text to image and image to text. image (N, D), text (M, D); owner (M,): its image."""
    similarity = text @ image.T
    to_image = similarity.argsort(1, descending=True) == owner[:, None]
    to_text = owner[similarity.T.argsort(1, descending=True)] == torch.arange(len(image))[:, None]
    return {
        f"{label}_r{k}": round(100 * hits[:, :k].any(1).float().mean().item(), 1)
        for label, hits in (("text_to_image", to_image), ("image_to_text", to_text))
        for k in (1, 10)
    }
