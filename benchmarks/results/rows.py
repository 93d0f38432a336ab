"""Points as rows: one for each operating point and prompt set, with everything that is read off a curve.

Rows come in groups that may be compared with one another: the same pictures, CLIP, seed, versions and machine.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.codecs.grid import FAMILY, PEER, REFERENCE
from benchmarks.judges.metrics import TOP_K
from benchmarks.results.judged import judges_of
from benchmarks.results.store import ResultsError
from benchmarks.stats.paired import hits, mcnemar_p, mean_per_class_recall, pareto_front, relative_top1

_OWN = ("kind", "codec", "rate", "parameters", "version")  # what tells points of one group apart


@dataclass(frozen=True)
class Group:
    """Comparable points: the reference first. `title`: what tells this group from the others, for a person."""

    points: tuple[dict[str, Any], ...]
    title: str

    @property
    def reference(self) -> dict[str, Any]:
        return self.points[0]

    @property
    def prompt_sets(self) -> list[str]:
        return list(self.reference["answers"])


def group_points(points: Sequence[dict[str, Any]]) -> list[Group]:
    """Points of one experiment by what they share. A group whose reference is not measured yet is left out."""
    shared: dict[str, list[dict[str, Any]]] = {}
    for point in points:
        key = {name: value for name, value in point["key"].items() if name not in _OWN}
        shared.setdefault(json.dumps(key, sort_keys=True), []).append(point)
    whole = [group for group in shared.values() if any(point["kind"] == REFERENCE for point in group)]
    whole.sort(key=lambda group: (group[0]["data"]["name"], group[0]["clip"], group[0]["n"], group[0]["key"]["seed"]))
    titles = _titles([group[0] for group in whole])
    return [Group(tuple(sorted(group, key=_order)), title) for group, title in zip(whole, titles)]


def _titles(points: Sequence[dict[str, Any]]) -> list[str]:
    """Short names; whatever else two groups differ in is added where a name alone would stand for both."""
    titles = [f"{point['data']['name']}, {_clip_name(point['clip'])}, {point['n']} images" for point in points]
    for tell in (
        lambda point: f"seed {point['key']['seed']}",
        lambda point: f"pictures {point['key']['answers_sha256'][:6]}",
        lambda point: f"CLIP {point['clip'].rpartition('#')[2][:6]} on {point['device']}",
        lambda point: "testbed " + hashlib.sha256(json.dumps(point["testbed"]).encode()).hexdigest()[:6],
        lambda point: "prompts " + " ".join(point["prompt_sets"]),
    ):
        repeated = {title for title in titles if titles.count(title) > 1}
        titles = [f"{t}, {tell(point)}" if t in repeated else t for t, point in zip(titles, points)]
    return titles


def _clip_name(clip_id: str) -> str:
    return clip_id.partition("#")[0]


def _order(point: Mapping[str, Any]) -> tuple:
    kinds = (REFERENCE, FAMILY, PEER)
    return kinds.index(point["kind"]), point["codec"], _version(point), _mean(point["images"]["packet_bytes"]) or 0.0


def _version(point: Mapping[str, Any]) -> str:
    """What made a codec's bytes, its one rate or quality apart: the bundle's files, or the library's version."""
    parameters = {key: point["parameters"].get(key) for key in ("model_id", "files", "encoder", "view")}
    return hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()[:6]


def rows_of(group: Group, prompt_set: str | None = None) -> list[dict[str, Any]]:
    """One row for each point of a group (and prompt set, unless one is named), families' and peers' hulls marked.

    A codec of which a group holds two versions (a bundle trained further, another library) becomes codec@version, so
    that a curve never joins points of both.
    """
    versions: dict[str, set[str]] = {}
    for point in group.points:
        versions.setdefault(point["codec"], set()).add(_version(point))
    rows = []
    for name in [prompt_set] if prompt_set else group.prompt_sets:
        if name not in group.reference["answers"]:
            raise ResultsError(f"{group.title}: was not measured with prompt set {name!r}: run the study with it")
        own = [row_of(point, group.reference, name) for point in group.points]
        for row, point in zip(own, group.points):
            if len(versions[point["codec"]]) > 1:
                row["codec"] = f"{point['codec']}@{_version(point)}"
        for codec in dict.fromkeys(row["codec"] for row in own):
            of_codec = [row for row in own if row["codec"] == codec]
            sizes = [math.nan if row["bytes_mean"] is None else row["bytes_mean"] for row in of_codec]
            for index in pareto_front(sizes, [row["top1"] for row in of_codec]):
                of_codec[index]["hull"] = of_codec[index]["kind"] != REFERENCE
        rows += own
    return rows


