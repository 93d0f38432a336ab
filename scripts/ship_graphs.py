"""Writes the graphs of the shipped CLIP's image tower and of the shipped bundles' decoders, for `cloud/onnx_graph.py`.

    python scripts/ship_graphs.py

To be run when an architecture changes, not when weights do: graphs hold none.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import synthesis
from cloud.networks.batchnorm_folding import folded
from cloud.networks.clip import load_clip
from cloud.networks.onnx_export import SHIPPED_GRAPHS
from cloud.networks.onnx_synthesis import decoder_graph
from cloud.networks.onnx_tower import tower_graph
from thinwire.bundle import load_bundle, shipped_bundles

if __name__ == "__main__":
    for old in SHIPPED_GRAPHS.glob("*.onnx"):
        old.unlink()
    print(tower_graph(folded(load_clip()), SHIPPED_GRAPHS))
    for bundle in map(load_bundle, shipped_bundles()):
        net = synthesis.load(bundle)
        if net.state_dict():  # a plain still has nothing to run
            print(decoder_graph(bundle, net, SHIPPED_GRAPHS))
