"""What an adapter of CLIP's image tower, or a tuned decoder, is worth: the same packets seen both ways, image by image.

At equal bytes the gain is a difference of top-1 on the same images. At equal accuracy it is the bytes that the plain
tower would need, read off its own curve, and the mean saving over the accuracies that both reach.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from benchmarks.accuracy.evaluate import Record
from benchmarks.results.rows import correct
from benchmarks.results.saving import saving_between
from benchmarks.stats.paired import cost_at, hits, mcnemar_p, paired_difference
from thinwire.errors import ThinwireError

if TYPE_CHECKING:
    from synthesis.adapter import Adapter
    from synthesis.variant import DecoderVariant
    from thinwire.bundle import Bundle

SUFFIX = "+adapter"
TUNED = "+decoder"


class NothingToCompare(ThinwireError):
    """An adapter was given, and nothing that is measured is what it is for."""

    reason: ClassVar[str] = "NOTHING_TO_COMPARE"


def load_for(path: str, bundles: Sequence[Bundle], decoders: Sequence[DecoderVariant] = ()) -> Adapter:
    """The adapter in `path`, which is for the pictures of one of `bundles`, or of the one of `decoders` that stands in
    for its decoder. Raises `AdapterError` or `NothingToCompare`."""
    from synthesis.adapter import load_adapter

    adapter = load_adapter(path)
    own = [bundle for bundle in bundles if bundle.picture_id == adapter.picture_id]
    if not own:
        raise NothingToCompare(f"--adapter {path} is for bundle {adapter.bundle!r}: measure that bundle")
    for bundle in own:
        adapter.check_bundle(bundle, decoders)
    return adapter


def gains(
    rates: Sequence[str], sizes: np.ndarray, plain: np.ndarray, adapted: Mapping[str, np.ndarray], seed: int = 0
) -> dict[str, Any]:
    """Every rate of a bundle against the same with an adapter at some of them.

    sizes: payload bytes float (P, N), NaN where an image failed; plain: bool (P, N), right or wrong; adapted: rate →
    bool (N,). `bytes_plain` of a row: what the plain tower needs for the adapted one's top-1, None beyond its curve.
    """
    with_adapter = np.array([adapted.get(rate, own) for rate, own in zip(rates, plain)])
    means = np.nanmean(sizes, axis=1)
    rows = []
    for rate, own, other, size in zip(rates, plain, with_adapter, means):
        if rate in adapted:
            gain, interval = paired_difference(other, own, seed)
            needed = cost_at(means, plain.mean(axis=1), other.mean())
            rows.append(
                {
                    "rate": rate,
                    "bytes_mean": round(float(size), 2),
                    "top1": round(float(own.mean()), 5),
                    "top1_adapted": round(float(other.mean()), 5),
                    "gain": round(gain, 5),
                    "gain_ci95": [round(end, 5) for end in interval],
                    "mcnemar_p": mcnemar_p(other, own),
                    "bytes_plain": None if needed.cost is None or needed.at_most else round(needed.cost, 1),
                }
            )
    saving = saving_between((sizes, with_adapter.astype(float)), (sizes, plain.astype(float)), seed)
    return {
        "n": int(plain.shape[1]),
        "rates": rows,
        "rate_saving": {
            "saving": saving.saving,
            "ci95": saving.ci95,
            "top1_between": saving.between,
            "reason": saving.reason,
        },
    }


def gains_of_records(
    records: Sequence[Record], codec: str, targets: Sequence[str], seed: int, suffix: str = SUFFIX
) -> dict[str, Any]:
    """The same from records of `codec` and of `codec` + suffix, on the same images with these true labels."""
    own = [record for record in records if record.codec == codec]
    plain = np.array([hits(record.predictions, targets, 1) for record in own])
    adapted = {each.rate: hits(each.predictions, targets, 1) for each in records if each.codec == codec + suffix}
    return gains([record.rate for record in own], np.array([each.sent_bytes for each in own]), plain, adapted, seed)


def gains_of_points(points: Sequence[Mapping[str, Any]], codec: str, prompt_set: str, seed: int) -> dict[str, Any]:
    """The same from stored points of `codec` and of `codec`+adapter, on the same images."""
    own = [point for point in points if point["codec"] == codec]
    sizes = [[np.nan if size is None else size for size in point["images"]["packet_bytes"]] for point in own]
    adapted = {each["rate"]: correct(each, prompt_set) for each in points if each["codec"] == codec + SUFFIX}
    plain = np.array([correct(point, prompt_set) for point in own])
    return gains([point["rate"] for point in own], np.array(sizes, float), plain, adapted, seed)


def lines(told: Mapping[str, Any], what: str = "adapter") -> list[str]:
    """The gains in words, one line a rate."""
    said = []
    for row in told["rates"]:
        low, high = row["gain_ci95"]
        top1 = f"{row['top1']:.3f} → {row['top1_adapted']:.3f}"
        needed = "" if row["bytes_plain"] is None else f"; without it that takes {row['bytes_plain']:.0f} B"
        said.append(
            f"{what} at {row['rate']}, {row['bytes_mean']:.0f} B: top-1 {top1}, "
            f"gain {row['gain']:+.3f} ({low:+.3f} to {high:+.3f}){needed}"
        )
    saving = told["rate_saving"]
    if saving["saving"] is not None:
        interval = "" if saving["ci95"] is None else f" ({saving['ci95'][0]:+.1%} to {saving['ci95'][1]:+.1%})"
        said.append(f"bytes saved at equal top-1: {saving['saving']:+.1%}{interval}")
    else:
        said.append(f"bytes saved at equal top-1: not told ({saving['reason']})")
    return said


def described(adapter: Adapter) -> dict[str, object]:
    return {"name": adapter.name, "clip": adapter.clip, "sha256": adapter.digest, "for": list(adapter.rates)}


def say_gains(gains: Mapping[str, Any], what: str = "adapter") -> None:
    print("\n".join(lines(gains, what)), file=sys.stderr)
