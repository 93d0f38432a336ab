"""What a CLIP is, as a hash: bundles that decode into its space name it, servers compare.

Here because the workshop writes the hash and the cloud checks it, and those two never import each other.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def clip_fingerprint(model: torch.nn.Module, preprocess: dict[str, Any]) -> str:
    """16 hex digits over every weight and the preprocessing: the file format does not matter, the content does."""
    digest = hashlib.sha256(json.dumps(preprocess, sort_keys=True, default=str).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()[:16]
