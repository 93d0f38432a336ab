"""Bundles of every family after a few training steps, by the commands that users run; and where the shipped ones lie.

What such a bundle answers means nothing; that it obeys every rule of a bundle means everything. Needs the extra
`export` and scikit-image's photographs, which stand for photos-train.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from thinwire.bundle import shipped_bundles

STEPS = 2


def family_names() -> list[str]:
    """Every family that there is, the shipped bundles' names first."""
    from export.families import FAMILIES, embedding

    return list(dict.fromkeys([*shipped_bundles(), *FAMILIES, embedding.NAME]))


def bundle_of(name: str, root: Path) -> Path:
    """The folder of the shipped bundle `name`, or of one made in `root`, with the cache that makes the next cheaper."""
    if name in shipped_bundles():
        return shipped_bundles()[name]
    from export import bundles, photos, train
    from export.cli import main
    from export.families import embedding
    from tests.export.photographs import stand_in, write_pack

    if not (root / "photos-train.tar").exists():
        write_pack(root / "photos-train.tar")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(photos, "data_root", lambda: root)
        patch.setenv("THINWIRE_CACHE", str(root / "cache"))
        if name == embedding.NAME:
            patch.setattr(bundles, "training_views", stand_in)
            out = root / name
            assert main(["embedding", "--clip", "clip-lite", "--out", str(out), "--count", "160"]) == 0
            return out
        patch.setitem(train.PRESETS, "cpu", replace(train.PRESETS["cpu"], batch=2, crop=96, tuning_crop=96))
        words = ["train", name, "--preset", "cpu", "--steps", str(STEPS), "--threads", "1"]
        assert main([*words, "--out", str(root / name)]) == 0
    return root / name / "bundle"
