from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from export.augment import crops
from export.bundles import training_views
from export.families import CONV
from export.onnx_export import ParityError, encode_views, export_encoder
from export.photographs.collection import open_photographs
from export.quantise import float_nodes, quantise_encoder
from synthesis.onnx_file import OPSET

SIDE = 96


@pytest.fixture(scope="module")
def views(photos_train):
    return np.ascontiguousarray(training_views(open_photographs(), 8)[:, :SIDE, :SIDE])


@pytest.fixture(scope="module")
def source(photos_train, views, tmp_path_factory):
    net = CONV.analysis()
    net.initialise(crops(open_photographs(), 64, 100, torch.Generator().manual_seed(0), "cpu"))
    path = tmp_path_factory.mktemp("onnx") / "encoder.onnx"
    export_encoder(net.eval(), CONV.low, CONV.high, SIDE, path)
    return path


@pytest.fixture(scope="module")
def int8(source, views):
    path = source.with_name("encoder.int8.onnx")
    return path, quantise_encoder(source, path, views, views, floor=0.9)


def test_symbols_are_almost_those_of_fp32(source, int8, views):
    path, parity = int8
    wanted, got = encode_views(source, views), encode_views(path, views)
    assert parity.images == len(views)
    assert parity.equal_share == (wanted == got).mean() > 0.9
    assert parity.mean_difference == pytest.approx(np.abs(wanted - got).mean())
    assert parity.largest_difference == 1
    assert path.stat().st_size < 0.7 * source.stat().st_size


def test_layout_is_u8_activations_and_s8_weights_with_a_scale_for_each_channel(int8):
    model = onnx.load(int8[0])
    values = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    made = {name: node for node in model.graph.node for name in node.output}
    seen = 0
    for node in model.graph.node:
        if node.op_type == "Conv" and node.input[0] in made and made[node.input[0]].op_type == "DequantizeLinear":
            image, weight = (made[name] for name in node.input[:2])
            if weight.op_type != "DequantizeLinear":
                continue
            seen += 1
            assert values[image.input[2]].dtype == np.uint8
            assert values[weight.input[0]].dtype == np.int8
            assert values[weight.input[1]].shape == (values[weight.input[0]].shape[0],)
    assert seen > 10
    assert [(each.domain, each.version) for each in model.opset_import] == [("", OPSET)]
    assert len(model.graph.input) == len(model.graph.output) == 1
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8


def test_below_the_floor_nothing_is_left(source, views, tmp_path):
    target = tmp_path / "encoder.int8.onnx"
    with pytest.raises(ParityError, match=r"% of symbols equal fp32's \(need 100\.0%\).*use encoder\.onnx"):
        quantise_encoder(source, target, views[:2], views, floor=1.0)
    assert not target.exists()


def test_both_ends_and_branches_stay_in_float():
    """image → a → b → c → join → d → e, and image → side → join: `side` is first, `join` is judged by the long way."""

    def conv(name, source):
        return helper.make_node("Conv", [source, "w"], [name], name=name)

    nodes = [
        conv("a", "image"),
        conv("b", "a"),
        conv("c", "b"),
        conv("side", "image"),
        helper.make_node("Add", ["c", "side"], ["join"], name="join"),
        conv("d", "join"),
        conv("e", "d"),
        helper.make_node("Round", ["e"], ["symbols"], name="round"),
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", [], []))
    assert float_nodes(model, first=1, last=1) == ["a", "side", "e", "round"]
    assert float_nodes(model, first=2, last=2) == ["a", "b", "side", "join", "d", "e", "round"]
