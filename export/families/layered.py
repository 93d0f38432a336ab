"""Family `layered`: the light encoder of `conv` under nested dropout, so that every prefix of its channels is a rate.

Nested dropout (Rippel, Gelbart & Adams 2014, arXiv 1402.0915): each training image is decoded from a random prefix of
the layers, so the first layers learn what every rate needs and each further one refines. Layers are small at the start
of the ladder, where a byte moves the answer most.
"""

from __future__ import annotations

from export.families.base import Family
from export.families.conv import ConvAnalysis

LAYERED = Family(
    name="layered",
    channels=60,
    layers=((0, 6), (6, 12), (12, 20), (20, 28), (28, 42), (42, 60)),
    layer_bytes=(110.0, 120.0, 160.0, 180.0, 370.0, 480.0),
    rates=(("tiny", 1), ("low", 2), ("fair", 3), ("mid", 4), ("high", 5), ("max", 6)),
    synthesis_spec={"arch": "pixels", "channels": 60, "layers": 6, "widths": [160, 64, 32], "blocks": [3, 2, 1]},
    build_analysis=ConvAnalysis,
)
