"""Engines of a tiny CLIP and one tiny bundle."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cloud.engine.calibration import Calibration, LayerCalibration, write_calibration
from cloud.engine.engine import Engine
from cloud.networks.assemble import open_engine
from tests.cloud.tiny_clip import write_tiny_clip
from thinwire.bundle import Bundle


@contextlib.contextmanager
def tiny_engine(folder: Path, bundle: Bundle) -> Iterator[Engine]:
    """Its files go into `folder`. Which label wins means nothing."""
    clip = write_tiny_clip(folder / "tiny-random-clip")
    with open_engine(str(clip), [bundle.path], "cpu", 1, cache_dir=folder / "heads") as engine:
        yield engine


@contextlib.contextmanager
def calibrated_engine(folder: Path, bundle: Bundle) -> Iterator[Engine]:
    """The same; its calibration, written into the bundle, says of one layer: sure to 0.5, of two: to 0.8."""
    with tiny_engine(folder, bundle) as probe:
        clip_id = probe.heads.clip.id
    one = LayerCalibration(1.0, np.array([0.0]), np.array([0.5]))
    two = LayerCalibration(1.0, np.array([0.0]), np.array([0.8]))
    write_calibration(bundle, clip_id, Calibration((one, two)), "by hand", 0)
    with tiny_engine(folder, bundle) as engine:
        yield engine
