"""The encoder session: right symbols, one packet whatever the threads, and every broken bundle told by name."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from edge.encoder import Encoder, default_rate
from edge.errors import EncoderError
from tests import tiny_bundle as tiny
from tests.edge.odd_images import bad_images, good_images, picture
from thinwire.errors import BundleError, ImageError, MissingFile, RateError
from thinwire.packet import Packet


def test_symbols_are_those_of_the_net(encoder):
    views = tiny.synthetic_views(8, 64, seed=9)
    got = np.stack([encoder.symbols(view) for view in views])
    assert got.dtype == np.int32
    off = np.abs(got - tiny.analyse(views))
    assert off.max() <= 1
    assert (off > 0).mean() < 0.01  # ties in rounding


def test_a_packet_decodes_to_the_symbols_layer_by_layer(encoder, tiny_bundle):
    view = tiny.synthetic_views(1, 64, seed=4)[0]
    symbols = encoder.symbols(view)
    sizes = []
    for rate, layers in tiny.RATES:
        encoded = encoder.encode(view, rate)
        packet = Packet.from_bytes(encoded.packet.to_bytes())
        kept = tiny.LAYERS[layers - 1][1]
        assert len(packet.layers) == layers == encoder.layers_of(rate)
        np.testing.assert_array_equal(tiny_bundle.decode(packet)[:kept], symbols[:kept])
        assert not tiny_bundle.decode(packet)[kept:].any()
        assert encoded.encode_ms > 0
        assert encoded.code_ms > 0
        sizes.append(len(packet))
    assert sizes == sorted(set(sizes))


def test_threads_do_not_change_packets(tiny_bundle, encoder):
    two = Encoder(tiny_bundle, threads=2)
    for view in tiny.synthetic_views(6, 64, seed=2):
        assert two.encode(view, "high").packet == encoder.encode(view, "high").packet


def test_every_odd_image_becomes_a_packet_and_pillow_objects_the_same_one(encoder, tmp_path):
    for path in good_images(tmp_path):
        from_path = encoder.encode_image(path, "high")
        assert from_path.decode_image_ms > 0
        assert from_path.preprocess_ms > 0
        assert encoder.encode_image(str(path), "high").packet == from_path.packet
        assert encoder.encode_image(path.read_bytes(), "high").packet == from_path.packet
        with Image.open(path) as image:
            assert encoder.encode_image(image, "high").packet == from_path.packet, path.name


def test_frames_and_rotated_photographs_are_seen_upright(encoder, tmp_path):
    good_images(tmp_path)
    upright = picture()
    assert encoder.encode_image(np.asarray(upright), "high").packet == encoder.encode_image(upright, "high").packet
    rotated = encoder.symbols(
        encoder.bundle.view(Image.open(tmp_path / "rotated.jpg").transpose(Image.Transpose.ROTATE_270))
    )
    with Image.open(tmp_path / "rotated.jpg") as image:
        packet = encoder.encode_image(image, "high").packet
    np.testing.assert_array_equal(encoder.bundle.decode(packet), rotated)


def test_bad_images_are_image_errors_that_name_the_file(encoder, tmp_path):
    for path in bad_images(tmp_path):
        with pytest.raises(ImageError, match=path.name):
            encoder.encode_image(path, "low")
    with Image.open(tmp_path / "cut.jpg") as lazy, pytest.raises(ImageError, match=r"cut\.jpg"):
        encoder.encode_image(lazy, "low")
    with pytest.raises(ImageError, match="not int"):
        encoder.encode_image(7, "low")
    with pytest.raises(ImageError, match="uint8"):
        encoder.encode_image(np.zeros((8, 8, 3)), "low")


@pytest.mark.parametrize(
    "view", [np.zeros((64, 64), np.uint8), np.zeros((64, 64, 3), np.float32), np.zeros((63, 64, 3), np.uint8), None]
)
def test_a_view_of_another_shape_is_refused(encoder, view):
    with pytest.raises(EncoderError, match=r"uint8 \(64, 64, 3\)"):
        encoder.symbols(view)


def test_options_are_checked_by_name(tiny_bundle, encoder):
    with pytest.raises(RateError, match="low, mid, high"):
        encoder.encode(np.zeros((64, 64, 3), np.uint8), "enormous")
    with pytest.raises(MissingFile, match="int8"):
        Encoder(tiny_bundle, precision="int8")
    with pytest.raises(BundleError, match="fp8"):
        Encoder(tiny_bundle, precision="fp8")
    with pytest.raises(EncoderError, match="cpu, cuda"):
        Encoder(tiny_bundle, provider="tpu")
    for threads in (0, -1, 100_000):
        with pytest.raises(EncoderError, match="threads"):
            Encoder(tiny_bundle, threads=threads)
    assert default_rate(tiny_bundle) == "mid"


def test_a_provider_that_does_not_run_is_an_error_not_a_fallback(tiny_bundle):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA compiled in")
    with pytest.raises(EncoderError, match="edge-gpu"):
        Encoder(tiny_bundle, provider="cuda")


def edited(encoder: bytes, last: str) -> bytes:
    """The tiny encoder with its last step replaced."""
    model = onnx.load_from_string(encoder)
    nodes = model.graph.node
    if last == "float":
        del nodes[-1]
        nodes[-1].output[0] = "symbols"
        model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    elif last == "far":
        nodes[-1].output[0] = "near"
        model.graph.initializer.append(numpy_helper.from_array(np.array(100, np.int32), "hundred"))
        nodes.append(helper.make_node("Add", ["near", "hundred"], ["symbols"]))
    elif last == "flat":
        nodes[-1].output[0] = "deep"
        model.graph.initializer.append(numpy_helper.from_array(np.array([-1, 6], np.int64), "shape"))
        nodes.append(helper.make_node("Reshape", ["deep", "shape"], ["symbols"]))
        del model.graph.output[0].type.tensor_type.shape.dim[2:]
    elif last == "renamed":
        for node in nodes:
            node.input[:] = ["picture" if name == "image" else name for name in node.input]
        model.graph.input[0].name = "picture"
    elif last == "narrow":
        model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 32
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("last", "says"),
    [
        ("float", "card says int32"),
        ("far", r"card says -15\.\.15"),
        ("flat", "card says int32"),
        ("renamed", "takes uint8 'image'"),
        ("narrow", "export it again"),
    ],
)
def test_an_encoder_that_breaks_its_card_is_refused_before_any_image(last, says, tmp_path, monkeypatch):
    broken_net = edited(tiny.encoder_onnx(64), last)
    monkeypatch.setattr(tiny, "encoder_onnx", lambda size: broken_net)
    broken = tiny.make_tiny_bundle(tmp_path / last)
    with pytest.raises(EncoderError, match=says) as caught:
        Encoder(broken)
    assert "encoder.onnx" in str(caught.value)


def test_a_file_that_is_no_onnx_is_refused_in_one_line(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(tiny, "encoder_onnx", lambda size: b"not a net")
    with pytest.raises(EncoderError, match="cannot load it") as caught:
        Encoder(tiny.make_tiny_bundle(tmp_path / "junk"))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""
