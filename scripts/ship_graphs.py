"""Makes the ONNX form of the shipped CLIP (clip.json and its towers), and the graphs of what ships with it.

    python scripts/ship_graphs.py

To be run when clip-lite's weights change, or an architecture: graphs hold no weights, but clip.json names them.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cloud.networks.batchnorm_folding import folded
from cloud.networks.clip import load_clip
from cloud.networks.onnx_tower import tower_graph
from export.clip_onnx.artefact import write_artefact
from export.graphs import write_bundle_graph
from synthesis.clip_source import SHIPPED, shipped_clip_path
from synthesis.graph_files import SHIPPED_GRAPHS
from thinwire.bundle import load_bundle, shipped_bundles

if __name__ == "__main__":
    for old in SHIPPED_GRAPHS.glob("*.onnx"):
        old.unlink()
    print(write_artefact(SHIPPED, shipped_clip_path()))
    print(tower_graph(folded(load_clip()), SHIPPED_GRAPHS))  # for --runtime torch
    for bundle in map(load_bundle, shipped_bundles()):
        if bundle.card.cloud["files"]:  # a plain still has nothing to run
            print(write_bundle_graph(bundle, SHIPPED_GRAPHS))
