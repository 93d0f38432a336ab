"""Whether two image towers give one CLIP's vectors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MIN_COSINE = 0.9995
MIN_SAME_TOP1 = 0.995


@dataclass(frozen=True)
class Parity:
    """One form against another on the same images. cosine_min: of the worst; same_top1: share with one best label."""

    cosine_min: float
    same_top1: float

    @property
    def good(self) -> bool:
        return self.cosine_min >= MIN_COSINE and self.same_top1 >= MIN_SAME_TOP1


def compare(reference: np.ndarray, other: np.ndarray, classes: np.ndarray | None = None) -> Parity:
    """Unit vectors (N, D) of one set of images, twice; class vectors (L, D) decide the best label (None: 1.0 there)."""
    cosines = np.einsum("nd,nd->n", reference.astype(np.float64), other.astype(np.float64))
    worst = float(cosines.min()) if np.isfinite(cosines).all() else -1.0
    if classes is None:
        return Parity(worst, 1.0)
    same = (reference @ classes.T).argmax(axis=1) == (other @ classes.T).argmax(axis=1)
    return Parity(worst, float(same.mean()))
