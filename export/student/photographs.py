"""Which photographs a student has not learnt from: what is measured on the others flatters it."""

from __future__ import annotations

import numpy as np

from export.photographs.collection import Photographs
from export.student.distil import UNSEEN
from thinwire.bundle import Bundle


def not_learnt_from(bundle: Bundle, photographs: Photographs, count: int, seed: int) -> list[int]:
    """At most `count` ids of `photographs`, by seed: none of those that the card of `bundle` says it learnt from.

    These can be told only where the card's own sources are those of `photographs`, in the same order.
    """
    settings = bundle.card.about.get("training", {}).get("settings", {})
    learnt: set[int] = set()
    if "backbone" in settings:
        training, _ = photographs.split(UNSEEN)
        learnt = set(training.sample(settings["count"], settings["seed"]).tolist())
    left = [photo for photo in photographs.all_ids().tolist() if photo not in learnt]
    chosen = np.random.default_rng(seed).permutation(len(left))[:count]
    return [left[place] for place in sorted(chosen.tolist())]
