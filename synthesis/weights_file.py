"""Weights from safetensors files as numpy arrays, without torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from thinwire.checkpoint_help import explained


def read_weights(path: Path, wanted: Callable[[str], bool] = lambda _: True) -> dict[str, np.ndarray]:
    """{name: array} of a safetensors file's tensors that are `wanted`; half precision becomes float32.

    Raises `ValueError`, which names the file, for one that is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            found = {name: file.get_tensor(name) for name in file.keys() if wanted(name)}  # noqa: SIM118
    except (OSError, SafetensorError, TypeError) as error:  # TypeError: bfloat16, which numpy lacks
        why = explained(path) if path.is_file() else None
        raise ValueError(f"{path}: cannot be read ({why or error})") from error
    return {name: value.astype(np.float32) if value.dtype == np.float16 else value for name, value in found.items()}


def half_precision(value: Any) -> np.ndarray:
    """An array, or a tensor of torch, as float16."""
    return np.asarray(value.detach().cpu().numpy() if hasattr(value, "detach") else value, np.float16, order="C")
