"""Empirical entropy of symbols, for closed forms that weigh bits against squared error."""

from __future__ import annotations

import numpy as np


def entropy(symbols: np.ndarray) -> np.ndarray:
    """Bits a symbol of each column of int (N, D), with Miller and Madow's correction for small samples: (D,)."""
    count, columns = symbols.shape
    width = int(np.ptp(symbols)) + 1
    flat = (symbols - symbols.min()) + width * np.arange(columns)
    share = np.bincount(flat.ravel(), minlength=width * columns).reshape(columns, width) / count
    bits = -(share * np.log2(np.where(share > 0, share, 1))).sum(1)
    return bits + ((share > 0).sum(1) - 1) / (2 * count * np.log(2))
