from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
import torch

from export.augment import crops
from export.bundles import training_views
from export.families import CONV
from export.onnx_export import ParityError, check_parity, encode_views, export_encoder, session
from export.photographs.collection import open_photographs
from synthesis.onnx_file import OPSET

LOW, HIGH, SIDE = -3, 3, 96


@pytest.fixture(scope="module")
def views(photos_train):
    return np.ascontiguousarray(training_views(open_photographs(), 3)[:, :SIDE, :SIDE])


@pytest.fixture(scope="module")
def analysis(photos_train, views):
    """The closed-form start of family `conv`: its symbols follow the picture, which random weights would not show."""
    net = CONV.analysis()
    generator = torch.Generator().manual_seed(0)
    net.initialise(crops(open_photographs(), 64, 100, generator, "cpu"))
    return net.eval()


@pytest.fixture(scope="module")
def path(analysis, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "encoder.onnx"
    export_encoder(analysis, LOW, HIGH, SIDE, path)
    return path


def test_the_file_is_alone_and_keeps_the_wire_contract(path):
    assert [file.name for file in path.parent.iterdir()] == ["encoder.onnx"]  # no .onnx.data beside it
    assert onnx.load(path).opset_import[0].version == OPSET
    net = session(path)
    assert net.get_providers() == ["CPUExecutionProvider"]
    (image,), (symbols,) = net.get_inputs(), net.get_outputs()
    assert (image.name, image.type, image.shape[1:]) == ("image", "tensor(uint8)", [SIDE, SIDE, 3])
    assert (symbols.name, symbols.type) == ("symbols", "tensor(int32)")
    assert isinstance(image.shape[0], str)  # a name, not a number: any batch


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 17])
def test_any_batch_gives_each_image_its_own_symbols(path, views, batch):
    picked = views[np.arange(batch) % len(views)]
    symbols = session(path).run(["symbols"], {"image": picked})[0]
    assert (symbols.shape, symbols.dtype) == ((batch, CONV.channels, SIDE // 16, SIDE // 16), np.int32)
    alone = encode_views(path, views)
    assert (symbols == alone[np.arange(batch) % len(views)]).mean() > 0.999  # ties in rounding may fall either way


def test_symbols_stay_in_their_range_and_use_it(path, views):
    hostile = np.stack([np.zeros_like(views[0]), np.full_like(views[0], 255), 255 - views[0]])
    hostile = np.concatenate([hostile, views, np.random.default_rng(0).integers(0, 256, views.shape, np.uint8)])
    symbols = encode_views(path, hostile)
    assert symbols.dtype == np.int32
    assert (symbols.min(), symbols.max()) == (LOW, HIGH)


def test_progress_counts_every_image(path, views):
    counted = []
    encode_views(path, np.repeat(views, 7, axis=0), progress=counted.append)  # 21 images
    assert counted == [16, 5]


def test_parity_holds_for_the_net_that_was_exported(analysis, path, views):
    parity = check_parity(analysis, LOW, HIGH, path, views)
    assert (parity.images, parity.largest_difference <= 1) == (3, True)
    assert parity.equal_share >= 0.999


@pytest.mark.parametrize("strength", [0.01, 0.5], ids=["a few symbols by one step", "many symbols by several"])
def test_parity_fails_when_the_net_was_changed_after_export(analysis, path, views, strength):
    changed = copy.deepcopy(analysis)
    torch.manual_seed(0)
    with torch.no_grad():
        changed.skip.weight += strength * changed.skip.weight.std() * torch.randn_like(changed.skip.weight)
    with pytest.raises(ParityError, match=r"encoder\.onnx: \d+\.\d+% of symbols equal torch's") as caught:
        check_parity(changed, LOW, HIGH, path, views)
    assert str(path) in str(caught.value)


def test_one_symbol_far_off_fails_whatever_the_share(analysis, path, views):
    """A single channel turned around is a broken net even if a lenient floor would let its share pass."""
    changed = copy.deepcopy(analysis)
    with torch.no_grad():
        changed.skip.bias[0] += 2.6
    with pytest.raises(ParityError, match=r"largest difference [2-6]"):
        check_parity(changed, LOW, HIGH, path, views, floor=0.5)
