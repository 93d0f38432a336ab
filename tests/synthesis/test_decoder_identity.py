"""What tells decoders apart where the model id does not: by this adapters, kept views and kept figures are bound."""

from __future__ import annotations

import json

import pytest

from benchmarks.codecs.grid import bundle_parameters
from synthesis.decoder_identity import DecoderIdentity, grain_hash, synthesis_hash
from tests.tiny_bundle import make_tiny_still
from thinwire.bundle import load_bundle


def with_grain(folder, grain):
    make_tiny_still(folder)
    card = json.loads((folder / "card.json").read_text())
    card["cloud"]["synthesis"]["grain"] = grain
    (folder / "card.json").write_text(json.dumps(card))
    return load_bundle(folder)


def test_grain_alone_makes_another_decoder_and_other_figures(tmp_path):
    grains = {"plain": [0.0, 0.0], "weak": [1.0, 0.0], "strong": [4.0, 0.0]}
    bundles = {name: with_grain(tmp_path / name, grain) for name, grain in grains.items()}
    assert len({bundle.model_id for bundle in bundles.values()}) == 1
    assert len({DecoderIdentity.of_bundle(bundle) for bundle in bundles.values()}) == 3
    kept_under = [json.dumps(bundle_parameters(bundle)) for bundle in bundles.values()]
    assert len(set(kept_under)) == 3


@pytest.mark.parametrize("name", ["still", "layered"])
def test_figures_of_what_ships_are_kept_under_the_names_of_before(name):
    bundle = load_bundle(name)
    assert grain_hash(bundle) is None
    assert bundle_parameters(bundle).keys() == {"model_id", "encoder", "files"}


def test_the_order_of_keys_and_the_form_of_numbers_do_not_count():
    assert synthesis_hash({"arch": "still", "grain": [0, 3]}) == synthesis_hash({"grain": [0.0, 3.0], "arch": "still"})
    assert synthesis_hash({"arch": "still", "grain": [0]}) != synthesis_hash({"arch": "still", "grain": [1]})
