"""Whom a codec serves: bytes saved against the best bare peer before each judge, and what predicts a stranger's answer.

A judge's curve is its agreement with its own answer to the uncompressed view; the serving CLIP's is top-1. The peer is
the hull of all image codecs of a group together: at each number of bytes the best of them. Their rungs were chosen on
other photographs (benchmarks/codecs/rungs.json), so a hull over few points on the judged images flatters them little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.codecs.grid import FAMILY, PEER
from benchmarks.results.curves import Curve, curves_of
from benchmarks.results.judged import agreeing, saw_pictures
from benchmarks.results.rows import Group
from benchmarks.results.saving import Matrices, Saving, saving_between
from benchmarks.stats.comparison import Correlation, correlate
from benchmarks.stats.critical_rate import Knee, find_knee
from benchmarks.stats.paired import cost_at

SERVING, FOREIGN_MEAN = "serving CLIP", "foreign judges, mean"
TOP1 = "top1"
PREDICTORS = {
    "packet_bytes": "bytes",
    "psnr_db": "PSNR",
    "ms_ssim": "MS-SSIM",
    "pooled_cosine": "cosine of the serving CLIP's vectors",
    "patch_cosine": "cosine of its patches",
}


@dataclass(frozen=True)
class Served:
    """One codec before one judge. same: bool (P, N), whether the judge holds to its answer (the serving CLIP: is right)
    at each point; sizes: float (P, N) bytes, NaN where an image failed. role: `own`, `foreign`, or None if unknown."""

    codec: str
    title: str
    kind: str
    judge: str
    role: str | None
    sizes: np.ndarray
    same: np.ndarray

    @property
    def mean_sizes(self) -> list[float]:
        return np.nanmean(self.sizes, axis=1).tolist()

    @property
    def shares(self) -> list[float]:
        return self.same.mean(axis=1).tolist()

    @property
    def matrices(self) -> Matrices:
        return self.sizes, self.same.astype(float)

    def knee(self, seed: int = 0) -> Knee:
        """The critical rate before this judge."""
        return find_knee(self.mean_sizes, self.same, seed)


def judge_names(group: Group) -> list[str]:
    """Of the panel that a group was shown."""
    return list(group.reference.get("judges", {}))


def served(group: Group, judge: str) -> list[Served]:
    """Every codec of a group before a judge of its panel, or before the serving CLIP. Codecs without pictures: none."""
    found = []
    for curve in curves_of(group, hull=False):
        if judge == SERVING:
            role, same = curve.points[0].get("clip_role"), curve.correct
        elif all(saw_pictures(point, judge) for point in curve.points):
            role = curve.points[0]["judges"][judge]["role"]
            same = np.array([agreeing(point, group.reference, judge) for point in curve.points])
        else:
            continue
        found.append(Served(curve.codec, curve.title, curve.kind, judge, role, _sizes(curve), same))
    return found


def hull_of_peers(curves: Sequence[Served]) -> Served | None:
    """All image codecs together; None where there are none."""
    peers = [each for each in curves if each.kind == PEER]
    if not peers:
        return None
    sizes, same = (np.concatenate([getattr(each, name) for each in peers]) for name in ("sizes", "same"))
    return Served("peers", "best bare peer", PEER, peers[0].judge, peers[0].role, sizes, same)


def savings(curves: Sequence[Served], seed: int = 0) -> dict[str, Saving]:
    """Each family among codecs before one judge → share of the best peer's bytes that it saves at equal answers."""
    hull = hull_of_peers(curves)
    families = [each for each in curves if each.kind == FAMILY and hull is not None]
    return {each.codec: saving_between(each.matrices, hull.matrices, seed) for each in families}


def summary(group: Group) -> list[dict[str, Any]]:
    """One entry for each family and judge (the serving CLIP and the foreign ones' mean among them): its role, shares at
    each rate, the bytes that the best peer takes for the same share, and the mean saving with its interval."""
    seed = group.reference["key"]["seed"]
    found = []
    for curves in (served(group, SERVING), *(served(group, name) for name in judge_names(group)), foreign_mean(group)):
        hull = hull_of_peers(curves)
        saved = savings(curves, seed)
        for each in curves:
            if each.kind != FAMILY:
                continue
            rates = []
            for size, share in zip(each.mean_sizes, each.shares):
                peer = None if hull is None else cost_at(hull.mean_sizes, hull.shares, share)
                rates.append(
                    {
                        "bytes_mean": round(size, 1),
                        "share": round(share, 4),
                        "best_peer_bytes": None if peer is None or peer.cost is None else round(peer.cost, 1),
                        "best_peer_at_most": bool(peer and peer.at_most),
                    }
                )
            saving = saved.get(each.codec, Saving(None, reason="no image codec was measured"))
            found.append({"codec": each.codec, "judge": each.judge, "role": each.role, "rates": rates, **vars(saving)})
    return found


def foreign_mean(group: Group) -> list[Served]:
    """Every codec before all foreign judges of the panel at once: their mean agreement, image by image."""
    found = []
    for codec in dict.fromkeys(each.codec for name in judge_names(group) for each in served(group, name)):
        own = [each for name in judge_names(group) for each in served(group, name) if each.codec == codec]
        foreign = [each for each in own if each.role == "foreign"]
        if foreign:
            first = foreign[0]
            same = np.mean([each.same for each in foreign], axis=0)  # float: a share of the judges
            found.append(Served(codec, first.title, first.kind, FOREIGN_MEAN, "foreign", first.sizes, same))
    return found


def predictors(group: Group) -> dict[str, Correlation]:
    """Spearman's correlation of a point's figure with the mean agreement of foreign judges, over all codecs' points."""
    shares = {each.codec: each.same for each in foreign_mean(group)}
    curves = [curve for curve in curves_of(group, hull=False) if curve.codec in shares]
    if not curves:
        return {}
    points = [point for curve in curves for point in curve.points]
    outcome = np.concatenate([shares[curve.codec] for curve in curves])
    figures = {name: np.array([point["images"][name] for point in points], float) for name in PREDICTORS}
    figures[TOP1] = np.concatenate([curve.correct for curve in curves]).astype(float)
    return {name: correlate(values, outcome) for name, values in figures.items()}


def _sizes(curve: Curve) -> np.ndarray:
    return np.array([point["images"]["packet_bytes"] for point in curve.points], float)  # None becomes NaN
