"""What a panel's answers in stored points say: agreement with its own answer to the uncompressed view, and top-1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.stats.paired import BOOTSTRAP_RESAMPLES, relative_top1


def judges_of(point: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, dict[str, Any] | None]:
    """One summary for each judge of a point; None where it was shown no pictures (a codec that sends vectors).

    role; agreement (with its own answer to the uncompressed view) and agreement_ci95; top1_relative and ci95, None
    where the data set's labels are none of its classes. Intervals are 95 % paired bootstraps over images.
    """
    return {name: _summary(point, reference, name) for name in point.get("judges", {})}


def agreeing(point: Mapping[str, Any], reference: Mapping[str, Any], name: str) -> np.ndarray:
    """bool (N,): whether a judge answers as it does of the uncompressed view. A failed image disagrees."""
    seen, original = (each["judges"][name]["answers"] for each in (point, reference))
    return np.array([a is not None and a == b for a, b in zip(seen, original)], dtype=bool)


def right(point: Mapping[str, Any], name: str) -> np.ndarray | None:
    """bool (N,): whether a judge names the true class; None where the labels are none of its classes."""
    judge = point["judges"][name]
    if judge["targets"] is None:
        return None
    wanted = [judge["targets"][target] for target in point["targets"]]
    return np.array([a == b for a, b in zip(judge["answers"], wanted)], dtype=bool)


def saw_pictures(point: Mapping[str, Any], name: str) -> bool:
    """Whether the point holds any answer of that judge."""
    return any(answer is not None for answer in point["judges"][name]["answers"])


def _summary(point: Mapping[str, Any], reference: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    if not saw_pictures(point, name):
        return None
    same, seed = agreeing(point, reference, name), point["key"]["seed"]
    correct, uncompressed = right(point, name), right(reference, name)
    ratio = interval = None
    if correct is not None and uncompressed is not None:
        ratio, interval = relative_top1(correct, uncompressed, seed)
    drawn = np.random.default_rng(seed).binomial(same.size, same.mean(), BOOTSTRAP_RESAMPLES) / same.size
    return {
        "role": point["judges"][name]["role"],
        "top1_relative": None if ratio is None else round(ratio, 5),
        "ci95": None if interval is None else [round(end, 5) for end in interval],
        "agreement": round(float(same.mean()), 5),
        "agreement_ci95": [round(float(end), 5) for end in np.percentile(drawn, [2.5, 97.5])],
    }
