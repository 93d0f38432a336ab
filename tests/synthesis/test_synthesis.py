"""Decoder nets by their spec, and what the cloud may count on: shapes, range, and layers that were never sent."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

import synthesis
from cloud.decode import Decoder
from tests.tiny_bundle import SYNTHESIS, random_decoder
from thinwire.bundle import load_bundle, shipped_bundles
from thinwire.errors import BadCard, BundleError, MissingFile
from thinwire.packet import Packet

SHIPPED = {
    name: json.loads((path / "card.json").read_text())["cloud"]["synthesis"] for name, path in shipped_bundles().items()
}
# Of nets that decode symbols; tests/export/test_restoring.py has the one that restores stills
SPECS = {"tiny": SYNTHESIS} | {name: spec for name, spec in SHIPPED.items() if spec["arch"] == "pixels"}


@pytest.fixture(params=SPECS.values(), ids=SPECS, scope="module")
def spec(request):
    return request.param


@pytest.fixture(scope="module")
def net(spec):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return synthesis.build(spec).eval()


def symbols(spec, *shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-15, 16, (shape[0], spec["channels"], *shape[1:]), generator=generator).float()


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 3), (3, 4, 2)])
def test_pictures_have_16_pixels_a_symbol_and_stay_in_range(net, spec, shape):
    count, height, width = shape
    with torch.inference_mode():
        image = net(symbols(spec, *shape), torch.ones(count, dtype=torch.int64))
    assert (image.shape, image.dtype) == ((count, 3, 16 * height, 16 * width), torch.float32)
    assert 0 <= image.min() <= image.max() <= 1


def test_each_image_of_a_batch_is_decoded_with_its_own_layer_count(net, spec):
    """The engine stacks packets of different rates: nobody's layer count may leak to a neighbour."""
    with torch.no_grad():
        net.layer_bias.weight.normal_(0, 1, generator=torch.Generator().manual_seed(1))
        counts = torch.arange(1, spec["layers"] + 1)
        batch = symbols(spec, 1, 2, 2).expand(len(counts), -1, -1, -1)
        together = net.unclamped(batch, counts)
        for row, count in enumerate(counts):
            alone = net.unclamped(batch[row : row + 1], count[None])
            torch.testing.assert_close(together[row : row + 1], alone, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(together[0], together[-1])
        net.layer_bias.weight.zero_()


def test_the_training_view_is_the_same_picture_before_the_clamp(net, spec):
    with torch.inference_mode():
        x, counts = symbols(spec, 2, 2, 2), torch.tensor([1, spec["layers"]])
        assert torch.equal(net(x, counts), net.unclamped(x, counts).clamp(0, 1))


@pytest.mark.parametrize("spec", [{"arch": "wavelets"}, {}, {"arch": None}, {"channels": 6}])
def test_an_unknown_arch_is_one_typed_error_that_names_the_known_ones(spec):
    with pytest.raises(BadCard, match="pixels"):
        synthesis.build(spec)


@pytest.mark.parametrize(
    "change", [{"widths": [8, 8]}, {"colour": "red"}, {"channels": "six"}], ids=["too few", "unknown", "wrong type"]
)
def test_arguments_that_do_not_fit_are_a_typed_error(change):
    with pytest.raises(BadCard, match="do not fit"):
        synthesis.build(SYNTHESIS | change)


def test_a_missing_argument_is_a_typed_error():
    with pytest.raises(BadCard, match="blocks"):
        synthesis.build({key: value for key, value in SYNTHESIS.items() if key != "blocks"})


def test_load_takes_the_trained_weights(tiny_bundle_with_decoder):
    from safetensors.torch import load

    net = synthesis.load(tiny_bundle_with_decoder)
    assert not net.training
    for name, value in load(random_decoder()).items():
        assert torch.equal(net.state_dict()[name], value), name


def test_load_never_runs_on_random_weights(tiny_bundle):
    """A bundle of the edge carries no decoder: that is an error, not a noisy picture."""
    with pytest.raises(MissingFile, match=r"decoder\.safetensors"):
        synthesis.load(tiny_bundle)


def test_weights_of_another_net_are_refused(tiny_bundle_with_decoder, monkeypatch):
    monkeypatch.setitem(tiny_bundle_with_decoder.card.cloud, "synthesis", SYNTHESIS | {"widths": [8, 8, 12]})
    with pytest.raises(BundleError, match="does not fit"):
        synthesis.load(tiny_bundle_with_decoder)


def test_symbols_of_layers_that_were_not_sent_change_nothing(tiny_bundle_with_decoder):
    """Two latents that differ only in later layers: their prefixes are one packet and one picture."""
    bundle = tiny_bundle_with_decoder
    decoder, rng = Decoder([bundle]), np.random.default_rng(0)
    first = rng.integers(-5, 6, bundle.latent_shape, dtype=np.int32)
    for count, (_, stop) in enumerate(bundle.coder.layers[:-1], start=1):
        other = first.copy()
        other[stop:] = rng.integers(-5, 6, other[stop:].shape)
        packets = [Packet(bundle.model_id, tuple(bundle.coder.encode(each))) for each in (first, other)]
        pictures = [decoder.picture(packet.to_bytes()) for packet in packets]
        assert not np.array_equal(*pictures)
        prefixes = [packet.prefix(count).to_bytes() for packet in packets]
        assert prefixes[0] == prefixes[1]
        shown = decoder.picture(prefixes[0])
        masked = torch.from_numpy(np.where(np.arange(len(first))[:, None, None] < stop, other, 0)).float()[None]
        with torch.inference_mode():
            image = synthesis.load(bundle)(masked, torch.tensor([count]))[0]
        np.testing.assert_array_equal(shown, image.mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy())
        assert not any(np.array_equal(shown, picture) for picture in pictures)


@pytest.mark.parametrize("name", shipped_bundles())
def test_a_shipped_decoder_fits_its_card(name):
    bundle = load_bundle(name)
    decoder = Decoder([bundle])
    kind = np.int32 if bundle.coder.exact else np.uint8
    zeros = Packet(bundle.model_id, tuple(bundle.coder.encode(np.zeros(bundle.latent_shape, kind))))
    for count in range(1, len(zeros.layers) + 1):
        picture = decoder.picture(zeros.prefix(count).to_bytes())
        assert (picture.shape, picture.dtype) == ((*bundle.input_size, 3), np.uint8)
