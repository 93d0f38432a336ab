"""The network that restores stills: starts as the plain picture, learns, resumes, and can be left off by rung."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from export import restoring
from export.restoring import RestoreSettings, Stills, fidelity, train_restoring
from synthesis.grain import grain_pattern
from synthesis.still import RestoreSynthesis, StillSynthesis, restore_spec
from tests.tiny_bundle import make_tiny_still, synthetic_views


class Views:
    """Synthetic photographs behind the face of `export.photographs`."""

    def __init__(self, count: int, seed: int) -> None:
        self._views = synthetic_views(count, restoring.SIZE, seed)

    def sample(self, count: int, seed: int = 0) -> np.ndarray:
        return np.arange(len(self._views))[:count]

    def take(self, ids: np.ndarray) -> np.ndarray:
        return self._views[ids]


SETTINGS = RestoreSettings(steps=3, count=4, versions=2, batch=2)


@pytest.fixture(scope="module")
def spec(tmp_path_factory) -> dict:
    card = make_tiny_still(tmp_path_factory.mktemp("still") / "bundle").card
    return {**restore_spec(card.wire, card.cloud["synthesis"]), "widths": [8, 8, 8], "blocks": [1, 1]}


def test_untrained_it_shows_what_the_plain_still_shows(spec):
    net = RestoreSynthesis(**{key: value for key, value in spec.items() if key != "arch"}).eval()
    plain = StillSynthesis(spec["grain"], spec["size"])
    planes = torch.from_numpy(synthetic_views(2, 64)).permute(0, 3, 1, 2).float()
    rungs = torch.tensor([1, 2])
    with torch.inference_mode():
        assert torch.allclose(net(planes, rungs), plain(planes, rungs), atol=1e-6)


def test_a_rung_of_strength_0_is_left_alone_and_each_picture_gets_its_own(spec):
    arguments = {key: value for key, value in spec.items() if key != "arch"} | {"strength": [0.0, 1.0]}
    net = RestoreSynthesis(**arguments).eval()
    torch.nn.init.normal_(net.out.weight, 0, 0.1)
    plain = StillSynthesis(spec["grain"], spec["size"])
    planes = torch.from_numpy(synthetic_views(2, 64)).permute(0, 3, 1, 2).float()
    rungs = torch.tensor([1, 2])
    with torch.inference_mode():
        together, wanted = net(planes, rungs), plain(planes, rungs)
        assert torch.allclose(together[0], wanted[0], atol=1e-6)
        assert not torch.allclose(together[1], wanted[1], atol=1e-3)
        assert torch.allclose(together[1:], net(planes[1:], rungs[1:]), atol=1e-4)


def test_training_goes_on_where_it_stopped_and_gives_the_same_weights_again(spec, tmp_path):
    training, unseen = Views(4, 1), Views(2, 2)
    weights = train_restoring(spec, training, unseen, SETTINGS, tmp_path / "a")
    again = train_restoring(spec, training, unseen, SETTINGS, tmp_path / "b")
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert (tmp_path / "a" / "held_out.jsonl").read_text().count("gain_db") >= 1
    resumed = train_restoring(spec, training, unseen, SETTINGS, tmp_path / "a")  # its run is over
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)


def test_stills_to_learn_from_are_coded_once_and_stay_small(tmp_path):
    stills = Stills(Views(3, 3), SETTINGS, tmp_path / "stills.npz")
    again = Stills(Views(3, 3), SETTINGS, tmp_path / "stills.npz")
    assert len(stills) == len(again) == 6
    seen, original, told = again.pairs(np.arange(6))
    assert seen.shape == original.shape == (6, 224, 224, 3)
    assert told.shape == (6, 2)
    assert 0 < np.abs(seen.astype(int) - original).mean() < 40


def test_fidelity_is_least_for_the_original():
    original = torch.from_numpy(synthetic_views(2, 64)).permute(0, 3, 1, 2).float() / 255
    losses = [fidelity(original + sigma * torch.randn_like(original), original).item() for sigma in (0, 0.02, 0.1)]
    assert losses == sorted(losses)
    assert losses[0] < 0.01


def test_grain_is_the_same_on_every_machine():
    pattern = grain_pattern(224, 224)
    assert abs(pattern.mean()) < 0.02
    assert pattern.std() == pytest.approx(1, abs=0.01)
    assert pattern[0, :4].tolist() == pytest.approx([-0.0202977, 0.7848415, 2.1989095, 1.4208338], abs=1e-6)