def correct(point: Mapping[str, Any], prompt_set: str, k: int = 1) -> np.ndarray:
    """bool (N,): whether the true label is among the first k. A failed image is a miss."""
    return hits(point["answers"][prompt_set]["top"], point["targets"], k)


def row_of(point: Mapping[str, Any], reference: Mapping[str, Any], prompt_set: str) -> dict[str, Any]:
    """Failed images count as wrong in every accuracy and are left out of every mean. Units are in the names."""
    images, answers, targets = point["images"], point["answers"][prompt_set], point["targets"]
    top1, uncompressed = correct(point, prompt_set), correct(reference, prompt_set)
    ratio, interval = relative_top1(top1, uncompressed, point["key"]["seed"])
    sent = _mean(images["packet_bytes"])
    height, width = point["view"]  # one denominator for all, whatever a codec shrinks
    return {
        "data": point["data"]["name"],
        "clip": point["clip"],
        "prompt_set": prompt_set,
        "kind": point["kind"],
        "codec": point["codec"],
        "rate": point["rate"],
        "bytes_mean": _round(sent, 2),
        "message_bytes_mean": _round(_mean(images["message_bytes"]), 2),
        "wire_bytes_mean": _round(_mean(images["wire_bytes"]), 2),
        "bits_per_pixel": None if sent is None else _round(8 * sent / (height * width), 5),
        "top1": _round(_share(top1), 5),
        "top5": _round(_share(correct(point, prompt_set, TOP_K)), 5),
        "top1_relative": _round(ratio, 5),
        "top1_relative_ci95": None if interval is None else [_round(end, 5) for end in interval],
        "mcnemar_p": mcnemar_p(top1, uncompressed),
        "mean_per_class_recall": _round(mean_per_class_recall(top1, targets), 5),
        "psnr_db": _round(_mean(images["psnr_db"]), 3),
        "ms_ssim": _round(_mean(images["ms_ssim"]), 5),
        "perceptual": _round(_mean(images["perceptual"]), 5),
        "pooled_cosine": _round(_mean(images["pooled_cosine"]), 5),
        "patch_cosine": _round(_mean(images["patch_cosine"]), 5),
        "margin": _round(_margin(answers), 5),
        "encode_ms_p50": _round(_median(images["encode_ms"]), 3),
        "round_trip_ms_p50": _round(_median(images["round_trip_ms"]), 3),
        "n": point["n"],
        "seed": point["key"]["seed"],
        "failed": point["failed"],
        "failure_messages": point["failure_messages"],
        "hull": False,
        "clip_role": point.get("clip_role"),
        "judges": judges_of(point, reference),
        "parameters": point["parameters"],
    }


def _margin(answers: Mapping[str, Sequence[float | None]]) -> float | None:
    """Mean zero-shot margin (arXiv 2310.00927): similarity to the true class minus the best other."""
    pairs = zip(answers["true_similarity"], answers["other_similarity"])
    return _mean([None if own is None or other is None else own - other for own, other in pairs])


def _share(flags: np.ndarray) -> float | None:
    return float(flags.mean()) if flags.size else None


def _mean(values: Sequence[float | None]) -> float | None:
    kept = [value for value in values if value is not None]
    return float(np.mean(kept)) if kept else None


def _median(values: Sequence[float | None]) -> float | None:
    kept = [value for value in values if value is not None]
    return float(np.median(kept)) if kept else None


def _round(value: float | None, digits: int) -> float | None:
    return None if value is None else round(float(value), digits)
