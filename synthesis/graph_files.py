"""Where the graphs of decoders lie: files without weights, named by what they are of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from thinwire.bundle import MODELS

OPSET = 18
SHIPPED_GRAPHS = MODELS / "graphs"


def graph_name(kind: str, spec: Mapping[str, Any], shape: Sequence[int]) -> str:
    """The file of a graph: spec: as `synthesis.build` takes it; shape: of one item's symbols, which graphs fix."""
    text = json.dumps([OPSET, spec, list(shape)], sort_keys=True, default=list)
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.onnx"


def find_graph(name: str, folders: Sequence[Path]) -> Path | None:
    """The first file of that name in `folders`, or of those that ship."""
    places = [folder / name for folder in (*folders, SHIPPED_GRAPHS)]
    return next((place for place in places if place.is_file()), None)
