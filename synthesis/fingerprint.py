"""What a CLIP is, as a hash: bundles that decode into its space name it, servers compare.

Here because the workshop writes the hash and the cloud checks it, and those two never import each other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np


def clip_fingerprint(model: Any, preprocess: dict[str, Any]) -> str:
    """As `weights_fingerprint`, of a loaded model (a torch module)."""
    weights = {name: value.detach().cpu().contiguous().numpy() for name, value in model.state_dict().items()}
    return weights_fingerprint(weights, preprocess)


def weights_fingerprint(weights: Mapping[str, np.ndarray], preprocess: dict[str, Any]) -> str:
    """16 hex digits over every weight and the preprocessing: the file format does not matter, the content does."""
    digest = hashlib.sha256(json.dumps(preprocess, sort_keys=True, default=str).encode())
    for name, value in sorted(weights.items()):
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(np.ascontiguousarray(value).data)
    return digest.hexdigest()[:16]
