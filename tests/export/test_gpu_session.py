"""The prepared session for a lent GPU, run on the CPU: what it brings back is small and becomes a bundle."""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from export.bundles import make_bundle
from export.families import FAMILIES
from export.photographs.collection import open_photographs
from export.train import PRESETS, Trainer
from tests.export.photographs import write_pack
from thinwire.bundle import load_bundle

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "gpu_session.py"


@pytest.fixture(scope="module")
def session():
    spec = importlib.util.spec_from_file_location("gpu_session", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_decodes_once_trains_and_leaves_what_a_bundle_needs(session, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(PRESETS, "cpu", replace(PRESETS["cpu"], batch=2, crop=64, threads=1))
    pack, out = write_pack(tmp_path / "pack.tar"), tmp_path / "out"
    words = ["conv", "--preset", "cpu", "--steps", "2", "--images", str(pack), "--out", str(out)]
    assert session.main(words) == 0
    assert "36 of 36 photographs decoded" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {"checkpoint.pt", *session.KEPT}
    assert (out / "checkpoint.pt").stat().st_size < session.MOST_BYTES
    photographs = open_photographs([str(pack)])
    bundle = load_bundle(make_bundle(FAMILIES["conv"], out, out / "bundle", count=8, photographs=photographs))
    assert bundle.name == "conv"
    assert "36 photographs" in bundle.card.about["training"]["data"]


def test_compiled_nets_take_the_same_steps(settings, monkeypatch):
    """Through torch.compile's tracer; the back end that writes kernels is left out, it needs a compiler and minutes."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    losses = []
    for compiled in (False, True):
        trainer = Trainer(FAMILIES["conv"], replace(settings, compiled=compiled))
        trainer.progress = 0.3
        losses.append(trainer.step()["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
